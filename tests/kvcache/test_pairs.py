"""Pairs of layers against the closed form of what they keep, token by token and in float64."""

import itertools
import math

import pytest
import torch

from tokops.attention import packed_decode
from tokops.kvcache import Codec, decode

from .merge_oracle import (
    FOUR_BITS,
    FULL,
    HALF,
    PAGE,
    PROMPT,
    RANGES,
    alike,
    angle,
    by_hand,
    cache,
    check_held,
    random_tokens,
    retained,
    slerp,
)

RULES = {
    "range": {"gamma": 0.3},
    "hardly any": {"gamma": 0.01},
    "most, capped": {"gamma": 0.6},
    "share_heads": {"gamma": 0.1, "share_heads": True},
    "topk": {"gamma": 0.2, "retain": "topk"},
    "earlier layer": {"gamma": 0.3, "t": 0.2},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("starts", [None, (0, 13), (3, 16)])
def test_what_is_held_is_the_closed_form(name, starts):
    rule, tokens = RULES[name], random_tokens()
    layers = cache(**rule)
    given = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    layers.read(tokens, PROMPT, starts=given)
    assert layers.layout.packed == RANGES[-1][1]
    starts = starts or (0, 0)
    merged = by_hand(tokens, RANGES, rule, starts=starts)
    assert 0 < merged.sum() < merged.numel() / 1.3
    check_held(layers.held, tokens, merged, rule.get("t", 0.6), starts)


def test_too_few_tokens_to_merge():
    """A row that sees 5 tokens of the prompt's pages keeps them, and takes its thresholds from its next page."""
    tokens = random_tokens()
    layers = cache(gamma=0.3)
    layers.read(tokens, PROMPT, starts=torch.tensor([0, 19], dtype=torch.int32))
    merged = by_hand(tokens, RANGES, {"gamma": 0.3}, starts=(0, 19))
    assert not merged[1, :, :24].any()
    assert merged[1, :, 24:32].any()
    check_held(layers.held, tokens, merged, 0.6, (0, 19))


def test_chunks_of_a_prompt_are_merged_as_their_pages_fill():
    tokens = random_tokens()
    layers = cache(gamma=0.3)
    for a, b in itertools.pairwise((0, 20, 45, 60, 61)):
        layers.forward([[x[:, a:b] for x in layer] for layer in tokens], prompt=b < 61)
    merged = by_hand(tokens, ((0, 8), (8, 32), (32, 48)), {"gamma": 0.3})
    check_held(layers.held, tokens, merged, 0.6)


@pytest.mark.parametrize(("t", "exact"), [(0.0, 0), (1.0, 1)])
def test_one_end_of_t_loses_nothing_of_one_layer(t, exact):
    """What is left is the float16 of norms; the other layer takes over the direction."""
    tokens = random_tokens()
    layers = cache(t=t)
    layers.read(tokens, PROMPT)
    merged = by_hand(tokens, RANGES, {"gamma": 0.05})
    for got, x in zip(layers.held(exact)[:2], tokens[exact], strict=True):
        x = x.transpose(1, 2)
        assert ((got - x).norm(dim=-1) <= HALF * x.norm(dim=-1)).all()
    for got, x in zip(layers.held(1 - exact)[:2], tokens[exact], strict=True):
        assert angle(got, x.transpose(1, 2))[merged].max() < 1e-3


def test_gamma_one_is_dense():
    tokens = random_tokens()
    layers = cache(gamma=1.0)
    layers.read(tokens, PROMPT)
    assert layers.layout.packed == 48
    for layer in (0, 1):
        for got, x in zip(layers.held(layer)[:2], tokens[layer], strict=True):
            assert torch.equal(got, x.transpose(1, 2))


def test_without_pairs_the_cache_is_dense():
    tokens = random_tokens(layers=3)
    layers = cache(pairs=(), layers=3)
    layers.read(tokens, PROMPT)
    assert layers.layout.packed == 48
    for layer in range(3):
        for got, x in zip(layers.held(layer)[:2], tokens[layer], strict=True):
            assert torch.equal(got, x.transpose(1, 2))


@pytest.mark.parametrize("factor", [1.0, 3.5])
def test_layers_of_one_direction_lose_nothing(factor):
    (k, v), _ = random_tokens()
    tokens = [[k, v], [factor * k, factor * v]]
    layers = cache(guard="refuse", max_distance=0.01)
    layers.read(tokens, PROMPT)
    assert layers.layout.packed == 48
    for layer in (0, 1):
        for got, x in zip(layers.held(layer)[:2], tokens[layer], strict=True):
            x = x.transpose(1, 2)
            assert ((got - x).norm(dim=-1) <= HALF * x.norm(dim=-1)).all()
            # what little there is is the norm's: the direction is right to float32
            assert angle(got, x).max() * math.pi < 1e-6


def test_norms_and_angles():
    """Every token keeps its norm; layers turn by t and 1 - t of the angle between them."""
    tokens = random_tokens()
    t = 0.7
    layers = cache(t=t)
    layers.read(tokens, PROMPT)
    merged = by_hand(tokens, RANGES, {"gamma": 0.05})
    for layer, share in ((0, t), (1, 1 - t)):
        for i, got in enumerate(layers.held(layer)[:2]):
            x = tokens[layer][i].transpose(1, 2)
            norms = x.double().norm(dim=-1)
            assert ((got.double().norm(dim=-1) - norms).abs() <= HALF * norms).all()
            between = angle(tokens[0][i], tokens[1][i]).transpose(1, 2)
            assert ((angle(got, x) - share * between)[merged]).abs().max() < 1e-5


def test_zero_vectors():
    tokens = random_tokens()
    tokens[0][0][0, 9, 1] = 0
    tokens[1][0][0, 10, 1] = 0
    for layer in (0, 1):
        tokens[layer][1][0, 11, 1] = 0
    layers = cache(gamma=0.0)
    layers.read(tokens, PROMPT)
    for layer in (0, 1):
        for got, x, at in zip(layers.held(layer)[:2], tokens[layer], ((9, 10), (11,)), strict=True):
            for i in at:
                error = (got[0, 1, i] - x[0, i, 1]).norm()
                assert error <= HALF * x[0, i, 1].norm()


def test_more_is_retained_as_gamma_grows():
    tokens = alike(0.5, length=200)
    shares = []
    for gamma in (0.0, 0.02, 0.05, 0.1, 0.3, 1.0):
        layers = cache(gamma=gamma)
        layers.read(tokens, 197, size=3)
        shares.append(retained(layers.layout.pairs[0]))
    assert shares == sorted(set(shares))
    assert shares[0] == 0
    assert shares[-1] == 2 * 3 * (184 - 2)


@pytest.mark.parametrize("retain", ["range", "topk"])
def test_sinks_are_exact(retain):
    tokens = random_tokens()
    starts = torch.tensor([0, 5], dtype=torch.int32)
    layers = cache(gamma=0.0, sinks=4, retain=retain)
    layers.read(tokens, PROMPT, starts=starts)
    for layer in (0, 1):
        for got, x in zip(layers.held(layer)[:2], tokens[layer], strict=True):
            x = x.transpose(1, 2)
            assert torch.equal(got[0, :, :4], x[0, :, :4])
            assert torch.equal(got[1, :, 5:9], x[1, :, 5:9])
            assert (got[0, :, 4:24] != x[0, :, 4:24]).any(-1).all()
            assert (got[1, :, 9:24] != x[1, :, 9:24]).any(-1).all()


def test_topk_retains_so_many():
    layers = cache(gamma=0.25, retain="topk", sinks=0)
    layers.read(random_tokens(), PROMPT)
    (counts,) = (torch.stack([kept.counts for kept in layers.layout.pairs[0].kept]).sum(0),)
    assert (counts == math.ceil(0.25 * 24) + 3 * 2).all()


def attention(q, k, v):
    """Of one row, ``k`` and ``v [B, H, L, D]``, in float64."""
    q = q.double().unflatten(2, (k.shape[1], -1))[:, 0]
    p = torch.softmax(q @ k.double().transpose(2, 3) / math.sqrt(k.shape[3]), -1)
    return (p @ v.double()).flatten(1, 2)[:, None]


def test_merging_directions_beats_the_mean():
    """On layers whose directions agree while their magnitudes do not: what the method is for."""
    tokens = alike(0.15, length=120)
    layers = cache(gamma=0.05)
    layers.read(tokens, 117)
    q = torch.randn(2, 1, 6, 32)
    error = {"merged": 0.0, "mean": 0.0}
    packed = layers.layout.packed
    for layer in (0, 1):
        k, v = (x.transpose(1, 2) for x in tokens[layer])
        exact = attention(q, k, v)
        got = decode(q, layers.stores[layer]).out
        mean = []
        for i, x in enumerate((k, v)):
            y = ((tokens[0][i] + tokens[1][i]) / 2).transpose(1, 2)
            mean.append(torch.cat([x[:, :, :2], y[:, :, 2:packed], x[:, :, packed:]], 2))
        error["merged"] += float((got - exact).norm() / exact.norm())
        error["mean"] += float((attention(q, *mean) - exact).norm() / exact.norm())
    assert error["merged"] < error["mean"] / 2


@pytest.mark.parametrize("codecs", [FULL, (Codec("int4", "channel", PAGE), Codec("int4", "token", 32))])
def test_decoding_reads_what_is_held(codecs):
    """Dense, over all positions selected, over some; with scores."""
    layers = cache(gamma=0.3, codecs=codecs)
    layers.read(random_tokens(), PROMPT)
    length, q = layers.layout.length, torch.randn(2, 1, 6, 32)
    every = torch.arange(length, dtype=torch.int32).expand(2, 1, 3, -1)
    some = torch.stack([torch.randperm(length)[:20].sort().values for _ in range(6)]).int().view(2, 1, 3, 20)
    for layer in (0, 1):
        k, v, _ = layers.held(layer)
        store = layers.stores[layer]
        dense = decode(q, store, scores=True)
        torch.testing.assert_close(dense.out.double(), attention(q, k, v), atol=1e-5, rtol=1e-5)
        raw = (q.unflatten(2, (3, 2))[:, 0].double() @ k.double().transpose(2, 3)).flatten(1, 2) / math.sqrt(
            32
        )
        torch.testing.assert_close(dense.scores[:, 0].double(), raw, atol=1e-5, rtol=1e-5)
        whole = decode(q, store, selected=every.contiguous()).out
        torch.testing.assert_close(whole, dense.out, atol=1e-6, rtol=1e-5)
        got = decode(q, store, selected=some).out
        index = some[:, 0].long()[..., None].expand(-1, -1, -1, 32)
        want = attention(q, k.gather(2, index), v.gather(2, index))
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_a_slot_that_holds_nothing_does_not_hide_the_token(order):
    """Scores of a retained token are its own, wherever its part stands."""
    layers = cache(gamma=0.3)
    layers.read(random_tokens(), PROMPT)
    q, store = torch.randn(2, 1, 6, 32), layers.stores[0]
    want = decode(q, store, scores=True)
    assert want.scores.isfinite().all()
    got = packed_decode(q, store.parts()[::order], store.seq_lens, max_len=61)
    torch.testing.assert_close(got[2], want.scores, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got[0], want.out, atol=1e-6, rtol=1e-6)


def test_four_bits():
    """Directions are quantised by channel and page, and by token; norms and what is retained are not."""
    tokens = alike(0.3)
    layers = cache(gamma=0.3, codecs=FOUR_BITS, residual=PAGE, layers=2)
    layers.read(tokens, PROMPT)
    merged = by_hand(tokens, RANGES, {"gamma": 0.3})
    for layer in (0, 1):
        for i, (got, x) in enumerate(zip(layers.held(layer)[:2], tokens[layer], strict=True)):
            x = x.transpose(1, 2)
            assert torch.equal(got[~merged], x[~merged])
            e = slerp(tokens[0][i], tokens[1][i], 0.6).masked_fill(~merged.transpose(1, 2)[..., None], 0)
            e = e.transpose(1, 2)
            if i:
                span = e.amax(-1, keepdim=True) - e.amin(-1, keepdim=True)
            else:
                pages = torch.nn.functional.pad(e, (0, 0, 0, -e.shape[2] % PAGE)).unflatten(2, (-1, PAGE))
                # sinks are directions, too, in the pages
                span = (pages.amax(3, keepdim=True) - pages.amin(3, keepdim=True)).expand_as(pages)
                span = span.flatten(2, 3)[:, :, : e.shape[2]]
            off = (got.double() / x.double().norm(dim=-1, keepdim=True) - e).abs()
            page0 = torch.arange(x.shape[2]) >= PAGE
            limit = (span / 30 * 1.02 + 2e-3).expand_as(off)
            assert (off <= limit)[(merged & page0)[..., None].expand_as(off)].all()
            assert off[merged].max() > 1e-3
