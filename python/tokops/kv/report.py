"""The table, the sentences, the picture and the JSON file of `tokops kv`."""

import json
import pathlib
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tokops.kvcache.scaling import predict_qid

from .plan import Row
from .run import Result

_COLUMNS = ("bytes/token", "of full", "ppl", "KL", "KL predicted", "top-1", "needles", "tokens/s", "x Dense")
#: Parameters without embeddings and training tokens of models for which the law of weights can be told.
_TRAINED = {"SmolLM2-135M-Instruct": (106e6, 2e12)}


def table(result: Result) -> Table:
    """One line per store."""
    plan = result.plan
    out = Table(
        title=f"cache stores on {result.model} after {plan.tokens} tokens",
        caption="bytes/token: all layers, with scales, zeros and tables. KL (nats) and top-1: next token against "
        f"Dense over the last {plan.stretch} tokens, {plan.chunk} a forward; ppl: perplexity of the same tokens. "
        "KL predicted: by the scaling curve, not measured. x Dense: decode steps timed in turn.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    out.add_column("store", no_wrap=False)
    for name in _COLUMNS:
        out.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        if row.refused is None:
            out.add_row(row.label, *_numbers(row))
        else:
            out.add_row(f"{row.label}\n[red]cannot run: {row.refused}[/]")
    return out


def _numbers(row: Row) -> tuple[str, ...]:
    found, size, full = row.quality, row.bytes_per_token, row.kv_bytes_full
    assert found is not None and size is not None and row.kv_bytes is not None and full is not None
    return (
        f"{size:,.0f}",
        f"{row.kv_bytes / full:.1%}",
        f"{found.perplexity:.4g}",
        f"{found.kl:.1e}",
        "" if row.predicted_kl is None else f"{row.predicted_kl:.1e}",
        f"{found.top1:.1%}",
        "" if row.needle is None else f"{row.needle.found}/{row.needle.asked}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
    )


def sentences(result: Result) -> list[str]:
    """What has to be said beside the table."""
    out = []
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
    figure, (loss, needle) = pyplot.subplots(
        1, 2, figsize=(13, 6), width_ratios=(3, 2), layout="constrained"
    )
    _draw_loss(loss, rows)
    _draw_needles(needle, [row for row in rows if row.needle is not None])
    figure.suptitle(f"memory and quality of cache stores, {result.model} after {result.plan.tokens} tokens")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _kind(row: Row) -> str:
    """The storing method of a label such as ``TidalDecode(budget=256) + MiKV``."""
    return row.label.rsplit("+", 1)[-1].strip().partition("(")[0]


def frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both bytes and KL, by bytes."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.bytes_per_token or 0, r.quality.kl if r.quality else 0)):
        if row.quality is not None and (not best or row.quality.kl < best[-1].quality.kl):  # type: ignore[union-attr]
            best.append(row)
    return best


def _draw_loss(axes, rows: Sequence[Row]) -> None:
    for row in rows:
        x, y = row.bytes_per_token, row.quality.kl  # type: ignore[union-attr]
        marker = _MARKERS.get(_kind(row), "D")
        (line,) = axes.plot([x], [y], marker=marker, linestyle="none", markersize=7)
        axes.annotate(row.label, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=6)
        if row.predicted_kl is not None:
            axes.plot([x], [row.predicted_kl], marker="_", color=line.get_color(), markersize=12)
    best = frontier(rows)
    xs, ys = [row.bytes_per_token for row in best], [row.quality.kl for row in best if row.quality]
    axes.step(xs, ys, where="post", color="#888888", linewidth=0.8, linestyle="--", label="frontier")
    axes.plot([], [], marker="_", color="#444444", linestyle="none", label="predicted by the scaling curve")
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=1e-5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("bytes per token, all layers, metadata included")
    axes.set_ylabel("KL to Dense, nats")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_needles(axes, rows: Sequence[Row]) -> None:
    for row in rows:
        x, y = row.bytes_per_token, row.needle.accuracy  # type: ignore[union-attr]
        axes.plot([x], [y], marker=_MARKERS.get(_kind(row), "D"), linestyle="none", markersize=7)
        axes.annotate(row.label, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=6)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("bytes per token")
    axes.set_ylabel("needles found")
    axes.grid(alpha=0.3)


def write_json(result: Result, machine: dict, path: pathlib.Path) -> None:
    """All numbers, and what they were measured on."""
    path.write_text(json.dumps({"machine": machine, **result.to_dict()}, indent=1) + "\n")
