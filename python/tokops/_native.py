"""Op declaration, and loading of the libraries that give the declared ops their kernels."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable)

_LIBRARY = torch.library.Library("tokops", "FRAGMENT")
_DIR = pathlib.Path(__file__).parent / "lib"

#: Every declared op, name -> its reference.
declared: dict[str, Callable] = {}
#: Libraries loaded into this process, name -> path.
loaded: dict[str, str] = {}
#: Libraries not loaded, name -> the reason, for ``tokops info``.
absent: dict[str, str] = {}


def op(schema: str, tags: Sequence[torch.Tag] = ()) -> Callable[[F], F]:
    """Declare ``tokops::<name>``. The decorated function is its reference, run wherever no kernel is loaded."""

    def declare(reference: F) -> F:
        name = schema.split("(", 1)[0]
        _LIBRARY.define(schema, tags=tuple(tags))
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        declared[name] = reference
        return reference

    return declare


def load() -> None:
    """Load the CPU library, and the CUDA one where torch has CUDA. TOKOPS_REFERENCE=1 loads neither."""
    for name in ("cpu", "cuda"):
        path = _DIR / f"libtokops_{name}.so"
        if os.environ.get("TOKOPS_REFERENCE") == "1":
            absent[name] = "TOKOPS_REFERENCE=1 asks for the plain PyTorch references"
        elif name == "cuda" and torch.version.cuda is None:
            absent[name] = "this torch was built without CUDA"
        elif not path.exists():
            absent[name] = f"{path.name} was not built"
        else:
            torch.ops.load_library(path)
            loaded[name] = str(path)


def checked() -> bool:
    """Whether TOKOPS_CHECK=1 asks for index values on a CUDA device to be checked (costs a synchronisation)."""
    return os.environ.get("TOKOPS_CHECK") == "1"
