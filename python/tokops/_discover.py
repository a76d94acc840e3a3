"""A family is a package of modules, each named with a leading underscore; what their __all__ lists is public."""

import importlib
import pkgutil
from types import ModuleType


def ops_of(package: str, path: list[str]) -> dict[str, object]:
    """Import every module of a family and return what they export, by name."""
    found: dict[str, object] = {}
    for module in modules_of(package, path):
        found.update({name: getattr(module, name) for name in module.__all__})
    return found


def modules_of(package: str, path: list[str]) -> list[ModuleType]:
    """The op modules of a family, in alphabetical order."""
    names = sorted(info.name for info in pkgutil.iter_modules(path))
    return [importlib.import_module(f"{package}.{name}") for name in names if name.startswith("_")]
