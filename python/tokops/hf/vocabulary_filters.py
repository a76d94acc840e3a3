"""Vocabulary filters as a logits processor: masks are made once per tokenizer and filters, or per open word."""

import weakref
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grammar import apply_bitmask_, compose_filters, multiset_mask
from ..methods._filters import character_class
from ..methods._words import TokenTable, Words, open_word, split_bytes
from ..methods.vocabulary_filters import VocabularyFilters
from .constrain import Hooks, Padding, Setting, TextStates, ends_of
from .processing import RowProcessor
from .token_bytes import special_ids, token_bytes

_TABLES: "weakref.WeakKeyDictionary[Any, OrderedDict]" = weakref.WeakKeyDictionary()
#: Filters remembered per tokenizer.
_REMEMBERED = 32


@dataclass(frozen=True)
class _Text:
    """What the filters know of one generated text."""

    word: str = ""
    pending: bytes = b""  # of a character that has begun
    words: int = 0  # ended
    used: tuple[int, ...] = ()  # letters of the budget
    ended: bool = False
    broken: bool = False  # it went on where it may not, as a draft may that will be rejected


def _packed(allowed: np.ndarray) -> Tensor:
    """Bools ``[V]`` as words ``[ceil(V / 32)]`` int32."""
    bits = np.packbits(np.pad(allowed, (0, -len(allowed) % 32)), bitorder="little")
    return torch.from_numpy(bits.view(np.int32).copy())


class FilterTables:
    """Everything about one vocabulary under one method that does not depend on a text.

    Args:
        method: the filters.
        tokens: bytes of every token; ``b""`` has no text.
        special: special tokens.
    """

    def __init__(self, method: VocabularyFilters, tokens: list[bytes], special: frozenset[int]):
        self.method, self.tokens, self.special = method, tokens, special
        self._filters = method.filters()
        self._static: np.ndarray | None = None
        self.words = Words(method) if method.by_word else None
        self.table = None
        if self.words is not None:
            self.table = TokenTable(tokens, self.words, special, method.joiners)
        self._effects: dict[torch.device, Tensor] = {}
        self.letters: list[str] = []
        self.limits: tuple[int, ...] = ()
        if method.budget is not None:
            counts = Counter(c for c in method.prepare(method.budget) if c.isalpha())
            self.letters = sorted(counts)
            # The last column is of all letters that are not in the budget.
            self.limits = (*(counts[c] for c in self.letters), 0)
            self.effect = np.array([self.letters_of(data) for data in tokens], np.int16).clip(0, 127)

    @property
    def follows_text(self) -> bool:
        """Whether what is allowed depends on the text."""
        method = self.method
        return method.by_word or method.min_words > 0 or method.budget is not None

    def letters_of(self, data: bytes) -> list[int]:
        """How often each letter of the budget is in a token, and how many others there are."""
        split = split_bytes(data)
        if split is None or split[1]:  # letters that come in parts are not counted but forbidden
            return [*(0 for _ in self.letters), 127]
        counts = Counter(c for c in self.method.prepare(split[0]) if c.isalpha())
        own = [counts.pop(c, 0) for c in self.letters]
        return [*own, sum(counts.values())]

    @property
    def static(self) -> np.ndarray:
        """``[V]`` bool: tokens that pass by themselves."""
        if self._static is None:
            if self._filters or "drop_blanks" in self.method.transforms:
                self._static = np.array([self._passes(i, data) for i, data in enumerate(self.tokens)], bool)
            else:
                self._static = np.ones(len(self.tokens), bool)
        return self._static

    def _passes(self, token: int, data: bytes) -> bool:
        exempt = self.method.exempt
        if token in self.special:
            return "special" in exempt
        if not data:
            return False
        split = split_bytes(data)
        if split is None or split[1]:
            return self.method.partial == "allow"
        if all(character_class(c) in exempt for c in split[0]):
            return True
        text = self.method.prepare(split[0])
        return not self.method.refuses_blanks(text) and all(f.accepts(text) for f in self._filters)

    def by_word(self, text: _Text) -> np.ndarray:
        """``[V]`` bool: tokens that may follow a text word by word."""
        assert self.table is not None, "by word"
        assert self.words is not None, "by word"
        allowed = self.table.allowed(text.word, text.pending)
        if (
            self.special
            and "special" in self.method.exempt
            and not text.pending
            and self.words.accepts(text.word)
        ):
            allowed = allowed.copy()
            allowed[[i for i in self.special if i < len(allowed)]] = True
        return allowed

    def effect_on(self, device: torch.device) -> Tensor:
        """Letters of every token ``[V, A]`` int8, kept per device."""
        if device not in self._effects:
            self._effects[device] = torch.from_numpy(self.effect.astype(np.int8)).to(device)
        return self._effects[device]

    def follow(self, text: _Text, token: int) -> _Text:
        """A text with one more token, allowed or not."""
        data = self.tokens[token] if token < len(self.tokens) else b""
        if token in self.special or not data:
            broken = self.words is not None and (bool(text.pending) or not self.words.accepts(text.word))
            words = text.words + bool(text.word)
            return replace(text, word="", pending=b"", words=words, broken=text.broken or broken)
        used = text.used
        if self.limits:
            used = tuple(a + b for a, b in zip(used, self.letters_of(data), strict=True))
        read = None if self.table is None else self.table.read(text.word, text.pending, data)
        broken = (self.table is not None and read is None) or any(
            a > b for a, b in zip(used, self.limits, strict=True)
        )
        if read is None:  # no filter by word, or a token that was forbidden
            split = split_bytes(text.pending + data) or ((text.pending + data).decode(errors="replace"), b"")
            word, ended = open_word(text.word, split[0], self.method.joiners)
            read = word, split[1], ended
        return _Text(read[0], read[1], text.words + read[2], used, text.ended, text.broken or broken)

    def may_end(self, text: _Text) -> bool:
        """Whether a text may end here."""
        if text.ended:
            return True
        method = self.method
        if self.words is not None and (text.pending or not self.words.accepts(text.word)):
            return False
        if text.words + bool(text.word) < method.min_words:
            return False
        return not method.budget_exact or text.used[:-1] == self.limits[:-1]


