"""What tree_build, tree_verify and sample refuse, and in which words; and settings that decide without chance."""

import math

import pytest
import torch

from tokops.sampling import sample
from tokops.speculative import tree_build, tree_verify

INT = torch.int32
NAN = float("nan")


def ints(values, dtype=INT):
    return torch.tensor(values, dtype=dtype)


def flat(*shape):
    return torch.full(shape, 1 / shape[-1])


def call(mode="rrs_wo", **changes):
    """One tree of four nodes, the last under the first child; V = 8."""
    args = {
        "tokens": ints([[0, 1, 2, 3]]),
        "parents": ints([[-1, 0, 0, 1]]),
        "probs": flat(1, 4, 8),
        "seed": 1,
        "stream": ints([0], torch.int64),
        "position": ints([0], torch.int64),
    }
    if mode not in ("greedy", "target_only", "typical"):
        args |= {"draft_probs": flat(1, 2, 8), "draft_rows": ints([[0, 0, 0, 1]])}
    if mode == "lantern":
        args["neighbours"] = ints([[(i + 1) % 8, (i + 2) % 8] for i in range(8)])
    args |= changes
    return tree_verify(mode, args.pop("tokens"), tree_build(args.pop("parents")), **args)


LOGITS = {"probs": None, "logits": torch.zeros(1, 4, 8)}
SIBLINGS = {"tokens": ints([[0, 2, 2, 3]])}
SIGNED = torch.tensor([1, -0.5, -0.5, 0, 0, 0, 0, 0])
PARTLY_NAN = torch.tensor([0.5, 0.5, NAN, 0, 0, 0, 0, 0])
ONE_SURE = torch.eye(8)[:1].expand(1, 2, 8).contiguous()


@pytest.mark.parametrize("mode", ["typical", "kseq", "target_only"])
def test_links_that_are_not_of_the_tree(mode):
    """Links are followed down and parents up: where they disagree the way up would leave the tree."""
    padded = tree_build(ints([[-1, 0, 0, 1, -1]]))
    trees = (
        padded._replace(first_child=ints([[4, -1, -1, -1, -1]])),
        padded._replace(first_child=ints([[1, -1, 3, -1, -1]])),
    )
    rest = {"seed": 0, "stream": ints([0], torch.int64), "position": ints([0], torch.int64)}
    rest |= {"draft_probs": flat(1, 1, 8), "draft_rows": ints([[0] * 5])} if mode == "kseq" else {}
    for tree, words in zip(trees, ("node 4 .* below 0 and has parent -1", "node 3 .* below 2"), strict=True):
        with pytest.raises(RuntimeError, match="links and parents disagree, " + words):
            tree_verify(mode, ints([[0, 1, 2, 3, 4]]), tree, probs=flat(1, 5, 8), **rest)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (ints([[-1, 0, 2, 1]]), "an earlier node, got 2 at node 2 of tree 0"),
        (ints([[-1, 0, 1], [-1, 2, 0]]), "an earlier node, got 2 at node 1 of tree 1"),
        (ints([[0, 0]]), "parents must be -1 at the root .* got 0 at node 0 of tree 0"),
        (ints([[-1, -2]]), "got -2 at node 1 of tree 0"),
        (ints([-1, 0]), "parents must have 2 dimensions, got 1"),
        (ints([[-1, 0]], torch.int64), "parents must be int32, got int64"),
        (ints([[]]), r"1\.\.1024 nodes, got 0"),
        (torch.zeros(1, 1025, dtype=INT), r"1\.\.1024 nodes, got 1025"),
    ],
)
def test_bad_trees(parents, message):
    with pytest.raises(RuntimeError, match="tree_build: .*" + message):
        tree_build(parents)


