"""Quantising of new keys and values into packed pages."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op
from ..attention import logical
from . import inputs, packing
from .codec import Codec

__all__ = ["kv_append"]

_NAME = "kv_append"


def _check(k_pool, v_pool, block_table, seq_lens, k, v, q_lens, starts):
    """Shapes, dtypes, devices; returns (K's pool, V's pool, KV heads)."""
    pools = [packing.pool_of(_NAME, of, *pool) for of, pool in (("k_", k_pool), ("v_", v_pool))]
    codes = pools[0].codes
    packing.check_pair(_NAME, "", pools[1].codes, codes)
    heads = packing.check_table(_NAME, "block_table", block_table, codes)
    check_tensor(_NAME, "seq_lens", seq_lens, block_table.dim() - 1, packing.INT, codes)
    words = "[B, Hkv]" if block_table.dim() == 3 else "[B]"
    check_shape(_NAME, "seq_lens", seq_lens, block_table.shape[:-1], words)
    batch = block_table.shape[0]
    for name, x, pool in (("k", k, pools[0]), ("v", v, pools[1])):
        check_tensor(_NAME, name, x, 4, FLOATS, codes)
        check_tensor(_NAME, name, x, 4, (k.dtype,), codes)
        check_shape(_NAME, name, x, (batch, k.shape[1], heads, pool.dim), "[B, T, Hkv, D]")
        refuse_unless(
            pool.codec != packing.FULL or pool.codes.dtype == x.dtype,
            _NAME,
            f"{name} must have the dtype of the full pool {str(pool.codes.dtype)[6:]}, got {str(x.dtype)[6:]}",
        )
    for name, x in (("q_lens", q_lens), ("starts", starts)):
        if x is not None:
            check_tensor(_NAME, name, x, 1, packing.INT, codes)
            check_shape(_NAME, name, x, (batch,), "[B]")
    return *pools, heads


def _check_values(pools, block_table, seq_lens, q_lens, starts, rows):
    """Index values: lengths, table entries, and groups that begin and end at multiples of their size."""
    logical.check_values(_NAME, pools[0].codes, block_table, seq_lens, q_lens, starts, rows)
    length = seq_lens if seq_lens.dim() == 2 else seq_lens[:, None]
    n = torch.where(length.amin(-1) > 0, rows, 0) if q_lens is None else q_lens
    first = length - n[:, None]
    for pool in pools:
        if pool.geometry != "channel":
            continue
        odd = ((first % pool.group != 0) | (n % pool.group != 0)[:, None]).nonzero()
        for b, h in odd[:1].tolist():
            refuse_unless(
                False,
                _NAME,
                "the first slot and the number of rows must be multiples of the channel group "
                f"{pool.group}, got {int(first[b, h])} and {int(n[b])} for sequence {b}",
            )


def _live(seq_lens, q_lens, rows, heads):
    """Slots ``[B, Hkv, T]`` of the new rows, and which rows exist."""
    first, exists = logical.row_positions(seq_lens, q_lens, rows, heads)
    slot = first[..., None] + torch.arange(rows, device=seq_lens.device)
    live = exists[:, None].expand_as(slot)
    return torch.where(live, slot, 0), live


def _append_channels(pool, x, block_table, slot, live, starts, heads):
    """Groups of tokens: a scale per dimension, from the rows that are no padding."""
    g = pool.group
    count = x.shape[1] // g * g
    if count == 0:
        return
    x, slot, live = x.transpose(1, 2)[:, :, :count], slot[..., :count], live[..., :count]
    counts = torch.ones_like(live) if starts is None else slot >= starts[:, None, None]
    groups = packing.clamp_input(x).unflatten(2, (-1, g))  # [B, Hkv, groups, g, D]
    counts = counts.unflatten(2, (-1, g))[..., None]
    lo = torch.where(counts, groups, torch.inf).amin(3)
    hi = torch.where(counts, groups, -torch.inf).amax(3)
    some = counts.any(3)
    lo, hi = torch.where(some, lo, 0.0), torch.where(some, hi, 0.0)
    scale, zero = packing.grid_of(lo, hi, pool.codec, pool.symmetric, pool.scale.dtype)
    codes = packing.encode(groups, scale[:, :, :, None], zero[:, :, :, None], pool.codec, pool.symmetric)
    page, head, place = packing.slots(pool.codes, block_table, heads, slot)
    index = page[live], head[live], place[live]
    pool.codes[index] = packing.pack(codes, pool.codec).flatten(2, 3)[live]
    whole = live[..., ::g]
    index = tuple(t[..., ::g][whole] for t in (page, head, place // g))
    pool.scale[index] = scale[whole]
    if pool.zero.numel():
        pool.zero[index] = zero[whole]


@op(
    "kv_append(Tensor(a!) k_codes, Tensor(b!) k_scale, Tensor(c!) k_zero, Tensor(d!) v_codes, "
    "Tensor(e!) v_scale, Tensor(f!) v_zero, Tensor block_table, Tensor seq_lens, Tensor k, Tensor v, *, "
    "int k_codec, int v_codec, Tensor? q_lens=None, Tensor? starts=None) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def append_reference(
    k_codes, k_scale, k_zero, v_codes, v_scale, v_zero, block_table, seq_lens, k, v,
    *, k_codec, v_codec, q_lens=None, starts=None,
):  # fmt: skip
    """The definition: min and max of each group, its grid, and the codes on that grid."""
    *pools, heads = _check(
        (k_codes, k_scale, k_zero, k_codec), (v_codes, v_scale, v_zero, v_codec),
        block_table, seq_lens, k, v, q_lens, starts,
    )  # fmt: skip
    _check_values(pools, block_table, seq_lens, q_lens, starts, k.shape[1])
    slot, live = _live(seq_lens, q_lens, k.shape[1], heads)
    if not bool(live.any()):
        return
    for pool, x in zip(pools, (k, v), strict=True):
        if pool.geometry == "channel":
            _append_channels(pool, x, block_table, slot, live, starts, heads)
        else:
            index = (t[live] for t in packing.slots(pool.codes, block_table, heads, slot))
            packing.encode_slots(pool, x.transpose(1, 2)[live], *index)


@torch.library.register_fake("tokops::kv_append")
def _(
    k_codes, k_scale, k_zero, v_codes, v_scale, v_zero, block_table, seq_lens, k, v,
    *, k_codec, v_codec, q_lens=None, starts=None,
):  # fmt: skip
    _check(
        (k_codes, k_scale, k_zero, k_codec), (v_codes, v_scale, v_zero, v_codec),
        block_table, seq_lens, k, v, q_lens, starts,
    )  # fmt: skip


def _refuse_non_finite(block_table, seq_lens, k, v, q_lens, starts):
    heads = k.shape[2]
    slot, live = _live(seq_lens, q_lens, k.shape[1], heads)
    if starts is not None:
        live = live & (slot >= starts[:, None, None])
    for name, x in (("k", k), ("v", v)):
        finite = x.transpose(1, 2).isfinite().all(-1)
        refuse_unless(bool((finite | ~live).all()), _NAME, f"{name} must be finite where it is written")


def kv_append(
    k_codes: Tensor,
    k_scale: Tensor,
    k_zero: Tensor,
    v_codes: Tensor,
    v_scale: Tensor,
    v_zero: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    k_codec: int,
    v_codec: int,
    q_lens: Tensor | None = None,
    starts: Tensor | None = None,
) -> None:
    """Quantise new keys and values into packed pages, in place: row ``i`` goes to slot ``seq_lens - q_lens + i``.

    Which elements share a scale follows from the scale's shape. With token geometry a row's scales are written
    with it; with channel geometry the rows of whole groups come at once; with head geometry the scale (and zero)
    was set before and is only read. Elements are clamped to +-65504 first and NaN is taken for 0.

    Args:
        k_codes, v_codes: ``[N, H, P, bytes of a row]`` uint8 pools (of a full codec: ``[N, H, P, D]`` in k's
            dtype), ``H`` the KV heads, or 1 where the table has a row per head; any strides but the last. No two
            sequences may share a page that is written.
        k_scale, v_scale: float16 or float32 ``[N, H, P, D/group]`` (token), ``[N, H, P/group, D]`` (channel),
            ``[N or 1, H, 1, 1]`` (head); empty for a full codec.
        k_zero, v_zero: like the scale, or empty: symmetric int8, fp8 and full.
        block_table: ``[B, pages]`` or ``[B, Hkv, pages]`` int32.
        seq_lens: ``[B]`` (or ``[B, Hkv]``) int32 slots in use after the append; 0 writes nothing.
        k, v: ``[B, T, Hkv, D]`` float32, bfloat16 or float16, any strides.
        k_codec, v_codec: :attr:`Codec.write_code`.
        q_lens: ``[B]`` int32 rows to write per sequence; None: all T.
        starts: ``[B]`` int32; slots below are padding, which does not widen the range of a channel group.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument; with channel geometry, a first
            slot or a number of rows that is no multiple of the group; under ``TOKOPS_CHECK=1`` k or v that are
            not finite.
    """
    if checked():
        *pools, _ = _check(
            (k_codes, k_scale, k_zero, k_codec), (v_codes, v_scale, v_zero, v_codec),
            block_table, seq_lens, k, v, q_lens, starts,
        )  # fmt: skip
        _check_values(pools, block_table, seq_lens, q_lens, starts, k.shape[1])
        _refuse_non_finite(block_table, seq_lens, k, v, q_lens, starts)
    torch.ops.tokops.kv_append.default(
        k_codes, k_scale, k_zero, v_codes, v_scale, v_zero, block_table, seq_lens, k, v,
        k_codec=k_codec, v_codec=v_codec, q_lens=q_lens, starts=starts,
    )  # fmt: skip


def _case(gen, codecs, batch, heads, page, pages, rows, dim, dtype, per_head=False, unit=1):
    """Arguments of one call, and counts of rows; lengths and counts are multiples of ``unit``."""
    table = inputs.table(gen, batch, heads, pages, per_head)
    pools = [t for c in codecs for t in inputs.pool(gen, c, table, heads, page, dim, dtype)]
    most = page * pages // unit
    lens = torch.randint(rows // unit, most + 1, table.shape[:-1], generator=gen).int() * unit
    counts = torch.randint(0, rows // unit + 1, (batch,), generator=gen).int() * unit
    k, v = (a * torch.randn(batch, rows, heads, dim, generator=gen) for a in (3, 1))
    kwargs = {"k_codec": codecs[0].write_code, "v_codec": codecs[1].write_code}
    return (*pools, table, lens, k.to(dtype), v.to(dtype)), kwargs, counts


_PAIRS = [
    (Codec("int8"), Codec("int8", symmetric=True)),
    (Codec("int4", group=32), Codec("int4", "channel", 8)),
    (Codec("int3", "channel", 4), Codec("int2", group=32)),
    (Codec("int2", "channel", 8), Codec("int3", group=64)),
    (Codec("fp8_e4m3"), Codec("fp8_e5m2", "head")),
    (Codec("fp8_e5m2", "channel", 2), Codec("fp8_e4m3", "head")),
    (Codec("int8", "head"), Codec("int4", "head")),
    (Codec("full"), Codec("int8", "channel", 16, symmetric=True)),
]


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of kv_append, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for codec in (Codec("int8"), Codec("int4"), Codec("int4", "channel", 64), Codec("fp8_e4m3", "head")):
            for batch, pages, rows in ((8, 256, 64), (1, 128, 8192)):
                args, kwargs, _ = _case(
                    gen, (codec, codec), batch, 8, 64, pages, rows, 128, torch.bfloat16, unit=64
                )
                yield "kv_append", f"{codec.kind} {codec.geometry} B {batch} T {rows}", args, kwargs
        return
    for i, pair in enumerate(_PAIRS):
        dtype = FLOATS[i % 3]
        channel = any(c.geometry == "channel" for c in pair)
        unit, dim, page = (16 if channel else 1), (64, 128, 64, 192)[i % 4], 16
        label = f"{pair[0].kind} {pair[0].geometry}, {pair[1].kind} {pair[1].geometry}, {str(dtype)[6:]}"
        for per_head in (False, True):
            args, kwargs, counts = _case(gen, pair, 2, 3, page, 4, 32, dim, dtype, per_head, unit)
            starts = (args[7] if args[7].dim() == 1 else args[7][:, 0]) - torch.tensor([27, 3]).int()
            yield "kv_append", label + " per head" * per_head, args, kwargs
            extra = {"q_lens": counts, "starts": starts.clamp_min(0).int()}
            yield "kv_append", label + " per head" * per_head + " ragged", args, {**kwargs, **extra}
    for dim, group in ((80, 80), (80, 5), (33, 11), (256, 1)):
        pair = (Codec("int8", group=group), Codec("fp8_e4m3", group=group))
        args, kwargs, _ = _case(gen, pair, 1, 2, 5, 3, 4, dim, torch.float32)
        yield "kv_append", f"D {dim} group {group}", args, kwargs
    args, kwargs, _ = _case(gen, _PAIRS[0], 2, 1, 8, 2, 3, 64, torch.float32)
    for x, bad in ((args[8], float("nan")), (args[9], float("inf"))):
        x[0, 1, 0, 5] = bad
        x[1, 2, 0, :] = -bad
    args[8][0, 0, 0, 3] = 1e30
    yield "kv_append", "not finite", args, kwargs
    args, kwargs, _ = _case(gen, _PAIRS[0], 2, 1, 8, 2, 3, 64, torch.float32)
    args[8][0] = 0
    args[8][1, 0] = torch.tensor([-0.0, 1e-9]).repeat(32)  # a range that float16 cannot hold
    args[9][0] = -0.0
    yield "kv_append", "zeros and tiny numbers", args, kwargs
