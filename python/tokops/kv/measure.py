"""What is measured of one store: predictions over a text, needles, bytes, and decode steps in turn with others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from tokops.bench.timing import interleaved, medians
from tokops.demo.measure import Stepper
from tokops.demo.ways import Way, our_way
from tokops.hf.prompts import Prompt
from tokops.hf.quality import teacher_forced
from tokops.hf.report import Report
from tokops.kvcache.scaling import PairedDifference, paired_bootstrap

from . import needles
from .eviction import Eviction
from .plan import Plan
from .stores import Entry

Tick = Callable[[int], None]


@dataclass
class Subject:
    """A store at work on a model of its own over the same weights.

    Attributes:
        way: the patched model.
        cache: holds the text once :meth:`predict` has run.
    """

    way: Way
    cache: Cache | None = None

    @classmethod
    def of(cls, entry: Entry, model: PreTrainedModel) -> "Subject":
        """Patch a twin of the model.

        Raises:
            ValueError: a store that cannot run on it.
        """
        return cls(our_way(model, entry.label, *entry.methods))

    @property
    def evicting(self) -> Eviction | None:
        """The eviction that is played over this cache, if any."""
        return next((m for m in self.way.run.methods if isinstance(m, Eviction)), None)

    def read(self, prompt: Prompt) -> Cache:
        """A cache that holds a prompt."""
        cache = prompt.fill(self.way.new_cache(prompt.tokens))
        if self.evicting is not None:
            self.evicting.start(prompt)
        return cache

    @torch.no_grad()
    def predict(self, prompt: Prompt, given: Tensor, plan: Plan, tick: Tick) -> Tensor:
        """Logits ``[n, V]`` after each of the given tokens ``[n]``, which follow the prompt."""
        self.cache = self.read(prompt)
        return teacher_forced(self.way.model, self.cache, given, plan.chunk, tick)

    @torch.no_grad()
    def find(
        self, haystack: needles.Haystack, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, tick: Tick
    ) -> needles.Found:
        """Ask for all needles over a cache of its own."""
        return needles.ask(self.way.model, self.read(prompt), tokenizer, haystack.needles, tick)


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target, ``[n]`` float64."""
    parts = zip(logits.split(64), targets.split(64), strict=True)
    return torch.cat([torch.nn.functional.cross_entropy(x.double(), t, reduction="none") for x, t in parts])


def loss_difference(dense: Tensor, logits: Tensor, targets: Tensor) -> PairedDifference:
    """Cross-entropy minus dense cross-entropy over the same tokens."""
    return paired_bootstrap(losses(dense, targets).numpy(), losses(logits, targets).numpy())


@dataclass(frozen=True)
class Speed:
    """Decode steps of one store: seconds of the median one, and what a step reads."""

    seconds: float
    tokens_read: float
    kv_bytes_read: float


def speeds(subjects: Mapping[str, Subject], last: int, rounds: int, tick: Callable[[], None]) -> dict[str, Speed]:
    """Time greedy decode steps of all stores in turn, each after the text that its cache holds.

    Args:
        subjects: by label, each with its cache.
        last: the token that is fed first.
        rounds: steps of each.
        tick: called after every round.
    """
    first = torch.tensor([[last]])
    steppers = {
        name: Stepper(x.way, x.cache, first.to(x.way.model.device)) for name, x in subjects.items() if x.cache
    }
    before = {name: x.way.run.report() for name, x in subjects.items()}
    taken = medians(interleaved(steppers, rounds=rounds, least=rounds, tick=tick))
    found = {}
    for name, seconds in taken.items():
        now = subjects[name].way.run.report()
        found[name] = Speed(seconds, *_read(before[name], now))
    return found


def _read(before: Report, now: Report) -> tuple[float, float]:
    """Tokens and bytes that a step has read between two reports."""
    total = now.tokens_read_per_step * now.steps
    read = (total - before.tokens_read_per_step * before.steps) / max(now.steps - before.steps, 1)
    per_token = now.kv_bytes_read_per_token * now.tokens / total if total else 0.0
    return read, read * per_token


def held(subject: Subject) -> tuple[Report, float]:
    """What the store's cache holds now: the report, and the part of its bytes that would be left.

    Eviction is played over a full cache, whose bytes say nothing of it.
    """
    share = 1.0 if subject.evicting is None else subject.evicting.kept_share()
    return subject.way.run.report(), share


def by_label(entries: Sequence[Entry]) -> dict[str, tuple]:
    """Methods of the entries by label."""
    return {entry.label: entry.methods for entry in entries}
