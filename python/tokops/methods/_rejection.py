"""Samplers of one legal token that ask a constraint as little as they can, each with an estimate of the legal mass."""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple, Protocol

Ok = Callable[[int], bool]


class Source(Protocol):
    """Where a sampler's chances come from."""

    def stream(self, excluded: Collection[int]) -> Iterator[tuple[int, float]]:
        """A fresh stream of the tokens not excluded, without replacement, by the law; each with its probability."""

    def geometric(self, success: float) -> int:
        """How many trials it takes, at least 1."""


class Outcome(NamedTuple):
    """A token and its weight, an unbiased estimate of the legal mass; the weight of a rejected token is 0."""

    token: int
    weight: float
    accepted: bool


def rejected(token: int) -> Outcome:
    return Outcome(token, 0.0, False)


def improper(source: Source, ok: Ok, max_rejects: float) -> Outcome:
    """The first legal candidate, with weight 1."""
    token = -1
    for count, (token, _) in enumerate(source.stream(()), 1):
        if ok(token):
            return Outcome(token, 1.0, True)
        if count >= max_rejects:
            break
    return rejected(token)


def two_loop(source: Source, ok: Ok, max_rejects: float) -> Outcome:
    """As published: on to a first legal candidate, and from fresh candidates on to a second one.

    Where ``max_rejects`` cuts the second loop short, its end counts in place of the acceptance; the estimate stays
    unbiased.
    """
    token, mass = -1, 0.0
    bad: set[int] = set()
    for token, p in source.stream(()):
        if ok(token):
            break
        bad.add(token)
        mass += p
        if len(bad) >= max_rejects:
            return rejected(token)
    else:
        return rejected(token)
    first = token
    more = 0
    for token, _ in source.stream(bad):
        if ok(token):
            break
        more += 1
        if len(bad) + more >= max_rejects:
            return Outcome(first, max(1.0 - mass, 0.0) / (len(bad) + more), True)
    return Outcome(first, max(1.0 - mass, 0.0) / (1 + len(bad) + more), True)


def recursive(source: Source, ok: Ok, max_rejects: float) -> Outcome:
    """Recursive estimate: what is behind the first legal candidate is judged by one more.

    The product of ``1 - q`` over the rejected candidates is the mass that they leave, so that no logarithms are
    needed: the weight is that mass where the next candidate is legal too, else the candidate's own probability.
    """
    stream = source.stream(())
    here = next(stream, None)
    mass, rejects = 0.0, 0
    while here is not None:
        token, p = here
        cut = rejects >= max_rejects - 1
        behind = None if cut else next(stream, None)
        if ok(token):
            if cut or (behind is not None and ok(behind[0])):
                return Outcome(token, max(1.0 - mass, 0.0), True)
            return Outcome(token, p, True)
        if behind is None:
            return rejected(token)
        mass += p
        rejects += 1
        here = behind
    return rejected(-1)


def geometric(source: Source, ok: Ok, max_rejects: float, max_accepts: int) -> Outcome:
    """Drawing with replacement until ``max_accepts`` legal ones: repeats of known bad tokens are only counted."""
    accepts: int = 0
    rejects: float = 0
    mass = 0.0
    bad: set[int] = set()
    last, result = -1, None
    for _ in range(max_accepts):
        if rejects >= max_rejects:
            break
        found = False
        for token, p in source.stream(bad):
            if mass > 0:
                rejects += source.geometric(max(1.0 - mass, p)) - 1
            if rejects >= max_rejects:
                break
            if ok(token):
                found = True
                accepts += 1
                result = token if result is None else result
                break
            last = token
            rejects += 1
            mass += p
            bad.add(token)
            if rejects >= max_rejects:
                break
        if not found:
            break
    if result is None:
        return rejected(last)
    rejects = min(rejects, max_rejects)
    return Outcome(result, min(max_accepts - 1, accepts) / (accepts + rejects - 1), True)
