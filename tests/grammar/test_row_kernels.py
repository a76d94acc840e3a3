"""Kernels of aligned decoding, byte marginals and control tokens: against float64, strings and the published rules."""

import math

import pytest
import torch

from tokops.grammar import (
    apply_bitmask_,
    asap_adjust,
    byte_marginal,
    delay_k_update,
    first_token_control,
    node_mass,
)

INT, MINUS, NAN = torch.int32, float("-inf"), float("nan")


def ints(values, device="cpu"):
    return torch.tensor(values, dtype=INT, device=device)


@pytest.fixture
def logits(device):
    return (torch.randn(5, 700, generator=torch.Generator().manual_seed(1)) * 4).to(device)


def futures(rows, v, device):
    gen = torch.Generator().manual_seed(2)
    theta = -torch.rand(rows, v, generator=gen) * 9
    theta[torch.rand(rows, v, generator=gen) < 0.4] = MINUS
    return theta.to(device)


def test_adjusting_is_log_softmax_of_everything_and_then_the_mask(device, logits):
    theta, rows = futures(3, 700, device), ints([2, -1, 0, 0, -1], device)
    gen = torch.Generator().manual_seed(3)
    mask = torch.randint(-(2**31), 2**31, (5, 21), generator=gen).to(INT).to(device)  # 28 tokens beyond it
    got = asap_adjust(logits, mask, theta, rows)
    want = torch.log_softmax(logits.double(), -1)
    for i, row in enumerate(rows.tolist()):
        want[i] += theta[row] if row >= 0 else 0.0
    want = apply_bitmask_(want.float(), mask).double()
    assert torch.equal(got == MINUS, want == MINUS)
    live = want > MINUS
    torch.testing.assert_close(got.double()[live], want[live], rtol=1e-6, atol=4e-6)
    free = asap_adjust(logits, None, theta, rows)
    assert torch.equal(apply_bitmask_(free.clone(), mask), got)
    one = asap_adjust(logits, mask[2], theta, rows)
    assert torch.equal(apply_bitmask_(free.clone(), mask[2]), one)


def test_the_mass_of_a_node_is_what_sampling_under_its_futures_keeps(device, logits):
    theta = futures(5, 700, device)
    logp = torch.log_softmax(logits, -1)
    want = (logp.double() + theta).logsumexp(-1)
    torch.testing.assert_close(node_mass(logp, theta).double(), want, rtol=0, atol=3e-6)
    nothing = torch.full_like(theta, MINUS)
    assert node_mass(logp, nothing).eq(MINUS).all()
    torch.testing.assert_close(
        node_mass(logp, torch.zeros_like(theta)), torch.zeros(5, device=device), rtol=0, atol=3e-6
    )
    step = asap_adjust(logits, None, theta, torch.arange(5, dtype=INT, device=device))
    torch.testing.assert_close(step.logsumexp(-1), node_mass(logp, theta), rtol=0, atol=5e-6)


def test_rows_of_nodes_are_checked(logits):
    logits, theta = logits.cpu(), torch.zeros(2, 700)
    with pytest.raises(RuntimeError, match=r"asap_adjust: rows must be -1\.\.1, got \[0, 2, 0, 0, 0\]"):
        asap_adjust(logits, None, theta, ints([0, 2, 0, 0, 0]))
    with pytest.raises(
        RuntimeError, match=r"asap_adjust: log_theta must be \[R, V\] = \[2, 700\], got \[2, 3\]"
    ):
        asap_adjust(logits, None, theta[:, :3], ints([0] * 5))
    with pytest.raises(
        RuntimeError, match=r"node_mass: log_theta must be \[N, V\] = \[5, 700\], got \[2, 700\]"
    ):
        node_mass(logits, theta)


WORDS = [b"", b"a", b"a", b"ab", b"abc", b"ac", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"bab"]


def tables(words, device):
    """Ids by number; those without bytes are left out, as special tokens are."""
    order = sorted((i for i, w in enumerate(words) if w), key=lambda i: words[i])
    offsets = [0]
    for i in order:
        offsets.append(offsets[-1] + len(words[i]))
    data = torch.tensor(list(b"".join(words[i] for i in order)), dtype=torch.uint8, device=device)
    return [words[i] for i in order], (ints(order, device), ints(offsets, device), data)


