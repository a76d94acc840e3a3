"""Drawing without replacement from logits: a race of exponential times, which is a sort by Gumbel keys."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _bitmask, _exact
from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["gumbel_topm"]

_NAME = "gumbel_topm"
_MOST, _ROUNDS, _VOCABULARY = 64, 1 << 12, 1 << 22


def _check(logits, m, stream, position, round, exclude, mask):
    check_tensor(_NAME, "logits", logits, 2, FLOATS, logits)
    rows, size = logits.shape
    refuse_unless(
        1 <= size <= _VOCABULARY, _NAME, f"the vocabulary must be 1..{_VOCABULARY} tokens, got {size}"
    )
    refuse_unless(1 <= m <= _MOST, _NAME, f"m must be 1..{_MOST}, got {m}")
    refuse_unless(0 <= round < _ROUNDS, _NAME, f"round must be 0..{_ROUNDS - 1}, got {round}")
    for name, x in (("stream", stream), ("position", position)):
        check_tensor(_NAME, name, x, 1, (torch.int64,), logits)
        check_shape(_NAME, name, x, (rows,), "[rows]")
    if mask is not None:
        _bitmask.check(_NAME, "mask", mask, rows, logits)
        refuse_unless(mask.shape[1] > 0, _NAME, "mask must have at least 1 word a row")
    if exclude is not None:
        check_tensor(_NAME, "exclude", exclude, 2, (torch.int32,), logits)
        refuse_unless(
            exclude.shape[0] == rows, _NAME, f"exclude must have {rows} rows, got {exclude.shape[0]}"
        )


def _words(seed, stream, position, round, size):
    """A random word of 32 bits for every token ``[size]``, as float32: four tokens share a number."""
    key = seed & (1 << 64) - 1
    counters = ((position & 0xFFFFFFFF, stream & 0xFFFFFFFF, round << 20 | i) for i in range(-(-size // 4)))
    words = [w for at in counters for w in _exact.philox((*at, int(_exact.Use.RACE)), key)]
    return torch.tensor(words[:size], dtype=torch.int64).float()


def _log_time(word):
    """ln of an exponential time, as csrc/sampling/gumbel_topm.h has it."""
    v = ((word + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)
    u = 1.0 - v
    missing = 1.0 - u
    time = -_exact.log_positive(u) * (v / torch.where(missing > 0, missing, 1.0))
    return _exact.log_positive(torch.where(missing > 0, time, v))


def _race(row, m, words, excluded):
    """ids, logp and logz of one row of logits whose forbidden entries are -inf."""
    row = _exact.sane_logits(row)
    ids, logp = torch.full((m,), -1, dtype=torch.int32), torch.full((m,), float("-inf"))
    top = row.max()
    if top == float("-inf"):
        return ids, logp, top
    total = _exact.fixed(_exact.exp_nonpositive(row - top)).sum().double()
    logz = top + _exact.log_positive((total / _exact.ONE).float())
    keys = row - _log_time(words)
    keys[[i for i in excluded if 0 <= i < len(row)]] = float("-inf")
    order = torch.sort(keys + 0.0, descending=True, stable=True).indices[:m]  # ties: the lowest index first
    order = order[keys[order] > float("-inf")]
    ids[: len(order)], logp[: len(order)] = order.int(), row[order] - logz
    return ids, logp, logz


@op(
    "gumbel_topm(Tensor logits, int m, int seed, Tensor stream, Tensor position, int round, "
    "Tensor? exclude=None, Tensor? mask=None) -> (Tensor, Tensor, Tensor)"
)
def gumbel_reference(logits, m, seed, stream, position, round, exclude=None, mask=None):
    """The definition: arrivals in order, row by row."""
    _check(logits, m, stream, position, round, exclude, mask)
    device = logits.device
    if mask is not None:
        logits = torch.where(_bitmask.allowed(mask, logits.shape[1]), logits, float("-inf"))
    excluded = [[]] * len(logits) if exclude is None else exclude.tolist()
    found = [
        _race(row, m, _words(seed, s, at, round, len(row)), gone)
        for row, s, at, gone in zip(logits.cpu(), stream.tolist(), position.tolist(), excluded, strict=True)
    ]
    if not found:
        empty = torch.empty(0, m, device=device)
        return empty.int(), empty, torch.empty(0, device=device)
    return tuple(torch.stack(x).to(device) for x in zip(*found, strict=True))


@torch.library.register_fake("tokops::gumbel_topm")
def _(logits, m, seed, stream, position, round, exclude=None, mask=None):
    _check(logits, m, stream, position, round, exclude, mask)
    shape = (logits.shape[0], m)
    return (
        logits.new_empty(shape, dtype=torch.int32),
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape[:1], dtype=torch.float32),
    )


def gumbel_topm(
    logits: Tensor,
    m: int,
    *,
    seed: int,
    stream: int | Tensor = 0,
    position: int | Tensor = 0,
    round: int = 0,
    exclude: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw m different tokens from every row, in the order in which drawing without replacement gives them.

    Token t arrives at an exponential time of rate ``exp(logits[t])``; the first m arrivals are given out. Draws are
    named as in :func:`tokops.sampling.sample`, so that the same numbers give the same tokens on CPU and CUDA and in
    any batch. They are not those of ``sample``: use one or the other for a position.

    It takes one launch and a random number for every token of the row. :func:`tokops.sampling.draw` takes a random
    number for every token that is drawn, and the row's :func:`tokops.sampling.law` first; on a CPU that is many times
    faster, and what :class:`tokops.methods.AWRS` does.

    Args:
        logits: ``[P, V]`` float32, bfloat16 or float16, V at most 2^22; NaN counts as -inf, and -inf is never drawn.
        m: 1..64 tokens per row.
        seed: of the generation, 64 bits.
        stream: of the request, an int or ``[P]`` int64; its low 32 bits count.
        position: index in the request's sequence of the token that is decided, an int or ``[P]`` int64.
        round: 0..4095; draws of different rounds at one position are independent of each other.
        exclude: ``[P, E]`` int32 tokens that are not drawn again, -1 for none.
        mask: ``[P, W]``, ``[1, W]`` or ``[W]`` int32: bit ``t % 32`` of word ``t / 32`` is 1 where t may be drawn.

    Returns:
        - ids ``[P, m]`` int32, in order of arrival; -1 where no token is left.
        - logp ``[P, m]`` float32 log-probabilities of the ids under the softmax of what the mask allows; what is
          excluded still has its part in it. -inf where no token is left.
        - logz ``[P]`` float32 logsumexp of what the mask allows; -inf for a row without a finite logit. Weights below
          2^-40 of the largest do not count.

    Raises:
        RuntimeError: wrong shape, dtype, device, or m or round out of range.
    """
    torch._check(logits.dim() == 2, lambda: f"gumbel_topm: logits must have 2 dimensions, got {logits.dim()}")
    shape = logits.shape[:1]
    stream, position = (
        x.to(torch.int64).expand(shape)
        if isinstance(x, Tensor)
        else torch.full(shape, x, dtype=torch.int64, device=logits.device)
        for x in (stream, position)
    )
    seed &= (1 << 64) - 1
    signed = seed - (1 << 64) if seed >> 63 else seed
    bits = _bitmask.rows_of(_NAME, mask, shape)
    return torch.ops.tokops.gumbel_topm.default(logits, m, signed, stream, position, round, exclude, bits)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of gumbel_topm, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for rows, m in ((1, 32), (5, 32), (16, 64)):
            logits = torch.randn(rows, 131072, generator=gen) * 4
            yield "gumbel_topm", f"[{rows}, 131072] m {m}", (logits, m, 1, *[torch.arange(rows)] * 2, 0), {}
        return
    for rows, v, m in ((1, 1, 1), (2, 7, 64), (4, 1000, 32), (2, 4500, 33), (1, 100, 64), (1, 300, 64)):
        for dtype in FLOATS:
            logits = (torch.randn(rows, v, generator=gen) * 3).to(dtype)
            if rows == 4:
                logits[0], logits[1, ::2], logits[2, 5:9] = float("-inf"), float("nan"), float("inf")
                logits[3, 6:] = float("-inf")
            numbers = (torch.arange(rows) + 5, torch.arange(rows) * 11)
            label = f"[{rows}, {v}] m {m} {str(dtype)[6:]}"
            args = (logits, m, -0x123456789ABCDEF, *numbers)
            yield "gumbel_topm", label, (*args, 0), {}
            gone = torch.randint(-1, v, (rows, 5), generator=gen).int()
            kept = _bitmask.packed(torch.rand(rows, v, generator=gen) < 0.3)
            yield "gumbel_topm", f"masked {label}", (*args, 7, gone, kept), {}
    flat = torch.zeros(2, 2000)
    numbers = (torch.tensor([1, 2]), torch.tensor([3, 2**40 + 3]))
    yield "gumbel_topm", "flat", (flat, 64, 9, *numbers, 4095), {}
    none = torch.arange(0)
    yield "gumbel_topm", "no rows", (torch.zeros(0, 4), 3, 0, none, none, 0), {}
