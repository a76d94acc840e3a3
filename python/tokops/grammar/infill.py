"""Infilling under a context-free grammar: whether a text with gaps can be completed, and how.

The question is whether the grammar and the regular language of a text's completions have a word in common. It is
answered without building their intersection (Mündler et al., "Constrained decoding of diffusion LLMs with
context-free grammars", arXiv 2508.10111).
"""

import importlib.resources
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .infill_notation import Notation, read_notation

__all__ = ["BUILTIN", "Completion", "Gap", "InfillChecker", "InfillGrammar", "InfillUnknownError"]

#: Grammars that come with the library, name -> how their texts are split into terminals, and what may not follow some.
BUILTIN: dict[str, tuple[str, dict[str, str]]] = {
    "json": ("union", {}),
    "cpp": ("longest", {"/": "*"}),
}
_MOST_STEPS = 2_000_000_000


@dataclass(frozen=True)
class Gap:
    """Text that is not known.

    Args:
        at_least: bytes that it has at least. Each costs a place of its own, so keep it small.

    Raises:
        ValueError: the number is negative or above 65,536.
    """

    at_least: int = 0

    def __post_init__(self):
        if not 0 <= self.at_least <= 65536:
            raise ValueError(f"Gap: at_least must be 0..65536, got {self.at_least}")


Part = bytes | str | Gap | None


@dataclass(frozen=True)
class Completion:
    """A completed text.

    Attributes:
        text: the whole.
        fills: what was put in each gap, in order. Gaps with nothing between them are one.
    """

    text: bytes
    fills: tuple[bytes, ...]


class InfillUnknownError(RuntimeError):
    """A question was not answered within its bounds. It says nothing about the text.

    Attributes:
        bound: what ran out: ``"steps"``, ``"seconds"``, ``"memory"``, ``"length"`` or ``"cancelled"``.
    """

    def __init__(self, bound: str):
        super().__init__(
            f"infilling was not decided: out of {bound}" if bound != "cancelled" else "cancelled"
        )
        self.bound = bound


class InfillChecker:
    """Answers one question after the other, and keeps what the next shares with the last at the end of the text.

    Not bound to a text: any question may follow any other. Several threads may ask the same checker and then wait for
    each other; made by :meth:`InfillGrammar.checker`, one each, they do not. The interpreter lock is released.
    """

    def __init__(self, native):
        self._native = native

    def is_completable(
        self, parts: Iterable[Part], *, seconds: float | None = None, steps: int = _MOST_STEPS
    ) -> bool:
        """Whether gaps can be filled so that the text belongs to the grammar.

        Args:
            parts: words (bytes, or str in UTF-8) and gaps (:class:`Gap`, or None for one of any length). A word may
                begin or end anywhere, also within a token or a character.
            seconds: time that may be taken.
            steps: basic operations that may be taken.

        Raises:
            InfillUnknownError: a bound was passed before the answer was known.
            TypeError, ValueError: parts or bounds that are none.
        """
        answer, bound, _, _ = self._native.check(_plain(parts), *_bounds(steps, seconds))
        return _known(answer, bound)

    def complete(
        self,
        parts: Iterable[Part],
        *,
        weights: Sequence[int] = (),
        seconds: float | None = None,
        steps: int = _MOST_STEPS,
    ) -> Completion | None:
        """A completion with as few bytes in the gaps as possible, or None where there is none.

        Args:
            parts, seconds, steps: as of :meth:`is_completable`.
            weights: what a byte costs in each gap; 1 for gaps beyond the list.

        Raises:
            As :meth:`is_completable`.
        """
        weights = [int(weight) for weight in weights]
        if any(not 0 <= weight < 1 << 31 for weight in weights):
            raise ValueError(f"complete: weights must be 0..2^31 - 1, got {weights}")
        plain = _plain(parts)
        answer, bound, _, best = self._native.complete(plain, weights, *_bounds(steps, seconds))
        if not _known(answer, bound):
            return None
        fills = best[1]
        left = iter(fills)
        text = b"".join(part if isinstance(part, bytes) else next(left) for part in plain)
        return Completion(text, tuple(fills))

    def cancel(self) -> None:
        """Ends the question that another thread is asking, if any."""
        self._native.cancel()


