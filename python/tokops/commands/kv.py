"""`tokops kv`: memory, quality and speed of cache stores on a model and a text."""

import pathlib
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .calibrate import load
from .demo import stages


def kv(
    model: Annotated[
        str, typer.Argument(help="smollm2, or what from_pretrained takes: a folder or a name.")
    ] = "smollm2",
    stores: Annotated[
        str,
        typer.Option(help='Such as "QuantizedKV(bits=4), TidalDecode(budget=256) + QuantizedKV(bits=8)".'),
    ] = "",
    text: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Text file; a novel that comes with tokops if left out.", exists=True, dir_okay=False
        ),
    ] = None,
    second: Annotated[
        bool, typer.Option("--second", help="The second novel that comes with tokops.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens of the text; 0 is 4096, or 1280 with --quick.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A shorter text and fewer stores.")] = False,
    out: Annotated[pathlib.Path, typer.Option(help="Folder for JSON and picture.")] = pathlib.Path("kv-out"),
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own number.")] = 0,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
) -> None:
    """Bytes per token, perplexity, KL, needles and tokens/s of cache stores, and the frontier as a picture."""
    from tokops.bench.run import machine
    from tokops.data import held_out_text, long_text
    from tokops.hf.families import check_model
    from tokops.kv import report
    from tokops.kv.needles import SizeError
    from tokops.kv.plan import FULL, QUICK
    from tokops.kv.run import run
    from tokops.kv.stores import defaults, parse

    if threads:
        torch.set_num_threads(threads)
    begin, console, plan = time.perf_counter(), Console(), QUICK if quick else FULL
    try:
        entries = parse(stores) if stores else defaults(quick)
        plan = plan.resized(tokens) if tokens else plan
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    loaded, tokenizer = load(model, dtype)
    try:
        check_model(loaded)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    words = text.read_text(encoding="utf-8") if text else held_out_text() if second else long_text()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            result = run(loaded, tokenizer, words, entries, plan, stages(progress))
    except SizeError as error:
        raise typer.BadParameter(str(error)) from error
    facts = machine()
    out.mkdir(parents=True, exist_ok=True)
    report.write_json(result, facts, out / "kv.json")
    report.picture(result, out / "kv.png")
    console.print(report.table(result))
    for sentence in report.sentences(result):
        console.print(f"- {sentence}", markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    took = time.perf_counter() - begin
    console.print(f"wrote {out / 'kv.json'} and {out / 'kv.png'}; {took:.0f} s in all")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(kv)
