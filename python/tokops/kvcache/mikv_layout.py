"""How many tokens MiKV keeps in which precision, and where a forward stands: host bookkeeping that layers share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .codec import Codec
from .lengths import Lengths

_SPARE = 64  # slots of a tail beyond the committed tokens that it must hold: drafts


@dataclass(frozen=True)
class Policy:
    """MiKV's numbers. ``high`` and ``low`` are the codecs of the two pools.

    Args:
        ratio: share of all visible tokens that stay in the high pool.
        budget: that many tokens instead of a share.
        recent: share of the high pool that is the newest tokens.
        sinks: first visible tokens, always high.
        interval: committed tokens between two demotions.
        balancer: whether keys are scaled per channel.
        obs_window: newest queries of each chunk of the prompt that decide importance; None is all.
        normalise_by_age: importance per query that could see a token.
    """

    high: Codec
    low: Codec
    ratio: float
    budget: int | None
    recent: float
    sinks: int
    interval: int
    balancer: bool = True
    obs_window: int | None = None
    normalise_by_age: bool = False

    def window(self, length: int) -> int:
        """Newest of ``length`` visible tokens that are high."""
        return _ceil(self.recent * (self.ratio * length if self.budget is None else self.budget))

    def limit(self, length: int) -> int:
        """Tokens of the high pool at ``length``; sinks and the newest always fit."""
        high = _ceil(self.ratio * length) if self.budget is None else self.budget
        return max(high, self.sinks + self.window(length))


def added(a: list[int], b: list[int]) -> list[int]:
    """a + b, number by number."""
    return [x + y for x, y in zip(a, b, strict=True)]


def at_most(a: list[int], limits: list[int]) -> list[int]:
    """The smaller of every two."""
    return [min(x, y) for x, y in zip(a, limits, strict=True)]


def beyond(held: list[int], new: list[int], limits: list[int]) -> list[int]:
    """What held and new tokens together are beyond the limits."""
    return [max(n + m - limit, 0) for n, m, limit in zip(held, new, limits, strict=True)]


def _ceil(x: float) -> int:
    return math.ceil(x - 1e-9)  # 0.1 * 30 is 3


@dataclass(frozen=True)
class Target:
    """What the pools look like once ``committed`` tokens are in them, one number a sequence."""

    committed: int
    limits: list[int]  # tokens of the high pool
    windows: list[int]  # newest tokens that are among them
    limit: Tensor  # [B, 1]
    visible_from: Tensor  # [B, 1, 1]: first visible position
    recent_from: Tensor  # [B, 1, 1]: position of the first of the newest tokens
    starts: list[int]


class Cut(Lengths):
    """Where every sequence is cut into pools and tail; see :class:`~tokops.kvcache.layout.Layout` for the calls.

    Positions below ``settled`` are in the pools, later ones in the tail, or, while a prompt is read, in its own
    tensors. Tokens that are in the cache when a forward begins are committed. All sequences go to the pools together,
    ``interval`` tokens of the shortest that is not finished.
    """

    def __init__(self, policy: Policy, page: int):
        self.policy, self.page = policy, page
        self.stores: list[Any] = []  # that follow, for their bytes
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self.version = 0
        self._started = False
        self._empty(0)

    def _empty(self, batch: int) -> None:
        """Hold nothing of so many sequences."""
        self._start(batch)
        self.settled = self.past = self.prompt_end = 0
        self.tail_move: tuple[int, int] | None = None
        self.pending = self.due = 0
        self.batch = batch
        self.tail_capacity = self.policy.interval + _SPARE
        self._target: Target | None = None

    @property
    def layers(self) -> int:
        """Layers that hold tokens."""
        return sum(store.kv_heads > 0 for store in self.stores)

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
        """Plan a forward of new tokens: whether the tail's go to the pools before it, and where new ones go.

        The tokens of a ``draft`` are behind the end of each sequence until :meth:`keep`; their depths do not matter.
        """
        self._absorb()
        if not self._started:
            self.batch, self.device, self._started = batch, device, True
            self._start(batch)
            self._make_tensors()
        elif batch != self.batch:
            raise ValueError(f"the cache holds {self.batch} sequences, the new tokens are for {batch}")
        self.past, committed = self.length, self.committed
        self._add(rows, draft)
        self.prompt_end = self.past + prompt_rows
        self.pending, self.due = (rows, 0) if prompt_rows else (0, committed - self.settled)
        if self.due < self.policy.interval:
            self.due = 0
        if prompt_rows or self.due or draft:
            self.version += 1
        ahead = self.past - self.settled - self.due  # of longer sequences, not due yet
        self.tail_move = (self.due, ahead) if self.due and ahead else None
        self.settled += self.due
        count = self.length - (self.prompt_end if prompt_rows else self.settled)
        if count > self.tail_capacity:
            self.tail_capacity = count + _SPARE
            self.version += 1
        self._place()

    def _absorb(self):
        """Once a prompt is absorbed its tokens are in the pools, and what came with it is alone in the tail."""
        if self.pending:
            self.settled, self.pending = self.prompt_end, 0
            self.version += 1

    def room(self) -> list[int]:
        """How many tokens every sequence may commit until more go to the pools; 0 for one that is ahead of others."""
        settled = self.prompt_end if self.pending else self.settled
        if not self.nodes and self.committed - settled >= self.policy.interval:
            settled = self.committed
        return self._room(settled + self.policy.interval)

    def keep(self, nodes: int, counts: np.ndarray, change: Tensor) -> None:
        """Of the last ``nodes`` tokens of every sequence hold ``counts [B]``; layers have moved them up."""
        self._keep(nodes, counts)
        self.past = self.length
        self.due = 0
        self.version += 1
        self._place()

    def finish(self, done: Sequence[bool]) -> None:
        """Say which sequences get no more tokens."""
        self._finish(done, self.settled)

    def see_starts(self, starts: Tensor | None) -> None:
        """Note the first visible position of every sequence; every layer of a prompt tells, before it absorbs."""
        if self._note_starts(starts):
            self._target = None

    def target(self, committed: int) -> Target:
        """The policy's numbers at a length, the same for all layers."""
        if self._target is None or self._target.committed != committed:
            starts = self.host_starts
            visible = [max(committed - start, 0) for start in starts]
            limits = [self.policy.limit(n) for n in visible]
            windows = [self.policy.window(n) for n in visible]
            recent = [committed - n for n in windows]
            columns = torch.tensor([limits, starts, recent], dtype=torch.int32).to(self.device)
            limit, first, newest = columns[:, :, None]
            self._target = Target(
                committed, limits, windows, limit, first[..., None], newest[..., None], starts
            )
        return self._target

    # ---- The device's view, updated in place so that layers may keep what they read with.

    def _make_tensors(self):
        self.rows = torch.arange(self.batch, dtype=torch.int32, device=self.device)[:, None]
        self.seq_lens, self.tail_first, self.tail_lens, self.pending_first, self.pending_lens = (
            torch.zeros(self.batch, dtype=torch.int32, device=self.device) for _ in range(5)
        )
        self._target = None
        self.version += 1

    @property
    def tail_end(self) -> int:
        """Slots of the tail in use; slot 0 holds position ``settled``."""
        return max((self.past if self.pending else self.length) - self.settled, 0)

    def _place(self):
        self.tail_first.fill_(self.settled)
        if self.length == self.shortest:
            self.seq_lens.fill_(self.length)
            self.tail_lens.fill_(self.tail_end)
        else:
            self.seq_lens.copy_(torch.from_numpy(self.ends(self.settled).astype(np.int32)))
            self.tail_lens.copy_(self.seq_lens - self.settled)
        self.pending_first.fill_(self.past)
        self.pending_lens.fill_(self.pending)

    # ---- Changes between forwards.

    def check_crop(self, tokens: int) -> None:
        """See :meth:`Lengths.check_crop`: of sequences of different lengths none is cropped into its pools.

        Tokens of the longer ones cannot leave them again.
        """
        super().check_crop(tokens)
        if self.length > self.shortest and self.committed - tokens < self.settled:
            raise RuntimeError(
                f"MiKV: cannot remove {tokens} tokens of sequences of {self.shortest}..{self.length} tokens, of which "
                f"{self.settled} are in pools"
            )

    def crop(self, tokens: int) -> tuple[int, int]:
        """Forget the last tokens of every sequence; layers take those that are in pools out of them.

        A cache without tokens is as new, but for its batch size.
        """
        self.check_crop(tokens)
        self._absorb()
        self._remove(tokens)
        if self._started and not self.length:
            self._empty(self.batch)
            self._make_tensors()
            return 0, 0
        if self._crop_starts():
            self._target = None
        self.past = length = self.length
        self.settled = min(self.settled, length)
        self.due = 0
        self.version += 1
        if self._started:
            self._place()
        return length, length

    def drop_pages(self) -> None:
        """Layers own their pages and have given them back."""

    def select(self, rows: list[int]) -> None:
        """Keep the sequences ``rows``, in that order."""
        self._absorb()
        if not self._started:
            return
        self._choose(rows)
        self.past = self.length
        self.batch = len(rows)
        self._make_tensors()
        self._place()

    def unshare(self) -> None:
        """Give every sequence pages of its own, once layers follow."""
        self._absorb()
        self.version += 1

    # ---- Bytes, of all layers.

    def notes(self) -> list[str]:
        """Nothing to tell; see :meth:`tokops.kvcache.layout.Layout.notes`."""
        return []

    def live_bytes(self) -> int:
        """Codes with scales, the tail, the balancer, and for every token positions, places and importance."""
        return sum(store.live_bytes() for store in self.stores)

    def allocated_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(store.allocated_bytes() for store in self.stores)

    def full_bytes(self) -> int:
        """Bytes of all sequences' tokens in the model's dtype."""
        return int(self.lengths.sum()) * sum(store.full_token_bytes for store in self.stores)

    def live_tokens(self) -> int:
        """Tokens held by one layer, those that sequences share once."""
        return self.stores[0].live_tokens() if self.stores else 0
