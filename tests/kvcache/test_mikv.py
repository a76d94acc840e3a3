"""MiKV's store: nothing is lost, importance is what attention gives, and tokens are as precise as their pool."""

import pytest
import torch

from tokops.attention.parts import decoded
from tokops.kvcache import decode
from tokops.kvcache.balancer import balancer

from .mikv_run import DIM, HKV, HQ, Run, policy


@pytest.mark.parametrize(
    ("ratio", "interval", "balanced", "page"),
    [(0.25, 8, True, 16), (0.0, 1, True, 7), (0.6, 5, False, 1), (1.0, 3, True, 64)],
)
def test_full_pools_equal_the_dense_cache(ratio, interval, balanced, page):
    run = Run(policy(ratio=ratio, interval=interval, balancer=balanced), batch=2, page=page)
    run.prompt(70)
    for _ in range(40):
        run.step()
    run.consistent()
    assert (run.store.low.capacity > 0) == (ratio < 1)


@pytest.mark.parametrize("starts", [None, (0, 33, 70)])
@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_of_changes_equals_the_dense_cache(seed, starts, monkeypatch):
    monkeypatch.setattr("tokops.kvcache.mikv._STEP", 16)  # many slabs
    run = Run(policy(interval=4), batch=3, starts=starts, seed=seed, page=4)
    pick, slabs = torch.Generator().manual_seed(seed), []
    dice = lambda n: int(torch.randint(n, (1,), generator=pick))  # noqa: E731
    run.prompt(73, extra=dice(3))
    for _ in range(60):
        kind = dice(8)
        if kind < 3:
            run.step()
        elif kind < 5:
            rows = 2 + dice(5)
            run.step(rows)
            run.crop(dice(rows + 1))
        elif kind == 5 and run.layout.length > 80:
            run.crop(dice(25))
        elif kind == 6:
            run.select([dice(run.batch) for _ in range(1 + dice(4))])
        elif run.layout.length < 200:
            run.prompt(1 + dice(12), extra=0)
        run.consistent()
        slabs.append(min(len(run.store.high.slabs), len(run.store.low.slabs)))
    run.step()
    assert not bool((run.store.acc[..., run.layout.length :] != 0).any())
    assert max(slabs) > 1  # moves cross slabs


@pytest.mark.parametrize("left", [0, 20, 50, 61])
def test_what_follows_a_crop_into_padding_gets_a_balancer_of_its_own(left):
    """Of a sequence only padding is left, or nothing of both; the balancer of what was there is forgotten with it."""
    run = Run(policy(interval=4), batch=2, starts=(60, 0))
    run.prompt(110)
    before = run.store.bal.clone()
    run.step()
    run.crop(111 - left)
    run.prompt(40)
    for row, anew in ((0, left <= 60), (1, left == 0)):
        assert torch.equal(run.store.bal[row], before[row]) != anew
    assert not bool((run.store.bal == 1).all(-1).any())
    for _ in range(20):
        run.step()
    run.consistent()


