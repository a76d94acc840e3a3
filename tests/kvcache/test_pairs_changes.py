"""Pairs of layers while they are cropped, reordered, grown and counted."""

import copy

import pytest
import torch

from tokops.kvcache import pair

from .merge_oracle import (
    FOUR_BITS,
    FULL,
    HALF,
    PAGE,
    PROMPT,
    RANGES,
    alike,
    by_hand,
    cache,
    check_held,
    random_tokens,
    retained,
)


@pytest.mark.parametrize("cut", [60, 52, 48, 45, 40, 33, 27, 24, 19, 5, 1])
def test_crop(cut):
    """Into the tail, at a page, into pages of a step and of the prompt: what stays is what was, and one goes on."""
    tokens = random_tokens(80)
    layers = cache(gamma=0.3)
    layers.read([[x[:, :61] for x in layer] for layer in tokens], PROMPT)
    before = [[x[:, :, :cut].clone() for x in layers.held(layer)[:2]] for layer in (0, 1)]
    layers.crop(61 - cut)
    assert layers.layout.packed == min(48, cut // PAGE * PAGE)
    for layer in (0, 1):
        *kv, times = layers.held(layer)
        assert (times == 1).all()
        for got, want in zip(kv, before[layer], strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    for at in range(cut, 80):
        layers.forward([[x[:, at : at + 1] for x in layer] for layer in tokens])
    for layer in (0, 1):
        *kv, times = layers.held(layer)
        assert (times == 1).all()
        for got, x in zip(kv, tokens[layer], strict=True):
            x = x.transpose(1, 2)
            assert torch.equal(got[:, :, layers.layout.packed :], x[:, :, layers.layout.packed :])
            norms = x.norm(dim=-1)
            assert ((got.norm(dim=-1) - norms).abs() <= 4 * HALF * norms).all()


def test_select_shares_pages_and_what_is_retained():
    tokens = random_tokens(90)
    rows = [1, 0, 1, 1]
    layers = cache(gamma=0.3)
    layers.read([[x[:, :61] for x in layer] for layer in tokens], PROMPT)
    before = [layers.held(layer) for layer in (0, 1)]
    live = layers.layout.live_bytes()
    layers.select(rows)
    assert (
        layers.layout.live_bytes() < 1.7 * live
    )  # four rows, two of which are new, share all but tails and sinks
    for layer in (0, 1):
        for got, x in zip(layers.held(layer), before[layer], strict=True):
            assert torch.equal(got, x[rows])
    more = [[x[rows] for x in layer] for layer in random_tokens(90, seed=1)]
    more[0][0][3] += torch.randn(more[0][0][3].shape)  # rows part
    alone = copy.deepcopy(layers)
    alone.select([3])
    for at in range(61, 90):
        layers.forward([[x[:, at : at + 1] for x in layer] for layer in more])
        alone.forward([[x[3:, at : at + 1] for x in layer] for layer in more])
    assert layers.layout.packed == 80
    for layer in (0, 1):
        *kv, times = layers.held(layer)
        assert (times == 1).all()
        for got, x in zip(kv, alone.held(layer)[:2], strict=True):
            assert torch.equal(got[3:], x)
            assert torch.equal(got[0, :, :61][:, :48], got[3, :, :61][:, :48])


def test_reset_serves_again():
    tokens = random_tokens()
    layers = cache(gamma=0.3)
    layers.read(tokens, PROMPT)
    first = [layers.held(layer)[0] for layer in (0, 1)]
    size = layers.layout.live_bytes()
    layers.reset()
    assert layers.layout.live_bytes() == 0
    assert layers.layout.distances == {}
    layers.read(tokens, PROMPT)
    assert layers.layout.live_bytes() == size
    for layer in (0, 1):
        assert torch.equal(layers.held(layer)[0], first[layer])


@pytest.mark.parametrize("codecs", [FULL, FOUR_BITS])
def test_a_crop_to_nothing_serves_again(codecs):
    """Thresholds, what was retained and the guard's decision are those of what comes next."""
    layers, fresh = (cache(codecs=codecs, gamma=0.3, guard="skip") for _ in "ab")
    layers.read(random_tokens(seed=1), PROMPT, starts=torch.tensor([0, 19], dtype=torch.int32))
    assert layers.layout.pairs[0].merged is False
    layers.crop(61)
    assert layers.layout.live_bytes() == 0
    for noise in (0.1, 0.5):
        tokens = alike(noise)
        layers.read(tokens, PROMPT)
        fresh.reset()
        fresh.read(tokens, PROMPT)
        assert layers.layout.pairs[0].merged
        assert layers.layout.distances == fresh.layout.distances
        assert layers.layout.live_bytes() == fresh.layout.live_bytes()
        for layer in (0, 1):
            for got, want in zip(layers.held(layer), fresh.held(layer), strict=True):
                assert torch.equal(got, want)
        layers.crop(61)


@pytest.mark.parametrize("codecs", [FULL, FOUR_BITS])
def test_bytes_are_what_the_formula_says(codecs):
    """Four layers, one pair of them merged and one kept apart, and an odd one: every number that is stored."""
    length, batch, heads, dim, sinks = 61, 2, 3, 32, 2
    tokens = [*random_tokens(layers=2), *alike(0.1), random_tokens(layers=1)[0]]
    layers = cache(((0, 1), (2, 3)), layers=5, codecs=codecs, guard="skip", gamma=0.3)
    layers.read(tokens, PROMPT)
    layout = layers.layout
    assert [pair.merged for pair in layout.pairs] == [False, True]
    packed, vector = layout.packed, dim * 4
    # Four bits of keys: codes, scale and zero of 2 bytes per channel and page; of values: one scale and zero a token.
    four = packed * 2 * dim // 2 + packed // PAGE * dim * 4 + packed * 4
    one = 2 * packed * vector if codecs is FULL else four
    per_head = 4 * one  # two layers apart, the odd one, and one pair
    per_head += packed * 4 * 2  # norms of two layers, keys and values
    per_head += (sinks + length - packed) * 5 * 2 * vector
    kept = retained(layout.pairs[1])
    places = batch * heads * length * 4
    tables = batch * packed // PAGE * 4
    assert kept > 0
    want = batch * heads * per_head + kept * (4 * vector + 4) + places + tables
    assert layout.live_bytes() == want
    assert layout.reread_bytes() == batch * heads * one + kept * 4  # positions, of what is retained
    assert layout.full_bytes() == batch * heads * length * 5 * 2 * vector
    assert layout.allocated_bytes() >= want


def test_half_the_cache_is_saved_where_layers_agree():
    tokens = alike(0.1, length=600, batch=1, heads=2, dim=64)
    layers = cache(gamma=0.05, page=64, residual=64, sinks=4, guard="refuse")
    layers.read(tokens, 598)
    layout = layers.layout
    share = retained(layout.pairs[0]) / (layout.packed * 2)
    per_token = 2 * (64 * 4 + 4 + share * 2 * 64 * 4 + 4)  # norms and places besides
    saved = 1 - layout.live_bytes() / layout.full_bytes()
    assert saved == pytest.approx(layout.packed / 600 * (1 - per_token / (4 * 64 * 4)), abs=0.02)
    assert saved > 0.35


def test_growth_does_not_copy_what_is_retained():
    """Buffers are added, few of them, and those there are stay where they are."""
    layers = cache(gamma=0.3, sinks=0)
    tokens = random_tokens(900, batch=1, heads=1)
    layers.read([[x[:, :40] for x in layer] for layer in tokens], PROMPT)
    seen = []
    for at in range(40, 900):
        layers.forward([[x[:, at : at + 1] for x in layer] for layer in tokens])
        kept = layers.layout.pairs[0].kept
        assert [x.x.data_ptr() for x in kept[: len(seen)]] == seen
        seen = [x.x.data_ptr() for x in kept]
    assert [x.capacity for x in kept[1:]] == [16, 64, 256][: len(kept) - 1]
    assert len(kept) >= 3
    check_held(
        layers.held,
        tokens,
        by_hand(tokens, ranges_to(layers.layout.packed), {"gamma": 0.3}, 0, (0,)),
        0.6,
        (0,),
    )


@pytest.mark.parametrize("buffers", [1, 2])
def test_buffers_are_joined_where_parts_are_few(buffers, monkeypatch):
    """What is held stays what it was, whichever sequences share it, and one goes on."""
    tokens = random_tokens(330)
    layers, plain = cache(gamma=0.3), cache(gamma=0.3)
    for each in (layers, plain):
        monkeypatch.setattr(pair, "_MOST_PARTS", 4 + buffers if each is layers else 16)
        each.read(
            [[x[:, :61] for x in layer] for layer in tokens], PROMPT, starts=torch.tensor([0, 11]).int()
        )
        each.select([1, 0, 1])
        for at in range(61, 330):
            each.forward([[x[[1, 0, 1], at : at + 1] for x in layer] for layer in tokens])
        each.crop(40)
        for at in range(290, 330):
            each.forward([[x[[1, 0, 1], at : at + 1] for x in layer] for layer in tokens])
    assert len(layers.layout.pairs[0].kept) == buffers < len(plain.layout.pairs[0].kept)
    assert len(layers.stores[0].parts()) == 3 + buffers
    assert retained(layers.layout.pairs[0]) == retained(plain.layout.pairs[0])
    for layer in (0, 1):
        for got, want in zip(layers.held(layer), plain.held(layer), strict=True):
            torch.testing.assert_close(got, want, atol=0, rtol=0, equal_nan=True)  # padding is nowhere


@pytest.mark.parametrize("gamma", [0.2, 1.0])
def test_parts_of_the_longest_text_fit_into_one_call(gamma):
    layers = cache(page=64, residual=64, sinks=4, retain="topk", gamma=gamma)
    at = 0
    while at < 140_000:
        tokens = random_tokens(512 if at < 70_000 else 4096, batch=1, heads=1, dim=16, seed=at)
        layers.forward(tokens, prompt=True)
        at = layers.layout.length
        for store in layers.stores:
            assert len(store.parts()) < 16  # and a prompt that is being read
    q = torch.randn(1, 1, 1, 16)
    out = layers.forward(random_tokens(1, batch=1, heads=1, dim=16), q=q)
    assert all(x.isfinite().all() for x in out)


def ranges_to(packed):
    return [(0, 24), *((i, i + PAGE) for i in range(24, packed, PAGE))]


@pytest.mark.parametrize("guard", ["force", "skip"])
def test_a_pool_of_one_page_is_shared_cropped_and_copied(guard):
    tokens = random_tokens(300, batch=1, heads=1)
    layers = cache(gamma=0.3, page=256, guard=guard)
    layers.read(tokens, 290)
    before = [layers.held(layer) for layer in (0, 1)]
    layers.select([0, 0])
    cropped = copy.deepcopy(layers)
    cropped.crop(150)
    layers.layout.unshare()
    for store in layers.stores:
        store.follow()
    for layer in (0, 1):
        for got, x in zip(layers.held(layer), before[layer], strict=True):
            assert torch.equal(got, x[[0, 0]])
        for got, x in zip(cropped.held(layer)[:2], before[layer], strict=False):
            torch.testing.assert_close(got, x[[0, 0], :, :150], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("starts", [(0, 0), (0, 19)])
def test_thresholds_follow_their_sequences(starts):
    """Rows change places between the prompt, which sets thresholds (not of a row that sees too little), and pages."""
    tokens, rule = random_tokens(), {"gamma": 0.3}
    layers = cache(**rule)
    given = torch.tensor(starts, dtype=torch.int32)
    layers.forward([[x[:, :PROMPT] for x in layer] for layer in tokens], prompt=True, starts=given)
    layers.select([1, 0])
    tokens = [[x[[1, 0]] for x in layer] for layer in tokens]
    for at in range(PROMPT, 61):
        layers.forward([[x[:, at : at + 1] for x in layer] for layer in tokens])
    check_held(layers.held, tokens, by_hand(tokens, RANGES, rule, starts=starts[::-1]), 0.6, starts[::-1])
