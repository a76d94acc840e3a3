"""`tokops demo`: a real model decodes after a real document, with stock transformers and with tokops."""

import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def stages(progress: Progress) -> Callable[[str, int], Callable[[int], None]]:
    """Begins a bar; the function that it returns advances it. Where bars cannot be drawn, a line tells."""

    def stage(name: str, total: int) -> Callable[[int], None]:
        if not progress.console.is_terminal:
            progress.console.print(f"{name} ...")
        task = progress.add_task(name, total=total)
        return lambda done: progress.advance(task, done)

    return stage


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A shorter document and fewer rows.")] = False,
    compose: Annotated[
        bool,
        typer.Option("--compose", help="Show a selection over packed stores instead: two methods at once."),
    ] = False,
    speculate: Annotated[
        bool,
        typer.Option(
            "--speculate",
            help="Show speculation instead: tokens per call and per second on four kinds of text.",
        ),
    ] = False,
    exactness: Annotated[
        bool,
        typer.Option(
            "--exactness",
            help="With --speculate: no speeds, but whether 20 prompts give the tokens of plain decoding.",
        ),
    ] = False,
    draft: Annotated[
        str,
        typer.Option(help="With --exactness: prompt_lookup or early_exit alone; early exit takes an hour."),
    ] = "",
    constrain: Annotated[
        bool,
        typer.Option(
            "--constrain", help="Show texts under a JSON Schema instead: masks, AWRS, SMC and ASAp."
        ),
    ] = False,
    hooks: Annotated[
        bool,
        typer.Option(
            "--hooks",
            help="Show what filters, CAAD, DeAL, a monitor and refusal tokens cost and do instead.",
        ),
    ] = False,
    out: Annotated[pathlib.Path, typer.Option(help="Folder for JSON and picture.")] = pathlib.Path(
        "demo-out"
    ),
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own number.")] = 0,
) -> None:
    """Decode a long document with a real model: speed, bytes read and quality, stock and tokops."""
    from tokops.bench.run import machine
    from tokops.hf.model import ModelError

    if compose + speculate + constrain + hooks > 1:
        raise typer.BadParameter(
            "--compose, --speculate, --constrain and --hooks show different things: give one of them"
        )
    if exactness and not speculate:
        raise typer.BadParameter("--exactness goes with --speculate")
    if draft and not exactness:
        raise typer.BadParameter("--draft goes with --exactness")
    chosen: list[tuple[bool, Callable]] = [
        (exactness, partial(_exactness, draft)),
        (speculate, _speculate),
        (compose, _compose),
        (constrain, _constrain),
        (hooks, _hooks),
    ]
    show = next((function for asked, function in chosen if asked), _demo)
    if threads:
        torch.set_num_threads(threads)
    begin, console = time.perf_counter(), Console()
    out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        try:
            shown, wrote = show(quick, out, stages(progress))
        except ModelError as error:
            console.print(f"[red]{error}[/]", soft_wrap=True)
            raise typer.Exit(1) from error
    for part in shown:
        console.print(part)
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    took = time.perf_counter() - begin
    console.print(f"wrote {' and '.join(map(str, wrote))}; {took:.0f} s in all")


def _demo(quick: bool, out: pathlib.Path, stage: Callable) -> tuple[list, list[pathlib.Path]]:
    """Stock and tokops: what to print, and the files that were written."""
    from tokops.bench.run import machine
    from tokops.data import long_text
    from tokops.demo import plan, report
    from tokops.demo.run import run
    from tokops.hf import model
    from tokops.kv.report import write_json

    loaded = {name: model.load_smollm2(dtype) for name, dtype in plan.DTYPES.items()}
    models, tokenizer = {name: pair[0] for name, pair in loaded.items()}, loaded["fp32"][1]
    ids = tokenizer(long_text(), return_tensors="pt").input_ids[0]
    result = run(models, ids, plan.QUICK if quick else plan.FULL, stage)
    write_json(result, machine(), out / "demo.json")
    report.picture(result, out / "demo.png")
    said = [f"- {sentence}" for sentence in report.sentences(result)]
    return [report.table(result), *said], [out / "demo.json", out / "demo.png"]


