"""How much cross-entropy low-bit weights and caches should cost, and whether a measured difference is real.

The law of weights is that of "Low-Bit Quantization Favors Undertrained LLMs" (arXiv 2411.17691); that of caches is
fitted to one's own cheap runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

#: Points outside are noise or collapse, and no power law holds there.
NOISE, COLLAPSE = 1e-3, 3.0
#: A measured loss beyond this many times the prediction is not the smooth error of rounding.
OUTLIER_FACTOR = 3.0


@dataclasses.dataclass(frozen=True)
class QidCoefficients:
    """``loss = k * D**beta / (N**alpha * bits**gamma)`` nats per token; the defaults are the paper's fit."""

    k: float = 0.0167
    alpha: float = 0.2261
    beta: float = 0.5251
    gamma: float = 5.4967

    def tokens(self, N: float, bits: float, loss: float) -> float:
        """Training tokens at which quantisation to ``bits`` costs ``loss``."""
        return float((loss * N**self.alpha * bits**self.gamma / self.k) ** (1 / self.beta))

    def bits(self, N: float, D: float, loss: float) -> float:
        """Bits at which a model costs ``loss``."""
        return float((self.k * D**self.beta / (N**self.alpha * loss)) ** (1 / self.gamma))


PUBLISHED = QidCoefficients()


def predict_qid(N: ArrayLike, D: ArrayLike, bits: ArrayLike, coefficients: QidCoefficients = PUBLISHED):
    """Loss of cross-entropy by low-bit weights, nats per token.

    Args:
        N: parameters, embeddings not counted.
        D: training tokens.
        bits: width of the weights; 2 is outside what the law holds for in small models.
        coefficients: the paper's, or those of :func:`fit_qid`.

    Returns:
        A float, or an array where the arguments are arrays.

    Example:
        >>> round(predict_qid(1e9, 1e12, 4), 3)
        0.151
    """
    c = coefficients
    N, D, bits = (np.asarray(x, dtype=float) for x in (N, D, bits))
    loss = c.k * D**c.beta / (N**c.alpha * bits**c.gamma)
    return loss if loss.ndim else float(loss)


@dataclasses.dataclass(frozen=True)
class QidFit:
    """Coefficients, and how well they explain the points that were used."""

    coefficients: QidCoefficients
    r2: float  # of the logarithms
    residuals: np.ndarray  # log(measured / predicted) of the points used
    used: np.ndarray  # which points were


def fit_qid(points: Iterable[tuple[float, float, float, float]]) -> QidFit:
    """Fit the law to measured losses by least squares on logarithms.

    What does not vary cannot be fitted: the exponent of parameters, tokens or bits that are the same at all points
    stays the published one. Points below 1e-3 (noise) or above 3 (collapse) are left out.

    Args:
        points: ``(N, D, bits, loss)`` each.

    Returns:
        The fit.

    Raises:
        ValueError: too few points, or points whose parameters, tokens and bits rise together.
    """
    table = np.asarray(list(points), dtype=float)
    if table.ndim != 2 or table.shape[1] != 4:
        raise ValueError(f"points must be (N, D, bits, loss) each, got an array of shape {table.shape}")
    if not (table[:, :3] > 0).all():
        raise ValueError("N, D and bits must be > 0")
    used = (table[:, 3] >= NOISE) & (table[:, 3] <= COLLAPSE)
    logs = np.log(table[used])
    terms = logs[:, :3] * (-1.0, 1.0, -1.0)  # of alpha, beta, gamma
    exponents = np.array([PUBLISHED.alpha, PUBLISHED.beta, PUBLISHED.gamma])
    free = np.array([len(np.unique(x)) > 1 for x in terms.T])
    target = logs[:, 3] - terms[:, ~free] @ exponents[~free]
    centre = terms[:, free].sum(0) / max(len(terms), 1)
    design = np.column_stack([np.ones(len(terms)), terms[:, free] - centre])
    if len(terms) == 0 or np.linalg.matrix_rank(design, tol=1e-6) < design.shape[1]:
        raise ValueError(
            f"{len(terms)} points between {NOISE} and {COLLAPSE} do not tell {design.shape[1]} coefficients apart"
        )
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    exponents[free] = solution[1:]
    residuals = target - design @ solution
    spread = ((target - target.mean()) ** 2).sum()
    r2 = 1.0 - float((residuals**2).sum() / spread) if spread > 0 else 1.0
    k = np.exp(solution[0] - centre @ solution[1:])
    return QidFit(QidCoefficients(float(k), *map(float, exponents)), r2, residuals, used)


