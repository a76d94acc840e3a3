"""tree_verify's tokens are distributed as the target says: chi-square over 40000 draws, one and two levels."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tokops.sampling import sample
from tokops.speculative import tree_build, tree_verify

from . import laws, oracle
from .batches import WITH_DRAFT
from .draws import draft_rows
from .filters import filtered
from .laws import LOSSLESS
from .pairs import G_P, G_Q, markov, pair
from .philox import categorical_rows, r64
from .test_lantern_laws import NEAREST

N = 40000
LOSSLESS_MODES = [*LOSSLESS, "chain_block"]


def assert_law(tokens, law):
    """Chi-square below its 0.999 quantile, and nothing where the law is zero."""
    law = np.ravel(np.asarray(law, float))
    counts = np.bincount(np.ravel(tokens), minlength=len(law))
    assert len(counts) == len(law)
    assert (counts[law == 0] == 0).all(), (
        f"tokens outside the support: {np.flatnonzero((law == 0) & (counts > 0))}"
    )
    # Cells too rare for the statistic's limit are one cell together.
    common = law * counts.sum() >= 5
    law, counts = (np.append(x[common], x[~common].sum()) for x in (law, counts))
    law, counts = law[law > 0], counts[law > 0]
    if len(law) == 1:
        return  # one token alone: its support was all there is to compare
    want = law * counts.sum()
    statistic = ((counts - want) ** 2 / want).sum()
    assert statistic < chi2.ppf(0.999, len(law) - 1), f"chi-square {statistic:.1f}: {counts} against {want}"


def verify_many(mode, device, parents, tokens, probs, draft_probs, draft_rows, **options):
    """One call over rows that share a tree's shape and laws: q by node or by row and node, tokens by row."""
    count = len(tokens)

    def spread(x, dtype):
        x = torch.as_tensor(np.ascontiguousarray(x))
        return (x if len(x) == count else x[None].expand(count, *x.shape)).to(device, dtype).contiguous()

    tree = tree_build(spread(np.array(parents), torch.int32))
    if mode not in WITH_DRAFT:
        draft_probs = None
    result = tree_verify(
        mode,
        spread(tokens, torch.int32),
        tree,
        probs=spread(probs, torch.float32),
        draft_probs=None if draft_probs is None else spread(draft_probs, torch.float32),
        draft_rows=None if draft_probs is None else spread(np.array(draft_rows), torch.int32),
        seed=99,
        stream=torch.arange(count, device=device) % 17,
        position=torch.arange(count, device=device),
        **options,
    )
    return [x.cpu().numpy() for x in result]


def one_level(mode, device, q, p, k, **options):
    """(accepted lengths, first tokens) of N trees of k children, drawn as the mode wants them."""
    gen = np.random.default_rng(k)
    p = np.array(p, np.float32)
    xs = draft_rows(mode, np.tile(p, (N, 1)), k, lambda slot: gen.integers(0, 2**64, N, dtype=np.uint64))
    tokens = np.concatenate([np.zeros((N, 1), int), xs], 1)
    q = np.tile(np.array(q, np.float32), (k + 1, 1))
    lengths, _, out = verify_many(mode, device, [-1] + [0] * k, tokens, q, p[None], [0] * (k + 1), **options)
    return lengths, out[:, 0]


@pytest.mark.parametrize("mode", LOSSLESS_MODES)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_law_on_fixture_g(device, mode, k):
    if mode == "chain_block" and k > 1:
        pytest.skip("a chain has one child")
    lengths, tokens = one_level(mode, device, G_Q, G_P, k)
    assert_law(tokens, G_Q)
    rule = LOSSLESS["rrs" if mode == "chain_block" else mode]
    # The kernel may stop its search for the division factor of kseq at 1e-4 of acceptance from the root's.
    rate = laws.one_level(*rule, [float(w) for w in G_Q], [float(w) for w in G_P], k)[1]
    slack = 1e-4 if mode == "kseq" else 0
    assert lengths.mean() == pytest.approx(rate, abs=3.9 * (rate * (1 - rate) / N) ** 0.5 + slack)


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize(("size", "sigma", "c"), [(4, 3.0, 0.8), (8, 3.0, 0.2), (60, 2.0, 0.6)])
def test_law_of_other_pairs(device, mode, size, sigma, c):
    q, p = pair(size, sigma, c, 21)
    assert_law(one_level(mode, device, q, p, 3)[1], q)


