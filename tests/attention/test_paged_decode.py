"""paged_decode, paged_decode_scores and paged_scores against a row-by-row float64 oracle, and their refusals."""

import itertools

import pytest
import torch
from compare import assert_within_dtype_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokops.attention import inputs, merge_states, paged_decode, paged_decode_scores, paged_scores

from . import oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(x: inputs.Paged, device="cpu"):
    """Our result on `device` against the oracle."""
    args, extra = (
        [t.to(device) for t in x.decode_args],
        {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in x.extra.items()},
    )
    out, lse = paged_decode(*args, **extra)
    want, want_lse, _ = oracle.paged_decode(*x.decode_args, **x.extra)
    assert_within_dtype_error(out, want, x.q.dtype)
    assert_within_dtype_error(lse, want_lse, torch.float32)
    return out, lse


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 7, 8, 12, 16, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_sizes(group, dtype, device):
    check(inputs.paged(group, lens=[33, 70], heads=1, group=group, dtype=dtype), device)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dims(dim, dtype, device):
    check(inputs.paged(dim, lens=[40, 65], dim=dim, dtype=dtype), device)


@pytest.mark.parametrize("dim", [1, 2, 8, 20, 33])
def test_odd_head_dims_on_the_cpu(dim):
    check(inputs.paged(dim, lens=[20], dim=dim))


@pytest.mark.parametrize("page", [1, 16, 64])
def test_page_and_chunk_boundaries(page, device):
    lens = sorted({1, max(1, page - 1), page, page + 1, 63, 64, 65, 255, 256, 257})
    check(inputs.paged(page, lens=lens, heads=1, group=3, page=page), device)


def test_ragged_and_empty(device):
    out, lse = check(inputs.paged(1, lens=[0, 1, 0, 200]), device)
    assert not out[0].any()
    assert lse[2].isneginf().all()


def test_empty_batch(device):
    x = inputs.paged(0, lens=[5])
    q, k_pages, v_pages, table, lens = (t.to(device) for t in x.decode_args)
    out, lse = paged_decode(q[:0], k_pages, v_pages, table[:0], lens[:0])
    assert out.shape == (0, 1, 4, 64)
    assert lse.shape == (0, 1, 4)


@pytest.mark.parametrize("rows", [2, 5, 66])
def test_several_rows_are_causal(rows, device):
    x = inputs.paged(rows, lens=[rows, 90, rows + 1], rows=rows, group=3)
    check(x, device)
    x.extra = {"q_lens": inputs.int32(1, rows, 0), "starts": inputs.int32(0, 40, 0)}
    check(x, device)


@pytest.mark.parametrize("nodes", [1, 7, 64, 65, 130])
@pytest.mark.parametrize("window", [None, 3])
def test_trees(nodes, window, device):
    x = inputs.paged(nodes, lens=[nodes + 9, nodes], rows=nodes, heads=1, page=32)
    x.extra = {"ancestors": inputs.tree(nodes, 2, nodes), "window": window}
    check(x, device)


