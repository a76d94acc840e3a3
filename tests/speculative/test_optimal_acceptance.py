"""optimal_acceptance against every token set, and against the transport problem solved as a linear programme."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from tokops.speculative import optimal_acceptance

from .pairs import G_P, G_Q, pair


def brute_force(q, p, k):
    """1 + min over all 2^V sets of q(S) - p(S)^k."""
    sets = np.array(list(product((0.0, 1.0), repeat=len(q))))
    return 1 + (sets @ q - (sets @ p) ** k).min()


def transport(q, p, k):
    """max over couplings of k independent drafts and an output of the chance that it is among them."""
    size = len(q)
    tuples = list(product(range(size), repeat=k))
    gain = np.array([[float(y in xs) for y in range(size)] for xs in tuples])
    rows = np.kron(np.eye(len(tuples)), np.ones(size))
    columns = np.kron(np.ones(len(tuples)), np.eye(size))
    chances = [p[list(xs)].prod() for xs in tuples]
    # One equation follows from the others; dropping it keeps rounding from making them contradict each other.
    result = linprog(
        -gain.ravel(), A_eq=np.vstack([rows, columns[:-1]]), b_eq=[*chances, *q[:-1]], method="highs"
    )
    assert result.status == 0, result.message
    return -result.fun


def as_tensors(q, p, device):
    return torch.tensor(np.array(q, float), device=device), torch.tensor(np.array(p, float), device=device)


def test_published_values(device):
    q, p = as_tensors(G_Q, G_P, device)
    got = [optimal_acceptance(q, p, k).item() for k in (1, 2, 3, 4)]
    assert got == pytest.approx([0.5, 0.6875, 0.801025391, 0.852523804], abs=5e-10)


@pytest.mark.parametrize(
    ("sigma", "c", "seed", "k", "want"),
    [
        (10, 0.99, 24, 2, 0.475768),
        (10, 0.99, 24, 4, 0.582800),
        (10, 0.99, 24, 8, 0.721191),
        (12, 0.985, 21, 4, 0.617368),
        (14, 0.99, 22, 4, 0.618086),
        (16, 0.99, 23, 4, 0.890370),
    ],
)
def test_published_values_of_a_large_vocabulary(device, sigma, c, seed, k, want):
    assert optimal_acceptance(*as_tensors(*pair(32000, sigma, c, seed), device), k).item() == pytest.approx(
        want, abs=1e-6
    )


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 11])
def test_every_token_set(device, size, k):
    for seed in range(8):
        q, p = pair(size, 3.0, 0.3, seed)
        if seed % 2:  # zeros on either side, and on both
            q, p = (
                law * (np.random.default_rng(seed + n).random(size) < 0.7) for n, law in enumerate((q, p))
            )
            q[0], p[-1] = q[0] + 0.1, p[-1] + 0.1
            q, p = q / q.sum(), p / p.sum()
        got = optimal_acceptance(*as_tensors(q, p, device), k)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(brute_force(q, p, k), abs=1e-12)


@pytest.mark.parametrize(("size", "k"), [(2, 2), (3, 3), (4, 2), (4, 3), (5, 2), (6, 2)])
def test_linear_programme(size, k):
    for seed in range(4):
        q, p = pair(size, 1.5, 0.4, 30 + seed)
        got = optimal_acceptance(*as_tensors(q, p, "cpu"), k).item()
        assert got == pytest.approx(transport(q, p, k), abs=1e-9)


def test_one_draft_is_the_overlap_and_equal_laws_accept_all():
    q, p = as_tensors(*pair(50, 2.0, 0.5, 1), "cpu")
    assert optimal_acceptance(q, p, 1).item() == pytest.approx(torch.minimum(q, p).sum().item(), abs=1e-14)
    assert optimal_acceptance(q, q, 1).item() == 1
    assert optimal_acceptance(torch.eye(3)[0], torch.eye(3)[1], 5).item() == 0


def test_batches_ties_and_views(device):
    rows = [pair(9, 2.0, 0.3, seed) for seed in range(6)]
    q, p = as_tensors([q for q, _ in rows], [p for _, p in rows], device)
    got = optimal_acceptance(q.view(2, 3, 9), p.view(2, 3, 9), 3)
    assert got.shape == (2, 3)
    want = [brute_force(a, b, 3) for a, b in rows]
    assert got.flatten().tolist() == pytest.approx(want, abs=1e-12)
    strided = optimal_acceptance(q.t().contiguous().t(), p.flip(0).flip(0), 3)
    assert strided.tolist() == pytest.approx(want, abs=1e-12)
    single = optimal_acceptance(q.float(), p.float(), 3)
    assert single.dtype == torch.float64
    assert single.tolist() == pytest.approx(want, abs=1e-6)
    assert optimal_acceptance(q[:0], p[:0], 2).shape == (0,)
    flat = torch.full((8,), 1 / 8, device=device)
    assert optimal_acceptance(flat, flat, 2).item() == pytest.approx(1, abs=1e-15)


GOOD = torch.tensor([[0.5, 0.5, 0.0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.tensor(1.0)}, "q must have at least 1 dimension, got 0"),
        ({"q": torch.zeros(1, 0)}, r"q must have a vocabulary of at least 1, got \[1, 0\]"),
        ({"q": GOOD.half()}, "q must be float32 or float64, got float16"),
        ({"p": torch.ones(1, 3, dtype=torch.int32)}, "p must be float32 or float64, got int32"),
        ({"p": GOOD[0]}, "p must have 2 dimensions, got 1"),
        ({"p": torch.ones(1, 4) / 4}, r"p must be the shape of q = \[1, 3\], got \[1, 4\]"),
        ({"p": GOOD.to("meta")}, "p must be on cpu, got meta"),
        ({"q": torch.tensor([[1.5, -0.5, 0.0]])}, r"q must be non-negative, got \[-0\.5\]"),
        ({"p": torch.tensor([[1.0, float("nan"), 0.0]])}, r"p must be non-negative, got \[nan\]"),
        ({"p": GOOD * 0.75}, r"p must sum to 1 over its last axis, got \[0\.75\]"),
        ({"k": 0}, "k must be an integer >= 1, got 0"),
        ({"k": 2.0}, r"k must be an integer >= 1, got 2\.0"),
        ({"k": True}, "k must be an integer >= 1, got True"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(RuntimeError, match="optimal_acceptance: " + message):
        optimal_acceptance(**{"q": GOOD, "p": GOOD, "k": 2, **change})
