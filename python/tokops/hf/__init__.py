"""transformers models through tokops: a paged cache, attention over it, and patches that undo themselves."""

from .cache import PagedCache
from .inflight import InflightGenerator
from .model import load_smollm2
from .patching import Run, patch
from .report import Report
from .thinking import generate_guided

__all__ = ["InflightGenerator", "PagedCache", "Report", "Run", "generate_guided", "load_smollm2", "patch"]
