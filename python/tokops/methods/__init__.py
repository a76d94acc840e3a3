"""Published methods, one file each: a frozen dataclass of hyper-parameters and how it fills its slots."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from .base import SLOTS, LayerReader, Method, ModelShape, Selection, Step

if TYPE_CHECKING:  # type checkers do not see what is discovered

    def __getattr__(name: str) -> Any: ...


__all__ = ["SLOTS", "LayerReader", "Method", "ModelShape", "Selection", "Step"]

for _info in pkgutil.iter_modules(__path__):
    if not _info.name.startswith("_") and _info.name != "base":
        _module = importlib.import_module(f"{__name__}.{_info.name}")
        globals().update({name: getattr(_module, name) for name in _module.__all__})
        __all__ += _module.__all__


def catalogue() -> dict[str, type[Method]]:
    """Every published method, by the name it is called by."""
    found = (globals()[name] for name in __all__)
    return {
        cls.__name__: cls
        for cls in found
        if isinstance(cls, type) and issubclass(cls, Method) and cls is not Method
    }
