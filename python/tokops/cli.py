"""The `tokops` program: one subcommand per module of `tokops.commands`."""

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

NEEDS = ("typer", "rich")


def build() -> "typer.Typer":
    """The program with every subcommand there is."""
    import typer

    from . import commands

    app = typer.Typer(
        help="Published token-level inference methods as fast PyTorch ops and one-line model patches.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for info in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        importlib.import_module(f"{commands.__name__}.{info.name}").register(app)
    return app


def main() -> None:
    """Run the program; without the extra `hf`, say how to get it."""
    try:
        app = build()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDS:
            raise
        sys.exit(f"the tokops program needs {missing}, which the extra hf brings: pip install 'tokops[hf]'")
    app()


if __name__ == "__main__":
    main()
