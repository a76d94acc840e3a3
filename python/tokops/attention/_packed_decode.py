"""Attention over the parts of a cache: full-precision and packed pages in one call."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op
from . import arguments, logical, packed_cases
from ._paged_decode import raw_scores
from ._paged_decode import reference as dense_reference
from .parts import CODECS, Part, decoded, flatten, unflatten

__all__ = ["Part", "packed_decode"]

_NAME = "packed_decode"
_MAX_PARTS = 16


def _check_side(name: str, part: Part, side: str, q: Tensor) -> None:
    data, codec = getattr(part, side), getattr(part, f"{side}_codec")
    refuse_unless(0 <= codec < len(CODECS), _NAME, f"{name}_codec must be 0..{len(CODECS) - 1}, got {codec}")
    check_tensor(_NAME, name, data, 4, (torch.uint8,) if codec else (q.dtype,), q)
    d, bits = q.shape[3], {0: 8, 1: 8, 2: 4, 3: 2, 4: 8, 5: 8}[codec]
    least = 32 if bits < 8 else 16
    if codec:
        refuse_unless(
            d % least == 0,
            _NAME,
            f"the codec of {name} needs a head dimension that is a multiple of {least}, got {d}",
        )
    refuse_unless(
        data.shape[3] == d * bits // 8,
        _NAME,
        f"{name} must have rows of {d * bits // 8} for head dimension {d}, got {data.shape[3]}",
    )
    refuse_unless(
        data.shape[3] <= 1 or data.stride(3) == 1, _NAME, f"{name} must have a contiguous last dimension"
    )
    if codec:
        _check_scale(name, part, side, data, least, d)
    norm = getattr(part, f"{side}_norm")
    if norm is not None:
        check_tensor(_NAME, f"{name}_norm", norm, 3, (torch.float16,), q)
        check_shape(_NAME, f"{name}_norm", norm, data.shape[:3], "[N, H, P]")


def _check_scale(name, part, side, data, least, d):
    scale, zero = getattr(part, f"{side}_scale"), getattr(part, f"{side}_zero")
    refuse_unless(scale is not None, _NAME, f"{name}_scale must have 4 dimensions, got None")
    check_tensor(_NAME, f"{name}_scale", scale, 4, (torch.float16, torch.float32), data)
    page = data.shape[2]
    rows, columns = scale.shape[2:]
    head = rows == columns == 1
    channel = columns == d and rows != page and rows > 0 and page % rows == 0
    token = rows == page and columns > 0 and d % columns == 0 and d // columns % least == 0
    refuse_unless(
        head or channel or token,
        _NAME,
        f"{name}_scale must be [N, H, {page}, {d} / group] with a group of a multiple of {least}, "
        f"[N, H, {page} / group, {d}] or [N, H, 1, 1], got {list(scale.shape)}",
    )
    refuse_unless(
        scale.shape[0] in (1, data.shape[0]) and scale.shape[1] in (1, data.shape[1]),
        _NAME,
        f"{name}_scale must have the pages and heads of {name} {list(data.shape)}, got {list(scale.shape)}",
    )
    if zero is not None:
        check_tensor(_NAME, f"{name}_zero", zero, 4, (scale.dtype,), data)
        same = zero.shape == scale.shape and all(
            n <= 1 or a == b for n, a, b in zip(zero.shape, zero.stride(), scale.stride(), strict=True)
        )
        refuse_unless(
            same,
            _NAME,
            f"{name}_zero must have the shape and strides of {name}_scale {list(scale.shape)}, "
            f"got {list(zero.shape)}",
        )


def _check_part(i: int, part: Part, q: Tensor, heads: int) -> None:
    b, name = q.shape[0], f"parts[{i}]"
    for side in ("k", "v"):
        _check_side(f"{name}.{side}", part, side, q)
    pages = list(part.k.shape)
    refuse_unless(
        list(part.v.shape[:3]) == pages[:3],
        _NAME,
        f"{name}.v must have the pages, heads and page size of {name}.k {pages}, got {list(part.v.shape)}",
    )
    table = part.block_table
    check_tensor(_NAME, f"{name}.block_table", table, (2, 3), logical.INT, q)
    if table.dim() == 3:
        refuse_unless(
            part.k.shape[1] == 1,
            _NAME,
            f"{name}.k must have one head per page when block_table is [B, Hkv, pages], got {part.k.shape[1]}",
        )
    refuse_unless(
        table.shape[0] == b and logical.kv_heads(part.k, table) == heads,
        _NAME,
        f"{name}.block_table must be of {b} sequences and {heads} KV heads, got {list(table.shape)}",
    )
    check_tensor(_NAME, f"{name}.lens", part.lens, (1, 2), logical.INT, q)
    check_shape(_NAME, f"{name}.lens", part.lens, (b, heads)[: part.lens.dim()], "[B] or [B, Hkv]")
    for field in ("first", "begin"):
        x = getattr(part, field)
        if x is not None:
            check_tensor(_NAME, f"{name}.{field}", x, 1, logical.INT, q)
            check_shape(_NAME, f"{name}.{field}", x, (b,), "[B]")
    if part.positions is not None:
        refuse_unless(
            part.first is None and part.begin is None, _NAME, f"{name}.positions excludes first and begin"
        )
        check_tensor(_NAME, f"{name}.positions", part.positions, 3, logical.INT, q)
        check_shape(
            _NAME, f"{name}.positions", part.positions, (b, heads, part.capacity), "[B, Hkv, pages * P]"
        )
    if part.where is not None:
        check_tensor(_NAME, f"{name}.where", part.where, 3, logical.INT, q)
        check_shape(_NAME, f"{name}.where", part.where[..., :0], (b, heads, 0), "[B, Hkv, length]")


def _check(q, parts, seq_lens, q_lens, starts, selected, counts, ancestors, softcap, window, max_len, extra):
    refuse_unless(
        1 <= len(parts) <= _MAX_PARTS,
        _NAME,
        f"parts must be 1..{_MAX_PARTS} parts of 14 tensors and 3 numbers, got {len(parts)}",
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
        _check_part(i, part, q, heads)
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
