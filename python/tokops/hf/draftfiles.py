"""Trained drafters on disk: a folder with ``drafter.safetensors`` and ``drafter.json``."""

import copy
import json
import os
import pathlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Saved", "load_drafter", "save_drafter", "trained_draft"]

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


_LOADED: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


def trained_draft(method: Any, model: Any, kind: type, load: Callable[[Any, Any], tuple]) -> tuple[Any, Any]:
    """What a method's ``draft`` is, and the acceptance to plan trees with.

    A folder is read once per model, until it is written anew.

    Args:
        method: see :mod:`tokops.methods`; its own ``acceptance`` comes before what the folder has.
        kind: of what is not a folder.
        load: reads a folder for a model.

    Raises:
        TypeError: ``draft`` is neither.
        ValueError: no acceptance where one is needed.
    """
    draft, known, name = method.draft, None, type(method).__name__
    if isinstance(draft, os.PathLike):
        facts = pathlib.Path(draft) / FACTS
        key = (str(facts.absolute()), facts.stat().st_mtime_ns if facts.exists() else 0)
        held = _LOADED.setdefault(model, {})
        if key not in held:
            held[key] = load(draft, model)
        draft, known = held[key]
    if not isinstance(draft, kind):
        raise TypeError(f"{name}: draft must be a folder or {kind.__name__}, got {type(draft).__name__}")
    known = known if method.acceptance is None else method.acceptance
    if known is None and method.tree is None:
        raise ValueError(f"{name}: acceptance must be given where draft brings none, got None")
    return _beside(draft, model), known


def _beside(draft: Any, model: Any) -> Any:
    """A drafter's parameters on the model's device and in its dtype; what is elsewhere is copied, not moved."""
    if isinstance(draft, Tensor):
        return draft.to(model.device, model.dtype)
    own = next(draft.parameters(), None)
    if own is None or (own.device, own.dtype) == (model.device, model.dtype):
        return draft
    return copy.deepcopy(draft).to(model.device, model.dtype)
