"""Named inputs of packed_decode: what its cases, tests and benchmarks draw from."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import inputs
from .inputs import int32
from .parts import CODECS, Part

_BITS = {"int8": 8, "int4": 4, "int2": 2, "fp8_e4m3": 8, "fp8_e5m2": 8}


def _side(g: torch.Generator, kind: str, shape: tuple[int, int, int, int], geometry: str, group: int):
    """Codes, scale and zero of one random pool whose vectors are of size about one."""
    n, h, p, d = shape
    spread = {"token": (n, h, p, d // group), "channel": (n, h, p // group, d), "head": (1, h, 1, 1)}[
        geometry
    ]
    if kind.startswith("fp8"):
        dtype = torch.float8_e4m3fn if kind == "fp8_e4m3" else torch.float8_e5m2
        codes = torch.randn(shape, generator=g).clamp(-3, 3).to(dtype).view(torch.uint8)
        return codes, 0.5 + torch.rand(spread, generator=g), None
    codes = torch.randint(0, 256, (n, h, p, d * _BITS[kind] // 8), generator=g, dtype=torch.uint8)
    levels = 2 ** _BITS[kind] - 1
    scale = ((0.5 + torch.rand(spread, generator=g)) * 3 / levels).half()
    zero = (torch.rand(spread, generator=g) * 0.6 - 1.8).half()
    return codes, scale, zero


def pool(
    seed: int,
    shape: tuple[int, int, int, int],
    keys: str,
    values: str,
    *,
    geometry: str = "token",
    value_geometry: str = "token",
    group: int = 32,
    dtype: torch.dtype = torch.float32,
    symmetric: bool = False,
) -> dict[str, object]:
    """The fields of a :class:`Part` that hold keys and values, random, ``shape`` = (N, H, P, D)."""
    g = torch.Generator().manual_seed(seed)
    fields: dict[str, object] = {}
    for side, kind, where in (("k", keys, geometry), ("v", values, value_geometry)):
        fields[f"{side}_codec"] = CODECS.index(kind)
        if kind == "full":
            fields[side] = torch.randn(shape, generator=g).to(dtype)
            continue
        codes, scale, zero = _side(g, kind, shape, where, group)
        fields[side], fields[f"{side}_scale"] = codes, scale
        fields[f"{side}_zero"] = None if symmetric and kind == "int8" else zero
    return fields


def one_part(
    seed: int,
    lens: list[int],
    keys: str,
    values: str,
    *,
    heads: int = 2,
    page: int = 64,
    dim: int = 64,
    per_head: bool = False,
    **options,
) -> Part:
    """Sequences of the given lengths in shuffled pages."""
    g = torch.Generator().manual_seed(seed + 1000)
    batch, pages = len(lens), max(1, -(-max(lens) // page))
    tables = (batch, heads, pages) if per_head else (batch, pages)
    count = torch.Size(tables).numel() + 1
    fields = pool(seed, (count, 1 if per_head else heads, page, dim), keys, values, **options)
    table = torch.randperm(count, generator=g)[:-1].int().view(tables)
    length = int32(*lens)
    if per_head:
        length = length[:, None].expand(batch, heads).contiguous()
    return Part(block_table=table, lens=length, **fields)  # type: ignore[arg-type]


def queries(
    seed: int, batch: int, rows: int, heads: int, dim: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.randn(batch, rows, heads, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layered(seed: int, dtype: torch.dtype, keys: str, values: str, sinks: int = 4, rows: int = 1, **options):
    """Sinks, packed pages and a tail of two padded sequences, as a store holds them: (q, parts, seq_lens, starts)."""
    starts, packed, length, page = int32(0, 37), 192, 230, 64
    full = [
        pool(seed + i, (2, 2, n, 64), "full", "full", dtype=dtype)
        for i, n in ((1, sinks), (2, length - packed))
    ]
    table = torch.arange(2, dtype=torch.int32)[:, None]
    parts = [
        Part(block_table=table, lens=int32(sinks, sinks), first=starts, **full[0]),  # type: ignore[arg-type]
        one_part(seed, [packed, packed], keys, values, page=page, dtype=dtype, **options),
        Part(block_table=table, lens=int32(38, 38), first=int32(packed, packed), **full[1]),  # type: ignore[arg-type]
    ]
    parts[1] = Part(**{**vars(parts[1]), "begin": starts + sinks})
    return queries(seed + 3, 2, rows, 6, 64, dtype), parts, int32(length, length), starts


def reordered(
    seed: int, lens: list[int], first: tuple[str, str], second: tuple[str, str], **options
) -> list[Part]:
    """Two parts that share the tokens of every head at random, with the places of all positions."""
    g = torch.Generator().manual_seed(seed)
    batch, heads, page, longest = len(lens), 2, 16, max(lens)
    pages = -(-longest // page)
    where = torch.full((batch, heads, longest), -1, dtype=torch.int32)
    positions = [torch.zeros(batch, heads, pages * page, dtype=torch.int32) for _ in range(2)]
    counts = [torch.zeros(batch, heads, dtype=torch.int32) for _ in range(2)]
    for b, n in enumerate(lens):
        for h in range(heads):
            order = torch.randperm(n, generator=g)
            cut = int(torch.randint(0, n + 1, (), generator=g))
            for i, mine in enumerate((order[:cut], order[cut:])):
                positions[i][b, h, : len(mine)] = mine.int()
                counts[i][b, h] = len(mine)
                where[b, h, mine] = torch.arange(len(mine), dtype=torch.int32) + i * pages * page
    parts = []
    for i, kinds in enumerate((first, second)):
        part = one_part(seed + i, [longest] * batch, *kinds, heads=heads, page=page, per_head=True, **options)
        parts.append(
            Part(
                **{
                    **vars(part),
                    "lens": counts[i],
                    "positions": positions[i],
                    "where": where,
                    "slot_base": i * pages * page,
                }
            )
        )
    return parts


def _formats() -> Iterator[tuple]:
    kinds = [k for k in CODECS if k != "full"]
    for i, kind in enumerate(kinds):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[i % 3]
        for group, dim in ((32, 64), (64, 128), (32, 96)):
            part = one_part(i, [150, 33], kind, kind, group=group, dim=dim, dtype=dtype)
            q = queries(i, 2, 1, 6, dim, dtype)
            yield f"{kind} group {group} D {dim}", q, [part], part.lens, {}
        part = one_part(
            20 + i, [128, 70], kind, kind, geometry="channel", value_geometry="channel", dtype=dtype
        )
        yield f"{kind} per channel", queries(i, 2, 2, 2, 64, dtype), [part], part.lens, {}
    for i, (keys, values) in enumerate(
        [("int8", "int4"), ("full", "int2"), ("int4", "full"), ("int2", "int8")]
    ):
        part = one_part(40 + i, [90], keys, values, geometry="channel" if i == 3 else "token", dim=64)
        yield f"keys {keys}, values {values}", queries(i, 1, 1, 14, 64), [part], part.lens, {}
    part = one_part(50, [90, 64], "int8", "int8", symmetric=True, group=16, dim=80)
    yield "int8 symmetric, D 80", queries(50, 2, 1, 4, 80), [part], part.lens, {}
    part = one_part(51, [90, 64], "fp8_e4m3", "fp8_e4m3", geometry="head", value_geometry="head", dim=256)
    yield "fp8 with a scale per head, D 256", queries(51, 2, 1, 4, 256), [part], part.lens, {}


def _stores() -> Iterator[tuple]:
    for i, (keys, values) in enumerate(
        [("int8", "int8"), ("int4", "int4"), ("full", "full"), ("int2", "int4")]
    ):
        dtype = torch.bfloat16 if i % 2 else torch.float32
        q, parts, lens, starts = layered(60 + i, dtype, keys, values, rows=1 + 2 * (i % 3))
        extra = {"starts": starts, "rotate": bool(i % 2), "max_len": 235}
        yield f"sinks, {keys} pages, tail", q, parts, lens, extra
        lists, counts = inputs.selection(i, [230, 230], 1, (1, 2, 6)[i % 3], 90)
        picked = {"starts": starts, "selected": lists, "counts": counts}
        yield f"sinks, {keys} pages, tail, selected", q, parts, lens, picked
        bent = {
            "starts": starts,
            "softcap": 2.0,
            "sink_logit": inputs.vector(i, 6),
            "log_gamma": inputs.vector(9, 6),
        }
        yield f"sinks, {keys} pages, tail, softcap, sink, gamma", q, parts, lens, bent
    q, parts, lens, starts = layered(70, torch.float32, "int8", "int4", rows=5)
    extra = {"ancestors": inputs.tree(3, 2, 5), "q_lens": int32(5, 3), "window": 100}
    yield "a tree over int8 pages, windowed", q, parts, lens, extra
    lens = [140, 61]
    for i, (hi, lo) in enumerate(
        [(("full", "full"), ("int4", "int4")), (("int8", "int8"), ("int2", "int2"))]
    ):
        parts = reordered(80 + i, lens, hi, lo)
        q = queries(80 + i, 2, 2, 4, 64)
        yield f"{hi[0]} and {lo[0]} in their own order", q, parts, int32(*lens), {"max_len": 140}
        lists, counts = inputs.selection(i, lens, 2, (2, 4)[i], 70)
        extra = {"selected": lists, "counts": counts, "starts": int32(3, 9)}
        yield f"{hi[0]} and {lo[0]} in their own order, selected", q, parts, int32(*lens), extra


def _norms() -> Iterator[tuple]:
    for i, (kind, dtype) in enumerate(
        (kind, dtype) for kind in ("full", "int4") for dtype in (torch.float32, torch.bfloat16)
    ):
        part = one_part(90 + i, [100, 64], kind, kind, dtype=dtype)
        g = torch.Generator().manual_seed(90 + i)
        norms = [torch.rand(part.k.shape[:3], generator=g).half() + 0.5 for _ in range(2)]
        norms[0][:, :, ::7] = float("nan")
        part = Part(**{**vars(part), "k_norm": norms[0], "v_norm": norms[1]})
        name = "" if dtype == torch.float32 else ", bf16"
        yield (
            f"norms of {kind}{name}",
            queries(90 + i, 2, 1, 6, 64, dtype),
            [part],
            part.lens,
            {"max_len": 100},
        )


def in_tiles(part: Part) -> Part:
    """The part with its bytes of keys read as tiles: random codes are random codes in any order."""
    return Part(**{**vars(part), "k_tiles": 1})


def _tiles() -> Iterator[tuple]:
    """Formats that the CPU alone reads, which their labels say."""
    for i, kind in enumerate(("int8", "int4", "int2")):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[i]
        for heads, group, dim in ((6, 32, 64), (2, 64, 128), (8, 32, 96), (14, 32, 64)):
            part = in_tiles(one_part(100 + i, [150, 33], kind, kind, group=group, dim=dim, dtype=dtype))
            q = queries(i, 2, 1, heads, dim, dtype)
            yield f"{kind} tiles, {heads} heads, D {dim} (CPU)", q, [part], part.lens, {"max_len": 150}
        eight = {"q_int8": True, "rotate": True}
        yield f"{kind} tiles, int8 query (CPU)", q, [part], part.lens, eight
        part = in_tiles(one_part(110 + i, [128, 70], kind, kind, geometry="channel", dtype=dtype))
        yield f"{kind} tiles per channel (CPU)", queries(i, 2, 2, 6, 64, dtype), [part], part.lens, {}
    q, parts, lens, starts = layered(120, torch.float32, "int4", "int8", rows=5)
    parts[1] = in_tiles(parts[1])
    extra = {"starts": starts, "ancestors": inputs.tree(3, 2, 5), "window": 100}
    yield "a tree over int4 tiles, windowed (CPU)", q, parts, lens, extra


def _odd_values() -> Iterator[tuple]:
    """Values that 16-bit arithmetic has no room for, and such that are not finite where nobody looks."""
    dtype = torch.bfloat16
    part = one_part(95, [150, 70], "int8", "int8", group=64, dtype=dtype)
    assert part.v_zero is not None
    part.v_zero[:, :, ::3] = -4e4
    yield "int8 values of 4e4", queries(95, 2, 1, 6, 64, dtype), [part], part.lens, {}
    part = one_part(96, [150, 70], "fp8_e5m2", "fp8_e5m2", dtype=dtype)
    part.v[int(part.block_table[0, 0]), :, :5] = 0x7C  # infinity
    yield (
        "fp8 infinities outside a window",
        queries(96, 2, 1, 6, 64, dtype),
        [part],
        part.lens,
        {"window": 100, "max_len": 150},
    )


def of(size: str) -> Iterator[tuple[str, Tensor, list[Part], Tensor, dict]]:
    """(label, q, parts, seq_lens, keywords)."""
    if size == "large":
        for kind in ("int8", "int4"):
            part = one_part(0, [16384], kind, kind, heads=8, dim=128, group=64)
            yield f"L 16384 {kind}", queries(0, 1, 1, 32, 128, torch.bfloat16), [part], part.lens, {}
        return
    yield from _formats()
    yield from _stores()
    yield from _norms()
    yield from _odd_values()
    yield from _tiles()
    part = one_part(98, [1300], "int8", "int8", heads=1, dtype=torch.bfloat16)
    yield "one head, 1300 keys", queries(98, 1, 1, 2, 64, torch.bfloat16), [part], part.lens, {"rotate": True}
    part = one_part(99, [0, 1], "int8", "int8")
    yield "nothing, and one key", queries(99, 2, 1, 2, 64), [part], part.lens, {"max_len": 3}