def test_a_tree_deeper_than_the_budget():
    with pytest.raises(
        RuntimeError, match="tree_build: no node may be deeper than max_depth 2, got one of depth 3"
    ):
        tree_build(ints([[-1, 0, 1, 2]]), max_depth=2)


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("magic", {}, "mode must be one of greedy, .*, got magic"),
        ("target_only", SIBLINGS, "siblings with distinct tokens, node 0 of tree 0 has two with token 2"),
        ("rrs_wo", SIBLINGS, "siblings with distinct tokens, node 0 of tree 0 has two with token 2"),
        ("greedy_plus_one", SIBLINGS, "siblings with distinct tokens, node 0 of tree 0 has two with token 2"),
        ("lantern", SIBLINGS, "siblings with distinct tokens, node 0 of tree 0 has two with token 2"),
        ("chain_block", {}, "chain_block needs chains, node 0 of tree 0 has 2 children"),
        ("rrs", {"draft_probs": None, "draft_rows": None}, "rrs needs draft_probs"),
        ("kseq", {"draft_rows": None}, "draft_probs and draft_rows go together"),
        ("rrs_wo", {"draft_probs": None}, "draft_probs and draft_rows go together"),
        ("rrs_wo", {"draft_probs": flat(1, 2, 8) * 0.9}, r"draft_probs must sum to 1 .*node 0 of tree 0"),
        ("rrs", {"draft_probs": flat(1, 2, 8) * NAN}, r"draft_probs must sum to 1 .*node 0 of tree 0"),
        ("rrs_wo", {"draft_probs": ONE_SURE}, "probability 0 in draft_probs.*node 1 of tree 0"),
        ("kseq", {"draft_probs": ONE_SURE}, "probability 0 in draft_probs.*node 1 of tree 0"),
        (
            "rrs_wo",
            {"draft_probs": flat(1, 2, 7)},
            r"draft_probs must be \[B, M, V\] = \[1, 2, 8\], got \[1, 2, 7\]",
        ),
        (
            "rrs_wo",
            {"draft_rows": ints([[0, 0, 0, 2]])},
            r"draft_rows must be 0\.\.1, got 2 at node 3 of tree 0",
        ),
        (
            "rrs_wo",
            {"draft_rows": ints([[0, 0, 0, -1]])},
            r"draft_rows must be 0\.\.1, got -1 at node 3 of tree 0",
        ),
        ("rrs_wo", {"draft_rows": ints([[0, 0, 1, 1]])}, "draft_rows"),  # siblings share a row
        ("target_only", {"probs": flat(1, 4, 8) * 0.9}, r"probs must sum to 1 .*node 0 of tree 0"),
        ("target_only", {"probs": SIGNED.expand(1, 4, 8)}, "none be negative .*node 0 of tree 0"),
        ("target_only", {"probs": PARTLY_NAN.expand(1, 4, 8)}, "none be negative .*node 0 of tree 0"),
        ("rrs", {"draft_probs": SIGNED.expand(1, 2, 8)}, "none be negative .*node 0 of tree 0"),
        ("greedy", {**LOGITS, "logits": torch.full((1, 4, 8), NAN)}, "no finite logit .*node 0 of tree 0"),
        ("rrs_wo", {**LOGITS, "logits": torch.full((1, 4, 8), NAN)}, "no finite logit .*node 0 of tree 0"),
        ("target_only", {"logits": torch.zeros(1, 4, 8)}, "one of logits and probs"),
        ("target_only", {"probs": None}, "one of logits and probs"),
        ("target_only", {"probs": flat(1, 4, 8).half()}, "probs must be float32, got float16"),
        (
            "target_only",
            {"probs": flat(1, 3, 8)},
            r"probs must be \[B, N, V\] = \[1, 4, 8\], got \[1, 3, 8\]",
        ),
        ("target_only", {"probs": flat(1, 4, 8).to("meta")}, "probs must be on cpu, got meta"),
        (
            "target_only",
            {"tokens": ints([[0, 1, 8, 3]])},
            r"tokens must be 0\.\.7, got 8 at node 2 of tree 0",
        ),
        (
            "target_only",
            {"tokens": ints([[0, 1, -1, 3]])},
            r"tokens must be 0\.\.7, got -1 at node 2 of tree 0",
        ),
        ("target_only", {"tokens": ints([[0, 1, 2, 3]], torch.int64)}, "tokens must be int32, got int64"),
        ("target_only", {"parents": ints([[-1, 0, 0]])}, r"\[1, 4\], got \[1, 3\]"),
        ("target_only", {"parents": ints([[-1, 0, 0, 0]] * 2)}, r"\[1, 4\], got \[2, 4\]"),
        ("target_only", {"stream": ints([0])}, "stream must be int64, got int32"),
        ("target_only", {"stream": ints([0, 1], torch.int64)}, r"stream must be \[B\] = \[1\], got \[2\]"),
        ("target_only", {"position": ints([0])}, "position must be int64, got int32"),
        ("target_only", {"n_nodes": ints([0])}, r"n_nodes must be 1\.\.4, got 0"),
        ("target_only", {"n_nodes": ints([5])}, r"n_nodes must be 1\.\.4, got 5"),
        ("target_only", {"n_nodes": ints([4], torch.int64)}, "n_nodes must be int32, got int64"),
        ("kseq", {"rho": NAN}, "rho"),
        ("rrs", {"rho": 2.0}, "rrs takes no rho"),
        ("kseq", {"rho": torch.ones(1, 4)}, "rho must be float64, got float32"),
        (
            "kseq",
            {"parents": ints([[-1, 0, 1, 1]]), "draft_rows": ints([[0, 0, 1, 1]])},
            "node 1 of tree 0 has 2",
        ),
        ("lantern", {"neighbours": None}, "lantern needs neighbours"),
        ("lantern", {"neighbours": ints([[9]] * 8)}, r"neighbours must be codes 0\.\.7, got 9"),
        ("rrs", {"neighbours": ints([[1]] * 8)}, "rrs takes no neighbours"),
    ],
)
def test_bad_arguments(mode, changes, message):
    with pytest.raises(RuntimeError, match="tree_verify: .*" + message):
        call(mode, **changes)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", -1.0, "temperature must be 0 or .*, got -1.0"),
        ("temperature", NAN, "temperature must be 0 or .*, got nan"),
        ("top_k", -1, "top_k must be 0.*, got -1"),
        ("top_p", 1.5, "top_p must be above 0 and at most 1, got 1.5"),
        ("top_p", 0.0, "top_p must be above 0 and at most 1, got 0.0"),
        ("min_p", -0.1, r"min_p must be 0\.\.1, got -0.1"),
    ],
)
def test_bad_settings(setting, value, message):
    with pytest.raises(ValueError, match=message):
        call("target_only", **LOGITS, **{setting: value})
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 8), seed=0, **{setting: value})


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        (
            "target_only",
            {"temperature": 0.5},
            "probs are a law already: temperature, top_k, top_p and min_p go with logits",
        ),
        ("rrs", {"match_plain": True}, "match_plain goes with mode target_only, not with rrs"),
        ("lantern", {"delta": -1.0}, "delta must be >= 0, got -1.0"),
    ],
)
def test_settings_that_do_not_go_together(mode, changes, message):
    with pytest.raises(ValueError, match="tree_verify: " + message):
        call(mode, **changes)


