"""Latency tables of transformers models: by what they are kept."""

import os
from typing import Any

import torch

from .._records import device_name
from ..speculative import LatencyTable
from .families import shape_of


def latency_key(model: Any, batch: int = 1) -> dict[str, Any]:
    """What a latency table of a model is kept by: device, model, digest, dtype and batch.

    On a CPU the number of threads is part of the device.
    """
    shape, device = shape_of(model.config), device_name(model.device)
    if model.device.type == "cpu":
        device += f", {torch.get_num_threads()} threads"
    dtype = str(model.dtype).removeprefix("torch.")
    return {"device": device, "model": shape.name, "digest": shape.digest, "dtype": dtype, "batch": batch}


def find_latency(model: Any, batch: int = 1, folder: str | os.PathLike | None = None) -> LatencyTable | None:
    """The table that ``tokops tune-tree`` measured for a model on this device, in its dtype, at this batch size.

    Args:
        model: a transformers model.
        batch: sequences per forward.
        folder: where it was kept; None is the user's cache folder.

    Raises:
        ValueError: the file is there and is not what ``tokops tune-tree`` writes.
    """
    return LatencyTable.load(**latency_key(model, batch), folder=folder)
