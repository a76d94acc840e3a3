"""kv_compact against loops over single rows, bit by bit over whole pools, and what it refuses."""

import random

import pytest
import torch

from tokops._native import declared
from tokops.speculative import kv_compact


def place(pool, table, b, h, position):
    """The row of a logical position, as a view."""
    entries, head = (table[b, h], 0) if table.dim() == 3 else (table[b], h)
    return pool[int(entries[position // pool.shape[2]]), head, position % pool.shape[2]]


def by_hand(pools, table, base, rows, counts):
    """Every head of every sequence by itself: kept rows are read, then written."""
    for pool in (one for given in pools for one in (given if given.dim() == 5 else [given])):
        for b in range(len(table)):
            for h in range(table.shape[1] if table.dim() == 3 else pool.shape[1]):
                start = int(base[b, h] if base.dim() == 2 else base[b])
                kept = [place(pool, table, b, h, start + int(row)).clone() for row in rows[b, : counts[b]]]
                for j, row in enumerate(kept):
                    place(pool, table, b, h, start + j).copy_(row)


def case(seed):
    """Pools of several kinds, alone and together, behind one table; (pools, table, base, rows, counts)."""
    rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    batch, heads, page, pages = (
        rng.randint(1, 4),
        rng.randint(1, 4),
        rng.choice([1, 3, 8, 64]),
        rng.randint(1, 5),
    )
    per_head = rng.random() < 0.5
    lists = (batch, heads) if per_head else (batch,)
    entries = pages * torch.tensor(lists).prod().item()
    table = torch.randperm(entries + 3, generator=gen)[:entries].view(*lists, pages).int()
    shape, room = (entries + 3, 1 if per_head else heads, page), page * pages
    n = rng.randint(0, min(room, 80))
    base = torch.randint(0, room - n + 1, lists, generator=gen).int()
    width = rng.randint(n, room - int(base.max()))  # of the draft that rows are taken from
    kept = [torch.randperm(max(width, n), generator=gen)[:n].sort().values for _ in range(batch)]
    rows = torch.stack(kept).int()
    counts = torch.randint(0, n + 1, (batch,), generator=gen).int()
    pools = []
    for _ in range(rng.randint(1, 4)):
        dtype = rng.choice([torch.float32, torch.bfloat16, torch.uint8])
        many = [rng.choice([0, 1, 2, 3])] if rng.random() < 0.6 else []
        whole = torch.randint(0, 200, (*many, *shape, rng.choice([1, 5, 32, 64, 128])), generator=gen).to(
            dtype
        )
        if rng.random() < 0.5:  # as caches lay pools out: a head's pages side by side
            whole = whole.transpose(-4, -3).contiguous().transpose(-4, -3)
        pools.append(whole)
    return pools, table, base, rows, counts


@pytest.mark.parametrize("seed", range(60))
def test_rows_move_as_by_hand(seed, device):
    pools, table, base, rows, counts = case(seed)
    want = [pool.clone() for pool in pools]
    by_hand(want, table, base, rows, counts.tolist())
    got = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x) for x in pools]
    kv_compact(got, *(x.to(device) for x in (table, base, rows)), counts=counts.to(device))
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.cpu(), theirs)