def tables_of(method: VocabularyFilters, tokenizer=None) -> FilterTables:
    """The tables of a method for a tokenizer, or for the method's own ``strings``; remembered with the tokenizer.

    Raises:
        ValueError: there is neither.
    """
    if method.strings is not None:
        tokens = [x if isinstance(x, bytes) else x.encode() for x in method.strings]
        return FilterTables(method, tokens, frozenset(i for i, x in enumerate(tokens) if not x))
    if tokenizer is None:
        raise ValueError("VocabularyFilters: pass tokenizer= to generate, or give the method strings=")
    known = _TABLES.setdefault(tokenizer, OrderedDict())
    key = (method.key, len(tokenizer))
    if key not in known:
        known[key] = FilterTables(method, token_bytes(tokenizer), special_ids(tokenizer))
        if len(known) > _REMEMBERED:
            known.popitem(last=False)
    return known[key]


class FilterProcessor(RowProcessor):
    """Forbids, or moves down, what the filters refuse; see :class:`tokops.methods.VocabularyFilters`.

    Args:
        tables: of a vocabulary under a method.
        ends: tokens that end a text.
        padding: how prompts are padded.
    """

    def __init__(self, tables: FilterTables, ends: frozenset[int], padding: Padding):
        self.tables, self.ends, self._padding = tables, ends, padding
        self._states = TextStates(self._begin, self._follow)
        self._ends = np.array(sorted(i for i in ends if i < len(tables.tokens)), np.int64)
        self._constant: dict[torch.device, Tensor] = {}

    def _begin(self, ids, extra):
        text = _Text(used=(0,) * len(self.tables.limits))
        if not self.tables.method.prompt_word:
            return text
        for token in ids[self._padding.start(ids) :]:
            text = self.tables.follow(text, token)
        return replace(text, words=0, used=(0,) * len(self.tables.limits), broken=False)

    def _follow(self, text, token, extra):
        if text.ended or token in self.ends:
            return replace(text, ended=True)
        return self.tables.follow(text, token)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        method = self.tables.method
        masks, texts = self._masks(input_ids, scores)
        out = apply_bitmask_(scores.clone(), compose_filters(masks), bias=method.bias)
        if method.bias is None:
            if texts is not None and method.on_empty != "ignore" and any(text.broken for text in texts):
                broken = torch.tensor([text.broken for text in texts], device=scores.device)
                out = torch.where(broken[:, None], scores, out)
            self._fill_empty(out, scores, texts)
        return out

    def _masks(self, input_ids, scores):
        """Masks ``[R or 1, W]`` whose AND is what is allowed, and the texts if anything depends on them."""
        tables, count, device = self.tables, len(input_ids), scores.device
        if not tables.follows_text:
            if device not in self._constant:
                mask = self._with_ends(_packed(tables.static)[None], [True])
                self._constant[device] = mask.to(device)
            return [self._constant[device]], None
        texts = self._states.of(input_ids)
        if tables.table is None:
            mask = _packed(tables.static).expand(count, -1)
        else:
            mask = torch.stack([_packed(tables.by_word(text)) for text in texts])
        masks = [self._with_ends(mask, [tables.may_end(text) for text in texts]).to(device)]
        if tables.limits:
            counts = torch.tensor([[text.used, tables.limits] for text in texts]).clamp_max(32767).short()
            used, limits = counts.to(device).unbind(1)
            fits = multiset_mask(tables.effect_on(device), used, limits)
            masks.append(self._with_ends(fits, [True] * count))
        return masks, texts

    def _with_ends(self, mask: Tensor, may_end: list[bool]) -> Tensor:
        """Masks whose end tokens are allowed or not, row by row."""
        mask = mask.clone(memory_format=torch.contiguous_format)
        allowed = torch.tensor(may_end, device=mask.device)
        for token in self._ends.tolist():
            word, bit = mask[:, token // 32], np.uint32(1 << token % 32).view(np.int32).item()
            mask[:, token // 32] = torch.where(allowed, word | bit, word & ~bit)
        return mask

    def _fill_empty(self, out, scores, texts) -> None:
        """Decide rows in which nothing is left."""
        empty = out.isneginf().all(-1) & ~scores.isneginf().all(-1)
        if not bool(empty.any()):
            return
        method = self.tables.method
        if method.on_empty == "ignore":
            out[empty] = scores[empty]
            return
        if method.on_empty == "error" or not len(self._ends):
            row = int(empty.int().argmax())
            where = "" if texts is None else f" after the word {texts[row].word!r}"
            raise RuntimeError(
                f"VocabularyFilters: no token is allowed in row {row}{where}"
                + ("" if method.on_empty == "error" else ", and no token is known that ends the text")
            )
        out[empty.nonzero(), torch.from_numpy(self._ends).to(out.device)] = 0.0


def make_processor(method, tokenizer=None, *, model=None, eos=None) -> FilterProcessor:
    """The processor of a method.

    Args:
        method: a :class:`tokops.methods.VocabularyFilters`.
        tokenizer: a transformers tokenizer; None where the method has ``strings``.
        model: the model that decodes, for its end tokens.
        eos: end tokens; None: the model's, or the tokenizer's.
    """
    pad = (
        model.generation_config.pad_token_id
        if model is not None
        else getattr(tokenizer, "pad_token_id", None)
    )
    ends = ends_of(model, tokenizer) if eos is None else frozenset(eos)
    return FilterProcessor(tables_of(method, tokenizer), ends, Padding(pad))


def hooks(method, setting: Setting) -> Hooks:
    """What the method adds to one generation."""
    tables = tables_of(method, setting.tokenizer)
    return Hooks(
        [FilterProcessor(tables, setting.eos or ends_of(setting.model, setting.tokenizer), setting.padding)]
    )
