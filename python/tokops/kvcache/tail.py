"""The newest tokens of one layer in full precision."""

import torch
from torch import Tensor

from ..attention import paged_append


class Tail:
    """Keys and values ``[B, Hkv, slots, D]``; which slots are in use is the layout's to say."""

    def __init__(self, k: Tensor, v: Tensor, capacity: int):
        """Hold tokens ``[B, T, Hkv, D]`` from slot 0 on, with room for ``capacity``."""
        batch, rows, heads, dim = k.shape
        # Not empty: what a finished sequence takes from beyond its end must be numbers.
        self.k = k.new_zeros(batch, heads, max(capacity, rows), dim)
        self.v = torch.zeros_like(self.k)
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
        k, v = (x[:, :, begin : begin + count].clone() for x in (self.k, self.v))
        if capacity > self.k.shape[2]:
            self.k = k.new_zeros(*k.shape[:2], capacity, k.shape[3])
            self.v = torch.zeros_like(self.k)
        self.k[:, :, :count], self.v[:, :, :count] = k, v

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        self.k, self.v = self.k[rows], self.v[rows]
