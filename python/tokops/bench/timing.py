"""Timing of several callables in turn, so that a slow minute of the machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


def wait_for(device: torch.device | str) -> Callable[[], None]:
    """The call that returns once queued work on a device has finished."""
    return torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None


def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = 15,
    least: int = 5,
    seconds: float = 4.0,
    warmup: int = 1,
    wait: Callable[[], None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
) -> dict[Name, list[float]]:
    """Time every call once per round, in an order that rotates from round to round.

    Args:
        calls: name -> callable without arguments.
        rounds: most samples of one call.
        least: samples that even a slow call gets.
        seconds: a call that has taken this long in all, and has its ``least`` samples, leaves the rounds.
        warmup: untimed calls of each first.
        wait: waits for queued work, see :func:`wait_for`.
        tick: called after every round, for a progress bar.

    Returns:
        Seconds per call, by name, in the order of the rounds.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    wait()
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken = samples[name]
            if len(taken) >= least and sum(taken) >= seconds:
                continue
            begin = time.perf_counter()
            calls[name]()
            wait()
            taken.append(time.perf_counter() - begin)
        tick()
    return samples


def medians(samples: Mapping[Name, list[float]]) -> dict[Name, float]:
    """The median of every list, by name."""
    return {name: statistics.median(taken) for name, taken in samples.items()}
