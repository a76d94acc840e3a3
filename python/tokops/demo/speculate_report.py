"""The table, the sentences, the picture and the JSON file of speculation."""

import json
import pathlib

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tokops.hf.quality import Difference

from . import speculate as s
from .exactness import MOST_GAP
from .texts import FRESH, QUOTING

#: What our prompt lookup must be over transformers' on our cache where there is something to copy, and over plain
#: decoding on our cache where there is nothing.
LEAST_COPYING, LEAST_FRESH = 1.2, 0.97


def told(difference: Difference | None) -> str:
    """A difference in a few words."""
    if difference is None:
        return "identical"
    return f"differs at {difference.step}, gap {difference.gap:.0e}"


def table(result: s.Result) -> Table:
    """A block per kind of text, a line per way of decoding; fits into 90 columns."""
    plan = result.plan
    out = Table(
        title=f"{result.model} decodes {plan.new} tokens after {plan.prompt}, greedily, batch 1",
        caption="tokens/call: per forward of the model, the prompt's among them. tokens/s: without the prompt's "
        "forward. tokens: against stock greedy decoding; where they differ, step and gap between its two largest "
        "logits there.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    out.add_column("decoding with", no_wrap=True)
    for name in ("tokens/call", "tokens/s", "x stock"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("tokens")
    before = None
    for row in result.rows:
        if row.text != before:
            out.add_section()
            out.add_row(f"[bold]{row.text}[/]")
        numbers = (f"{row.tokens_per_call:.2f}", f"{row.tokens_per_second:.1f}", f"{row.ratio:.2f}")
        out.add_row(row.way, *numbers, told(row.difference))
        before = row.text
    return out


def verdicts(result: s.Result) -> list[tuple[str, bool]]:
    """What was asked for, as sentences, and whether it is so."""
    ours, theirs = result.row(QUOTING, s.LOOKUP), result.row(QUOTING, s.DENSE_LOOKUP)
    copying = ours.tokens_per_second / theirs.tokens_per_second
    lost, plain = result.row(FRESH, s.LOOKUP), result.row(FRESH, s.DENSE)
    fresh = lost.tokens_per_second / plain.tokens_per_second
    apart = [row for row in result.rows if row.difference is not None]
    gap = max((row.difference.gap for row in apart if row.difference is not None), default=0.0)
    where = f", the gap is at most {gap:.1e} where they part" if apart else ""
    return [
        (
            f"{QUOTING}: {s.LOOKUP} is {copying:.2f} times as fast as {s.DENSE_LOOKUP} (bar {LEAST_COPYING})",
            copying >= LEAST_COPYING,
        ),
        (
            f"{QUOTING}: {ours.tokens_per_call:.2f} tokens per call, {s.DENSE_LOOKUP} {theirs.tokens_per_call:.2f} "
            "(bar: at least as many)",
            ours.tokens_per_call >= theirs.tokens_per_call,
        ),
        (
            f"{FRESH}: {s.LOOKUP} is {fresh:.2f} times as fast as {s.DENSE} (bar {LEAST_FRESH})",
            fresh >= LEAST_FRESH,
        ),
        (
            f"exactness: {len(result.rows) - len(apart)} of {len(result.rows)} runs give the tokens of {s.STOCK}"
            f"{where} (bar {MOST_GAP:.0e})",
            gap < MOST_GAP,
        ),
    ]


def sentences(result: s.Result) -> list[str]:
    """What has to be said beside the table."""
    return [f"{words}: {'met' if met else 'MISSED'}." for words, met in verdicts(result)]


_COLOURS = {
    s.STOCK: "#b0b0b0",
    s.STOCK_LOOKUP: "#8c8c8c",
    s.DENSE: "#9cc3e6",
    s.DENSE_LOOKUP: "#5b94c9",
    s.LOOKUP: "#e08a2e",
    s.EARLY_EXIT: "#f0b878",
}


def picture(result: s.Result, path: pathlib.Path) -> None:
    """Speed against stock greedy decoding, by kind of text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    texts = list(dict.fromkeys(row.text for row in result.rows))
    figure, axes = pyplot.subplots(figsize=(9, 1 + 1.6 * len(texts)), layout="constrained")
    at, ticks = 0.0, []
    for text in texts:
        members = [row for row in result.rows if row.text == text]
        for i, row in enumerate(members):
            axes.barh(at + i, row.ratio, 0.85, color=_COLOURS[row.way])
            label = f" {row.way}: {row.ratio:.2f}x, {row.tokens_per_call:.2f} tokens per call"
            axes.text(row.ratio, at + i, label, va="center", fontsize=7)
        ticks.append((at + (len(members) - 1) / 2, text))
        at += len(members) + 1
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=8)
    axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1.7 * max(row.ratio for row in result.rows))
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s over stock greedy decoding")
    figure.suptitle(f"{result.model}, {result.plan.new} tokens, on this machine")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_json(result: s.Result, machine: dict, path: pathlib.Path) -> None:
    """All numbers, the verdicts, and what they were measured on."""
    said = [{"what": words, "met": met} for words, met in verdicts(result)]
    numbers = {"machine": machine, **result.to_dict(), "verdicts": said}
    path.write_text(json.dumps(numbers, indent=1) + "\n")
