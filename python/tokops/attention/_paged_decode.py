"""Attention of a few new tokens per sequence over pages, dense or over a selection."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._native import checked, op
from . import arguments, logical, paged_cases
from ._vote_scores import NORMALISED, vote_scores

__all__ = ["paged_decode", "paged_decode_scores"]

_ARGS = (
    "Tensor q, Tensor k_pages, Tensor v_pages, Tensor block_table, Tensor seq_lens, *, Tensor? q_lens=None, "
    "Tensor? starts=None, float? scale=None, Tensor? selected=None, Tensor? counts=None, "
    "Tensor? ancestors=None, Tensor? sink_logit=None, Tensor? log_gamma=None, float? softcap=None, "
    "int? window=None"
)
_DENSE_ARGS = _ARGS.replace("Tensor? selected=None, Tensor? counts=None, ", "")


def _chosen(selected, counts, heads, hq, length):
    """The selection as a mask ``[B, S, Hkv, G or 1, L]``."""
    b, s, hs, k = selected.shape
    live = selected >= 0
    if counts is not None:
        live = live & (torch.arange(k, device=selected.device) < counts[..., None])
    mask = torch.zeros(b, s, hs, length + 1, dtype=torch.bool, device=selected.device)
    mask.scatter_(3, torch.where(live, selected, length).long(), True)
    mask = mask[..., :length]
    return mask.view(b, s, heads, hq // heads, length) if hs == hq else mask[:, :, :, None]


@op(f"paged_decode({_ARGS}) -> (Tensor out, Tensor lse)", tags=(torch.Tag.needs_exact_strides,))
def reference(
    q,
    k_pages,
    v_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    selected=None,
    counts=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
    _op="paged_decode",
):
    """The definition, in plain PyTorch (float32 inside)."""
    heads = arguments.check(
        _op,
        q,
        k_pages,
        v_pages,
        block_table,
        seq_lens,
        q_lens,
        starts,
        selected,
        counts,
        ancestors,
        sink_logit,
        log_gamma,
        softcap,
        window,
    )
    arguments.check_values(_op, q, k_pages, block_table, seq_lens, q_lens, starts, selected, counts)
    b, t, hq, d = q.shape
    length = logical.capacity(k_pages, block_table)
    keys = logical.gather_logical(k_pages, block_table, heads)
    values = logical.gather_logical(v_pages, block_table, heads)
    see, position = logical.visible(seq_lens, q_lens, starts, ancestors, window, t, heads, length)
    logits = logical.group_logits(q, keys, scale)  # [B, T, Hkv, G, L]
    if softcap is not None:
        logits = torch.where(logits.isneginf(), logits, softcap * torch.tanh(logits / softcap))
    if log_gamma is not None:
        first = torch.zeros(b, dtype=torch.long, device=q.device) if starts is None else starts.long()
        initial = torch.arange(length, device=q.device) == first[:, None]  # [B, L]
        beyond = position > first[:, None, None]  # a row that sees more than the initial token
        gain = log_gamma.view(1, 1, heads, -1, 1)
        logits = torch.where(
            (initial[:, None, None] & beyond[..., None])[..., None, :], logits + gain, logits
        )
    allowed = see[:, :, :, None].expand_as(logits)
    if selected is not None:
        allowed = allowed & _chosen(selected, counts, heads, hq, length)
    logits = logits.masked_fill(~allowed, float("-inf"))
    if length == 0:
        logits = logits.new_full((*logits.shape[:-1], 1), float("-inf"))
        values = values.new_zeros(b, heads, 1, d)
    sink = None if sink_logit is None else sink_logit.view(1, 1, heads, -1, 1).expand(b, t, -1, -1, 1)
    top = logits.amax(-1, keepdim=True)
    top = top if sink is None else torch.maximum(top, sink)
    safe = top.masked_fill(top.isneginf(), 0.0)
    weights = torch.exp(logits - safe)  # zero where not allowed
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - safe)
    weights = weights / total.clamp_min(torch.finfo(torch.float32).tiny)
    if bool(values.isfinite().all()):
        out = torch.einsum("bthgl,bhld->bthgd", weights, values)
    else:  # what a row does not see must not reach it, not even as 0 * NaN
        terms = weights[..., None] * values[:, None, :, None]
        out = terms.masked_fill((weights == 0)[..., None], 0.0).sum(-2)
    lse = (safe + total.log()).squeeze(-1)
    _, exists = logical.row_positions(seq_lens, q_lens, t, heads)
    lse = lse.masked_fill(~exists[:, :, None, None], float("-inf"))
    return out.reshape(b, t, hq, d).to(q.dtype), lse.reshape(b, t, hq)


@torch.library.register_fake("tokops::paged_decode")
def _(
    q,
    k_pages,
    v_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    selected=None,
    counts=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
):
    arguments.check(
        "paged_decode",
        q,
        k_pages,
        v_pages,
        block_table,
        seq_lens,
        q_lens,
        starts,
        selected,
        counts,
        ancestors,
        sink_logit,
        log_gamma,
        softcap,
        window,
    )
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def raw_scores(q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, scale, reduce, length):
    """``scale * q . k`` of visible pairs, -inf elsewhere, reduced over each group: ``[B, T, Hs, length]``."""
    heads = logical.kv_heads(k_pages, block_table)
    full = logical.capacity(k_pages, block_table)
    keys = logical.gather_logical(k_pages, block_table, heads)
    see, _ = logical.visible(seq_lens, q_lens, starts, ancestors, window, q.shape[1], heads, full)
    scores = logical.group_logits(q, keys, scale)
    scores = scores.masked_fill(~see[:, :, :, None], float("-inf"))[..., :length]
    if reduce == "none":
        return scores.flatten(2, 3)
    return scores.amax(3) if reduce == "max" else scores.sum(3)


@op(
    f"paged_decode_scores({_DENSE_ARGS}, str reduce='none', int? max_len=None)"
    " -> (Tensor out, Tensor lse, Tensor scores)",
    tags=(torch.Tag.needs_exact_strides,),
)
def scores_reference(
    q,
    k_pages,
    v_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
    reduce="none",
    max_len=None,
):
    """Both results, each by its definition."""
    out, lse = reference(
        q,
        k_pages,
        v_pages,
        block_table,
        seq_lens,
        q_lens=q_lens,
        starts=starts,
        scale=scale,
        ancestors=ancestors,
        sink_logit=sink_logit,
        log_gamma=log_gamma,
        softcap=softcap,
        window=window,
        _op="paged_decode_scores",
    )
    length = arguments.check_reduce(
        "paged_decode_scores", reduce, max_len, logical.capacity(k_pages, block_table)
    )
    return (
        out,
        lse,
        raw_scores(
            q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, scale, reduce, length
        ),
    )


@torch.library.register_fake("tokops::paged_decode_scores")
def _(
    q,
    k_pages,
    v_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
    reduce="none",
    max_len=None,
):
    heads = arguments.check(
        "paged_decode_scores",
        q,
        k_pages,
        v_pages,
        block_table,
        seq_lens,
        q_lens,
        starts,
        None,
        None,
        ancestors,
        sink_logit,
        log_gamma,
        softcap,
        window,
    )
    length = arguments.check_reduce(
        "paged_decode_scores", reduce, max_len, logical.capacity(k_pages, block_table)
    )
    return (
        q.new_empty(q.shape),
        q.new_empty(q.shape[:3], dtype=torch.float32),
        q.new_empty(arguments.scores_shape(q, heads, reduce, length), dtype=torch.float32),
    )


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    q_lens: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    selected: Tensor | None = None,
    counts: Tensor | None = None,
    ancestors: Tensor | None = None,
    sink_logit: Tensor | None = None,
    log_gamma: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of 1..256 new tokens per sequence over cached pages, dense or over selected positions.

    Row ``i`` of sequence ``b`` sits at position ``seq_lens[b] - q_lens[b] + i`` and sees every position from
    ``starts[b]`` up to its own. All query heads of a KV head read each cached byte once. A contiguous cache
    ``[B, Hkv, L, D]`` is the case of one page per sequence: pass it as the pool with ``block_table`` =
    ``arange(B)[:, None]``; nothing is copied.

    Args:
        q: ``[B, T, Hq, D]``, float32, bfloat16 or float16; Hq = 1..32 times Hkv, D at most 256, T at most 256.
        k_pages, v_pages: ``[N, Hkv, P, D]`` in q's dtype; any strides with a contiguous last dimension.
        block_table: ``[B, pages]`` int32 page numbers; or ``[B, Hkv, pages]`` with pools ``[N, 1, P, D]``,
            where heads keep different tokens.
        seq_lens: ``[B]`` (``[B, Hkv]`` with a table per head) int32 lengths that count the new tokens, whose
            keys and values are already in the pages. 0 makes all rows of that sequence empty.
        q_lens: ``[B]`` int32 new tokens per sequence, at most T; rows past it are empty. None: all T.
        starts: ``[B]`` int32 first visible position (left padding).
        scale: factor of ``q . k``; None is ``D ** -0.5``.
        selected: ``[B, S, Hs, k]`` int32 logical positions to read, strictly ascending, padded with -1; S is 1
            or T, Hs is 1, Hkv or Hq. Three dimensions are read as S = 1. Visibility still applies.
        counts: ``[B, S, Hs]`` int32 live entries of ``selected``; None counts the entries >= 0.
        ancestors: ``[B, T, W]`` int64 words: bit ``m`` of row ``i`` says that new token ``m`` is ``i`` itself
            or one of its ancestors. New tokens then see the cache and their ancestors instead of a prefix.
        sink_logit: ``[Hq]`` float32 logit of an extra column without a value (it enters ``lse``).
        log_gamma: ``[Hq]`` float32 added to the logit of position ``starts[b]`` for rows that see more.
        softcap: logits become ``softcap * tanh(logit / softcap)``.
        window: see only the last ``window`` positions, oneself included; by depth under ``ancestors``.

    Returns:
        ``out`` like q, and ``lse [B, T, Hq]`` float32, natural log. A row that sees nothing gives 0 and -inf.
        NaN scores count as -inf, +inf as the largest float.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument. Index values are always checked
            on the CPU and, with TOKOPS_CHECK=1, on CUDA.

    Example:
        >>> q, kv = torch.randn(2, 1, 8, 64), torch.randn(2, 2, 100, 64)
        >>> table = torch.arange(2, dtype=torch.int32)[:, None]
        >>> out, lse = paged_decode(q, kv, kv, table, torch.tensor([100, 7], dtype=torch.int32))
        >>> out.shape, lse.shape
        (torch.Size([2, 1, 8, 64]), torch.Size([2, 1, 8]))
    """
    selected, counts = arguments.four_axes(selected, counts)
    if q.is_cuda and checked():
        arguments.check_values(
            "paged_decode", q, k_pages, block_table, seq_lens, q_lens, starts, selected, counts
        )
    return torch.ops.tokops.paged_decode.default(
        q,
        k_pages,
        v_pages,
        block_table,
        seq_lens,
        q_lens=q_lens,
        starts=starts,
        scale=scale,
        selected=selected,
        counts=counts,
        ancestors=ancestors,
        sink_logit=sink_logit,
        log_gamma=log_gamma,
        softcap=softcap,
        window=window,
    )


