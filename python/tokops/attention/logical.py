"""What the references of this family share: pages read in logical order, and who may see whom."""

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless

INT = (torch.int32,)


def per_head(x: Tensor, heads: int) -> Tensor:
    """``[B]`` or ``[B, Hkv]`` lengths as ``[B, Hkv]``."""
    return x[:, None].expand(-1, heads) if x.dim() == 1 else x


def kv_heads(pages: Tensor, block_table: Tensor) -> int:
    """KV heads: the pool's, or the table's where each head has its own."""
    return block_table.shape[1] if block_table.dim() == 3 else pages.shape[1]


def capacity(pages: Tensor, block_table: Tensor) -> int:
    """Most tokens one table row can address."""
    return block_table.shape[-1] * pages.shape[2]


def check_pages(op: str, pages: Tensor, name: str, block_table: Tensor, seq_lens: Tensor, batch: int) -> int:
    """Check a pool against its table and lengths; return the number of KV heads."""
    check_tensor(op, name, pages, 4, FLOATS, block_table)
    check_tensor(op, "block_table", block_table, (2, 3), INT, pages)
    check_tensor(op, "seq_lens", seq_lens, (1, 2), INT, pages)
    refuse_unless(
        pages.shape[-1] <= 1 or pages.stride(-1) == 1, op, f"{name} must have a contiguous last dimension"
    )
    heads = kv_heads(pages, block_table)
    if block_table.dim() == 3:
        refuse_unless(
            pages.shape[1] == 1,
            op,
            f"{name} must have one head per page when block_table is [B, Hkv, pages], got {pages.shape[1]}",
        )
    refuse_unless(
        block_table.shape[0] == batch, op, f"block_table must have {batch} rows, got {block_table.shape[0]}"
    )
    want, words = ((batch, heads), "[B, Hkv]") if block_table.dim() == 3 else ((batch,), "[B]")
    check_shape(op, "seq_lens", seq_lens, want, words)
    return heads


def check_queries(op: str, q: Tensor, pages: Tensor, heads: int) -> None:
    """Check queries ``[B, T, Hq, D]`` against a pool of ``heads`` KV heads."""
    check_tensor(op, "q", q, 4, (pages.dtype,), pages)
    d = q.shape[3]
    refuse_unless(d == pages.shape[3], op, f"q has head dimension {d}, the pages {pages.shape[3]}")
    check_rows(op, q, heads)


def check_rows(op: str, q: Tensor, heads: int) -> None:
    """Check that queries fit the kernels and group evenly over the KV heads."""
    _, t, hq, d = q.shape
    refuse_unless(1 <= d <= 256, op, f"head dimension must be 1..256, got {d}")
    refuse_unless(1 <= t <= 256, op, f"q must have 1..256 rows per sequence, got {t}")
    refuse_unless(
        heads > 0 and hq % heads == 0 and 1 <= hq // heads <= 32,
        op,
        f"query heads must be 1..32 times the KV heads, got {hq} and {heads}",
    )


def check_values(
    op: str,
    pages: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    q_lens: Tensor | None = None,
    starts: Tensor | None = None,
    rows: int = 0,
) -> None:
    """Range-check index values (reads them on the host)."""
    heads, cap = kv_heads(pages, block_table), capacity(pages, block_table)
    refuse_unless(
        bool(((seq_lens >= 0) & (seq_lens <= cap)).all()),
        op,
        f"seq_lens must be 0..{cap} (pages * page size), got {seq_lens.tolist()}",
    )
    used = per_head(seq_lens, heads)
    if block_table.dim() == 2:
        used = used[:, :1]
    table = block_table if block_table.dim() == 3 else block_table[:, None]
    page = torch.arange(table.shape[-1], device=table.device) * pages.shape[2]
    needed = page < used[..., None]
    bad = needed & ((table < 0) | (table >= pages.shape[0]))
    refuse_unless(
        not bool(bad.any()),
        op,
        f"block_table entries must be 0..{pages.shape[0] - 1} for pages in use, got {table[bad][:4].tolist()}",
    )
    if q_lens is not None:
        ok = (q_lens >= 0) & (q_lens <= rows) & (q_lens <= used.amin(-1))
        refuse_unless(
            bool(ok.all()), op, f"q_lens must be 0..{rows} and at most seq_lens, got {q_lens.tolist()}"
        )
    elif rows:
        ok = (used >= rows).all(-1) | (used == 0).all(-1)
        refuse_unless(
            bool(ok.all()),
            op,
            f"seq_lens must count the {rows} new tokens (or be 0), got {seq_lens.tolist()}",
        )
    if starts is not None:
        refuse_unless(bool((starts >= 0).all()), op, f"starts must be >= 0, got {starts.tolist()}")


