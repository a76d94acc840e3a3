"""Static draft trees: optimal for every size, lists of published ones, and acceptance counted while decoding."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops.speculative import (
    AcceptanceCounter,
    best_first_tree,
    expected_tokens,
    tree_from_parents,
    tree_from_paths,
)
from tokops.speculative.acceptance import isotonic

from .published_trees import EAGLE_7B, MEDUSA_7B

P = [0.6, 0.2, 0.08, 0.04, 0.02]


def recursion(acceptance, nodes, depth):
    """Sequoia's dynamic programme for one vector of acceptances: the best value of n nodes in `depth` levels."""
    probabilities = [float(p) for p in acceptance]

    @cache
    def best(n, levels):
        """A tree of n nodes, root included, with `levels` levels left below the root."""
        return 1.0 if n == 1 or levels == 0 else 1.0 + forest(n - 1, len(probabilities), levels)

    @cache
    def forest(n, children, levels):
        """At most n nodes in the trees of the first `children` children."""
        if n == 0 or children == 0:
            return 0.0
        return max(
            forest(n - m, children - 1, levels)
            + (probabilities[children - 1] * best(m, levels - 1) if m else 0.0)
            for m in range(n + 1)
        )

    return best(nodes, depth)


def exhaustive(table, nodes):
    """The best value of n = 1..nodes nodes, over all trees of up to that many: grown by one node at a time."""
    trees = {frozenset([()]): 1.0}
    found = [1.0]
    for _ in range(nodes - 1):
        larger = {}
        for tree, value in trees.items():
            for path in tree:
                for rank in range(table.shape[1]):
                    child = (*path, rank)
                    if len(child) <= len(table) and child not in tree:
                        product = np.prod([table[d, r] for d, r in enumerate(child)])
                        larger[tree | {child}] = value + product
        trees = larger or trees
        found.append(max(found[-1], *trees.values()))
    return found


def random_table(rng, depth, width, one=False, ordered=True):
    rows = rng.dirichlet(np.full(width + 1, 0.7), 1 if one else depth)[:, :width]
    return np.sort(rows, 1)[:, ::-1].repeat(depth if one else 1, 0) if ordered else rows


@pytest.mark.parametrize(
    ("acceptance", "depth", "values"),
    [
        (
            P,
            8,
            {1: 1, 2: 1.6, 3: 1.96, 4: 2.176, 5: 2.376, 6: 2.5056, 7: 2.6256, 8: 2.7456, 12: 3.04736,
             16: 3.262016, 17: 3.305216},
        ),
        (P, 3, {6: 2.496, 8: 2.696, 12: 2.96, 16: 3.1168}),
        ([0.5, 0.3, 0.1, 0.05], 5, {2: 1.5, 4: 2.05, 8: 2.575, 16: 3.1025, 32: 3.63075}),
    ],
)  # fmt: skip
def test_values_of_the_sheet(acceptance, depth, values):
    tree = best_first_tree([acceptance] * depth, 32)
    for nodes, value in values.items():
        assert tree.expected[nodes - 1] == pytest.approx(value, abs=1e-12)
        alone = best_first_tree([acceptance] * depth, nodes)
        assert alone == tree.first(nodes)
        assert recursion(acceptance, nodes, depth) == pytest.approx(value, abs=1e-12)


def test_order_of_the_sheet():
    tree = best_first_tree([P] * 8, 8)
    assert tree.paths == ((), (0,), (0, 0), (0, 0, 0), (1,), (0, 0, 0, 0), (0, 1), (1, 0))
    assert tree.parents == (-1, 0, 1, 2, 0, 3, 1, 4)
    assert tree.ranks == (-1, 0, 0, 0, 1, 0, 1, 0)
    assert tree.depths == (0, 1, 2, 3, 1, 4, 2, 2)


def test_permuted_factors_tie_to_the_last_bit():
    """0.7 * 0.2 * 0.1 depends on its order in floating point; paths of these ranks must come lexicographically."""
    tree = best_first_tree([0.7, 0.2, 0.1], 60, 3)
    tied = [path for path in tree.paths if sorted(path) == [0, 1, 2]]
    assert tied == sorted(itertools.permutations([0, 1, 2]))
    assert len({0.7 * 0.2 * 0.1, 0.1 * 0.7 * 0.2, 0.2 * 0.1 * 0.7}) > 1


@pytest.mark.parametrize("seed", range(100))
def test_equals_the_recursion(seed):
    rng = np.random.default_rng(seed)
    depth, width = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    table = random_table(rng, depth, width, one=True)
    tree = best_first_tree(table, 33)
    for nodes in {1, 2, 3, 5, 8, 13, 21, 33}:
        want = recursion(table[0], nodes, depth)
        assert tree.expected[min(nodes, len(tree)) - 1] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_equals_exhaustive_search(seed, ordered):
    rng = np.random.default_rng(seed)
    table = random_table(rng, 3, 2 + seed % 2, ordered=ordered)
    nodes = 8 if table.shape[1] == 2 else 6
    tree = best_first_tree(table, nodes)
    assert tree.expected == pytest.approx(exhaustive(table, nodes), abs=1e-12)
    assert expected_tokens(tree, table) == pytest.approx(tree.expected, abs=1e-12)


