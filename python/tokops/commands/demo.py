"""`tokops demo`: a real model decodes after a real document, with stock transformers and with tokops."""

import pathlib
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def _stages(progress: Progress) -> Callable[[str, int], Callable[[int], None]]:
    """Begins a bar; the function that it returns advances it. Where bars cannot be drawn, a line tells."""

    def stage(name: str, total: int) -> Callable[[int], None]:
        if not progress.console.is_terminal:
            progress.console.print(f"{name} ...")
        task = progress.add_task(name, total=total)
        return lambda done: progress.advance(task, done)

    return stage


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A shorter document and fewer rows.")] = False,
    out: Annotated[pathlib.Path, typer.Option(help="Folder for JSON and picture.")] = pathlib.Path(
        "demo-out"
    ),
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own number.")] = 0,
) -> None:
    """Decode a long document with a real model: speed, bytes read and quality, stock and tokops."""
    from tokops.bench.run import machine
    from tokops.data import long_text
    from tokops.demo import report
    from tokops.demo.plan import DTYPES, FULL, QUICK
    from tokops.demo.run import run
    from tokops.hf.model import ModelError, load_smollm2

    if threads:
        torch.set_num_threads(threads)
    begin, console, plan = time.perf_counter(), Console(), QUICK if quick else FULL
    try:
        loaded = {name: load_smollm2(dtype) for name, dtype in DTYPES.items()}
    except ModelError as error:
        console.print(f"[red]{error}[/]", soft_wrap=True)
        raise typer.Exit(1) from error
    models, tokenizer = {name: model for name, (model, _) in loaded.items()}, loaded["fp32"][1]
    ids = tokenizer(long_text(), return_tensors="pt").input_ids[0]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        result = run(models, ids, plan, _stages(progress))
    facts = machine()
    out.mkdir(parents=True, exist_ok=True)
    report.write_json(result, facts, out / "demo.json")
    report.picture(result, out / "demo.png")
    console.print(report.table(result))
    for sentence in report.sentences(result):
        console.print(f"- {sentence}")
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    took = time.perf_counter() - begin
    console.print(f"wrote {out / 'demo.json'} and {out / 'demo.png'}; {took:.0f} s in all")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(demo)
