"""Vocabulary filters: tokens, or words, whose text fails a predicate are never sampled."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, ClassVar

from ._constrain import Constrain, refuser
from ._filters import CLASSES, TRANSFORMS, Filter, fold, make_filters, transform
from ._metaphone import double_metaphone
from ._pronunciation import read_pronunciations

__all__ = ["VocabularyFilters"]

_EMPTY = ("error", "eos", "ignore")
_LISTS = ("lipogram", "weak_lipogram", "reverse_lipogram", "weak_reverse_lipogram")


@dataclass(frozen=True)
class VocabularyFilters(Constrain):
    """Filters on the text of tokens (Roush et al., CAI2 at COLING 2022, "Most Language Models can be Poets too").

    A token's text is folded (``fold``), changed by ``transforms`` and then asked about by every filter that is set; a
    token that fails one is forbidden. Filters that are not set (empty, 0, None) ask nothing. Several
    ``VocabularyFilters`` may be given to one ``patch``.

    **By token** (default) the predicate sees one token at a time, which is what the published tool does: fit for
    filters of letters, meaningless for syllables, rhymes or lengths. **By word** (``by_word=True``) the text that is
    generated is split into words and every word must pass; a word that is still open must be able to. ``lipogram``,
    ``partial_anagram``, ``isogram``, ``shorter_than`` and ``starts_with`` can tell from its beginning. Any other
    filter needs ``lexicon``: then words are those of the lexicon that pass, in any case. Words are separated by
    whitespace and punctuation; a joiner inside a word belongs to it.

    Args:
        lipogram: none of these strings occurs. Here and in the next three, a plain string is a list of its characters.
        weak_lipogram: some character is none of these (``weak="characters"``, as published), or not all of these
            strings occur (``weak="strings"``, as described).
        reverse_lipogram: all of these occur.
        weak_reverse_lipogram: at least one of these occurs.
        string_at: pairs of a position, from 0, and what stands there.
        starts_with, ends_with: what it starts and ends with.
        length, longer_than, shorter_than: characters, exactly, more than, fewer than.
        palindrome: it reads the same backwards.
        anagram: the letters are those of this text, in any order.
        partial_anagram: the letters are some of this text's.
        isogram: no character occurs more often.
        reverse_isogram: every character that occurs does so at least so often.
        near, near_distance: edits (Levenshtein) from ``near`` at most.
        phonetic: it sounds like this word: equal codes of ``phonetic_code``.
        semantic: a word and the least cosine of its vector and the text's, of ``vectors``.
        syllables: vowels of the first pronunciation.
        meter: the stresses of the first pronunciation are this word's.
        rhyme: the last stressed vowel and all behind it are this word's, which is not a rhyme of itself.
        transforms: names out of upper, lower, remove_spaces, lstrip, rstrip, strip, capitalize, alphanumeric, letters,
            digits, ascii, drop_blanks; they are applied in this order. The last refuses what is blank then.
        fold: compare without case and marks: banning ``e`` bans ``E``, ``é`` and combining forms, too. Arguments are
            folded as well.
        exempt: kinds of characters out of whitespace, punctuation, digits, special. A token of nothing else (by word:
            a word of digits) passes; ``special`` exempts the tokenizer's special tokens, which are else forbidden.
        partial: ``ban`` or ``allow`` tokens that are a part of a character's bytes. By word they are allowed where a
            character that completes them is.
        bias: what is added to the logits of what fails, below 0, instead of forbidding it; None forbids it.
        by_word: see above.
        lexicon: words, or a file with one in every line.
        joiners: characters that belong to a word if they are inside it.
        prompt_word: by word: a word that is open at the end of the prompt goes on; else the text begins anew there.
        min_words: words before the text may end.
        budget: letters that the whole generated text may use, each as often as it occurs here; None: all of them. No
            other letters are used.
        budget_exact: the text may end only when they are used up.
        on_empty: where nothing is allowed: raise an ``error``, allow the end (``eos``), or ``ignore`` the filters.
        pronunciations: a file of CMU's dictionary or its format, or a mapping; for syllables, meter, rhyme.
        vectors: a mapping from words to numbers; for semantic.
        phonetic_code: text -> code; None is double metaphone.
        strings: the text (str or bytes) of every token, instead of a tokenizer's; ``b""`` or ``""`` is a special one.

    Raises:
        ValueError: an option out of range, or one without what it needs.
    """

    module: ClassVar[str] = "vocabulary_filters"

    lipogram: Any = ()
    weak_lipogram: Any = ()
    reverse_lipogram: Any = ()
    weak_reverse_lipogram: Any = ()
    string_at: tuple[tuple[int, str], ...] = ()
    starts_with: str = ""
    ends_with: str = ""
    length: int = 0
    longer_than: int = 0
    shorter_than: int = 0
    palindrome: bool = False
    anagram: str = ""
    partial_anagram: str = ""
    isogram: int = 0
    reverse_isogram: int = 0
    near: str = ""
    near_distance: int = 0
    phonetic: str = ""
    semantic: tuple[str, float] | None = None
    syllables: int = 0
    meter: str = ""
    rhyme: str = ""
    weak: str = "characters"
    transforms: tuple[str, ...] = ("strip",)
    fold: bool = False
    exempt: tuple[str, ...] = ("whitespace", "punctuation", "special")
    partial: str = "ban"
    bias: float | None = None
    by_word: bool = False
    lexicon: Any = None
    joiners: str = "'’"  # noqa: RUF001  (an apostrophe as texts have it)
    prompt_word: bool = False
    min_words: int = 0
    budget: str | None = None
    budget_exact: bool = False
    on_empty: str = "error"
    pronunciations: Any = None
    vectors: Any = None
    phonetic_code: Callable[[str], Any] | None = None
    strings: Any = None

    def __post_init__(self):
        for name in _LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("string_at", "transforms", "exempt"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        refuse = refuser(self)
        for name in _LISTS:
            value = getattr(self, name)
            refuse(not all(isinstance(x, str) and x for x in value), f"{name} must be strings, got {value!r}")
        for name in ("length", "longer_than", "shorter_than", "isogram", "reverse_isogram", "near_distance",
                     "syllables", "min_words"):  # fmt: skip
            refuse(getattr(self, name) < 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name, value, known in (
            ("transforms", self.transforms, tuple(TRANSFORMS)),
            ("exempt", self.exempt, CLASSES),
            ("partial", (self.partial,), ("ban", "allow")),
            ("weak", (self.weak,), ("characters", "strings")),
            ("on_empty", (self.on_empty,), _EMPTY),
        ):
            wrong = [x for x in value if x not in known]
            refuse(bool(wrong), f"{name} must be of {', '.join(known)}, got {wrong}")
        refuse(
            not all(place >= 0 and len(text) > 0 for place, text in self.string_at),
            f"string_at must be pairs of a position from 0 and a string, got {self.string_at}",
        )
        refuse(self.bias is not None and not self.bias < 0, f"bias must be below 0 or None, got {self.bias}")
        needs_words = [x for x in ("syllables", "meter", "rhyme") if getattr(self, x)]
        refuse(
            bool(needs_words) and self.pronunciations is None,
            f"{', '.join(needs_words)} needs pronunciations: a file in the format of CMU's dictionary, or a mapping",
        )
        refuse(
            self.semantic is not None and self.vectors is None, "semantic needs vectors: a mapping from words"
        )
        refuse(
            self.lexicon is not None and not self.by_word, "lexicon goes with by_word=True, got by_word=False"
        )
        closed = [f.name for f in self.filters() if f.open is None]
        refuse(
            self.by_word and bool(closed) and self.lexicon is None,
            f"by word, {', '.join(closed)} needs a lexicon: a word's beginning does not tell",
        )
        refuse(
            self.budget_exact and self.budget is None,
            "budget_exact goes with a budget, got none",
        )

    def filters(self) -> list[Filter]:
        """The filters that are set, with their data read.

        Raises:
            ValueError: a word that the pronunciations or vectors do not have; a file that is no dictionary.
            FileNotFoundError: no such file.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.syllables or self.meter or self.rhyme:
            values["pronunciations"] = read_pronunciations(self.pronunciations)
        values["phonetic_code"] = self.phonetic_code or double_metaphone
        return make_filters(SimpleNamespace(**values), fold if self.fold else str)

    def prepare(self, text: str) -> str:
        """A text as filters see it."""
        return transform(text, self.transforms, self.fold)

    def accepts(self, text: str) -> bool:
        """Whether a whole text passes all filters; exempt kinds of characters do not count here."""
        text = self.prepare(text)
        return not self.refuses_blanks(text) and all(f.accepts(text) for f in self.filters())

    def refuses_blanks(self, prepared: str) -> bool:
        """Whether a prepared text is blank and blanks are dropped."""
        return "drop_blanks" in self.transforms and not prepared.strip()

    def words(self) -> list[str] | None:
        """The lexicon; None if there is none.

        Raises:
            FileNotFoundError: no such file.
        """
        if self.lexicon is None:
            return None
        if isinstance(self.lexicon, str | os.PathLike):
            with open(self.lexicon, encoding="utf-8") as lines:
                return [line.strip() for line in lines if line.strip()]
        return [str(word) for word in self.lexicon]

    @property
    def key(self) -> tuple:
        """What masks depend on. Data counts as the object it is, which the method holds."""
        plain = (str, int, float, tuple, type(None))
        values = (getattr(self, f.name) for f in fields(self))
        return tuple(x if isinstance(x, plain) else id(x) for x in values)

    def describe(self) -> str:
        usual = {f.name: f.default for f in fields(self)}
        changed = {n: getattr(self, n) for n, v in usual.items() if getattr(self, n) != v}
        shown = (
            f"{n}={v!r}" if not isinstance(v, Mapping) and len(repr(v)) < 60 else f"{n}=..."
            for n, v in changed.items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"
