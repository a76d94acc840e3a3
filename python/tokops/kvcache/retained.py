"""Tokens of two layers that are kept as they are, in an order of their own per head."""

import torch
from torch import Tensor

from ..attention import Part


class Retained:
    """Keys and values of two layers for tokens that differ from head to head, ascending by position.

    Tokens are only added, so a buffer is made once and filled, until two are joined. Sequences that a beam or a repeat
    has made of one share its row until either of them adds a token.

    Args:
        begin: no token lies before this position.
        capacity: tokens per sequence and head.
        like: keys ``[B, T, Hkv, D]`` whose sizes, dtype and device this takes over.
    """

    def __init__(self, begin: int, capacity: int, like: Tensor):
        batch, _, heads, dim = like.shape
        self.begin, self.capacity = begin, capacity
        self.most = 0  # no head holds more
        self.x = like.new_empty(2, 2, batch, heads, capacity, dim)  # [layer, keys and values, ...]
        self.positions = torch.zeros(batch, heads, capacity, dtype=torch.int32, device=like.device)
        self.counts = torch.zeros(batch, heads, dtype=torch.int32, device=like.device)
        self.rows = torch.arange(batch, dtype=torch.int32, device=like.device)[:, None]
        self._shared = False

    def add(self, mask: Tensor, begin: int, most: int, tokens) -> None:
        """Take the tokens of ``mask [B, Hkv, T]``, at most ``most`` a head, out of two layers' keys and values.

        Args:
            mask: which tokens.
            begin: position of the first of the T.
            most: tokens of the head that keeps the most.
            tokens: keys and values ``[B, T, Hkv, D]`` of either layer.
        """
        if self._shared:
            self.x = self.x[:, :, self.rows[:, 0].long()]
            self.rows = torch.arange(len(self.rows), dtype=torch.int32, device=self.rows.device)[:, None]
            self._shared = False
        # What a head does not keep lands behind its count, where it is not read.
        order = mask.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :most]
        slots = self.counts[..., None].long() + torch.arange(most, device=mask.device)
        self.positions.scatter_(2, slots, (order + begin).int())
        dim = self.x.shape[-1]
        order, slots = (index[..., None].expand(-1, -1, -1, dim) for index in (order, slots))
        for to, layer in zip(self.x, tokens, strict=True):
            for side, x in zip(to, layer, strict=True):
                side.scatter_(2, slots, x.transpose(1, 2).gather(2, order))
        self.counts += mask.sum(-1, dtype=torch.int32)
        self.most += most

    def joined(self, later: "Retained") -> "Retained":
        """A buffer with the tokens of both, those of ``later`` behind, and with the room that ``later`` has."""
        most = int(self.counts.max())
        x, more = (kept.x[:, :, kept.rows[:, 0].long()] for kept in (self, later))
        both = Retained(self.begin, most + later.capacity, x[0, 0].transpose(1, 2))
        both.most, both.counts = most + later.most, self.counts + later.counts
        slots = self.counts[..., None].long() + torch.arange(later.capacity, device=x.device)
        both.x[..., :most, :] = x[..., :most, :]
        both.x.scatter_(4, slots[..., None].expand_as(more), more)
        both.positions[..., :most] = self.positions[..., :most]
        both.positions.scatter_(2, slots, later.positions)
        return both

    def part(self, layer: int, where: Tensor, slot_base: int) -> Part:
        """What one of the two layers reads."""
        k, v = self.x[layer]
        return Part(k, v, self.rows, self.counts, positions=self.positions, where=where, slot_base=slot_base)

    def live(self) -> Tensor:
        """Slots in use, ``[B, Hkv, capacity]`` bool."""
        return torch.arange(self.capacity, device=self.counts.device) < self.counts[..., None]

    def put(self, layer: int, begin: int, k: Tensor, v: Tensor) -> None:
        """Overwrite those of the tokens ``[B, T, Hkv, D]`` from position ``begin`` on that are held here."""
        tokens = k.shape[1]
        at = self.positions.long() - begin
        at = torch.where(self.live() & (at >= 0) & (at < tokens), at, tokens)
        index = at[..., None].expand(-1, -1, -1, k.shape[3])
        for x, held in zip((k, v), self.x[layer], strict=True):
            padded = torch.nn.functional.pad(x.transpose(1, 2), (0, 0, 0, 1))
            padded.scatter_(2, index, held[self.rows[:, 0].long()].to(x.dtype))
            x.copy_(padded[:, :, :tokens].transpose(1, 2))

    def crop(self, cut: int) -> None:
        """Forget what lies at position ``cut`` or behind."""
        self.counts = (self.live() & (self.positions < cut)).sum(-1, dtype=torch.int32)

    def select(self, rows: Tensor) -> None:
        """Keep some sequences, in the order given."""
        self.positions, self.counts, self.rows = (x[rows] for x in (self.positions, self.counts, self.rows))
        self._shared = True

    def live_bytes(self) -> int:
        """Bytes of the tokens, each once however many sequences share it, and of their positions."""
        counts = self.counts.sum(-1).tolist()
        vectors = dict(zip(self.rows[:, 0].tolist(), counts, strict=True))  # of every row that is held
        token = 4 * self.x.shape[-1] * self.x.element_size()
        return sum(vectors.values()) * token + sum(counts) * self.positions.element_size()

    def allocated_bytes(self) -> int:
        """Bytes of the buffers."""
        return self.x.numel() * self.x.element_size() + self.positions.numel() * self.positions.element_size()
