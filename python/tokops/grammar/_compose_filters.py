"""Bitmasks combined."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import _bitmask
from .._check import refuse_unless
from .._native import op

__all__ = ["compose_filters"]

_NAME = "compose_filters"


def _check(masks):
    """Shapes, dtypes, devices; returns the number of rows."""
    refuse_unless(len(masks) > 0, _NAME, "masks must hold at least one mask")
    rows = next((m.shape[0] for m in reversed(masks) if m.dim() == 2 and m.shape[0] != 1), 1)
    for i, mask in enumerate(masks):
        _bitmask.check(_NAME, f"masks[{i}]", mask, rows, masks[0])
        refuse_unless(
            mask.shape[1] == masks[0].shape[1],
            _NAME,
            f"masks[{i}] must have {masks[0].shape[1]} words a row, got {mask.shape[1]}",
        )
    return rows


@op("compose_filters(Tensor[] masks) -> Tensor")
def compose_reference(masks):
    """The definition: one mask after the other."""
    rows = _check(masks)
    out = masks[0].expand(rows, -1).clone(memory_format=torch.contiguous_format)
    for mask in masks[1:]:
        out &= mask
    return out


@torch.library.register_fake("tokops::compose_filters")
def _(masks):
    return masks[0].new_empty((_check(masks), masks[0].shape[1]))


def compose_filters(masks: Sequence[Tensor] | Tensor) -> Tensor:
    """What all of several masks allow.

    Args:
        masks: ``[B, W]``, ``[1, W]`` or ``[W]`` int32 each, or one tensor ``[F, B, W]``; rows of one serve all.

    Returns:
        ``[B, W]`` int32: the bitwise AND.

    Raises:
        RuntimeError: no mask, or masks of different widths, numbers of rows, devices, or of a dtype other than int32.
    """
    if isinstance(masks, Tensor):
        refuse_unless(masks.dim() == 3, _NAME, f"masks must have 3 dimensions, got {masks.dim()}")
    rows = [mask[None] if mask.dim() == 1 else mask for mask in masks]
    return torch.ops.tokops.compose_filters.default(rows)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of compose_filters, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def masks(*shape):
        return torch.randint(-(2**31), 2**31, shape, generator=gen, dtype=torch.int64).int()

    if size == "large":
        yield "compose_filters", "4 of [8, 4096]", ([masks(8, 4096) for _ in range(4)],), {}
        return
    yield "compose_filters", "one", ([masks(3, 40)],), {}
    yield "compose_filters", "two and a row", ([masks(1, 33), masks(4, 33), masks(4, 33)],), {}
    yield "compose_filters", "rows of one", ([masks(1, 5000), masks(1, 5000)],), {}
    many = torch.full((150, 2, 5), -1, dtype=torch.int32)  # each takes one token from one row
    each = torch.arange(150)
    many[each, each % 2, each // 32] = ~(1 << each % 32).int()
    yield "compose_filters", "150 masks", (list(many),), {}
    yield "compose_filters", "no rows", ([masks(0, 4), masks(1, 4)],), {}
