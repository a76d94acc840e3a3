"""Importance that the rows of a prompt gave, and that the nodes of a draft gave once some of them are kept."""

from typing import Any

import torch
from torch import Tensor

from ._attention_colsum import attention_colsum


def prompt_mass(
    q: Tensor,
    k: Tensor,
    first: int,
    end: int,
    *,
    starts: Tensor | None = None,
    sink_logit: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """What the rows ``[first, end)`` of a cache's first prompt gave to its tokens: ``[B, Hkv, end]``.

    Args:
        q, k: ``[B, T, Hq, D]`` and ``[B, T, Hkv, D]``.
        first, end: the rows.
        starts: ``[B]`` first visible position.
        sink_logit: ``[Hq]`` a logit of the model's own that takes a share and is no token.
        scale, softcap: of the attention.
    """
    starts = None if starts is None else starts.clamp_max(end)
    options: dict[str, Any] = {"starts": starts, "first_row": first, "scale": scale, "softcap": softcap}
    acc, lse = attention_colsum(q[:, :end], k[:, :end], None, **options)
    if sink_logit is not None:
        lse = torch.logaddexp(lse, sink_logit.view(1, 1, -1))
        acc = attention_colsum(q[:, :end], k[:, :end], lse, **options)
    return acc


def add_kept(
    acc: Tensor, given: Tensor, rows: Tensor | None, counts: Tensor, first: Tensor, most: int
) -> None:
    """Add what kept nodes gave to the tokens before them and to each other, where those are now; in place.

    Args:
        acc: ``[B, Hkv, capacity]`` attention that every slot has received.
        given: ``[B, T, Hkv, L]`` what each node gave to the slots as they were in the draft's forward.
        rows: ``[B, n]`` int64 nodes that are kept, in order; None for the first ones.
        counts: ``[B]`` how many of a sequence.
        first: ``[B]`` slot of a sequence's first node.
        most: the largest count, at least 1.
    """
    batch, nodes, heads, slots = given.shape
    slot = torch.arange(slots, device=given.device)
    kept = slot[:nodes].expand(batch, -1) if rows is None else rows
    rank = slot - first[:, None]
    # Where what a slot gets comes from: nodes that are kept have moved, others are gone.
    moved = first[:, None] + kept.gather(1, rank.clamp(0, kept.shape[1] - 1))
    index = torch.where(rank < 0, slot, moved).clamp_max(slots - 1)[:, None].expand(-1, heads, -1)
    here = (rank < counts[:, None])[:, None]
    for i in range(most):  # one by one: the order in which decoding would have added them
        own = given.gather(1, kept[:, i, None, None, None].expand(-1, -1, heads, slots))[:, 0]
        live = here & (i < counts)[:, None, None]
        acc[..., :slots] += own.gather(2, index).masked_fill(~live, 0.0)