def test_pools_that_lie_together_are_those_that_lie_apart():
    """Layers of a cache, more of them than one launch takes."""
    gen = torch.Generator().manual_seed(0)
    layers = [torch.randn(2, 3, 2, 8, 16, generator=gen) for _ in range(70)]
    apart = [half.clone() for layer in layers for half in layer]
    call = (
        torch.tensor([[2, 0]], dtype=torch.int32),
        torch.tensor([5], dtype=torch.int32),
        torch.tensor([[0, 2, 3, 9]], dtype=torch.int32),
    )
    kv_compact(layers, *call)
    kv_compact(apart, *call)
    assert torch.equal(torch.cat(layers), torch.stack(apart))


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def refusals():
    """(message, changes of the call)."""
    pool = torch.zeros(4, 2, 8, 16)
    yield "pools[0] must have 4 or 5 dimensions, got 3", {"pools": [pool[0]]}
    yield "pools[0] must have 4 or 5 dimensions, got 6", {"pools": [pool[None, None]]}
    yield "pools[1] must be [N, H, P, D] with N 4, H 2, P 8, got [3, 2, 8, 16]", {"pools": [pool, pool[:3]]}
    yield (
        "pools[1] must be [N, H, P, D] with N 4, H 2, P 8, got [4, 1, 8, 16]",
        {"pools": [pool, pool[:, :1]]},
    )
    yield (
        "pools[1] must be [N, H, P, D] with N 4, H 2, P 8, got [4, 2, 4, 16]",
        {"pools": [pool, pool[None, :, :, :4]]},
    )
    yield "pools[0] must have a contiguous last dimension", {"pools": [pool.mT]}
    yield "pools must not hold a pool twice", {"pools": [pool, pool]}
    yield "pools must not hold a pool twice", {"pools": [pool, pool.expand(2, -1, -1, -1, -1)]}
    yield "block_table must have 2 or 3 dimensions, got 1", {"block_table": int32(0)}
    yield "block_table must be int32, got int64", {"block_table": torch.zeros(2, 2, dtype=torch.int64)}
    yield (
        "must be [N, H, P, D] with N 4, H 1",
        {
            "block_table": torch.zeros(2, 2, 2, dtype=torch.int32),
            "base": torch.zeros(2, 2, dtype=torch.int32),
        },
    )
    yield "base must be block_table's shape without its last axis", {"base": int32(0)}
    yield "base must be int32, got float32", {"base": torch.zeros(2)}
    yield "rows must be [B, n] with B 2", {"rows": int32([0, 1])}
    yield "rows must have 2 dimensions, got 1", {"rows": int32(0, 1)}
    yield "rows must be int32, got int64", {"rows": torch.zeros(2, 1, dtype=torch.int64)}
    yield "counts must be [B]", {"counts": int32(1)}
    yield "counts must be 0..2", {"counts": int32(1, 3)}
    yield "counts must be 0..2", {"counts": int32(-1, 1)}
    yield "rows must be strictly ascending from 0 up", {"rows": int32([0, 1], [1, 1])}
    yield "rows must be strictly ascending from 0 up", {"rows": int32([0, 1], [-1, 1])}
    yield "base must be >= 0 and base + rows below 16", {"base": int32(0, -1)}
    yield "base must be >= 0 and base + rows below 16", {"base": int32(0, 13)}
    yield "base must be >= 0 and base + rows below 16", {"rows": int32([0, 1], [1, 2**31 - 1])}
    yield "block_table entries must be 0..3 for pages in use", {"block_table": int32([0, 1], [4, 2])}
    yield "block_table entries must be 0..3 for pages in use", {"block_table": int32([0, 1], [-1, 2])}


@pytest.mark.parametrize("way", ["kernel", "reference"])
@pytest.mark.parametrize(
    ("message", "changes"), [pytest.param(*r, id=f"{i}") for i, r in enumerate(refusals())]
)
def test_refusals(message, changes, way):
    call = {
        "pools": [torch.zeros(4, 2, 8, 16)],
        "block_table": int32([0, 1], [2, 3]),
        "base": int32(0, 3),
        "rows": int32([0, 1], [1, 3]),
        "counts": None,
        **changes,
    }
    op = kv_compact if way == "kernel" else declared["kv_compact"]
    with pytest.raises(RuntimeError) as caught:
        op(call.pop("pools"), call.pop("block_table"), call.pop("base"), call.pop("rows"), **call)
    assert "kv_compact: " in str(caught.value)
    assert message in str(caught.value)


def test_entries_of_pages_not_in_use_may_be_anything():
    pool = torch.arange(32.0).view(2, 1, 16, 1)
    kv_compact([pool], int32([7, 1, -9]), int32(20), int32([1, 4]))
    assert pool[1, 0, 4:9].flatten().tolist() == [21.0, 24.0, 22.0, 23.0, 24.0]