def run_of(ordered, prefix):
    inside = [i for i, w in enumerate(ordered) if w.startswith(prefix)]
    return inside[0], inside[-1] + 1, len(prefix)


def test_masses_of_next_bytes_by_strings(device):
    ordered, arrays = tables(WORDS, device)
    prefixes = [b"", b"a", b"ab", b"a\xff", b"b", b"\xff"]
    logp = torch.log_softmax(torch.randn(len(prefixes), len(WORDS), device=device) * 2, -1)
    nodes = [ints(x, device) for x in zip(*(run_of(ordered, p) for p in prefixes), strict=True)]
    got = byte_marginal(logp, *arrays, *nodes).double().exp().cpu()
    for row, prefix in enumerate(prefixes):
        want = torch.zeros(257, dtype=torch.float64)
        for i, word in enumerate(WORDS):
            if word.startswith(prefix) and word:
                rest = word[len(prefix) :]
                want[rest[0] if rest else 256] += logp[row, i].double().exp().cpu()
        torch.testing.assert_close(got[row], want, rtol=2e-6, atol=1e-9)
        assert torch.equal(got[row] == 0, want == 0)


def test_bytes_of_a_large_vocabulary_keep_all_mass(device):
    gen = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 6, (9000,), generator=gen).tolist()
    words = [bytes((torch.rand(n, generator=gen) ** 3 * 256).byte().tolist()) for n in lengths]
    ordered, arrays = tables(words, device)
    logp = torch.log_softmax(torch.randn(2, 9000, generator=gen).to(device) * 3, -1)[[0, 1, 1]]
    low, high, depth = run_of(ordered, b"\0")
    assert high - low > 1024  # summed by a whole block on CUDA
    nodes = [ints(x, device) for x in ([0, low, 0], [9000, high, 9000], [0, depth, 0])]
    got = byte_marginal(logp, *arrays, *nodes).double()
    first, inner, root = got.logsumexp(-1).tolist()
    assert abs(first) < 2e-6
    assert abs(root) < 2e-6
    assert abs(inner - float(got[2, 0])) < 3e-6  # the byte that leads to the inner node


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": ints([0, 9])}, r"order must be 0\.\.4, got"),
        ({"offsets": ints([0, 2, 1])}, "offsets must ascend from 0, got 2 and 1"),
        ({"offsets": ints([0, 1, 4])}, "offsets must be at most 3, got 4"),
        ({"offsets": ints([0, 1])}, r"offsets must be \[S \+ 1\] = \[3\], got \[2\]"),
        (
            {"low": ints([2]), "high": ints([1])},
            "0 <= low <= high <= 2 and depth >= 0 must hold, got 2, 1 and 0 in row 0",
        ),
        ({"high": ints([3])}, "must hold, got 0, 3 and 0"),
        ({"depth": ints([-1])}, "must hold, got 0, 2 and -1"),
    ],
)
def test_byte_tables_are_checked(change, message):
    args = {
        "logp": torch.zeros(1, 5),
        "order": ints([3, 1]),
        "offsets": ints([0, 1, 3]),
        "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "low": ints([0]),
        "high": ints([2]),
        "depth": ints([0]),
    } | change
    with pytest.raises(RuntimeError, match="byte_marginal: .*" + message):
        byte_marginal(**args)


def control(logits, ids, tau, mode, device, **options):
    rows = [torch.tensor(x, device=device) for x in (logits, ids, tau, mode)]
    return first_token_control(rows[0], rows[1].int(), rows[2], rows[3].int(), **options)


