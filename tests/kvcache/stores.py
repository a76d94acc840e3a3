"""Layouts and their stores without a model, and reading them back: for tests of this family."""

import torch

from tokops.attention.parts import decoded
from tokops.kvcache.quantized import QuantizedLayout

CPU = torch.device("cpu")
HEADS, DIM = 2, 32


class Cache:
    """A layout and the stores of some layers, driven as a model's cache drives them."""

    def __init__(self, keys, values, layers=2, **options):
        options = {"page": 8, "sinks": 0, "residual": 0, "rotate": False, **options}
        self.layout = QuantizedLayout(keys, values, **options)
        self.stores = [self.layout.new_store(i) for i in range(layers)]

    def forward(self, new, prompt_rows=0, starts=None):
        """Take tokens ``[layers, B, T, H, D]``; values are minus the keys."""
        _, batch, rows = new.shape[:3]
        self.layout.begin(batch, rows, prompt_rows, CPU)
        for store, k in zip(self.stores, new, strict=True):
            store.append(k, -k)
            store.flat_parts()  # as attention reads it
            if prompt_rows:
                self.layout.see_starts(starts)
                store.absorb()

    def settle(self):
        """What the next forward would begin with."""
        self.layout._settle()
        self.layout._place()

    def crop(self, tokens):
        restored = self.layout.crop(tokens)
        for store in self.stores:
            store.crop(restored)
        self.layout.drop_pages()

    def select(self, rows):
        self.layout.select(rows)
        for store in self.stores:
            store.select(torch.tensor(rows))

    def unshare(self):
        self.layout.unshare()
        for store in self.stores:
            store.follow()

    def reset(self):
        self.layout.reset()
        for store in self.stores:
            store.reset()


def held(store, side):
    """Of every sequence, what the parts of a store say: positions, in order, and their vectors ``[n, H, D]``."""
    batch = len(store.seq_lens)
    found = [([], [torch.empty(0, HEADS, DIM)]) for _ in range(batch)]
    for part in store.parts():
        pool = decoded(part, side, DIM)
        for b in range(batch):
            first = 0 if part.first is None else int(part.first[b])
            begin, end = 0 if part.begin is None else int(part.begin[b]), int(part.lens[b])
            rows = pool[part.block_table[b].long()].transpose(1, 2).flatten(0, 1)
            found[b][0].extend(range(first + begin, first + end))
            found[b][1].append(rows[begin:end] if end > begin else rows[:0])
    return [(torch.tensor(positions), torch.cat(vectors)) for positions, vectors in found]
