"""Latency tables and the sizes chosen from them, against brute force."""

import math

import numpy as np
import pytest
import torch

from tokops.speculative import (
    LatencyTable,
    best_first_tree,
    choose_size,
    common_size,
    dynamic_size,
    falcon_tree,
    pooled_sizes,
)

P = [0.6, 0.2, 0.08, 0.04, 0.02]
SIZES = (1, 2, 4, 8, 16, 32)
SHEET = LatencyTable(SIZES, (256,), ((10, 10, 10, 12, 14, 18),))


def test_table_is_monotone_and_linear_between_sizes():
    table = LatencyTable((1, 2, 4, 8), (256, 1024), ((3.0, 2.0, 5.0, 4.0), (1.0, 2.0, 4.0, 8.0)))
    assert table.row(0).tolist() == [2.5, 2.5, 4.5, 4.5]
    assert table.row(256).tolist() == table.row(0).tolist()
    assert table.row(257).tolist() == table.row(10**6).tolist() == [1, 2, 4, 8]
    assert table.at(3, 1000) == 3.0
    assert table.at([1, 6, 8], 1000).tolist() == [1, 6, 8]
    assert table.at(3, 0) == 3.5
    assert table.edges(0) == (1, 2, 8)
    assert table.edges(1024) == (1, 2, 4, 8)
    assert SHEET.edges() == (1, 4, 8, 16, 32)
    for nodes in (0, 9, float("nan")):
        with pytest.raises(ValueError, match=r"nodes must be 1\.\.8, what was measured"):
            table.at(nodes)
    with pytest.raises(ValueError, match="context must be 0 or more, got -1"):
        table.row(-1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": (2, 4)}, "sizes must ascend from 1"),
        ({"sizes": (1, 1)}, "sizes must ascend from 1"),
        ({"sizes": ()}, "sizes must ascend from 1"),
        ({"contexts": (4, 2)}, "contexts must ascend"),
        ({"contexts": (-1,)}, "contexts must ascend from 0"),
        ({"seconds": ((1.0,),)}, r"seconds must be \[contexts, sizes\] = \[1, 2\], got rows of \[1\]"),
        ({"seconds": ((1.0, 2.0),) * 2}, r"got rows of \[2, 2\]"),
        ({"seconds": ((1.0, 0.0),)}, "positive and finite"),
        ({"seconds": ((1.0, float("nan")),)}, "positive and finite"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_table_refuses(changes, words):
    given = {"sizes": (1, 2), "contexts": (256,), "seconds": ((1.0, 2.0),)}
    with pytest.raises(ValueError, match=f"LatencyTable: .*{words}"):
        LatencyTable(**{**given, **changes})


def test_table_is_kept_by_what_was_measured(tmp_path, monkeypatch):
    table = LatencyTable((1, 2), (256,), ((0.5, 0.25),), "a card", "a model", "abc", "bf16", 4)
    other = LatencyTable((1, 3), (256,), ((0.5, 0.75),), "a card", "a model", "abc", "fp32", 4)
    path = table.save(tmp_path)
    assert other.save(tmp_path) == path == tmp_path / "abc.json"
    key = ("a card", "a model", "abc")
    assert LatencyTable.load(*key, "bf16", 4, tmp_path) == table
    assert LatencyTable.load(*key, "fp32", 4, tmp_path) == other
    assert LatencyTable.load(*key, "fp32", 1, tmp_path) is None
    assert LatencyTable.load("another", *key[1:], "bf16", 4, tmp_path) is None
    assert LatencyTable.load("a card", "a model", "xyz", "bf16", 4, tmp_path) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert table.save().parent == tmp_path / "cache" / "tokops" / "latency"
    assert LatencyTable.load(*key, "bf16", 4) == table
    for broken in ("[]", "no json", '{"a card | a model | bf16 | 4": {"sizes": [1]}}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"abc\.json is not a latency file"):
            LatencyTable.load(*key, "bf16", 4, tmp_path)


@pytest.mark.parametrize(
    ("draft", "nodes", "depth", "expected", "cost", "speedup"),
    [(0.3, 16, 4, 3.224, 4.71464, 2.1211), (1.5, 8, 2, 2.528, 5.93354, 1.6854)],
)
def test_choice_of_the_sheet(draft, nodes, depth, expected, cost, speedup):
    for acceptance in ([P] * 8, P):
        found = choose_size(SHEET, acceptance, draft=draft)
        assert (found.nodes, found.depth) == (nodes, depth)
        assert found.expected == pytest.approx(expected, abs=1e-9)
        assert found.seconds / found.expected == pytest.approx(cost, abs=5e-6)
        assert found.speedup == pytest.approx(speedup, abs=1e-4)
        assert found.tree == best_first_tree(P, nodes, depth)


def brute_force(table, acceptances, draft, fixed, block):
    """The least (cost, n, D) over every size that was measured."""
    costs = [(fixed + table.at(1), 1, 0)]
    for depth in range(1, len(acceptances[0]) + 1):
        for nodes in table.sizes[1:]:
            trees = [best_first_tree(a, nodes, depth) for a in acceptances]
            value = np.mean([tree.expected[-1] for tree in trees])
            nodes = max(len(tree) for tree in trees)
            passes = math.ceil(depth / block) if nodes > 1 else 0
            costs.append(((fixed + passes * draft + table.at(nodes)) / value, nodes, depth))
    return min(costs)


@pytest.mark.parametrize("seed", range(30))
def test_choice_is_the_least_cost(seed):
    rng = np.random.default_rng(seed)
    batch, block = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    times = 5 + np.cumsum(rng.integers(0, 3, len(SIZES)) * rng.random())
    table = LatencyTable(SIZES, (0,), (times,), batch=batch)
    rows = np.sort(rng.dirichlet(np.ones(6), (batch, 5))[..., :5], -1)[..., ::-1]
    draft, fixed = rng.random() * 2, rng.random()
    found = choose_size(table, list(rows), draft=draft, fixed=fixed, block=block)
    cost, nodes, depth = brute_force(table, rows, draft, fixed, block)
    assert found.seconds / found.expected == pytest.approx(cost, rel=1e-12)
    assert (found.nodes, found.depth) == (nodes, depth)
    assert len(found.trees) == batch
    assert found.speedup >= 1


def test_speculation_switches_itself_off():
    slow = LatencyTable(SIZES, (0,), ((1, 2, 4, 8, 16, 32),))
    found = choose_size(slow, [P] * 4, draft=1.0)
    assert (found.nodes, found.depth, found.speedup, found.expected) == (1, 0, 1.0, 1.0)
    assert choose_size(SHEET, [[0.0] * 3] * 4).nodes == 1
    assert choose_size(SHEET, [P] * 4, most=1).nodes == 1
    assert choose_size(SHEET, [P] * 4, depth=0).nodes == 1
    assert choose_size(SHEET, np.zeros((0, 3))).nodes == 1


def test_equal_costs_take_the_smaller_tree():
    flat = LatencyTable((1, 2, 3), (0,), ((1.0, 1.5, 2.25),))
    found = choose_size(flat, [[0.5, 0.25]])  # 1 / 1 = 1.5 / 1.5; 2.25 / 1.75 is more
    assert found.nodes == 1


def test_block_and_groups_reach_the_tree():
    found = choose_size(SHEET, [P] * 8, draft=0.3, block=2, groups=1)
    assert found.tree == falcon_tree([P] * 8, found.nodes, 2, found.depth, groups=1)
    assert found.depth <= 4


@pytest.mark.parametrize(
    ("acceptance", "changes", "words"),
    [
        ([P], {"draft": -1}, "draft must be at least 0, got -1"),
        ([P], {"fixed": float("nan")}, "fixed must be at least 0, got nan"),
        ([P], {"block": 0}, "block must be at least 1, got 0"),
        ([P], {"depth": -1}, "depth must be at least 0, got -1"),
        ([P], {"most": 0}, "most must be at least 1, got 0"),
        ([np.array([P])] * 2, {}, r"batch of 1, got \[\[1, 5\], \[1, 5\]\]"),
        ([2.0], {}, "probabilities in 0..1"),
    ],
)
def test_choice_refuses(acceptance, changes, words):
    with pytest.raises(ValueError, match=f"choose_size: .*{words}"):
        choose_size(SHEET, acceptance, **changes)


def descending(rng, batch, length, device):
    values = np.sort(rng.random((batch, length)) ** 3, 1)[:, ::-1].copy()
    return torch.tensor(values, dtype=torch.float32, device=device)


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_size(seed, device):
    rng = np.random.default_rng(seed)
    table = LatencyTable(SIZES, (0,), (np.sort(rng.random(6)) + 0.5,))
    length = 40 if seed % 2 else 11  # fewer candidates than the largest size
    chances = descending(rng, 3, length, device)
    sizes, seconds = table.curve(extra=0.1, device=device)
    got = dynamic_size(chances, sizes, seconds)
    assert got.dtype == torch.int32
    c = chances.double().cpu().numpy()
    values = np.array([[1 + row[: n - 1].sum() for n in sizes.tolist()] for row in c])
    ratios = np.concatenate([values, values.sum(0, keepdims=True)]) / seconds.cpu().numpy()
    want = [sizes.tolist()[int(np.argmax(row.round(12)))] for row in ratios]
    assert got.tolist() == want[:3]
    assert common_size(c, sizes.cpu().numpy(), seconds.cpu().numpy()) == want[3]


def test_dynamic_size_edges(device):
    sizes = torch.tensor([1, 2, 4], device=device)
    flat = torch.ones(3, dtype=torch.float64, device=device)
    nothing = torch.zeros(2, 0, device=device)
    assert dynamic_size(nothing, sizes, flat).tolist() == [1, 1]
    nan = torch.full((1, 3), float("nan"), device=device)
    assert dynamic_size(nan, sizes, flat).tolist() == [1]
    certain = torch.ones(1, 3, device=device)
    assert dynamic_size(certain, sizes, flat).tolist() == [4]
    assert dynamic_size(certain, sizes, sizes.double()).tolist() == [1]  # equal ratios
    assert common_size(np.zeros((2, 0)), sizes.cpu().numpy(), flat.cpu().numpy()) == 1
    with pytest.raises(ValueError, match=r"common_size: .* got \[1, 3\], \[3\], \[2\]"):
        common_size(np.ones((1, 3)), sizes.cpu().numpy(), np.ones(2))
    with pytest.raises(ValueError, match=r"dynamic_size: .* got \[3\], \[3\], \[3\]"):
        dynamic_size(certain[0], sizes, flat)
    with pytest.raises(ValueError, match=r"S >= 1, got \[1, 3\], \[0\], \[0\]"):
        dynamic_size(certain, sizes[:0], flat[:0])


@pytest.mark.parametrize("most", [64, 63, 32, 16, 2])
def test_a_limit_inside_a_run_of_equal_times_ends_it(most):
    flat = LatencyTable((1, 2, 4, 8, 16, 32, 64), (256,), ((1.0,) * 7,))
    assert flat.edges(most=most) == (1, most)
    assert flat.curve(most=most)[0].tolist() == [1, most]
    found = choose_size(flat, [P] * 8, most=most)
    assert found.nodes == most
    assert found.tree == best_first_tree(P, most, found.depth)


def test_a_limit_takes_no_size_that_is_not_worth_having():
    assert SHEET.edges(most=3) == (1, 3)  # as fast as 1
    assert SHEET.edges(most=7) == (1, 4)
    assert SHEET.edges(most=8) == (1, 4, 8)
    assert SHEET.edges(most=100) == SHEET.edges()
    assert SHEET.edges(most=1) == (1,)
    assert SHEET.curve(most=0)[0].tolist() == [1]


def test_curve_offers_captured_sizes_only():
    sizes, seconds = SHEET.curve(extra=1.0, most=10)
    assert sizes.tolist() == [1, 4, 8]
    assert seconds.tolist() == [11, 11, 13]


@pytest.mark.parametrize("seed", range(8))
def test_pooled_sizes(seed, device):
    """Against every way to give m tokens to three sequences."""
    rng = np.random.default_rng(seed)
    chances = descending(rng, 3, 4, device)
    if seed % 2:
        chances = chances.round(decimals=1)
    table = LatencyTable((1, 2, 4, 8), (0,), (1 + np.cumsum(rng.random(4) * 0.8),), batch=3)
    seconds = table.totals(extra=0.05, device=device)
    assert len(seconds) == 22
    assert seconds[3 * 2].item() == pytest.approx(table.at(3) + 0.05)
    got = pooled_sizes(chances, seconds)
    c, t = chances.double().cpu().numpy(), seconds.tolist()
    ratios = {
        n: (3 + sum(c[b, : n[b] - 1].sum() for b in range(3))) / t[sum(n) - 3]
        for n in np.ndindex(6, 6, 6)
        if min(n) > 0
    }
    best = max(ratios.values())
    assert ratios[tuple(got.tolist())] == pytest.approx(best, rel=1e-12)
    least = min(sum(n) for n, ratio in ratios.items() if ratio > best - 1e-12)
    assert int(got.sum()) == least


def test_pooled_sizes_see_beyond_a_stair(device):
    """The third token does not pay by itself; the fourth, which costs nothing more, does."""
    chances = torch.tensor([[0.9, 0.9], [0.9, 0.9]], device=device)
    seconds = torch.tensor([1.0, 1.2, 1.5, 2.0, 2.0], dtype=torch.float64, device=device)
    ratios = [(2 + 0.9 * m) / t for m, t in enumerate(seconds.tolist())]
    assert ratios[0] < ratios[1] < ratios[2] > ratios[3]
    assert ratios[4] > ratios[2]
    assert pooled_sizes(chances, seconds).tolist() == [3, 3]
    assert pooled_sizes(chances, seconds[:4]).tolist() == [3, 1]


def test_pooled_sizes_edges(device):
    flat = torch.ones(4, dtype=torch.float64, device=device)
    ones = torch.ones(2, 5, device=device)
    assert pooled_sizes(ones, flat).tolist() == [4, 1]  # equal candidates: the earlier sequence first
    assert pooled_sizes(ones[:, :0], flat).tolist() == [1, 1]
    assert pooled_sizes(ones * float("nan"), flat).tolist() == [1, 1]
    assert pooled_sizes(ones, flat[:1]).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"pooled_sizes: .* got \[5\], \[4\]"):
        pooled_sizes(ones[0], flat)
