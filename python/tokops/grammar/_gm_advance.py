"""Tokens on states of grammars, which are tables on the device: see tokops.grammar.DeviceEngine."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["gm_advance_"]

_NAME = "gm_advance"
#: Rows that are in no state, and entries of `next` that are none: csrc/grammar/automaton.h.
DEAD, HOST, FINISHED, FREE, WAITING = -1, -2, -3, -4, -5
NOT_ALLOWED, NOT_KNOWN = -1, -2
_INT = (torch.int32,)


def walk_parts(words: int) -> int:
    """Parts of a mask that `gm_walk` walks apart: csrc/grammar/automaton.h."""
    return (words + 31) // 32


def check_automaton(name, state, next, accepting, token_offset, token_bytes, eos):
    """Tables and vocabulary, as all ops that read them get them."""
    check_tensor(name, "next", next, 2, _INT, state)
    check_shape(name, "next", next, (next.shape[0], 256), "[S, 256]")
    check_tensor(name, "accepting", accepting, 1, (torch.uint8,), state)
    check_shape(name, "accepting", accepting, (next.shape[0],), "[S]")
    check_tensor(name, "token_offset", token_offset, 1, _INT, state)
    refuse_unless(token_offset.shape[0] >= 1, name, "token_offset must be [V + 1], got [0]")
    check_tensor(name, "token_bytes", token_bytes, 1, (torch.uint8,), state)
    check_tensor(name, "eos", eos, 1, _INT, state)


def _check(state, tokens, next, accepting, token_offset, token_bytes, eos, missed, history, position):
    check_tensor(_NAME, "state", state, 1, _INT, state)
    batch = state.shape[0]
    check_tensor(_NAME, "tokens", tokens, 1, (torch.int32, torch.int64), state)
    check_shape(_NAME, "tokens", tokens, (batch,), "[B]")
    check_automaton(_NAME, state, next, accepting, token_offset, token_bytes, eos)
    check_tensor(_NAME, "missed", missed, 2, _INT, state)
    check_shape(_NAME, "missed", missed, (batch, 2), "[B, 2]")
    check_tensor(_NAME, "history", history, 2, _INT, state)
    refuse_unless(history.shape[0] >= 1, _NAME, "history must have at least 1 row, got 0")
    check_shape(_NAME, "history", history, (history.shape[0], batch), "[H, B]")
    check_tensor(_NAME, "position", position, 1, _INT, state)
    check_shape(_NAME, "position", position, (batch,), "[B]")
    for name, x in (("state", state), ("missed", missed), ("history", history), ("position", position)):
        refuse_unless(x.is_contiguous(), _NAME, f"{name} must be contiguous")


def token_leads(state, token, next, accepting, offset, data, eos):
    """Where a token leads from a state of the tables."""
    if state >= len(next) or token >= len(offset) - 1:
        return DEAD
    if token in eos:
        return FINISHED if accepting[state] else DEAD
    first, last = offset[token], offset[token + 1]
    if first < 0 or first >= last or last > len(data):
        return DEAD
    for b in data[first:last]:
        to = int(next[state, b])
        if not 0 <= to < len(next):
            return WAITING if to == NOT_KNOWN else DEAD
        state = to
    return state


@op(
    "gm_advance(Tensor(a!) state, Tensor tokens, Tensor next, Tensor accepting, Tensor token_offset, Tensor"
    " token_bytes, Tensor eos, Tensor(b!) missed, Tensor(c!) history, Tensor(d!) position) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def advance_reference(
    state, tokens, next, accepting, token_offset, token_bytes, eos, missed, history, position
):
    """The definition: byte by byte through the table."""
    _check(state, tokens, next, accepting, token_offset, token_bytes, eos, missed, history, position)
    offset, data, ends = token_offset.tolist(), token_bytes.tolist(), eos.tolist()
    for b, (before, token) in enumerate(zip(state.tolist(), tokens.tolist(), strict=True)):
        if token < 0 or before == FREE:
            continue
        at = int(position[b])
        if at >= 0:
            history[at % len(history), b] = before
        position[b] += 1
        after = DEAD
        if before >= 0:
            after = token_leads(before, token, next, accepting, offset, data, ends)
        elif before in (FINISHED, HOST):
            after = FINISHED if before == FINISHED else WAITING
        if after == WAITING:
            missed[b, 0], missed[b, 1] = before, min(token, 2**31 - 1)
        state[b] = after


@torch.library.register_fake("tokops::gm_advance")
def _(state, tokens, next, accepting, token_offset, token_bytes, eos, missed, history, position):
    _check(state, tokens, next, accepting, token_offset, token_bytes, eos, missed, history, position)


def gm_advance_(
    state: Tensor,
    tokens: Tensor,
    *,
    next: Tensor,
    accepting: Tensor,
    token_offset: Tensor,
    token_bytes: Tensor,
    eos: Tensor,
    missed: Tensor,
    history: Tensor,
    position: Tensor,
) -> Tensor:
    """Take one token in every row of grammars' states, in place.

    A row is in a state of the tables, or it is dead (-1: its text is not in the language), served by the host (-2),
    finished (-3: an end token was accepted), without a grammar (-4), or it waits (-5) for the host to say where its
    last token leads. A row waits where it meets an entry that is not worked out, and where the host serves it;
    ``missed`` holds the state before the token, and the token. What waits and is given a further token is dead.
    Numbers that are no states, tokens without bytes and tokens beyond the vocabulary lead to dead rows.

    Args:
        state: ``[B]`` int32, contiguous.
        tokens: ``[B]`` int32 or int64; a row with a token below 0 stays as it is.
        next: ``[S, 256]`` int32: the state that a byte leads to; -1: the byte is not allowed, -2: it is not known yet.
        accepting: ``[S]`` uint8: whether an end token is allowed.
        token_offset: ``[V + 1]`` int32: token t is the bytes ``token_offset[t]`` up to ``token_offset[t + 1]``.
        token_bytes: uint8.
        eos: ``[E]`` int32: end tokens.
        missed: ``[B, 2]`` int32, contiguous, written in rows that come to wait.
        history: ``[H, B]`` int32, contiguous: the state before token i goes to ``history[i % H]``.
        position: ``[B]`` int32, contiguous: tokens so far; counted up.

    Returns:
        state.

    Raises:
        RuntimeError: wrong shape, dtype or device, or an argument that is written and not contiguous.
    """
    torch.ops.tokops.gm_advance.default(
        state, tokens, next, accepting, token_offset, token_bytes, eos, missed, history, position
    )
    return state


def automaton_case(gen: torch.Generator, batch: int, states: int, v: int, longest: int) -> tuple:
    """Random (state, next, accepting, token_offset, token_bytes, eos) for the cases of an op."""

    def ints(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=gen).int()

    offset = torch.cat([torch.zeros(1), ints(0, longest, v).cumsum(0)]).int()
    next = torch.where(
        torch.rand(states, 256, generator=gen) < 0.8,
        ints(0, states - 1, states, 256),
        ints(-2, -1, states, 256),
    )
    state = torch.where(
        torch.rand(batch, generator=gen) < 0.8, ints(0, states - 1, batch), ints(-5, -1, batch)
    )
    return (
        state.int(), next.int(), ints(0, 1, states).to(torch.uint8), offset,
        ints(0, 7, int(offset[-1])).to(torch.uint8), ints(0, v - 1, 2),
    )  # fmt: skip


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of gm_advance, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def ints(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=gen).int()

    def arguments(batch, states, v, h, wide, longest):
        state, *tables = automaton_case(gen, batch, states, v, longest)
        tokens = torch.where(
            torch.rand(batch, generator=gen) < 0.9, ints(0, v - 1, batch), ints(-2, v + 3, batch)
        )
        return (
            state, tokens.long() if wide else tokens.int(), *tables,
            ints(-1, -1, batch, 2), ints(-1, -1, h, batch), ints(0, 3 * h, batch),
        )  # fmt: skip

    if size == "large":
        for batch in (1, 64):
            yield "gm_advance", f"B {batch}", arguments(batch, 4096, 131072, 64, True, 8), {}
        return
    for batch, states, v, h, wide in ((1, 1, 1, 1, False), (40, 9, 30, 4, True), (700, 50, 200, 3, False)):
        yield "gm_advance", f"B {batch}, S {states}, H {h}", arguments(batch, states, v, h, wide, 6), {}
    args = list(arguments(40, 9, 30, 4, True, 5))
    args[0], args[1] = args[0] + 3, args[1] * (1 << 33)
    yield "gm_advance", "no states and no tokens", tuple(args), {}
    args = list(arguments(40, 9, 30, 4, False, 5))
    args[4], args[2] = args[4] * 2 - 9, args[2] + 2
    yield "gm_advance", "tables that are wrong", tuple(args), {}
    yield (
        "gm_advance",
        "no tables",
        (*args[:2], args[2][:0], args[3][:0], args[4][:1], args[5][:0], args[6][:0], *args[7:]),
        {},
    )
    yield (
        "gm_advance",
        "no rows",
        (args[0][:0], args[1][:0], *args[2:7], args[7][:0], args[8][:, :0].contiguous(), args[9][:0]),
        {},
    )
