"""The scaling law of low-bit models, fits of it, and the paired bootstrap."""

import math

import numpy as np
import pytest
from scipy import stats

from tokops.kvcache.scaling import (
    PUBLISHED,
    QidCoefficients,
    fit_kv_curve,
    fit_qid,
    paired_bootstrap,
    predict_qid,
)

# ---- The law of weights.


@pytest.mark.parametrize(
    ("N", "D", "bits", "want"),
    [(1e9, 1e12, 4, 0.151), (1e9, 1e12, 3, 0.735), (1e9, 1e12, 2, 6.83), (1.2e10, 2.06e11, 3, 0.183)],
)
def test_published_values(N, D, bits, want):
    assert predict_qid(N, D, bits) == pytest.approx(want, rel=4e-3)


def test_arrays():
    got = predict_qid([1e9, 1e9], 1e12, [4, 3])
    assert got.shape == (2,)
    assert got[1] == predict_qid(1e9, 1e12, 3)
    assert isinstance(predict_qid(1e9, 1e12, 3), float)


def test_inverses():
    for N, D, bits in ((1e9, 1e12, 4), (1.06e8, 2e12, 3)):
        loss = predict_qid(N, D, bits)
        assert PUBLISHED.tokens(N, bits, loss) == pytest.approx(D, rel=1e-9)
        assert PUBLISHED.bits(N, D, loss) == pytest.approx(bits, rel=1e-9)


def synthetic(truth, noise, seed=0, count=300):
    rng = np.random.default_rng(seed)
    points = []
    for _ in range(count):
        N, D, bits = 10 ** rng.uniform(8, 10.3), 10 ** rng.uniform(9, 12), rng.choice([2, 3, 4])
        loss = truth.k * D**truth.beta / (N**truth.alpha * bits**truth.gamma)
        points.append((N, D, bits, loss * math.exp(noise * rng.normal())))
    return points


@pytest.mark.parametrize("seed", range(5))
def test_exponents_are_recovered(seed):
    truth = QidCoefficients(k=0.02, alpha=0.3, beta=0.45, gamma=5.0)
    fit = fit_qid(synthetic(truth, 0.05, seed))
    for name in ("alpha", "beta", "gamma"):
        assert getattr(fit.coefficients, name) == pytest.approx(getattr(truth, name), rel=0.03)
    assert fit.r2 > 0.99
    assert np.std(fit.residuals) == pytest.approx(0.05, rel=0.2)


def test_points_of_noise_and_collapse_are_left_out():
    clean = [p for p in synthetic(PUBLISHED, 0.0) if 1e-3 < p[3] < 3]
    bad = [(1e9, 1e11, 4, 9e-4), (1e9, 1e11, 4, -0.01), (1e9, 1e11, 2, 3.1)]
    fit = fit_qid(clean + bad)
    assert fit.used.tolist() == [True] * len(clean) + [False] * 3
    assert fit.coefficients.k == pytest.approx(PUBLISHED.k, rel=1e-6)
    assert fit.coefficients.gamma == pytest.approx(PUBLISHED.gamma, rel=1e-9)
    assert fit.r2 == pytest.approx(1.0)


def test_of_one_model_only_bits_and_scale_are_fitted():
    points = [(1.06e8, 2e12, bits, 7.0 * bits**-4.0) for bits in (3, 4, 5, 6)]
    fit = fit_qid(points)
    c = fit.coefficients
    assert (c.alpha, c.beta) == (PUBLISHED.alpha, PUBLISHED.beta)
    assert c.gamma == pytest.approx(4.0)
    assert predict_qid(1.06e8, 2e12, 8, c) == pytest.approx(7.0 * 8**-4.0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], r"points must be \(N, D, bits, loss\) each"),
        ([(1e9, 1e12, 4)], r"points must be \(N, D, bits, loss\) each, got an array of shape \(1, 3\)"),
        ([(0.0, 1e12, 4, 0.1)], "N, D and bits must be > 0"),
        ([(1e9, 1e12, 4, 5.0)], "0 points between 0.001 and 3.0 do not tell 1 coefficients apart"),
        ([(1e9, 1e12, 4, 0.1), (1e8, 1e11, 3, 0.2)], "2 points .* do not tell 4 coefficients apart"),
        ([(n, 20 * n, b, 0.1) for n in (1e8, 1e9, 1e10) for b in (3, 4)], "6 points .* 4 coefficients apart"),
    ],
)
def test_points_that_do_not_tell(points, message):
    with pytest.raises(ValueError, match=message):
        fit_qid(points)


# ---- Caches.


def test_kv_curve():
    truth = {bits: 0.5 * 2.0 ** (-2.1 * bits) for bits in (8.5, 6.5, 4.5)}
    curve = fit_kv_curve(list(truth), list(truth.values()))
    assert curve.kappa == pytest.approx(0.5)
    assert curve.gamma == pytest.approx(2.1)
    assert curve.predict(3.5) == pytest.approx(0.5 * 2.0 ** (-2.1 * 3.5))
    assert curve.predict([3.5, 2.5]).shape == (2,)


