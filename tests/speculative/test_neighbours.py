"""Neighbour tables against brute force, and the exact law of a relaxed level against enumeration in fractions."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops.speculative import lantern_mass, lantern_tv, neighbour_table, tree_build, tree_verify

from . import laws
from .pairs import pair

P = [Fraction(n, 16) for n in (8, 4, 2, 2)]
Q = [Fraction(n, 16) for n in (2, 6, 4, 4)]
NEAREST = [[2, 1], [0, 2], [3, 1], [2, 1]]
TABLE = torch.tensor(NEAREST, dtype=torch.int32)


def row(law):
    return torch.tensor([float(w) for w in law])


def brute_force(codes, normalise):
    """Every other code by distance, then by id."""
    points = codes.double().numpy()
    if normalise:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    order = []
    for i, point in enumerate(points):
        apart = np.sqrt(((points - point) ** 2).sum(1))
        order.append([j for j in np.lexsort((np.arange(len(points)), apart)).tolist() if j != i])
    return order


def codebook(size, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator) * (1 + torch.rand(size, 1, generator=generator) * 5)


# ---- The table.


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("k", [1, 7, 99])
def test_rows_are_the_nearest_others_in_order(normalise, k):
    codes = codebook(100, 8)
    got = neighbour_table(codes, k, normalise=normalise)
    assert got.dtype == torch.int32
    assert got.tolist() == [order[:k] for order in brute_force(codes, normalise)]


def test_normalising_changes_the_table():
    codes = codebook(100, 8)
    assert not torch.equal(
        neighbour_table(codes, 10, normalise=True), neighbour_table(codes, 10, normalise=False)
    )


@pytest.mark.parametrize("tile", [1, 64, 1000])
def test_tiles_do_not_show(tile, monkeypatch):
    codes = codebook(50, 3)
    want = neighbour_table(codes, 9, normalise=False)
    monkeypatch.setattr("tokops.speculative._neighbours._TILE", tile)
    assert torch.equal(neighbour_table(codes, 9, normalise=False), want)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=24), st.integers(1, 30))
def test_equal_distances_go_by_id(points, k):
    codes = torch.tensor(points, dtype=torch.float32)[:, None]
    want = [
        sorted((j for j in range(len(points)) if j != i), key=lambda j: (abs(points[i] - points[j]), j))[:k]
        for i in range(len(points))
    ]
    assert neighbour_table(codes, k, normalise=False).tolist() == want


def test_copies_of_a_code_are_equally_far_whatever_their_place():
    """A matrix product may round copies differently in different columns."""
    codes = codebook(40, 37).repeat(3, 1)
    got = neighbour_table(codes, 119, normalise=True)
    for i, near in enumerate(got.tolist()):
        assert near[:2] == [j for j in (i % 40, i % 40 + 40, i % 40 + 80) if j != i]
        triples = [near[2 + 3 * n : 5 + 3 * n] for n in range(39)]
        assert all(b == a + 40 and c == a + 80 for a, b, c in triples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_strides(dtype):
    codes = codebook(60, 10).to(dtype)[::2, ::3]
    assert neighbour_table(codes, 5, normalise=False).tolist() == [x[:5] for x in brute_force(codes, False)]


def test_codes_that_are_never_used_are_nobodys_neighbours():
    codes = codebook(30, 4)
    alive = torch.arange(30) % 3 != 0
    got = neighbour_table(codes, 100, normalise=False, alive=alive)
    assert got.shape == (30, 19)
    for i, order in enumerate(brute_force(codes, False)):
        assert got[i].tolist() == [j for j in order if alive[j]][:19]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codebook": torch.zeros(4)}, "codebook must have 2 dimensions, got 1"),
        ({"codebook": torch.zeros(4, 2).int()}, "codebook must be float32 or .*, got int32"),
        ({"codebook": torch.zeros(1, 2)}, "codebook must have at least 2 codes, got 1"),
        ({"codebook": torch.full((4, 2), torch.nan)}, "codebook must be finite"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"alive": torch.ones(3, dtype=torch.bool)}, r"alive must be \[Vc\] = \[4\], got \[3\]"),
        ({"alive": torch.ones(4)}, "alive must be bool, got float32"),
        ({"alive": torch.arange(4) < 1}, "alive must leave at least 2 codes, got 1"),
    ],
)
def test_tables_that_are_refused(change, words):
    arguments = {"codebook": torch.zeros(4, 2), "k": 2, "normalise": False, **change}
    with pytest.raises(RuntimeError, match=f"neighbour_table: {words}"):
        neighbour_table(**arguments)


# ---- Masses.


def test_masses_of_the_fixture():
    mass, count = lantern_mass(row(Q).expand(4, 4), torch.arange(4), TABLE, delta=0.25)
    assert mass.tolist() == [0.25, 0.125, 0.25, 0.25]
    assert count.tolist() == [1, 1, 1, 1]
    mass, count = lantern_mass(row(Q)[None], torch.tensor([[0, 0]]), TABLE, lam=2.0)
    assert mass.tolist() == [[0, 0]]
    assert count.tolist() == [[0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_masses_are_those_of_the_definition_and_stay_within_the_budget(seed):
    q = torch.tensor(pair(16, 1.5, 0.5, seed)[0], dtype=torch.float32)
    table = neighbour_table(codebook(12, 3, seed), 8, normalise=False)
    grown = torch.zeros(16)
    for delta in np.linspace(0, 1, 11):
        mass, count = lantern_mass(q[None], torch.arange(16)[None], table, delta=delta, token_offset=3)
        shifted = {x: [y + 3 for y in table[x - 3].tolist()] for x in range(3, 15)}
        for x in range(16):
            near, want = laws.borrowed(q.tolist(), 0, [shifted.get(x, [])], delta * float(q.sum()))
            assert int(count[0, x]) == len(near)
            assert float(mass[0, x]) == pytest.approx(want, abs=1e-10)
        assert (mass <= delta * (1 + 1e-6)).all()
        assert (count[0] >= grown).all()
        grown = count[0]
    assert not mass[0, [0, 1, 2, 15]].any()  # tokens that are no code


# ---- Laws.


@pytest.mark.parametrize(
    ("budget", "residual", "accepted", "law"),
    [
        ({"delta": 0.0}, "moved", "5/8", "1/8 3/8 1/4 1/4"),
        ({"delta": 0.0}, "compat", "5/8", "1/8 3/8 1/4 1/4"),
        ({"lam": 1.0}, "moved", "5/8", "1/8 3/8 1/4 1/4"),
        ({"delta": 0.25}, "moved", "7/8", "3/8 5/16 1/8 3/16"),
        ({"delta": 0.25}, "plain", "7/8", "3/8 7/24 1/6 1/6"),
        ({"lam": 2.0}, "moved", "5/8", "1/8 3/8 1/4 1/4"),
        ({"lam": 3.5}, "moved", "7/8", "3/8 5/16 1/8 3/16"),
    ],
)
def test_laws_of_the_fixture(budget, residual, accepted, law):
    got = lantern_tv(row(Q), row(P), TABLE, residual=residual, **budget)
    want = row(Fraction(w) for w in law.split()).double()
    assert torch.allclose(got.law, want, atol=1e-7)
    assert float(got.accepted) == pytest.approx(float(Fraction(accepted)))
    assert float(got.bound) == 3 / 8
    assert float(got.tv) == pytest.approx(0 if accepted == "5/8" else 1 / 4, abs=1e-7)


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("delta", [0.0, 0.05, 0.2, 0.6, 1.0])
def test_laws_are_those_of_enumeration(delta, moved):
    q, p = pair(24, 1.5, 0.5, 4)
    table = neighbour_table(codebook(24, 3), 9, normalise=False)
    rule = partial(laws.lantern, neighbours=table.tolist(), budget=lambda q, x: delta, moved=moved)
    want, accepted = laws.one_level(rule, laws.without_replacement, q.tolist(), p.tolist(), 1)
    residual = "moved" if moved else "plain"
    got = lantern_tv(torch.tensor(q), torch.tensor(p), table, delta=delta, residual=residual)
    assert torch.allclose(got.law, torch.tensor(want).double(), atol=1e-9)
    assert float(got.accepted) == pytest.approx(accepted, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(["moved", "plain", "compat"]), st.integers(1, 19)
)
def test_the_distance_is_bounded_by_that_of_the_draft_and_not_by_the_budget(seed, delta, residual, k):
    generator = torch.Generator().manual_seed(seed)
    q, p = torch.randn(2, 20, generator=generator).mul(2).softmax(-1)
    table = neighbour_table(codebook(20, 3, seed), k, normalise=False)
    got = lantern_tv(q, p, table, delta=delta, residual=residual)
    least = float(got.accepted - 1 + got.bound)
    assert got.law.sum() == pytest.approx(1, abs=1e-6)
    assert least - 1e-6 <= float(got.tv) <= float(got.bound) + 1e-6
    assert residual != "plain" or float(got.tv) == pytest.approx(least, abs=1e-6)
    assert float(got.mean_mass) <= float(got.largest_mass) <= delta + 1e-6


def test_a_small_budget_moves_the_law_by_more_than_itself():
    q, p = (torch.tensor(law) for law in pair(64, 1.5, 0.8, 6))
    table = neighbour_table(codebook(64, 8, 6), 63, normalise=False)
    got = lantern_tv(q, p, table, delta=0.05)
    assert float(got.largest_mass) <= 0.05
    assert float(got.tv) > 0.1


@pytest.mark.parametrize("residual", ["moved", "plain", "compat"])
def test_a_whole_budget_gives_the_draft_law(residual):
    q, p = (torch.tensor(law) for law in pair(16, 1.5, 0.5, 2))
    table = neighbour_table(codebook(16, 2), 15, normalise=False)
    got = lantern_tv(q, p, table, delta=1.0, residual=residual)
    assert torch.allclose(got.law, p, atol=1e-9)
    assert float(got.accepted) == pytest.approx(1, abs=1e-9)
    assert float(got.tv) == pytest.approx(float(got.bound), abs=1e-9)


def test_the_law_is_that_of_tree_verify():
    """20000 requests of one drawn child each, under the residual that moves mass; chi-square, 15 degrees, 0.999."""
    n, v = 20000, 16
    q, p = (torch.tensor(law, dtype=torch.float32) for law in pair(v, 1.5, 0.5, 3))
    table = neighbour_table(codebook(v, 3), 6, normalise=False)
    drafts = torch.multinomial(p, n, True, generator=torch.Generator().manual_seed(5)).int()
    tokens = torch.stack([torch.zeros_like(drafts), drafts], 1)
    tree = tree_build(torch.tensor([[-1, 0]] * n, dtype=torch.int32))
    accepted, _, out = tree_verify(
        "lantern", tokens, tree, probs=q.expand(n, 2, v), draft_probs=p.expand(n, 1, v),
        draft_rows=torch.zeros_like(tokens), seed=11, neighbours=table, delta=0.15,
    )  # fmt: skip
    want = lantern_tv(q, p, table, delta=0.15)
    counts = out[:, 0].long().bincount(minlength=v)
    assert float(((counts - n * want.law) ** 2 / (n * want.law)).sum()) < 37.7
    assert float(((counts - n * q) ** 2 / (n * q)).sum()) > 1000  # it is not the target's
    assert float(accepted.double().mean()) == pytest.approx(float(want.accepted), abs=0.01)


def test_rows_of_a_batch_are_on_their_own():
    q, p = torch.randn(2, 3, 2, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    table = neighbour_table(codebook(10, 2), 4, normalise=False)
    got = lantern_tv(q, p, table)
    assert got.law.shape == (3, 2, 10)
    for i in range(3):
        for j in range(2):
            one = lantern_tv(q[i, j], p[i, j], table)
            for name, value in vars(one).items():
                assert torch.equal(getattr(got, name)[i, j], value), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": 1.5}, "delta must be 0..1, got 1.5"),
        ({"lam": 0.5}, "lam must be at least 1, got 0.5"),
        ({"p": torch.ones(4)}, "p must be laws"),
        ({"q": torch.tensor([1.5, -0.5, 0, 0])}, "q must be laws"),
        ({"p": torch.ones(3) / 3}, r"p must be the shape of q = \[4\], got \[3\]"),
        ({"q": row(Q).half()}, "q must be float32 or float64, got float16"),
        ({"token_offset": 1}, "token_offset 1 and 4 codes leave the vocabulary of 4"),
        ({"neighbours": TABLE + 2}, "neighbours must be codes 0..3, got"),
        ({"neighbours": TABLE.long()}, "neighbours must be int32, got int64"),
        ({"residual": "all"}, "residual must be one of moved, plain, compat, got all"),
    ],
)
def test_laws_that_are_refused(change, words):
    arguments = {"q": row(Q), "p": row(P), "neighbours": TABLE, **change}
    with pytest.raises(RuntimeError, match=words):
        lantern_tv(**arguments)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.tensor([4]), "tokens must be 0..3, got"),
        (torch.tensor([1.0]), "tokens must be int64 or int32"),
        (torch.tensor([1, 2]), r"tokens must be \[R\]"),
    ],
)
def test_masses_that_are_refused(tokens, words):
    with pytest.raises(RuntimeError, match=f"lantern_mass: {words}"):
        lantern_mass(row(Q)[None], tokens, TABLE)
