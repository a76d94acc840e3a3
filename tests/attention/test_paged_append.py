"""paged_append and paged_gather_rows against row-by-row loops in Python, bit by bit over whole pools."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops.attention import paged_append, paged_gather_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_pages(batch, heads, page, pages, d, dtype=torch.float32, per_head=False, seed=0):
    """Pools of random numbers and a table of entries that are all different, two pages of the pool unused."""
    gen = torch.Generator().manual_seed(seed)
    rows = (batch, heads, pages) if per_head else (batch, pages)
    n = batch * pages * (heads if per_head else 1)
    table = torch.randperm(n + 2, generator=gen)[:n].view(rows).int()
    shape = (n + 2, 1 if per_head else heads, page, d)
    return [torch.randn(shape, generator=gen).to(dtype) for _ in range(2)], table


def row(pool, table, b, h, position):
    """The pool's row of a logical position."""
    page = pool.shape[2]
    entry = table[b, h] if table.dim() == 3 else table[b]
    return pool[int(entry[position // page]), h if table.dim() == 2 else 0, position % page]


def length_of(lens, b, h):
    return int(lens[b, h] if lens.dim() == 2 else lens[b])


def append_by_hand(pools, table, lens, new, counts):
    for pool, x in zip(pools, new, strict=True):
        for b in range(x.shape[0]):
            for h in range(x.shape[2]):
                n = counts[b] if length_of(lens, b, h) else 0
                for i in range(n):
                    row(pool, table, b, h, length_of(lens, b, h) - n + i).copy_(x[b, i, h])


def gather_by_hand(pools, table, base, rows, counts):
    heads = table.shape[1] if table.dim() == 3 else pools[0].shape[1]
    for pool in pools:
        for b in range(table.shape[0]):
            for h in range(heads):
                start = length_of(base, b, h)
                kept = [row(pool, table, b, h, start + int(r)).clone() for r in rows[b, : counts[b]]]
                for j, x in enumerate(kept):
                    row(pool, table, b, h, start + j).copy_(x)


def assert_same_pools(got, want):
    for name, a, b in zip(("k_pages", "v_pages"), got, want, strict=True):
        assert torch.equal(a.cpu(), b), name


SHAPES = [  # batch, heads, page size, pages, new rows, D
    (2, 3, 4, 5, 1, 8),
    (3, 2, 16, 3, 7, 64),
    (1, 1, 1, 12, 12, 1),
    (2, 2, 64, 1, 5, 33),
    (1, 4, 5, 7, 31, 128),
    (1, 1, 8, 40, 300, 600),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_append(device, shape, per_head, dtype):
    batch, heads, page, pages, n, d = shape
    want, table = random_pages(batch, heads, page, pages, d, dtype, per_head)
    lens = torch.randint(n, page * pages + 1, (batch, heads) if per_head else (batch,), dtype=torch.int32)
    counts = torch.randint(0, n + 1, (batch,), dtype=torch.int32)
    for q_lens in (None, counts):
        got = [x.clone().to(device) for x in want]
        new = [torch.randn(batch, n, heads, d).to(dtype) for _ in range(2)]
        paged_append(
            *got,
            table.to(device),
            lens.to(device),
            *(x.to(device) for x in new),
            q_lens=None if q_lens is None else q_lens.to(device),
        )
        append_by_hand(want, table, lens, new, [n] * batch if q_lens is None else q_lens.tolist())
        assert_same_pools(got, want)


def test_append_at_page_boundaries_and_to_empty_sequences(device):
    want, table = random_pages(5, 2, 4, 3, 8)
    got = [x.clone().to(device) for x in want]
    lens = torch.tensor(
        [4, 5, 3, 12, 0]
    ).int()  # ends a page, crosses one, starts the first, fills the last, nothing
    new = [torch.randn(5, 3, 2, 8) for _ in range(2)]
    paged_append(*got, table.to(device), lens.to(device), *(x.to(device) for x in new))
    append_by_hand(want, table, lens, new, [3, 3, 3, 3, 0])
    assert_same_pools(got, want)


def test_append_from_strided_rows_into_strided_pools(device):
    """Heads-first keys as Hugging Face holds them, pools that are views, and v laid out unlike k."""
    batch, heads, n, d, capacity = 2, 3, 5, 16, 40
    big_k, big_v = torch.randn(batch, heads, capacity, 2 * d), torch.randn(capacity, batch, heads, d)
    views = [lambda k, v: k[..., d:], lambda k, v: v.permute(1, 2, 0, 3)]
    table = torch.arange(batch)[:, None].int()  # one page per sequence
    lens = torch.tensor([40, 11]).int()
    k = torch.randn(batch, heads, n, d).transpose(1, 2)
    v = torch.randn(n, d, batch, heads).permute(2, 0, 3, 1)  # D is not contiguous
    device_k, device_v = big_k.clone().to(device), big_v.clone().to(device)
    paged_append(
        *(view(device_k, device_v) for view in views),
        table.to(device),
        lens.to(device),
        k.to(device),
        v.to(device),
    )
    append_by_hand([view(big_k, big_v) for view in views], table, lens, [k, v], [n] * batch)
    assert_same_pools([device_k, device_v], [big_k, big_v])


def test_append_through_a_strided_table(device):
    want, table = random_pages(3, 1, 2, 6, 4)
    got = [x.clone().to(device) for x in want]
    lens, new = torch.tensor([9, 12, 2]).int(), [torch.randn(3, 2, 1, 4) for _ in range(2)]
    wide = torch.stack([table.t(), torch.full_like(table.t(), 10**6)], 2)[..., 0].t()  # neither stride is 1
    paged_append(
        *got, wide.to(device), torch.stack([lens, lens], 1)[:, 0].to(device), *(x.to(device) for x in new)
    )
    append_by_hand(want, table, lens, new, [2, 2, 2])
    assert_same_pools(got, want)


@pytest.mark.slow
def test_append_beyond_two_to_the_31_elements(device):
    """Only the pages written to become real memory: the pools are 4.3 GB of address space each."""
    page, d = 64, 128
    n = 2**31 // (page * d) + 4
    k, v = (torch.empty(n, 1, page, d, dtype=torch.bfloat16, device=device) for _ in range(2))
    table = torch.tensor([[n - 2, n - 1]], device=device).int()
    new = [torch.randn(1, 70, 1, d).bfloat16() for _ in range(2)]
    paged_append(k, v, table, torch.tensor([100], device=device).int(), *(x.to(device) for x in new))
    for pool, x in ((k, new[0]), (v, new[1])):
        assert torch.equal(pool[n - 2, 0, 30:].cpu(), x[0, :34, 0])
        assert torch.equal(pool[n - 1, 0, :36].cpu(), x[0, 34:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gather(device, shape, per_head, dtype):
    batch, heads, page, pages, n, d = shape
    want, table = random_pages(batch, heads, page, pages, d, dtype, per_head)
    room = page * pages // 2 + n - page * pages // 2 * n // (page * pages)
    base = torch.randint(
        0, page * pages - room + 1, (batch, heads) if per_head else (batch,), dtype=torch.int32
    )
    rows = torch.stack([torch.randperm(room)[:n].sort().values for _ in range(batch)]).int()
    counts = torch.randint(0, rows.shape[1] + 1, (batch,), dtype=torch.int32)
    for live in (None, counts):
        got = [x.clone().to(device) for x in want]
        paged_gather_rows(
            *got,
            table.to(device),
            base.to(device),
            rows.to(device),
            counts=None if live is None else live.to(device),
        )
        gather_by_hand(want, table, base, rows, [rows.shape[1]] * batch if live is None else live.tolist())
        assert_same_pools(got, want)


def test_gather_of_everything_moves_nothing(device):
    want, table = random_pages(2, 2, 4, 4, 8)
    got = [x.clone().to(device) for x in want]
    rows = torch.arange(16).expand(2, 16).int()
    paged_gather_rows(
        *got, table.to(device), torch.zeros(2, dtype=torch.int32, device=device), rows.to(device)
    )
    assert_same_pools(got, want)


def test_gather_does_not_read_dead_entries(device):
    want, table = random_pages(2, 1, 4, 2, 8)
    got = [x.clone().to(device) for x in want]
    rows, base = torch.tensor([[2, 5, -1, 99], [7, 7, 7, 7]]).int(), torch.tensor([1, 0]).int()
    counts = torch.tensor([2, 0]).int()
    paged_gather_rows(*got, table.to(device), base.to(device), rows.to(device), counts=counts.to(device))
    gather_by_hand(want, table, base, rows, [2, 0])
    assert_same_pools(got, want)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), page=st.sampled_from([1, 3, 16]), pages=st.integers(1, 6), seed=st.integers(0, 1000))
def test_any_rows(data, page, pages, seed):
    """Append then compact: what stays is what was asked for, wherever it lay."""
    capacity = page * pages
    want, table = random_pages(1, 2, page, pages, 3, seed=seed)
    got = [x.clone() for x in want]
    start = data.draw(st.integers(0, capacity))
    rows = sorted(data.draw(st.sets(st.integers(0, capacity - start - 1)))) if start < capacity else []
    base, index = torch.tensor([start]).int(), torch.tensor([rows]).int().view(1, -1)
    paged_gather_rows(*got, table, base, index)
    gather_by_hand(want, table, base, index, [len(rows)])
    assert_same_pools(got, want)


def append_arguments():
    pools, table = random_pages(2, 3, 4, 5, 8)
    names = ("k_pages", "v_pages", "block_table", "seq_lens", "k", "v", "q_lens")
    values = (
        *pools,
        table,
        torch.tensor([6, 20]).int(),
        torch.zeros(2, 4, 3, 8),
        torch.zeros(2, 4, 3, 8),
        None,
    )
    return dict(zip(names, values, strict=True))


TABLE = append_arguments()["block_table"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_pages": torch.zeros(12, 3, 4)}, "k_pages must have 4 dimensions, got 3"),
        (
            {"k_pages": torch.zeros(12, 3, 4, 8).double()},
            "k_pages must be float32.*bfloat16.*float16, got float64",
        ),
        (
            {"k_pages": torch.zeros(12, 3, 8, 4).transpose(2, 3)},
            "k_pages must have a contiguous last dimension",
        ),
        ({"v_pages": torch.zeros(12, 3, 4, 8).half()}, "v_pages must be float32, got float16"),
        ({"v_pages": torch.zeros(12, 3, 4, 9)}, r"v_pages must .*shape of k_pages.*got \[12, 3, 4, 9\]"),
        (
            {"v_pages": torch.zeros(12, 3, 8, 4).transpose(2, 3)},
            "v_pages must have a contiguous last dimension",
        ),
        ({"block_table": TABLE.long()}, "block_table must be int32, got int64"),
        ({"block_table": TABLE[0]}, "block_table must have 2 or 3 dimensions, got 1"),
        ({"block_table": TABLE[:, None].expand(2, 3, 5)}, "k_pages must have one head per page"),
        ({"seq_lens": torch.tensor([6, 20])}, "seq_lens must be int32, got int64"),
        ({"seq_lens": torch.tensor([6, 20, 5]).int()}, r"seq_lens must be \[B\].*got \[3\]"),
        (
            {"seq_lens": torch.tensor([6, 21]).int()},
            r"seq_lens must be 0\.\.20 \(pages \* page size\), got .*21",
        ),
        (
            {"seq_lens": torch.tensor([-1, 20]).int()},
            r"seq_lens must be 0\.\.20 \(pages \* page size\), got .*-1",
        ),
        ({"seq_lens": torch.tensor([3, 20]).int()}, "seq_lens must count the 4 new tokens"),
        ({"block_table": TABLE + 8}, r"block_table entries must be 0\.\.11 for pages in use"),
        ({"block_table": TABLE - 8}, r"block_table entries must be 0\.\.11 for pages in use"),
        ({"k": torch.zeros(2, 4, 3, 8).half()}, "k must be float32, got float16"),
        ({"k": torch.zeros(2, 4, 24)}, "k must have 4 dimensions, got 3"),
        ({"k": torch.zeros(2, 4, 2, 8)}, r"k must be \[B, T, Hkv, D\] = \[2, 4, 3, 8\], got \[2, 4, 2, 8\]"),
        ({"v": torch.zeros(2, 5, 3, 8)}, r"v must be \[B, T, Hkv, D\] = \[2, 4, 3, 8\], got \[2, 5, 3, 8\]"),
        ({"q_lens": torch.tensor([1, 5]).int()}, r"q_lens must be 0\.\.4 and at most seq_lens, got .*5"),
        ({"q_lens": torch.tensor([-1, 4]).int()}, r"q_lens must be 0\.\.4 and at most seq_lens, got .*-1"),
        ({"q_lens": torch.tensor([4]).int()}, r"q_lens must be \[B\] = \[2\], got \[1\]"),
        ({"q_lens": torch.tensor([1, 1])}, "q_lens must be int32, got int64"),
    ],
)
def test_bad_arguments_of_append(change, message):
    args = {**append_arguments(), **change}
    before = args["k_pages"].clone()
    with pytest.raises(RuntimeError, match="paged_append: .*" + message):
        paged_append(**args)
    assert torch.equal(args["k_pages"], before)


def test_unused_table_entries_may_hold_anything():
    args = append_arguments()
    args["seq_lens"] = torch.tensor([6, 8]).int()
    args["block_table"] = args["block_table"].clone()
    args["block_table"][:, 2:] = -7
    paged_append(**args)


def test_heads_of_one_sequence_are_all_empty_or_none():
    pools, table = random_pages(1, 2, 4, 2, 8, per_head=True)
    new = torch.zeros(1, 1, 2, 8)
    with pytest.raises(RuntimeError, match="seq_lens must count the 1 new tokens"):
        paged_append(*pools, table, torch.tensor([[3, 0]]).int(), new, new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.tensor([[0, 2, 2], [0, 1, 2]]).int()}, "rows must be strictly ascending from 0 up"),
        ({"rows": torch.tensor([[-1, 2, 3], [0, 1, 2]]).int()}, "rows must be strictly ascending from 0 up"),
        ({"rows": torch.tensor([[0, 1, 2], [0, 1, 13]]).int()}, r"base \+ rows must be below 20"),
        ({"rows": torch.tensor([[0, 1, 2]]).int()}, r"rows must be \[B, n\] with B 2, got \[1, 3\]"),
        ({"rows": torch.tensor([[0, 1, 2], [0, 1, 2]])}, "rows must be int32, got int64"),
        ({"base": torch.tensor([-1, 3]).int()}, "base must be >= 0, got .*-1"),
        ({"base": torch.tensor([1, 3])}, "base must be int32, got int64"),
        ({"base": torch.tensor([1]).int()}, r"base must be block_table's shape .* = \[2\], got \[1\]"),
        ({"counts": torch.tensor([1, 4]).int()}, r"counts must be 0\.\.3, got .*4"),
        ({"counts": torch.tensor([-1, 2]).int()}, r"counts must be 0\.\.3, got .*-1"),
        ({"counts": torch.tensor([1]).int()}, r"counts must be \[B\] = \[2\], got \[1\]"),
        ({"block_table": TABLE + 8}, r"block_table entries must be 0\.\.11 for pages in use"),
        ({"v_pages": torch.zeros(12, 3, 4, 8).half()}, "v_pages must be float32, got float16"),
    ],
)
def test_bad_arguments_of_gather(change, message):
    args = {name: append_arguments()[name] for name in ("k_pages", "v_pages", "block_table")}
    args.update(base=torch.tensor([1, 8]).int(), rows=torch.tensor([[0, 2, 3], [1, 2, 11]]).int())
    with pytest.raises(RuntimeError, match="paged_gather_rows: .*" + message):
        paged_gather_rows(**{**args, **change})
