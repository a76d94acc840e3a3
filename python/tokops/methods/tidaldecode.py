"""TidalDecode: two layers of a decoding step choose tokens, the layers after them read only those."""

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch

from ..attention import topk_positions
from . import _calibration
from ._lists import keep_always, kept_positions, rank_major_union
from .base import LayerReader, Method, ModelShape, Selection, Step

__all__ = ["TidalDecode"]

#: (family, layers, hidden size, KV heads, vocabulary) -> published reselection layer.
PUBLISHED = {
    ("llama", 32, 4096, 32, 32000): 7,  # Llama-2-7B
    ("llama", 32, 4096, 8, 128256): 13,  # Llama-3-8B, Llama-3.1-8B
    ("qwen3", 36, 4096, 8, 151936): 12,  # Qwen3-8B (LessIsMore)
    ("qwen3", 36, 2560, 8, 151936): 20,  # Qwen3-4B (LessIsMore)
}

_SCOPES = ("kv_group", "q_head", "layer")
_REDUCES = ("soft_max", "max_raw")


@dataclass(frozen=True)
class TidalDecode(Method):
    """Position-persistent sparse attention (Yang et al., ICLR 2025, arXiv 2410.05076).

    While decoding, layers 0 and 1 read everything; layer ``select_layer`` reads everything and picks the ``budget``
    positions with the largest scores; later layers read only those, until ``reselect_layer`` picks anew. Prompts are
    read densely and nothing is evicted. Where the budget covers a sequence its attention is dense. Rows of a draft
    under verification choose from their own scores, so verified tokens are those of one-by-one decoding.
    Sliding-window layers stay as they are.

    Args:
        budget: positions read per list, the current token among them (256 in the paper, 32..4096 studied).
        reselect_layer: layer that selects again (several: a tuple). None looks up what ``tokops calibrate`` found
            for this model, then what is published for its shape.
        select_layer: first layer that selects.
        dense_layers: layers that read everything and select nothing.
        scope: ``kv_group`` keeps a list per KV head (default), ``q_head`` one per query head (the paper's accuracy
            code), ``layer`` one for all heads.
        reduce: how heads that share a list agree: ``soft_max`` takes the largest softmax weight (default),
            ``max_raw`` the largest raw score.
        mode: ``tidal``, or ``lessismore`` (Yang et al., arXiv 2508.07101): one list per layer of which three quarters
            are the heads' best in rank order, the rest four first positions and the last ones.
        always_keep: (first, last) positions that every list contains. The current token always is one.
        correction_period: after so many generated tokens run them again as one dense chunk and overwrite their keys
            and values; 0 never does.
        calibration: folder with calibration files; None is the user's cache folder.

    Raises:
        ValueError: a number out of range, or options that contradict each other.
    """

    slots: ClassVar[tuple[str, ...]] = ("select",)

    budget: int = 512
    reselect_layer: int | tuple[int, ...] | None = None
    select_layer: int = 2
    dense_layers: tuple[int, ...] = (0, 1)
    scope: str | None = None
    reduce: str | None = None
    mode: str = "tidal"
    always_keep: tuple[int, int] = (0, 0)
    correction_period: int = 0
    calibration: str | os.PathLike | None = None

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"TidalDecode: {message}")

        refuse(
            self.mode not in ("tidal", "lessismore"), f"mode must be tidal or lessismore, got {self.mode!r}"
        )
        union = self.mode == "lessismore"
        scope = self.scope or ("layer" if union else "kv_group")
        refuse(scope not in _SCOPES, f"scope must be one of {', '.join(_SCOPES)}, got {scope!r}")
        refuse(union and scope != "layer", f"lessismore has one list per layer, got scope={scope!r}")
        refuse(
            self.reduce is not None and (union or scope == "q_head"),
            f"reduce={self.reduce!r} has no meaning where heads do not share scores",
        )
        reduce = self.reduce or (None if union or scope == "q_head" else "soft_max")
        refuse(
            reduce not in (*_REDUCES, None), f"reduce must be one of {', '.join(_REDUCES)}, got {reduce!r}"
        )
        refuse(self.budget < 1, f"budget must be at least 1, got {self.budget}")
        keep = tuple(self.always_keep)
        refuse(
            len(keep) != 2 or min(keep) < 0, f"always_keep must be two numbers >= 0, got {self.always_keep}"
        )
        refuse(union and keep != (0, 0), "lessismore decides itself what is always kept")
        refuse(
            not union and keep[0] + max(keep[1], 1) > self.budget,
            f"always_keep {keep} and the current token do not fit into the budget of {self.budget}",
        )
        refuse(union and self.budget < 4, f"lessismore needs a budget of at least 4, got {self.budget}")
        refuse(self.correction_period < 0, f"correction_period must be >= 0, got {self.correction_period}")
        dense = tuple(self.dense_layers)
        refuse(
            any(layer in dense for layer in self.selecting_layers),
            f"a layer cannot both select and be one of dense_layers {dense}",
        )
        chain = self.selecting_layers
        refuse(
            chain[0] < 0 or any(a >= b for a, b in pairwise(chain)),
            f"selecting layers must ascend from 0 up, got {chain}",
        )
        for name, value in (
            ("scope", scope),
            ("reduce", reduce),
            ("always_keep", keep),
            ("dense_layers", dense),
        ):
            object.__setattr__(self, name, value)

    @property
    def selecting_layers(self) -> tuple[int, ...]:
        """Layers that select, as far as they are known."""
        again = self.reselect_layer
        again = () if again is None else (again,) if isinstance(again, int) else tuple(again)
        return (self.select_layer, *again)

    def resolve(self, shape: ModelShape) -> "TidalDecode":
        method = (
            self
            if self.reselect_layer is not None
            else replace(self, reselect_layer=self._known_layer(shape))
        )
        for layer in method.selecting_layers:
            if layer >= shape.layers:
                raise ValueError(
                    f"TidalDecode: layer {layer} cannot select, {shape.name or 'the model'} has "
                    f"{shape.layers} layers"
                )
            if layer not in shape.full_layers:
                choice = ", ".join(map(str, shape.full_layers)) or "none"
                raise ValueError(
                    f"TidalDecode: layer {layer} has a sliding window and cannot select; "
                    f"full-attention layers: {choice}"
                )
        return method

    def _known_layer(self, shape):
        record = _calibration.load(shape, self.calibration)
        if record is not None and record["select_layer"] == self.select_layer:
            layers = record["reselect_layers"]
            return layers[0] if len(layers) == 1 else tuple(layers)
        key = (shape.family, shape.layers, shape.hidden, shape.kv_heads, shape.vocab)
        if self.select_layer == 2 and key in PUBLISHED:
            return PUBLISHED[key]
        raise ValueError(
            f"TidalDecode: no reselection layer is known for {shape.name or 'this model'} ({shape.family}, "
            f"{shape.layers} layers, configuration {shape.digest}). Neighbouring layers differ sharply, so it is not "
            "guessed: run `tokops calibrate` on the model, or pass reselect_layer="
        )

    def select(self, reader: LayerReader, step: Step) -> Selection | None:
        if reader.layer in self.dense_layers or reader.layer < self.select_layer:
            return None
        if reader.layer not in self.selecting_layers:
            return step.memo.get(TidalDecode)
        covered = self.budget >= reader.length
        step.memo[TidalDecode] = None if covered else self._choose(reader)
        return None

    def _choose(self, reader):
        if self.mode == "lessismore":
            scores = self._union(reader)
        else:
            scores = self._agreed(reader)
            scores = keep_always(scores, reader, self.always_keep[0], max(self.always_keep[1], 1))
        return Selection(*topk_positions(scores, None, self.budget))

    def _agreed(self, reader):
        """Scores of every list, ``[B, T, Hs, L]``."""
        if self.scope == "q_head":
            return reader.decode_scores("none")
        scores = reader.decode_scores("max" if self.reduce == "max_raw" else "soft_max")
        return scores.amax(2, keepdim=True) if self.scope == "layer" else scores

    def _union(self, reader):
        middle = self.budget * 3 // 4
        sinks, recent = 4, self.budget - middle - 4
        if recent < 4:
            sinks, recent = 0, self.budget - middle
        scores = reader.decode_scores("none")
        unseen = scores[:, :, :1].isneginf()
        kept = kept_positions(reader, sinks, recent)[:, :, None]
        union = rank_major_union(scores.masked_fill(kept, float("-inf")), middle)
        return torch.where(kept & ~unseen, float("inf"), union)
