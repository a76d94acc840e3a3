"""Draws without replacement: their law against enumeration, their numbers in float64, and what is refused."""

import itertools
import math

import pytest
import torch

from tokops.sampling import gumbel_topm

MINUS = float("-inf")
COUNT = 40000


def orders(p, m):
    """The law of the first m of a draw without replacement, by enumeration."""
    law = {}
    for order in itertools.permutations(range(len(p)), m):
        left, chance = 1.0, 1.0
        for x in order:
            chance *= p[x] / left
            left -= p[x]
        law[order] = chance
    return law


def draw(row, m, device, **options):
    """Many draws from one row of logits."""
    rows = torch.tensor(row, device=device).expand(COUNT, -1)
    return gumbel_topm(rows, m, seed=5, stream=torch.arange(COUNT, device=device), position=9, **options)


@pytest.mark.parametrize(
    "p", [(0.5, 0.3, 0.2), (0.25,) * 4, (0.97, 0.01, 0.01, 0.01), (0.4, 0.0, 0.35, 0.25)]
)
def test_orders_follow_the_law(device, p):
    m = sum(x > 0 for x in p) - 1
    ids = draw([math.log(x) if x else MINUS for x in p], m, device)[0]
    seen = torch.unique(ids.cpu(), dim=0, return_counts=True)
    counts = {tuple(order): int(n) for order, n in zip(seen[0].tolist(), seen[1], strict=True)}
    law = {order: chance for order, chance in orders(p, m).items() if chance > 0}
    assert set(counts) <= set(law)
    seldom = {order for order, chance in law.items() if COUNT * chance < 20}
    for order in law.keys() - seldom:
        sigma = math.sqrt(COUNT * law[order] * (1 - law[order]))
        assert abs(counts.get(order, 0) - COUNT * law[order]) < 4.5 * sigma, order
    expected = COUNT * sum(law[order] for order in seldom)
    assert sum(counts.get(order, 0) for order in seldom) < expected + 4.5 * math.sqrt(expected) + 3


def test_early_arrivals_are_not_rounded_together(device):
    """The first of 40,000 equal tokens: no run of them is ahead, and neighbours do not share their luck."""
    ids, _, _ = gumbel_topm(
        torch.zeros(1, COUNT, device=device).expand(600, -1),
        2,
        seed=3,
        stream=torch.arange(600, device=device),
    )
    ids = ids.cpu().long()
    chi = ((torch.bincount(ids.flatten() * 8 // COUNT, minlength=8) - 150.0) ** 2 / 150).sum()
    assert chi < 24.32  # the 0.999 quantile of 7 degrees of freedom
    assert (ids[:, 0] < ids[:, 1]).double().mean().sub(0.5).abs() < 0.09
    assert (torch.bincount(ids[:, 0] % 4, minlength=4) - 150.0).abs().max() < 50


def test_numbers_are_those_of_float64(device):
    gen = torch.Generator().manual_seed(2)
    logits = (torch.randn(4, 3000, generator=gen) * 5).to(device)
    ids, logp, logz = gumbel_topm(logits, 64, seed=1, stream=torch.arange(4, device=device))
    want = logits.double().logsumexp(-1)
    torch.testing.assert_close(logz.double(), want, rtol=0, atol=4e-6)
    exact = torch.log_softmax(logits.double(), -1).gather(1, ids.long())
    torch.testing.assert_close(logp.double(), exact, rtol=0, atol=6e-6)
    assert all(len(set(row)) == 64 for row in ids.tolist())


def test_masks_and_exclusions(device):
    row = [1.0, float("nan"), 3.0, MINUS, 5.0, 2.0]
    mask = torch.tensor([0b101111], dtype=torch.int32, device=device)  # without token 4
    gone = torch.tensor([[2, -1]], dtype=torch.int32, device=device).expand(COUNT, -1)
    ids, logp, logz = draw(row, 5, device, mask=mask, exclude=gone)
    assert {tuple(x) for x in ids[:50].tolist()} == {(0, 5, -1, -1, -1), (5, 0, -1, -1, -1)}
    allowed = torch.tensor([1.0, 3.0, 2.0]).logsumexp(0)  # what is excluded has its part in the law
    torch.testing.assert_close(logz.cpu(), allowed.expand(COUNT), rtol=0, atol=2e-6)
    assert logp[:, 2:].eq(MINUS).all()
    first = (ids[:, 0] == 5).double().mean()
    assert abs(first - math.e / (1 + math.e)) < 4.5 * 0.5 / math.sqrt(COUNT)


def test_empty_rows(device):
    logits = torch.tensor([[MINUS, float("nan")], [0.0, MINUS]], device=device)
    ids, logp, logz = gumbel_topm(logits, 2, seed=1)
    assert ids.tolist() == [[-1, -1], [0, -1]]
    assert logp.tolist() == [[MINUS, MINUS], [0.0, MINUS]]
    assert logz.tolist() == [MINUS, 0.0]
    nothing = torch.zeros(1, dtype=torch.int32, device=device)
    assert gumbel_topm(logits, 2, seed=1, mask=nothing)[0].eq(-1).all()


def test_neither_batch_nor_m_matter_but_round_stream_and_position_do(device):
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(1)).to(device)
    numbers = {"stream": torch.arange(5, device=device), "position": torch.arange(5, device=device) * 3}
    ids = gumbel_topm(logits, 10, seed=-4, **numbers)[0]
    for i in range(5):
        alone = gumbel_topm(logits[i : i + 1], 4, seed=-4, stream=i, position=3 * i)[0]
        assert alone[0].tolist() == ids[i, :4].tolist()
    assert torch.equal(gumbel_topm(logits, 10, seed=(1 << 64) - 4, **numbers)[0], ids)
    for change in ({"round": 1}, {"round": 4095}, {"stream": 77}, {"position": 77}):
        other = gumbel_topm(logits, 10, seed=-4, **(numbers | change))[0]
        assert (other != ids).any(1).all(), change


def test_excluding_what_came_first_gives_what_came_next(device):
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(1)).to(device)
    ids, logp, logz = gumbel_topm(logits, 20, seed=2)
    later, later_logp, later_logz = gumbel_topm(logits, 12, seed=2, exclude=ids[:, :8].contiguous())
    assert torch.equal(later, ids[:, 8:])
    assert torch.equal(later_logp, logp[:, 8:])
    assert torch.equal(later_logz, logz)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 0}, r"m must be 1\.\.64, got 0"),
        ({"m": 65}, r"m must be 1\.\.64, got 65"),
        ({"round": -1}, r"round must be 0\.\.4095, got -1"),
        ({"round": 4096}, r"round must be 0\.\.4095, got 4096"),
        ({"logits": torch.zeros(3)}, "logits must have 2 dimensions, got 1"),
        ({"logits": torch.zeros(2, 0)}, "the vocabulary must be 1..4194304 tokens, got 0"),
        ({"logits": torch.zeros(2, 3).int()}, "logits must be float32.*got int32"),
        ({"exclude": torch.zeros(2, 1)}, "exclude must be int32, got float32"),
        ({"exclude": torch.zeros(1, 1).int()}, "exclude must have 2 rows, got 1"),
        ({"mask": torch.zeros(3, 1).int()}, r"mask must be \[..., W\] with ... = \[2\] or 1, got \[3, 1\]"),
    ],
)
def test_refusals(change, message):
    args = {"logits": torch.zeros(2, 3), "m": 2, "seed": 0} | change
    with pytest.raises(RuntimeError, match="gumbel_topm: " + message):
        gumbel_topm(args.pop("logits"), args.pop("m"), **args)
