"""A cache of several layers driven as a model drives it, and what its parts hold, read slot by slot."""

import itertools

import torch

from tokops.attention.parts import decoded
from tokops.kvcache import decode


class Layers:
    """Stores of a layout, one a layer."""

    def __init__(self, layout, layers):
        self.layout = layout
        self.stores = [layout.new_store(i) for i in range(layers)]

    def forward(self, tokens, prompt=False, starts=None, q=None):
        """New tokens: keys and values ``[B, T, H, D]`` of every layer. Outputs of ``q`` where it is given."""
        k = tokens[0][0]
        self.layout.begin(k.shape[0], k.shape[1], k.shape[1] if prompt else 0, k.device)
        out = []
        for store, (k, v) in zip(self.stores, tokens, strict=True):
            store.append(k, v)
            if q is not None:
                out.append(decode(q, store, starts=starts).out)
            if prompt:
                self.layout.see_starts(starts)
                store.absorb(None)
        return out

    def read(self, tokens, prompt, size=1, starts=None):
        """A prompt of ``prompt`` tokens at once, then ``size`` at a time, as one decodes."""
        length = tokens[0][0].shape[1]
        bounds = [0, *range(prompt, length, size), length]
        for a, b in itertools.pairwise(bounds):
            if a < b:
                self.forward([[x[:, a:b] for x in layer] for layer in tokens], prompt=a == 0, starts=starts)

    def crop(self, tokens):
        restored = self.layout.crop(tokens)
        for store in self.stores:
            store.crop(restored)
        self.layout.drop_pages()

    def select(self, rows):
        self.layout.select(rows)
        for store in self.stores:
            store.select(torch.tensor(rows))

    def reset(self):
        self.layout.reset()
        for store in self.stores:
            store.reset()

    def held(self, layer):
        """Keys and values ``[B, H, L, D]`` of a layer; every position is held exactly once."""
        store, layout = self.stores[layer], self.layout
        dim = store._dim
        shape = (layout.batch, store.kv_heads, layout.length)
        out, times = torch.full((2, *shape, dim), float("nan")), torch.zeros(shape, dtype=torch.int)
        for part in store.parts():
            k, v = (decoded(part, side, dim) for side in "kv")
            table = part.block_table
            for b in range(shape[0]):
                for h in range(shape[1]):
                    count = int(part.lens[b, h] if part.lens.dim() == 2 else part.lens[b])
                    begin = 0 if part.begin is None else int(part.begin[b])
                    for slot in range(begin, count):
                        page, place = int(table[b, slot // k.shape[2]]), slot % k.shape[2]
                        if part.k_norm is not None and part.k_norm[page, h, place].isnan():
                            continue
                        if part.positions is not None:
                            position = int(part.positions[b, h, slot])
                            assert int(part.where[b, h, position]) == part.slot_base + slot
                        else:
                            position = slot + (0 if part.first is None else int(part.first[b]))
                        out[0, b, h, position], out[1, b, h, position] = k[page, h, place], v[page, h, place]
                        times[b, h, position] += 1
        return out[0], out[1], times
