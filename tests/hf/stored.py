"""What a store holds, read back and attended to by the stock model: the reference of storing methods."""

import torch
from kvcache.stores import held
from scipy.linalg import hadamard
from transformers import DynamicCache

from tokops.hf.layers import PagedLayer


def contents(layer, length):
    """Keys and values of positions ``[0, length)`` as the layer holds them, decoded: ``[B, Hkv, length, D]``."""
    if isinstance(layer, PagedLayer):
        return [x.transpose(1, 2) for x in layer.gather(0, length)]
    sides = []
    for side in "kv":
        rows = []
        for positions, vectors in held(layer.store, side):
            order = positions.argsort()
            own = torch.zeros(length, *vectors.shape[1:])
            inside = positions[order] < length
            own[positions[order][inside]] = vectors[order][inside]  # padding may be held nowhere
            rows.append(own.transpose(0, 1))
        x = torch.stack(rows)
        if layer.store.rotate:
            x = x @ torch.tensor(hadamard(x.shape[-1])).float() * x.shape[-1] ** -0.5
        sides.append(x)
    return sides


def stock_logits(model, cache, ids, mask):
    """Logits of the last tokens ``ids`` by the unpatched model over what a tokops cache held before them."""
    past = cache.get_seq_length() - ids.shape[1]
    stock = DynamicCache(config=model.config)
    for layer, own in zip(stock.layers, cache.layers, strict=True):
        layer.update(*contents(own, past))
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, past:]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=stock).logits
