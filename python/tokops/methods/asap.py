"""ASAp and CARS: decoding under a constraint that learns, text by text, how much of the law each prefix leads to."""

import importlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..grammar._grammar import Grammar
from ..grammar.constraint import Constraint, constraint_of
from .base import Method

__all__ = ["ASAp"]


def new_trie(vocabulary: int, max_bytes: int = 1 << 30) -> Any:
    """An empty trie of bounds; see csrc/grammar/host/asap_trie.h."""
    return importlib.import_module("tokops.lib._grammar").AsapTrie(vocabulary, max_bytes=max_bytes)


class Tries:
    """What was learned, by whatever it holds for: model, constraint, prompt, and settings of the law.

    Args:
        limit: tries that are kept; the one that was used longest ago goes first.
    """

    def __init__(self, limit: int = 64):
        self._limit = limit
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, key: Hashable, vocabulary: int, max_bytes: int) -> Any:
        """The trie of a key, a new one if there is none."""
        if key not in self._held:
            self._held[key] = new_trie(vocabulary, max_bytes)
            if len(self._held) > self._limit:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()


@dataclass(frozen=True)
class ASAp(Method):
    """Grammar-aligned decoding (NeurIPS 2024, arXiv 2405.21047) and CARS (arXiv 2510.01902), for sampling.

    Masking tokens one by one ignores how much of what follows a token is valid, so that masked texts do not follow
    the model's law among valid texts. Here each token's probability is multiplied by an upper bound of the mass of
    valid texts behind it. The bound is 1 until texts that went there have shown what is illegal; it is kept in a trie
    that lives as long as this object, for every model, constraint, prompt and setting of the law on its own.

    ``variant="asap"`` masks every token; texts are valid from the first one on, and their law comes nearer to the
    target with each. ``variant="cars"`` draws unmasked where a text enters new ground, and starts again when it turns
    out illegal: every text is an exact, independent sample of the target, and fewer and fewer are rejected.

    Laws are those after the logits processors, which decide what the target is. Texts of one batch see the bounds as
    they were before it (before each round of it, for texts that start again). A text that stops for another reason
    than an end token counts as not known: only the masks along it are learned. ``generate`` takes ``seed``,
    ``streams`` and ``constraints`` as for :class:`AWRS`. Without a constraint it is plain sampling.

    For ``generate(logits_processor=[...])`` alone see :class:`tokops.hf.asap_processor.ASApProcessor`.

    Args:
        constraint: what texts must be, a compiled grammar or any :class:`tokops.grammar.Constraint`. For ``asap`` it
            should have ``mask``; without it every token is asked about.
        variant: ``asap`` or ``cars``.
        max_attempts: how often a text may be started; then it breaks off, empty.
        max_bytes: of what is remembered per prompt. Beyond them nothing new is learned.
        tries: what was learned; give one object to several methods to share it.

    Raises:
        ValueError: an unknown variant or a number out of range.
        TypeError: ``constraint`` is neither.
    """

    slots: ClassVar[tuple[str, ...]] = ("constrain",)

    constraint: Constraint | Grammar | None = None
    variant: str = "asap"
    max_attempts: int = 1000
    max_bytes: int = 1 << 30
    tries: Tries = field(default_factory=Tries, compare=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "constraint", constraint_of("ASAp", self.constraint))
        if self.variant not in ("asap", "cars"):
            raise ValueError(f"ASAp: variant must be asap or cars, got {self.variant!r}")
        for name in ("max_attempts", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"ASAp: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def loop(self) -> str:
        """See :attr:`Method.loop`."""
        return "asap"
