"""Which page holds which tokens of which sequence: host bookkeeping that layers share."""

import numpy as np
import torch
from torch import Tensor

_SLACK = 256  # tokens kept behind a sliding window, so that a rejected draft can be taken back


class PageTable:
    """Pages of a batch of sequences, in logical order.

    A page may be held by several sequences. It is copied when one of them writes to it. All layers that keep the
    same tokens share one table; the pools belong to the layers, which follow ``capacity`` and ``copies``.

    Every sequence has a length of its own and the pages that it needs. Lengths drift apart by :meth:`keep` and
    :meth:`join`; ``length`` is the largest.

    Args:
        size: tokens per page.
        window: tokens a layer looks back; older pages are released. None keeps all.
        reserve: tokens per sequence to have pages for from the start, so that pools need not grow.
    """

    def __init__(self, size: int, window: int | None = None, reserve: int = 0):
        self.size = size
        self.window = window
        self.reserve = reserve
        self.keep_past = False
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.length = self.shortest = 0
        self.lengths = np.zeros(0, np.int64)
        self.capacity = 0
        self.skipped = 0
        self.token_bytes = 0  # of one token in all layers that follow this table
        self.layers = 0  # that follow this table
        self.copies: tuple[Tensor, Tensor] | None = None
        self.pages = np.zeros((0, 0), np.int32)
        self.table: Tensor | None = None
        self.seq_lens: Tensor | None = None
        self._device: Tensor | None = None
        self._holders = np.zeros(0, np.int32)
        self._free: list[int] = []
        self._shared = False
        self._released = 0  # columns below are released
        self._oldest = 0  # columns from here on are all held

    @property
    def batch(self) -> int:
        return self.pages.shape[0]

    @property
    def pages_in_use(self) -> int:
        return int((self._holders > 0).sum())

    def notes(self) -> list[str]:
        """Pages have nothing to tell; see :meth:`tokops.kvcache.layout.Layout.notes`."""
        return []

    @property
    def entries_allocated(self) -> int:
        """Entries of the table on the device, those not yet in use included."""
        return 0 if self._device is None else self._device.numel()

    def live_bytes(self) -> int:
        """Bytes of the tokens in the pages, in all layers that follow this table."""
        return self.live_tokens() * self.token_bytes

    def reread_bytes(self) -> int:
        """Every layer reads its own; see :meth:`tokops.kvcache.layout.Layout.reread_bytes`."""
        return 0

    def allocated_bytes(self) -> int:
        """Bytes of the pools."""
        return self.capacity * self.size * self.token_bytes

    def full_bytes(self) -> int:
        """Bytes of all sequences' tokens in full precision, nothing shared and nothing released."""
        return int(self.lengths.sum()) * self.token_bytes

    def live_tokens(self) -> int:
        """Tokens in the pages, each stored token once however many sequences hold it."""
        first = np.arange(self.pages.shape[1]) * self.size
        tokens = np.clip(self.lengths[:, None] - first, 0, self.size)
        held = self.pages >= 0
        most = np.zeros(self.capacity, np.int64)  # of a page, by the longest sequence that holds it
        np.maximum.at(most, self.pages[held], tokens[held])
        return int(most.sum())

    def advance(self, batch: int, tokens: int, device: torch.device) -> None:
        """Make room for new tokens of every sequence, and give the tables of this forward.

        Afterwards ``table [B, pages]`` and ``seq_lens [B]`` are int32 tensors that count the new tokens; ``copies``
        are pages (source, target) that layers must copy first, or None; of the new tokens the first ``skipped``
        lie behind the window and have no page.
        """
        if self.seq_lens is None:
            self._start(batch, device)
        elif batch != self.batch:
            raise ValueError(f"the cache holds {self.batch} sequences, the new tokens are for {batch}")
        if not self.keep_past:
            self._release()
        self.copies = None
        self.skipped = 0
        have, need = self.pages.shape[1], -(-(self.length + tokens) // self.size)
        if tokens and self._shared:
            self._unshare_written(tokens)
        first = self._widen(have, need, tokens) if need > have else have
        if need > have or self.shortest < self.length:
            self._fill(have, first, tokens)
        self.lengths += tokens
        self.length += tokens
        self.shortest += tokens
        self.seq_lens.add_(tokens)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "table": None}  # a view, which would be saved as a copy

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._device is not None:
            self.table = self._device[:, : self.pages.shape[1]]

    def _start(self, batch, device):
        self.pages = np.zeros((batch, 0), np.int32)
        self.lengths = np.zeros(batch, np.int64)
        self.seq_lens = torch.zeros(batch, dtype=torch.int32, device=device)
        self._device = torch.zeros(batch, 0, dtype=torch.int32, device=device)
        self.table = self._device
        if self.reserve:
            self._grow(batch * -(-self.reserve // self.size))

    def _widen(self, have, need, tokens):
        """Have ``need`` columns; returns the first of the new ones that anybody will read."""
        first = have
        if self.window is not None and not self.keep_past:
            first = min(max(have, self._behind(self.shortest + tokens)), need)
            if (
                first > have
            ):  # what lies between is behind the window already; older pages are still read once
                self.skipped = max(0, first * self.size - self.length)
                self._oldest = first
        self._resize(self.batch, need)
        return first

    def _resize(self, batch, columns):
        """Have room for so many sequences and columns; new entries hold no page."""
        rows, have = self.pages.shape
        self.pages = np.pad(self.pages, ((0, batch - rows), (0, columns - have)), constant_values=-1)
        if batch > rows or columns > self._device.shape[1]:
            width = max(columns, self._device.shape[1] if columns <= self._device.shape[1] else 2 * have)
            self._device = self._device.new_zeros(batch, width)
            self._upload(0, have)
        self.table = self._device[:, :columns]

    def _fill(self, have, first, tokens):
        """Give every sequence pages for its new tokens; of the columns from ``have`` on those before ``first`` none."""
        low, columns = self.shortest // self.size, self.pages.shape[1]
        column = np.arange(low, columns)
        own, end = -(-self.lengths // self.size), self.lengths + tokens
        missing = (column >= own[:, None]) & (column * self.size < end[:, None])
        missing &= (self.pages[:, low:] < 0) & ((column < have) | (column >= first))
        if missing.any():
            self.pages[:, low:][missing] = self._take(int(missing.sum()))
            self._upload(low if missing[:, : max(have - low, 0)].any() else max(have, low), columns)

    def _behind(self, length):
        """Columns that nobody can read any more at a length, drafts taken back included."""
        return max(0, length - self.window - _SLACK) // self.size

    def _take(self, count: int) -> list[int]:
        """Pages nobody holds, lowest first, each held once from now on."""
        if count > len(self._free):
            grown = self.capacity + (count - len(self._free))
            self._grow(grown + max(grown // 4, self.batch))
        taken = [self._free.pop() for _ in range(count)]
        self._holders[taken] += 1
        return taken

    def _grow(self, capacity):
        self._holders = np.concatenate([self._holders, np.zeros(capacity - self.capacity, np.int32)])
        self._free = list(range(capacity - 1, self.capacity - 1, -1)) + self._free
        self.capacity = capacity

    def _drop(self, pages):
        """Let go of pages; those that nobody holds any more are free."""
        pages = pages[pages >= 0]
        np.subtract.at(self._holders, pages, 1)
        gone = np.unique(pages)
        gone = gone[self._holders[gone] == 0]
        self._free += gone[::-1].tolist()

    def _upload(self, first, last):
        ids = np.maximum(
            self.pages[:, first:last], 0
        )  # a released page is never read: any valid number will do
        self._device[:, first:last] = torch.from_numpy(ids).to(self._device.device)

    def _unshare_written(self, tokens):
        """Give every sequence its own pages for the new tokens, as far as there are pages already."""
        first, last = self.lengths // self.size, -(-(self.lengths + tokens) // self.size)
        for column in range(self.shortest // self.size, self.pages.shape[1]):
            self._unshare_column(column, (first <= column) & (column < last))

    def _unshare_column(self, column, rows):
        """Give those sequences of ``rows`` (bool) their own page at ``column``, to write to."""
        source, target = [], []
        for row in np.flatnonzero(rows).tolist():
            page = int(self.pages[row, column])
            if page >= 0 and self._holders[page] > 1:
                self._holders[page] -= 1
                self.pages[row, column] = self._take(1)[0]
                source.append(page)
                target.append(int(self.pages[row, column]))
        if source:
            device = self._device.device
            pair = (torch.tensor(source, device=device), torch.tensor(target, device=device))
            self.copies = (
                pair if self.copies is None else tuple(map(torch.cat, zip(self.copies, pair, strict=True)))
            )
            self._upload(column, column + 1)

    def _release(self):
        if self.window is None:
            return
        first = min(self._behind(self.shortest), self.pages.shape[1])
        if first > self._released:
            self._drop(self.pages[:, self._released : first])
            self.pages[:, self._released : first] = -1
            self._upload(self._released, first)
            self._released = first
            self._oldest = max(self._oldest, first)

    def check_crop(self, tokens: int) -> None:
        """Refuse a :meth:`crop` that cannot be."""
        shortest = self.shortest - tokens
        if not 0 <= shortest <= self.shortest:
            raise ValueError(f"cannot remove {tokens} of {self.shortest} cached tokens")
        if (
            tokens
            and self.window is not None
            and self._oldest * self.size > max(0, shortest - self.window + 1)
        ):
            raise RuntimeError(
                f"cannot take back {tokens} tokens: those behind the window of {self.window} are released; "
                "call activate_past_recording() on the cache before decoding"
            )

    def crop(self, tokens: int) -> None:
        """Forget the last ``tokens`` of every sequence."""
        self.check_crop(tokens)
        if self.seq_lens is not None:
            self.seq_lens.sub_(tokens)
        self._shorten(self.lengths - tokens)
        self._release()

    def keep(self, nodes: int, counts: np.ndarray, change: Tensor) -> None:
        """Of the last ``nodes`` tokens of every sequence, which layers have moved to their front, hold ``counts [B]``.

        Args:
            nodes: tokens that the last :meth:`advance` made room for.
            counts: how many of them stay.
            change: ``counts - nodes``, int32 on the table's device.
        """
        assert self.seq_lens is not None, "nodes have been written"
        if (counts == nodes).all():
            return
        self.seq_lens.add_(change)
        self._shorten(self.lengths - nodes + counts)

    def _shorten(self, lengths):
        """Have these lengths, none of which is longer than before, and drop the pages behind the longest."""
        self.lengths = lengths
        self._measure()
        keep = -(-self.length // self.size)
        if keep < self.pages.shape[1]:
            self._drop(self.pages[:, keep:])
            self.pages = self.pages[:, :keep].copy()
            self.table = self._device[:, :keep]
        self.copies = None

    def _measure(self):
        self.length = int(self.lengths.max(initial=0))
        self.shortest = int(self.lengths.min()) if len(self.lengths) else 0

    def select(self, rows: list[int]) -> None:
        """Keep the sequences ``rows``, in that order; a row named twice shares its pages."""
        if self.seq_lens is None:
            return
        before = self._holders > 0
        chosen = np.asarray(rows, np.int64)
        self.lengths = self.lengths[chosen]
        self._measure()
        self.pages = self.pages[chosen, : -(-self.length // self.size)]
        held = self.pages[self.pages >= 0]
        self._holders = np.bincount(held, minlength=self.capacity).astype(np.int32)
        self._free += np.flatnonzero(before & (self._holders == 0))[::-1].tolist()
        self._shared = bool((self._holders > 1).any())
        self.seq_lens = torch.from_numpy(self.lengths.astype(np.int32)).to(self._device.device)
        self._device = self._device.new_zeros(len(rows), self._device.shape[1])
        self._upload(0, self.pages.shape[1])
        self.table = self._device[:, : self.pages.shape[1]]
        self.copies = None

    def join(self, other: "PageTable") -> tuple[Tensor, Tensor]:
        """Hold the sequences of another table, too, behind those here.

        Returns:
            Pages, of the other pools and of these, whose tokens layers must copy over. The other table stays as it is.
        """
        assert self._device is not None, "both tables hold sequences"
        assert self.seq_lens is not None, "both tables hold sequences"
        held = other.pages >= 0
        source = np.unique(other.pages[held])
        target = np.array(self._take(len(source)), np.int32)
        self._holders[target] = other._holders[source]
        rows, columns = self.batch, max(self.pages.shape[1], other.pages.shape[1])
        self._resize(rows + other.batch, columns)
        self.pages[rows:, : held.shape[1]][held] = target[np.searchsorted(source, other.pages[held])]
        self._upload(0, columns)
        self.lengths = np.concatenate([self.lengths, other.lengths])
        self._measure()
        self._shared = self._shared or other._shared
        self._released = min(self._released, other._released)
        self._oldest = max(self._oldest, other._oldest)
        self.seq_lens = torch.from_numpy(self.lengths.astype(np.int32)).to(self._device.device)
        self.copies = None
        return torch.from_numpy(source).long(), torch.from_numpy(target).long()

    def unshare(self) -> None:
        """Give every sequence pages of its own; layers must then follow ``copies``."""
        self.copies = None
        for column in range(self.pages.shape[1]):
            self._unshare_column(column, np.ones(self.batch, bool))
        self._shared = False
