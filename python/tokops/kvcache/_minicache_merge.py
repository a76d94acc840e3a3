"""One shared direction and two magnitudes for pairs of vectors of two layers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["minicache_merge"]

_OP = "minicache_merge"
#: Below this sine vectors are so near that they are mixed along the chord.
_CHORD_SINE = 1e-4
#: A mix that is no longer than this is rounding: the vectors are opposite, and none is between.
_NO_MIX = 1e-3
_LARGEST_HALF = 65504.0


def _check(x_prev, x_cur, t, eps):
    refuse_unless(
        x_prev.dim() >= 1 and x_prev.shape[-1] >= 1,
        _OP,
        f"x_prev must be [..., D] with D at least 1, got {list(x_prev.shape)}",
    )
    check_tensor(_OP, "x_prev", x_prev, x_prev.dim(), FLOATS, x_prev)
    check_tensor(_OP, "x_cur", x_cur, x_prev.dim(), (x_prev.dtype,), x_prev)
    check_shape(_OP, "x_cur", x_cur, x_prev.shape, "the shape of x_prev")
    refuse_unless(0 <= t <= 1, _OP, f"t must be 0..1, got {t}")
    refuse_unless(0 <= eps < 1, _OP, f"eps must be 0 <= eps < 1, got {eps}")


def _to_half(norm):
    """Saturates what is finite."""
    return torch.where(norm.isfinite(), norm.clamp(max=_LARGEST_HALF), norm).half()


@op(
    "minicache_merge(Tensor x_prev, Tensor x_cur, *, float t=0.6, float eps=1e-6) -> "
    "(Tensor e, Tensor norm_prev, Tensor norm_cur, Tensor distance)",
    tags=(torch.Tag.needs_exact_strides,),
)
def reference(x_prev, x_cur, *, t=0.6, eps=1e-6):
    """The definition: SLERP of the unit vectors, float32 inside."""
    _check(x_prev, x_cur, t, eps)
    x, y = x_prev.float(), x_cur.float()
    nx, ny = x.square().sum(-1).sqrt(), y.square().sum(-1).sqrt()
    u, v = x / nx.clamp_min(eps)[..., None], y / ny.clamp_min(eps)[..., None]
    angle = torch.acos((u * v).sum(-1).clamp(-(1 - eps), 1 - eps))
    sine = torch.sin(angle)
    near = sine < _CHORD_SINE
    a = torch.where(near, 1 - t, torch.sin((1 - t) * angle) / sine)
    b = torch.where(near, t, torch.sin(t * angle) / sine)
    mix = a[..., None] * u + b[..., None] * v
    opposite = mix.square().sum(-1).sqrt() < _NO_MIX * v.square().sum(-1).sqrt()
    mix = torch.where(opposite[..., None], y, mix)
    alone = (nx == 0) | (ny == 0)  # a zero vector has no direction and loses nothing
    odd = ~(nx + ny).isfinite()
    mix = torch.where(alone[..., None], x + y, mix).masked_fill(odd[..., None], math.nan)
    distance = (angle / math.pi).masked_fill(alone, 0.0).masked_fill(odd, math.nan)
    length = mix.square().sum(-1).sqrt()
    e = torch.where((length == 0)[..., None], mix, mix / length[..., None])
    return e.to(x_prev.dtype), _to_half(nx), _to_half(ny), distance


@torch.library.register_fake("tokops::minicache_merge")
def _(x_prev, x_cur, *, t=0.6, eps=1e-6):
    _check(x_prev, x_cur, t, eps)
    rows = x_prev.shape[:-1]
    halves = [x_prev.new_empty(rows, dtype=torch.float16) for _ in range(2)]
    return x_prev.new_empty(x_prev.shape), *halves, x_prev.new_empty(rows, dtype=torch.float32)


def minicache_merge(
    x_prev: Tensor, x_cur: Tensor, *, t: float = 0.6, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge the keys (or values) of two adjacent layers into one direction and two magnitudes per vector.

    MiniCache (arXiv 2405.14366): the direction is the SLERP of the two unit vectors, and either layer restores
    its vector as ``e * norm``, with its own norm and turned by ``t`` (earlier) or ``1 - t`` (later) of the angle
    between them.

    Args:
        x_prev, x_cur: ``[..., D]`` of one shape and dtype (float32, bfloat16, float16): the earlier and the later
            layer of the pair.
        t: weight of the LATER layer, 0..1.
        eps: floor of the norms that divide; cosines are clamped to ``1 - eps`` in magnitude.

    Returns:
        ``e [..., D]`` in their dtype, of length 1; ``norm_prev, norm_cur [...]`` float16, saturated at 65504; and
        ``distance [...]`` float32, the angle over pi. Where a vector is zero, ``e`` is the other's direction (zero
        when both are) and the distance 0: nothing is lost. Opposite vectors with nothing between them give the
        later one's direction. A vector that is not finite, or longer than float32 can square, gives NaN.

    Raises:
        RuntimeError: shapes, dtypes or devices that differ, or a number out of range, naming the argument.

    Example:
        >>> e, norm_prev, norm_cur, distance = minicache_merge(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0]))
        >>> distance
        tensor(0.5000)
        >>> e * norm_cur
        tensor([1.1756, 1.6180])
    """
    return torch.ops.tokops.minicache_merge.default(x_prev, x_cur, t=t, eps=eps)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for dtype in (torch.float32, torch.bfloat16):
            pair = torch.randn(2, 8, 8192, 128, generator=gen).to(dtype)
            yield _OP, f"8192 x 8 heads {str(dtype)[6:]}", (pair[0], pair[1]), {}
        return
    for dtype in FLOATS:
        for shape in ((2, 3, 5, 64), (7, 1), (33,), (0, 2, 8), (2, 1, 2, 3, 40), (2, 257)):
            x, y = torch.randn(2, *shape, generator=gen).to(dtype)
            for t in (0.6, 0.0, 1.0):
                yield _OP, f"{list(shape)} t {t} {str(dtype)[6:]}", (x, y), {"t": t}
        wide = torch.randn(2, 3, 9, 2, 70, generator=gen).to(dtype)
        views = (wide[0].transpose(1, 2)[..., :64], wide[1, :, ::1].transpose(1, 2)[..., 3:67])
        yield _OP, f"strided {str(dtype)[6:]}", views, {"t": 0.3}
        x = torch.randn(6, 16, generator=gen).to(dtype)
        y = x.clone()
        y[1], y[2], x[3], x[4], y[4] = 3 * x[1], 0, 0, 0, 0
        y[5] = -x[5]
        y[5, 0] += 1  # nearly opposite
        yield _OP, f"equal, scaled and zero vectors {str(dtype)[6:]}", (x, y), {}
        x[1, 3], y[2, 0] = float("nan"), float("inf")
        yield _OP, f"nan and inf {str(dtype)[6:]}", (x, y), {"eps": 1e-5}
