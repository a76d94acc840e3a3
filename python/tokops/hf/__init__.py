"""The Hugging Face side of tokops: the only place that imports transformers."""

from .model import load_smollm2

__all__ = ["load_smollm2"]
