"""The values of dimension-wise codes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_tensor, refuse_unless
from .._native import checked, op
from ._dimwise_quantize import check_levels, check_scale, gaussian_levels, values_of

__all__ = ["dimwise_dequantize"]

_OP = "dimwise_dequantize"


def _check(codes, levels, lo, hi, r):
    check_tensor(_OP, "codes", codes, codes.dim(), (torch.uint8,), codes)
    check_scale(_OP, levels, codes, lo, hi, r)


def _check_values(codes, levels, r):
    check_levels(_OP, levels, r)
    top = int(codes.max()) if codes.numel() else 0
    refuse_unless(top < levels.shape[0], _OP, f"codes must be 0..{levels.shape[0] - 1}, got {top}")


@op("dimwise_dequantize(Tensor codes, Tensor levels, *, float lo=-5.0, float hi=5.0, float r=3.0) -> Tensor")
def reference(codes, levels, *, lo=-5.0, hi=5.0, r=3.0):
    """The definition: a table."""
    _check(codes, levels, lo, hi, r)
    _check_values(codes, levels, r)
    return values_of(levels, lo, hi, r)[codes.long()]


@torch.library.register_fake("tokops::dimwise_dequantize")
def _(codes, levels, *, lo=-5.0, hi=5.0, r=3.0):
    _check(codes, levels, lo, hi, r)
    return codes.new_empty(codes.shape, dtype=torch.float32)


def dimwise_dequantize(
    codes: Tensor, levels: Tensor, *, lo: float = -5.0, hi: float = 5.0, r: float = 3.0
) -> Tensor:
    """The values of codes that :func:`tokops.kvcache.dimwise_quantize` made.

    Args:
        codes: ``[...]`` uint8 below the number of levels.
        levels, lo, hi, r: those of the quantisation.

    Returns:
        ``[...]`` float32: ``(levels[codes] + r) / 2r * (hi - lo) + lo``. Quantised again they give the same codes.

    Raises:
        RuntimeError: wrong dtype, rank, device, number or order of levels, an empty range, or a code without level
            (on CUDA NaN instead, unless TOKOPS_CHECK=1).

    Example:
        >>> dimwise_dequantize(torch.tensor([0, 63], dtype=torch.uint8), gaussian_levels(6))
        tensor([-4.0618,  4.0618])
    """
    if codes.is_cuda and checked():
        _check_values(codes, levels, r)
    return torch.ops.tokops.dimwise_dequantize.default(codes, levels, lo=lo, hi=hi, r=r)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        codes = torch.randint(0, 64, (1 << 22,), generator=gen).byte()
        yield _OP, "6 bits", (codes, gaussian_levels(6)), {}
        return
    for bits in (1, 6, 8):
        codes = torch.randint(0, 2**bits, (3, 5, 67), generator=gen).byte()
        yield _OP, f"{bits} bits", (codes, gaussian_levels(bits)), {}
        yield (
            _OP,
            f"{bits} bits, strided",
            (codes.mT, gaussian_levels(bits)),
            {"lo": 0.1, "hi": 7.0, "r": 5.0},
        )
        yield _OP, f"{bits} bits, empty", (codes[:0], gaussian_levels(bits)), {}
