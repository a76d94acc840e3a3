"""Where selection layers found by calibration are kept: one json per configuration, an entry per model name."""

import json
import os
import pathlib
import sys

from .base import ModelShape

_SHIPPED = pathlib.Path(__file__).parent.parent / "data" / "calibration"


def default_folder() -> pathlib.Path:
    """The user's cache folder for calibrations, by the platform's convention."""
    if sys.platform == "win32":
        base = pathlib.Path(os.environ.get("LOCALAPPDATA", pathlib.Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Caches"
    else:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return base / "tokops" / "calibration"


def load(shape: ModelShape, folder: str | os.PathLike | None = None) -> dict | None:
    """The record of a model: by name and configuration, or the only one of its configuration.

    Args:
        folder: where to look; None is the user's cache folder, then what tokops ships.

    Raises:
        ValueError: the file is there and is not what :func:`save` writes.
    """
    folders = [pathlib.Path(folder)] if folder is not None else [default_folder(), _SHIPPED]
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
    place = default_folder() if folder is None else pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{shape.digest}.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    records[shape.name] = record
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    partial.replace(path)
    return path
