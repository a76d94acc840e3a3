"""Whole texts under a byte-pair tokenizer: which of their tokens are certain, and which others may spell the rest."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .bytes_bpe import Merges
from .bytes_pretokens import Pretokens
from .bytes_vocabulary import ByteVocabulary, Spelling


class Branch(NamedTuple):
    """One way to go on with the cuts of a text.

    Attributes:
        state: of the automaton of cuts.
        partial: bytes of a character that is not complete, and whether a cut lies before it; None between two.
        word: bytes since the last cut, while a token that no merges make begins with them.
        sealed: whether a cut must come next.
    """

    state: int
    partial: tuple[bool, bytes] | None
    word: bytes | None
    sealed: bool


class Context(NamedTuple):
    """What is known of a token sequence: its last token (-1: none), and the ways to go on."""

    last: int
    branches: frozenset[Branch]


@dataclass(eq=False)
class Node:
    """A token sequence that ends at a position of a text.

    Attributes:
        at: the position.
        token: its last token; -1 of the first node.
        parent: the sequence without it.
        context: what may follow.
    """

    at: int
    token: int
    parent: "Node | None"
    context: Context

    def path(self) -> tuple[int, ...]:
        """Its tokens behind the first node."""
        found = []
        node = self
        while node.parent is not None:
            found.append(node.token)
            node = node.parent
        return tuple(reversed(found))


@dataclass
class Begun:
    """A text up to where its tokens are certain.

    Attributes:
        ids: the certain tokens.
        at: bytes they cover.
        context: what may follow them.
    """

    ids: list[int]
    at: int
    context: Context


class TextReader:
    """What :class:`~tokops.grammar.bytes_validity.BPEValidity` says of whole texts."""

    spelling: Spelling
    vocabulary: ByteVocabulary
    pre: Pretokens
    merges: Merges
    symbols: dict[bytes, int]
    fallback: dict[int, int]
    whole: dict[bytes, int]

    def start(self) -> Context:
        raise NotImplementedError

    def ends(self, context: Context) -> bool:
        raise NotImplementedError

    def advance(self, context: Context, token: int) -> Context | None:
        raise NotImplementedError

    def begin(self, data: bytes) -> Begun:
        """The tokens that are certain at the beginning of a text, whatever comes behind it.

        Raises:
            ValueError: bytes that are no UTF-8, or characters that the tokenizer cannot spell.
        """
        text = _decode(data)
        history: tuple | None = None
        branches: dict[tuple, tuple | None] = {self.pre.first: None}
        at = 0
        for char in text:
            kind = self.pre.alphabet.of(char)
            after: dict[tuple, tuple | None] = {}
            for one, history in branches.items():
                for new in self.pre.step_one(one, False, kind):
                    after[new] = history
                cuts = self.pre.step_one(one, True, kind)
                if cuts:
                    history = (history, at, one)
                    after.update(dict.fromkeys(cuts, history))
            branches, at = after, at + len(char.encode())
        if not branches:
            raise ValueError(
                "the tokenizer's pre-tokenizer splits no text like this one; validity='none' may read it"
            )
        history = _common(list(branches.values()))
        cuts = []
        while history is not None:
            cuts.append(history)
            history = history[0]
        cuts.reverse()
        ids: list[int] = []
        for (_, first, _), (_, last, _) in pairwise(cuts):
            ids += self.encode_word(data[first:last])
        if not cuts:
            return Begun(ids, 0, self.start())
        _, at, one = cuts[-1]
        branch = Branch(self.pre.number(frozenset([one])), None, None if not self.whole else b"", True)
        begun = Begun(ids, at, Context(-1, frozenset([branch])))
        return self._skip(begun, data) if self.pre.trivial and not self.whole else begun

    def _skip(self, begun: Begun, data: bytes) -> Begun:
        """Where texts are not cut: go on to the last place that no token reaches across."""
        for at in range(len(data) - 1, begun.at + 4 * self.vocabulary.longest, -1):
            reach = range(max(at - self.vocabulary.longest, 0), at)
            if data[at] & 0xC0 != 0x80 and not any(self.vocabulary.begins(data[i : at + 1]) for i in reach):
                break
        else:
            return begun
        ids = self.encode_word(data[begun.at : at])
        (branch,) = begun.context.branches
        state, mark = branch.state, True
        for char in data[begun.at : at].decode():
            state, mark = self.pre.step(state, mark, self.pre.alphabet.of(char)), False
        return Begun(begun.ids + ids, at, Context(ids[-1], frozenset([Branch(state, None, None, False)])))

    def nodes(self, begun: Begun, data: bytes) -> list[list[Node]]:
        """All sequences behind the certain tokens that spell a text up to some position, by position."""
        found: list[list[Node]] = [[] for _ in range(len(data) + 1)]
        found[begun.at].append(Node(begun.at, -1, None, begun.context))
        for at in range(begun.at, len(data)):
            if not found[at]:
                continue
            tokens = list(self.vocabulary.prefixes(data, at))
            for node in found[at]:
                for token in tokens:
                    context = self.advance(node.context, token)
                    if context is not None:
                        end = at + len(self.vocabulary.tokens[token])
                        found[end].append(Node(end, token, node, context))
        return found

    def encode(self, data: bytes) -> list[int]:
        """The tokens of a whole text.

        Raises:
            ValueError: as :meth:`begin`.
        """
        begun = self.begin(data)
        ends = [node for node in self.nodes(begun, data)[-1] if self.ends(node.context)]
        if len(ends) != 1:
            raise ValueError(f"the tokenizer cannot spell {data[begun.at :][:40]!r}")
        return begun.ids + list(ends[0].path())

    def encode_word(self, word: bytes) -> list[int]:
        """The tokens of one pre-token."""
        if word in self.whole:
            return [self.whole[word]]
        symbols = []
        for unit in self._units(word):
            if unit in self.symbols:
                symbols.append(self.symbols[unit])
                continue
            for byte in unit:
                if byte not in self.fallback:
                    raise ValueError(f"the tokenizer has no token for {unit!r}")
                symbols.append(self.fallback[byte])
        return self.merges.encode(symbols)

    def _units(self, word: bytes) -> Iterable[bytes]:
        if self.spelling.byte_level:
            return (word[i : i + 1] for i in range(len(word)))
        return (char.encode() for char in word.decode())


def _decode(data: bytes) -> str:
    """Bytes as text, an incomplete character at the end left out."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise ValueError(
                f"the text is no UTF-8 at byte {error.start}: {data[error.start :][:8]!r}"
            ) from None
        return data[: error.start].decode()


def _common(histories: list) -> tuple | None:
    """The last cut that all have, each a chain from the last cut to the first."""
    rest = histories[0]
    for other in histories[1:]:
        known = set()
        while other is not None:
            known.add(id(other))
            other = other[0]
        while rest is not None and id(rest) not in known:
            rest = rest[0]
    return rest
