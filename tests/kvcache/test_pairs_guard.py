"""Pairs that are not alike, and options that are out of range."""

import itertools

import pytest
import torch

from .merge_oracle import (
    FOUR_BITS,
    FULL,
    PROMPT,
    RANGES,
    alike,
    angle,
    by_hand,
    cache,
    check_held,
    random_tokens,
)


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


def starting(*starts):
    return torch.tensor(starts, dtype=torch.int32)


@pytest.mark.parametrize("guard", ["refuse", "skip", "force"])
@pytest.mark.parametrize("chunks", [(37,), (10, 20, 37), (3, 37), (36, 37)])
@pytest.mark.parametrize("pads", [(9, 9), (27, 24), (36, 33), (37, 37)])
def test_pages_of_padding_alone_wait_for_tokens_to_measure(guard, chunks, pads):
    """Their padding is as unlike as can be. Layers without a pair wait, too, and all tokens are held once."""
    tokens = [*alike(0.1, 100), *random_tokens(100, layers=1)]
    for b, pad in enumerate(pads):
        for x in [*tokens[0], *tokens[1]]:
            x[b, :pad] = torch.randn(x[b, :pad].shape) if b else 0.0
    layers = cache(layers=3, guard=guard, gamma=0.3)
    first_cut = -(-(min(pads) + 8) // 8) * 8  # of pages of 8 tokens
    for a, b in itertools.pairwise((0, *chunks)):
        layers.forward(
            [[x[:, a:b] for x in layer] for layer in tokens], True, starting(*(min(p, b) for p in pads))
        )
        assert layers.layout.absorbed in (0, *range(first_cut, b, 8))
    for at in range(37, 100):
        layers.forward([[x[:, at : at + 1] for x in layer] for layer in tokens])
        packed = (at - 8) // 8 * 8
        assert layers.layout.packed == (packed if packed >= first_cut else 0)
        assert layers.layout.room()[0] == max((at - 7) // 8 * 8 + 8, first_cut) + 8 - (at + 1)
    assert layers.layout.pairs[0].merged
    assert max(layers.layout.distances[0, 1]) < 0.1
    for layer in (0, 1, 2):
        k, v, times = layers.held(layer)
        for b, pad in enumerate(pads):
            assert (times[b, :, pad:] == 1).all()
            for got, x in zip((k, v), tokens[layer], strict=True):
                norms = x[b, pad:].norm(dim=-1).transpose(0, 1)
                torch.testing.assert_close(got[b, :, pad:].norm(dim=-1), norms, rtol=1e-3, atol=0)


def test_sequences_that_see_enough_do_not_wait_for_others():
    layers, tokens = cache(guard="refuse", gamma=0.3), alike(0.1)
    layers.read(tokens, PROMPT, starts=starting(30, 8))
    assert layers.layout.packed == 48
    layers = cache(guard="refuse", gamma=0.3)
    layers.forward([[x[:, :PROMPT] for x in layer] for layer in tokens], True, starting(30, 8))
    assert layers.layout.absorbed == 24


@pytest.mark.parametrize(("side", "counts"), [(0, "0 and 144"), (1, "144 and 0")])
def test_vectors_that_are_not_finite_cannot_be_compared(side, counts):
    tokens = alike(0.1)
    tokens[1][side].fill_(torch.nan)
    with pytest.raises(
        RuntimeError, match=f"layers 0 and 1 cannot be compared: of 144 keys.* {counts} are finite"
    ):
        cache(guard="refuse").read(tokens, PROMPT)
    layers = cache(guard="skip")
    layers.read(tokens, PROMPT)
    assert layers.layout.pairs[0].merged is False
    tokens = alike(0.1)
    tokens[1][side][:, ::2] = torch.nan  # enough are left to decide
    layers = cache(guard="refuse")
    layers.read(tokens, PROMPT)
    assert layers.layout.pairs[0].merged


@pytest.mark.parametrize("codecs", [FULL, FOUR_BITS])
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
