"""Which token is in which pool of MiKV's store, and what the pools cost."""

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch

from tokops.kvcache import Codec, decode
from tokops.kvcache.mikv import MiKVLayout
from tokops.kvcache.mikv_layout import Policy

from .mikv_run import DIM, FULL, HKV, HQ, Run, policy


def chosen(acc, limit, window, sinks, start=0):
    """What the high pool keeps of a prompt, by the paper's rule."""
    length = len(acc)
    kept = set(range(start, min(start + sinks, length))) | set(range(max(length - window, start), length))
    rest = sorted((j for j in range(start, length) if j not in kept), key=lambda j: (-acc[j], j))
    return kept | set(rest[: max(limit - len(kept), 0)])


@pytest.mark.parametrize("starts", [None, (0, 25, 57)])
@pytest.mark.parametrize(
    "changes", [{}, {"budget": 20}, {"recent": 0.2, "ratio": 0.4}, {"sinks": 0, "ratio": 0.05}]
)
def test_a_prompt_keeps_the_newest_the_first_and_the_most_attended(changes, starts):
    rule = policy("full", "int4", **changes)
    run = Run(rule, batch=3, starts=starts)
    run.prompt(80)
    run.consistent()
    for b in range(3):
        start = 0 if starts is None else starts[b]
        n = 80 - start
        share = math.ceil(Fraction(str(rule.ratio)) * n) if rule.budget is None else rule.budget
        of = Fraction(str(rule.ratio)) * n if rule.budget is None else rule.budget
        window = math.ceil(Fraction(str(rule.recent)) * of)
        for h in range(HKV):
            want = chosen(
                run.store.acc[b, h, :80].tolist(), max(share, rule.sinks + window), window, rule.sinks, start
            )
            want = {j for j in want if j < 80}
            assert run.pool(run.store.high, b, h) == sorted(want)
            assert run.pool(run.store.low, b, h) == sorted(set(range(start, 80)) - want)


@pytest.mark.parametrize("chunks", [(20, 40, 60, 100), (50, 64, 70, 100), (57, 59, 100), (20, 50, 90, 100)])
@pytest.mark.parametrize("balanced", [True, False])
def test_chunks_of_padding_alone_leave_no_trace(chunks, balanced):
    """A padded sequence is what it would be alone, in chunks that end where these do: pools, importance, balancer."""
    pads = 50
    rule = policy("full", "int4", balancer=balanced, interval=4)
    both, alone = Run(rule, batch=2, starts=(0, pads)), Run(rule)
    given = both.tokens

    def own(rows):
        return tuple(x[1:, -rows:] for x in last)

    alone.tokens, both.tokens = own, lambda rows: last
    for a, b in itertools.pairwise((0, *chunks)):
        last = given(b - a)
        both.starts = torch.tensor([0, min(pads, b)], dtype=torch.int32)
        both.prompt(b - a)
        if b > pads:
            alone.prompt(b - max(a, pads))
    for _ in range(30):
        last = given(1)
        both.step()
        alone.step()
        both.consistent()
    assert both.layout.starts.tolist() == [0, pads]
    end = alone.layout.length
    torch.testing.assert_close(
        both.store.acc[1, :, pads : pads + end], alone.store.acc[0, :, :end], rtol=1e-4, atol=1e-4
    )
    for mine, its in ((both.store.high, alone.store.high), (both.store.low, alone.store.low)):
        for h in range(HKV):
            assert sorted(both.pool(mine, 1, h)) == sorted(pads + j for j in alone.pool(its, 0, h))
    if balanced:
        assert torch.equal(both.store.bal[1], alone.store.bal[0])
        seen = next(b for b in chunks if b > pads) - pads
        assert bool((both.store.bal[1] == 1).all()) == (seen < 32)


