"""A store that keeps all but the first and the newest tokens in packed pages."""

import torch
from torch import Tensor

from ..attention import Part
from ..attention.parts import flatten
from ._hadamard import hadamard
from ._kv_append import kv_append
from ._quantize import head_scale
from .codec import Codec
from .layout import Layout
from .pool import Grid, Pool
from .slabs import Segment
from .tail import Tail


class QuantizedLayout(Layout):
    """A :class:`Layout` for layers that are packed with one codec for keys and one for values.

    Args:
        keys, values: the codecs.
        page: tokens per page, a multiple of a channel codec's group.
        sinks, residual: see :class:`Layout`.
        rotate: whether keys and values are kept Hadamard-transformed.
        q_int8: whether queries may be rounded to 8 bits against int8 and int4 keys.
        key_tiles: whether pages of keys are kept in tiles of 16 tokens (:func:`kv_relayout`), which are read densely
            alone; tokens are then packed by whole pages.

    Raises:
        ValueError: keys and values per channel with different groups, or tiles of a page size that 16 does not divide.
    """

    def __init__(
        self,
        keys: Codec,
        values: Codec,
        *,
        page: int,
        sinks: int,
        residual: int,
        rotate: bool,
        q_int8: bool = False,
        key_tiles: bool = False,
    ):
        self.codecs, self.rotate, self.q_int8, self.key_tiles = (keys, values), rotate, q_int8, key_tiles
        groups = {
            codec.group for codec in self.codecs if codec.geometry == "channel" and codec.kind != "full"
        }
        if len(groups) > 1:
            raise ValueError(
                f"keys and values per channel must share one group of tokens, got {sorted(groups)}"
            )
        if key_tiles and page % 16:
            raise ValueError(f"keys in tiles need a page size that is a multiple of 16, got {page}")
        restores = bool(groups) or key_tiles
        super().__init__(page, sinks, residual, page if residual or restores else 1, restores)
        self.group = page if key_tiles else groups.pop() if groups else 1

    def new_store(self, index: int) -> "QuantizedStore":
        """The store of layer ``index``."""
        return QuantizedStore(self)

    def count_layer(self, heads: int, dim: int, itemsize: int) -> None:
        """Add one layer's bytes per token and per group of tokens to what is reported."""
        self.layers += 1
        self.full_token_bytes += 2 * heads * dim * itemsize
        self.count_packed(heads, dim, itemsize)

    def count_packed(self, heads: int, dim: int, itemsize: int, layers: int = 1) -> None:
        """Add what packed tokens take in so many layers; see :meth:`count_layer`."""
        token, group, fixed = self.packed_bytes(heads, dim, itemsize)
        self.packed_token_bytes += layers * token
        self.group_bytes += layers * group
        self.fixed_bytes += layers * fixed

    def packed_bytes(self, heads: int, dim: int, itemsize: int) -> tuple[int, int, int]:
        """What one layer packs: bytes of a token, of a group of tokens, and of what is held once."""
        token = group = fixed = 0
        for codec in self.codecs:
            token += heads * codec.row_bytes(dim, itemsize)
            if codec.kind == "full":
                continue
            grid = heads * codec.scale_dtype.itemsize * (2 if codec.has_zero else 1)
            if codec.geometry == "token":
                token += dim // codec.group * grid
            elif codec.geometry == "channel":
                group += dim * grid
            else:
                fixed += grid
        return token, group, fixed


def _append(keys: Pool, values: Pool, table, seq_lens, k, v, starts=None) -> None:
    kv_append(
        *keys.tensors,
        *values.tensors,
        table,
        seq_lens,
        k,
        v,
        k_codec=keys.codec.write_code,
        v_codec=values.codec.write_code,
        starts=starts,
    )


