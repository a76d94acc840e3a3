"""The exact laws of every rule, the printed numbers of the sheets, and that wrong rules are found out."""

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from . import laws, oracle
from .draws import drafts_of
from .efficiency import closed_forms, iid_block, root_tree
from .laws import LOSSLESS, distance, one_level, two_levels
from .oracle import Request
from .pairs import G_P, G_Q, SEED, STREAM, markov, pair

QUANTILE_999 = 24.32  # chi-square, 7 degrees of freedom


def random_law(gen, size, zeros=False):
    w = gen.random(size) ** 3
    if zeros:
        w[gen.integers(size)] = 0
    return (w / w.sum()).tolist()


def worst(law, want):
    return max(abs(a - b) for a, b in zip(np.ravel(law), np.ravel(want), strict=True))


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize("size", [4, 6, 8])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_one_level_emits_the_target_law(mode, size, k):
    gen = np.random.default_rng(10 * size + k)
    for zeros in (False, True):
        q, p = random_law(gen, size, zeros), random_law(gen, size, zeros)
        law, accepted = one_level(*LOSSLESS[mode], q, p, k)
        assert worst(law, q) < 1e-12
        assert 0 < accepted < 1 + 1e-12


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize(("size", "k", "k_next"), [(4, 3, 2), (5, 2, 3), (8, 2, 2)])
def test_two_levels_emit_the_target_law(mode, size, k, k_next):
    q_rows, p_rows = (rows.tolist() for rows in markov(size, 1.5, 0.5, 900 + size))
    q, p = (law.tolist() for law in pair(size, 2.0, 0.3, 77))
    law = two_levels(*LOSSLESS[mode], q, p, q_rows, p_rows, k, k_next)
    assert worst(law, np.array(q)[:, None] * np.array(q_rows)) < 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_chain_block_emits_the_target_law(seed):
    """All sequences of three drafted tokens over V = 4, and what the target adds to shorter blocks."""
    q_rows, p_rows = (rows.tolist() for rows in markov(4, 1.5, 0.5, 40 * seed))
    want = [q_rows[0][a] * q_rows[a][b] * q_rows[b][c] for a, b, c in product(range(4), repeat=3)]
    assert worst(block_law(q_rows, p_rows, 0, 3)[0], want) < 1e-12


def block_law(q_rows, p_rows, start, length):
    """(law of the first `length` tokens, E[tokens]) of chain_block from one context of a Markov pair."""
    law, expected = np.zeros((4,) * length), 0.0
    for xs in product(range(4), repeat=length):
        contexts = (start, *xs)
        chance = np.prod([p_rows[c][x] for c, x in zip(contexts, xs, strict=False)])
        lengths, after = laws.block_chances(
            [q_rows[c] for c in contexts], [p_rows[c] for c in contexts[:-1]], xs
        )
        for tau, share in enumerate(lengths):
            expected += chance * share * (tau + 1)
            tail = chance * share
            if tau == length:
                law[xs] += tail
                continue
            for y, *later in product(range(4), repeat=length - tau):
                weight, context = after[tau][y], y
                for z in later:
                    weight, context = weight * q_rows[context][z], z
                law[(*xs[:tau], y, *later)] += tail * weight
    return law, expected


def test_chain_block_gains_over_token_wise_tests():
    q_rows, p_rows = markov(4, 1.5, 0.5, 400)
    blocks = [block_law(q_rows.tolist(), p_rows.tolist(), c, 3)[1] for c in range(4)]
    assert sum(blocks) / 4 == pytest.approx(2.3836, abs=5e-5)
    assert iid_block("RRS", q_rows, p_rows, 1, 3) == pytest.approx(2.3202, abs=5e-5)


@pytest.mark.parametrize("mode", ["rrs", "rrs_wo", "greedy_plus_one", "kseq"])
def test_one_draft_is_standard_speculative_sampling(mode):
    rule, draws = LOSSLESS[mode]
    law, accepted = one_level(rule, draws, G_Q, G_P, 1)
    assert law == G_Q
    assert accepted == Fraction(1, 2) == sum(min(a, b) for a, b in zip(G_Q, G_P, strict=True))


