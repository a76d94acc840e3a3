"""tree_verify gives, bit for bit, the published tokens and those of the step-by-step verifier."""

import numpy as np
import pytest
import torch

from tokops.sampling import sample
from tokops.speculative import tree_build, tree_verify

from . import oracle
from .batches import answers, arguments, laws_of, random_request, run
from .draws import drafts_of
from .oracle import Request
from .pairs import G_P, G_Q, SEED, STREAM
from .test_lantern_laws import table
from .test_laws import GOLDEN, RHO, read_golden

#: How often each mode is compared; small vocabularies meet ties, exhausted laws and certain tests more often.
SIZES = [(5, 700), (12, 300), (300, 60)]
MODES = [
    "greedy",
    "target_only",
    "rrs",
    "rrs_wo",
    "greedy_plus_one",
    "kseq",
    "chain_block",
    "typical",
    "lantern",
]


def options_of(mode, size):
    return {
        "kseq": {"rho": "by node"},
        "typical": {"eps": 0.2, "delta": 0.4},
        "lantern": {"delta": 0.08, "neighbours": [row[: size // 2] for row in table(size, 1)]},
    }.get(mode, {})


def differences(mode, requests, device):
    got = run(mode, requests, device)
    want = [oracle.verify(mode, r) for r in requests]
    return [(i, g, w) for i, (g, w) in enumerate(zip(got, want, strict=True)) if g != w]


@pytest.mark.parametrize("mode", GOLDEN)
def test_golden_tokens(device, mode):
    drafts, text = GOLDEN[mode]
    options = {"rho": RHO} if mode == "kseq" else {}
    q, p = np.array([G_Q] * 4, np.float32), np.array([G_P], np.float32)
    requests = [
        Request([0, *xs], [-1, 0, 0, 0], q, p, [0] * 4, SEED, STREAM, pos, options)
        for pos, xs in enumerate(drafts)
    ]
    got = run(mode, requests, device)
    assert [tokens[0] for _, _, tokens in got] == [y for _, y in read_golden(text)]
    ordinals = [
        xs.index(xs[path[1] - 1]) if a else None for (a, path, _), xs in zip(got, drafts, strict=True)
    ]
    assert ordinals == [i for i, _ in read_golden(text)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "count"), SIZES)
def test_tokens_of_random_trees(device, mode, size, count):
    """Ragged trees in one call."""
    requests = [random_request(mode, seed, size, **options_of(mode, size)) for seed in range(count)]
    assert differences(mode, requests, device) == []
    lengths = [oracle.verify(mode, r)[0] for r in requests]
    assert min(lengths) == 0
    assert max(lengths) >= 2


@pytest.mark.parametrize("mode", ["target_only", "lantern", "greedy", "typical"])
def test_tokens_of_trees_without_draft_laws(device, mode):
    options = options_of(mode, 12)
    requests = [random_request("target_only", seed, 12, with_draft=False, **options) for seed in range(300)]
    assert differences(mode, requests, device) == []


def test_many_positions_of_one_tree(device):
    """Thousands of random numbers for the same laws and drafts."""
    base = random_request("rrs_wo", 4, 8)
    for mode in ("target_only", "rrs_wo"):
        requests = [
            Request(base.tokens, base.parents, base.q, base.p, base.rows, SEED, n % 7, n) for n in range(3000)
        ]
        assert differences(mode, requests, device) == []


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
def test_seeds_use_both_words(device, seed):
    base = random_request("rrs_wo", 4, 8)
    requests = [Request(base.tokens, base.parents, base.q, base.p, base.rows, seed, 3, n) for n in range(200)]
    assert differences("rrs_wo", requests, device) == []


@pytest.mark.parametrize("mode", MODES)
def test_order_and_size_of_the_batch_change_nothing(device, mode):
    requests = [random_request(mode, seed, 12, **options_of(mode, 12)) for seed in range(64)]
    whole = run(mode, requests, device)
    order = np.random.default_rng(0).permutation(64).tolist()
    assert run(mode, [requests[i] for i in order], device) == [whole[i] for i in order]
    assert [run(mode, [r], device)[0] for r in requests[:20]] == whole[:20]


def test_no_children_is_one_draw(device):
    for mode in MODES:
        if mode in ("greedy", "typical"):
            continue
        options = {} if mode == "kseq" else options_of(mode, 12)
        lone = [
            Request(
                [3],
                [-1],
                laws_of(n, (), 12)[0][None],
                laws_of(n, (), 12)[1][None],
                [0],
                11,
                n,
                5 * n,
                options,
            )
            for n in range(50)
        ]
        got = run(mode, lone, device)
        assert got == [oracle.verify(mode, r) for r in lone]
        assert all(length == 0 and path == [0] for length, path, _ in got)


def test_match_plain_is_plain_sampling(device):
    """Whatever the tree, every token is the one that `sample` gives at its position."""
    requests = [random_request("target_only", seed, 12, match_plain=True) for seed in range(400)]
    assert differences("target_only", requests, device) == []
    got, accepted = run("target_only", requests, device), 0
    for r, (length, path, tokens) in zip(requests, got, strict=True):
        accepted += length
        logits = torch.from_numpy(
            np.log(r.q[path], where=r.q[path] > 0, out=np.full_like(r.q[path], -np.inf))
        )
        plain = sample(
            logits.to(device),
            seed=r.seed,
            stream=torch.full((length + 1,), r.stream, device=device),
            position=torch.arange(r.position, r.position + length + 1, device=device),
        )
        assert plain.tolist() == tokens
    assert accepted > 200


def test_greedy_takes_the_lowest_of_equals_and_no_nan(device):
    rows = torch.tensor([[1.0, 5.0, float("nan"), 5.0], [0.0, 2.0, 2.0, 1.0], [float("-inf")] * 3 + [-9.0]])
    tokens = torch.tensor([[0, 1, 3]], dtype=torch.int32, device=device)
    tree = tree_build(torch.tensor([[-1, 0, 0]], dtype=torch.int32, device=device))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        got = answers(tree_verify("greedy", tokens, tree, logits=rows[None].to(device, dtype)))
        assert got == [(1, [0, 1], [1, 1])]


@pytest.mark.parametrize("mode", ["rrs", "rrs_wo", "greedy_plus_one"])
def test_one_child_each_is_standard_speculative_sampling(device, mode):
    """Chains: every mode that uses p gives the tokens of kseq, whose factor is then 1."""
    requests = [random_request("chain_block", seed, 12) for seed in range(300)]
    assert run(mode, requests, device) == run("kseq", requests, device)


@pytest.mark.parametrize("with_draft", [True, False])
def test_lantern_without_a_budget_is_lossless(device, with_draft):
    lossless = "rrs_wo" if with_draft else "target_only"
    requests = [random_request(lossless, seed, 12, with_draft=with_draft) for seed in range(400)]
    neighbours = torch.tensor(table(12, 5), dtype=torch.int32, device=device)
    got = run("lantern", requests, device, delta=0.0, neighbours=neighbours)
    assert got == run(lossless, requests, device)


def test_a_large_vocabulary(device):
    size = 50257
    requests = []
    for seed in range(4):
        q, p = laws_of(seed, (1,), size)
        xs = drafts_of("rrs_wo", p, 3, 11, 0, seed)
        requests.append(Request([0, *xs], [-1, 0, 0, 0], np.stack([q] * 4), p[None], [0] * 4, 11, 0, seed))
    for mode in ("target_only", "rrs_wo", "greedy"):
        assert differences(mode, requests, device) == []


def test_padding_is_never_visited(device):
    """What stands in the nodes from n_nodes on, and in rows that no path reaches, changes nothing."""
    requests = [random_request("rrs_wo", seed, 12) for seed in range(64)]
    args = arguments("rrs_wo", requests, device)
    want = run("rrs_wo", requests, device)
    counts = args["n_nodes"].tolist()
    for row, n in enumerate(counts):
        args["tokens"][row, n:] = 7
        args["probs"][row, n:] = float("nan")
    tokens, tree = args.pop("tokens"), args.pop("tree")
    assert answers(tree_verify("rrs_wo", tokens, tree, **args)) == want
