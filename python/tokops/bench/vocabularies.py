"""Vocabularies of real tokenizers for the grammar benchmark: Llama 3's out of the package index, and others."""

import base64
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

# The package only carries the file: it is downloaded without its dependencies and unpacked.
REQUIREMENT = "llama-models==0.3.0"
WHEEL = "llama_models-0.3.0-py3-none-any.whl"
MEMBER = "llama_models/llama3/tokenizer.model"
SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
#: How Llama 3 splits a text before merging bytes, and its special tokens in the order of their ids.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
SPLIT += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|eot_id|>": 9}
WIDTH = 128_256


class VocabularyError(RuntimeError):
    """The vocabulary can't be had; the message says what to do."""


@dataclass(frozen=True)
class RealVocabulary:
    """A vocabulary of bytes.

    Attributes:
        name: what was asked for.
        tokens: bytes of every id, b"" for specials and unused ids.
        eos: the id that ends a text.
        specials: ids that stand for no text.
        encode: text to ids, without specials.
        tokenizer: the same for a library that wants a tokenizer.
    """

    name: str
    tokens: list[bytes]
    eos: int
    specials: list[int]
    encode: Callable[[str], list[int]]
    tokenizer: Tokenizer


def load(name: str = "llama3", cache_dir: str | os.PathLike | None = None) -> RealVocabulary:
    """A vocabulary by name.

    Args:
        name: `llama3` (downloaded once, about 12 MB), `smollm2`, or the path of a tokenizer.json that works on bytes.
        cache_dir: where downloads are kept; the user's cache if None.

    Raises:
        VocabularyError: the download failed, or the file is no such tokenizer.
    """
    if name == "llama3":
        return _llama3(fetch_llama3(cache_dir))
    if name == "smollm2":
        from tokops.hf.model import fetch_smollm2

        path = fetch_smollm2(cache_dir, progress=False) / "tokenizer.json"
    else:
        path = pathlib.Path(name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise VocabularyError(f"{path} is no tokenizer.json: {error}") from error
    return _byte_level(name, tokenizer)


def fetch_llama3(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Llama 3's tokenizer.model, out of a wheel of the package index.

    Raises:
        VocabularyError: it could not be downloaded, or is not the published file.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = (pathlib.Path(cache_dir) if cache_dir else pathlib.Path(base) / "tokops") / "llama3-tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "tokenizer.model"
    with FileLock(folder / "lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                wheel = folder / WHEEL
                if not wheel.exists():
                    wheel = _download(pathlib.Path(temporary), folder)
                try:
                    with zipfile.ZipFile(wheel) as archive:
                        os.replace(archive.extract(MEMBER, temporary), target)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise VocabularyError(f"{wheel} does not hold {MEMBER} ({error})") from error
        found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found != SHA256:
        raise VocabularyError(
            f"{target} is damaged: its SHA-256 is {found}, expected {SHA256}. Delete it and run again."
        )
    return target


def _download(into: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", REQUIREMENT]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(into)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (into / WHEEL).exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        raise VocabularyError(
            f"could not download {REQUIREMENT}: {said[-1]}. Fetch {WHEEL} on another machine and put it into {folder}."
        )
    return into / WHEEL


def byte_letters() -> dict[int, str]:
    """The printable letter by which byte-level tokenizers write a byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def _llama3(path: pathlib.Path) -> RealVocabulary:
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(a, b) for a, b in splits if a in ranks and b in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    model = BPE(
        {written(token): rank for token, rank in ranks.items()},
        [(written(a), written(b)) for a, b in merges],
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(SPLIT), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    names = {at: name for name, at in SPECIALS.items()}
    reserved = [names.get(i, f"<|reserved_special_token_{i}|>") for i in range(WIDTH - len(ranks))]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in reserved])
    return _byte_level("llama3", tokenizer, len(ranks) + SPECIALS["<|end_of_text|>"])


def _byte_level(name: str, tokenizer: Tokenizer, eos: int | None = None) -> RealVocabulary:
    """The vocabulary of a tokenizer that writes bytes as letters.

    Raises:
        VocabularyError: a token has a letter that stands for no byte, or no special token ends a text.
    """
    bytes_of = {letter: b for b, letter in byte_letters().items()}
    added = {i: token for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    tokens = [b""] * tokenizer.get_vocab_size(with_added_tokens=True)
    plain = {
        i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if not token.special
    }
    for written, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if i in plain:
            tokens[i] = plain[i].encode()
        elif i not in added:
            try:
                tokens[i] = bytes(bytes_of[letter] for letter in written)
            except KeyError as error:
                raise VocabularyError(f"{name}: token {written!r} is not written in bytes") from error
    ends = ("<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "</s>", "<eos>")
    found = [eos, *(tokenizer.token_to_id(end) for end in ends)]
    end = next((i for i in found if i is not None), None)
    if end is None:
        raise VocabularyError(f"{name}: none of {', '.join(ends)} is among its tokens")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return RealVocabulary(name, tokens, end, sorted(added), encode, tokenizer)
