"""Dense decoding gives stock tokens, in every family and every mode of ``generate``."""

import pytest
import torch
from tiny_models import FAMILIES

import tokops
from tokops.methods import Dense

NEW = 24
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.9},
    "chunked prefill": {"prefill_chunk_size": 5},
    "several returned": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
}


def run(model, inputs, **mode):
    torch.manual_seed(3)
    return model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, **{"do_sample": False, **mode})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_as_stock(family, mode, tiny, prompts):
    model = tiny(family)
    expected = run(model, prompts, **MODES[mode])
    with tokops.patch(model, Dense(), page_size=8):
        assert torch.equal(run(model, prompts, **MODES[mode]), expected)
    assert torch.equal(run(model, prompts, **MODES[mode]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_lookup_and_assistant(family, tiny):
    model, drafter = tiny(family), tiny("llama", seed=5)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7] * 2])}
    modes = [{"prompt_lookup_num_tokens": 4}, {"assistant_model": drafter}]
    expected = run(model, inputs)
    with tokops.patch(model, Dense(), page_size=4):
        for mode in modes:
            assert torch.equal(run(model, inputs, **mode), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_stock(family, tiny, prompts):
    model = tiny(family)
    with torch.no_grad():
        expected = model(**prompts).logits
        with tokops.patch(model, Dense()):
            cached = model(**prompts).logits
            plain = model(**prompts, use_cache=False).logits
    real = prompts["attention_mask"].bool()
    torch.testing.assert_close(cached[real], expected[real], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(plain[real], expected[real], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_step_by_step_equals_whole(family, tiny, prompts):
    """Chunks of many sizes through the cache, longer than what paged_decode takes at once among them."""
    model = tiny(family)
    ids = torch.randint(3, 97, (2, 330))
    ids[:, :21] = prompts["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, :21] = prompts["attention_mask"]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        with tokops.patch(model, Dense(), page_size=16) as patched:
            cache, parts, at = patched.new_cache(), [], 0
            for size in (21, 1, 7, 260, 1, 40):
                at += size
                parts.append(
                    model(
                        input_ids=ids[:, at - size : at], attention_mask=mask[:, :at], past_key_values=cache
                    ).logits
                )
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], atol=5e-4, rtol=1e-3)


def test_low_precision_stays_close(tiny, prompts):
    model = tiny("llama").to(torch.bfloat16)
    with torch.no_grad():
        expected = model(**prompts).logits
        with tokops.patch(model, Dense()):
            got = model(**prompts).logits
    real = prompts["attention_mask"].bool()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got[real], expected[real], atol=0.1, rtol=0.1)
