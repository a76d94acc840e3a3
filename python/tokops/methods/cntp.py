"""CNTP: where the model hesitates, several continuations are tried and the most confident one is kept."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._exact import sane_logits
from .base import Method, is_whole

__all__ = ["CNTP"]

_TINY = 1e-10  # inside the logarithm, as published
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class CNTP(Method):
    """Cautious next token prediction (ACL Findings 2025, arXiv 2507.03038), for ``generate(do_sample=True)``.

    Where the entropy of the next token's law is low, one token is drawn as usual. Where it is high, N trials are
    drawn, each until a token of punctuation, a stopping criterion or ``max_trial_len`` tokens, and the one with the
    lowest perplexity is kept whole, the first of equals. N grows with the entropy H in nats:
    ``floor(n_min + (n_max - n_min) * clip((H - h_min) / (h_max - h_min), 0, 1))``. Laws are those after the logits
    processors (temperature, top-k, top-p, ...).

    What comes out does not follow the model's law. Let W be the law of a segment of plain sampling at a branch, f its
    perplexity, F(s) the mass of segments with a higher one and E(s) of those with the same: a segment s is kept with
    probability ``W(s) / E(s) * ((F(s) + E(s))^N - F(s)^N)``. With ``n_max=1`` it is plain sampling, token by token.

    All trials of a request share the pages of their prefix; nothing is copied or computed twice. The requests of a
    batch branch on their own. A trial that has lost leaves the batch at once, the best that has ended waits for the
    others. ``generate`` takes two more arguments: ``seed`` (None draws one from torch's generator) and ``streams``,
    numbers ``[B]`` of the requests (None: their places in the batch). Draws are keyed by seed, request, trial, where
    the trials branch, and position, so that neither the batch nor its order changes a request's tokens. (Without the
    place of the branch, trials would draw the numbers again of a lost trial that ran past the winner.)

    Tokens of punctuation come from the ``tokenizer`` given to ``generate``, or from ``stop_tokens``.

    Args:
        h_min, h_max: entropies, in nats, up to which ``n_min`` trials are drawn and from which on ``n_max`` are;
            ``h_min=inf``: ``n_min`` everywhere.
        n_min, n_max: least and largest number of trials; one is a plain draw.
        fixed: ``n_max`` trials wherever the entropy is above ``h_min`` (the paper's ablation).
        characters: what ends a trial.
        punct: ``suffix``, every token whose text ends with one of ``characters`` (default), or ``first_id``, the
            first token of each, which is what the published code does and misses ``).`` or a token with a space.
        stop_tokens: the ids themselves, instead of ``characters`` and ``punct``.
        max_trial_len: longest trial; the published code has no such limit.
        score_on: the law whose perplexity counts: ``processed`` (published; top-p makes it confident) or ``raw``.
        abort: drop a trial as soon as it cannot win any more, whatever it would draw: the surprise it has gathered,
            spread over ``max_trial_len`` tokens, is above the best finished mean. Tokens do not change.

    Raises:
        ValueError: a number out of range, or a fraction where a whole number is meant.
        RuntimeError: while it decodes: no token of a request has a finite logit. NaN counts as -inf.
    """

    slots: ClassVar[tuple[str, ...]] = ("draft", "verify")

    h_min: float = 0.01
    h_max: float = 1.5
    n_min: int = 1
    n_max: int = 10
    fixed: bool = False
    characters: str = ".,\n?!:;)]}"
    punct: str = "suffix"
    stop_tokens: tuple[int, ...] | None = None
    max_trial_len: int = 128
    score_on: str = "processed"
    abort: bool = False

    def __post_init__(self):
        whole = ("n_min", "n_max", "max_trial_len")
        for ok, message in (
            *(
                (is_whole(getattr(self, x)), f"{x} must be an integer, got {getattr(self, x)!r}")
                for x in whole
            ),
            (
                self.stop_tokens is None or all(map(is_whole, self.stop_tokens)),
                f"stop_tokens must be integers, got {self.stop_tokens!r}",
            ),
            (self.h_min >= 0, f"h_min must be at least 0, got {self.h_min}"),
            (
                self.h_min < self.h_max or self.h_min == float("inf"),
                f"h_max must be above h_min, {self.h_min}, got {self.h_max}",
            ),
            (
                1 <= self.n_min <= self.n_max,
                f"1 <= n_min <= n_max must hold, got {self.n_min} and {self.n_max}",
            ),
            (self.max_trial_len >= 1, f"max_trial_len must be at least 1, got {self.max_trial_len}"),
            (self.punct in ("suffix", "first_id"), f"punct must be suffix or first_id, got {self.punct!r}"),
            (
                self.score_on in ("processed", "raw"),
                f"score_on must be processed or raw, got {self.score_on!r}",
            ),
        ):
            if not ok:
                raise ValueError(f"CNTP: {message}")

    @property
    def loop(self) -> str:
        """See :attr:`Method.loop`."""
        return "cntp"

    def trials(self, entropy: Tensor) -> Tensor:
        """Numbers of trials, int64, for entropies in nats, of any shape; NaN counts as 0."""
        if self.h_min == float("inf"):
            return torch.full_like(entropy, self.n_min, dtype=torch.int64)
        if self.fixed:
            return torch.where(entropy > self.h_min, self.n_max, self.n_min)
        share = ((entropy.double().nan_to_num(0.0) - self.h_min) / (self.h_max - self.h_min)).clamp(0.0, 1.0)
        return (self.n_min + (self.n_max - self.n_min) * share).floor().long()


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of the laws of logits ``[..., V]``; float32 ``[...]``.

    NaN counts as -inf; the entropy of a row without a finite logit is NaN.
    """
    q = torch.softmax(sane_logits(logits), -1)
    return -(q * (q + _TINY).log()).sum(-1)


def trial_stream(stream: int, start: int, trial: int) -> int:
    """The random stream of a trial: a hash of its request, the position where it branches, and its number.

    Its upper half of 32 bits is never a request's own, as long as those are below 2^31.
    """
    x = 0
    for value in (stream, start, trial):
        x = (x + value + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return (x & 0x7FFFFFFF) | 0x80000000
