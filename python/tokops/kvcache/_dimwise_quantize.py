"""The nearest of a few levels for every element, and levels placed for a Gaussian."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["dimwise_quantize", "gaussian_levels"]

MOST_LEVELS = 256


def gaussian_levels(bits: int = 6, r: float = 3.0) -> Tensor:
    """Means of the ``2 ** bits`` equally likely cells of a unit Gaussian, cut off at ``r`` (TokenBridge).

    Args:
        bits: 1..8.
        r: the outermost boundaries are ``-r`` and ``r``.

    Returns:
        ``[2 ** bits]`` float32, strictly ascending and symmetric; float64 inside.

    Raises:
        ValueError: bits out of range, or an r so small that whole cells lie beyond it.

    Example:
        >>> gaussian_levels(2)
        tensor([-1.2602, -0.3247,  0.3247,  1.2602])
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1..8, got {bits}")
    count = 2**bits
    edges = torch.special.ndtri(torch.arange(count + 1, dtype=torch.float64) / count)
    if not edges[-2] < r < math.inf:
        raise ValueError(f"r must be finite and above {edges[-2]:.4f}, the last edge of {bits} bits, got {r}")
    edges = edges.clamp(-r, r)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    levels = -density.diff() / torch.special.ndtr(edges).diff()
    return ((levels - levels.flip(0)) / 2).float()


def check_scale(op_name: str, levels: Tensor, like: Tensor, lo: float, hi: float, r: float) -> None:
    """Check levels and scale of either dimension-wise op."""
    refuse_unless(
        math.isfinite(lo) and math.isfinite(hi) and lo < hi,
        op_name,
        f"lo must be below hi, got {lo} and {hi}",
    )
    refuse_unless(
        hi - lo <= torch.finfo(torch.float32).max, op_name, f"hi - lo must be finite, got {hi - lo}"
    )
    refuse_unless(math.isfinite(r) and r > 0, op_name, f"r must be > 0, got {r}")
    check_tensor(op_name, "levels", levels, 1, (torch.float32,), like)
    n = levels.shape[0]
    refuse_unless(2 <= n <= MOST_LEVELS, op_name, f"levels must be 2..{MOST_LEVELS}, got {n}")


def check_levels(op_name: str, levels: Tensor, r: float) -> None:
    """Check the values of levels (reads them on the host)."""
    edge = torch.tensor(r, dtype=torch.float32, device=levels.device)
    ok = (levels.diff() > 0).all() & (levels[0] >= -edge) & (levels[-1] <= edge)
    refuse_unless(bool(ok), op_name, f"levels must be strictly ascending within -r..r = {-r}..{r}")


def values_of(levels: Tensor, lo: float, hi: float, r: float) -> Tensor:
    """The levels on the scale of the data, float32."""
    return ((levels.double() + r) / (2 * r) * (hi - lo) + lo).float()


@op(
    "dimwise_quantize(Tensor x, Tensor levels, *, float lo=-5.0, float hi=5.0, float r=3.0) -> "
    "(Tensor codes, Tensor values)"
)
def reference(x, levels, *, lo=-5.0, hi=5.0, r=3.0):
    """The definition: u in float32, every operation rounded, and the nearest level, ties to the lowest."""
    _check(x, levels, lo, hi, r)
    check_levels("dimwise_quantize", levels, r)
    # As tensors on the device: torch divides by a number through its reciprocal on CUDA.
    low, span, twice, edge = torch.tensor([lo, hi - lo, 2 * r, r], dtype=torch.float32, device=x.device)
    u = torch.minimum(torch.maximum((x.float() - low) / span * twice - edge, -edge), edge)
    middles = (levels[1:].double() + levels[:-1].double()) / 2
    codes = torch.searchsorted(middles, u.double().contiguous())  # counts the middles below u
    codes = codes.masked_fill(x.isnan(), 0)
    return codes.to(torch.uint8), values_of(levels, lo, hi, r)[codes].to(x.dtype)


def _check(x, levels, lo, hi, r):
    check_tensor("dimwise_quantize", "x", x, x.dim(), FLOATS, x)
    check_scale("dimwise_quantize", levels, x, lo, hi, r)


@torch.library.register_fake("tokops::dimwise_quantize")
def _(x, levels, *, lo=-5.0, hi=5.0, r=3.0):
    _check(x, levels, lo, hi, r)
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(x.shape)


def dimwise_quantize(
    x: Tensor, levels: Tensor, *, lo: float = -5.0, hi: float = 5.0, r: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Replace every element by the nearest of a few levels (TokenBridge, arXiv 2503.16430).

    ``u = clip((x - lo) / (hi - lo) * 2r - r, -r, r)`` in float32, and the code is the index of the level nearest
    to ``u``, of two as near the lower. Not the cell that ``u`` falls into: levels are means, not middles of cells.

    Args:
        x: ``[...]`` float32, bfloat16 or float16. Infinities are clipped; NaN gets code 0.
        levels: ``[2..256]`` float32, strictly ascending within ``-r..r``; :func:`gaussian_levels` makes some.
        lo, hi: what is mapped to ``-r`` and ``r``; beyond is clipped.
        r: half the range of the levels' scale.

    Returns:
        ``codes [...]`` uint8 and their values ``(levels[codes] + r) / 2r * (hi - lo) + lo`` in x's dtype. The
        codes are the same on every device and instruction set.

    Raises:
        RuntimeError: wrong dtype, rank, device, number or order of levels, or an empty range.

    Example:
        >>> dimwise_quantize(torch.tensor([-9.0, -0.1, 0.0, 0.1]), gaussian_levels(6))[0]
        tensor([ 0, 30, 31, 33], dtype=torch.uint8)
    """
    if levels.is_cuda and checked():
        check_levels("dimwise_quantize", levels, r)
    return torch.ops.tokops.dimwise_quantize.default(x, levels, lo=lo, hi=hi, r=r)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for dtype in (torch.float32, torch.bfloat16):
            x = (torch.randn(1 << 22, generator=gen) * 5 / 3).to(dtype)
            yield "dimwise_quantize", f"6 bits {str(dtype)[6:]}", (x, gaussian_levels(6)), {}
        return
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 5.0, -5.0, 3.4e38, -3.4e38, 1e-45])
    for dtype in FLOATS:
        for bits in (1, 4, 6, 8):
            x = (torch.randn(3, 5, 67, generator=gen) * 2).to(dtype)
            yield "dimwise_quantize", f"{bits} bits {str(dtype)[6:]}", (x, gaussian_levels(bits)), {}
        levels = torch.rand(100, generator=gen).sort().values * 2 - 1
        scale = {"lo": 0.3, "hi": 0.9, "r": 1.0}
        yield "dimwise_quantize", f"100 levels {str(dtype)[6:]}", (x.transpose(0, 2), levels), scale
        yield "dimwise_quantize", f"odd {str(dtype)[6:]}", (odd.to(dtype), gaussian_levels(6)), {}
        yield "dimwise_quantize", f"empty {str(dtype)[6:]}", (x[:0], levels[:2]), {}
    yield "dimwise_quantize", "one number", (torch.tensor(1.5), gaussian_levels(6)), {}
