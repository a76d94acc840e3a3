"""The measured time of a verifying forward, by nodes and context."""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._records import cache_folder, keep
from .acceptance import isotonic

_KEY = ("device", "model", "dtype", "batch")


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Seconds of a forward that verifies n tokens of every sequence, by context length.

    What is read from it never falls with n (the measured medians go through isotonic regression) and is linear
    between measured sizes.

    Args:
        sizes: tokens per sequence in the forward, ascending, 1 first: plain decoding must stay a choice.
        contexts: committed tokens before them, ascending. A length in between reads the next longer one, a longer
            length the longest.
        seconds: ``[contexts][sizes]``, as measured.
        device, model, digest, dtype, batch: what was measured: the device's name, the model's and the hash of its
            configuration, the dtype, and how many sequences a forward held.

    Raises:
        ValueError: sizes or contexts not ascending, sizes that do not begin at 1, a time that is not a positive
            number, or a shape that does not fit.
    """

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    device: str = ""
    model: str = ""
    digest: str = ""
    dtype: str = ""
    batch: int = 1

    def __post_init__(self):
        def ascending(values):
            return bool(values) and all(a < b for a, b in itertools.pairwise(values))

        for name in ("sizes", "contexts"):
            object.__setattr__(self, name, tuple(int(x) for x in getattr(self, name)))
        object.__setattr__(self, "seconds", tuple(tuple(float(x) for x in row) for row in self.seconds))
        if not ascending(self.sizes) or self.sizes[0] != 1:
            raise ValueError(f"LatencyTable: sizes must ascend from 1, got {list(self.sizes)}")
        if not ascending(self.contexts) or self.contexts[0] < 0:
            raise ValueError(f"LatencyTable: contexts must ascend from 0 or more, got {list(self.contexts)}")
        shape = (len(self.contexts), len(self.sizes))
        if len(self.seconds) != shape[0] or any(len(row) != shape[1] for row in self.seconds):
            raise ValueError(
                f"LatencyTable: seconds must be [contexts, sizes] = {list(shape)}, got rows of "
                f"{[len(row) for row in self.seconds]}"
            )
        if not all(0 < x < math.inf for row in self.seconds for x in row):
            raise ValueError(f"LatencyTable: seconds must be positive and finite, got {self.seconds}")
        if self.batch < 1:
            raise ValueError(f"LatencyTable: batch must be at least 1, got {self.batch}")

    @functools.cached_property
    def _monotone(self) -> np.ndarray:
        return np.stack([isotonic(row) for row in self.seconds])

    def row(self, context: int = 0) -> np.ndarray:
        """Seconds by size, float64 and non-decreasing, of the bucket that a context length falls into."""
        if context < 0:
            raise ValueError(f"LatencyTable: context must be 0 or more, got {context}")
        return self._monotone[min(int(np.searchsorted(self.contexts, context)), len(self.contexts) - 1)]

    def at(self, nodes: Any, context: int = 0) -> Any:
        """Seconds of a forward of ``nodes`` tokens per sequence, a number (also a fraction) or an array of them.

        Raises:
            ValueError: fewer than 1 or more than were measured.
        """
        wanted = np.asarray(nodes, dtype=np.float64)
        if not ((wanted >= 1) & (wanted <= self.sizes[-1])).all():
            raise ValueError(
                f"LatencyTable: nodes must be 1..{self.sizes[-1]}, what was measured, got {nodes}"
            )
        found = np.interp(wanted, self.sizes, self.row(context))
        return float(found) if found.ndim == 0 else found

    def edges(self, context: int = 0, most: int | None = None) -> tuple[int, ...]:
        """Sizes worth having: 1, and of every run of equal times the largest.

        Args:
            context: as in :meth:`row`.
            most: the largest size wanted, which ends a run that goes on beyond it; None: all that were measured.
        """
        row, sizes = self.row(context), self.sizes
        last = [i for i in range(len(row)) if i + 1 == len(row) or row[i + 1] > row[i]]
        found = {1, *(sizes[i] for i in last)}
        if most is not None:
            found = {n for n in found if n <= most}
            above = int(np.searchsorted(sizes, most))
            if 0 < above < len(sizes) and (sizes[above] == most or row[above - 1] == row[above]):
                found.add(most)
        return tuple(sorted(found))

    def curve(
        self,
        context: int = 0,
        *,
        extra: float = 0.0,
        most: int | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sizes and seconds per step, as :func:`~tokops.speculative.dynamic_size` takes them; made once, not per step.

        Args:
            context: as in :meth:`row`.
            extra: seconds of a step besides verification: drafting, sampling, moving rows.
            most: the largest size to offer; None: all that were measured.
            device: where the tensors go.

        Returns:
            ``sizes [S]`` int64 and ``seconds [S]`` float64.
        """
        offered = list(self.edges(context, most)) or [1]
        seconds = torch.tensor(self.at(offered, context) + extra, dtype=torch.float64, device=device)
        return torch.tensor(offered, device=device), seconds

    def totals(
        self, context: int = 0, *, extra: float = 0.0, device: torch.device | str | None = None
    ) -> Tensor:
        """Seconds per step by drafted tokens of the whole batch, for :func:`~tokops.speculative.pooled_sizes`.

        A batch that verifies m drafted tokens in all is taken to need what equal trees of 1 + m / batch nodes need.

        Returns:
            float64 ``[1 + batch * (largest size - 1)]``, at m = 0, 1, ...
        """
        drafted = np.arange(self.batch * (self.sizes[-1] - 1) + 1)
        return torch.tensor(self.at(1 + drafted / self.batch, context) + extra, device=device)

    def save(self, folder: str | os.PathLike | None = None) -> pathlib.Path:
        """Keep the table; one of the same device, model, dtype and batch is replaced.

        Args:
            folder: where; None is the user's cache folder.
        """
        return keep(_file(folder, self.digest), _name(self), dataclasses.asdict(self))

    @classmethod
    def load(
        cls,
        device: str,
        model: str,
        digest: str,
        dtype: str,
        batch: int = 1,
        folder: str | os.PathLike | None = None,
    ) -> "LatencyTable | None":
        """The table that :meth:`save` kept for a device, model, dtype and batch; None if there is none.

        Raises:
            ValueError: the file is there and is not what :meth:`save` writes.
        """
        path = _file(folder, digest)
        if not path.exists():
            return None
        wanted = cls((1,), (0,), ((1.0,),), device, model, digest, dtype, batch)
        try:
            record = json.loads(path.read_text()).get(_name(wanted))
            return None if record is None else cls(**record)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a latency file: {error!r}; delete it and run tokops tune-tree"
            ) from error


def _file(folder: str | os.PathLike | None, digest: str) -> pathlib.Path:
    place = cache_folder("latency") if folder is None else pathlib.Path(folder)
    return place / f"{digest}.json"


def _name(table: LatencyTable) -> str:
    return " | ".join(str(getattr(table, field)) for field in _KEY)
