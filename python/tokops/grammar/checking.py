"""Where a text leaves a grammar, in words; and texts drawn from a grammar, byte by byte."""

import contextlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Id of the end in :func:`byte_tokens`.
END = 256
_CLOSING, _OPENING, _BLANK = b"]}", b"[{", b" \t\r\n"
_STRING_OR_BLANKS = re.compile(rb'"(?:[^"\\]|\\.)*"|[ \t\r\n]+', re.DOTALL)


class DeadEnd(ValueError):
    """A draw that came to where nothing may follow: the grammar promised a text that there isn't."""


def byte_tokens() -> list[bytes]:
    """A vocabulary of all bytes and an end."""
    return [*(bytes((b,)) for b in range(256)), b""]


@dataclass(frozen=True)
class Failure:
    """Why a text is not one of a grammar.

    Attributes:
        offset: of the byte that can't come; the length where the text ends too early.
        path: JSON path of the value that was being read there.
        found: what came.
        expected: what could have come, in words.
    """

    offset: int
    path: str
    found: str
    expected: list[str]

    def __str__(self) -> str:
        return f"byte {self.offset}, at {self.path}: {self.found}, expected {' or '.join(self.expected)}"


class _Mask:
    """The bytes that a matcher over :func:`byte_tokens` allows."""

    def __init__(self) -> None:
        self.row = torch.zeros((END + 32) // 32, dtype=torch.int32)

    def read(self, matcher: Any) -> tuple[list[int], bool]:
        matcher.fill(self.row)
        words = [int(word) & 0xFFFFFFFF for word in self.row]
        return [b for b in range(256) if words[b >> 5] >> (b & 31) & 1], bool(
            words[END >> 5] >> (END & 31) & 1
        )


def examine(grammar: Any, text: bytes) -> Failure | None:
    """Where a text leaves the grammar.

    Args:
        grammar: compiled over :func:`byte_tokens`.
        text: a whole text.

    Returns:
        None where the grammar allows the text.
    """
    matcher, mask = grammar.matcher(), _Mask()
    for offset, b in enumerate(text):
        if not matcher.accept(b):
            found = f"found {_shown(text, offset)}"
            return Failure(offset, json_path(text[:offset]), found, _expected(matcher, mask))
    if not mask.read(matcher)[1]:
        return Failure(len(text), json_path(text), "the text ends", _expected(matcher, mask))
    return None


def blanks_at_fault(grammar: Any, text: bytes) -> list[bytes]:
    """The runs of white space between the tokens of a JSON text that only fails for them.

    Args:
        grammar: compiled over :func:`byte_tokens`.
        text: a whole text, which the grammar does not allow.

    Returns:
        Nothing where the text is no JSON, or is not allowed without its white space either.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return []
    runs = [run for run in _STRING_OR_BLANKS.findall(text) if run[0] in _BLANK]
    without = _STRING_OR_BLANKS.sub(lambda found: b"" if found[0][0] in _BLANK else found[0], text)
    return runs if runs and grammar.accepts(without) else []


def _shown(text: bytes, offset: int) -> str:
    piece = text[offset : offset + 16].decode("utf-8", "replace")
    return f"{piece!r}" + ("..." if len(text) > offset + 16 else "")


def _expected(matcher: Any, mask: _Mask, most: int = 8) -> list[str]:
    """What may come, in words: a few whole continuations where only few bytes may, else groups of bytes."""
    allowed, end = mask.read(matcher)
    groups = ["the end of the text"] if end else []
    visible = _telling(allowed)
    digits = [b for b in visible if b in b"0123456789"]
    if len(visible) > 100:
        return (
            [*groups, "any character"]
            if 0x22 not in visible
            else [*groups, "any character or the closing quote"]
        )
    if len(digits) > 2:
        groups.append("a digit")
        visible = [b for b in visible if b not in digits]
    for b in visible:
        for word in _words(matcher, mask, b, most):
            groups.append(repr(word.decode("utf-8", "replace")))
    groups = list(dict.fromkeys(groups))
    if not groups:
        return ["a blank"] if allowed else ["nothing (the grammar is at its end)"]
    return groups if len(groups) <= most else [*groups[:most], f"one of {len(groups) - most} others"]


def _telling(allowed: list[int]) -> list[int]:
    """Without blanks, and without the escape where the characters themselves may come."""
    visible = [b for b in allowed if b not in _BLANK]
    return [b for b in visible if b != 0x5C] or visible


def _words(matcher: Any, mask: _Mask, first: int, most: int, longest: int = 48) -> list[bytes]:
    """Continuations that begin with a byte, each followed while there are few ways on; quotes end them."""
    fork = matcher.fork()
    fork.accept(first)
    todo, done = [(bytes((first,)), fork)], list[bytes]()
    while todo and len(todo) + len(done) <= most:
        word, at = todo.pop(0)
        allowed, end = mask.read(at)
        plain = _telling(allowed)
        closed = len(word) > 1 and word.endswith(b'"')
        if (
            closed
            or end
            or len(word) >= longest
            or not plain
            or len(plain) > most
            or word in (b"{", b"[", b"}", b"]", b",")
        ):
            done.append(word)
            continue
        for b in plain:
            after = at.fork()
            after.accept(b)
            todo.append((word + bytes((b,)), after))
    return [bytes((first,))] if todo else done


def sample(grammar: Any, seed: int = 0, most: int = 2000, words: Sequence[str] = ()) -> str:
    """A text drawn from a grammar; the longer it gets, the more it hurries to its end.

    Args:
        grammar: compiled over :func:`byte_tokens`.
        seed: of the draws.
        most: bytes after which it is cut short with "...".
        words: strings that are tried before random ones; see :func:`key_names`.

    Raises:
        DeadEnd: nothing may follow what was drawn.
    """
    draw, matcher, mask, out = random.Random(seed), grammar.matcher(), _Mask(), bytearray()
    spelled = [json.dumps(word, ensure_ascii=False)[1:].encode() for word in words]
    string = False
    while len(out) < most:
        allowed, end = mask.read(matcher)
        if end and (not allowed or all(b in _BLANK for b in allowed) or draw.random() < 0.5):
            return out.decode("utf-8", "replace")
        if not allowed:
            raise DeadEnd(f"nothing may follow {out.rstrip()[-60:].decode('utf-8', 'replace')!r}")
        b = draw.choices(allowed, [_weight(b, len(allowed), len(out)) for b in allowed])[0]
        matcher.accept(b)
        out.append(b)
        string ^= b == 0x22 and (len(out) < 2 or out[-2] != 0x5C)
        if string and b == 0x22 and draw.random() < 0.9:
            for word in draw.sample(spelled, len(spelled)):
                fork = matcher.fork()
                if all(map(fork.accept, word)):
                    matcher, string = fork, False
                    out += word
                    break
    return out.decode("utf-8", "replace") + "..."


def samples(grammar: Any, count: int, seed: int = 0, words: Sequence[str] = (), tries: int = 20) -> list[str]:
    """Texts as :func:`sample` draws them, each with another draw in place of one that leads nowhere.

    Raises:
        DeadEnd: all ``tries`` draws of a text led nowhere.
    """
    return [_sample(grammar, range(seed + n, seed + n + tries * count, count), words) for n in range(count)]


def _sample(grammar: Any, seeds: Sequence[int], words: Sequence[str]) -> str:
    for seed in seeds[:-1]:
        with contextlib.suppress(DeadEnd):
            return sample(grammar, seed, words=words)
    return sample(grammar, seeds[-1], words=words)


def key_names(schema: Any) -> list[str]:
    """The names that a schema's `properties` and `required` list, at any depth."""
    found: dict[str, None] = {}
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += one
        elif isinstance(one, dict):
            for keyword in ("properties", "required"):
                if isinstance(one.get(keyword), (dict, list)):
                    found.update(dict.fromkeys(name for name in one[keyword] if isinstance(name, str)))
            todo += one.values()
    return list(found)


def _weight(b: int, ways: int, length: int) -> float:
    """How likely a byte is drawn: short strings and numbers, few blanks and escapes, and closers before long."""
    hurry = 1.0 + length / 50
    if b in _CLOSING or (b == 0x22 and ways > 40):
        return 12.0 * hurry**2
    if b in _OPENING:
        return 1.0 / hurry**2
    if b in b"\t\r\n\\" or (b == 0x20 and ways < 40) or b >= 0x80:
        return 1e-3
    if b == 0x2C:
        return 4.0 / hurry
    return 1.0 if chr(b).isalnum() or ways < 40 else 0.1


def json_path(text: bytes) -> str:
    """The JSON path of the place where a JSON text is cut off."""
    stack: list[list] = []  # [is an object, key or index]
    key, escaped, string, start = "", False, False, 0
    for i, b in enumerate(text):
        if string:
            if escaped:
                escaped = False
            elif b == 0x5C:
                escaped = True
            elif b == 0x22:
                string = False
                key = text[start : i + 1].decode("utf-8", "replace")
        elif b == 0x22:
            string, start = True, i
        elif b in _OPENING:
            stack.append([b == 0x7B, None if b == 0x7B else 0])
        elif b in _CLOSING and stack:
            stack.pop()
        elif b == 0x3A and stack and stack[-1][0]:
            stack[-1][1] = key
        elif b == 0x2C and stack:
            stack[-1][1] = None if stack[-1][0] else stack[-1][1] + 1
    steps = (f"[{where}]" for _, where in stack if where is not None)
    return "$" + "".join(steps)
