"""The newest tokens of one layer in full precision."""

from torch import Tensor

from ..attention import paged_append


class Tail:
    """Keys and values ``[B, Hkv, slots, D]``; which slots are in use is the layout's to say."""

    def __init__(self, k: Tensor, v: Tensor, capacity: int):
        """Hold tokens ``[B, T, Hkv, D]`` from slot 0 on, with room for ``capacity``."""
        batch, rows, heads, dim = k.shape
        # Not empty: what a finished sequence takes from beyond its end must be numbers.
        self.kv = k.new_zeros(2, batch, heads, max(capacity, rows), dim)  # together, for kv_compact
        self.k, self.v = self.kv
        self.write(0, k, v)

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Put tokens ``[B, T, Hkv, D]`` from ``slot`` on."""
        self.k[:, :, slot : slot + k.shape[1]] = k.transpose(1, 2)
        self.v[:, :, slot : slot + v.shape[1]] = v.transpose(1, 2)

    def write_ends(self, rows: Tensor, ends: Tensor, k: Tensor, v: Tensor) -> None:
        """Put tokens ``[B, T, Hkv, D]`` before the slots ``ends [B]``; ``rows [B, 1]`` numbers the sequences."""
        paged_append(self.k, self.v, rows, ends, k, v)

    def read(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Views ``[B, T, Hkv, D]`` of the slots ``[begin, end)``."""
        return self.k[:, :, begin:end].transpose(1, 2), self.v[:, :, begin:end].transpose(1, 2)

    def move(self, begin: int, count: int, capacity: int) -> None:
        """Move ``count`` slots from ``begin`` on to the front, into a new buffer of ``capacity`` if that is larger."""
        kv = self.kv[:, :, :, begin : begin + count].clone()
        if capacity > self.kv.shape[3]:
            self.kv = kv.new_zeros(*kv.shape[:3], capacity, kv.shape[4])
            self.k, self.v = self.kv
        self.kv[:, :, :, :count] = kv

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        self.kv = self.kv.index_select(1, rows)
        self.k, self.v = self.kv

    def __getstate__(self) -> Tensor:
        return self.kv  # the others are views, which would be saved as copies

    def __setstate__(self, kv: Tensor) -> None:
        self.kv = kv
        self.k, self.v = kv
