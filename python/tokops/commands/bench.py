"""`tokops bench`: what an op costs on this machine, beside its floor and its opponents."""

import pathlib
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from tokops.bench import report, run
from tokops.bench.attention import Case, cases

bench = typer.Typer(help="Measure ops beside their floors and opponents.", no_args_is_help=True)


def chosen(device: str, quick: bool, only: str) -> list[Case]:
    """The cases whose label contains ``only``.

    Raises:
        typer.BadParameter: there is none, or the device is unknown or absent.
    """
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: this torch sees no GPU")
    found = [case for case in cases(device, quick) if only in case.label]
    if not found:
        labels = "\n  ".join(case.label for case in cases(device, quick))
        raise typer.BadParameter(f"no case contains {only!r}; there are\n  {labels}")
    return found


@bench.command()
def attention(
    quick: Annotated[bool, typer.Option(help="bfloat16 only, fewer shapes, fewer samples.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own number.")] = 0,
    only: Annotated[str, typer.Option(help="Cases whose label contains this.")] = "",
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder for JSON and picture.")] = None,
) -> None:
    """The attention family: achieved over floor, opponents, and the bar of every case."""
    if threads:
        torch.set_num_threads(threads)
    console, rounds = Console(), 7 if quick else 15
    found, rows = chosen(device, quick, only), []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(found) * rounds)
        for done, case in enumerate(found, 1):
            progress.update(task, description=case.label)
            row = run.measure(
                case,
                rounds=rounds,
                seconds=2.0 if quick else 4.0,
                device=device,
                tick=lambda: progress.advance(task),
            )
            progress.update(task, completed=done * rounds)
            rows.append(row)
    facts = run.machine(device)
    console.print(report.table(rows))
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.write_json(rows, facts, out / "attention.json")
        report.picture(rows, out / "attention.png")
        console.print(f"wrote {out / 'attention.json'} and {out / 'attention.png'}")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.add_typer(bench, name="bench")
