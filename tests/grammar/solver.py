"""Whether any value meets demands, for the mask oracle.

Demands are brought into alternatives of facts, each of which is decided on its own. Recursive schemas: a demand that
comes up again while it is being decided is met by nothing there, which finds exactly the finite values.
"""

from __future__ import annotations

import functools
import itertools
import math

from .containers import Arrays, Objects
from .facts import NULL, TYPES, conjoin, conjunction
from .languages import Language, Unsupported, both, complement, has_text, intervals, steps, texts, words
from .numerals import Numbers
from .schemas import Schema, add_fact

MANY = 2000  # alternatives of one conjunction


class Solver:
    """Decides demands of one schema."""

    def __init__(self, schema: Schema):
        self.schema = schema
        schema.disjoint = self._disjoint
        self._found: dict = {}
        self._active: dict = {}
        self._lowest: float = math.inf
        self._alternatives: dict = {}

    def value(self, demands: frozenset):
        """A value that meets all demands, or None."""
        return self._decide(demands, TYPES, lambda t: self.alternatives(demands, t))

    def _decide(self, key, types, alternatives):
        if key in self._found:
            return self._found[key]
        if key in self._active:
            self._lowest = min(self._lowest, self._active[key])
            return None
        depth = len(self._active)
        if depth > 60:
            raise Unsupported("demands in too deep a nest")
        self._active[key], outer, self._lowest = depth, self._lowest, math.inf
        try:
            found = next(
                (v for t in types for one in alternatives(t) if (v := one.example()) is not None), None
            )
        finally:
            del self._active[key]
            own, self._lowest = self._lowest, outer
        if found is not None or own >= depth:
            self._found[key] = found
        else:
            self._lowest = min(outer, own)
        return found

    def _disjoint(self, own, theirs, t: str) -> bool:
        f = conjunction((own, theirs))
        if isinstance(f, bool):
            return not f
        key = (f, t)
        try:
            found = self._decide(key, (t,), lambda t: self._of_formulas([f], t))
        except Unsupported:  # not known: the negations stay, which is as exact
            return False
        return found is None and key in self._found

    def alternatives(self, demands: frozenset, t: str) -> list:
        """The alternatives of facts about a value of type ``t``."""
        key = demands, t
        if key not in self._alternatives:
            self._alternatives[key] = self._of_formulas([self.schema.formula(one, t) for one in demands], t)
        return self._alternatives[key]

    def _of_formulas(self, formulas, t: str) -> list:
        kind = {"string": Strings, "number": NumberFacts, "array": Arrays, "object": Objects}.get(t)
        found = dict.fromkeys(self._expand(list(formulas), frozenset(), itertools.count()))
        out = []
        for facts in found:
            if not any(other < facts for other in found):
                out.append(Constant(self, t, facts) if kind is None else kind(self, facts))
        return out

    def _expand(self, todo: list, facts: frozenset, counter):
        choices = []
        while todo:
            f = todo.pop()
            if f is False:
                return
            if f is True:
                continue
            if f[0] == "and":
                todo += f[1]
            elif f[0] == "or":
                choices.append(f)
            else:
                facts |= {f}
        if self._contradict(facts):
            return
        choices = [f for f in choices if not any(self._given(one, facts) for one in f[1])]
        if not choices:
            if next(counter) > MANY:
                raise Unsupported("too many alternatives")
            yield facts
            return
        first = min(choices, key=lambda f: len(f[1]))
        rest = [f for f in choices if f is not first]
        for one in first[1]:
            yield from self._expand([one, *rest], facts, counter)

    def _given(self, f, facts: frozenset) -> bool:
        return all(self._given(one, facts) for one in f[1]) if f[0] == "and" else f in facts

    def _contradict(self, facts: frozenset) -> bool:
        """Whether demands on one key exclude each other at first sight: what keeps alternatives few."""
        by_key: dict = {}
        needed = set()
        for f in facts:
            if f[0] in ("keys", "key") and f[1].kind == "words" and len(f[1].args[0]) == 1:
                by_key.setdefault(f[1], set()).add(f[2])
                if f[0] == "key":
                    needed.add(f[1])
        for key in needed:
            if conjoin(by_key[key]) is None:
                return True
            values = [one[1] for one in by_key[key] if one[0] == "="]
            if values and not all(self.schema.holds(one, values[0]) for one in by_key[key]):
                return True
        return False


class Constant:
    """An alternative for null or a boolean."""

    def __init__(self, solver: Solver, t: str, facts):
        values = [NULL] if t == "null" else [("boolean", True), ("boolean", False)]
        self.values = [v for v in values if all((v in f[1]) == (f[0] == "in") for f in facts)]

    def example(self):
        return self.values[0] if self.values else None


class Strings:
    """An alternative for strings: a language and bounds of the length."""

    def __init__(self, solver: Solver, facts):
        languages, self.low, self.high = [], 0, None
        for f in facts:
            if f[0] == "length":
                self.low = max(self.low, f[1])
                self.high = f[2] if self.high is None else self.high if f[2] is None else min(self.high, f[2])
            elif f[0] == "lang":
                languages.append(f[1])
            else:
                own = words(v[1] for v in f[1])
                languages.append(own if f[0] == "in" else complement(own))
        self.language = both(languages)

    def example(self):
        found = next(texts(self.language, self.low, self.high), None)
        return None if found is None else ("string", found)


class NumberFacts:
    """An alternative for numbers."""

    def __init__(self, solver: Solver, facts):
        self.numbers = functools.reduce(add_fact, facts, Numbers())

    def example(self):
        found = self.numbers.example()
        return None if found is None else ("number", found)


def can_extend(language: Language, left: str, pending, low: int, high: int | None, apart) -> bool:
    """Whether a text of a language begins with ``left``, then a code point out of ``pending``, and is not in ``apart``.

    Args:
        language: the texts.
        left: complete code points.
        pending: inclusive ranges that the next code point is in; None where any text may follow.
        low: least number of code points.
        high: greatest number; None: no bound.
        apart: texts that don't count.
    """
    rest = steps(language, left)
    low, high = low - len(left), None if high is None else high - len(left)
    excluded = {text[len(left) :] for text in apart if text.startswith(left)}
    if pending is None:
        if not excluded:
            return has_text(rest, low, high)
        return any(
            text not in excluded for text in itertools.islice(texts(rest, low, high), len(excluded) + 1)
        )
    after = None if high is None else high - 1
    for first, last, target in intervals(rest):
        for a, b in pending:
            begin, end = max(first, a), min(last, b)
            if begin > end or not has_text(target, low - 1, after):
                continue
            if end - begin >= len(excluded):
                return True
            for c in range(begin, end + 1):
                if any(
                    chr(c) + text not in excluded
                    for text in itertools.islice(texts(target, low - 1, after), len(excluded) + 1)
                ):
                    return True
    return False
