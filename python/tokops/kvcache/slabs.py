"""Packed pages in the order of positions, and what is written to them at once."""

from dataclasses import dataclass, field

from torch import Tensor

from .pages import PageTable


@dataclass
class Slab:
    """Packed pages of the positions ``[first, first + span)``. Growth adds a slab: history is never copied.

    ``copies`` are pages (source, target) that layers must copy before they write or read in this forward.
    """

    first: int
    span: int
    table: PageTable
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.first + self.table.length


@dataclass(frozen=True)
class Segment:
    """Positions ``[begin, end)`` to be packed into one slab, and what the writing op is told.

    ``starts`` are slots of padding and sinks, which share no scale with the others.
    """

    slab: int
    begin: int
    end: int
    seq_lens: Tensor
    starts: Tensor | None
