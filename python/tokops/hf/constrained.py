"""What decoding loops under a constraint share: texts that end one by one, and the batch of those that run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..grammar.constraint import Constraint, constraint_of
from .decoding import Feed, random_streams
from .families import given_cache
from .processing import RowProcessor, processors_of


@dataclass(eq=False)
class Text:
    """One text that is written.

    Attributes:
        request: its place in the batch.
        stream: its random stream.
        padding: tokens of left padding.
        constraint, state: what it must be, and where it is; None allows everything.
        tokens: new tokens.
        checks: of every token that was drawn, how often the constraint was asked.
        log_weight: its importance weight.
        ended: it gets no more tokens.
        complete: an end token ended it.
        dead: no legal token was found.
    """

    request: int
    stream: int
    padding: int
    constraint: Constraint | None = None
    state: Any = None
    tokens: list[int] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)
    log_weight: float = 0.0
    ended: bool = False
    complete: bool = False
    dead: bool = False

    def ok(self, token: int) -> bool:
        """Whether a token is legal next."""
        return self.constraint is None or self.constraint.ok(self.state, token)

    def take(self, token: int, ends: bool) -> None:
        """Append a legal token; ``ends``: it is an end token."""
        self.tokens.append(token)
        if ends:
            self.ended = self.complete = True
        elif self.constraint is not None:
            self.state = self.constraint.advance(self.state, token)


class Batch:
    """The running texts: their ids, cache rows and forwards. Row ``i`` of everything belongs to one text.

    Args:
        model: patched by tokops.
        input_ids: ``[B, L]`` prompts, as ``generate`` gives them.
        processors, criteria: as ``generate`` gives them.
        chunk: tokens of a prompt read in one forward; None reads it whole.
        kwargs: what else ``generate`` gives, the cache and the mask among it.
    """

    def __init__(
        self,
        model,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        chunk: int | None,
        kwargs: dict,
    ):
        self.model = model
        self.prompt, self.mask = input_ids, kwargs.get("attention_mask")
        self.cache = given_cache(kwargs)
        self.feed = Feed(model, self.cache, self.mask, input_ids)
        self.ids = input_ids
        self.requests = list(range(len(input_ids)))
        #: Of every row, where the last forward had it.
        self.places = list(range(len(input_ids)))
        self.chunk = chunk
        self.forwards = self.rows = 0
        self._processors, self._criteria = processors, criteria

    def prefill(self) -> Tensor:
        """Read what the cache lacks of the prompts; the logits ``[B, V]`` behind them."""
        prompt = self.cache.prompt_length
        chunk = self.chunk or prompt
        for first in range(self.cache.get_seq_length(), prompt, chunk):
            logits = self.feed(self.ids, first, min(first + chunk, prompt))
        return logits.float()

    def scores(self, logits: Tensor) -> Tensor:
        """The logits of all rows after the processors, float32, the caller's own."""
        processors = processors_of(self._processors, self.requests, [(row, -1) for row in self.places])
        scores = processors(self.ids, logits) if len(processors) else logits
        return scores.float().clone() if scores is logits else scores.float()

    def append(self, tokens: Sequence[int]) -> None:
        """One token more for every row."""
        self.ids = torch.cat([self.ids, self.ids.new_tensor(list(tokens))[:, None]], 1)

    def stopped(self, scores: Tensor) -> list[bool]:
        """Which rows end by a stopping criterion."""
        return self._criteria(self.ids, scores).tolist()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row may be named more than once."""
        if list(rows) == list(range(len(self.ids))):
            return
        index = torch.tensor(list(rows), device=self.ids.device)
        self.cache.batch_select_indices(index)
        self.ids = self.ids[index]
        self.requests = [self.requests[row] for row in rows]
        self.places = [self.places[row] for row in rows]
        if self.feed.mask is not None:
            self.feed.mask = self.feed.mask[index]

    def renew(self, cache) -> None:
        """Read the texts into another cache, which is empty."""
        mask = None if self.feed.mask is None else self.feed.mask[:, : self.ids.shape[1]]
        self.cache, self.feed = cache, Feed(self.model, cache, mask, self.ids)
        self.places = list(range(len(self.ids)))
        self.prefill()

    @property
    def watched(self) -> bool:
        """Whether a processor looks at the last forward."""
        return any(isinstance(processor, RowProcessor) for processor in self._processors)

    def forward(self) -> Tensor:
        """Logits ``[R, V]`` behind the newest token of every row."""
        length = self.cache.get_seq_length()
        self.places = list(range(len(self.ids)))
        self.forwards += 1
        self.rows += len(self.ids)
        return self.feed(self.ids, length, length + 1).float()

    def position(self, text: Text) -> int:
        """Index, in its own text, of the token that a text gets next."""
        return self.prompt.shape[1] - text.padding + len(text.tokens)


def begin(name: str, batch: int, mask: Tensor | None, streams, constraint, constraints) -> list[Text]:
    """A text for every request.

    Args:
        name: of the method, for messages.
        batch: number of requests.
        mask: ``[B, L]`` attention mask, or None.
        streams: numbers of their random streams; None: their places.
        constraint: what all texts must be, None allows everything.
        constraints: one per request in its place, or None.

    Raises:
        ValueError: numbers out of range, another number of constraints, or one that no text satisfies.
        TypeError: one that is none; a grammar too, because what ASAp learns belongs to the constraint's object.
    """
    numbers = random_streams(name, streams, batch)
    each = [constraint] * batch if constraints is None else list(constraints)
    if len(each) != batch:
        raise ValueError(f"{name}: constraints must be {batch}, one per request, got {len(each)}")
    for own in each:
        if constraint_of(name, own) is not own:
            raise TypeError(
                f"{name}: constraints: expected constraints, got a Grammar: give MatcherConstraint(grammar)"
            )
    padding = [0] * batch if mask is None else mask.int().argmax(-1).tolist()
    return [
        Text(request, number, pad, own, None if own is None else own.start())
        for request, (number, pad, own) in enumerate(zip(numbers, padding, each, strict=True))
    ]


def end_ids(generation_config, constraints: Sequence[Constraint | None]) -> frozenset[int]:
    """The tokens that end a text: those of ``generate`` and of the constraints."""
    given = generation_config.eos_token_id
    ends = [] if given is None else torch.as_tensor(given).flatten().tolist()
    for constraint in constraints:
        ends += getattr(constraint, "eos_ids", ())
    return frozenset(ends)


def sequences(prompt: Tensor, texts: Sequence[Text], pad: int | None) -> Tensor:
    """``[N, L]``: prompts and new tokens of texts, filled up to the longest."""
    width = max(len(text.tokens) for text in texts)
    fill = 0 if pad is None else pad
    tail = prompt.new_tensor([text.tokens + [fill] * (width - len(text.tokens)) for text in texts])
    heads = prompt[torch.tensor([text.request for text in texts], device=prompt.device)]
    return torch.cat([heads, tail.view(len(texts), width)], 1)


def draw_seed(seed: int | None) -> int:
    """A seed, from torch's generator if there is none."""
    return int(torch.randint(2**62, ())) if seed is None else int(seed)


def refuse_greedy(name: str, generation_config) -> None:
    """These methods sample; without chance there is nothing for them to keep."""
    if not generation_config.do_sample:
        raise ValueError(f"{name} needs do_sample=True: it is about the law that tokens are drawn from")