@pytest.mark.parametrize("mode", LOSSLESS)
def test_law_where_one_draft_takes_nearly_all(device, mode):
    """After the first rejection 2^-18 of the draft law is left: a mass that lost its digits shows here."""
    left = np.array([0, 3, 2, 2, 1]) * 2.0**-21
    p = left + np.array([1 - left.sum(), 0, 0, 0, 0])
    q = np.array([1, 4, 1, 6, 4]) / 16
    assert_law(one_level(mode, device, q, p, 3)[1], q)


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize("gap", [15.5, 17, 24, 26.5])
def test_law_of_a_draft_as_sharp_as_float32_has_it(device, mode, gap):
    """All the rest of the draft law is a rounding of its largest, or some units of 2^-40."""
    p = torch.softmax(torch.tensor([gap, 0.0, -1.0, -1.0]), 0).numpy()
    q = np.array([7, 7, 1, 1]) / 16
    assert_law(one_level(mode, device, q, p, 2)[1], q)


@pytest.mark.parametrize("mode", LOSSLESS)
def test_law_with_disjoint_and_exhausted_drafts(device, mode):
    """Draft laws with less support than children, and none in common with the target."""
    q = np.array([2, 1, 1, 4, 0, 0]) / 8
    if mode not in ("rrs_wo", "greedy_plus_one"):
        lengths, tokens = one_level(mode, device, q, [0, 0, 0, 0, 0.5, 0.5], 2)
        assert_law(tokens, q)
        assert (lengths == 0).all()
    assert_law(one_level(mode, device, q, [0.5, 0, 0, 0, 0.5, 0], 2)[1], q)


def second_level(mode, q_next, p_next, xs, k_next, gen):
    """[N, k, k_next] drafts below each child of xs [N, k]."""
    out = np.empty((*xs.shape, k_next), int)
    for i in range(xs.shape[1]):
        rows = p_next[xs[:, i]].astype(np.float32)
        out[:, i] = draft_rows(mode, rows, k_next, lambda slot: gen.integers(0, 2**64, N, dtype=np.uint64))
    return out


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize(("size", "k", "k_next"), [(4, 3, 2), (6, 2, 1)])
def test_law_of_two_levels(device, mode, size, k, k_next):
    """Pairs of tokens; where a block gives one token alone, the target adds the second."""
    if mode == "kseq":
        k_next = 1  # each draft is one sequence
    gen = np.random.default_rng(size)
    q_next, p_next = markov(size, 1.5, 0.5, 900 + size)
    q, p = pair(size, 2.0, 0.3, 77)
    bits = lambda slot: gen.integers(0, 2**64, N, dtype=np.uint64)  # noqa: E731
    xs = draft_rows(mode, np.tile(p.astype(np.float32), (N, 1)), k, bits)
    below = second_level(mode, q_next, p_next, xs, k_next, gen)
    tokens = np.concatenate([np.zeros((N, 1), int), xs, below.reshape(N, -1)], 1)
    contexts = tokens[:, 1:]  # the law after a node depends on its token alone
    q_rows = np.concatenate([np.tile(q, (N, 1, 1)), q_next[contexts]], 1)
    p_rows = np.concatenate([np.tile(p, (N, 1, 1)), p_next[xs]], 1)
    parents = [-1, *([0] * k), *(1 + i for i in range(k) for _ in range(k_next))]
    rows = [0, *([0] * k), *(1 + i for i in range(k) for _ in range(k_next))]
    lengths, _, out = verify_many(mode, device, parents, tokens, q_rows, p_rows, rows)
    assert (lengths == 2).any()
    first, second = out[:, 0].astype(int), out[:, 1].astype(int)
    added = categorical_rows(bits(0), q_next[first].astype(np.float32))
    second = np.where(lengths == 0, added, second)
    assert_law(first * size + second, q[:, None] * q_next)
    third = np.bincount(second[lengths == 2] * size + out[lengths == 2, 2], minlength=size**2)
    third = third.reshape(size, size)
    busiest = int(third.sum(1).argmax())
    assert_law(np.repeat(np.arange(size), third[busiest]), q_next[busiest])  # the bonus at a leaf


