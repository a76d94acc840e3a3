"""attention_colsum against the whole T x L matrix, one row at a time in float64."""

import numpy as np
import pytest
import torch
from compare import assert_within_dtype_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tokops import _native
from tokops.kvcache import attention_colsum, attention_mass

INF = float("inf")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def by_hand(q, k, lse=None, starts=None, scale=None, softcap=None, first_row=0):
    """Column sums and normalisers, float64: row i at position L - T + i sees start..itself."""
    q, k = q.double().cpu().numpy(), k.double().cpu().numpy()
    (b, t, hq, d), (length, heads) = q.shape, k.shape[1:3]
    scale = 1 / np.sqrt(d) if scale is None else scale
    acc, found = np.zeros((b, heads, length)), np.full((b, t, hq), -np.inf)
    for i, row, h in np.ndindex(b, t, hq):
        kv, lo, hi = h // (hq // heads), 0 if starts is None else int(starts[i]), length - t + row + 1
        if row < first_row or lo >= hi:
            continue
        s = scale * (k[i, lo:hi, kv] @ q[i, row, h])
        s = softcap * np.tanh(s / softcap) if softcap else s
        found[i, row, h] = s.max() + np.log(np.exp(s - s.max()).sum())
        norm = found[i, row, h] if lse is None else float(lse[i, row, h])
        if norm > -np.inf:
            acc[i, kv, lo:hi] += np.exp(s - norm)
    return torch.from_numpy(acc), torch.from_numpy(found)


def inputs(b, t, length, hq, hkv, d, dtype, device="cpu"):
    return torch.randn(b, t, hq, d).to(dtype).to(device), torch.randn(b, length, hkv, d).to(dtype).to(device)


def check(q, k, **extra):
    """Both with normalisers found and with them given."""
    want, want_lse = by_hand(q, k, **extra)
    acc, lse = attention_colsum(q, k, None, **extra)
    assert acc.dtype == lse.dtype == torch.float32
    assert_within_dtype_error(acc, want, torch.float32)
    assert_within_dtype_error(lse, want_lse, torch.float32)
    assert_within_dtype_error(attention_colsum(q, k, lse, **extra), want, torch.float32)
    return acc.cpu(), lse.cpu()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("t", "length"), [(1, 1), (5, 5), (1, 47), (48, 49), (97, 130), (129, 257), (3, 300)]
)
@pytest.mark.parametrize(("hq", "hkv"), [(2, 2), (6, 2)])
def test_lengths(device, t, length, hq, hkv, dtype):
    check(*inputs(2, t, length, hq, hkv, 32, dtype, device))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [1, 3, 64, 80, 96, 128, 192, 256])
def test_head_dims(device, d, dtype):
    check(*inputs(1, 33, 70, 3, 1, d, dtype, device))


@pytest.mark.parametrize("group", [1, 5, 7, 32])
def test_groups(device, group):
    check(*inputs(1, 9, 40, group * 2, 2, 16, torch.float32, device))


@pytest.mark.parametrize("filler", [float("nan"), 2.0])
@pytest.mark.parametrize("starts", [[0, 0], [1, 70], [63, 64], [99, 100], [127, 128], [129, 130]])
def test_padding_counts_nothing(device, starts, filler):
    q, k = inputs(2, 100, 130, 4, 2, 16, torch.float32, device)
    begin = torch.tensor(starts, dtype=torch.int32, device=device)
    for b, n in enumerate(starts):  # what stands in the padding does not matter
        k[b, :n] = filler
        q[b, : max(0, n - 30)] = filler
    want = by_hand(q.nan_to_num(), k.nan_to_num(), starts=starts)
    acc, lse = attention_colsum(q, k, None, starts=begin)
    assert_within_dtype_error(acc, want[0])
    assert_within_dtype_error(lse, want[1])
    for b, n in enumerate(starts):
        rows = min(100, 130 - n)
        assert (acc[b, :, :n] == 0).all()
        assert (lse[b, : 100 - rows] == -INF).all()
        torch.testing.assert_close(acc[b].sum(-1).cpu(), torch.full((2,), 2.0 * rows), rtol=1e-5, atol=0)


