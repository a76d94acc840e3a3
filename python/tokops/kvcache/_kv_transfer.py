"""Moving tokens between packed pools."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import checked, op
from . import inputs, packing
from .codec import Codec

__all__ = ["kv_transfer"]

_NAME = "kv_transfer"


def _pools(of, tensors, codecs):
    """K's and V's pool of the six tensors of one side."""
    pools = [
        packing.pool_of(_NAME, f"{of}_k_", *tensors[:3], codecs[0]),
        packing.pool_of(_NAME, f"{of}_v_", *tensors[3:6], codecs[1]),
    ]
    packing.check_pair(_NAME, f"{of}_", pools[1].codes, pools[0].codes)
    return pools


def _check(source, target, slots_from, slots_to, counts, codecs):
    """Shapes, dtypes, devices; returns (source pools, target pools, KV heads)."""
    sources, targets = _pools("source", source, codecs[:2]), _pools("target", target, codecs[2:])
    codes = sources[0].codes
    refuse_unless(
        target[0].device == codes.device,
        _NAME,
        "target_k_codes must be on the same device as the first argument",
    )
    for name, a, b in zip("kv", sources, targets, strict=True):
        refuse_unless(
            b.geometry != "channel",
            _NAME,
            f"target_{name}_scale must not have channel geometry: a token alone makes no group",
        )
        refuse_unless(
            a.dim == b.dim,
            _NAME,
            f"target_{name}_codes must hold {a.dim} elements per row like the source, got {b.dim}",
        )
    heads = packing.check_table(_NAME, "source_table", source[6], codes)
    to_heads = packing.check_table(_NAME, "target_table", target[6], target[0])
    batch, rows = source[6].shape[0], target[6].shape[0]
    refuse_unless(
        rows == batch and heads == to_heads,
        _NAME,
        f"target_table must have the {batch} rows and {heads} KV heads of the source, got {rows} and {to_heads}",
    )
    check_tensor(_NAME, "slots_from", slots_from, 3, packing.INT, codes)
    check_shape(_NAME, "slots_from", slots_from, (batch, heads, slots_from.shape[2]), "[B, Hkv, n]")
    check_tensor(_NAME, "slots_to", slots_to, 3, packing.INT, codes)
    check_shape(_NAME, "slots_to", slots_to, slots_from.shape, "the shape of slots_from")
    check_tensor(_NAME, "counts", counts, 2, packing.INT, codes)
    check_shape(_NAME, "counts", counts, (batch, heads), "[B, Hkv]")
    return sources, targets, heads


def _live(counts, n):
    return torch.arange(n, device=counts.device) < counts[..., None]


def _check_slots(name, slots, live, table, table_name, codes, heads):
    cap = table.shape[-1] * codes.shape[2]
    odd = (live & ((slots < 0) | (slots >= cap))).nonzero()
    for b, h, j in odd[:1].tolist():
        refuse_unless(
            False,
            _NAME,
            f"{name} must be 0..{cap - 1} (pages * page size - 1), got {int(slots[b, h, j])} for sequence {b}, "
            f"head {h}",
        )
    page = packing.slots(codes, table, heads, torch.where(live, slots, 0).long())[0]
    odd = (live & ((page < 0) | (page >= codes.shape[0]))).nonzero()
    for b, *_ in odd[:1].tolist():
        refuse_unless(
            False,
            _NAME,
            f"{table_name} entries must be 0..{codes.shape[0] - 1} for pages in use, sequence {b} has others",
        )


def _check_values(source, target, slots_from, slots_to, counts, heads):
    n = slots_from.shape[2]
    for b, h in ((counts < 0) | (counts > n)).nonzero()[:1].tolist():
        refuse_unless(
            False, _NAME, f"counts must be 0..{n}, got {int(counts[b, h])} for sequence {b}, head {h}"
        )
    live = _live(counts, n)
    if bool(live.any()):
        _check_slots("slots_from", slots_from, live, source[6], "source_table", source[0], heads)
        _check_slots("slots_to", slots_to, live, target[6], "target_table", target[0], heads)


def _alike(a: packing.Pool, b: packing.Pool) -> bool:
    """Whether a row means the same in both pools, so that it moves as it is."""
    if (a.codec, b.codec) != (packing.INT3, packing.INT4) and a.codec != b.codec:
        return False
    if b.codec == packing.FULL:
        return a.codes.dtype == b.codes.dtype
    if (
        a.geometry != b.geometry
        or a.scale.dtype != b.scale.dtype
        or bool(a.zero.numel()) != bool(b.zero.numel())
    ):
        return False
    if b.geometry == "head":
        return (
            a.scale.shape[0] == b.scale.shape[0] == 1
            and a.scale.data_ptr() == b.scale.data_ptr()
            and (a.zero.numel() == 0 or a.zero.data_ptr() == b.zero.data_ptr())
        )
    return a.group == b.group


@op(
    "kv_transfer(Tensor source_k_codes, Tensor source_k_scale, Tensor source_k_zero, Tensor source_v_codes, "
    "Tensor source_v_scale, Tensor source_v_zero, Tensor source_table, Tensor(a!) target_k_codes, "
    "Tensor(b!) target_k_scale, Tensor(c!) target_k_zero, Tensor(d!) target_v_codes, Tensor(e!) target_v_scale, "
    "Tensor(f!) target_v_zero, Tensor target_table, Tensor slots_from, Tensor slots_to, Tensor counts, *, "
    "int source_k_codec, int source_v_codec, int target_k_codec, int target_v_codec) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def transfer_reference(*tensors, source_k_codec, source_v_codec, target_k_codec, target_v_codec):
    """The definition: read the rows that move, then write them, decoded and coded again unless pools store alike."""
    source, target, (slots_from, slots_to, counts) = tensors[:7], tensors[7:14], tensors[14:]
    codecs = source_k_codec, source_v_codec, target_k_codec, target_v_codec
    sources, targets, heads = _check(source, target, slots_from, slots_to, counts, codecs)
    _check_values(source, target, slots_from, slots_to, counts, heads)
    live = _live(counts, slots_from.shape[2])
    if not bool(live.any()):
        return
    old, new = (torch.where(live, s, 0).long() for s in (slots_from, slots_to))
    old = tuple(t[live] for t in packing.slots(source[0], source[6], heads, old))
    new = tuple(t[live] for t in packing.slots(target[0], target[6], heads, new))
    for a, b in zip(sources, targets, strict=True):
        if not _alike(a, b):
            packing.encode_slots(b, packing.decode_slots(a, *old), *new)
            continue
        b.codes[new] = a.codes[old]
        if b.geometry == "token":
            b.scale[new] = a.scale[old]
            if b.zero.numel():
                b.zero[new] = a.zero[old]


def _refuse_non_finite(source, sources, slots_from, counts, heads):
    """Rows that move out of full precision; those of codes are finite."""
    live = _live(counts, slots_from.shape[2])
    if not bool(live.any()):
        return
    index = packing.slots(source[0], source[6], heads, torch.where(live, slots_from, 0).long())
    rows = tuple(t[live] for t in index)
    for name, pool in zip("kv", sources, strict=True):
        finite = pool.codec != packing.FULL or bool(pool.codes[rows].isfinite().all())
        refuse_unless(finite, _NAME, f"{name} must be finite where it is moved")


@torch.library.register_fake("tokops::kv_transfer")
def _(*tensors, source_k_codec, source_v_codec, target_k_codec, target_v_codec):
    codecs = source_k_codec, source_v_codec, target_k_codec, target_v_codec
    _check(tensors[:7], tensors[7:14], *tensors[14:], codecs)


def kv_transfer(
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    slots_from: Tensor,
    slots_to: Tensor,
    counts: Tensor,
    *,
    source_codecs: tuple[int, int],
    target_codecs: tuple[int, int],
) -> None:
    """Move tokens, K and V together, from slots of one pair of pools to slots of another, in place.

    Where both pools store alike (same codec, group, and dtype of scales; for head geometry one and the same
    scale) a token's bytes and scales move as they are. Otherwise it is decoded and coded anew.

    Args:
        source: ``(k_codes, k_scale, k_zero, v_codes, v_scale, v_zero, block_table)`` as in
            :func:`tokops.kvcache.kv_append`, of any codec and geometry.
        target: The same. K and V each full or of token or head geometry. Its pools may be the source's
            (compaction); then no slot may be both read and written.
        slots_from, slots_to: ``[B, Hkv, n]`` int32: entry j moves from the one slot to the other; a slot is
            written at most once.
        counts: ``[B, Hkv]`` int32 entries to move.
        source_codecs, target_codecs: ids of K and V: :attr:`Codec.write_code`.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument; a target of channel geometry; under
            ``TOKOPS_CHECK=1`` full-precision rows that are not finite.
    """
    codecs = *source_codecs, *target_codecs
    if checked():
        sources, _, heads = _check(source, target, slots_from, slots_to, counts, codecs)
        _check_values(source, target, slots_from, slots_to, counts, heads)
        _refuse_non_finite(source, sources, slots_from, counts, heads)
    torch.ops.tokops.kv_transfer.default(
        *source,
        *target,
        slots_from,
        slots_to,
        counts,
        **dict(
            zip(("source_k_codec", "source_v_codec", "target_k_codec", "target_v_codec"), codecs, strict=True)
        ),
    )


def _case_side(gen, codecs, batch, heads, page, pages, dim, dtype, per_head):
    table = inputs.table(gen, batch, heads, pages, per_head)
    return *(t for c in codecs for t in inputs.pool(gen, c, table, heads, page, dim, dtype)), table


_FULL, _INT8, _INT4 = Codec("full"), Codec("int8"), Codec("int4", group=32)
_MOVES = [  # source K and V, target K and V
    ((_FULL, _FULL), (_INT4, Codec("int8", symmetric=True))),
    ((_INT8, _INT4), (_INT8, _INT4)),
    ((_INT8, Codec("int8", symmetric=True)), (Codec("int2", group=32), Codec("int3"))),
    ((Codec("int4", "channel", 8), Codec("int2", "channel", 4)), (_FULL, _FULL)),
    ((Codec("fp8_e4m3", "head"), Codec("fp8_e5m2")), (_FULL, Codec("fp8_e4m3"))),
    (
        (Codec("int3"), Codec("int8", "channel", 2, symmetric=True)),
        (Codec("int4"), Codec("fp8_e5m2", "head")),
    ),
    ((_FULL, Codec("int8", "head")), (_FULL, Codec("int8", "head"))),
]


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of kv_transfer, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    names = ("source_k_codec", "source_v_codec", "target_k_codec", "target_v_codec")
    large = size == "large"
    dims = (128,) if large else (64, 128, 192)
    for i, (source, target) in enumerate(_MOVES[:2] if large else _MOVES):
        for per_head in (False, True):
            batch, heads, dtype = (
                (8, 8, torch.bfloat16) if large else (2, 3, (torch.float32, torch.float16)[i % 2])
            )
            page, pages, n = (64, 32, 1024) if large else (8, 3, 9)
            dim = dims[i % len(dims)]
            sides = [
                _case_side(gen, codecs, batch, heads, size_, count, dim, dtype, per_head)
                for codecs, size_, count in ((source, page, pages), (target, page // 2, 2 * pages + 1))
            ]
            slots_from, slots_to = (
                torch.rand(batch, heads, cap, generator=gen).argsort(-1)[..., :n].int()
                for cap in (page * pages, page // 2 * (2 * pages + 1))
            )
            counts = torch.randint(0, n + 1, (batch, heads), generator=gen).int()
            kwargs = dict(zip(names, (c.write_code for c in (*source, *target)), strict=True))
            label = f"{source[0].kind} {source[1].kind} to {target[0].kind} {target[1].kind}"
            yield (
                "kv_transfer",
                label + " per head" * per_head,
                (*sides[0], *sides[1], slots_from, slots_to, counts),
                kwargs,
            )
