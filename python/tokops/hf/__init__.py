"""transformers models through tokops: a paged cache, attention over it, and patches that undo themselves."""

from .asap_processor import ASApProcessor
from .bytelevel import ByteEnsemble, ByteLevel
from .cache import PagedCache
from .diffusion import generate_infill
from .inflight import InflightGenerator
from .model import load_smollm2
from .patching import Run, patch
from .report import Report
from .thinking import generate_guided

__all__ = [
    "ASApProcessor",
    "ByteEnsemble",
    "ByteLevel",
    "InflightGenerator",
    "PagedCache",
    "Report",
    "Run",
    "generate_guided",
    "generate_infill",
    "load_smollm2",
    "patch",
]
