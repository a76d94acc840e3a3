"""A store that keeps all but the first and the newest tokens in packed pages."""

import torch
from torch import Tensor

from ..attention import Part
from ..attention.parts import flatten
from ._hadamard import hadamard
from ._kv_append import kv_append
from ._kv_dequantize import kv_dequantize
from .codec import Codec
from .layout import Layout, Segment
from .tail import Tail

_FP8_MAX = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}


class QuantizedLayout(Layout):
    """A :class:`Layout` for layers that are packed with one codec for keys and one for values.

    Args:
        keys, values: the codecs.
        page: tokens per page, a multiple of a channel codec's group.
        sinks, residual: see :class:`Layout`.
        rotate: whether keys and values are kept Hadamard-transformed.
        q_int8: whether queries may be rounded to 8 bits against int8 and int4 keys.
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
    ):
        self.keys, self.values, self.rotate, self.q_int8 = keys, values, rotate, q_int8
        groups = {codec.group for codec in (keys, values) if codec.geometry == "channel"}
        if len(groups) > 1:
            raise ValueError(
                f"keys and values per channel must share one group of tokens, got {sorted(groups)}"
            )
        restores = bool(groups)
        super().__init__(page, sinks, residual, page if residual or restores else 1, restores)
        self.group = groups.pop() if groups else 1

    def new_store(self, index: int) -> "QuantizedStore":
        """The store of layer ``index``."""
        return QuantizedStore(self)

    def count_layer(self, heads: int, dim: int, itemsize: int) -> None:
        """Add one layer's bytes per token and per group of tokens to what is reported."""
        self.layers += 1
        self.full_token_bytes += 2 * heads * dim * itemsize
        self.count_packed(heads, dim, itemsize)

    def count_packed(self, heads: int, dim: int, itemsize: int, layers: int = 1) -> None:
        """Add what packed tokens of so many layers take."""
        for codec in (self.keys, self.values):
            self.packed_token_bytes += layers * heads * codec.row_bytes(dim, itemsize)
            if codec.kind == "full":
                continue
            scales = layers * codec.scale_dtype.itemsize * (2 if codec.has_zero else 1)
            if codec.geometry == "token":
                self.packed_token_bytes += heads * dim // codec.group * scales
            elif codec.geometry == "channel":
                self.group_bytes += heads * dim * scales


