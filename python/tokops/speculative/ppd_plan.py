"""Trees of parallel prompt decoding: which candidates to verify, and which of them carry how many prompt tokens."""

import functools
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .latency import LatencyTable
from .trees import acceptance_rows, grow

#: Release: ten candidates per level are read from a prompt token's logits.
_FIRST = 10
#: Plans that the search tries on its grid.
_TRIED = 1024


@dataclass(frozen=True)
class PPDState:
    """The tree that is verified after a node with ``state`` prompt tokens was accepted.

    Args:
        paths: 0-based ranks from the root to every candidate, the likeliest first; the root is left out.
        exits: probability that the accepted path ends at each candidate.
        prompts: prompt tokens that each carries.
        value: expected accepted candidates, the sum of the candidates' path products.
    """

    paths: tuple[tuple[int, ...], ...]
    exits: tuple[float, ...]
    prompts: tuple[int, ...]
    value: float

    @property
    def rows(self) -> int:
        """Candidates and their prompt tokens: what counts against the budget."""
        return len(self.paths) + sum(self.prompts)


@dataclass(frozen=True, eq=False)
class PPDRows:
    """The rows of a state's verifying forward: root, candidates by depth and path, then prompt tokens.

    Args:
        parents: ``[T]`` int32, -1 for the root. A prompt row hangs under the node that carries it, or under the
            prompt row before it, so no real node sees a prompt row.
        positions: ``[T]`` int32, to be added to the length of what is committed: the depth, a prompt row counting
            on from its node.
        ranks: ``[T]`` int32: a candidate at depth l is the token of this rank in the logits of prompt token l. -1
            for the root and for prompt rows.
        prompt: ``[T]`` int32: 0 for real nodes, j for a row whose embedding is that of prompt token j = 1..M.
        real: rows that are real nodes; they are the first.
        chains: ``[real, M]`` int32, the rows of every real node's prompt tokens 1..c, -1 from c on.
        states: ``[real]`` int32, prompt tokens c of every real node: the state after the path ends there.
    """

    parents: np.ndarray
    positions: np.ndarray
    ranks: np.ndarray
    prompt: np.ndarray
    real: int
    chains: np.ndarray
    states: np.ndarray


@dataclass(frozen=True, eq=False)
class PPDPlan:
    """Trees of all states and how often each is used.

    Args:
        states: ``states[s]`` is verified after a node with s prompt tokens was accepted, s = 0..M. State 0 has no
            candidates: the root is decoded alone, with M prompt tokens.
        transition: ``[M + 1, M + 1]`` float64, at ``[s, c]`` the probability that state c follows state s.
        frequencies: ``[M + 1]`` float64, share of steps in every state, beginning with state M.
        accepted: candidates accepted per step in the mean; a step emits one token more.
        budget: the rows that candidates and their prompt tokens may take.
    """

    states: tuple[PPDState, ...]
    transition: np.ndarray
    frequencies: np.ndarray
    accepted: float
    budget: int

    @property
    def prompt_tokens(self) -> int:
        """How many prompt tokens there are, M."""
        return len(self.states) - 1

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens a step emits."""
        return 1.0 + self.accepted

    @property
    def rows(self) -> int:
        """Rows of the largest verifying forward: root, its prompt tokens, and the largest state's rows."""
        return 1 + self.prompt_tokens + max(state.rows for state in self.states)

    @functools.cached_property
    def tables(self) -> tuple[PPDRows, ...]:
        """The rows of every state's forward."""
        return tuple(_rows(state, self.prompt_tokens) for state in self.states)


