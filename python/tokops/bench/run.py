"""Runs cases and turns their times into rows: ratios to the floor and to every opponent, and the bars."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

from tokops import _native
from tokops._records import device_name

from . import opponents
from .attention import Case
from .floor import bytes_moved, read_passes
from .timing import interleaved, medians, stopwatch


@dataclass(frozen=True)
class Verdict:
    """One bar: the ratio that was seen and the one that was asked for."""

    against: str
    ratio: float
    least: float

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the bar."""
        return self.ratio >= self.least


@dataclass(frozen=True)
class Row:
    """What one case measured.

    Attributes:
        label: the case.
        seconds: median time of ours.
        floor_seconds: median time of the fastest pass that reads the same bytes.
        floor_by: the torch op that this pass uses.
        read_bytes: bytes that the op has to read.
        peers: median seconds by opponent.
        verdicts: the bars.
    """

    label: str
    seconds: float
    floor_seconds: float
    floor_by: str
    read_bytes: int
    peers: dict[str, float]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def of_floor(self) -> float:
        """Achieved bandwidth as a part of the bandwidth measured beside it."""
        return self.floor_seconds / self.seconds

    @property
    def rate(self) -> float:
        """GB/s of ours."""
        return self.read_bytes / self.seconds / 1e9

    def to_dict(self) -> dict:
        """The row as plain data."""
        return {
            **asdict(self),
            "of_floor": self.of_floor,
            "rate_gb_per_s": self.rate,
            "verdicts": [{**asdict(v), "met": v.met} for v in self.verdicts],
        }


def _reference(against: str, floor: float, peers: dict[str, float]) -> float | None:
    if against == "floor":
        return floor
    if against == "fastest torch":
        return min(peers[name] for name in opponents.DENSE)
    return peers.get(against)


def measure(
    case: Case,
    *,
    rounds: int = 15,
    seconds: float = 4.0,
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> Row:
    """Check a case against its opponents, then time ours, opponents and floor in turn.

    Raises:
        AssertionError: ours and an opponent disagree; nothing is timed then.
    """
    work = case.build()
    work.check()
    reads = read_passes(work.reads)
    calls = {("ours", ""): work.ours}
    calls |= {("peer", name): call for name, call in work.peers.items()}
    calls |= {("floor", name): call for name, call in reads.items()}
    taken = medians(interleaved(calls, rounds=rounds, seconds=seconds, watch=stopwatch(device), tick=tick))
    peers = {name: taken["peer", name] for name in work.peers}
    floor_by = min(reads, key=lambda name: taken["floor", name])
    size = sum(x.numel() * x.element_size() for x in work.reads)
    floor = taken["floor", floor_by] * work.fraction * size / bytes_moved(work.reads)
    ours = taken["ours", ""]
    verdicts = []
    for bar in case.bars:
        reference = _reference(bar.against, floor, peers)
        if reference is not None:
            verdicts.append(Verdict(bar.against, reference / ours, bar.least))
    return Row(case.label, ours, floor, floor_by, round(size * work.fraction), peers, verdicts)


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What the numbers were measured on."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "libraries": ", ".join(sorted(_native.loaded)) or "none (references)",
    }
