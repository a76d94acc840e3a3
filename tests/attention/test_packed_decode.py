"""packed_decode against a row-by-row float64 oracle that decodes bytes by the letter, its invariants, its refusals."""

import dataclasses

import numpy as np
import pytest
import torch
from compare import assert_within_dtype_error, refusing_head_dim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokops import _native
from tokops.attention import Part, inputs, merge_states, packed_decode, paged_decode
from tokops.attention.inputs import int32
from tokops.attention.packed_cases import in_tiles, layered, one_part, queries, reordered
from tokops.kvcache import kv_relayout

from . import packed_oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["int8", "int4", "int2", "fp8_e4m3", "fp8_e5m2"]
GEOMETRIES = ["token", "channel", "head"]


def to(x, device):
    if isinstance(x, Part):
        return dataclasses.replace(x, **{k: to(v, device) for k, v in vars(x).items()})
    return x.to(device) if isinstance(x, torch.Tensor) else x


def call(q, parts, seq_lens, device="cpu", **extra):
    extra = {k: to(v, device) for k, v in extra.items()}
    return packed_decode(q.to(device), [to(p, device) for p in parts], seq_lens.to(device), **extra)


def check(q, parts, seq_lens, device="cpu", **extra):
    """Our results on `device` against the oracle."""
    extra = {"max_len": None if "selected" in extra else int(seq_lens.max()) + 3, **extra}
    out, lse, scores = call(q, parts, seq_lens, device, **extra)
    want, want_lse, want_scores = packed_oracle.packed_decode(q, parts, seq_lens, **extra)
    assert_within_dtype_error(out, want, q.dtype)
    # With queries of 16 bits, CUDA's products take decoded keys of 16 bits too, which shows in sums kept in float32.
    narrow = out.is_cuda and q.dtype != torch.float32
    assert_within_dtype_error(lse, want_lse, torch.float16 if narrow else torch.float32)
    if scores is not None:
        assert scores.dtype == torch.float32
        assert_within_dtype_error(scores, want_scores, torch.float16 if narrow else torch.float32)
    return out, lse, scores


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_codecs_and_geometries(kind, geometry, dtype, device):
    part = one_part(1, [70, 33], kind, kind, geometry=geometry, value_geometry=geometry, page=32, dtype=dtype)
    check(queries(1, 2, 1, 6, 64, dtype), [part], part.lens, device)


@pytest.mark.parametrize("keys", ["full", *KINDS])
@pytest.mark.parametrize("values", ["full", *KINDS])
def test_keys_and_values_of_different_kinds(keys, values, device):
    part = one_part(2, [40, 7], keys, values, geometry="channel", page=32)
    check(queries(2, 2, 1, 2, 64), [part], part.lens, device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [1, 3, 4, 7, 12, 32])
def test_head_groups(group, kind, device):
    part = one_part(3, [70, 12], kind, kind, heads=1, page=16)
    check(queries(3, 2, 1, group, 64), [part], part.lens, device)
    check(queries(4, 2, 3, group, 64), [part], part.lens, device)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("kind", "dim", "group"),
    [(k, d, g) for k in KINDS for d, g in ((64, 32), (96, 32), (128, 64), (192, 64), (256, 128), (256, 32))]
    + [("int8", 80, 16), ("int8", 80, 80), ("fp8_e4m3", 80, 16), ("int8", 112, 16), ("fp8_e5m2", 16, 16)],
)
def test_head_dims(kind, dim, group, geometry, device):
    if geometry == "channel":
        group = 4
    part = one_part(
        5, [37], kind, kind, geometry=geometry, value_geometry=geometry, group=group, dim=dim, page=16
    )
    with refusing_head_dim(dim, device):
        check(queries(5, 1, 2, 4, dim), [part], part.lens, device)


@pytest.mark.parametrize("group", [1, 2, 8, 64])
def test_channel_groups_of_any_size(group, device):
    part = one_part(6, [130, 64], "int4", "int8", geometry="channel", value_geometry="channel", group=group)
    if group == 1:  # a scale per element is no geometry of ours
        with pytest.raises(RuntimeError, match="k_scale must be"):
            call(queries(6, 2, 1, 4, 64), [part], part.lens, device)
    else:
        check(queries(6, 2, 1, 4, 64), [part], part.lens, device)


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_lengths_around_pages_tiles_and_chunks(kind, page, device):
    lens = sorted({0, 1, 2, max(1, page - 1), page, page + 1, 63, 64, 65, 127, 128, 129, 255, 256, 257})
    part = one_part(7, lens, kind, kind, heads=1, page=page)
    out, lse, _ = check(queries(7, len(lens), 1, 3, 64), [part], part.lens, device)
    assert not out[0].any()
    assert lse[0].isneginf().all()


