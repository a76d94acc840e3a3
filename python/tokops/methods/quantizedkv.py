"""QuantizedKV: the cache in 8, 4 or 2 bits."""

from dataclasses import dataclass
from typing import ClassVar

from ..kvcache import Codec
from ..kvcache.quantized import QuantizedLayout
from .base import Method, ModelShape, refuse_fractions

__all__ = ["QuantizedKV"]

_FP8 = ("fp8_e4m3", "fp8_e5m2")
_BITS = (8, 4, 3, 2, *_FP8, 16)
_GEOMETRIES = ("token", "channel", "head")


@dataclass(frozen=True)
class QuantizedKV(Method):
    """Keep cached tokens in packed pages that the attention kernel reads as they are (layouts: KIVI, KVQuant, ggml).

    Prompts are attended to in full precision and then packed. A token's codes are written once. Rejected drafts are
    never packed. Sliding-window layers stay in full precision; their cache is bounded already.

    What None resolves to, by bits:

    ======== ================ ================= ======= ========== ==========
    bits     keys             values            rotate  residual   full_first
    ======== ================ ================= ======= ========== ==========
    8        token, group     token, group      no      0          no
    4, 3     token, group     token, group      yes     0          yes
    2        token, group 32  token, group 32   yes     128        yes
    fp8      token, group D   token, group D    no      0          no
    16       as they are      as they are       no      0          no
    channel  group of tokens  (as by bits)      no      128        as by bits
    head     one per head     (as by bits)      as bits 128        as by bits
    ======== ================ ================= ======= ========== ==========

    A pair of formats takes rotate, residual and full_first of the one with fewer bits. Where tokens
    of a channel share a scale, no residual is shorter than their group: a group of more than 128 tokens sets it.

    Args:
        bits: 8, 4, 3 (eight levels in the container of four bits), 2, ``"fp8_e4m3"``, ``"fp8_e5m2"``, or 16 for full
            precision; a pair gives keys and values their own.
        group: dimensions (or tokens, per channel) that share a scale; 32 where the head dimension is not divisible
            by it, 16 where it is not by 32 either (8 bit alone); at most 32 for 2 bit; 32 for dimensions of 4, 3
            and 2 bit where it is no multiple of 32.
        key_geometry, value_geometry: ``"token"``: a scale per token and group of dimensions; ``"channel"``: per
            dimension and group of tokens (KIVI's keys); ``"head"``: one scale per head for the whole batch, set by
            the first tokens that are packed.
        rotate: keep keys and values Hadamard-transformed, which spreads outlying channels over all of them.
        residual: newest tokens that stay in full precision.
        full_first: keep the first page of every sequence in full precision.
        sinks: first visible tokens that stay in full precision where full_first does not.
        q_int8: score int8 and int4 keys with queries rounded to 8 bits, by integer products. Adds up to
            ``amax(q) / 254`` per element of q to the error.
        key_tiles: keep keys of 8, 4, 3 or 2 bits in tiles of 16 tokens, by dimension and not by token, for CPUs
            alone: scores of sixteen keys come out side by side. No method can select among them, and tokens are
            packed a page at a time, so that up to a page more than ``residual`` stay in full precision. Where the
            CPU has VNNI, rows are as fast or faster.

    Raises:
        ValueError: a number or name out of range, or options that contradict each other.
    """

    slots: ClassVar[tuple[str, ...]] = ("store",)

    bits: int | str | tuple[int | str, int | str] = 8
    group: int = 64
    key_geometry: str | None = None
    value_geometry: str | None = None
    rotate: bool | None = None
    residual: int | None = None
    full_first: bool | None = None
    sinks: int = 4
    q_int8: bool = False
    key_tiles: bool = False

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"QuantizedKV: {message}")

        refuse_fractions(self, "group", "residual", "sinks")
        pair = self.pair
        refuse(len(pair) != 2, f"bits must be one format or a pair for keys and values, got {self.bits!r}")
        for bits in pair:
            known = type(bits) in (int, str) and bits in _BITS
            refuse(not known, f"bits must be one of {', '.join(map(str, _BITS))}, got {bits!r}")
        refuse(self.group < 16 or self.group % 16, f"group must be a multiple of 16, got {self.group}")
        for name in ("key_geometry", "value_geometry"):
            value = getattr(self, name)
            refuse(
                value is not None and value not in _GEOMETRIES,
                f"{name} must be one of {', '.join(_GEOMETRIES)}, got {value!r}",
            )
        refuse(
            self.key_tiles and pair[0] not in (8, 4, 3, 2),
            f"key_tiles needs keys of 8, 4, 3 or 2 bits, got {pair[0]!r}",
        )
        refuse(self.sinks < 0, f"sinks must be >= 0, got {self.sinks}")
        refuse(self.residual is not None and self.residual < 0, f"residual must be >= 0, got {self.residual}")
        tokens = max(self._channel_groups(), default=0)
        refuse(
            self.residual is not None and self.residual < tokens,
            f"residual {self.residual} is shorter than the channel group of {tokens} tokens",
        )
        refuse(
            len(set(self._channel_groups())) > 1,
            f"keys and values per channel must share one group of tokens, got {self._channel_groups()}",
        )

    @property
    def pair(self) -> tuple[int | str, ...]:
        """Formats of keys and values."""
        return tuple(self.bits) if isinstance(self.bits, (tuple, list)) else (self.bits, self.bits)

    @property
    def geometries(self) -> tuple[str, str]:
        """Geometries of keys and values."""
        return self.key_geometry or "token", self.value_geometry or "token"

    def _channel_groups(self) -> list[int]:
        """Tokens that share a scale, of keys and of values that are scaled per channel."""
        each = zip(self.pair, self.geometries, strict=True)
        return [self._most(bits) for bits, geometry in each if geometry == "channel" and bits != 16]

    def _most(self, bits) -> int:
        """The largest group of a format."""
        return min(self.group, 32) if bits == 2 else self.group

    def codecs(self, dim: int) -> tuple[Codec, Codec]:
        """Codecs of keys and values for a head dimension."""
        keys, values = (self._codec(*x, dim) for x in zip(self.pair, self.geometries, strict=True))
        return keys, values

    def _codec(self, bits, geometry, dim) -> Codec:
        if bits == 16:
            return Codec("full")
        group = self._most(bits)
        if geometry == "token":
            least = 32 if bits in (4, 3, 2) else 16
            if bits in _FP8:
                group = dim
            elif dim % group or group % least:
                group = max(16 if dim % 32 else 32, least)
        return Codec(bits if bits in _FP8 else f"int{bits}", geometry, group)

    def resolve(self, shape: ModelShape) -> "QuantizedKV":
        if not shape.full_layers:
            raise ValueError(
                f"QuantizedKV: every layer of {shape.name or 'the model'} has a sliding window, whose cache is bounded"
            )
        return self

    def new_layout(self, page_size: int, shape: ModelShape) -> QuantizedLayout:
        least = min((bits for bits in self.pair if isinstance(bits, int)), default=8)
        keys, values = self.codecs(shape.head_dim)
        for codec in (keys, values):
            codec.check(shape.head_dim, page_size)
            if codec.kind != "full" and shape.head_dim % 16:
                raise ValueError(
                    f"QuantizedKV: packed pages need a head dimension divisible by 16, got {shape.head_dim}"
                )
        shared = {c.geometry for c in (keys, values) if c.kind != "full"} - {"token"}
        rotate = self.rotate if self.rotate is not None else least <= 4 and "channel" not in shared
        full_first = self.full_first if self.full_first is not None else least <= 4
        residual = self.residual
        if residual is None:  # a scale that many tokens share is set by many
            residual = max([128, *self._channel_groups()]) if shared or least == 2 else 0
        return QuantizedLayout(
            keys,
            values,
            page=page_size,
            sinks=page_size if full_first else self.sinks,
            residual=residual,
            rotate=rotate,
            q_int8=self.q_int8,
            key_tiles=self.key_tiles,
        )
