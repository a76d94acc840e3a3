"""Sampling of next tokens under one contract of random numbers, the same on every device and at any batch size."""

from typing import TYPE_CHECKING, Any

from .._discover import ops_of

if TYPE_CHECKING:  # type checkers do not see what is discovered

    def __getattr__(name: str) -> Any: ...


_public = ops_of(__name__, __path__)
globals().update(_public)
__all__ = sorted(_public)
