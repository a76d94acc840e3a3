"""`tokops kv` from model and text to rows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.hf.families import check_model
from tokops.hf.prompts import Prompt, read_prompt
from tokops.hf.quality import compare
from tokops.methods import Dense

from . import needles
from .measure import Speed, Subject, by_label, held, loss_difference, speeds
from .plan import Plan, Row
from .predict import Prediction, predict
from .stores import Entry

#: Begins a piece of work of a known size and returns the function that counts it down.
Stage = Callable[[str, int], Callable[[int], None]]
DENSE = "Dense"


@dataclass
class Result:
    """All numbers of one run.

    Attributes:
        model: its name.
        plan: sizes.
        rows: one per store, Dense first.
        prediction: of the scaling curve, None where there was too little to fit it to.
    """

    model: str
    plan: Plan
    rows: list[Row] = field(default_factory=list)
    prediction: Prediction | None = None

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return {
            "model": self.model,
            "plan": asdict(self.plan),
            "rows": [row.to_dict() for row in self.rows],
            "prediction": None if self.prediction is None else asdict(self.prediction),
        }


def with_dense(entries: Sequence[Entry]) -> list[Entry]:
    """The list with Dense at its head, which everything is compared with."""
    return [Entry(DENSE, (Dense(),)), *(x for x in entries if x.methods != (Dense(),))]


@torch.no_grad()
def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    entries: Sequence[Entry],
    plan: Plan,
    stage: Stage,
) -> Result:
    """Measure all stores of a list.

    Args:
        model: an unpatched model of a tested family.
        tokenizer: of the model.
        text: what is read.
        entries: the list.
        plan: sizes.
        stage: begins a progress bar.

    Raises:
        SizeError: a text or a model that is too short for the plan.
        TypeError, ValueError: not a transformers model of a tested family.
    """
    check_model(model)
    name = (model.config._name_or_path or model.config.model_type).rstrip("/").rsplit("/", 1)[-1]
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    _check(model, ids, plan)
    entries = with_dense(entries)
    work = _Work(model, tokenizer, plan, stage)
    work.read(ids, text)
    rows = {entry.label: work.measure(entry) for entry in entries}
    steps = work.time()
    found = [_timed(row, steps.get(row.label), steps[DENSE]) for row in rows.values()]
    measured = {row.label: row.quality.kl for row in found if row.quality is not None}
    prediction = predict(by_label(entries), measured, work.head_dim)
    if prediction is not None:
        found = [replace(row, predicted_kl=prediction.kl.get(row.label)) for row in found]
    return Result(name, plan, found, prediction)


def _check(model, ids, plan):
    if len(ids) < plan.tokens + 1:
        raise needles.SizeError(
            f"the text has {len(ids)} tokens, {plan.tokens + 1} are needed: give more text, or fewer tokens"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and plan.room > positions:
        raise needles.SizeError(
            f"the model has {positions} positions, the plan needs {plan.room}: ask for fewer tokens"
        )


def _refusal(entry: Entry, error: Exception) -> bool:
    """Whether an error is a store's word that it cannot go on here, and no fault of ours."""
    return any(str(error).startswith(type(method).__name__) for method in entry.methods)


def _timed(row: Row, speed: Speed | None, dense: Speed) -> Row:
    if speed is None:
        return row
    return replace(
        row,
        tokens_per_second=1 / speed.seconds,
        ratio=dense.seconds / speed.seconds,
        tokens_read=speed.tokens_read,
        kv_bytes_read=speed.kv_bytes_read,
    )


class _Work:
    """The text as it was read once, and the stores that were measured on it."""

    def __init__(self, model, tokenizer, plan: Plan, stage: Stage):
        self.model, self.tokenizer, self.plan, self.stage = model, tokenizer, plan, stage
        self.subjects: dict[str, Subject] = {}
        self.dense: Tensor | None = None

    def read(self, ids: Tensor, text: str) -> None:
        """Read both texts in full precision."""
        plan = self.plan
        self.stretch = ids[plan.prompt : plan.tokens + 1]
        self.prompt = self._prompt("reading the text", ids[: plan.prompt])
        self.head_dim = self.prompt.keys[0].shape[-1]
        self.haystack: needles.Haystack | None = None
        if plan.needles:
            self.haystack = needles.build(text, self.tokenizer, plan.needle_tokens, plan.needles)
            self.haystack_prompt = self._prompt("reading the needles", self.haystack.ids)

    def _prompt(self, what: str, ids: Tensor) -> Prompt:
        return read_prompt(self.model, ids, self.stage(what, self.model.config.num_hidden_layers))

    def measure(self, entry: Entry) -> Row:
        """Quality, needles and bytes of one store; its cache is kept for :meth:`time`."""
        tick = self.stage(entry.label, self.plan.stretch + self.plan.needles)
        try:
            subject = Subject.of(entry, self.model)
        except ValueError as error:
            if entry.label == DENSE:
                raise
            return Row(entry.label, refused=str(error))
        try:
            return self._measure(entry.label, subject, tick)
        except (ValueError, RuntimeError) as error:
            if not _refusal(entry, error):
                raise
            return Row(entry.label, refused=str(error))

    def _measure(self, label: str, subject: Subject, tick: Callable[[int], None]) -> Row:
        given, targets = self.stretch[:-1], self.stretch[1:]
        logits = subject.predict(self.prompt, given.to(self.model.device), self.plan, tick)
        if self.dense is None:
            self.dense = logits
        report, share = held(subject)
        found = None
        if self.haystack is not None:
            found = subject.find(self.haystack, self.haystack_prompt, self.tokenizer, tick)
        if subject.evicting is None:
            self.subjects[label] = subject
        return Row(
            label,
            methods=tuple(report.methods),
            tokens=self.plan.tokens,
            kv_bytes=report.kv_bytes * share,
            kv_bytes_allocated=None if subject.evicting else report.kv_bytes_allocated,
            kv_bytes_full=report.kv_bytes_full,
            quality=compare(self.dense, logits, targets),
            loss=loss_difference(self.dense, logits, targets),
            needle=found,
        )

    def time(self) -> dict[str, Speed]:
        """Decode steps of all stores that have one, in turn."""
        rounds = self.plan.rounds
        tick = self.stage("decode steps, in turn", rounds)
        return speeds(self.subjects, int(self.stretch[-1]), rounds, lambda: tick(1))
