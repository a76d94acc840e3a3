"""Timing of several callables in turn, so that a slow minute of the machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def on_host(call: Callable[[], object]) -> Callable[[], float]:
    """A call that runs another and gives its seconds by the host's clock."""

    def seconds() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return seconds


def captured(call: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The CUDA graph of a call, and what it returned, which a replay writes again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def on_cuda(call: Callable[[], object]) -> Callable[[], float]:
    """A call that replays another as a captured graph and gives the seconds that the device worked on it.

    What a kernel of microseconds takes to be launched from Python stays out, and so does the second cache: it
    is filled with something else before every replay.
    """
    graph, _ = captured(call)
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    other = torch.empty(4 * cache, dtype=torch.int8, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds() -> float:
        other.zero_()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return seconds


def stopwatch(device: torch.device | str) -> Callable[[Callable[[], object]], Callable[[], float]]:
    """How calls are timed on a device: :func:`on_host` or :func:`on_cuda`."""
    return on_cuda if torch.device(device).type == "cuda" else on_host


def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = 15,
    least: int = 5,
    seconds: float = 4.0,
    warmup: int = 1,
    watch: Callable[[Callable[[], object]], Callable[[], float]] = on_host,
    tick: Callable[[], None] = lambda: None,
) -> dict[Name, list[float]]:
    """Time every call once per round, in an order that rotates from round to round.

    Args:
        calls: name -> callable without arguments.
        rounds: most samples of one call.
        least: samples that even a slow call gets.
        seconds: a call that has taken this long in all, and has its ``least`` samples, leaves the rounds.
        warmup: untimed calls of each first.
        watch: see :func:`stopwatch`.
        tick: called after every round, for a progress bar.

    Returns:
        Seconds per call, by name, in the order of the rounds.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    timed = {name: watch(call) for name, call in calls.items()}
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken = samples[name]
            if len(taken) >= least and sum(taken) >= seconds:
                continue
            taken.append(timed[name]())
        tick()
    return samples


def medians(samples: Mapping[Name, list[float]]) -> dict[Name, float]:
    """The median of every list, by name."""
    return {name: statistics.median(taken) for name, taken in samples.items()}
