"""`tokops loops`: decoding loops of our own on a real model, beside those one would write with transformers."""

import json
import pathlib
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .demo import stages


def loops(
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter answers, fewer requests, one round.")
    ] = False,
    out: Annotated[pathlib.Path, typer.Option(help="Folder for the JSON.")] = pathlib.Path("loops-out"),
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's own number.")] = 0,
) -> None:
    """CNTP, in-flight batching and SpeculativeThinking on a real model: forwards, tokens read, tokens/s."""
    from tokops.bench.run import machine
    from tokops.data import held_out_text
    from tokops.demo import loops as measured
    from tokops.hf import model

    if threads:
        torch.set_num_threads(threads)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        try:
            smollm2, tokenizer = model.load_smollm2(torch.float32)
        except model.ModelError as error:
            console.print(f"[red]{error}[/]", soft_wrap=True)
            raise typer.Exit(1) from error
        text = tokenizer(held_out_text(), return_tensors="pt").input_ids[0]
        plan = measured.QUICK if quick else measured.FULL
        rows, said = measured.run(smollm2, tokenizer, text, plan, stages(progress))
    console.print(measured.table(rows))
    for sentence in said:
        console.print(f"- {sentence}", soft_wrap=True)
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    out.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "plan": asdict(plan), "rows": [asdict(row) for row in rows], "said": said}
    (out / "loops.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"wrote {out / 'loops.json'}")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(loops)
