"""`tokops grammar`: what a JSON Schema compiles to, and where an instance fails."""

import json
import pathlib
from typing import Annotated, Any

import typer
from rich.console import Console

grammar = typer.Typer(help="Look at grammars.", no_args_is_help=True)


def _say(console: Console, message: str, style: str = "") -> None:
    console.print(message, style=style, markup=False, soft_wrap=True)


def _fail(console: Console, message: str) -> typer.Exit:
    _say(console, message, "red")
    return typer.Exit(1)


def _read(console: Console, path: pathlib.Path) -> tuple[str, Any]:
    """A JSON file, as text and as data."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, json.loads(text)
    except UnicodeDecodeError as error:
        raise _fail(console, f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise _fail(console, f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise _fail(console, f"{path} is nested too deep") from error


def _documents(console: Console, paths: list[pathlib.Path]) -> dict[str, Any]:
    """The schemas of files and folders by their ``$id``; in a folder those without one are left out."""
    found = {}
    for path in paths:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            data = _read(console, file)[1]
            uri = data.get("$id", data.get("id")) if isinstance(data, dict) else None
            if isinstance(uri, str):
                found[uri.removesuffix("#")] = data
            elif file == path:
                raise _fail(console, f"--registry {path}: the schema has no $id")
    return found


def _blame(runs: list[bytes], whitespace: str, most: int) -> str:
    """What is wrong with the white space of a text, and what would allow it."""
    said = ["only white space is at fault"]
    if any(b"\r" in run for run in runs):
        said.append("carriage returns are not allowed, write line ends as \\n")
    runs = [run.replace(b"\r", b"") for run in runs]
    longest = max(map(len, runs))
    narrow = any(run not in {"none": (b"",), "space": (b"", b" ")}.get(whitespace, (run,)) for run in runs)
    if narrow or longest > most:
        said.append(f"--whitespace any --max-whitespace {max(longest, most)} allows what is there")
    return "; ".join(said)


@grammar.command()
def check(
    schema: Annotated[pathlib.Path, typer.Argument(help="A JSON Schema.", exists=True, dir_okay=False)],
    instance: Annotated[
        pathlib.Path | None, typer.Argument(help="A JSON text to try.", exists=True, dir_okay=False)
    ] = None,
    whitespace: Annotated[str, typer.Option(help="any, space or none.")] = "any",
    max_whitespace: Annotated[
        int, typer.Option(min=0, max=60000, help="Blanks in a row, where any are allowed.")
    ] = 64,
    key_order: Annotated[str, typer.Option(help="any or schema.")] = "any",
    formats: Annotated[str, typer.Option(help="assert or annotate.")] = "assert",
    registry: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="A JSON Schema that references lead to, or a folder of them, by $id.", exists=True),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Texts drawn from the grammar.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Say whether a schema compiles and what it warns about, and where an instance fails; show texts it allows."""
    from tokops.grammar import GrammarError, Vocabulary, checking, compile_json_schema

    console = Console(highlight=False)
    for name, value, known in (
        ("whitespace", whitespace, "any space none"),
        ("key-order", key_order, "any schema"),
        ("formats", formats, "assert annotate"),
    ):
        if value not in known.split():
            raise typer.BadParameter(f"--{name} must be one of {', '.join(known.split())}, got {value!r}")
    text, data = _read(console, schema)
    try:
        compiled = compile_json_schema(
            text, Vocabulary(checking.byte_tokens(), eos_ids=[checking.END]), whitespace, key_order, formats,
            max_whitespace=max_whitespace, registry=_documents(console, registry or []),
        )  # fmt: skip
    except GrammarError as error:
        raise _fail(console, f"{schema} does not compile: {error}") from error
    _say(console, f"{schema} compiles", "green")
    for warning in compiled.warnings:
        _say(console, f"warning: {warning}", "yellow")
    failure = None
    if instance is not None:
        tried = instance.read_bytes().strip(b" \t\r\n")
        failure = checking.examine(compiled, tried)
        if failure is None:
            _say(console, f"{instance} is allowed", "green")
        else:
            _say(console, f"{instance} is not allowed: {failure}", "red")
            if runs := checking.blanks_at_fault(compiled, tried):
                _say(console, _blame(runs, whitespace, max_whitespace), "red")
    try:
        for drawn in checking.samples(compiled, samples, seed, checking.key_names(data)):
            _say(console, f"sample: {drawn}")
    except checking.DeadEnd as error:
        raise _fail(console, f"{schema} compiles, but no text was found that it allows: {error}") from error
    if failure is not None:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.add_typer(grammar, name="grammar")