@pytest.mark.parametrize("start", [0, 2])
def test_law_of_chain_block(device, start):
    """Three drafted tokens of a Markov pair: triples, and tokens per call as enumerated."""
    q_rows, p_rows = markov(4, 1.5, 0.5, 400)
    gen = np.random.default_rng(start)
    bits = lambda: gen.integers(0, 2**64, N, dtype=np.uint64)  # noqa: E731
    tokens = np.full((N, 4), start)
    for i in range(3):
        tokens[:, i + 1] = categorical_rows(bits(), p_rows[tokens[:, i]].astype(np.float32))
    lengths, _, out = verify_many(
        "chain_block", device, [-1, 0, 1, 2], tokens, q_rows[tokens], p_rows[tokens[:, :3]], [0, 0, 1, 2]
    )
    out = out[:, :4].astype(int)
    for i in range(1, 3):
        missing = lengths < i
        out[missing, i] = categorical_rows(bits(), q_rows[np.maximum(out[:, i - 1], 0)].astype(np.float32))[
            missing
        ]
    a, b, c = out[:, :3].T
    want = q_rows[start][:, None, None] * q_rows[:, :, None] * q_rows[None]
    assert_law(a * 16 + b * 4 + c, want)
    chances = np.zeros(4)
    for xs in np.ndindex(4, 4, 4):
        contexts = (start, *xs)
        chance = np.prod([p_rows[x, y] for x, y in zip(contexts, xs, strict=False)])
        chances += chance * np.array(
            laws.block_chances(q_rows[list(contexts)], p_rows[list(contexts[:3])], xs)[0]
        )
    assert_law(lengths, chances)


@pytest.mark.parametrize("delta", [0.0, 0.25, 1.0])
def test_law_of_lantern(device, delta):
    p, q = np.array([8, 4, 2, 2]) / 16, np.array([2, 6, 4, 4]) / 16
    neighbours = torch.tensor(NEAREST, dtype=torch.int32, device=device)
    lengths, tokens = one_level("lantern", device, q, p, 1, delta=delta, neighbours=neighbours)
    accepted, law = {
        0.0: (5 / 8, q),
        0.25: (7 / 8, [3 / 8, 5 / 16, 1 / 8, 3 / 16]),
        1.0: (1, p),
    }[delta]
    if delta == 1:
        assert (lengths == 1).all()
    assert_law(tokens, law)
    assert_law(lengths, [1 - accepted, accepted])


FILTERS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 0.8},
    {"top_p": 0.05},
    {"min_p": 0.2},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.85, "min_p": 0.1},
    {"temperature": 3.0, "top_p": 0.7, "min_p": 0.55},
]


def logits_of(kind, size):
    gen = np.random.default_rng(size)
    x = gen.standard_normal(size).astype(np.float32) * 2
    if kind == "ties":
        x = np.round(x)
    if kind == "holes":
        x[::3], x[1] = -np.inf, np.nan
    if kind == "large":
        x += 3000
    return x


@pytest.mark.parametrize("kind", ["normal", "ties", "holes", "large"])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_law_from_logits(device, kind, options):
    """The first token of target_only with three children is distributed as the filtered row."""
    size = 40
    x = logits_of(kind, size)
    law = filtered(x, **options)
    if options.get("top_k", size) < size or options.get("top_p", 1) < 1:
        assert 0 < (law > 0).sum() < size
    tokens, tree, places = shared_tree(device, size, N)
    logits = torch.from_numpy(x).to(device).expand(N, 4, size).contiguous()
    lengths, _, out = tree_verify("target_only", tokens, tree, logits=logits, seed=5, **places, **options)
    assert_law(out[:, 0].cpu().numpy(), law)
    rate = law[[1, 2, 3]].sum()
    assert_law(lengths.cpu().numpy(), [1 - rate, rate])


def shared_tree(device, size, count):
    tokens = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32, device=device).expand(count, 4).contiguous()
    tree = tree_build(
        torch.tensor([[-1, 0, 0, 0]], dtype=torch.int32, device=device).expand(count, 4).contiguous()
    )
    positions = torch.arange(count, device=device)
    return tokens, tree, {"stream": positions % 5, "position": positions}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 40, 5003])
