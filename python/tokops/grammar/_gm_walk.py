"""Masks of states by walking every token through the tables: see tokops.grammar.DeviceEngine."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import op
from ._gm_advance import FINISHED, WAITING, automaton_case, check_automaton, token_leads, walk_parts

__all__ = ["gm_walk_"]

_NAME = "gm_walk"
_INT = (torch.int32,)


def _check(state, mask_of, next, accepting, token_offset, token_bytes, eos, out, left):
    check_tensor(_NAME, "state", state, 1, _INT, state)
    check_automaton(_NAME, state, next, accepting, token_offset, token_bytes, eos)
    check_tensor(_NAME, "mask_of", mask_of, 1, _INT, state)
    check_shape(_NAME, "mask_of", mask_of, (next.shape[0],), "[S]")
    check_tensor(_NAME, "out", out, 2, _INT, state)
    batch, words = state.shape[0], out.shape[1]
    check_shape(_NAME, "out", out, (batch, words), "[B, W]")
    check_tensor(_NAME, "left", left, 2, _INT, state)
    check_shape(_NAME, "left", left, (batch, walk_parts(words)), "[B, ceil(W / 32)]")
    for name, x in (("out", out), ("left", left)):
        refuse_unless(x.is_contiguous(), _NAME, f"{name} must be contiguous")


@op(
    "gm_walk(Tensor state, Tensor mask_of, Tensor next, Tensor accepting, Tensor token_offset, Tensor token_bytes,"
    " Tensor eos, Tensor(a!) out, Tensor(b!) left) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def walk_reference(state, mask_of, next, accepting, token_offset, token_bytes, eos, out, left):
    """The definition: every token alone, byte by byte."""
    _check(state, mask_of, next, accepting, token_offset, token_bytes, eos, out, left)
    offset, data, ends = token_offset.tolist(), token_bytes.tolist(), eos.tolist()
    for b, s in enumerate(state.tolist()):
        if not 0 <= s < len(next) or mask_of[s] >= 0:
            continue
        for part in range(left.shape[1]):
            left[b, part] = 0
            for w in range(part * 32, min(part * 32 + 32, out.shape[1])):
                to = [token_leads(s, w * 32 + i, next, accepting, offset, data, ends) for i in range(32)]
                word = sum(1 << i for i, t in enumerate(to) if t >= 0 or t == FINISHED)
                out[b, w] = word - (1 << 32 if word >> 31 else 0)
                left[b, part] |= WAITING in to


@torch.library.register_fake("tokops::gm_walk")
def _(state, mask_of, next, accepting, token_offset, token_bytes, eos, out, left):
    _check(state, mask_of, next, accepting, token_offset, token_bytes, eos, out, left)


def gm_walk_(
    state: Tensor,
    mask_of: Tensor,
    *,
    next: Tensor,
    accepting: Tensor,
    token_offset: Tensor,
    token_bytes: Tensor,
    eos: Tensor,
    out: Tensor,
    left: Tensor,
) -> Tensor:
    """Work out masks on the device: those of rows that are in a state whose mask is not in the pool.

    A token's bit is set where its bytes lead from the row's state to a state (``gm_advance_``), an end token's where
    the state is accepting. Whether a token is allowed is not known where it meets an entry that is not worked out;
    its bit is clear then, and ``left`` of its 1024 tokens set. ``gm_compose_`` takes rows of which nothing is left.
    Other rows of ``out`` and ``left`` stay as they are.

    All tokens are walked from their first byte, side by side, which at 128k tokens is 0.83 million steps a row at
    most; the sheet's walk of segments of the tree of tokens takes a third of the steps, but one block per row, and
    what it stores per depth. Cost where every row has a mask: one launch and B entries read.

    Args:
        state: ``[B]`` int32, as ``gm_advance_`` makes it.
        mask_of: ``[S]`` int32 row of the pool, below 0 where it is not known.
        next: ``[S, 256]`` int32: the state that a byte leads to; -1: the byte is not allowed, -2: it is not known yet.
        accepting: ``[S]`` uint8: whether an end token is allowed.
        token_offset: ``[V + 1]`` int32: token t is the bytes ``token_offset[t]`` up to ``token_offset[t + 1]``.
        token_bytes: uint8.
        eos: ``[E]`` int32: end tokens.
        out: ``[B, W]`` int32, contiguous; tokens beyond V are not allowed.
        left: ``[B, ceil(W / 32)]`` int32, contiguous: 1 where the 32 words are not the whole truth, else 0.

    Returns:
        out.

    Raises:
        RuntimeError: wrong shape, dtype or device, or an argument that is written and not contiguous.
    """
    torch.ops.tokops.gm_walk.default(
        state, mask_of, next, accepting, token_offset, token_bytes, eos, out, left
    )
    return out


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of gm_walk, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def ints(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=gen).int()

    def arguments(batch, states, v, words, longest=5):
        state, *tables = automaton_case(gen, batch, states, v, longest)
        big = 2**31 - 1
        return (
            state, ints(-2, 0, states), *tables, ints(-big, big, batch, words), ints(0, 1, batch, walk_parts(words)),
        )  # fmt: skip

    if size == "large":
        for batch in (1, 64):
            state, mask_of, *rest = arguments(batch, 4096, 131072, 4096, 8)
            state = state.clamp_min(0)
            yield "gm_walk", f"B {batch}, no masks", (state, mask_of * 0 - 2, *rest), {}
            yield "gm_walk", f"B {batch}, all masks", (state, mask_of * 0, *rest), {}
        return
    for batch, states, v, words in ((1, 1, 1, 1), (12, 9, 300, 10), (7, 20, 1100, 35), (1040, 5, 40, 2)):
        yield "gm_walk", f"B {batch}, S {states}, V {v}", arguments(batch, states, v, words), {}
    args = list(arguments(9, 9, 60, 2))
    args[2] = args[2].clamp_min(-1)
    yield "gm_walk", "all is known", tuple(args), {}
    args = list(arguments(9, 9, 60, 2))
    args[0], args[4], args[2] = args[0] + 3, args[4] * 2 - 9, args[2] + 2
    yield "gm_walk", "tables that are wrong", tuple(args), {}
    yield "gm_walk", "fewer words than tokens", arguments(5, 9, 60, 1), {}
    yield "gm_walk", "no words", arguments(5, 9, 60, 0), {}
    yield "gm_walk", "no rows", arguments(0, 9, 60, 2), {}
