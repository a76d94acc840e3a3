"""Languages of code points by derivatives: the regular part of the mask oracle. Slow, plain and on its own."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator

TOP = 0x10FFFF
_LAYERS = 2000


class Unsupported(Exception):
    """The oracle does not decide this; a point that needs it is left out."""


class Language:
    """A regular expression, kept once per shape: ``kind`` and ``args`` say how it was built."""

    __slots__ = ("args", "cuts", "kind", "lengths", "living", "nullable", "targets")

    def __init__(self, kind: str, args: tuple, nullable: bool):
        self.kind, self.args, self.nullable = kind, args, nullable
        self.cuts: list[int] | None = None
        self.targets: dict[int, Language] = {}
        self.living: bool | None = None
        self.lengths: _Lengths | None = None

    def __repr__(self) -> str:
        return f"{self.kind}{self.args!r}"


_kept: dict[tuple, Language] = {}


def _make(kind: str, args: tuple, nullable: bool) -> Language:
    key = (kind, args)
    found = _kept.get(key)
    if found is None:
        found = _kept[key] = Language(kind, args, nullable)
    return found


def chars(ranges) -> Language:
    """One code point out of inclusive ranges; surrogates are no code points of a text."""
    merged: list[list[int]] = []
    for low, high in sorted(ranges):
        for a, b in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):
            if a > b:
                continue
            if merged and a <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], b)
            else:
                merged.append([a, b])
    return _make("chars", tuple(map(tuple, merged)), False)


def words(texts) -> Language:
    """Any of the texts."""
    texts = frozenset(texts)
    return _make("words", (texts,), "" in texts)


NOTHING = words(())
EMPTY = words(("",))
ANY = chars([(0, TOP)])
ALL = _make("star", (ANY,), True)


def concat(*parts: Language) -> Language:
    """One after the other."""
    out = EMPTY
    for part in reversed(parts):
        out = _concat(part, out)
    return out


def _concat(a: Language, b: Language) -> Language:
    if a is NOTHING or b is NOTHING:
        return NOTHING
    if a is EMPTY:
        return b
    if b is EMPTY:
        return a
    if a is ALL and b is ALL:
        return ALL
    if a.kind == "concat":
        return _concat(a.args[0], _concat(a.args[1], b))
    if a is ALL and b.kind == "concat" and b.args[0] is ALL:
        return b
    return _make("concat", (a, b), a.nullable and b.nullable)


def either(parts) -> Language:
    """Union."""
    flat: dict[Language, None] = {}
    texts: set[str] = set()
    for part in parts:
        for one in part.args[0] if part.kind == "either" else (part,):
            if one.kind == "words":
                texts |= one.args[0]
            else:
                flat[one] = None
    if ALL in flat:
        return ALL
    if texts:
        flat[words(texts)] = None
    if not flat:
        return NOTHING
    if len(flat) == 1:
        return next(iter(flat))
    members = frozenset(flat)
    return _make("either", (members,), any(one.nullable for one in members))


def both(parts) -> Language:
    """Intersection."""
    flat: dict[Language, None] = {}
    for part in parts:
        for one in part.args[0] if part.kind == "both" else (part,):
            if one is NOTHING:
                return NOTHING
            if one is not ALL:
                flat[one] = None
    for one in flat:
        if one.kind == "words":
            left = {text for text in one.args[0] if all(matches(other, text) for other in flat)}
            return words(left)
        if complement(one) in flat:
            return NOTHING
    if not flat:
        return ALL
    if len(flat) == 1:
        return next(iter(flat))
    members = frozenset(flat)
    return _make("both", (members,), all(one.nullable for one in members))


def complement(a: Language) -> Language:
    """All texts but those."""
    if a.kind == "not":
        return a.args[0]
    if a is NOTHING:
        return ALL
    if a is ALL:
        return NOTHING
    return _make("not", (a,), not a.nullable)


def repeat(a: Language, low: int, high: int | None) -> Language:
    """So many of them; ``high`` None: no bound."""
    if high is not None and high < low:
        return NOTHING
    if high == 0:
        return EMPTY
    if a is NOTHING or a is EMPTY:
        return EMPTY if low == 0 or a is EMPTY else NOTHING
    if a.nullable:
        low = 0
    if low == 1 and high == 1:
        return a
    if low == 0 and high is None:
        return a if a.kind == "star" else _make("star", (a,), True)
    return _make("repeat", (a, low, high), low == 0)


def cuts(a: Language) -> list[int]:
    """Where the derivative may change: it is one and the same from a cut up to before the next."""
    if a.cuts is None:
        found = {0, 0xD800, 0xE000}
        if a.kind == "chars":
            for low, high in a.args:
                found |= {low, high + 1}
        elif a.kind == "words":
            for text in a.args[0]:
                if text:
                    found |= {ord(text[0]), ord(text[0]) + 1}
        elif a.kind == "concat":
            found.update(cuts(a.args[0]))
            if a.args[0].nullable:
                found.update(cuts(a.args[1]))
        elif a.kind in ("either", "both"):
            for one in a.args[0]:
                found.update(cuts(one))
        else:
            found.update(cuts(a.args[0]))
        found.discard(TOP + 1)
        a.cuts = sorted(found)
    return a.cuts


def step(a: Language, c: int) -> Language:
    """What may follow the code point ``c``."""
    places = a.cuts if a.cuts is not None else cuts(a)
    place = places[bisect.bisect_right(places, c) - 1]
    found = a.targets.get(place)
    if found is None:
        found = a.targets[place] = _step(a, c)
    return found


def _step(a: Language, c: int) -> Language:
    if a.kind == "chars":
        return EMPTY if any(low <= c <= high for low, high in a.args) else NOTHING
    if a.kind == "words":
        return words(text[1:] for text in a.args[0] if text and ord(text[0]) == c)
    if a.kind == "concat":
        first = _concat(step(a.args[0], c), a.args[1])
        return either((first, step(a.args[1], c))) if a.args[0].nullable else first
    if a.kind == "either":
        return either(step(one, c) for one in a.args[0])
    if a.kind == "both":
        return both(step(one, c) for one in a.args[0])
    if a.kind == "not":
        return complement(step(a.args[0], c))
    if a.kind == "star":
        return _concat(step(a.args[0], c), a)
    inner, low, high = a.args
    return _concat(step(inner, c), repeat(inner, max(low - 1, 0), None if high is None else high - 1))


def steps(a: Language, text: str) -> Language:
    """What may follow a text."""
    for c in text:
        a = step(a, ord(c))
    return a


def matches(a: Language, text: str) -> bool:
    """Whether the text is one of them."""
    return steps(a, text).nullable


def intervals(a: Language) -> Iterator[tuple[int, int, Language]]:
    """Inclusive ranges of code points and what follows them."""
    places = cuts(a)
    for low, after in itertools.zip_longest(places, places[1:], fillvalue=TOP + 1):
        if low != 0xD800 and not 0xD800 < low < 0xE000:
            yield low, after - 1, step(a, low)


def alive(a: Language) -> bool:
    """Whether there is any text: of what is put together by its parts, of the rest by a search."""
    if a.living is None and (a.nullable or a.kind not in ("both", "not")):
        if a.kind in ("chars", "words"):
            a.living = bool(a.args[0] if a.kind == "words" else a.args)
        elif a.kind == "concat":
            a.living = all(map(alive, a.args))
        elif a.kind == "either":
            a.living = any(map(alive, a.args[0]))
        else:
            a.living = a.nullable or alive(a.args[0])
    if a.living is None:
        seen, queue, found = {a}, [a], a.nullable
        while queue and not found:
            for _, _, target in intervals(queue.pop()):
                if target.nullable or target.living:
                    found = True
                    break
                if target not in seen and target.living is None:
                    seen.add(target)
                    queue.append(target)
            if len(seen) > 20_000:
                raise Unsupported("a language of too many states")
        if found:
            a.living = True
        else:
            for one in seen:
                one.living = False
    return bool(a.living)


class _Lengths:
    """Whether a language has a text of 0, 1, .. code points, as far as anybody has asked; it repeats in the end."""

    def __init__(self, a: Language):
        self.layer, self.seen = frozenset([a]), {}
        self.bits: list[bool] = []
        self.start: int | None = None  # from there on it repeats

    def known(self, n: int) -> bool:
        """Work out the next layer, unless the first ``n`` are there or everything is."""
        if self.start is not None or len(self.bits) >= n:
            return True
        if self.layer in self.seen:
            self.start = self.seen[self.layer]
            return True
        if len(self.bits) >= _LAYERS:
            raise Unsupported("texts of too many lengths")
        self.seen[self.layer] = len(self.bits)
        self.bits.append(any(one.nullable for one in self.layer))
        self.layer = frozenset(t for one in self.layer for _, _, t in intervals(one) if alive(t))
        return False

    def any(self, low: int, high: int | None) -> bool:
        """Whether there is a text of ``low`` to ``high`` code points."""
        n = low
        while high is None or n <= high:
            while not self.known(n + 1):
                pass
            if self.start is not None and n >= len(self.bits):
                period = len(self.bits) - self.start
                last = n + period - 1 if high is None else min(high, n + period - 1)
                return any(self.bits[self.start + (k - self.start) % period] for k in range(n, last + 1))
            if self.bits[n]:
                return True
            n += 1
        return False


def has_text(a: Language, low: int = 0, high: int | None = None) -> bool:
    """Whether there is a text of ``low`` to ``high`` code points."""
    if high is not None and high < max(low, 0):
        return False
    if a is ALL:
        return True
    if low <= 0 and (high is None or not alive(a)):
        return alive(a)
    if a.lengths is None:
        a.lengths = _Lengths(a)
    return a.lengths.any(max(low, 0), high)


def texts(a: Language, low: int = 0, high: int | None = None) -> Iterator[str]:
    """The texts of ``low`` to ``high`` code points, short ones first; letters before other characters."""
    length = max(low, 0)
    while has_text(a, length, high):
        if has_text(a, length, length):
            yield from _of_length(a, length)
        length += 1


def _of_length(a: Language, length: int) -> Iterator[str]:
    if length == 0:
        if a.nullable:
            yield ""
        return
    ranges = [(low, high, t) for low, high, t in intervals(a) if has_text(t, length - 1, length - 1)]
    for low, high, target in sorted(ranges, key=lambda r: not r[0] <= 0x61 <= r[1]):
        start = 0x61 if low <= 0x61 <= high else low
        for c in itertools.chain(range(start, high + 1), range(low, start)):
            for rest in _of_length(target, length - 1):
                yield chr(c) + rest
