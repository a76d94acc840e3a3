"""Methods that change logits or end a text, on a real model: what they cost, and what they do to its texts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.bench.timing import interleaved, medians

from .effects import Effect, Effects
from .run import Stage
from .speculate import DENSE, STOCK, Way, name_of, stock


@dataclass(frozen=True)
class Plan:
    """Sizes of one run.

    Attributes:
        texts: prompts of prose.
        prompt: tokens of each.
        new: tokens that are decoded after each.
        questions: most questions and requests of every kind.
        chat: tokens of the answers that are monitored.
        rounds: most timed runs of each way of decoding, of the first prompt.
        least: timed runs that even a slow way gets.
        seconds: time after which a way that has its least runs is not timed further.
    """

    texts: int = 4
    prompt: int = 64
    new: int = 24
    questions: int = 12
    chat: int = 64
    rounds: int = 3
    least: int = 2
    seconds: float = 6.0


FULL, QUICK = Plan(), Plan(1, 32, 8, questions=2, chat=16, rounds=1, least=1)


@dataclass(frozen=True)
class Row:
    """One way of decoding.

    Attributes:
        way: its name.
        tokens_per_second: without the prompt's forward, from the median run.
        ratio: of tokens/s, to those of Dense.
        forwards_per_token: forwards of the model, the prompt's among them.
        effects: what it does, beside plain decoding.
    """

    way: str
    tokens_per_second: float
    ratio: float
    forwards_per_token: float
    effects: list[Effect]


@dataclass
class Result:
    """All numbers of one run."""

    model: str
    plan: Plan
    rows: list[Row] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return asdict(self)


def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, stage: Stage) -> Result:
    """Measure what every method does, then time all ways in turn.

    Args:
        model: an unpatched model of a tested family.
        tokenizer: its tokenizer.
        plan: sizes.
        stage: begins a progress bar.
    """
    tick = stage("probe and datastores", 1)
    effects = Effects(model, tokenizer, plan.texts, plan.prompt, plan.new, plan.questions, plan.chat)
    cases = effects.cases()
    tick(1)
    ways = {STOCK: stock(model), DENSE: effects.plain}
    ways |= {case.name: effects.way(case.name, case.method) for case in cases}
    found: dict[str, list[Effect]] = {STOCK: [], DENSE: []}
    tick = stage("effects", len(cases))
    for case in cases:
        found[case.name] = case.effects()
        tick(1)
    ids, calls = effects.prompts[:1], {}
    for way in ways.values():
        way(ids, 2)  # tables are made

    def timed(way: Way) -> Callable[[], float]:
        def call() -> float:
            decoded = way(ids, plan.new)
            calls[way] = decoded.calls
            return decoded.seconds

        return call

    tick = stage("speeds", plan.rounds)
    samples = interleaved(
        {name: timed(way) for name, way in ways.items()},
        rounds=plan.rounds,
        least=plan.least,
        seconds=plan.seconds,
        warmup=0,
        watch=lambda call: lambda: float(call()),  # type: ignore[arg-type]
        tick=lambda: tick(1),
    )
    rates = {name: plan.new / seconds for name, seconds in medians(samples).items()}
    rows = [
        Row(name, rates[name], rates[name] / rates[DENSE], calls[way] / plan.new, found[name])
        for name, way in ways.items()
    ]
    return Result(name_of(model), plan, rows)


def table(result: Result) -> Table:
    """A line per way and measure."""
    plan = result.plan
    out = Table(
        title=f"{result.model}, greedy: {plan.texts} texts of prose, {plan.new} tokens each, and questions",
        caption="x: tokens/s over those of Dense, timed in turn on one text. calls: forwards per token. nats per "
        "token: what the model without the method thinks of what was written. Code stands in for harm, and first "
        "tokens of answers for refusal tokens, which this model was not trained with.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    out.add_column("decoding with", no_wrap=True)
    for name in ("tokens/s", "x", "calls"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("measure")
    for name in ("plain", "with it"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        cost = (row.way, f"{row.tokens_per_second:.1f}", f"{row.ratio:.2f}", f"{row.forwards_per_token:.2f}")
        for i, effect in enumerate(row.effects or [None]):
            shown = ("", "", "")
            if effect is not None:
                plain = "-" if effect.plain is None else f"{effect.plain:.3g}"
                shown = (effect.measure, plain, f"{effect.given:.3g}")
            out.add_row(*(cost if i == 0 else ("",) * 4), *shown)
    return out
