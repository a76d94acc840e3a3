"""How much attention every key of a prompt received, without a T x L matrix."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_softcap, check_tensor, refuse_unless
from .._native import checked, op
from ._attention_mass import given

__all__ = ["attention_colsum"]

_OP = "attention_colsum"
_ROWS = 256  # rows whose logits the reference holds at once


def _check(q, k, lse, starts, softcap, first_row):
    check_tensor(_OP, "q", q, 4, FLOATS, q)
    check_tensor(_OP, "k", k, 4, (q.dtype,), q)
    b, t, hq, d = q.shape
    refuse_unless(
        k.shape[0] == b and k.shape[3] == d,
        _OP,
        f"k must be [B, L, Hkv, D] with B {b} and D {d}, got {list(k.shape)}",
    )
    refuse_unless(1 <= d <= 256, _OP, f"head dimension must be 1..256, got {d}")
    length, heads = k.shape[1:3]
    refuse_unless(
        heads > 0 and hq % heads == 0 and 1 <= hq // heads <= 32,
        _OP,
        f"query heads must be 1..32 times the KV heads, got {hq} and {heads}",
    )
    refuse_unless(t <= length, _OP, f"k must hold at least the {t} rows of q, got {length}")
    for name, x in (("q", q), ("k", k)):
        refuse_unless(
            x.numel() == 0 or d == 1 or x.stride(3) == 1,
            _OP,
            f"{name} must have a contiguous last dimension",
        )
    if lse is not None:
        check_tensor(_OP, "lse", lse, 3, (torch.float32,), q)
        check_shape(_OP, "lse", lse, (b, t, hq), "[B, T, Hq]")
    if starts is not None:
        check_tensor(_OP, "starts", starts, 1, (torch.int32,), q)
        check_shape(_OP, "starts", starts, (b,), "[B]")
    check_softcap(_OP, softcap)
    refuse_unless(0 <= first_row <= t, _OP, f"first_row must be 0..{t}, got {first_row}")


def _check_values(starts, length):
    ok = bool(((starts >= 0) & (starts <= length)).all())
    refuse_unless(ok, _OP, f"starts must be 0..{length}, got {starts.tolist()}")


def _scores(q, k, starts, scale, rows):
    """Scaled scores ``[B, rows, Hq, L]`` of some rows, -inf where a row does not see."""
    (b, t, hq, _), (length, heads) = q.shape, k.shape[1:3]
    grouped = q[:, rows].float().unflatten(2, (heads, hq // heads))
    scores = torch.einsum("bthgd,blhd->bthgl", grouped, k.float()).flatten(2, 3)
    scores = (scores * scale).nan_to_num(nan=float("-inf"), posinf=torch.finfo(torch.float32).max)
    key = torch.arange(length, device=q.device)
    see = key <= torch.arange(length - t, length, device=q.device)[rows, None]
    if starts is not None:
        see = see & (key >= starts[:, None, None])
    return scores.masked_fill(~see.expand(b, -1, -1)[:, :, None], float("-inf"))


@op(
    "attention_colsum(Tensor q, Tensor k, Tensor? lse, *, Tensor? starts=None, float? scale=None, "
    "float? softcap=None, int first_row=0) -> (Tensor acc, Tensor lse)",
    tags=(torch.Tag.needs_exact_strides,),
)
def reference(q, k, lse, *, starts=None, scale=None, softcap=None, first_row=0):
    """The definition, some rows at a time."""
    _check(q, k, lse, starts, softcap, first_row)
    if starts is not None:
        _check_values(starts, k.shape[1])
    (b, t, hq, d), (length, heads) = q.shape, k.shape[1:3]
    scale = d**-0.5 if scale is None else scale
    acc = q.new_zeros((b, heads, length), dtype=torch.float32)
    found = q.new_full((b, t, hq), float("-inf"), dtype=torch.float32)
    for first in range(first_row, t, _ROWS):
        rows = slice(first, min(first + _ROWS, t))
        scores = _scores(q, k, starts, scale, rows)
        if lse is None:
            bent = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            found[:, rows] = bent.masked_fill(scores.isneginf(), float("-inf")).logsumexp(-1)
        mass = given(scores, (found if lse is None else lse)[:, rows], softcap)
        acc += mass.unflatten(2, (heads, hq // heads)).sum((1, 3))
    return acc, found if lse is None else acc.new_empty(0)


@torch.library.register_fake("tokops::attention_colsum")
def _(q, k, lse, *, starts=None, scale=None, softcap=None, first_row=0):
    _check(q, k, lse, starts, softcap, first_row)
    acc = q.new_empty((q.shape[0], k.shape[2], k.shape[1]), dtype=torch.float32)
    return acc, acc.new_empty(q.shape[:3] if lse is None else (0,))


def attention_colsum(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    *,
    starts: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    first_row: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sum causal attention weights over the rows of a prompt and the heads of each group.

    MiKV's importance of prompt tokens, ``acc_j = sum over i, g of exp(bend(s_ijg) - lse_ig)``, in tiles: memory
    beyond the result does not grow with T times L. The T rows are the last of the L keys.

    Args:
        q: ``[B, T, Hq, D]`` float32, bfloat16 or float16; row ``i`` sits at position ``L - T + i``.
        k: ``[B, L, Hkv, D]`` in q's dtype; Hq is 1 to 32 times Hkv, D is 1..256. Any strides, the last
            dimension contiguous.
        lse: ``[B, T, Hq]`` float32 normalisers of the rows; -inf (or NaN) counts nothing. None: a first pass over
            the keys finds them.
        starts: ``[B]`` int32 first visible position (left padding); keys and rows before it count nothing.
        scale: factor of ``q . k``; None is ``D ** -0.5``.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        first_row: only rows ``i >= first_row`` count: ``T - w`` observes the last ``w`` queries alone, at their
            cost.

    Returns:
        ``acc [B, Hkv, L]`` float32, the same for any number of threads. Where ``lse`` is None, ``(acc, lse)``
        with ``lse [B, T, Hq]`` float32, -inf in rows before ``first_row``.

    Raises:
        RuntimeError: wrong rank, shape, dtype, device, strides or range, naming the argument.

    Example:
        >>> q, k = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 1, 8)  # row i sees i + 1 equal keys
        >>> acc, lse = attention_colsum(q, k, None)
        >>> acc[0, 0, 3]
        tensor(0.5000)
    """
    if starts is not None and starts.is_cuda and checked():
        _check_values(starts, k.shape[1])
    acc, found = torch.ops.tokops.attention_colsum.default(
        q, k, lse, starts=starts, scale=scale, softcap=softcap, first_row=first_row
    )
    return (acc, found) if lse is None else acc


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def inputs(b, t, length, hq, hkv, d, dtype):
        return [torch.randn(b, *s, d, generator=gen).to(dtype) for s in ((t, hq), (length, hkv))]

    if size == "large":
        for dtype in (torch.float32, torch.bfloat16):
            args = (*inputs(1, 4096, 4096, 32, 8, 128, dtype), None)
            yield _OP, f"4096 {str(dtype)[6:]}", args, {}
        return
    shapes = [(2, 7, 7, 4, 2, 16), (1, 70, 133, 6, 2, 40), (2, 3, 260, 3, 1, 64), (1, 130, 130, 5, 5, 9)]
    shapes += [(1, 1, 1, 1, 1, 1), (1, 4, 9, 32, 1, 256), (0, 2, 3, 2, 1, 8), (2, 0, 5, 2, 1, 8)]
    for i, shape in enumerate(shapes):
        dtype = FLOATS[i % 3]
        q, k = inputs(*shape, dtype)
        starts = torch.tensor([shape[2] // 3, 0][: shape[0]], dtype=torch.int32)
        label = f"{list(shape)} {str(dtype)[6:]}"
        yield _OP, label, (q, k, None), {}
        yield _OP, f"{label} starts, softcap", (q, k, None), {"starts": starts, "softcap": 3.0}
        yield _OP, f"{label} window", (q, k, None), {"first_row": shape[1] * 2 // 3, "scale": 0.3}
        lse = torch.randn(shape[0], shape[1], shape[3], generator=gen) + 8
        lse[:, ::4] = float("-inf")
        yield _OP, f"{label} lse", (q, k, lse), {"starts": starts}
    for dtype in FLOATS:
        q, k = inputs(1, 90, 150, 4, 2, 64, dtype)
        wide = torch.zeros(1, 2, 150, 70, dtype=dtype)
        wide[..., :64] = k.transpose(1, 2)
        q, k = q.transpose(1, 2).contiguous().transpose(1, 2), wide[..., :64].transpose(1, 2)
        yield _OP, f"strided {str(dtype)[6:]}", (q, k, None), {}
    q, k = inputs(1, 20, 20, 2, 1, 8, torch.float32)
    k[0, 5], q[0, 7] = float("nan"), float("inf")
    yield _OP, "nan and inf", (q, k, None), {}