def _compose(quick: bool, out: pathlib.Path, stage: Callable) -> tuple[list, list[pathlib.Path]]:
    """A selection over stores: what to print, and the file that was written."""
    from tokops.bench.run import machine
    from tokops.data import long_text
    from tokops.demo import compose
    from tokops.hf import model
    from tokops.kv.report import write_json

    smollm2, tokenizer = model.load_smollm2(torch.float32)
    result = compose.run(smollm2, tokenizer, long_text(), compose.QUICK if quick else compose.FULL, stage)
    write_json(result, machine(), out / "compose.json")
    return [compose.table(result)], [out / "compose.json"]


def _speculate(quick: bool, out: pathlib.Path, stage: Callable) -> tuple[list, list[pathlib.Path]]:
    """Speculation on several kinds of text: what to print, and the files that were written."""
    from tokops.bench.run import machine
    from tokops.demo import speculate, speculate_report
    from tokops.hf import model

    smollm2, tokenizer = model.load_smollm2(torch.float32)
    result = speculate.run(smollm2, tokenizer, speculate.QUICK if quick else speculate.FULL, stage)
    speculate_report.write_json(result, machine(), out / "speculate.json")
    speculate_report.picture(result, out / "speculate.png")
    said = [f"- {sentence}" for sentence in speculate_report.sentences(result)]
    return [speculate_report.table(result), *said], [out / "speculate.json", out / "speculate.png"]


def _exactness(
    draft: str, quick: bool, out: pathlib.Path, stage: Callable
) -> tuple[list, list[pathlib.Path]]:
    """Tokens of speculation against plain decoding's: what to print, and the file that was written."""
    from tokops.bench.run import machine
    from tokops.demo import exactness
    from tokops.demo.speculate import DRAFTS
    from tokops.hf import model
    from tokops.kv.report import write_json

    if draft and draft not in DRAFTS:
        raise typer.BadParameter(f"--draft must be {' or '.join(DRAFTS)}, got {draft}")
    smollm2, tokenizer = model.load_smollm2(torch.float32)
    plan = exactness.QUICK if quick else exactness.FULL
    result = exactness.run(smollm2, tokenizer, plan, stage, (draft,) if draft else DRAFTS)
    write_json(result, machine(), out / "exactness.json")
    return [exactness.table(result), exactness.sentence(result)], [out / "exactness.json"]


def _constrain(quick: bool, out: pathlib.Path, stage: Callable) -> tuple[list, list[pathlib.Path]]:
    """Texts under a JSON Schema: what to print, and the file that was written."""
    from tokops.bench.run import machine
    from tokops.demo import constrain
    from tokops.hf import model
    from tokops.kv.report import write_json

    smollm2, tokenizer = model.load_smollm2(torch.float32)
    result = constrain.run(smollm2, tokenizer, constrain.QUICK if quick else constrain.FULL, stage)
    write_json(result, machine(), out / "constrain.json")
    return [constrain.table(result), constrain.sentence(result)], [out / "constrain.json"]


def _hooks(quick: bool, out: pathlib.Path, stage: Callable) -> tuple[list, list[pathlib.Path]]:
    """What constraining hooks cost and do: what to print, and the file that was written."""
    from tokops.bench.run import machine
    from tokops.demo import hooks
    from tokops.hf import model
    from tokops.kv.report import write_json

    smollm2, tokenizer = model.load_smollm2(torch.float32)
    result = hooks.run(smollm2, tokenizer, hooks.QUICK if quick else hooks.FULL, stage)
    write_json(result, machine(), out / "hooks.json")
    return [hooks.table(result)], [out / "hooks.json"]


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(demo)