def test_equal_acceptances_keep_the_order_of_ranks():
    assert best_first_tree([[0.02] * 40], 41).ranks == (-1, *range(40))


def simulate(tree, table, steps, rng):
    """Emitted tokens of steps in which at most one candidate of every rank row is accepted."""
    children = {}
    for node, (parent, rank) in enumerate(zip(tree.parents, tree.ranks, strict=True)):
        children[parent, rank] = node
    sums = np.cumsum(table, 1)
    paths = []
    for _ in range(steps):
        path = [0]
        for row in sums:
            rank = int(np.searchsorted(row, rng.random(), side="right"))
            following = children.get((path[-1], rank))
            if following is None:
                break
            path.append(following)
        paths.append(path)
    return paths


@pytest.mark.parametrize("nodes", [1, 4, 16, 40])
def test_emitted_tokens_are_the_expectation(nodes):
    table = np.array([P] * 5)
    tree = best_first_tree(table, nodes)
    emitted = np.array([len(path) for path in simulate(tree, table, 20000, np.random.default_rng(nodes))])
    assert abs(emitted.mean() - tree.expected[-1]) <= 3 * emitted.std() / np.sqrt(len(emitted)) + 1e-12


@pytest.mark.parametrize(
    ("acceptance", "arguments", "nodes"),
    [
        (P, {"nodes": 1}, 1),
        (P, {"nodes": 9, "depth": 0}, 1),
        ([[0.0] * 4] * 3, {"nodes": 9}, 1),
        ([[0.5, 0.1], [0.0, 0.0], [0.5, 0.2]], {"nodes": 9}, 3),
        ([[0.5, 0.1], [0.5, 0.0]], {"nodes": 9}, 5),
        (P, {"nodes": 9, "width": 1}, 9),
        (P, {"nodes": 9, "width": 0}, 1),
        (np.zeros((3, 0)), {"nodes": 9}, 1),
        (np.zeros((0, 3)), {"nodes": 9}, 1),
        ([1.0], {"nodes": 5}, 5),
    ],
)
def test_small_and_empty(acceptance, arguments, nodes):
    tree = best_first_tree(acceptance, **arguments)
    assert len(tree) == nodes
    assert expected_tokens(tree, acceptance) == pytest.approx(tree.expected)


@pytest.mark.parametrize(
    ("acceptance", "arguments", "words"),
    [
        (P, {"nodes": 0}, "nodes must be at least 1, got 0"),
        ([P], {"nodes": 4, "depth": 2}, "depth must be 0..1, the rows of acceptance, got 2"),
        (P, {"nodes": 4, "depth": -1}, "depth must be 0 or more, got -1"),
        (P, {"nodes": 4, "width": -1}, "width must be 0 or more, got -1"),
        ([[P]], {"nodes": 4}, "must be .D, K. or .K., got 3 axes"),
        ([0.5, float("nan")], {"nodes": 4}, "probabilities in 0..1"),
        ([1.5], {"nodes": 4}, "probabilities in 0..1"),
        ([-0.1], {"nodes": 4}, "probabilities in 0..1"),
        ([0.9, 0.2], {"nodes": 4}, "sum to at most 1 .* got 1.1"),
    ],
)
def test_refuses(acceptance, arguments, words):
    with pytest.raises(ValueError, match=f"best_first_tree: .*{words}"):
        best_first_tree(acceptance, **arguments)


@pytest.mark.parametrize(("paths", "nodes"), [(MEDUSA_7B, 63), (EAGLE_7B, 25)])
def test_published_trees(paths, nodes):
    tree = tree_from_paths(paths)
    assert len(tree) == nodes + 1
    assert set(tree.paths) == {(), *map(tuple, paths)}
    assert list(tree.depths) == sorted(tree.depths)
    assert tree_from_paths(tree.paths) == tree
    assert all(parent < node for node, parent in enumerate(tree.parents))


def test_tree_from_paths_sorts_drops_duplicates_and_values():
    tree = tree_from_paths([[1], [0, 1], [0], [1]], P)
    assert tree.paths == ((), (0,), (1,), (0, 1))
    assert tree.expected == pytest.approx((1, 1.6, 1.8, 1.92))
    assert expected_tokens(tree, [P]) == pytest.approx((1, 1.6, 1.8, 1.8))
    assert expected_tokens(tree, [0.6]) == pytest.approx((1, 1.6, 1.6, 1.6))
    assert tree_from_paths([]).parents == (-1,)
    with pytest.raises(ValueError, match=r"every parent must be listed, got \[1, 0\] without \[1\]"):
        tree_from_paths([[0], [1, 0]])
    with pytest.raises(ValueError, match=r"ranks must be 0 or more, got \[-1\]"):
        tree_from_paths([[-1]])


