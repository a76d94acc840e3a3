"""vote_scores against a float64 softmax written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops import _native
from tokops.attention import vote_scores

INF = float("inf")


def votes_of(scores, kv_heads, kind):
    """Each head's softmax over what it sees, summed over heads or the largest of each group; float64."""
    x = scores.double().cpu().numpy()
    x = np.where(np.isnan(x), -np.inf, np.minimum(x, np.finfo(np.float32).max))
    b, t, hq, length = x.shape
    share = np.zeros_like(x)
    for at in np.ndindex(b, t, hq):
        seen = x[at] > -np.inf
        if seen.any():
            weight = np.exp(x[at][seen] - x[at][seen].max())
            share[at][seen] = weight / weight.sum()
    groups = 1 if kind == "soft_vote" else kv_heads
    grouped, seen = (y.reshape(b, t, groups, hq // groups, length) for y in (share, x > -np.inf))
    votes = grouped.sum(3) if kind == "soft_vote" else grouped.max(3, initial=0.0)
    return torch.from_numpy(np.where(seen.any(3), votes, -np.inf))


def check(scores, kv_heads, kind, device):
    got = vote_scores(scores.to(device), kv_heads, kind)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double().cpu(), votes_of(scores, kv_heads, kind), rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["soft_vote", "soft_max"])
@pytest.mark.parametrize("length", [1, 7, 16, 17, 300, 2047, 2048, 2049, 5001])
@pytest.mark.parametrize(("hq", "hkv"), [(1, 1), (6, 2), (5, 5)])
def test_votes(device, kind, length, hq, hkv):
    scores = torch.randn(2, 2, hq, length) * 5
    scores[torch.rand(scores.shape) < 0.3] = -INF
    scores[0, 0, :, length // 3 :: 4] = -INF
    check(scores, hkv, kind, device)


@pytest.mark.parametrize("kind", ["soft_vote", "soft_max"])
def test_maxima_that_move_between_blocks(device, kind):
    """The running maximum must carry what was summed before it moved, up or down."""
    scores = torch.randn(1, 1, 4, 9000)
    scores[0, 0, 0] += torch.arange(9000) / 300
    scores[0, 0, 1] -= torch.arange(9000) / 300
    scores[0, 0, 2, :4096] = -INF
    scores[0, 0, 3, 8999] = 80.0
    check(scores, 2, kind, device)


@pytest.mark.parametrize("kind", ["soft_vote", "soft_max"])
def test_nan_counts_as_unseen_and_infinity_as_the_largest(device, kind):
    scores = torch.tensor([[[[float("nan"), 1.0, 2.0, -INF], [INF, 0.0, -3.0, float("nan")]]]])
    check(scores, 2, kind, device)
    got = vote_scores(scores.to(device), 1, "soft_vote").cpu()
    assert got[0, 0, 0, 0] == 1.0
    assert got[0, 0, 0, 3] == -INF


def test_each_head_that_sees_anything_votes_mass_one(device):
    scores = torch.randn(3, 2, 8, 700) * 20
    scores[1, 0, :5] = -INF
    votes = vote_scores(scores.to(device), 4, "soft_vote").cpu().double().clamp_min(0)
    want = torch.full((3, 2), 8.0).double()
    want[1, 0] = 3.0
    torch.testing.assert_close(votes.sum(-1)[:, :, 0], want, rtol=1e-5, atol=0)


def test_a_head_that_sees_nothing(device):
    for kind, heads in (("soft_vote", 1), ("soft_max", 2)):
        got = vote_scores(torch.full((1, 2, 4, 33), -INF, device=device), 2, kind)
        assert got.shape == (1, 2, heads, 33)
        assert (got == -INF).all()


def test_huge_scores(device):
    scores = torch.tensor([[[[3e38, -3e38, 3e38], [-1e30, -1e30, -3.4e38]]]])
    check(scores, 1, "soft_vote", device)


def test_strided_and_empty(device):
    base = torch.randn(2, 6, 50, 3)
    check(base.permute(0, 3, 1, 2), 2, "soft_max", device)
    check(base.permute(0, 3, 1, 2)[..., ::2], 3, "soft_vote", device)
    for shape in ((0, 1, 4, 9), (1, 0, 4, 9), (2, 1, 4, 0)):
        assert vote_scores(torch.zeros(shape, device=device), 2, "soft_max").shape == (
            *shape[:2],
            2,
            shape[3],
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 200), scale=st.sampled_from([0.0, 1.0, 50.0]))
def test_a_shift_of_a_head_changes_nothing(seed, length, scale):
    gen = torch.Generator().manual_seed(seed)
    scores = (torch.randn(1, 1, 4, length, generator=gen) * scale).round(decimals=2)
    shifted = scores + torch.tensor([0.0, 4.0, -16.0, 64.0])[:, None]
    for kind in ("soft_vote", "soft_max"):
        torch.testing.assert_close(
            vote_scores(shifted, 2, kind), vote_scores(scores, 2, kind), rtol=2e-4, atol=1e-9
        )


def test_kernel_and_reference_agree(device):
    scores = torch.randn(2, 3, 8, 777, device=device) * 3
    scores[..., ::3] = -INF
    for kind in ("soft_vote", "soft_max"):
        got = torch.ops.tokops.vote_scores.default(scores, 4, kind)
        torch.testing.assert_close(
            got, _native.declared["vote_scores"](scores, 4, kind), rtol=5e-6, atol=1e-9
        )


@pytest.mark.parametrize(
    ("scores", "heads", "kind", "message"),
    [
        (torch.zeros(2, 4, 8), 2, "soft_vote", "scores must have 4 dimensions, got 3"),
        (torch.zeros(1, 2, 4, 8).half(), 2, "soft_vote", "scores must be float32, got float16"),
        (torch.zeros(1, 2, 4, 8), 2, "mean", "kind must be soft_vote or soft_max, got mean"),
        (torch.zeros(1, 2, 4, 8), 3, "soft_max", "scores have 4 heads, not a multiple of kv_heads 3"),
        (torch.zeros(1, 2, 4, 8), 0, "soft_max", "not a multiple of kv_heads 0"),
    ],
)
def test_bad_arguments(scores, heads, kind, message):
    with pytest.raises(RuntimeError, match="vote_scores: .*" + message):
        vote_scores(scores, heads, kind)
