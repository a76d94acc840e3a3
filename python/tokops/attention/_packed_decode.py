"""Attention over the parts of a cache: full-precision and packed pages in one call."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op
from . import arguments, logical, packed_cases
from ._paged_decode import raw_scores
from ._paged_decode import reference as dense_reference
from .part_checks import check_part
from .parts import Part, decoded, flatten, unflatten

__all__ = ["Part", "packed_decode"]

_NAME = "packed_decode"
_MAX_PARTS = 16


def _check(q, parts, seq_lens, q_lens, starts, selected, counts, ancestors, softcap, window, max_len, extra):
    refuse_unless(
        1 <= len(parts) <= _MAX_PARTS,
        _NAME,
        f"parts must be 1..{_MAX_PARTS} parts of 14 tensors and 4 numbers, got {len(parts)}",
    )
    check_tensor(_NAME, "q", q, 4, FLOATS, q)
    heads = logical.kv_heads(parts[0].k, parts[0].block_table)
    logical.check_rows(_NAME, q, heads)
    arguments.check_extras(
        _NAME, q, heads, q_lens, starts, selected, counts, ancestors, *extra, softcap, window
    )
    check_tensor(_NAME, "seq_lens", seq_lens, 1, logical.INT, q)
    check_shape(_NAME, "seq_lens", seq_lens, q.shape[:1], "[B]")
    refuse_unless(
        max_len is None or (max_len >= 0 and selected is None),
        _NAME,
        "scores come out of the dense pass: max_len must be >= 0 and selected None",
    )
    for i, part in enumerate(parts):
        check_part(i, part, q, heads, selected)
    return heads


def _check_values(q, parts, seq_lens, q_lens, starts, selected, counts, heads):
    b = q.shape[0]
    least = int(seq_lens.min()) if b else 0
    refuse_unless(least >= 0, _NAME, f"seq_lens must be >= 0, got {seq_lens.tolist()}")
    length = int(seq_lens.max()) if b else 0
    whole = seq_lens.new_zeros(b, 1), q.new_empty(1, heads, max(length, 1), 0)
    logical.check_values(_NAME, whole[1], whole[0], seq_lens, q_lens, starts, q.shape[1])
    if selected is not None:
        logical.check_selection(_NAME, selected, counts, whole[0], seq_lens, heads)
    for i, part in enumerate(parts):
        name = f"parts[{i}]"
        cap, lens = part.capacity, logical.per_head(part.lens, heads)
        refuse_unless(
            bool(((lens >= 0) & (lens <= cap)).all()),
            _NAME,
            f"{name}.lens must be 0..{cap} (pages * page size), got {part.lens.tolist()}",
        )
        for field in ("first", "begin"):
            x = getattr(part, field)
            refuse_unless(
                x is None or bool((x >= 0).all()), _NAME, f"{name}.first and begin must be >= 0, got others"
            )
        _check_places(name, part, lens, seq_lens, selected, heads)


def _check_places(name, part, lens, seq_lens, selected, heads):
    table = (
        part.block_table if part.block_table.dim() == 3 else part.block_table[:, None].expand(-1, heads, -1)
    )
    used = torch.arange(table.shape[-1], device=table.device) * part.k.shape[2] < lens[..., None]
    bad = used & ((table < 0) | (table >= part.k.shape[0]))
    refuse_unless(
        not bool(bad.any()),
        _NAME,
        f"{name}.block_table entries must be 0..{part.k.shape[0] - 1} for pages in use, others were given",
    )
    if part.positions is None:
        return
    live = torch.arange(part.capacity, device=lens.device) < lens[..., None]
    inside = (part.positions >= 0) & (part.positions < seq_lens[:, None, None])
    refuse_unless(
        bool((inside | ~live).all()), _NAME, f"{name}.positions must be 0..seq_lens-1 for slots in use"
    )
    length = int(seq_lens.max()) if len(seq_lens) else 0
    refuse_unless(
        selected is None or (part.where is not None and part.where.shape[2] >= length),
        _NAME,
        f"{name}.where must reach to seq_lens where positions are selected",
    )


def _scatter(parts: Sequence[Part], heads: int, dim: int, length: int, batch: int) -> tuple[Tensor, Tensor]:
    """Keys (NaN where no part holds a position) and values of all positions, ``[B, Hkv, length, D]`` float32."""
    device = parts[0].k.device
    keys = torch.full((batch, heads, length + 1, dim), float("nan"), device=device)
    values = torch.zeros(batch, heads, length + 1, dim, device=device)
    for part in parts:
        slot = torch.arange(part.capacity, device=device).expand(batch, heads, -1)
        live = slot < logical.per_head(part.lens, heads)[..., None]
        if part.begin is not None:
            live = live & (slot >= part.begin[:, None, None])
        position = slot if part.positions is None else part.positions.long()
        if part.first is not None:
            position = position + part.first[:, None, None]
        live = live & (position < length)  # what lies behind seq_lens is not seen
        rows = [logical.gather_logical(decoded(part, side, dim), part.block_table, heads) for side in "kv"]
        if part.k_norm is not None:  # another part may hold what a slot does not
            live = live & ~rows[0].isnan().any(-1)
        index = torch.where(live, position, length)[..., None].expand(-1, -1, -1, dim)
        keys.scatter_(2, index, rows[0])
        values.scatter_(2, index, rows[1])
    norm_free = keys[:, :, :length].isnan().any(-1, keepdim=True)
    return keys[:, :, :length], values[:, :, :length].masked_fill(norm_free, 0.0)


@op(
    "packed_decode(Tensor q, Tensor[] parts, int[] numbers, Tensor seq_lens, *, Tensor? q_lens=None, "
    "Tensor? starts=None, float? scale=None, Tensor? selected=None, Tensor? counts=None, Tensor? ancestors=None, "
    "Tensor? sink_logit=None, Tensor? log_gamma=None, float? softcap=None, int? window=None, bool rotate=False, "
    "bool q_int8=False, int? max_len=None) -> (Tensor out, Tensor lse, Tensor scores)",
    tags=(torch.Tag.needs_exact_strides,),
)
def reference(
    q,
    parts,
    numbers,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    selected=None,
    counts=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
    rotate=False,
    q_int8=False,
    max_len=None,
):
    """The definition: all parts decoded into their logical places, then plain attention (float32 inside)."""
    parts = unflatten(parts, numbers)
    extra = (sink_logit, log_gamma)
    heads = _check(
        q, parts, seq_lens, q_lens, starts, selected, counts, ancestors, softcap, window, max_len, extra
    )
    _check_values(q, parts, seq_lens, q_lens, starts, selected, counts, heads)
    b, _, _, d = q.shape
    length = max(int(seq_lens.max()) if b else 0, max_len or 0, 1)
    keys, values = _scatter(parts, heads, d, length, b)
    queries = _hadamard(q.float()) if rotate else q.float()
    table = torch.arange(b, dtype=torch.int32, device=q.device)[:, None]
    seen = {"q_lens": q_lens, "starts": starts, "ancestors": ancestors, "window": window, "scale": scale}
    out, lse = dense_reference(
        queries,
        keys,
        values,
        table,
        seq_lens,
        selected=selected,
        counts=counts,
        sink_logit=sink_logit,
        log_gamma=log_gamma,
        softcap=softcap,
        _op=_NAME,
        **seen,
    )
    scores = out.new_empty(0)
    if max_len is not None:
        scores = raw_scores(queries, keys, table, seq_lens, reduce="none", length=max_len, **seen)
    return (_hadamard(out) if rotate else out).to(q.dtype), lse, scores


def _hadamard(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of blocks of the largest power of two in the last dimension, its own inverse."""
    d = x.shape[-1]
    n = d & -d
    h = torch.ones(1, 1, device=x.device)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return (x.unflatten(-1, (d // n, n)) @ (h * n**-0.5)).flatten(-2)


@torch.library.register_fake("tokops::packed_decode")
def _(
    q,
    parts,
    numbers,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    selected=None,
    counts=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
    rotate=False,
    q_int8=False,
    max_len=None,
):
    parts = unflatten(parts, numbers)
    extra = (sink_logit, log_gamma)
    _check(q, parts, seq_lens, q_lens, starts, selected, counts, ancestors, softcap, window, max_len, extra)
    rows = q.shape[:3]
    scores = q.new_empty((0,) if max_len is None else (*rows, max_len), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(rows, dtype=torch.float32), scores


def packed_decode(
    q: Tensor,
    parts: Sequence[Part],
    seq_lens: Tensor,
    *,
    q_lens: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    selected: Tensor | None = None,
    counts: Tensor | None = None,
    ancestors: Tensor | None = None,
    sink_logit: Tensor | None = None,
    log_gamma: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
    rotate: bool = False,
    q_int8: bool = False,
    max_len: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of 1..256 new tokens per sequence over the parts of a cache, packed bytes read where they lie.

    All query heads of a KV head read each cached byte once, and no decoded copy is made. Lengths, visibility,
    selections and scores are by logical position, as in :func:`paged_decode`; parts say which positions they hold.
    A CPU with VNNI multiplies integer codes by bytes: queries as three of them, no fewer bits than a float32 of the
    row's largest element; and, where q is bfloat16, softmax weights as two of the largest among 128 keys, which
    puts ``out`` off by 1e-3 of the range of a group's values at the very most.

    Args:
        q: ``[B, T, Hq, D]`` float32, bfloat16 or float16.
        parts: 1..16 :class:`Part`, which hold disjoint positions. Their keys and values must be finite.
        seq_lens: ``[B]`` int32 tokens of every sequence, the new ones included, over all parts.
        q_lens, starts, scale, selected, counts, ancestors, sink_logit, log_gamma, softcap, window: as in
            :func:`paged_decode`.
        rotate: parts hold Hadamard-transformed keys and values: q is transformed on load, the output on store.
        q_int8: scores of int8 and int4 keys with a scale per token from queries rounded to 8 bits (a scale per
            row), by integer products. Adds up to ``amax(q) / 254`` per element of q to the error.
        max_len: columns of ``scores``, without a selection; None gives no scores.

    Returns:
        ``out [B, T, Hq, D]`` in q's dtype, natural-log ``lse [B, T, Hq]`` float32, and ``scores [B, T, Hq, max_len]``
        float32 (scaled ``q . k`` before softcap, -inf where unseen or not held) or None.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument.
    """
    selected, counts = arguments.four_axes(selected, counts)
    if q.is_cuda and checked():
        heads = logical.kv_heads(parts[0].k, parts[0].block_table)
        _check_values(q, parts, seq_lens, q_lens, starts, selected, counts, heads)
    tensors, numbers = flatten(parts)
    out, lse, scores = torch.ops.tokops.packed_decode.default(
        q,
        tensors,
        numbers,
        seq_lens,
        q_lens=q_lens,
        starts=starts,
        scale=scale,
        selected=selected,
        counts=counts,
        ancestors=ancestors,
        sink_logit=sink_logit,
        log_gamma=log_gamma,
        softcap=softcap,
        window=window,
        rotate=rotate,
        q_int8=q_int8,
        max_len=max_len,
    )
    return out, lse, None if max_len is None else scores


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Named inputs."""
    for label, q, parts, seq_lens, extra in packed_cases.of(size):
        yield _NAME, label, (q, *flatten(parts), seq_lens), extra
