"""The demo's table, its sentences, its picture and its JSON file."""

import pathlib
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from . import ways as w
from .plan import Row
from .run import Result


def table(result: Result) -> Table:
    """A block per precision and batch, a line per way of decoding; fits into 80 columns."""
    out = Table(
        title=f"SmolLM2-135M after {result.plan.prompt} tokens of a real document",
        caption="x stock: against DynamicCache at the same precision and batch. KV read: MB of cache that "
        "attention reads per decoded token (DynamicCache also copies its cache every step). KL (nats) and "
        f"top-1: next token against stock, over {result.plan.stretch} held-out tokens; ppl: perplexity of "
        "the same tokens. Quality does not depend on the batch.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    out.add_column("decoding with", no_wrap=True)
    for name in ("tokens/s", "x stock", "KV read", "KL", "top-1", "ppl"):
        out.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in result.rows:
        group = f"{row.dtype}, {row.setting}"
        if group != before:
            out.add_section()
            out.add_row(f"[bold]{group}[/]")
        out.add_row(row.way, *_numbers(row))
        before = group
    return out


def _numbers(row: Row) -> tuple[str, ...]:
    speed = (f"{row.tokens_per_second:.1f}", f"{row.ratio:.2f}", f"{row.kv_bytes_read / 1e6:.1f}")
    if row.quality is None:
        return speed
    found = row.quality
    return (*speed, f"{found.kl:.1e}", f"{found.top1:.1%}", f"{found.perplexity:.4g}")


def sentences(result: Result) -> list[str]:
    """What has to be said beside the table."""
    out = [_identity(result)]
    for name, weights in result.weight_bytes.items():
        cache = result.cache_bytes[name]
        out.append(
            f"Batch 1 in {name} is bound by the weights: a step reads {weights / 1e6:.0f} MB of them and "
            f"{cache / 1e6:.0f} MB of cache, so that even attention that costs nothing could not be more "
            f"than {(weights + cache) / weights:.1f} times as fast as dense attention at full bandwidth. At "
            f"batch {result.plan.batch} the weights are read once for all rows, and the cache decides."
        )
    out.append(
        f"The document was prefilled once, by stock transformers in fp32 ({result.prefill_seconds:.0f} s); "
        "every row starts from a copy of that cache, in bf16 rows rounded to bf16."
    )
    return out + result.notes


def _identity(result: Result) -> str:
    start = f"Greedy decoding in fp32, Dense against stock, {result.steps_compared} steps: "
    different = result.difference
    if different is None:
        return start + "identical tokens."
    return start + (
        f"the first difference is at step {different.step} (token {different.expected}, got "
        f"{different.got}), where stock's two largest logits are {different.gap:.1e} apart."
    )


def picture(result: Result, path: pathlib.Path) -> None:
    """Speed against stock by setting, and quality against budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, loss) = pyplot.subplots(
        1, 2, figsize=(13, 6.5), width_ratios=(3, 2), layout="constrained"
    )
    _draw_speed(speed, result.rows)
    _draw_quality(loss, result.rows)
    figure.suptitle(f"SmolLM2-135M after {result.plan.prompt} tokens, on this machine")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


_COLOURS = {w.STOCK: "#b0b0b0", w.STATIC: "#8c8c8c", w.PACKED: "#666666", w.DENSE: "#2a6fbb"}


def _draw_speed(axes, rows: Sequence[Row]) -> None:
    groups = list(dict.fromkeys((row.dtype, row.setting) for row in rows))
    at, ticks = 0.0, []
    for group in groups:
        members = [row for row in rows if (row.dtype, row.setting) == group]
        for i, row in enumerate(members):
            axes.barh(at + i, row.ratio, 0.85, color=_COLOURS.get(row.way, "#e08a2e"))
            label = f" {row.way}: {row.ratio:.2f}x, {row.tokens_per_second:.1f} tokens/s"
            axes.text(row.ratio, at + i, label, va="center", fontsize=6)
        ticks.append((at + (len(members) - 1) / 2, "\n".join(group)))
        at += len(members) + 1
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=8)
    axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1.5 * max(row.ratio for row in rows))
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s over stock DynamicCache at the same precision and batch")


def _draw_quality(axes, rows: Sequence[Row]) -> None:
    for dtype in dict.fromkeys(row.dtype for row in rows):
        points = [
            (int(row.way.rsplit(" ", 1)[1]), row.quality)
            for row in rows
            if row.dtype == dtype and row.quality is not None and row.way.startswith("TidalDecode")
        ]
        budgets = [budget for budget, _ in points]
        (line,) = axes.plot(budgets, [q.kl for _, q in points], marker="o", label=f"KL (nats), {dtype}")
        missed = [1 - q.top1 for _, q in points]
        axes.plot(
            budgets, missed, marker="s", linestyle=":", color=line.get_color(), label=f"1 - top-1, {dtype}"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_ylim(0, 1)
    axes.set_xlabel("TidalDecode budget: tokens that a sparse layer reads")
    axes.set_title("next token against dense decoding", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
