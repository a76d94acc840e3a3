"""Tree policies: what they refuse, and that each gives the tree its parts give."""

import pickle

import pytest
import torch

from tokops.speculative import (
    Eagle2Tree,
    FalconTree,
    LatencyTable,
    PPDTree,
    StaticTree,
    best_first_tree,
    choose_size,
    falcon_tables,
    falcon_tree,
    ppd_plan,
    ppd_size,
    tree_from_parents,
    tree_from_paths,
)

P = ((0.6, 0.2, 0.08),) * 4
SIZES = (1, 2, 4, 8, 16, 32, 64)
FAST = LatencyTable(SIZES, (256, 4096), ((10, 10, 10, 12, 14, 18, 40), (10, 40, 80, 99, 200, 400, 800)))
NO_MODE = ("rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block")


def test_static():
    assert StaticTree(P, nodes=9).tree() == best_first_tree(P, 9)
    assert StaticTree(P, nodes=9, depth=2).tree(5000) == best_first_tree(P, 9, 2)
    assert StaticTree(parents=[-1, 0, 1, 0]).tree() == tree_from_parents([-1, 0, 1, 0])
    policy = StaticTree(P, nodes=20, latency=FAST, draft_seconds=0.5, fixed_seconds=0.1)
    want = choose_size(FAST, P, draft=0.5, fixed=0.1, most=20)
    assert policy.tree() == want.tree
    assert 1 < len(want.tree) <= 20
    assert len(policy.tree(context=3000)) == 1
    for mode in ("greedy", "target_only", *NO_MODE):
        policy.check(mode)


def test_eagle2():
    policy = Eagle2Tree(branch=2, expansions=1, nodes=5)
    pool = policy.pool(torch.tensor([3], dtype=torch.int32))
    tokens = torch.tensor([[[1, 2]]], dtype=torch.int32)
    pool.expand(tokens, torch.tensor([[[0.9, 0.05]]]).log())
    pool.expand(tokens.expand(1, 2, 2), torch.tensor([[[0.8, 0.1], [0.6, 0.3]]]).log())
    assert policy.curve() is None
    assert policy.tree(pool)[2].tolist() == [5]
    sized = Eagle2Tree(branch=2, expansions=1, nodes=5, latency=FAST, draft_seconds=1, fixed_seconds=2)
    sizes, seconds = sized.curve()
    assert sizes.tolist() == [1, 4]
    assert seconds.tolist() == [13, 13]
    found = sized.tree(pool, (sizes, seconds))
    assert found[2].tolist() == [4]
    assert found[0].shape == (1, 5)
    assert sized.tree(pool, sized.curve(4000))[2].tolist() == [1]
    for mode in NO_MODE:
        with pytest.raises(ValueError, match=f"Eagle2Tree takes .* got '{mode}'"):
            policy.check(mode)
    policy.check("target_only")
    policy.check("greedy")


def test_ppd():
    table = ((0.5, 0.2, 0.1), (0.3, 0.1, 0.05))
    assert PPDTree(table, budget=12, minimum=1).plan().states == ppd_plan(table, 12, 1).states
    policy = PPDTree(table, budget=30, step=4, latency=FAST, fixed_seconds=0.5)
    assert policy.plan().budget == ppd_size(table, FAST, range(30, 0, -4), fixed=0.5).budget
    assert policy.plan(4000) is None
    slow = PPDTree(table, budget=30, step=4, latency=FAST, fixed_seconds=50.0)
    assert slow.plan().budget == ppd_size(table, FAST, range(30, 0, -4), fixed=50.0).budget
    assert slow.plan().budget > policy.plan().budget
    small = LatencyTable((1, 3), (256,), ((1, 1),))
    assert PPDTree(table, latency=small).plan() is None
    policy.check("target_only")
    with pytest.raises(ValueError, match=r"PPDTree takes the drafter's best .* got 'rrs'"):
        policy.check("rrs")


def test_falcon():
    tables = FalconTree(acceptance=P, nodes=20, groups=2).tables()
    assert tables.tree == falcon_tree(P, 20, groups=2)
    listed = FalconTree(3, paths=[[0], [0], [0, 1]])
    assert listed.tables().tree == tree_from_paths([[0], [0, 1]])
    assert listed.tables().block == 3
    sized = FalconTree(acceptance=P, latency=FAST, draft_seconds=1.0)
    want = choose_size(FAST, P, draft=1.0, most=64, block=2)
    assert sized.tables().tree == want.tree
    assert sized.tables().owner.tolist() == falcon_tables(want.tree).owner.tolist()
    assert len(sized.tables(4000).tree) == 1
    with pytest.raises(ValueError, match=r"FalconTree takes .* got 'rrs_wo'"):
        sized.check("rrs_wo")


@pytest.mark.parametrize(
    "policy",
    [
        StaticTree(P, nodes=3, latency=FAST),
        StaticTree(parents=[-1, 0]),
        Eagle2Tree(),
        PPDTree(P),
        FalconTree(paths=[[0]]),
    ],
)
def test_policies_are_values(policy):
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StaticTree(), "StaticTree: give either acceptance or parents"),
        (lambda: StaticTree(P, parents=[-1]), "StaticTree: give either acceptance or parents"),
        (lambda: StaticTree(P, nodes=0), r"StaticTree: nodes must be 1\.\.256, got 0"),
        (lambda: StaticTree(P, nodes=257), r"StaticTree: nodes must be 1\.\.256, got 257"),
        (lambda: StaticTree(P, depth=-1), "StaticTree: depth must be at least 0, got -1"),
        (lambda: StaticTree([0.9, 0.9]), "StaticTree: a row of acceptance must sum"),
        (lambda: StaticTree(parents=[0]), r"parents\[0\] must be -1"),
        (lambda: StaticTree(parents=[-1, *[0] * 256]), "parents must be at most 256, got 257"),
        (lambda: StaticTree(parents=[-1], latency=FAST), "needs acceptance to weigh it with, got parents"),
        (lambda: StaticTree(P, draft_seconds=-1.0), "draft_seconds must be at least 0, got -1.0"),
        (lambda: StaticTree(P, fixed_seconds=float("nan")), "fixed_seconds must be at least 0, got nan"),
        (lambda: Eagle2Tree(branch=0), "Eagle2Tree: branch must be at least 1, got 0"),
        (lambda: Eagle2Tree(expansions=-1), "Eagle2Tree: expansions must be at least 0, got -1"),
        (lambda: Eagle2Tree(nodes=300), r"Eagle2Tree: nodes must be 1\.\.256, got 300"),
        (lambda: PPDTree([0.5]), r"PPDTree: acceptance must be \[M, K\]"),
        (lambda: PPDTree(P, budget=252), r"PPDTree: budget must be 1\.\.251, got 252"),
        (lambda: PPDTree(P, minimum=5), r"PPDTree: minimum must be 0\.\.4, got 5"),
        (lambda: PPDTree(P, step=0), "PPDTree: step must be at least 1, got 0"),
        (lambda: FalconTree(), "FalconTree: give either acceptance or paths"),
        (lambda: FalconTree(0, P), "FalconTree: block must be at least 1, got 0"),
        (lambda: FalconTree(acceptance=P, groups=-1), "FalconTree: groups must be at least 0, got -1"),
        (lambda: FalconTree(paths=[[0, 0]]), r"every parent must be listed, got \[0, 0\]"),
        (lambda: FalconTree(paths=[[i] for i in range(256)]), "at most 256 nodes, got 257"),
        (lambda: FalconTree(paths=[[0]], latency=FAST), "needs acceptance to weigh it with, got paths"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(ValueError, match=words):
        make()
