"""What the demo measures: greedy identity, quality over a held-out stretch, and the speed of decode steps."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import Cache

from tokops.bench.timing import Name, interleaved, medians
from tokops.hf import quality
from tokops.hf.contexts import Context
from tokops.hf.families import CACHE

from .plan import Plan
from .ways import Way

Tick = Callable[[int], None]


def identity(stock: Way, ours: Way, context: Context, plan: Plan, tick: Tick) -> quality.Difference | None:
    """Decode greedily both ways; the first step at which the tokens differ, if any."""
    first = int(context.logits.argmax())
    runs = [
        quality.greedy(way.model, way.start(context, plan.room), first, plan.greedy, tick)
        for way in (stock, ours)
    ]
    return quality.first_difference(*runs)


def qualities(
    reference: Way, ways: Sequence[Way], context: Context, stretch: Tensor, plan: Plan, tick: Tick
) -> dict[str, quality.Quality]:
    """Agreement of every way with the reference, decoding the text after the document.

    Several tokens go through one forward: our caches treat each as a decode step with lists of its own.

    Args:
        stretch: ``[n + 1]`` int64.
    """
    given, targets = stretch[:-1], stretch[1:]
    dense = _predict(reference, context, given, plan, tick)
    found = {reference.name: quality.compare(dense, dense, targets)}
    for way in ways:
        found[way.name] = quality.compare(dense, _predict(way, context, given, plan, tick), targets)
    return found


def _predict(way: Way, context: Context, given: Tensor, plan: Plan, tick: Tick) -> Tensor:
    return quality.teacher_forced(way.model, way.start(context, plan.room), given, plan.chunk, tick)


class Stepper:
    """Greedy decoding of a batch, one call a step."""

    def __init__(self, way: Way, cache: Cache, first: Tensor):
        self.way, self.cache, self.last = way, cache, first

    @torch.no_grad()
    def __call__(self) -> None:
        """One step; its tokens are the input of the next."""
        logits = self.way.model(self.last, use_cache=True, **{CACHE: self.cache}).logits
        self.last = logits[:, -1:].argmax(-1)


class SharedStepper(Stepper):
    """A cache that several ways of ours use in turn: every step begins right after the document."""

    def __call__(self) -> None:
        """One step, taken back from the cache afterwards."""
        self.way.attach(self.cache)
        super().__call__()
        self.cache.crop(-1)


def speeds(steppers: Mapping[Name, Stepper], plan: Plan, tick: Callable[[], None]) -> dict[Name, float]:
    """Tokens per second of every way over its whole batch; the steps are timed in turn."""
    taken = medians(
        interleaved(steppers, rounds=plan.rounds, least=plan.least, seconds=plan.seconds, tick=tick)
    )
    return {name: steppers[name].last.shape[0] / seconds for name, seconds in taken.items()}


def first_tokens(context: Context, batch: int) -> Tensor:
    """``[batch, 1]``: the likeliest next tokens, so that the continuations of the document differ."""
    return context.logits.topk(batch).indices[:, None]
