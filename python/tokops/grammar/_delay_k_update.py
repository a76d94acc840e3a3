"""Stopping of monitored texts: a row ends when enough of its tokens were flagged."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["delay_k_update"]

_NAME = "delay_k_update"


def _check(count, scores, valid, k):
    check_tensor(_NAME, "scores", scores, 2, (torch.float32,), scores)
    check_tensor(_NAME, "count", count, 1, (torch.int32,), scores)
    check_shape(_NAME, "count", count, scores.shape[:1], "[B]")
    refuse_unless(len(count) <= 1 or count.stride(0) == 1, _NAME, "count must be contiguous")
    if valid is not None:
        check_tensor(_NAME, "valid", valid, 2, (torch.bool,), scores)
        check_shape(_NAME, "valid", valid, scores.shape, "[B, n]")
    refuse_unless(k >= 1, _NAME, f"k must be at least 1, got {k}")


@op(
    "delay_k_update(Tensor(a!) count, Tensor scores, Tensor? valid, float theta, int k) -> (Tensor, Tensor)",
    tags=(torch.Tag.needs_exact_strides,),
)
def delay_reference(count, scores, valid, theta, k):
    """The definition: a running count."""
    _check(count, scores, valid, k)
    flagged = scores >= torch.tensor(theta, dtype=torch.float32)
    if valid is not None:
        flagged &= valid
    running = count[:, None].long() + flagged.cumsum(-1)
    hit = flagged & (running == k)
    columns = torch.arange(scores.shape[1], device=scores.device).expand_as(hit)
    first = torch.where(hit, columns, -1).amax(-1) if scores.shape[1] else torch.full_like(count, -1)
    count.copy_((count.long() + flagged.sum(-1)).clamp_max(2**31 - 1))
    return count.long() >= k, first.int()


@torch.library.register_fake("tokops::delay_k_update")
def _(count, scores, valid, theta, k):
    _check(count, scores, valid, k)
    return scores.new_empty(count.shape, dtype=torch.bool), count.new_empty(count.shape)


def delay_k_update(
    count: Tensor, scores: Tensor, theta: float, k: int, *, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Count flagged tokens, in place, and say which rows stop: those with k of them.

    Nothing is read by the host, so that a decode step can be captured with its monitor. It is for loops whose rows have
    scores and counts on the device. :class:`tokops.methods.StreamingMonitor` counts on the host, text by text: there
    texts branch, scores are taken back, and its criterion has to say at every step which texts end.

    Args:
        count: ``[B]`` int32 flagged tokens so far; what is flagged now is added, up to 2^31 - 1.
        scores: ``[B, n]`` float32 of new tokens; n may be 0. NaN is not flagged.
        theta: a score of at least this flags its token.
        k: flagged tokens that stop a row, at least 1.
        valid: ``[B, n]`` bool tokens that are there; None: all.

    Returns:
        - stop ``[B]`` bool: whether the count has reached k.
        - first ``[B]`` int32 column of the k-th flagged token where it is among these, else -1.

    Raises:
        RuntimeError: wrong shape, dtype or device, or k below 1.
    """
    return torch.ops.tokops.delay_k_update.default(count, scores, valid, float(theta), k)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of delay_k_update, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    for batch, n in ((4096, 16),) if size == "large" else ((1, 1), (7, 5), (3, 100), (2, 0), (0, 4)):
        scores = torch.rand(batch, n, generator=gen)
        scores[:, ::6] = float("nan")
        scores[:, 1::6] = 0.5
        valid = torch.rand(batch, n, generator=gen) < 0.8
        count = torch.randint(0, 4, (batch,), generator=gen).int()
        for k in (1, 3, 25, 2**31 + 5):
            yield "delay_k_update", f"[{batch}, {n}] k {k}", (count, scores, None, 0.5, k), {}
            yield "delay_k_update", f"valid [{batch}, {n}] k {k}", (count, scores, valid, 0.5, k), {}
        full = torch.full_like(count, 2**31 - 2)
        yield "delay_k_update", f"full [{batch}, {n}]", (full, scores, None, 0.5, 2**31 - 1), {}
