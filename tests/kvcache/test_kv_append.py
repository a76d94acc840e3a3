"""kv_append against an oracle that decodes bytes by the letter of the format, and its particular promises."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops.kvcache import Codec, kv_append

from . import oracle
from .pools import CODECS, grids, name, place, pool, read, table_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FULL = Codec("full")


def append(pools, table, lens, k, v, codecs, **extra):
    kv_append(*pools, table, lens, k, v, k_codec=codecs[0].write_code, v_codec=codecs[1].write_code, **extra)


def written(lens, counts, b, h):
    """First slot and number of rows of (b, h)."""
    length = int(lens[b, h] if lens.dim() == 2 else lens[b])
    n = counts[b] if length else 0
    return length - n, n


def assert_quantised(codec, tensors, before, table, lens, counts, x, starts=None):
    """Slots that were written hold the nearest codes of x on the grid of their group; others are untouched."""
    codes, scale, zero = tensors
    page, dim = codes.shape[2], x.shape[3]
    touched = torch.zeros(codes.shape[:3], dtype=torch.bool)
    touched_scale = torch.zeros(scale.shape, dtype=torch.bool)
    for b, h in itertools.product(range(x.shape[0]), range(x.shape[2])):
        first, n = written(lens, counts, b, h)
        for i in range(n):
            at = place(table, page, b, h, first + i)
            row = x[b, i, h].double().numpy()
            touched[at] = True
            if codec.kind == "full":
                assert torch.equal(codes[at], x[b, i, h])
                continue
            s, z = grids(codec, scale, zero, at, dim)
            oracle.assert_codes_nearest(row, codes[at].numpy(), codec.kind, s, z)
            if codec.geometry == "token":
                touched_scale[at] = True
                for g in range(0, dim, codec.group):
                    want = oracle.grid(
                        row[g : g + codec.group], codec.kind, codec.symmetric, not codec.is_fp8
                    )
                    assert (s[g], z if z is None else z[g]) == want
            elif codec.geometry == "channel":
                touched_scale[at[0], at[1], at[2] // codec.group] = True
                i0 = i // codec.group * codec.group
                rows = [r for r in range(i0, i0 + codec.group) if not starts or first + r >= starts[b]]
                group = x[b, rows, h].double().numpy() if rows else np.zeros((1, dim))
                for d in range(dim):
                    want = oracle.grid(group[:, d], codec.kind, codec.symmetric, not codec.is_fp8)
                    assert (s[d], z if z is None else z[d]) == want
    assert torch.equal(codes[~touched], before[0][~touched])
    assert torch.equal(scale[~touched_scale], before[1][~touched_scale])
    if zero.numel():
        assert torch.equal(zero[~touched_scale], before[2][~touched_scale])


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("codec", [*CODECS, FULL], ids=name)
def test_against_the_oracle(device, codec, per_head):
    dtype = DTYPES[[*CODECS, FULL].index(codec) % 3]
    batch, heads, page, pages, rows, dim = 3, 2, 8, 3, 16, 64
    unit = 8 if codec.geometry == "channel" else 1
    table = table_of(batch, heads, pages, per_head)
    n = table.numel() + 2
    shape = (batch, heads) if per_head else (batch,)
    lens = torch.randint(rows // unit, page * pages // unit + 1, shape).int() * unit
    counts = torch.tensor([0, 8, 16]).int()
    starts = (torch.randint(0, 10, (batch,)) + lens.view(batch, -1)[:, 0] - 12).clamp_min(0).int()
    k = (torch.randn(batch, rows, heads, dim) * 2 + 1).to(dtype)
    v = torch.randn(batch, rows, heads, dim).to(dtype)
    codecs = (codec, Codec("int8", group=32))
    for flip, extra in enumerate(({}, {"q_lens": counts}, {"q_lens": counts, "starts": starts})):
        order = -1 if flip == 1 else 1
        pair, x = codecs[::order], (k, v)
        before = [t for c in pair for t in pool(c, n, 1 if per_head else heads, page, dim, dtype)]
        got = [t.clone().to(device) for t in before]
        args = (t.to(device) for t in (table, lens, *x))
        append(got, *args, pair, **{k: t.to(device) for k, t in extra.items()})
        got = [t.cpu() for t in got]
        rest = (table, lens, counts.tolist() if extra else [rows] * batch)
        begins = starts.tolist() if "starts" in extra else None
        assert_quantised(pair[0], got[:3], before[:3], *rest, x[0], begins)
        assert_quantised(pair[1], got[3:], before[3:], *rest, x[1], begins)


def one_row(codec, x, dtype=torch.float32, grid=None):
    """Pool tensors whose first page is x ``[rows, D]``; with one page more, a head's scale is no token's."""
    rows, dim = x.shape
    tensors = codec.empty(2, 1, rows, dim)
    if grid is not None:
        tensors[1].fill_(grid[0])
        tensors[2].fill_(grid[1])
    new = torch.as_tensor(x).to(dtype)[None, :, None]
    rest = FULL.empty(2, 1, rows, dim, dtype)
    lens = torch.tensor([rows]).int()
    append([*tensors, *rest], torch.zeros(1, 1).int(), lens, new, new, (codec, FULL))
    return [t[:1] for t in tensors]


def test_bytes_of_a_row_by_hand():
    """0, 1, 2, ... count through the elements; each container puts them where the format says."""
    x = torch.arange(64.0)[None]
    on_grid = (1.0, 0.0)
    assert one_row(Codec("int8", "head"), x, grid=on_grid)[0].flatten().tolist() == list(range(64))
    symmetric = one_row(Codec("int8", "head", symmetric=True), x, grid=on_grid)[0].flatten().tolist()
    assert symmetric == list(range(128, 192))
    got = one_row(Codec("int4", "head"), x % 16, grid=on_grid)[0].flatten().tolist()
    assert got == [17 * j for j in range(16)] * 2
    x = torch.cat([torch.tensor([3.0] * 8 + [0.0] * 8 + [1.0] * 8 + [2.0] * 8), torch.arange(32) % 4])[None]
    got = one_row(Codec("int2", "head"), x, grid=on_grid)[0].flatten().tolist()
    assert got == [0b10010011] * 8 + [0b00000000, 0b01010101, 0b10101010, 0b11111111] * 2
    got = one_row(Codec("int4", "head"), torch.arange(32.0)[None] / 2, grid=on_grid)[0].flatten().tolist()
    # 0, .5, 1, 1.5, ...: halves go to the even code, and what is above 15 to 15
    want = [
        0,
        0,
        1,
        2,
        2,
        2,
        3,
        4,
        4,
        4,
        5,
        6,
        6,
        6,
        7,
        8,
        8,
        8,
        9,
        10,
        10,
        10,
        11,
        12,
        12,
        12,
        13,
        14,
        14,
        14,
        15,
        15,
    ]
    assert got == [want[j] | want[j + 16] << 4 for j in range(16)]


def test_fp8_codes_are_torch_s():
    """Every finite code on its own number, and many numbers between them."""
    for kind, dtype in (("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)):
        own = torch.arange(256).to(torch.uint8).view(dtype).float()
        own = own[own.isfinite()]
        between = (own[:-1] + own[1:])[own[:-1] < own[1:]] / 2
        x = torch.cat(
            [own, between, torch.randn(2000) * 3, torch.randn(1000) * 2.0**-8, torch.tensor([1e-9, -0.0])]
        )
        x = x[: len(x) // 32 * 32].view(-1, 32)
        got = one_row(Codec(kind, "head"), x, grid=(1.0, 0.0))[0]
        assert torch.equal(got.view(-1, 32), x.to(dtype).view(torch.uint8))
        huge = torch.tensor([1e9, -1e9, float("inf"), -float("inf")]).repeat(8)[None]
        got = one_row(Codec(kind, "head"), huge, grid=(1.0, 0.0))[0].view(dtype).float().flatten()
        assert torch.equal(got, huge.sign().flatten() * torch.finfo(dtype).max)


def test_rows_that_are_exact():
    integers = torch.arange(256.0)[None].flip(1)
    codec = Codec("int8", group=256)
    tensors = one_row(codec, integers)
    assert tensors[1].item() == 1.0
    assert (read(codec, tensors, (0, 0, 0), 256) == integers[0].numpy()).all()
    for codec in [c for c in CODECS if c.geometry != "head"]:
        rows = torch.tensor([0.0, 0.0, -0.0, 5.5, -1.25, 2.0**-24, 1000.0, -65504.0])[:, None].expand(8, 64)
        if codec.geometry == "channel":  # its groups are columns
            rows = rows[3:4].expand(8, 64).contiguous()
            rows[:, 7] = 0.0
        tensors = one_row(codec, rows)
        for i, row in enumerate(rows.double().numpy()):
            got = read(codec, tensors, (0, 0, i), 64)
            zero_like = codec.levels and not codec.symmetric
            if zero_like or row[0] == 0:
                assert (got == row).all(), (codec, row[0])
            else:  # the grid has no point at the largest element when its scale was rounded
                assert (np.abs(got - row) <= np.abs(row) * 2.0**-10 + 2.0**-18).all()


def test_ranges_below_float16():
    """A range that float16 rounds to nothing still has a scale, and nothing is NaN."""
    x = torch.tensor([1.0, 1.0 + 2.0**-20]).repeat(32)[None]
    for codec in (Codec("int8"), Codec("int2"), Codec("int8", symmetric=True), Codec("fp8_e4m3")):
        for rows in (x, x * 2.0**-30, x * 0, -x * 2.0**-26):
            codes, scale, zero = one_row(codec, rows)
            assert (scale > 0).all()
            got = read(codec, (codes, scale, zero), (0, 0, 0), 64)
            assert (
                np.abs(got - rows[0].double().numpy()) <= 2.0**-10 * rows.abs().max().item() + 2.0**-24
            ).all()


def test_what_is_not_finite_is_clamped():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1.0, 0.0, -1.0]).repeat(8)[None]
    clean = torch.tensor([0.0, 65504, -65504, 65504, -65504, 1, 0, -1]).repeat(8)[None]
    for codec in [c for c in CODECS if c.geometry == "token"]:
        for got, want in zip(one_row(codec, x), one_row(codec, clean), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_one_by_one_is_bulk(device, codec):
    batch, heads, page, pages, dim = 2, 2, 8, 3, 64
    step = codec.group if codec.geometry == "channel" else 1
    table, rows = table_of(batch, heads, pages, False).to(device), page * pages
    k, v = (torch.randn(batch, rows, heads, dim, device=device) for _ in range(2))
    pools = [t.to(device) for _ in range(2) for t in pool(codec, batch * pages + 2, heads, page, dim)]
    bulk, single = [t.clone() for t in pools], [t.clone() for t in pools]
    append(bulk, table, torch.full((batch,), rows, device=device).int(), k, v, (codec, codec))
    for i in range(0, rows, step):
        lens = torch.full((batch,), i + step, device=device).int()
        append(single, table, lens, k[:, i : i + step], v[:, i : i + step], (codec, codec))
    for got, want in zip(single, bulk, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("codec", [c for c in CODECS if c.geometry == "head"], ids=name)
def test_codes_of_decoded_rows_are_the_same(codec):
    """With stored scales the round trip codes -> elements -> codes changes nothing."""
    grid = (0.0371, -3.3) if codec.levels else (0.0371, 0.0)
    first = one_row(codec, torch.randn(16, 64) * 2, grid=grid)
    decoded = np.stack([read(codec, first, (0, 0, i), 64) for i in range(16)])
    second = one_row(codec, torch.from_numpy(decoded).float(), grid=grid)
    assert torch.equal(first[0], second[0])


def test_padding_does_not_widen_a_channel_group():
    codec = Codec("int4", "channel", 8)
    x = torch.randn(1, 16, 1, 32)
    dirty = x.clone()
    dirty[:, :11] = 1e4  # left padding
    results = []
    for rows in (x, dirty):
        tensors = pool(codec, 3, 1, 8, 32)
        append(
            [*tensors, *FULL.empty(3, 1, 8, 32)],
            torch.tensor([[2, 1]]).int(),
            torch.tensor([16]).int(),
            rows,
            rows,
            (codec, FULL),
            starts=torch.tensor([11]).int(),
        )
        results.append(tensors)
    (clean, dirty), n = results, 1  # slots 8.. are on page 1
    assert torch.equal(clean[1][n], dirty[1][n])
    assert torch.equal(clean[2][n], dirty[2][n])
    assert torch.equal(clean[0][n, 0, 3:], dirty[0][n, 0, 3:])
    want = oracle.grid(x[0, 11:, 0, 5].numpy(), "int4", False, True)
    assert (clean[1][n, 0, 0, 5].item(), clean[2][n, 0, 0, 5].item()) == want
    assert torch.equal(dirty[1][2], torch.ones_like(dirty[1][2]))  # a group of padding alone


def test_strided_rows_into_strided_pools(device):
    """Heads-first keys, values whose last dimension is not dense, pools and tables that are views."""
    codecs = (Codec("int4", group=32), Codec("int8", "channel", 4))
    batch, heads, page, pages, rows, dim = 2, 3, 8, 2, 8, 64
    k = torch.randn(batch, heads, rows, 2 * dim)[..., dim:].transpose(1, 2)
    v = torch.randn(rows, dim, batch, heads).permute(2, 0, 3, 1)
    table, lens = table_of(batch, heads, pages, False), torch.tensor([16, 8]).int()
    plain = [t for c in codecs for t in pool(c, 6, heads, page, dim)]
    want = [t.clone() for t in plain]
    append(want, table, lens, k.contiguous(), v.contiguous(), codecs)
    got = []
    for t in plain:
        wide = torch.zeros(*t.shape[:-1], t.shape[-1] + 3, dtype=t.dtype).transpose(0, 1).contiguous()
        view = wide.transpose(0, 1)[..., 3:].to(device) if t.dim() == 4 else t.to(device)
        got.append(view.copy_(t))
    strided = torch.stack([table.t(), torch.full_like(table.t(), 10**6)], 2)[..., 0].t()
    append(
        got,
        strided.to(device),
        torch.stack([lens, lens], 1)[:, 0].to(device),
        k.to(device),
        v.to(device),
        codecs,
    )
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.cpu(), w)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["int8", "int4", "int3", "int2", "fp8_e4m3", "fp8_e5m2"]),
    symmetric=st.booleans(),
    rows=st.lists(
        st.lists(st.floats(-65504, 65504, width=16), min_size=32, max_size=32), min_size=1, max_size=4
    ),
    shift=st.integers(-14, 0),
)
def test_round_trip_bounds(kind, symmetric, rows, shift):
    """|x - x'| <= scale / 2 + 2^-10 |min| (and what float16 cannot hold), relative to the format for fp8."""
    codec = Codec(kind, group=32, symmetric=symmetric and kind == "int8")
    x = torch.tensor(rows) * 2.0**shift
    tensors = one_row(codec, x)
    for i, row in enumerate(x.double().numpy()):
        error = np.abs(read(codec, tensors, (0, 0, i), 32) - row)
        scale = tensors[1][0, 0, i, 0].item()
        if codec.levels:
            allowed = scale / 2 * 1.0001 + 2.0**-10 * abs(row.min()) + 2.0**-24
        else:
            half_step = 2.0**-4 if kind == "fp8_e4m3" else 2.0**-3
            smallest = 2.0**-10 if kind == "fp8_e4m3" else 2.0**-17
            allowed = np.maximum(np.abs(row) * half_step * 1.0001, scale * smallest * 1.0001)
        assert (error <= allowed).all()


@pytest.mark.slow
def test_beyond_two_to_the_31_elements(device):
    """Only the page written to becomes real memory."""
    codec, page, dim = Codec("int8", group=128), 64, 128
    n = 2**31 // (page * dim) + 4
    pools = [t for _ in range(2) for t in codec.empty(n, 1, page, dim, device=device)]
    x = torch.randn(1, 3, 1, dim, device=device)
    append(
        pools,
        torch.tensor([[n - 2]], device=device).int(),
        torch.tensor([40], device=device).int(),
        x,
        -x,
        (codec,) * 2,
    )
    for tensors, want in ((pools[:3], x), (pools[3:], -x)):
        got = read(codec, [t[n - 2 :] for t in tensors], (0, 0, 38), dim)
        assert np.abs(got - want[0, 1, 0].double().cpu().numpy()).max() < 0.02
