"""The benchmark of packed caches: int8 and int4 pages beside our own bf16 kernel and the read bandwidth.

What bounds the CPU kernel with AVX2 (Zen 5, one thread, a tile of 64 keys for 4 rows of 128): 8192 multiply-adds need
0.95 us, and 16 KB of int8 less. Scores take 0.70 us, values 0.68, the rest 0.3. So int4 beats int8 only by bytes that
miss the cache, and int8 beats bf16 by what bf16 spends beside the same products.

With VNNI (Zen 5: two products of 64 bytes a cycle, as many as of 16 floats), ns a key of one thread, 32/8x128, hot:

- Floats: 17.5, of which scores 8, values 5.7, softmax 1.8. Exact scores are queries as three signed bytes, 24 bits of
  their largest element: 12 products of a row of 64 for four queries, no widening, sums over a vector once a key.
  Predicted 4.5 for 7.5, seen 4.5. Values: weights of a tile as two bytes, bf16 alone. Predicted 2.6, seen 3.5 for 5;
  three bytes, which float32 would need, gain nothing. In all 12.5, with an int8 query (one byte) 10.5.
- GCC moves 16 sums about once a loop, unless each is pinned (a third of the time), and clears them with `rep stos`.
- Tiles of 128 keys for 64: a tenth, since a tile waits once for its softmax. Scales of a tile ahead called into the
  cache: a tenth from memory. Lines of the next keys called over all passes of the values instead of in the first: 5 to
  16 % from memory. More even than that, or huge pages (3 %): nothing.
- The cache's bytes then take as long as the arithmetic, and a core seldom overlaps all of both: 9/3x64 takes 95 us with
  two threads hot, 125 to 140 from memory. Ratios to bf16 follow the memory: 1.0 to 1.4 and 1.2 to 1.5 in runs minutes
  apart, the larger where it is slow.

With AVX-VNNI and no AVX-512 the same in 256 bits, counted and not measured: scores of 64 dimensions of two rows and two
keys are 24 products and 6 loads for 32 multiply-adds and 32 instructions that widen codes; values of three rows and
four keys by 16 dimensions 12 products and 4 to 6 shuffles for 24 and 16. In the loops no sum leaves its register (GCC
12).

- Sums that leave their registers cost most: queries lie vector by vector, sums are pinned, int4 loads its bytes twice,
  and the values' loop over keys is not unrolled.
- Widening bytes competes with multiply-adds for a port. Masks on words instead gained 0 to 10 % of the products in a
  prototype: not worth their permuted order.
- hadd is slower than two shuffles and an add. Queries in 16 bits would miss the tolerance of exact scores (2e-5, by
  estimate fivefold), and two such parts multiply as often as floats do.
- No gain: three columns of values for four rows, two or more steps unrolled.
  A burst of 64 prefetches loses 0.03 us a tile against four at a time.

With pages of a head side by side (EPYC, Zen 5, two threads, caches from memory) int8 takes 172 us for 195 at 9/3x64,
773 for 887 at 32/8x128; bf16 gains as much.

Keys in tiles of sixteen tokens need no sums across a vector. That was 3 to 10 % of a call on one thread with products
of floats, hot (EPYC, Zen 5), and nothing from memory; exact scores out of rows by bytes are faster than that.
Loops over pieces and rows must be unrolled by pragma, or the sums live on the stack (a tenth slower than rows).

Selections out of int4 pages wait for memory: a key is six cache lines (codes, scale and zero, twice), and 1024 of 16384
keys take 421 us with two threads for 270 with one where the cache holds them. Calling scales and zeros a tile ahead
made it a tenth slower, huge pages a tenth faster.

On CUDA (H200, int8 and int4 at B32 32/8x128 L16384; bf16 takes 0.52 ms) instructions bound the kernel, not memory: 1900
per 32 keys, 0.42 issued a cycle by twelve warps.

- Codes decoded into a tile of elements first: 2.75 and 2.20 ms. Words straight into the operands of the products: 1.27
  and 1.17. Queries as columns, scales taken by the weights, offsets of codes as a sum of their own: 0.68 and 0.63.
- Sixteen warps where rings are small enough, which int4's are: 0.55.
- Left to gain: tiles of more keys, fewer instructions around them. Scales and slots cost 500 of the 1900.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tokops.attention import Part, packed_decode, paged_decode
from tokops.kvcache import Codec, kv_append, kv_dequantize, kv_relayout
from tokops.kvcache.pool import Pool

from .attention import Bar, Case, Peers, Workload, agree, inputs, layered, lengths

_PAGE = 64
_SHAPES = ((9, 3, 64), (32, 8, 128))
_LENGTH = 8128


def _group(kind: str) -> int:
    """Dimensions that share a scale."""
    return 32 if kind == "int2" else 64


class _Pools:
    """Sequences of one length in packed pages: keys and values of one codec, keys in tiles or as rows."""

    def __init__(self, kind: str, k: Tensor, v: Tensor, tiles: bool = False):
        batch, heads, length, dim = k.shape
        self.codec = Codec(kind, group=_group(kind))
        pages = -(-length // _PAGE)
        self.keys, self.values = (
            Pool(self.codec, (heads, _PAGE, dim), batch * pages, torch.float32, k.device).tensors
            for _ in range(2)
        )
        self.table = torch.arange(batch * pages, dtype=torch.int32, device=k.device).view(batch, pages)
        self.lens = lengths([length] * batch, k.device)
        self.append(k.transpose(1, 2), v.transpose(1, 2))
        self.tiles = tiles
        if tiles:
            self.keys = (self._relaid("row", "tile"), *self.keys[1:])

    def _relaid(self, source: str, target: str) -> Tensor:
        codes = self.keys[0].transpose(0, 1).contiguous()  # a head's pages side by side, as the pool has them
        return kv_relayout(codes, self.codec.code, source, target).transpose(0, 1)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write the last tokens ``[B, T, Hkv, D]``."""
        code = self.codec.write_code
        kv_append(*self.keys, *self.values, self.table, self.lens, k, v, k_codec=code, v_codec=code)

    @property
    def part(self) -> Part:
        (k, k_scale, k_zero), (v, v_scale, v_zero) = self.keys, self.values
        scales = {"k_scale": k_scale, "k_zero": k_zero, "v_scale": v_scale, "v_zero": v_zero}
        there = {name: x for name, x in scales.items() if x.numel()}
        codecs = {"k_codec": self.codec.code, "v_codec": self.codec.code, "k_tiles": int(self.tiles)}
        return Part(k, v, self.table, self.lens, **codecs, **there)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that attention reads."""
        return tuple(x for x in (*self.keys, *self.values) if x.numel())

    def decoded(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The pages in full precision."""
        dim = like.shape[-1]
        keys = (self._relaid("tile", "row"), *self.keys[1:]) if self.tiles else self.keys
        pair = (kv_dequantize(*x, None, self.codec.code, dim) for x in (keys, self.values))
        k, v = (x.to(like.dtype) for x in pair)
        return k, v


