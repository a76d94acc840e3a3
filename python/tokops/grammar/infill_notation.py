"""Grammars in Lark's notation, read so that terminals stay apart, as the longest match needs it."""

import re
from dataclasses import dataclass, field

__all__ = ["Notation", "read_notation"]

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|//[^\n]*)
    |(?P<line>\n)
    |(?P<regex>/(?:[^/\\\n]|\\.)+/)
    |(?P<literal>"(?:[^"\\\n]|\\.)*")
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<ignore>%ignore\b)
    |(?P<mark>[:|()*+?])""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_MOST_NESTING = 200


@dataclass
class Notation:
    """What was read.

    Attributes:
        rules: alternatives of every rule, each a list of names; literals are names of terminals, too.
        terminals: by name: ``("literal", text)`` or ``("regex", pattern)``.
        ignored: terminals that may stand before, between and behind all others.
    """

    rules: dict[str, list[list[str]]] = field(default_factory=dict)
    terminals: dict[str, tuple[str, str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read_notation(source: str) -> Notation:
    """Reads a grammar.

    The part of Lark's notation that is understood: rules (lower case) of names, ``"literals"``, ``|``, ``( )``, ``*``,
    ``+`` and ``?``; terminals (upper case) that are one literal or one ``/pattern/`` without flags; ``%ignore NAME``;
    comments. One definition takes several lines where the further ones begin with white space.

    Raises:
        ValueError: a syntax error or a name that is not defined, with line and column.
    """
    return _Reader(source).read()


class _Reader:
    def __init__(self, source: str):
        self._source = source
        self._out = Notation()
        self._tokens = list(self._split())
        self._at = 0
        self._name = ""
        self._made = 0
        self._uses: dict[str, int] = {}
        self._depth = 0

    def _fail(self, offset: int, reason: str):
        line = self._source.count("\n", 0, offset) + 1
        column = offset - (self._source.rfind("\n", 0, offset) + 1) + 1
        raise ValueError(f"grammar at {line}:{column}: {reason}")

    def _split(self):
        at = 0
        while at < len(self._source):
            match = _TOKEN.match(self._source, at)
            if not match:
                self._fail(at, f"unexpected {self._source[at]!r}")
            at = match.end()
            if match.lastgroup == "line":
                # What begins with white space goes on with the definition.
                if not re.compile(r"[ \t]+[^\s/]|[ \t]*//|[ \t]*(\n|$)").match(self._source, at):
                    yield "line", "", at
            elif match.lastgroup != "space":
                yield match.lastgroup, match.group(), match.start()
        yield "line", "", at
        yield "end", "", at

    def _peek(self) -> str:
        kind, text, _ = self._tokens[self._at]
        return text if kind == "mark" else kind

    def _take(self, *wanted: str) -> str:
        kind, text, offset = self._tokens[self._at]
        if self._peek() not in wanted:
            self._fail(offset, f"expected {' or '.join(wanted)}, found {text or kind}")
        self._at += 1
        return text

    def read(self) -> Notation:
        while self._peek() != "end":
            if self._peek() == "line":
                self._at += 1
            elif self._peek() == "ignore":
                self._at += 1
                self._use("name")
                self._out.ignored.append(self._tokens[self._at - 1][1])
                self._take("line")
            else:
                self._definition()
        for name, offset in self._uses.items():
            if name not in self._out.rules and name not in self._out.terminals:
                self._fail(offset, f"{name} is not defined")
        for name in self._out.ignored:
            if name in self._out.rules:
                self._fail(self._uses[name], f"{name} is a rule; only terminals can be ignored")
        return self._out

    def _definition(self) -> None:
        offset = self._tokens[self._at][2]
        name = self._take("name")
        if name in self._out.rules or name in self._out.terminals:
            self._fail(offset, f"{name} is defined twice")
        self._take(":")
        if name.isupper():
            self._out.terminals[name] = self._terminal()
        else:
            self._out.rules[name] = []
            self._name = name
            self._out.rules[name] = self._alternatives()
        self._take("line")

    def _terminal(self) -> tuple[str, str]:
        if self._peek() == "regex":
            return "regex", self._take("regex")[1:-1].replace("\\/", "/")
        return "literal", self._text(self._take("literal", "regex"))

    def _text(self, literal: str) -> str:
        def plain(match):
            if match.group(1) not in _ESCAPES:
                self._fail(self._tokens[self._at - 1][2], f"unknown escape \\{match.group(1)}")
            return _ESCAPES[match.group(1)]

        text = re.sub(r"\\(.)", plain, literal[1:-1])
        if not text:
            self._fail(self._tokens[self._at - 1][2], "a literal can't be empty")
        return text

    def _use(self, kind: str) -> str:
        offset = self._tokens[self._at][2]
        name = self._take(kind)
        self._uses.setdefault(name, offset)
        return name

    def _alternatives(self) -> list[list[str]]:
        self._depth += 1
        if self._depth > _MOST_NESTING:
            self._fail(self._tokens[self._at][2], f"nested more than {_MOST_NESTING} deep")
        bodies = [self._body()]
        while self._peek() == "|":
            self._at += 1
            bodies.append(self._body())
        self._depth -= 1
        return bodies

    def _body(self) -> list[str]:
        body: list[str] = []
        while self._peek() in ("name", "literal", "("):
            body.append(self._repeated(self._atom()))
        return body

    def _atom(self) -> str:
        if self._peek() == "name":
            return self._use("name")
        if self._peek() == "literal":
            text = self._take("literal")
            self._out.terminals[text] = ("literal", self._text(text))
            return text
        self._take("(")
        inner = self._alternatives()
        self._take(")")
        return inner[0][0] if len(inner) == 1 and len(inner[0]) == 1 else self._rule(inner)

    def _repeated(self, atom: str) -> str:
        if self._peek() not in ("*", "+", "?"):
            return atom
        mark = self._take("*", "+", "?")
        if mark == "?":
            return self._rule([[], [atom]])
        many = self._rule([])
        self._out.rules[many] = [[], [atom, many]]
        return many if mark == "*" else self._rule([[atom, many]])

    def _rule(self, bodies: list[list[str]]) -> str:
        self._made += 1
        name = f"{self._name}.{self._made}"
        self._out.rules[name] = bodies
        return name
