"""Stores of layers that keep their packed tokens two by two, and the cut they share."""

from collections.abc import Sequence

from torch import Tensor

from ..attention import Part
from .codec import Codec
from .pair import LEAST_TOKENS, MergeRule, Pair, PairPool
from .pool import Pool
from .quantized import QuantizedLayout, QuantizedStore
from .slabs import Segment, Slab


class PairLayout(QuantizedLayout):
    """A cut that all layers share; of some layers two keep their packed tokens together.

    Whole pages are packed, so that both layers of a pair are always cut at the same position, and a crop into a page
    gives its tokens back to the tails.

    Args:
        pairs: layers (lower, upper) that are merged. Other layers are packed on their own.
        rule: how.
        keys, values: the codecs of shared directions, and of the keys and values of layers that are not paired.
        page, sinks, residual: see :class:`Layout`.

    Raises:
        ValueError: pages of fewer than 8 tokens, or codecs that do not go together.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        rule: MergeRule,
        keys: Codec,
        values: Codec,
        *,
        page: int,
        sinks: int,
        residual: int,
    ):
        if page < LEAST_TOKENS:
            raise ValueError(f"MiniCache merges whole pages of at least {LEAST_TOKENS} tokens, got {page}")
        self.rule = rule
        self.pairs = [Pair(self, layers) for layers in pairs]
        super().__init__(keys, values, page=page, sinks=sinks, residual=residual, rotate=False)
        self.unit, self.group, self.restores = page, page, True
        self.reset()

    def new_store(self, index: int) -> QuantizedStore:
        """The store of layer ``index``."""
        for pair in self.pairs:
            if index in pair.layers:
                return PairStore(self, pair, pair.layers.index(index))
        return super().new_store(index)

    @property
    def distances(self) -> dict[tuple[int, int], tuple[float, float]]:
        """Mean angle over pi between the (keys, values) of the pairs that were measured, by pair."""
        return {pair.layers: pair.distance for pair in self.pairs if pair.distance is not None}

    @property
    def _first_cut(self) -> int:
        """See :attr:`Layout._first_cut`: where the guard has tokens to measure, not padding alone."""
        if all(pair.merged is not None for pair in self.pairs):
            return 0
        return -(-(min(self.host_starts, default=0) + LEAST_TOKENS) // self.page) * self.page

    def see_starts(self, starts: Tensor | None) -> None:
        """See :meth:`Layout.see_starts`. What turns out to be padding alone is not packed yet."""
        super().see_starts(starts)
        if self.packed < self.absorbed < self._first_cut:
            self._absorbed, self.after = self.packed, []
            self.drop_pages()

    def notes(self) -> list[str]:
        """What became of every pair that was measured, in words."""
        return [pair.describe() for pair in self.pairs if pair.distance is not None]

    def live_bytes(self) -> int:
        """See :meth:`Layout.live_bytes`; with norms, retained tokens, and where they are."""
        return super().live_bytes() + sum(pair.live_bytes() for pair in self.pairs)

    def reread_bytes(self) -> int:
        """See :meth:`Layout.reread_bytes`: a pair's directions and the positions of what it retains."""
        tokens = sum(slab.table.live_tokens() for slab in self.slabs)
        return sum(pair.reread_bytes(tokens) for pair in self.pairs if pair.merged)

    def allocated_bytes(self) -> int:
        """See :meth:`Layout.allocated_bytes`."""
        return super().allocated_bytes() + sum(pair.allocated_bytes() for pair in self.pairs)


