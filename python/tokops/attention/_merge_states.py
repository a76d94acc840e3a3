"""Merging of attention results over disjoint sets of keys."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["merge_states"]

#: Parts that one call takes: their addresses travel in the kernel's arguments.
MOST_PARTS = 64


def _check(outs, lses):
    refuse_unless(
        len(outs) > 0 and len(outs) == len(lses),
        "merge_states",
        f"outs and lses must be as many, at least 1, got {len(outs)} and {len(lses)}",
    )
    refuse_unless(len(outs) <= MOST_PARTS, "merge_states", f"at most {MOST_PARTS} parts, got {len(outs)}")
    first = outs[0]
    refuse_unless(first.dim() >= 1, "merge_states", "outs must have at least 1 dimension")
    for out, lse in zip(outs, lses, strict=True):
        check_tensor("merge_states", "outs", out, first.dim(), FLOATS, first)
        check_shape("merge_states", "outs", out, first.shape, "all one shape")
        refuse_unless(
            out.dtype == first.dtype,
            "merge_states",
            f"outs must share a dtype, got {str(first.dtype)[6:]} and {str(out.dtype)[6:]}",
        )
        check_tensor("merge_states", "lses", lse, first.dim() - 1, (torch.float32,), first)
        check_shape("merge_states", "lses", lse, first.shape[:-1], "outs' shape without its last axis")


@op("merge_states(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)")
def reference(outs, lses):
    """The definition: a mean of the results weighted by exp(lse)."""
    _check(outs, lses)
    lse = torch.stack(list(lses))
    top = lse.amax(0)
    safe = top.masked_fill(top.isneginf(), 0.0)
    weights = torch.exp(lse - safe)
    total = weights.sum(0)
    share = weights / total.clamp_min(torch.finfo(torch.float32).tiny)
    terms = share[..., None] * torch.stack(list(outs)).float()
    out = terms.masked_fill((share == 0)[..., None], 0.0).sum(0)
    return out.to(outs[0].dtype), safe + total.log()


@torch.library.register_fake("tokops::merge_states")
def _(outs, lses):
    _check(outs, lses)
    return outs[0].new_empty(outs[0].shape), lses[0].new_empty(lses[0].shape)


def merge_states(outs: Sequence[Tensor] | Tensor, lses: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Merge attention over disjoint sets of keys into attention over their union.

    Args:
        outs: results ``[..., D]`` of one shape and dtype (float32, bfloat16, float16), a sequence or stacked
            along a leading axis.
        lses: their ``[...]`` float32 natural-log normalisers; -inf marks an empty part, ignored.

    Returns:
        ``out [..., D]`` in the dtype of ``outs`` and ``lse [...]`` float32; 0 and -inf where all are empty.

    Raises:
        RuntimeError: no part, more than 64, or parts that differ in shape, dtype or device.
    """
    parts = [list(x.unbind(0)) if isinstance(x, Tensor) else list(x) for x in (outs, lses)]
    return torch.ops.tokops.merge_states.default(*parts)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    shapes = [(8, 64, 32, 128)] if size == "large" else [(), (3,), (2, 1, 5), (0, 2)]
    for rows in shapes:
        for dtype in FLOATS:
            for parts in (2, 16) if size == "large" else (1, 3):
                d = 128 if size == "large" else 80 + parts  # 81 and 83: not whole vectors
                outs = [torch.randn(*rows, d, generator=gen).to(dtype) for _ in range(parts)]
                lses = [torch.randn(rows, generator=gen) * 3 for _ in range(parts)]
                lses[-1] = torch.where(torch.rand(rows, generator=gen) < 0.3, float("-inf"), lses[-1])
                yield "merge_states", f"{parts} of {[*rows, d]} {str(dtype)[6:]}", (outs, lses), {}
