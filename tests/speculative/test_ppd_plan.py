"""The planner of parallel prompt decoding: printed plans, a simulation of the chain, and the rows of its forwards."""

import numpy as np
import pytest

from tokops.speculative import LatencyTable, PPDState, ppd_chain, ppd_plan, ppd_size

SHEET = [[0.5, 0.2, 0.1], [0.3, 0.1, 0.05]]

# Vicuna-7B: level 1 as the sheet prints it; levels 2 and 3 out of the exit probabilities that the released trees print
# to five digits (products of paths below rank 0).
LEVEL_1 = [0.48335, 0.14342, 0.0736, 0.0454, 0.03087, 0.02155, 0.01658, 0.01323, 0.00932, 0.00845]
BELOW_0 = [0.12691, 0.07038, 0.03922, 0.02784, 0.0207, 0.01561, 0.01242, 0.0104, 0.0092, 0.00749]
BELOW_00 = [0.02083, 0.01492, 0.01027, 0.00734, 0, 0, 0, 0, 0, 0]
VICUNA = [LEVEL_1, np.divide(BELOW_0, LEVEL_1[0]), np.divide(BELOW_00, BELOW_0[0])]


@pytest.mark.parametrize(
    ("sizes", "budget", "value", "nodes", "pi", "accepted"),
    [
        (
            (3, 4),
            10,
            0.95,
            {(0,): (0.35, 2), (1,): (0.20, 2), (0, 0): (0.15, 1), (2,): (0.10, 1)},
            (0.2, 0.8),
            0.92,
        ),
        (
            (3, 5),
            12,
            1.01,
            {(0,): (0.35, 2), (1,): (0.14, 1), (0, 0): (0.15, 2), (2,): (0.10, 1), (1, 0): (0.06, 1)},
            (3 / 13, 10 / 13),
            0.9615385,
        ),
    ],
)
def test_plan_of_the_sheet(sizes, budget, value, nodes, pi, accepted):
    plan = ppd_plan(SHEET, budget, 1, sizes)
    assert [state.value for state in plan.states] == pytest.approx([0, 0.8, value])
    last = plan.states[2]
    assert list(last.paths) == list(nodes)
    assert last.exits == pytest.approx([ends for ends, _ in nodes.values()])
    assert last.prompts == tuple(prompts for _, prompts in nodes.values())
    assert plan.frequencies == pytest.approx([0, *pi])
    assert plan.transition.sum(1) == pytest.approx([1, 1, 1])
    assert plan.accepted == pytest.approx(accepted, abs=5e-8)
    assert plan.tokens_per_step == 1 + plan.accepted
    assert (plan.rows, plan.budget) == (1 + 2 + budget, budget)


@pytest.mark.parametrize(
    ("budget", "sizes", "values", "prompts", "pi", "accepted"),
    [
        (60, (10, 20, 20), (0.84577, 1.24251, 1.25470), (30, 40, 40), (0, 0.828, 0.172), 1.24461),
        (105, (10, 33, 34), (0.84577, 1.34347, 1.38764), (30, 72, 71), None, 1.36670),
    ],
)
def test_released_trees(budget, sizes, values, prompts, pi, accepted):
    """The accuracies are known to five digits of products, so sums of 34 of them agree to about 2e-5."""
    plan = ppd_plan(VICUNA, budget, 1, sizes)
    assert [state.value for state in plan.states[1:]] == pytest.approx(values, abs=2e-5)
    assert tuple(sum(state.prompts) for state in plan.states[1:]) == prompts
    assert plan.accepted == pytest.approx(accepted, abs=2e-5)
    if pi:
        assert plan.frequencies[1:] == pytest.approx(pi, abs=5e-4)
    found = ppd_plan(VICUNA, budget, 1)
    assert tuple(len(state.paths) for state in found.states[1:]) == sizes


def test_released_accuracies_at_the_largest_budget():
    plan = ppd_plan(VICUNA, 120, 1)
    assert plan.accepted == pytest.approx(1.39282, abs=2e-5)
    assert ppd_plan(VICUNA, 120, 1) is plan
    assert sum(VICUNA[0]) == pytest.approx(0.84577)


