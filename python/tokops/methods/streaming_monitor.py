"""A monitor that scores every generated token and ends a text when there is evidence enough."""

import importlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._constrain import Constrain, refuser

__all__ = ["Evidence", "KeywordMonitor", "LinearProbe", "MonitorModel", "StreamingMonitor"]

_RULES = ("delay", "fraction", "ema", "cusum")


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """``sigmoid(h . weight + bias)`` of hidden states of the model that decodes: no forward of its own.

    A token is scored once the model has read it, so that a text ends a token later than with other monitors.

    Args:
        weight: ``[d]``.
        bias: a number.
        layer: whose hidden state; None: what ``lm_head`` takes.
    """

    weight: Tensor
    bias: float = 0.0
    layer: int | None = None

    def __post_init__(self):
        if self.weight.dim() != 1:
            raise ValueError(f"LinearProbe: weight must be [d], got {list(self.weight.shape)}")

    def score(self, hidden: Tensor) -> Tensor:
        """``[..., d]`` -> ``[...]`` float32."""
        return torch.sigmoid(hidden.float() @ self.weight.to(hidden.device).float() + self.bias)


@dataclass(frozen=True, eq=False)
class MonitorModel:
    """A causal model that reads the prompt and the text, and a linear head on its final hidden states.

    Args:
        model: of transformers; patched or not; also one with a head of its own, whose backbone is used.
        weight, bias: of the token head, ``[d]`` and a number.
        tokenizer: the monitor's; None: it is that of the model that decodes. With another one the text is encoded
            anew from its last boundary between words, and scores of tokens that changed are taken back.
        prompt: ids of a prompt for the monitor, from its text or, with one tokenizer, its ids; None: as they are.
    """

    model: Any
    weight: Tensor
    bias: float = 0.0
    tokenizer: Any = None
    prompt: Callable[[Any], list[int]] | None = None

    def __post_init__(self):
        if self.weight.dim() != 1:
            raise ValueError(f"MonitorModel: weight must be [d], got {list(self.weight.shape)}")

    def score(self, hidden: Tensor) -> Tensor:
        """``[..., d]`` -> ``[...]`` float32."""
        return LinearProbe(self.weight, self.bias).score(hidden)


class KeywordMonitor:
    """Scores 1 for a token in which one of some strings ends, and 0 for others. In any case, and inside words too.

    Args:
        words: strings, none empty.
        fold: ignore case.
    """

    def __init__(self, words: Sequence[str], fold: bool = True):
        self.words = (words,) if isinstance(words, str) else tuple(words)
        self.fold = fold
        if not self.words or not all(self.words):
            raise ValueError(f"KeywordMonitor: words must be at least one string, none empty, got {words!r}")
        # Aho-Corasick: where a character leads from a state, where it goes on if nowhere, and whether a word ends.
        self._next: list[dict[str, int]] = [{}]
        self._ends = [False]
        for word in self.words:
            state = 0
            for c in self._characters(word):
                if c not in self._next[state]:
                    self._next[state][c] = len(self._next)
                    self._next.append({})
                    self._ends.append(False)
                state = self._next[state][c]
            self._ends[state] = True
        self._fall = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for c, child in self._next[state].items():
                self._fall[child] = self.step(self._fall[state], c)[0]
                self._ends[child] |= self._ends[self._fall[child]]
                queue.append(child)

    def _characters(self, text: str) -> str:
        return text.casefold() if self.fold else text

    def step(self, state: int, text: str) -> tuple[int, bool]:
        """The automaton's state after more text, from 0 at the beginning, and whether a word has ended in it."""
        found = False
        for c in self._characters(text):
            while state and c not in self._next[state]:
                state = self._fall[state]
            state = self._next[state].get(c, 0)
            found |= self._ends[state]
        return state, found

    def __repr__(self) -> str:
        return f"KeywordMonitor({self.words!r}, fold={self.fold})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeywordMonitor) and (self.words, self.fold) == (other.words, other.fold)

    def __hash__(self) -> int:
        return hash((self.words, self.fold))


@dataclass(frozen=True)
class Evidence:
    """What the scores of a text add up to.

    Attributes:
        count: tokens flagged.
        recent: of the last tokens, whether they were flagged.
        mean: exponential moving average of the scores.
        excess: the CUSUM statistic.
    """

    count: int = 0
    recent: tuple[bool, ...] = ()
    mean: float = 0.0
    excess: float = 0.0


