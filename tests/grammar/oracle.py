"""Brute truth for masks: whether bytes can be continued to a JSON text that a schema allows.

Written from the specifications and on its own: it shares nothing with the engine. The language is the one that
`compile_json_schema` promises by default: keys in any order and never twice, up to 64 blanks (space, tab, newline)
between tokens but none around the whole text, known formats asserted, every escape of a string as good
as the character itself, exponents only where `numerals.py` says. What it doesn't decide raises :class:`Unsupported`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable

from .containers import Objects
from .facts import NULL, conjoin
from .languages import Unsupported
from .numerals import value as number_value
from .schemas import Schema
from .solver import Solver, can_extend

__all__ = ["Oracle", "Point", "Unsupported", "viable"]

sys.setrecursionlimit(20_000)
BLANKS = b" \t\n"
LITERALS = {b"null": NULL, b"true": ("boolean", True), b"false": ("boolean", False)}
ESCAPES = {ord(k): v for k, v in zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True)}
COMPLETE = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")
HEX = b"0123456789abcdefABCDEF"


class Frame:
    """An open container, or the whole text: what it holds so far, and what is known of its next value."""

    def __init__(
        self, oracle: Oracle, parent: Frame | None, kind: str, alternatives, content: tuple = (), key=None
    ):
        self.oracle, self.parent, self.kind = oracle, parent, kind
        self.alternatives, self.content, self.key = alternatives, content, key
        self._scalars: dict[str, list] = {}

    @functools.cached_property
    def next_demands(self) -> list[frozenset]:
        """Alternatives of demands on the next value: on the member of ``key``, or the next element."""
        if self.kind == "text":
            return self.alternatives if not self.content else []
        found: dict[frozenset, None] = {}
        for one in self.alternatives:
            if self.kind == "object":
                found.update(dict.fromkeys(one.demands(self.content, self.key)))
            else:
                found.update(dict.fromkeys(one.next_demands(self.content)))
        return [one for one in found if self.oracle.solver.value(one) is not None]

    @functools.cached_property
    def next_keys(self) -> tuple[frozenset[str], list]:
        """Keys that may come next: some by name, and those of languages less names that don't count."""
        names, languages = set(), []
        used = frozenset(key for key, _ in self.content)
        for one in self.alternatives:
            for key, language in one.fresh(used):
                if self.with_key(key).next_demands:
                    if language is None:
                        names.add(key)
                    else:
                        languages.append((language, used))
        return frozenset(names), languages

    @functools.cached_property
    def closes(self) -> bool:
        """Whether the container may end here."""
        if self.kind == "array":
            return any(one.closes(self.content) for one in self.alternatives)
        return any(self._object_closes(one) for one in self.alternatives)

    def _object_closes(self, one: Objects) -> bool:
        state = one.read(self.content)
        return state is not None and not state[1] and len(self.content) >= one.low

    @functools.cached_property
    def completes(self) -> bool:
        """Whether the container may end here or after more."""
        if self.kind == "text":
            return bool(self.content) and any(
                self.oracle.meets(d, self.content[0]) for d in self.alternatives
            )
        if self.kind == "array":
            return any(one.completes(self.content) for one in self.alternatives)
        return self.closes or bool(self.next_keys[0] or self.next_keys[1])

    def with_key(self, key: str) -> Frame:
        """The object before the value of a key."""
        return Frame(self.oracle, self.parent, self.kind, self.alternatives, self.content, key)

    def with_value(self, v) -> Frame:
        """The container after one more value."""
        content = (*self.content, (self.key, v) if self.kind == "object" else v)
        out = Frame(self.oracle, self.parent, self.kind, self.alternatives, content)
        if self.kind == "object":
            out.alternatives = [one for one in self.alternatives if one.read(content) is not None]
        return out

    def closed(self) -> Frame:
        """The parent after this container's value."""
        assert self.parent is not None
        content = tuple(sorted(self.content)) if self.kind == "object" else self.content
        return self.parent.with_value((self.kind, content))

    def opened(self, kind: str) -> Frame:
        """A container as the next value."""
        found: dict = {}
        for demands in self.next_demands:
            found.update(dict.fromkeys(self.oracle.solver.alternatives(demands, kind)))
        return Frame(self.oracle, self, kind, list(found))

    def scalars(self, kind: str) -> list:
        """Alternatives of the next value if it is of this type."""
        if kind not in self._scalars:
            own = [self.oracle.solver.alternatives(d, kind) for d in self.next_demands]
            self._scalars[kind] = [one for alternatives in own for one in alternatives]
        return self._scalars[kind]


