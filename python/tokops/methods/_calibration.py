"""Where selection layers found by calibration are kept: one json per configuration, an entry per model name."""

import json
import os
import pathlib

from .._records import cache_folder, keep
from .base import ModelShape

_SHIPPED = pathlib.Path(__file__).parent.parent / "data" / "calibration"


def load(shape: ModelShape, folder: str | os.PathLike | None = None) -> dict | None:
    """The record of a model: by name and configuration, or the only one of its configuration.

    Args:
        folder: where to look; None is the user's cache folder, then what tokops ships.

    Raises:
        ValueError: the file is there and is not what :func:`save` writes.
    """
    folders = [pathlib.Path(folder)] if folder is not None else [cache_folder("calibration"), _SHIPPED]
    for place in folders:
        path = place / f"{shape.digest}.json"
        if not path.exists():
            continue
        try:
            records = json.loads(path.read_text())
            for record in records.values():
                int(record["select_layer"]), [int(layer) for layer in record["reselect_layers"]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a calibration file: {error!r}; delete it and calibrate again"
            ) from error
        if shape.name in records:
            return records[shape.name]
        if len(records) == 1:
            return next(iter(records.values()))
    return None


def save(shape: ModelShape, record: dict, folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Keep a record with at least ``select_layer`` and ``reselect_layers``; returns the file."""
    place = cache_folder("calibration") if folder is None else pathlib.Path(folder)
    return keep(place / f"{shape.digest}.json", shape.name, record)
