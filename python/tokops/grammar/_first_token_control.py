"""Control tokens at the first position of an answer: refusing or answering by thresholds on their probabilities."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _exact
from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["first_token_control"]

_NAME = "first_token_control"
_MOST, _VOCABULARY = 32, 1 << 22
_OFF, _LARGEST, _SUM = range(3)


def _check(logits, ids, tau, mode, temperature):
    check_tensor(_NAME, "logits", logits, 2, FLOATS, logits)
    batch, size = logits.shape
    refuse_unless(
        1 <= size <= _VOCABULARY, _NAME, f"the vocabulary must be 1..{_VOCABULARY} tokens, got {size}"
    )
    check_tensor(_NAME, "ids", ids, 2, (torch.int32,), logits)
    refuse_unless(
        ids.shape[0] == batch and 2 <= ids.shape[1] <= _MOST + 1,
        _NAME,
        f"ids must be [B, C + 1] with B {batch} and C 1..{_MOST}, got {list(ids.shape)}",
    )
    check_tensor(_NAME, "tau", tau, 2, (torch.float32,), logits)
    check_shape(_NAME, "tau", tau, (batch, ids.shape[1] - 1), "[B, C]")
    check_tensor(_NAME, "mode", mode, 1, (torch.int32,), logits)
    check_shape(_NAME, "mode", mode, (batch,), "[B]")
    refuse_unless(1e-5 <= temperature <= 1e5, _NAME, f"temperature must be 1e-5..1e5, got {temperature}")


def _check_values(logits, ids, mode):
    least = torch.full_like(ids[0], -1) if len(ids) else ids.new_zeros(ids.shape[1])
    least[-1] = 0
    wrong = ids[(ids < least) | (ids >= logits.shape[1])].tolist()[:1]
    for x in wrong:
        refuse_unless(
            False,
            _NAME,
            f"ids must be tokens of the vocabulary, or -1 for a category that is not there, got {x}",
        )
    for x in mode[(mode < 0) | (mode > 2)].tolist()[:1]:
        refuse_unless(False, _NAME, f"mode must be 0, 1 or 2, got {x}")


def _scores(row, ids, temperature):
    """Probabilities of ids under one row of logits."""
    w = _exact.weigh(row, temperature, 0, 1.0, 0.0)
    total = int(_exact.fixed(w).sum())
    scale = float(torch.tensor(_exact.ONE / total, dtype=torch.float64).float()) if total else 0.0
    return torch.where(ids < 0, 0.0, w[ids.clamp_min(0).long()] * scale)


def _logits(row, ids):
    """Logits of ids, -inf for one that is not there."""
    found = row.float()[ids.clamp_min(0).long()]
    return torch.where((ids < 0) | found.isnan(), float("-inf"), found).tolist()


def _decide(ids, tau, mode, logit, score):
    if mode == _OFF:
        return -1
    limits = tau.tolist()
    live = [c for c, x in enumerate(ids[:-1]) if x >= 0 and (mode == _LARGEST or limits[c] == limits[c])]
    if not live:
        return -1
    best = max(live, key=lambda c: (logit[c], -c))
    if limits[best] != limits[best]:
        return -1
    if limits[best] < 0 and mode == _LARGEST:
        return ids[best] if logit[best] >= logit[-1] else ids[-1]
    mass = score[best]
    if mode == _SUM:
        mass = torch.zeros_like(mass)
        for c in live:
            mass = mass + score[c]
    limit = score[-1] if limits[best] < 0 else tau[best]
    return ids[best] if bool(mass >= limit) else ids[-1]


@op(
    "first_token_control(Tensor logits, Tensor ids, Tensor tau, Tensor mode, float temperature) -> (Tensor, Tensor)"
)
def control_reference(logits, ids, tau, mode, temperature):
    """The definition: softmax, then the threshold of the most likely category."""
    _check(logits, ids, tau, mode, temperature)
    _check_values(logits, ids, mode)
    score = torch.zeros(ids.shape, device=logits.device)
    next_ids = torch.full_like(mode, -1)
    for b in range(len(logits)):
        score[b] = _scores(logits[b], ids[b], temperature)
        next_ids[b] = _decide(ids[b].tolist(), tau[b], int(mode[b]), _logits(logits[b], ids[b]), score[b])
    return next_ids, score


@torch.library.register_fake("tokops::first_token_control")
def _(logits, ids, tau, mode, temperature):
    _check(logits, ids, tau, mode, temperature)
    return mode.new_empty(mode.shape), logits.new_empty(ids.shape, dtype=torch.float32)


def first_token_control(
    logits: Tensor, ids: Tensor, tau: Tensor, mode: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Decide by thresholds which control token an answer begins with.

    A model that was trained with control tokens gives, at the first position of its answer, probabilities to those
    that refuse (one for each category) and to the one that answers. Every row of a batch has its own tokens,
    thresholds and mode. Decisions are the same on every device. Which of some tokens is the most likely one is told by
    their logits, also where rounding has made their probabilities equal.

    Args:
        logits: ``[B, V]`` float32, bfloat16 or float16 at the first position; NaN counts as -inf.
        ids: ``[B, C + 1]`` int32: tokens of 1..32 categories (-1: not there), then the token that answers.
        tau: ``[B, C]`` float32 thresholds. Less than 0: what is as likely as the token that answers reaches it. NaN:
            the category is not in use.
        mode: ``[B]`` int32. 0 leaves the row alone. 1 looks at the most likely category (the first of equals): its
            token where its probability reaches its threshold, else the token that answers; the row is left alone if
            that category is not in use. 2 adds up the categories in use: the token of the most likely of them where
            the sum reaches that one's threshold, else the token that answers.
        temperature: of the softmax of the decision.

    Returns:
        - next ``[B]`` int32 token to emit; -1 leaves it to the model.
        - score ``[B, C + 1]`` float32 probabilities of the ids; 0 for -1, and below 2^-40 of the largest.

    Raises:
        RuntimeError: wrong shape, dtype or device; a temperature out of range; on the CPU, and under
            ``TOKOPS_CHECK=1``, ids or modes out of range (on CUDA they count as -1 and 0 otherwise).
    """
    if checked():
        _check(logits, ids, tau, mode, temperature)
        _check_values(logits, ids, mode)
    return torch.ops.tokops.first_token_control.default(logits, ids, tau, mode, float(temperature))


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of first_token_control, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    nan, minus = float("nan"), float("-inf")
    if size == "large":
        logits = torch.randn(8, 131072, generator=gen)
        ids = torch.randint(0, 131072, (8, 6), generator=gen).int()
        tau, mode = torch.full((8, 5), 1e-5), (torch.arange(8) % 3).int()
        yield "first_token_control", "[8, 131072]", (logits, ids, tau, mode, 1.0), {}
        return
    for batch, v, categories in ((1, 2, 1), (6, 40, 1), (9, 1500, 5), (2, 64, 32)):
        for dtype in FLOATS:
            logits = (torch.randn(batch, v, generator=gen) * 2).to(dtype)
            if batch == 9:
                logits[0], logits[1, ::2], logits[2, 7] = minus, nan, float("inf")
            ids = torch.randint(0, v, (batch, categories + 1), generator=gen).int()
            tau = torch.rand(batch, categories, generator=gen) * 0.1
            tau[0], tau[-1, -1] = -1.0, nan
            mode = (torch.arange(batch) % 3).int()
            if batch == 6:  # both probabilities are 0, the logits differ
                pair, tau[[1, 4]] = [20, 21], -1.0
                ids[[1, 4]] = torch.tensor(pair).int()
                logits[[1, 4]], logits[[1, 4], 39], logits[[1, 4], pair] = -50, 0, -60
            if categories == 5:
                ids[3, 2], ids[4, :5] = -1, -1
            for temperature in (1.0, 2.5) if dtype == torch.float32 else (2.5,):
                label = f"[{batch}, {v}] {categories} categories, {str(dtype)[6:]}, {temperature}"
                yield "first_token_control", label, (logits, ids, tau, mode, temperature), {}
    none = torch.zeros(0, 2)
    args = (torch.zeros(0, 4), none.int(), none[:, :1].contiguous(), torch.zeros(0).int(), 1.0)
    yield "first_token_control", "no rows", args, {}
