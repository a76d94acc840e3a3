"""Grammars in ``generate``: a logits processor that follows every row's text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..grammar import apply_bitmask_
from ..grammar._grammar import Grammar, fill_batch
from .processing import RowProcessor

__all__ = ["GrammarProcessor"]

#: Matchers that are kept of texts seen before: beams and draft trees come back to them.
_KEPT = 64


class GrammarProcessor(RowProcessor):
    """Masks what a grammar does not allow next. Texts begin where the processor is first called: at the prompt's end.

    A call in which no row continues a text that was seen begins a new generation, with new prompts. Say :meth:`reset`
    before a prompt that is an earlier text and one token more.

    Works with batches, beams, sampling and draft trees: a row is told by its tokens, and matchers are carried from one
    text to another that shares its beginning. A row whose text the grammar does not allow (a rejected draft, a token
    that another processor forced) may only end.

    Put it last, or before those that cut a distribution off (top-k, top-p): they then see allowed tokens only.

    Args:
        grammar: for all rows, or one for each row of the batch (None: a row without one).

    Raises:
        ValueError: rows of another number than grammars, logits narrower than the vocabulary.
    """

    def __init__(self, grammar: Grammar | Sequence[Grammar | None]):
        self.grammars = [grammar] if isinstance(grammar, Grammar) else list(grammar)
        known = [g for g in self.grammars if g is not None]
        if not known:
            raise ValueError("GrammarProcessor: no grammar was given")
        if len({g.vocabulary.width for g in known}) > 1:
            raise ValueError("GrammarProcessor: the grammars' vocabularies differ in width")
        self.vocabulary = known[0].vocabulary
        self._state = _State()

    def reset(self) -> None:
        """Forget the texts so far: the next call begins new ones."""
        self._state.prompt, self._state.texts = None, {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        count = input_ids.shape[0]
        if scores.shape[-1] < self.vocabulary.width:
            raise ValueError(
                f"GrammarProcessor: the logits have {scores.shape[-1]} entries, the vocabulary {self.vocabulary.width}"
            )
        rows = input_ids.tolist()
        state = self._state
        state.rows = max(state.rows, count)
        batch = len(self.grammars)
        if batch > 1 and self.rows is None and count % batch:
            raise ValueError(f"GrammarProcessor: {count} rows for {batch} grammars")
        grammars = [self.grammars[self.row(i, count, batch) if batch > 1 else 0] for i in range(count)]
        if not state.continues(grammars, rows):
            state.prompt, state.texts = input_ids.shape[1], {}
        matchers, dead = [], []
        for grammar, ids in zip(grammars, rows, strict=True):
            matcher = None if grammar is None else state.matcher(grammar, ids)
            dead.append(grammar is not None and matcher is None)
            matchers.append(matcher)
        mask = self.vocabulary.masks(count)
        # One matcher may stand for several rows with the same text: it is filled once.
        first: dict[int, int] = {}
        once = []
        for i, m in enumerate(matchers):
            once.append(m if m is None or first.setdefault(id(m), i) == i else None)
        fill_batch(once, mask)
        for i, m in enumerate(matchers):
            if dead[i]:
                mask[i] = 0
                for token in self.vocabulary.eos_ids:
                    mask[i, token // 32] |= torch.tensor(1 << (token % 32), dtype=torch.int64).to(torch.int32)
            elif m is not None and first[id(m)] != i:
                mask[i] = mask[first[id(m)]]
            elif m is None:
                mask[i] = -1
        return apply_bitmask_(
            scores.clone() if scores.requires_grad else scores.contiguous(), mask.to(scores.device)
        )


class _State:
    """Texts that were seen, with their matchers. Shared by the twins of a processor for other rows."""

    def __init__(self):
        self.prompt: int | None = None
        self.rows = 1
        self.texts: dict[tuple, tuple] = {}

    def continues(self, grammars: Sequence[Grammar | None], rows: list[list[int]]) -> bool:
        """Whether some row is a text that was seen, or one and a token more; rows without a grammar tell nothing.

        Rows as long as the prompts are further prompts, of this batch or of one that its texts do not tell apart.
        """
        if self.prompt is None or len(rows[0]) <= self.prompt:
            return self.prompt is not None and len(rows[0]) == self.prompt
        told = [(g, ids) for g, ids in zip(grammars, rows, strict=True) if g is not None]
        return not told or any(
            _key(grammar, ids, self.prompt, len(ids) - back) in self.texts
            for grammar, ids in told
            for back in range(2)
        )

    def matcher(self, grammar: Grammar, ids: list[int]):
        """The matcher of a row's text, or None where the grammar does not allow it."""
        prompt = self.prompt or 0
        key = _key(grammar, ids, prompt, len(ids))
        known = self.texts.get(key)
        if known is not None:
            return known[0]
        matcher: Any = None
        rest: list[int] = ids[prompt:]
        for end in range(len(ids) - 1, prompt - 1, -1):  # the longest beginning that was seen
            earlier = self.texts.get(_key(grammar, ids, prompt, end))
            if earlier is not None:
                matcher = earlier[0]
                matcher = None if matcher is None else matcher.fork()
                rest = ids[end:]
                break
        else:
            matcher = grammar.matcher()
        for token in rest if matcher is not None else ():
            if matcher.is_done():  # what follows the end is padding
                break
            if not matcher.accept(token):
                matcher = None
                break
        self.texts[key] = (matcher, grammar)
        while len(self.texts) > max(_KEPT, 4 * self.rows):
            self.texts.pop(next(iter(self.texts)))
        return matcher


def _key(grammar: Grammar, ids: list[int], prompt: int, end: int) -> tuple:
    """What the text behind a prompt is kept under, up to position ``end`` of the row."""
    return (id(grammar), hash(tuple(ids[:prompt])), tuple(ids[prompt:end]))
