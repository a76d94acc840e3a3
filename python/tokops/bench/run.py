"""Runs cases and turns their times into rows: ratios to the floor and to every opponent, and the bars."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from tokops import _native
from tokops._records import device_name

from . import opponents
from .attention import Bar, Case, Workload
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
        seconds: median time of ours, of one layer where there are several.
        floor_seconds: median time of the fastest pass that reads the same bytes; 0 where bytes are no measure.
        floor_by: the torch op that this pass uses; "" where bytes are no measure.
        read_bytes: bytes that the op has to read; 0 where they are no measure.
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


def _reference(bar: Bar, floor: float, peers: dict[str, float]) -> float | None:
    if bar.seconds is not None:
        return bar.seconds
    if bar.against == "floor":
        return floor
    if bar.against == "fastest torch":
        return min(peers[name] for name in opponents.DENSE)
    return peers.get(bar.against)


def _floor(work: Workload, taken: Mapping[tuple[str, str], float]) -> tuple[float, str]:
    """Seconds of the fastest pass over what is read, and the torch op that it uses."""
    passes = {name: seconds for (kind, name), seconds in taken.items() if kind == "floor"}
    if not passes:
        return 0.0, ""
    by = min(passes, key=lambda name: passes[name])
    return passes[by] * work.fraction * _size(work.reads) / bytes_moved(work.reads), by


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


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
    reads = read_passes(work.reads) if work.reads else {}
    calls: dict[tuple[str, str], Callable[[], object]] = {("ours", ""): work.ours}
    calls |= {("peer", name): call for name, call in work.peers.items()}
    calls |= {("floor", name): call for name, call in reads.items()}
    samples = interleaved(calls, rounds=rounds, seconds=seconds, watch=stopwatch(device), tick=tick)
    taken = {name: time / work.layers for name, time in medians(samples).items()}
    peers = {name: taken["peer", name] for name in work.peers}
    floor, floor_by = _floor(work, taken)
    ours = taken["ours", ""]
    verdicts = []
    for bar in case.bars:
        reference = _reference(bar, floor, peers)
        if reference is not None:
            verdicts.append(Verdict(bar.against, reference / ours, bar.least))
    read = round(_size(work.reads) * work.fraction / work.layers)
    return Row(case.label, ours, floor, floor_by, read, peers, verdicts)


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What the numbers were measured on."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "libraries": ", ".join(sorted(_native.loaded)) or "none (references)",
    }
