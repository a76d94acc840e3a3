"""Patterns of pre-tokenisers as programs over classes of characters."""

import functools
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: What lies behind the last character of a text.
END = -1

_WHITE = frozenset(
    map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)  # fmt: skip
_CATEGORIES = frozenset(
    {"L", "M", "N", "P", "S", "Z", "C", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd",
     "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"}
)  # fmt: skip
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0", "a": "\a", "e": "\x1b"}
_MOST_COPIES = 256


class PatternError(ValueError):
    """A pattern uses a feature that is not known here."""


@dataclass(frozen=True)
class CharSet:
    """A set of characters.

    Args:
        items: ``(low, high)`` ranges, names of general categories or ``space``, and other sets.
        negated: whether it is all other characters.
        fold: whether case does not count.
    """

    items: tuple
    negated: bool = False
    fold: bool = False

    def has(self, char: str) -> bool:
        """Whether a character is in the set."""
        return any(self._matches(item, char) for item in self.items) != self.negated

    def _matches(self, item, char: str) -> bool:
        if isinstance(item, CharSet):
            return item.has(char)
        if item == "space":
            return char in _WHITE
        if isinstance(item, str):
            return unicodedata.category(char).startswith(item)
        low, high = item
        if low <= char <= high:
            return True
        if not self.fold:
            return False
        folded = char.casefold()
        cased = (char.lower(), char.upper(), char.swapcase())
        return any(low <= c <= high for c in cased) or (low == high and low.casefold() == folded)

    def ends(self) -> Iterator[str]:
        """The last characters of its ranges, and of the controls."""
        yield "\x9f"
        for item in self.items:
            if isinstance(item, CharSet):
                yield from item.ends()
            elif isinstance(item, tuple):
                yield item[1]

    def complement(self) -> "CharSet":
        """All other characters."""
        return CharSet(self.items, not self.negated, self.fold)


class Char(NamedTuple):
    """One character of a set."""

    set: CharSet


class Sequence(NamedTuple):
    """One after the other."""

    parts: tuple


class Choice(NamedTuple):
    """The first part that leads to a match."""

    parts: tuple


class Repeat(NamedTuple):
    """``least`` to ``most`` times (None: any number), as often as possible or as rarely."""

    part: object
    least: int
    most: int | None
    greedy: bool


class Look(NamedTuple):
    """The next character is in the set; at the end of the text it is in none."""

    set: CharSet
    negated: bool


