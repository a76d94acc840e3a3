"""Two layers that share what they keep: one direction per token, and the magnitudes of either layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention import Part
from ._kv_append import kv_append
from ._minicache_merge import minicache_merge
from .minicache import minicache_retain, minicache_threshold
from .pool import Pool
from .retained import Retained
from .slabs import Segment

if TYPE_CHECKING:
    from .pairs import PairLayout, PairStore

#: Fewer tokens of a sequence are not merged: nothing can be said of their range of distances.
LEAST_TOKENS = 8
_PAGE_CAP = 0.2  # share of a page that is retained at most, once thresholds are frozen
_BELOW = -1.0  # any distance is more than that
_MOST_PARTS = 16  # of one call of packed_decode
_OTHER_PARTS = 3  # beside slabs and buffers: sinks, the tail, and a prompt that is being read
_GUARDS = ("refuse", "skip", "force")


@dataclass(frozen=True)
class MergeRule:
    """How tokens of two layers are merged, and when not; see :class:`tokops.methods.MiniCache`."""

    t: float = 0.6
    gamma: float = 0.05
    retain: str = "range"
    share_heads: bool = False
    guard: str = "refuse"
    max_distance: float = 1 / 3

    def __post_init__(self):
        for name, value in (("t", self.t), ("gamma", self.gamma), ("max_distance", self.max_distance)):
            if not 0 <= value <= 1:
                raise ValueError(f"MiniCache: {name} must be 0..1, got {value}")
        for name, value, known in (
            ("retain", self.retain, ("range", "topk")),
            ("guard", self.guard, _GUARDS),
        ):
            if value not in known:
                raise ValueError(f"MiniCache: {name} must be one of {', '.join(known)}, got {value!r}")


class PairPool(Pool):
    """A pool of directions, with the norms ``[2, N, H, P]`` of both layers."""

    def __init__(self, *args):
        super().__init__(*args)
        self.norms = self._empty()

    def _empty(self) -> Tensor:
        heads, page, _ = self.shape
        return self.codes.new_empty(2, self.pages, heads, page, dtype=torch.float16)

    def grow(self, pages: int) -> None:
        """See :meth:`Pool.grow`."""
        super().grow(pages)
        old, self.norms = self.norms, self._empty()
        self.norms[:, : old.shape[1]] = old

    def copy(self, source: Tensor, target: Tensor) -> None:
        """See :meth:`Pool.copy`."""
        super().copy(source, target)
        self.norms[:, target] = self.norms[:, source]


class Pair:
    """Two layers whose packed tokens are one object, which the lower layer's store carries along.

    A token that is merged is a slot of a page: a direction for keys, one for values, and four norms. A token whose
    layers disagree is retained: kept as it is for both layers, while its slot holds nothing (its norms of keys are
    NaN). Keys and values retain the same tokens: those that either of them would.
    """

    def __init__(self, layout: "PairLayout", layers: tuple[int, int]):
        self.layout, self.layers = layout, layers
        self.stores: list[PairStore] = []
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.merged: bool | None = None  # None: nothing has been packed
        self.distance: tuple[float, float] | None = None
        self.kept: list[Retained] = []
        self._thresholds: Tensor | None = None  # of keys and values, [2, B, Hkv]
        self._frozen: list[bool] = []  # sequences that have theirs
        self._where: tuple[int, Tensor] | None = None

    # ---- Merging.

    def pack(self, segments: Sequence[Segment], tokens) -> None:
        """Merge the tokens of consecutive segments: keys and values ``[B, T, Hkv, D]`` of either layer.

        What is merged goes into the pages of the lower layer's store. Nothing happens where the pair is kept apart.
        """
        if self.merged is None and not self._alike():
            self._settle(False)
        if self.merged is False:
            return
        begin, rule = segments[0].begin, self.layout.rule
        sides = [minicache_merge(x, y, t=rule.t) for x, y in zip(*tokens, strict=True)]
        distances = [side[3].transpose(1, 2) for side in sides]
        if self.merged is None:
            self._guard(distances, begin)
        if not self.merged:
            return
        mask = self._retained(distances, begin)
        self.stores[0].follow()
        for segment in segments:
            self._write(segment, begin, sides, mask)
        for store, (k, v) in zip(self.stores, tokens, strict=True):
            store.keep_sinks(begin, k, v)
        self._keep(mask, begin, tokens)
        self._join()

    def _alike(self) -> bool:
        lower, upper = self.stores
        return (lower.kv_heads, lower.dim) == (upper.kv_heads, upper.dim)

    def _settle(self, merged: bool) -> None:
        """Decide once for all whether the pair is merged, and count its bytes."""
        self.merged = merged
        sizes = [(store.kv_heads, store.dim, store.itemsize) for store in self.stores]
        for size in sizes[:1] if merged else sizes:
            self.layout.count_packed(*size)
        if merged:
            self.layout.packed_token_bytes += 4 * 2 * sizes[0][0]  # float16 norms of K and V in two layers

    def _guard(self, distances: list[Tensor], begin: int) -> None:
        rule = self.layout.rule
        seen = self._visible(begin, distances[0])
        known = [x[seen & ~x.isnan()] for x in distances]
        means = [float(x.mean()) for x in known]
        self.distance = (means[0], means[1])
        if rule.guard == "force" or all(mean <= rule.max_distance for mean in means):
            return self._settle(True)
        if rule.guard == "skip":
            return self._settle(False)
        counts = [x.numel() for x in known]
        if min(counts) < LEAST_TOKENS:
            raise RuntimeError(
                f"MiniCache: layers {self.layers[0]} and {self.layers[1]} cannot be compared: of {int(seen.sum())} "
                f"keys and as many values, those of {counts[0]} and {counts[1]} are finite in both layers. "
                "guard='skip' keeps such a pair apart, guard='force' merges it"
            )
        raise RuntimeError(
            f"MiniCache: layers {self.layers[0]} and {self.layers[1]} are not alike: between their keys lie "
            f"{means[0]:.3f}, between their values {means[1]:.3f} (mean angle over pi; 0.5 is orthogonal), and "
            f"max_distance is {rule.max_distance:.3f}. Merging them would damage the model. guard='skip' merges "
            "only pairs that are alike, guard='force' merges all"
        )

    def _visible(self, begin: int, like: Tensor) -> Tensor:
        """Tokens ``[B, Hkv, T]`` from position ``begin`` on that are no padding."""
        at = torch.arange(begin, begin + like.shape[2], device=like.device)
        starts = self.layout.starts
        return (at >= (0 if starts is None else starts[:, None, None])).expand(like.shape)

    def _retained(self, distances: list[Tensor], begin: int) -> Tensor:
        """The tokens ``[B, Hkv, T]`` to keep as they are, without sinks: stores keep those anyway."""
        layout, rule = self.layout, self.layout.rule
        visible = self._visible(begin, distances[0])
        starts = None if layout.starts is None else (layout.starts - begin).clamp_min(0)
        sink = visible & (torch.arange(visible.shape[2], device=visible.device) < self._sinks_end(begin))
        if rule.retain == "topk":
            distance = torch.maximum(*distances).masked_fill(
                sink, torch.nan
            )  # sinks are among the ceil(gamma T)
            mask = minicache_retain(distance, rule.gamma, mode="topk", sinks=0, starts=starts)
        else:
            mask = self._above(distances, begin, starts, sink)
        few = [count < LEAST_TOKENS for count in self._counts(begin, visible.shape[2])]
        if any(few):
            mask = mask | (visible & torch.tensor(few, device=mask.device)[:, None, None])
        if rule.share_heads:
            mask = mask.any(1, keepdim=True).expand_as(mask)
        return mask & ~sink

    def _sinks_end(self, begin: int):
        """Where sinks end, counted from position ``begin``: a number, or one a sequence ``[B, 1, 1]``."""
        starts = self.layout.starts
        end = self.layout.sinks - begin
        return end if starts is None else end + starts[:, None, None]

    def _counts(self, begin: int, tokens: int) -> list[int]:
        """Of so many tokens from ``begin`` on, those that every sequence sees."""
        starts = self.layout.host_starts
        return [begin + tokens - max(begin, start) for start in starts]

    def _above(self, distances: list[Tensor], begin: int, starts, sink: Tensor) -> Tensor:
        """Tokens beyond their head's threshold, which the first tokens that are merged set."""
        rule, batch = self.layout.rule, len(sink)
        if self._thresholds is None:
            self._thresholds = sink.new_full((2, *sink.shape[:2]), torch.inf, dtype=torch.float32)
            self._frozen = [False] * batch
        counts = self._counts(begin, sink.shape[2])
        first = [
            count >= LEAST_TOKENS and not frozen for count, frozen in zip(counts, self._frozen, strict=True)
        ]
        fresh = torch.tensor(first, device=sink.device)[:, None]
        above = torch.zeros_like(sink)
        for limit, x in zip(self._thresholds, distances, strict=True):
            if any(first):
                limit.copy_(torch.where(fresh, minicache_threshold(x, rule.gamma, starts=starts), limit))
            x = x.masked_fill(sink, _BELOW)
            above |= minicache_retain(x, rule.gamma, sinks=0, starts=starts, threshold=limit)
        if any(self._frozen):
            key = torch.maximum(*distances).masked_fill(~above, _BELOW)
            cap = max(_PAGE_CAP, rule.gamma)  # gamma 1 retains everything
            capped = minicache_retain(
                key, sinks=0, starts=starts, threshold=_BELOW, cap=cap, page=self.layout.page
            )
            above = torch.where(fresh[..., None], above, capped)
        self._frozen = [old or new for old, new in zip(self._frozen, first, strict=True)]
        return above

    def _write(self, segment: Segment, begin: int, sides, mask: Tensor) -> None:
        """Directions and norms of one segment into its slab's pages."""
        layout, slab = self.layout, self.layout.slabs[segment.slab]
        table = slab.table.table
        assert table is not None, "a segment is planned once its slab has pages"
        rows = slice(segment.begin - begin, segment.end - begin)
        hidden = mask[:, :, rows].transpose(1, 2)
        keys, values = self.stores[0].pools[segment.slab]
        k, v = (side[0][:, rows].masked_fill(hidden[..., None], 0) for side in sides)
        kv_append(
            *keys.tensors,
            *values.tensors,
            table,
            segment.seq_lens,
            k,
            v,
            k_codec=keys.codec.write_code,
            v_codec=values.codec.write_code,
            starts=segment.starts,
        )
        first, last = ((at - slab.first) // layout.page for at in (segment.begin, segment.end))
        pages = table[:, first:last].long()
        for pool, side in ((keys, sides[0]), (values, sides[1])):
            assert isinstance(pool, PairPool), "made after the pair was merged"
            for to, norm in zip(pool.norms, side[1:3], strict=True):
                norm = norm[:, rows].masked_fill(hidden, torch.nan) if pool is keys else norm[:, rows]
                to[pages] = norm.unflatten(1, (-1, layout.page)).transpose(2, 3)

    def _keep(self, mask: Tensor, begin: int, tokens) -> None:
        most = int(mask.sum(-1).max()) if mask.numel() else 0
        if not most:
            return
        last = self.kept[-1] if self.kept else None
        if last is not None and last.most + most > last.capacity:
            last.most = int(last.counts.max())
        if last is None or last.most + most > last.capacity:
            # Growth adds a buffer: nothing is copied as long as there may be more parts.
            room = 0
            if last is not None:
                ahead = 4 * last.capacity if len(self.kept) > 1 else last.capacity // 4
                room = max(2 * self.layout.page, ahead)
            last = Retained(begin, max(most, room), tokens[0][0])
            self.kept.append(last)
        last.add(mask, begin, most, tokens)

    def _join(self) -> None:
        """Make one of the oldest buffers until slabs leave room for all: each is a part, and long texts have many."""
        most = max(_MOST_PARTS - _OTHER_PARTS - len(self.layout.slabs), 1)
        while len(self.kept) > most:
            self.kept[:2] = [self.kept[0].joined(self.kept[1])]
            self._where = None

    # ---- Reading.

    def parts(self, side: int) -> list[Part]:
        """Retained tokens, as the lower (0) or upper (1) layer reads them."""
        if not self.kept:
            return []
        where, base, parts = self._places(), 0, []
        for kept in self.kept:
            parts.append(kept.part(side, where, base))
            base += kept.capacity
        return parts

    def _places(self) -> Tensor:
        """Where every position is retained, -1 where it is not: ``[B, Hkv, positions]``."""
        layout = self.layout
        if self._where is None or self._where[0] != layout.version:
            # Until the version changes, positions reach as far as the tail has room.
            reach = max(layout.length, layout.packed - layout.tail_begin + layout.tail_capacity)
            where, base = self.kept[0].counts.new_full((*self.kept[0].counts.shape, reach + 1), -1), 0
            for kept in self.kept:
                index = torch.where(kept.live(), kept.positions, reach).long()
                slots = torch.arange(base, base + kept.capacity, dtype=torch.int32, device=where.device)
                where.scatter_(2, index, slots.expand_as(index))
                base += kept.capacity
            self._where = (layout.version, where)
        return self._where[1]

    # ---- Changes between forwards.

    def crop(self, cut: int) -> None:
        """Forget what was retained from position ``cut`` on. Sequences without tokens get new thresholds."""
        self.kept = [kept for kept in self.kept if kept.begin < cut]
        for kept in self.kept:
            kept.crop(cut)
        ends = zip(self._frozen, self.layout.lengths, strict=False)
        self._frozen = [bool(frozen and length) for frozen, length in ends]
        self._where = None

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        for kept in self.kept:
            kept.select(rows)
        if self._thresholds is not None:
            self._thresholds = self._thresholds[:, rows]
            self._frozen = [self._frozen[row] for row in rows.tolist()]
        self._where = None

    # ---- What is told.

    def describe(self) -> str:
        """One line on what was measured and decided."""
        keys, values = self.distance or (torch.nan, torch.nan)
        return (
            f"layers {self.layers[0]} and {self.layers[1]} {'merged' if self.merged else 'kept apart'}: distance of "
            f"keys {keys:.3f}, of values {values:.3f}"
        )

    def live_bytes(self) -> int:
        """Bytes of retained tokens, their positions, and 4 per position to find them where they are selected."""
        if not self.kept:
            return 0
        places = self.kept[0].counts.numel() * self.layout.length * 4
        return sum(kept.live_bytes() for kept in self.kept) + places

    def reread_bytes(self, packed: int) -> int:
        """Bytes that both layers read, of so many packed tokens and of what is retained; norms are a layer's own."""
        lower, layout = self.stores[0], self.layout
        token, group, fixed = layout.packed_bytes(lower.kv_heads, lower.dim, lower.itemsize)
        positions = sum(int(kept.counts.sum()) * kept.positions.element_size() for kept in self.kept)
        return packed * token + packed // layout.group * group + fixed + positions

    def allocated_bytes(self) -> int:
        """Bytes of the buffers of retained tokens."""
        places = 0 if self._where is None else self._where[1].numel() * 4
        return sum(kept.allocated_bytes() for kept in self.kept) + places
