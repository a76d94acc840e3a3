"""A cache that a crop leaves without tokens is as new, whatever was in it."""

import pytest
import torch
from tiny_models import build

import tokops
from tokops.methods import Dense, MiKV, MiniCache, QuantizedKV

STORES = {
    "dense": Dense(),
    "full": QuantizedKV(16, residual=0),
    "int8": QuantizedKV(8),
    "a scale per head": QuantizedKV(8, key_geometry="head", value_geometry="head", residual=0),
    "in tiles": QuantizedKV(4, residual=16, key_tiles=True),
    "per channel": QuantizedKV(4, key_geometry="channel", group=32, residual=32),
    "pairs, all retained": MiniCache(gamma=1.0, guard="force", residual=8),
    "pairs": MiniCache(gamma=0.3, guard="force", residual=8),
    "pairs, apart": MiniCache(guard="skip", residual=8),
    "two pools": MiKV(high=16, low=16),
    "two pools, 2 bits": MiKV(high=8, low=2, interval=3),
}


@pytest.fixture(scope="module")
def model():
    return build("llama", head_dim=32)


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 9, 45])
@pytest.mark.parametrize("name", STORES)
def test_a_cache_cropped_to_nothing_is_as_new(name, padding, model):
    """Nothing of a first prompt, padded or not, is left in what is said of a second one."""
    gen = torch.Generator().manual_seed(0)
    first, second = torch.randint(3, 97, (2, 60), generator=gen), torch.randint(3, 97, (2, 50), generator=gen)
    mask = torch.ones_like(first)
    mask[0, :padding] = 0
    page = 32 if name in ("per channel", "in tiles") else 8
    with tokops.patch(model, STORES[name], page_size=page) as run:

        def go_on(cache):
            out = [model(second, past_key_values=cache).logits[:, -1:]]
            out += [model(torch.full((2, 1), 7 + i), past_key_values=cache).logits for i in range(20)]
            return torch.cat(out, 1), cache

        want, fresh = go_on(run.new_cache())
        cache = run.new_cache()
        model(first, attention_mask=mask, past_key_values=cache)
        for i in range(10):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            model(torch.full((2, 1), 50 + i), attention_mask=mask, past_key_values=cache)
        cache.crop(-cache.get_seq_length())
        assert cache.lengths == [0, 0]
        got, cache = go_on(cache)
        assert torch.equal(got, want)
        if cache.state.layout is not None:
            books = cache.state.layout, fresh.state.layout
            assert len({(x.live_bytes(), x.full_bytes(), x.live_tokens()) for x in books}) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", STORES)
def test_an_empty_cache_is_reordered_and_decodes_without_a_prompt(name, model):
    """Between the crop and the next tokens; these come one by one, as from a cache that had none."""
    tokens = torch.randint(3, 97, (2, 80), generator=torch.Generator().manual_seed(1))
    page = 32 if name in ("per channel", "in tiles") else 8
    with tokops.patch(model, STORES[name], page_size=page) as run:
        caches = run.new_cache(), run.new_cache()
        for cache in caches:
            cache.prompt_length = 0
        model(tokens[:1, :60], past_key_values=caches[1])
        caches[1].crop(-60)
        caches[1].crop(0)
        caches[1].batch_repeat_interleave(2)
        caches[1].unshare()
        for i in range(60, 80):
            one, two = (model(tokens[:, i : i + 1], past_key_values=cache).logits for cache in caches)
            assert torch.equal(one, two)