def test_a_chain_is_causal():
    x = inputs.paged(3, lens=[40], rows=6)
    chain = torch.tensor([[(1 << (i + 1)) - 1] for i in range(6)])[None]
    got = paged_decode(*x.decode_args, ancestors=chain)
    for a, b in zip(got, paged_decode(*x.decode_args), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("option", ["sink_logit", "log_gamma", "softcap", "window", "scale", "starts"])
def test_each_option(option, device):
    x = inputs.paged(5, lens=[33, 80], rows=2, group=2)
    value = {
        "sink_logit": torch.randn(4),
        "log_gamma": torch.randn(4) * 3,
        "softcap": 1.5,
        "window": 7,
        "scale": 1.0,
        "starts": inputs.int32(4, 60),
    }[option]
    x.extra = {option: value}
    out, _ = check(x, device)
    plain, _ = paged_decode(*(t.to(device) for t in x.decode_args))
    assert not torch.allclose(out, plain, atol=1e-3), "the option changes nothing"


@pytest.mark.parametrize(("s", "hs"), [(1, 1), (1, 2), (1, 6), (3, 1), (3, 2), (3, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selections(s, hs, dtype, device):
    lens = [200, 64, 3]
    x = inputs.paged(s, lens=lens, rows=3, group=3, dtype=dtype)
    selected, counts = inputs.selection(hs, lens, s, hs, 70)
    x.extra = {"selected": selected, "counts": counts}
    check(x, device)
    x.extra["counts"] = None
    check(x, device)


@pytest.mark.parametrize("k", [0, 1, 49, 50, 51])
def test_selection_sizes(k):
    x = inputs.paged(k, lens=[50])
    selected = torch.full((1, 1, 2, k), -1, dtype=torch.int32)
    n = min(k, 50)
    selected[..., :n] = torch.arange(n)
    x.extra = {"selected": selected}
    out, lse = check(x)
    if k >= 50:
        dense = paged_decode(*x.decode_args)
        assert torch.equal(out, dense[0])
        assert torch.equal(lse, dense[1])


def test_three_dimensional_selection():
    x = inputs.paged(1, lens=[50])
    selected, counts = inputs.selection(1, [50], 1, 2, 9)
    want = paged_decode(*x.decode_args, selected=selected, counts=counts)
    got = paged_decode(*x.decode_args, selected=selected[:, 0], counts=counts[:, 0])
    assert torch.equal(got[0], want[0])


def test_contiguous_cache_is_one_page_and_uncopied():
    kv = torch.randn(2, 2, 40, 64)
    table = torch.arange(2, dtype=torch.int32)[:, None]
    x = inputs.Paged(torch.randn(2, 1, 4, 64), kv, kv.roll(1, 2), table, inputs.int32(40, 11))
    check(x)


def test_a_table_per_head(device):
    check(inputs.paged(9, lens=[60, 33], rows=2, heads=3, per_head=True), device)


def test_what_is_not_seen_may_be_nan(device):
    x = inputs.paged(2, lens=[70, 40], rows=3, page=8)
    want = paged_decode(*(t.to(device) for t in x.decode_args))
    for b, length in ((0, 70), (1, 40)):  # the slots after the end
        page = x.block_table[b, length // 8] if length // 8 < x.block_table.shape[1] else None
        if page is not None:
            x.k_pages[page, :, length % 8 :] = float("nan")
            x.v_pages[page, :, length % 8 :] = float("inf")
    got = paged_decode(*(t.to(device) for t in x.decode_args))
    assert torch.equal(got[0], want[0])
    v = x.v_pages.clone()
    v[x.block_table[0, 69 // 8], :, 69 % 8] = float("nan")  # seen by the last row alone
    out, _ = paged_decode(*(t.to(device) for t in (x.q, x.k_pages, v, x.block_table, x.seq_lens)))
    assert torch.equal(out[0, :2], got[0][0, :2])
    assert out[0, 2].isnan().all()


def test_nan_scores_count_as_minus_infinity(device):
    x = inputs.paged(4, lens=[30])
    x.k_pages[x.block_table[0, 0], 0, 2] = float("nan")
    x.v_pages[x.block_table[0, 0], 0, 2] = float("nan")
    check(x, device)
    x.q[0, 0, 0] = float("nan")
    out, lse = paged_decode(*(t.to(device) for t in x.decode_args))
    assert not out[0, 0, 0].any()
    assert lse[0, 0, 0].isneginf()


def test_infinite_scores(device):
    x = inputs.paged(4, lens=[30])
    x.q[0, 0, :, 0] = 1.0
    x.k_pages[x.block_table[0, 0], :, 2, 0] = float("inf")
    out, _ = paged_decode(*(t.to(device) for t in x.decode_args))
    value = x.v_pages[x.block_table[0, 0], :, 2].repeat_interleave(2, 0)
    torch.testing.assert_close(out[0, 0].cpu(), value)


@pytest.mark.parametrize("reduce", ["none", "max", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores(reduce, dtype, device):
    x = inputs.paged(6, lens=[90, 12, 0], group=3, dtype=dtype)
    x.extra = {"starts": inputs.int32(3, 0, 0)}
    _, _, raw = oracle.paged_decode(*x.decode_args, **x.extra)
    raw = raw[:, 0]
    groups = raw.view(3, 2, 3, -1)
    want = {"none": raw, "max": groups.amax(2), "sum": groups.sum(2)}[reduce]
    moved = [t.to(device) for t in x.decode_args]
    starts = x.extra["starts"].to(device)
    out, _, scores = paged_decode_scores(*moved, reduce=reduce, starts=starts)
    assert_within_dtype_error(scores, want, torch.float32 if dtype == torch.float32 else torch.float16)
    assert torch.equal(out, paged_decode(*moved, starts=starts)[0])
    alone = paged_scores(moved[0], moved[1], moved[3], moved[4], reduce=reduce, starts=starts)
    assert_within_dtype_error(alone, want, torch.float32 if dtype == torch.float32 else torch.float16)
    short = paged_scores(moved[0], moved[1], moved[3], moved[4], reduce=reduce, starts=starts, max_len=20)
    assert torch.equal(short, alone[..., :20])


@pytest.mark.parametrize("reduce", ["soft_vote", "soft_max"])
def test_normalised_scores(reduce, device):
    x = inputs.paged(6, lens=[90, 12], group=3)
    _, _, raw = oracle.paged_decode(*x.decode_args)
    votes = raw[:, 0].softmax(-1)
    want = votes.sum(1, keepdim=True) if reduce == "soft_vote" else votes.view(2, 2, 3, -1).amax(2)
    got = paged_decode_scores(*(t.to(device) for t in x.decode_args), reduce=reduce)[2].cpu()
    seen = ~got.isneginf()
    assert torch.equal(seen[0, 0], torch.arange(96) < 90)
    assert_within_dtype_error(got[seen], want[seen], torch.float32)


@pytest.mark.parametrize("channels", [[0], [3, 40, 3], list(range(64))])
def test_scores_over_channels(channels):
    x = inputs.paged(6, lens=[30])
    q, k = x.q.clone(), x.k_pages.clone()
    drop = [c for c in range(64) if c not in channels]
    q[..., drop] = 0
    want = oracle.paged_decode(q, k, x.v_pages, x.block_table, x.seq_lens)[2][:, 0]
    got = paged_scores(*x.score_args, channels=torch.tensor(channels))
    assert_within_dtype_error(got, want)
    per_head = torch.tensor(channels).expand(4, -1)
    assert torch.equal(paged_scores(*x.score_args, channels=per_head), got)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_combination(data):
    """Whatever the arguments, the oracle agrees."""
    draw = lambda s: data.draw(s)  # noqa: E731
    rows, heads, group = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3, 5, 7])),
    )
    lens = draw(st.lists(st.integers(rows, 80), min_size=1, max_size=3))
    x = inputs.paged(
        draw(st.integers(0, 99)),
        lens=lens,
        rows=rows,
        heads=heads,
        group=group,
        dim=draw(st.sampled_from([16, 64])),
        page=draw(st.sampled_from([1, 5, 64])),
        dtype=draw(st.sampled_from(DTYPES)),
        per_head=draw(st.booleans()),
    )
    maybe = lambda name, value: x.extra.update({name: value}) if draw(st.booleans()) else None  # noqa: E731
    maybe("starts", torch.tensor([draw(st.integers(0, n)) for n in lens], dtype=torch.int32))
    maybe("window", draw(st.integers(1, 30)))
    maybe("softcap", 2.0)
    maybe("sink_logit", torch.randn(heads * group))
    maybe("log_gamma", torch.randn(heads * group))
    maybe("ancestors", inputs.tree(1, len(lens), rows))
    if draw(st.booleans()):
        least = [int(n) for n in (x.seq_lens.amin(-1) if x.seq_lens.dim() == 2 else x.seq_lens)]
        s, hs = draw(st.sampled_from([1, rows])), draw(st.sampled_from([1, heads, heads * group]))
        x.extra["selected"], x.extra["counts"] = inputs.selection(3, least, s, hs, draw(st.integers(0, 40)))
    check(x)


def test_any_split_merges_to_the_whole(device):
    x = inputs.paged(8, lens=[500], group=3, page=64)
    args = [t.to(device) for t in x.decode_args]
    whole = paged_decode(*args)
    cuts = [0, 1, 63, 64, 300, 500]
    parts = [
        paged_decode(*args, selected=torch.arange(a, b, dtype=torch.int32, device=device).view(1, 1, 1, -1))
        for a, b in itertools.pairwise(cuts)
    ]
    for order in (parts, parts[::-1]):
        out, lse = merge_states([p[0] for p in order], [p[1] for p in order])
        torch.testing.assert_close(out, whole[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse, whole[1], rtol=1e-6, atol=1e-6)


def test_threads_change_nothing():
    x = inputs.paged(8, lens=[2000, 1, 700], group=3, page=64, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(paged_decode(*x.decode_args))
    finally:
        torch.set_num_threads(before)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(lse, results[0][1])


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """The last page of a pool of 2.2e9 elements, of which only that page is touched."""
    pages, page = 17000, 1024
    pool = torch.empty(pages, 1, page, 128, dtype=torch.bfloat16)  # 4.4 GB of address space
    x = inputs.paged(1, lens=[page], heads=1, page=page, dim=128, dtype=torch.bfloat16)
    pool[-1] = x.k_pages[x.block_table[0, 0]]
    table = inputs.int32(pages - 1)[None]
    got = paged_decode(x.q, pool, pool, table, x.seq_lens)[0]
    small = x.k_pages[x.block_table[0, 0]][None]
    assert torch.equal(got, paged_decode(x.q, small, small, inputs.int32(0)[None], x.seq_lens)[0])


def bad(message, **changes):
    return pytest.param(changes, message, id=message[:40])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        bad("q must be float32, got", q=torch.randn(2, 1, 4, 64).double()),
        bad("q must have 4 dimensions, got 3", q=torch.randn(2, 4, 64)),
        bad("q has head dimension 32, the pages 64", q=torch.randn(2, 1, 4, 32)),
        bad("query heads must be 1..32 times the KV heads, got 3 and 2", q=torch.randn(2, 1, 3, 64)),
        bad("query heads must be 1..32 times the KV heads, got 66 and 2", q=torch.randn(2, 1, 66, 64)),
        bad("q must have 1..256 rows per sequence, got 257", q=torch.randn(2, 257, 4, 64)),
        bad("block_table must have 3 rows, got 2", q=torch.randn(3, 1, 4, 64)),
        bad("v_pages must", v_pages=torch.randn(7, 2, 16, 32)),
        bad("v_pages must be float32", v_pages=torch.randn(9, 2, 16, 64).half()),
        bad(
            "k_pages must have a contiguous last dimension", k_pages=torch.randn(9, 2, 64, 16).transpose(2, 3)
        ),
        bad("block_table must be int32, got", block_table=torch.zeros(2, 4, dtype=torch.int64)),
        bad("block_table entries must be 0..8", block_table=torch.full((2, 4), 9, dtype=torch.int32)),
        bad("block_table entries must be 0..8", block_table=torch.full((2, 4), -1, dtype=torch.int32)),
        bad("seq_lens must be 0..64", seq_lens=inputs.int32(65, 3)),
        bad("seq_lens must be 0..64", seq_lens=inputs.int32(-1, 3)),
        bad("seq_lens must be int32, got", seq_lens=torch.tensor([3, 3])),
        bad("seq_lens must count the 3 new tokens", q=torch.randn(2, 3, 4, 64), seq_lens=inputs.int32(2, 9)),
        bad("q_lens must be 0..1 and at most seq_lens", q_lens=inputs.int32(2, 1)),
        bad("starts must be >= 0", starts=inputs.int32(-1, 1)),
        bad("starts must be [B]", starts=inputs.int32(1)),
        bad("sink_logit must be [Hq]", sink_logit=torch.randn(3)),
        bad("log_gamma must be float32, got", log_gamma=torch.randn(4).double()),
        bad("softcap must be > 0", softcap=0.0),
        bad("window must be > 0", window=0),
        bad("counts needs selected", counts=torch.zeros(2, 1, 1, dtype=torch.int32)),
        bad(
            "selected must be [B, 1 or T, 1 or Hkv or Hq, k]",
            selected=torch.zeros(2, 1, 3, 4, dtype=torch.int32),
        ),
        bad("selected must be int32, got", selected=torch.zeros(2, 1, 1, 4, dtype=torch.int64)),
        bad("strictly ascending", selected=torch.tensor([3, 1], dtype=torch.int32).expand(2, 1, 1, 2)),
        bad("strictly ascending", selected=torch.tensor([3, 3], dtype=torch.int32).expand(2, 1, 1, 2)),
        bad(
            "selected positions must be 0..seq_lens-1",
            selected=torch.full((2, 1, 1, 1), 40, dtype=torch.int32),
        ),
        bad(
            "counts must be 0..1",
            selected=torch.zeros(2, 1, 1, 1, dtype=torch.int32),
            counts=torch.full((2, 1, 1), 2, dtype=torch.int32),
        ),
        bad("ancestors must be [B, T, W]", ancestors=torch.zeros(2, 2, 1, dtype=torch.int64)),
        bad("ancestors must be int64, got", ancestors=torch.zeros(2, 1, 1, dtype=torch.int32)),
    ],
)
def test_refusals(changes, message):
    x = inputs.paged(0, lens=[60, 30])
    arguments = dict(zip(("q", "k_pages", "v_pages", "block_table", "seq_lens"), x.decode_args, strict=True))
    with pytest.raises(RuntimeError) as caught:
        paged_decode(**{**arguments, **changes})
    text = str(caught.value)
    assert "paged_decode" in text
    assert message in text


def test_scores_refuse():
    x = inputs.paged(0, lens=[60, 30])
    with pytest.raises(RuntimeError, match="paged_scores: reduce must be none, max or sum, got mean"):
        paged_scores(*x.score_args, reduce="mean")
    with pytest.raises(RuntimeError, match=r"paged_scores: max_len must be 0..64"):
        paged_scores(*x.score_args, max_len=65)
    with pytest.raises(RuntimeError, match=r"paged_scores: channels must be 0..63"):
        paged_scores(*x.score_args, channels=torch.tensor([64]))
    with pytest.raises(RuntimeError, match="paged_decode_scores: reduce must be"):
        paged_decode_scores(*x.decode_args, reduce="")