class QuantizedStore:
    """Sinks, packed slabs and a tail of one layer; see :class:`tokops.kvcache.Store`."""

    def __init__(self, layout: QuantizedLayout):
        self.layout = layout
        self.rotate, self.q_int8 = layout.rotate, layout.q_int8
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.kv_heads = 0
        self._pools: list[tuple[Pool, Pool]] = []  # of keys and of values, by slab
        self._grids: list[Grid | None] = [None, None]  # of head geometry, once tokens have been seen
        self._tail: Tail | None = None
        self._sinks: tuple[Tensor, Tensor] | None = None  # [B, sinks, Hkv, D]
        self._pending: tuple[Tensor, Tensor] | None = None
        #: Keys and values ``[B, T, Hkv, D]`` of a draft that parts hold as others see them, neither packed nor rotated.
        self.own: tuple[Tensor, Tensor] | None = None
        self._codes: tuple[Pool, Pool] | None = None  # the tail as it will be packed
        self._flat: tuple[int, tuple[list[Tensor], list[int]]] | None = None

    @property
    def length(self) -> int:
        return self.layout.length

    @property
    def seq_lens(self) -> Tensor:
        return self.layout.seq_lens

    def query(self, q: Tensor) -> Tensor:
        return q

    # ---- Writing.

    def append(self, k: Tensor, v: Tensor) -> None:
        """Take the new tokens ``[B, T, Hkv, D]`` of a forward that the layout has begun."""
        layout = self.layout
        if not self.kv_heads:
            self._start(k)
        self.follow()
        for segment in layout.before:
            slot = layout.before_slot + segment.begin - layout.before[0].begin
            self._pack(segment, *self._tail.read(slot, slot + segment.end - segment.begin))
        if layout.tail_move is not None and self._tail is not None:
            self._tail.move(*layout.tail_move, layout.tail_capacity)
        new = (k, v)
        if self.rotate:
            k, v = hadamard(k), hadamard(v)
        if layout.pending:
            self._pending = (k, v)
        elif self._tail is None:
            self._tail = Tail(k, v, layout.tail_capacity)
        else:
            self._tail.write_ends(layout.rows, layout.tail_lens, k, v)
        self.own = self._codes = None
        if layout.codes_tail and self._has_grids():
            self.own = new
            self._code_tail()

    def _has_grids(self):
        """Whether it is known how tokens will be packed: the scale of a head is set by the first that are."""
        codecs = zip(self.layout.codecs, self._grids, strict=True)
        return all(c.kind == "full" or c.geometry != "head" or grid is not None for c, grid in codecs)

    def _code_tail(self):
        """The tail's tokens, those of the draft among them, as they will be packed: one page per sequence."""
        layout = self.layout
        assert self._tail is not None, "the draft is in it"
        k, v = self._tail.read(layout.tail_begin, layout.tail_end)
        shape = (
            self.kv_heads,
            max(k.shape[1], 2),
            self._dim,
        )  # two, or a page would be like a scale per head
        keys, values = (
            Pool(codec, shape, layout.batch, self._dtype, self._device, grid)
            for codec, grid in zip(layout.codecs, self._grids, strict=True)
        )
        lens = torch.full_like(layout.seq_lens, k.shape[1])
        _append(keys, values, layout.rows, lens, k, v)
        self._codes = (keys, values)

    def keep(self, rows: Tensor | None, counts: Tensor, most: int) -> None:
        """A draft is over, and what is kept of it has been moved; see :meth:`tokops.kvcache.mikv.MiKVStore.keep`."""
        self.own = self._codes = self._flat = None

    def newest(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where a draft's tokens are: pages ``[2, B, Hkv, slots, D]``, their table, and slots in use ``[B]``."""
        assert self._tail is not None, "the draft is in it"
        return self._tail.kv, self.layout.rows, self.layout.tail_lens

    def absorb(self, q: Tensor | None = None, **options) -> None:
        """After a prompt's attention: pack its tokens, and keep the rest in the tail."""
        if self._pending is None:
            return
        layout = self.layout
        k, v = self._unpacked()
        for segment in layout.after:
            first, last = segment.begin - layout.packed, segment.end - layout.packed
            self._pack(segment, k[:, first:last], v[:, first:last])
        rest = layout.absorbed - layout.packed
        self._tail = Tail(k[:, rest:], v[:, rest:], layout.absorbed_capacity)
        self._pending = self._flat = None

    def _unpacked(self) -> tuple[Tensor, Tensor]:
        """Tokens from the cut on while a prompt is read: those of the tail, then the prompt's."""
        layout = self.layout
        assert self._pending is not None, "a prompt is being read"
        k, v = self._pending
        if layout.tail_end > layout.tail_begin:
            old_k, old_v = self._tail.read(layout.tail_begin, layout.tail_end)
            k, v = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        return k, v

    def _start(self, k):
        batch, _, self.kv_heads, self._dim = k.shape
        layout = self.layout
        for codec in layout.codecs:
            codec.check(self._dim, layout.page)
        layout.count_layer(self.kv_heads, self._dim, k.element_size())
        self._dtype, self._device = k.dtype, k.device
        if layout.sinks:
            sinks = k.new_zeros(2, batch, layout.sinks, self.kv_heads, self._dim)
            self._sinks = (sinks[0], sinks[1])

    def follow(self) -> None:
        """Make, grow and copy pages as the layout's tables ask."""
        del self._pools[len(self.layout.slabs) :]
        for i, slab in enumerate(self.layout.slabs):
            if i == len(self._pools):
                self._pools.append((self._new_pool(0, slab), self._new_pool(1, slab)))
            for pool in self._pools[i]:
                if pool.pages < slab.table.capacity:
                    pool.grow(slab.table.capacity)
                    self._flat = None
                for source, target in slab.copies:
                    pool.copy(source, target)

    def _new_pool(self, side, slab):
        shape = (self.kv_heads, self.layout.page, self._dim)
        codec, pages = self.layout.codecs[side], slab.table.capacity
        tiles = side == 0 and self.layout.key_tiles
        return Pool(codec, shape, pages, self._dtype, self._device, self._grids[side], tiles)

    def _pack(self, segment: Segment, k, v):
        layout = self.layout
        for side, x in enumerate((k, v)):
            codec = layout.codecs[side]
            if codec.geometry == "head" and codec.kind != "full" and self._grids[side] is None:
                self._set_grid(side, x, segment)
        keys, values = self._pools[segment.slab]
        table = layout.slabs[segment.slab].table.table
        assert table is not None  # the segment has pages
        _append(keys, values, table, segment.seq_lens, k, v, segment.starts)
        if keys.tiles:  # whole pages, as everything that is packed here
            first = layout.slabs[segment.slab].first
            columns = slice((segment.begin - first) // layout.page, (segment.end - first) // layout.page)
            keys.lay(table[:, columns].flatten().long())
        if self._sinks is not None:
            self._keep_sinks(self._sinks, segment.begin, k, v)

    def _set_grid(self, side, x, segment):
        """One scale per head, from the first tokens that are packed and are neither padding nor sinks."""
        if segment.starts is not None:
            slot = torch.arange(x.shape[1], device=x.device) + segment.begin
            first = segment.starts[:, None] + self.layout.slabs[segment.slab].first
            x = x[slot >= first][None]
        if not x.numel():
            return  # what is written now is never read
        self._grids[side] = grid = head_scale(x.transpose(1, 2), self.layout.codecs[side])
        for pools in self._pools:
            pools[side].scale, pools[side].zero = grid
        self._flat = None

    def _keep_sinks(self, sinks, begin, k, v):
        """Copy the sinks among tokens ``[B, T, Hkv, D]`` at positions from ``begin`` on."""
        layout = self.layout
        if begin >= layout.sink_end:
            return
        offset = torch.arange(layout.sinks, device=k.device) - begin + layout.sink_first[:, None]
        inside = ((offset >= 0) & (offset < k.shape[1]))[..., None, None]
        index = offset.clamp(0, k.shape[1] - 1)[..., None, None].expand(-1, -1, *k.shape[2:])
        for kept, x in zip(sinks, (k, v), strict=True):
            kept.copy_(torch.where(inside, x.gather(1, index), kept))

    # ---- Reading.

    def parts(self) -> list[Part]:
        layout, parts = self.layout, []
        if self._sinks is not None and layout.packed:
            k, v = (x.transpose(1, 2) for x in self._sinks)
            parts.append(Part(k, v, layout.rows, layout.sink_lens, first=layout.sink_first))
        for i, (slab, (keys, values)) in enumerate(zip(layout.slabs, self._pools, strict=False)):
            lens, first, begin = layout.slab_tensors(i)
            if slab.first < layout.packed:
                table, operands = slab.table.table, self._operands(keys, values)
                parts.append(Part(block_table=table, lens=lens, first=first, begin=begin, **operands))
        if self._tail is not None and layout.tail_end > layout.tail_begin:
            tail = {"first": layout.tail_first, "begin": layout.tail_slot}
            if self._codes is None or layout.exact is not None:
                norms = (
                    {}
                    if self._codes is None
                    else {"k_norm": self._only(layout.exact, layout.tail_begin, self._tail.k)}
                )
                parts.append(Part(self._tail.k, self._tail.v, layout.rows, layout.tail_lens, **tail, **norms))
        if self._codes is not None:
            codes = self._operands(*self._codes)
            if layout.exact is not None:
                codes["k_norm"] = self._only(~layout.exact, 0, codes["k"])
            parts.append(
                Part(block_table=layout.rows, lens=layout.codes_lens, first=layout.codes_first, **codes)
            )
        if self._pending is not None:
            k, v = (x.transpose(1, 2) for x in self._pending)
            parts.append(Part(k, v, layout.rows, layout.pending_lens, first=layout.pending_first))
        return parts

    @staticmethod
    def _only(held: Tensor, begin: int, pages: Tensor) -> Tensor:
        """Norms of pages of which only slots from ``begin`` on where ``held [B, n]`` holds are taken to be filled."""
        norms = torch.full(pages.shape[:3], torch.nan, dtype=torch.float16, device=pages.device)
        norms[:, :, begin : begin + held.shape[1]].masked_fill_(held[:, None], 1.0)
        return norms

    def _operands(self, keys: Pool, values: Pool) -> dict:
        """The fields of a part that packed pages are."""
        return {**keys.operands("k"), **values.operands("v")}

    def flat_parts(self) -> tuple[list[Tensor], list[int]]:
        if self._flat is None or self._flat[0] != self.layout.version or self._pending is not None:
            self._flat = (self.layout.version, flatten(self.parts()))
        return self._flat[1]

    # ---- Changes between forwards.

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_flat": None}  # of views, which are made anew

    def crop(self, restored: tuple[int, int]) -> None:
        """Follow the layout's crop; positions ``restored`` return to the tail, decoded."""
        if not self.layout.length:
            return self.reset()
        self._flat = None
        begin, end = restored
        if begin == end:
            return
        slot, count = self.layout.cropped_tail
        k, v = self._restored(begin, end)
        if self._sinks is not None:
            for x, sinks in zip((k, v), self._sinks, strict=True):
                self._put_sinks(begin, x, sinks)
        if count:
            assert self._tail is not None, "the longer sequences' newest tokens are in it"
            k, v = (torch.cat(x, 1) for x in zip((k, v), self._tail.read(slot, slot + count), strict=True))
        self._tail = Tail(k, v, self.layout.tail_capacity)

    def _restored(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Packed tokens ``[begin, end)``, decoded to ``[B, T, Hkv, D]``."""
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for slab, pools in zip(self.layout.slabs, self._pools, strict=False):
            at, stop = max(begin, slab.first) - slab.first, min(end, slab.first + slab.span) - slab.first
            while at < stop:
                column, slot = divmod(at, self.layout.page)
                last = min(slot + stop - at, self.layout.page)
                pages = torch.from_numpy(slab.table.pages[:, column]).long().to(self._device)
                for side, pool in zip(sides, pools, strict=True):
                    side.append(self._read(pool, pages)[:, :, slot:last].transpose(1, 2).to(self._dtype))
                at += last - slot
        return torch.cat(sides[0], 1), torch.cat(sides[1], 1)

    def _read(self, pool: Pool, pages: Tensor) -> Tensor:
        """The vectors in pages ``[n]``, decoded: ``[n, H, P, D]`` float32."""
        return pool.read(pages)

    def _put_sinks(self, begin, x, sinks):
        """The exact sinks in place of those decoded to ``x``, whose tokens start at position ``begin``."""
        for row, start in enumerate(self.layout.host_starts):
            low, high = max(begin, start), min(begin + x.shape[1], start + self.layout.sinks)
            if low < high:
                x[row, low - begin : high - begin] = sinks[row, low - start : high - start]

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        self._flat = None
        if self._tail is not None:
            self._tail.select(rows)
        if self._sinks is not None:
            self._sinks = (self._sinks[0][rows], self._sinks[1][rows])
