"""How far predictions are from dense ones: teacher-forced decoding, KL divergence, top-1, perplexity."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from .families import CACHE

__all__ = [
    "Difference",
    "Quality",
    "compare",
    "first_difference",
    "greedy",
    "kl_divergence",
    "perplexity",
    "teacher_forced",
]

_ROWS = 64  # rows of logits that are worked on at a time: 64 x 49152 in float64 are 25 MB


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel,
    cache: Cache,
    ids: Tensor,
    chunk: int = 1,
    tick: Callable[[int], None] = lambda tokens: None,
) -> Tensor:
    """Predictions while the given tokens are decoded after what the cache holds.

    Args:
        model: patched or not.
        cache: holds the text before ``ids``; grows by n tokens.
        ids: ``[n]`` int64.
        chunk: tokens per forward. 1 is decoding; more is the same for a cache that treats every new
            row as a decode step of its own.
        tick: called with the number of tokens after every forward.

    Returns:
        ``[n, V]`` logits in float32 on the CPU; row i is the prediction after ``ids[i]``.
    """
    rows = []
    for part in ids.split(chunk):
        rows.append(model(part[None], **{CACHE: cache}, use_cache=True).logits[0].float().cpu())
        tick(len(part))
    return torch.cat(rows)


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) of next-token distributions.

    Args:
        reference, logits: ``[n, V]``.

    Returns:
        ``[n]`` float64, in nats.
    """
    parts = []
    for p, q in zip(reference.split(_ROWS), logits.split(_ROWS), strict=True):
        log_p, log_q = (x.double().log_softmax(-1) for x in (p, q))
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0))
    return torch.cat(parts)


def perplexity(logits: Tensor, targets: Tensor) -> float:
    """``exp`` of the mean negative log-likelihood of ``targets [n]`` under ``logits [n, V]``."""
    parts = zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)
    loss = sum(float(torch.nn.functional.cross_entropy(x.double(), t, reduction="sum")) for x, t in parts)
    return math.exp(loss / len(targets))


@dataclass(frozen=True)
class Quality:
    """Agreement of a method with dense decoding over a held-out stretch.

    Attributes:
        kl: mean KL(dense || method) of the next token, nats.
        top1: part of the positions where both name the same most likely token.
        perplexity: of the method, on the text itself.
        tokens: predictions that were compared.
    """

    kl: float
    top1: float
    perplexity: float
    tokens: int


def compare(dense: Tensor, logits: Tensor, targets: Tensor) -> Quality:
    """Compare predictions ``[n, V]`` with dense ones on a text whose next tokens are ``targets [n]``."""
    return Quality(
        kl=float(kl_divergence(dense, logits).mean()),
        top1=float((dense.argmax(-1) == logits.argmax(-1)).double().mean()),
        perplexity=perplexity(logits, targets),
        tokens=len(targets),
    )


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    cache: Cache,
    first: int,
    steps: int,
    tick: Callable[[int], None] = lambda tokens: None,
) -> tuple[Tensor, Tensor]:
    """Decode greedily after what the cache holds.

    Args:
        first: the token that is fed first; the results begin after it.
        steps: tokens to decode.

    Returns:
        ``[steps]`` int64 tokens, and ``[steps]`` float32 gaps between the two largest logits.
    """
    tokens, gaps = [], []
    last = torch.tensor([[first]], device=model.device)
    for _ in range(steps):
        best = model(last, **{CACHE: cache}, use_cache=True).logits[0, -1].float().topk(2)
        last = best.indices[:1][None]
        tokens.append(last[0])
        gaps.append(best.values[:1] - best.values[1:])
        tick(1)
    return torch.cat(tokens).cpu(), torch.cat(gaps).cpu()


@dataclass(frozen=True)
class Difference:
    """Where two greedy decodings part: the step, both tokens, and the first decoding's top-2 gap there."""

    step: int
    expected: int
    got: int
    gap: float


def first_difference(expected: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor]) -> Difference | None:
    """The first step at which two results of :func:`greedy` differ, or None."""
    differs = (expected[0] != got[0]).nonzero()
    if not len(differs):
        return None
    step = int(differs[0])
    return Difference(step, int(expected[0][step]), int(got[0][step]), float(expected[1][step]))
