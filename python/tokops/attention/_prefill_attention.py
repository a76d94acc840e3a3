"""Attention of a whole prompt, or of a long chunk of it, through torch's own kernels."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._check import FLOATS, check_shape, check_softcap, check_tensor, refuse_unless

__all__ = ["prefill_attention"]

_ROWS = 512  # query rows that share one mask
_LOGITS = 1 << 24  # float32 logits held at once where torch has no kernel for the job


def _check(q, k, v, starts, sink_logit, softcap, window):
    name = "prefill_attention"
    check_tensor(name, "q", q, 4, FLOATS, q)
    b, t, hq, d = q.shape
    for label, x in (("k", k), ("v", v)):
        check_tensor(name, label, x, 4, (q.dtype,), q)
        refuse_unless(
            x.shape[0] == b and x.shape[3] == d,
            name,
            f"{label} must be [B, L, Hkv, D] with B {b} and D {d}, got {list(x.shape)}",
        )
    check_shape(name, "v", v, k.shape, "the shape of k")
    length, heads = k.shape[1:3]
    refuse_unless(
        heads > 0 and hq % heads == 0,
        name,
        f"query heads must be a multiple of the KV heads, got {hq} and {heads}",
    )
    refuse_unless(t <= length, name, f"k must hold at least the {t} rows of q, got {length}")
    if starts is not None:
        check_tensor(name, "starts", starts, 1, (torch.int32,), q)
        check_shape(name, "starts", starts, (b,), "[B]")
    if sink_logit is not None:
        check_tensor(name, "sink_logit", sink_logit, 1, (torch.float32,), q)
        check_shape(name, "sink_logit", sink_logit, (hq,), "[Hq]")
    check_softcap(name, softcap)
    refuse_unless(window is None or window > 0, name, f"window must be > 0, got {window}")


def _reach(rows, past, window):
    """Keys ``[lo, hi)`` that the rows ``[first, last)`` can see at most."""
    first, last = rows
    lo = 0 if window is None else max(0, past + first - window + 1)
    return lo, past + last


def _sees(rows, keys, past, window, starts):
    """Who sees whom among some rows and keys: ``[rows, keys]``, or ``[B, rows, keys]`` with starts."""
    device = None if starts is None else starts.device
    row = torch.arange(past + rows[0], past + rows[1], device=device)[:, None]
    key = torch.arange(*keys, device=device)
    see = key <= row
    if window is not None:
        see = see & (key > row - window)
    return see if starts is None else see & (key >= starts[:, None, None])


def _packed(q, k, v):
    """Fold the batch and the KV heads together; the heads of a group share one key without a copy."""
    b, t, hq, d = q.shape
    heads = k.shape[2]
    grouped = q.view(b, t, heads, hq // heads, d).permute(0, 2, 3, 1, 4).reshape(b * heads, hq // heads, t, d)
    k, v = (x.transpose(1, 2).reshape(b * heads, 1, -1, d).expand(-1, hq // heads, -1, -1) for x in (k, v))
    return grouped, k, v


def _with_torch(q, k, v, starts, scale, window):
    b, t = q.shape[:2]
    past = k.shape[1] - t
    grouped, k, v = _packed(q, k, v)
    if past == 0 and starts is None and window is None:
        out = scaled_dot_product_attention(grouped, k, v, is_causal=t > 1, scale=scale)
    else:
        heads = grouped.shape[0] // b
        parts = []
        for first in range(0, t, _ROWS):
            rows = (first, min(first + _ROWS, t))
            lo, hi = _reach(rows, past, window)
            see = _sees(rows, (lo, hi), past, window, starts).to(q.device)
            mask = see if starts is None else see.repeat_interleave(heads, 0)[:, None]
            part = scaled_dot_product_attention(
                grouped[:, :, rows[0] : rows[1]], k[:, :, lo:hi], v[:, :, lo:hi], attn_mask=mask, scale=scale
            )
            parts.append(part)
        out = torch.cat(parts, 2)
        if starts is not None:  # rows of padding see nothing, and kernels differ in what they make of that
            empty = torch.arange(past, past + t, device=q.device) < starts[:, None]
            out = out.masked_fill(empty.repeat_interleave(heads, 0)[:, None, :, None], 0.0)
    # A view or a copy: torch's kernels differ in the strides of what they return.
    return out.unflatten(0, (b, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _with_logits(q, k, v, starts, scale, window, sink_logit, softcap):
    b, t, hq, d = q.shape
    heads, past = k.shape[2], k.shape[1] - t
    keys, values = (x.permute(0, 2, 1, 3).float() for x in (k, v))  # [B, Hkv, L, D]
    step = max(1, _LOGITS // max(1, b * hq * k.shape[1]))
    parts = []
    for first in range(0, t, step):
        rows = (first, min(first + step, t))
        lo, hi = _reach(rows, past, window)
        grouped = q[:, rows[0] : rows[1]].float().view(b, -1, heads, hq // heads, d)
        logits = torch.einsum("bthgd,bhld->bhgtl", grouped, keys[:, :, lo:hi]) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        see = _sees(rows, (lo, hi), past, window, starts).to(q.device)
        see = see[None, None, None] if starts is None else see[:, None, None]
        logits = logits.masked_fill(~see, float("-inf"))
        if sink_logit is not None:  # one more column, which has no value
            sink = sink_logit.view(1, heads, -1, 1, 1).expand(b, -1, -1, logits.shape[3], 1)
            logits = torch.cat([logits, sink], -1)
        weights = torch.softmax(logits, -1)[..., : hi - lo].masked_fill(~see, 0.0)
        parts.append(torch.einsum("bhgtl,bhld->bthgd", weights, values[:, :, lo:hi]))
    return torch.cat(parts, 1).reshape(b, t, hq, d).to(q.dtype)


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: Tensor | None = None,
    scale: float | None = None,
    sink_logit: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention of many new tokens, which are the last T of the L keys (aligned bottom-right).

    Runs on torch's scaled_dot_product_attention with grouped heads and without an L x L mask; sinks and softcap,
    which torch has no kernel for, take logits in blocks of rows. Memory beyond the result is bounded.
    Differentiable.

    Args:
        q: ``[B, T, Hq, D]`` float32, bfloat16 or float16; row ``i`` sits at position ``L - T + i``.
        k, v: ``[B, L, Hkv, D]`` in q's dtype, any strides; Hq is a multiple of Hkv, L at least T.
        starts: ``[B]`` int32 first visible position (left padding).
        scale: factor of ``q . k``; None is ``D ** -0.5``.
        sink_logit: ``[Hq]`` float32 logit of an extra column without a value.
        softcap: logits become ``softcap * tanh(logit / softcap)``.
        window: see only the last ``window`` positions, oneself included.

    Returns:
        ``[B, T, Hq, D]`` in q's dtype; rows that see nothing are 0.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument.

    Example:
        >>> q, kv = torch.randn(1, 5, 4, 8), torch.randn(1, 9, 2, 8)
        >>> prefill_attention(q, kv, kv).shape
        torch.Size([1, 5, 4, 8])
    """
    _check(q, k, v, starts, sink_logit, softcap, window)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if q.numel() == 0:
        return torch.empty_like(q)
    if window is not None and window >= k.shape[1]:
        window = None
    if sink_logit is None and softcap is None:
        return _with_torch(q, k, v, starts, scale, window)
    return _with_logits(q, k, v, starts, scale, window, sink_logit, softcap)
