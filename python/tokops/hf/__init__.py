"""transformers models through tokops: a paged cache, attention over it, and patches that undo themselves."""

from .cache import PagedCache
from .model import load_smollm2
from .patching import Run, patch
from .thinking import generate_guided
from .report import Report

__all__ = ["PagedCache", "Report", "Run", "generate_guided", "load_smollm2", "patch"]