ACCEPTANCE_ON_G = {
    "rrs": [0.5, 0.625, 0.71875, 0.759765625],
    "rrs_wo": [0.5, 0.729166667, 0.8125, 0.880208333],
    "greedy_plus_one": [0.5, 0.75, 0.875, 0.9375],
    "target_only": [0.125, 0.25, 0.5, 0.625],
    "kseq": [0.5, 0.648267583, 0.751497729, 0.779743294],
}


@pytest.mark.parametrize("mode", ACCEPTANCE_ON_G)
def test_acceptance_on_fixture_g(mode):
    rational = mode != "kseq"  # its factor is a root
    q, p = (law if rational else [float(w) for w in law] for law in (G_Q, G_P))
    for k, want in enumerate(ACCEPTANCE_ON_G[mode], 1):
        law, accepted = one_level(*LOSSLESS[mode], q, p, k)
        assert float(accepted) == pytest.approx(want, abs=5e-10)
        assert worst(law, G_Q) < 1e-12
        if rational:
            assert law == G_Q


def test_match_and_division_factor_on_fixture_g():
    match = [sum(q * (1 - (1 - p) ** k) for q, p in zip(G_Q, G_P, strict=True)) for k in (1, 2, 3, 4)]
    assert [float(x) for x in match] == pytest.approx([0.139648, 0.235672, 0.306172, 0.360886], abs=5e-7)
    rho = [laws.division_factor(G_Q, G_P, k) for k in (1, 2, 3, 4)]
    assert rho == pytest.approx([1, 1.593070331, 2.023963669, 2.475892698], abs=5e-10)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("m", [2, 3, 5])
def test_division_factor_is_the_upper_end_of_a_tight_bracket(seed, m):
    q, p = (law.tolist() for law in pair(8, 2.0, 0.5, seed))
    rho = laws.division_factor(q, p, m)
    assert laws.gap(q, p, rho, m) <= 0 < laws.gap(q, p, rho - 1e-3, m)


def test_kseq_at_its_ends():
    equal = one_level(laws.kseq, laws.iid, G_P, G_P, 3)
    assert laws.division_factor(G_P, G_P, 3) == 1
    assert equal[1] == pytest.approx(1, abs=1e-15)
    half = [0.5, 0.5, 0, 0]
    law, accepted = one_level(laws.kseq, laws.iid, half, half[::-1], 3)
    assert (law, accepted) == (half, 0)


@pytest.mark.parametrize(
    ("draws", "errors"),
    [(laws.without_replacement, [0.1576, 0.2161]), (laws.iid, [0.125, 0.1875])],
)
def test_independent_sibling_tests_are_found_out(draws, errors):
    for k, want in zip((2, 3), errors, strict=True):
        law, _ = one_level(laws.independent_tests, draws, G_Q, G_P, k)
        assert float(distance(law, G_Q)) == pytest.approx(want, abs=5e-5)


def test_pruning_drawn_children_is_found_out():
    """Three children drawn, the two likeliest kept: exact for target_only alone."""
    p, q = [Fraction(n, 256) for n in (86, 85, 84, 1)], [Fraction(n, 256) for n in (0, 0, 160, 96)]

    def pruned(p, k):
        for chance, xs in laws.without_replacement(p, k):
            kept = sorted(xs, key=lambda x: (-p[x], x))[:2]
            yield chance, tuple(x for x in xs if x in kept)

    assert distance(one_level(laws.rrs_wo, laws.without_replacement, q, p, 3)[0], q) == 0
    assert distance(one_level(laws.target_only, pruned, q, p, 3)[0], q) == 0
    assert distance(one_level(laws.rrs_wo, pruned, q, p, 3)[0], q) > 0.5


SINGLE_STEP = """
8 1.5 .8 3  1 1        .311132 .693027 .693027 .693027 .693027 .693027 .693027 .392440
8 1.5 .8 3  2 1.435748 .428333 .777946 .810123 .884893 .901112 .964779 .961993 .565444
8 1.5 .8 3  4 2.036497 .521795 .862572 .904552 .967656 .956695 1       .998864 .844498
8 3   .8 4  2 1.439674 .526564 .799650 .806687 .822681 .805425 .854634 .841642 .619765
8 3   .8 4  4 2.309487 .656011 .811577 .832902 .878456 .976058 1       1.0     .980090
8 1.5 .2 5  2 1.707667 .193293 .487529 .499207 .515709 .559670 .599820 .492151 .120781
8 1.5 .2 5  4 2.759079 .322662 .666173 .673567 .712809 .744682 .884731 .798633 .500186
"""