class InfillGrammar:
    """A context-free grammar over terminals that are regular languages, made ready for infilling.

    Args of all constructors:
        lexer: what splits a text into terminals. ``"union"``: every splitting counts, so the grammar is one over
            characters. ``"longest"``: as a lexer does it, no terminal is followed by a byte with which it were another
            terminal, and where a pattern and a literal have a word in common it is the literal (reserved words). It
            looks one byte ahead: ``..`` before a third dot is not seen where ``...`` is a terminal and ``..`` is not.
        not_before: for literals of the grammar, bytes that may not follow them, for what one byte does not show (``/``
            not before ``*``, as it would begin a comment).

    Raises (all constructors):
        GrammarError: a syntax error, or a grammar of no text.
        ValueError: another lexer, or symbols that are not defined.
    """

    def __init__(self, native):
        self._native = native
        self._checker = self.checker()

    @classmethod
    def from_lark(
        cls,
        source: str,
        start: str = "start",
        *,
        lexer: str = "union",
        not_before: Mapping[str, str] | None = None,
    ) -> "InfillGrammar":
        """Out of a grammar in Lark's notation: all that :func:`compile_lark` takes, or with ``lexer="longest"`` the
        part that :func:`read_notation` describes."""
        if lexer == "longest":
            return cls._from_notation(read_notation(source), start, lexer, not_before)
        return cls(_native().InfillGrammar.from_lark(source, start, lexer, dict(not_before or {})))

    @classmethod
    def from_ebnf(cls, source: str, start: str = "root") -> "InfillGrammar":
        """Out of a grammar in EBNF or GBNF, over characters (``lexer="union"``)."""
        return cls(_native().InfillGrammar.from_ebnf(source, start, "union", {}))

    @classmethod
    def from_rules(
        cls,
        rules: Mapping[str, Sequence[Sequence[str]]],
        terminals: Mapping[str, str] | None = None,
        start: str = "start",
        *,
        ignored: Sequence[str] = (),
        lexer: str = "union",
        not_before: Mapping[str, str] | None = None,
    ) -> "InfillGrammar":
        """Out of rules and terminals.

        Args:
            rules: the alternatives of each rule, each a sequence of names; a name that is neither a rule nor a
                terminal stands for itself as text.
            terminals: patterns (ECMA-262) by name, each for whole terminals.
            start: the rule of whole texts.
            ignored: terminals that may stand before, between and behind all others, any number of times.

        >>> brackets = InfillGrammar.from_rules({"start": [[], ["(", "start", ")", "start"]]})
        >>> brackets.is_completable(["(", None, ")("])
        False
        >>> brackets.complete(["(", None, ")(", None]).text
        b'()()'
        """
        patterns = dict(terminals or {})
        if both := patterns.keys() & rules.keys():
            raise ValueError(f"from_rules: {sorted(both)} are rules and terminals")
        names = {name for bodies in rules.values() for body in bodies for name in body} | set(ignored)
        kinds = {name: ("regex", pattern) for name, pattern in patterns.items()}
        kinds |= {name: ("literal", name) for name in sorted(names - kinds.keys() - rules.keys())}
        plain = {head: [list(body) for body in bodies] for head, bodies in rules.items()}
        return cls._from_notation(Notation(plain, kinds, list(ignored)), start, lexer, not_before)

    @classmethod
    def _from_notation(
        cls, grammar: Notation, start: str, lexer: str, not_before: Mapping[str, str] | None
    ) -> "InfillGrammar":
        if start not in grammar.rules:
            raise ValueError(f"no rule is named {start!r}")
        if rules := [name for name in grammar.ignored if name in grammar.rules]:
            raise ValueError(f"ignored: {rules} are rules, terminals are wanted")
        number = {name: i for i, name in enumerate([*grammar.terminals, *grammar.rules])}
        native = _native().InfillGrammar.from_productions(
            list(grammar.terminals.values()),
            [number[name] for name in grammar.ignored],
            len(grammar.rules),
            [
                (number[head], [number[name] for name in body])
                for head, bodies in grammar.rules.items()
                for body in bodies
            ],
            number[start],
            lexer,
            dict(not_before or {}),
        )
        return cls(native)

    @classmethod
    def builtin(cls, name: str) -> "InfillGrammar":
        """One of the grammars in :data:`BUILTIN`: ``"json"`` (RFC 8259) or ``"cpp"`` (a large part of C++)."""
        if name not in BUILTIN:
            raise ValueError(f"builtin: name must be one of {sorted(BUILTIN)}, got {name!r}")
        lexer, not_before = BUILTIN[name]
        source = importlib.resources.files("tokops.data").joinpath("grammars").joinpath(f"{name}.lark")
        return cls.from_lark(source.read_text("utf-8"), lexer=lexer, not_before=not_before)

    def checker(self) -> InfillChecker:
        """A checker with a cache of its own."""
        return InfillChecker(self._native.checker())

    def is_completable(self, parts: Iterable[Part], **bounds) -> bool:
        """As :meth:`InfillChecker.is_completable`, by a checker that all users of this grammar share."""
        return self._checker.is_completable(parts, **bounds)

    def complete(self, parts: Iterable[Part], **options) -> Completion | None:
        """As :meth:`InfillChecker.complete`, by a checker that all users of this grammar share."""
        return self._checker.complete(parts, **options)

    def accepts(self, text: bytes | str, **bounds) -> bool:
        """Whether a whole text belongs to the grammar."""
        return self._checker.is_completable([text], **bounds)

    def normal_form_steps(self) -> list[tuple[str, int, list[tuple[int, list[int]]]]]:
        """How the grammar was brought to at most two symbols a body: name of each step, start and productions after it.

        Symbols are numbers: terminals first, then heads.
        """
        return self._native.normal_form_steps()


def _native():
    from ..lib import _grammar

    return _grammar


def _plain(parts: Iterable[Part]) -> list[bytes | int]:
    """Words as bytes, gaps as what they have at least; neighbouring gaps are one."""
    if isinstance(parts, (str, bytes)):
        raise TypeError("parts: a list of words and gaps is wanted, got one text")
    plain: list[bytes | int] = []
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        if part is None:
            part = Gap()
        if isinstance(part, Gap):
            if plain and isinstance(plain[-1], int):
                plain[-1] = min(plain[-1] + part.at_least, 1 << 20)
            else:
                plain.append(part.at_least)
        elif isinstance(part, bytes):
            if part:
                plain.append(part)
        else:
            raise TypeError(f"parts: words are bytes or str, gaps Gap or None; got {type(part).__name__}")
    return plain


def _bounds(steps: int, seconds: float | None) -> tuple[int, float | None]:
    if not 1 <= steps < 1 << 62:
        raise ValueError(f"steps must be 1..2^62 - 1, got {steps}")
    if seconds is not None and not (seconds >= 0 and math.isfinite(seconds) and seconds < 1e9):
        raise ValueError(f"seconds must be 0..1e9, got {seconds}")
    return steps, seconds


def _known(answer: str, bound: str) -> bool:
    if answer == "unknown":
        raise InfillUnknownError(bound)
    return answer == "yes"
