"""Predicates on the text of a token or a word, and the changes that are made to a text before they are asked."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ._pronunciation import Phonemes, rhyme_part, stresses, syllables

#: Changes of a text, applied in this order.
TRANSFORMS: dict[str, Callable[[str], str]] = {
    "upper": str.upper,
    "lower": str.lower,
    "remove_spaces": lambda s: s.replace(" ", ""),
    "lstrip": str.lstrip,
    "rstrip": str.rstrip,
    "strip": str.strip,
    "capitalize": str.capitalize,
    "alphanumeric": lambda s: "".join(filter(str.isalnum, s)),
    "letters": lambda s: "".join(filter(str.isalpha, s)),
    "digits": lambda s: "".join(filter(str.isdigit, s)),
    "ascii": lambda s: "".join(filter(str.isascii, s)),
    "drop_blanks": lambda s: s,  # what is blank then is refused, see refuses_blanks
}

CLASSES = ("whitespace", "punctuation", "digits", "special")


def fold(text: str) -> str:
    """A text without case and without combining marks: ``É`` and ``e`` become ``e``."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFKD", "".join(c for c in plain if not unicodedata.combining(c)).casefold())


def transform(text: str, names: Iterable[str], folded: bool) -> str:
    """A text as filters see it: folded, then changed in the order of :data:`TRANSFORMS`."""
    text = fold(text) if folded else text
    chosen = set(names)
    for name, change in TRANSFORMS.items():
        if name in chosen:
            text = change(text)
    return text


def character_class(character: str) -> str | None:
    """``whitespace``, ``punctuation`` (symbols and control characters among it), ``digits``, or None for the rest."""
    if character.isspace():
        return "whitespace"
    kind = unicodedata.category(character)
    if kind == "Nd":
        return "digits"
    return "punctuation" if kind[0] in "PSCZ" else None


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and replacements of characters that turn one text into the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


@dataclass(frozen=True)
class Filter:
    """One predicate.

    Attributes:
        name: of the option that sets it.
        accepts: whether a whole text passes.
        open: whether a text that begins so may still pass; None: that takes a list of words.
        memory: all of such a beginning that later verdicts depend on.
    """

    name: str
    accepts: Callable[[str], bool]
    open: Callable[[str], bool] | None = None
    memory: Callable[[str], Hashable] | None = None


def _subset(text: str, letters: "Counter[str]") -> bool:
    return all(count <= letters[c] for c, count in Counter(text).items())


def _pronounced(words: dict[str, Phonemes], test: Callable[[Phonemes], bool]) -> Callable[[str], bool]:
    def accepts(text: str) -> bool:
        phonemes = words.get(text.lower())
        return phonemes is not None and test(phonemes)

    return accepts


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    norms = sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b)
    return dot / norms**0.5 if norms else 0.0


def make_filters(method: Any, prepare: Callable[[str], str]) -> list[Filter]:
    """The filters that a :class:`tokops.methods.VocabularyFilters` sets, in the order of its fields.

    Args:
        method: resolved: its lists are tuples, its dictionary is a mapping of phonemes.
        prepare: folds arguments as texts are folded.

    Raises:
        ValueError: a word to compare with that the pronunciations or vectors do not have.
    """
    m = method
    found: list[Filter] = []

    def add(name, accepts, open=None, memory=None):
        found.append(Filter(name, accepts, open, memory))

    if m.lipogram:
        banned = [prepare(x) for x in m.lipogram]
        keep = max(map(len, banned)) - 1

        def free(s):
            return not any(x in s for x in banned)

        add("lipogram", free, free, lambda s: s[-keep:] if keep else "")
    if m.weak_lipogram:
        some = [prepare(x) for x in m.weak_lipogram]
        if m.weak == "characters":
            add("weak_lipogram", lambda s: any(c not in some for c in s))
        else:
            add("weak_lipogram", lambda s: not all(x in s for x in some))
    if m.reverse_lipogram:
        every = [prepare(x) for x in m.reverse_lipogram]
        add("reverse_lipogram", lambda s: all(x in s for x in every))
    if m.weak_reverse_lipogram:
        one = [prepare(x) for x in m.weak_reverse_lipogram]
        add("weak_reverse_lipogram", lambda s: any(x in s for x in one))
    if m.string_at:
        at = [(place, prepare(x)) for place, x in m.string_at]
        add("string_at", lambda s: all(s[p : p + len(x)] == x for p, x in at))
    if m.starts_with:
        first = prepare(m.starts_with)
        add(
            "starts_with",
            lambda s: s.startswith(first),
            lambda s: s.startswith(first) or first.startswith(s),
            lambda s: s if len(s) < len(first) else None,
        )
    if m.ends_with:
        last = prepare(m.ends_with)
        add("ends_with", lambda s: s.endswith(last))
    if m.length:
        add("length", lambda s: len(s) == m.length)
    if m.longer_than:
        add("longer_than", lambda s: len(s) > m.longer_than)
    if m.shorter_than:
        add("shorter_than", lambda s: len(s) < m.shorter_than, lambda s: len(s) < m.shorter_than, len)
    if m.palindrome:
        add("palindrome", lambda s: s == s[::-1])
    if m.anagram:
        whole = Counter(prepare(m.anagram))
        add("anagram", lambda s: Counter(s) == whole)
    if m.partial_anagram:
        part = Counter(prepare(m.partial_anagram))
        add(
            "partial_anagram",
            lambda s: _subset(s, part),
            lambda s: _subset(s, part),
            lambda s: "".join(sorted(s)),
        )
    if m.isogram:

        def seldom(s):
            return max(Counter(s).values(), default=0) <= m.isogram

        add("isogram", seldom, seldom, lambda s: "".join(sorted(s)))
    if m.reverse_isogram:
        add(
            "reverse_isogram",
            lambda s: min(Counter(s).values(), default=m.reverse_isogram) >= m.reverse_isogram,
        )
    if m.near:
        word = prepare(m.near)
        add("near", lambda s: edit_distance(s, word) <= m.near_distance)
    if m.phonetic:
        code = m.phonetic_code
        sound = code(prepare(m.phonetic))
        add("phonetic", lambda s: code(s) == sound)
    return found + _with_data(m, prepare)


def _with_data(m, prepare) -> list[Filter]:
    """Filters that ask pronunciations or vectors."""
    found: list[Filter] = []
    words = m.pronunciations

    def said(option: str, word: str) -> Phonemes:
        phonemes = words.get(prepare(word).lower())
        if phonemes is None:
            raise ValueError(f"VocabularyFilters: {option}: the pronunciations do not have {word!r}")
        return phonemes

    if m.semantic is not None:
        word, least = m.semantic
        lower = {key.lower(): value for key, value in m.vectors.items()}
        if prepare(word).lower() not in lower:
            raise ValueError(f"VocabularyFilters: semantic: the vectors do not have {word!r}")
        near = lower[prepare(word).lower()]
        found.append(
            Filter("semantic", lambda s: s.lower() in lower and _cosine(lower[s.lower()], near) >= least)
        )
    if m.syllables:
        found.append(Filter("syllables", _pronounced(words, lambda p: syllables(p) == m.syllables)))
    if m.meter:
        feet = stresses(said("meter", m.meter))
        found.append(Filter("meter", _pronounced(words, lambda p: stresses(p) == feet)))
    if m.rhyme:
        end, own = rhyme_part(said("rhyme", m.rhyme)), prepare(m.rhyme).lower()
        rhymes = _pronounced(words, lambda p: rhyme_part(p) == end)
        found.append(Filter("rhyme", lambda s: s.lower() != own and rhymes(s)))
    return found
