"""Vocabularies: the tokens of a model, as bytes."""

import importlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["Vocabulary"]

native: Any = importlib.import_module("tokops.lib._grammar")


class _Encoding(NamedTuple):
    """What a tiktoken file leaves out."""

    name: str
    eos_ids: tuple[int, ...]
    width: int


#: Known tiktoken files, by how many ranks they have.
_ENCODINGS = {
    50256: _Encoding("r50k_base", (50256,), 50257),
    50280: _Encoding("p50k_base", (50256,), 50281),
    100256: _Encoding("cl100k_base", (100257,), 100277),
    128000: _Encoding("Llama 3", (128001, 128009), 128256),
    199998: _Encoding("o200k_base", (199999,), 200019),
}


class Vocabulary:
    """The tokens of a model, as bytes.

    Args:
        tokens: bytes of every id; b"" marks special and unused ids, which no grammar allows. Several ids may have the
            same bytes: all are allowed together.
        eos_ids: the ids that end a text.
        special_ids: ids that stand for no text, whatever `tokens` says.
        width: entries in a row of logits, at least len(tokens): ids beyond are never allowed. Default: len(tokens).
        cache_bytes: bound on the masks that are kept for all grammars together.

    Raises:
        ValueError: ids out of range, no end token, width below len(tokens).
        TypeError: tokens that are not bytes.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        eos_ids: Iterable[int],
        special_ids: Iterable[int] = (),
        width: int | None = None,
        cache_bytes: int = 64 << 20,
    ):
        tokens = list(tokens)
        eos = [int(i) for i in ([eos_ids] if isinstance(eos_ids, int) else eos_ids)]
        special = [int(i) for i in special_ids]
        width = len(tokens) if width is None else int(width)
        if not tokens:
            raise ValueError("Vocabulary: tokens is empty")
        if not eos:
            raise ValueError("Vocabulary: eos_ids is empty: a text could never end")
        if width < len(tokens):
            raise ValueError(
                f"Vocabulary: width: expected at least {len(tokens)}, the number of tokens, got {width}"
            )
        for name, ids in (("eos_ids", eos), ("special_ids", special)):
            for i in ids:
                if not 0 <= i < width:
                    raise ValueError(f"Vocabulary: {name}: {i} is not in [0, {width})")
        for i in special:
            if i < len(tokens):
                tokens[i] = b""
        if not any(tokens[i] for i in range(len(tokens)) if i not in set(eos)):
            raise ValueError("Vocabulary: all tokens are empty")
        self.native = native.Vocabulary(tokens, eos, width, int(cache_bytes))

    @property
    def width(self) -> int:
        """Entries in a row of logits."""
        return self.native.width

    @property
    def words(self) -> int:
        """int32 words in a row of a mask."""
        return self.native.words

    @property
    def eos_ids(self) -> list[int]:
        """The ids that end a text."""
        return self.native.eos

    def __len__(self) -> int:
        return self.native.size

    def token(self, token: int) -> bytes:
        """The bytes of a token, b"" for special and unused ids."""
        return self.native.token(token)

    def masks(self, rows: int = 1) -> torch.Tensor:
        """Room for masks: int32 [rows, words] on the CPU, all clear."""
        return torch.zeros(rows, self.words, dtype=torch.int32)

    @classmethod
    def from_transformers(
        cls, tokenizer: Any, width: int | None = None, eos_ids: Iterable[int] | None = None
    ) -> "Vocabulary":
        """The vocabulary of a transformers tokenizer: byte-level BPE, or SentencePiece with byte fallback.

        Args:
            tokenizer: a transformers tokenizer with an end token, or a path to a folder that holds one.
            width: entries in a row of the model's logits, where that is more than the tokenizer has.
            eos_ids: the ids that end a text; default the tokenizer's end token. Give the model's
                ``generation_config.eos_token_id`` where it lists more.

        Raises:
            ValueError: no such folder, no end token, or a WordPiece tokenizer, whose tokens do not say where spaces
                are.
            ModuleNotFoundError: a path without transformers.
        """
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = _loaded(tokenizer)
        if (
            type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
            == "WordPiece"
        ):
            raise ValueError(
                "Vocabulary.from_transformers: the tokenizer's model is WordPiece, whose tokens do not say where "
                "spaces are: expected byte-level BPE or SentencePiece"
            )
        from ..hf.token_bytes import special_ids, token_bytes  # tokenizers is an extra

        if eos_ids is None:
            if tokenizer.eos_token_id is None:
                raise ValueError("Vocabulary.from_transformers: the tokenizer has no end token: give eos_ids")
            eos_ids = [tokenizer.eos_token_id]
        size = len(tokenizer)
        return cls(
            token_bytes(tokenizer),
            eos_ids,
            special_ids(tokenizer),
            None if width is None else max(width, size),
        )

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike,
        eos_ids: Iterable[int] | None = None,
        special_ids: Iterable[int] = (),
        width: int | None = None,
    ) -> "Vocabulary":
        """The vocabulary of a tiktoken file: lines of base64 and an id.

        Special tokens are not in such a file. r50k_base (GPT-2), p50k_base, cl100k_base, o200k_base and Llama 3's
        tokenizer.model are told by their number of ranks.

        Args:
            path: the file.
            eos_ids: the ids that end a text; default ``<|endoftext|>`` of the encoding, for Llama 3 ``<|end_of_text|>``
                and ``<|eot_id|>``.
            special_ids: ids that stand for no text, whatever the file says.
            width: entries in a row of the model's logits; default as many as the encoding has with its special tokens,
                for another file the largest id and one.

        Raises:
            ValueError: a line that is not base64 and an id, or a file that is not known, without eos_ids.
        """
        import base64

        found: dict[int, bytes] = {}
        for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                text, token = line.split()
                found[int(token)] = base64.b64decode(text, validate=True)
            except ValueError as error:
                raise ValueError(
                    f"Vocabulary.from_tiktoken: line {number} of {path} is not base64 and an id"
                ) from error
        encoding = _ENCODINGS.get(len(found))
        if encoding is not None:
            eos_ids = encoding.eos_ids if eos_ids is None else eos_ids
        elif eos_ids is None:
            known = ", ".join(f"{one.name} ({ranks})" for ranks, one in _ENCODINGS.items())
            raise ValueError(
                f"Vocabulary.from_tiktoken: {path} has {len(found)} ranks and is none of {known}: give eos_ids"
            )
        eos, special = list(eos_ids), list(special_ids)
        size = max([*found, *eos, *special]) + 1
        if width is None and encoding is not None:
            width = max(size, encoding.width)
        return cls([found.get(i, b"") for i in range(size)], eos, special, width)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike, width: int | None = None) -> "Vocabulary":
        """The vocabulary inside a GGUF file (the package gguf is needed)."""
        from gguf import GGUFReader

        from ..hf.token_bytes import _LETTERS

        fields = GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        kinds = (
            fields["tokenizer.ggml.token_type"].contents()
            if "tokenizer.ggml.token_type" in fields
            else [1] * len(tokens)
        )
        model = fields["tokenizer.ggml.model"].contents()
        found = []
        for text, kind in zip(tokens, kinds, strict=True):
            if kind in (2, 3, 5):  # unknown, control, unused
                found.append(b"")
            elif kind == 6:  # byte
                found.append(bytes([int(text[3:5], 16)]))
            elif kind == 4:  # user defined: as it is written
                found.append(text.encode())
            elif model == "gpt2":
                found.append(b"".join(_LETTERS.get(c, c.encode()) for c in text))
            else:
                found.append(text.replace("\u2581", " ").encode())
        eos = [
            int(fields[key].contents())
            for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
            if key in fields
        ]
        return cls(found, eos, (), width)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens, width {self.width})"


def _loaded(path: str | os.PathLike) -> Any:
    """The transformers tokenizer in a folder."""
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Vocabulary.from_transformers: a path needs transformers: pip install 'tokops[hf]'",
            name=error.name,
        ) from error
    if not os.path.isdir(path):
        raise ValueError(f"Vocabulary.from_transformers: {os.fspath(path)!r} is not a folder")
    return AutoTokenizer.from_pretrained(os.fspath(path))
