"""Where the tokens of quantised layers are: host bookkeeping that all layers of a cache share.

A sequence of ``length`` tokens is cut by position. Up to ``packed`` its tokens are in packed pages, except the first
visible ones, its sinks; from there on they are in a tail of full precision, or, while a prompt is being read, in the
prompt's own tensors. All sequences of a batch are cut at the same position; left padding is counted in ``starts``.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .pages import PageTable

_FIRST_SLAB = 1024  # tokens of the first slab behind a prompt; later ones double
_SHORT_PROMPT = 256  # tokens below which a prompt has no slab of its own
_SPARE = 64  # slots of a tail beyond what it must hold


@dataclass
class Slab:
    """Packed pages of the positions ``[first, first + span)``. Growth adds a slab: history is never copied.

    ``copies`` are pages (source, target) that layers must copy before they write or read in this forward.
    """

    first: int
    span: int
    table: PageTable
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.first + self.table.length


@dataclass(frozen=True)
class Segment:
    """Positions ``[begin, end)`` to be packed into one slab, and what the writing op is told.

    ``starts`` are slots of padding and sinks, which share no scale with the others.
    """

    slab: int
    begin: int
    end: int
    seq_lens: Tensor
    starts: Tensor | None


class Layout:
    """The cut of every sequence, moved forward as tokens are committed.

    Tokens that are in the cache when a forward begins are committed: drafts that were rejected are cropped before.
    Only committed tokens are packed, ``unit`` at a time, and ``residual`` of them stay in full precision.

    Args:
        page: tokens per packed page.
        sinks: first visible tokens of every sequence that are kept in full precision.
        residual: newest committed tokens that are kept in full precision.
        unit: tokens that are packed together; 1, or a multiple of the tokens that share a scale.
        restores: whether packed tokens of a unit that is cut by a crop must return to the tail.
    """

    seq_lens: Tensor  # of all the tensors below: made when the first tokens come
    device: torch.device

    def __init__(self, page: int, sinks: int, residual: int, unit: int, restores: bool):
        self.page, self.sinks, self.residual, self.unit, self.restores = page, sinks, residual, unit, restores
        self.group = unit
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.length = self.packed = self.batch = 0
        self.layers = 0
        # Bytes in all layers: of a packed token, of a group of them, of a full token, and of what is held once.
        self.packed_token_bytes = self.group_bytes = self.full_token_bytes = self.fixed_bytes = 0
        self.slabs: list[Slab] = []
        self._slab_tensors: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.starts: Tensor | None = None
        self._host_starts: list[int] = []
        self.tail_begin = self.tail_end = 0
        self.tail_capacity = self.residual + self.unit + _SPARE
        self._absorbed: int | None = (
            None  # where the cut will be once layers have absorbed the prompt at work
        )
        # What the layers do in this forward.
        self.before: list[Segment] = []
        self.after: list[Segment] = []
        self.before_slot = 0
        self.tail_move: tuple[int, int] | None = None
        self.pending = self.past = 0
        self.version = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every sequence."""
        return np.full(self.batch, self.length, np.int64)

    @property
    def shortest(self) -> int:
        """The smallest length."""
        return self.length

    # ---- A forward.

    def begin(self, batch: int, rows: int, prompt_rows: int, device: torch.device) -> None:
        """Plan a forward of new tokens: what to pack before and after it, and where the new tokens go."""
        self._settle()
        if not self.batch:
            self.batch, self.device = batch, device
            self._make_tensors()
        elif batch != self.batch:
            raise ValueError(f"the cache holds {self.batch} sequences, the new tokens are for {batch}")
        for slab in self.slabs:
            slab.copies.clear()
        self.past = self.length
        self.before_slot, target = self.tail_begin, self._target(self.length)
        self.before = self._plan(self.packed, target)
        self.tail_begin += target - self.packed
        self.packed = target
        self.length += rows
        self.pending, self.after, self.tail_move = 0, [], None
        if prompt_rows:
            self.pending = rows
            self._absorbed = self._target(self.past + prompt_rows)
            self.after = self._plan(self.packed, self._absorbed)
            self.version += 1
        else:
            self._grow_tail(rows)
            self.tail_end += rows
        self._place()

    def _target(self, committed: int) -> int:
        """Where the cut is once so many tokens are committed."""
        units = max(committed - self.residual, 0) // self.unit
        return max(units * self.unit, self.packed)

    def _plan(self, begin: int, end: int) -> list[Segment]:
        segments = []
        while begin < end:
            slab = self.slabs[-1] if self.slabs else None
            if slab is None or begin == slab.first + slab.span:
                slab = self._new_slab(begin, end)
            stop = min(end, slab.first + slab.span)
            slab.table.advance(self.batch, stop - begin, self.device)
            if slab.table.copies is not None:
                slab.copies.append(slab.table.copies)
            lens = torch.full((self.batch,), stop - slab.first, dtype=torch.int32, device=self.device)
            index = len(self.slabs) - 1
            segments.append(Segment(index, begin, stop, lens, self._slab_tensors[index][2]))
            begin = stop
            self.version += 1
        return segments

    def _new_slab(self, begin, end):
        span = end - begin
        if self.slabs or span < _SHORT_PROMPT:
            span = max(span, _FIRST_SLAB, 2 * self.slabs[-1].span if len(self.slabs) > 1 else 0)
        span = -(-span // self.page) * self.page
        slab = Slab(begin, span, PageTable(self.page, reserve=span))
        self.slabs.append(slab)
        self._slab_tensors.append(self._tensors_of(slab))
        return slab

    def _grow_tail(self, rows):
        """Room for new tokens: moved to the front where that is enough, else into a larger buffer."""
        count = self.tail_end - self.tail_begin
        if self.tail_end + rows <= self.tail_capacity:
            return
        if count + rows > self.tail_capacity:
            self.tail_capacity = count + rows + _SPARE
        self.tail_move = (self.tail_begin, count)
        self.tail_begin, self.tail_end = 0, count
        self.version += 1

    def _settle(self):
        """Once a prompt is absorbed its tokens are packed, or alone in fresh tails."""
        if self._absorbed is None:
            return
        self.tail_capacity = self.absorbed_capacity
        self.packed, self._absorbed = self._absorbed, None
        self.tail_begin, self.tail_end = 0, self.length - self.packed
        self.pending, self.before, self.after, self.tail_move = 0, [], [], None
        self.version += 1

    @property
    def absorbed(self) -> int:
        """Where the cut will be once the prompt at work is absorbed."""
        return self.packed if self._absorbed is None else self._absorbed

    @property
    def absorbed_capacity(self) -> int:
        """Slots of the tails that layers make when they absorb a prompt."""
        return self.length - self.absorbed + self.unit + _SPARE

    def see_starts(self, starts: Tensor | None) -> None:
        """Note the first visible position of every sequence; every layer of a prompt tells, before it absorbs.

        A prompt may come in pieces, the first ones all padding. It is known where a sequence starts once a piece
        has a token of it.
        """
        if starts is None or (self.starts is None and self.past):
            return
        known = [start < self.past for start in self._host_starts] or [False] * self.batch
        if all(known):
            return
        told = starts.tolist()
        host = [old if k else new for old, new, k in zip(self.host_starts, told, known, strict=True)]
        if host == self._host_starts:
            return
        self._host_starts = host
        self.starts = torch.tensor(host, dtype=torch.int32, device=self.device)
        self._make_tensors()
        self.after = [replace(s, starts=self._slab_tensors[s.slab][2]) for s in self.after]
        self._place()

    @property
    def host_starts(self) -> list[int]:
        """First visible position of every sequence."""
        return self._host_starts or [0] * self.batch

    @property
    def sink_end(self) -> int:
        """The position behind the last sink of all sequences."""
        return max(self._host_starts, default=0) + self.sinks

    # ---- The device's view of the cut, updated in place so that layers may keep what they read with.

    def _make_tensors(self):
        def ints(value=0):
            return torch.full((self.batch,), value, dtype=torch.int32, device=self.device)

        self.rows = torch.arange(self.batch, dtype=torch.int32, device=self.device)[:, None]
        self.seq_lens = ints(self.length)
        self.sink_first = ints() if self.starts is None else self.starts
        self.sink_lens = ints()
        self.tail_first, self.tail_lens, self.tail_slot = ints(), ints(), ints()
        self.pending_first, self.pending_lens = ints(), ints()
        self._slab_tensors = [self._tensors_of(slab) for slab in self.slabs]
        self.version += 1

    def _tensors_of(self, slab):
        """(lens, first, begin) of one slab; begin leaves out the sinks and what lies before them."""
        lens = torch.zeros(self.batch, dtype=torch.int32, device=self.device)
        begin = None
        if self.sink_end > slab.first:
            begin = (self.sink_first + (self.sinks - slab.first)).clamp_min(0).int()
        return lens, torch.full_like(lens, slab.first), begin

    def _place(self):
        self.seq_lens.fill_(self.length)
        if self.sinks:
            torch.clamp(self.packed - self.sink_first, 0, self.sinks, out=self.sink_lens)
        for slab, (lens, _, _) in zip(self.slabs, self._slab_tensors, strict=True):
            lens.fill_(min(max(self.packed - slab.first, 0), slab.span))
        self.tail_first.fill_(self.packed - self.tail_begin)
        self.tail_slot.fill_(self.tail_begin)
        self.tail_lens.fill_(self.tail_end)
        self.pending_first.fill_(self.past)
        self.pending_lens.fill_(self.pending)

    def slab_tensors(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """lens, first and begin of one slab, as a :class:`~tokops.attention.Part` has them."""
        return self._slab_tensors[index]

    # ---- Changes between forwards.

    def crop(self, tokens: int) -> tuple[int, int]:
        """Forget the last tokens; returns positions ``[a, b)`` that layers must decode back into empty tails."""
        self._settle()
        length = self.length - tokens
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot remove {tokens} of {self.length} cached tokens")
        self.length = self.past = length
        restored = (length, length)
        if length >= self.packed:
            self.tail_end = self.tail_begin + length - self.packed
        else:
            self.packed = length
            if self.restores and length % self.group:
                self.packed = length // self.group * self.group
                restored = (self.packed, length)
            self.tail_begin, self.tail_end = 0, length - self.packed
        self.version += 1
        if self.batch:
            self._place()
        return restored

    def drop_pages(self) -> None:
        """Give back the pages behind the cut, once layers have read what they must of them."""
        while self.slabs and self.slabs[-1].first >= self.packed:
            self.slabs.pop()
            self._slab_tensors.pop()
        if self.slabs and self.slabs[-1].end > self.packed:
            self.slabs[-1].table.crop(self.slabs[-1].end - self.packed)
        self.version += 1

    def select(self, rows: list[int]) -> None:
        """Keep the sequences ``rows``, in that order; packed pages are shared, not copied."""
        self._settle()
        if not self.batch:
            return
        for slab in self.slabs:
            slab.table.select(rows)
        if self.starts is not None:
            self.starts = self.starts[torch.tensor(rows, device=self.device, dtype=torch.long)]
            self._host_starts = [self._host_starts[row] for row in rows]
        self.batch = len(rows)
        self._make_tensors()
        self._place()

    def unshare(self) -> None:
        """Give every sequence pages of its own; layers must then follow the slabs' copies."""
        self._settle()
        for slab in self.slabs:
            slab.table.unshare()
            slab.copies = [slab.table.copies] if slab.table.copies is not None else []
            slab.table.copies = None
        self.version += 1

    # ---- What is told.

    def notes(self) -> list[str]:
        """What stores have found out and decided, a line each."""
        return []

    # ---- Bytes, of all layers that follow this layout.

    def _bytes(self, packed_tokens: int, sinks: int, tail: int, entries: int) -> int:
        packed = packed_tokens * self.packed_token_bytes + packed_tokens // self.group * self.group_bytes
        full = (sinks + tail) * self.full_token_bytes
        return packed + full + 4 * entries + self.fixed_bytes

    def live_bytes(self) -> int:
        """Codes, scales and zeros of packed tokens, sinks and tail in full precision, page tables."""
        sinks = sum(min(max(self.absorbed - start, 0), self.sinks) for start in self.host_starts)
        tokens = sum(slab.table.live_tokens() for slab in self.slabs)
        entries = sum(slab.table.pages.size for slab in self.slabs)
        return self._bytes(tokens, sinks, (self.length - self.absorbed) * self.batch, entries)

    def allocated_bytes(self) -> int:
        """Bytes of pools, sinks, tails and tables."""
        capacity = self.tail_capacity if self._absorbed is None else self.absorbed_capacity
        tokens = sum(slab.table.capacity * self.page for slab in self.slabs)
        entries = sum(slab.table.entries_allocated for slab in self.slabs)
        return self._bytes(tokens, self.sinks * self.batch, capacity * self.batch, entries)

    def full_bytes(self) -> int:
        """Bytes of all sequences' tokens in the model's dtype."""
        return self.length * self.batch * self.full_token_bytes

    def live_tokens(self) -> int:
        """Tokens held, each packed one once however many sequences share it."""
        packed = sum(slab.table.live_tokens() for slab in self.slabs)
        return packed + (self.length - self.absorbed) * self.batch
