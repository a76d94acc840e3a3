"""Acceptance of a drafter's candidates by depth and rank, counted while decoding."""

from typing import Any

import numpy as np

from .trees import Tree, best_first_tree


def isotonic(values: Any, weights: Any = None) -> np.ndarray:
    """The non-decreasing sequence nearest to one, in weighted squares, by pooling adjacent violators.

    Args:
        values: ``[n]``.
        weights: ``[n]``, positive; None: all equal.

    Returns:
        float64 ``[n]``; pooled entries are equal to the last bit.
    """
    given = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(given) if weights is None else np.asarray(weights, dtype=np.float64)
    pools: list[tuple[float, float, int]] = []  # mean, weight, entries
    for mean, mass in zip(given.tolist(), weight.tolist(), strict=True):
        count = 1
        while pools and pools[-1][0] > mean:
            other, other_mass, entries = pools.pop()
            mean = (mean * mass + other * other_mass) / (mass + other_mass)
            mass, count = mass + other_mass, count + entries
        pools.append((mean, mass, count))
    return np.repeat([mean for mean, _, _ in pools], [count for _, _, count in pools]) if pools else given


class AcceptanceCounter:
    """Counts which candidates are accepted and gives the best tree under what it has seen.

    Keep one per verification mode and per range of temperatures: their acceptances differ. A rank below an accepted
    node is *tested* when it is in the tree and no sibling of lower rank was accepted; of those tests the accepted
    ones are counted, half of each count being forgotten every ``half_life`` steps. A rate is (accepted + 1/2) /
    (tested + 1), the smoothing of Krichevsky and Trofimov, and the acceptance of a rank is its rate times the chance
    that all lower ranks fail. So a row never sums to more than 1, before anything is counted rank j has 2^-(j + 1),
    and ranks and depths that were never tried are tried once they could pay. Rows are made non-increasing by pooling
    neighbours, which keeps their sums; that is why trees built from them test ranks without gaps.

    Args:
        depth, width: rows and columns of the table.
        half_life: steps after which an observation counts half. A step is one verified tree of one sequence.
        rebuild: steps between two trees.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, depth: int = 8, width: int = 32, half_life: float = 2000.0, rebuild: int = 500):
        numbers = {"depth": depth, "width": width, "half_life": half_life, "rebuild": rebuild}
        for name, value in numbers.items():
            if not value >= 1:
                raise ValueError(f"AcceptanceCounter: {name} must be at least 1, got {value}")
        self.half_life, self.rebuild = half_life, rebuild
        self.steps = 0
        self._tested = np.zeros((depth, width))
        self._accepted = np.zeros((depth, width))
        self._tree: tuple[int, tuple, Tree] | None = None  # steps when it was built, for what, the tree

    def update(self, tree: Tree, accept_node: Any) -> None:
        """Count one verified step.

        Args:
            tree: what was verified, the same for all sequences.
            accept_node: ``[B, L]`` or ``[L]`` accepted nodes in order, on the host, root included, padded with -1: what
                ``tree_verify`` gives. Leave finished sequences out.

        Raises:
            ValueError: a path that does not begin at the root, or a node that is no child of the one before it.
        """
        rows = np.atleast_2d(np.asarray(accept_node))
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.parents):
            children.setdefault(parent, []).append(node)
        fade = 0.5 ** (len(rows) / self.half_life)
        self._tested *= fade
        self._accepted *= fade
        for row in rows.tolist():
            path = [node for node in row if node >= 0]
            if path[:1] != [0]:
                raise ValueError(f"AcceptanceCounter.update: a path must begin at the root 0, got {path}")
            for node, following in zip(path, [*path[1:], None], strict=True):
                if following is not None and following not in children.get(node, ()):
                    raise ValueError(
                        f"AcceptanceCounter.update: {following} must be a child of {node}, got {path}"
                    )
                self._count(tree, children.get(node, []), following)
        self.steps += len(rows)

    def _count(self, tree: Tree, tried: list[int], accepted: int | None) -> None:
        depth, width = self._tested.shape
        won = None if accepted is None else tree.ranks[accepted]
        for node in tried:
            level, rank = tree.depths[node] - 1, tree.ranks[node]
            if level < depth and rank < width and (won is None or rank <= won):
                self._tested[level, rank] += 1
                self._accepted[level, rank] += rank == won

    def table(self) -> np.ndarray:
        """Acceptance ``[depth, width]`` in float64: rows non-increasing, each with a sum below 1."""
        rate = (self._accepted + 0.5) / (self._tested + 1.0)
        left = np.cumprod(1.0 - rate, axis=1)
        raw = rate * np.concatenate([np.ones((len(rate), 1)), left[:, :-1]], axis=1)
        return np.stack([-isotonic(-row) for row in raw])

    def tree(self, nodes: int, depth: int | None = None) -> Tree:
        """The best tree of a size; built anew once ``rebuild`` steps have passed, or for another size.

        Args:
            nodes, depth: as in :func:`~tokops.speculative.best_first_tree`.
        """
        asked = (nodes, depth)
        if self._tree is None or self._tree[1] != asked or self.steps - self._tree[0] >= self.rebuild:
            self._tree = (self.steps, asked, best_first_tree(self.table(), nodes, depth))
        return self._tree[2]