class QuantizedStore:
    """Sinks, packed slabs and a tail of one layer; see :class:`tokops.kvcache.Store`."""

    def __init__(self, layout: QuantizedLayout):
        self.layout = layout
        self.rotate, self.q_int8 = layout.rotate, layout.q_int8
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.kv_heads = 0
        self._pools: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []  # of keys, of values
        self._frozen: list[tuple[Tensor, Tensor] | None] = [None, None]  # scales per head
        self._tail: Tail | None = None
        self._sinks: tuple[Tensor, Tensor] | None = None  # [B, sinks, Hkv, D]
        self._pending: tuple[Tensor, Tensor] | None = None
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
        if layout.before or any(slab.copies for slab in layout.slabs):
            self.follow()
        for segment in layout.before:
            first = layout.before_slot + segment.begin - layout.before[0].begin
            self._pack(segment, *self._tail.read(first, first + segment.end - segment.begin))
        if layout.tail_move is not None and self._tail is not None:
            self._tail.move(*layout.tail_move, layout.tail_capacity)
        if layout.pending:
            self._pending = self._transformed(k, v)
        elif self._tail is None:
            self._tail = Tail(*self._transformed(k, v), layout.tail_capacity)
        else:
            self._tail.write(layout.tail_end - k.shape[1], *self._transformed(k, v))

    def absorb(self, q: Tensor | None = None, **options) -> None:
        """After a prompt's attention: pack its tokens, and keep the rest in the tail."""
        if self._pending is None:
            return
        layout = self.layout
        k, v = self._unpacked()
        self.follow()
        for segment in layout.after:
            first, last = segment.begin - layout.packed, segment.end - layout.packed
            self._pack(segment, k[:, first:last], v[:, first:last])
        rest = layout.absorbed - layout.packed
        self._tail = Tail(k[:, rest:], v[:, rest:], layout.absorbed_capacity)
        self._pending = self._flat = None

    def _unpacked(self):
        """Tokens from the cut on while a prompt is read: those of the tail, then the prompt's."""
        layout = self.layout
        if layout.tail_end == layout.tail_begin:
            return self._pending
        old = self._tail.read(layout.tail_begin, layout.tail_end)
        return tuple(torch.cat(pair, 1) for pair in zip(old, self._pending, strict=True))

    def _start(self, k):
        batch, _, self.kv_heads, self._dim = k.shape
        layout = self.layout
        for codec in (layout.keys, layout.values):
            codec.check(self._dim, layout.page)
        layout.count_layer(self.kv_heads, self._dim, k.element_size())
        self._dtype, self._device = k.dtype, k.device
        if layout.sinks:
            sinks = k.new_zeros(2, batch, layout.sinks, self.kv_heads, self._dim)
            self._sinks = (sinks[0], sinks[1])

    def _transformed(self, k, v):
        return (hadamard(k), hadamard(v)) if self.rotate else (k, v)

    def follow(self) -> None:
        """Make, grow and copy pages as the layout's tables ask."""
        layout = self.layout
        del self._pools[len(layout.slabs) :]
        for i, slab in enumerate(layout.slabs):
            if i == len(self._pools):
                self._pools.append(
                    tuple(self._new_pool(c, slab.table.capacity) for c in (layout.keys, layout.values))
                )
            if self._pools[i][0][0].shape[0] < slab.table.capacity:
                self._pools[i] = tuple(
                    self._grown(c, pool, slab.table.capacity)
                    for c, pool in zip((layout.keys, layout.values), self._pools[i], strict=True)
                )
                self._flat = None
            for source, target in slab.copies:
                for pool in self._pools[i]:
                    for x in pool:
                        if x.dim() == 4 and x.shape[0] > 1:
                            x[target] = x[source]

    def _new_pool(self, codec, pages):
        side = 0 if codec is self.layout.keys else 1
        pool = codec.empty(pages, self.kv_heads, self.layout.page, self._dim, self._dtype, self._device)
        if codec.geometry == "head" and self._frozen[side] is not None:
            pool = (pool[0], *self._frozen[side])
        return pool

    def _grown(self, codec, pool, pages):
        grown = self._new_pool(codec, pages)
        for new, old in zip(grown, pool, strict=True):
            if new.dim() == 4 and new is not old:
                new[: old.shape[0]] = old
        return grown

    def _pack(self, segment: Segment, k, v):
        layout = self.layout
        keys, values = self._pools[segment.slab]
        for side, (codec, x) in enumerate(((layout.keys, k), (layout.values, v))):
            if codec.geometry == "head" and self._frozen[side] is None:
                self._freeze(side, codec, x)
                keys, values = self._pools[segment.slab]
        kv_append(
            keys[0],
            keys[1],
            keys[2],
            values[0],
            values[1],
            values[2],
            layout.slabs[segment.slab].table.table,
            segment.seq_lens,
            k,
            v,
            k_codec=layout.keys.write_code,
            v_codec=layout.values.write_code,
            starts=segment.starts,
        )
        if self._sinks is not None:
            self._keep_sinks(segment.begin, k, v)

    def _freeze(self, side, codec, x):
        """One scale per head from the first tokens that are packed."""
        low, high = x.float().amin((0, 1, 3)), x.float().amax((0, 1, 3))
        if codec.is_fp8:
            scale, zero = torch.maximum(high, -low) / _FP8_MAX[codec.kind], None
        elif codec.symmetric:
            scale, zero = torch.maximum(high, -low) / 127, None
        else:
            scale, zero = (high - low) / (codec.levels - 1), low
        scale = torch.where(scale > 0, scale, 1.0).to(codec.scale_dtype)[None, :, None, None].contiguous()
        zero = torch.empty(0) if zero is None else zero[None, :, None, None]
        zero = zero.to(scale.device, scale.dtype).contiguous()
        self._frozen[side] = (scale, zero)
        for i, pools in enumerate(self._pools):
            both = list(pools)
            both[side] = (both[side][0], scale, zero)
            self._pools[i] = tuple(both)

    def _keep_sinks(self, begin, k, v):
        """Copy the sinks among tokens ``[B, T, Hkv, D]`` at positions from ``begin`` on."""
        layout = self.layout
        last = max(layout._host_starts, default=0) + layout.sinks
        if begin >= last:
            return
        offset = torch.arange(layout.sinks, device=k.device) - begin
        offset = offset.expand(k.shape[0], -1) if layout.starts is None else offset + layout.starts[:, None]
        inside = (offset >= 0) & (offset < k.shape[1])
        index = offset.clamp(0, k.shape[1] - 1).long()[..., None, None].expand(-1, -1, *k.shape[2:])
        for sinks, x in zip(self._sinks, (k, v), strict=True):
            sinks.copy_(torch.where(inside[..., None, None], x.gather(1, index), sinks))

    # ---- Reading.

    def parts(self) -> list[Part]:
        layout, parts = self.layout, []
        if self._sinks is not None and layout.packed:
            k, v = (x.transpose(1, 2) for x in self._sinks)
            parts.append(Part(k, v, layout.rows, layout.sink_lens, first=layout.sink_first))
        parts += [self._slab_part(i) for i in range(min(len(layout.slabs), len(self._pools)))]
        if self._tail is not None and layout.tail_end > layout.tail_begin:
            tail = {"first": layout.tail_first, "begin": layout.tail_slot}
            parts.append(Part(self._tail.k, self._tail.v, layout.rows, layout.tail_lens, **tail))
        if self._pending is not None:
            k, v = (x.transpose(1, 2) for x in self._pending)
            parts.append(Part(k, v, layout.rows, layout.pending_lens, first=layout.pending_first))
        return parts

    def _slab_part(self, index: int) -> Part:
        layout = self.layout
        keys, values = self._pools[index]
        lens, first, begin = layout.slab_tensors(index)
        return Part(
            keys[0],
            values[0],
            layout.slabs[index].table.table,
            lens,
            layout.keys.code,
            layout.values.code,
            **_scales("k", keys),
            **_scales("v", values),
            first=first,
            begin=begin,
        )

    def flat_parts(self) -> tuple[list[Tensor], list[int]]:
        if self._flat is None or self._flat[0] != self.layout.version or self._pending is not None:
            self._flat = (self.layout.version, flatten(self.parts()))
        return self._flat[1]

    # ---- Changes between forwards.

    def crop(self, restored: tuple[int, int]) -> None:
        """Follow the layout's crop; positions ``restored`` return to the tail, decoded."""
        self._flat = None
        begin, end = restored
        if begin == end:
            return
        k, v = self._with_sinks(begin, *self._restored(begin, end))
        self._tail = Tail(k, v, self.layout.tail_capacity)

    def _restored(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Packed tokens ``[begin, end)`` of one page, decoded to ``[B, T, Hkv, D]``."""
        slab = next(i for i, s in enumerate(self.layout.slabs) if s.first <= begin < s.first + s.span)
        table, size = self.layout.slabs[slab].table, self.layout.page
        first = begin - self.layout.slabs[slab].first
        column = torch.from_numpy(table.pages[:, first // size]).long().to(self._device)
        out: list[Tensor] = []
        for codec, pool in zip((self.layout.keys, self.layout.values), self._pools[slab], strict=True):
            page = [x[column] if x.dim() == 4 and len(x) == len(pool[0]) else x for x in pool]
            x = self._decoded(codec, page)[:, :, first % size : first % size + end - begin]
            out.append(x.transpose(1, 2).to(self._dtype))
        return out[0], out[1]

    def _decoded(self, codec, page):
        if codec.kind == "full":
            return page[0].float()
        zero = page[2] if page[2].numel() else None
        return kv_dequantize(page[0], page[1], zero, None, codec.code, self._dim)

    def _with_sinks(self, begin, k, v):
        """Tokens from position ``begin`` on, the exact ones in place of those that are sinks."""
        if self._sinks is None:
            return k, v
        for x, sinks in zip((k, v), self._sinks, strict=True):
            for row, start in enumerate(self.layout._host_starts or [0] * len(x)):
                low, high = max(begin, start), min(begin + x.shape[1], start + self.layout.sinks)
                if low < high:
                    x[row, low - begin : high - begin] = sinks[row, low - start : high - start]
        return k, v

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        self._flat = None
        if self._tail is not None:
            self._tail.select(rows)
        if self._sinks is not None:
            self._sinks = (self._sinks[0][rows], self._sinks[1][rows])


def _scales(side: str, pool: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    return {
        f"{side}_scale": pool[1] if pool[1].numel() else None,
        f"{side}_zero": pool[2] if pool[2].numel() else None,
    }
