"""Quantised caches: codecs, packed pages, and the ops that write, move and read them."""

from typing import TYPE_CHECKING, Any

from .._discover import ops_of
from .codec import Codec
from .store import Decoded, Store, decode

if TYPE_CHECKING:  # type checkers do not see what is discovered

    def __getattr__(name: str) -> Any: ...


_public = {"Codec": Codec, "Decoded": Decoded, "Store": Store, "decode": decode, **ops_of(__name__, __path__)}
globals().update(_public)
__all__ = sorted(_public)
