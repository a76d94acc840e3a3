"""Pairs that are not alike, and options that are out of range."""

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
