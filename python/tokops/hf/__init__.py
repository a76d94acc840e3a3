"""transformers models through tokops: a paged cache, attention over it, and patches that undo themselves."""

from .cache import PagedCache
from .model import load_smollm2
from .patching import Run, patch
from .report import Report

__all__ = ["PagedCache", "Report", "Run", "load_smollm2", "patch"]
