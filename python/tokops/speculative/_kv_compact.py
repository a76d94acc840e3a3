"""Compaction of a cache after a draft was verified: all layers in one call."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["kv_compact"]

_NAME = "kv_compact"


def _check(pools, block_table, base, rows, counts):
    refuse_unless(
        block_table.dim() in (2, 3),
        _NAME,
        f"block_table must have 2 or 3 dimensions, got {block_table.dim()}",
    )
    shape = block_table.shape[:-1]
    for name, x, dims, wanted, words in (
        ("block_table", block_table, block_table.dim(), None, ""),
        ("base", base, len(shape), shape, "block_table's shape without its last axis"),
        ("rows", rows, 2, None, ""),
        ("counts", counts, 1, shape[:1], "[B]"),
    ):
        if x is not None:
            check_tensor(_NAME, name, x, dims, (torch.int32,), block_table)
            if wanted is not None:
                check_shape(_NAME, name, x, wanted, words)
    refuse_unless(
        rows.shape[0] == shape[0], _NAME, f"rows must be [B, n] with B {shape[0]}, got {list(rows.shape)}"
    )
    first = None
    for i, pool in enumerate(pools):
        name, dims = f"pools[{i}]", pool.dim()
        refuse_unless(dims in (4, 5), _NAME, f"{name} must have 4 or 5 dimensions, got {dims}")
        check_tensor(_NAME, name, pool, dims, (pool.dtype,), block_table)
        refuse_unless(
            pool.shape[-1] <= 1 or pool.stride(-1) == 1,
            _NAME,
            f"{name} must have a contiguous last dimension",
        )
        if dims == 5:
            twice = pool.shape[0] > 1 and pool.stride(0) == 0
            refuse_unless(not twice, _NAME, "pools must not hold a pool twice")
            if not pool.shape[0]:
                continue
        shape = pool.shape[-4:]
        first = shape if first is None else first
        n, heads, size = first[:3]
        heads = 1 if block_table.dim() == 3 else heads
        refuse_unless(
            tuple(shape[:3]) == (n, heads, size),
            _NAME,
            f"{name} must be [N, H, P, D] with N {n}, H {heads}, P {size}, got {list(shape)}",
        )
    if first is not None:
        room = block_table.shape[-1] * first[2]
        refuse_unless(room < 2**31 - 1, _NAME, f"pages * page size must be below 2^31, got {room}")


def _each(pools):
    """Pools of four dimensions, views of those that lie together."""
    return [one for pool in pools for one in (pool if pool.dim() == 5 else [pool])]


def _check_values(pools, block_table, base, rows, counts):
    begins = [pool.data_ptr() for pool in pools if pool.numel()]
    refuse_unless(len(set(begins)) == len(begins), _NAME, "pools must not hold a pool twice")
    n, size = rows.shape[1], pools[0].shape[2]
    cap = block_table.shape[-1] * size
    if counts is None:
        counts = torch.full((rows.shape[0],), n, dtype=torch.int32, device=rows.device)
    ok = (counts >= 0) & (counts <= n)
    refuse_unless(bool(ok.all()), _NAME, f"counts must be 0..{n}, got {counts.tolist()}")
    live = torch.arange(n, device=rows.device) < counts[:, None]
    before = torch.nn.functional.pad(rows, (1, 0), value=-1)[:, :-1]
    refuse_unless(bool(((rows > before) | ~live).all()), _NAME, "rows must be strictly ascending from 0 up")
    last = torch.where(live, rows, -1).long().amax(-1) if n else base.new_full(rows.shape[:1], -1)
    end = base + (last + 1 if base.dim() == 1 else (last + 1)[:, None])
    refuse_unless(
        bool(((base >= 0) & (end <= cap)).all()),
        _NAME,
        f"base must be >= 0 and base + rows below {cap} (pages * page size), got base {base.flatten().tolist()[:8]}",
    )
    column = torch.arange(block_table.shape[-1], device=rows.device) * size
    used = (column + size > base[..., None]) & (column < end[..., None])
    used &= (counts > 0).view(-1, *[1] * (used.dim() - 1))
    wrong = used & ((block_table < 0) | (block_table >= pools[0].shape[0]))
    refuse_unless(
        not bool(wrong.any()),
        _NAME,
        f"block_table entries must be 0..{pools[0].shape[0] - 1} for pages in use",
    )


@op(
    "kv_compact(Tensor(a!)[] pools, Tensor block_table, Tensor base, Tensor rows, *, Tensor? counts=None) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def reference(pools, block_table, base, rows, *, counts=None):
    """The definition: read all kept rows, then write them, pool by pool."""
    _check(pools, block_table, base, rows, counts)
    pools = _each(pools)
    if not pools:
        return
    _check_values(pools, block_table, base, rows, counts)
    n, size = rows.shape[1], pools[0].shape[2]
    heads = block_table.shape[1] if block_table.dim() == 3 else pools[0].shape[1]
    table = block_table if block_table.dim() == 3 else block_table[:, None].expand(-1, heads, -1)
    start = (base if base.dim() == 2 else base[:, None].expand(-1, heads)).long()[..., None]
    live = torch.ones_like(rows, dtype=torch.bool)
    if counts is not None:
        live = torch.arange(n, device=rows.device) < counts[:, None]
    live = live[:, None].expand(-1, heads, -1)
    if not bool(live.any()):
        return
    new = start + torch.arange(n, device=rows.device)
    source, target = (
        _places(table, torch.where(live, x, 0), size, block_table.dim() == 3, live)
        for x in (start + rows.long()[:, None], new)
    )
    for pool in pools:
        pool[target] = pool[source]


def _places(table, positions, size, per_head, live):
    """Page, head and slot of the live ones of logical positions ``[B, H, n]``."""
    page = torch.gather(table.long(), 2, positions // size)
    head = torch.arange(table.shape[1], device=table.device)[None, :, None].expand_as(page)
    return page[live], (torch.zeros_like(head) if per_head else head)[live], (positions % size)[live]


@torch.library.register_fake("tokops::kv_compact")
def _(pools, block_table, base, rows, *, counts=None):
    _check(pools, block_table, base, rows, counts)


def kv_compact(
    pools: Sequence[Tensor], block_table: Tensor, base: Tensor, rows: Tensor, *, counts: Tensor | None = None
) -> None:
    """Move the accepted rows of a draft up behind the committed ones, in the pools of all layers, in place.

    Position ``base + rows[j]`` moves to ``base + j``. Rows are moved as bytes, so that pools may hold keys, values,
    codes or scales of any dtype. Positions past ``base + counts`` keep what they held; lengths are the caller's to
    lower.

    Args:
        pools: ``[N, H, P, D]`` each, or ``[L, N, H, P, D]`` for several that lie together (which costs the call as
            little as one); of any dtype and D, last axis contiguous, none twice; N, H and P are common. One launch
            moves up to 128 neighbouring pools of one shape.
        block_table: ``[B, pages]`` int32, or ``[B, H, pages]`` with pools ``[N, 1, P, D]``.
        base: ``[B]`` (or ``[B, H]``) int32 position that rows are counted from: that of the root.
        rows: ``[B, n]`` int32 rows to keep, strictly ascending from 0 up: the path of
            :func:`tokops.speculative.tree_verify`.
        counts: ``[B]`` int32 live entries of ``rows``; None: all n.

    Raises:
        RuntimeError: wrong shape, dtype, device or range (values: on the CPU, and on CUDA with TOKOPS_CHECK=1), naming
            the argument.
    """
    pools = list(pools)
    if block_table.is_cuda and checked():
        _check(pools, block_table, base, rows, counts)
        if each := _each(pools):
            _check_values(each, block_table, base, rows, counts)
    torch.ops.tokops.kv_compact.default(pools, block_table, base, rows, counts=counts)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        shapes = [(60, 1, 3, 64, 130, 8, 64), (60, 32, 8, 64, 20, 8, 128)]
    else:
        shapes = [
            (2, 2, 3, 4, 5, 6, 8),
            (3, 3, 2, 16, 2, 20, 33),
            (1, 1, 1, 1, 12, 12, 1),
            (130, 1, 2, 8, 2, 3, 16),
        ]
    for layers, b, heads, page, pages, n, d in shapes:
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            for per_head in (False, True):
                lists = (b, heads, pages) if per_head else (b, pages)
                count = b * pages * (heads if per_head else 1)
                table = torch.randperm(count + 2, generator=gen)[:count].view(lists).int()
                shape = (count + 2, 1 if per_head else heads, page, d)
                pools = [torch.randint(0, 100, shape, generator=gen).to(dtype) for _ in range(layers)]
                most = page * pages
                kept = [torch.randperm(most // 2 + 1, generator=gen)[:n].sort().values for _ in range(b)]
                width = min(len(x) for x in kept)
                rows = torch.stack([x[:width] for x in kept]).int()
                base = torch.randint(0, most // 2, lists[:-1], generator=gen, dtype=torch.int32)
                words = f"B {b} H {heads} P {page} n {width} D {d} {str(dtype)[6:]}"
                label = f"{layers} pools {words}{' per head' * per_head}"
                yield _NAME, label, (pools, table, base, rows), {}
                counts = torch.randint(0, width + 1, (b,), generator=gen, dtype=torch.int32)
                yield _NAME, label + " ragged", (pools, table, base, rows), {"counts": counts}
    if size == "small":
        table, base = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        mixed = [torch.arange(12.0).view(1, 1, 4, 3), torch.arange(8, dtype=torch.int16).view(1, 1, 4, 2)]
        yield _NAME, "pools of two kinds", (mixed, table, base, torch.tensor([[1, 3]], dtype=torch.int32)), {}
        pair = torch.arange(48.0).view(2, 2, 1, 4, 3)
        kinds = [
            pair,
            torch.arange(8.0).view(2, 1, 4, 1),
            torch.empty(0, 2, 1, 4, 3),
            pair.clone().transpose(0, 1),
        ]
        zero, two = table.repeat(1, 2), torch.tensor([[1, 2]], dtype=torch.int32)
        yield _NAME, "pools that lie together", (kinds, table + 1, base, two), {}
        yield _NAME, "none that lie together", ([torch.empty(0, 2, 1, 4, 3)], zero, base, two), {}
        yield _NAME, "no pools", ([], table, base, torch.tensor([[1]], dtype=torch.int32)), {}