def test_tree_from_parents():
    tree = tree_from_parents([-1, 0, 0, 0, 1, 1, 2, 4], P)
    assert tree.depths == (0, 1, 1, 1, 2, 2, 2, 3)
    assert tree.ranks == (-1, 0, 1, 2, 0, 1, 0, 0)
    assert tree.expected[-1] == pytest.approx(1 + 0.6 + 0.2 + 0.08 + 0.36 + 0.12 + 0.12 + 0.216)
    for parents, words in (
        ([], r"parents\[0\] must be -1"),
        ([0], "must be -1"),
        ([-1, 1], r"0\.\.0, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            tree_from_parents(parents)


def test_first_refuses():
    with pytest.raises(ValueError, match=r"nodes must be 1\.\.4, got 5"):
        best_first_tree(P, 4).first(5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 9)), max_size=12))
def test_isotonic_is_scipys(points):
    from scipy.optimize import isotonic_regression

    values, weights = [v for v, _ in points], [w for _, w in points]
    found = isotonic(values, weights)
    if points:
        assert found == pytest.approx(isotonic_regression(values, weights=weights).x, abs=1e-9)
    assert (np.diff(found) >= 0).all()


def test_counter_finds_the_acceptance():
    rng = np.random.default_rng(3)
    table = np.array([[0.5, 0.25, 0.1, 0.05], [0.4, 0.2, 0.1, 0.05], [0.6, 0.2, 0.05, 0.01]])
    counter = AcceptanceCounter(3, 4, half_life=1e6, rebuild=500)
    wide = best_first_tree([[0.25] * 4] * 3, 85)
    paths = simulate(wide, table, 30000, rng)
    padded = np.full((len(paths), 4), -1)
    for row, path in zip(padded, paths, strict=True):
        row[: len(path)] = path
    counter.update(wide, padded)
    assert counter.steps == 30000
    assert counter.table() == pytest.approx(table, abs=0.02)
    assert counter.tree(12).expected[-1] == pytest.approx(best_first_tree(table, 12).expected[-1], abs=0.05)


def test_counter_before_anything_and_after_one_step():
    counter = AcceptanceCounter(2, 3)
    assert counter.table() == pytest.approx(np.array([[0.5, 0.25, 0.125]] * 2))
    tree = tree_from_paths([[0], [1], [0, 0]])
    counter.update(
        tree, [0, 2, -1]
    )  # rank 0 of depth 1 failed, rank 1 was accepted; nothing below was tested
    rank0, rank1 = 0.5 / 2, 1.5 / 2
    row = np.array([rank0, (1 - rank0) * rank1, (1 - rank0) * (1 - rank1) * 0.5])
    pooled = (row[0] + row[1]) / 2
    assert counter.table() == pytest.approx(np.array([[pooled, pooled, row[2]], [0.5, 0.25, 0.125]]))
    assert (counter.table().sum(1) < 1).all()


def test_counter_forgets_and_rebuilds():
    counter = AcceptanceCounter(1, 1, half_life=10, rebuild=5)
    tree = tree_from_paths([[0]])
    for _ in range(200):
        counter.update(tree, [0, 1])
    first = counter.tree(2)
    assert len(first) == 2
    assert counter.table()[0, 0] > 0.9
    for _ in range(10):
        counter.update(tree, [[0, -1]])
    weight = (1 - 0.5 ** (200 / 10)) / (1 - 0.5**0.1)
    missed = (1 - 0.5) / (1 - 0.5**0.1)
    assert counter.table()[0, 0] == pytest.approx((weight / 2 + 0.5) / (weight / 2 + missed + 1))
    assert counter.tree(2) is not first
    kept = counter.tree(2)
    counter.update(tree, [0, 1])
    assert counter.tree(2) is kept
    assert counter.tree(1) is not kept


def test_counter_fades_by_sequences():
    tree = tree_from_paths([[0]])
    together, apart = AcceptanceCounter(1, 1, half_life=4), AcceptanceCounter(1, 1, half_life=4)
    for counter in (together, apart):
        counter.update(tree, [0, 1])
    together.update(tree, [[0, 1], [0, -1]])
    tested, accepted = 0.5**0.5 + 2, 0.5**0.5 + 1  # a batch of two fades what was before by two steps
    assert together.table()[0, 0] == pytest.approx((accepted + 0.5) / (tested + 1))
    apart.update(tree, [0, 1])
    assert (together.steps, apart.steps) == (3, 2)
    assert apart.table()[0, 0] == pytest.approx((0.5**0.25 + 1.5) / (0.5**0.25 + 2))


@pytest.mark.parametrize(
    ("path", "words"),
    [([1], "begin at the root"), ([0, 3], "3 must be a child of 0"), ([], "begin at the root")],
)
def test_counter_refuses(path, words):
    with pytest.raises(ValueError, match=words):
        AcceptanceCounter().update(tree_from_paths([[0], [1], [0, 0]]), path)


@pytest.mark.parametrize("name", ["depth", "width", "half_life", "rebuild"])
def test_counter_refuses_numbers(name):
    with pytest.raises(ValueError, match=f"AcceptanceCounter: {name} must be at least 1, got 0"):
        AcceptanceCounter(**{name: 0})