def test_thresholds_on_one_token(device):
    """Always at 0, never above 1, and the larger of the two below 0; the token is forced whatever is most likely."""
    row = [3.0, 0.0, 1.0]  # tokens 1 refuses, 2 answers; 0 is neither
    p = torch.softmax(torch.tensor(row), 0)
    taus = [0.0, 1.01, -1.0, float(p[1]) * 0.99, float(p[1]) * 1.01]
    got, score = control([row] * 5, [[1, 2]] * 5, [[t] for t in taus], [1] * 5, device)
    assert got.tolist() == [1, 2, 2, 1, 2]
    torch.testing.assert_close(score[0].cpu(), p[1:], rtol=1e-6, atol=0)
    assert control([[0.0, 2.0, 1.0]], [[1, 2]], [[-1.0]], [1], device)[0].tolist() == [1]
    equal = control([[0.0, 1.0, 1.0]], [[1, 2]], [[-1.0]], [1], device)
    assert equal[0].tolist() == [1]  # a tie refuses


def test_a_threshold_is_a_bias_on_the_pair(device):
    gen = torch.Generator().manual_seed(7)
    pair = torch.randn(200, 2, generator=gen)
    tau = torch.rand(200, generator=gen)
    got = control(pair.tolist(), [[0, 1]] * 200, tau[:, None].tolist(), [1] * 200, device)[0].cpu()
    biased = pair[:, 0] + torch.log((1 - tau) / tau) >= pair[:, 1]
    assert torch.equal(got == 0, biased)


def test_categories(device):
    row = [1.0, 2.0, 0.5, 0.0]  # 0, 1, 2 refuse, 3 answers
    p = torch.softmax(torch.tensor(row), 0).tolist()
    ids = [0, 1, 2, 3]
    both = p[0] + p[2]
    tau = [
        [0.0, p[1] - 0.01, 0.0],  # the most likely one reaches its threshold
        [0.0, p[1] + 0.01, 0.0],  # or does not
        [0.0, NAN, 0.0],  # or is not in use
        [both - 0.01, NAN, 9.0],  # the sum without it
        [both + 0.01, NAN, 9.0],
        [NAN, NAN, NAN],
        [0.0, 0.0, 0.0],
    ]
    got, score = control([row] * 7, [ids] * 7, tau, [1, 1, 1, 2, 2, 2, 0], device)
    assert got.tolist() == [1, 3, -1, 0, 3, -1, -1]
    torch.testing.assert_close(score[3].cpu(), torch.tensor(p), rtol=1e-6, atol=0)
    gone, score = control([row], [[0, -1, 2, 3]], [[0.0, 0.0, 0.0]], [1], device)
    assert gone.tolist() == [0]
    assert score[0, 1] == 0


def test_what_is_likelier_is_told_by_the_logits(device):
    """Where probabilities are 0, or rounding has made them equal."""
    high, low, step = -50.0, -60.0, torch.finfo(torch.float32).eps
    rows = [[0.0, high, low], [0.0, low, high], [90.0, 0.1, 0.1 + step / 8], [90.0, 0.1, 0.1]]
    got, score = control(rows, [[1, 2]] * 4, [[-1.0]] * 4, [1] * 4, device)
    assert got.tolist() == [1, 2, 2, 1]
    assert not score.any()
    got, _ = control([[0.0, low, high, low]] * 2, [[1, 2, 3]] * 2, [[0.0, 0.0], [0.0, NAN]], [1, 1], device)
    assert got.tolist() == [2, -1]