def test_the_balancer_shares_ranges_and_changes_no_product():
    q, k = torch.randn(2, 50, HQ, DIM), torch.randn(2, 50, HKV, DIM)
    k[..., 3] *= 20
    q[..., 5] *= 9
    q[1, :10] = 1e6
    k[1, :10] = 1e6  # padding
    bal = balancer(q, k, torch.tensor([0, 10], dtype=torch.int32))
    k2, q2 = k * bal[:, None], (q.unflatten(2, (HKV, -1)) / bal[:, None, :, None]).flatten(2, 3)
    for b, first in ((0, 0), (1, 10)):
        highest = [x[b, first:].abs().amax(0) for x in (q2.unflatten(2, (HKV, -1)).flatten(2, 3), k2)]
        torch.testing.assert_close(highest[0].unflatten(0, (HKV, -1)).amax(1), highest[1], rtol=1e-5, atol=0)
    product = torch.einsum("bthd,bthd->bth", q, k.repeat_interleave(HQ // HKV, 2))[0]
    balanced = torch.einsum("bthd,bthd->bth", q2, k2.repeat_interleave(HQ // HKV, 2))[0]
    torch.testing.assert_close(balanced, product, rtol=1e-5, atol=1e-4)


def test_the_balancer_is_floored_clamped_and_left_out_below_32_tokens():
    q, k = torch.ones(1, 40, HQ, DIM), torch.ones(1, 40, HKV, DIM)
    k[..., 0], q[..., 1], k[..., 2] = 0, 0, 1e-2
    bal = balancer(q, k)[0, 0]
    assert bal[:4].tolist() == pytest.approx([100.0, 1e-2, 10.0, 1.0])
    assert bool((balancer(q[:, :31], k[:, :31]) == 1).all())
    ragged = balancer(
        q.expand(2, -1, -1, -1), k.expand(2, -1, -1, -1), torch.tensor([8, 9], dtype=torch.int32)
    )
    assert ragged[:, 0, 2].tolist() == pytest.approx([10.0, 1.0])


def settle(run):
    """Begin a forward, so that what the last one's rows gave is counted."""
    run._commit()
    run.layout.begin(run.batch, 1, 0, run.k.device)
    run.store.append(*run.tokens(1)[1:])
    return run.store.acc[..., : run.layout.length - 1]


@pytest.mark.parametrize("low", ["full", "int4"])
@pytest.mark.parametrize("starts", [None, (0, 21)])
def test_importance_is_the_sum_of_softmax_columns(low, starts):
    run = Run(policy("full", low, interval=1000), batch=2, starts=starts)
    run.prompt(60, extra=3)
    run.crop(2)  # one of the three drafts is accepted
    run.prompt(30)
    run.step(5)
    run.crop(3)
    run.step()
    got = settle(run)
    queries = torch.tensor([58 + 30 + 2 + 1] * 2) - torch.tensor(starts or [0, 0])
    whole = (queries * (HQ // HKV))[:, None].expand(2, HKV).float()
    torch.testing.assert_close(got.sum(-1), whole, rtol=1e-4, atol=0)
    if low == "full":
        torch.testing.assert_close(got, run.acc, rtol=1e-4, atol=1e-4)


def test_importance_of_one_prompt_is_exact_and_sinks_of_the_model_take_their_share():
    run = Run(policy())
    q = run.tokens(50)[0]
    run.gen.manual_seed(0)
    assert torch.equal(run.prompt(50), q)
    torch.testing.assert_close(run.store.acc[..., :50], run.acc, rtol=1e-4, atol=1e-4)
    with_sink = Run(policy())
    with_sink.layout.begin(1, 50, 50, q.device)
    with_sink.store.append(run.k, run.v)
    sink = torch.randn(HQ) * 3
    with_sink.store.absorb(q, sink_logit=sink, scale=None)
    k = run.k.repeat_interleave(HQ // HKV, 2)
    scores = torch.einsum("bthd,blhd->bthl", q, k) * DIM**-0.5
    scores = scores.masked_fill(~torch.ones(50, 50).tril().bool()[None, :, None], float("-inf"))
    scores = torch.cat([scores, sink.view(1, 1, -1, 1).expand(1, 50, -1, 1)], -1).softmax(-1)[..., :50]
    want = scores.sum(1).unflatten(1, (HKV, -1)).sum(2)
    torch.testing.assert_close(with_sink.store.acc[..., :50], want, rtol=1e-4, atol=1e-4)


def test_rows_of_a_selection_a_tree_or_ragged_lengths_are_not_observed():
    run = Run(policy())
    run.prompt(40)
    run.step()
    q = run.tokens(1)[0]
    before = dict(run.store._unsure)
    chosen = torch.arange(41, dtype=torch.int32).expand(1, 1, 1, 41).contiguous()
    counts = torch.full((1, 1, 1), 41, dtype=torch.int32)
    decode(q, run.store, selected=chosen, counts=counts)
    decode(q, run.store, q_lens=torch.ones(1, dtype=torch.int32))
    assert run.store._unsure == before
    decode(q, run.store)
    assert not torch.equal(run.store._unsure[40], before[40])  # the same row again: once, not twice
    assert list(run.store._unsure) == [40]


def rounded(x, codec):
    """Half a step of the codec's grid for every element of ``x [n, D]``, and what float16 grids add."""
    groups = x.unflatten(-1, (-1, codec.group))
    span = groups.amax(-1) - groups.amin(-1)
    step = span / (codec.levels - 1)
    return (step / 2 * 1.01 + groups.abs().amax(-1) * 2e-3 + 1e-4).repeat_interleave(codec.group, -1)


@pytest.mark.parametrize(
    ("high", "low"), [("full", "int4"), ("full", "int3"), ("int8", "int2"), ("int4", "int4")]
)
@pytest.mark.parametrize("balanced", [True, False])
def test_tokens_are_kept_in_the_precision_of_their_pool(high, low, balanced):
    run = Run(policy(high, low, balancer=balanced, interval=4), batch=2)
    run.prompt(50)
    for _ in range(21):
        run.step()
    bal = run.store.bal if balanced else torch.ones(2, HKV, DIM)
    seen = set()
    for part in run.store.parts():
        if part.positions is None:
            continue
        tier = run.store.high if part.slot_base < 1 << 30 else run.store.low
        pools = [decoded(part, side, DIM).view(2, HKV, -1, DIM) for side in "kv"]
        for b in range(2):
            for h in range(HKV):
                n = int(part.lens[b, h])
                place = part.positions[b, h, :n].long()
                seen |= {(b, h, j) for j in place.tolist()}
                for got, x in zip(pools, (run.k[b, :, h] * bal[b, h], run.v[b, :, h]), strict=True):
                    want, got = x[place], got[b, h, :n]
                    if tier.codec.kind == "full":
                        assert torch.equal(got, want)
                        continue
                    bound = rounded(want, tier.codec)
                    if tier is run.store.low and high != "full":
                        bound = bound + 2 * rounded(want, run.store.high.codec)  # coded twice
                    assert bool(((got - want).abs() <= bound).all())
    assert len(seen) == 2 * HKV * run.store._settled


def test_codes_of_a_low_token_are_written_once():
    run = Run(policy("full", "int4", interval=4))
    run.prompt(48)

    def codes():
        out = {}
        for slab in run.store.low.slabs:
            for h in range(HKV):
                for slot in range(int(slab.lens[0, h])):
                    page = int(slab.table[0, h, slot // 16])
                    row = [x[page, 0, slot % 16].tolist() for x in slab.pools]
                    out[h, int(slab.positions[0, h, slot])] = row
        return out

    before = codes()
    for _ in range(30):
        run.step()
    after = codes()
    assert len(after) > len(before) > 0
    assert all(after[key] == value for key, value in before.items())
