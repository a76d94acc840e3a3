"""QuantizedKV on the real model beside a simulation: the stock model over keys and values rounded in plain torch."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from transformers import DynamicCache

import tokops
from tokops.data import long_text
from tokops.hf import load_smollm2
from tokops.hf.quality import compare, teacher_forced
from tokops.kvcache.scaling import fit_kv_curve
from tokops.methods import Dense, QuantizedKV

pytestmark = [pytest.mark.model, pytest.mark.slow]

TOKENS, SCORED, CHUNK, PAGE, RESIDUAL, GROUP = 1536, 512, 64, 64, 128, 64


def half_towards(x, up):
    """x as float16, rounded up or down."""
    near = x.numpy().astype(np.float16)
    wrong = near < x.numpy() if up else near > x.numpy()
    moved = np.nextafter(near, np.float16(np.inf if up else -np.inf))
    return torch.from_numpy(np.where(wrong, moved, near).astype(np.float32))


def rounded(x, axis, levels):
    """Elements on the asymmetric grid of their group; groups lie along one axis of ``[..., n]``."""
    groups = x.unflatten(axis, (-1, GROUP))
    at = axis if axis < 0 else axis + 1
    low, high = groups.amin(at, keepdim=True), groups.amax(at, keepdim=True)
    zero, scale = half_towards(low, False), half_towards((high - low) / (levels - 1), True)
    scale = torch.where(scale > 0, scale, 1.0)
    codes = ((groups - zero) / scale).round().clamp(0, levels - 1)
    return (codes * scale + zero).flatten(at - 1, at)


def simulated(x, kind):
    """Keys or values ``[B, H, n, 64]`` as a format gives them back."""
    name, levels = kind
    if name == "channel":
        return rounded(x, 2, levels)
    if name == "token":
        return rounded(x, -1, levels)
    turn = torch.from_numpy(hadamard(64)).float() / 8
    return rounded(x @ turn, -1, levels) @ turn


@torch.no_grad()
def simulate(model, ids, keys, values):
    """Predictions of the stock model while packed tokens are replaced by what their codes say."""
    raw, logits = None, []
    for at in range(0, TOKENS, CHUNK):
        cut = max(at - RESIDUAL, 0) // PAGE * PAGE
        cache = DynamicCache(config=model.config)
        for i, (k, v) in enumerate(raw or []):
            kept = [
                torch.cat([simulated(x[:, :, :cut], f), x[:, :, cut:]], 2)
                for x, f in ((k, keys), (v, values))
            ]
            cache.layers[i].update(*(kept if cut else (k, v)))
        logits.append(model(ids[None, at : at + CHUNK], past_key_values=cache).logits[0])
        new = [(x.keys[:, :, at:], x.values[:, :, at:]) for x in cache.layers]
        raw = (
            [[torch.cat(x, 2) for x in zip(*both, strict=True)] for both in zip(raw, new, strict=True)]
            if raw
            else new
        )
    return torch.cat(logits)


@pytest.fixture(scope="module")
def text():
    model, tokenizer = load_smollm2(torch.float32)
    ids = tokenizer(long_text()[20_000:40_000], return_tensors="pt").input_ids[0][: TOKENS + 1]
    assert len(ids) == TOKENS + 1
    return model, ids


@pytest.fixture(scope="module")
def quality(text):
    """Agreement of a method with Dense, both decoded chunk by chunk."""
    model, ids = text
    found = {}

    def predict(method):
        with tokops.patch(model, method, page_size=PAGE) as run:
            return teacher_forced(model, run.new_cache(), ids[:-1], CHUNK)[SCORED:]

    dense = predict(Dense())

    def of(method):
        if method not in found:
            found[method] = compare(dense, predict(method), ids[SCORED + 1 :])
        return found[method]

    of.dense = dense
    return of


PLAIN = {"residual": RESIDUAL, "sinks": 0, "full_first": False, "rotate": False}
TURNED = {**PLAIN, "rotate": True}


@pytest.mark.parametrize(
    ("method", "keys", "values"),
    [
        (QuantizedKV(4, **TURNED), ("turned", 16), ("turned", 16)),
        (QuantizedKV(3, key_geometry="channel", **PLAIN), ("channel", 8), ("token", 8)),
        (QuantizedKV((4, 8), key_tiles=True, **PLAIN), ("token", 16), ("token", 256)),
    ],
    ids=["int4 rotated", "int3 per channel", "int4 in tiles, int8"],
)
def test_kl_is_that_of_a_simulation(method, keys, values, text, quality):
    model, ids = text
    want = compare(quality.dense, simulate(model, ids[:-1], keys, values)[SCORED:], ids[SCORED + 1 :])
    got = quality(method)
    assert got.kl == pytest.approx(want.kl, rel=0.05)
    assert got.top1 == pytest.approx(want.top1, abs=0.01)
    assert got.perplexity == pytest.approx(want.perplexity, rel=0.005)


def test_more_bits_rotation_and_channels_help(quality):
    """The order of the formats, and a curve through the fine ones that tells what coarser ones cost."""
    kl = {bits: quality(QuantizedKV(bits, **TURNED)).kl for bits in (8, 4, 3)}
    plain = quality(QuantizedKV(4, **PLAIN)).kl
    channel = quality(QuantizedKV(4, key_geometry="channel", **PLAIN)).kl
    assert kl[8] < 2e-4
    assert kl[8] < kl[4] < channel < plain < kl[3]
    keys, values = (quality(QuantizedKV(pair, **PLAIN)).kl for pair in ((4, 16), (16, 4)))
    assert values < keys < plain  # keys need more bits
    curve = fit_kv_curve([8.5, 4.5], [kl[8], kl[4]])
    assert 0.5 < kl[3] / curve.predict(3.5) < 2.5, "the smooth law holds where rotation spreads outliers"
