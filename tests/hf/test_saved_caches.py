"""Caches that were pickled, copied or saved by torch go on as the one they were made of, token by token."""

import copy
import io
import pickle

import pytest
import torch
from tiny_models import build

import tokops
from tokops.methods import Dense, MiKV, MiniCache, QuantizedKV

STORES = {
    "dense": Dense(),
    "int8": QuantizedKV(8),
    "int4, sinks": QuantizedKV(4, sinks=2),
    "int2, residual": QuantizedKV(2, residual=8),
    "full": QuantizedKV(16),
    "a scale per head": QuantizedKV("fp8_e4m3", key_geometry="head", value_geometry="head"),
    "channels": QuantizedKV(4, key_geometry="channel", group=16, residual=16),
    "mikv": MiKV(),
    "mikv, interval": MiKV(high=8, low=2, interval=3),
    "minicache": MiniCache(residual=8, start=0, guard="force"),
}


def by_torch(cache):
    room = io.BytesIO()
    torch.save(cache, room)
    room.seek(0)
    return torch.load(room, weights_only=False)


WAYS = {"pickle": lambda cache: pickle.loads(pickle.dumps(cache)), "copy": copy.deepcopy, "torch": by_torch}


@torch.no_grad()
def forward(model, cache, ids):
    return model(ids, past_key_values=cache).logits


def repeated(model, cache, ids):
    """Four sequences that share the pages of two."""
    cache.batch_repeat_interleave(2)


def unequal(model, cache, ids):
    """Sequences of different lengths."""
    tree = tokops.speculative.tree_build(torch.tensor([[-1, 0, 1, 1]] * 2, dtype=torch.int32))
    cache.draft(tree.ancestors, tree.depth)
    positions = torch.tensor(cache.lengths)[:, None] + tree.depth
    with torch.no_grad():
        model(ids[:, :4], past_key_values=cache, position_ids=positions)
    cache.keep(torch.tensor([[0, 1, 3], [0, 0, 0]], dtype=torch.int32), [3, 1])
    cache.prompt_length = 0


def fresh(model, cache, ids):
    """Nothing after the prompt."""


def step(model, cache, tokens):
    """One token for every sequence."""
    cache.draft(None, None)
    lengths = torch.tensor(cache.lengths)
    with torch.no_grad():
        out = model(tokens, past_key_values=cache, position_ids=lengths[:, None]).logits[:, -1]
    cache.keep(None, [1] * len(tokens))
    return out


@pytest.mark.parametrize("state", [fresh, repeated, unequal])
@pytest.mark.parametrize("name", STORES)
def test_a_twin_goes_on_as_the_cache(name, state):
    model = build("llama", head_dim=32, num_hidden_layers=2)
    ids = torch.randint(3, 97, (2, 37), generator=torch.Generator().manual_seed(1))
    with tokops.patch(model, STORES[name], page_size=16) as run:
        cache = run.new_cache()
        forward(model, cache, ids)
        for i in range(3):
            forward(model, cache, ids[:, i : i + 1])
        state(model, cache, ids)
        twins = {way: make(cache) for way, make in WAYS.items()}
        for way in ("pickle", "torch"):
            run.adopt(twins[way])
        again = torch.randint(3, 97, (12, 4, 1), generator=torch.Generator().manual_seed(2))
        for tokens in again[:, : len(cache.lengths)]:
            expected = step(model, cache, tokens)
            for way, twin in twins.items():
                assert torch.equal(step(model, twin, tokens), expected), way
