"""attention_mass against softmax weights written out in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops import _native
from tokops.attention import paged_decode_scores
from tokops.kvcache import attention_mass

INF = float("inf")
NAN = float("nan")


def mass_by_hand(scores, lse, heads, softcap=None, q_lens=None):
    """One exponential after the other, float64."""
    s, z = scores.double().numpy(), lse.double().numpy()
    b, t, hq, length = s.shape
    out = np.zeros((b, heads, length))
    for i, j, h in np.ndindex(b, t, hq):
        if (q_lens is not None and j >= q_lens[i]) or z[i, j, h] == -np.inf:
            continue
        x = s[i, j, h]
        bent = softcap * np.tanh(x / softcap) if softcap else x
        out[i, h // (hq // heads)] += np.where(x > -np.inf, np.exp(bent - z[i, j, h]), 0)
    return torch.from_numpy(out)


def random_scores(b, t, hq, length):
    scores = torch.randn(b, t, hq, length) * 5
    scores[torch.rand(scores.shape) < 0.2] = -INF
    return scores


def lse_of(scores, softcap=None):
    bent = (
        scores
        if softcap is None
        else torch.where(scores.isneginf(), scores, softcap * (scores / softcap).tanh())
    )
    return bent.logsumexp(-1)


def check(scores, lse, heads, device, **extra):
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
    got = attention_mass(scores.to(device), lse.to(device), heads, **moved)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double().cpu(), mass_by_hand(scores, lse, heads, **extra), rtol=1e-5, atol=1e-7
    )
    return got.cpu()


@pytest.mark.parametrize("softcap", [None, 3.0, 50.0])
@pytest.mark.parametrize("length", [1, 7, 8, 16, 17, 1023, 1024, 1025, 2100])
@pytest.mark.parametrize(("hq", "heads"), [(1, 1), (6, 2), (5, 5), (9, 1)])
def test_mass(device, hq, heads, length, softcap):
    scores = random_scores(2, 3, hq, length)
    check(scores, lse_of(scores, softcap), heads, device, softcap=softcap)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_all_mass_is_rows_times_group(device, softcap):
    scores = random_scores(2, 4, 6, 700)
    got = attention_mass(scores.to(device), lse_of(scores, softcap).to(device), 2, softcap=softcap)
    torch.testing.assert_close(
        got.double().cpu().sum(-1), torch.full((2, 2), 12.0).double(), rtol=1e-5, atol=0
    )


def test_rows_beyond_q_lens_are_not_there(device):
    scores = random_scores(4, 5, 4, 33)
    lse = lse_of(scores)
    lens = torch.tensor([0, 1, 4, 5], dtype=torch.int32)
    gone = torch.arange(5)[None] >= lens[:, None]
    scores[gone], lse[gone] = NAN, 3.0  # what is there does not matter
    got = check(scores, lse, 2, device, q_lens=lens)
    assert (got[0] == 0).all()


def test_rows_that_see_nothing_count_nothing(device):
    scores = random_scores(1, 3, 2, 40)
    scores[0, 1] = -INF
    lse = lse_of(scores)
    assert (lse[0, 1] == -INF).all()
    got = check(scores, lse, 1, device)
    torch.testing.assert_close(got.sum(), torch.tensor(4.0))
    scores[0, 0, 0] = 2.0  # a row declared empty, whatever its scores
    lse[0, 0, 0] = -INF
    check(scores, lse, 1, device)


def test_nan_counts_nothing_and_differences_saturate(device):
    scores = torch.tensor([NAN, 1.0, INF, -INF, 200.0, 88.5]).view(1, 1, 1, 6)
    zero = torch.zeros(1, 1, 1)
    got = attention_mass(scores.to(device), zero.to(device), 1).cpu()[0, 0].double()
    top = np.exp(88.0)
    want = torch.tensor([0.0, np.e, top, 0.0, top, top], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    bent = attention_mass(scores.to(device), zero.to(device), 1, softcap=2.0).cpu()[0, 0]
    torch.testing.assert_close(bent[2:], torch.tensor([np.exp(2.0), 0.0, np.exp(2.0), np.exp(2.0)]).float())
    assert (attention_mass(scores.to(device), (zero + NAN).to(device), 1) == 0).all()
    assert (attention_mass(scores.to(device), (zero + INF).to(device), 1) == 0).all()


def test_strided_and_empty(device):
    base = random_scores(3, 9, 5, 8).to(device)
    for view in (base.permute(0, 3, 2, 1), base[:, 1:7:2], base[..., ::2], base[:, :, :4]):
        lse = lse_of(view)
        spread = torch.stack([lse, lse], -1)[..., 0]
        got = attention_mass(view, spread, 1)
        torch.testing.assert_close(got, attention_mass(view.contiguous(), lse, 1), rtol=0, atol=0)
    for shape in ((0, 1, 4, 9), (1, 1, 4, 0)):
        empty = torch.zeros(shape, device=device)
        assert attention_mass(empty, empty.sum(-1), 2).shape == (shape[0], 2, shape[3])
    none = attention_mass(torch.zeros(2, 0, 4, 9, device=device), torch.zeros(2, 0, 4, device=device), 2)
    assert none.shape == (2, 2, 9)
    assert (none == 0).all()


def test_of_paged_scores(device):
    """Scores and lse as a decode over pages returns them."""
    q = torch.randn(2, 3, 4, 64, device=device)
    kv = torch.randn(2, 2, 2, 8, 64, device=device)
    table = torch.tensor([[0], [1]], dtype=torch.int32, device=device)
    lens = torch.tensor([8, 6], dtype=torch.int32, device=device)
    _, lse, scores = paged_decode_scores(q, kv[0], kv[1], table, lens, reduce="none")
    got = attention_mass(scores, lse, 2).cpu()
    torch.testing.assert_close(got.sum(-1), torch.full((2, 2), 6.0), rtol=1e-5, atol=0)
    assert (got[1, :, 6:] == 0).all()


@pytest.mark.skipif("cpu" not in _native.loaded, reason="the references are loaded instead of kernels")
def test_threads_change_nothing():
    scores = random_scores(2, 4, 6, 5000)
    lse = lse_of(scores)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attention_mass(scores, lse, 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 80), split=st.integers(0, 4))
def test_rows_add_up(seed, length, split):
    """The mass of all rows is the mass of the first plus the mass of the rest."""
    gen = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, 4, 4, length, generator=gen) * 3
    lse = scores.logsumexp(-1)
    parts = [attention_mass(scores[:, r], lse[:, r], 2) for r in (slice(0, split), slice(split, 4))]
    torch.testing.assert_close(sum(parts), attention_mass(scores, lse, 2), rtol=1e-5, atol=1e-7)


S, Z = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("args", "extra", "message"),
    [
        ((S[0], Z, 2), {}, "scores must have 4 dimensions, got 3"),
        ((S.half(), Z, 2), {}, "scores must be float32, got float16"),
        ((S, Z[0], 2), {}, "lse must have 3 dimensions, got 2"),
        ((S, Z.double(), 2), {}, "lse must be float32, got float64"),
        ((S, Z[:, :2], 2), {}, r"lse must be \[B, T, Hq\] = \[2, 3, 4\], got \[2, 2, 4\]"),
        ((S, Z, 3), {}, "scores have 4 heads, not a multiple of heads 3"),
        ((S, Z, 0), {}, "not a multiple of heads 0"),
        ((S, Z, 2), {"softcap": 0.0}, "softcap must be > 0 in float32, got 0"),
        ((S, Z, 2), {"q_lens": torch.ones(2)}, "q_lens must be int32, got float32"),
        ((S, Z, 2), {"q_lens": torch.ones(3, dtype=torch.int32)}, r"q_lens must be \[B\] = \[2\], got \[3\]"),
        ((S, Z, 2), {"q_lens": torch.tensor([0, 4]).int()}, r"q_lens must be 0..3, got \[0, 4\]"),
        ((S, Z, 2), {"q_lens": torch.tensor([-1, 3]).int()}, r"q_lens must be 0..3, got \[-1, 3\]"),
    ],
)
def test_bad_arguments(args, extra, message):
    with pytest.raises(RuntimeError, match="attention_mass: .*" + message):
        attention_mass(*args, **extra)
