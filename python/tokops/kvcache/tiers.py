"""Slots that every KV head fills in an order of its own, in one precision: pools, and moving tokens between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import Part
from ._kv_transfer import kv_transfer
from .codec import Codec


def listed(mask: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices in the last dimension where ``mask [B, Hkv, n]`` holds, in order, and how many: a list per KV head.

    Args:
        most: length of the lists; None is n. Entries beyond the count are 0.
    """
    n = mask.shape[-1]
    rank = mask.cumsum(-1) - 1
    out = rank.new_zeros(*mask.shape[:-1], n + 1)
    index = torch.arange(n, device=mask.device).expand_as(rank)
    out.scatter_(-1, torch.where(mask, rank, n), index)
    return out[..., : n if most is None else min(most, n)], mask.sum(-1, dtype=torch.int32)


def within(counts: Tensor, n: int) -> Tensor:
    """Which entries of lists of length n count, ``[B, Hkv, n]``."""
    return torch.arange(n, device=counts.device) < counts[..., None]


def put_(x: Tensor, index: Tensor, values: Tensor, live: Tensor) -> None:
    """``x[..., index] = values`` where ``live``, in place; no index is live twice."""
    n = x.shape[-1]
    spare = torch.cat([x, x[..., :1]], -1)
    spare.scatter_(-1, torch.where(live, index, n), values.to(x.dtype))
    x.copy_(spare[..., :n])


@dataclass
class Source:
    """Pools that tokens are moved out of; they are slots ``[first, first + span)`` to whoever lists them."""

    pools: tuple[Tensor, ...]  # k_codes, k_scale, k_zero, v_codes, v_scale, v_zero, table
    codec: int
    first: int
    span: int


def plain_source(k: Tensor, v: Tensor, rows: Tensor, first: int) -> Source:
    """Keys and values ``[B, Hkv, n, D]`` in full precision as a source; ``rows [B, 1]`` numbers the sequences."""
    none = k.new_empty(0)
    return Source((k, none, none, v, none, none, rows), Codec("full").write_code, first, k.shape[2])


@dataclass
class Slab:
    """Pages of the slots ``[first, first + span)`` of every KV head. Growth adds a slab: tokens are never copied."""

    first: int
    pools: tuple[Tensor, ...]  # k_codes, k_scale, k_zero, v_codes, v_scale, v_zero: one head per page
    table: Tensor  # [B, Hkv, pages]
    positions: Tensor  # [B, Hkv, span]
    lens: Tensor  # [B, Hkv]
    own: bool = True  # every page of the pools is held by one sequence

    @property
    def span(self) -> int:
        return self.positions.shape[2]

    @property
    def end(self) -> int:
        return self.first + self.span

    def take_own(self) -> None:
        """Give every sequence pages of its own before it writes."""
        if self.own:
            return
        pages = self.table.flatten().long()
        self.pools = tuple(x[pages] if x.dim() == 4 else x for x in self.pools)
        self.table = torch.arange(len(pages), dtype=torch.int32, device=pages.device).view_as(self.table)
        self.own = True


