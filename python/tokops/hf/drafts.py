"""Forwards whose tokens are drafts: trees behind sequences of different lengths, and what is kept of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import check_shape, check_tensor
from ..speculative import kv_compact

MAX_ROWS = 256  # per sequence, that one decoding call takes

_OP = "draft"


@dataclass(frozen=True)
class Draft:
    """What the next forward's tokens are; see :meth:`tokops.hf.cache.PagedCache.draft`."""

    ancestors: Tensor | None
    depths: Tensor | None
    starts: Tensor | None

    def __post_init__(self):
        if (self.ancestors is None) != (self.depths is None):
            raise ValueError("draft: ancestors and depths come together, got only one of them")
        if self.ancestors is not None:
            check_tensor(_OP, "ancestors", self.ancestors, 3, (torch.int64,), self.ancestors)
            check_tensor(_OP, "depths", self.depths, 2, (torch.int32,), self.ancestors)
            check_shape(_OP, "depths", self.depths, self.ancestors.shape[:2], "[B, T] of ancestors")
        if self.starts is not None:
            check_tensor(_OP, "starts", self.starts, 1, (torch.int32,), self.starts)

    def check(self, batch: int, rows: int) -> None:
        """Refuse a forward of other sizes."""
        if not 1 <= rows <= MAX_ROWS:
            raise ValueError(f"draft: a forward must have 1..{MAX_ROWS} tokens per sequence, got {rows}")
        if self.ancestors is not None and tuple(self.ancestors.shape[:2]) != (batch, rows):
            raise ValueError(
                f"draft: ancestors are of {list(self.ancestors.shape[:2])} tokens, the forward is of {[batch, rows]}"
            )
        if self.starts is not None and len(self.starts) != batch:
            raise ValueError(f"draft: starts are of {len(self.starts)} sequences, the forward is of {batch}")


class Rows(NamedTuple):
    """Pages ``[2, N, Hkv, P, D]`` of one layer, keys and values; their table ``[B, pages]``, and slots in use ``[B]``.

    New rows are the last.
    """

    pages: Tensor
    table: Tensor
    ends: Tensor


def compact(layers: Sequence[Rows], nodes: int, rows: Tensor, counts: Tensor) -> None:
    """Of the last ``nodes`` rows of every sequence move ``rows`` to their front, in all layers.

    Args:
        layers: where they are.
        nodes: rows of the last forward.
        rows: ``[B, n]`` int32, strictly ascending among the first ``counts[b]``.
        counts: ``[B]`` int32.
    """
    shared: dict[tuple[int, int], list[Rows]] = {}  # layers behind one table move together
    for layer in layers:
        shared.setdefault((id(layer.table), id(layer.ends)), []).append(layer)
    for group in shared.values():
        kv_compact(
            [layer.pages for layer in group], group[0].table, group[0].ends - nodes, rows, counts=counts
        )