def check_selection(
    op: str, selected: Tensor, counts: Tensor | None, block_table: Tensor, seq_lens: Tensor, heads: int
) -> None:
    """Range-check a 4-D selection: ascending positions below the length, then -1."""
    k = selected.shape[-1]
    if counts is None:
        counts = (selected >= 0).sum(-1)
    refuse_unless(bool(((counts >= 0) & (counts <= k)).all()), op, f"counts must be 0..{k}")
    live = torch.arange(k, device=selected.device) < counts[..., None]
    hs = selected.shape[2]
    length = per_head(seq_lens, heads)
    length = length.amin(-1, keepdim=True) if hs == 1 else length.repeat_interleave(hs // heads, 1)
    inside = (selected >= 0) & (selected < length[:, None, :, None])
    refuse_unless(bool((inside | ~live).all()), op, "selected positions must be 0..seq_lens-1")
    rising = selected[..., 1:] > selected[..., :-1]
    refuse_unless(bool((rising | ~live[..., 1:]).all()), op, "selected positions must be strictly ascending")


def gather_logical(pages: Tensor, block_table: Tensor, heads: int) -> Tensor:
    """All pages of every sequence in logical order, ``[B, Hkv, pages * P, D]`` in float32."""
    table = block_table if block_table.dim() == 3 else block_table[:, None].expand(-1, heads, -1)
    b, _, n = table.shape
    head = (
        torch.arange(heads, device=pages.device)
        if pages.shape[1] == heads
        else torch.zeros(heads, dtype=torch.long, device=pages.device)
    )
    page = table.long().clamp(0, max(pages.shape[0] - 1, 0))
    rows = pages[page, head[None, :, None]]  # [B, Hkv, n, P, D]
    return rows.reshape(b, heads, n * pages.shape[2], pages.shape[3]).float()


def depths(ancestors: Tensor) -> Tensor:
    """Depth of each tree node, ``[B, T]``: how many ancestors it has besides itself."""
    return unpack_words(ancestors, ancestors.shape[-1] * 64).sum(-1) - 1


def unpack_words(words: Tensor, n: int) -> Tensor:
    """Bits ``[..., n]`` (bool) of int64 words ``[..., W]``, lowest bit first."""
    bit = torch.arange(64, device=words.device)
    return ((words[..., None] >> bit) & 1).flatten(-2)[..., :n].bool()


def row_positions(seq_lens: Tensor, q_lens: Tensor | None, t: int, heads: int) -> tuple[Tensor, Tensor]:
    """First new position ``[B, Hkv]`` and the rows that exist ``[B, T]``."""
    length = per_head(seq_lens, heads).long()
    b = length.shape[0]
    n = torch.where(length.amin(-1) > 0, t, 0) if q_lens is None else q_lens.long()
    exists = torch.arange(t, device=seq_lens.device)[None].expand(b, t) < n[:, None]
    return length - n[:, None], exists


def visible(
    seq_lens: Tensor,
    q_lens: Tensor | None,
    starts: Tensor | None,
    ancestors: Tensor | None,
    window: int | None,
    t: int,
    heads: int,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Who sees whom, ``[B, T, Hkv, L]`` bool, and each row's logical position ``[B, T, Hkv]``."""
    device = seq_lens.device
    first, exists = row_positions(seq_lens, q_lens, t, heads)  # [B, Hkv], [B, T]
    row = torch.arange(t, device=device)
    key = torch.arange(length, device=device)
    depth = depths(ancestors) if ancestors is not None else row[None].expand(first.shape[0], t)
    position = first[:, None] + depth[..., None]  # [B, T, Hkv]
    if ancestors is None:
        see = key <= position[..., None]
        key_position = key.expand(first.shape[0], heads, length)
    else:
        node = key - first[..., None]  # [B, Hkv, L]: index among the new tokens
        in_tree = (node >= 0) & (node < t)
        slot = node.clamp(0, t - 1)
        bits = unpack_words(ancestors, t)  # [B, T, T]
        tree = torch.gather(
            bits[:, :, None].expand(-1, -1, heads, -1), 3, slot[:, None].expand(-1, t, -1, -1)
        )
        see = torch.where(in_tree[:, None], tree, key < first[:, None, :, None])
        node_depth = torch.gather(depth[:, None].expand(-1, heads, -1), 2, slot)
        key_position = torch.where(in_tree, first[..., None] + node_depth, key)
    see = see & (key < per_head(seq_lens, heads)[:, None, :, None])
    if starts is not None:
        see = see & (key >= starts[:, None, None, None])
    if window is not None:
        see = see & (key_position[:, None] > position[..., None] - window)
    return see & exists[..., None, None], position


def group_logits(q: Tensor, keys: Tensor, scale: float | None) -> Tensor:
    """``scale * q . k`` as ``[B, T, Hkv, G, L]`` float32; NaN counts as -inf, +inf as the largest float."""
    b, t, hq, d = q.shape
    heads = keys.shape[1]
    grouped = q.float().view(b, t, heads, hq // heads, d)
    logits = torch.einsum("bthgd,bhld->bthgl", grouped, keys) * (d**-0.5 if scale is None else scale)
    return logits.nan_to_num(nan=float("-inf"), posinf=torch.finfo(torch.float32).max, neginf=float("-inf"))