def test_what_is_not_positive_is_noise():
    curve = fit_kv_curve([8, 6, 4, 3], [-1e-4, 0.0, 4e-3, 16e-3])
    assert curve.gamma == pytest.approx(2.0)


def test_outliers_are_flagged():
    curve = fit_kv_curve([8, 6, 4], [1e-5, 16e-5, 256e-5])
    expected = {3: 0.01024, 2: 0.04096}
    assert curve.flag({3: expected[3] * 2.9, 2: expected[2] * 2}) == {}
    flagged = curve.flag({4: 256e-5, 3: expected[3] * 3.1, 2: expected[2] * 10})
    assert flagged == {3: pytest.approx(3.1), 2: pytest.approx(10)}


@pytest.mark.parametrize(
    ("bits", "dce", "message"),
    [
        ([8, 4], [0.1], r"bits and dce must be as many, got shapes \(2,\) and \(1,\)"),
        ([[8, 4]], [[0.1, 0.2]], "bits and dce must be as many"),
        ([8, 4], [0.1, 0.0], "at least 2 widths must have a loss above 0, got 1"),
        ([4, 4], [0.1, 0.2], "at least 2 widths must have a loss above 0, got 1"),
    ],
)
def test_runs_that_do_not_tell(bits, dce, message):
    with pytest.raises(ValueError, match=message):
        fit_kv_curve(bits, dce)


# ---- Paired differences.


def test_equal_runs_do_not_differ():
    nll = np.random.default_rng(0).exponential(size=5000)
    got = paired_bootstrap(nll, nll)
    assert (got.mean, got.stderr, got.low, got.high, got.tokens) == (0, 0, 0, 0, 5000)
    got = paired_bootstrap(nll, nll + 0.25, block=300)
    assert (got.mean, got.low, got.high) == pytest.approx((0.25, 0.25, 0.25))
    assert got.stderr == pytest.approx(0, abs=1e-12)


def test_standard_error_of_independent_tokens():
    rng = np.random.default_rng(1)
    a = rng.exponential(size=20_000)
    b = a + rng.normal(0.01, 0.3, 20_000)
    got = paired_bootstrap(a, b, block=16, resamples=2000)
    assert got.mean == pytest.approx((b - a).mean(), abs=1e-12)
    assert got.stderr == pytest.approx((b - a).std() / math.sqrt(20_000), rel=0.1)
    z = stats.norm.ppf(0.975)
    assert got.high - got.mean == pytest.approx(z * got.stderr, rel=0.12)
    assert got.mean - got.low == pytest.approx(z * got.stderr, rel=0.12)
    assert got.low < 0.01 < got.high


def test_blocks_see_that_neighbours_are_alike():
    """Every value 64 times in a row: a 64th of the evidence."""
    steps = np.repeat(np.random.default_rng(2).normal(size=300), 64)
    zeros = np.zeros_like(steps)
    naive, honest = (paired_bootstrap(zeros, steps, block=n).stderr for n in (1, 256))
    assert honest == pytest.approx(steps.std() / math.sqrt(300), rel=0.2)
    assert honest / naive == pytest.approx(8, rel=0.2)


def test_against_scipy():
    d = np.random.default_rng(3).exponential(size=400)
    got = paired_bootstrap(np.zeros(400), d, block=1, resamples=5000)
    want = stats.bootstrap((d,), np.mean, n_resamples=5000, method="percentile", random_state=0)
    assert got.stderr == pytest.approx(want.standard_error, rel=0.05)
    assert got.low == pytest.approx(want.confidence_interval.low, rel=0.02)
    assert got.high == pytest.approx(want.confidence_interval.high, rel=0.02)


def test_windows_and_short_blocks():
    d = np.arange(20.0).reshape(2, 10)
    got = paired_bootstrap(np.zeros((2, 10)), d, block=4)  # blocks of 4, 4 and 2 in each window
    assert got.mean == pytest.approx(9.5)
    assert got.tokens == 20
    assert 0 <= got.low < 9.5 < got.high <= 19
    means = {paired_bootstrap(np.zeros((2, 10)), d, block=10, resamples=1, seed=s).low for s in range(40)}
    assert means == {4.5, 9.5, 14.5}  # two draws of two windows


def test_the_seed_decides():
    a, b = np.random.default_rng(4).normal(size=(2, 3000))
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)


@pytest.mark.parametrize(
    ("a", "b", "extra", "message"),
    [
        ([1.0], [1.0, 2.0], {}, r"of one shape, got \(1,\) and \(2,\)"),
        ([], [], {}, r"losses must be \[tokens\] or \[windows, tokens\]"),
        (np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), {}, r"losses must be \[tokens\]"),
        ([1.0, math.nan], [1.0, 2.0], {}, "losses must be finite"),
        ([1.0], [1.0], {"block": 0}, "block and resamples must be >= 1, got 0 and 1000"),
        ([1.0], [1.0], {"resamples": 0}, "block and resamples must be >= 1, got 256 and 0"),
    ],
)
def test_bad_losses(a, b, extra, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, **extra)
