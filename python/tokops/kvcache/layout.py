"""Where the tokens of quantised layers are: host bookkeeping that all layers of a cache share.

A sequence is cut by position. Up to ``packed`` its tokens are in packed pages, except the first
visible ones, its sinks; from there on they are in a tail of full precision, or, while a prompt is being read, in the
prompt's own tensors. All sequences of a batch are cut at the same position, however long they are.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .lengths import UNLIMITED, Lengths
from .pages import PageTable
from .slabs import Segment, Slab

_FIRST_SLAB = 1024  # tokens of the first slab behind a prompt; later ones double
_SHORT_PROMPT = 256  # tokens below which a prompt has no slab of its own
_SPARE = 64  # slots of a tail beyond what it must hold


class Layout(Lengths):
    """The cut of every sequence, moved forward as tokens are committed.

    Tokens that are in the cache when a forward begins are committed: drafts that were rejected are cropped before, or
    not kept. Only committed tokens are packed, ``unit`` at a time, and ``residual`` of them stay in full precision.

    A tree of drafts must be read as if each of its paths were decoded token by token. Where ``unit`` is 1 and
    nothing stays in full precision, a token would be packed as soon as the next one comes: in a draft's forward all
    of the tail is read as it will be packed (``codes_tail``), but for what a token sees of itself. Otherwise
    :meth:`room` says how far a sequence may go before others are packed than one by one.

    Args:
        page: tokens per packed page.
        sinks: first visible tokens of every sequence that are kept in full precision.
        residual: newest committed tokens that are kept in full precision.
        unit: tokens that are packed together; 1, or a multiple of the tokens that share a scale.
        restores: whether packed tokens of a unit that is cut by a crop must return to the tail.
    """

    seq_lens: Tensor  # of all the tensors below: made when the first tokens come

    def __init__(self, page: int, sinks: int, residual: int, unit: int, restores: bool):
        self.page, self.sinks, self.residual, self.unit, self.restores = page, sinks, residual, unit, restores
        self.group = unit
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.version = 0
        self._empty(0)

    def _empty(self, batch: int) -> None:
        """Hold nothing of so many sequences, whose layers count their bytes again."""
        self._start(batch)
        self.batch, self.packed, self.layers = batch, 0, 0
        # Bytes in all layers: of a packed token, of a group of them, of a full token, and of what is held once.
        self.packed_token_bytes = self.group_bytes = self.full_token_bytes = self.fixed_bytes = 0
        self.slabs: list[Slab] = []
        self._slab_tensors: list[tuple[Tensor, Tensor, Tensor | None]] = []
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
        self.cropped_tail: tuple[int, int] = (0, 0)
        self.pending = self.past = 0

    # ---- A forward.

    def begin(
        self,
        batch: int,
        rows: int,
        prompt_rows: int,
        device: torch.device,
        draft: bool = False,
        depths: Tensor | None = None,
    ) -> None:
        """Plan a forward of new tokens: what to pack before and after it, and where the new tokens go.

        The tokens of a ``draft``, which has no prompt rows, are behind the end of each sequence until :meth:`keep`;
        ``depths [B, rows]`` are those of its nodes, None those of a chain.
        """
        self._settle()
        self._depths = None if depths is None else depths.long()
        if not self.batch:
            self.batch, self.device = batch, device
            self._start(batch)
            self._make_tensors()
        elif batch != self.batch:
            raise ValueError(f"the cache holds {self.batch} sequences, the new tokens are for {batch}")
        for slab in self.slabs:
            slab.copies.clear()
        self.past = self.length
        self.before_slot, target = self.tail_begin, self._target(self.committed)
        self.before = self._plan(self.packed, target)
        self.tail_begin += target - self.packed
        self.packed = target
        self._add(rows, draft)
        self.pending, self.after, self.tail_move = 0, [], None
        if prompt_rows:
            self.pending = rows
            self._absorbed = self._target(self.past + prompt_rows)
            self.after = self._plan(self.packed, self._absorbed)
            self.version += 1
        else:
            self._grow_tail(rows)
            self.tail_end += rows
            self.version += draft
        self._place()

    @property
    def codes_tail(self) -> bool:
        """Whether a draft at work reads the tail as it will be packed."""
        return self.nodes > 0 and self._packs_at_once

    @property
    def _packs_at_once(self):
        return self.unit == 1 and self.residual == 0

    def room(self) -> list[int]:
        """How many tokens every sequence may commit until more are packed; 0 for one that is ahead of others."""
        if self._packs_at_once:
            return [UNLIMITED] * self.batch
        cut = self._target(self.committed)
        return self._room(max((cut // self.unit + 1) * self.unit, self._first_cut) + self.residual)

    def keep(self, nodes: int, counts: np.ndarray, change: Tensor) -> None:
        """Of the last ``nodes`` tokens of every sequence hold ``counts [B]``; layers have moved them up."""
        self._keep(nodes, counts)
        self.past = self.length
        self.tail_end = self.tail_begin + max(self.length - self.packed, 0)
        self.version += 1
        self._place()

    def finish(self, done: Sequence[bool]) -> None:
        """Say which sequences get no more tokens."""
        self._finish(done, self.packed)

    def _target(self, committed: int) -> int:
        """Where the cut is once so many tokens are committed."""
        cut = max(committed - self.residual, 0) // self.unit * self.unit
        return max(cut if cut >= self._first_cut else 0, self.packed)

    @property
    def _first_cut(self) -> int:
        """Before it nothing is packed."""
        return 0

    def _plan(self, begin: int, end: int) -> list[Segment]:
        segments = []
        while begin < end:
            slab = self.slabs[-1] if self.slabs else None
            if slab is None or begin == slab.first + slab.span:
                slab = self._new_slab(begin, end)
            stop, table = min(end, slab.first + slab.span), slab.table.table
            slab.table.advance(self.batch, stop - begin, self.device)
            if slab.table.copies is not None:
                slab.copies.append(slab.table.copies)
            lens = torch.full((self.batch,), stop - slab.first, dtype=torch.int32, device=self.device)
            index = len(self.slabs) - 1
            segments.append(Segment(index, begin, stop, lens, self._slab_tensors[index][2]))
            # Where single tokens are packed, most join pages that are read already: lengths are updated in place.
            self.version += self.unit > 1 or begin == slab.first or slab.table.table is not table
            begin = stop
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
        """Note the first visible position of every sequence; every layer of a prompt tells, before it absorbs."""
        if self._note_starts(starts):
            self._make_tensors()
            self.after = [replace(s, starts=self._slab_tensors[s.slab][2]) for s in self.after]
            self._place()

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
        if self.length == self.shortest:
            self.seq_lens.fill_(self.length)
            self.tail_lens.fill_(self.tail_end)
        else:
            ends = torch.from_numpy(self.ends(self.packed).astype(np.int32)).to(self.device)
            self.seq_lens.copy_(ends)
            self.tail_lens.copy_(ends + (self.tail_begin - self.packed))
        if self.codes_tail:
            self._place_codes()
        if self.sinks:
            torch.clamp(self.packed - self.sink_first, 0, self.sinks, out=self.sink_lens)
        for slab, (lens, _, _) in zip(self.slabs, self._slab_tensors, strict=True):
            lens.fill_(min(max(self.packed - slab.first, 0), slab.span))
        self.tail_first.fill_(self.packed - self.tail_begin)
        self.tail_slot.fill_(self.tail_begin)
        self.pending_first.fill_(self.past)
        self.pending_lens.fill_(self.pending)

    def _place_codes(self):
        """Where the tail's tokens are that a draft reads as codes, in slots of their own from the cut on.

        ``exact [B, tokens]`` are sinks among them, which stay as they are, or None. Whether a node is one goes by its
        depth.
        """
        self.codes_first = torch.full_like(self.seq_lens, self.packed)
        self.codes_lens = self.seq_lens - self.packed
        self.exact = None
        if self.packed < self.sink_end:
            slot = torch.arange(self.packed, self.length, device=self.device)
            first = (self.seq_lens - self.nodes)[:, None]
            node = (slot - first).clamp(0, self.nodes - 1)
            depth = node if self._depths is None else self._depths.gather(1, node)
            position = torch.where(slot < first, slot, first + depth)
            self.exact = position < self.sink_first[:, None] + self.sinks

    def slab_tensors(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """lens, first and begin of one slab, as a :class:`~tokops.attention.Part` has them."""
        return self._slab_tensors[index]

    # ---- Changes between forwards.

    def crop(self, tokens: int) -> tuple[int, int]:
        """Forget the last tokens of every sequence. A cache without tokens is as new, but for its batch size.

        Returns positions ``[a, b)`` that layers must decode back into new tails: those of a group that is cut, and,
        of sequences that are longer, those behind the end of the shortest. ``cropped_tail`` are slots of the old
        tails, first and count, to be kept behind them.
        """
        self.check_crop(tokens)
        self._settle()
        self._remove(tokens)
        if self.batch and not self.length:
            self._empty(self.batch)
            self._make_tensors()
            return 0, 0
        if self._crop_starts():
            self._make_tensors()
        self.past = length = self.length
        cut, old = min(self.committed, self.packed), self.packed
        restored = (length, length)
        if cut == old:
            self.tail_end = self.tail_begin + max(length - old, 0)
        else:
            if self.restores:
                cut = cut // self.group * self.group
            restored = (cut, min(old, length))
            self.cropped_tail = (self.tail_begin, max(length - old, 0))
            self.packed, self.tail_begin, self.tail_end = cut, 0, length - cut
            self.tail_capacity = max(self.tail_capacity, self.tail_end)
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
        self._choose(rows)
        self.past = self.length
        self.tail_end = self.tail_begin + max(self.length - self.packed, 0)
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
        return self._bytes(tokens, sinks, self._unpacked_tokens(), entries)

    def _unpacked_tokens(self):
        return int((self.ends(self.absorbed) - self.absorbed).sum())

    def allocated_bytes(self) -> int:
        """Bytes of pools, sinks, tails and tables."""
        capacity = self.tail_capacity if self._absorbed is None else self.absorbed_capacity
        tokens = sum(slab.table.capacity * self.page for slab in self.slabs)
        entries = sum(slab.table.entries_allocated for slab in self.slabs)
        return self._bytes(tokens, self.sinks * self.batch, capacity * self.batch, entries)

    def full_bytes(self) -> int:
        """Bytes of all sequences' tokens in the model's dtype."""
        return int(self.lengths.sum()) * self.full_token_bytes

    def live_tokens(self) -> int:
        """Tokens held, each packed one once however many sequences share it."""
        packed = sum(slab.table.live_tokens() for slab in self.slabs)
        return packed + self._unpacked_tokens()