@pytest.mark.parametrize("page", [10, 64])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_symmetric_int8_and_wide_scales(dtype, geometry, page, device):
    group = 5 if geometry == "channel" and page == 10 else 16
    options = {"geometry": geometry, "value_geometry": geometry, "symmetric": True, "dim": 80, "page": page}
    part = one_part(8, [130], "int8", "int8", group=group, **options)
    wide = {f"{s}_scale": getattr(part, f"{s}_scale").to(dtype) for s in "kv"}
    part = dataclasses.replace(part, **wide)
    q = queries(8, 1, 1, 4, 80)
    check(q, [part], part.lens, device)
    selected, counts = inputs.selection(8, [130], 1, 2, 60)
    check(q, [part], part.lens, device, selected=selected, counts=counts)


def test_scales_of_any_strides(device):
    part = one_part(9, [90], "int4", "int4")
    views = {}
    for name in ("k_scale", "k_zero", "v_scale", "v_zero"):
        padded = torch.zeros(*getattr(part, name).shape[:3], 7, dtype=torch.float16)
        padded[..., 3:5] = getattr(part, name)
        views[name] = padded[..., 3:5]
    codes = torch.zeros(*part.k.shape[:2], 70, 50, dtype=torch.uint8)
    codes[:, :, 2:66, 5:37] = part.k
    views["k"] = codes[:, :, 2:66, 5:37]
    q = queries(9, 1, 1, 4, 64)
    got = call(q, [dataclasses.replace(part, **views)], part.lens, device)
    want = call(q, [part], part.lens, device)
    assert torch.equal(got[0], want[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("keys", "values"), [("int8", "int8"), ("int4", "int2"), ("full", "full"), ("fp8_e4m3", "full")]
)
@pytest.mark.parametrize("rows", [1, 5])
def test_sinks_pages_and_tail(keys, values, rows, dtype, device):
    q, parts, lens, starts = layered(10, dtype, keys, values, rows=rows)
    check(q, parts, lens, device, starts=starts)
    check(q, parts[::-1], lens, device, starts=starts, window=100)


@pytest.mark.parametrize(
    "option", ["sink_logit", "log_gamma", "softcap", "window", "scale", "starts", "rotate", "q_lens"]
)
def test_each_option(option, device):
    q, parts, lens, _ = layered(11, torch.float32, "int4", "int8", rows=2)
    parts = [dataclasses.replace(p, begin=None) for p in parts[1:]]  # from position 0 on
    value = {
        "sink_logit": torch.randn(6),
        "log_gamma": torch.randn(6) * 3,
        "softcap": 0.5,
        "window": 7,
        "scale": 0.6,
        "starts": int32(4, 200),
        "rotate": True,
        "q_lens": int32(1, 0),
    }[option]
    out, _, _ = check(q, parts, lens, device, **{option: value})
    plain, _, _ = call(q, parts, lens, device)
    assert not torch.allclose(out, plain, atol=1e-3), "the option changes nothing"


@pytest.mark.parametrize("dim", [64, 96, 128])
def test_rotation_is_undone(dim, device):
    """The same attention over Hadamard-transformed keys and values of full precision."""
    part = one_part(12, [90, 12], "full", "full", dim=dim)
    q = queries(12, 2, 3, 4, dim)
    turned = {}
    for side in "kv":
        rows = [packed_oracle.hadamard(x) for x in getattr(part, side).reshape(-1, dim).double().numpy()]
        turned[side] = torch.from_numpy(np.stack(rows)).float().view_as(part.k)
    want = call(q, [part], part.lens, device)[:2]
    got = call(q, [dataclasses.replace(part, **turned)], part.lens, device, rotate=True)[:2]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("nodes", [2, 7, 65])
@pytest.mark.parametrize("window", [None, 3])
def test_trees(nodes, window, device):
    """New tokens in a full-precision tail, their cache in packed pages."""
    packed = one_part(13, [20, 33], "int8", "int4", page=16)
    tail = one_part(14, [nodes, nodes], "full", "full", page=16)
    tail = dataclasses.replace(tail, first=packed.lens)
    words = inputs.tree(nodes, 2, nodes)
    q = queries(13, 2, nodes, 2, 64)
    check(q, [packed, tail], packed.lens + nodes, device, ancestors=words, window=window)


TILED = ["int8", "int4", "int2"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize(("dim", "size"), [(64, 32), (96, 32), (128, 64), (256, 128), (256, 32)])
def test_keys_in_tiles(dim, size, kind, geometry, dtype):
    size = 16 if geometry == "channel" else size
    shape = {"geometry": geometry, "page": 32, "dim": dim, "group": size}
    part = one_part(40, [70, 33], kind, "int8", dtype=dtype, **shape)
    check(queries(40, 2, 1, 6, dim, dtype), [in_tiles(part)], part.lens)


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 12, 32])
def test_head_groups_over_tiles(group, kind):
    part = in_tiles(one_part(41, [70, 12], kind, kind, heads=1, page=16))
    check(queries(41, 2, 1, group, 64), [part], part.lens)
    check(queries(42, 2, 3, group, 64), [part], part.lens, window=40)


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("geometry", ["token", "channel"])
@pytest.mark.parametrize("begin", [0, 1, 15, 16, 17, 63, 64, 65])
def test_tiles_cut_anywhere(begin, geometry, kind):
    """The first key seen, and the last, anywhere in a tile."""
    size = 4 if geometry == "channel" else 32
    shape = {"geometry": geometry, "value_geometry": "head", "group": size, "page": 32}
    part = in_tiles(one_part(43, [140, 90, 66], kind, kind, **shape))
    part = dataclasses.replace(part, begin=int32(begin, begin, begin), first=int32(7, 0, 3))
    for less in (0, 1, 24):
        part = dataclasses.replace(part, lens=part.lens - less)
        check(queries(43, 3, 1, 6, 64), [part], part.lens + part.first)


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_order_of_bytes_changes_little(kind, symmetric):
    """The same codes in tiles and as rows; with queries in eight bits products of integers are exact in both."""
    part = one_part(44, [300, 77], kind, kind, page=64, dim=128, symmetric=symmetric, per_head=True)
    laid = dataclasses.replace(part, k=kv_relayout(part.k, part.k_codec, "row", "tile"), k_tiles=1)
    q, lens = queries(44, 2, 2, 6, 128), int32(300, 77)
    for extra in ({}, {"q_int8": True}, {"q_int8": True, "rotate": True}):
        got = call(q, [laid], lens, max_len=300, **extra)
        want = call(q, [part], lens, max_len=300, **extra)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("s", "hs"), [(1, 1), (1, 2), (1, 6), (3, 1), (3, 2), (3, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_selections(s, hs, kind, device):
    q, parts, lens, starts = layered(15, torch.float32, kind, kind, rows=3)
    selected, counts = inputs.selection(hs, [230, 230], s, hs, 70)
    check(q, parts, lens, device, selected=selected, counts=counts, starts=starts)
    check(q, parts, lens, device, selected=selected)


@pytest.mark.parametrize("geometry", ["channel", "head"])
def test_selections_of_other_geometries(geometry, device):
    part = one_part(16, [200, 90], "int4", "int2", geometry=geometry, value_geometry=geometry)
    selected, counts = inputs.selection(1, [200, 90], 1, 2, 80)
    check(queries(16, 2, 1, 4, 64), [part], part.lens, device, selected=selected, counts=counts)


@pytest.mark.parametrize("k", [0, 1, 89, 90, 91])
def test_selection_sizes(k, device):
    part = one_part(17, [90], "int4", "int4")
    q = queries(17, 1, 1, 4, 64)
    selected = torch.full((1, 1, 2, k), -1, dtype=torch.int32)
    selected[..., : min(k, 90)] = torch.arange(min(k, 90))
    out, lse, scores = check(q, [part], part.lens, device, selected=selected)
    assert scores is None
    if k >= 90:
        dense = call(q, [part], part.lens, device)
        assert torch.equal(out, dense[0])
        assert torch.equal(lse, dense[1])
    three = call(q, [part], part.lens, device, selected=selected[:, 0])
    assert torch.equal(three[0], out)


@pytest.mark.parametrize(
    "kinds",
    [(("full", "full"), ("int4", "int4")), (("int8", "int8"), ("int2", "int2")), (("fp8_e5m2",) * 2,) * 2],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_parts_in_an_order_of_their_own(kinds, rows, device):
    lens = [140, 61, 3]
    parts = reordered(18, lens, *kinds)
    q = queries(18, 3, rows, 4, 64)
    _, _, scores = check(q, parts, int32(*lens), device, window=50, starts=int32(3, 0, 1))
    assert (scores[1, 0, :, 61:]).isneginf().all()
    for s, hs in ((1, 1), (1, 2), (rows, 4)):
        selected, counts = inputs.selection(hs, lens, s, hs, 50)
        check(q, parts, int32(*lens), device, selected=selected, counts=counts, starts=int32(3, 9, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["full", "int4"])
def test_norms_and_slots_that_hold_nothing(kind, dtype, device):
    part = one_part(19, [100, 64], kind, kind, dtype=dtype)
    norms = [torch.rand(part.k.shape[:3]).half() + 0.5 for _ in range(2)]
    norms[0][:, :, ::7] = float("nan")
    part = dataclasses.replace(part, k_norm=norms[0], v_norm=norms[1])
    _, _, scores = check(queries(19, 2, 2, 6, 64, dtype), [part], part.lens, device)
    assert scores[0, 1, :, :100:7].isneginf()[:, :9].all()
    nothing = dataclasses.replace(part, k_norm=torch.full_like(norms[0], float("nan")))
    out, lse, _ = check(queries(19, 2, 2, 6, 64, dtype), [nothing], part.lens, device)
    assert not out.any()
    assert lse.isneginf().all()


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_small_values_keep_their_digits(kind, group, device):
    """Scales as they are for values of 0.02, which float16 holds only just, and one key that has most of the weight."""
    part = one_part(27, [400, 90], kind, kind, group=group, dtype=torch.bfloat16)
    top = {"int8": 255, "int4": 15, "int2": 3, "fp8_e4m3": 448, "fp8_e5m2": 57344}[kind]
    scale = torch.full_like(part.v_scale, 0.1 / top)
    zero = torch.full_like(part.v_zero, -0.05) if part.v_zero is not None else None
    part = dataclasses.replace(part, v_scale=scale, v_zero=zero)
    if kind.startswith("fp8"):  # codes near the largest, as scales make them
        part.v.copy_(torch.randint(0x60, 0x7C, part.v.shape) + 128 * torch.randint(2, part.v.shape))
    q = 3 * queries(27, 2, 1, 6, 64, torch.bfloat16)
    out, _, _ = call(q, [part], part.lens, device)
    want, _, _ = packed_oracle.packed_decode(q, [part], part.lens)
    error = (out.cpu().double() - want).norm() / want.norm()
    assert error < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
def test_scales_of_any_sign_and_size(kind, dtype, device):
    """Negative ones, zeros and those of tiny values, side by side in a tile."""
    part = one_part(28, [150], kind, kind, dtype=dtype)
    scale = part.v_scale.float()
    scale[:, :, ::3] *= -1
    scale[0, :, 1::5] = 0
    zero = None if part.v_zero is None else part.v_zero.float()
    negative = dataclasses.replace(part, v_scale=scale, v_zero=zero)
    small = None if kind == "int8" else part.v_zero.float() * 1e-30
    tiny = dataclasses.replace(part, v_scale=part.v_scale.float() * 1e-30, v_zero=small)
    q = queries(28, 1, 1, 8, 64, dtype)
    check(q, [negative], part.lens, device)
    out, _, _ = check(q, [tiny], part.lens, device)
    if dtype != torch.float16:
        want, _, _ = packed_oracle.packed_decode(q, [tiny], part.lens)
        assert (out.cpu().double() - want).norm() < 1e-2 * want.norm()


@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7])
def test_exact_queries_keep_their_bits_beside_a_large_element(heads, kind, device):
    """An element is off by a bit of float32 of the row's largest at most, and the sum by its own roundings."""
    part = one_part(29, [70], kind, kind, heads=1)
    q = queries(29, 1, 1, heads, 64) / 100
    q[..., 5] = 3.7
    got = call(q, [part], part.lens, device, max_len=70, scale=1.0)[2].cpu().double()
    rows = packed_oracle.held([part], 0, 0, 64)
    keys = torch.tensor(np.array([rows[j][0] for j in range(70)]))
    want = torch.einsum("hd,jd->hj", q[0, 0].double(), keys)
    bound = 3.7 * 2**-23 * keys.abs().sum(-1) + 2**-20 * torch.einsum(
        "hd,jd->hj", q[0, 0].double().abs(), keys.abs()
    )
    assert ((got[0, 0] - want).abs() <= bound).all()


@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
@pytest.mark.parametrize("heads", [3, 4])
def test_a_row_that_is_not_finite_leaves_the_others_alone(heads, kind, device):
    part = one_part(30, [70], kind, kind, heads=1)
    q = queries(30, 1, 1, heads, 64)
    want, want_lse, _ = packed_oracle.packed_decode(q, [part], part.lens)
    for bad in (float("nan"), float("inf")):
        q[0, 0, 1, 7] = bad
        out, lse, _ = call(q, [part], part.lens, device)
        for h in (0, 2):
            assert_within_dtype_error(out[0, 0, h], want[0, 0, h], q.dtype)
            assert_within_dtype_error(lse[0, 0, h], want_lse[0, 0, h], q.dtype)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("tail", [0.0002, 0.0003, 0.00033])
def test_many_small_weights_beside_a_large_one(kind, tail, device):
    """Equal weights are rounded alike, and what that adds up to stays within bf16's own rounding."""
    part = one_part(31, [256], kind, kind, heads=1, dtype=torch.bfloat16)
    part.k[...] = part.k[0, 0, 0]
    for side in "kv":
        getattr(part, f"{side}_scale")[...] = 0.01
        getattr(part, f"{side}_zero")[...] = -0.01
    part.v[...] = part.v[0, 0, 1]
    part.k[int(part.block_table[0, 1]), 0, 36] = 0
    part.v[int(part.block_table[0, 1]), 0, 36] = 0
    keys = packed_oracle.held([part], 0, 0, 64)
    away = keys[200][0] - keys[100][0]
    q = torch.tensor(away / (away @ away) * np.log(tail)).to(torch.bfloat16).expand(1, 1, 4, 64)
    out, _, _ = call(q, [part], part.lens, device, scale=1.0)
    want, _, _ = packed_oracle.packed_decode(q, [part], part.lens, scale=1.0)
    top = max(abs(keys[j][1]).max() for j in (100, 200))
    assert ((out.cpu().double() - want).abs() <= 2**-8 * want.abs() + 1.1e-3 * top).all()


def test_a_position_that_no_part_holds_is_not_read(device):
    part = one_part(20, [50, 20], "int8", "int8")
    later = dataclasses.replace(one_part(21, [9, 9], "full", "full"), first=int32(60, 20))
    q, lens = queries(20, 2, 1, 4, 64), int32(69, 29)
    _, _, scores = check(q, [part, later], lens, device)
    assert scores[0, 0, :, 50:60].isneginf().all()
    selected = torch.arange(45, 65, dtype=torch.int32).expand(1, 1, 1, -1).repeat(2, 1, 1, 1)
    selected[1] -= 40
    check(q, [part, later], lens, device, selected=selected)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_combination(data):
    """Whatever the arguments, the oracle agrees."""
    draw = lambda s: data.draw(s)  # noqa: E731
    rows, heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 7]))
    packed = draw(st.lists(st.integers(0, 70), min_size=1, max_size=2))
    dtype, page = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([4, 16]))
    kinds = [draw(st.sampled_from(["full", *KINDS])) for _ in range(2)]
    places = [draw(st.sampled_from(["token", "channel", "head"])) for _ in range(2)]
    size = 4 if "channel" in places else 32
    if size == 4:
        places = ["channel" if p == "token" else p for p in places]
    options = {"geometry": places[0], "value_geometry": places[1], "group": size, "dtype": dtype}
    first = one_part(
        draw(st.integers(0, 99)), packed, *kinds, heads=heads, page=page,
        per_head=draw(st.booleans()), **options,
    )  # fmt: skip
    tail = [rows + draw(st.integers(0, 9)) for _ in packed]
    second = one_part(1, tail, "full", "full", heads=heads, page=page, dtype=dtype)
    start = [draw(st.integers(0, n)) for n in packed]
    first = dataclasses.replace(first, begin=int32(*start) if draw(st.booleans()) else None)
    second = dataclasses.replace(second, first=int32(*packed))
    lens = int32(*(a + b for a, b in zip(packed, tail, strict=True)))
    extra: dict = {"starts": int32(*start)}
    maybe = lambda name, value: extra.update({name: value}) if draw(st.booleans()) else None  # noqa: E731
    maybe("window", draw(st.integers(1, 30)))
    maybe("softcap", 2.0)
    maybe("sink_logit", torch.randn(heads * group))
    maybe("log_gamma", torch.randn(heads * group))
    maybe("ancestors", inputs.tree(1, len(packed), rows))
    maybe("rotate", True)
    if draw(st.booleans()):
        s, hs = draw(st.sampled_from([1, rows])), draw(st.sampled_from([1, heads, heads * group]))
        lists = inputs.selection(3, lens.tolist(), s, hs, draw(st.integers(0, 40)))
        extra["selected"], extra["counts"] = lists
    check(queries(2, len(packed), rows, heads * group, 64, dtype), [first, second], lens, **extra)


