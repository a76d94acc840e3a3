"""What the ops of the paged_decode family check before they run."""

import torch

from .._check import check_shape, check_softcap, check_tensor, refuse_unless
from . import logical


def check(
    op_name,
    q,
    k_pages,
    v_pages,
    block_table,
    seq_lens,
    q_lens=None,
    starts=None,
    selected=None,
    counts=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
):
    heads = logical.check_pages(op_name, k_pages, "k_pages", block_table, seq_lens, q.shape[0])
    logical.check_queries(op_name, q, k_pages, heads)
    check_tensor(op_name, "v_pages", v_pages, 4, (k_pages.dtype,), k_pages)
    check_shape(op_name, "v_pages", v_pages, k_pages.shape, "the shape of k_pages")
    refuse_unless(
        v_pages.stride(-1) == 1 or v_pages.shape[-1] <= 1,
        op_name,
        "v_pages must have a contiguous last dimension",
    )
    check_extras(
        op_name, q, heads, q_lens, starts, selected, counts, ancestors, sink_logit, log_gamma, softcap, window
    )
    return heads


def check_extras(
    op_name, q, heads, q_lens, starts, selected, counts, ancestors, sink_logit, log_gamma, softcap, window
):
    b, t, hq, _ = q.shape
    for name, x in (("q_lens", q_lens), ("starts", starts)):
        if x is not None:
            check_tensor(op_name, name, x, 1, logical.INT, q)
            check_shape(op_name, name, x, (b,), "[B]")
    for name, x in (("sink_logit", sink_logit), ("log_gamma", log_gamma)):
        if x is not None:
            check_tensor(op_name, name, x, 1, (torch.float32,), q)
            check_shape(op_name, name, x, (hq,), "[Hq]")
    refuse_unless(counts is None or selected is not None, op_name, "counts needs selected")
    if selected is not None:
        check_tensor(op_name, "selected", selected, 4, logical.INT, q)
        s, hs = selected.shape[1:3]
        refuse_unless(
            selected.shape[0] == b and s in (1, t) and hs in (1, heads, hq),
            op_name,
            f"selected must be [B, 1 or T, 1 or Hkv or Hq, k] with B {b}, T {t}, Hkv {heads}, Hq {hq}, "
            f"got {list(selected.shape)}",
        )
        if counts is not None:
            check_tensor(op_name, "counts", counts, 3, logical.INT, q)
            check_shape(op_name, "counts", counts, selected.shape[:3], "[B, S, Hs]")
    if ancestors is not None:
        check_tensor(op_name, "ancestors", ancestors, 3, (torch.int64,), q)
        words = (t + 63) // 64
        refuse_unless(
            tuple(ancestors.shape[:2]) == (b, t) and words <= ancestors.shape[2] <= 4,
            op_name,
            f"ancestors must be [B, T, W] with B {b}, T {t}, W {words}..4, got {list(ancestors.shape)}",
        )
    check_softcap(op_name, softcap)
    refuse_unless(window is None or window > 0, op_name, f"window must be > 0, got {window}")


def four_axes(selected, counts):
    """A selection ``[B, Hs, k]`` for all rows as ``[B, 1, Hs, k]``; what has four axes already stays."""
    if selected is None or selected.dim() != 3:
        return selected, counts
    return selected[:, None], counts[:, None] if counts is not None and counts.dim() == 2 else counts


def check_values(op_name, q, k_pages, block_table, seq_lens, q_lens, starts, selected, counts):
    logical.check_values(op_name, k_pages, block_table, seq_lens, q_lens, starts, q.shape[1])
    if selected is not None:
        heads = logical.kv_heads(k_pages, block_table)
        logical.check_selection(op_name, selected, counts, block_table, seq_lens, heads)


def scores_shape(q, heads, reduce, length):
    return (*q.shape[:2], q.shape[2] if reduce == "none" else heads, length)


def check_reduce(op_name, reduce, max_len, length):
    refuse_unless(reduce in ("none", "max", "sum"), op_name, f"reduce must be none, max or sum, got {reduce}")
    refuse_unless(
        max_len is None or 0 <= max_len <= length,
        op_name,
        f"max_len must be 0..{length} (pages * page size), got {max_len}",
    )
    return length if max_len is None else max_len
