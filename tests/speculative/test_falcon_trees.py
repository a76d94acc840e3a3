"""Falcon's block trees and tables: a naive drafting of every path reads what the tables say."""

from collections import Counter

import numpy as np
import pytest

from tokops.speculative import best_first_tree, falcon_tables, falcon_tree, tree_from_paths

from .published_trees import EAGLE_7B, FALCON_8, MEDUSA_7B

P = [0.6, 0.2, 0.08, 0.04, 0.02]
TREES = {
    "falcon": tree_from_paths(FALCON_8),
    "medusa": tree_from_paths(MEDUSA_7B),
    "eagle": tree_from_paths(EAGLE_7B),
    "best": best_first_tree(P, 40),
    "odd depth": best_first_tree(P, 25, 5),
    "root": tree_from_paths([]),
    "one": tree_from_paths([[3]]),
}


def test_the_shipped_tree_has_165_nodes():
    tree = TREES["falcon"]
    assert len(FALCON_8) == 166
    assert len(tree) - 1 == 165
    listed, unique = Counter(map(len, FALCON_8)), Counter(tree.depths)
    assert [listed[d] for d in range(1, 9)] == [20, 15, 19, 24, 21, 23, 21, 23]
    assert listed - unique == {4: 1}
    tables = falcon_tables(tree, 2)
    assert len(tables.levels) == 4


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TREES)
def test_tables(name, block):
    tree = TREES[name]
    tables = falcon_tables(tree, block)
    paths = tree.paths
    place = {path: node for node, path in enumerate(paths)}
    assert len(tables.levels) == -(-tree.depth // block)
    assert tables.owner[0] == tables.row[0] == -1
    drafted, owners = [], []
    for number, level in enumerate(tables.levels):
        assert all(x.dtype == np.int32 for x in vars(level).values())
        assert level.positions.tolist() == [number * block - block + 1 + i for i in range(block)]
        for group, owner in enumerate(level.owners.tolist()):
            path = paths[owner]
            assert len(path) == number * block
            owners.append(owner)
            if number == 0:
                assert (owner, level.parents[group]) == (0, -1)
                assert level.path[group].tolist() == [-1] * block
            else:
                assert level.path[group].tolist() == [
                    place[path[:d]] for d in range(len(path) - block + 1, len(path) + 1)
                ]
                above = tables.levels[number - 1].owners[level.parents[group]]
                assert paths[above] == path[:-block]
        for node, group, row, rank in zip(level.nodes, level.group, level.row, level.rank, strict=True):
            path = paths[node]
            owner = path[: number * block]
            assert len(path) == number * block + row + 1
            assert 0 <= row < block
            assert paths[level.owners[group]] == owner
            assert tables.owner[node] == place[owner]
            assert tables.row[node] == row
            assert rank == path[-1]
            drafted.append(int(node))
    assert sorted(drafted) == list(range(1, len(tree)))
    assert len(owners) == len(set(owners)) == tables.groups
    with_children = {p for p in tree.parents if p >= 0 and tree.depths[p] % block == 0}
    assert set(owners) == with_children


def draft(tables, seed):
    """Tokens of all nodes with a drafter whose k rows depend on the tokens that a group reads."""
    tokens = np.zeros(len(tables.tree), int)
    for level in tables.levels:
        groups = [
            np.random.default_rng([seed, *(tokens[path] if path[0] >= 0 else [7])]).permuted(
                np.tile(np.arange(1000), (tables.block, 1)), axis=1
            )
            for path in level.path
        ]
        for node, group, row, rank in zip(level.nodes, level.group, level.row, level.rank, strict=True):
            tokens[node] = groups[group][row, rank]
    return tokens


def draft_path(path, block, seed):
    """The tokens of one path, drafted alone."""
    tokens = []
    for depth, rank in enumerate(path):
        begin = depth // block * block
        read = tokens[begin - block : begin] if begin else [7]
        rows = np.random.default_rng([seed, *read]).permuted(np.tile(np.arange(1000), (block, 1)), axis=1)
        tokens.append(int(rows[depth - begin, rank]))
    return tokens


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("name", ["falcon", "best", "odd depth"])
def test_groups_draft_what_paths_alone_draft(name, block):
    tables = falcon_tables(TREES[name], block)
    tokens = draft(tables, block)
    for node, path in enumerate(tables.tree.paths):
        if node:
            assert tokens[node] == draft_path(path, block, block)[-1]


def test_children_within_a_block_are_a_cartesian_product():
    """The candidates of depth 2 are the same under every node of depth 1, those of depth 3 are not."""
    full = tree_from_paths(
        [(a, b, c)[:d] for a in range(3) for b in range(3) for c in range(3) for d in (1, 2, 3)]
    )
    tokens = draft(falcon_tables(full, 2), 0)
    below = {}
    for node, parent in enumerate(full.parents):
        below.setdefault(parent, []).append(int(tokens[node]))
    ones = [node for node in range(len(full)) if full.depths[node] == 1]
    twos = [node for node in range(len(full)) if full.depths[node] == 2]
    assert len({tuple(below[node]) for node in ones}) == 1
    assert len({tuple(below[node]) for node in twos}) == 9


def test_free_groups_are_the_best_tree():
    for block in (1, 2, 3):
        assert falcon_tree([P] * 8, 40, block) == best_first_tree([P] * 8, 40)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("groups", [0, 1, 2, 5])
def test_limited_groups(block, groups):
    tree = falcon_tree([P] * 6, 40, block, groups=groups)
    tables = falcon_tables(tree, block)
    assert tables.groups <= 1 + groups
    free = falcon_tree([P] * 6, 400, block)
    assert tree.expected[-1] <= free.expected[len(tree) - 1] + 1e-12
    if groups == 0:
        assert tree == best_first_tree([P] * 6, 40, min(block, 6))
    # Whatever was left out would have needed another group.
    kept = set(tree.paths)
    least = min(np.prod([P[r] for r in path]) for path in kept)
    for path in free.paths:
        if path not in kept and path[:-1] in kept and np.prod([P[r] for r in path]) > least * (1 + 1e-9):
            owner = tree.paths.index(path[:-1])
            assert len(path) > 1
            assert (len(path) - 1) % block == 0
            assert owner not in tree.parents
            assert tables.groups == 1 + groups


def test_refuses():
    with pytest.raises(ValueError, match="falcon_tree: block must be at least 1, got 0"):
        falcon_tree(P, 4, 0)
    with pytest.raises(ValueError, match="falcon_tree: groups must be 0 or more, got -1"):
        falcon_tree(P, 4, groups=-1)
    with pytest.raises(ValueError, match="falcon_tree: nodes must be at least 1"):
        falcon_tree(P, 0)
    with pytest.raises(ValueError, match="falcon_tables: block must be at least 1, got 0"):
        falcon_tables(TREES["one"], 0)
