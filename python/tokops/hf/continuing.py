"""Texts that are read token by token and continued for a look: what judges of unfinished texts share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, NoRepeatNGramLogitsProcessor

from ..sampling import sample
from .constrain import unwatched
from .families import CACHE
from .patching import run_of


def new_cache(model) -> Any:
    """An empty cache for a model, patched or not, that can take tokens back."""
    run = run_of(model)
    cache = DynamicCache(config=model.config) if run is None else run.new_cache()
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()
    return cache


@dataclass
class _Place:
    """A text that was read, and its cache."""

    tokens: list[int] = field(default_factory=list)
    cache: Any = None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two texts begin with."""
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)


class Reader:
    """Reads texts with a model, each from where it leaves a text that was read before.

    Args:
        model: any causal model of transformers, patched or not.
        places: texts whose caches are kept.
        slack: tokens that may be taken back from a text rather than to read another one from its beginning.
    """

    def __init__(self, model, places: int = 16, slack: int = 32):
        self.model = model
        self._most, self._slack = places, slack
        self._places: list[_Place] = []  # the one used last at the end
        #: Forwards, and tokens in all of them.
        self.forwards = self.tokens = 0

    def close(self) -> None:
        """Forget all texts and their caches."""
        self._places = []

    def read(self, text: Sequence[int], first: int, hidden: bool = False) -> tuple[Any, Tensor]:
        """Read a text.

        Args:
            text: ids, at least one.
            first: position from which on results are wanted, below the text's length.
            hidden: what to give: final hidden states, or logits.

        Returns:
            The cache, which holds the text, and ``[n, ...]`` for positions from ``first`` on.
        """
        text = list(text)
        place = self._place(text)
        keep = min(_common(place.tokens, text), first)
        self._crop(place, keep)
        ids = torch.tensor([text[keep:]], device=self.model.device)
        model = self.model.base_model if hidden else self.model
        out = self._forward(model, ids, place.cache)
        place.tokens = text
        rows = out.last_hidden_state if hidden else out.logits
        return place.cache, rows[0, first - keep :]

    def _place(self, text: list[int]) -> _Place:
        best = max(self._places, key=lambda place: _common(place.tokens, text), default=None)
        if best is None or len(best.tokens) - _common(best.tokens, text) > self._slack:
            if len(self._places) >= self._most:
                self._places.pop(0)
            best = _Place(cache=new_cache(self.model))
        else:
            self._places.remove(best)
        self._places.append(best)
        return best

    def _crop(self, place: _Place, keep: int) -> None:
        if keep == len(place.tokens):
            return
        if keep:
            place.cache.crop(keep - len(place.tokens))
        else:
            place.cache = new_cache(self.model)
        place.tokens = place.tokens[:keep]

    def _forward(self, model, ids: Tensor, cache) -> Any:
        self.forwards += 1
        self.tokens += ids.numel()
        with torch.no_grad(), unwatched():
            return model(input_ids=ids, use_cache=True, **{CACHE: cache})

    def continuations(
        self, text: Sequence[int], candidates: Sequence[int], writer: "Writer"
    ) -> list[list[int]]:
        """How a text goes on behind each of some tokens: lists of tokens, the candidate left out."""
        cache, _ = self.read(text, len(text) - 1)
        if not writer.length:
            return [[] for _ in candidates]
        length = len(text)
        cache.batch_repeat_interleave(len(candidates))
        texts = [[*text, token] for token in candidates]

        def forward(tokens):
            return self._forward(self.model, tokens[:, None], cache).logits[:, -1]

        first = torch.tensor(candidates, device=self.model.device)
        written, _ = writer.write(texts, forward(first), forward)
        cache.crop(length - cache.get_seq_length())
        cache.batch_select_indices(torch.zeros(1, dtype=torch.int64, device=self.model.device))
        return written


@dataclass(frozen=True)
class Writer:
    """Continues texts for a look.

    Args:
        length: tokens.
        ends: tokens behind which a text does not go on.
        temperature: 0 is greedy.
        no_repeat: n-grams of this length do not come twice in what is written; 0 forbids nothing.
        seed: of the random numbers, which are keyed by the place among the texts and the position.
    """

    length: int
    ends: frozenset[int]
    temperature: float = 0.0
    no_repeat: int = 0
    seed: int = 0

    def write(self, texts: Sequence[list[int]], logits: Tensor, forward) -> tuple[list[list[int]], int]:
        """Continue texts.

        Args:
            texts: ids; only their lengths matter, and the n-grams behind them.
            logits: ``[n, V]`` behind each.
            forward: from tokens ``[n]`` to the logits behind them; called for all texts until all have ended.

        Returns:
            What was written behind every text, an end token last; and how often ``forward`` was called.
        """
        written: list[list[int]] = [[] for _ in texts]
        going = [True] * len(texts)
        calls = 0
        for step in range(self.length):
            if step:
                logits = forward(torch.tensor([own[-1] for own in written], device=logits.device))
                calls += 1
            tokens = self._pick(logits, texts, written, step)
            for i, token in enumerate(tokens):
                # A text that has ended is fed its end again, so that all rows stay of one length.
                written[i].append(token if going[i] else written[i][-1])
                going[i] = going[i] and token not in self.ends
            if not any(going):
                break
        return [self._until_end(own) for own in written], calls

    def _pick(self, logits, texts, written, step) -> list[int]:
        logits = logits.float()
        if self.no_repeat and step:
            shown = torch.tensor(written, device=logits.device)
            logits = NoRepeatNGramLogitsProcessor(self.no_repeat)(shown, logits)
        if not self.temperature:
            return logits.argmax(-1).tolist()
        positions = torch.tensor([len(text) + step for text in texts], device=logits.device)
        streams = torch.arange(len(texts), device=logits.device)
        drawn = sample(
            logits, seed=self.seed, stream=streams, position=positions, temperature=self.temperature
        )
        return drawn.tolist()

    def _until_end(self, tokens: list[int]) -> list[int]:
        return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in self.ends), tokens)


class Texts:
    """What heuristics are shown: the prompt and what was generated, as text or as ids.

    Args:
        tokenizer: None where ids are shown.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def show(self, tokens: Sequence[Sequence[int]]) -> list[Any]:
        """Texts without special tokens and without a character that is not whole; or ids as they are."""
        if self._tokenizer is None:
            return [list(own) for own in tokens]
        texts = self._tokenizer.batch_decode([list(own) for own in tokens], skip_special_tokens=True)
        return [text.rstrip("�") for text in texts]
