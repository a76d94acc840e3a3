"""Scores of new tokens against cached keys, without values."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import checked, op
from . import arguments, inputs, logical, paged_cases
from ._paged_decode import raw_scores
from ._vote_scores import NORMALISED, vote_scores

__all__ = ["paged_scores"]

_ARGS = (
    "Tensor q, Tensor k_pages, Tensor block_table, Tensor seq_lens, *, Tensor? q_lens=None, "
    "Tensor? starts=None, Tensor? ancestors=None, int? window=None, float? scale=None, str reduce='none', "
    "int? max_len=None"
)


def _check(q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, reduce, max_len):
    heads = logical.check_pages("paged_scores", k_pages, "k_pages", block_table, seq_lens, q.shape[0])
    logical.check_queries("paged_scores", q, k_pages, heads)
    for name, x in (("q_lens", q_lens), ("starts", starts)):
        if x is not None:
            check_tensor("paged_scores", name, x, 1, logical.INT, q)
            check_shape("paged_scores", name, x, q.shape[:1], "[B]")
    if ancestors is not None:
        check_tensor("paged_scores", "ancestors", ancestors, 3, (torch.int64,), q)
        refuse_unless(
            tuple(ancestors.shape[:2]) == tuple(q.shape[:2]),
            "paged_scores",
            f"ancestors must be [B, T, W], got {list(ancestors.shape)}",
        )
    refuse_unless(window is None or window > 0, "paged_scores", f"window must be > 0, got {window}")
    return heads, arguments.check_reduce(
        "paged_scores", reduce, max_len, logical.capacity(k_pages, block_table)
    )


@op(f"paged_scores({_ARGS}) -> Tensor", tags=(torch.Tag.needs_exact_strides,))
def reference(
    q,
    k_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    ancestors=None,
    window=None,
    scale=None,
    reduce="none",
    max_len=None,
):
    """The definition, in plain PyTorch (float32 inside)."""
    _, length = _check(q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, reduce, max_len)
    logical.check_values("paged_scores", k_pages, block_table, seq_lens, q_lens, starts, q.shape[1])
    return raw_scores(
        q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, scale, reduce, length
    )


@torch.library.register_fake("tokops::paged_scores")
def _(
    q,
    k_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    ancestors=None,
    window=None,
    scale=None,
    reduce="none",
    max_len=None,
):
    heads, length = _check(
        q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, reduce, max_len
    )
    return q.new_empty(arguments.scores_shape(q, heads, reduce, length), dtype=torch.float32)


def paged_scores(
    q: Tensor,
    k_pages: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    channels: Tensor | None = None,
    reduce: str = "none",
    scale: float | None = None,
    q_lens: Tensor | None = None,
    starts: Tensor | None = None,
    ancestors: Tensor | None = None,
    window: int | None = None,
    max_len: int | None = None,
) -> Tensor:
    """Scaled dot products of new tokens with every cached key they see.

    Args:
        q, k_pages, block_table, seq_lens, q_lens, starts, ancestors, window, scale: as in
            :func:`tokops.attention.paged_decode`.
        channels: ``[C]`` or ``[Hq, C]`` int64 or int32 head dimensions to score with; the others are left out
            of the product. None: all.
        reduce: ``none`` keeps every query head (Hs = Hq); ``max`` and ``sum`` reduce the raw scores of each
            group (Hs = Hkv); ``soft_max`` keeps the largest softmax weight of each group (Hs = Hkv);
            ``soft_vote`` sums the softmax weights of all heads (Hs = 1).
        max_len: columns of the result; None is pages * P. Later positions are not written.

    Returns:
        ``[B, Hs, L]`` float32 for T = 1, ``[B, T, Hs, L]`` otherwise; -inf where a row does not see a position.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument.
    """
    if channels is not None:
        d = q.shape[-1]
        refuse_unless(
            channels.dim() in (1, 2) and channels.dtype in (torch.int32, torch.int64),
            "paged_scores",
            f"channels must be [C] or [Hq, C] integers, got {list(channels.shape)} {channels.dtype}",
        )
        refuse_unless(
            channels.dim() == 1 or channels.shape[0] == q.shape[2],
            "paged_scores",
            f"channels must have {q.shape[2]} rows (Hq), got {channels.shape[0]}",
        )
        if not channels.is_cuda or checked():
            refuse_unless(
                bool(((channels >= 0) & (channels < d)).all()), "paged_scores", f"channels must be 0..{d - 1}"
            )
        keep = torch.zeros(*channels.shape[:-1], d, dtype=torch.bool, device=q.device)
        q = q.masked_fill(~keep.scatter_(-1, channels.long(), True), 0)
        scale = d**-0.5 if scale is None else scale
    if q.is_cuda and checked():
        logical.check_values("paged_scores", k_pages, block_table, seq_lens, q_lens, starts, q.shape[1])
    scores = torch.ops.tokops.paged_scores.default(
        q,
        k_pages,
        block_table,
        seq_lens,
        q_lens=q_lens,
        starts=starts,
        ancestors=ancestors,
        window=window,
        scale=scale,
        reduce="none" if reduce in NORMALISED else reduce,
        max_len=max_len,
    )
    if reduce in NORMALISED:
        scores = vote_scores(scores, logical.kv_heads(k_pages, block_table), reduce)
    return scores.squeeze(1) if q.shape[1] == 1 else scores


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Named inputs."""
    if size == "large":
        x = inputs.paged(0, lens=[16384], heads=8, group=4, dim=128, page=16384)
        yield "paged_scores", "L 16384", x.score_args, {"reduce": "max"}
        return
    allowed = ("q_lens", "starts", "ancestors", "window", "scale")
    for label, x in paged_cases.small():
        for reduce in ("none", "max", "sum"):
            extra = {k: v for k, v in x.extra.items() if k in allowed}
            yield "paged_scores", f"{label}, {reduce}", x.score_args, {**extra, "reduce": reduce}
