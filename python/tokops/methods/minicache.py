"""MiniCache: layers share their cache, two by two."""

from dataclasses import dataclass, replace
from typing import ClassVar

from ..kvcache import Codec
from ..kvcache.pair import MergeRule
from ..kvcache.pairs import PairLayout
from .base import Method, ModelShape, refuse_fractions

__all__ = ["MiniCache"]


@dataclass(frozen=True)
class MiniCache(Method):
    """Keep one direction per token for two neighbouring layers, and either layer's magnitudes (arXiv 2405.14366).

    From layer ``start`` on, full-attention layers are taken two by two. Prompts are attended to as they are; then, a
    page at a time, keys and values of both layers become their SLERP and two norms, which the attention kernel reads
    as they lie. Tokens that the layers disagree about, sinks, and the newest tokens stay as they are.

    Layers must be alike for this. Before anything is merged the angle between them is measured, and pairs beyond
    ``max_distance`` are refused: in SmolLM2-135M, for one, neighbouring layers are all but orthogonal.

    Args:
        t: weight of the later layer in the shared direction, 0..1. With 0 the earlier, with 1 the later layer loses
            nothing but the rounding of its norms to float16.
        gamma: what is retained: the top share of the range of distances, or of the tokens (see ``retain``), 0..1.
        start: first layer that is paired; None is half of the layers. An odd last one stays on its own.
        retain: ``"range"``: tokens whose distance is above ``max - gamma * (max - min)`` of their head in the first
            tokens merged (usually the prompt); later pages keep that threshold and at most 20 % of their tokens (or
            gamma, if more). ``"topk"``: of the tokens merged together the ``ceil(gamma * tokens)`` with the largest
            distance, sinks among them. The distance of a token is the larger one of its key and its value.
        share_heads: every head retains what any head of its sequence does.
        bits: None keeps directions in the model's dtype; 4 quantises them, and the layers that are not paired: keys
            per channel and page, values per token.
        residual: newest tokens that stay in full precision; None is 64, with ``bits=4`` 128.
        sinks: first visible tokens of every sequence that stay in full precision.
        guard: what happens to a pair that is too different: ``"refuse"`` raises RuntimeError, ``"skip"`` keeps its
            layers apart, ``"force"`` merges it.
        max_distance: mean angle over pi, of keys and of values, up to which a pair is merged; 0.5 is orthogonal.

    Raises:
        ValueError: a number or name out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ("store",)

    t: float = 0.6
    gamma: float = 0.05
    start: int | None = None
    retain: str = "range"
    share_heads: bool = False
    bits: int | None = None
    residual: int | None = None
    sinks: int = 4
    guard: str = "refuse"
    max_distance: float = 1 / 3

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"MiniCache: {message}")

        refuse_fractions(self, "start", "residual", "sinks", "bits")
        _ = self.rule  # refuses what is out of its range
        refuse(self.start is not None and self.start < 0, f"start must be >= 0, got {self.start}")
        refuse(self.bits not in (None, 4), f"bits must be None or 4, got {self.bits!r}")
        refuse(self.residual is not None and self.residual < 0, f"residual must be >= 0, got {self.residual}")
        refuse(self.sinks < 0, f"sinks must be >= 0, got {self.sinks}")

    @property
    def rule(self) -> MergeRule:
        """How two layers are merged."""
        return MergeRule(self.t, self.gamma, self.retain, self.share_heads, self.guard, self.max_distance)

    def resolve(self, shape: ModelShape) -> "MiniCache":
        if not shape.full_layers:
            raise ValueError(
                f"MiniCache: every layer of {shape.name or 'the model'} has a sliding window, whose cache is bounded"
            )
        start, residual = self._resolved(shape)
        if start > shape.layers:
            raise ValueError(f"MiniCache: start must be 0..{shape.layers} (layers), got {start}")
        return replace(self, start=start, residual=residual)

    def _resolved(self, shape: ModelShape) -> tuple[int, int]:
        start = shape.layers // 2 if self.start is None else self.start
        residual = self.residual if self.residual is not None else 128 if self.bits else 64
        return start, residual

    def new_layout(self, page_size: int, shape: ModelShape) -> PairLayout:
        start, residual = self._resolved(shape)
        keys = values = Codec("full")
        if self.bits:
            keys = Codec("int4", "channel", page_size)
            values = Codec("int4", "token", 64 if shape.head_dim % 64 == 0 else 32)
            if residual < page_size:
                raise ValueError(
                    f"MiniCache: residual {residual} is shorter than the channel group of {page_size} tokens, a page"
                )
        for codec in (keys, values):
            codec.check(shape.head_dim, page_size)
        layers = [layer for layer in shape.full_layers if layer >= start]
        pairs = list(zip(layers[::2], layers[1::2], strict=False))
        sinks = self.sinks if pairs or self.bits else 0  # all else is in full precision anyway
        return PairLayout(pairs, self.rule, keys, values, page=page_size, sinks=sinks, residual=residual)
