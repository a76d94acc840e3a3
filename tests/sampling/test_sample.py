"""Plain sampling: its law, what settings keep, and that nothing but seed, stream and position matters."""

import pytest
import torch

import tokops
from tokops.sampling import Sampling, draw, law, sample

ROWS, VOCABULARY = 6, 300


@pytest.fixture
def logits(device):
    gen = torch.Generator().manual_seed(1)
    return (torch.randn(ROWS, VOCABULARY, generator=gen) * 3).to(device)


def exact_law(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """By sorting, in float64."""
    p = torch.softmax(row.double() / temperature, -1)
    order = torch.sort(p, descending=True, stable=True).indices
    keep = torch.zeros_like(p, dtype=torch.bool)
    keep[order[: top_k or len(p)]] = True
    p = torch.where(keep, p, 0.0) / p[keep].sum()
    if top_p < 1:
        p[order[int((p[order].cumsum(0) < top_p).sum()) + 1 :]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


SETTINGS = (
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_law_is_that_of_a_sort_in_float64(logits, settings):
    got = law(logits, **settings)
    for row, p in zip(logits, got, strict=True):
        want = exact_law(row, **settings)
        assert (p[want == 0] == 0).all()
        assert (p[want > 2.0**-39] > 0).all()  # what weighs less than 2^-40 of the likeliest is never drawn
        torch.testing.assert_close(p.double(), want, atol=3e-7, rtol=3e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_follow_the_law(device, logits, settings):
    count = 40000
    rows = logits[:1, :8].expand(count, -1)
    tokens = sample(rows, seed=3, stream=torch.arange(count, device=device), position=5, **settings)
    p = exact_law(logits[0, :8], **settings).cpu()
    seen = torch.bincount(tokens.long().cpu(), minlength=8).double()
    assert seen[p == 0].sum() == 0
    live = p > 0
    chi = ((seen - count * p)[live] ** 2 / (count * p[live])).sum()
    assert chi < 24.32  # the 0.999 quantile of 7 degrees of freedom


def test_ties_at_a_cut_keep_the_first(device):
    row = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], device=device)
    assert law(row, top_k=2)[0].tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]
    assert law(row, temperature=0.0)[0].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_neither_batch_nor_neighbours_matter(device, logits):
    numbers = {"stream": torch.arange(ROWS, device=device), "position": torch.arange(ROWS, device=device) * 9}
    together = sample(logits, seed=8, top_p=0.95, **numbers)
    alone = [sample(logits[i], seed=8, stream=i, position=9 * i, top_p=0.95) for i in range(ROWS)]
    assert together.tolist() == [int(x) for x in alone]
    back = {name: x.flip(0) for name, x in numbers.items()}
    assert sample(logits.flip(0), seed=8, top_p=0.95, **back).flip(0).tolist() == together.tolist()


def test_settings_per_row_are_those_settings(device, logits):
    settings = [SETTINGS[i % len(SETTINGS)] for i in range(ROWS)]
    columns = {
        name: torch.tensor([s.get(name, getattr(Sampling(), name)) for s in settings], device=device)
        for name in ("temperature", "top_k", "top_p", "min_p")
    }
    got = sample(logits, seed=4, stream=torch.arange(ROWS, device=device), **columns)
    want = [int(sample(logits[i], seed=4, stream=i, **s)) for i, s in enumerate(settings)]
    assert got.tolist() == want


def test_rows_without_a_finite_logit(device):
    rows = torch.tensor(
        [[float("-inf")] * 3, [float("nan")] * 3, [float("nan"), 0.0, float("-inf")]], device=device
    )
    assert sample(rows, seed=0).tolist() == [-1, -1, 1]
    assert law(rows)[:2].eq(0).all()


def test_drawing_without_replacement_takes_every_token_once(device):
    p = torch.full((4, 9), 1 / 9, device=device)
    drawn = draw(p, 12, seed=2, stream=torch.arange(4, device=device))
    assert (drawn[:, :9].sort().values == torch.arange(9, device=device)).all()
    assert drawn[:, 9:].eq(-1).all()
    assert draw(p, 12, seed=2, replace=True).ge(0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or 1e-5..1e5, got -1.0"),
        ({"top_k": -1}, "top_k must be 0..2"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"min_p": 1.5}, "min_p must be 0..1, got 1.5"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 3), seed=0, **changes)
    with pytest.raises(ValueError, match=message):
        Sampling(**changes)


def test_wrong_arguments():
    with pytest.raises(RuntimeError, match="sample: logits must be float32, bfloat16 or float16, got int64"):
        sample(torch.zeros(2, 3, dtype=torch.int64), seed=0)
    with pytest.raises(ValueError, match="use must be draft or plain, got 'race'"):
        draw(torch.ones(1, 3), use="race", seed=0)
    with pytest.raises(RuntimeError, match=r"draw: count must be 0..1024, got 2000"):
        draw(torch.ones(1, 3), 2000, seed=0)


def test_the_op_is_the_family():
    assert set(tokops.sampling.__all__) == {"Sampling", "draw", "gumbel_topm", "law", "sample"}
