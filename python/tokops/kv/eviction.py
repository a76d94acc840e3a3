"""Eviction, for comparison only: what is left of quality when the tokens that MiKV would demote are dropped.

The rule is that of H2O (Zhang et al., arXiv 2306.14048): half of a fixed share of the tokens are the newest, half are
those with the largest attention so far. It is played as a *selection* over a full cache: dropped tokens are never
read again, so that every prediction is that of a cache without them, while speed and memory are those of the
full cache and are not reported.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tokops.hf.prompts import Prompt
from tokops.kvcache import attention_colsum, attention_mass
from tokops.methods import LayerReader, Method, ModelShape, Selection, Step

__all__ = ["Eviction"]

#: Families whose attention is no plain softmax of the scores, which is what is summed here.
_OTHER_SOFTMAX = ("gemma2", "gpt_oss")


@dataclass
class _Layer:
    """Committed tokens of one layer, and what a forward that may yet be taken back adds to them."""

    kept: Tensor  # bool [Hkv, L]
    mass: Tensor  # float32 [Hkv, L]
    added: Tensor | None = None  # mass of the last forward's rows, [Hkv, L + rows]


@dataclass(frozen=True)
class Eviction(Method):
    """Drop all but a share of the tokens, the newest and those that were attended to most (H2O).

    It serves one cache of one sequence at a time, which begins with :meth:`start`.

    Args:
        ratio: part of all tokens that is kept, half of it the newest.
        sinks: first tokens that are kept always.
        demote: whether tokens are dropped while decoding as after the prompt.

    Raises:
        ValueError: a number out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ("select",)

    ratio: float = 0.25
    sinks: int = 4
    demote: bool = True
    _layers: dict[int, _Layer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"Eviction: ratio must be above 0 and at most 1, got {self.ratio}")
        if self.sinks < 0:
            raise ValueError(f"Eviction: sinks must be >= 0, got {self.sinks}")

    def resolve(self, shape: ModelShape) -> "Eviction":
        if shape.family in _OTHER_SOFTMAX or any(window is not None for window in shape.windows):
            raise ValueError(f"Eviction: attention of {shape.family} is not a plain softmax over the whole context")
        return self

    def start(self, prompt: Prompt) -> None:
        """Rank the tokens of a prompt by the attention they received, and drop all but the best."""
        self._layers.clear()
        layers = zip(prompt.queries, prompt.keys, prompt.options, strict=True)
        for index, (q, k, options) in enumerate(layers):
            mass, _ = attention_colsum(q, k.transpose(1, 2), None, scale=options["scale"])
            kept = torch.ones(mass.shape[1:], dtype=torch.bool, device=mass.device)
            self._layers[index] = _Layer(kept, mass[0])
            self._drop(self._layers[index])

    def kept_share(self) -> float:
        """Part of the tokens that is kept now, over all layers and heads."""
        return sum(float(x.kept.float().mean()) for x in self._layers.values()) / len(self._layers)

    def select(self, reader: LayerReader, step: Step) -> Selection | None:
        if reader.layer not in self._layers:
            raise NotImplementedError("Eviction knows no prompt: it is for comparisons, call start(prompt) first")
        layer = self._layers[reader.layer]
        self._commit(layer, step.past)
        rows = reader.q.shape[1]
        kept = torch.nn.functional.pad(layer.kept, (0, rows), value=True)
        scores = reader.scores("none")[0].masked_fill(~kept.repeat_interleave(_group(reader), 0), -math.inf)[None]
        added = attention_mass(scores, scores.logsumexp(-1), reader.kv_heads)[0]
        layer.added = torch.nn.functional.pad(layer.mass, (0, rows)) + added
        # All heads keep as many, so that the lists are a rectangle.
        positions = kept.nonzero()[:, 1].view(reader.kv_heads, -1).int()[None, None]
        counts = torch.full_like(positions[..., 0], positions.shape[-1])
        return Selection(positions, counts)

    def _commit(self, layer: _Layer, past: int) -> None:
        """Take over the last forward's tokens, unless they were taken back."""
        held = layer.kept.shape[1]
        if layer.added is not None and past > held:
            if past != layer.added.shape[1]:
                raise NotImplementedError("Eviction takes back all tokens of a forward or none")
            layer.kept = torch.nn.functional.pad(layer.kept, (0, past - held), value=True)
            layer.mass = layer.added
            if self.demote:
                self._drop(layer)
        elif past != held:
            raise NotImplementedError(f"Eviction has ranked {held} tokens, the cache holds {past}: call start()")
        layer.added = None

    def _drop(self, layer: _Layer) -> None:
        length = layer.kept.shape[1]
        recent = math.ceil(self.ratio * length / 2)
        budget = min(max(math.ceil(self.ratio * length), recent + self.sinks), length)
        rank = layer.mass.masked_fill(~layer.kept, -math.inf)
        rank[:, length - recent :] = math.inf
        rank[:, : self.sinks] = math.inf
        best = rank.topk(budget, -1).indices
        layer.kept = torch.zeros_like(layer.kept).scatter_(1, best, True)


def _group(reader: LayerReader) -> int:
    return reader.q.shape[2] // reader.kv_heads
