"""The division factor of mode kseq (SpecTr, arXiv 2310.15141)."""

from torch import Tensor

from .._exact import ONE, fixed

#: Steps of the search, and what float32 laws are off by.
_BINS = 256
_ROUNDING = 2.0**-22


def beta_of(upper: int, lower: int, rho: float, m: float) -> float:
    """Chance that a draft passes its test: the sum of min(p, q / rho)."""
    return upper / ONE + lower / ONE / m / rho


def none_of(beta: float, count: int) -> float:
    """Chance that none of so many drafts passes."""
    total = 1.0
    for _ in range(count):
        total *= 1 - beta
    return max(total, 0.0)


def division_factor(q: Tensor, m: float, p: Tensor, count: int) -> float:
    """The smallest division factor of a grid that is valid for ``count`` drafts (SpecTr, arXiv 2310.15141).

    256 steps of [1, count], then 256 steps of the one that holds the root.
    """
    if count == 1:
        return 1.0
    low, step = 1.0, (count - 1) / _BINS
    weights_p, weights_q = fixed(p), fixed(q)
    for round_ in range(2):
        for j in range(_BINS + 1):
            rho = low + step * j
            high = q.double() >= rho * m * p.double()
            beta = beta_of(int(weights_p[high].sum()), int(weights_q[~high].sum()), rho, m)
            if 1 - none_of(beta, count) - rho * beta <= _ROUNDING:
                break
        if round_ == 1 or j == 0:
            return low + step * j
        low, step = low + step * (j - 1), step / _BINS
    return low
