"""A prompt that is put into a cache is where a forward would have put it."""

import pytest
import torch
from tiny_models import build

import tokops
from tokops.hf.families import CACHE
from tokops.hf.prompts import read_prompt
from tokops.hf.quality import teacher_forced
from tokops.methods import Dense, MiKV, QuantizedKV

METHODS = {
    "Dense": Dense(),
    "8 bit": QuantizedKV(bits=8),
    "4 bit channel": QuantizedKV(bits=4, key_geometry="channel", group=32),
    "2 bit": QuantizedKV(bits=2),
    "MiKV": MiKV(high=8, low=4, ratio=0.3),
}


def after(model, cache, prompt, given, fill):
    if fill:
        prompt.fill(cache)
    else:
        cache.prompt_length = prompt.tokens
        with torch.no_grad():
            model(prompt.ids[None], **{CACHE: cache}, use_cache=True)
    return teacher_forced(model, cache, given, 8)


@pytest.mark.parametrize("name", METHODS)
def test_filling_is_a_forward(model, ids, name):
    prompt, given = read_prompt(model, ids[:300]), ids[300:364]
    assert prompt.tokens == 300
    with tokops.patch(model, METHODS[name]) as run:
        expected = after(model, run.new_cache(), prompt, given, fill=False)
        held = run.report().kv_bytes
        got = after(model, run.new_cache(), prompt, given, fill=True)
        assert run.report().kv_bytes == held
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_windows_sinks_and_soft_caps_come_along(family):
    model = build(family, head_dim=32)
    ids = torch.randint(3, 97, (80,), generator=torch.Generator().manual_seed(4))
    prompt = read_prompt(model, ids[:60])
    with tokops.patch(model, QuantizedKV(bits=8)) as run:
        caches = run.new_cache(), run.new_cache()
        expected, got = (
            after(model, c, prompt, ids[60:], fill) for c, fill in zip(caches, (False, True), strict=True)
        )
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-3)


def test_the_model_is_given_back_and_layers_are_counted(model, ids):
    ticks = []
    with torch.no_grad():
        before = model(ids[None, :40]).logits
    prompt = read_prompt(model, ids[:40], ticks.append)
    with torch.no_grad():
        assert torch.equal(model(ids[None, :40]).logits, before)
    assert ticks == [1, 1, 1]
    assert [q.shape for q in prompt.queries] == [(1, 40, 4, 32)] * 3
    assert [k.shape for k in prompt.keys] == [(1, 2, 40, 32)] * 3
