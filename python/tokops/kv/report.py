"""The table, the sentences, the picture and the JSON file of `tokops kv`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tokops.kvcache.scaling import predict_qid

from .plan import Row
from .run import Result

_COLUMNS = ("bytes", "full", "ppl", "KL", "pred.", "top-1", "found", "tok/s", "x")
#: Parameters without embeddings and training tokens of models for which the law of weights can be told.
_TRAINED = {"SmolLM2-135M-Instruct": (106e6, 2e12)}


def table(result: Result) -> Table:
    """One line per store."""
    plan = result.plan
    out = Table(
        title=f"cache stores on {result.model} after {plan.tokens} tokens",
        caption="bytes: per token, all layers, with scales, zeros and tables; full: of full precision. ppl, KL (nats) "
        f"and top-1: next token over the last {plan.stretch} tokens, {plan.chunk} a forward, against Dense. pred.: "
        "KL by the scaling curve, not measured. found: needles. x: tokens/s over those of Dense, timed in turn.",
        box=SIMPLE_HEAD,
        padding=0,
    )
    out.add_column("store", min_width=18, overflow="fold")
    for name in _COLUMNS:
        out.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        if row.refused is None:
            out.add_row(escape(row.label), *_numbers(row))
        else:
            out.add_row(escape(row.label), "[red]cannot run[/]")
    return out


def _numbers(row: Row) -> tuple[str, ...]:
    found, size, full = row.quality, row.bytes_per_token, row.kv_bytes_full
    assert found is not None
    assert size is not None
    assert row.kv_bytes is not None
    assert full is not None
    return (
        f"{size:,.0f}",
        f"{row.kv_bytes / full:.0%}",
        f"{found.perplexity:.4g}",
        _kl(found.kl),
        "" if row.predicted_kl is None else _kl(row.predicted_kl),
        f"{found.top1:.1%}",
        "" if row.needle is None else f"{row.needle.found}/{row.needle.asked}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
    )


def _kl(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def sentences(result: Result) -> list[str]:
    """What has to be said beside the table."""
    out = [f"{row.label} cannot run: {row.refused}" for row in result.rows if row.refused is not None]
    if any(row.label.startswith("Eviction") and row.refused is None for row in result.rows):
        out.append(
            "Eviction is played as a selection over a full cache: its bytes are those of the tokens it keeps, its "
            "speed is not measured."
        )
    if any(row.needle is not None for row in result.rows):
        out.append(
            f"Needles: sentences planted into a text of {result.plan.needle_tokens} tokens; one counts as found where "
            "its own ending is likelier than those of all others."
        )
    out += _predictions(result)
    return out


def _predictions(result: Result) -> list[str]:
    out = []
    if result.prediction is not None:
        curve = result.prediction.curve
        out.append(
            f"Prediction: KL = {curve.kappa:.3g} x 2^(-{curve.gamma:.2f} bits), fitted to "
            f"{', '.join(result.prediction.fitted)}; theory has an exponent near 2 where errors are small."
        )
        out += [
            f"{label} loses {ratio:.1f} times what the curve predicts: a few outlying channels dominate, or bits so "
            "few that the curve no longer holds."
            for label, ratio in result.prediction.flagged.items()
        ]
    if result.model in _TRAINED:
        size, tokens = _TRAINED[result.model]
        losses = ", ".join(f"{predict_qid(size, tokens, bits):.2g} nats at {bits} bits" for bits in (8, 4, 3))
        out.append(
            f"Prediction for quantised weights (not caches) of a model of this size and training: {losses} "
            "(arXiv 2411.17691). It is trained on far more tokens per parameter than larger models, which makes it "
            "the worst case."
        )
    return out


_MARKERS = {"Dense": "*", "QuantizedKV": "o", "MiKV": "s", "MiniCache": "^", "Eviction": "X"}


def picture(result: Result, path: pathlib.Path) -> None:
    """KL over bytes per token, and needles over bytes per token; the frontier of the best stores is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in result.rows if row.quality is not None]
    figure, (loss, needle) = pyplot.subplots(1, 2, figsize=(14, 6), width_ratios=(3, 2), layout="constrained")
    colours = pyplot.get_cmap("tab20")
    looks = [
        {"marker": _MARKERS.get(_kind(row), "D"), "color": colours(i % 20), "linestyle": "none"}
        for i, row in enumerate(rows)
    ]
    _draw_loss(loss, rows, looks)
    _draw_needles(needle, rows, looks)
    for axes in (loss, needle):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1024:g} KiB")
        axes.set_xlabel("cache per token, all layers, metadata included")
        axes.grid(alpha=0.3)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"memory and quality of cache stores, {result.model} after {result.plan.tokens} tokens")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _kind(row: Row) -> str:
    """The storing method of a label such as ``TidalDecode(budget=256) + MiKV``."""
    return row.label.rsplit("+", 1)[-1].strip().partition("(")[0]


def frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both bytes and KL, by bytes."""
    best: list[tuple[float, Row]] = []
    scored = [(row.bytes_per_token or 0.0, row.quality.kl, row) for row in rows if row.quality is not None]
    for _, kl, row in sorted(scored, key=lambda x: x[:2]):
        if not best or kl < best[-1][0]:
            best.append((kl, row))
    return [row for _, row in best]


def _draw_loss(axes, rows: Sequence[Row], looks: Sequence[dict]) -> None:
    for row, look in zip(rows, looks, strict=True):
        axes.plot([row.bytes_per_token], [row.quality.kl], markersize=8, label=row.label, **look)  # type: ignore[union-attr]
        if row.predicted_kl is not None:
            dash = {**look, "marker": "_"}
            axes.plot([row.bytes_per_token], [row.predicted_kl], markersize=16, **dash)
    best = frontier(rows)
    xs, ys = [row.bytes_per_token for row in best], [row.quality.kl for row in best if row.quality]
    axes.step(xs, ys, where="post", color="#888888", linewidth=0.8, linestyle="--", label="frontier")
    axes.plot([], [], marker="_", color="#444444", linestyle="none", label="predicted by the curve")
    axes.set_yscale("symlog", linthresh=1e-5)
    axes.set_ylim(0, 3 * max([1e-5, *(row.quality.kl for row in rows if row.quality)]))
    axes.set_ylabel("KL to Dense, nats")


def _draw_needles(axes, rows: Sequence[Row], looks: Sequence[dict]) -> None:
    for row, look in zip(rows, looks, strict=True):
        if row.needle is not None:
            axes.plot([row.bytes_per_token], [row.needle.accuracy], markersize=8, **look)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("needles found")


def write_json(result: Any, machine: dict, path: pathlib.Path) -> None:
    """All numbers of a result, what its ``to_dict()`` gives, and what they were measured on."""
    path.write_text(json.dumps({"machine": machine, **result.to_dict()}, indent=1) + "\n")
