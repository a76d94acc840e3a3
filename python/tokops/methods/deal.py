"""DeAL: decoding as a search for texts that are likely and score well under alignment heuristics."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ._constrain import Constrain, refuser

__all__ = ["DeAL", "banned_words", "keyword_coverage", "length_distance"]


@dataclass(frozen=True)
class DeAL(Constrain):
    """Decoding-time alignment (Huang et al., arXiv 2402.06147): candidates are judged by what they lead to.

    At every token the ``k`` likeliest candidates of a beam are continued for ``look_ahead`` tokens, the continuation
    is scored by the heuristics, and candidates are ranked by ``logP + lam * h``, of which ``beams`` are kept. A text
    that ends is scored as it is. With ``lam=0`` it is beam search. Put the rules into the prompt as well: that is
    where the search starts.

    **One beam** is a logits processor: it forbids all but the candidates and adds ``lam * h`` to theirs, in terms of
    gain over the text so far, so that greedy decoding, sampling, transformers' beams and drafts of ``Speculate`` all
    follow the same score. It has a cache of its own, which reads every text once more. **Several beams**, and chunks,
    are a decoding loop: continuations share the pages of their prefix, and what the chosen candidate has computed is
    kept, so that a token costs ``look_ahead`` forwards (without, one). Finished texts compete until the end. Where
    ``generate`` samples, the loop draws each beam's candidates without replacement.

    **Chunks** (``chunk`` tokens at a time): every beam is continued by ``samples`` drawn texts, and the best are kept:
    cheaper, and fairer to reward models, which expect whole sentences.

    Args:
        heuristics: each a callable that takes a text and returns a number, more is better; or an object with
            ``score(prompts, texts)`` for many at a time. A text is what was generated, without special tokens and
            without an unfinished character; for one that is empty the score is 0.
        weights: of the heuristics; None: 1 each.
        lam: weight of their sum, at least 0.
        k: candidates per beam.
        look_ahead: tokens of a continuation; 0 scores the text with its candidate.
        beams: texts kept.
        norm: gamma; logP is divided by ``length ** gamma``. For several beams and chunks.
        temperature: of the continuations; 0 is greedy.
        no_repeat_ngram: n-grams of this length do not come twice in a continuation; 0 forbids nothing. Greedy
            continuations else fall into loops.
        reuse: where the candidate is the first token of the continuation that its beam was judged by, the rest of it
            is taken as its own, if at most so many tokens are missing (none, where it had ended). For several beams.
        h_max: no weighted sum of heuristics is larger. Candidates that could not be kept even so are not continued;
            the result is the same. For several beams.
        chunk: tokens of a chunk; 0: token by token.
        samples, chunk_temperature: of every beam in a chunk.
        seed: of random numbers; None draws one from torch's generator.
        on_ids: heuristics get lists of token ids, the prompt without padding and what was generated, and no tokenizer
            is needed.

    Raises:
        ValueError: a number out of range, or options that contradict each other.
    """

    module: ClassVar[str] = "deal"

    heuristics: Any
    weights: tuple[float, ...] | None = None
    lam: float = 1.0
    k: int = 10
    look_ahead: int = 32
    beams: int = 1
    norm: float = 0.0
    temperature: float = 0.0
    no_repeat_ngram: int = 0
    reuse: int = 0
    h_max: float | None = None
    chunk: int = 0
    samples: int = 8
    chunk_temperature: float = 1.0
    seed: int | None = None
    on_ids: bool = False

    def __post_init__(self):
        refuse = refuser(self)
        if callable(self.heuristics) or hasattr(self.heuristics, "score"):
            object.__setattr__(self, "heuristics", (self.heuristics,))
        object.__setattr__(self, "heuristics", tuple(self.heuristics))
        for h in self.heuristics:
            refuse(not callable(h) and not hasattr(h, "score"), f"a heuristic must be callable, got {h!r}")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            refuse(
                len(self.weights) != len(self.heuristics),
                f"weights must be {len(self.heuristics)} numbers, got {len(self.weights)}",
            )
        for name, least in (
            ("lam", 0), ("k", 1), ("look_ahead", 0), ("beams", 1), ("norm", 0), ("temperature", 0),
            ("no_repeat_ngram", 0), ("reuse", 0), ("chunk", 0), ("samples", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            refuse(not least <= value < math.inf, f"{name} must be at least {least}, got {value}")
        refuse(
            not 0 < self.chunk_temperature < math.inf,
            f"chunk_temperature must be above 0, got {self.chunk_temperature}",
        )
        given = {"norm": self.norm > 0, "reuse": self.reuse > 0, "h_max": self.h_max is not None}
        for name, set_here in given.items():
            value = getattr(self, name)
            refuse(set_here and not self.searches, f"{name} goes with several beams or chunks, got {value}")
            refuse(
                set_here and self.chunk > 0 and name != "norm", f"{name} does not go with chunks, got {value}"
            )

    @property
    def searches(self) -> bool:
        """Whether it has a decoding loop of its own."""
        return self.beams > 1 or self.chunk > 0

    @property
    def loop(self) -> str | None:
        return "deal_search" if self.searches else None

    @property
    def hooks(self) -> str | None:
        return None if self.searches else self.module

    def score(self, prompts: Sequence[Any], texts: Sequence[Any]) -> list[float]:
        """The weighted sums of the heuristics for texts, or lists of ids; 0 for those without any text.

        Raises:
            ValueError: a heuristic that returns NaN, or another number of scores.
        """
        totals = [0.0] * len(texts)
        filled = [i for i, text in enumerate(texts) if len(text)]
        weights = self.weights or (1.0,) * len(self.heuristics)
        for h, weight in zip(self.heuristics, weights, strict=True):
            if hasattr(h, "score"):
                scores = list(h.score([prompts[i] for i in filled], [texts[i] for i in filled]))
            else:
                scores = [h(texts[i]) for i in filled]
            if len(scores) != len(filled) or any(float(score) != float(score) for score in scores):
                raise ValueError(f"DeAL: a heuristic must give {len(filled)} numbers, got {scores}")
            for i, score in zip(filled, scores, strict=True):
                if weight:
                    totals[i] += weight * float(score)
        return totals

    def describe(self) -> str:
        kept = (
            f"chunk={self.chunk}, samples={self.samples}" if self.chunk else f"look_ahead={self.look_ahead}"
        )
        return (
            f"DeAL({len(self.heuristics)} heuristics, lam={self.lam}, k={self.k}, beams={self.beams}, {kept})"
        )


def keyword_coverage(words: Sequence[str | Sequence[str]]) -> Callable[[str], float]:
    """A heuristic: the share of words that occur, as whole words in any case.

    Args:
        words: each a word, or a sequence of its inflections, one of which is enough.
    """
    forms = [(word,) if isinstance(word, str) else tuple(word) for word in words]
    if not forms or not all(all(group) and group for group in forms):
        raise ValueError(f"keyword_coverage: words must be at least one word, none empty, got {words!r}")
    patterns = [_whole_words(group) for group in forms]

    def coverage(text: str) -> float:
        return sum(bool(pattern.search(text)) for pattern in patterns) / len(patterns)

    return coverage


def banned_words(words: Sequence[str], cost: float = math.inf) -> Callable[[str], float]:
    """A heuristic: minus ``cost`` for every occurrence of one of the words, whole and in any case."""
    if not words or not all(words):
        raise ValueError(f"banned_words: words must be at least one word, none empty, got {words!r}")
    pattern = _whole_words(tuple(words))

    def innocence(text: str) -> float:
        count = len(pattern.findall(text))
        return -cost * count if count else 0.0

    return innocence


def length_distance(target: int, unit: str = "words") -> Callable[[str], float]:
    """A heuristic: minus the distance to a length in ``words``, ``sentences`` or ``characters``."""
    count = {
        "words": lambda text: len(text.split()),
        "sentences": lambda text: len(re.findall(r"[^.!?\s][^.!?]*", text)),
        "characters": len,
    }.get(unit)
    if count is None or target < 1:
        raise ValueError(
            f"length_distance: target must be at least 1 of words, sentences or characters, got {target} {unit}"
        )

    def closeness(text: str) -> float:
        return -float(abs(count(text) - target))

    return closeness


def _whole_words(words: Sequence[str]) -> "re.Pattern[str]":
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)", re.IGNORECASE)
