"""LANTERN: what it accepts and emits, exactly, and that a budget of nothing makes it lossless."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from . import laws, oracle
from .draws import drafts_of
from .oracle import Request
from .pairs import pair

P = [Fraction(n, 16) for n in (8, 4, 2, 2)]
Q = [Fraction(n, 16) for n in (2, 6, 4, 4)]
NEIGHBOURS = [[2, 1, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]]
NEAREST = [row[:2] for row in NEIGHBOURS]
QUARTER = Fraction(1, 4)


def additive(delta):
    return lambda q, x: delta


def multiplicative(lam):
    return lambda q, x: (lam - 1) * q[x]


@pytest.mark.parametrize(
    ("budget", "moved", "accepted", "law"),
    [
        (additive(0), True, "5/8", "1/8 3/8 1/4 1/4"),
        (additive(0), False, "5/8", "1/8 3/8 1/4 1/4"),
        (additive(QUARTER), True, "7/8", "3/8 5/16 1/8 3/16"),
        (additive(QUARTER), False, "7/8", "3/8 7/24 1/6 1/6"),
        (multiplicative(2), True, "5/8", "1/8 3/8 1/4 1/4"),
        (multiplicative(Fraction(7, 2)), True, "7/8", "3/8 5/16 1/8 3/16"),
    ],
)
def test_fixture(budget, moved, accepted, law):
    rule = partial(laws.lantern, neighbours=NEAREST, budget=budget, moved=moved)
    got, rate = laws.one_level(rule, laws.without_replacement, Q, P, 1)
    assert got == [Fraction(w) for w in law.split()]
    assert rate == Fraction(accepted)
    assert laws.distance(got, Q) == (0 if rate == Fraction(5, 8) else QUARTER)


def test_fixture_masses():
    got = [laws.borrowed(Q, x, NEAREST, QUARTER) for x in range(4)]
    assert got == [([2], QUARTER), ([0], Fraction(1, 8)), ([3], QUARTER), ([2], QUARTER)]
    assert laws.borrowed(Q, 0, NEAREST, multiplicative(2)(Q, 0)) == ([], 0)
    assert laws.distance(P, Q) == Fraction(3, 8)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_whole_budget_accepts_everything_and_emits_the_draft_law(k):
    rule = partial(laws.lantern, neighbours=NEIGHBOURS, budget=additive(1))
    law, accepted = laws.one_level(rule, laws.without_replacement, Q, P, k)
    assert law == P
    assert accepted == 1


def table(size, seed):
    """Every other token in the order of random distances."""
    points = np.random.default_rng(seed).standard_normal((size, 3))
    order = np.argsort(((points[:, None] - points[None]) ** 2).sum(-1), -1, kind="stable")
    return [[y for y in row if y != x] for x, row in enumerate(order.tolist())]


@pytest.mark.parametrize("seed", range(5))
def test_masses_keep_within_the_budget_and_grow_with_it(seed):
    q, neighbours = pair(16, 1.5, 0.5, seed)[0].tolist(), table(16, seed)
    for x in range(16):
        before, before_mass = [], 0
        for delta in np.linspace(0, 1.2, 25):
            near, mass = laws.borrowed(q, x, neighbours, delta)
            assert mass <= delta
            assert near[: len(before)] == before
            assert mass >= before_mass
            assert laws.borrowed(q, x, [row[:4] for row in neighbours], delta)[1] <= mass
            before, before_mass = near, mass


def request(seed, position, xs, with_draft, **options):
    q, p = (law.astype(np.float32)[None] for law in pair(16, 1.5, 0.5, seed))
    n = len(xs) + 1
    rows = [0] * n if with_draft else None
    return Request(
        [0, *xs],
        [-1] + [0] * len(xs),
        np.repeat(q, n, 0),
        p if with_draft else None,
        rows,
        5,
        2,
        position,
        options,
    )


@pytest.mark.parametrize("with_draft", [True, False])
def test_no_budget_gives_the_tokens_of_the_lossless_mode(with_draft):
    lossless = "rrs_wo" if with_draft else "target_only"
    accepted = 0
    for seed in range(300):
        p = pair(16, 1.5, 0.5, seed)[1].astype(np.float32)
        xs = drafts_of(lossless, p, 3, 5, 2, seed)
        plain = oracle.verify(lossless, request(seed, seed, xs, with_draft))
        relaxed = request(seed, seed, xs, with_draft, delta=0.0, neighbours=table(16, seed))
        assert oracle.verify("lantern", relaxed) == plain
        accepted += plain[0]
    assert 50 < accepted < 300


@pytest.mark.parametrize("with_draft", [True, False])
def test_steps_have_the_enumerated_law(with_draft):
    """Two children on one row, 20000 positions of the step-by-step verifier against its law."""
    q, p = pair(16, 1.5, 0.5, 3)
    neighbours, n = [row[:5] for row in table(16, 3)], 20000
    draws = laws.without_replacement if with_draft else laws.likeliest
    rule = partial(
        laws.lantern if with_draft else laws.lantern_deterministic,
        neighbours=neighbours,
        budget=additive(0.1),
    )
    law, rate = laws.one_level(rule, draws, q.tolist(), p.tolist(), 2)
    counts, accepted = np.zeros(16), 0
    for position in range(n):
        xs = drafts_of("rrs_wo" if with_draft else "target_only", p.astype(np.float32), 2, 5, 2, position)
        got = oracle.verify("lantern", request(3, position, xs, with_draft, delta=0.1, neighbours=neighbours))
        counts[got[2][0]] += 1
        accepted += got[0]
    want = n * np.array(law)
    assert (counts[want == 0] == 0).all()
    counts, want = counts[want > 0], want[want > 0]
    assert ((counts - want) ** 2 / want).sum() < 37.7  # chi-square, 15 degrees of freedom, 0.999
    assert accepted / n == pytest.approx(rate, abs=4 * (rate * (1 - rate) / n) ** 0.5)
