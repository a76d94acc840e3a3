"""Importance that the nodes of a draft gave, once some of them are kept."""

import torch
from torch import Tensor


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