class PairStore(QuantizedStore):
    """One layer of a pair: sinks and tail of its own, pages of the pair's.

    The lower layer's store owns the pair. What the lower layer is asked to crop, reorder or reset happens to the pair
    once; the upper layer then only follows with what is its own.
    """

    layout: PairLayout

    def __init__(self, layout: PairLayout, pair: Pair, side: int):
        self.pair, self.side = pair, side
        self.pair.stores.insert(side, self)
        super().__init__(layout)

    def reset(self) -> None:
        """Hold nothing."""
        super().reset()
        if not self.side:
            self.pair.reset()

    @property
    def pools(self) -> list[tuple[Pool, Pool]]:
        """Directions and norms of keys and of values, by slab."""
        return self._pools

    @property
    def dim(self) -> int:
        """Head dimension."""
        return self._dim

    @property
    def itemsize(self) -> int:
        """Bytes of a number in full precision."""
        return self._dtype.itemsize

    def append(self, k: Tensor, v: Tensor) -> None:
        """See :meth:`QuantizedStore.append`. What both tails must give up is merged before the lower one moves."""
        layout = self.layout
        if layout.before and not self.side:
            slots = layout.before_slot, layout.before_slot + layout.before[-1].end - layout.before[0].begin
            self.pair.pack(layout.before, [store.tail_tokens(*slots) for store in self.pair.stores])
        super().append(k, v)

    def tail_tokens(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, T, Hkv, D]`` in these slots of the tail."""
        assert self._tail is not None, "committed tokens that are not packed are in the tail"
        return self._tail.read(begin, end)

    def absorb(self, q: Tensor | None = None, **options) -> None:
        """See :meth:`QuantizedStore.absorb`. The lower layer's tokens stay as they are until the upper has its own."""
        layout, pair = self.layout, self.pair
        if self._pending is None or pair.merged is False or not layout.after:
            return super().absorb(q)
        if not self.side:
            return None
        tokens = layout.after[-1].end - layout.packed
        both = [[x[:, :tokens] for x in store.prompt_tokens()] for store in pair.stores]
        pair.pack(layout.after, both)
        for store in pair.stores:
            store.follow()
            QuantizedStore.absorb(store, q)
        return None

    def prompt_tokens(self) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, T, Hkv, D]`` that are not packed while a prompt is read."""
        return self._unpacked()

    def _start(self, k):
        super()._start(k)
        self.layout.count_packed(self.kv_heads, self.dim, self.itemsize, layers=-1)  # until that is decided

    def follow(self) -> None:
        """See :meth:`QuantizedStore.follow`; both layers see the lower one's pages."""
        if not self.pair.merged:
            if self.pair.merged is False:
                super().follow()
        elif self.side:
            self._pools = self.pair.stores[0].pools
        else:
            super().follow()

    def _new_pool(self, side: int, slab: Slab) -> Pool:
        if not self.pair.merged:
            return super()._new_pool(side, slab)
        shape = (self.kv_heads, self.layout.page, self._dim)
        return PairPool(self.layout.codecs[side], shape, slab.table.capacity, self._dtype, self._device)

    def _pack(self, segment: Segment, k, v):
        if not self.pair.merged:
            super()._pack(segment, k, v)

    def keep_sinks(self, begin: int, k: Tensor, v: Tensor) -> None:
        """Copy the sinks among tokens ``[B, T, Hkv, D]`` at positions from ``begin`` on."""
        if self._sinks is not None:
            self._keep_sinks(self._sinks, begin, k, v)

    def _operands(self, keys: Pool, values: Pool) -> dict:
        operands = super()._operands(keys, values)
        if isinstance(keys, PairPool) and isinstance(values, PairPool):
            operands |= {"k_norm": keys.norms[self.side], "v_norm": values.norms[self.side]}
        return operands

    def parts(self) -> list[Part]:
        parts = super().parts()
        return parts + self.pair.parts(self.side) if self.pair.merged else parts

    def crop(self, restored: tuple[int, int]) -> None:
        """See :meth:`QuantizedStore.crop`."""
        if not self.pair.merged:
            return super().crop(restored)
        if self.side:
            return None
        for store in self.pair.stores:
            QuantizedStore.crop(store, restored)
        self.pair.crop(self.layout.packed)
        return None

    def _read(self, pool: Pool, pages: Tensor) -> Tensor:
        x = super()._read(pool, pages)
        return x * pool.norms[self.side][pages][..., None].float() if isinstance(pool, PairPool) else x

    def _restored(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        k, v = super()._restored(begin, end)
        for kept in self.pair.kept:
            kept.put(self.side, begin, k, v)
        return k, v

    def select(self, rows: Tensor) -> None:
        """See :meth:`QuantizedStore.select`."""
        super().select(rows)
        if not self.side:
            self.pair.select(rows)