def shuffled(part, seed):
    """The same pages in other places."""
    order = torch.randperm(len(part.k), generator=torch.Generator().manual_seed(seed))
    moved = {"block_table": order.argsort()[part.block_table.long()].int()}
    for name in ("k", "v", "k_scale", "k_zero", "v_scale", "v_zero"):
        x = getattr(part, name)
        moved[name] = x[order] if x is not None and x.shape[0] == len(order) else x
    return dataclasses.replace(part, **moved)


@pytest.mark.parametrize("kind", ["full", "int8", "int4", "fp8_e4m3"])
def test_where_pages_lie_changes_nothing(kind, device):
    part = one_part(22, [300, 70], kind, kind, page=16)
    q = queries(22, 2, 2, 6, 64)
    want = call(q, [part], part.lens, device, max_len=300)
    for seed in range(3):
        for a, b in zip(call(q, [shuffled(part, seed)], part.lens, device, max_len=300), want, strict=True):
            assert torch.equal(a, b)


def test_the_order_of_tokens_and_parts_changes_little(device):
    q, parts, lens, starts = layered(23, torch.float32, "int8", "int4", rows=2)
    want = call(q, parts, lens, device, starts=starts, max_len=230)
    got = call(q, parts[::-1], lens, device, starts=starts, max_len=230)
    assert torch.equal(got[2], want[2])
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_pages_equal_paged_decode(dtype, device):
    part = one_part(24, [700, 65, 0], "full", "full", page=64, dtype=dtype)
    q = queries(24, 3, 1, 6, 64, dtype)
    selected, counts = inputs.selection(1, [700, 65, 0], 1, 2, 90)
    for extra in ({}, {"selected": selected, "counts": counts}, {"window": 40, "softcap": 1.0}):
        got = call(q, [part], part.lens, device, **extra)
        moved = [x.to(device) for x in (q, part.k, part.v, part.block_table, part.lens)]
        want = paged_decode(*moved, **{k: to(v, device) for k, v in extra.items()})
        if device.type == "cuda" and dtype == torch.bfloat16:  # packed_decode's operands are float16 there
            assert_within_dtype_error(got[0], want[0], dtype)
            assert_within_dtype_error(got[1], want[1], torch.float16)
        elif "cpu" not in _native.loaded:  # the references sum in other orders
            assert_within_dtype_error(got[0], want[0], dtype)
            assert_within_dtype_error(got[1], want[1], torch.float32)
        else:
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])


