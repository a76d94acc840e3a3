"""What the rows of a benchmark look like: a table, a picture, a JSON file."""

import json
import pathlib
from collections.abc import Sequence

from rich.table import Table

from .run import Row


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def table(rows: Sequence[Row], family: str = "attention") -> Table:
    """One line per case: time, bandwidth, part of the floor, opponents, bars."""
    out = Table(title=f"{family} ops: achieved over floor, and opponents (times are medians, interleaved)")
    out.add_column("case")
    for name in ("ours", "GB/s", "of floor"):
        out.add_column(name, justify="right")
    out.add_column("opponents, x our time")
    out.add_column("bars: seen >= asked")
    for row in rows:
        peers = "\n".join(f"{name} {seconds / row.seconds:.2f}x" for name, seconds in row.peers.items())
        bars = "\n".join(
            f"[{'green' if v.met else 'red'}]{'met ' if v.met else 'MISSED '}[/]{v.against} "
            f"{v.ratio:.2f} >= {v.least:.2f}"
            for v in row.verdicts
        )
        out.add_row(
            row.label,
            _time(row.seconds),
            f"{row.rate:.1f}" if row.read_bytes else "",
            f"{row.of_floor:.0%}" if row.read_bytes else "",
            peers,
            bars,
            end_section=True,
        )
    return out


def picture(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Bars of achieved over floor, ours beside the fastest opponent of the same case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.read_bytes and not row.label.startswith("topk")]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    at = range(len(rows))
    theirs = [[t for name, t in row.peers.items() if not name.startswith("our ")] for row in rows]
    best = [row.floor_seconds / min(times) if times else 0.0 for row, times in zip(rows, theirs, strict=True)]
    axes.barh([i - 0.2 for i in at], [row.of_floor for row in rows], 0.4, color="#2a6fbb", label="tokops")
    axes.barh([i + 0.2 for i in at], best, 0.4, color="#c0c0c0", label="fastest opponent")
    for i, row in enumerate(rows):
        axes.text(row.of_floor, i - 0.2, f" {row.of_floor:.0%}, {row.rate:.1f} GB/s", va="center", fontsize=8)
        for verdict in row.verdicts:
            if verdict.against == "floor":
                axes.plot([verdict.least] * 2, [i - 0.42, i + 0.02], color="black", linewidth=1.5)
    axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_yticks(list(at), [row.label for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("achieved bandwidth over the read bandwidth measured beside it (black tick: the bar)")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_json(rows: Sequence[Row], machine: dict, path: pathlib.Path) -> None:
    """All numbers, and what they were measured on."""
    numbers = {"machine": machine, "rows": [row.to_dict() for row in rows]}
    path.write_text(json.dumps(numbers, indent=1) + "\n")
