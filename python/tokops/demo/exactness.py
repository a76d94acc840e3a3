"""Whether greedy speculation gives the tokens of plain greedy decoding, over many prompts, alone and in batches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.hf.quality import Difference, first_difference

from .run import Stage
from .speculate import DRAFTS, STOCK, name_of, reference, speculating, stock
from .texts import Text, ragged

#: Tokens may differ only where plain decoding's two largest logits are less than this apart.
MOST_GAP = 1e-4


@dataclass(frozen=True)
class Plan:
    """Sizes: prompts of shortest to longest tokens, new tokens each, sequences of a batch."""

    prompts: int = 20
    new: int = 256
    batch: int = 8
    shortest: int = 48
    longest: int = 320


FULL, QUICK = Plan(), Plan(prompts=4, new=32, batch=3, shortest=48, longest=128)


@dataclass(frozen=True)
class Finding:
    """One text decoded in one way.

    Attributes:
        way: how.
        batch: sequences that were decoded together; the last batch may be smaller.
        prompt: index of the prompt.
        kind: of text.
        length: tokens of the prompt.
        difference: the first token that is not plain decoding's, if any.
    """

    way: str
    batch: int
    prompt: int
    kind: str
    length: int
    difference: Difference | None


@dataclass
class Result:
    """All findings of one run."""

    model: str
    plan: Plan
    findings: list[Finding] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether every difference is at a gap that rounding may cross."""
        return all(f.difference is None or f.difference.gap < MOST_GAP for f in self.findings)

    def to_dict(self) -> dict:
        """Everything as plain data."""
        return {**asdict(self), "met": self.met}


def padded(texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Prompts as one batch: ids and mask ``[B, n]``, padded on the left."""
    width = max(text.ids.shape[1] for text in texts)
    ids = [pad(text.ids[0], (width - text.ids.shape[1], 0)) for text in texts]
    masks = [pad(torch.ones_like(text.ids[0]), (width - text.ids.shape[1], 0)) for text in texts]
    return torch.stack(ids), torch.stack(masks)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    stage: Stage,
    drafts: Sequence[str] = DRAFTS,
) -> Result:
    """Decode all prompts plainly one by one, and with every drafter one by one and in batches of different lengths.

    Args:
        model: an unpatched float32 model of a tested family.
        tokenizer: its tokenizer.
        plan: sizes.
        stage: begins a progress bar.
        drafts: what drafts, as :class:`~tokops.methods.Speculate` calls it.
    """
    texts = ragged(tokenizer, plan.prompts, plan.shortest, plan.longest)
    result, plain = Result(name_of(model), plan), stock(model)
    tick, expected = stage(f"{STOCK}, batch 1", plan.prompts), []
    for text in texts:
        found, gaps = reference(plain, text, plan.new)
        expected.append((found.tokens[0], gaps))
        tick(1)
    for way in speculating(model, drafts):
        for batch in (1, plan.batch):
            tick = stage(f"{way.name}, batch {batch}", plan.prompts)
            for first in range(0, plan.prompts, batch):
                together = texts[first : first + batch]
                ids, mask = padded(together)
                tokens = way(ids, plan.new, mask=mask).tokens
                for i, (text, row) in enumerate(zip(together, tokens, strict=True), first):
                    difference = first_difference(expected[i], (row, expected[i][1]))
                    found_here = Finding(way.name, batch, i, text.kind, text.ids.shape[1], difference)
                    result.findings.append(found_here)
                tick(len(together))
    return result


def table(result: Result) -> Table:
    """One line per drafter and batch, with every difference."""
    plan = result.plan
    out = Table(
        title=f"{result.model} decodes {plan.new} tokens after {plan.prompts} prompts of {plan.shortest} to "
        f"{plan.longest}",
        caption=f"identical: texts that are {STOCK} decoding's to the last token. Gap: between its two largest logits "
        f"where the texts part (bar {MOST_GAP:.0e}).",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("decoding with", "batch", "identical", "first differences"):
        out.add_column(name)
    for way, batch in dict.fromkeys((f.way, f.batch) for f in result.findings):
        group = [f for f in result.findings if (f.way, f.batch) == (way, batch)]
        apart = [
            f"prompt {f.prompt} ({f.kind}) at {f.difference.step}, gap {f.difference.gap:.1e}"
            for f in group
            if f.difference is not None
        ]
        out.add_row(way, str(batch), f"{len(group) - len(apart)} of {len(group)}", "\n".join(apart))
    return out


def sentence(result: Result) -> str:
    """The verdict."""
    apart = [f for f in result.findings if f.difference is not None]
    return (
        f"{len(apart)} of {len(result.findings)} texts differ from {STOCK} decoding; every first difference at a gap "
        f"below {MOST_GAP:.0e}: {'met' if result.met else 'MISSED'}."
    )
