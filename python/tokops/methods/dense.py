"""Plain attention over our pages."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Method

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Method):
    """Keep every token in full precision and read all of them: our cache and kernels, the model's own tokens."""

    slots: ClassVar[tuple[str, ...]] = ("store",)
