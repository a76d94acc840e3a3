"""Where every sequence of a cache starts and ends, and how much of that is a draft."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: What :meth:`Lengths.room` says where nothing limits it.
UNLIMITED = 2**31 - 1


class Lengths:
    """Lengths of sequences that lie behind one common cut: the part of a layout that counts tokens.

    Positions below the cut are packed, in all sequences alike; the shortest sequence that is not finished decides
    where the cut may be. A finished sequence can end before it. It then takes part as if it reached to the cut, with
    tokens that are nobody's. Left padding is counted in ``starts``.
    """

    lengths: np.ndarray
    finished: np.ndarray
    starts: Tensor | None  # [B], None: no padding has been told of
    past: int  # tokens before the forward at work
    device: torch.device

    def _start(self, batch: int) -> None:
        """Hold nothing of so many sequences."""
        self._hold(np.zeros(batch, np.int64), np.zeros(batch, bool))
        self.starts = None
        self._host_starts: list[int] = []

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
        if self.starts is not None:
            self._set_starts([self._host_starts[row] for row in rows])

    # ---- Left padding.

    @property
    def host_starts(self) -> list[int]:
        """First visible position of every sequence."""
        return self._host_starts or [0] * len(self.lengths)

    def _set_starts(self, starts: list[int]) -> None:
        self._host_starts = starts
        self.starts = torch.tensor(starts, dtype=torch.int32, device=self.device)

    def _note_starts(self, starts: Tensor | None) -> bool:
        """Note the first visible position of every sequence, as a prompt's layers tell; whether one has changed.

        A prompt may come in pieces, the first ones all padding. It is known where a sequence starts once a piece
        has a token of it.
        """
        if starts is None or (self.starts is None and self.past):
            return False
        known = [start < self.past for start in self.host_starts]
        if all(known):
            return False
        told = starts.tolist()
        host = [old if k else new for old, new, k in zip(self.host_starts, told, known, strict=True)]
        if host == self._host_starts:
            return False
        self._set_starts(host)
        return True

    def _crop_starts(self) -> bool:
        """After a crop: a sequence of which only padding is left starts behind it; whether there is one."""
        host = [min(start, n) for start, n in zip(self.host_starts, self.lengths.tolist(), strict=True)]
        if host == self.host_starts:
            return False
        self._set_starts(host)
        return True

    # ---- Which sequences go on.

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
