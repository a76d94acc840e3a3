"""Drafts as each mode needs them, drawn under the contract: tag 2, slot = child ordinal."""

import numpy as np

from .philox import DRAFT, categorical_rows, r64


def draft_rows(mode, p, k, seed, stream, pos):
    """int64 [B, k] from p fp32 [B, V]; stream and pos are uint64 arrays [B] or ints."""
    rows, weights = np.arange(len(p)), p.copy()
    likeliest = np.argsort(-p, -1, kind="stable")[:, :k]
    if mode in ("target_only", "greedy", "typical"):
        return likeliest
    out = np.empty((len(p), k), np.int64)
    for slot in range(k):
        if mode == "greedy_plus_one" and slot < k - 1:
            out[:, slot] = likeliest[:, slot]
        else:
            bits = r64(seed, stream, pos, slot, DRAFT)
            out[:, slot] = categorical_rows(np.broadcast_to(np.asarray(bits, np.uint64), len(p)), weights)
        if mode in ("rrs_wo", "greedy_plus_one", "lantern"):
            weights[rows, out[:, slot]] = 0
    return out


def drafts_of(mode, p, k, seed, stream, pos):
    """`draft_rows` for one row p [V]."""
    return draft_rows(mode, p[None], k, seed, stream, pos)[0].tolist()