@dataclasses.dataclass(frozen=True)
class KvCurve:
    """``loss = kappa * 2**(-gamma * bits)`` of a quantised cache; theory has gamma near 2 where errors are small."""

    kappa: float
    gamma: float

    def predict(self, bits: ArrayLike):
        """Expected loss at effective bits, scales included."""
        loss = self.kappa * np.exp2(-self.gamma * np.asarray(bits, dtype=float))
        return loss if loss.ndim else float(loss)

    def flag(self, measured: Mapping[float, float]) -> dict[float, float]:
        """Of measured losses by effective bits, those beyond 3 times the prediction, as multiples of it.

        Smooth rounding does not do that: outlier channels are not handled (rotation, balancer, per-channel keys,
        sinks).
        """
        ratios = {bits: loss / self.predict(bits) for bits, loss in measured.items()}
        return {bits: ratio for bits, ratio in ratios.items() if ratio > OUTLIER_FACTOR}


def fit_kv_curve(bits: ArrayLike, dce: ArrayLike) -> KvCurve:
    """Fit the loss of a quantised cache over bits to a few runs of one model and geometry.

    Args:
        bits: effective bits of each run, scales included.
        dce: measured loss of cross-entropy against the full cache, nats per token; what is not above 0 is noise
            and left out.

    Returns:
        The curve, by least squares on logarithms.

    Raises:
        ValueError: arguments of different lengths, or fewer than two widths with a loss above 0.

    Example:
        >>> round(fit_kv_curve([8, 6, 4], [1e-5, 16e-5, 256e-5]).predict(3), 5)
        0.01024
    """
    x, y = np.asarray(bits, dtype=float), np.asarray(dce, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"bits and dce must be as many, got shapes {x.shape} and {y.shape}")
    x, y = x[y > 0], y[y > 0]
    if len(np.unique(x)) < 2:
        raise ValueError(f"at least 2 widths must have a loss above 0, got {len(np.unique(x))}")
    slope, level = np.polyfit(x, np.log2(y), 1)
    return KvCurve(float(np.exp2(level)), float(-slope))


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean of ``b - a`` over tokens, its standard error and the middle 95 % of the resampled means."""

    mean: float
    stderr: float
    low: float
    high: float
    tokens: int


def paired_bootstrap(
    nll_a: ArrayLike, nll_b: ArrayLike, block: int = 256, resamples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Difference of two runs over the same tokens, with an interval that respects their dependence.

    Blocks of neighbouring tokens are drawn with replacement, since losses of neighbours are alike.

    Args:
        nll_a, nll_b: losses of every token, ``[tokens]`` or ``[windows, tokens]``; blocks end with their window.
        block: tokens of a block; the last of a window may be shorter.
        resamples: means drawn.
        seed: of the draw.

    Returns:
        The difference.

    Raises:
        ValueError: shapes that differ, no token, a loss that is not finite, or a number below 1.
    """
    a, b = np.asarray(nll_a, dtype=float), np.asarray(nll_b, dtype=float)
    if a.shape != b.shape or a.ndim not in (1, 2) or a.size == 0:
        raise ValueError(
            f"losses must be [tokens] or [windows, tokens] of one shape, got {a.shape} and {b.shape}"
        )
    if block < 1 or resamples < 1:
        raise ValueError(f"block and resamples must be >= 1, got {block} and {resamples}")
    difference = np.atleast_2d(b - a)
    if not np.isfinite(difference).all():
        raise ValueError("losses must be finite")
    starts = np.arange(0, difference.shape[1], block)
    sums = np.add.reduceat(difference, starts, axis=1).ravel()
    sizes = np.tile(np.diff(np.append(starts, difference.shape[1])), difference.shape[0])
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    stderr = float(means.std(ddof=1)) if resamples > 1 else 0.0
    return PairedDifference(float(difference.mean()), stderr, float(low), float(high), difference.size)