def ppd_plan(acceptance: Any, budget: int, minimum: int = 0, sizes: Sequence[int] | None = None) -> PPDPlan:
    """Candidates and prompt tokens of every state that together emit most tokens per step.

    State s has the ``sizes[s - 1]`` candidates of depth at most s with the largest path products. Each carries M
    prompt tokens at first; while candidates and prompt tokens exceed the budget, one is taken where it costs least:
    the probability that the path ends there, times what the next tree loses. Of equal costs the later candidate
    gives. A path that ends at the root leads to state M, because the root always carries M.

    Args:
        acceptance: ``[M, K]``, at ``[l - 1, r]`` the probability that the token l steps after the root is the one
            of rank r in the logits of prompt token l, whatever comes between.
        budget: the most candidates and prompt tokens of a state. Root and its prompt tokens add 1 + M rows.
        minimum: prompt tokens that every candidate keeps, 0..M; the published planner keeps 1.
        sizes: candidates of the states 1..M; None searches: state 1 has 10, capped to K and to what the budget
            carries, the others take every count from budget / (M + 1) up to what the budget carries (all of them with
            minimum 0, half with 1), first in steps that make about 1024 plans, then in ever smaller ones around the
            best.

    Returns:
        The plan; it is kept, so asking again costs nothing.

    Raises:
        ValueError: a table that is not one, a budget below 1, minimum outside 0..M, or sizes that do not have M
            entries or do not fit the budget.

    Source: Parallel Prompt Decoding (arXiv 2405.18628). Its planner sends paths that end at the root to a state that
    wastes a step; here they go where the decoding goes.
    """
    table = acceptance_rows("ppd_plan", acceptance)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"ppd_plan: acceptance must be [M, K] with M >= 1, got {list(table.shape)}")
    if budget < 1:
        raise ValueError(f"ppd_plan: budget must be at least 1, got {budget}")
    if not 0 <= minimum <= len(table):
        raise ValueError(f"ppd_plan: minimum must be 0..{len(table)}, got {minimum}")
    most = budget // (1 + minimum)
    if sizes is not None:
        if len(sizes) != len(table) or not all(0 <= n <= most for n in sizes):
            raise ValueError(
                f"ppd_plan: sizes must be {len(table)} counts of 0..{most}, what the budget of {budget} carries, "
                f"got {list(sizes)}"
            )
        return _plan(table, budget, minimum, tuple(sizes))
    return _search(table.tobytes(), table.shape, budget, minimum)


