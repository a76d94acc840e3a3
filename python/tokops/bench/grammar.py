"""Grammar engines over schemas with instances: coverage, verdicts, and processor time of compiling, masks and accepts.

Stricter than MaskBench: after the last token the mask must allow the end; the mask's bit and `accept` must agree;
times are processor time of the thread, of a first and a second walk, masks without accepts; and engines are compared
on the schemas that all of them compile as well as on all. An engine runs in a process of its own, which is killed
when it takes too long or too much memory.
"""

import multiprocessing
import pathlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .grammar_engines import version
from .grammar_items import Item
from .grammar_worker import Outcome, serve

STATUSES = ("compiled", "refused", "time-out", "memory", "crash")
#: Percentiles that tables show and that ratios are formed of.
SHOWN = (50, 95, 99)
FIRST_MASK, MASK, MASK_COLD, ACCEPT, ACCEPT_COLD = (
    "first mask",
    "mask",
    "mask, first walk",
    "accept",
    "accept, first walk",
)
TIMES = (FIRST_MASK, MASK, MASK_COLD, ACCEPT, ACCEPT_COLD)


class EngineError(RuntimeError):
    """An engine could not even be started; the message says why."""


@dataclass(frozen=True)
class Limits:
    """Processor seconds per schema, and GiB of memory above what the engine held when it was ready."""

    seconds: float = 20.0
    memory: float = 4.0


class Runner:
    """An engine in a process of its own, started again after it had to be killed."""

    def __init__(self, engine: str, vocabulary: str, threads: int, limits: Limits):
        self.engine, self.vocabulary, self.threads, self.limits = engine, vocabulary, threads, limits
        self.process: Any = None

    def start(self) -> None:
        """Start the process and wait until the engine has read its vocabulary.

        Raises:
            EngineError: it ended before.
        """
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.engine, self.vocabulary, self.threads, self.limits.seconds)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        try:
            if self.connection.recv() != "ready":
                raise EOFError
        except EOFError:
            self.process.join()
            raise EngineError(f"{self.engine} could not be started (its words are above)") from None
        self.held = self._memory()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def run(self, item: Item) -> Outcome:
        """What the engine does with an item."""
        if self.process is None:
            self.start()
        self.connection.send(item)
        waited, step = 0.0, 0.02
        try:
            while not self.connection.poll(step):
                waited += step
                if self._memory() - self.held > self.limits.memory * 2**30:
                    self.stop()
                    return Outcome("memory", f"more than {self.limits.memory:g} GiB")
                if waited > 10 * self.limits.seconds + 30:  # it waits for something that won't come
                    self.stop()
                    return self._late("by the wall")
            return self.connection.recv()
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            if code == -signal.SIGPROF:
                return self._late("of processor time")
            return Outcome("crash", f"exit status {code}")

    def _late(self, how: str) -> Outcome:
        limit = int(self.limits.seconds * 1e9)
        return Outcome("time-out", f"more than {self.limits.seconds:g} s {how}", limit, limit)

    def _memory(self) -> int:
        """Resident bytes of the process; 0 where the system doesn't tell."""
        try:
            pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * 4096


@dataclass
class Result:
    """An engine's outcomes, one per item."""

    engine: str
    version: str
    items: Sequence[Item]
    outcomes: list[Outcome] = field(default_factory=list)

    def compiled(self) -> set[int]:
        """Which items the engine compiled."""
        return {i for i, one in enumerate(self.outcomes) if one.status == "compiled"}


def judge(outcome: Outcome) -> str:
    """ "exact", "over" (a valid instance refused), "under" (an invalid one accepted), "both", or the status."""
    if outcome.status != "compiled":
        return outcome.status
    over = any(one.valid and not one.accepted for one in outcome.walks)
    under = any(one.accepted and not one.valid for one in outcome.walks)
    return "both" if over and under else "over" if over else "under" if under else "exact"


def times(result: Result, only: set[int] | None = None) -> dict[str, np.ndarray]:
    """Nanoseconds by kind, over all items or some of them; time-outs count into the first mask, at the limit."""
    chosen = [one for i, one in enumerate(result.outcomes) if only is None or i in only]
    walks = [one for outcome in chosen for one in outcome.walks]

    def joined(name: str) -> np.ndarray:
        return np.array([t for one in walks for t in getattr(one, name)], np.int64)

    first = [one.first_mask_ns for one in chosen if one.status in ("compiled", "time-out")]
    names = ("warm_masks", "masks", "warm_accepts", "accepts")
    return {FIRST_MASK: np.array(first, np.int64), **dict(zip(TIMES[1:], map(joined, names), strict=True))}


def summary(result: Result, only: set[int] | None = None) -> dict[str, Any]:
    """Counts and percentiles (microseconds) of an engine, over all items or some of them."""
    chosen = [(item, one) for i, (item, one) in enumerate(zip(result.items, result.outcomes, strict=True))]
    chosen = [pair for i, pair in enumerate(chosen) if only is None or i in only]
    outcomes = [one for _, one in chosen]
    verdicts = [judge(one) for item, one in chosen if item.tests]
    walks = [one for outcome in outcomes for one in outcome.walks]
    out: dict[str, Any] = {"engine": result.engine, "version": result.version, "schemas": len(chosen)}
    out |= {status: sum(one.status == status for one in outcomes) for status in STATUSES}
    out |= {"with instances": len(verdicts), "exact": verdicts.count("exact")}
    out |= {name: sum(one in (name, "both") for one in verdicts) for name in ("over", "under")}
    out["valid"] = sum(one.valid for one in walks)
    out["valid refused"] = sum(one.valid and not one.accepted for one in walks)
    out["invalid"] = len(walks) - out["valid"]
    out["invalid accepted"] = sum(one.accepted and not one.valid for one in walks)
    out["disagreements"] = sum(one.disagreed for one in walks)
    out["tokens"] = sum(len(one.warm_masks) for one in walks)
    for name, taken in times(result, only).items():
        values = np.percentile(taken, (*SHOWN, 99.9)) / 1e3 if len(taken) else [float("nan")] * 4
        out[name] = dict(zip(map(str, (*SHOWN, 99.9)), map(float, values), strict=True))
        out[name]["mean"] = float(np.mean(taken)) / 1e3 if len(taken) else float("nan")
    return out


def run(
    items: Sequence[Item],
    engines: Sequence[str],
    *,
    vocabulary: str = "llama3",
    threads: int = 1,
    limits: Limits = Limits(),
    stage: Callable[[str, int], Callable[[int], None]] | None = None,
) -> list[Result]:
    """Run engines over items, one engine after the other.

    Args:
        items: schemas with instances.
        engines: names of :data:`grammar_engines.ENGINES`.
        vocabulary: see :func:`tokops.bench.vocabularies.load`.
        threads: that an engine may use.
        limits: per schema.
        stage: begins a progress bar: name and size in, the function that advances it out.

    Raises:
        EngineError: an engine could not be started.
    """
    results = []
    for name in engines:
        tick = stage(name, len(items)) if stage else lambda done: None
        runner = Runner(name, vocabulary, threads, limits)
        result = Result(name, version(name) or "", items)
        try:
            for item in items:
                result.outcomes.append(runner.run(item))
                tick(1)
        finally:
            runner.stop()
        results.append(result)
    return results