def paged_decode_scores(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    reduce: str = "none",
    q_lens: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    ancestors: Tensor | None = None,
    sink_logit: Tensor | None = None,
    log_gamma: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
    max_len: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Dense :func:`paged_decode` that also writes the scores it computes, from one read of the keys.

    Args:
        reduce: as in :func:`paged_scores`; the normalised reductions cost one more pass over the scores only.
        max_len: columns of ``scores``; None is pages * P. Later positions are not written.

    Other arguments, shapes and errors are those of :func:`paged_decode`.

    Returns:
        ``out``, ``lse`` and ``scores`` as :func:`paged_scores` gives them (before softcap and log_gamma).
    """
    if q.is_cuda and checked():
        arguments.check_values(
            "paged_decode_scores", q, k_pages, block_table, seq_lens, q_lens, starts, None, None
        )
    out, lse, scores = torch.ops.tokops.paged_decode_scores.default(
        q,
        k_pages,
        v_pages,
        block_table,
        seq_lens,
        q_lens=q_lens,
        starts=starts,
        scale=scale,
        ancestors=ancestors,
        sink_logit=sink_logit,
        log_gamma=log_gamma,
        softcap=softcap,
        window=window,
        reduce="none" if reduce in NORMALISED else reduce,
        max_len=max_len,
    )
    if reduce in NORMALISED:
        scores = vote_scores(scores, logical.kv_heads(k_pages, block_table), reduce)
    return out, lse, scores.squeeze(1) if q.shape[1] == 1 else scores


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Named inputs of both ops."""
    if size == "large":
        for dtype in (torch.float32, torch.bfloat16):
            x = paged_cases.inputs.paged(0, lens=[16384], heads=8, group=4, dim=128, page=16384, dtype=dtype)
            yield "paged_decode", f"L 16384 {dtype}", x.decode_args, {}
        return
    for label, x in paged_cases.small():
        yield "paged_decode", label, x.decode_args, x.extra
        for reduce, max_len in (("none", None), ("max", 40), ("sum", None)):
            extra = {**x.extra, "reduce": reduce, "max_len": max_len and min(max_len, x.k_pages.shape[2])}
            yield "paged_decode_scores", f"{label}, {reduce}", x.decode_args, extra
    for label, x in paged_cases.selected():
        yield "paged_decode", label, x.decode_args, x.extra