def test_equal_siblings_where_they_may_be():
    for mode in ("greedy", "rrs", "kseq"):
        assert call(mode, **SIBLINGS)[0].numel() == 1


def test_temperature_zero_is_greedy_in_every_mode():
    logits = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(3))
    greedy = [x.tolist() for x in call("greedy", probs=None, logits=logits)]
    for mode in ("target_only", "rrs", "rrs_wo", "greedy_plus_one", "kseq"):
        got = call(mode, probs=None, logits=logits, temperature=0.0)
        assert [x.tolist() for x in got] == greedy
    assert sample(logits, seed=0, temperature=0.0).tolist() == logits.argmax(-1).tolist()


def test_lantern_at_temperature_zero_lends_before_it_compares():
    """Token 1 (0.35) with its neighbour's 0.2 beats token 0 (0.4); token 3 (0.05) with its neighbour's does not."""
    law = [0.4, 0.35, 0.2, 0.05]
    logits = torch.tensor([math.log(w) for w in law]).expand(1, 2, 4).contiguous()
    neighbours = ints([[3], [2], [3], [2]])
    for child, want in ((1, (1, [0, 1], [1, 0])), (3, (0, [0, -1], [0, -1]))):
        got = tree_verify(
            "lantern",
            ints([[0, child]]),
            tree_build(ints([[-1, 0]])),
            logits=logits,
            temperature=0.0,
            delta=0.3,
            neighbours=neighbours,
        )
        assert (got[0].item(), got[1][0].tolist(), got[2][0].tolist()) == want


def test_rows_without_a_finite_logit_give_no_plain_token():
    rows = torch.tensor([[NAN, NAN], [NAN, 1.0], [float("-inf")] * 2])
    assert sample(rows, seed=0).tolist() == [-1, 1, -1]
