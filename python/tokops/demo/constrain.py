"""Texts under a JSON Schema from a real model: masked token by token, and by the methods that are true to its law."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.grammar import Grammar, GrammarProcessor, Vocabulary, compile_json_schema
from tokops.grammar.constraint import MatcherConstraint
from tokops.hf import patch
from tokops.hf.contexts import twin
from tokops.methods import AWRS, SMC, ASAp, Dense, Method

from .run import Stage
from .speculate import name_of

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "minLength": 1, "maxLength": 24},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 16}, "maxItems": 2, "uniqueItems": True},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}  # fmt: skip
PROMPT = """People as JSON objects, one a line:
{"name": "Ada Lovelace", "age": 36, "city": "London", "friends": ["Mary"]}
{"age": 52, "name": "Carl Gauss", "city": "Goettingen"}
"""
_PARTICLES = 4


@dataclass(frozen=True)
class Plan:
    """Sizes: texts of every way, texts decoded together, most new tokens of each."""

    texts: int = 32
    batch: int = 8
    new: int = 96


FULL, QUICK = Plan(), Plan(texts=4, batch=4, new=64)


@dataclass(frozen=True)
class Row:
    """One way of decoding.

    Attributes:
        way: its name.
        texts: how many were written.
        valid: share of them that are complete and valid.
        log_probability: mean, over the valid ones, of what the model without a constraint says of a text, in nats;
            None where there is none.
        tokens_per_second: of all rows of all forwards, the prompt's among them.
        checks: how often the constraint was asked per token; None where nothing counts it.
    """

    way: str
    texts: int
    valid: float
    log_probability: float | None
    tokens_per_second: float
    checks: float | None


@dataclass
class Result:
    """All numbers of one run; ``log_z`` are the estimates that SMC gives of the chance of a valid text."""

    model: str
    plan: Plan
    rows: list[Row] = field(default_factory=list)
    log_z: list[float] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Written:
    """What one call of ``generate`` gave: new tokens of its texts, how many were drawn in all, checks, log_z."""

    texts: list[list[int]]
    drawn: int
    checks: int | None = None
    log_z: tuple[float, ...] = ()


def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, stage: Stage) -> Result:
    """Write texts in every way.

    Args:
        model: an unpatched model of a tested family.
        tokenizer: its tokenizer, over bytes.
        plan: sizes.
        stage: begins a progress bar.
    """
    vocabulary = Vocabulary.from_transformers(tokenizer, width=model.config.vocab_size)
    grammar = compile_json_schema(SCHEMA, vocabulary, whitespace="space")
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    result = Result(name_of(model), plan)
    for name, write in _ways(model, grammar, prompt, plan).items():
        tick = stage(name, plan.texts)
        texts: list[list[int]] = []
        drawn, checks, counted, seconds, seed = 0, 0, False, 0.0, 0
        while len(texts) < plan.texts:
            begin = time.perf_counter()
            written = write(seed)
            seconds += time.perf_counter() - begin
            seed += 1
            texts += written.texts
            drawn += written.drawn
            if written.checks is not None:
                counted, checks = True, checks + written.checks
            result.log_z += written.log_z
            tick(len(written.texts))
        valid = [text for text in texts if _valid(grammar, text)]
        known = [_log_probability(model, prompt, text) for text in valid]
        result.rows.append(
            Row(
                name,
                len(texts),
                len(valid) / len(texts),
                sum(known) / len(known) if known else None,
                drawn / seconds,
                checks / drawn if counted else None,
            )
        )
    return result


def _ways(
    model: PreTrainedModel, grammar: Grammar, prompt: Tensor, plan: Plan
) -> Mapping[str, Callable[[int], Written]]:
    constraint = MatcherConstraint(grammar)
    eos = set(grammar.vocabulary.eos_ids)

    def way(method: Method, rows: int, processor: bool = False) -> Callable[[int], Any]:
        decoding = twin(model)
        patch(decoding, method)
        ids = prompt.expand(rows, -1)

        def generate(seed: int) -> Any:
            torch.manual_seed(seed)
            return decoding.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=plan.new,
                pad_token_id=min(eos),
                eos_token_id=sorted(eos),
                return_dict_in_generate=True,
                **({"logits_processor": [GrammarProcessor(grammar)]} if processor else {}),
                **({"seed": seed} if method.loop else {}),
            )

        return generate

    def texts_of(sequences: Tensor) -> list[list[int]]:
        found = []
        for row in sequences[:, prompt.shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in eos), len(row) - 1)
            found.append(row[: end + 1])
        return found

    def plainly(generate: Callable[[int], Any]) -> Callable[[int], Written]:
        def write(seed: int) -> Written:
            out = generate(seed)
            texts = texts_of(out.sequences)
            checks = getattr(out, "checks", None)
            if checks is not None:  # by text, or by text and token
                checks = sum(sum(x) if isinstance(x, list) else int(x) for x in checks)
            return Written(texts, sum(map(len, texts)), checks)

        return write

    def by_particles(generate: Callable[[int], Any]) -> Callable[[int], Written]:
        def write(seed: int) -> Written:
            out = generate(seed)
            texts = texts_of(out.sequences)
            chosen = [texts[b * _PARTICLES + int(p)] for b, p in enumerate(out.chosen)]
            return Written(chosen, int(out.drawn.sum()), int(out.checks.sum()), tuple(out.log_z.tolist()))

        return write

    rows = plan.batch
    asking = AWRS(constraint, use_masks=False, max_rejects=256)
    return {
        "no constraint": plainly(way(Dense(), rows)),
        "GrammarProcessor": plainly(way(Dense(), rows, processor=True)),
        "AWRS, asking": plainly(way(asking, rows)),
        "AWRS, masks": plainly(way(AWRS(constraint), rows)),
        f"SMC, {_PARTICLES} particles": by_particles(
            way(SMC(AWRS(constraint), particles=_PARTICLES), max(1, rows // _PARTICLES))
        ),
        "ASAp": plainly(way(ASAp(constraint), rows)),
    }


def _valid(grammar: Grammar, text: list[int]) -> bool:
    matcher = grammar.matcher()
    return all(matcher.accept(token) for token in text) and matcher.is_done()


def _log_probability(model: PreTrainedModel, prompt: Tensor, text: list[int]) -> float:
    tokens = torch.tensor([text])
    ids = torch.cat([prompt, tokens], 1)
    with torch.inference_mode():
        logits = model(ids).logits[0, prompt.shape[1] - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(1, tokens.T).sum())


def table(result: Result) -> Table:
    """A line per way."""
    out = Table(
        title=f"{result.model} writes objects of a JSON Schema, sampled at temperature 1",
        caption="valid: complete within the tokens allowed, and of the schema. ln p: mean of the valid texts under the "
        "model without a constraint. checks: of the constraint per drawn token.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    out.add_column("decoding with", no_wrap=True)
    for name in ("texts", "valid", "ln p", "tokens/s", "checks"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        out.add_row(
            row.way,
            str(row.texts),
            f"{row.valid:.0%}",
            "-" if row.log_probability is None else f"{row.log_probability:.1f}",
            f"{row.tokens_per_second:.0f}",
            "-" if row.checks is None else f"{row.checks:.1f}",
        )
    return out


def sentence(result: Result) -> str:
    """What SMC says of the model by itself."""
    mean = torch.tensor(result.log_z, dtype=torch.float64).exp().mean()
    return f"- SMC estimates that {float(mean):.2%} of the model's own texts are valid within {result.plan.new} tokens"
