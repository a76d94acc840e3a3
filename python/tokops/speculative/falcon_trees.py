"""Draft trees for a drafter that emits a block of tokens per pass, after Falcon."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .trees import Tree, grow


@dataclass(frozen=True, eq=False)
class FalconLevel:
    """One drafting pass: G groups of ``block`` positions each, and the nodes that its logits give.

    Args:
        owners: ``[G]`` int32 nodes whose children the groups draft, at a depth of level * block, ascending.
        parents: ``[G]`` int32, for every group its parent's index among the previous level's groups; -1 at level 0.
        path: ``[G, block]`` int32, the last ``block`` nodes of the path to the owner, whose tokens the group reads;
            -1 at level 0, which reads committed tokens. Their features are the parent group's output rows.
        positions: ``[block]`` int32, added to the number of committed tokens before the root: level 0 ends at the
            root.
        nodes: ``[n]`` int32 nodes that this pass drafts, ascending.
        group, row, rank: ``[n]`` int32: such a node is the token of this rank in this row of this group's logits.
    """

    owners: np.ndarray
    parents: np.ndarray
    path: np.ndarray
    positions: np.ndarray
    nodes: np.ndarray
    group: np.ndarray
    row: np.ndarray
    rank: np.ndarray


@dataclass(frozen=True, eq=False)
class FalconTables:
    """Index tables of a Falcon tree.

    Args:
        tree: the tree.
        block: tokens per drafting pass, k.
        owner: ``[N]`` int32: the node whose group drafts every node, -1 for the root.
        row: ``[N]`` int32: row of the group, depth - 1 modulo k; -1 for the root.
        levels: the passes, one after the other.
    """

    tree: Tree
    block: int
    owner: np.ndarray
    row: np.ndarray
    levels: tuple[FalconLevel, ...]

    @property
    def groups(self) -> int:
        """Groups of all passes, that of the root included."""
        return sum(len(level.owners) for level in self.levels)


def falcon_tree(
    acceptance: Any, nodes: int, block: int = 2, depth: int | None = None, *, groups: int | None = None
) -> Tree:
    """The best tree for a drafter that emits ``block`` rows of logits per pass.

    Within a block the candidates of a depth do not depend on the token chosen before them, so a path's value is a
    product of the rows' acceptances as in any static tree. A node at a depth that is a multiple of ``block`` has
    children only if a group of the next pass drafts them. Groups are opened in the order of their owners' best
    child, as many as ``groups`` allows; without a limit the tree is that of
    :func:`~tokops.speculative.best_first_tree`.

    Args:
        acceptance, nodes, depth: as in :func:`~tokops.speculative.best_first_tree`.
        block: tokens per drafting pass.
        groups: the most groups besides the root's; None: no limit.

    Raises:
        ValueError: block < 1, groups < 0, or as :func:`~tokops.speculative.best_first_tree`.

    Source: Falcon (AAAI 2025, 39(22) 23933-23941).
    """
    if block < 1:
        raise ValueError(f"falcon_tree: block must be at least 1, got {block}")
    if groups is not None and groups < 0:
        raise ValueError(f"falcon_tree: groups must be 0 or more, got {groups}")
    return grow("falcon_tree", acceptance, nodes, depth, block=block, groups=groups)


def falcon_tables(tree: Tree, block: int = 2) -> FalconTables:
    """Which group drafts every node of a tree, and what each pass reads and gives.

    A last block that the tree does not fill is drafted whole; its further rows are not read.

    Args:
        tree: of any shape; :func:`~tokops.speculative.tree_from_paths` makes one of a published list.
        block: tokens per drafting pass.

    Raises:
        ValueError: block < 1.
    """
    if block < 1:
        raise ValueError(f"falcon_tables: block must be at least 1, got {block}")
    owner = [-1] * len(tree)
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        owner[node] = parent if tree.depths[parent] % block == 0 else owner[parent]
    row = [(depth - 1) % block if depth else -1 for depth in tree.depths]
    levels: list[FalconLevel] = []
    index: dict[int, int] = {}  # owners of the previous level by their groups
    for number in range(-(-tree.depth // block)):
        nodes = [n for n in range(1, len(tree)) if (tree.depths[n] - 1) // block == number]
        owners = sorted({owner[n] for n in nodes})
        place = {node: group for group, node in enumerate(owners)}
        levels.append(
            FalconLevel(
                owners=_int32(owners),
                parents=_int32([index[owner[node]] if node else -1 for node in owners]),
                path=_int32([_above(tree, node, block) for node in owners]),
                positions=np.arange(1 - block, 1, dtype=np.int32) + number * block,
                nodes=_int32(nodes),
                group=_int32([place[owner[n]] for n in nodes]),
                row=_int32([row[n] for n in nodes]),
                rank=_int32([tree.ranks[n] for n in nodes]),
            )
        )
        index = place
    return FalconTables(tree, block, _int32(owner), _int32(row), tuple(levels))


def _int32(values: list) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _above(tree: Tree, node: int, block: int) -> list[int]:
    """The last ``block`` nodes of the path to a node; a root has none."""
    if node == 0:
        return [-1] * block
    path = [node]
    while len(path) < block:
        path.append(tree.parents[path[-1]])
    return path[::-1]
