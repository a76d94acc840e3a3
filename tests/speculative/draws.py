"""Drafts as each mode needs them."""

import numpy as np

from .philox import DRAFT, categorical_rows, r64


def draft_rows(mode, p, k, bits):
    """int64 [B, k] from p fp32 [B, V]; bits(slot) gives the random uint64 [B] of one child ordinal."""
    rows, weights = np.arange(len(p)), p.copy()
    likeliest = np.argsort(-p, -1, kind="stable")[:, :k]
    if mode in ("target_only", "greedy", "typical"):
        return likeliest
    out = np.empty((len(p), k), np.int64)
    for slot in range(k):
        if mode == "greedy_plus_one" and slot < k - 1:
            out[:, slot] = likeliest[:, slot]
        else:
            out[:, slot] = categorical_rows(bits(slot), weights)
        if mode in ("rrs_wo", "greedy_plus_one", "lantern"):
            weights[rows, out[:, slot]] = 0
    return out


def drafts_of(mode, p, k, seed, stream, pos):
    """Drafts from one row p [V] under the contract: tag 2, slot = child ordinal."""

    def bits(slot):
        return np.array([r64(seed, stream, pos, slot, DRAFT)], np.uint64)

    return draft_rows(mode, p[None], k, bits)[0].tolist()
