"""Prompts for speculation: code, prose, a passage that is to be quoted, and prose in which nothing may repeat."""

import heapq
import inspect
import textwrap
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokops.data import held_out_text, long_text

CODE, PROSE, QUOTING, FRESH = "code", "prose", "quoting", "nothing to copy"

_BRIDGE = "\n\nThe passage that sums this up, quoted word for word:\n\n"
_OPENING = 8  # a prompt's length over that of the words it begins to quote


@dataclass(frozen=True)
class Text:
    """A prompt.

    Attributes:
        kind: what it is.
        ids: ``[1, n]`` int64.
        options: what ``generate`` is told beside it.
    """

    kind: str
    ids: Tensor
    options: dict = field(default_factory=dict)


class Sources:
    """The texts that prompts are cut from: two modules of Python's library, and the two novels of tokops.data."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        def tokens(text: str) -> Tensor:
            return tokenizer(text, return_tensors="pt").input_ids[0]

        self._texts = {
            CODE: tokens("\n".join(map(inspect.getsource, (textwrap, heapq)))),
            PROSE: tokens(held_out_text()),
            QUOTING: tokens(long_text()),
        }
        self._bridge = tokens(_BRIDGE)

    def cut(self, kind: str, length: int, place: int = 0) -> Tensor:
        """A prompt ``[length]`` of a kind.

        Args:
            kind: ``code``, ``prose`` or ``quoting``.
            length: tokens.
            place: which of the pieces of that length; behind the last one the first comes again.

        Raises:
            ValueError: the text is shorter, or so short a prompt has no room for a passage to quote.
        """
        ids = self._texts[kind]
        if len(ids) < length:
            raise ValueError(f"the text for {kind} has {len(ids)} tokens, the prompt is to have {length}")
        at = place % (len(ids) // length) * length
        piece = ids[at : at + length]
        if kind != QUOTING:
            return piece
        opening = max(1, length // _OPENING)
        passage = length - len(self._bridge) - opening
        if passage <= opening:
            raise ValueError(
                f"a prompt that quotes needs more than {len(self._bridge) + 2 * opening} tokens, got {length}"
            )
        return torch.cat([piece[:passage], self._bridge, piece[:opening]])


def kinds(tokenizer: PreTrainedTokenizerBase, length: int) -> list[Text]:
    """One prompt of ``length`` tokens of every kind.

    ``quoting`` is a passage, a sentence that announces a quotation, and the first words of the passage again: a model
    goes on copying. ``nothing to copy`` is prose under ``no_repeat_ngram_size=2``: no two tokens may follow each other
    that have done so before, so that whatever prompt lookup finds is wrong.
    """
    sources = Sources(tokenizer)
    texts = [Text(kind, sources.cut(kind, length)[None]) for kind in (CODE, PROSE, QUOTING)]
    return [*texts, Text(FRESH, sources.cut(PROSE, length, 1)[None], {"no_repeat_ngram_size": 2})]


def ragged(tokenizer: PreTrainedTokenizerBase, count: int, shortest: int, longest: int) -> list[Text]:
    """Prompts of code, prose and quoting in turn, whose lengths are spread over ``shortest..longest`` out of order."""
    sources, found = Sources(tokenizer), []
    for i in range(count):
        kind = (CODE, PROSE, QUOTING)[i % 3]
        length = shortest + (longest - shortest) * (7 * i % count) // max(count - 1, 1)
        found.append(Text(kind, sources.cut(kind, length, i // 3)[None]))
    return found
