"""Words in a text that grows token by token, and the tokens after which every word passes or still may."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._filters import character_class, fold

#: Masks of beginnings of words that are kept: 16 KB each for 128k tokens.
_MASKS = 1024
#: Where characters of several bytes end that are thought of when a token ends inside one: behind the planes of text.
_LAST = 0x20000


def split_bytes(data: bytes) -> tuple[str, bytes] | None:
    """The whole characters of some bytes and what is left of a character at their end; None if they are no UTF-8."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None
        return data[: error.start].decode(), data[error.start :]


def open_word(word: str, text: str, joiners: str) -> tuple[str, int]:
    """An open word after more text, and how many words have ended; nothing is asked of them."""
    ended = 0
    for c in text:
        joins = c in joiners
        if (joins and word) or (not joins and character_class(c) in (None, "digits")):
            word += c
        else:
            ended += bool(word)
            word = ""
    return word, ended


class Words:
    """The language of words of a method: which pass, and which beginnings may still pass.

    Args:
        method: a :class:`tokops.methods.VocabularyFilters`.
    """

    def __init__(self, method: Any):
        self._method = method
        self._filters = method.filters()
        self._exempt = set(method.exempt)
        self._lexicon: list[str] | None = None
        words = method.words()
        if words is not None:
            self._lexicon = sorted({self._key(word) for word in words if self._passes(word)})

    def _key(self, word: str) -> str:
        return fold(word) if self._method.fold else word.casefold()

    def _passes(self, word: str) -> bool:
        text = self._method.prepare(word)
        return not self._method.refuses_blanks(text) and all(f.accepts(text) for f in self._filters)

    def _is_exempt(self, word: str) -> bool:
        return "digits" in self._exempt and all(character_class(c) == "digits" for c in word)

    def accepts(self, word: str) -> bool:
        """Whether a word that has ended passes; no word does."""
        word = word.rstrip(self._method.joiners)
        if not word or self._is_exempt(word):
            return True
        if self._lexicon is None:
            return self._passes(word)
        key = self._key(word)
        at = bisect_left(self._lexicon, key)
        return at < len(self._lexicon) and self._lexicon[at] == key

    def open(self, word: str) -> bool:
        """Whether a word that begins so can pass, one that is complete among them."""
        if not word or self._is_exempt(word):
            return True
        if self._lexicon is None:
            text = self._method.prepare(word)
            begins = all(f.open(text) for f in self._filters)
        else:
            key = self._key(word)
            at = bisect_left(self._lexicon, key)
            begins = at < len(self._lexicon) and self._lexicon[at].startswith(key)
        return begins or (word[-1] in self._method.joiners and self.accepts(word))

    def memory(self, word: str) -> Hashable:
        """All of an open word that what may follow depends on."""
        kind = (not word, word[-1:] in self._method.joiners, bool(word) and self._is_exempt(word))
        if self._lexicon is not None or kind[1]:
            return (*kind, self._key(word))
        text = self._method.prepare(word)
        # Blank or not matters where blanks are dropped.
        return (*kind, not text.strip(), *(f.memory(text) for f in self._filters))

    def walk(self, word: str, text: str) -> tuple[str, int] | None:
        """An open word after more text, and how many words have ended; None where one of them fails.

        The word that is open at the end is one that may still pass.
        """
        ended = 0
        for c in text:
            joins = c in self._method.joiners
            kind = None if joins and word else "punctuation" if joins else character_class(c)
            if kind in (None, "digits"):
                word += c
            elif not self.separates(c) or not self.accepts(word):
                return None
            else:
                ended += bool(word)
                word = ""
        return (word, ended) if self.open(word) else None

    def separates(self, c: str) -> bool:
        """Whether a character may stand between words."""
        kind = character_class(c)
        return kind == "whitespace" or (kind == "punctuation" and "punctuation" in self._exempt)

    def letters(self, characters: Iterable[str]) -> list[str]:
        """Those of some characters that can be in a word that passes, and perhaps more."""
        joiners = self._method.joiners
        word = [c for c in characters if c in joiners or character_class(c) in (None, "digits")]
        if self._lexicon is not None:
            known = set().union(*self._lexicon)
            return [c for c in word if known.issuperset(self._key(c))]
        # A beginning that is asked for is none of a word's later letters.
        tests = [f.open for f in self._filters if f.name != "starts_with"]
        return [c for c in word if all(test(self._method.prepare(c)) for test in tests)]


