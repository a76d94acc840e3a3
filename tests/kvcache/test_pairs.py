"""Pairs of layers against the closed form of what they keep, token by token and in float64."""

import copy
import itertools
import math

import pytest
import torch

from tokops.attention import packed_decode
from tokops.kvcache import Codec, decode
from tokops.kvcache.pairs import MergeRule, PairLayout

from .layered import Layers

FULL = (Codec("full"), Codec("full"))
PAGE = 8
#: Norms are float16: a merged vector is right to half a unit in the last of eleven bits, and some of float32.
HALF = 2**-11 * 1.01


def cache(pairs=((0, 1),), layers=2, codecs=FULL, page=PAGE, sinks=2, residual=8, **rule):
    rule = MergeRule(**{"guard": "force", **rule})
    return Layers(PairLayout(list(pairs), rule, *codecs, page=page, sinks=sinks, residual=residual), layers)


def random_tokens(length=61, layers=2, batch=2, heads=3, dim=32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [[torch.randn(batch, length, heads, dim, generator=gen) for _ in range(2)] for _ in range(layers)]


def alike(noise, length=61, batch=2, heads=3, dim=32, seed=0):
    """Two layers whose directions differ by some noise, and whose magnitudes have nothing in common."""
    gen = torch.Generator().manual_seed(seed)
    layers = [[], []]
    for _ in "kv":
        base = torch.randn(batch, length, heads, dim, generator=gen)
        for layer in layers:
            x = base + noise * torch.randn(base.shape, generator=gen)
            layer.append(x * torch.rand(batch, length, heads, 1, generator=gen).mul(3).exp())
    return layers


def angle(x, y):
    """Angle over pi, float64; what :mod:`tokops` clamps is not clamped."""
    u, v = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (x, y))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) / math.pi


def slerp(x, y, t):
    """The unit vectors between two, float64."""
    u, v = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (x, y))
    omega = (angle(x, y) * math.pi)[..., None]
    return (torch.sin((1 - t) * omega) * u + torch.sin(t * omega) * v) / torch.sin(omega)