def _decode(
    pools: _Pools, q: Tensor, lens: Tensor, q_int8: bool = False, **selection
) -> Callable[[], Tensor]:
    parts = [pools.part]
    return lambda: packed_decode(q, parts, lens, q_int8=q_int8, **selection)[0]


def _pages_side_by_side(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Full-precision pools laid out as those of the stores, a head's pages side by side, and their table."""
    batch, heads, length, dim = k.shape
    pages = length // _PAGE
    pools = [
        x.view(batch, heads, pages, _PAGE, dim).transpose(0, 1).reshape(heads, -1, _PAGE, dim).transpose(0, 1)
        for x in (k, v)
    ]
    table = torch.arange(batch * pages, dtype=torch.int32, device=k.device).view(batch, pages)
    return pools[0], pools[1], table


def packed(batch, hq, hkv, d, length, kind, q_int8, device, tiles=False) -> Workload:
    """Dense decode over packed pages, beside the wider kernels: bf16, and int8 for int4; of tiles, beside rows."""
    q, k, v, _, lens = inputs(batch, hq, hkv, d, length, torch.bfloat16, device)
    pools = _Pools(kind, k, v, tiles)
    ours = _decode(pools, q, lens, q_int8)
    peers: Peers = {"our bf16": partial(paged_decode, q, *_pages_side_by_side(k, v), lens)}
    if kind == "int4":
        peers["our int8"] = _decode(_Pools("int8", k, v, tiles), q, lens, q_int8)
    if tiles:
        peers["as rows"] = _decode(_Pools(kind, k, v), q, lens, q_int8)
    if q_int8:
        peers["our exact query"] = _decode(pools, q, lens)

    def check():
        want = paged_decode(q.float(), *(x.float() for x in pools.decoded(q.float())), pools.table, lens)[0]
        if q_int8:  # the query is rounded to 8 bits
            torch.testing.assert_close(ours().float(), want, rtol=5e-2, atol=2e-2)
        else:
            agree(ours(), want.to(q.dtype))

    return Workload(ours, peers, pools.tensors, check)


def _layers(hq, hkv, d, kind, q_int8, device, tiles=False) -> Workload:
    """:func:`packed` at one length over as many layers as int4 pages of them do not stay near the core either."""
    one = partial(packed, 1, hq, hkv, d, _LENGTH, kind, q_int8, device, tiles)
    return layered(device, 2 * hkv * d * _LENGTH, one)


def selected(hq, hkv, d, length, k_selected, kind, device) -> Workload:
    """Decode over a list per KV head out of packed pages, beside all of them and a decoded copy of the list."""
    q, k, v, _, lens = inputs(1, hq, hkv, d, length, torch.bfloat16, device)
    pools = _Pools(kind, k, v)
    generator = torch.Generator().manual_seed(5)
    lists = [torch.randperm(length, generator=generator)[:k_selected].sort().values for _ in range(hkv)]
    positions = torch.stack(lists)[None, None].int().to(device)
    counts = torch.full((1, 1, hkv), k_selected, dtype=torch.int32, device=device)
    ours = _decode(pools, q, lens, selected=positions, counts=counts)

    def copied() -> Tensor:
        decoded = pools.decoded(q)
        chosen = {"selected": positions, "counts": counts}
        return paged_decode(q, *decoded, pools.table, lens, **chosen)[0]

    peers: Peers = {f"our dense {kind}": _decode(pools, q, lens), "dequantise, then select": copied}

    def check():
        agree(ours(), copied())

    return Workload(ours, peers, pools.tensors, check, k_selected / length)


def append(hkv, d, rows, kind, device) -> Workload:
    """Quantising new tokens into pages, beside the same codes in plain torch without writing them anywhere."""
    _, k, v, _, _ = inputs(1, hkv, hkv, d, max(rows, _PAGE), torch.bfloat16, device)
    pools = _Pools(kind, k, v)
    new = [x.transpose(1, 2)[:, -rows:] for x in (k, v)]

    def plain() -> list[Tensor]:
        return [_plain_codes(x, pools.codec) for x in new]

    def check():
        want = plain()[0][0].transpose(0, 1)  # [Hkv, T, D]
        codes = kv_dequantize(*pools.keys, None, pools.codec.code, d).transpose(0, 1).flatten(1, 2)
        scale = pools.keys[1].float().transpose(0, 1).flatten(1, 2)
        low = pools.keys[2].float().transpose(0, 1).flatten(1, 2)
        group = pools.codec.group
        got = ((codes.unflatten(-1, (-1, group)) - low[..., None]) / scale[..., None]).round().flatten(-2)
        # Scales are rounded to float16 in between, which moves a code by one at most.
        assert (got[:, -rows:] - want).abs().max() <= 1, "kv_append and plain torch chose different codes"

    peers: Peers = {"plain torch": plain}
    return Workload(lambda: pools.append(*new), peers, tuple(x.contiguous() for x in new), check)


def _plain_codes(x: Tensor, codec: Codec) -> Tensor:
    groups = x.float().unflatten(-1, (-1, codec.group))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / (codec.levels - 1)).clamp_min(1e-8)
    return ((groups - low) / scale).round().flatten(-2)


