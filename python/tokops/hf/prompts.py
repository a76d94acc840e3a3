"""A prompt that is read once and then put into caches of any store, as a forward would have put it there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..methods import Dense
from .cache import PagedCache, Plan
from .contexts import twin
from .families import CACHE
from .layers import PagedLayer
from .patching import patch

__all__ = ["Prompt", "read_prompt"]


@dataclass(frozen=True)
class Prompt:
    """What every layer of a model saw of a prompt.

    Prompts are attended to in full precision, so that this is the same for every store. Stores that rank tokens
    or balance channels when they absorb a prompt need its queries too.

    Attributes:
        ids: ``[T]`` int64.
        queries: one ``[1, T, Hq, D]`` tensor per layer.
        keys, values: one ``[1, Hkv, T, D]`` tensor per layer.
        options: per layer, the arguments of its attention.
    """

    ids: Tensor
    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    options: tuple[dict, ...]

    @property
    def tokens(self) -> int:
        """T, the length of the prompt."""
        return len(self.ids)

    def fill(self, cache: PagedCache) -> PagedCache:
        """Put the prompt into an empty cache of the same model, and return the cache."""
        cache.prompt_length = self.tokens
        for index, (q, k, v) in enumerate(zip(self.queries, self.keys, self.values, strict=True)):
            layer, _ = cache.update(k, v, index)
            layer.absorb(q, self.options[index])
        return cache


class _RecordingLayer(PagedLayer):
    """Full-precision pages that remember what they were given."""

    tick: Callable[[int], None]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        self.new = key_states, value_states
        return super().update(key_states, value_states)

    def absorb(self, q: Tensor, options: dict) -> None:
        self.seen = q, options
        self.tick(1)


class _Recorder(PagedCache):
    def __init__(self, config, plan: Plan, tick: Callable[[int], None]):
        super().__init__(config, plan)
        self.layers = [_RecordingLayer(x.index, x.state, x.window) for x in self.layers]
        for layer in self.layers:
            layer.tick = tick


@torch.no_grad()
def read_prompt(
    model: PreTrainedModel, ids: Tensor, tick: Callable[[int], None] = lambda layers: None
) -> Prompt:
    """Read a prompt in one forward.

    Args:
        model: an unpatched model of a tested family.
        ids: ``[T]`` int64.
        tick: called with 1 after every layer, for a progress bar.
    """
    own = twin(model)
    with patch(own, Dense()) as run:
        cache = _Recorder(own.config, run.new_cache(len(ids)).state.plan, tick)
        cache.prompt_length = len(ids)
        own(ids[None].to(own.device), **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    layers = cache.layers
    return Prompt(
        ids,
        tuple(layer.seen[0] for layer in layers),
        tuple(layer.new[0] for layer in layers),
        tuple(layer.new[1] for layer in layers),
        tuple(layer.seen[1] for layer in layers),
    )
