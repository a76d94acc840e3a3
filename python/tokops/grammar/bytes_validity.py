"""Which token sequences a tokenizer makes: exactly, for byte-pair encoding, without encoding anything."""

from typing import Protocol

import numpy as np

from .bytes_bpe import MergeOrderError, Merges
from .bytes_exact import NotExact, check_exact, without_idle_splits
from .bytes_pretokens import DEAD, START, Pretokens, patterns_of
from .bytes_regex import PatternError
from .bytes_texts import Begun, Branch, Context, Node, TextReader
from .bytes_vocabulary import Spelling

__all__ = ["BPEValidity", "Begun", "Branch", "Context", "EveryEncoding", "Node", "NotExact", "Validity"]

_KEPT = 512
_LARGEST = 4096  # characters that are looked through to complete one


class Validity(Protocol):
    """Which tokens may follow others."""

    def start(self) -> object:
        """The context of an empty text."""

    def mask(self, context) -> np.ndarray | None:
        """Tokens that may follow, bool ``[V]``; None is all. Not to be written to."""

    def ends(self, context) -> bool:
        """Whether the text may end."""

    def advance(self, context, token: int) -> object | None:
        """The context after one more token; None where it may not follow."""


class EveryEncoding:
    """All token sequences count, whether or not the tokenizer would make them."""

    def start(self) -> object:
        return ()

    def mask(self, context) -> None:
        return None

    def ends(self, context) -> bool:
        return True

    def advance(self, context, token: int) -> object:
        return ()


