"""Softmax-normalised reductions of scores over heads."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_tensor, refuse_unless
from .._native import op

__all__ = ["vote_scores"]

#: Reductions that need each head's softmax over all its scores.
NORMALISED = ("soft_vote", "soft_max")


def _check(scores, kv_heads, kind):
    check_tensor("vote_scores", "scores", scores, 4, (torch.float32,), scores)
    refuse_unless(kind in NORMALISED, "vote_scores", f"kind must be soft_vote or soft_max, got {kind}")
    refuse_unless(
        kv_heads > 0 and scores.shape[2] % kv_heads == 0,
        "vote_scores",
        f"scores have {scores.shape[2]} heads, not a multiple of kv_heads {kv_heads}",
    )


@op("vote_scores(Tensor scores, int kv_heads, str kind) -> Tensor")
def reference(scores, kv_heads, kind):
    """The definition: softmax per head, then the sum over all heads or the maximum over each group."""
    _check(scores, kv_heads, kind)
    scores = scores.nan_to_num(nan=float("-inf"), posinf=torch.finfo(torch.float32).max, neginf=float("-inf"))
    top = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_zeros((*scores.shape[:-1], 1))
    weights = torch.exp(scores - top.masked_fill(top.isneginf(), 0.0))
    votes = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    masked = scores.isneginf()
    b, t, hq, length = scores.shape
    if kind == "soft_vote":
        return votes.sum(2, keepdim=True).masked_fill(masked.all(2, keepdim=True), float("-inf"))
    shape = (b, t, kv_heads, hq // kv_heads, length)
    return votes.view(shape).amax(3).masked_fill(masked.view(shape).all(3), float("-inf"))


@torch.library.register_fake("tokops::vote_scores")
def _(scores, kv_heads, kind):
    _check(scores, kv_heads, kind)
    heads = 1 if kind == "soft_vote" else kv_heads
    return scores.new_empty((*scores.shape[:2], heads, scores.shape[3]))


def vote_scores(scores: Tensor, kv_heads: int, kind: str) -> Tensor:
    """Let every query head vote for positions with its softmax, and reduce the votes.

    Args:
        scores: ``[B, T, Hq, L]`` float32 scaled logits; -inf (or NaN) where a head sees nothing.
        kv_heads: KV heads; Hq is a multiple of it.
        kind: ``soft_vote`` sums the votes of all heads (TokenSelect), ``soft_max`` keeps the largest vote of
            each group (TidalDecode over KV heads).

    Returns:
        ``[B, T, 1, L]`` (soft_vote) or ``[B, T, Hkv, L]`` (soft_max) float32; -inf where no head sees.
        Each head that sees anything votes mass 1.

    Raises:
        RuntimeError: wrong rank, dtype, kind or head counts.
    """
    return torch.ops.tokops.vote_scores.default(scores, kv_heads, kind)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    large = [(1, 1, 32, 8, 16384), (8, 1, 32, 8, 8128)]
    small = [
        (2, 1, 8, 2, 300),
        (1, 3, 6, 1, 17),
        (2, 2, 4, 4, 1),
        (1, 1, 4, 2, 5000),
        (0, 1, 4, 2, 8),
        (1, 1, 4, 2, 0),
    ]
    for b, t, hq, hkv, length in large if size == "large" else small:
        scores = torch.randn(b, t, hq, length, generator=gen) * 4
        scores[torch.rand(scores.shape, generator=gen) < 0.2] = float("-inf")
        scores[..., length // 2 :: 7] = float("-inf")  # nobody sees these
        for kind in NORMALISED:
            yield "vote_scores", f"{kind} {[b, t, hq, length]} over {hkv}", (scores, hkv, kind), {}
