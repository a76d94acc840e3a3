"""Which tokens MiniCache keeps apart, against the rule written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops.kvcache.minicache import minicache_retain, minicache_threshold

NAN = float("nan")


def row(*values):
    return torch.tensor(values).view(1, 1, -1)


def kept(mask):
    """Indices of the only row."""
    return mask[0, 0].nonzero().flatten().tolist()


def by_hand(d, gamma, mode, sinks, start, cap, page):
    """One head: a list of distances to the set of kept indices."""
    t = len(d)
    real = range(start, t)
    first = set(real[:sinks])
    by_distance = sorted(real, key=lambda i: (i not in first, -d[i], i))
    if mode == "topk":
        chosen = set(by_distance[: max(math.ceil(gamma * len(real)), len(first))])
    else:
        values = [d[i] for i in real]
        chosen = {i for i in real if gamma == 1 or d[i] > max(values) - gamma * (max(values) - min(values))}
    if cap is not None:
        within = set()
        for begin in range(0, t, page or t):
            own = [i for i in range(begin, min(t, begin + (page or t))) if i in chosen - first]
            within |= set(sorted(own, key=lambda i: (-d[i], i))[: math.floor(cap * (page or t))])
        chosen = within
    return chosen | first


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    t=st.integers(1, 40),
    gamma=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
    mode=st.sampled_from(["range", "topk"]),
    sinks=st.integers(0, 5),
    starts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    cap=st.sampled_from([None, 0.0, 0.2, 0.5, 1.0]),
    page=st.sampled_from([None, 1, 8]),
)
def test_rules(seed, t, gamma, mode, sinks, starts, cap, page):
    gen = torch.Generator().manual_seed(seed)
    # Few distinct values, sums of powers of two: ties are many, and both sides compute exactly.
    d = torch.randint(0, 9, (2, 3, t), generator=gen) / 8
    begin = [min(s, t - 1) for s in starts]
    got = minicache_retain(
        d, gamma, mode=mode, sinks=sinks, starts=torch.tensor(begin, dtype=torch.int32), cap=cap, page=page
    )
    assert got.dtype == torch.bool
    for b in range(2):
        for h in range(3):
            want = by_hand(d[b, h].tolist(), gamma, mode, sinks, begin[b], cap, page)
            assert set(got[b, h].nonzero().flatten().tolist()) == want


def test_the_most_different_tokens_are_kept():
    d = row(0.1, 0.9, 0.2, 0.88, 0.3)
    assert kept(minicache_retain(d, 0.05, sinks=0)) == [1, 3]
    assert kept(minicache_retain(d, 0.4, mode="topk", sinks=0)) == [1, 3]
    assert kept(minicache_retain(d, 0.05, sinks=1)) == [0, 1, 3]


def test_topk_keeps_exactly_its_share_with_ties_to_the_lowest_index():
    d = torch.full((2, 3, 100), 0.5)
    got = minicache_retain(d, mode="topk")
    assert (got.sum(-1) == 5).all()
    assert got[..., :5].all()
    got = minicache_retain(torch.rand(2, 3, 101), mode="topk")
    assert (got.sum(-1) == 6).all()
    assert got[..., :4].all()
    assert (minicache_retain(torch.rand(1, 2, 10), mode="topk").sum(-1) == 4).all()  # the sinks alone


def test_everything_and_nothing():
    d = torch.rand(2, 2, 30)
    for mode in ("range", "topk"):
        assert minicache_retain(d, 1.0, mode=mode).all()
        assert not minicache_retain(d, 0.0, mode=mode, sinks=0).any()
    assert minicache_retain(d, threshold=-math.inf).all()
    assert kept(minicache_retain(row(0.3, 0.3, 0.3), 0.9, sinks=0)) == []  # no range, nobody is different
    assert minicache_retain(torch.rand(2, 2, 0)).shape == (2, 2, 0)
    assert minicache_retain(torch.rand(2, 2, 0), mode="topk", cap=0.5).shape == (2, 2, 0)
    assert minicache_threshold(torch.rand(2, 2, 0)).tolist() == [[math.inf] * 2] * 2
    assert kept(minicache_retain(row(0.7))) == [0]


def test_retained_share_grows_with_gamma():
    d = torch.rand(1, 4, 500)
    counts = [minicache_retain(d, g).sum().item() for g in (0.0, 0.05, 0.1, 0.3, 0.7, 1.0)]
    assert counts == sorted(set(counts))


def test_padding_counts_in_no_range():
    d = row(5.0, -5.0, 0.2, 0.4, 0.39)
    begin = torch.tensor([2])
    assert minicache_threshold(d, 0.5, starts=begin).item() == pytest.approx(0.3)
    assert kept(minicache_retain(d, 0.1, sinks=0, starts=begin)) == [3, 4]
    assert kept(minicache_retain(d, 0.1, sinks=1, starts=begin)) == [2, 3, 4]
    assert kept(minicache_retain(d, 0.3, mode="topk", sinks=0, starts=begin)) == [3]
    none = torch.tensor([5])
    for mode in ("range", "topk"):
        assert kept(minicache_retain(d, 1.0, mode=mode, starts=none)) == []


def test_a_frozen_threshold_is_of_the_prompt_not_of_the_page():
    prompt, page = row(0.1, 0.5, 0.2), row(0.45, 0.44, 0.3)
    frozen = minicache_threshold(prompt, 0.1)
    assert frozen.item() == pytest.approx(0.46)
    assert kept(minicache_retain(page, 0.1, sinks=0)) == [0, 1]
    assert kept(minicache_retain(page, sinks=0, threshold=frozen)) == []
    assert kept(minicache_retain(page, sinks=0, threshold=0.44)) == [0]
    both = torch.cat([page, page], 1)
    got = minicache_retain(both, sinks=0, threshold=torch.tensor([[0.0, 0.44]]))
    assert got.sum(-1).tolist() == [[3, 1]]


def test_the_cap_keeps_the_most_different_of_each_page():
    d = row(0.9, 0.8, 0.9, 0.7, 0.6, 0.5, 0.9, 0.4)
    all_above = {"threshold": 0.0, "sinks": 0}
    assert kept(minicache_retain(d, cap=0.5, page=4, **all_above)) == [0, 2, 4, 6]
    assert kept(minicache_retain(d, cap=0.25, **all_above)) == [0, 2]
    assert kept(minicache_retain(d, cap=0.24, page=4, **all_above)) == []
    assert kept(minicache_retain(d, cap=0.25, page=4, threshold=0.0, sinks=2)) == [0, 1, 2, 6]


def test_heads_may_share():
    d = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    got = minicache_retain(d, sinks=0, share_heads=True)
    assert got.tolist() == [[[True, True, False]] * 2, [[False, False, True]] * 2]


def test_nan_is_kept_first():
    d = row(0.1, NAN, 0.9, 0.2, 0.3)
    assert kept(minicache_retain(d, 0.05, sinks=0)) == [1, 2]
    assert kept(minicache_retain(d, 0.2, mode="topk", sinks=0)) == [1]
    assert kept(minicache_retain(d, 0.4, mode="topk", sinks=1)) == [0, 1]
    assert minicache_threshold(d, 0.5).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("distance", "extra", "message"),
    [
        (torch.zeros(2, 3), {}, r"distance must be \[B, H, T\], got \[2, 3\]"),
        (row(1.0), {"gamma": 1.1}, "gamma must be 0..1, got 1.1"),
        (row(1.0), {"gamma": NAN}, "gamma must be 0..1, got nan"),
        (row(1.0), {"mode": "best"}, "mode must be range or topk, got best"),
        (row(1.0), {"mode": "topk", "threshold": 0.1}, "threshold is for mode range, got topk"),
        (row(1.0), {"sinks": -1}, "sinks must be >= 0, got -1"),
        (row(1.0), {"cap": 2.0}, "cap must be 0..1, got 2.0"),
        (row(1.0), {"page": 0}, "page must be >= 1, got 0"),
        (row(1.0), {"starts": torch.zeros(2)}, r"starts must be \[B\] = \[1\], got \[2\]"),
    ],
)
def test_bad_arguments(distance, extra, message):
    with pytest.raises(ValueError, match=message):
        minicache_retain(distance, **extra)
