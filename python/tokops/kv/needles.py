"""Needles: facts that are planted into a long text, and whether a model that has read it finds each of them.

A model of 135M parameters does not answer questions, copies a four-digit number wrongly more often than not, and
mixes up facts of one form ("line 14: value 7031"): with its cache in full precision it then finds half of them. What
it can do is go on with a sentence that it has read. So every needle is a sentence of its own, its beginning is the
question, and it is found where its own ending is likelier than the endings of all others.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from tokops.hf.families import CACHE


class SizeError(ValueError):
    """A text, a model or a plan is too small for what was asked."""


@dataclass(frozen=True)
class Needle:
    """The beginning of a planted sentence, and the word that ends it."""

    question: str
    answer: str


NEEDLES = (
    Needle("The name of the blacksmith's grey horse was", " Thunder"),
    Needle("The captain of the wrecked ship had buried his gold in", " Lisbon"),
    Needle("The password to the smugglers' cave was", " banana"),
    Needle("The colour of the new church door was", " purple"),
    Needle("The clockmaker's favourite instrument was the", " trumpet"),
    Needle("On the roof of the lighthouse stood a copper", " dragon"),
    Needle("The doctor's cure for the fever was made from", " honey"),
    Needle("The number painted on the old mill was", " seven"),
    Needle("The parrot of the innkeeper could only say", " butter"),
    Needle("The king of the island had come from", " Egypt"),
    Needle("The secret letter was hidden inside a", " piano"),
    Needle("The widow paid for the garden wall with a bag of", " salt"),
    Needle("The shepherd had named his youngest dog", " Oliver"),
    Needle("The bridge over the river was built by an engineer named", " Schmidt"),
    Needle("The telescope in the tower was aimed at the planet", " Saturn"),
    Needle("The winner of the village race was a boy called", " Hugo"),
)


@dataclass(frozen=True)
class Haystack:
    """A text with needles: its tokens ``ids [T]``, and the needles in the order of the text."""

    ids: Tensor
    needles: tuple[Needle, ...]


@dataclass(frozen=True)
class Found:
    """Needles that were found of those asked for, and the mean surprise at the right answers.

    Attributes:
        found: answers that were likelier than all other answers.
        asked: needles.
        said: answers that were the likeliest continuation of all, as greedy decoding would give.
        loss: mean negative log-likelihood of the right answer, nats.
    """

    found: int
    asked: int
    said: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Part that was found."""
        return self.found / self.asked


def build(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int, count: int, seed: int = 0) -> Haystack:
    """Plant needles between sentences in the middle half of a text.

    Args:
        text: of sentences.
        tokenizer: of the model.
        tokens: most tokens of the result.
        count: needles, 1 to 16.
        seed: of their places.

    Raises:
        SizeError: more needles than there are, or a text that is too short.
    """
    if not 1 <= count <= len(NEEDLES):
        raise SizeError(f"there are 1 to {len(NEEDLES)} needles, got {count}")
    needles = NEEDLES[:count]
    planted = [f"\n\n{needle.question}{needle.answer}.\n\n" for needle in needles]

    def size(part: str) -> int:
        return len(tokenizer(part, add_special_tokens=False).input_ids)

    left, body = tokens - sum(map(size, planted)), []
    for sentence in re.split(r"(?<=[.!?]\s)", text):
        left -= size(sentence)
        if left < 0:
            break
        body.append(sentence)
    if len(body) < 4:
        raise SizeError(f"no four sentences of the text fit into {tokens} tokens beside {count} needles")
    low, high = len(body) // 4, -(-len(body) * 3 // 4)
    places = sorted(random.Random(seed).choices(range(low, high + 1), k=count))
    for place, part in reversed(list(zip(places, planted, strict=True))):
        body.insert(place, part)
    ids = tokenizer("".join(body), return_tensors="pt").input_ids[0]
    return Haystack(ids[:tokens], needles)


@torch.no_grad()
def ask(
    model: PreTrainedModel,
    cache: Cache,
    tokenizer: PreTrainedTokenizerBase,
    needles: tuple[Needle, ...],
    tick: Callable[[int], None] = lambda needles: None,
) -> Found:
    """Ask for every needle, one forward each, taken back from the cache afterwards.

    Args:
        model: patched, over a cache that holds the text.
        cache: of the model.
        tokenizer: of the model.
        needles: of the text; their answers are the choices.
        tick: called with 1 after every needle.
    """

    found, said, loss = 0, 0, 0.0
    for right, needle in enumerate(needles):
        likely, greedy = _likely(model, cache, tokenizer, needle.question, [x.answer for x in needles])
        found += int(likely.argmax()) == right
        said += right in greedy
        loss -= float(likely[right])
        tick(1)
    return Found(found, len(needles), said, loss / len(needles))


def _likely(model, cache, tokenizer, question: str, answers: list[str]) -> tuple[Tensor, set[int]]:
    """Log-likelihood of every answer, and the answers that greedy decoding gives.

    An answer is known by its first token, or by all its tokens where answers share the first.
    """

    def encode(part: str) -> list[int]:
        return tokenizer("\n\n" + part, add_special_tokens=False).input_ids

    asked = encode(question)
    ends = [encode(question + answer)[len(asked) :] for answer in answers]

    def log_probabilities(ids: list[int]) -> Tensor:
        out = model(torch.tensor([ids], device=model.device), **{CACHE: cache}, use_cache=True).logits[0]
        cache.crop(-len(ids))
        return out[len(asked) - 1 :].float().cpu().log_softmax(-1)

    if len({end[0] for end in ends}) == len(ends):
        first = log_probabilities(asked)[0]
        likely = first[[end[0] for end in ends]]
        return likely, {i for i, end in enumerate(ends) if int(first.argmax()) == end[0]}
    rows = [log_probabilities(asked + end)[: len(end)] for end in ends]
    likely = torch.stack([row[range(len(end)), end].sum() for row, end in zip(rows, ends, strict=True)])
    return likely, {i for i, row in enumerate(rows) if row.argmax(-1).tolist() == ends[i]}