def brute_force_optimum(q, all_in, size):
    """1 + min over token sets of q(S) - Pr(all drafts in S)."""
    sets = product((False, True), repeat=size)
    return 1 + min(sum(w for w, x in zip(q, s, strict=True) if x) - all_in(s) for s in sets)


@pytest.mark.parametrize("line", SINGLE_STEP.strip().splitlines())
def test_single_step_acceptance(line):
    size, sigma, c, seed, k, *want = (float(x) for x in line.split())
    k = int(k)
    q, p = (law.tolist() for law in pair(int(size), sigma, c, int(seed)))
    tuples = list(laws.without_replacement(p, k))
    rates = {mode: one_level(*LOSSLESS[mode], q, p, k)[1] for mode in LOSSLESS}
    got = [
        laws.division_factor(q, p, k),
        sum(a * (1 - (1 - b) ** k) for a, b in zip(q, p, strict=True)),
        rates["rrs"],
        rates["kseq"],
        brute_force_optimum(q, lambda s: sum(w for w, x in zip(p, s, strict=True) if x) ** k, len(q)),
        rates["rrs_wo"],
        brute_force_optimum(q, lambda s: sum(w for w, xs in tuples if all(s[x] for x in xs)), len(q)),
        rates["greedy_plus_one"],
        rates["target_only"],
    ]
    assert got == pytest.approx(want, abs=5e-6)
    closed = closed_forms(np.array(q), np.array(p), k)
    assert [closed[n] for n in ("RRS", "k-SEQ", "G+1", "top")] == pytest.approx(
        [rates[n] for n in ("rrs", "kseq", "greedy_plus_one", "target_only")], abs=1e-12
    )
    assert (1 - (1 - 1 / k) ** k) * got[4] <= got[3] + 1e-12 <= got[4] + 2e-12 <= 1 + 3e-12


@pytest.mark.parametrize("seed", range(5))
def test_kseq_accepts_more_with_more_drafts(seed):
    q, p = pair(8, 1.5, 0.4, 50 + seed)
    rates = [closed_forms(q, p, m)["k-SEQ"] for m in range(1, 9)]
    assert all(a <= b + 1e-12 for a, b in pairwise(rates))


LARGE = """
10 .99  24 2.83 2 .153192 .449768 .460450 .503418 .195346
10 .99  24 2.83 4 .205491 .526879 .547820 .616482 .233095
10 .99  24 2.83 8 .259560 .614775 .652060 .820382 .539625
12 .985 21 2.56 4 .378854 .586313 .598563 .708784 .504187
14 .99  22 1.64 4 .513781 .594008 .603932 .703986 .550383
16 .99  23 1.33 4 .714015 .863606 .869136 .932211 .788124
"""


@pytest.mark.parametrize("line", LARGE.strip().splitlines())
def test_single_step_acceptance_of_a_large_vocabulary(line):
    sigma, c, seed, entropy, k, *want = (float(x) for x in line.split())
    q, p = pair(32000, sigma, c, int(seed))
    assert -(q * np.log(q)).sum() == pytest.approx(entropy, abs=5e-3)
    got = closed_forms(q, p, int(k))
    assert [got[n] for n in ("DtM", "RRS", "k-SEQ", "G+1", "top")] == pytest.approx(want, abs=1e-6)


BLOCK = """
1.5 .8 100 1 4 1.317085 3.006994 3.006994 3.006994 1.456447
1.5 .8 100 2 4 1.529427 3.230035 3.315670 3.279079 1.833228
1.5 .8 100 4 4 1.810499 3.474695 3.626377 3.562835 2.155313
1.5 .8 100 4 8 1.814099 4.267569 4.478231 4.355419 2.160288
3   .8 200 2 4 2.651658 3.415262 3.458684 3.423239 3.049519
3   .8 200 4 4 3.029729 3.701948 3.791519 3.887115 3.724909
3   .8 200 4 8 4.330950 5.534217 5.685572 5.635090 5.602993
1.5 .2 300 2 4 1.294404 1.838019 1.856820 1.925602 1.332590
1.5 .2 300 4 4 1.476535 2.022114 2.073558 2.284152 1.840872
"""


