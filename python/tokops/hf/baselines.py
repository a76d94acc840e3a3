"""What our cache is measured against: transformers' own caches, and the best one in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    CacheLayerMixin,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["PackedLayer", "dynamic_cache", "packed_cache", "static_cache", "use_packed_attention"]

_NAME = "tokops_baseline_packed"


def dynamic_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """The default of ``generate``: it grows, and copies itself, at every step. ``room`` is not needed."""
    return DynamicCache(config=model.config)


def static_cache(model: PreTrainedModel, room: int) -> StaticCache:
    """Preallocated for ``room`` tokens; attention reads all of them under a mask."""
    return StaticCache(config=model.config, max_cache_len=room)


class PackedLayer(CacheLayerMixin):
    """Preallocated keys and values ``[B, Hkv, room, D]``, ``update`` returns the live part."""

    is_compileable, is_sliding = False, False

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the dtype, device and heads of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, dim = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.room, dim)
        self.values = torch.empty_like(self.keys)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write the new tokens in place."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.room:
            raise RuntimeError(f"the preallocated cache holds {self.room} tokens, {self.length} were given")
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys after the next update, and the position of the first."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens there is room for."""
        return self.room


def packed_cache(model: PreTrainedModel, room: int) -> Cache:
    """One :class:`PackedLayer` per layer of the model, for a model under :func:`use_packed_attention`."""
    return Cache(layers=[PackedLayer(room) for _ in range(model.config.num_hidden_layers)])


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """A decode step folds group heads into query rows; anything longer runs as stock does it."""
    batch, _, length, dim = query.shape
    if length > 1 or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    rows = query.view(batch, key.shape[1], -1, dim)
    out = scaled_dot_product_attention(rows, key, value, scale=scaling)
    return out.reshape(batch, 1, -1, dim), None


def _mask(*args, **kwargs):
    """No mask for a step of one token; a step without padding sees everything."""
    if kwargs["q_length"] == 1 and kwargs.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


def use_packed_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Switch a model to the attention that goes with :func:`packed_cache`, and return it."""
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)
    return model
