"""Draft trees of fixed shape: the best of every size under an acceptance table, and trees given by rank paths."""

import functools
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_ROUNDING = 1e-6  # by which printed probabilities may exceed a sum of one


@dataclass(frozen=True)
class Tree:
    """A draft tree. Node 0 is the root, the last committed token; a parent comes before its children.

    Args:
        parents: the parent of every node, -1 for the root.
        ranks: the 0-based rank of every node among the candidates of its parent, -1 for the root.
        depths: edges between the root and every node.
        expected: ``expected[n - 1]`` is how many tokens a step emits, in the mean, with the first n nodes alone:
            the accepted ones and the one after them. Empty where no acceptance is known.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    depths: tuple[int, ...]
    expected: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Depth of the deepest node."""
        return max(self.depths)

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The ranks from the root to every node."""
        found: list[tuple[int, ...]] = [()]
        for parent, rank in zip(self.parents[1:], self.ranks[1:], strict=True):
            found.append((*found[parent], rank))
        return tuple(found)

    def first(self, nodes: int) -> "Tree":
        """The tree of the first ``nodes`` nodes.

        Raises:
            ValueError: not between 1 and all nodes.
        """
        if not 1 <= nodes <= len(self):
            raise ValueError(f"Tree.first: nodes must be 1..{len(self)}, got {nodes}")
        return Tree(self.parents[:nodes], self.ranks[:nodes], self.depths[:nodes], self.expected[:nodes])


def acceptance_rows(function: str, acceptance: Any) -> np.ndarray:
    """An acceptance table as float64 ``[D, K]`` or ``[K]``, checked.

    Raises:
        ValueError: not one or two axes, an entry outside 0..1 (or NaN), or a row whose sum is above 1.
    """
    table = np.array(acceptance, dtype=np.float64)
    if table.ndim not in (1, 2):
        raise ValueError(f"{function}: acceptance must be [D, K] or [K], got {table.ndim} axes")
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"{function}: acceptance must be probabilities in 0..1, got {table.tolist()}")
    if (table.sum(-1) > 1 + _ROUNDING).any():
        raise ValueError(
            f"{function}: a row of acceptance must sum to at most 1 (one child is accepted at most), got "
            f"{float(table.sum(-1).max()):.6g}"
        )
    return table


def best_first_tree(
    acceptance: Any, nodes: int, depth: int | None = None, *, width: int | None = None
) -> Tree:
    """The tree that emits most tokens per step, for its size and every smaller one at once.

    The value of a tree is the sum over its nodes of the product of acceptances on their path, the root counting 1.
    A child never has a larger product than its parent, nor than a sibling of larger acceptance, so taking nodes in
    the order of their products gives trees that are optimal and nested. Equal products: the shorter path first,
    then the lexicographically smaller one.

    Args:
        acceptance: ``[D, K]``; at ``[d - 1, j]`` the probability that the candidate of rank j below an accepted node
            of depth d - 1 is the accepted one. ``[K]`` holds for all depths. Ranks need not fall: what counts is
            the acceptance, and a tree names the ranks it takes.
        nodes: the most nodes, root included; fewer come out where no further node could ever be accepted.
        depth: the most levels below the root; None: D, or no limit for ``[K]``. 0 is the root alone.
        width: the most candidates per node, for a vocabulary or a drafter that has fewer than K; None: K.

    Returns:
        The tree, in the order of the products, with ``expected`` for every prefix.

    Raises:
        ValueError: nodes < 1, depth < 0 or more than D, width < 0, or a table that is not one.

    Example:
        >>> best_first_tree([0.6, 0.2], nodes=4).paths
        ((), (0,), (0, 0), (0, 0, 0))

    Source: Sequoia (arXiv 2402.12374), whose dynamic programme gives the same values.
    """
    return grow("best_first_tree", acceptance, nodes, depth, width)


def grow(
    function: str,
    acceptance: Any,
    nodes: int,
    depth: int | None = None,
    width: int | None = None,
    block: int | None = None,
    groups: int | None = None,
) -> Tree:
    """What :func:`best_first_tree` and :func:`~tokops.speculative.falcon_tree` do, under the name of one of them."""
    table = acceptance_rows(function, acceptance)
    if nodes < 1:
        raise ValueError(f"{function}: nodes must be at least 1, got {nodes}")
    levels = nodes - 1 if table.ndim == 1 else len(table)
    if depth is not None and (depth < 0 or (table.ndim == 2 and depth > levels)):
        limit = "" if table.ndim == 1 else f"..{levels}, the rows of acceptance"
        raise ValueError(f"{function}: depth must be 0{limit or ' or more'}, got {depth}")
    if width is not None and width < 0:
        raise ValueError(f"{function}: width must be 0 or more, got {width}")
    levels = levels if depth is None else min(depth, levels)
    rows = np.broadcast_to(table, (levels, table.shape[-1])) if table.ndim == 1 else table[:levels]
    rows = np.ascontiguousarray(rows[:, :width])
    return _grow(rows.tobytes(), rows.shape, nodes, block, groups)


@functools.lru_cache(maxsize=256)
def _grow(data: bytes, shape: tuple[int, int], nodes: int, block: int | None, groups: int | None) -> Tree:
    table = np.frombuffer(data).reshape(shape)
    order = np.argsort(-table, axis=1, kind="stable")
    rows, ranks = np.take_along_axis(table, order, 1).tolist(), order.tolist()
    parents: list[int] = []
    names: list[int] = []
    depths: list[int] = []
    expected: list[float] = []
    opened = 0
    # minus the product, depth, path by falling acceptance; then the parent and the factors above the node
    heap: list[tuple[float, int, tuple[int, ...], int, tuple[float, ...]]] = [(-1.0, 0, (), -1, ())]

    def push(path, parent, above):
        level = len(path)
        if level > len(rows) or path[-1] >= shape[1]:
            return
        # Factors in one order, so that paths of the same factors tie to the last bit.
        value = math.prod(sorted((*above, rows[level - 1][path[-1]])))
        if value > 0:
            heapq.heappush(heap, (-value, level, path, parent, above))

    while heap and len(parents) < nodes:
        value, level, path, parent, above = heapq.heappop(heap)
        if block and level > 1 and path[-1] == 0 and (level - 1) % block == 0:
            if opened == groups:
                continue
            opened += 1
        parents.append(parent)
        names.append(ranks[level - 1][path[-1]] if level else -1)
        depths.append(level)
        expected.append((expected[-1] if expected else 0.0) - value)
        if level:
            push((*path[:-1], path[-1] + 1), parent, above)
            above = (*above, rows[level - 1][path[-1]])
        push((*path, 0), len(parents) - 1, above)
    return Tree(tuple(parents), tuple(names), tuple(depths), tuple(expected))


def expected_tokens(tree: Tree, acceptance: Any) -> tuple[float, ...]:
    """Tokens a step emits in the mean with the first n nodes of a tree, for n = 1, 2, ...

    Args:
        tree: any tree.
        acceptance: as in :func:`best_first_tree`; depths and ranks beyond the table are never accepted.

    Raises:
        ValueError: a table that is not one.
    """
    table = acceptance_rows("expected_tokens", acceptance)
    levels = tree.depth if table.ndim == 1 else len(table)
    values, sums = [1.0], [1.0]
    for parent, rank, depth in list(zip(tree.parents, tree.ranks, tree.depths, strict=True))[1:]:
        row = table if table.ndim == 1 else table[min(depth, levels) - 1] if levels else table[:0].ravel()
        known = depth <= levels and rank < len(row)
        values.append(values[parent] * float(row[rank]) if known else 0.0)
        sums.append(sums[-1] + values[-1])
    return tuple(sums)


def tree_from_paths(paths: Iterable[Sequence[int]], acceptance: Any = None) -> Tree:
    """A tree out of rank paths, as published trees are listed: ``[[0], [1], [0, 0], ...]``.

    A path that is listed twice is one node. Nodes are sorted by depth, then path.

    Args:
        paths: 0-based ranks from the root to every node; the root itself, ``()``, may be left out.
        acceptance: as in :func:`best_first_tree`, for ``expected``.

    Raises:
        ValueError: a negative rank, or a path whose parent is not listed.

    Example:
        >>> tree_from_paths([[0], [0, 0], [1], [0]]).parents
        (-1, 0, 0, 1)
    """
    unique = {(), *(tuple(int(rank) for rank in path) for path in paths)}
    for path in unique:
        if any(rank < 0 for rank in path):
            raise ValueError(f"tree_from_paths: ranks must be 0 or more, got {list(path)}")
        if path and path[:-1] not in unique:
            raise ValueError(
                f"tree_from_paths: every parent must be listed, got {list(path)} without {list(path[:-1])}"
            )
    ordered = sorted(unique, key=lambda path: (len(path), path))
    place = {path: node for node, path in enumerate(ordered)}
    tree = Tree(
        (-1, *(place[path[:-1]] for path in ordered[1:])),
        (-1, *(path[-1] for path in ordered[1:])),
        tuple(len(path) for path in ordered),
    )
    return tree if acceptance is None else replace(tree, expected=expected_tokens(tree, acceptance))


def tree_from_parents(parents: Sequence[int], acceptance: Any = None) -> Tree:
    """A tree out of its parents; siblings have the ranks 0, 1, ... in their order.

    Args:
        parents: -1 for node 0, an earlier node for every other.
        acceptance: as in :func:`best_first_tree`, for ``expected``.

    Raises:
        ValueError: no node, a first parent that is not -1, or one that does not come before its node.
    """
    given = tuple(int(parent) for parent in parents)
    if not given or given[0] != -1:
        raise ValueError(f"tree_from_parents: parents[0] must be -1, got {list(given[:1])}")
    children = [0] * len(given)
    ranks, depths = [-1], [0]
    for node, parent in enumerate(given[1:], 1):
        if not 0 <= parent < node:
            raise ValueError(f"tree_from_parents: parents[{node}] must be 0..{node - 1}, got {parent}")
        ranks.append(children[parent])
        depths.append(depths[parent] + 1)
        children[parent] += 1
    tree = Tree(given, tuple(ranks), tuple(depths))
    return tree if acceptance is None else replace(tree, expected=expected_tokens(tree, acceptance))
