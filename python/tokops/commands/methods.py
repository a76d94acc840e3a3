"""`tokops methods`: what there is to patch a model with, and which methods combine."""

import dataclasses

import typer
from rich.console import Console
from rich.table import Table

from tokops.methods import catalogue
from tokops.methods.base import SLOTS, Method


def _options(method: type[Method]) -> str:
    """The constructor's arguments, as one would write them."""
    shown = []
    for field in (field for field in dataclasses.fields(method) if field.init):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default if field.default is not dataclasses.MISSING else "..."
        shown.append(field.name if required else f"{field.name}={default!r}")
    return "\n".join(shown)


def methods() -> None:
    """List the published methods, the slots they fill and their options."""
    console = Console()
    table = Table("method", "slots", "options", "what it does", show_lines=True)
    for name, method in sorted(catalogue().items()):
        summary = (method.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        table.add_row(name, "\n".join(method.slots), _options(method), " ".join(summary.split()))
    console.print(table)
    console.print("Methods whose slots differ combine: tokops.patch(model, first, second). The slots are")
    console.print(", ".join(SLOTS) + ".")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(methods)