def parse(pattern: str):
    """The tree of a pattern.

    Raises:
        PatternError: a feature that pre-tokenisers of known models do not use, by name and position.
    """
    parser = _Parser(pattern)
    tree = parser.choice(False)
    if parser.at < len(pattern):
        parser.fail("an unmatched )")
    return tree


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def fail(self, what: str):
        raise PatternError(f"pattern {self.text!r}, position {self.at}: {what} is not supported")

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def take(self) -> str:
        if self.at == len(self.text):
            self.fail("an end in the middle of a group or class")
        self.at += 1
        return self.text[self.at - 1]

    def eat(self, wanted: str) -> bool:
        if self.text.startswith(wanted, self.at):
            self.at += len(wanted)
            return True
        return False

    def choice(self, fold: bool):
        parts = [self.sequence(fold)]
        while self.eat("|"):
            parts.append(self.sequence(fold))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def sequence(self, fold: bool):
        parts = []
        while self.at < len(self.text) and self.peek() not in "|)":
            parts.append(self.repeat(self.atom(fold)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def repeat(self, part):
        while True:
            if self.eat("?"):
                least, most = 0, 1
            elif self.eat("*"):
                least, most = 0, None
            elif self.eat("+"):
                least, most = 1, None
            elif self.peek() == "{" and (bounds := self._bounds()) is not None:
                least, most = bounds
            else:
                return part
            if isinstance(part, Look):
                self.fail("a repeated lookahead")
            if self.peek() == "+":
                self.fail("a possessive repeat")
            part = Repeat(part, least, most, not self.eat("?"))

    def _bounds(self) -> tuple[int, int | None] | None:
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if end < 0 or not low.isdecimal() or (high and not high.isdecimal()):
            return None
        self.at = end + 1
        most = (int(high) if high else None) if comma else int(low)
        if max(int(low), most or 0) > _MOST_COPIES:
            self.fail(f"a repeat of more than {_MOST_COPIES}")
        return int(low), most

    def atom(self, fold: bool):
        if self.eat("("):
            return self._group(fold)
        if self.eat("["):
            return Char(self._class(fold))
        if self.eat("."):
            return Char(CharSet((("\n", "\n"),), True))
        if self.peek() in "^$":
            self.fail("an anchor")
        if self.peek() in "?*+":
            self.fail("a repeat of nothing")
        if self.eat("\\"):
            item = self._escape()
        else:
            char = self.take()
            item = (char, char)
        return Char(item if isinstance(item, CharSet) else CharSet((item,), fold=fold))

    def _group(self, fold: bool):
        look = None
        if self.eat("?"):
            if self.eat("i:"):
                fold = True
            elif self.eat("=") or self.eat("!"):
                look = self.text[self.at - 1] == "!"
            elif not self.eat(":"):
                self.fail("this kind of group")
        tree = self.choice(fold)
        if not self.eat(")"):
            self.fail("an open group")
        if look is None:
            return tree
        if not isinstance(tree, Char):
            self.fail("a lookahead of other than one character")
        return Look(tree.set, look)

    def _class(self, fold: bool) -> CharSet:
        negated = self.eat("^")
        items: list = []
        first = True
        while first or self.peek() != "]":
            first = False
            if self.peek(2) == "&&":
                self.fail("an intersection of classes")
            if self.peek(2) in ("[:", "[=", "[."):
                self.fail("a POSIX class")
            if self.eat("["):
                items.append(self._class(fold))
                continue
            item = self._escape() if self.eat("\\") else (self.peek(), self.take())
            ranged = isinstance(item, tuple) and self.peek() == "-" and self.peek(2)[1:] not in ("]", "")
            if ranged and self.eat("-"):
                high = self._escape() if self.eat("\\") else (self.peek(), self.take())
                if not isinstance(high, tuple) or high[0] < item[0]:
                    self.fail("this range")
                item = (item[0], high[0])
            items.append(item)
        self.take()
        return CharSet(tuple(items), negated, fold)

    def _escape(self):
        """A range of one character, or a set."""
        char = self.take()
        if char in "pP":
            return self._property(char == "P")
        if char in "sS":
            return CharSet(("space",), char == "S")
        if char in "dD":
            return CharSet(("Nd",), char == "D")
        if char in "wW":
            return CharSet(("L", "M", "N", "Pc"), char == "W")
        if char in "xu":
            return self._code_point(char)
        if char in _CONTROLS:
            return (_CONTROLS[char],) * 2
        if char.isalnum():
            self.fail(f"the escape \\{char}")
        return char, char

    def _property(self, negated: bool) -> CharSet:
        name = self.take()
        if name == "{":
            end = self.text.find("}", self.at)
            name, self.at = self.text[self.at : end], end + 1
        if name.startswith("^"):
            name, negated = name[1:], not negated
        if name not in _CATEGORIES:
            self.fail(f"the property {name!r}")
        return CharSet((name,), negated)

    def _code_point(self, kind: str) -> tuple[str, str]:
        if self.eat("{"):
            end = self.text.find("}", self.at)
            digits, self.at = self.text[self.at : end], end + 1
        else:
            length = 2 if kind == "x" else 4
            digits, self.at = self.peek(length), self.at + length
        try:
            return (chr(int(digits, 16)),) * 2
        except (ValueError, OverflowError):
            self.fail(f"the code point {digits!r}")
            raise


class Alphabet:
    """Characters that no pattern tells apart share a class, numbered as they are first met."""

    def __init__(self) -> None:
        self._sets: dict[CharSet, int] = {}
        self._classes: dict[int, int] = {}
        self._of: dict[str, int] = {}
        self._by_category: dict[str, int] = {}
        self.signatures: list[int] = []

    def register(self, charset: CharSet) -> int:
        """The number of a set. All are registered before the first character is asked for."""
        if self._of:
            raise RuntimeError("Alphabet: a set came after the first character")
        return self._sets.setdefault(charset, len(self._sets))

    def of(self, char: str) -> int:
        """The class of a character."""
        found = self._of.get(char)
        if found is None:
            # Behind all ranges, characters without case differ by their general category alone.
            plain = char > self._top and char.lower() == char.upper()
            category = unicodedata.category(char)
            found = self._by_category.get(category) if plain else None
            if found is None:
                found = self._find(char)
            if plain:
                self._by_category[category] = found
            self._of[char] = found
        return found

    def _find(self, char: str) -> int:
        signature = sum(1 << number for charset, number in self._sets.items() if charset.has(char))
        found = self._classes.setdefault(signature, len(self._classes))
        if found == len(self.signatures):
            self.signatures.append(signature)
        return found

    @functools.cached_property
    def _top(self) -> str:
        """The last character of all ranges, and of the controls, of which some are spaces."""
        return max([high for charset in self._sets for high in charset.ends()], default="\x9f")

    def __len__(self) -> int:
        return len(self.signatures)

    def has(self, number: int, kind: int) -> bool:
        """Whether the characters of a class are in a set; none is at the end of the text."""
        return kind != END and bool(self.signatures[kind] >> number & 1)


#: Operations of a program: (name, argument, argument).
Op = tuple[str, int, int]
CHAR, SPLIT, LOOK, MATCH = "char", "split", "look", "match"


def compile_tree(tree, alphabet: Alphabet) -> list[Op]:
    """The program of a tree: ``char`` takes one character and goes on behind itself, ``split`` tries its first
    target before its second, ``look`` looks at the next character, ``match`` ends."""
    code: list[Op] = []

    def patch(at: int, first: int, second: int) -> None:
        code[at] = (SPLIT, first, second)

    def hold() -> int:
        code.append((SPLIT, 0, 0))
        return len(code) - 1

    def sequence(node: Sequence) -> None:
        for part in node.parts:
            emit(part)

    def choice(parts) -> None:
        ends = []
        for part in parts[:-1]:
            at = hold()
            emit(part)
            ends.append(hold())
            patch(at, at + 1, len(code))
        emit(parts[-1])
        for end in ends:
            patch(end, len(code), len(code))

    def repeat(node: Repeat) -> None:
        def either(at: int, inside: int, behind: int) -> None:
            patch(at, *((inside, behind) if node.greedy else (behind, inside)))

        for _ in range(node.least):
            emit(node.part)
        if node.most is None:
            at = hold()
            emit(node.part)
            patch(hold(), at, at)
            either(at, at + 1, len(code))
            return
        skips = []
        for _ in range(node.most - node.least):
            skips.append(hold())
            emit(node.part)
        for at in skips:
            either(at, at + 1, len(code))

    emitters: dict[type, Callable] = {
        Char: lambda node: code.append((CHAR, alphabet.register(node.set), 0)),
        Look: lambda node: code.append((LOOK, alphabet.register(node.set), int(node.negated))),
        Sequence: sequence,
        Choice: lambda node: choice(node.parts),
        Repeat: repeat,
    }

    def emit(node) -> None:
        emitters[type(node)](node)

    emit(tree)
    code.append((MATCH, 0, 0))
    return code