@dataclass(frozen=True, eq=False)
class StreamingMonitor(Constrain):
    """Streaming content monitor (Li et al., NeurIPS 2025, arXiv 2506.09996): early stopping on partial text.

    Every generated token gets a score in 0..1, and is flagged where it is at least ``theta``. A text ends when the
    rule says so:

    * ``delay``: ``k`` tokens were flagged (the paper's delay-k; k = 1 is the first, k = inf never stops);
    * ``fraction``: of the last ``window`` tokens a ``share`` were flagged;
    * ``ema``: the moving average ``m = decay * m + (1 - decay) * score``, from 0, is above ``theta``;
    * ``cusum``: ``s = max(0, s + score - drift)``, from 0, is at least ``limit``.

    Logits and cache of the model that decodes are not touched. Only tokens that were kept are scored: drafts that
    are rejected, and beams that are dropped, leave no trace, and speculation gives the tokens it gives otherwise.

    Thresholds are those of one monitor, language and domain. Words are labelled one by one in the paper's data: in
    long texts the count grows fast, in short answers k must be small.

    Args:
        scorer: a :class:`LinearProbe`, a :class:`MonitorModel`, a :class:`KeywordMonitor`, or a callable that takes
            the ids of prompt and text and a position in the text, and returns scores for the tokens from there on.
        theta, k, rule, window, share, decay, drift, limit: see above.
        every: tokens between two looks: the monitor reads so many at once, and a text ends up to so many minus one
            later. What was reported as the first trigger does not change.

    Raises:
        ValueError: a number out of range.
    """

    module: ClassVar[str] = "streaming_monitor"

    scorer: Any
    theta: float = 0.5
    k: float = 1
    rule: str = "delay"
    window: int = 16
    share: float = 0.5
    decay: float = 0.9
    drift: float = 0.5
    limit: float = 2.0
    every: int = 1

    def __post_init__(self):
        refuse = refuser(self)
        known = isinstance(self.scorer, LinearProbe | MonitorModel | KeywordMonitor)
        refuse(
            not known and not callable(self.scorer),
            f"scorer must be a monitor or a callable, got {self.scorer!r}",
        )
        refuse(self.rule not in _RULES, f"rule must be one of {', '.join(_RULES)}, got {self.rule!r}")
        refuse(not 0 <= self.theta <= 1, f"theta must be 0..1, got {self.theta}")
        refuse(
            not self.k >= 1 or (math.isfinite(self.k) and self.k != int(self.k)),
            f"k must be a whole number from 1, or inf, got {self.k}",
        )
        refuse(self.window < 1, f"window must be at least 1, got {self.window}")
        refuse(not 0 < self.share <= 1, f"share must be above 0 and at most 1, got {self.share}")
        refuse(not 0 <= self.decay < 1, f"decay must be 0..1 and below 1, got {self.decay}")
        refuse(not 0 <= self.drift < 1, f"drift must be 0..1 and below 1, got {self.drift}")
        refuse(not self.limit > 0, f"limit must be above 0, got {self.limit}")
        refuse(self.every < 1, f"every must be at least 1, got {self.every}")

    def add(self, evidence: Evidence, score: float) -> Evidence:
        """The evidence with the score of one more token."""
        flagged = score >= self.theta
        changed = replace(evidence, count=evidence.count + flagged)
        if self.rule == "fraction":
            return replace(changed, recent=(*evidence.recent, flagged)[-self.window :])
        if self.rule == "ema":
            return replace(changed, mean=self.decay * evidence.mean + (1 - self.decay) * score)
        if self.rule == "cusum":
            return replace(changed, excess=max(0.0, evidence.excess + score - self.drift))
        return changed

    def stops(self, evidence: Evidence) -> bool:
        """Whether a text ends on this evidence."""
        if self.rule == "fraction":
            return sum(evidence.recent) >= self.share * self.window
        if self.rule == "ema":
            return evidence.mean > self.theta
        if self.rule == "cusum":
            return evidence.excess >= self.limit
        return evidence.count >= self.k

    def first_trigger(self, scores: Sequence[float]) -> int | None:
        """The first of some scores, from 0, at which a text ends; None if it does not."""
        evidence = Evidence()
        for i, score in enumerate(scores):
            evidence = self.add(evidence, float(score))
            if self.stops(evidence):
                return i
        return None

    def criterion(self, *args: Any, **options: Any) -> Any:
        """A stopping criterion for ``generate(stopping_criteria=[...])`` on a model that is not patched.

        A probe also needs ``logits_processor=criterion.processors``, which looks at hidden states and changes nothing.
        :meth:`processor` is the other way: a logits processor that allows nothing but the end where the text is to end.

        Args:
            args, options: see ``make_criterion`` of ``tokops.hf.streaming_monitor``.
        """
        return importlib.import_module("tokops.hf.streaming_monitor").make_criterion(self, *args, **options)

    def describe(self) -> str:
        return f"StreamingMonitor({type(self.scorer).__name__}, rule={self.rule}, theta={self.theta}, k={self.k})"
