"""Pronunciations of a dictionary in CMU's format, which the user brings: syllables, meter, rhyme."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

#: Of one word, its first pronunciation: phonemes, vowels with a stress digit.
Phonemes = tuple[str, ...]


def read_pronunciations(source: str | os.PathLike | Mapping[str, Any]) -> dict[str, Phonemes]:
    """First pronunciations by word, in lower case.

    Args:
        source: a file with lines ``WORD  P R AH0 N``, where ``WORD(1)`` is another pronunciation and lines that begin
            with ``;;;`` or ``#`` are comments; or a mapping from words to phonemes (a string or a sequence), or to a
            sequence of such.

    Raises:
        ValueError: a line that is not of this form, or a mapping of other values.
        FileNotFoundError: no such file.
    """
    if isinstance(source, Mapping):
        return {word.lower(): _first(word, value) for word, value in source.items()}
    return _read_file(os.fspath(source))


@functools.lru_cache(maxsize=4)
def _read_file(path: str) -> dict[str, Phonemes]:
    found: dict[str, Phonemes] = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            line = line.split(" #", 1)[0].strip()
            if not line or line.startswith((";;;", "#")):
                continue
            word, *phonemes = line.split()
            if not phonemes:
                raise ValueError(f"{path}:{number}: a word and its phonemes were expected, got {line!r}")
            if not word.endswith(")") or "(" not in word[1:]:
                found.setdefault(word.lower(), tuple(phonemes))
    return found


def _first(word: str, value: Any) -> Phonemes:
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, Sequence) and value:
        if all(isinstance(x, str) and " " not in x for x in value):
            return tuple(value)
        return _first(word, value[0])
    raise ValueError(f"pronunciations of {word!r} must be phonemes or a list of such, got {value!r}")


def stresses(phonemes: Phonemes) -> str:
    """The stress digits of the vowels, in order."""
    return "".join(phoneme[-1] for phoneme in phonemes if phoneme[-1].isdigit())


def syllables(phonemes: Phonemes) -> int:
    """How many vowels there are."""
    return len(stresses(phonemes))


def rhyme_part(phonemes: Phonemes) -> Phonemes:
    """From the last vowel of primary stress on; without one of secondary stress; without one the last vowel."""
    for wanted in ("1", "2", "0123456789"):
        for start in range(len(phonemes) - 1, -1, -1):
            if phonemes[start][-1] in wanted:
                return phonemes[start:]
    return phonemes
