"""Decoder layers that drafters own: one more layer of the base model's class, with keys and values of its own."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import topk_positions
from .families import CACHE

__all__ = ["DraftCache", "new_layer", "relaxed_causal_mask", "rotary_of", "run_layer", "top_ranked"]

#: Rows of a prompt that a drafter's layer reads at a time: its mask is dense.
CHUNK = 256


def new_layer(model: Any, source: int | None = None) -> nn.Module:
    """A decoder layer of the base model's class.

    Args:
        model: a causal model of a tested family.
        source: index of the base model's layer whose weights it begins with; None: the class's own initialisation.

    Returns:
        The layer, in float32 and in evaluation mode. It has a configuration of its own, so that patching the base
        model's attention does not reach it; it takes its mask from the caller, so that windows do not matter.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    layers = model.base_model.layers
    layer = type(layers[0])(config, 0).float()
    if source is None:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    else:
        layer.load_state_dict(layers[source].state_dict())
    return layer.eval()


def rotary_of(model: Any, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The base model's rotary factors ``(cos, sin)`` for rows ``x [B, T, d]`` at ``positions [B, T]``."""
    return model.base_model.rotary_emb(x, positions)


def run_layer(
    layer: nn.Module, x: Tensor, positions: Tensor, rotary: tuple, mask: Tensor, cache: Any = None
) -> Tensor:
    """One layer over rows.

    Args:
        layer: from :func:`new_layer`.
        x: ``[B, T, d]``.
        positions: ``[B, T]`` int64.
        rotary: from :func:`rotary_of`.
        mask: bool, ``[B, 1, T, S]`` or what broadcasts to it; true is seen.
        cache: a :class:`DraftCache`, or None where the rows see each other only.

    Returns:
        ``[B, T, d]``.
    """
    # Not -inf: a row that sees nothing would be NaN.
    scores = torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
    scores = scores.masked_fill(~mask, torch.finfo(x.dtype).min)
    out = layer(
        x,
        attention_mask=scores,
        position_ids=positions,
        position_embeddings=rotary,
        **{CACHE: cache},
    )
    return out[0] if isinstance(out, tuple) else out


def relaxed_causal_mask(length: int, block: int, from_end: bool = True) -> Tensor:
    """Who sees whom when blocks of rows are never split: all of a row's block, and every block before it.

    Args:
        length: rows, L.
        block: k, rows of a block; 1 is the causal mask.
        from_end: blocks are counted from the last row, so that the first one may be incomplete (this is how a
            drafter is run, whatever the number of new rows); else from the first row.

    Returns:
        ``[L, L]`` bool; true at ``[i, j]`` where row i sees row j.

    Example:
        >>> relaxed_causal_mask(3, 2, from_end=False).int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    row = torch.arange(length)
    number = -((length - 1 - row) // block) if from_end else row // block
    return number[None, :] <= number[:, None]


def top_ranked(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits, best first; ties to the lowest id, NaN last.

    Args:
        logits: ``[..., V]``.
        k: how many, at most V.

    Returns:
        ``[..., k]`` int64.
    """
    logits = logits.float().contiguous()
    # A set in ascending order first: then a stable sort of few breaks ties by id.
    positions = topk_positions(logits, None, min(k, logits.shape[-1]))[0].long()
    # -inf and NaN are never selected; where too few are left the rest is filled with the lowest ids.
    if bool((positions < 0).any()):
        finite = logits.masked_fill(logits.isnan(), float("-inf"))
        return finite.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    order = logits.gather(-1, positions).sort(dim=-1, descending=True, stable=True).indices
    return positions.gather(-1, order)


class DraftCache:
    """Keys and values of one layer of a drafter. Every sequence has a length of its own and begins at slot 0.

    Rows of a forward go behind what a sequence has: behind its committed rows and ``staged`` ones. :meth:`advance`
    commits rows; whatever is not committed is overwritten.

    Args:
        batch: sequences.
    """

    def __init__(self, batch: int):
        self.lengths = [0] * batch
        self.staged = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Put the rows ``[B, H, T, D]`` of a forward into place; returns all keys and values ``[B, H, S, D]``."""
        batch, _, rows, _ = keys.shape
        end = max(self.lengths) + self.staged + rows
        self._keys = self._grown(self._keys, keys, end)
        self._values = self._grown(self._values, values, end)
        slots = torch.tensor(self.lengths, device=keys.device)[:, None] + self.staged
        slots = slots + torch.arange(rows, device=keys.device)
        where = torch.arange(batch, device=keys.device)[:, None]
        self._keys[where, :, slots] = keys.transpose(1, 2)
        self._values[where, :, slots] = values.transpose(1, 2)
        return self._keys[:, :, :end], self._values[:, :, :end]

    def mask(self, among: Tensor) -> Tensor:
        """The mask of a forward: committed rows are seen, others where ``among`` says so.

        Args:
            among: bool ``[B or 1, T, staged + T]``, of the T new rows over staged and new ones.

        Returns:
            ``[B, 1, T, S]`` bool, S as :meth:`update` gives it.
        """
        _, rows, width = among.shape
        lengths = torch.tensor(self.lengths, device=among.device)
        slot = torch.arange(max(self.lengths) + self.staged + rows, device=among.device)
        beyond = slot[None, :] - lengths[:, None]
        index = beyond.clamp(0, width - 1)[:, None].expand(-1, rows, -1)
        seen = among.expand(len(lengths), -1, -1).gather(2, index)
        return ((beyond < 0)[:, None] | (seen & ((beyond >= 0) & (beyond < width))[:, None]))[:, None]

    def advance(self, counts: Sequence[int]) -> None:
        """The first ``counts[b]`` rows behind the committed ones are committed; nothing is staged any more."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.staged = 0

    def truncate(self, lengths: Sequence[int]) -> None:
        """Keep the first rows of every sequence; nothing is staged any more."""
        self.lengths = [min(a, b) for a, b in zip(self.lengths, lengths, strict=True)]
        self.staged = 0

    def select(self, rows: list[int]) -> None:
        """Keep some sequences, in the order given."""
        self.lengths = [self.lengths[row] for row in rows]
        if self._keys is not None and self._values is not None:
            index = torch.tensor(rows, device=self._keys.device, dtype=torch.int64)
            self._keys, self._values = self._keys[index], self._values[index]

    def _grown(self, held: Tensor | None, new: Tensor, end: int) -> Tensor:
        have = 0 if held is None else held.shape[2]
        if held is not None and end <= have:
            return held
        batch, heads, _, size = new.shape
        # Zeros: what is not written yet is masked, but takes part in products.
        grown = new.new_zeros(batch, heads, max(end, 2 * have, 64), size)
        if held is not None:
            grown[:, :, :have] = held
        return grown