@pytest.mark.parametrize("line", BLOCK.strip().splitlines())
def test_block_efficiency(line):
    sigma, c, base, k, length, *want = (float(x) for x in line.split())
    base, k, length = int(base), int(k), int(length)
    q, p = markov(8, sigma, c, base)

    def accepted(mode, n):
        """By context and token: the chance that it is accepted as one of n children."""
        rule, draws = LOSSLESS[mode]

        def row(context):
            out = np.zeros(8)
            for chance, xs in draws(p[context].tolist(), n):
                for x, a in zip(xs, rule(q[context].tolist(), p[context].tolist(), xs)[0], strict=True):
                    out[x] += chance * a
            return out

        return row

    got = [
        *(iid_block(rule, q, p, k, length) for rule in ("match", "RRS", "kseq")),
        root_tree(accepted("rrs_wo", k), accepted("rrs_wo", 1), 8, length),
        root_tree(accepted("target_only", k), accepted("target_only", 1), 8, length),
    ]
    assert got == pytest.approx(want, abs=5e-6)


def golden(mode, k=3, positions=12, **options):
    """(drafts, child ordinal or None, token) of the verifier at each position of the golden runs."""
    q, p = np.array(G_Q, np.float32)[None], np.array(G_P, np.float32)[None]
    out = []
    for pos in range(positions):
        xs = drafts_of(mode, p[0], k, SEED, STREAM, pos)
        request = Request(
            [0, *xs], [-1] + [0] * k, np.repeat(q, k + 1, 0), p, [0] * (k + 1), SEED, STREAM, pos, options
        )
        accepted, path, tokens = oracle.verify(mode, request)
        out.append((xs, path[1] - 1 if accepted else None, tokens[0]))
    return out


def read_golden(text):
    """'2/6 -/5' -> [(2, 6), (None, 5)]."""
    cells = [cell.split("/") for cell in text.split()]
    return [(None if a == "-" else int(a), int(b)) for a, b in cells]


DRAFTS_WO = [
    *([1, 0, 6], [2, 0, 1], [0, 1, 2], [3, 0, 2], [1, 6, 4], [2, 1, 0]),
    *([0, 1, 2], [0, 4, 2], [1, 2, 0], [1, 2, 0], [6, 3, 4], [0, 1, 2]),
]
DRAFTS_IID = [
    *([1, 0, 4], [2, 0, 0], [0, 0, 0], [3, 0, 1], [1, 6, 4], [2, 2, 0]),
    *([0, 0, 0], [0, 3, 1], [1, 2, 0], [1, 1, 0], [6, 3, 4], [0, 0, 0]),
]
GOLDEN = {  # mode: drafts, child ordinal / token
    "rrs_wo": (DRAFTS_WO, "2/6 0/2 -/5 0/3 1/6 0/2 -/7 0/0 1/2 1/2 0/6 -/7"),
    "target_only": ([[0, 1, 2]] * 12, "-/7 1/1 2/2 2/2 -/5 -/3 -/6 1/1 -/7 -/3 -/5 -/7"),
    "kseq": (DRAFTS_IID, "1/0 0/2 -/5 0/3 1/6 0/2 -/7 1/3 1/2 -/4 0/6 -/7"),
    "rrs": (DRAFTS_IID, "2/4 0/2 -/4 0/3 1/6 0/2 -/7 0/0 1/2 -/4 0/6 -/7"),
}
RHO = 2.023963668687429


@pytest.mark.parametrize("mode", GOLDEN)
def test_golden_tokens(mode):
    drafts, text = GOLDEN[mode]
    run = golden(mode, **({"rho": RHO} if mode == "kseq" else {}))
    assert [xs for xs, _, _ in run] == drafts
    got = [(xs.index(xs[i]) if i is not None else None, y) for xs, i, y in run]
    assert got == read_golden(text)


@pytest.mark.slow
def test_golden_chi_square():
    """40000 positions of k-SEQ: the printed statistic, so every one of the tokens is as printed."""
    counts = np.bincount([y for _, _, y in golden("kseq", positions=40000, rho=RHO)], minlength=8)
    want = 40000 * np.array(G_Q, float)
    statistic = ((counts - want) ** 2 / want).sum()
    assert statistic == pytest.approx(8.46, abs=5e-3)
    assert statistic < QUANTILE_999


@pytest.mark.parametrize("mode", ["rrs", "rrs_wo", "greedy_plus_one"])
def test_one_draft_gives_the_tokens_of_kseq(mode):
    assert golden(mode, k=1, positions=500) == golden("kseq", k=1, positions=500)