def test_threads_change_nothing():
    lens = [1500, 2, 700]
    parts = reordered(25, lens, ("int8", "int8"), ("int4", "int4"))
    q = queries(25, 3, 2, 4, 64, torch.float32)
    selected, counts = inputs.selection(1, lens, 1, 2, 600)
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(
                [
                    *packed_decode(q, parts, int32(*lens), max_len=1500),
                    *packed_decode(q, parts, int32(*lens), selected=selected, counts=counts)[:2],
                ]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_a_call_over_parts_equals_merged_calls(device):
    q, parts, lens, starts = layered(26, torch.float32, "int8", "int8")
    whole = call(q, parts, lens, device, starts=starts)
    alone = [call(q, [p], lens, device, starts=starts) for p in parts]
    out, lse = merge_states([a[0] for a in alone], [a[1] for a in alone])
    torch.testing.assert_close(out, whole[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse, whole[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_queries_in_eight_bits_stay_within_the_bound(kind, device):
    """Every element of q is off by at most amax(q) / 254 of its row."""
    part = one_part(27, [90], kind, kind)
    q = queries(27, 1, 1, 4, 64)
    exact = call(q, [part], part.lens, device, max_len=90, scale=1.0)[2]
    got = call(q, [part], part.lens, device, max_len=90, scale=1.0, q_int8=True)[2]
    rows = packed_oracle.held([part], 0, 0, 64), packed_oracle.held([part], 0, 1, 64)
    for h in range(4):
        for j in range(90):
            bound = float(q[0, 0, h].abs().max()) / 254 * abs(rows[h // 2][j][0]).sum()
            assert abs(float(got[0, 0, h, j] - exact[0, 0, h, j])) <= 1.001 * bound + 1e-5
