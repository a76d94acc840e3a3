"""Costs of decoding that is true to the law, per token, over a vocabulary of 131072: the tables of docs/methods.

    python benchmarks/constrained.py

AWRS: how often the constraint is asked, and what a token costs, beside a pass that asks about every token. ASAp: what
a step costs in a new and in a known context, beside a copy of the row. One thread; medians, rows that every pass reads
anew.
"""

import statistics
import time

import numpy as np
import torch
from tokops.lib._grammar import AsapTrie

from tokops._bitmask import packed
from tokops.methods import AWRS

V, ROWS = 131072, 16


def micros(run, repeats=15):
    """Median time of a call, in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def awrs() -> None:
    print("| law | legal tokens | checks per token | us per token | with a mask | asking about every token |")
    print("| --- | --- | --- | --- | --- | --- |")
    for law, scale, share in (
        ("peaked", 6, 0.3),
        ("typical", 3, 0.3),
        ("typical", 3, 0.01),
        ("flat", 1, 0.01),
    ):
        logits = scale * torch.randn(ROWS, V, generator=torch.Generator().manual_seed(1))
        legal = torch.rand(V, generator=torch.Generator().manual_seed(2)) < share
        ok, mask = legal.tolist().__getitem__, packed(legal)
        masks = [mask] * ROWS
        settings = {"seed": 0, "streams": range(ROWS), "positions": [0] * ROWS}
        checks = [
            c
            for seed in range(8)
            for c in AWRS().sample(logits, [ok] * ROWS, **{**settings, "seed": seed}).checks
        ]

        def draw(logits=logits, ok=ok, settings=settings, masks=None):
            return AWRS().sample(logits, [ok] * ROWS, masks=masks, **settings)

        columns = (
            f"{law}, N(0, {scale}^2)",
            f"{share:.0%}",
            f"{statistics.mean(checks):.1f}",
            f"{micros(draw, 5) / ROWS:.0f}",
            f"{micros(lambda draw=draw, masks=masks: draw(masks=masks), 5) / ROWS:.0f}",
            f"{micros(lambda ok=ok: [ok(t) for t in range(V)], 3):.0f}",
        )
        print("|", " | ".join(columns), "|")


def asap() -> None:
    rng = np.random.default_rng(0)
    source = (3 * rng.standard_normal(V)).astype(np.float32)
    row = source.copy()
    copy = micros(lambda: np.copyto(row, source))
    print("| legal tokens | kept one by one | new context, us | known context, us | copy of the row, us |")
    print("| --- | --- | --- | --- | --- |")
    for share in (0.99, 0.5, 0.01):
        mask = packed(torch.from_numpy(rng.random(V) < share)).numpy()
        trie = AsapTrie(V)

        def step(trie, mask=mask):
            np.copyto(row, source)
            trie.visit(-1, -1, 0.0, row, mask, True)

        new = micros(lambda step=step: step(AsapTrie(V)))
        step(trie)
        known = micros(lambda step=step, trie=trie: step(trie))
        kept = len(trie.node(0)["tokens"])
        print(f"| {share:.0%} | {kept} | {new - copy:.0f} | {known - copy:.0f} | {copy:.0f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    awrs()
    print()
    asap()
