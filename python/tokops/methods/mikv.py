"""MiKV: every token is kept, the important ones in high precision."""

from dataclasses import dataclass
from typing import ClassVar

from ..kvcache import Codec
from ..kvcache.mikv import MiKVLayout
from ..kvcache.mikv_layout import Policy
from .base import Method, ModelShape, refuse_fractions

__all__ = ["MiKV"]

_HIGH, _LOW = (16, 8, 4), (16, 4, 3, 2)


@dataclass(frozen=True)
class MiKV(Method):
    """Keep important tokens in high precision and all others in low precision (Yang et al., arXiv 2402.18096).

    A token is important by the attention it has received, summed over queries and the heads of a group (H2O), or
    because it is among the newest. What becomes unimportant is moved to low precision and never back. Prompts are
    attended to in full precision. Keys are scaled per channel, and queries back, by what the prompt shows of their
    ranges, so that outlying key channels do not spoil the low bits. Sliding-window layers stay in full precision.

    Args:
        high: bits of important tokens: 16 (the model's dtype), 8 or 4.
        low: bits of the others: 4, 3 (eight levels in the container of four bits), 2, or 16 to compare.
        ratio: share of all tokens that is important.
        budget: that many important tokens instead of a share.
        recent: share of the important tokens that is the newest ones.
        balancer: scale keys per channel; not below prompts of 32 tokens.
        interval: committed tokens between two demotions; so many more may be in high precision for a while.
        sinks: first visible tokens, always in high precision.
        group: dimensions that share a scale, a multiple of 32; None is 32 for 2 bit and where the head dimension is
            not divisible by 64, else 64.
        obs_window: judge prompt tokens by the newest queries alone, of every chunk where a prompt is read in
            chunks. Cheaper; SnapKV's rule, not MiKV's.
        normalise_by_age: judge by attention per query that could see a token. The sum favours old tokens.

    Raises:
        ValueError: a number out of range, or options that contradict each other.
    """

    slots: ClassVar[tuple[str, ...]] = ("store",)

    high: int = 16
    low: int = 4
    ratio: float = 0.25
    budget: int | None = None
    recent: float = 0.5
    balancer: bool = True
    interval: int = 16
    sinks: int = 4
    group: int | None = None
    obs_window: int | None = None
    normalise_by_age: bool = False

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"MiKV: {message}")

        refuse_fractions(self, "high", "low", "budget", "interval", "sinks", "group", "obs_window")
        refuse(self.high not in _HIGH, f"high must be one of {', '.join(map(str, _HIGH))}, got {self.high!r}")
        refuse(self.low not in _LOW, f"low must be one of {', '.join(map(str, _LOW))}, got {self.low!r}")
        refuse(self.low > self.high, f"low {self.low} has more bits than high {self.high}")
        for name in ("ratio", "recent"):
            value = getattr(self, name)
            refuse(not 0 <= value <= 1, f"{name} must be 0..1, got {value}")
        for name, least in (("budget", 1), ("interval", 1), ("sinks", 0), ("obs_window", 1)):
            value = getattr(self, name)
            refuse(value is not None and value < least, f"{name} must be at least {least}, got {value}")
        refuse(
            self.group is not None and (self.group < 32 or self.group % 32),
            f"group must be a multiple of 32, got {self.group}",
        )
        if self.budget is not None:
            codec = Codec("full")
            newest = self._policy(codec, codec).window(self.budget)
            refuse(
                self.sinks + newest > self.budget,
                f"a budget of {self.budget} does not hold {self.sinks} sinks and the newest {newest}",
            )

    def _policy(self, high: Codec, low: Codec) -> Policy:
        names = (
            "ratio",
            "budget",
            "recent",
            "sinks",
            "interval",
            "balancer",
            "obs_window",
            "normalise_by_age",
        )
        return Policy(high, low, **{name: getattr(self, name) for name in names})

    def codec(self, bits: int, dim: int) -> Codec:
        """The codec of ``bits`` for a head dimension."""
        if bits == 16:
            return Codec("full")
        return Codec(f"int{bits}", group=self.group or (32 if bits == 2 or dim % 64 else 64))

    def resolve(self, shape: ModelShape) -> "MiKV":
        if not shape.full_layers:
            raise ValueError(
                f"MiKV: every layer of {shape.name or 'the model'} has a sliding window, whose cache is bounded"
            )
        return self

    def new_layout(self, page_size: int, shape: ModelShape) -> MiKVLayout:
        high, low = (self.codec(bits, shape.head_dim) for bits in (self.high, self.low))
        for codec in (high, low):
            codec.check(shape.head_dim, page_size)
        return MiKVLayout(self._policy(high, low), page_size)