class BPEValidity(TextReader):
    """Token sequences that a byte-pair tokenizer makes of some text, and what they begin with.

    A sequence counts if it begins the encoding of some text: what follows may still be needed for that, as where
    the cut between two spaces shows only with the next character.

    Args:
        spelling: of a BPE tokenizer.

    Raises:
        NotExact: another model than BPE, a normalizer or pre-tokenizer that is not invertible or not known, dropout,
            added tokens that ordinary text is spelled with, or merges out of order.
    """

    def __init__(self, spelling: Spelling):
        self.spelling = spelling
        self.vocabulary = spelling.vocabulary
        check_exact(spelling)
        model, vocab = spelling.spec["model"], spelling.vocab
        tokens = self.vocabulary.tokens
        try:
            patterns, _ = patterns_of(without_idle_splits(spelling))
        except PatternError as error:
            raise NotExact(str(error)) from None
        texts = {}
        for number, token in enumerate(tokens):
            try:
                texts[number] = token.decode() if token else ""
            except UnicodeDecodeError:
                continue
        self.pre = Pretokens(patterns, {char for text in texts.values() for char in text})
        #: Symbols that texts consist of before the first merge: bytes, or characters.
        self.symbols: dict[bytes, int] = {}
        for piece, number in vocab.items():
            if len(piece) == 1 and tokens[number] and number not in spelling.byte_ids:
                self.symbols[tokens[number]] = number
        self.fallback = {byte: number for number, byte in spelling.byte_ids.items()}
        pairs = (pair if isinstance(pair, (list, tuple)) else pair.split(" ") for pair in model["merges"])
        merges = [(vocab[a], vocab[b], vocab[a + b]) for a, b in pairs]
        try:
            self.merges = Merges(len(tokens), [*self.symbols.values(), *self.fallback.values()], merges)
        except MergeOrderError as error:
            raise NotExact(str(error)) from None
        made = np.zeros(len(tokens), bool)
        made[self.vocabulary.order] = True
        #: Tokens that merges make.
        self.made = made & (self.merges.made < np.iinfo(np.int64).max)
        whole = np.flatnonzero(made & ~self.made) if model.get("ignore_merges") else ()
        #: Tokens that only a whole pre-token becomes, by their bytes, and all beginnings of these.
        self.whole = {tokens[number]: int(number) for number in whole}
        self._words = {token[:end] for token in self.whole for end in range(len(token) + 1)}
        self._usable = self.made.copy()
        self._usable[list(self.whole.values())] = True
        self._prepare(texts)
        self._alive: dict[tuple, np.ndarray] = {}
        self._masks: dict[Context, np.ndarray] = {}
        self._next: dict[tuple[Context, int], Context | None] = {}
        self._kinds: dict[tuple[bytes, bool], frozenset[int] | None] = {}

    def _prepare(self, texts: dict[int, str]) -> None:
        """Classes of the characters of all tokens that consist of whole ones, as one array."""
        clean = [i for i in self.vocabulary.order.tolist() if i in texts and i not in self.spelling.byte_ids]
        self._odd = [
            i for i in self.vocabulary.order.tolist() if i not in texts or i in self.spelling.byte_ids
        ]
        self._clean = np.array(clean, np.int64)
        of = self.pre.alphabet.of
        self._characters = np.array([of(char) for i in clean for char in texts[i]], np.int64)
        lengths = np.array([len(texts[i]) for i in clean], np.int64)
        starts = lengths.cumsum() - lengths
        self._columns = [
            (longer, starts[longer] + depth)
            for depth in range(int(lengths.max(initial=0)))
            if len(longer := np.flatnonzero(lengths > depth))
        ]

    # ---- What may follow.

    def start(self) -> Context:
        return Context(-1, frozenset([Branch(START, None, b"" if self.whole else None, True)]))

    def mask(self, context: Context) -> np.ndarray:
        known = self._masks.get(context)
        if known is None:
            known = self._mask(context)
            if len(self._masks) == _KEPT:
                del self._masks[next(iter(self._masks))]
            self._masks[context] = known
        return known

    def ends(self, context: Context) -> bool:
        return any(
            b.partial is None and self._may_cut(b) and self.pre.ends(b.state) for b in context.branches
        )

    def advance(self, context: Context, token: int) -> Context | None:
        key = context, token
        if key not in self._next:
            if len(self._next) >= 64 * _KEPT:
                self._next.clear()
            self._next[key] = self._advance(context, token)
        return self._next[key]

    def _may_cut(self, branch: Branch) -> bool:
        return branch.sealed or branch.word is None or branch.word not in self.whole

    def _mask(self, context: Context) -> np.ndarray:
        cut = np.zeros(len(self.vocabulary), bool)
        inner = np.zeros(len(self.vocabulary), bool)
        for branch in context.branches:
            if branch.partial is not None:
                inner |= self._alive_in(branch.state, branch.partial)
                continue
            if self._may_cut(branch):
                cut |= self._alive_behind(branch.state, True)
            if not branch.sealed:
                inner |= self._alive_behind(branch.state, False)
        if inner.any():
            # A token that is a whole pre-token has nothing to do with one before it.
            cut |= inner & self.merges.followers(context.last) & self.made
        cut &= self._usable
        for word in {branch.word for branch in context.branches if branch.word}:
            for whole in self.whole:
                if whole.startswith(word):
                    for token in self.vocabulary.exact(whole[len(word) :]):
                        cut[token] = self.advance(context, token) is not None
        return cut

    def _alive_behind(self, state: int, mark: bool) -> np.ndarray:
        """Tokens that may come next as far as cuts go, the first character with or without one before it."""
        key = state, mark
        if key not in self._alive:
            found = np.zeros(len(self.vocabulary), bool)
            states = np.full(len(self._clean), state)
            for depth, (rows, places) in enumerate(self._columns):
                states[rows] = self.pre.steps(states[rows], mark and depth == 0, self._characters[places])
            found[self._clean] = states != DEAD
            for number in self._odd:
                found[number] = self._walk(state, mark, b"", number) is not None
            self._remember(key, found)
        return self._alive[key]

    def _alive_in(self, state: int, partial: tuple[bool, bytes]) -> np.ndarray:
        """The same in the middle of a character, which only tokens that begin in the middle of one go on with."""
        key = state, partial
        if key not in self._alive:
            found = np.zeros(len(self.vocabulary), bool)
            for number in self._odd:
                found[number] = self._walk(state, *partial, number) is not None
            self._remember(key, found)
        return self._alive[key]

    def _remember(self, key: tuple, found: np.ndarray) -> None:
        if len(self._alive) == _KEPT:
            del self._alive[next(iter(self._alive))]
        self._alive[key] = found

    def _advance(self, context: Context, token: int) -> Context | None:
        whole = not self.made[token]
        if not self._usable[token]:
            return None
        inner = context.last >= 0 and not whole and self.merges.pair(context.last, token)
        found = set()
        data = self.vocabulary.tokens[token]
        for branch in context.branches:
            if branch.partial is None and self._may_cut(branch):
                end = self._walk(branch.state, True, b"", token)
                if end is not None:
                    found.add(Branch(*end, self._word(data), whole))
            if inner and not branch.sealed:
                mark, tail = branch.partial or (False, b"")
                end = self._walk(branch.state, mark, tail, token)
                if end is not None:
                    word = None if branch.word is None else self._word(branch.word + data)
                    new = Branch(*end, word, False)
                    if end[1] is not None or self._may_cut(new) or self._goes_on(new.state):
                        found.add(new)
        return Context(token, frozenset(found)) if found else None

    def _goes_on(self, state: int) -> bool:
        """Whether a pre-token may be longer than it is."""
        return any(self.pre.step(state, False, kind) != DEAD for kind in range(len(self.pre.alphabet)))

    def _word(self, data: bytes) -> bytes | None:
        return data if self.whole and data in self._words else None

    def _walk(
        self, state: int, mark: bool, tail: bytes, token: int
    ) -> tuple[int, tuple[bool, bytes] | None] | None:
        """The state and the incomplete character behind a token; None where it may not come."""
        spare = token in self.spelling.byte_ids  # stands for a byte of a character without a symbol
        if tail and not spare and not self.spelling.byte_level:
            return None
        data = tail + self.vocabulary.tokens[token]
        at = 0
        while at < len(data):
            size = _size(data[at])
            part = data[at : at + size]
            if not size:
                return None
            if len(part) < size:
                kinds = self._completions(part, spare)
                if kinds is None or (kinds and all(self.pre.step(state, mark, k) == DEAD for k in kinds)):
                    return None
                return state, (mark, part)
            try:
                char = part.decode()
            except UnicodeDecodeError:
                return None
            if spare and part in self.symbols:
                return None
            state = self.pre.step(state, mark, self.pre.alphabet.of(char))
            if state == DEAD:
                return None
            mark = False
            at += size
        return state, None

    def _completions(self, part: bytes, spare: bool) -> frozenset[int] | None:
        """Classes of the characters that begin with some bytes: none if there are too many to look, None if none."""
        key = part, spare
        if key not in self._kinds:
            self._kinds[key] = self._find_completions(part, spare)
        return self._kinds[key]

    def _find_completions(self, part: bytes, spare: bool) -> frozenset[int] | None:
        size = _size(part[0])
        if any(byte & 0xC0 != 0x80 for byte in part[1:]):
            return None
        value = part[0] & (0x7F >> size)
        for byte in part[1:]:
            value = value << 6 | byte & 0x3F
        missing = 6 * (size - len(part))
        low = max(value << missing, (0, 0, 0x80, 0x800, 0x10000)[size])
        high = min((value + 1) << missing, 0x110000)
        if high - low > _LARGEST:
            return frozenset()
        chars = [chr(c) for c in range(low, high) if not 0xD800 <= c < 0xE000]
        kinds = {self.pre.alphabet.of(c) for c in chars if not (spare and c.encode() in self.symbols)}
        return frozenset(kinds) or None


def _size(byte: int) -> int:
    """Bytes of a character by its first one; 0 for one that begins none."""
    if byte < 0x80:
        return 1
    return 0 if byte < 0xC2 or byte > 0xF4 else 2 + (byte >= 0xE0) + (byte >= 0xF0)
