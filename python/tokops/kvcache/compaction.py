"""Which rows of a batch to move so that the live ones are neighbours: plans, a window of slots, physical moves."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Compaction", "SlotWindow", "move_rows", "plan_compaction"]

FREE = -1


@dataclass(frozen=True)
class Compaction:
    """Moves after which the occupied slots are ``start .. start + size - 1``.

    Attributes:
        start: first slot of the window.
        size: slots in it, as many as are occupied.
        moves: (source, target) slots, to be carried out in this order.
    """

    start: int
    size: int
    moves: tuple[tuple[int, int], ...]


def plan_compaction(
    owner: Sequence[int], cost: Sequence[float] | None = None, *, stable: bool = False
) -> Compaction:
    """The cheapest way to make the occupied slots of a batch neighbours.

    Of all windows that are as wide as there are occupied slots, the one whose outside costs least is taken, the
    first of several. Its holes, ascending, get the occupied slots outside it, ascending. Sources lie outside the
    window and targets inside, so no move depends on another. Time is linear in the number of slots.

    Args:
        owner: for every slot the request in it, -1 where it is free.
        cost: for every slot what moving it costs, such as its live bytes; free slots cost nothing whatever is given
            for them. None: every occupied slot costs 1.
        stable: occupied slots keep their order: they are packed behind the first of them. Targets may then be
            sources of later moves, and ``cost`` has no say.

    Returns:
        The window and the moves; no slots and no moves where nothing is occupied.

    Raises:
        ValueError: not one cost per slot, or a cost that is negative or no number.

    Source:
        Flover (Yao et al., HiPC 2023, arXiv 2305.13484), which counts requests where we count bytes.
    """
    slots = len(owner)
    cost = [1] * slots if cost is None else list(cost)
    if len(cost) != slots:
        raise ValueError(f"plan_compaction: cost must have one entry per slot, {slots}, got {len(cost)}")
    occupied = [slot for slot in range(slots) if owner[slot] != FREE]
    for slot in occupied:
        if not cost[slot] >= 0:
            raise ValueError(f"plan_compaction: cost must be >= 0, got {cost[slot]} for slot {slot}")
    size = len(occupied)
    if not size:
        return Compaction(0, 0, ())
    if stable:
        start = occupied[0]
        pairs = zip(occupied, range(start, start + size), strict=True)
        return Compaction(
            start, size, tuple((source, target) for source, target in pairs if source != target)
        )
    start = _cheapest_window([cost[slot] if owner[slot] != FREE else 0 for slot in range(slots)], size)
    inside = range(start, start + size)
    holes = (slot for slot in inside if owner[slot] == FREE)
    outside = (slot for slot in occupied if slot not in inside)
    return Compaction(start, size, tuple(zip(outside, holes, strict=True)))


def _cheapest_window(cost, size):
    """First start of the window of ``size`` slots that holds most of the cost."""
    held = sum(cost[:size])
    best, start = held, 0
    for first in range(1, len(cost) - size + 1):
        held += cost[first + size - 1] - cost[first - 1]
        if held > best:
            best, start = held, first
    return start


class SlotWindow:
    """Requests in the slots of a fixed arena, kept inside one window of neighbouring slots.

    A request enters a hole of the window, else the slot right of it, else the one left of it; so nothing moves on
    admission. One that leaves from an edge shrinks the window, one that leaves from the middle leaves a hole, until
    :meth:`compact`.

    Args:
        capacity: slots.
        hole_share: :attr:`due` once more than this share of the window is holes.
        batch_sizes: sizes a decoding step is prepared for (captured graphs): compaction is due as soon as a smaller
            one would do. None: every size is.

    Raises:
        ValueError: ``capacity`` below 1 or ``hole_share`` outside [0, 1].
    """

    def __init__(self, capacity: int, hole_share: float = 0.25, batch_sizes: Sequence[int] = ()):
        if capacity < 1:
            raise ValueError(f"SlotWindow: capacity must be at least 1, got {capacity}")
        if not 0 <= hole_share <= 1:
            raise ValueError(f"SlotWindow: hole_share must be in [0, 1], got {hole_share}")
        self.hole_share = hole_share
        self.batch_sizes = sorted(batch_sizes)
        #: The request in every slot, -1 where it is free.
        self.owner = [FREE] * capacity
        #: The slot of every request.
        self.slot_of: dict[int, int] = {}
        self.start = 0
        self.size = 0

    @property
    def window(self) -> range:
        """Slots that a decoding step runs."""
        return range(self.start, self.start + self.size)

    @property
    def holes(self) -> int:
        """Slots of the window that nobody is in."""
        return self.size - len(self.slot_of)

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self.slot_of) == len(self.owner)

    @property
    def due(self) -> bool:
        """Whether compaction is worth its moves."""
        if not self.holes:
            return False
        if self.holes > self.hole_share * self.size:
            return True
        return self._prepared(len(self.slot_of)) < self._prepared(self.size) if self.batch_sizes else False

    def _prepared(self, rows):
        return next((size for size in self.batch_sizes if size >= rows), len(self.owner) + 1)

    def admit(self, request: int) -> int:
        """Give a request a slot, and return it.

        Raises:
            ValueError: it is in already, its number is negative, or every slot is taken.
        """
        if request < 0 or request in self.slot_of:
            raise ValueError(f"SlotWindow: request must be new and >= 0, got {request}")
        if self.full:
            raise ValueError(f"SlotWindow: all {len(self.owner)} slots are taken")
        if self.holes:
            slot = next(slot for slot in self.window if self.owner[slot] == FREE)
        elif self.start + self.size < len(self.owner):
            slot = self.start + self.size
            self.size += 1
        else:
            slot = self.start = self.start - 1
            self.size += 1
        self.owner[slot] = request
        self.slot_of[request] = slot
        return slot

    def retire(self, request: int) -> int:
        """Free the slot of a request, and return it; free slots at the edges leave the window, which moves nothing.

        Raises:
            KeyError: no such request.
        """
        slot = self.slot_of.pop(request)
        self.owner[slot] = FREE
        while self.size and self.owner[self.start + self.size - 1] == FREE:
            self.size -= 1
        while self.size and self.owner[self.start] == FREE:
            self.start, self.size = self.start + 1, self.size - 1
        if not self.size:
            self.start = 0
        return slot

    def compact(self, cost: Sequence[float] | None = None, *, stable: bool = False) -> Compaction:
        """Close the holes; the moves returned are already in the books and are the caller's to carry out.

        Args:
            cost, stable: see :func:`plan_compaction`.
        """
        plan = plan_compaction(self.owner, cost, stable=stable)
        for source, target in plan.moves:
            request = self.owner[target] = self.owner[source]
            self.owner[source] = FREE
            self.slot_of[request] = target
        self.start, self.size = plan.start, plan.size
        return plan


def move_rows(
    tensors: Sequence[Tensor],
    moves: Sequence[tuple[int, int]],
    live: Sequence[int] | None = None,
    *,
    length_dim: int | None = None,
) -> int:
    """Copy rows of tensors to other rows, of each only what is alive.

    For caches whose row is a place in memory. Rows of :class:`tokops.hf.PagedCache` move by permuting its page
    table instead, which copies nothing.

    Args:
        tensors: of any dtype, with slots along dimension 0; changed in place. Keys and values of all layers, say.
        moves: (source, target) rows, carried out in this order, as :func:`plan_compaction` gives them.
        live: for every slot the length of what is alive along ``length_dim``, before any of the moves. None: all.
        length_dim: the dimension along which rows are filled, counted with dimension 0 the slots.

    Returns:
        Bytes moved, each counted when read and when written.

    Raises:
        ValueError: ``live`` without ``length_dim`` or the reverse, or a row or a length that a tensor does not have.
    """
    if (live is None) != (length_dim is None):
        raise ValueError("move_rows: live and length_dim go together")
    for tensor in tensors:
        _check_rows(tensor, moves, live, length_dim)
    lengths = None if live is None else list(live)
    moved = 0
    for source, target in moves:
        for tensor in tensors:
            there, here = tensor[target], tensor[source]
            if lengths is not None and length_dim is not None:
                there, here = (row.narrow(length_dim - 1, 0, lengths[source]) for row in (there, here))
            there.copy_(here)
            moved += 2 * here.numel() * here.element_size()
        if lengths is not None:
            lengths[target] = lengths[source]
    return moved


def _check_rows(tensor, moves, live, length_dim):
    for slot in (slot for move in moves for slot in move):
        if not 0 <= slot < tensor.shape[0]:
            raise ValueError(f"move_rows: rows must be in [0, {tensor.shape[0]}), got {slot}")
    if live is None:
        return
    if not 1 <= length_dim < tensor.dim():
        raise ValueError(f"move_rows: length_dim must be in [1, {tensor.dim()}), got {length_dim}")
    if len(live) != tensor.shape[0]:
        raise ValueError(f"move_rows: live must have one entry per row, {tensor.shape[0]}, got {len(live)}")
    for source, _ in moves:
        if not 0 <= live[source] <= tensor.shape[length_dim]:
            raise ValueError(
                f"move_rows: live must be in [0, {tensor.shape[length_dim]}], got {live[source]} for row {source}"
            )
