"""Packed pages of keys or of values of one layer, for stores."""

import torch
from torch import Tensor

from ._kv_dequantize import kv_dequantize
from ._kv_relayout import kv_relayout
from .codec import Codec

Grid = tuple[Tensor, Tensor]  # scale and zero of head geometry


class Pool:
    """Codes, scales and zeros of pages that grow, are copied and are read together.

    Args:
        codec: the format.
        shape: heads, tokens per page and head dimension.
        pages: how many.
        dtype, device: of the vectors that are kept.
        grid: scale and zero ``[1, H, 1, 1]`` of head geometry once they are known; None leaves them unset.
        tiles: whether pages are kept in ``"tile"`` order (:func:`kv_relayout`), which :meth:`lay` gives them.
    """

    def __init__(
        self,
        codec: Codec,
        shape: tuple[int, int, int],
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
        grid: Grid | None = None,
        tiles: bool = False,
    ):
        self.codec, self.shape, self.tiles = codec, shape, tiles
        self.codes, self.scale, self.zero = codec.empty(0, *shape, dtype, device)
        if grid is not None:
            self.scale, self.zero = grid
        Pool.grow(self, pages)

    @property
    def pages(self) -> int:
        return self.codes.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero, as :func:`tokops.kvcache.kv_append` takes them."""
        return self.codes, self.scale, self.zero

    @property
    def _names(self) -> list[str]:
        """What has a row per page: not the scales of a head, nor those that the codec lacks."""
        if self.codec.kind == "full" or self.codec.geometry == "head":
            return ["codes"]
        return ["codes", "scale", "zero"] if self.codec.has_zero else ["codes", "scale"]

    def grow(self, pages: int) -> None:
        """Have at least so many pages; what the old ones hold is copied."""
        for name in self._names:
            old = getattr(self, name)
            if old.shape[0] < pages:
                # A head's pages lie side by side, so that a sequence in consecutive pages is read as one stream.
                new = old.new_empty(old.shape[1], pages, *old.shape[2:]).transpose(0, 1)
                new[: old.shape[0]] = old
                setattr(self, name, new)

    def lay(self, pages: Tensor) -> None:
        """Bring pages ``[n]``, whose rows have been written, into the order in which this pool keeps them."""
        if self.tiles:
            self.codes[pages] = kv_relayout(self.codes[pages], self.codec.code, "row", "tile")

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy whole pages."""
        for name in self._names:
            x = getattr(self, name)
            x[target] = x[source]

    def read(self, pages: Tensor) -> Tensor:
        """The vectors in pages ``[n]``, decoded: ``[n, H, P, D]`` float32."""
        codes, scale, zero = (
            getattr(self, name)[pages] if name in self._names else getattr(self, name)
            for name in ("codes", "scale", "zero")
        )
        if self.codec.kind == "full":
            return codes.float()
        if self.tiles:
            codes = kv_relayout(codes, self.codec.code, "tile", "row")
        return kv_dequantize(
            codes, scale, zero if zero.numel() else None, None, self.codec.code, self.shape[2]
        )

    def operands(self, side: str) -> dict:
        """These pages as the fields of a :class:`tokops.attention.Part`; side is "k" or "v"."""
        return {
            side: self.codes,
            f"{side}_codec": self.codec.code,
            f"{side}_scale": self.scale if self.scale.numel() else None,
            f"{side}_zero": self.zero if self.zero.numel() else None,
            **({f"{side}_tiles": 1} if self.tiles else {}),
        }
