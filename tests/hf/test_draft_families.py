"""Drafters with layers of the base model's class, in every family: greedy tokens, and states kept step by step."""

import pytest
import torch
from slow_loop import PROMPTS, greedy, prompt_states, speculate
from tiny_models import FAMILIES, build

from tokops.hf.draftlayers import rotary_of
from tokops.hf.falcon import FalconDrafter, FalconModule
from tokops.hf.heads import Heads, HeadsConfig, HeadsDrafter

#: The slow loop gives one mask to all layers, so that windows are turned off.
FULL = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "sliding_window": None},
    "gemma2": {"layer_types": ["full_attention"] * 4},
    "phi3": {"sliding_window": None},
    "gpt_oss": {"layer_types": ["full_attention"] * 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_the_family(family):
    model = build(family, **FULL.get(family, {}))
    expected = [greedy(model, prompt, 9) for prompt in PROMPTS[:2]]
    heads = Heads(model, HeadsConfig(2, "transformer")).eval()
    drafter = HeadsDrafter(model, heads, [(0,), (1,), (0, 1)])
    texts, _ = speculate(model, drafter, PROMPTS[:2], 9)
    assert texts == expected
    x = prompt_states(model, texts[0][:-1])[None]
    positions = torch.arange(x.shape[1])[None]
    causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()[None, None]
    with torch.no_grad():
        whole = heads(x, positions, rotary_of(model, x, positions), causal)[:, 0]
    last = drafter._caches[0][0].lengths[0] - 1
    torch.testing.assert_close(drafter._last[:, 0], whole[:, last], atol=1e-4, rtol=1e-4)
    texts, _ = speculate(
        model, FalconDrafter(model, FalconModule(model, 2), [(0,), (1,), (0, 0), (0, 0, 0)]), PROMPTS[:2], 9
    )
    assert texts == expected