def test_logits_give_the_tokens_of_their_law(device, dtype, size):
    """Rounding of the exponential may move a draw at the edge of a cell, no more than one in a thousand."""
    count = 4000 if size < 1000 else 400
    gen = torch.Generator().manual_seed(size)
    logits = (torch.randn(count, 4, size, generator=gen) * 3).to(dtype)
    tokens = torch.stack([torch.randperm(max(size, 4), generator=gen)[:4] for _ in range(count)]).int()
    tokens, n = tokens.clamp_max(size - 1), 4 if size >= 4 else 1
    tree = tree_build(
        torch.tensor([[-1, 0, 0, 0][:n]], dtype=torch.int32).expand(count, n).contiguous().to(device)
    )
    places = {"stream": torch.arange(count, device=device), "position": torch.arange(count, device=device)}
    options = {"temperature": 0.7, "top_k": 30, "top_p": 0.9}
    probs = torch.from_numpy(
        np.stack([filtered(row, **options) for row in logits[:, :n].float().reshape(-1, size).numpy()])
    )
    probs = probs.reshape(count, n, size).float().to(device)
    args = {"seed": 3, **places}
    tokens = tokens[:, :n].contiguous().to(device)
    got = tree_verify(
        "target_only", tokens, tree, logits=logits[:, :n].contiguous().to(device), **args, **options
    )
    want = tree_verify("target_only", tokens, tree, probs=probs, **args)
    assert (got[2] != want[2]).any(1).sum() <= count // 1000


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_plain_sampling_has_the_law_and_the_tokens_of_match_plain(device, options):
    size = 40
    x = logits_of("ties", size)
    logits = torch.from_numpy(x).to(device).expand(N, size).contiguous()
    tokens, tree, places = shared_tree(device, size, N)
    got = sample(logits, seed=5, **places, **options)
    assert got.shape == (N,)
    assert_law(got.cpu().numpy(), filtered(x, **options))
    block = tree_verify(
        "target_only",
        tokens,
        tree,
        logits=logits[:, None].expand(N, 4, size).contiguous(),
        seed=5,
        match_plain=True,
        **places,
        **options,
    )
    assert torch.equal(block[2][:, 0], got.to(block[2].dtype))


def test_plain_sampling_follows_the_contract(device):
    """Weights that are exact in fp32: the tokens are those of tag 3."""
    q = np.array([1, 2, 4, 8, 1], np.float32) / 16
    logits = torch.from_numpy(np.log2(q) * np.float32(np.log(2))).to(device).expand(2000, 5).contiguous()
    positions = torch.arange(2000, device=device)
    got = sample(logits, seed=77, stream=positions % 3, position=positions)
    n = np.arange(2000, dtype=np.uint64)
    want = categorical_rows(r64(77, n % 3, n, 0, 3), np.tile(q, (2000, 1)))
    assert (got.cpu().numpy() != want).sum() <= 1


@pytest.mark.parametrize("mode", ["rrs", "rrs_wo", "greedy_plus_one", "kseq"])
def test_draft_modes_from_logits(device, mode):
    """The target's row is filtered, the draft's is given: the law stays the filtered target."""
    gen = np.random.default_rng(0)
    x, p = logits_of("normal", 20), pair(20, 1.0, 0.5, 8)[1].astype(np.float32)
    xs = draft_rows(mode, np.tile(p, (N, 1)), 3, lambda slot: gen.integers(0, 2**64, N, dtype=np.uint64))
    tokens, tree, places = shared_tree(device, 20, N)
    tokens[:, 1:] = torch.from_numpy(xs).to(device)
    options = {"temperature": 0.8, "top_k": 9, "top_p": 0.95}
    out = tree_verify(
        mode,
        tokens,
        tree,
        logits=torch.from_numpy(x).to(device).expand(N, 4, 20).contiguous(),
        draft_probs=torch.from_numpy(p).to(device).expand(N, 1, 20).contiguous(),
        draft_rows=torch.zeros(N, 4, dtype=torch.int32, device=device),
        seed=6,
        **places,
        **options,
    )[2]
    assert_law(out[:, 0].cpu().numpy(), filtered(x, **options))


def test_the_comparison_finds_a_wrong_law():
    """A hundredth of the mass moved is seen; the right law passes."""
    q = np.array(G_Q, float)
    bits = np.random.default_rng(0).integers(0, 2**64, N, dtype=np.uint64)
    drawn = categorical_rows(bits, np.tile(q.astype(np.float32), (N, 1)))
    assert_law(drawn, q)
    moved = q + np.array([0.02, -0.02, 0, 0, 0, 0, 0, 0])
    with pytest.raises(AssertionError, match="chi-square"):
        assert_law(drawn, moved)
    with pytest.raises(AssertionError, match="outside the support"):
        assert_law(drawn, np.array([0.5, 0.5, 0, 0, 0, 0, 0, 0]))


def test_typical_accepts_by_entropy(device):
    """Two rows by hand: a sharp one takes its top token, a flat one tokens above delta * exp(-H)."""
    q = np.array([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])
    request = oracle.Request([0, 1, 0], [-1, 0, 0], np.float32([q[0], q[1], q[1]]))
    assert oracle.verify("typical", request) == (1, [0, 2], [0, 0])
    lengths, nodes, tokens = verify_many(
        "typical", device, [-1, 0, 0], np.array([[0, 1, 0]] * 2), np.float32([q[0], q[1], q[1]]), None, None
    )
    assert lengths.tolist() == [1, 1]
    assert nodes[0].tolist()[:2] == [0, 2]
    assert tokens[0].tolist()[:2] == [0, 0]
