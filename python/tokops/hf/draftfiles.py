"""Trained drafters on disk: a folder with ``drafter.safetensors`` and ``drafter.json``."""

import json
import os
import pathlib
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Saved", "load_drafter", "save_drafter"]

TENSORS = "drafter.safetensors"
FACTS = "drafter.json"


@dataclass
class Saved:
    """What :func:`save_drafter` keeps.

    Attributes:
        kind: ``ppd``, ``heads`` or ``falcon``.
        model: digest of the configuration of the model that it was trained for.
        settings: what its module is built with.
        tensors: its parameters, by name.
        acceptance: ``[levels][ranks]``, the part of held-out positions at which the model's token, so many levels
            ahead, was the draft of that rank; None if it was not measured.
        training: how it was made, for people.
    """

    kind: str
    model: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    acceptance: list[list[float]] | None = None
    training: dict[str, Any] = field(default_factory=dict)


def save_drafter(folder: str | os.PathLike, saved: Saved) -> pathlib.Path:
    """Write a drafter into a folder, which is made if it is not there; returns the folder."""
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in saved.tensors.items()}, place / TENSORS)
    facts = {
        "kind": saved.kind,
        "model": saved.model,
        "settings": saved.settings,
        "acceptance": saved.acceptance,
        "training": saved.training,
    }
    (place / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return place


def load_drafter(folder: str | os.PathLike, kind: str, model: str | None = None) -> Saved:
    """Read a drafter.

    Args:
        folder: what :func:`save_drafter` wrote.
        kind: what it has to be.
        model: digest of the configuration of the model that it is for; None does not check it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another kind, or for another model.
    """
    place = pathlib.Path(folder)
    for name in (FACTS, TENSORS):
        if not (place / name).exists():
            raise FileNotFoundError(f"{place} holds no drafter: {name} is missing; see `tokops train-draft`")
    try:
        facts = json.loads((place / FACTS).read_text())
        saved = Saved(
            facts["kind"],
            facts["model"],
            facts["settings"],
            load_file(place / TENSORS),
            facts["acceptance"],
            facts["training"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place / FACTS} is damaged: {error!r}; train the drafter again") from error
    if saved.kind != kind:
        raise ValueError(f"{place} holds a drafter of kind {saved.kind!r}, expected {kind!r}")
    if model is not None and saved.model != model:
        raise ValueError(
            f"the drafter in {place} was trained for a model of configuration {saved.model}, got {model}"
        )
    return saved
