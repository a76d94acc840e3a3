"""MiKV's store: every token is kept, the important ones in high precision, the others in low precision."""

import torch
from torch import Tensor

from ..attention import Part
from ..attention.parts import flatten
from ._attention_mass import attention_mass
from .balancer import balancer
from .importance import add_kept, prompt_mass
from .mikv_layout import Cut, Target, added, at_most, beyond
from .tail import Tail
from .tiers import Tier, listed, plain_source, within

_LOW_BASE = 1 << 30  # number of the low pool's first slot in `where`; the high pool's is 0
_STEP = 1024  # tokens by which the arrays over positions grow
_MAX_INT, _MAX_KEY = torch.iinfo(torch.int32).max, torch.iinfo(torch.int64).max


class MiKVLayout(Cut):
    """The bookkeeping of a cache whose layers are :class:`MiKVStore`."""

    def new_store(self, index: int) -> "MiKVStore":
        """The store of layer ``index``."""
        self.stores.append(MiKVStore(self))
        return self.stores[-1]


class MiKVStore:
    """A high and a low pool and a tail of one layer; see :class:`tokops.kvcache.Store`.

    ``acc [B, Hkv, length]`` is the attention that every token has received. A token enters the pools by way of the
    tail, whose tokens count as high. Where more are high than the policy allows, those with the smallest ``acc`` are
    moved to the low pool, and never back. Keys are kept as ``bal * k``, queries are read as ``q / bal``.
    """

    rotate = False
    q_int8 = False

    def __init__(self, layout: MiKVLayout):
        self.layout = layout
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        policy, page = self.layout.policy, self.layout.page
        self.kv_heads = self.full_token_bytes = self._settled = 0
        self.high, self.low = Tier(policy.high, page, 0), Tier(policy.low, page, _LOW_BASE)
        self.bal: Tensor | None = None  # [B, Hkv, D]
        self._tail: Tail | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        self._unsure: dict[int, Tensor] = {}  # position -> what its row and those after gave, [B, T, Hkv, L]
        self._drafted: Tensor | None = None  # what the nodes of a draft gave, [B, T, Hkv, L] by slot
        self._flat: tuple[int, tuple[list[Tensor], list[int]]] | None = None

    @property
    def length(self) -> int:
        return self.layout.length

    @property
    def seq_lens(self) -> Tensor:
        return self.layout.seq_lens

    def query(self, q: Tensor) -> Tensor:
        if self.bal is None:
            return q
        return (q.unflatten(2, (self.kv_heads, -1)) / self.bal[:, None, :, None]).flatten(2, 3).to(q.dtype)

    # ---- Writing.

    def append(self, k: Tensor, v: Tensor) -> None:
        """Take the new tokens ``[B, T, Hkv, D]`` of a forward that the layout has begun."""
        layout = self.layout
        if not self.kv_heads:
            self._start(k)
        self._commit_mass()
        if layout.due:
            old_k, old_v = self._newest(layout.due)
            self._settle(old_k, old_v, layout.settled)
        self._grow()
        if self.bal is not None:
            k = (k * self.bal[:, None]).to(k.dtype)
        slot = layout.tail_end - k.shape[1]
        if layout.pending:
            self._pending = (k, v)
        elif self._tail is None:
            self._tail = Tail(k, v, layout.tail_capacity)
        else:
            if layout.tail_move is not None:
                self._tail.move(*layout.tail_move, layout.tail_capacity)
            elif layout.tail_capacity > self._tail.k.shape[2]:
                self._tail.move(0, slot, layout.tail_capacity)
            self._tail.write_ends(layout.rows, layout.tail_lens, k, v)

    def _newest(self, count):
        """Keys and values ``[B, Hkv, count, D]`` of the first slots of the tail; nothing where there are none."""
        if self._tail is None or count == 0:
            return ()
        return self._tail.k[:, :, :count], self._tail.v[:, :, :count]

    def _start(self, k):
        batch, _, heads, dim = k.shape
        for tier in (self.high, self.low):
            tier.codec.check(dim, tier.page)
            tier.start(batch, heads, dim, k.dtype, k.device)
        self.kv_heads, self.full_token_bytes = heads, 2 * heads * dim * k.element_size()
        self.where = torch.full((batch, heads, 0), -1, dtype=torch.int32, device=k.device)
        self.acc = torch.zeros(batch, heads, 0, device=k.device)

    def _grow(self):
        """Room in the arrays over positions; what is not in a pool is nowhere and has received nothing."""
        missing = self.layout.length - self.acc.shape[2]
        if missing > 0:
            more = (0, -(-missing // _STEP) * _STEP)
            self.where = torch.nn.functional.pad(self.where, more, value=-1)
            self.acc = torch.nn.functional.pad(self.acc, more)
            self._flat = None

    def absorb(
        self,
        q: Tensor,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logit: Tensor | None = None,
        **options,
    ) -> None:
        """After a prompt's attention: divide its tokens among the pools.

        Args:
            q: ``[B, T, Hq, D]`` its queries, as its attention took them.
            scale, softcap, sink_logit: of that attention.
        """
        if self._pending is None:
            return
        layout = self.layout
        k, v = self._pending
        rows = layout.prompt_end - layout.past
        if layout.past == 0:
            self._weigh(q, k, rows, {"scale": scale, "softcap": softcap}, sink_logit)
        if layout.policy.balancer:
            k = self._balance(q, k, rows)
        old = self._newest(layout.tail_end)
        new = (k[:, :rows].transpose(1, 2), v[:, :rows].transpose(1, 2))
        both = [torch.cat(x, 2) for x in zip(old, new, strict=True)] if old else new
        self._settle(both[0], both[1], layout.prompt_end)
        self._tail = Tail(k[:, rows:], v[:, rows:], layout.tail_capacity)
        self._pending = self._flat = None

    def _weigh(self, q, k, rows, options, sink_logit):
        """What the first prompt's rows gave; of rows behind it only as long as they are not taken back."""
        options |= {"starts": self.layout.starts, "sink_logit": sink_logit}
        self.acc[..., :rows] = prompt_mass(q, k, self._first_judge(rows), rows, **options)
        for row in range(rows, q.shape[1]):
            self._unsure[row] = prompt_mass(q, k, row, row + 1, **options)[:, None]

    def _first_judge(self, rows):
        """The first of a chunk's prompt rows whose attention counts."""
        window = self.layout.policy.obs_window
        return 0 if window is None else max(rows - window, 0)

    def _balance(self, q, k, rows):
        """Keys as they are kept. Sequences whose first visible tokens these are get their balancer."""
        layout = self.layout
        first = [start >= layout.past for start in layout.host_starts]
        if not any(first):
            return k
        starts = None if layout.starts is None else (layout.starts - layout.past).clamp_min(0)
        bal = balancer(q[:, :rows], k[:, :rows], starts)
        bal.masked_fill_(~torch.tensor(first, device=k.device)[:, None, None], 1.0)
        self.bal = bal if self.bal is None else self.bal * bal  # of the first ones it was 1
        return (k * bal[:, None]).to(k.dtype)

    # ---- Importance.

    def observe(self, scores: Tensor, lse: Tensor, softcap: float | None) -> None:
        """Add what rows gave to every token; see :class:`tokops.kvcache.Store`.

        Prompt rows count at once, others if they are still there when the next forward begins, nodes of a draft when
        they are kept.
        """
        first = scores.shape[3] - scores.shape[1]
        prompt = min(max(self.layout.prompt_end - first, 0), scores.shape[1])
        if prompt:
            seen = slice(self._first_judge(prompt), prompt)
            given = attention_mass(scores[:, seen], lse[:, seen], self.kv_heads, softcap=softcap)
            self.acc[..., : given.shape[2]] += given
            scores, lse = scores[:, prompt:], lse[:, prompt:]
        if scores.shape[1]:
            scores_of_rows, lse_of_rows = (x.flatten(0, 1)[:, None] for x in (scores, lse))
            given = attention_mass(scores_of_rows, lse_of_rows, self.kv_heads, softcap=softcap)
            given = given.unflatten(0, scores.shape[:2])
            if self.layout.nodes:
                self._drafted = given
            else:
                self._unsure[first + prompt] = given

    def newest(self) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`tokops.kvcache.quantized.QuantizedStore.newest`."""
        assert self._tail is not None, "the draft is in it"
        return self._tail.kv, self.layout.rows, self.layout.tail_lens

    def keep(self, rows: Tensor | None, counts: Tensor, most: int) -> None:
        """A draft is over, and what is kept of it has been moved up. What the kept nodes gave counts from now on.

        Args:
            rows: ``[B, n]`` int32 nodes, None for the first ones.
            counts: ``[B]`` int32, how many of a sequence are kept.
            most: the largest count.
        """
        given, self._drafted, self._flat = self._drafted, None, None
        if given is None or not most:
            return
        kept = None if rows is None else rows.long().clamp_min(0)
        add_kept(self.acc, given, kept, counts, self.layout.seq_lens - counts, most)

    def _commit_mass(self):
        """Count what rows gave that were not taken back."""
        for first, given in self._unsure.items():
            rows = min(self.layout.past - first, given.shape[1])
            if rows == 1:
                self.acc[..., : given.shape[3]] += given[:, 0]
            elif rows > 1:
                self.acc[..., : given.shape[3]] += given[:, :rows].sum(1)
        self._unsure.clear()

    # ---- Which token is kept how.

    def _settle(self, k, v, committed):
        """Take the tokens ``[B, Hkv, M, D]`` before position ``committed`` into the pools; demote what is too many."""
        high, low, target = self.high, self.low, self.layout.target(committed)
        first = committed - k.shape[2]
        new = [max(committed - max(first, start), 0) for start in target.starts]
        surplus = [beyond(bound, new, target.limits) for bound in (high.least, high.most)]
        most, held = max(surplus[1], default=0), max(high.most, default=0)
        # From here on slot `held + i` is the i-th new token.
        position = torch.arange(first, committed, dtype=torch.int32, device=k.device)
        position = position.expand(len(k), self.kv_heads, -1)
        place = torch.cat([high.positions[..., :held], position], -1)
        visible = position >= target.visible_from
        leaving = self._least_important(place, visible, target, most)
        incoming = [plain_source(k, v, self.layout.rows, held)]

        low.reserve(max(added(low.most, surplus[1]), default=0), self._span(low, first))
        slots, counts = listed(leaving, most)
        fresh = any(n > window for n, window in zip(new, target.windows, strict=True))
        sources = high.sources(held) + incoming * fresh  # the newest do not leave
        low.enter(sources, slots, place, counts, self.where)
        low.least, low.most = added(low.least, surplus[0]), added(low.most, surplus[1])

        if fresh:
            slots, counts = listed(leaving[..., :held], most)
        if any(n > limit for n, limit in zip(high.most, target.limits, strict=True)):  # after a crop
            high.remove(leaving[..., :held], most, self.where)
            slots, counts, high.least = slots[..., :0], torch.zeros_like(counts), [0] * len(k)
        lens = [at_most(added(bound, new), target.limits) for bound in (high.least, high.most)]
        high.reserve(max(lens[1], default=0), self._span(high, first))
        staying, entering = listed(visible & ~leaving[..., held:], max(lens[1], default=0))
        high.enter(incoming, staying + held, place, entering, self.where, (slots, counts))
        high.least, high.most = lens
        self._settled, self._flat = committed, None

    def _least_important(self, place: Tensor, visible: Tensor, target: Target, most: int) -> Tensor:
        """Which tokens of the high pool and of new ones are to be low, like ``place``; at most ``most``."""
        policy, held = self.layout.policy, place.shape[-1] - visible.shape[-1]
        here = torch.cat([within(self.high.lens, held), visible], -1)
        leaving = torch.zeros_like(here)
        if most == 0:
            return leaving
        count = (here.sum(-1, dtype=torch.int32) - target.limit).clamp_min(0)
        acc = self.acc.gather(-1, place.long())
        if policy.normalise_by_age:
            acc = acc / (target.committed - place)
        # Floats that are not negative are ordered as their bits are. Ties: a prompt keeps its first tokens, later
        # the oldest goes.
        tie = place if self._settled else _MAX_INT - place
        key = (acc.view(torch.int32).long() << 32) | tie
        bound = (place < target.visible_from + policy.sinks) | (place >= target.recent_from)
        key.masked_fill_(bound | ~here, _MAX_KEY)
        return leaving.scatter_(-1, key.topk(most, largest=False).indices, within(count, most))

    def _span(self, tier: Tier, first: int) -> int:
        """Slots to add when a pool is full: what a prompt needs, then for 1024 tokens more, then doubling."""
        if first == 0:
            return 0
        grown = max(len(tier.slabs) - 1, 0)
        ahead = _STEP << (grown if grown < 5 else grown + 1)  # so that all pools are 16 parts at most
        if tier is self.low:
            return ahead
        return self.layout.policy.limit(self.layout.length + ahead) - max(tier.most, default=0)

    # ---- Reading.

    def parts(self) -> list[Part]:
        layout = self.layout
        parts = self.high.parts(self.where) + self.low.parts(self.where)
        if self._tail is not None and layout.tail_end:
            parts.append(
                Part(self._tail.k, self._tail.v, layout.rows, layout.tail_lens, first=layout.tail_first)
            )
        if self._pending is not None:
            k, v = (x.transpose(1, 2) for x in self._pending)
            parts.append(Part(k, v, layout.rows, layout.pending_lens, first=layout.pending_first))
        return parts

    def flat_parts(self) -> tuple[list[Tensor], list[int]]:
        if self._flat is None or self._flat[0] != self.layout.version or self._pending is not None:
            self._flat = (self.layout.version, flatten(self.parts()))
        return self._flat[1]

    # ---- Changes between forwards.

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_flat": None}  # of views, which are made anew

    def crop(self, restored: tuple[int, int]) -> None:
        """Follow the layout's crop. What removed tokens gave to others while they were there is not taken back."""
        length, self._flat = self.layout.length, None
        if not length:
            self.reset()
        if not self.kv_heads:
            return
        if self.bal is not None:
            ends = zip(self.layout.host_starts, self.layout.lengths, strict=True)
            padding = [bool(start >= end) for start, end in ends]  # of which no key is left
            if any(padding):
                self.bal.masked_fill_(torch.tensor(padding, device=self.bal.device)[:, None, None], 1.0)
        if length == self.layout.shortest:
            self.acc[..., length:] = 0
        else:
            slot = torch.arange(self.acc.shape[2], device=self.acc.device)
            self.acc.masked_fill_((slot >= self.seq_lens[:, None])[:, None], 0)
        if length >= self._settled:
            return
        for tier in (self.high, self.low):
            tier.remove(tier.positions >= length, min(tier.capacity, self._settled - length), self.where)
            tier.shrink()
        self.where[..., length:] = -1
        self._settled = length

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        self._flat = None
        if not self.kv_heads or rows.tolist() == list(range(len(self.where))):
            return
        for tier in (self.high, self.low):
            tier.select(rows)
        self.where, self.acc = self.where[rows], self.acc[rows]
        self._unsure = {first: given[rows] for first, given in self._unsure.items()}
        if self.bal is not None:
            self.bal = self.bal[rows]
        if self._tail is not None:
            self._tail.select(rows)

    def follow(self) -> None:
        """Give every sequence pages of its own."""
        self.high.take_own()
        self.low.take_own()
        self._flat = None

    # ---- Bytes.

    def live_bytes(self) -> int:
        """Of the tokens held, with all that is kept of them."""
        if not self.kv_heads:
            return 0
        tiers = (self.high, self.low)
        pools = sum(tier.live_slots() * tier.token_bytes + tier.index_bytes() for tier in tiers)
        positions = sum(int(tier.lens.sum()) * 4 for tier in tiers)
        arrays = self.kv_heads * int(self.layout.lengths.sum()) * 8  # where and acc
        tail = self._tail_tokens() * self.full_token_bytes
        return pools + positions + arrays + tail + (0 if self.bal is None else self.bal.numel() * 4)

    def allocated_bytes(self) -> int:
        """Of everything that is kept."""
        if not self.kv_heads:
            return 0
        tail = [] if self._tail is None else [self._tail.k, self._tail.v]
        bal = [] if self.bal is None else [self.bal]
        rest = (*tail, *bal, *(self._pending or ()), self.where, self.acc)
        pools = self.high.allocated_bytes() + self.low.allocated_bytes()
        return pools + sum(x.numel() * x.element_size() for x in rest)

    def live_tokens(self) -> int:
        """Tokens held, those that sequences share once."""
        if not self.kv_heads:
            return 0
        pools = (self.high.live_slots() + self.low.live_slots()) // self.kv_heads
        return pools + self._tail_tokens()

    def _tail_tokens(self):
        return int((self.layout.ends(self._settled) - self._settled).sum())
