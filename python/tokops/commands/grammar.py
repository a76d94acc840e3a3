"""`tokops grammar`: what a JSON Schema compiles to, and where an instance fails."""

import json
import pathlib
from typing import Annotated

import typer
from rich.console import Console

grammar = typer.Typer(help="Look at grammars.", no_args_is_help=True)


@grammar.command()
def check(
    schema: Annotated[pathlib.Path, typer.Argument(help="A JSON Schema.", exists=True, dir_okay=False)],
    instance: Annotated[
        pathlib.Path | None, typer.Argument(help="A JSON text to try.", exists=True, dir_okay=False)
    ] = None,
    key_order: Annotated[str, typer.Option(help="any or schema.")] = "any",
    formats: Annotated[str, typer.Option(help="assert or annotate.")] = "assert",
    samples: Annotated[int, typer.Option(min=0, help="Texts drawn from the grammar.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Say whether a schema compiles and what it warns about, and where an instance fails; show texts it allows."""
    from tokops.grammar import GrammarError, Vocabulary, compile_json_schema
    from tokops.grammar.checking import END, byte_tokens, examine, key_names, sample

    console = Console(highlight=False)

    def fail(message: str) -> typer.Exit:
        console.print(message, style="red", markup=False, soft_wrap=True)
        return typer.Exit(1)

    for name, value, known in (
        ("key-order", key_order, "any schema"),
        ("formats", formats, "assert annotate"),
    ):
        if value not in known.split():
            raise typer.BadParameter(f"--{name} must be one of {', '.join(known.split())}, got {value!r}")
    text = schema.read_text(encoding="utf-8")
    try:
        names = key_names(json.loads(text))
    except ValueError as error:
        raise fail(f"{schema} is not JSON: {error}") from error
    try:
        compiled = compile_json_schema(
            text, Vocabulary(byte_tokens(), eos_ids=[END]), key_order=key_order, formats=formats
        )
    except GrammarError as error:
        raise fail(f"{schema} does not compile: {error}") from error
    console.print(f"{schema} compiles", style="green", markup=False, soft_wrap=True)
    for warning in compiled.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    failure = None
    if instance is not None:
        failure = examine(compiled, instance.read_bytes().strip(b" \t\r\n"))
        if failure is None:
            console.print(f"{instance} is allowed", style="green", markup=False, soft_wrap=True)
        else:
            console.print(f"{instance} is not allowed: {failure}", style="red", markup=False, soft_wrap=True)
    for number in range(samples):
        drawn = sample(compiled, seed + number, words=names)
        console.print(f"sample: {drawn}", markup=False, soft_wrap=True)
    if failure is not None:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.add_typer(grammar, name="grammar")
