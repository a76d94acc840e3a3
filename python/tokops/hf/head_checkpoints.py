"""Published checkpoints of heads: CAFT's and Medusa's."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .heads import Heads, HeadsConfig

__all__ = ["heads_from_state"]

_CAFT = re.compile(r"(?:auxiliary_head\.)?(\d+)\.layers\.(\d+)\.(.+)")
_CAFT_UNEMBEDDING = re.compile(r"(?:auxiliary_head\.)?(\d+)\.lm_head\.weight")
_MEDUSA = re.compile(r"(?:medusa_head\.)?(\d+)\.(\d+)\.linear\.(weight|bias)")
_MEDUSA_UNEMBEDDING = re.compile(r"(?:medusa_head\.)?(\d+)\.(\d+)\.weight")


def heads_from_state(model: Any, state: Mapping[str, Tensor], feed: str) -> Heads:
    """Heads out of a published checkpoint.

    Two layouts are known, with or without their prefix: CAFT's ``auxiliary_head.{i}.layers.{j}.*`` (residual blocks
    or decoder layers, and perhaps ``auxiliary_head.{i}.lm_head.weight``) and Medusa's ``medusa_head.{i}.{j}.linear.*``
    with ``medusa_head.{i}.{blocks}.weight`` as unembedding.

    Args:
        model: the base model.
        state: tensors by name.
        feed: see :class:`HeadsConfig`. The checkpoint does not say it, and a wrong one only shows in the acceptance:
            Medusa and CAFT's fine-tuning use ``last_post_norm``, CAFT's head-only training ``penultimate``.

    Raises:
        ValueError: a name of neither layout, missing parts, or shapes that are not the model's.
    """
    parts: dict[tuple[int, int], dict[str, Tensor]] = {}
    unembeddings: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if (found := _CAFT_UNEMBEDDING.fullmatch(name)) or (found := _MEDUSA_UNEMBEDDING.fullmatch(name)):
            unembeddings[int(found[1])] = tensor
        elif found := _CAFT.fullmatch(name):
            parts.setdefault((int(found[1]), int(found[2])), {})[found[3]] = tensor
        elif found := _MEDUSA.fullmatch(name):
            parts.setdefault((int(found[1]), int(found[2])), {})[f"linear.{found[3]}"] = tensor
        else:
            raise ValueError(f"heads_from_state: {name!r} is neither of CAFT's layout nor of Medusa's")
    n, blocks = (1 + max((key[axis] for key in parts), default=-1) for axis in (0, 1))
    missing = [(i, j) for i in range(n) for j in range(blocks) if (i, j) not in parts]
    if not parts or missing or (unembeddings and sorted(unembeddings) != list(range(n))):
        raise ValueError(
            f"heads_from_state: expected every block of every head, got blocks {sorted(parts)} and unembeddings of "
            f"heads {sorted(unembeddings)}"
        )
    arch = "linear" if "linear.weight" in parts[0, 0] else "transformer"
    config = HeadsConfig(n, arch, blocks, feed, bool(unembeddings))
    own: dict[str, Tensor] = {}
    if arch == "linear":
        for kind in ("weight", "bias"):
            rows = [[parts[i, j][f"linear.{kind}"] for j in range(blocks)] for i in range(n)]
            own[kind] = torch.stack([torch.stack(row) for row in rows])
    else:
        own = {f"layers.{i}.{j}.{k}": t for (i, j), part in parts.items() for k, t in part.items()}
    if unembeddings:
        own["unembedding"] = torch.stack([unembeddings[i] for i in range(n)])
    heads = Heads(model, config)
    try:
        heads.load_state_dict({k: t.float() for k, t in own.items()})
    except RuntimeError as error:
        raise ValueError(f"heads_from_state: not heads of this model: {error}") from error
    return heads.to(model.device, model.dtype).eval()
