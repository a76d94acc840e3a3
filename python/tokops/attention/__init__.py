"""Attention over pages: decode, scores, selection of positions, and the cache writes they need."""

from .._discover import ops_of

_public = ops_of(__name__, __path__)
globals().update(_public)
__all__ = sorted(_public)
