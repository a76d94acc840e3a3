"""Token-level LLM methods as native ops and one-line model patches."""

from . import attention, kvcache, methods, sampling, speculative
from ._native import load as _load

__all__ = ["attention", "kvcache", "methods", "patch", "sampling", "speculative"]
__version__ = "0.1.0"

_load()


def patch(model, *methods, **options):
    """See :func:`tokops.hf.patch`. Needs transformers (``pip install 'tokops[hf]'``)."""
    try:
        from .hf import patch as patch_model
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "tokops.patch needs transformers: pip install 'tokops[hf]'", name=error.name
        ) from None
    return patch_model(model, *methods, **options)
