"""Static trees that a model drafts, level by level."""

from typing import Any

from ..speculative import best_first_tree

#: Chances that the j-th likeliest child at a depth is the right one, where nobody has measured them.
USUAL_ACCEPTANCE = ((0.6, 0.15, 0.07, 0.04, 0.02, 0.01),) * 8


class Shape:
    """A static tree, level by level: rows are sorted by depth, and every node knows how many children it has.

    Args:
        parents: of a tree's nodes, node 0 the root.

    Raises:
        ValueError: not a tree.
    """

    def __init__(self, parents: Any):
        given = [int(x) for x in parents]
        if not given or given[0] != -1 or any(not 0 <= x < i for i, x in enumerate(given) if i):
            raise ValueError(f"tree must be parents: -1, then earlier nodes, got {given}")
        depth = [0] * len(given)
        for i in range(1, len(given)):
            depth[i] = depth[given[i]] + 1
        order = sorted(range(len(given)), key=lambda i: (depth[i], i))
        place = {node: row for row, node in enumerate(order)}
        self.parents = [-1, *(place[given[node]] for node in order[1:])]
        self.depth = [depth[node] for node in order]
        self.children: list[list[int]] = [[] for _ in order]
        for row, parent in enumerate(self.parents[1:], 1):
            self.children[parent].append(row)
        #: Rows of every depth, the root's first.
        self.levels = [
            [i for i, d in enumerate(self.depth) if d == level] for level in range(max(self.depth) + 1)
        ]
        #: Nodes that have children, and their row among the drafts' laws.
        self.inner = {row: i for i, row in enumerate(r for r, c in enumerate(self.children) if c)}

    def __len__(self) -> int:
        return len(self.parents)

    def ordinal(self, node: int) -> int:
        """Which of the root's children a node is or hangs under."""
        while self.parents[node]:
            node = self.parents[node]
        return self.children[0].index(node)

    def until(self, depth: int) -> "Shape":
        """The part of the tree that is no deeper."""
        if depth >= self.depth[-1]:
            return self
        return Shape([parent for parent, d in zip(self.parents, self.depth, strict=True) if d <= depth])


def shape_of_method(method: Any) -> Shape:
    """The static tree that a method's model drafts."""
    if method.tree is not None:
        return Shape(method.tree)
    if method.mode == "chain_block":
        return Shape(range(-1, min(method.depth or 4, method.nodes - 1)))
    if method.mode == "kseq":
        length = min(method.depth or 4, method.nodes - 1)
        if not length:
            return Shape([-1])
        count = min((method.nodes - 1) // length, 64)
        return Shape([-1, *[0] * count, *range(1, count * (length - 1) + 1)])
    table = USUAL_ACCEPTANCE if method.acceptance is None else method.acceptance
    return Shape(best_first_tree(table, method.nodes, method.depth or 4).parents)
