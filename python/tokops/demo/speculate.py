"""Speculation on a real model: tokens per call and per second, beside stock decoding and transformers' lookup."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.bench.timing import interleaved, medians
from tokops.hf import patch
from tokops.hf.contexts import twin
from tokops.hf.quality import Difference, first_difference
from tokops.methods import Dense, Method, Speculate

from .run import Stage
from .texts import Text, kinds

STOCK, STOCK_LOOKUP, DENSE = "stock greedy", "stock prompt lookup", "Dense"
DENSE_LOOKUP = "transformers' lookup over Dense"
DRAFTS = ("prompt_lookup", "early_exit")
LOOKUP, EARLY_EXIT = (f"Speculate({draft})" for draft in DRAFTS)
_THEIR_LOOKUP = {"prompt_lookup_num_tokens": 10}


@dataclass(frozen=True)
class Plan:
    """Sizes of one run.

    Attributes:
        prompt: tokens of every prompt.
        new: tokens that are decoded after it.
        rounds: most timed runs of each way of decoding.
        least: timed runs that even a slow way gets.
        seconds: time after which a way that has its least runs is not timed further.
    """

    prompt: int = 512
    new: int = 192
    rounds: int = 7
    least: int = 1
    seconds: float = 30.0


FULL, QUICK = Plan(), Plan(prompt=256, new=64, rounds=3, least=2, seconds=5.0)


@dataclass(frozen=True)
class Row:
    """One way of decoding one text.

    Attributes:
        text: the kind of text.
        way: how it was decoded.
        tokens_per_call: new tokens per forward of the model, the prompt's forward among them; a drafting model's
            forwards are not.
        tokens_per_second: without the prompt's forward, from the median run.
        ratio: of tokens/s, to stock greedy decoding of the same text.
        difference: the first token that is not stock greedy decoding's, if any.
    """

    text: str
    way: str
    tokens_per_call: float
    tokens_per_second: float
    ratio: float
    difference: Difference | None


@dataclass
class Result:
    """All numbers of one run."""

    model: str
    plan: Plan
    rows: list[Row] = field(default_factory=list)

    def row(self, text: str, way: str) -> Row:
        """The row of a text and a way."""
        return next(row for row in self.rows if (row.text, row.way) == (text, way))

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Decoded:
    """What one generation gave.

    Attributes:
        tokens: ``[B, new]`` int64.
        calls: forwards of the model.
        seconds: of everything behind the first forward, which reads the prompt.
        scores: ``[new, V]`` float32 of a batch of one, where they were asked for.
    """

    tokens: Tensor
    calls: int
    seconds: float
    scores: Tensor | None = None


class Way:
    """One way of greedy decoding that never stops early, on a twin of the model.

    Args:
        name: for the table.
        model: an unpatched model; stays as it is.
        methods: of ours; None is stock transformers.
        options: what ``generate`` is told.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        methods: tuple[Method, ...] | None = None,
        options: dict | None = None,
    ):
        self.name, self.model, self._options = name, twin(model), options or {}
        config = self.model.generation_config
        config.eos_token_id = None
        config.pad_token_id = config.pad_token_id or 0
        if methods is not None:
            patch(self.model, *methods)

    def __call__(
        self, ids: Tensor, new: int, *, mask: Tensor | None = None, scores: bool = False, **options
    ) -> Decoded:
        """Decode ``new`` tokens after ``ids [B, n]``, left padded where ``mask [B, n]`` is 0."""
        marks: list[float] = []
        hook = self.model.base_model.register_forward_hook(lambda *_: marks.append(time.perf_counter()))
        try:
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids) if mask is None else mask,
                max_new_tokens=new,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=scores,
                **self._options,
                **options,
            )
        finally:
            hook.remove()
        seconds = time.perf_counter() - marks[0]
        rows = torch.cat(out.scores).float() if scores else None
        return Decoded(out.sequences[:, ids.shape[1] :], len(marks), seconds, rows)


def ways(model: PreTrainedModel) -> list[Way]:
    """All ways of decoding that are compared, stock greedy first."""
    return [
        stock(model),
        Way(STOCK_LOOKUP, model, options=_THEIR_LOOKUP),
        Way(DENSE, model, (Dense(),)),
        Way(DENSE_LOOKUP, model, (Dense(),), _THEIR_LOOKUP),
        *speculating(model),
    ]


def stock(model: PreTrainedModel) -> Way:
    """Greedy decoding as transformers does it."""
    return Way(STOCK, model)


def speculating(model: PreTrainedModel, drafts: Sequence[str] = DRAFTS) -> list[Way]:
    """Our ways."""
    return [Way(f"Speculate({draft})", model, (Speculate(draft=draft),)) for draft in drafts]


def reference(way: Way, text: Text, new: int) -> tuple[Decoded, Tensor]:
    """What stock greedy decoding gives, and at every step the gap ``[new]`` between its two largest logits."""
    found = way(text.ids, new, scores=True, **text.options)
    assert found.scores is not None, "asked for"
    best = found.scores.topk(2, -1).values
    return found, best[:, 0] - best[:, 1]


def name_of(model: PreTrainedModel) -> str:
    """What a model is called in tables: its folder's name, or its type."""
    return (model.config._name_or_path or model.config.model_type).rstrip("/").rsplit("/", 1)[-1]


def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, stage: Stage) -> Result:
    """Decode every kind of text in every way: once to compare the tokens, then in turn to time them.

    Args:
        model: an unpatched model of a tested family.
        tokenizer: its tokenizer.
        plan: sizes.
        stage: begins a progress bar.

    Raises:
        ValueError: a prompt longer than its text, or too short to quote.
    """
    result, all_ways = Result(name_of(model), plan), ways(model)
    for text in kinds(tokenizer, plan.prompt):
        tick = stage(text.kind, len(all_ways) + plan.rounds)
        result.rows += _rows(text, all_ways, plan, tick)
    return result


def _rows(text: Text, all_ways: list[Way], plan: Plan, tick: Callable[[int], None]) -> list[Row]:
    expected, gaps = reference(all_ways[0], text, plan.new)
    tick(1)
    decoded = {STOCK: expected}
    for way in all_ways[1:]:
        decoded[way.name] = way(text.ids, plan.new, **text.options)
        tick(1)

    def timed(way: Way) -> Callable[[], float]:
        return lambda: way(text.ids, plan.new, **text.options).seconds

    samples = interleaved(
        {way.name: timed(way) for way in all_ways},
        rounds=plan.rounds,
        least=plan.least,
        seconds=plan.seconds,
        warmup=0,
        watch=_own_seconds,
        tick=lambda: tick(1),
    )
    rates = {name: plan.new / seconds for name, seconds in medians(samples).items()}
    return [
        Row(
            text.kind,
            name,
            plan.new / found.calls,
            rates[name],
            rates[name] / rates[STOCK],
            first_difference((expected.tokens[0], gaps), (found.tokens[0], gaps)),
        )
        for name, found in decoded.items()
    ]


def _own_seconds(call: Callable[[], object]) -> Callable[[], float]:
    """A call that measures itself."""
    return lambda: float(call())  # type: ignore[arg-type]
