"""The list of stores: written as calls of methods with literal arguments, never evaluated as code."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from tokops.methods import Method, catalogue

from .eviction import Eviction

_DEFAULT = (
    "Dense",
    "QuantizedKV(bits=8)",
    "QuantizedKV(bits='fp8_e4m3')",
    "QuantizedKV(bits='fp8_e5m2')",
    "QuantizedKV(bits=(8, 4))",
    "QuantizedKV(bits=4)",
    "QuantizedKV(bits=4, key_geometry='channel')",
    "QuantizedKV(bits=3)",
    "QuantizedKV(bits=2)",
    "MiKV",
    "MiKV(low=3)",
    "MiKV(low=2)",
    "MiKV(low=2, balancer=False)",
    "Eviction(ratio=0.25)",
    "MiniCache",
    "MiniCache(guard='force')",
)
_QUICK = (
    "Dense",
    "QuantizedKV(bits=8)",
    "QuantizedKV(bits=4)",
    "QuantizedKV(bits=2)",
    "MiKV",
    "Eviction(ratio=0.25)",
    "MiniCache",
)


@dataclass(frozen=True)
class Entry:
    """A store of the list, or several methods of different slots: ``label`` as written, ``methods`` built."""

    label: str
    methods: tuple[Method, ...]


def known() -> dict[str, type[Method]]:
    """Names that a list of stores may contain: methods that decide how tokens are kept or which are read."""
    kept = {name: cls for name, cls in catalogue().items() if {"store", "select"} & set(cls.slots)}
    return {**kept, Eviction.__name__: Eviction}


def defaults(quick: bool = False) -> list[Entry]:
    """Every store there is with the settings that tell them apart."""
    names = known()
    return parse(", ".join(x for x in (_QUICK if quick else _DEFAULT) if x.partition("(")[0] in names))


def parse(text: str) -> list[Entry]:
    """Read a list such as ``Dense, QuantizedKV(bits=(8, 4)), TidalDecode(budget=256) + QuantizedKV(bits=4)``.

    Args:
        text: names of methods, each with keyword arguments that are literals or without any, apart by commas; a
            plus sign combines methods of different slots.

    Raises:
        ValueError: not such a list, an unknown name, or arguments that the method refuses.
    """
    try:
        items = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not a list of stores: {error.msg}") from error
    if not isinstance(items, ast.List) or not items.elts:
        raise ValueError(f"{text!r} is not a list of stores")
    entries = [Entry(ast.unparse(item), tuple(_methods(item))) for item in items.elts]
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{label} stands in the list twice")
    return entries


def _methods(item: ast.expr) -> Iterable[Method]:
    if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Add):
        yield from _methods(item.left)
        yield from _methods(item.right)
        return
    call, written = item, ast.unparse(item)
    if isinstance(call, ast.Name):
        call = ast.Call(call, [], [])
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{written!r} is neither the name of a method nor a call of one")
    names, name = known(), call.func.id
    if name not in names:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(sorted(names))}")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{written}: arguments must be given by keyword")
    try:
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except ValueError as error:
        raise ValueError(f"{written}: arguments must be literals") from error
    try:
        yield names[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{written}: {error}") from error
