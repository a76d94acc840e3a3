"""Masks of rows of grammars' states, out of a pool: see tokops.grammar.DeviceEngine."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import op
from ._gm_advance import FINISHED, FREE, HOST, walk_parts

__all__ = ["gm_compose_"]

_NAME = "gm_compose"
_INT = (torch.int32,)


def _check(state, mask_of, pool, host_mask, eos_mask, out, left):
    check_tensor(_NAME, "state", state, 1, _INT, state)
    check_tensor(_NAME, "mask_of", mask_of, 1, _INT, state)
    check_tensor(_NAME, "pool", pool, 2, _INT, state)
    shape = (state.shape[0], pool.shape[1])
    check_tensor(_NAME, "host_mask", host_mask, 2, _INT, state)
    check_shape(_NAME, "host_mask", host_mask, shape, "[B, W]")
    check_tensor(_NAME, "eos_mask", eos_mask, 1, _INT, state)
    check_shape(_NAME, "eos_mask", eos_mask, shape[1:], "[W]")
    check_tensor(_NAME, "out", out, 2, _INT, state)
    check_shape(_NAME, "out", out, shape, "[B, W]")
    refuse_unless(out.is_contiguous(), _NAME, "out must be contiguous")
    if left is not None:
        check_tensor(_NAME, "left", left, 2, _INT, state)
        check_shape(_NAME, "left", left, (shape[0], walk_parts(shape[1])), "[B, ceil(W / 32)]")


@op(
    "gm_compose(Tensor state, Tensor mask_of, Tensor pool, Tensor host_mask, Tensor eos_mask, Tensor(a!) out,"
    " Tensor? left=None) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def compose_reference(state, mask_of, pool, host_mask, eos_mask, out, left=None):
    """The definition: one row of words for every state."""
    _check(state, mask_of, pool, host_mask, eos_mask, out, left)
    for b, s in enumerate(state.tolist()):
        known = 0 <= s < len(mask_of)
        mask = int(mask_of[s]) if known else -1
        if known and mask < 0 and left is not None and not left[b].any():
            out[b] = host_mask[b]
        elif s in (HOST, FINISHED):
            out[b] = host_mask[b] if s == HOST else eos_mask
        elif 0 <= mask < len(pool):
            out[b] = pool[mask]
        else:
            out[b] = -1 if s == FREE else 0


@torch.library.register_fake("tokops::gm_compose")
def _(state, mask_of, pool, host_mask, eos_mask, out, left=None):
    _check(state, mask_of, pool, host_mask, eos_mask, out, left)


def gm_compose_(
    state: Tensor,
    mask_of: Tensor,
    pool: Tensor,
    host_mask: Tensor,
    eos_mask: Tensor,
    out: Tensor,
    left: Tensor | None = None,
) -> Tensor:
    """Write the masks of rows of grammars' states.

    Rows are what ``gm_advance_`` makes of them: a state of the tables has its mask in the pool, a row that the host
    serves (-2) the one in ``host_mask``, a finished row (-3) end tokens alone, a row without a grammar (-4) all ones.
    Dead rows and rows that wait allow nothing, nor do states whose mask is not known yet; but where ``gm_walk_`` has
    run before, and has left nothing open, these have what it wrote to ``host_mask``.

    Args:
        state: ``[B]`` int32.
        mask_of: ``[S]`` int32 row of the pool, below 0 where it is not known.
        pool: ``[R, W]`` int32.
        host_mask: ``[B, W]`` int32.
        eos_mask: ``[W]`` int32.
        out: ``[B, W]`` int32, contiguous.
        left: ``[B, ceil(W / 32)]`` int32 that ``gm_walk_`` has written, or None: it has not run.

    Returns:
        out.

    Raises:
        RuntimeError: wrong shape, dtype or device, or an ``out`` that is not contiguous.
    """
    torch.ops.tokops.gm_compose.default(state, mask_of, pool, host_mask, eos_mask, out, left)
    return out


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of gm_compose, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def ints(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=gen).int()

    def arguments(batch, states, masks, words):
        big = 2**31 - 1
        return (
            ints(-5, states, batch), ints(-2, masks, states), ints(-big, big, masks, words),
            ints(-big, big, batch, words), ints(-big, big, words), ints(0, 0, batch, words),
        )  # fmt: skip

    if size == "large":
        for batch in (1, 8, 64):
            state, *rest = arguments(batch, 4096, 512, 4096)
            yield "gm_compose", f"[{batch}, 4096]", (state.clamp_min(0).clamp_max(4095), *rest), {}
        return
    for batch, states, masks, words in (
        (1, 1, 1, 1),
        (30, 12, 5, 8),
        (20, 9, 4, 33),
        (9, 30, 6, 1100),
        (5, 0, 0, 4),
    ):
        yield "gm_compose", f"[{batch}, {words}] S {states}", arguments(batch, states, masks, words), {}
    args = arguments(40, 12, 5, 70)
    left = (torch.rand(40, 3, generator=gen) < 0.2).int()
    yield "gm_compose", "after a walk", (*args, left), {}
    yield "gm_compose", "after a walk, one row", (*arguments(1, 1, 0, 64), left[:1, :2] * 0), {}
    yield "gm_compose", "no rows", arguments(0, 3, 2, 4), {}
    yield "gm_compose", "no words", arguments(3, 3, 2, 0), {}
