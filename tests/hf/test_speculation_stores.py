"""Speculation over packed stores gives the tokens of the same stores without speculation."""

import pytest
import torch
from tiny_models import build

import tokops
from tokops.methods import MiKV, MiniCache, QuantizedKV, Speculate, TidalDecode

STORES = {
    "int8": (QuantizedKV(8),),
    "int4": (QuantizedKV(4),),
    "int2 by the page": (QuantizedKV(2, residual=5),),
    "MiniCache": (MiniCache(start=2, guard="force", residual=8, gamma=0.2),),
    "MiKV": (MiKV(interval=8),),
    "MiKV under TidalDecode": (MiKV(interval=8), TidalDecode(budget=12, reselect_layer=5)),
    "TidalDecode": (TidalDecode(budget=12, reselect_layer=5),),
}


@pytest.fixture(scope="module")
def model():
    return build("llama", head_dim=32, num_hidden_layers=7)


@pytest.fixture(scope="module")
def prompts():
    """Texts that repeat themselves, so that lookup finds something."""
    generator = torch.Generator().manual_seed(5)
    piece = torch.randint(3, 97, (3, 8), generator=generator)
    ids = torch.cat([piece, piece, piece], 1)
    mask = torch.ones_like(ids)
    mask[0, :5], ids[0, :5] = 0, 0
    mask[2, :2], ids[2, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit"])
@pytest.mark.parametrize("name", STORES)
def test_tokens_are_those_without_speculation(name, draft, model, prompts):
    """Sequences end at different lengths, and those that go on are packed past them."""
    length = 24
    settings = {"do_sample": False, "max_new_tokens": 48, "pad_token_id": 0}
    with tokops.patch(model, *STORES[name], page_size=16):
        free = model.generate(**prompts, **settings)[:, length:]
        ends = [int(free[1, 12])]
        plain = model.generate(**prompts, **settings, eos_token_id=ends)[:, length:]
    with tokops.patch(model, *STORES[name], Speculate(draft, nodes=8), page_size=16) as run:
        drafted = model.generate(**prompts, **settings, eos_token_id=ends)[:, length:]
        assert run.report().tokens > 0
    width = max(plain.shape[1], drafted.shape[1])
    plain, drafted = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (plain, drafted))
    assert drafted.tolist() == plain.tolist()