class Tier:
    """The tokens of one layer that are kept with one codec.

    Slots below ``lens [B, Hkv]`` are in use. Lengths are also bounded on the host, so that room is made without
    waiting for a device.

    Args:
        codec: of keys and of values.
        page: tokens per page.
        base: number of the tier's first slot in a store's ``where``.
    """

    def __init__(self, codec: Codec, page: int, base: int):
        self.codec, self.page, self.base = codec, page, base
        self.slabs: list[Slab] = []

    def start(self, batch: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        """Hold nothing of so many sequences."""
        self.slabs = []
        self.heads, self.dim, self.dtype, self.device = heads, dim, dtype, device
        self.lens = torch.zeros(batch, heads, dtype=torch.int32, device=device)
        self.least, self.most = [0] * batch, [0] * batch

    @property
    def capacity(self) -> int:
        return self.slabs[-1].end if self.slabs else 0

    @property
    def positions(self) -> Tensor:
        """Logical positions of all slots ``[B, Hkv, capacity]``; of free slots any."""
        if not self.slabs:
            return torch.zeros(*self.lens.shape, 0, dtype=torch.int32, device=self.device)
        if len(self.slabs) == 1:
            return self.slabs[0].positions
        return torch.cat([slab.positions for slab in self.slabs], -1)

    def sources(self, end: int) -> list[Source]:
        """The slabs, to move tokens out of; their slots below ``end``."""
        code = self.codec.write_code
        slabs = [slab for slab in self.slabs if slab.first < end]
        return [Source((*s.pools, s.table), code, s.first, min(s.span, end - s.first)) for s in slabs]

    def reserve(self, tokens: int, span: int) -> None:
        """Have slots for ``tokens`` of every KV head; where there are not, add ``span`` or what is missing."""
        missing = tokens - self.capacity
        if missing <= 0:
            return
        pages = -(-max(missing, span) // self.page)
        batch = len(self.lens)
        count = batch * self.heads * pages
        pool = [self.codec.empty(count, 1, self.page, self.dim, self.dtype, self.device) for _ in range(2)]
        table = torch.arange(count, dtype=torch.int32, device=self.device).view(batch, self.heads, pages)
        positions = torch.zeros(batch, self.heads, pages * self.page, dtype=torch.int32, device=self.device)
        lens = torch.zeros_like(self.lens)
        self.slabs.append(Slab(self.capacity, (*pool[0], *pool[1]), table, positions, lens))

    def receive(
        self, sources: Sequence[Source], slots_from: Tensor, slots_to: Tensor, counts: Tensor, least: int = 0
    ) -> None:
        """Copy tokens in, coded anew unless they come from the same codec.

        Args:
            sources: where they are.
            slots_from, slots_to: ``[B, Hkv, n]`` int64 lists, of which the first ``counts [B, Hkv]`` count.
            least: a number that no slot is below.
        """
        n = slots_from.shape[-1]
        targets = [slab for slab in self.slabs if slab.end > least]
        if n == 0 or not targets:
            return
        code = self.codec.write_code
        for slab in targets:
            slab.take_own()
        for source in sources:
            for slab in targets:
                lists = slots_from - source.first, slots_to - slab.first, counts
                if len(sources) > 1 or len(targets) > 1:
                    lists = _narrowed(*lists, source.span, slab.span)
                kv_transfer(
                    source.pools,
                    (*slab.pools, slab.table),
                    *(x.int() for x in lists),
                    source_codecs=(source.codec, source.codec),
                    target_codecs=(code, code),
                )

    def enter(
        self,
        sources: Sequence[Source],
        slots: Tensor,
        place: Tensor,
        counts: Tensor,
        where: Tensor,
        free: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take tokens in: lists of slots of the sources, of which the first ``counts`` count.

        They go into the ``free`` slots, a list and how much of it counts, and then behind the last. ``place`` are
        the positions of the sources' slots.
        """
        rank = torch.arange(slots.shape[-1], device=slots.device)
        to = self.lens[..., None] + rank
        least = min(self.least, default=0)
        if free is None:
            lens = self.lens + counts
        else:
            lens = self.lens + counts - free[1]
            if free[0].shape[-1]:
                least = 0
                again = free[0][..., rank.clamp_max(free[0].shape[-1] - 1)]
                to = torch.where(rank < free[1][..., None], again, to - free[1][..., None])
        self.receive(sources, slots, to, counts, least)
        self.place(to, place.gather(-1, slots), counts, where, least)
        self.set_lens(lens)

    def place(self, slots: Tensor, positions: Tensor, counts: Tensor, where: Tensor, least: int = 0) -> None:
        """Note which positions are in slots now: lists ``[B, Hkv, n]`` and how much of them counts."""
        live = within(counts, slots.shape[-1])
        put_(where, positions.long(), slots + self.base, live)
        for slab in self.slabs:
            if slab.end > least:
                index = slots - slab.first
                put_(slab.positions, index, positions, live & (index >= 0) & (index < slab.span))

    def set_lens(self, lens: Tensor) -> None:
        """Have so many slots in use."""
        self.lens = lens
        for slab in self.slabs:
            slab.lens = (lens - slab.first).clamp(0, slab.span)

    def remove(self, dead: Tensor, most: int, where: Tensor) -> None:
        """Free slots ``dead [B, Hkv, n]`` of the first n, at most ``most`` of a head; the last tokens fill the holes.

        n is no less than the longest length. ``where`` of what was in them is the caller's to change.
        """
        slot = torch.arange(dead.shape[-1], device=self.device)
        used = slot < self.lens[..., None]
        dead = dead & used
        lens = self.lens - dead.sum(-1, dtype=torch.int32)
        kept = slot < lens[..., None]
        holes, counts = listed(dead & kept, most)
        movers, _ = listed(used & ~dead & ~kept, most)
        self.receive(self.sources(len(slot)), movers, holes, counts)
        self.place(holes, self.positions.gather(-1, movers), counts, where)
        self.set_lens(lens)

    def shrink(self) -> None:
        """Look at the lengths, and give back slabs that nobody uses."""
        self.least, self.most = self.lens.amin(-1).tolist(), self.lens.amax(-1).tolist()
        while self.slabs and self.slabs[-1].first >= max(self.most, default=0):
            self.slabs.pop()

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given; pages are shared until they are written to."""
        for slab in self.slabs:
            slab.table, slab.positions = slab.table[rows], slab.positions[rows]
            slab.own = False
        kept = rows.tolist()
        self.least, self.most = [self.least[r] for r in kept], [self.most[r] for r in kept]
        self.set_lens(self.lens[rows])

    def take_own(self) -> None:
        """Give every sequence pages of its own."""
        for slab in self.slabs:
            slab.take_own()

    def parts(self, where: Tensor) -> list[Part]:
        """What the attention op reads."""
        parts = []
        for slab in self.slabs:
            k, k_scale, k_zero, v, v_scale, v_zero = (x if x.numel() else None for x in slab.pools)
            if k is None or v is None:
                continue
            code = self.codec.code
            scales = {"k_scale": k_scale, "k_zero": k_zero, "v_scale": v_scale, "v_zero": v_zero}
            places = {"positions": slab.positions, "where": where, "slot_base": self.base + slab.first}
            parts.append(Part(k, v, slab.table, slab.lens, code, code, **scales, **places))
        return parts

    # ---- Bytes.

    @property
    def token_bytes(self) -> int:
        """Of one token of one KV head: keys and values with their scales and zeros."""
        codec = self.codec
        row = codec.row_bytes(self.dim, self.dtype.itemsize)
        if codec.kind != "full":
            row += self.dim // codec.group * codec.scale_dtype.itemsize * (2 if codec.has_zero else 1)
        return 2 * row

    def live_slots(self) -> int:
        """Slots in use of all heads, those that sequences share once."""
        total = 0
        for slab in self.slabs:
            _, owner = slab.table[:, 0, 0].unique(return_inverse=True)
            lens = slab.lens.sum(-1)
            total += int(lens.new_zeros(len(lens)).scatter_reduce(0, owner, lens, "amax").sum())
        return total

    def index_bytes(self) -> int:
        """Of page tables."""
        return sum(slab.table.numel() * 4 for slab in self.slabs)

    def allocated_bytes(self) -> int:
        """Of pools, page tables and positions."""
        return self.index_bytes() + sum(
            sum(x.numel() * x.element_size() for x in (*slab.pools, slab.positions)) for slab in self.slabs
        )


def _narrowed(slots_from, slots_to, counts, source_span, target_span):
    """Of lists of moves those from and to slots within the spans, in order, and how many they are."""
    inside = within(counts, slots_from.shape[-1])
    for slots, span in ((slots_from, source_span), (slots_to, target_span)):
        inside = inside & (slots >= 0) & (slots < span)
    order, counts = listed(inside)
    return slots_from.gather(-1, order), slots_to.gather(-1, order), counts
