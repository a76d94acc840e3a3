"""Masks of grammars and filters on logits, in place."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _bitmask
from .._check import FLOATS, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["apply_bitmask_"]

_NAME = "apply_bitmask_"


def _check(logits, mask, rows):
    check_tensor(_NAME, "logits", logits, 2, FLOATS, logits)
    refuse_unless(
        logits.shape[1] <= 1 or logits.stride(1) == 1, _NAME, "logits must have a contiguous last dimension"
    )
    count = logits.shape[0]
    if rows is not None:
        check_tensor(_NAME, "rows", rows, 1, (torch.int32, torch.int64), logits)
        count = rows.shape[0]
    _bitmask.check(_NAME, "mask", mask, count, logits)


def _check_rows(rows, batch):
    """-1 for a mask that is not used, else a row of the logits, and none of them twice."""
    if rows is None:
        return
    seen = set()
    for row in rows.tolist():
        refuse_unless(-1 <= row < batch, _NAME, f"rows must be -1..{batch - 1}, got {row}")
        refuse_unless(row not in seen or row == -1, _NAME, f"rows must differ, got {row} twice")
        seen.add(row)


@op(
    "apply_bitmask(Tensor(a!) logits, Tensor mask, Tensor? rows, float value, bool add) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def apply_reference(logits, mask, rows, value, add):
    """The definition: where a bit is 0, the value or the sum with it."""
    _check(logits, mask, rows)
    _check_rows(rows, logits.shape[0])
    allowed = _bitmask.allowed(mask, logits.shape[1])
    at = torch.arange(logits.shape[0], device=logits.device) if rows is None else rows.long()
    allowed = allowed.expand(len(at), -1)[at >= 0]
    at = at[at >= 0]
    changed = (logits[at].float() + value if add else torch.full_like(logits[at], value)).to(logits.dtype)
    logits[at] = torch.where(allowed, logits[at], changed)


@torch.library.register_fake("tokops::apply_bitmask")
def _(logits, mask, rows, value, add):
    _check(logits, mask, rows)


def apply_bitmask_(
    logits: Tensor,
    mask: Tensor,
    rows: Tensor | None = None,
    *,
    fill: float = float("-inf"),
    bias: float | None = None,
) -> Tensor:
    """Forbid tokens: logits whose bit is 0 become ``fill``, in place.

    Logits are read only where a word of 32 bits has both kinds, so that a mask which allows nearly all or nearly
    nothing costs about its own bytes and those that are written.

    Args:
        logits: ``[B, V]`` or ``[V]`` float32, bfloat16 or float16; rows may be strided, the last axis is contiguous.
        mask: ``[M, W]`` int32: bit ``t % 32`` of word ``t / 32`` is 1 where token t is allowed; ``[W]`` or ``[1, W]``
            serves all rows. V may be more or less than 32 W: tokens beyond the mask are forbidden, bits beyond the
            logits ignored.
        rows: ``[M]`` int32 or int64; row i of the mask is for row ``rows[i]`` of the logits, and -1 leaves it unused.
            They differ from each other. Rows that are not named stay as they are. None: row i is for row i.
        fill: what forbidden logits become.
        bias: added to forbidden logits instead, in float32, rounded once: a nudge and no ban.

    Returns:
        logits.

    Raises:
        RuntimeError: wrong shape, dtype or device; a number of masks that is neither 1 nor that of the rows; on the
            CPU, and under ``TOKOPS_CHECK=1``, rows out of range or named twice (on CUDA rows out of range are skipped
            otherwise).

    Example:
        >>> logits, mask = torch.zeros(1, 4), torch.tensor([[0b0101]], dtype=torch.int32)
        >>> tokops.grammar.apply_bitmask_(logits, mask)
        tensor([[0., -inf, 0., -inf]])
    """
    table = logits[None] if logits.dim() == 1 else logits
    mask = mask[None] if mask.dim() == 1 else mask
    if checked():
        _check(table, mask, rows)
        _check_rows(rows, table.shape[0])
    value = fill if bias is None else bias
    torch.ops.tokops.apply_bitmask.default(table, mask, rows, float(value), bias is not None)
    return logits


def _masks(gen, rows, v, width=None):
    """Rows of words of all kinds, ``width`` words each."""
    part = torch.tensor([0.5, 0.01, 0.99])[torch.arange(rows) % 3, None]
    words = _bitmask.packed(torch.rand(rows, v if width is None else 32 * width, generator=gen) < part)
    words[:, 1:2], words[:, 2:3] = 0, -1
    return words


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of apply_bitmask, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    minus = float("-inf")
    if size == "large":
        for dtype in (torch.float32, torch.bfloat16):
            for rows, part in ((1, 0.01), (1, 0.5), (8, 0.01), (64, 0.5)):
                logits = torch.randn(rows, 131072, generator=gen).to(dtype)
                mask = _bitmask.packed(torch.rand(rows, 131072, generator=gen) < part)
                yield (
                    "apply_bitmask",
                    f"[{rows}, 131072] {part} {str(dtype)[6:]}",
                    (logits, mask, None, minus, False),
                    {},
                )
        return
    for rows, v in ((1, 1), (3, 40), (4, 1000), (2, 2077), (2, 70001)):
        for dtype in FLOATS:
            logits = (torch.randn(rows, v, generator=gen) * 3).to(dtype)
            logits[0, ::3] = float("nan")
            logits[-1, ::5] = minus
            label = f"[{rows}, {v}] {str(dtype)[6:]}"
            places = torch.randperm(rows, generator=gen)
            for name, mask, at, value, add in (
                ("fill", _masks(gen, rows, v), None, minus, False),
                ("one for all", _masks(gen, 1, v), None, -1e4, False),
                ("bias", _masks(gen, rows, v), None, -2.5, True),
                ("rows", _masks(gen, rows, v), places, minus, False),
                ("some rows", _masks(gen, 2, v), torch.tensor([rows - 1, -1]).int(), 1.5, True),
                ("narrow", _masks(gen, rows, v, v // 64), None, minus, False),
                ("wide", _masks(gen, rows, v, v // 32 + 3), None, minus, False),
            ):
                if v < 70000 or name in ("fill", "some rows"):
                    yield "apply_bitmask", f"{name} {label}", (logits, mask, at, value, add), {}
    yield (
        "apply_bitmask",
        "no rows",
        (torch.zeros(0, 40), torch.zeros(1, 2, dtype=torch.int32), None, minus, False),
        {},
    )
