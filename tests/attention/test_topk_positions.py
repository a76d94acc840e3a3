"""topk_positions and threshold_positions against a sort in plain Python."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops import _native
from tokops.attention import threshold_positions, topk_positions

INF, NAN = float("inf"), float("nan")
# Around the sizes where the kernel changes its way: vectors of 8 and 16, and the sampled pivot from 4096 up.
LENGTHS = [1, 2, 7, 8, 9, 16, 17, 33, 100, 4095, 4096, 5003]


def best(row, k, threshold=-INF):
    """Positions of the k best scores above the threshold, ascending: larger first, then lower position."""
    allowed = [i for i, x in enumerate(row) if x > threshold]  # false for NaN on either side
    return sorted(sorted(allowed, key=lambda i: (-row[i], i))[:k])


def check(result, scores, lens, ks, thresholds=None):
    """Compare every row of a result with `best`."""
    positions, counts = (x.cpu() for x in result)
    assert positions.dtype == counts.dtype == torch.int32
    rows = scores.flatten(0, -2).tolist() if scores.dim() > 1 else [scores.tolist()]
    positions, counts = positions.view(len(rows), -1), counts.flatten().tolist()
    for r, row in enumerate(rows):
        threshold = -INF if thresholds is None else thresholds[r]
        want = best(row[: lens[r]], min(ks[r], positions.shape[1]), threshold)
        assert counts[r] == len(want)
        assert positions[r].tolist() == want + [-1] * (positions.shape[1] - len(want))


def kinds(length):
    """Named rows that are hard for one part of a selection or another."""
    x = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    rising = np.arange(length, dtype=np.float32)
    bits = np.random.default_rng(1).integers(0, 2**32, length, dtype=np.uint64).astype(np.uint32)
    return {
        "normal": x,
        "rounded": np.round(x),
        "all equal": np.full(length, 3.5, np.float32),
        "all equal but two": np.where((rising == length - 1) | (rising == length // 3), 4.0, 3.5).astype(
            np.float32
        ),
        "rising": rising,
        "falling": -rising,
        "zeros of both signs": np.where(rising % 3 == 0, -0.0, 0.0).astype(np.float32),
        "any bits": bits.view(np.float32),  # NaN of both signs, denormals, infinities
        "denormals": (bits & 0x807FFFFF).view(np.float32),
        "two levels in a period": np.where(rising % (length // 1024 or 1) == 0, x, x + 20).astype(np.float32),
        "all NaN": np.full(length, NAN, np.float32),
        "mostly -inf": np.where(x > 1, x, -INF).astype(np.float32),
        "largest and infinite": np.where(x > 1, INF, np.where(x < -1, 3.4e38, x)).astype(np.float32),
    }


@pytest.mark.parametrize("length", LENGTHS)
def test_every_kind_of_row_and_k(device, length):
    rows = torch.from_numpy(np.stack(list(kinds(length).values())))
    n = len(rows)
    for k in sorted({0, 1, 2, length // 8, length // 2, max(length - 1, 0), length, length + 1}):
        check(topk_positions(rows.to(device), None, k), rows, [length] * n, [k] * n)


@pytest.mark.parametrize("length", [1, 40, 5003])
def test_per_row_lens_and_k(device, length):
    gen = torch.Generator().manual_seed(length)
    scores = torch.randn(5, 9, length, generator=gen).round(decimals=1)
    lens = torch.randint(0, length + 1, (5, 9), generator=gen, dtype=torch.int32)
    lens[0, 0], lens[0, 1] = 0, length
    ks = torch.randint(0, length + 3, (5, 9), generator=gen, dtype=torch.int32)
    got = topk_positions(scores.to(device), lens.to(device), ks.to(device))
    assert got[0].shape == (5, 9, int(ks.max()))
    check(got, scores, lens.flatten().tolist(), ks.flatten().tolist())
    capped = topk_positions(scores.to(device), lens.to(device), ks.to(device), k_max=3)
    check(capped, scores, lens.flatten().tolist(), ks.flatten().clamp_max(3).tolist())


def test_scores_behind_a_row_are_not_read_as_its_own(device):
    scores = torch.zeros(3, 6000)
    scores[:, 5000:] = 9.0
    check(
        topk_positions(scores.to(device), torch.tensor([5000, 17, 0], device=device).int(), 40),
        scores,
        [5000, 17, 0],
        [40] * 3,
    )


@pytest.mark.parametrize("length", [12, 5003])
def test_threshold_is_strict_and_the_cap_keeps_the_largest(device, length):
    row = torch.from_numpy(kinds(length)["rounded"])
    thresholds = [0.0, -0.0, 1.0, -INF, INF, NAN, -1.5, 1e-45, -3.4e38]
    scores = row.expand(len(thresholds), -1)
    per_row = torch.tensor(thresholds)
    n = len(thresholds)
    for cap in (0, 1, length // 4, length):
        got = threshold_positions(scores.to(device), None, per_row.to(device), cap)
        check(got, scores, [length] * n, [cap] * n, thresholds)
    everywhere = threshold_positions(scores.to(device), None, 1.0, length)
    check(everywhere, scores, [length] * n, [length] * n, [1.0] * n)


def test_threshold_with_infinite_scores(device):
    scores = torch.tensor([[INF, 1.0, -INF, NAN, INF]] * 3)
    got = threshold_positions(scores.to(device), None, torch.tensor([3.4e38, INF, -INF], device=device), 4)
    assert got[0].tolist() == [[0, 4, -1, -1], [-1] * 4, [0, 1, 4, -1]]
    assert got[1].tolist() == [2, 0, 3]


def test_strided_views(device):
    base = torch.randn(7, 4, 600)
    lens = torch.arange(0, 560, 20).view(7, 4).int()
    for scores, n in (
        (base.transpose(0, 1), lens.t()),
        (base[:, :, 1::2], None),
        (base[:, :1].expand(7, 4, 600), lens),
    ):
        host = [scores.shape[-1]] * 28 if n is None else n.flatten().tolist()
        got = topk_positions(scores.to(device), None if n is None else n.to(device), 50)
        check(got, scores, host, [50] * 28)


def test_empty_shapes(device):
    for shape, k in (((0, 8), 3), ((2, 0), 3), ((2, 0, 5), 0), ((2, 8), 0)):
        positions, counts = topk_positions(torch.zeros(shape, device=device), None, k)
        assert positions.shape == (*shape[:-1], k)
        assert counts.shape == shape[:-1]
        assert positions.tolist() == torch.full((*shape[:-1], k), -1).tolist()
        assert counts.count_nonzero() == 0
    assert topk_positions(torch.tensor([3.0, 9.0, 9.0, 1.0], device=device), None, 2)[0].tolist() == [1, 2]


@pytest.mark.slow
def test_a_long_row(device):
    row = torch.randn(1_000_003).round(decimals=2)
    positions, counts = topk_positions(row.to(device), None, 2048)
    order = np.lexsort((np.arange(len(row)), -row.numpy()))[:2048]
    assert positions.tolist() == sorted(order.tolist())
    assert int(counts) == 2048


FLOAT32 = st.floats(width=32, allow_subnormal=True)


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(FLOAT32, max_size=70)
    | st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, NAN, INF, -INF]), max_size=70),
    k=st.integers(0, 75),
    cut=st.integers(0, 70),
    threshold=FLOAT32,
)
def test_any_row(row, k, cut, threshold):
    scores, length = torch.tensor(row, dtype=torch.float32), min(cut, len(row))
    lens = torch.tensor(length).int()
    check(topk_positions(scores, lens, k), scores, [length], [k])
    above = threshold_positions(scores, lens, threshold, k)
    check(above, scores, [length], [k], [threshold])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(4000, 9000),
    levels=st.sampled_from([1, 2, 5, 300, 10**6]),
    share=st.floats(0, 1.1),
    order=st.sampled_from(["random", "sorted", "reversed", "blocks"]),
)
def test_any_long_row(seed, length, levels, share, order):
    row = np.random.default_rng(seed).integers(0, levels, length).astype(np.float32) - levels // 2
    row = {
        "random": row,
        "sorted": np.sort(row),
        "reversed": -np.sort(-row),
        "blocks": np.repeat(row, 64)[:length],
    }[order]
    k = int(share**3 * length)
    scores = torch.from_numpy(row)
    check(topk_positions(scores, None, k), scores, [length], [k])


def test_the_number_of_threads_changes_nothing():
    scores, threads = torch.randn(33, 5000).round(decimals=1), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(topk_positions(scores, None, 200)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], r) for r in results)


def test_kernel_and_reference_agree(device):
    reference = _native.declared["topk_positions"]
    scores = torch.randn(6, 3000, device=device).round(decimals=1)
    lens = torch.tensor([0, 1, 3000, 2999, 1500, 40], device=device).int()
    ks = torch.tensor([5, 5, 0, 900, 100, 60], device=device).int()
    threshold = torch.tensor([0.0, -1.0, 0.5, NAN, -INF, 0.1], device=device)
    for args in ((None, None, 70), (lens, None, 3000), (lens, ks, 800), (lens, ks, 800, threshold)):
        got = torch.ops.tokops.topk_positions.default(scores, *args)
        want = reference(scores, *args)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor(1.0)}, "scores must have at least 1 dimension"),
        ({"scores": torch.zeros(2, 8).double()}, "scores must be float32, got float64"),
        ({"lens": torch.tensor([1, 2])}, "lens must be int32, got int64"),
        ({"lens": torch.tensor([[1, 2]]).int()}, "lens must have 1 dimensions, got 2"),
        ({"lens": torch.tensor([1, 2, 3]).int()}, r"lens must be scores' shape .* = \[2\], got \[3\]"),
        ({"lens": torch.tensor([1, 9]).int()}, r"lens must be 0\.\.8, got \[1, 9\]"),
        ({"lens": torch.tensor([-1, 2]).int()}, r"lens must be 0\.\.8, got \[-1, 2\]"),
        ({"k": -1}, "k must be >= 0, got -1"),
        ({"k": torch.tensor([1, -2]).int()}, r"k must be >= 0, got \[1, -2\]"),
        ({"k": torch.tensor([1.0, 2.0])}, "k must be int32, got float32"),
        ({"k": torch.tensor([1]).int()}, r"k must be scores' shape .* = \[2\], got \[1\]"),
    ],
)
def test_bad_arguments_of_topk(change, message):
    args = {"scores": torch.zeros(2, 8), "lens": None, "k": 3, **change}
    with pytest.raises(RuntimeError, match="topk_positions: " + message):
        topk_positions(**args)


@pytest.mark.parametrize(
    ("threshold", "cap", "message"),
    [
        (torch.zeros(3), 2, r"threshold must be scores' shape .* = \[2\], got \[3\]"),
        (torch.zeros(2).double(), 2, "threshold must be float32, got float64"),
        (0.0, -3, "k must be >= 0, got -3"),
    ],
)
def test_bad_arguments_of_threshold(threshold, cap, message):
    with pytest.raises(RuntimeError, match=message):
        threshold_positions(torch.zeros(2, 8), None, threshold, cap)


def test_arguments_on_two_devices_are_refused():
    with pytest.raises(RuntimeError, match="lens must be on"):
        torch.ops.tokops.topk_positions.default(
            torch.zeros(2, 8), torch.zeros(2, dtype=torch.int32, device="meta"), None, 2
        )


def test_the_oracle_itself():
    assert best([1.0, NAN, 3.0, 3.0, -INF, INF], 3) == [2, 3, 5]
    assert best([0.0, -0.0, 0.0], 2) == [0, 1]
    assert best([2.0, 1.0], 5, 1.0) == [0]
