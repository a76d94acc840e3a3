"""Decoding a real model with our packed caches beside transformers' own quantised caches."""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor
from transformers import Cache, PreTrainedModel, QuantizedCache

from tokops.demo.measure import Stepper
from tokops.demo.ways import Way, our_way, stock_ways
from tokops.hf.contexts import twin
from tokops.hf.prompts import Prompt, read_prompt
from tokops.hf.quality import Quality, compare, teacher_forced
from tokops.methods import Dense, QuantizedKV

from .timing import interleaved, medians

#: Begins a piece of work of a known size and returns the function that counts it down.
Stage = Callable[[str, int], Callable[[int], None]]

#: backend -> the module it needs, and the axes that transformers' documentation gives it.
BACKENDS: dict[str, tuple[str, dict]] = {
    "quanto": ("optimum.quanto", {"axis_key": 0, "axis_value": 0}),
    "hqq": ("hqq", {"axis_key": 1, "axis_value": 1}),
}
#: As they do, it keeps the newest 128 tokens as they are, and 64 numbers share a scale.
OURS, DENSE = "QuantizedKV(bits=4, residual=128)", "Dense"
#: What ours must be over the faster of them, at no worse perplexity and KL.
LEAST = 3.0


@dataclass(frozen=True)
class Plan:
    """Sizes: tokens that are read, tokens that are scored after them, tokens per forward, timed steps."""

    prompt: int = 6912
    stretch: int = 1024
    chunk: int = 64
    rounds: int = 8


FULL, QUICK = Plan(), Plan(prompt=1792, stretch=128, rounds=4)


@dataclass(frozen=True)
class Row:
    """One way of decoding; ``missing`` says why it did not run, all else is None then."""

    label: str
    missing: str | None = None
    quality: Quality | None = None
    tokens_per_second: float | None = None
    ratio: float | None = None  # tokens/s of ours over these


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would hold it
        return False


def _opponent(model: PreTrainedModel, backend: str) -> Way:
    own = twin(model)
    axes = BACKENDS[backend][1]

    def new_cache(room: int) -> Cache:
        return QuantizedCache(backend, own.config, nbits=4, q_group_size=64, **axes)

    return Way(_label(backend), own, new_cache)


def _label(backend: str) -> str:
    return f"transformers QuantizedCache, {backend} 4 bit"


def _ways(model: PreTrainedModel) -> Iterator[Way | Row]:
    """Ours and theirs; a row for what is not installed. Dense comes first."""
    yield our_way(model, DENSE, Dense())
    yield our_way(model, OURS, QuantizedKV(bits=4, residual=128))
    yield our_way(model, "QuantizedKV(bits=4)", QuantizedKV(bits=4))
    yield our_way(model, "QuantizedKV(bits=8)", QuantizedKV(bits=8))
    yield stock_ways(model)[0]
    for backend, (module, _) in BACKENDS.items():
        if _installed(module):
            yield _opponent(model, backend)
        else:
            yield Row(_label(backend), missing=f"{module} is not installed")


def _filled(way: Way, prompt: Prompt, room: int) -> Cache:
    cache = way.new_cache(room)
    if way.run is not None:
        return prompt.fill(cache)
    for layer, (k, v) in enumerate(zip(prompt.keys, prompt.values, strict=True)):
        cache.update(k, v, layer)
    return cache


@torch.no_grad()
def measure(model: PreTrainedModel, ids: Tensor, plan: Plan, stage: Stage) -> list[Row]:
    """Decode the same text in every way: agreement with Dense, then steps in turn.

    Args:
        model: an unpatched model.
        ids: ``[n]`` int64, at least ``plan.prompt + plan.stretch + 1``.
        plan: sizes.
        stage: begins a progress bar.

    Raises:
        ValueError: too few tokens.
    """
    need = plan.prompt + plan.stretch + 1
    if len(ids) < need:
        raise ValueError(f"the text has {len(ids)} tokens, {need} are needed")
    tick = stage("reading the text", model.config.num_hidden_layers)
    prompt = read_prompt(model, ids[: plan.prompt], tick)
    given, targets = ids[plan.prompt : need - 1], ids[plan.prompt + 1 : need]
    first = ids[None, need - 1 : need]
    missing: list[Row] = []
    quality: dict[str, Quality] = {}
    steppers: dict[str, Stepper] = {}
    dense = None
    for way in _ways(model):
        if isinstance(way, Row):
            missing.append(way)
            continue
        cache = _filled(way, prompt, need + plan.rounds + 2)
        logits = teacher_forced(way.model, cache, given, plan.chunk, stage(way.name, plan.stretch))
        dense = logits if dense is None else dense
        quality[way.name] = compare(dense, logits, targets)
        steppers[way.name] = Stepper(way, cache, first)
    tick = stage("decode steps, in turn", plan.rounds)
    taken = medians(interleaved(steppers, rounds=plan.rounds, least=plan.rounds, tick=lambda: tick(1)))
    rows = [Row(name, None, quality[name], 1 / t, t / taken[OURS]) for name, t in taken.items()]
    return rows + missing


def verdict(rows: list[Row]) -> str:
    """The bar in words: how much faster ours is than the fastest quantised cache of transformers, and how close."""
    theirs = [row for row in rows if row.label.startswith("transformers") and row.quality is not None]
    ours = next(row.quality for row in rows if row.label == OURS)
    if not theirs or ours is None:
        return "No quantised cache of transformers ran: the packages it needs are not installed."
    ratio = min(row.ratio or 0.0 for row in theirs)
    better = all(
        ours.kl <= q.kl and ours.perplexity <= 1.001 * q.perplexity
        for q in (row.quality for row in theirs)
        if q is not None
    )
    speed = "met" if ratio >= LEAST else "MISSED"
    quality = "no worse in perplexity (to 0.1 %) and KL" if better else "NOT as good in perplexity or KL"
    return (
        f"{OURS} is {ratio:.2f} times as fast as the faster of them (bar {LEAST:g}, {speed}) and {quality}."
    )


def table(rows: list[Row], plan: Plan) -> Table:
    """One line per way of decoding."""
    out = Table(title=f"quantised caches, decoding after {plan.prompt + plan.stretch} tokens")
    out.add_column("cache")
    for name in ("tokens/s", "ours over it", "ppl", "KL", "top-1"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.quality is None:
            out.add_row(row.label, f"[yellow]left out: {row.missing}[/]")
            continue
        found = row.quality
        numbers = (f"{row.tokens_per_second:.1f}", f"{row.ratio:.2f}x", f"{found.perplexity:.4g}")
        out.add_row(row.label, *numbers, f"{found.kl:.1e}", f"{found.top1:.1%}")
    return out


def write_json(rows: list[Row], plan: Plan, machine: dict, path: pathlib.Path) -> None:
    """All numbers, and what they were measured on."""
    numbers = {"machine": machine, "plan": asdict(plan), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(numbers, indent=1) + "\n")
