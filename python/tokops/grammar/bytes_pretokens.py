"""Where pre-tokens end: an automaton over texts with marks, which knows what the future may still decide.

A pre-tokeniser cuts a text by patterns that prefer some matches to others and look ahead, so a cut may be certain only
once later characters are known. The automaton reads a character and whether a cut lies before it. A state holds what
may still match, and what must not match any more because a less preferred match was taken. A text with cuts is read to
its end exactly if the pre-tokeniser makes these cuts.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import numpy as np

from .bytes_regex import (
    CHAR,
    END,
    LOOK,
    MATCH,
    SPLIT,
    Alphabet,
    Char,
    Choice,
    PatternError,
    Repeat,
    compile_tree,
    parse,
)

#: States of every automaton here: the one that nothing leads out of, and the one before the first character.
DEAD, START = 0, 1

_GAP = (-1,)  # in place of threads: characters at which no match begins


def _filled(tree):
    """A tree that matches what lies between its matches, too, where that is easy to say."""
    inner = tree.part if isinstance(tree, Repeat) and tree.least else tree
    if not isinstance(inner, Char):
        return tree
    return Choice((tree, Repeat(Char(inner.set.complement()), 1, None, True)))


class Stage:
    """Cuts by one pattern: its matches, and the runs of characters between them."""

    def __init__(self, pattern: str, alphabet: Alphabet):
        self.code = compile_tree(_filled(parse(pattern)), alphabet)
        self._alphabet = alphabet
        # What may match, preferred first, and what must not.
        self._states: list[tuple[tuple, frozenset]] = [((), frozenset()), ((), frozenset())]
        self._numbers: dict[tuple[tuple, frozenset], int] = {}
        self._steps: dict[tuple[int, bool, int], tuple[int, ...]] = {}
        self._gaps: bool | None = None

    def step(self, state: int, mark: bool, kind: int) -> tuple[int, ...]:
        """The states after a character of a class, with or without a cut before it."""
        key = state, mark, kind
        if key not in self._steps:
            self._steps[key] = tuple(self._step(state, mark, kind))
        return self._steps[key]

    def ends(self, state: int) -> bool:
        """Whether the text may end here."""
        if state == START:
            return True
        threads, forbidden = self._states[state]
        if self._closure(forbidden, END)[1]:
            return False
        return threads == _GAP or self._closure(threads, END)[1]

    def _closure(self, threads: Iterable[int], kind: int) -> tuple[list[int], bool]:
        """Threads at the next character, preferred first, and whether one has matched, which ends the list."""
        found: list[int] = []
        seen = set()
        stack = list(threads)[::-1]
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            name, one, two = self.code[at]
            if name == CHAR:
                found.append(at)
            elif name == SPLIT:
                stack += [two, one]
            elif name == MATCH:
                return found, True
            elif name == LOOK and self._alphabet.has(one, kind) != bool(two):
                stack.append(at + 1)
        return found, False

    def _forward(self, threads: Iterable[int], kind: int) -> Iterator[int]:
        return (at + 1 for at in threads if self._alphabet.has(self.code[at][1], kind))

    def _step(self, state: int, mark: bool, kind: int) -> Iterator[int]:
        threads, forbidden = self._states[state]
        barred, matched = self._closure(forbidden, kind)
        if matched:
            return
        gap = threads == _GAP
        ahead: list[int] = []
        if state != START and not gap:
            ahead, matched = self._closure(threads, kind)
            if mark and not matched:
                return
        elif state == START and not mark:
            return
        fresh, _ = self._closure((0,), kind)
        if mark:
            barred += ahead
            yield from self._enter(tuple(self._forward(fresh, kind)), barred, kind)
        if (
            gap != mark and self._has_gaps()
        ):  # a run of characters at which nothing matches begins, or goes on
            yield from self._enter(_GAP, barred + fresh, kind)
        if not mark and not gap:
            yield from self._enter(tuple(self._forward(ahead, kind)), barred, kind)

    def _enter(self, threads: tuple, barred: Sequence[int], kind: int) -> Iterator[int]:
        if threads:
            state = threads, frozenset(self._forward(barred, kind))
            if state not in self._numbers:
                self._numbers[state] = len(self._states)
                self._states.append(state)
            yield self._numbers[state]

    def _has_gaps(self) -> bool:
        """Whether some character alone is no match. Patterns of byte-level models match every one."""
        if self._gaps is None:
            self._gaps = not all(self._single(kind) for kind in range(len(self._alphabet)))
        return self._gaps

    def _single(self, kind: int) -> bool:
        fresh, _ = self._closure((0,), kind)
        return self._closure(self._forward(fresh, kind), END)[1]


class Pretokens:
    """Cuts by several patterns, each within the pieces of the one before; states are sets, numbered.

    Args:
        patterns: none leaves texts whole.
        samples: characters whose classes are known from the start; all those of the vocabulary.
    """

    def __init__(self, patterns: Sequence[str], samples: Iterable[str] = ()):
        self.alphabet = Alphabet()
        self.trivial = not patterns
        self.stages = [Stage(pattern, self.alphabet) for pattern in patterns or (r"[\s\S]+",)]
        for char in (*map(chr, range(256)), *samples):
            self.alphabet.of(char)
        self.first = (START,) * len(self.stages)
        self._sets: list[frozenset] = [frozenset(), frozenset([self.first])]
        self._numbers = {found: number for number, found in enumerate(self._sets)}
        self._live: dict[tuple, bool] = {}
        self._tables = [np.full((64, 64), -1, np.int32) for _ in range(2)]

    def step(self, state: int, mark: bool, kind: int) -> int:
        """The state after a character of a class, with or without a cut before it."""
        self._grow(kind)
        found = int(self._tables[mark][state, kind])
        if found < 0:
            after = (new for one in self._sets[state] for new in self.step_one(one, mark, kind))
            found = self.number(frozenset(after))
            self._grow(kind)
            self._tables[mark][state, kind] = found
        return found

    def steps(self, states: np.ndarray, mark: bool, kinds: np.ndarray) -> np.ndarray:
        """:meth:`step` of many states and classes."""
        self._grow(int(kinds.max(initial=0)))
        found = self._tables[mark][states, kinds]
        missing = np.flatnonzero(found < 0)
        if len(missing):
            for state, kind in {*zip(states[missing].tolist(), kinds[missing].tolist(), strict=True)}:
                self.step(state, mark, kind)
            found = self._tables[mark][states, kinds]
        return found

    def ends(self, state: int) -> bool:
        """Whether the text may end here, which is a cut, too."""
        return any(self._ends_one(one) for one in self._sets[state])

    def number(self, states: frozenset) -> int:
        """The number of a set of states of the single stages."""
        if states not in self._numbers:
            self._numbers[states] = len(self._sets)
            self._sets.append(states)
        return self._numbers[states]

    def step_one(self, one: tuple, mark: bool, kind: int) -> list[tuple]:
        """:meth:`step` of states of the single stages, without those that no text leads on from."""
        return [new for new in self._all_steps(one, mark, kind) if self._lives(new)]

    def _all_steps(self, one: tuple, mark: bool, kind: int) -> list[tuple]:
        found: list[tuple] = []
        # A cut is made by one stage. Those before it do not cut; those behind it see the end of their text.
        for cutter in range(len(one)) if mark else (None,):
            parts = []
            for level, state in enumerate(one):
                if cutter is not None and level > cutter:
                    ended = self.stages[level].ends(state)
                    parts.append(self.stages[level].step(START, True, kind) if ended else ())
                else:
                    parts.append(self.stages[level].step(state, level == cutter, kind))
            found += product(*parts)
        return found

    def _ends_one(self, one: tuple) -> bool:
        return all(stage.ends(state) for stage, state in zip(self.stages, one, strict=True))

    def _lives(self, one: tuple) -> bool:
        """Whether some text goes on from here to its end."""
        if one not in self._live:
            seen, stack = {one}, [one]
            while stack and not self._ends_one(stack[-1]):
                at = stack.pop()
                for kind, mark in product(range(len(self.alphabet)), (False, True)):
                    for new in self._all_steps(at, mark, kind):
                        if new not in seen and self._live.get(new, True):
                            seen.add(new)
                            stack.append(new)
            if stack:
                self._live[one] = True
            else:
                self._live.update(dict.fromkeys(seen, False))
        return self._live[one]

    def _grow(self, kind: int) -> None:
        rows, columns = self._tables[0].shape
        wanted = (rows * (2 if len(self._sets) > rows else 1), columns * (2 if kind >= columns else 1))
        if wanted != (rows, columns):
            for at, old in enumerate(self._tables):
                self._tables[at] = np.full(wanted, -1, np.int32)
                self._tables[at][:rows, :columns] = old
            self._grow(kind)


def patterns_of(spec: dict | None) -> tuple[list[str], str]:
    """The patterns that a pre-tokeniser cuts by, from its JSON, and what it puts before a text.

    Returns:
        Patterns for :class:`Pretokens`, and which texts get a space in front, if they begin with none: "never",
        "first" (those that no special token comes before) or "always".

    Raises:
        PatternError: a pre-tokeniser that loses characters, or one that is not known here, by name.
    """
    if spec is None:
        return [], "never"
    kind = spec["type"]
    if kind == "Sequence":
        inner = [patterns_of(part) for part in spec["pretokenizers"]]
        if len(inner) > 1 and any(lead != "never" for _, lead in inner):
            raise PatternError("a pre-tokenizer that puts a space before every piece is not supported")
        names = [part["type"] for part in spec["pretokenizers"]]
        if "ByteLevel" in names[:-1] or "Metaspace" in names[:-1]:
            raise PatternError(f"a pre-tokenizer behind {names[0]} is not supported")
        return [pattern for patterns, _ in inner for pattern in patterns], inner[0][1] if inner else "never"
    if kind == "ByteLevel":
        lead = "always" if spec["add_prefix_space"] else "never"
        return ([_GPT2] if spec.get("use_regex", True) else []), lead
    if kind == "Digits":
        return [r"\p{N}" if spec["individual_digits"] else r"\p{N}+"], "never"
    if kind == "Metaspace":
        return ([r" [^ ]*|[^ ]+"] if spec.get("split", True) else []), spec.get("prepend_scheme", "always")
    if kind == "Split":
        return [_split_pattern(spec)], "never"
    raise PatternError(f"the pre-tokenizer {kind} is not supported")


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _split_pattern(spec: dict) -> str:
    behavior, pattern = spec["behavior"], spec["pattern"]
    if behavior not in ("Isolated", "isolated") and not (
        behavior in ("Removed", "removed") and spec["invert"]
    ):
        raise PatternError(f"a Split pre-tokenizer of behavior {behavior} is not supported")
    if "Regex" in pattern:
        return pattern["Regex"]
    text = pattern["String"]
    if len(text) != 1:
        raise PatternError(f"a Split pre-tokenizer at {text!r} is not supported, only at one character")
    return f"[{'' if text.isalnum() or text == ' ' else chr(92)}{text}]"