def cases(device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """The acceptance table: one case per shape, codec and kind of query.

    Args:
        device: "cpu" or "cuda".
        quick: the first shape, exact queries and one token only.
    """
    for (hq, hkv, d), least, least_int8 in zip(_SHAPES, (1.3, 1.5), (1.4, 1.7), strict=True):
        shape = f"{hq}/{hkv}x{d} L{_LENGTH}"
        for q_int8 in (False,) if quick else (False, True):
            query = " int8 query" if q_int8 else ""
            bf16 = Bar("our bf16", least_int8 if q_int8 else least)
            int8 = Bar("our int8", 1.25 if q_int8 else 1.1)
            for kind, bar in (("int8", bf16), ("int4", int8)):
                build = partial(_layers, hq, hkv, d, kind, q_int8, device)
                yield Case(f"{kind} {shape}{query}", (bar,), build)
                if device == "cpu" and not quick:  # the CPU alone reads tiles
                    yield Case(f"{kind} {shape}{query}, keys in tiles", (bar,), partial(build, tiles=True))
        if quick:
            break
        for kind in ("int2", "fp8_e4m3"):
            yield Case(f"{kind} {shape}", (), partial(_layers, hq, hkv, d, kind, False, device))
    yield Case(
        "int4 selected 1024 of 16384",
        (Bar("our dense int4", 6.0),),
        partial(selected, 32, 8, 128, 16384, 1024, "int4", device),
    )
    for rows in (1,) if quick else (1, _LENGTH):
        for kind in ("int8", "int4"):
            build = partial(append, 8, 128, rows, kind, device)
            yield Case(f"kv_append {kind} {rows} tokens 8x128", (), build)
    if device != "cpu":
        for kind, least in (("int8", 1.7), ("int4", 2.8), ("int2", 0.0), ("fp8_e4m3", 0.0)):
            bars = (Bar("our bf16", least),) if least else ()
            build = partial(packed, 32, 32, 8, 128, 16384, kind, False, device)
            yield Case(f"{kind} B32 32/8x128 L16384", bars, build)
