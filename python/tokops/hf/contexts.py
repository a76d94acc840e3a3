"""A document that is prefilled once and then decoded from in many ways."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from .families import CACHE

__all__ = ["Context", "prefill", "twin"]


@dataclass(frozen=True)
class Context:
    """The cache of a prefilled document, to be copied into caches of any class.

    Attributes:
        keys, values: one ``[1, Hkv, L, D]`` tensor per layer.
        logits: ``[V]`` float32, the prediction after the last token.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    logits: Tensor

    @property
    def tokens(self) -> int:
        """L, the length of the document."""
        return self.keys[0].shape[2]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one cached token takes in all layers."""
        parts = (*self.keys, *self.values)
        return sum(x.shape[1] * x.shape[3] * x.element_size() for x in parts)

    def to(self, dtype: torch.dtype) -> "Context":
        """The same cache in another precision; the logits stay."""
        return Context(
            tuple(x.to(dtype) for x in self.keys), tuple(x.to(dtype) for x in self.values), self.logits
        )

    def fill(self, cache: Cache, batch: int = 1) -> Cache:
        """Append a copy of the document for every row of a batch to an empty cache, and return the cache."""
        for layer, (k, v) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1), layer)
        return cache


@torch.no_grad()
def prefill(
    model: PreTrainedModel, ids: Tensor, chunk: int = 1024, tick: Callable[[int], None] = lambda tokens: None
) -> Context:
    """Read a document with the stock model.

    Args:
        model: an unpatched model whose layers are all full attention.
        ids: ``[1, L]`` int64.
        chunk: tokens per forward.
        tick: called with the number of tokens after every forward, for a progress bar.
    """
    cache = DynamicCache(config=model.config)
    for part in ids.split(chunk, dim=1):
        logits = model(part, **{CACHE: cache}, use_cache=True, logits_to_keep=1).logits
        tick(part.shape[1])
    return Context(
        tuple(layer.keys for layer in cache.layers),
        tuple(layer.values for layer in cache.layers),
        logits[0, -1].float(),
    )


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model with a configuration and hooks of its own over the same weights, for decoding in turns."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
