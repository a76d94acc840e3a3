"""ECMA-262 patterns and the formats of JSON Schema as languages, for the mask oracle."""

from __future__ import annotations

import functools
import sys
import unicodedata

from .languages import (
    ALL,
    EMPTY,
    TOP,
    Language,
    Unsupported,
    both,
    chars,
    complement,
    concat,
    either,
    repeat,
    words,
)

DIGIT = [(48, 57)]
WORD = [(48, 57), (65, 90), (95, 95), (97, 122)]
SPACE = [
    (9, 13),
    (32, 32),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
]
SPACE += [(0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
LINE = [(10, 10), (13, 13), (0x2028, 0x2029)]
_CONTROL = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}


def outside(ranges) -> list[tuple[int, int]]:
    """The code points that are in none of the ranges."""
    out, at = [], 0
    for low, high in sorted(ranges):
        if low > at:
            out.append((at, low - 1))
        at = max(at, high + 1)
    return [*out, (at, TOP)] if at <= TOP else out


@functools.cache
def category(name: str) -> tuple[tuple[int, int], ...]:
    """The code points of a general category, or of a group of them."""
    name = name.removeprefix("General_Category=").removeprefix("gc=")
    name = {"Letter": "L", "Number": "N", "Punctuation": "P", "Uppercase_Letter": "Lu"}.get(name, name)
    known = {"Any": lambda c: True, "ASCII": lambda c: ord(c) < 128}
    if name not in known and not (len(name) in (1, 2) and name[0] in "LMNPSZC"):
        raise Unsupported(f"\\p{{{name}}}")
    has = known.get(name) or (lambda c: unicodedata.category(c).startswith(name))
    out: list[list[int]] = []
    for c in range(sys.maxunicode + 1):
        if has(chr(c)):
            if out and out[-1][1] == c - 1:
                out[-1][1] = c
            else:
                out.append([c, c])
    return tuple(map(tuple, out))


class _Parser:
    """A pattern as a tree: ("any of", ..), ("in turn", ..), ("set", ranges), ("times", ..), ("look", ..), "^", "$"."""

    def __init__(self, source: str):
        self.source, self.at = source, 0

    def more(self) -> bool:
        return self.at < len(self.source)

    def has(self, text: str) -> bool:
        if self.source.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def take(self) -> str:
        if not self.more():
            raise Unsupported(f"pattern {self.source!r} ends early")
        self.at += 1
        return self.source[self.at - 1]

    def parse(self):
        tree = self.alternatives()
        if self.more():
            raise Unsupported(f"pattern {self.source!r} at {self.at}")
        return tree

    def alternatives(self):
        found = [self.sequence()]
        while self.has("|"):
            found.append(self.sequence())
        return found[0] if len(found) == 1 else ("any of", found)

    def sequence(self):
        items = []
        while self.more() and self.source[self.at] not in "|)":
            items.append(self.quantified())
        return ("in turn", items)

    def quantified(self):
        atom = self.atom()
        bounds = self.quantifier()
        if bounds is None:
            return atom
        self.has("?")
        if atom in ("^", "$") or atom[0] == "look" or self.source[self.at : self.at + 1] in ("*", "+"):
            raise Unsupported(f"quantifier in {self.source!r}")
        return ("times", atom, *bounds)

    def quantifier(self):
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.has(sign):
                return bounds
        start = self.at
        if self.has("{"):
            body = self.source[self.at : self.source.find("}", self.at)]
            low, comma, high = body.partition(",")
            if low.isdecimal() and (high.isdecimal() or not high):
                self.at += len(body) + 1
                return int(low), (int(high) if high else None) if comma else int(low)
        self.at = start
        return None

    def atom(self):
        c = self.take()
        if c in "^$":
            return c
        if c == ".":
            return ("set", outside(LINE))
        if c == "[":
            return ("set", self.members())
        if c == "\\":
            return ("set", self.escape(False))
        if c == "(":
            return self.group()
        if c in "*+?":
            raise Unsupported(f"nothing to repeat in {self.source!r}")
        return ("set", [(ord(c), ord(c))])

    def group(self):
        kind = None
        if self.has("?"):
            if self.has("=") or self.has("!"):
                kind = self.source[self.at - 1]
            elif not self.has(":"):
                if not self.has("<") or self.source[self.at : self.at + 1] in ("=", "!"):
                    raise Unsupported(f"group in {self.source!r}")
                while self.take() != ">":
                    pass
        inner = self.alternatives()
        if not self.has(")"):
            raise Unsupported(f"open group in {self.source!r}")
        return inner if kind is None else ("look", inner, kind == "=")

    def members(self):
        negative, ranges = self.has("^"), []
        while not self.has("]"):
            low = self.member()
            mark = self.at
            if (
                len(low) == 1
                and low[0][0] == low[0][1]
                and self.has("-")
                and self.source[self.at : self.at + 1] != "]"
            ):
                high = self.member()
                if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise Unsupported(f"range in {self.source!r}")
                ranges.append((low[0][0], high[0][0]))
            else:
                self.at = mark
                ranges += low
        return outside(ranges) if negative else ranges

    def member(self):
        c = self.take()
        return self.escape(True) if c == "\\" else [(ord(c), ord(c))]

    def escape(self, in_class: bool) -> list[tuple[int, int]]:
        c = self.take()
        if c in "dDwWsS":
            ranges = {"d": DIGIT, "w": WORD, "s": SPACE}[c.lower()]
            return outside(ranges) if c.isupper() else list(ranges)
        if c in "pP":
            if not self.has("{"):
                raise Unsupported("\\p without a name")
            name = self.source[self.at : self.source.index("}", self.at)]
            self.at += len(name) + 1
            return outside(category(name)) if c == "P" else list(category(name))
        return [(code := self.code(c, in_class), code)]

    def code(self, c: str, in_class: bool) -> int:
        if c in _CONTROL:
            return _CONTROL[c]
        if c == "b" and in_class:
            return 8
        if c == "0" and not self.source[self.at : self.at + 1].isdecimal():
            return 0
        if c == "c":
            return ord(self.take()) & 31
        if c == "x":
            return self.hexadecimal(2)
        if c == "u":
            if self.has("{"):
                digits = self.source[self.at : self.source.index("}", self.at)]
                self.at += len(digits) + 1
                return int(digits, 16)
            code = self.hexadecimal(4)
            if 0xD800 <= code < 0xDC00 and self.has("\\u"):
                code = 0x10000 + ((code - 0xD800) << 10) + self.hexadecimal(4) - 0xDC00
            return code
        if c.isalnum():
            raise Unsupported(f"\\{c} in {self.source!r}")
        return ord(c)

    def hexadecimal(self, count: int) -> int:
        digits = self.source[self.at : self.at + count]
        if len(digits) != count:
            raise Unsupported(f"escape in {self.source!r}")
        self.at += count
        return int(digits, 16)


def _build(tree, left: str, right: str) -> Language:
    """``left``: "free" (anything may come before), "edge" (the text begins here), "in" (something came before)."""
    before, after = (ALL if side == "free" else EMPTY for side in (left, right))
    if tree[0] == "set":
        return concat(before, chars(tree[1]), after)
    if tree[0] == "any of":
        return either(_build(one, left, right) for one in tree[1])
    if tree[0] == "times":
        return concat(before, repeat(_build(tree[1], "in", "in"), tree[2], tree[3]), after)
    if tree[0] != "in turn":
        return _build(("in turn", [tree]), left, right)
    items = list(tree[1])
    while items and items[0] == "^":
        if left == "in":
            raise Unsupported("^ in the middle")
        items, left = items[1:], "edge"
    while items and items[-1] == "$":
        if right == "in":
            raise Unsupported("$ in the middle")
        items, right = items[:-1], "edge"
    before, after = (ALL if side == "free" else EMPTY for side in (left, right))
    looks = [i for i, item in enumerate(items) if item[0] == "look"]
    if looks:
        if right == "in":
            raise Unsupported("look-ahead in the middle")
        i = looks[0]
        ahead = _build(items[i][1], "in", "free")
        rest = _build(("in turn", items[i + 1 :]), "in", right)
        rest = both((ahead if items[i][2] else complement(ahead), rest))
        return concat(_build(("in turn", items[:i]), left, "in") if i else before, rest)
    if not items:
        return concat(before, after)
    if len(items) == 1:
        return _build(items[0], left, right)
    inner = (_build(item, "in", "in") for item in items[1:-1])
    return concat(_build(items[0], left, "in"), *inner, _build(items[-1], "in", right))


@functools.cache
def pattern(source: str) -> Language:
    """The texts in which an ECMA-262 pattern with flag u is found.

    Raises:
        Unsupported: back-references, word boundaries, anchors in the middle, and what is no pattern.
    """
    return _build(_Parser(source).parse(), "free", "free")


_OFFSET = r"([zZ]|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATE = r"(\d{4}-(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|\d{4}-(0[469]|11)-(0[1-9]|[12]\d|30)"
_DATE += r"|\d{4}-02-(0[1-9]|1\d|2[0-8])"
_DATE += r"|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]\d|\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_POINTER = r"(/([^~/]|~[01])*)*"


def _leap_seconds() -> Language:
    """Times of day with second 60: only the last minute of a day of UTC has one."""
    found = [words(("23:59:60",)), pattern(r"^(\.\d+)?[zZ]$")]
    out = [concat(*found)]
    for sign, way in (("+", 1), ("-", -1)):
        for offset in range(24 * 60):
            hour, minute = divmod((23 * 60 + 59 + way * offset) % 1440, 60)
            end = f"{sign}{offset // 60:02}:{offset % 60:02}"
            out.append(concat(words((f"{hour:02}:{minute:02}:60",)), pattern(r"^(\.\d+)?$"), words((end,))))
    return either(out)


def _ipv6() -> Language:
    group, last = "[0-9A-Fa-f]{1,4}", f"({_IPV4}|[0-9A-Fa-f]{{1,4}}:[0-9A-Fa-f]{{1,4}})"
    forms = [f"({group}:){{6}}{last}", f"::({group}:){{5}}{last}"]
    for before in range(5):
        forms.append(f"(({group}:){{0,{before}}}{group})?::({group}:){{{4 - before}}}{last}")
    forms += [f"(({group}:){{0,5}}{group})?::{group}", f"(({group}:){{0,6}}{group})?::"]
    return pattern("^(" + "|".join(forms) + ")$")


def _uri(relative: bool, more: str = "", private: str = "") -> Language:
    """RFC 3986, appendix A; RFC 3987's ``more`` characters everywhere, its ``private`` ones in the query."""
    pct, free, sub = "%[0-9A-Fa-f]{2}", rf"[A-Za-z0-9._~{more}-]", "[!$&'()*+,;=]"
    name = f"{free}|{pct}|{sub}"
    char = f"{name}|[:@]"
    future = rf"[vV][0-9A-Fa-f]+\.([A-Za-z0-9._~-]|{sub}|:)+"
    inside = concat(words(("[",)), either((_ipv6(), pattern(f"^{future}$"))), words(("]",)))
    host = either((inside, pattern(f"^({name})*$")))
    authority = concat(pattern(f"^(({name}|:)*@)?$"), host, pattern("^(:[0-9]*)?$"))
    segments = f"(/({char})*)*"
    first = f"({name}|@)+" if relative else f"({char})+"
    path = either(
        (
            concat(words(("//",)), authority, pattern(f"^{segments}$")),
            pattern(f"^(/(({char})+{segments})?|{first}{segments}|)$"),
        )
    )
    tail = pattern(rf"^(\?({char}|[/?{private}])*)?(#({char}|[/?])*)?$")
    return concat(path, tail) if relative else concat(pattern("^[A-Za-z][A-Za-z0-9+.-]*:$"), path, tail)


#: RFC 3987.
_UCS = "\xa0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef" + "".join(
    f"\\u{{{plane:X}{'1000' if plane == 14 else '0000'}}}-\\u{{{plane:X}FFFD}}" for plane in range(1, 15)
)
_PRIVATE = r"\uE000-\uF8FF\u{F0000}-\u{FFFFD}\u{100000}-\u{10FFFD}"


def _reference(more: str = "", private: str = "") -> Language:
    return either((_uri(False, more, private), _uri(True, more, private)))


def _hostname() -> Language:
    """RFC 1123 without labels that have ``--`` in their third and fourth places (RFC 5891): the documentation leaves
    A-labels out."""
    label = r"(?!.{2}--)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    one = pattern(f"^{label}$")
    return both((concat(one, repeat(concat(words((".",)), one), 0, None)), pattern("^.{1,253}$")))


def _email() -> Language:
    """RFC 5321's Mailbox, with a host name or an address in brackets."""
    atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
    local = pattern(rf'^({atom}(\.{atom})*|"([ !#-\[\]-~]|\\[ -~])*")@$')
    address = concat(
        words(("[",)),
        either((pattern(f"^{_IPV4}$"), concat(pattern("^[iI][pP][vV]6:$"), _ipv6()))),
        words(("]",)),
    )
    return concat(local, either((_hostname(), address)))


_SECONDS, _DAYS = r"\d+S", r"\d+D"
_MINUTES = rf"\d+M({_SECONDS})?"
_TIMES = rf"T(\d+H({_MINUTES})?|{_MINUTES}|{_SECONDS})"
_MONTHS = rf"\d+M({_DAYS})?"
#: RFC 3339, appendix A.
_DURATION = rf"P((\d+Y({_MONTHS})?|{_MONTHS}|{_DAYS})({_TIMES})?|{_TIMES}|\d+W)"

#: Formats that the oracle knows; the others are left out by name.
_FORMATS = {
    "date": lambda: pattern(f"^{_DATE}$"),
    "time": lambda: either(
        (pattern(rf"^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?{_OFFSET}$"), _leap_seconds())
    ),
    "date-time": lambda: concat(pattern(f"^{_DATE}[tT]$"), format_language("time")),
    "duration": lambda: pattern(f"^{_DURATION}$"),
    "ipv4": lambda: pattern(f"^{_IPV4}$"),
    "ipv6": _ipv6,
    "uuid": lambda: pattern(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
    "hostname": _hostname,
    "email": _email,
    "uri": lambda: _uri(False),
    "uri-reference": _reference,
    "iri": lambda: _uri(False, _UCS, _PRIVATE),
    "iri-reference": lambda: _reference(_UCS, _PRIVATE),
    "json-pointer": lambda: pattern(f"^{_POINTER}$"),
    "relative-json-pointer": lambda: pattern(rf"^(0|[1-9]\d*)(#|{_POINTER})$"),
}
KNOWN = {*_FORMATS, "idn-email", "idn-hostname", "regex", "uri-template"}


@functools.cache
def format_language(name: str) -> Language | None:
    """The texts of a format; None where the name is not known and so asserts nothing.

    Raises:
        Unsupported: a format that is asserted, but not by the oracle.
    """
    if name in _FORMATS:
        return _FORMATS[name]()
    if name in KNOWN:
        raise Unsupported(f"format {name}")
    return None
