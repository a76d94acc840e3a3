"""Needles: facts planted into a long text, and whether a model that has read it finds the one that is asked for.

A model of 135M parameters does not answer questions, and copies a four-digit number wrongly more often than not. What
it can do is go on with a sentence that it has read: asked "The secret word of Clara is", it prefers Clara's word to
the words of the other needles. So a needle counts as found where its own answer is the likeliest among all answers.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from tokops.hf.families import CACHE

_NAMES = (
    "Alice", "Boris", "Clara", "Dorian", "Edith", "Felix", "Gwen", "Hugo", "Irene", "Jonas", "Karen", "Louis",
    "Maria", "Nolan", "Olive", "Peter", "Quinn", "Rosa", "Simon", "Tessa", "Ursula", "Victor", "Wendy", "Xavier",
)  # fmt: skip
_WORDS = (
    "apple", "river", "tiger", "silver", "garden", "winter", "bridge", "candle", "doctor", "engine", "forest",
    "guitar", "hammer", "island", "jacket", "kitchen", "lemon", "mirror", "needle", "orange", "pencil", "queen",
    "rabbit", "spider",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """The beginning of a planted sentence, and how it ends."""

    question: str
    answer: str


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
        loss: mean negative log-likelihood of an answer's first token, nats.
    """

    found: int
    asked: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Part that was found."""
        return self.found / self.asked


def build(
    text: str, tokenizer: PreTrainedTokenizerBase, tokens: int, count: int, seed: int = 0
) -> Haystack:
    """Plant facts between the paragraphs in the middle half of a text.

    Args:
        text: paragraphs apart by empty lines.
        tokenizer: of the model.
        tokens: most tokens of the result.
        count: needles.
        seed: of names, words and places.

    Raises:
        ValueError: more needles than there are names, or a text that is too short.
    """
    if not 1 <= count <= len(_NAMES):
        raise ValueError(f"there are names for 1 to {len(_NAMES)} needles, got {count}")
    choice = random.Random(seed)
    names, words = choice.sample(_NAMES, count), choice.sample(_WORDS, count)
    needles = [Needle(f"The secret word of {a} is", f" {b}") for a, b in zip(names, words, strict=True)]

    def size(part: str) -> int:
        return len(tokenizer(part + "\n\n", add_special_tokens=False).input_ids)

    left = tokens - sum(size(f"{x.question}{x.answer}.") for x in needles)
    body: list[str] = []
    for paragraph in text.split("\n\n"):
        left -= size(paragraph)
        if left < 0:
            break
        body.append(paragraph)
    if len(body) < 4:
        raise ValueError(f"the text has no four paragraphs that fit into {tokens} tokens beside {count} needles")
    low, high = len(body) // 4, -(-len(body) * 3 // 4)
    places = sorted(choice.choices(range(low, high), k=count))
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        body.insert(place, f"{needle.question}{needle.answer}.")
    ids = tokenizer("\n\n".join(body), return_tensors="pt").input_ids[0]
    return Haystack(ids[:tokens], tuple(needles))


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

    found, loss = 0, 0.0
    for right, needle in enumerate(needles):
        likely = _likely(model, cache, tokenizer, needle.question, [x.answer for x in needles])
        found += int(likely.argmax()) == right
        loss -= float(likely[right])
        tick(1)
    return Found(found, len(needles), loss / len(needles))


def _likely(model, cache, tokenizer, question: str, answers: list[str]) -> Tensor:
    """Log-likelihood of every answer: of its first token, or of all where answers share their first."""

    def encode(part: str) -> list[int]:
        return tokenizer("\n\n" + part, add_special_tokens=False).input_ids

    asked = encode(question)
    ends = [encode(question + answer)[len(asked) :] for answer in answers]

    def logits(ids: list[int]) -> Tensor:
        out = model(torch.tensor([ids], device=model.device), **{CACHE: cache}, use_cache=True).logits[0]
        cache.crop(-len(ids))
        return out[len(asked) - 1 :].float().cpu().log_softmax(-1)

    if len({end[0] for end in ends}) == len(ends):
        return logits(asked)[0, [end[0] for end in ends]]
    return torch.stack([logits(asked + end)[range(len(end)), end].sum() for end in ends])