@pytest.mark.parametrize(
    "changes", [{}, {"budget": 24}, {"normalise_by_age": True}, {"interval": 3, "ratio": 0.5}]
)
def test_the_least_attended_are_demoted_and_never_come_back(changes):
    rule = policy("full", "int4", **changes)
    run = Run(rule, batch=2)
    run.prompt(60)
    high = [[set(run.pool(run.store.high, b, h)) for h in range(HKV)] for b in range(2)]
    settled = 60
    for _ in range(70):
        length = run.layout.length  # committed when the step begins
        due = length - settled >= rule.interval
        run.step()
        limit, window = rule.limit(length if due else settled), rule.window(length)
        for b in range(2):
            for h in range(HKV):
                mine = high[b][h]
                if due:
                    acc = run.store.acc[b, h].clone()
                    age = length - torch.arange(len(acc))
                    acc = acc / age if rule.normalise_by_age else acc
                    mine |= set(range(settled, length))
                    free = sorted((acc[j].item(), j) for j in mine if rule.sinks <= j < length - window)
                    for _, j in free[: max(len(mine) - limit, 0)]:
                        mine.remove(j)
                got = set(run.pool(run.store.high, b, h))
                assert got == mine
                low = run.pool(run.store.low, b, h)
                assert len(low) == run.store._settled - len(got)  # demotions
                tail = run.layout.length - run.store._settled
                assert len(got) + tail <= rule.limit(run.layout.length) + rule.interval
                newest = set(range(run.layout.length - rule.window(run.layout.length), run.layout.length))
                assert newest <= got | set(range(run.store._settled, run.layout.length))
                assert set(range(rule.sinks)) <= got
        settled = length if due else settled
        run.consistent()
    assert settled > 100


def test_a_pool_that_a_crop_leaves_too_full_shrinks_again():
    run = Run(policy("full", "int4", ratio=0.5, recent=0.1, interval=4), page=8)
    run.prompt(100)  # sinks, the newest 5, and 41 of the others, which are mostly old ones
    run.crop(80)
    full = len(run.pool(run.store.high, 0, 0))
    assert full > run.store.layout.policy.limit(24)
    for _ in range(5):
        run.step()
    run.consistent()
    assert len(run.pool(run.store.high, 0, 0)) == run.store.layout.policy.limit(24) == 12


def test_ties_keep_the_first_of_a_prompt_and_let_the_oldest_go():
    run = Run(policy("full", "int4", ratio=0.5, sinks=2, obs_window=1, interval=4), hard=0.0)
    run.prompt(40)
    assert bool((run.store.acc[..., :40] == run.store.acc[0, 0, 0]).all())
    assert run.pool(run.store.high, 0, 1) == [*range(10), *range(30, 40)]
    for _ in range(5):
        run.step()
    # 44 committed: 22 are high of 24, 11 of them the newest (33..43); 2 and 3 are the oldest behind the sinks
    assert sorted(run.pool(run.store.high, 0, 1)) == [0, 1, *range(4, 10), *range(30, 44)]


def test_an_observation_window_counts_the_last_queries_alone():
    run = Run(policy(obs_window=7), batch=2, starts=(0, 12))
    q = run.prompt(50)
    want = run.weights(q, 0)[:, -7:].sum(1).unflatten(1, (HKV, -1)).sum(2).float()
    torch.testing.assert_close(run.store.acc[..., :50], want, rtol=1e-4, atol=1e-4)
    for rows in (20, 3):  # further chunks: of each its newest
        want = torch.nn.functional.pad(want, (0, rows))
        first = run.layout.length
        q = run.prompt(rows)
        own = run.weights(q, first)[:, -7:].sum(1).unflatten(1, (HKV, -1)).sum(2).float()
        want += own
        torch.testing.assert_close(run.store.acc[..., : first + rows], want, rtol=1e-4, atol=1e-4)


def test_growth_never_copies_what_is_in_pools():
    run = Run(policy("full", "int4", interval=64, ratio=0.5), page=64)
    run.prompt(300)
    pointers = [[x.data_ptr() for x in tier.slabs[0].pools] for tier in (run.store.high, run.store.low)]
    for _ in range(20):
        run.step(64)
    run.consistent()
    for tier, had in zip((run.store.high, run.store.low), pointers, strict=True):
        assert [x.data_ptr() for x in tier.slabs[0].pools] == had
        assert len(tier.slabs) == 2


def test_slabs_of_the_longest_text_fit_into_one_call():
    layout = MiKVLayout(policy(), 64)
    layout.begin(1, 1, 1, torch.device("cpu"))
    store = layout.new_store(0)
    slots = 0
    for i in range(7):
        store.low.slabs = [None] * i
        slots += store._span(store.low, first=1) if i else 0
    assert slots > 90_000  # the tail, what is being read, and seven slabs of each pool are sixteen parts