@dataclass
class _Node:
    """A beginning of tokens' first pieces: what follows, the tokens that are no more, and those that go on."""

    children: dict[str, "_Node"] = field(default_factory=dict)
    whole: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class TokenTable:
    """Which tokens may follow an open word.

    Most tokens are word characters, or word characters and then a separator with more behind it, which no longer
    depends on the word: those are in a tree of first pieces. Tokens with joiners or parts of characters are tried one
    by one.

    Args:
        tokens: bytes of every token; ``b""`` has no text and is never allowed here.
        words: the language of words.
        skip: tokens that are decided elsewhere, special ones.
        joiners: of the words.
    """

    def __init__(self, tokens: Sequence[bytes], words: Words, skip: frozenset[int], joiners: str):
        self._tokens, self._words = tokens, words
        self._root = _Node()
        self._separated: list[int] = []  # begin with a separator, and what is behind it may be
        self._odd: list[int] = []
        self._parts: list[int] = []  # begin inside a character
        self._tails: set[bytes] = set()  # their bytes
        self._masks: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._beginnings: tuple[dict[bytes, list[str]], dict[bytes, list[str]]] | None = None
        for i, data in enumerate(tokens):
            if i in skip or not data:
                continue
            if 0x80 <= data[0] < 0xC0:
                self._parts.append(i)
                self._tails.add(data)
                continue
            split = split_bytes(data)
            if split is None:
                continue
            text, rest = split
            if rest or any(c in joiners for c in text):
                self._odd.append(i)
            else:
                self._file(i, text)

    def _file(self, token: int, text: str) -> None:
        size = next((n for n, c in enumerate(text) if character_class(c) not in (None, "digits")), len(text))
        if size < len(text) and self._words.walk("", text[size:]) is None:
            return
        if not size:
            self._separated.append(token)
            return
        node = self._root
        for c in text[:size]:
            node = node.children.setdefault(c, _Node())
        (node.whole if size == len(text) else node.ends).append(token)

    def allowed(self, word: str, pending: bytes) -> np.ndarray:
        """``[V]`` bool: the tokens that may follow a word that is open, and bytes of a character that is."""
        key = (self._words.memory(word), pending)
        if key in self._masks:
            self._masks.move_to_end(key)
            return self._masks[key]
        mask = np.zeros(len(self._tokens), bool)
        if pending:
            tried = self._parts
        else:
            tried = self._odd
            if self._words.accepts(word):
                mask[self._separated] = True
            self._descend(word, mask)
        for i in tried:
            mask[i] = self.after(word, pending, i) is not None
        self._masks[key] = mask
        if len(self._masks) > _MASKS:
            self._masks.popitem(last=False)
        return mask

    def _descend(self, word: str, mask: np.ndarray) -> None:
        stack = [(word + c, node) for c, node in self._root.children.items()]
        while stack:
            text, node = stack.pop()
            if not self._words.open(text):
                continue
            mask[node.whole] = True
            if node.ends and self._words.accepts(text):
                mask[node.ends] = True
            stack += [(text + c, child) for c, child in node.children.items()]

    def after(self, word: str, pending: bytes, token: int) -> tuple[str, bytes, int] | None:
        """The open word, the open character and the words that ended, after one token; None where it may not follow."""
        return self.read(word, pending, self._tokens[token])

    def read(self, word: str, pending: bytes, data: bytes) -> tuple[str, bytes, int] | None:
        """The same for any bytes."""
        split = split_bytes(pending + data)
        if split is None:
            return None
        text, rest = split
        walked = self._words.walk(word, text)
        if walked is None or (rest and not self._completable(walked[0], rest)):
            return None
        return walked[0], rest, walked[1]

    def _completable(self, word: str, pending: bytes) -> bool:
        """Whether some character that begins with these bytes may come next, and tokens can spell it."""
        if self._beginnings is None:
            characters = [chr(i) for i in range(0x80, _LAST) if not 0xD800 <= i < 0xE000]
            separators = [c for c in characters if self._words.separates(c)]
            self._beginnings = _by_beginning(separators), _by_beginning(self._words.letters(characters))
        separators, letters = (found.get(pending, []) for found in self._beginnings)
        if self._words.accepts(word) and any(self._spelled(c, pending) for c in separators):
            return True
        return any(self._words.open(word + c) and self._spelled(c, pending) for c in letters)

    def _spelled(self, c: str, pending: bytes) -> bool:
        """Whether the rest of a character's bytes is tokens that are nothing else."""
        reached, data = {0}, c.encode()[len(pending) :]
        for end in range(1, len(data) + 1):
            if any(data[start:end] in self._tails for start in reached):
                reached.add(end)
        return len(data) in reached


def _by_beginning(characters: Iterable[str]) -> dict[bytes, list[str]]:
    """Characters by all proper beginnings of their bytes."""
    found: dict[bytes, list[str]] = {}
    for c in characters:
        data = c.encode()
        for size in range(1, len(data)):
            found.setdefault(data[:size], []).append(c)
    return found
