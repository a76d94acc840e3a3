"""The demo from model to rows."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokops.hf.contexts import Context, prefill
from tokops.hf.quality import Difference, Quality

from . import ways as w
from .measure import SharedStepper, Stepper, first_tokens, identity, qualities, speeds
from .plan import DTYPES, Plan, Row, available_memory

#: Begins a piece of work of a known size and returns the function that counts it down.
Stage = Callable[[str, int], Callable[[int], None]]


@dataclass
class Result:
    """All numbers of one run.

    Attributes:
        plan: what was asked for.
        rows: lines of the table.
        weight_bytes: bytes of weights that one decode step reads, by precision.
        cache_bytes: bytes of cache that a dense step at batch 1 reads, by precision.
        prefill_seconds: time of the one prefill, with stock transformers in fp32.
        steps_compared: greedy steps in fp32 of stock and Dense.
        difference: the first of them that differs, if any.
        notes: what was left out, and why.
    """

    plan: Plan
    rows: list[Row] = field(default_factory=list)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    cache_bytes: dict[str, int] = field(default_factory=dict)
    prefill_seconds: float = 0.0
    steps_compared: int = 0
    difference: Difference | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return asdict(self)


@torch.no_grad()
def run(
    models: Mapping[str, PreTrainedModel],
    ids: Tensor,
    plan: Plan,
    stage: Stage,
    reselect_layer: int | None = None,
) -> Result:
    """Measure everything.

    Args:
        models: the same model by precision ("fp32", "bf16"), fp32 among them.
        ids: ``[n]`` int64 tokens of the document, at least ``plan.prompt + plan.stretch + 1``.
        plan: sizes.
        stage: begins a progress bar.
        reselect_layer: of TidalDecode; None looks it up.
    """
    need = plan.prompt + plan.stretch + 1
    if len(ids) < need:
        raise ValueError(f"the document has {len(ids)} tokens, the plan needs {need}")
    result, begin = Result(plan), time.perf_counter()
    tick = stage("prefill, once, stock fp32", plan.prompt)
    context = prefill(models["fp32"], ids[None, : plan.prompt], tick=tick)
    result.prefill_seconds = time.perf_counter() - begin
    for name, model in models.items():
        part = _Precision(name, model, context.to(DTYPES[name]), plan, stage, reselect_layer, result)
        part.measure(ids[plan.prompt : need])
    return result


@dataclass
class _Precision:
    """The demo at one precision."""

    name: str
    model: PreTrainedModel
    context: Context
    plan: Plan
    stage: Stage
    reselect_layer: int | None
    result: Result

    def measure(self, stretch: Tensor) -> None:
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.result.weight_bytes[self.name] = weights
        self.result.cache_bytes[self.name] = self.context.bytes_per_token * self.context.tokens
        if self.name == "fp32":
            self._identity()
        found, plan = self._qualities(stretch), self.plan
        self._speeds(1, plan.budgets, found)
        if self._fits(_copied(plan.batch)):
            self._speeds(plan.batch, plan.batch_budgets, found)

    def _identity(self) -> None:
        stock, ours = w.stock_ways(self.model)[0], w.our_ways(self.model, ())[0]
        tick = self.stage("greedy, stock and Dense, fp32", 2 * self.plan.greedy)
        self.result.difference = identity(stock, ours, self.context, self.plan, tick)
        self.result.steps_compared = self.plan.greedy

    def _qualities(self, stretch: Tensor) -> dict[str, Quality]:
        stock, static, _ = w.stock_ways(self.model)
        others = [static, *w.our_ways(self.model, self.plan.budgets, self.reselect_layer)]
        tick = self.stage(f"quality, {self.name}", self.plan.stretch * (1 + len(others)))
        return qualities(stock, others, self.context, stretch, self.plan, tick)

    def _fits(self, setting: str) -> bool:
        """Whether the caches of a batch fit into memory; what does not is left out with a note."""
        need = 5 * self.plan.batch * self.context.bytes_per_token * self.plan.room  # one to spare
        free = available_memory()
        if free is None or need < free:
            return True
        sizes = f"needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        self.result.notes.append(f"{self.name}, {setting}, was left out: it {sizes}.")
        return False

    def _speeds(self, batch: int, budgets: Sequence[int], found: Mapping[str, Quality]) -> None:
        """Time all ways at one batch in turn, ours also over pages that the rows share, and add their rows."""
        plan, copied = self.plan, _copied(batch)
        theirs = w.stock_ways(self.model)
        first = first_tokens(self.context, batch)
        entries = [
            (copied, way, Stepper(way, way.start(self.context, plan.room, batch), first)) for way in theirs
        ]
        for setting in [copied] if batch == 1 else [copied, f"batch {batch}, shared"]:
            ours = w.our_ways(self.model, budgets, self.reselect_layer)
            cache = ours[0].start(self.context, plan.room, batch if setting == copied else 1)
            if setting != copied:
                cache.batch_repeat_interleave(batch)
            entries += [(setting, way, SharedStepper(way, cache, first)) for way in ours]
        tick = self.stage(f"{copied.split(',')[0]}, {self.name}", plan.rounds)
        steppers = {(setting, way.name): stepper for setting, way, stepper in entries}
        rates = speeds(steppers, plan, lambda: tick(1))
        reference = rates[copied, w.STOCK]
        for setting, way, _ in entries:
            rate, read = rates[setting, way.name], way.bytes_read(self.context, plan.room)
            quality = found.get(way.name) if batch == 1 else None
            self.result.rows.append(Row(self.name, setting, way.name, rate, rate / reference, read, quality))


def _copied(batch: int) -> str:
    """The setting in which every row has a cache of its own."""
    return "batch 1" if batch == 1 else f"batch {batch}, copied"