def test_refusals_shrink_as_the_threshold_grows_and_temperature_only_decides(device):
    gen = torch.Generator().manual_seed(8)
    logits = torch.randn(300, 50, generator=gen).tolist()
    last = set(range(300))
    for tau in (0.0, 0.005, 0.02, 0.05, 1.1):
        got = control(logits, [[4, 9]] * 300, [[tau]] * 300, [1] * 300, device)[0].tolist()
        refused = {i for i, x in enumerate(got) if x == 4}
        assert refused <= last
        last = refused
    assert not last
    _, score = control(logits, [[4, 9]] * 300, [[0.0]] * 300, [1] * 300, device, temperature=2.0)
    want = torch.softmax(torch.tensor(logits, dtype=torch.float64) / 2, -1)[:, [4, 9]]
    torch.testing.assert_close(score.cpu().double(), want, rtol=3e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [[1, 7]]}, "ids must be tokens of the vocabulary.*got 7"),
        ({"ids": [[1, -1]]}, "ids must be tokens of the vocabulary.*got -1"),
        ({"mode": [3]}, "mode must be 0, 1 or 2, got 3"),
        ({"ids": [[1]]}, r"ids must be \[B, C \+ 1\] with B 1 and C 1\.\.32, got \[1, 1\]"),
        ({"tau": [[0.1, 0.2]]}, r"tau must be \[B, C\] = \[1, 1\], got \[1, 2\]"),
        ({"temperature": 0.0}, r"temperature must be 1e-5\.\.1e5, got 0"),
    ],
)
def test_controls_are_checked(change, message):
    args = {
        "logits": [[0.0, 1.0, 2.0]],
        "ids": [[1, 2]],
        "tau": [[0.5]],
        "mode": [1],
        "device": "cpu",
    } | change
    with pytest.raises(RuntimeError, match="first_token_control: " + message):
        control(**args)


def test_empty_rows(device):
    got, score = control([[MINUS, MINUS], [NAN, 0.0]], [[0, 1]] * 2, [[0.5]] * 2, [1, 1], device)
    assert got.tolist() == [1, 1]
    assert score.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    theta = torch.zeros(1, 2, device=device)
    empty = torch.tensor([[MINUS, MINUS]], device=device)
    assert asap_adjust(empty, None, theta, ints([0], device)).eq(MINUS).all()
    assert math.isinf(float(node_mass(empty, theta)))


def test_rows_stop_at_the_kth_flagged_token(device):
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.7], [0.2, 0.9, 0.9, 0.9], [0.0] * 4], device=device)
    valid = torch.tensor([[True] * 4, [True, False, True, True], [True] * 4], device=device)
    for k, stops, firsts in (
        (1, [True, True, False], [0, 2, -1]),
        (2, [True, True, False], [2, 3, -1]),
        (3, [True, False, False], [3, -1, -1]),
        (4, [False, False, False], [-1, -1, -1]),
    ):
        count = ints([0, 0, 0], device)
        stop, first = delay_k_update(count, scores, 0.5, k, valid=valid)
        assert (stop.tolist(), first.tolist(), count.tolist()) == (stops, firsts, [3, 2, 0])
        # The same tokens one by one: the trigger does not depend on the chunks.
        count, seen = ints([0, 0, 0], device), []
        for i in range(4):
            stop, first = delay_k_update(count, scores[:, i : i + 1], 0.5, k, valid=valid[:, i : i + 1])
            seen.append([i if x == 0 else -1 for x in first.tolist()])
        assert [max(column) for column in zip(*seen, strict=True)] == firsts
        assert stop.tolist() == stops


def test_stopping_is_monotone_in_k_and_theta(device):
    scores = torch.rand(50, 40, generator=torch.Generator().manual_seed(1)).to(device)

    def at(k, theta):
        first = delay_k_update(torch.zeros(50, dtype=INT, device=device), scores, theta, k)[1]
        return torch.where(first < 0, 1000, first)

    for k in range(1, 6):
        assert (at(k, 0.7) <= at(k + 1, 0.7)).all()
        assert (at(k, 0.7) <= at(k, 0.8)).all()
    assert torch.equal(
        at(1, 0.9), torch.where((scores >= 0.9).any(-1), (scores >= 0.9).int().argmax(-1), 1000).int()
    )


def test_counts_are_checked():
    with pytest.raises(RuntimeError, match="delay_k_update: k must be at least 1, got 0"):
        delay_k_update(ints([0]), torch.zeros(1, 1), 0.5, 0)
    with pytest.raises(RuntimeError, match=r"delay_k_update: count must be \[B\] = \[2\], got \[1\]"):
        delay_k_update(ints([0]), torch.zeros(2, 1), 0.5, 1)
    with pytest.raises(RuntimeError, match="delay_k_update: count must be contiguous"):
        delay_k_update(ints([0, 0, 0, 0])[::2], torch.zeros(2, 1), 0.5, 1)