@pytest.mark.parametrize("first_row", [0, 1, 50, 99, 100])
def test_an_observation_window(device, first_row):
    q, k = inputs(2, 100, 140, 6, 3, 24, torch.float32, device)
    q[:, :first_row] = float("nan")  # rows that do not count
    acc, lse = attention_colsum(q, k, None, first_row=first_row)
    want = by_hand(q.nan_to_num(), k, first_row=first_row)
    assert_within_dtype_error(acc, want[0])
    assert_within_dtype_error(lse, want[1])
    assert (lse[:, :first_row] == -INF).all()
    given_lse = attention_colsum(q, k, lse.nan_to_num(neginf=0.0), first_row=first_row)
    assert_within_dtype_error(given_lse, want[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("softcap", [1.0, 30.0])
def test_softcap_and_scale(device, softcap, dtype):
    check(*inputs(1, 60, 90, 4, 2, 32, dtype, device), softcap=softcap, scale=0.7)


def test_large_scores_and_a_far_maximum(device):
    """The running maximum moves up late, early and never; weights below the smallest float vanish."""
    q, k = inputs(1, 200, 200, 2, 1, 8, torch.float32, device)
    k *= torch.linspace(0, 9, 200, device=device)[:, None, None]
    q *= 4
    check(q, k)
    check(q, k.flip(1))
    check(q, torch.ones_like(k) * 20)


def test_sums_of_all_columns_and_of_attention(device):
    """Every row gives mass 1 per head; sums equal those of torch's attention over one-hot values."""
    q, k = inputs(2, 150, 150, 4, 2, 32, torch.float32, device)
    acc, _ = attention_colsum(q, k, None)
    torch.testing.assert_close(acc.sum(-1).cpu(), torch.full((2, 2), 300.0), rtol=1e-5, atol=0)
    eye = torch.eye(150, device=device).expand(2, 4, -1, -1)
    keys = k.transpose(1, 2).repeat_interleave(2, 1)
    weights = scaled_dot_product_attention(q.transpose(1, 2), keys, eye, is_causal=True)
    torch.testing.assert_close(acc, weights.view(2, 2, 2, 150, 150).sum((2, 3)), rtol=1e-4, atol=1e-5)


def test_lse_that_is_not_the_normaliser(device):
    """Of a larger set of keys, say; -inf and NaN count nothing, and nothing overflows."""
    q, k = inputs(1, 20, 30, 4, 2, 16, torch.float32, device)
    lse = torch.randn(1, 20, 4, device=device) + 3
    lse[0, 3], lse[0, 4] = -INF, INF
    assert_within_dtype_error(attention_colsum(q, k, lse), by_hand(q, k, lse)[0])
    gone = lse.clone()
    gone[0, 3] = float("nan")
    assert torch.equal(attention_colsum(q, k, gone), attention_colsum(q, k, lse))
    assert not attention_colsum(q, k, lse - 500).isnan().any()


def test_nan_counts_nothing(device):
    q, k = inputs(1, 10, 10, 2, 2, 8, torch.float32, device)
    k[0, 4, 0], q[0, 7, 1] = float("nan"), float("nan")
    acc, lse = attention_colsum(q, k, None)
    assert acc.isfinite().all()
    assert acc[0, 0, 4] == 0
    assert lse[0, 7, 1] == -INF
    torch.testing.assert_close(acc.sum(-1).cpu(), torch.tensor([[10.0, 9.0]]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_views(device, dtype):
    q, k = inputs(2, 40, 70, 6, 2, 32, dtype, device)
    wide = torch.randn(2, 2, 2, 75, 41).to(dtype).to(device)
    wide[:, 1, :, 3:73, 5:37] = k.transpose(1, 2)
    odd = wide[:, 1, :, 3:73, 5:37].transpose(1, 2)
    across = q.transpose(1, 2).contiguous().transpose(1, 2)
    want = attention_colsum(q, k, None)
    for got, w in zip(attention_colsum(across, odd, None), want, strict=True):
        assert torch.equal(got, w)
    lse = torch.stack([want[1], want[1]], -1)[..., 0]
    assert torch.equal(attention_colsum(across, odd, lse), attention_colsum(q, k, want[1]))
    one = k[:, :, :1].expand(-1, -1, 3, -1)  # heads of stride 0
    assert_within_dtype_error(attention_colsum(q, one, None)[0], by_hand(q, one)[0], torch.float32)


def test_empty(device):
    q, k = inputs(2, 0, 5, 2, 1, 8, torch.float32, device)
    acc, lse = attention_colsum(q, k, None)
    assert acc.shape == (2, 1, 5)
    assert (acc == 0).all()
    assert lse.shape == (2, 0, 2)
    q, k = inputs(0, 3, 5, 2, 1, 8, torch.float32, device)
    assert attention_colsum(q, k, None)[1].shape == (0, 3, 2)
    q, k = inputs(2, 0, 0, 2, 1, 8, torch.float32, device)
    assert attention_colsum(q, k, None)[0].shape == (2, 1, 0)


def test_agrees_with_attention_mass(device):
    q, k = inputs(1, 6, 50, 4, 2, 16, torch.float32, device)
    acc, lse = attention_colsum(q, k, None)
    scores = torch.einsum("bthd,blhd->bthl", q, k.repeat_interleave(2, 2)) / 4
    see = torch.arange(50, device=device) <= torch.arange(44, 50, device=device)[:, None]
    scores = scores.masked_fill(~see[None, :, None], -INF)
    torch.testing.assert_close(acc, attention_mass(scores, lse, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif("cpu" not in _native.loaded, reason="the references are loaded instead of kernels")
def test_threads_change_nothing():
    q, k = inputs(1, 300, 500, 3, 1, 32, torch.bfloat16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attention_colsum(q, k, None))
    finally:
        torch.set_num_threads(before)
    for acc, lse in results[1:]:
        assert torch.equal(acc, results[0][0])
        assert torch.equal(lse, results[0][1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), t=st.integers(1, 60), past=st.integers(0, 150), cut=st.integers(0, 60))
def test_rows_add_up(seed, t, past, cut):
    """The rows before a cut, which see fewer keys, and those from it on."""
    torch.manual_seed(seed)
    cut = min(cut, t)
    q, k = inputs(1, t, past + t, 4, 2, 8, torch.float32)
    acc, lse = attention_colsum(q, k, None)
    before = torch.zeros_like(acc)
    before[..., : past + cut] = attention_colsum(q[:, :cut], k[:, : past + cut], lse[:, :cut])
    torch.testing.assert_close(before + attention_colsum(q, k, lse, first_row=cut), acc, rtol=1e-5, atol=1e-6)


Q, K, Z = torch.zeros(2, 3, 4, 8), torch.zeros(2, 5, 2, 8), torch.zeros(2, 3, 4)
I = torch.int32


@pytest.mark.parametrize(
    ("args", "extra", "message"),
    [
        ((Q[0], K, None), {}, "q must have 4 dimensions, got 3"),
        ((Q.double(), K, None), {}, "q must be float32 or bfloat16 or float16, got float64"),
        ((Q, K[0], None), {}, "k must have 4 dimensions, got 3"),
        ((Q, K.half(), None), {}, "k must be float32, got float16"),
        ((Q, K[:1], None), {}, r"k must be \[B, L, Hkv, D\] with B 2 and D 8, got \[1, 5, 2, 8\]"),
        ((Q, K[..., :7], None), {}, r"k must be \[B, L, Hkv, D\] with B 2 and D 8"),
        ((torch.zeros(1, 1, 1, 257),) * 2 + (None,), {}, "head dimension must be 1..256, got 257"),
        ((Q[..., :0], K[..., :0], None), {}, "head dimension must be 1..256, got 0"),
        ((Q[:, :, :3], K, None), {}, "query heads must be 1..32 times the KV heads, got 3 and 2"),
        ((Q, K[:, :, :0], None), {}, "query heads must be 1..32 times the KV heads, got 4 and 0"),
        ((Q, K[:, :2], None), {}, "k must hold at least the 3 rows of q, got 2"),
        ((torch.zeros(2, 3, 8, 4).mT, K, None), {}, "q must have a contiguous last dimension"),
        ((Q, torch.zeros(2, 5, 8, 2).mT, None), {}, "k must have a contiguous last dimension"),
        ((Q, K, Z[0]), {}, "lse must have 3 dimensions, got 2"),
        ((Q, K, Z.half()), {}, "lse must be float32, got float16"),
        ((Q, K, Z[:, :2]), {}, r"lse must be \[B, T, Hq\] = \[2, 3, 4\], got \[2, 2, 4\]"),
        ((Q, K, None), {"starts": torch.zeros(2)}, "starts must be int32, got float32"),
        ((Q, K, None), {"starts": torch.zeros(3, dtype=I)}, r"starts must be \[B\] = \[2\], got \[3\]"),
        ((Q, K, None), {"starts": torch.tensor([0, 6], dtype=I)}, r"starts must be 0..5, got \[0, 6\]"),
        ((Q, K, None), {"starts": torch.tensor([-1, 0], dtype=I)}, r"starts must be 0..5, got \[-1, 0\]"),
        ((Q, K, None), {"softcap": -1.0}, "softcap must be > 0 in float32, got -1"),
        ((Q, K, None), {"first_row": 4}, "first_row must be 0..3, got 4"),
        ((Q, K, None), {"first_row": -1}, "first_row must be 0..3, got -1"),
    ],
)
def test_bad_arguments(args, extra, message):
    with pytest.raises(RuntimeError, match="attention_colsum: .*" + message):
        attention_colsum(*args, **extra)