class Point:
    """A place in a text: a frame, what is being read there, and how many blanks came last."""

    __slots__ = ("blanks", "frame", "left", "pending", "phase", "word")

    def __init__(
        self, frame: Frame, phase: str, word: bytes = b"", left: str = "", pending=b"", blanks: int = 0
    ):
        self.frame, self.phase, self.word, self.left = frame, phase, word, left
        self.pending, self.blanks = pending, blanks

    def step(self, b: int) -> Point | None:
        """The place after one more byte; None where no JSON text of the policy goes on like that."""
        phase = self.phase
        if phase in ("string", "key"):
            return self._in_string(b)
        if phase == "literal":
            word = self.word + bytes((b,))
            if word in LITERALS:
                return Point(self.frame.with_value(LITERALS[word]), "after")
            return Point(self.frame, phase, word) if any(one.startswith(word) for one in LITERALS) else None
        if phase == "number":
            if b in b"0123456789.eE+-":
                return Point(self.frame, phase, self.word + bytes((b,)))
            done = self.end_of_number()
            return done.step(b) if done else None
        if b in BLANKS:
            return self._blank()
        return self._structure(b)

    def _blank(self) -> Point | None:
        if self.frame.kind == "text" or self.blanks >= self.frame.oracle.max_blanks:
            return None
        return Point(self.frame, self.phase, blanks=self.blanks + 1)

    def end_of_number(self) -> Point | None:
        """The place after the number that is being read, if it is complete and allowed."""
        text = self.word.decode()
        if not COMPLETE.match(text) or not any(
            one.numbers.writes(text) for one in self.frame.scalars("number")
        ):
            return None
        marked = (True,) if "e" in text.lower() else ()
        return Point(self.frame.with_value(("number", number_value(text), *marked)), "after")

    def _structure(self, b: int) -> Point | None:
        c, phase, frame = chr(b), self.phase, self.frame
        if phase in ("value", "first element"):
            if c == "]" and phase == "first element":
                return Point(frame.closed(), "after") if frame.closes else None
            if c == '"':
                return Point(frame, "string")
            if c in "{[":
                kind = "object" if c == "{" else "array"
                return Point(frame.opened(kind), "first key" if c == "{" else "first element")
            if c in "-0123456789":
                return Point(frame, "number", bytes((b,)))
            return Point(frame, "literal", bytes((b,))) if c in "ntf" else None
        if phase in ("first key", "next key"):
            if c == '"':
                return Point(frame, "key")
            return (
                Point(frame.closed(), "after") if c == "}" and phase == "first key" and frame.closes else None
            )
        if phase == "colon":
            return Point(frame, "value") if c == ":" else None
        if c == "," and frame.kind != "text":
            return Point(frame, "next key" if frame.kind == "object" else "value")
        if c == {"object": "}", "array": "]"}.get(frame.kind) and frame.closes:
            return Point(frame.closed(), "after")
        return None

    def _in_string(self, b: int) -> Point | None:
        if not self.pending and b == 0x22:
            if self.phase == "string":
                return Point(self.frame.with_value(("string", self.left)), "after")
            return Point(self.frame.with_key(self.left), "colon")
        if not self.pending and b < 0x20:
            return None
        pending = self.pending + bytes((b,))
        ranges = pending_ranges(pending)
        if not ranges:
            return None
        if complete(pending):
            return Point(self.frame, self.phase, left=self.left + chr(ranges[0][0]))
        return Point(self.frame, self.phase, left=self.left, pending=pending)

    @property
    def viable(self) -> bool:
        """Whether some continuation ends in an allowed text."""
        frame, phase = self.frame, self.phase
        if phase in ("value", "colon"):
            return bool(frame.next_demands)
        if phase == "first element":
            return frame.closes or frame.completes
        if phase == "first key":
            return frame.completes
        if phase == "next key":
            return bool(frame.next_keys[0] or frame.next_keys[1])
        if phase == "after":
            return frame.completes
        if phase == "number":
            return any(one.numbers.can_become(self.word.decode()) for one in frame.scalars("number"))
        if phase == "literal":
            values = [v for text, v in LITERALS.items() if text.startswith(self.word)]
            return any(v in one.values for v in values for one in frame.scalars(values[0][0]))
        pending = pending_ranges(self.pending) if self.pending else None
        if phase == "string":
            own = ((one.language, one.low, one.high, ()) for one in frame.scalars("string"))
        else:
            names, languages = frame.next_keys
            if any(self._begins(name, pending) for name in names):
                return True
            own = ((language, 0, None, used) for language, used in languages)
        return any(can_extend(one, self.left, pending, low, high, apart) for one, low, high, apart in own)

    def _begins(self, name: str, pending) -> bool:
        if not name.startswith(self.left):
            return False
        if pending is None:
            return True
        following = name[len(self.left) : len(self.left) + 1]
        return bool(following) and any(low <= ord(following) <= high for low, high in pending)

    @property
    def ends(self) -> bool:
        """Whether the text may end here."""
        if self.frame.kind != "text":
            return False
        done = self.end_of_number() if self.phase == "number" else self
        return done is not None and done.phase == "after" and done.frame.completes


