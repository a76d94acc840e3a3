"""`tokops bench`: what an op costs on this machine, beside its floor and its opponents."""

import itertools
import pathlib
from collections.abc import Iterable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tokops.bench import attention as attention_suite
from tokops.bench import grammar_kernels as grammar_kernels_suite
from tokops.bench import kvcache as kvcache_suite
from tokops.bench import report, run
from tokops.bench import speculative as speculative_suite
from tokops.bench.attention import Case

from .demo import stages

bench = typer.Typer(help="Measure ops beside their floors and opponents.", no_args_is_help=True)


Quick = Annotated[bool, typer.Option(help="bfloat16 only, fewer shapes, fewer samples.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own number.")]
Only = Annotated[str, typer.Option(help="Cases whose label contains this.")]
Out = Annotated[pathlib.Path | None, typer.Option(help="Folder for JSON and picture.")]


def chosen(suite, device: str, quick: bool, only: str) -> list[Case]:
    """The cases of a suite whose label contains ``only``.

    Raises:
        typer.BadParameter: there is none, or the device is unknown or absent.
    """
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: this torch sees no GPU")
    found = [case for case in suite.cases(device, quick) if only in case.label]
    if not found:
        labels = "\n  ".join(case.label for case in suite.cases(device, quick))
        raise typer.BadParameter(f"no case contains {only!r}; there are\n  {labels}")
    return found


def _measure(found: Iterable[Case], quick: bool, device: str, console: Console) -> list[run.Row]:
    rounds, rows, found = 7 if quick else 15, [], list(found)
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
    return rows


def _suite(name: str, suite, quick: bool, device: str, threads: int, only: str, out: pathlib.Path | None):
    """Measure the cases of a suite, and show and write what came out."""
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    rows = _measure(chosen(suite, device, quick, only), quick, device, console)
    facts = run.machine(device)
    console.print(report.table(rows, name))
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.write_json(rows, facts, out / f"{name}.json")
        report.picture(rows, out / f"{name}.png")
        console.print(f"wrote {out / f'{name}.json'} and {out / f'{name}.png'}")


@bench.command()
def attention(
    quick: Quick = False, device: Device = "cpu", threads: Threads = 0, only: Only = "", out: Out = None
) -> None:
    """The attention family: achieved over floor, opponents, and the bar of every case."""
    _suite("attention", attention_suite, quick, device, threads, only, out)


@bench.command()
def kvcache(
    quick: Quick = False, device: Device = "cpu", threads: Threads = 0, only: Only = "", out: Out = None
) -> None:
    """Packed caches: int8 and int4 pages beside bf16, in GB/s of packed bytes, and the writing of them."""
    _suite("kvcache", kvcache_suite, quick, device, threads, only, out)


@bench.command()
def speculative(
    quick: Quick = False, device: Device = "cpu", threads: Threads = 0, only: Only = "", out: Out = None
) -> None:
    """Speculation: trees verified, accepted rows moved, tokens drawn, drafts looked up, and the bar of every case."""
    _suite("speculative", speculative_suite, quick, device, threads, only, out)


@bench.command("grammar-kernels")
def grammar_kernels(
    quick: Quick = False, device: Device = "cpu", threads: Threads = 0, only: Only = "", out: Out = None
) -> None:
    """What is done with masks: forbidding in place beside a copy of the row and xgrammar, masked draws, filters."""
    _suite("grammar-kernels", grammar_kernels_suite, quick, device, threads, only, out)


@bench.command()
def caches(
    quick: Annotated[bool, typer.Option("--quick", help="A shorter text, fewer samples.")] = False,
    threads: Threads = 0,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    out: Out = None,
) -> None:
    """SmolLM2 over our packed caches beside transformers' quantised caches: tokens/s and quality."""
    from tokops.bench import opponent_caches
    from tokops.data import long_text
    from tokops.hf import model

    if dtype not in ("fp32", "bf16"):
        raise typer.BadParameter(f"--dtype must be fp32 or bf16, got {dtype!r}")
    if threads:
        torch.set_num_threads(threads)
    console, plan = Console(), opponent_caches.QUICK if quick else opponent_caches.FULL
    try:
        loaded, tokenizer = model.load_smollm2({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    except model.ModelError as error:
        console.print(f"[red]{error}[/]", soft_wrap=True)
        raise typer.Exit(1) from error
    ids = tokenizer(long_text(), return_tensors="pt").input_ids[0]
    with Progress(console=console) as progress:
        rows = opponent_caches.measure(loaded, ids, plan, stages(progress))
    facts = run.machine() | {"dtype": dtype}
    console.print(opponent_caches.table(rows, plan))
    console.print(opponent_caches.verdict(rows))
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        opponent_caches.write_json(rows, plan, facts, out / "caches.json")
        console.print(f"wrote {out / 'caches.json'}")


@bench.command()
def grammar(
    path: Annotated[
        pathlib.Path,
        typer.Argument(
            help="A JSONL file or a folder of schemas, plain or with instances, or of the JSON-Schema-Test-Suite.",
            exists=True,
        ),
    ],
    engines: Annotated[
        str,
        typer.Option(help="Names with commas between; ours and the peers that are installed if left out."),
    ] = "",
    tokenizer: Annotated[
        str, typer.Option(help="llama3 (downloaded once), smollm2, or a tokenizer.json that works on bytes.")
    ] = "llama3",
    limit: Annotated[int, typer.Option(min=0, help="Schemas drawn of them; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads that an engine may use.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Processor time for one schema.")] = 20.0,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB for one schema.")] = 4.0,
    out: Out = None,
) -> None:
    """Grammar engines over schemas: what they compile, what they judge rightly, and what a mask costs."""
    from tokops.bench import grammar as protocol
    from tokops.bench import grammar_engines, grammar_items, grammar_report

    known = grammar_engines.ENGINES
    names = [name.strip() for name in engines.split(",") if name.strip()] or grammar_engines.installed()
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--engines: there are {', '.join(known)}; got {name!r}")
        if grammar_engines.version(name) is None:
            raise typer.BadParameter(f"--engines {name}: {grammar_engines.PACKAGES[name]} is not installed")
    console = Console()
    try:
        items = grammar_items.sample(grammar_items.read(path), limit, seed)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            results = protocol.run(
                items,
                names,
                vocabulary=tokenizer,
                threads=threads,
                limits=protocol.Limits(seconds, memory),
                stage=stages(progress),
            )
    except (ValueError, RuntimeError) as error:
        console.print(f"[red]{error}[/]", soft_wrap=True)
        raise typer.Exit(1) from error
    shared = grammar_report.common(results)
    console.print(grammar_report.coverage_table(results))
    console.print(grammar_report.time_table(results, None, "processor time, all that an engine compiled"))
    title = f"processor time, the {len(shared)} schemas that all of them compiled"
    console.print(grammar_report.time_table(results, shared, title))
    said = (grammar_report.bare(items), grammar_report.bars(results), grammar_report.wrong(results))
    for sentence in itertools.chain(*said):
        console.print(f"- {sentence}", soft_wrap=True)
    facts = run.machine() | {"path": str(path), "tokenizer": tokenizer, "threads": threads}
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        grammar_report.write_json(results, facts, out / "grammar.json")
        grammar_report.picture(results, out / "grammar.png")
        console.print(f"wrote {out / 'grammar.json'} and {out / 'grammar.png'}")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.add_typer(bench, name="bench")