@functools.lru_cache(maxsize=256)
def _search(data: bytes, shape: tuple[int, int], budget: int, minimum: int) -> PPDPlan:
    table, others = np.frombuffer(data).reshape(shape), shape[0] - 1
    most = budget // (1 + minimum)
    least, first = min(max(1, budget // (shape[0] + 1)), most), min(_FIRST, shape[1], most)

    def best(sizes):
        # The first of equal ones: those with the smallest counts.
        return max(sizes, key=lambda rest: _plan(table, budget, minimum, (first, *rest)).accepted)

    points = max(2, int(_TRIED ** (1 / max(others, 1)) + 1e-9))
    step = -(-(most - least + 1) // points)
    found = best(itertools.product(range(least, most + 1, step), repeat=others))
    while step > 1:
        step = -(-step // 2)
        around = [[min(max(n + d, 1), most) for d in (-step, 0, step)] for n in found]
        found = best(itertools.product(*around))
    return _plan(table, budget, minimum, (first, *found))


def _plan(table: np.ndarray, budget: int, minimum: int, sizes: tuple[int, ...]) -> PPDPlan:
    states = [PPDState((), (), (), 0.0)]
    for depth, size in enumerate(sizes, 1):
        paths, exits, value = _candidates(table[:depth].tobytes(), (depth, table.shape[1]), size)
        states.append(PPDState(paths, exits, (), value))
    values = [state.value for state in states]
    full = [states[0]]
    for state in states[1:]:
        prompts = _share(state.exits, values, budget, minimum)
        full.append(PPDState(state.paths, state.exits, prompts, state.value))
    return ppd_chain(full, budget)


@functools.lru_cache(maxsize=4096)
def _candidates(data: bytes, shape: tuple[int, int], size: int):
    tree = grow("ppd_plan", np.frombuffer(data).reshape(shape), size + 1)
    products = np.diff(tree.expected, prepend=0.0)
    exits = products.copy()
    np.subtract.at(exits, np.array(tree.parents[1:], dtype=int), products[1:])
    return tree.paths[1:], tuple(exits[1:].tolist()), tree.expected[-1] - 1.0


def _share(exits: tuple[float, ...], values: list[float], budget: int, minimum: int) -> tuple[int, ...]:
    """Prompt tokens of every candidate, taken away one by one where they are worth least."""
    prompts = [len(values) - 1] * len(exits)

    def cost(node):
        c = prompts[node]
        return exits[node] * (values[c] - values[c - 1]), -node

    heap = [cost(node) for node in range(len(exits)) if prompts[node] > minimum]
    heapq.heapify(heap)
    for _ in range(len(exits) + sum(prompts) - budget):
        node = -heap[0][1]
        prompts[node] -= 1
        if prompts[node] > minimum:
            heapq.heapreplace(heap, cost(node))
        else:
            heapq.heappop(heap)
    return tuple(prompts)


def ppd_chain(states: Sequence[PPDState], budget: int) -> PPDPlan:
    """The plan that given trees make: how states follow each other, and what is accepted in the long run.

    Args:
        states: the trees of the states 0..M; prompts must be 0..M.
        budget: what the plan says of its rows.
    """
    last = len(states) - 1
    transition = np.zeros((last + 1, last + 1))
    for number, state in enumerate(states):
        for ends, prompts in zip(state.exits, state.prompts, strict=True):
            transition[number, prompts] += ends
        transition[number, last] += 1.0 - sum(state.exits)
    # The lazy chain has the same frequencies and no period; squaring it 64 times is 2^64 steps from state M.
    steps = (np.eye(last + 1) + transition) / 2
    for _ in range(64):
        steps = steps @ steps
        steps /= steps.sum(1, keepdims=True)
    accepted = float(steps[last] @ [state.value for state in states])
    return PPDPlan(tuple(states), transition, steps[last], accepted, budget)


def _rows(state: PPDState, prompt_tokens: int) -> PPDRows:
    nodes = [((), prompt_tokens), *sorted(
        zip(state.paths, state.prompts, strict=True), key=lambda node: (len(node[0]), node[0])
    )]  # fmt: skip
    place = {path: row for row, (path, _) in enumerate(nodes)}
    parents = [place[path[:-1]] if path else -1 for path, _ in nodes]
    positions = [len(path) for path, _ in nodes]
    prompt, chains = [0] * len(nodes), np.full((len(nodes), prompt_tokens), -1, np.int32)
    for row, (path, count) in enumerate(nodes):
        for j in range(count):
            parents.append(row if j == 0 else len(parents) - 1)
            positions.append(len(path) + j + 1)
            prompt.append(j + 1)
            chains[row, j] = len(parents) - 1
    ranks = [path[-1] if path else -1 for path, _ in nodes] + [-1] * (len(parents) - len(nodes))
    return PPDRows(
        parents=np.array(parents, np.int32),
        positions=np.array(positions, np.int32),
        ranks=np.array(ranks, np.int32),
        prompt=np.array(prompt, np.int32),
        real=len(nodes),
        chains=chains,
        states=np.array([count for _, count in nodes], np.int32),
    )


def ppd_size(
    acceptance: Any,
    table: LatencyTable,
    budgets: Sequence[int],
    minimum: int = 0,
    *,
    context: int = 0,
    fixed: float = 0.0,
) -> PPDPlan | None:
    """The plan of the budget with most tokens per second; None where plain decoding is faster.

    A step is charged for 1 + M rows besides the budget.

    Args:
        acceptance, minimum: as in :func:`ppd_plan`.
        table: measured latency.
        budgets: to choose among; of equal ones the smaller.
        context: committed tokens.
        fixed: seconds per step besides the forward, also of plain decoding.

    Raises:
        ValueError: as :func:`ppd_plan`, or no budget, or one whose rows exceed what was measured.
    """
    if not len(budgets):
        raise ValueError("ppd_size: budgets must name at least one")
    best, chosen = 1.0 / (table.at(1, context) + fixed), None
    for budget in sorted(budgets):
        plan = ppd_plan(acceptance, budget, minimum)
        speed = plan.tokens_per_step / (table.at(1 + plan.prompt_tokens + budget, context) + fixed)
        if speed > best:
            best, chosen = speed, plan
    return chosen
