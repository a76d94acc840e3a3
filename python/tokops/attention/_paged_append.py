"""Writing of new keys and values into pages, and moving of rows that stay."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op
from . import logical

__all__ = ["paged_append", "paged_gather_rows"]


def _check_pools(op_name, k_pages, v_pages, block_table, seq_lens):
    heads = logical.check_pages(op_name, k_pages, "k_pages", block_table, seq_lens, block_table.shape[0])
    check_tensor(op_name, "v_pages", v_pages, 4, (k_pages.dtype,), k_pages)
    check_shape(op_name, "v_pages", v_pages, k_pages.shape, "the shape of k_pages")
    refuse_unless(
        v_pages.stride(-1) == 1 or v_pages.shape[-1] <= 1,
        op_name,
        "v_pages must have a contiguous last dimension",
    )
    return heads


def _check_append(k_pages, v_pages, block_table, seq_lens, k, v, q_lens):
    heads = _check_pools("paged_append", k_pages, v_pages, block_table, seq_lens)
    b, d = block_table.shape[0], k_pages.shape[3]
    for name, x in (("k", k), ("v", v)):
        check_tensor("paged_append", name, x, 4, (k_pages.dtype,), k_pages)
        check_shape("paged_append", name, x, (b, k.shape[1], heads, d), "[B, T, Hkv, D]")
    if q_lens is not None:
        check_tensor("paged_append", "q_lens", q_lens, 1, logical.INT, k_pages)
        check_shape("paged_append", "q_lens", q_lens, (b,), "[B]")
    return heads


def _check_append_values(k_pages, block_table, seq_lens, q_lens, rows):
    logical.check_values("paged_append", k_pages, block_table, seq_lens, q_lens, None, rows)


def _slots(pages, block_table, heads, positions):
    """Page, head and slot ``[B, Hkv, n]`` of logical positions ``[B, Hkv, n]``."""
    table = block_table if block_table.dim() == 3 else block_table[:, None].expand(-1, heads, -1)
    size = pages.shape[2]
    page = torch.gather(table.long(), 2, positions // size)
    head = (
        torch.arange(heads, device=pages.device)
        if pages.shape[1] == heads
        else torch.zeros(heads, dtype=torch.long, device=pages.device)
    )
    return page, head[None, :, None].expand_as(page), positions % size


@op(
    "paged_append(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor block_table, Tensor seq_lens, Tensor k, "
    "Tensor v, *, Tensor? q_lens=None) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def append_reference(k_pages, v_pages, block_table, seq_lens, k, v, *, q_lens=None):
    """The definition: one indexed assignment per pool."""
    heads = _check_append(k_pages, v_pages, block_table, seq_lens, k, v, q_lens)
    t = k.shape[1]
    _check_append_values(k_pages, block_table, seq_lens, q_lens, t)
    first, exists = logical.row_positions(seq_lens, q_lens, t, heads)
    positions = (first[..., None] + torch.arange(t, device=k.device)).clamp_min(0)  # [B, Hkv, T]
    live = exists[:, None].expand_as(positions)
    positions = torch.where(live, positions, 0)
    if not bool(live.any()):
        return
    index = tuple(x[live] for x in _slots(k_pages, block_table, heads, positions))
    k_pages[index] = k.transpose(1, 2)[live]
    v_pages[index] = v.transpose(1, 2)[live]


@torch.library.register_fake("tokops::paged_append")
def _(k_pages, v_pages, block_table, seq_lens, k, v, *, q_lens=None):
    _check_append(k_pages, v_pages, block_table, seq_lens, k, v, q_lens)


def paged_append(
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_lens: Tensor | None = None,
) -> None:
    """Write new keys and values into pages, in place: row ``i`` goes to position ``seq_lens - q_lens + i``.

    Args:
        k_pages, v_pages: ``[N, Hkv, P, D]`` float32, bfloat16 or float16 pools, as in
            :func:`tokops.attention.paged_decode`; no two sequences may share a page that is written.
        block_table: ``[B, pages]`` or ``[B, Hkv, pages]`` int32.
        seq_lens: ``[B]`` (or ``[B, Hkv]``) int32 lengths after the append; 0 writes nothing.
        k, v: ``[B, T, Hkv, D]`` in the pools' dtype, any strides.
        q_lens: ``[B]`` int32 rows to write per sequence; None: all T.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument.
    """
    if k_pages.is_cuda and checked():
        _check_append_values(k_pages, block_table, seq_lens, q_lens, k.shape[1])
    torch.ops.tokops.paged_append.default(k_pages, v_pages, block_table, seq_lens, k, v, q_lens=q_lens)


def _check_gather(k_pages, v_pages, block_table, base, rows, counts):
    if block_table.dim() in (2, 3):
        check_tensor("paged_gather_rows", "base", base, block_table.dim() - 1, logical.INT, block_table)
        check_shape(
            "paged_gather_rows",
            "base",
            base,
            block_table.shape[:-1],
            "block_table's shape without its last axis",
        )
    heads = _check_pools("paged_gather_rows", k_pages, v_pages, block_table, base)
    check_tensor("paged_gather_rows", "rows", rows, 2, logical.INT, k_pages)
    refuse_unless(
        rows.shape[0] == block_table.shape[0],
        "paged_gather_rows",
        f"rows must be [B, n] with B {block_table.shape[0]}, got {list(rows.shape)}",
    )
    if counts is not None:
        check_tensor("paged_gather_rows", "counts", counts, 1, logical.INT, k_pages)
        check_shape("paged_gather_rows", "counts", counts, rows.shape[:1], "[B]")
    return heads


def _check_gather_values(k_pages, block_table, base, rows, counts):
    name = "paged_gather_rows"
    heads, cap = logical.kv_heads(k_pages, block_table), logical.capacity(k_pages, block_table)
    n = rows.shape[1]
    if counts is None:
        counts = torch.full_like(rows[:, 0], n) if n else rows.new_zeros(rows.shape[0])
    refuse_unless(
        bool(((counts >= 0) & (counts <= n)).all()), name, f"counts must be 0..{n}, got {counts.tolist()}"
    )
    live = torch.arange(n, device=rows.device) < counts[:, None]
    rising = (rows >= torch.arange(n, device=rows.device)) & (
        torch.nn.functional.pad(rows, (1, 0), value=-1)[:, :-1] < rows
    )
    refuse_unless(bool((rising | ~live).all()), name, "rows must be strictly ascending from 0 up")
    refuse_unless(bool((base >= 0).all()), name, f"base must be >= 0, got {base.tolist()}")
    last = torch.where(live, rows, -1).amax(-1) if n else rows.new_full(rows.shape[:1], -1)
    end = logical.per_head(base, heads) + (last + 1)[:, None]
    refuse_unless(bool((end <= cap).all()), name, f"base + rows must be below {cap} (pages * page size)")
    logical.check_values(name, k_pages, block_table, (end if block_table.dim() == 3 else end[:, 0]).int())


@op(
    "paged_gather_rows(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor block_table, Tensor base, Tensor rows, "
    "*, Tensor? counts=None) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def gather_reference(k_pages, v_pages, block_table, base, rows, *, counts=None):
    """The definition: read all kept rows, then write them."""
    heads = _check_gather(k_pages, v_pages, block_table, base, rows, counts)
    _check_gather_values(k_pages, block_table, base, rows, counts)
    n = rows.shape[1]
    live = torch.ones_like(rows, dtype=torch.bool)
    if counts is not None:
        live = torch.arange(n, device=rows.device) < counts[:, None]
    live = live[:, None].expand(-1, heads, -1)
    if not bool(live.any()):
        return
    start = logical.per_head(base, heads).long()[..., None]
    old = torch.where(live, start + rows.long()[:, None], 0)
    new = torch.where(live, start + torch.arange(n, device=rows.device), 0)
    source = tuple(x[live] for x in _slots(k_pages, block_table, heads, old))
    target = tuple(x[live] for x in _slots(k_pages, block_table, heads, new))
    for pages in (k_pages, v_pages):
        pages[target] = pages[source]


@torch.library.register_fake("tokops::paged_gather_rows")
def _(k_pages, v_pages, block_table, base, rows, *, counts=None):
    _check_gather(k_pages, v_pages, block_table, base, rows, counts)


def paged_gather_rows(
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    base: Tensor,
    rows: Tensor,
    *,
    counts: Tensor | None = None,
) -> None:
    """Keep some cached rows, in place: position ``base + rows[j]`` moves to ``base + j`` (compaction).

    Args:
        k_pages, v_pages, block_table: as in :func:`paged_append`.
        base: ``[B]`` (or ``[B, Hkv]``) int32 position that rows are counted from.
        rows: ``[B, n]`` int32 rows to keep, strictly ascending from 0 up.
        counts: ``[B]`` int32 live entries of ``rows``; None: all n.

    Positions past ``base + counts`` keep what they held; lengths are the caller's to lower.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument.
    """
    if k_pages.is_cuda and checked():
        _check_gather_values(k_pages, block_table, base, rows, counts)
    torch.ops.tokops.paged_gather_rows.default(k_pages, v_pages, block_table, base, rows, counts=counts)


def _case_pools(gen, batch, heads, size, pages, d, dtype, per_head):
    """Pools, and a table whose entries are all different."""
    rows = (batch, heads, pages) if per_head else (batch, pages)
    table = (
        torch.randperm(batch * pages * (heads if per_head else 1) + 2, generator=gen)[:-2].view(rows).int()
    )
    shape = (table.numel() + 2, 1 if per_head else heads, size, d)
    return *(torch.randn(shape, generator=gen).to(dtype) for _ in range(2)), table


def _case_rows(gen, batch, heads, capacity, n, per_head):
    """Lengths that leave room for n rows, and row counts 0..n."""
    lens = torch.randint(
        n, capacity + 1, (batch, heads) if per_head else (batch,), generator=gen, dtype=torch.int32
    )
    return lens, torch.randint(0, n + 1, (batch,), generator=gen, dtype=torch.int32)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the two ops, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        shapes = [(8, 8, 64, 256, 1, 128), (1, 8, 16384, 1, 8000, 128)]
    else:
        shapes = [(2, 3, 4, 5, 1, 8), (3, 2, 16, 2, 7, 33), (1, 1, 1, 12, 12, 1), (2, 2, 64, 1, 5, 64)]
        shapes.append((1, 1, 8, 6, 9, 600))  # more columns than a CUDA block has threads, where unaligned
    for batch, heads, page, pages, n, d in shapes:
        for dtype in FLOATS:
            for per_head in (False, True):
                pools = _case_pools(gen, batch, heads, page, pages, d, dtype, per_head)
                lens, counts = _case_rows(gen, batch, heads, page * pages, n, per_head)
                k, v = (torch.randn(batch, n, heads, d, generator=gen).to(dtype) for _ in range(2))
                label = f"B {batch} Hkv {heads} P {page} n {n} D {d} {str(dtype)[6:]}{' per head' * per_head}"
                yield "paged_append", label, (*pools, lens, k, v), {}
                yield "paged_append", label + " ragged", (*pools, lens, k, v), {"q_lens": counts}
                most = int(lens.amin())
                kept = torch.stack(
                    [torch.randperm(most, generator=gen)[:n].sort().values for _ in range(batch)]
                ).int()
                base = lens - most
                yield "paged_gather_rows", label, (*pools, base, kept), {}
                yield "paged_gather_rows", label + " ragged", (*pools, base, kept), {"counts": counts}
