"""Random inputs for the ops over pages: what `cases`, the tests and the benchmarks draw from."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Paged:
    """A filled cache, its table and lengths, and queries against it."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    block_table: Tensor
    seq_lens: Tensor
    extra: dict[str, object] = field(default_factory=dict)

    @property
    def decode_args(self) -> tuple[Tensor, ...]:
        return self.q, self.k_pages, self.v_pages, self.block_table, self.seq_lens

    @property
    def score_args(self) -> tuple[Tensor, ...]:
        return self.q, self.k_pages, self.block_table, self.seq_lens


def paged(
    seed: int = 0,
    *,
    lens: list[int],
    rows: int = 1,
    heads: int = 2,
    group: int = 2,
    dim: int = 64,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    per_head: bool = False,
    device: torch.device | str = "cpu",
) -> Paged:
    """Sequences of the given lengths in shuffled pages, a spare page between; per_head shortens later heads."""
    g = torch.Generator().manual_seed(seed)
    batch, pages = len(lens), max(1, -(-max(lens) // page))
    tables = (batch, heads, pages) if per_head else (batch, pages)
    count = torch.Size(tables).numel() + 1
    shape = (2, count, 1 if per_head else heads, page, dim)
    k, v = torch.randn(shape, generator=g).to(dtype)
    table = torch.randperm(count, generator=g)[:-1].int().view(tables)
    length = torch.tensor(lens, dtype=torch.int32)
    if per_head:
        less = torch.arange(heads, dtype=torch.int32) * 3
        length = torch.where(length[:, None] > 0, (length[:, None] - less).clamp_min(rows), 0).int()
    q = torch.randn(batch, rows, heads * group, dim, generator=g).to(dtype)
    return Paged(q.to(device), k.to(device), v.to(device), table.to(device), length.to(device))


def selection(
    seed: int, lens: list[int], rows: int, heads: int, k: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random ascending lists ``[B, rows, heads, k]`` of at most k positions below each length, and counts."""
    g = torch.Generator().manual_seed(seed)
    selected = torch.full((len(lens), rows, heads, k), -1, dtype=torch.int32)
    counts = torch.zeros(len(lens), rows, heads, dtype=torch.int32)
    for b, length in enumerate(lens):
        for s in range(rows):
            for h in range(heads):
                n = (
                    int(torch.randint(0, min(k, length) + 1, (), generator=g))
                    if (s + h) % 3
                    else min(k, length)
                )
                selected[b, s, h, :n] = torch.randperm(length, generator=g)[:n].sort().values.int()
                counts[b, s, h] = n
    return selected.to(device), counts.to(device)


def tree(seed: int, batch: int, nodes: int, device: torch.device | str = "cpu") -> Tensor:
    """Ancestor words ``[B, nodes, W]`` of random trees whose root is node 0."""
    g = torch.Generator().manual_seed(seed)
    words = torch.zeros(batch, nodes, (nodes + 63) // 64, dtype=torch.int64)
    for b in range(batch):
        for i in range(nodes):
            if i:
                words[b, i] = words[b, int(torch.randint(0, i, (), generator=g))]
            bit = 1 << (i % 64)
            words[b, i, i // 64] |= bit if bit < 1 << 63 else -(1 << 63)
    return words.to(device)


def vector(seed: int, n: int) -> Tensor:
    """Normal float32 numbers."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