def test_bytes_are_counted_with_all_metadata():
    run = Run(policy("full", "int4", interval=8), batch=2)
    run.prompt(100)
    for _ in range(5):
        run.step()
    low, high, tail = 75, 25, 5
    token = DIM * 4 * 2
    packed = 2 * (DIM // 2 + 4)
    pages = 2 + 5  # of 16 tokens
    want = (
        2
        * HKV
        * (high * token + low * packed + tail * token + 105 * 8 + (high + low) * 4 + DIM * 4 + pages * 4)
    )
    assert run.layout.live_bytes() == want
    assert run.layout.full_bytes() == 2 * 105 * HKV * token
    assert run.layout.live_tokens() == 2 * 105
    store = run.store
    held = [store.where, store.acc, store.bal, store._tail.k, store._tail.v]
    for tier in (store.high, store.low):
        held += [x for s in tier.slabs for x in (*s.pools, s.table, s.positions)]
    assert run.layout.allocated_bytes() == sum(x.numel() * x.element_size() for x in held)
    run.select([1, 1, 1])  # pools are shared, the rest is not
    own = 3 * HKV * (tail * token + 105 * 8 + 100 * 4 + DIM * 4 + pages * 4)
    assert run.layout.live_bytes() == HKV * (high * token + low * packed) + own
    run.layout.unshare()
    store.follow()
    assert run.layout.live_bytes() == 3 * HKV * (high * token + low * packed) + own
    run.step()


def test_a_copy_and_its_origin_go_separate_ways():
    run = Run(policy(interval=4), batch=2)
    run.prompt(40)
    run.step()
    twin = copy.deepcopy(run)
    twin.gen = torch.Generator().manual_seed(9)
    for _ in range(12):
        run.step()
        twin.step(2)
    run.consistent()
    twin.consistent()


def test_reset_forgets_everything():
    run = Run(policy(), batch=2, starts=(0, 10))
    run.prompt(50)
    run.step()
    run.layout.reset()
    run.store.reset()
    assert run.layout.live_bytes() == run.layout.allocated_bytes() == run.layout.live_tokens() == 0
    fresh = Run(policy(), batch=3)
    fresh.layout, fresh.store = run.layout, run.store
    fresh.prompt(45)
    for _ in range(20):
        fresh.step()
    fresh.consistent()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_plain_cache(dtype):
    run = Run(policy("full", "int4", ratio=1.0))
    q, k, v = (x.to(dtype) for x in run.tokens(50))
    run.layout.begin(1, 50, 50, q.device)
    run.store.append(k, v)
    run.store.absorb(q)
    q, k2, v2 = (x.to(dtype) for x in run.tokens(1))
    run.layout.begin(1, 1, 0, q.device)
    run.store.append(k2, v2)
    out = decode(q, run.store).out
    assert out.dtype == dtype
    run.k, run.v = torch.cat([k, k2], 1).float(), torch.cat([v, v2], 1).float()
    want = torch.einsum("bthl,blhd->bthd", run.weights(q, 50), run.v.repeat_interleave(HQ // HKV, 2).double())
    assert (out.double() - want).abs().max() < 12 * torch.finfo(dtype).eps


@pytest.mark.parametrize("heads", [1, HKV])
def test_a_selection_by_position_reads_the_same_tokens(heads):
    run = Run(policy(interval=4), batch=2, starts=(0, 9))
    run.prompt(60)
    for _ in range(11):
        run.step()
    q = run.tokens(1)[0]
    lists = torch.stack(
        [torch.randperm(60, generator=run.gen)[:20].sort().values + 10 for _ in range(2 * heads)]
    ).view(2, 1, heads, 20)
    counts = torch.full((2, 1, heads), 20, dtype=torch.int32)
    out = decode(q, run.store, selected=lists.int(), counts=counts, starts=run.starts).out
    index = lists.expand(-1, -1, HKV, -1)[:, 0].repeat_interleave(HQ // HKV, 1)
    k, v = (x.repeat_interleave(HQ // HKV, 2).transpose(1, 2) for x in (run.k, run.v))
    k, v = (x.gather(2, index[..., None].expand(-1, -1, -1, DIM)) for x in (k, v))
    weights = (torch.einsum("bhd,bhld->bhl", q[:, 0], k) * DIM**-0.5).softmax(-1)
    torch.testing.assert_close(out[:, 0], torch.einsum("bhl,bhld->bhd", weights, v), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    run = Run(policy(), batch=2)
    run.prompt(40)
    with pytest.raises(ValueError, match="cannot remove 41 of 40 cached tokens"):
        run.crop(41)
    with pytest.raises(ValueError, match="the cache holds 2 sequences, the new tokens are for 3"):
        run.layout.begin(3, 1, 0, run.k.device)
    odd = MiKVLayout(Policy(FULL, Codec("int4", group=64), 0.25, None, 0.5, 4, 16), 16)
    odd.begin(1, 2, 2, run.k.device)
    with pytest.raises(ValueError, match="the head dimension 32 is not divisible by the group 64"):
        odd.new_store(0).append(run.k[:1, :2], run.v[:1, :2])