@functools.lru_cache(100_000)
def pending_ranges(pending: bytes) -> tuple[tuple[int, int], ...]:
    """The code points that a begun character or escape may be; none: it is wrong."""
    if pending[0] != 0x5C:
        return _utf8(pending)
    if len(pending) == 1:
        return ((0, 0xD7FF), (0xE000, 0x10FFFF))
    if pending[1] != 0x75:
        return ((ord(ESCAPES[pending[1]]),) * 2,) if len(pending) == 2 and pending[1] in ESCAPES else ()
    digits, rest = pending[2:6], pending[6:]
    if any(b not in HEX for b in digits):
        return ()
    unknown = 4 - len(digits)
    low = int(digits or b"0", 16) << 4 * unknown
    high = low | ((1 << 4 * unknown) - 1)
    out = [(a, b) for a, b in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)) if a <= b]
    first, last = max(low, 0xD800), min(high, 0xDBFF)
    if rest:
        if first > last or unknown or not b"\\u".startswith(rest[:2]) or any(b not in HEX for b in rest[2:]):
            return ()
        unknown = 4 - len(rest[2:])
        low = int(rest[2:] or b"0", 16) << 4 * unknown
        low, high = max(low, 0xDC00), min(low | ((1 << 4 * unknown) - 1), 0xDFFF)
        base = 0x10000 + ((first - 0xD800) << 10)
        return ((base + low - 0xDC00, base + high - 0xDC00),) if low <= high else ()
    if first <= last:
        out.append((0x10000 + ((first - 0xD800) << 10), 0x10000 + ((last - 0xD800) << 10) + 0x3FF))
    return tuple(out)


def _utf8(pending: bytes) -> tuple[tuple[int, int], ...]:
    lead = pending[0]
    size = (
        1
        if lead < 0x80
        else 2
        if 0xC2 <= lead < 0xE0
        else 3
        if 0xE0 <= lead < 0xF0
        else 4
        if 0xF0 <= lead < 0xF5
        else 0
    )
    if not size or len(pending) > size or any(b >> 6 != 2 for b in pending[1:]):
        return ()
    code = lead if size == 1 else lead & (0xFF >> (size + 1))
    for b in pending[1:]:
        code = code << 6 | b & 0x3F
    unknown = 6 * (size - len(pending))
    low = max(code << unknown, (0, 0, 0x80, 0x800, 0x10000)[size])
    high = min((code << unknown) | ((1 << unknown) - 1), (0, 0x7F, 0x7FF, 0xFFFF, 0x10FFFF)[size])
    return tuple((a, b) for a, b in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)) if a <= b)


def complete(pending: bytes) -> bool:
    """Whether a begun character or escape is done; its ranges are not empty."""
    if pending[0] != 0x5C:
        lead = pending[0]
        return len(pending) == (1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
    if len(pending) < 2 or pending[1] != 0x75:
        return len(pending) == 2
    if len(pending) < 6:
        return False
    return len(pending) == (12 if 0xD800 <= int(pending[2:6], 16) < 0xDC00 else 6)


class Oracle:
    """The texts that a schema allows.

    Args:
        schema: a schema as Python data or JSON text.
        max_blanks: longest run of blanks between tokens.
        assert_formats: whether known formats are asserted.
    """

    def __init__(self, schema, max_blanks: int = 64, assert_formats: bool = True):
        self.schema = Schema(schema, assert_formats)
        self.solver = Solver(self.schema)
        self.max_blanks = max_blanks
        root = conjoin([("+", self.schema.root)])
        found = [] if root is None or self.solver.value(root) is None else [root]
        self.start = Point(Frame(self, None, "text", found), "value")

    def meets(self, demands: Iterable, v) -> bool:
        """Whether a value meets all demands."""
        return all(self.schema.holds(one, v) for one in demands)

    def walk(self, text: bytes, point: Point | None = None) -> Point | None:
        """The place after a text; None where it can't be continued to an allowed one."""
        point = self.start if point is None else point
        if not point.viable:
            return None
        for b in text:
            point = point.step(b)
            if point is None or not point.viable:
                return None
        return point

    def accepts(self, text: bytes) -> bool:
        """Whether this is an allowed text."""
        point = self.walk(text)
        return point is not None and point.ends


def viable(schema, prefix: bytes, **options) -> bool:
    """Whether a schema allows some text that begins with ``prefix``."""
    return Oracle(schema, **options).walk(prefix) is not None
