"""How long every sequence of a cache is, and how much of that is a draft."""

from collections.abc import Sequence

import numpy as np

#: What :meth:`Lengths.room` says where nothing limits it.
UNLIMITED = 2**31 - 1


class Lengths:
    """Lengths of sequences that lie behind one common cut: the part of a layout that counts tokens.

    Positions below the cut are packed, in all sequences alike; the shortest sequence that is not finished decides
    where the cut may be. A finished sequence can end before it. It then takes part as if it reached to the cut, with
    tokens that are nobody's.
    """

    lengths: np.ndarray
    finished: np.ndarray

    def _clear(self) -> None:
        self._hold(np.zeros(0, np.int64), np.zeros(0, bool))

    def _start(self, batch: int) -> None:
        self._hold(np.zeros(batch, np.int64), np.zeros(batch, bool))

    def _hold(self, lengths: np.ndarray, finished: np.ndarray) -> None:
        self.lengths, self.finished, self.nodes = lengths, finished, 0
        self._measure()

    def _measure(self) -> None:
        self.length = int(self.lengths.max(initial=0))
        self.shortest = int(self.lengths.min()) if len(self.lengths) else 0

    def _add(self, rows: int, draft: bool) -> None:
        self.lengths += rows
        self.length += rows
        self.shortest += rows
        self.nodes = rows if draft else 0

    def _keep(self, nodes: int, counts: np.ndarray) -> None:
        self._hold(self.lengths - nodes + counts, self.finished)

    def check_crop(self, tokens: int) -> None:
        """Refuse to forget so many tokens of every sequence where that cannot be done."""
        if not 0 <= tokens <= self.shortest:
            raise ValueError(f"cannot remove {tokens} of {self.shortest} cached tokens")

    def _remove(self, tokens: int) -> None:
        """Forget the last tokens of every sequence."""
        self._hold(self.lengths - tokens, self.finished)

    def _choose(self, rows: Sequence[int]) -> None:
        chosen = np.asarray(rows, np.int64)
        self._hold(self.lengths[chosen], self.finished[chosen])

    @property
    def committed(self) -> int:
        """Committed tokens of the shortest sequence that is not finished; of the longest, where all are."""
        if self.length == self.shortest:
            return self.length - self.nodes
        going = self.lengths[~self.finished]
        return int(going.min() if len(going) else self.lengths.max()) - self.nodes

    def ends(self, cut: int) -> np.ndarray:
        """Where the tokens of every sequence end, ``[B]``, drafts included, at a cut."""
        return np.maximum(self.lengths - self.nodes, cut) + self.nodes

    def reread_bytes(self) -> int:
        """Of the bytes held, those that several layers read, once for each layer beyond the first."""
        return 0

    def _room(self, boundary: int) -> list[int]:
        room = boundary - self.lengths + self.nodes
        return np.where(self.finished, UNLIMITED, room).tolist()

    def _finish(self, done: Sequence[bool], cut: int) -> None:
        """Say which sequences get no more tokens.

        Raises:
            ValueError: a sequence goes on that ends before the cut.
        """
        flags = np.asarray(done, bool)
        back = np.flatnonzero(~flags & (self.lengths - self.nodes < cut)).tolist()
        if back:
            raise ValueError(
                f"finish: sequence {back[0]} was finished and cannot go on: others have been packed past its end"
            )
        self.finished = flags
