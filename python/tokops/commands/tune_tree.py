"""`tokops tune-tree`: how long a model takes to verify draft trees on this machine, and how large they should be."""

import json
import pathlib
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .calibrate import load

NODES = "1,2,3,4,6,8,12,16,24,32,48,64,96,128,192,256"
CONTEXTS = "256,1024,4096,16384"
#: What the choice is printed for where no table is given: one row of ranks for all of eight levels.
ACCEPTANCE = [[0.6, 0.2, 0.08, 0.04, 0.02]] * 8


def numbers(option: str, text: str, least: int, most: int | None = None) -> list[int]:
    """Ascending whole numbers out of a list with commas.

    Raises:
        typer.BadParameter: not such a list, or one that does not begin at ``least`` or exceeds ``most``.
    """
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"{option} must be numbers with commas between, got {text!r}") from error
    if found[0] < least or (most is not None and found[-1] > most):
        limit = f"{least} or more" if most is None else f"{least}..{most}"
        raise typer.BadParameter(f"{option} must be {limit}, got {text!r}")
    return found


def read_acceptance(path: pathlib.Path | None):
    """An acceptance table ``[D, K]`` or ``[K]`` out of a JSON file; the built-in one for None.

    Raises:
        typer.BadParameter: the file does not hold such a table.
    """
    from tokops.speculative import best_first_tree

    if path is None:
        return ACCEPTANCE
    try:
        table = json.loads(path.read_text())
        best_first_tree(table, 1)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(f"--acceptance {path} holds no acceptance table: {error}") from error
    return table


def fitting(model, contexts: list[int], most_nodes: int, given: bool) -> list[int]:
    """The contexts that a model has positions for; where they were asked for, all must fit.

    Raises:
        typer.BadParameter: one that was asked for does not fit, or none does.
    """
    room = model.config.max_position_embeddings - most_nodes
    fit = [context for context in contexts if context <= room]
    if not fit or (given and len(fit) < len(contexts)):
        raise typer.BadParameter(
            f"--context must be at most {room}: the model has {model.config.max_position_embeddings} positions and "
            f"--nodes goes up to {most_nodes}"
        )
    return fit


def times(table) -> Table:
    """Milliseconds by size and context, never falling with the size."""
    out = Table(title="ms to verify n tokens per sequence")
    for name in ("n", *(f"context {context}" for context in table.contexts)):
        out.add_column(name, justify="right")
    rows = [table.row(context) for context in table.contexts]
    for index, nodes in enumerate(table.sizes):
        out.add_row(str(nodes), *(f"{1e3 * row[index]:.4g}" for row in rows))
    return out


def sentence(table, context: int, acceptance, draft: float, fixed: float) -> str:
    """Which tree emits most tokens per second at a context."""
    from tokops.speculative import choose_size

    chosen = choose_size(table, acceptance, context=context, draft=draft, fixed=fixed)
    if chosen.nodes == 1:
        return f"context {context}: plain decoding (n = 1, D = 0) is fastest"
    return (
        f"context {context}: n = {chosen.nodes}, D = {chosen.depth}: {chosen.expected:.2f} tokens per step, "
        f"{chosen.speedup:.2f}x plain decoding"
    )


def tune_tree(
    model: Annotated[str, typer.Argument(help="smollm2, or what from_pretrained takes: a folder or a name.")],
    batch: Annotated[int, typer.Option(min=1, help="Sequences per forward.")] = 1,
    context: Annotated[
        str,
        typer.Option(help=f"Context lengths, with commas; what the model fits of {CONTEXTS} if left out."),
    ] = "",
    nodes: Annotated[
        str, typer.Option(help="Tree sizes to measure, root included, with commas; 1 always is among them.")
    ] = NODES,
    rounds: Annotated[int, typer.Option(min=1, help="Samples per size and context.")] = 20,
    acceptance: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="JSON [D][K] or [K]: how often a candidate is accepted, by depth and rank. Only for the choice "
            "that is printed.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    draft_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds of a sequential drafting pass; 0 for heads and lookup.")
    ] = 0.0,
    fixed_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds per step besides drafting and verifying.")
    ] = 0.0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's own number.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for the JSON; the user's cache if left out.")
    ] = None,
) -> None:
    """Measure how long a model takes to verify draft trees, keep it for this machine, and say which tree pays."""
    from tokops.bench.tree_latency import measure_latency
    from tokops.data import held_out_text
    from tokops.hf.families import check_model

    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: this torch sees no GPU")
    if threads:
        torch.set_num_threads(threads)
    sizes = sorted({1, *numbers("--nodes", nodes, 1, 256)})
    contexts = numbers("--context", context or CONTEXTS, 1)
    rates, console = read_acceptance(acceptance), Console()
    loaded, tokenizer = load(model, dtype)
    try:
        check_model(loaded)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    contexts = fitting(loaded, contexts, sizes[-1], bool(context))
    ids = tokenizer(held_out_text(), return_tensors="pt").input_ids[0]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("verifying", total=len(contexts) * rounds)
        table = measure_latency(
            loaded.to(device),
            ids,
            sizes=sizes,
            contexts=contexts,
            batch=batch,
            rounds=rounds,
            warmup=min(5, rounds),
            tick=lambda: progress.advance(task),
        )
    path = table.save(out)
    console.print(times(table))
    whose = "the built-in acceptance table" if acceptance is None else str(acceptance)
    console.print(f"best tree by {whose}:", soft_wrap=True)
    for length in contexts:
        line = sentence(table, length, rates, draft_ms / 1e3, fixed_ms / 1e3)
        console.print(f"- {line}", markup=False, soft_wrap=True)
    console.print(f"{table.device}, {table.dtype}, batch {batch}; kept in {path}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(tune_tree)
