"""A vocabulary in the order of its bytes: what begins with given bytes is one range."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np

from .bytes_pretokens import patterns_of
from .bytes_regex import PatternError

#: The symbol for the end of a text, behind the 256 bytes.
END_OF_TEXT = 256


class ByteVocabulary:
    """Tokens as bytes, sorted by (bytes, id).

    Args:
        tokens: the bytes of every id; empty where an id stands for no text (special tokens, unused ids).

    Raises:
        ValueError: no id stands for any text.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self.tokens = [bytes(token) for token in tokens]
        ids = sorted((i for i, token in enumerate(self.tokens) if token), key=self.tokens.__getitem__)
        if not ids:
            raise ValueError("ByteVocabulary: no token stands for any bytes")
        #: Ids in the order of their bytes, int64 ``[N]``.
        self.order = np.array(ids, np.int64)
        self._sorted = [self.tokens[i] for i in ids]
        #: Bytes per token, in this order, and all bytes in one piece.
        self.lengths = np.array([len(token) for token in self._sorted], np.int64)
        self._starts = self.lengths.cumsum() - self.lengths
        self._flat = np.frombuffer(b"".join(self._sorted), np.uint8)
        self.longest = int(self.lengths.max())

    def __len__(self) -> int:
        return len(self.tokens)

    def column(self, low: int, high: int, depth: int) -> np.ndarray:
        """Byte ``depth`` of the tokens in a range of the order, all of which are longer."""
        return self._flat[self._starts[low:high] + depth]

    def narrow(self, low: int, high: int, depth: int, byte: int) -> tuple[int, int]:
        """The part of a range, equal in ``depth`` bytes and all longer, that has a byte next."""
        column = self.column(low, high, depth)
        return low + int(np.searchsorted(column, byte)), low + int(np.searchsorted(column, byte, "right"))

    def range(self, prefix: bytes) -> tuple[int, int, int]:
        """Tokens that begin with some bytes: ``(first, first that is longer, end)`` in the order."""
        low = bisect_left(self._sorted, prefix)
        longer = bisect_left(self._sorted, prefix + b"\0")
        end = prefix.rstrip(b"\xff")
        high = bisect_left(self._sorted, end[:-1] + bytes([end[-1] + 1])) if end else len(self._sorted)
        return low, longer, high

    def prefixes(self, data: bytes, at: int) -> Iterator[int]:
        """Ids of the tokens that the bytes from a position on begin with, shorter ones first."""
        low = 0
        for stop in range(at + 1, min(len(data), at + self.longest) + 1):
            prefix = data[at:stop]
            low = place = bisect_left(self._sorted, prefix, low)
            if low == len(self._sorted) or not self._sorted[low].startswith(prefix):
                return
            while place < len(self._sorted) and self._sorted[place] == prefix:
                yield int(self.order[place])
                place += 1

    def exact(self, data: bytes) -> list[int]:
        """Ids of the tokens that are these very bytes."""
        low, longer, _ = self.range(data)
        return self.order[low:longer].tolist()

    def begins(self, data: bytes) -> bool:
        """Whether some token begins with these bytes."""
        low = bisect_left(self._sorted, data)
        return low < len(self._sorted) and self._sorted[low].startswith(data)


class Spelling:
    """How a tokenizer of the ``tokenizers`` library spells texts, read from its JSON.

    Attributes:
        vocabulary: its tokens as bytes; added tokens stand for no text.
        byte_level: whether its symbols are bytes, not characters.
        lead: which texts get a space in front, "never", "first" or "always"; ``lead_once`` leaves those alone that
            begin with one.
        added: contents of added tokens and their ids.

    Raises:
        ValueError: tokens whose bytes cannot be told.
    """

    def __init__(self, spec: dict):
        self.spec = spec
        model = spec["model"]
        self.kind = model.get("type", "BPE")
        vocab = model["vocab"]
        if isinstance(vocab, list):  # Unigram: pieces with scores
            vocab = {piece: number for number, (piece, _) in enumerate(vocab)}
        self.vocab: dict[str, int] = vocab
        self.added = {token["content"]: token["id"] for token in spec.get("added_tokens", ())}
        if model.get("continuing_subword_prefix"):
            raise ValueError(
                f"{self.kind} with continuing_subword_prefix={model['continuing_subword_prefix']!r} leaves spaces out: "
                "its tokens have no bytes of their own"
            )
        parts = parts_of(spec.get("pre_tokenizer"), "pretokenizers")
        decoders = parts_of(spec.get("decoder"), "decoders")
        self.byte_level = "ByteLevel" in [part["type"] for part in (*parts, *decoders)]
        self.spaces = _space_signs(spec)
        self.fallback = bool(model.get("byte_fallback"))
        size = max([*vocab.values(), *self.added.values()]) + 1
        tokens = [b""] * size
        #: Ids that stand for one byte of a character that has no token.
        self.byte_ids: dict[int, int] = {}
        alphabet = _byte_of()
        for piece, number in vocab.items():
            if piece in self.added:
                continue
            if self.fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                self.byte_ids[number] = int(piece[3:5], 16)
                tokens[number] = bytes([self.byte_ids[number]])
            elif piece == model.get("unk_token"):
                continue
            elif self.byte_level:
                if all(char in alphabet for char in piece):
                    tokens[number] = bytes(alphabet[char] for char in piece)
            else:
                for sign in self.spaces:
                    piece = piece.replace(sign, " ")
                tokens[number] = piece.encode("utf-8", "surrogatepass")
        self.vocabulary = ByteVocabulary(tokens)
        self.lead, self.lead_once = _lead_of(spec, parts)

    def lead_of(self, data: bytes, first: bool) -> bytes:
        """What the tokenizer puts before a text; ``first``: no special token comes before it."""
        wanted = self.lead == "always" or (self.lead == "first" and first)
        return b" " if wanted and not (self.lead_once and data.startswith(b" ")) else b""


def parts_of(spec: dict | None, inner: str) -> list[dict]:
    """The normalizers, pre-tokenizers or decoders that a description of one consists of."""
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [part for one in spec[inner] for part in parts_of(one, inner)]
    return [spec]


def _space_signs(spec: dict) -> list[str]:
    """Characters that stand for a space in the vocabulary."""
    found = []
    for part in parts_of(spec.get("normalizer"), "normalizers"):
        if part["type"] == "Replace" and part["pattern"].get("String") == " ":
            found.append(part["content"])
    for part in (
        *parts_of(spec.get("pre_tokenizer"), "pretokenizers"),
        *parts_of(spec.get("decoder"), "decoders"),
    ):
        if part["type"] == "Metaspace":
            found.append(part["replacement"])
    return sorted(set(found))


def _lead_of(spec: dict, parts: list[dict]) -> tuple[str, bool]:
    for part in parts_of(spec.get("normalizer"), "normalizers"):
        if part["type"] == "Prepend":
            return "always", False
    for part in parts:
        if part["type"] in ("ByteLevel", "Metaspace"):
            try:
                return patterns_of(part)[1], True
            except PatternError:
                break
    return "never", True


def _byte_of() -> dict[str, int]:
    """Characters of byte-level vocabularies and the bytes they stand for.

    Printable characters of Latin-1 stand for themselves, the other bytes, in order, for characters from 256 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return found | {chr(256 + place): byte for place, byte in enumerate(rest)}
