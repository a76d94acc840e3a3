"""When a large model takes over from a small one that reasons: the policy, without any model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..sampling import Sampling

__all__ = ["SpeculativeThinking", "sentiment"]


def sentiment(text: str, positive: Sequence[str], negative: Sequence[str]) -> int:
    """The tone of a text: 1 where positive words prevail, -1 where negative ones do or both are as many, 0 for none.

    Every occurrence counts, in any case and inside longer words too.

    Args:
        text: what to judge.
        positive, negative: words or phrases, in lower case.
    """
    text = text.lower()
    up, down = (sum(text.count(word) for word in words) for words in (positive, negative))
    if up > down:
        return 1
    return -1 if down else 0


@dataclass(frozen=True)
class SpeculativeThinking:
    """Reasoning with a small model that a large one helps at turns of thought (arXiv 2504.12329).

    The small model writes. After a paragraph its next ``probe`` tokens are looked at: where they reflect, affirm or
    verify, the large model writes them instead. It also takes over where the text wants to verify, and where it has
    reflected too often. The defaults are the published ones for reasoning models; ``begin=100, reasoning=False`` are
    those for others. Every span is a sample of one of the two models; what both together write is neither's law.

    This is a policy for :func:`tokops.hf.generate_guided`, which needs two models; it is nothing to patch one with.

    Args:
        triggers: strings after which the small model is looked at. One may lie inside a token.
        positive: words of affirmation, in lower case.
        negative: words of reflection.
        verify: words of verification. They count as negative, too.
        probe: tokens looked at, and tokens the large model writes instead.
        verification: tokens the large model adds where the text written at a turn has a word of verification.
        recap_after: reflections after which the large model is asked to look back; ``math.inf`` is never.
        recap_after_step, recap_after_max: by how much that number grows with every use, and up to what.
        recap_length: tokens it then writes.
        recap_length_step, recap_length_max: by how much they grow with every use, and up to what.
        recap_prompt: what is put before them.
        begin: tokens the large model writes at the very beginning.
        reasoning: whether the small model reasons. If not, the large model is asked at every turn.
        choose_large: whether the large model's tokens are taken whenever it was asked. If not, only where one of the
            two is negative and the other is not (the small one's tone -1 and the large one's 0 or 1, or 1 and -1).
        stretch: tokens the small model writes at most before the loop begins anew.
        small, large: how each model's tokens are drawn.

    Raises:
        ValueError: a number out of range, an empty trigger or word, or a word that is not in lower case.
    """

    triggers: tuple[str, ...] = ("\n\n",)
    positive: tuple[str, ...] = ("yeah", "yes", "final answer", "confident")
    negative: tuple[str, ...] = ("wait", "alternatively", "hold on", "another")
    verify: tuple[str, ...] = ("verify", "think again", "recap", "check")
    probe: int = 20
    verification: int = 125
    recap_after: float = 15
    recap_after_step: int = 5
    recap_after_max: float = 30
    recap_length: int = 125
    recap_length_step: int = 25
    recap_length_max: int = 200
    recap_prompt: str = "Let me check whether there are some wrong steps:"
    begin: int = 0
    reasoning: bool = True
    choose_large: bool = True
    stretch: int = 1024
    small: Sampling = field(default_factory=lambda: Sampling(temperature=0.6, top_k=50, top_p=0.95))
    large: Sampling = field(default_factory=lambda: Sampling(temperature=0.6, top_k=50, top_p=0.95))

    def __post_init__(self):
        for name, least in (
            ("probe", 1),
            ("stretch", 1),
            ("verification", 0),
            ("recap_after", 1),
            ("recap_after_step", 0),
            ("recap_length", 0),
            ("recap_length_step", 0),
            ("begin", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"SpeculativeThinking: {name} must be at least {least}, got {value}")
        for name in ("recap_after", "recap_length"):
            value, most = getattr(self, name), getattr(self, f"{name}_max")
            if value > most and value != float("inf"):
                raise ValueError(
                    f"SpeculativeThinking: {name}_max must be at least {name}, {value}, got {most}"
                )
        for name in ("triggers", "positive", "negative", "verify"):
            for word in getattr(self, name):
                if not word or (name != "triggers" and word != word.lower()):
                    raise ValueError(
                        f"SpeculativeThinking: {name} must be strings, not empty"
                        f"{'' if name == 'triggers' else ' and in lower case'}, got {word!r}"
                    )

    def tone(self, text: str) -> int:
        """See :func:`sentiment`; words of verification are negative."""
        return sentiment(text, self.positive, self.negative + self.verify)

    def verifies(self, text: str) -> bool:
        """Whether a text has a word of verification."""
        text = text.lower()
        return any(word in text for word in self.verify)

    def prefers_large(self, small: int, large: int) -> bool:
        """Whether the large model's answer is taken, once it was asked, given the tone of both."""
        return self.choose_large or (small < 0 <= large) or (large < 0 < small)


@dataclass
class Reflections:
    """The counters of one generation: when to look back, and for how long."""

    policy: SpeculativeThinking
    count: int = 0
    threshold: float = 0
    length: int = 0

    def __post_init__(self):
        self.threshold, self.length = self.policy.recap_after, self.policy.recap_length

    @property
    def due(self) -> bool:
        """Whether the text has reflected often enough."""
        return self.count >= self.threshold

    def looked_back(self) -> None:
        """Count anew, later and for longer."""
        policy = self.policy
        self.count = 0
        self.threshold = min(self.threshold + policy.recap_after_step, policy.recap_after_max)
        self.length = min(self.length + policy.recap_length_step, policy.recap_length_max)
