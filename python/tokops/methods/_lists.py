"""Lists of positions out of scores: positions that are always kept, and the union of lists of several heads."""

import torch
from torch import Tensor

from ..attention import topk_positions
from .base import LayerReader

_INF = float("inf")


def kept_positions(reader: LayerReader, sinks: int, recent: int) -> Tensor:
    """Which slots every decoding row keeps, of those it sees: its first ``sinks`` and its last ``recent`` positions.

    Returns ``[B or 1, T, L]`` bool.
    """
    position, key = reader.positions[..., None], reader.key_positions[:, None]
    first = 0 if reader.starts is None else reader.starts[:, None, None]
    return (key < first + sinks) | (key > position - recent)


def keep_always(scores: Tensor, reader: LayerReader, sinks: int, recent: int) -> Tensor:
    """Raise kept positions above all others, in place: ``scores [B, T, Hs, L]``. What a row cannot see stays out."""
    if scores.shape[1] == 1 and reader.starts is None and not reader.drafted:
        if sinks:
            scores[..., :sinks] = _INF
        scores[..., max(0, reader.length - recent) :] = _INF
        return scores
    kept = kept_positions(reader, sinks, recent)[:, :, None] & ~scores.isneginf()
    return scores.masked_fill_(kept, _INF)


def rank_major_union(scores: Tensor, size: int) -> Tensor:
    """One list for all heads: every head's best, then every head's second best, and so on, without duplicates.

    Args:
        scores: ``[B, T, H, L]`` float32; -inf is never taken.
        size: entries to keep of every head's ranking.

    Returns:
        ``[B, T, 1, L]`` float32 that is larger the earlier a position enters the union, -inf where it does not:
        its ``size`` largest are the union cut at ``size``. Of one rank, lower heads come first; within a head,
        larger scores, then lower positions.
    """
    b, t, heads, length = scores.shape
    positions, counts = topk_positions(scores, None, size)
    live = torch.arange(positions.shape[-1], device=scores.device) < counts[..., None]
    where = torch.where(live, positions, length).long()
    value = torch.nn.functional.pad(scores, (0, 1), value=-_INF).gather(-1, where)
    # Positions ascend, so a stable sort leaves ties in the order of position.
    rank = value.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    entry = (rank * heads + torch.arange(heads, device=scores.device)[:, None]).float()
    first = scores.new_full((b, t, length + 1), _INF)
    first.scatter_reduce_(-1, where.flatten(2), entry.flatten(2), "amin")
    return -first[:, :, None, :length]
