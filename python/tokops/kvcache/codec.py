"""How cached tokens are coded: the number format, which elements share a scale, and the shapes that follow."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Codec"]

#: Container bits, number of levels (0: not an integer), the id in op schemas that read and that write.
_KINDS = {
    "full": (0, 0, 0, 0),
    "int8": (8, 256, 1, 1),
    "int4": (4, 16, 2, 2),
    "int3": (4, 8, 2, 6),
    "int2": (2, 4, 3, 3),
    "fp8_e4m3": (8, 0, 4, 4),
    "fp8_e5m2": (8, 0, 5, 5),
}
_GEOMETRIES = ("token", "channel", "head")

#: Elements whose int4 and int2 codes are interleaved in a row.
PACK_BLOCK = 32
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Codec:
    """A format for cached keys or values: ``x = code * scale + zero``.

    Args:
        kind: ``"int8"``, ``"int4"``, ``"int3"`` (8 levels in the container of int4), ``"int2"``, ``"fp8_e4m3"``,
            ``"fp8_e5m2"``, or ``"full"``: the model's own dtype, without scales.
        geometry: Which elements share a scale. ``"token"``: ``group`` dimensions of one token; ``"channel"``:
            ``group`` tokens of one dimension; ``"head"``: all of a head, with a scale given beforehand.
        group: See above; ignored for ``"head"`` and ``"full"``.
        symmetric: int8 only: no zero is stored, and 0 is coded exactly.

    Raises:
        ValueError: an unknown kind or geometry, a group below 1, or symmetric with another kind than int8.

    >>> Codec("int4", group=32).scale_shape(10, 8, 64, 128)
    (10, 8, 64, 4)
    """

    kind: str
    geometry: str = "token"
    group: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"Codec: kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.geometry not in _GEOMETRIES:
            raise ValueError(
                f"Codec: geometry must be one of {', '.join(_GEOMETRIES)}, got {self.geometry!r}"
            )
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 1:
            raise ValueError(f"Codec: group must be an integer of at least 1, got {self.group!r}")
        if self.symmetric and self.kind != "int8":
            raise ValueError(f"Codec: symmetric is for int8 alone, got {self.kind}")

    @property
    def bits(self) -> int:
        """Bits that an element takes in its row: 4 for int3; 0 for full, whose dtype is the model's."""
        return _KINDS[self.kind][0]

    @property
    def levels(self) -> int:
        """Integer codes in use, 0 for fp8 and full."""
        return _KINDS[self.kind][1]

    @property
    def code(self) -> int:
        """The id in the schemas of ops that read: int3 reads as int4."""
        return _KINDS[self.kind][2]

    @property
    def write_code(self) -> int:
        """The id in the schemas of ops that write codes: int3 has its own."""
        return _KINDS[self.kind][3]

    @property
    def is_fp8(self) -> bool:
        return self.kind.startswith("fp8")

    @property
    def has_zero(self) -> bool:
        """Whether a zero is stored beside each scale."""
        return self.levels > 0 and not self.symmetric

    @property
    def scale_dtype(self) -> torch.dtype:
        """What scales and zeros are stored in: float32 for fp8, whose scales may be very small."""
        return torch.float32 if self.is_fp8 else torch.float16

    def row_bytes(self, dim: int, itemsize: int = 2) -> int:
        """Bytes of one token's codes; ``itemsize`` is the full dtype's."""
        return dim * itemsize if self.kind == "full" else dim * self.bits // 8

    def check(self, dim: int, page: int) -> None:
        """Raise ValueError unless vectors of ``dim`` elements in pages of ``page`` tokens can be coded so."""
        if not 1 <= dim <= MAX_HEAD_DIM:
            raise ValueError(f"Codec: the head dimension must be 1..{MAX_HEAD_DIM}, got {dim}")
        if page < 1:
            raise ValueError(f"Codec: the page size must be at least 1, got {page}")
        if self.kind == "full":
            return
        if self.bits < 8 and dim % PACK_BLOCK:
            raise ValueError(
                f"Codec: {self.kind} needs a head dimension divisible by {PACK_BLOCK}, got {dim}"
            )
        if self.geometry == "token" and dim % self.group:
            raise ValueError(f"Codec: the head dimension {dim} is not divisible by the group {self.group}")
        if self.geometry == "token" and self.bits < 8 and self.group % PACK_BLOCK:
            raise ValueError(
                f"Codec: {self.kind} needs a group of dimensions divisible by {PACK_BLOCK}, got {self.group}"
            )
        if self.geometry == "channel" and page % self.group:
            raise ValueError(f"Codec: the page size {page} is not a multiple of the group {self.group}")

    def scale_shape(self, pages: int, heads: int, page: int, dim: int) -> tuple[int, ...]:
        """Shape of the scales of ``pages`` pages; ``(0,)`` for full."""
        if self.kind == "full":
            return (0,)
        return {
            "token": (pages, heads, page, dim // self.group),
            "channel": (pages, heads, page // self.group, dim),
            "head": (1, heads, 1, 1),
        }[self.geometry]

    def empty(
        self,
        pages: int,
        heads: int,
        page: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New pools ``(codes, scale, zero)``, uninitialised; what the codec does not store has shape ``(0,)``.

        Args:
            pages, heads, page, dim: ``N, H, P, D`` of the codes ``[N, H, P, bytes of a row]``.
            dtype: Of the codes of a full codec.
            device: Where.

        Raises:
            ValueError: see :meth:`check`.
        """
        self.check(dim, page)
        full = self.kind == "full"
        codes = torch.empty(
            (pages, heads, page, dim if full else self.row_bytes(dim)),
            dtype=dtype if full else torch.uint8,
            device=device,
        )
        shape = self.scale_shape(pages, heads, page, dim)
        scale = torch.empty(shape, dtype=self.scale_dtype, device=device)
        zero = torch.empty(shape if self.has_zero else (0,), dtype=self.scale_dtype, device=device)
        return codes, scale, zero
