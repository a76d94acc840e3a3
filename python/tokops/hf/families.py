"""The model families we have tested, and what a method may know of a model."""

import dataclasses
import hashlib
import json

from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..methods import ModelShape

#: transformers' ``model_type`` of every family that tests/hf runs.
FAMILIES = (
    "gemma2", "gpt_oss", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe",
)  # fmt: skip

#: What transformers calls the cache in calls and results: "cache" from 5.24 on, "past_key_values" before.
CACHE = (
    "cache"
    if "cache" in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}
    else "past_key_values"
)

_VOLATILE = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "name_or_path",
    "output_attentions", "output_hidden_states", "pad_token_id", "quantization_config", "return_dict", "torch_dtype",
    "transformers_version", "use_cache", "id2label", "label2id", "problem_type",
}  # fmt: skip


def given_cache(arguments: dict):
    """The cache among keyword arguments, by its new or its old name; None if there is none."""
    return arguments.get("cache", arguments.get("past_key_values"))


def check_model(model) -> None:
    """Refuse what is not a decoder of a tested family.

    Raises:
        TypeError: not a transformers model.
        ValueError: a family that was never tested, or a decoder that is not causal.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"tokops.patch needs a transformers model, got {type(model).__name__}")
    family = model.config.model_type
    if family not in FAMILIES:
        raise ValueError(
            f"tokops.patch has not been tested on model family {family!r}; it supports {', '.join(FAMILIES)}"
        )
    if not getattr(model.config, "is_causal", True):
        raise ValueError("tokops.patch needs a causal model, this configuration says is_causal=False")


def shape_of(config) -> ModelShape:
    """The shape of a model, from its configuration."""
    layers = DynamicCache(config=config).layers
    return ModelShape(
        family=config.model_type,
        name=(config._name_or_path or "").rstrip("/").rsplit("/", 1)[-1],
        digest=digest(config),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab=config.vocab_size,
        windows=tuple(getattr(layer, "sliding_window", None) for layer in layers),
    )


def digest(config) -> str:
    """A short hash of everything in a configuration that shapes the computation.

    Only what differs from the family's defaults counts, so that a field which another release of transformers adds
    or drops changes nothing.
    """
    usual = type(config)().to_dict()
    values = {
        k: v for k, v in config.to_dict().items() if k in usual and v != usual[k] and k not in _VOLATILE
    }
    values["model_type"] = config.model_type
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
