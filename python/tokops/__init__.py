"""Token-level LLM methods as native ops and one-line model patches."""

from . import attention
from ._native import load as _load

__all__ = ["attention", "methods", "patch"]
__version__ = "0.1.0"

_load()
