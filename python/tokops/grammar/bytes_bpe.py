"""Byte-pair encoding by its merges: which tokens it can make, and which may stand side by side."""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

_NEVER = np.iinfo(np.int64).max
_KEPT_MASKS = 1024


class MergeOrderError(ValueError):
    """A merge needs what only a later merge makes."""


class Merges:
    """What byte-pair encoding makes of symbols: the lowest merge first, of equal ones the leftmost.

    A token is *made* if encoding its own symbols gives it alone. Its last merge then splits it in two, those again,
    and so on. Of two made tokens side by side the encoding of both together keeps the border exactly if no merge
    across it comes before the two that it joins are used up by merges of their own side. Merges across can only join
    a token on the right edge of the left tree with one on the left edge of the right tree. For one left token all
    right tokens that break the border are intervals in an order of the tokens, so that a whole vocabulary is judged in
    time proportional to it, without encoding anything.

    Args:
        size: tokens of the vocabulary.
        symbols: tokens that texts consist of before the first merge.
        merges: ``(left, right, made)`` ids, the first merge first.

    Raises:
        MergeOrderError: a merge of made tokens stands before the merge that makes one of them. Encoding then goes
            back and forth in the list, which this class does not follow. Trained lists have no such merge.
    """

    def __init__(self, size: int, symbols: Iterable[int], merges: Sequence[tuple[int, int, int]]):
        self.size = size
        #: (left, right) -> (rank, made)
        self.rank: dict[tuple[int, int], tuple[int, int]] = {}
        self.made = np.full(size, _NEVER, np.int64)  # rank of the last merge; -1 for symbols
        self.made[list(symbols)] = -1
        self.left = np.full(size, -1, np.int64)
        self.right = np.full(size, -1, np.int64)
        self._made, self._left, self._right = self.made.tolist(), self.left.tolist(), self.right.tolist()
        early = []
        for rank, (a, b, c) in enumerate(merges):
            if (a, b) in self.rank:
                continue
            if max(self._made[a], self._made[b]) == _NEVER:
                early.append((a, b))
            elif self._made[c] == _NEVER and self.pair(a, b, below=rank):
                self._made[c], self._left[c], self._right[c] = rank, a, b
            self.rank[a, b] = rank, c
        for a, b in early:
            if max(self._made[a], self._made[b]) != _NEVER:
                raise MergeOrderError(f"the merge of tokens {a} and {b} stands before one that makes them")
        self.made[:], self.left[:], self.right[:] = self._made, self._left, self._right
        self._order()
        self._masks: dict[int, np.ndarray] = {}

    def _right_edge(self, token: int) -> list[tuple[int, int]]:
        """Tokens on the right edge of a tree, and the rank of the merge that uses each up."""
        edge, until = [], _NEVER
        while token >= 0:
            edge.append((token, until))
            until, token = self._made[token], self._right[token]
        return edge

    def _left_edge(self, token: int) -> list[tuple[int, int]]:
        edge, until = [], _NEVER
        while token >= 0:
            edge.append((token, until))
            until, token = self._made[token], self._left[token]
        return edge

    def pair(self, left: int, right: int, below: int = _NEVER) -> bool:
        """Whether encoding two made tokens together gives the two, as far as merges below a rank go."""
        others = self._left_edge(right)
        for a, until in self._right_edge(left):
            for b, limit in others:
                rank = self.rank.get((a, b), (_NEVER,))[0]
                # Of equal ranks the leftmost comes first: the left token's own, then the one across.
                if rank < below and rank < until and rank <= limit:
                    return False
        return True

    def _order(self) -> None:
        """Number tokens so that those with a given left edge, used up late enough, are an interval."""
        children: dict[int, list[int]] = {}
        made = np.flatnonzero(self.made < _NEVER)
        for token in made[np.argsort(-self.made[made], kind="stable")].tolist():
            children.setdefault(self._left[token], []).append(token)
        first, last = np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)
        count = 0
        stack = [(token, False) for token in children.pop(-1, [])]
        while stack:
            token, done = stack.pop()
            if done:
                last[token] = count
                continue
            first[token] = count
            count += 1
            stack.append((token, True))
            stack += [(child, False) for child in reversed(children.get(token, ()))]
        self._place = np.where(self.made < _NEVER, first, -1)
        rows = []
        falling = {token: [-self._made[child] for child in found] for token, found in children.items()}
        for (a, b), (rank, _) in self.rank.items():
            if max(self._made[a], self._made[b]) < _NEVER:
                # Children are in the order of falling ranks: those made by this merge or later come first.
                later = bisect_right(falling[b], -rank) if b in falling else 0
                end = last[children[b][later - 1]] if later else first[b] + 1
                rows.append((a, rank, first[b], end))
        table = np.array(sorted(rows), np.int64).reshape(-1, 4)
        self._begin = np.searchsorted(table[:, 0], np.arange(self.size + 1))
        self._ranks, self._low, self._high = (np.ascontiguousarray(table[:, i]) for i in (1, 2, 3))
        self._count = count

    def followers(self, left: int) -> np.ndarray:
        """Which tokens keep the border behind a made token, bool ``[size]``. Do not write to it."""
        known = self._masks.get(left)
        if known is not None:
            return known
        change = np.zeros(self._count + 1, np.int64)
        for token, until in self._right_edge(left):
            begin, end = self._begin[token], self._begin[token + 1]
            end = begin + np.searchsorted(self._ranks[begin:end], until)
            for places, sign in ((self._low, 1), (self._high, -1)):
                change += sign * np.bincount(places[begin:end], minlength=len(change))
        kept = np.append(change[:-1].cumsum() == 0, False)[self._place]  # the last is for tokens never made
        if len(self._masks) == _KEPT_MASKS:
            del self._masks[next(iter(self._masks))]
        self._masks[left] = kept
        return kept

    def encode(self, symbols: Sequence[int]) -> list[int]:
        """What a sequence of symbols is merged to."""
        tokens = list(symbols)
        follower = [*range(1, len(tokens)), -1]
        before = list(range(-1, len(tokens) - 1))
        queue: list[tuple[int, int, int, int]] = []

        def offer(at: int) -> None:
            if at >= 0 and follower[at] >= 0:
                pair = tokens[at], tokens[follower[at]]
                if pair in self.rank:
                    heapq.heappush(queue, (self.rank[pair][0], at, *pair))

        for at in range(len(tokens)):
            offer(at)
        while queue:
            _, at, a, b = heapq.heappop(queue)
            behind = follower[at]
            if tokens[at] != a or behind < 0 or tokens[behind] != b:
                continue
            tokens[at], tokens[behind] = self.rank[a, b][1], -1
            follower[at] = follower[behind]
            if follower[at] >= 0:
                before[follower[at]] = at
            offer(at)
            offer(before[at])
        return [token for token in tokens if token >= 0]
