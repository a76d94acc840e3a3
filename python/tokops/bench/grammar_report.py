"""Tables, ratios, a picture and a JSON file of the grammar benchmark."""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from .grammar import FIRST_MASK, MASK, SHOWN, STATUSES, TIMES, Result, judge, summary, times
from .grammar_items import Item

OURS = "tokops"
#: Fastest that issue and sheets ask for, in microseconds: percentile -> bar.
BARS = {FIRST_MASK: {50: 1000.0, 95: 6000.0, 99: 20_000.0}, MASK: {50: 6.0, 95: 60.0, 99: 180.0}}
#: Lines of the coverage table that need no instances.
BARE = ("compiles, of all", "refused by name", "time-out / memory / crash")
COLOURS = {
    "exact": "#2a6fbb",
    "no instances": "#9dc3e8",
    "over": "#e0b040",
    "under": "#d06030",
    "both": "#a02020",
}
COLOURS |= {"refused": "#c0c0c0", "time-out": "#909090", "memory": "#707070", "crash": "#303030"}


def part(count: int, of: int) -> str:
    """A share in per cent."""
    return f"{100 * count / of:.1f} %" if of else "-"


def microseconds(value: float) -> str:
    """A time, with the unit that reads best."""
    return "-" if np.isnan(value) else f"{value / 1e3:.2f} ms" if value >= 1000 else f"{value:.1f} us"


def common(results: Sequence[Result]) -> set[int]:
    """The items that every engine compiled."""
    return set.intersection(*(result.compiled() for result in results))


def coverage_table(results: Sequence[Result]) -> Table:
    """One column per engine: what compiled, what was judged exactly, and the mistakes."""
    out = Table(title="coverage")
    out.add_column("")
    found = [summary(result) for result in results]
    for s in found:
        out.add_column(f"{s['engine']}\n{s['version']}", justify="right")
    rows = {
        "compiles, of all": [part(s["compiled"], s["schemas"]) for s in found],
        "exact, of all with instances": [part(s["exact"], s["with instances"]) for s in found],
        "valid instances refused": [f"{s['valid refused']} of {s['valid']}" for s in found],
        "invalid instances accepted": [f"{s['invalid accepted']} of {s['invalid']}" for s in found],
        "schemas with a valid one refused": [str(s["over"]) for s in found],
        "schemas with an invalid one accepted": [str(s["under"]) for s in found],
        "refused by name": [str(s["refused"]) for s in found],
        "time-out / memory / crash": [f"{s['time-out']} / {s['memory']} / {s['crash']}" for s in found],
        "mask and accept disagree": [str(s["disagreements"]) for s in found],
    }
    if not any(s["with instances"] for s in found):
        rows = {name: cells for name, cells in rows.items() if name in BARE}
    for name, cells in rows.items():
        out.add_row(name, *cells)
    return out


def time_table(results: Sequence[Result], only: set[int] | None, title: str) -> Table:
    """One column per engine: percentiles of every kind of time, and how many times ours the peers take."""
    out = Table(title=title)
    out.add_column("")
    found = [summary(result, only) for result in results]
    ours = next((s for s in found if s["engine"] == OURS), None)
    for s in found:
        out.add_column(s["engine"], justify="right")
    for name in TIMES:
        if all(np.isnan(s[name]["mean"]) for s in found):
            continue
        for q in map(str, SHOWN):
            cells = []
            for s in found:
                ratio = "" if ours is None or s is ours else f" {s[name][q] / ours[name][q]:.1f}x"
                cells.append(microseconds(s[name][q]) + ratio)
            out.add_row(f"{name} p{q}", *cells, end_section=q == str(SHOWN[-1]))
    return out


def bars(results: Sequence[Result]) -> list[str]:
    """Our figures beside what was asked of them, one sentence each."""
    ours = next((result for result in results if result.engine == OURS), None)
    if ours is None:
        return []
    s, said = summary(ours), []

    def judged(met: bool) -> str:
        return "[green]met[/]" if met else "[red]MISSED[/]"

    share, exact = s["compiled"] / s["schemas"], s["exact"] / max(s["with instances"], 1)
    said.append(f"{judged(share >= 0.97)} compiles {share:.1%}, asked >= 97 %")
    if s["with instances"]:
        said.append(f"{judged(exact >= 0.97)} exact {exact:.1%}, asked >= 97 %")
        wrong = s["over"] + s["under"]
        said.append(f"{judged(not wrong)} {wrong} compiled schemas with a wrong verdict, asked none")
    for name, asked in BARS.items():
        for q, bar in asked.items():
            seen = s[name][str(q)]
            if np.isnan(seen):
                continue
            said.append(
                f"{judged(seen <= bar)} {name} p{q} {microseconds(seen)}, asked <= {microseconds(bar)}"
            )
    return said


