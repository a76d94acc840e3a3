"""Tokens per target call of Markov pairs by exact dynamic programme, and acceptance for vocabularies of any size."""

from functools import cache
from itertools import product

import numpy as np

from .laws import division_factor


def residuals(q, p, k):
    """R_1..R_k of recursive rejection with replacement; they do not depend on the drafts."""
    rows = [q]
    for _ in range(k - 1):
        left = np.maximum(rows[-1] - p, 0)
        rows.append(left / left.sum() if left.sum() > 0 else left)
    return rows


def tests_of(rule, q, p, m):
    """[m, V]: chance that draft i, when it is x and all before it failed, is accepted."""
    if rule == "kseq":
        return np.tile(np.minimum(1, q / (division_factor(q, p, m) * p)), (m, 1))
    return np.minimum(1, np.stack(residuals(q, p, m)) / p)


def survivors(rule, q, p, m):
    """[m + 1, V]: chance that y is emitted and equals j of the m i.i.d. drafts, j >= 1; row 0 is unused."""
    size, out = len(q), np.zeros((m + 1, len(q)))
    drafts = np.array(list(product(range(size), repeat=m)))
    equal = (drafts[:, :, None] == drafts[:, None, :]).sum(-1)
    chance = p[drafts].prod(-1)
    if rule == "match":  # y is drawn first, whatever the drafts are
        for y in range(size):
            np.add.at(out, ((drafts == y).sum(-1), y), chance * q[y])
    else:
        accept = tests_of(rule, q, p, m)
        for i in range(m):
            passes = accept[i][drafts[:, i]]
            np.add.at(out, (equal[:, i], drafts[:, i]), chance * passes)
            chance = chance * (1 - passes)
    out[0] = 0
    return out


def iid_block(rule, q_rows, p_rows, k, length):
    """E[tokens] of k i.i.d. sequences, averaged over the first context."""
    size = len(q_rows)
    table = cache(lambda context, m: survivors(rule, q_rows[context], p_rows[context], m))

    @cache
    def tokens(context, m, left):
        if left == 0:
            return 1.0
        goes_on = table(context, m)
        return 1 + sum(
            goes_on[j, y] * tokens(y, j, left - 1)
            for j in range(1, m + 1)
            for y in range(size)
            if goes_on[j, y]
        )

    return sum(tokens(context, k, length) for context in range(size)) / size


def root_tree(accept, chain, size, length):
    """E[tokens] of children at the root and one chain under each.

    accept(context) and chain(context) give, by token, the chance that it is accepted there.
    """
    step, root = np.stack([chain(c) for c in range(size)]), np.stack([accept(c) for c in range(size)])
    tokens = np.ones(size)
    for _ in range(length - 1):
        tokens = 1 + step @ tokens
    return float((1 + root @ tokens).mean())


def closed_forms(q, p, k):
    """Acceptance of rules whose chance needs no enumeration, for any V: by column of the published table."""
    top = np.lexsort((np.arange(len(p)), -p))
    chosen = top[: k - 1]
    others = p.copy()
    others[chosen] = 0
    others /= others.sum()
    rho = division_factor_arrays(q, p, k)
    return {
        "DtM": float((q * (1 - (1 - p) ** k)).sum()),
        "RRS": float(1 - np.prod([1 - np.minimum(p, r).sum() for r in residuals(q, p, k)])),
        "k-SEQ": float(1 - (1 - np.minimum(p, q / rho).sum()) ** k),
        "G+1": float(q[chosen].sum() + np.minimum(q, others).sum()),
        "top": float(q[top[:k]].sum()),
        "rho": rho,
    }


def division_factor_arrays(q, p, m):
    """`division_factor` for long rows: the same bisection on arrays."""

    def valid(rho):
        one = np.minimum(p, q / rho).sum()
        return 1 - (1 - one) ** m - rho * one <= 0

    low, high = 1.0, float(m)
    if m == 1 or valid(1.0):
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if valid(middle) else (middle, high)
    return high
