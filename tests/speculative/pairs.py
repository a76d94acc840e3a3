"""Pairs of target and draft laws that anyone can generate again: the fixture G, and softmax of Philox sums."""

from fractions import Fraction

import numpy as np

from .philox import philox

SEED, STREAM = 0x123456789ABCDEF0, 7
G_P = [Fraction(n, 64) for n in (32, 16, 8, 4, 2, 1, 1, 0)]
G_Q = [Fraction(n, 64) for n in (8, 8, 16, 8, 8, 8, 4, 4)]


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def pair(size, sigma, c, seed):
    """(q, p) in fp64: the draft's logits correlate with the target's by c."""
    x = np.arange(size, dtype=np.uint64)
    z0, z1 = (np.sqrt(3) * (sum(w / 2.0**32 for w in philox((x, j, 0, 0), (seed, 0))) - 2) for j in (0, 1))
    return softmax(sigma * z0), softmax(sigma * (c * z0 + np.sqrt(1 - c * c) * z1))


def markov(size, sigma, c, base):
    """Rows (q, p) of an order-1 chain: the pair of every context."""
    rows = [pair(size, sigma, c, base + context) for context in range(size)]
    return np.stack([q for q, _ in rows]), np.stack([p for _, p in rows])