def wrong(results: Sequence[Result], engine: str = OURS, most: int = 20) -> list[str]:
    """Schemas that an engine compiled and judged wrongly, or did not survive."""
    said = []
    for result in results:
        if result.engine != engine:
            continue
        for item, outcome in zip(result.items, result.outcomes, strict=True):
            verdict = judge(outcome)
            if verdict in ("exact", "refused"):
                continue
            which = [
                f"valid instance {i} refused at token {one.at}"
                if one.valid
                else f"invalid instance {i} accepted"
                for i, one in enumerate(outcome.walks)
                if one.valid != one.accepted
            ]
            said.append(f"{verdict}: {item.name}: {'; '.join(which) or outcome.reason}")
    return said[:most]


def bare(items: Sequence[Item]) -> list[str]:
    """A sentence on the schemas that came without instances, where there are any."""
    count = sum(not item.tests for item in items)
    if not count:
        return []
    of = (
        f"none of the {count} schemas came"
        if count == len(items)
        else f"{count} of {len(items)} schemas came"
    )
    how = "with" if count == len(items) else "without"
    return [f"{of} {how} instances: only compiling and the first mask are measured there, and no verdicts"]


def refusals(result: Result) -> list[tuple[str, int]]:
    """The engine's reasons for refusing, by their beginnings, frequent ones first."""
    found: dict[str, int] = {}
    for outcome in result.outcomes:
        if outcome.status == "refused":
            words = " ".join(outcome.reason.split())[:60]
            found[words] = found.get(words, 0) + 1
    return sorted(found.items(), key=lambda pair: -pair[1])


def picture(results: Sequence[Result], path: pathlib.Path) -> None:
    """Coverage as stacked bars, and the times of the first mask and of masks as quantile curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    left = np.zeros(len(results))
    names = [result.engine for result in results]
    for verdict, colour in COLOURS.items():
        share = np.array([_share(result, verdict) for result in results])
        if share.any():
            axes[0].barh(names, share, left=left, color=colour, label=verdict)
            left += share
    axes[0].invert_yaxis()
    axes[0].set_xlabel("% of schemas")
    axes[0].legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axes[0].set_title("coverage (both: over and under)")
    quantiles = np.linspace(0, 100, 401)
    for place, name in ((axes[1], FIRST_MASK), (axes[2], MASK)):
        for result in results:
            taken = times(result)[name]
            if len(taken):
                place.plot(quantiles, np.percentile(taken, quantiles) / 1e3, label=result.engine)
        for q, bar in BARS[name].items():
            place.plot(q, bar, "k_", markersize=12)
        place.set_yscale("log")
        place.set_xlabel("percentile")
        place.set_ylabel("microseconds of processor time")
        place.set_title(f"{name} (black: the bars)")
        if place.get_legend_handles_labels()[0]:
            place.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _share(result: Result, verdict: str) -> float:
    pairs = zip(result.items, result.outcomes, strict=True)
    seen = [
        "no instances" if one.status == "compiled" and not item.tests else judge(one) for item, one in pairs
    ]
    return 100 * seen.count(verdict) / len(seen)


def clock_cost() -> float:
    """Nanoseconds that reading the clock adds to every time."""
    taken = []
    for _ in range(2000):
        begin = time.thread_time_ns()
        taken.append(time.thread_time_ns() - begin)
    return float(np.median(taken))


def numbers(results: Sequence[Result], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that is written: the machine, summaries over all and over what all compiled, a record per schema."""
    shared = common(results)
    records = [
        {
            "name": item.name,
            "group": item.group,
            "verdicts": {result.engine: judge(result.outcomes[i]) for result in results},
            "reasons": {r.engine: o.reason for r in results if (o := r.outcomes[i]).reason},
            "first_mask_us": {
                r.engine: o.first_mask_ns / 1e3 for r in results if (o := r.outcomes[i]).status == "compiled"
            },
        }
        for i, item in enumerate(results[0].items)
    ]
    return {
        "machine": facts | {"clock_ns": clock_cost()},
        "statuses": STATUSES,
        "all": [summary(result) for result in results],
        "compiled by all": [summary(result, shared) for result in results],
        "schemas": records,
    }


def write_json(results: Sequence[Result], facts: dict[str, Any], path: pathlib.Path) -> None:
    """All numbers, and what they were measured on."""
    path.write_text(json.dumps(numbers(results, facts), indent=1) + "\n")