def by_hand(tokens, ranges, rule, sinks=2, starts=(0, 0)):
    """Which tokens are merged ``[B, H, L]``, by the rules as sentences; ranges are merged one after the other."""
    distance = [angle(tokens[0][i], tokens[1][i]).transpose(1, 2) for i in (0, 1)]
    merged = torch.zeros(distance[0].shape, dtype=torch.bool)
    for b, start in enumerate(starts):
        for h in range(merged.shape[1]):
            limits = None
            for begin, end in ranges:
                seen = range(max(begin, start), end)
                kept = set()
                both = {i: max(float(d[b, h, i]) for d in distance) for i in seen}
                sinks_here = [i for i in seen if i < start + sinks]
                if rule.get("retain") == "topk":
                    order = sorted(seen, key=lambda i: (i >= start + sinks, -both[i]))
                    kept = set(order[: math.ceil(rule["gamma"] * len(seen))])
                elif len(seen) >= 8:
                    first = limits is None
                    if first:
                        limits = []
                        for d in distance:
                            values = [float(d[b, h, i]) for i in seen]
                            limits.append(max(values) - rule["gamma"] * (max(values) - min(values)))
                    kept = {
                        i
                        for i in seen
                        for d, limit in zip(distance, limits, strict=True)
                        if d[b, h, i] > limit or rule["gamma"] == 1
                    } - set(sinks_here)
                    if not first:
                        cap = math.floor(max(0.2, rule["gamma"]) * PAGE)
                        pages = [[i for i in kept if i // PAGE == page] for page in range(end // PAGE)]
                        kept = {i for own in pages for i in sorted(own, key=lambda i: -both[i])[:cap]}
                else:
                    kept = set(seen)
                for i in seen:
                    merged[b, h, i] = i not in kept and i >= start + sinks
    if rule.get("share_heads"):
        merged = merged.all(1, keepdim=True).expand_as(merged)
    return merged


def check_held(held, tokens, merged, t, starts=(0, 0)):
    """Merged tokens of both layers have the direction between them and their own norm, all others are exact."""
    e = [slerp(tokens[0][i], tokens[1][i], t).transpose(1, 2) for i in (0, 1)]
    for layer, of_layer in enumerate(tokens):
        *kv, times = held(layer)
        for b, start in enumerate(starts):
            assert (times[b, :, start:] == 1).all()
        for got, x, direction in zip(kv, of_layer, e, strict=True):
            x = x.transpose(1, 2)
            for b, start in enumerate(starts):
                keep, own = merged[b, :, start:], x[b, :, start:]
                mine = got[b, :, start:]
                assert torch.equal(mine[~keep], own[~keep])
                want = direction[b, :, start:] * own.double().norm(dim=-1, keepdim=True)
                error = (mine.double() - want).norm(dim=-1) / own.double().norm(dim=-1)
                assert error[keep].max() < HALF


RULES = {
    "range": {"gamma": 0.3},
    "hardly any": {"gamma": 0.01},
    "most, capped": {"gamma": 0.6},
    "share_heads": {"gamma": 0.1, "share_heads": True},
    "topk": {"gamma": 0.2, "retain": "topk"},
    "earlier layer": {"gamma": 0.3, "t": 0.2},
}
PROMPT, RANGES = 37, ((0, 24), (24, 32), (32, 40), (40, 48))  # at 61 tokens, 60 are committed


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


def retained(layers):
    return int(sum(kept.counts.sum() for kept in layers.layout.pairs[0].kept))


def test_more_is_retained_as_gamma_grows():
    tokens = alike(0.5, length=200)
    shares = []
    for gamma in (0.0, 0.02, 0.05, 0.1, 0.3, 1.0):
        layers = cache(gamma=gamma)
        layers.read(tokens, 197, size=3)
        shares.append(retained(layers))
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


CODECS4 = (Codec("int4", "channel", PAGE), Codec("int4", "token", 32))


def test_four_bits():
    """Directions are quantised by channel and page, and by token; norms and what is retained are not."""
    tokens = alike(0.3)
    layers = cache(gamma=0.3, codecs=CODECS4, residual=PAGE, layers=2)
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


def clone_of(layers, length, tokens, **rule):
    other = cache(**rule)
    other.read([[x[:, :length] for x in layer] for layer in tokens], PROMPT)
    return other


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


@pytest.mark.parametrize("codecs", [FULL, CODECS4])
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
    kept = retained_of(layout.pairs[1])
    places = batch * heads * length * 4
    tables = batch * packed // PAGE * 4
    assert kept > 0
    want = batch * heads * per_head + kept * (4 * vector + 4) + places + tables
    assert layout.live_bytes() == want
    assert layout.full_bytes() == batch * heads * length * 5 * 2 * vector
    assert layout.allocated_bytes() >= want


def retained_of(pair):
    return int(sum(kept.counts.sum() for kept in pair.kept))


def test_half_the_cache_is_saved_where_layers_agree():
    tokens = alike(0.1, length=600, batch=1, heads=2, dim=64)
    layers = cache(gamma=0.05, page=64, residual=64, sinks=4, guard="refuse")
    layers.read(tokens, 598)
    layout = layers.layout
    share = retained(layers) / (layout.packed * 2)
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


def ranges_to(packed):
    return [(0, 24), *((i, i + PAGE) for i in range(24, packed, PAGE))]


# ---- The guard.


def test_the_guard_refuses_layers_that_are_not_alike():
    layers = cache(guard="refuse")
    with pytest.raises(
        RuntimeError, match=r"MiniCache: layers 0 and 1 are not alike.*keys lie 0\.(49|50).*0\.333"
    ):
        layers.read(random_tokens(), PROMPT)
    assert layers.layout.distances[0, 1] == pytest.approx((0.5, 0.5), abs=0.02)


def test_the_guard_waits_until_something_is_merged():
    layers, tokens = cache(guard="refuse"), random_tokens()
    layers.read([[x[:, :16] for x in layer] for layer in tokens], 12)
    assert layers.layout.packed == 0
    with pytest.raises(RuntimeError, match="not alike"):  # 16 tokens are committed: the first page goes
        layers.forward([[x[:, 16:17] for x in layer] for layer in tokens])


@pytest.mark.parametrize("guard", ["refuse", "skip"])
def test_the_guard_lets_similar_layers_pass(guard):
    layers, tokens = cache(guard=guard, gamma=0.3), alike(0.3)
    layers.read(tokens, PROMPT)
    d = [angle(x, y)[:, :24].mean() for x, y in zip(*tokens, strict=True)]
    assert layers.layout.distances[0, 1] == pytest.approx([float(x) for x in d], abs=1e-5)
    check_held(layers.held, tokens, by_hand(tokens, RANGES, {"gamma": 0.3}), 0.6)
    assert layers.layout.notes()[0].startswith("layers 0 and 1 merged: distance of keys 0.")


def test_one_side_is_enough_to_refuse():
    (k, v), (_, other) = alike(0.1), random_tokens()
    layers = cache(guard="skip")
    layers.read([k, [v[0], other[1]]], PROMPT)
    assert layers.layout.pairs[0].merged is False
    assert layers.layout.distances[0, 1][0] < 0.2 < 0.4 < layers.layout.distances[0, 1][1]


def test_padding_is_not_measured():
    tokens = alike(0.1)
    for layer in tokens:
        for x in layer:
            x[1, :16] = torch.randn(x[1, :16].shape)
    layers = cache(guard="refuse", max_distance=0.15)
    layers.read(tokens, PROMPT, starts=torch.tensor([0, 16], dtype=torch.int32))
    assert layers.layout.packed == 48


@pytest.mark.parametrize("codecs", [FULL, CODECS4])
def test_pairs_that_are_skipped_are_as_layers_without_a_pair(codecs):
    tokens = random_tokens(80)
    skipped, apart = cache(codecs=codecs, guard="skip"), cache((), codecs=codecs)
    for layers in (skipped, apart):
        layers.read([[x[:, :61] for x in layer] for layer in tokens], PROMPT)
        layers.crop(16)
        layers.select([1, 0, 1])
        for at in range(45, 80):
            layers.forward([[x[[1, 0, 1], at : at + 1] for x in layer] for layer in tokens])
    assert skipped.layout.notes()[0].startswith("layers 0 and 1 kept apart: distance of keys 0.489")
    assert skipped.layout.live_bytes() == apart.layout.live_bytes()
    for layer in (0, 1):
        for got, x in zip(skipped.held(layer), apart.held(layer), strict=True):
            assert torch.equal(got, x)


def test_layers_of_different_shape_are_kept_apart():
    tokens = [random_tokens(heads=3)[0], random_tokens(heads=2)[0]]
    layers = cache(guard="refuse")
    layers.read(tokens, PROMPT)
    assert layers.layout.pairs[0].merged is False
    for layer in (0, 1):
        assert torch.equal(layers.held(layer)[0], tokens[layer][0].transpose(1, 2))


# ---- Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": 1.5}, r"t must be 0\.\.1, got 1\.5"),
        ({"gamma": -0.1}, r"gamma must be 0\.\.1, got -0\.1"),
        ({"max_distance": 2}, r"max_distance must be 0\.\.1, got 2"),
        ({"retain": "some"}, "retain must be one of range, topk, got 'some'"),
        ({"guard": "warn"}, "guard must be one of refuse, skip, force, got 'warn'"),
        ({"page": 4}, "whole pages of at least 8 tokens, got 4"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        cache(**changes)
