"""Where what was measured on this machine is kept: JSON files in the user's cache folder, an entry per name."""

import json
import os
import pathlib
import platform
import sys

import torch


def device_name(device: torch.device | str = "cpu") -> str:
    """The name of a GPU, or of the CPU where the system tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_folder(kind: str) -> pathlib.Path:
    """The user's cache folder for one kind of record, by the platform's convention."""
    if sys.platform == "win32":
        base = pathlib.Path(os.environ.get("LOCALAPPDATA", pathlib.Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Caches"
    else:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return base / "tokops" / kind


def keep(path: pathlib.Path, name: str, record: dict) -> pathlib.Path:
    """Put a record beside those that a file holds, or in place of the one of that name; returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(path.read_text()) if path.exists() else {}
    records[name] = record
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    partial.replace(path)
    return path