@pytest.mark.parametrize("minimum", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_prompt_tokens_are_taken_where_they_cost_least(seed, minimum):
    """The rule one step at a time, over all candidates."""
    rng = np.random.default_rng(seed)
    table = np.sort(rng.dirichlet(np.ones(5), 3)[:, :4], 1)[:, ::-1]
    sizes, budget = (4, 6, 9), 30
    plan = ppd_plan(table, budget, minimum, sizes)
    values = [state.value for state in plan.states]
    for state in plan.states[1:]:
        prompts = [3] * len(state.paths)
        while len(prompts) + sum(prompts) > budget:
            costs = [
                state.exits[v] * (values[c] - values[c - 1]) if c > minimum else np.inf
                for v, c in enumerate(prompts)
            ]
            last = max(v for v, cost in enumerate(costs) if cost == min(costs))
            prompts[last] -= 1
        assert state.prompts == tuple(prompts)
        assert state.rows <= budget


@pytest.mark.parametrize(("budget", "minimum"), [(1, 0), (2, 1), (7, 0), (12, 1), (40, 0), (60, 1)])
def test_search_finds_the_best_counts(budget, minimum):
    table = [[0.4, 0.2, 0.1, 0.05], [0.3, 0.15, 0.1, 0.02]]
    plan = ppd_plan(table, budget, minimum)
    first = min(4, budget // (1 + minimum))
    most = budget // (1 + minimum)
    best = max(
        ppd_plan(table, budget, minimum, (first, n)).accepted
        for n in range(min(max(1, budget // 3), most), most + 1)
    )
    assert plan.accepted == pytest.approx(best, rel=1e-12)
    assert all(state.rows <= budget for state in plan.states)
    assert all(min(state.prompts, default=minimum) >= minimum for state in plan.states)


def test_search_steps_over_large_budgets_and_then_refines():
    plan = ppd_plan(VICUNA, 105)  # counts up to 105 in steps of 3, then of 2 and 1
    assert plan.accepted >= ppd_plan(VICUNA, 105, 1).accepted - 1e-9
    one = ppd_plan([LEVEL_1], 8)
    assert [len(state.paths) for state in one.states] == [0, 8]
    four = ppd_plan([LEVEL_1[:4]] * 4, 20)
    assert all(state.rows <= 20 for state in four.states)


def simulate(plan, table, steps, rng):
    """Accepted candidates of every step, walked through the rows of the forwards."""
    sums = np.cumsum(table, 1)
    children = [
        {(int(p), int(r)): v for v, (p, r) in enumerate(zip(t.parents[: t.real], t.ranks, strict=False))}
        for t in plan.tables
    ]
    state, accepted, visits = plan.prompt_tokens, [], np.zeros(len(plan.states))
    for _ in range(steps):
        visits[state] += 1
        node = 0
        for row in sums:
            following = children[state].get((node, int(np.searchsorted(row, rng.random(), side="right"))))
            if following is None:
                break
            node = following
        rows = plan.tables[state]
        accepted.append(rows.positions[node])
        state = int(rows.states[node])
    return np.array(accepted), visits / steps


@pytest.mark.parametrize(("budget", "minimum"), [(12, 1), (12, 0), (5, 0), (40, 1)])
def test_simulation(budget, minimum):
    table = np.array([[0.5, 0.2, 0.1], [0.3, 0.1, 0.05], [0.4, 0.1, 0.02]])
    plan = ppd_plan(table, budget, minimum)
    accepted, visits = simulate(plan, table, 40000, np.random.default_rng(budget))
    blocks = accepted.reshape(200, 200).mean(1)  # steps depend on each other, blocks hardly
    assert abs(blocks.mean() - plan.accepted) <= 3 * blocks.std() / np.sqrt(len(blocks))
    assert visits == pytest.approx(plan.frequencies, abs=0.02)


def test_root_exits_lead_to_the_last_state():
    """The published planner sends them to a state that wastes a step; then R would be lower."""
    plan = ppd_plan(VICUNA, 105, 1, (10, 33, 34))
    for number, state in enumerate(plan.states):
        at_root = 1 - sum(state.exits)
        carried = sum(e for e, c in zip(state.exits, state.prompts, strict=True) if c == 3)
        assert plan.transition[number, 3] == pytest.approx(at_root + carried)
    wasted = plan.transition.copy()
    for number, state in enumerate(plan.states):
        wasted[number, 3] -= 1 - sum(state.exits)
        wasted[number, 0] += 1 - sum(state.exits)
    wasted[0] = np.eye(4)[3]
    values, vectors = np.linalg.eig(wasted.T)
    pi = np.real(vectors[:, np.argmin(abs(values - 1))])
    published = pi / pi.sum() @ [state.value for state in plan.states]
    assert published == pytest.approx(1.18408, abs=5e-5)
    assert plan.accepted > published + 0.18


def test_periodic_and_absorbing_chains():
    certain = ppd_plan([[1.0], [1.0]], 2, 0, (1, 2))
    assert certain.transition.sum(1) == pytest.approx([1, 1, 1])
    swap = [
        PPDState((), (), (), 0.0),
        PPDState(((0,),), (1.0,), (2,), 1.0),
        PPDState(((0,),), (1.0,), (1,), 1.0),
    ]
    plan = ppd_chain(swap, 2)
    assert plan.frequencies == pytest.approx([0, 0.5, 0.5])
    assert plan.accepted == pytest.approx(1.0)


@pytest.mark.parametrize(("budget", "minimum"), [(12, 1), (14, 0), (40, 1)])
def test_rows(budget, minimum):
    table = [[0.5, 0.2, 0.1], [0.3, 0.1, 0.05], [0.4, 0.1, 0.02]]
    plan = ppd_plan(table, budget, minimum)
    for state, rows in zip(plan.states, plan.tables, strict=True):
        total = 1 + 3 + state.rows
        assert all(x.dtype == np.int32 for x in (rows.parents, rows.positions, rows.ranks, rows.prompt))
        assert len(rows.parents) == len(rows.positions) == len(rows.ranks) == len(rows.prompt) == total
        assert total <= plan.rows
        assert rows.parents[0] == -1
        assert all(0 <= parent < row for row, parent in enumerate(rows.parents[1:], 1))
        assert (rows.prompt[: rows.real] == 0).all()
        assert (rows.prompt[rows.real :] > 0).all()
        assert (rows.parents[: rows.real] < rows.real).all()

        def path(row, rows=rows):
            return () if row == 0 else (*path(rows.parents[row]), int(rows.ranks[row]))

        carried = dict(zip(state.paths, state.prompts, strict=True)) | {(): 3}
        order = [path(row) for row in range(rows.real)]
        assert order == sorted(carried, key=lambda p: (len(p), p))
        for node, name in enumerate(order):
            assert rows.states[node] == carried[name]
            assert rows.positions[node] == len(name)
            chain = rows.chains[node]
            assert (chain >= 0).sum() == carried[name]
            above = node
            for j, row in enumerate(chain[chain >= 0], 1):
                assert rows.parents[row] == above
                assert rows.prompt[row] == j
                assert rows.positions[row] == len(name) + j
                assert rows.ranks[row] == -1
                above = row
        assert sorted(rows.chains[rows.chains >= 0]) == list(range(rows.real, total))
    root = plan.tables[0]
    assert root.parents.tolist() == [-1, 0, 1, 2]
    assert root.chains.tolist() == [[1, 2, 3]]


def test_budget_by_latency():
    sizes = (1, 8, 16, 32, 64, 128)
    cheap = LatencyTable(sizes, (0,), ((1, 1, 1, 1, 1.02, 3),))
    budgets = range(4, 100, 8)
    found = ppd_size(VICUNA, cheap, budgets, 1, fixed=0.1)
    speeds = {n: ppd_plan(VICUNA, n, 1).tokens_per_step / (cheap.at(4 + n) + 0.1) for n in budgets}
    assert found.budget == max(speeds, key=speeds.get)
    assert 60 <= found.budget <= 64
    dear = LatencyTable(sizes, (0,), (sizes,))
    assert ppd_size(VICUNA, dear, budgets, 1) is None
    with pytest.raises(ValueError, match="ppd_size: budgets must name at least one"):
        ppd_size(VICUNA, cheap, [])
    with pytest.raises(ValueError, match=r"nodes must be 1\.\.128"):
        ppd_size(VICUNA, cheap, [125])


@pytest.mark.parametrize(
    ("table", "budget", "changes", "words"),
    [
        ([0.5, 0.2], 4, {}, r"acceptance must be \[M, K\] with M >= 1, got \[2\]"),
        (np.zeros((0, 3)), 4, {}, r"M >= 1, got \[0, 3\]"),
        (SHEET, 0, {}, "budget must be at least 1, got 0"),
        (SHEET, 4, {"minimum": 3}, r"minimum must be 0\.\.2, got 3"),
        (SHEET, 4, {"minimum": -1}, r"minimum must be 0\.\.2, got -1"),
        (SHEET, 4, {"sizes": (2,)}, "sizes must be 2 counts"),
        (SHEET, 4, {"sizes": (2, 3), "minimum": 1}, r"2 counts of 0\.\.2, what the budget of 4 carries"),
        ([[0.9, 0.4]], 4, {}, "sum to at most 1"),
    ],
)
def test_refuses(table, budget, changes, words):
    with pytest.raises(ValueError, match=f"ppd_plan: .*{words}"):
        ppd_plan(table, budget, **changes)
