"""SMC: weighted texts that, as particles, follow the model's law among valid texts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .awrs import AWRS
from .base import Method

__all__ = ["SMC"]

_SCHEMES = ("stratified", "systematic", "multinomial", "residual")

#: ``critic(request, tokens, complete)``: log of a factor of a text's weight, given its new tokens.
Critic = Callable[[int, tuple[int, ...], bool], float]


@dataclass(frozen=True)
class SMC(Method):
    """Sequential Monte Carlo over :class:`AWRS` (COLM 2025, arXiv 2504.05410), for ``generate(do_sample=True)``.

    Every request is written by several particles. Each draws a legal token and multiplies its weight by the
    estimate of the legal mass; where weights have become too uneven, particles are drawn anew by their weights and go
    on equal. Weighted, they follow the model's law among the texts that the constraint accepts. A particle that finds
    no legal token has weight 0 and ends.

    What comes out is one text per request, drawn by the weights. ``return_dict_in_generate=True`` gives all particles
    with their weights, and ``log_z``, whose exponential is an unbiased estimate of the chance that the model by itself
    writes a valid text. Texts are bounded: the last of ``max_new_tokens`` tokens is an end token, by force and at
    its probability, so that longer texts count as invalid. Where there is no end token texts stop there instead.

    Particles share the pages of what they have in common; drawing anew permutes page tables and copies nothing.
    ``generate`` takes ``seed``, ``streams`` and ``constraints`` as for :class:`AWRS`; a request's texts depend
    neither on the batch nor on its order.

    Args:
        sampler: how tokens are drawn; holds the constraint. It must be ``proper`` unless ``threshold`` is 0. None is
            ``AWRS()``.
        particles: texts per request.
        threshold: particles are drawn anew where the effective number of them, ``1 / sum of squared weights``, is
            below this share of all. 0 never does, 1 almost always.
        resampling: ``stratified``, ``systematic``, ``multinomial`` or ``residual``.
        critic: ``critic(request, tokens, complete) -> float``, log of a factor of a text's weight. That of an
            unfinished text only guides resampling and is taken back at the next token; that of a text that has ended
            stays.

    Raises:
        ValueError: a number out of range, an unknown scheme, or a sampler whose weights are not proper.
    """

    slots: ClassVar[tuple[str, ...]] = ("constrain",)

    sampler: AWRS | None = None
    particles: int = 5
    threshold: float = 0.5
    resampling: str = "stratified"
    critic: Critic | None = None

    def __post_init__(self):
        for ok, message in (
            (self.particles >= 1, f"particles must be at least 1, got {self.particles}"),
            (0 <= self.threshold <= 1, f"threshold must be 0..1, got {self.threshold}"),
            (
                self.resampling in _SCHEMES,
                f"resampling must be {', '.join(_SCHEMES)}, got {self.resampling!r}",
            ),
            (self.awrs.proper or self.threshold == 0, "the sampler must be proper, or threshold 0"),
        ):
            if not ok:
                raise ValueError(f"SMC: {message}")

    @property
    def awrs(self) -> AWRS:
        """How tokens are drawn."""
        return AWRS() if self.sampler is None else self.sampler

    @property
    def loop(self) -> str:
        """See :attr:`Method.loop`."""
        return "smc"


def log_sum(log_weights: Sequence[float]) -> float:
    """Log of the sum of weights, in float64; -inf of nothing."""
    top = max(log_weights, default=-math.inf)
    if top == -math.inf:
        return -math.inf
    return top + math.log(math.fsum(math.exp(weight - top) for weight in log_weights))


def normalised(log_weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1; all 0 where all are."""
    total = log_sum(log_weights)
    return [0.0 if total == -math.inf else math.exp(weight - total) for weight in log_weights]


def effective(log_weights: Sequence[float]) -> float:
    """The effective number of particles, ``1 / sum of squared weights``; 0 where all weights are 0."""
    squares = math.fsum(weight * weight for weight in normalised(log_weights))
    return 1.0 / squares if squares else 0.0


def resample(weights: Sequence[float], uniform: Callable[[int], float], scheme: str) -> list[int]:
    """Which particle each one goes on from: as many as there are, ascending, each in expectation by its weight.

    Args:
        weights: P numbers that sum to 1.
        uniform: ``uniform(i)``, the i-th random number in [0, 1).
        scheme: see :class:`SMC`.
    """
    count = len(weights)
    if scheme == "stratified":
        return _by_points(weights, [(i + uniform(i)) / count for i in range(count)])
    if scheme == "systematic":
        shift = uniform(0)
        return _by_points(weights, [(i + shift) / count for i in range(count)])
    if scheme == "multinomial":
        return _by_points(weights, sorted(uniform(i) for i in range(count)))
    # Whole numbers of copies for certain, what is left by chance. A product that rounding has put just below a whole
    # number is that number.
    copies = [math.floor(weight * count * (1 + 1e-14)) for weight in weights]
    chosen = [i for i, number in enumerate(copies) for _ in range(number)]
    left = count - len(chosen)
    if left > 0:
        rest = [max(weight * count - number, 0.0) for weight, number in zip(weights, copies, strict=True)]
        total = math.fsum(rest)
        chosen += _by_points([x / total for x in rest], sorted(uniform(i) for i in range(left)))
    return sorted(chosen)


def pick(weights: Sequence[float], uniform: float) -> int:
    """One particle by its weight, for a random number in [0, 1)."""
    return _by_points(weights, [uniform])[0]


def _by_points(weights: Sequence[float], points: Sequence[float]) -> list[int]:
    """For ascending points in [0, 1) the particle whose share of the line each is in."""
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    chosen, at, reached = [], 0, weights[0]
    for point in points:
        while reached <= point and at < last:
            at += 1
            reached += weights[at]
        chosen.append(at)
    return chosen
