"""`tokops calibrate`: find and keep the layer at which TidalDecode selects again, for a model."""

import pathlib
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cut(ids: Tensor, prompts: int, tokens: int) -> list[Tensor]:
    """Prompts ``[1, tokens]`` that begin at even distances in a text ``[n]``; they overlap where it is short.

    Raises:
        typer.BadParameter: the text is shorter than one prompt.
    """
    room = len(ids) - tokens
    if room < 0:
        raise typer.BadParameter(
            f"the text has {len(ids)} tokens, a prompt needs {tokens}: add --text, or --tokens"
        )
    starts = [round(i * room / max(prompts - 1, 1)) for i in range(prompts)]
    return [ids[start : start + tokens][None] for start in dict.fromkeys(starts)]


def load(name: str, dtype: str):
    """A model and its tokenizer: `smollm2`, or whatever `from_pretrained` takes."""
    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if name == "smollm2":
        from tokops.hf.model import ModelError, load_smollm2

        try:
            model, tokenizer = load_smollm2(DTYPES[dtype])
        except ModelError as error:
            raise typer.BadParameter(str(error)) from error
        model.config._name_or_path = "SmolLM2-135M-Instruct"  # what the record is called
        return model, tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=DTYPES[dtype])
        return model.eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error


def _read(files: list[pathlib.Path]) -> str:
    from tokops.data import held_out_text

    return "\n\n".join(path.read_text(encoding="utf-8") for path in files) if files else held_out_text()


def show(record: dict) -> Table:
    """Every layer that could select again: its recall, and for the best ones the KL of the sparse model."""
    out = Table(title="selecting again at a layer")
    for name in ("layer", f"recall ({record['metric']})", "KL to dense, nats", ""):
        out.add_column(name, justify="right")
    for layer, recall in record["recall"].items():
        kl = record["kl"].get(layer)
        chosen = "chosen" if int(layer) in record["reselect_layers"] else ""
        out.add_row(layer, f"{recall:.4f}", "" if kl is None else f"{kl:.5f}", chosen)
    return out


def calibrate(
    model: Annotated[str, typer.Argument(help="smollm2, or what from_pretrained takes: a folder or a name.")],
    text: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            help="Text file, repeatable; a novel that comes with tokops if left out.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts cut out of the text.")] = 32,
    tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt; choose them near deployment.")
    ] = 2048,
    steps: Annotated[int, typer.Option(min=1, help="Tokens decoded at the end of every prompt.")] = 8,
    budget: Annotated[int, typer.Option(min=1, help="TidalDecode's budget.")] = 256,
    candidates: Annotated[int, typer.Option(min=0, help="Layers of best recall that are run.")] = 4,
    metric: Annotated[
        str, typer.Option(help="mass (softmax mass on the chosen tokens) or overlap.")
    ] = "mass",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for the JSON; the user's cache if left out.")
    ] = None,
) -> None:
    """Find the layer at which TidalDecode selects again, and keep it where TidalDecode looks it up."""
    from tokops.hf import calibrate as calibration

    if metric not in ("mass", "overlap"):
        raise typer.BadParameter(f"--metric must be mass or overlap, got {metric!r}")
    console = Console()
    loaded, tokenizer = load(model, dtype)
    parts = cut(tokenizer(_read(text or []), return_tensors="pt").input_ids[0], prompts, tokens)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if tokens - steps <= budget:
        least = budget + steps + 1
        raise typer.BadParameter(f"--tokens must be more than --budget and --steps together: {least} or more")
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("calibrating", total=None)
        record = calibration.calibrate(
            loaded,
            parts,
            budget=budget,
            steps=steps,
            candidates=candidates,
            metric=metric,
            folder=out,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(show(record))
    console.print(
        f"TidalDecode() selects again at layer {record['reselect_layers'][0]} of this model from now on"
    )


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(calibrate)
