"""Bitmasks of budgets: letters, or anything else that tokens use up."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _bitmask
from .._check import check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["multiset_mask"]

_NAME = "multiset_mask"
_MOST = 256


def _check(effect, used, budget):
    check_tensor(_NAME, "effect", effect, 2, (torch.int8,), effect)
    letters = effect.shape[1]
    refuse_unless(1 <= letters <= _MOST, _NAME, f"effect must have 1..{_MOST} columns, got {letters}")
    for name, x in (("used", used), ("budget", budget)):
        check_tensor(_NAME, name, x, 2, (torch.int16,), effect)
        check_shape(_NAME, name, x, (used.shape[0], letters), "[B, A]")


@op("multiset_mask(Tensor effect, Tensor used, Tensor budget) -> Tensor")
def multiset_reference(effect, used, budget):
    """The definition: every sum within its limit."""
    _check(effect, used, budget)
    sums = used[:, None].int() + effect.int()
    return _bitmask.packed((sums <= budget[:, None].int()).all(-1))


@torch.library.register_fake("tokops::multiset_mask")
def _(effect, used, budget):
    _check(effect, used, budget)
    return effect.new_empty((used.shape[0], (effect.shape[0] + 31) // 32), dtype=torch.int32)


def multiset_mask(effect: Tensor, used: Tensor, budget: Tensor) -> Tensor:
    """Which tokens still fit into a budget of letters: anagrams, isograms, limits on a whole text.

    Args:
        effect: ``[V, A]`` int8: how often a token has each of 1..256 letters; less than 0 gives back.
        used: ``[B, A]`` int16: what each row has used up.
        budget: ``[B, A]`` int16: the limits.

    Returns:
        ``[B, ceil(V / 32)]`` int32: bit ``t % 32`` of word ``t / 32`` is 1 where ``used + effect[t] <= budget`` in
        every letter. Sums do not overflow; bits beyond V are 0.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return torch.ops.tokops.multiset_mask.default(effect, used, budget)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of multiset_mask, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def ints(low, high, dtype, *shape):
        return torch.randint(low, high + 1, shape, generator=gen).to(dtype)

    if size == "large":
        for rows in (1, 8, 64):
            args = (
                ints(0, 1, torch.int8, 131072, 26),
                *(ints(0, 3, torch.int16, rows, 26) for _ in range(2)),
            )
            yield "multiset_mask", f"[131072, 26] B {rows}", args, {}
        return
    for v, letters, rows in ((1, 1, 1), (64, 26, 3), (1001, 26, 2), (300, 7, 11), (515, 33, 2), (97, 256, 2)):
        for name, low, high in (("letters", 0, 1), ("any", -128, 127)):
            effect = ints(low, high, torch.int8, v, letters)
            if name == "letters":
                effect *= ints(0, 1, torch.int8, v, 1) * (torch.rand(v, letters, generator=gen) < 0.1)
            used, budget = ints(0, 2, torch.int16, rows, letters), ints(1, 4, torch.int16, rows, letters)
            if name == "any":
                budget += 126
            yield "multiset_mask", f"{name} [{v}, {letters}] B {rows}", (effect, used, budget), {}
    effect = ints(-128, 127, torch.int8, 200, 2)
    effect[:3] = torch.tensor([[-128, -128], [-128, 127], [127, 127]])
    used = torch.tensor([[0, 0], [32767, -32768], [-32768, 0], [129, 1], [128, 0]]).short()
    budget = torch.tensor([[0, 0], [-32768, 32767], [32767, 127], [0, 0], [0, 127]]).short()
    yield "multiset_mask", "the ends of int16", (effect, used, budget), {}
    yield "multiset_mask", "no rows", (effect, used[:0], budget[:0]), {}
    yield "multiset_mask", "no tokens", (effect[:0], used, budget), {}
