"""Named inputs of the ops over pages that read a cache."""

from collections.abc import Iterator

import torch

from . import inputs


def small() -> Iterator[tuple[str, inputs.Paged]]:
    tokens = inputs.int32
    x = inputs.paged(1, lens=[1, 37, 0, 300], group=3)
    yield "ragged, one empty", x
    for i, (dtype, dim, group) in enumerate(
        [(torch.bfloat16, 64, 7), (torch.float16, 96, 4), (torch.float32, 80, 1), (torch.bfloat16, 192, 16)]
    ):
        yield (
            f"{dtype} D {dim} G {group}",
            inputs.paged(10 + i, lens=[70, 17], group=group, dim=dim, dtype=dtype, heads=1 + i % 2),
        )
    x = inputs.paged(2, lens=[40, 90, 5], rows=5, page=1)
    x.extra = {"q_lens": tokens(5, 3, 0), "starts": tokens(0, 80, 2), "scale": 0.2}
    yield "padded left and right, page 1", x
    x = inputs.paged(3, lens=[130, 64], rows=3, page=64, dtype=torch.bfloat16)
    x.extra = {
        "sink_logit": inputs.vector(3, 4),
        "log_gamma": inputs.vector(4, 4),
        "softcap": 3.0,
        "window": 20,
    }
    yield "sink, gamma, softcap, window", x
    x = inputs.paged(4, lens=[150, 81], rows=70, group=1)
    x.extra = {"ancestors": inputs.tree(4, 2, 70), "window": 9}
    yield "tree of 70", x
    x = inputs.paged(5, lens=[50, 30], rows=2, per_head=True, heads=3)
    yield "a table per head", x
    yield "heads with splits of their own", inputs.paged(13, lens=[193, 66], per_head=True, heads=3)
    x = inputs.paged(6, lens=[90, 33], page=100)
    x.k_pages, x.v_pages = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x.k_pages, x.v_pages))
    x.q = x.q.transpose(1, 2).contiguous().transpose(1, 2)
    yield "strided pools", x
    # The second row sees the initial token alone, which log_gamma then leaves as it is.
    x = inputs.paged(8, lens=[257, 1])
    x.extra = {"log_gamma": torch.tensor([0.5, -1.0, 0.25, 2.0])}
    yield "one key more than even splits, one key alone", x
    yield "rows that part at the end of a tile", inputs.paged(11, lens=[128, 96], rows=2)
    x = inputs.paged(12, lens=[130, 96], rows=2)
    x.extra = {"window": 70}
    yield "a window of whole tiles", x
    yield "float32 D 256", inputs.paged(9, lens=[70, 17], dim=256)
    yield "several blocks of rows", inputs.paged(11, lens=[60], rows=20, group=3)
    yield "a group of 32", inputs.paged(12, lens=[60], heads=1, group=32, dtype=torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs.paged(13, lens=[200, 130], rows=2, dtype=dtype)
        x.extra = {"window": 100}
        yield f"a window between rows, {dtype}", x
    for dim, length, dtype in ((256, 2600, torch.float32), (64, 1300, torch.bfloat16)):
        x = inputs.paged(16, lens=[length], heads=1, group=2, dim=dim, page=64, dtype=dtype)
        yield f"one head, {length} keys, {dtype}", x
    x = inputs.paged(17, lens=[600, 170], heads=1, page=64, dtype=torch.bfloat16)
    x.extra = {"scale": 1.0}
    yield "logits far apart", x
    x = inputs.paged(14, lens=[200, 130], rows=3)
    x.extra = {"q_lens": tokens(1, 3), "sink_logit": inputs.vector(5, 4)}
    yield "a sink and rows that do not exist", x
    x = inputs.paged(15, lens=[90], rows=3, group=5, dtype=torch.bfloat16)
    x.v_pages[x.block_table[0, 89 // 16], 0, 89 % 16, 7] = float("nan")
    yield "a NaN that the last row alone sees", x
    for dtype, group in ((torch.float32, 2), (torch.bfloat16, 8)):
        x = inputs.paged(7, lens=[90, 33], group=group, dtype=dtype)
        x.q[0, 0, 0, 0] = float("nan")
        page = int(x.block_table[1, 0])
        x.k_pages[page, 0, 3, 5] = float("nan")
        x.v_pages[page, 0, 3, 5] = float("inf")
        yield f"NaN in q and k, {dtype}", x


def selected() -> Iterator[tuple[str, inputs.Paged]]:
    lens = [100, 45, 9]
    for rows, s, hs, k, dtype in [
        (1, 1, 1, 30, torch.float32),
        (1, 1, 2, 64, torch.bfloat16),
        (1, 1, 6, 20, torch.float16),
        (1, 1, 6, 129, torch.float32),
        (4, 1, 2, 33, torch.float32),
        (4, 4, 2, 25, torch.bfloat16),
        (4, 4, 6, 5, torch.float32),
        (4, 4, 1, 0, torch.float32),
    ]:
        x = inputs.paged(20 + k, lens=lens, rows=rows, group=3, dtype=dtype)
        lists, counts = inputs.selection(k, lens, s, hs, k)
        x.extra = {"selected": lists, "counts": counts if k % 2 else None}
        yield f"selected S {s} Hs {hs} k {k}", x
