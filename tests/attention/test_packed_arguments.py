"""What packed_decode refuses, in the words of kernel and reference, and the most and least that it takes."""

import dataclasses

import pytest
import torch

from tokops._native import declared
from tokops.attention import inputs, packed_cases, packed_decode
from tokops.attention.inputs import int32
from tokops.attention.packed_cases import one_part, queries, reordered
from tokops.attention.parts import decoded, flatten

from . import packed_oracle


def refusals():
    """(message, changes of a part, changes of the call)."""
    half = torch.float16
    yield "k_codec must be 0..5, got 6", {"k_codec": 6}, {}
    yield "v_codec must be 0..5, got -1", {"v_codec": -1}, {}
    yield "k must be uint8, got float32", {"k": torch.randn(9, 2, 16, 64)}, {}
    yield "k must be float32, got uint8", {"k_codec": 0}, {}
    yield "k must have rows of 64 for head dimension 64, got 32", {"k_codec": 1}, {}
    yield "v must have rows of 32 for head dimension 64, got 64", {"v_codec": 2}, {}
    yield "v must have rows of 16 for head dimension 64, got 64", {"v_codec": 3}, {}
    yield "k must have 4 dimensions, got 3", {"k": torch.zeros(9, 2, 32, dtype=torch.uint8)}, {}
    yield "contiguous last dimension", {"k": torch.zeros(9, 2, 32, 16, dtype=torch.uint8).mT}, {}
    eight = {"v": torch.randn(8, 2, 16, 64), "v_codec": 0}
    yield "v must have the pages, heads and page size of parts[0].k [9, 2, 16, 32]", eight, {}
    yield "k_scale must have 4 dimensions", {"k_scale": None}, {}
    yield (
        "k_scale must be float16 or float32, got bfloat16",
        {"k_scale": torch.ones(9, 2, 16, 2).bfloat16()},
        {},
    )
    yield "k_scale must be [N, H, 16, 64 / group]", {"k_scale": torch.ones(9, 2, 16, 4, dtype=half)}, {}
    yield "k_scale must be [N, H, 16, 64 / group]", {"k_scale": torch.ones(9, 2, 16, 3, dtype=half)}, {}
    yield "k_scale must be [N, H, 16, 64 / group]", {"k_scale": torch.ones(9, 2, 5, 64, dtype=half)}, {}
    yield "k_scale must have the pages and heads of", {"k_scale": torch.ones(8, 2, 16, 2, dtype=half)}, {}
    yield "k_scale must have the pages and heads of", {"k_scale": torch.ones(9, 3, 16, 2, dtype=half)}, {}
    strided = torch.ones(9, 2, 2, 16, dtype=half).mT
    yield "k_zero must have the shape and strides of", {"k_zero": torch.ones(9, 2, 16, 1, dtype=half)}, {}
    yield "k_zero must have the shape and strides of", {"k_zero": strided}, {}
    yield "k_zero must be float16, got float32", {"k_zero": torch.ones(9, 2, 16, 2)}, {}
    yield "k_norm must be float16, got float32", {"k_norm": torch.ones(9, 2, 16)}, {}
    yield "v_norm must be [N, H, P]", {"v_norm": torch.ones(9, 2, 8, dtype=half)}, {}
    yield "k_norm must have 3 dimensions, got 4", {"k_norm": torch.ones(9, 2, 16, 1, dtype=half)}, {}
    yield "v_norm must have 3 dimensions, got 2", {"v_norm": torch.ones(9, 16, dtype=half)}, {}
    yield "v_norm must be float16, got float32", {"v_norm": torch.ones(9, 2, 16)}, {}
    yield "where must have 3 dimensions, got 2", {"where": torch.zeros(2, 64, dtype=torch.int32)}, {}
    yield "slot_base must be 0..2^31-1, got 4294967303", {"slot_base": 2**32 + 7}, {}
    yield "block_table must be int32, got int64", {"block_table": torch.zeros(2, 4, dtype=torch.int64)}, {}
    yield "block_table must have 2 or 3 dimensions, got 1", {"block_table": int32(0, 1)}, {}
    yield "block_table must be of 2 sequences and 2 KV heads", {"block_table": int32(0)[None]}, {}
    yield "k must have one head per page", {"block_table": int32(0).view(1, 1, 1).repeat(2, 2, 1)}, {}
    yield "block_table entries must be 0..8", {"block_table": torch.full((2, 4), 9, dtype=torch.int32)}, {}
    yield "block_table entries must be 0..8", {"block_table": torch.full((2, 4), -1, dtype=torch.int32)}, {}
    yield "lens must be 0..64 (pages * page size)", {"lens": int32(65, 3)}, {}
    yield "lens must be 0..64 (pages * page size)", {"lens": int32(-1, 3)}, {}
    yield "lens must be [B]", {"lens": int32(3, 3, 3)}, {}
    yield "lens must be int32, got int64", {"lens": torch.tensor([3, 3])}, {}
    yield "first must be [B]", {"first": int32(0)}, {}
    yield "first and begin must be >= 0", {"first": int32(0, -1)}, {}
    yield "first and begin must be >= 0", {"begin": int32(-2, 0)}, {}
    yield "begin must be int32, got float32", {"begin": torch.zeros(2)}, {}
    yield "parts[0].k_tiles must be 0 or 1, got 2", {"k_tiles": 2}, {}
    wide = {"k": torch.randn(9, 2, 16, 64), "k_codec": 0, "k_scale": None, "k_zero": None}
    yield "k_tiles needs codes of int8, int4 or int2, got codec 0", {"k_tiles": 1, **wide}, {}
    apart = torch.zeros(9, 16, 2, 32, dtype=torch.uint8).transpose(1, 2)
    yield "k_tiles needs pages whose rows lie one behind the other", {"k_tiles": 1, "k": apart}, {}
    one = torch.zeros(2, 1, 1, 1, dtype=torch.int32)
    yield "keys in tiles are read densely, not selected", {"k_tiles": 1}, {"selected": one}
    yield "q must be float32", {}, {"q": torch.randn(2, 1, 4, 64).double()}
    yield "q must have 4 dimensions, got 3", {}, {"q": torch.randn(2, 4, 64)}
    yield "head dimension must be 1..256, got 257", {}, {"q": torch.randn(2, 1, 4, 257)}
    yield "query heads must be 1..32 times the KV heads, got 3 and 2", {}, {"q": torch.randn(2, 1, 3, 64)}
    yield "q must have 1..256 rows per sequence, got 257", {}, {"q": torch.randn(2, 257, 4, 64)}
    yield "seq_lens must be [B]", {}, {"seq_lens": int32(5)}
    yield "seq_lens must", {}, {"seq_lens": int32(-1, 5)}
    yield "seq_lens must count the 3 new tokens", {}, {"q": torch.randn(2, 3, 4, 64), "seq_lens": int32(2, 9)}
    yield "q_lens must be 0..1 and at most seq_lens", {}, {"q_lens": int32(2, 1)}
    yield "starts must be >= 0", {}, {"starts": int32(-1, 1)}
    yield "softcap must be > 0", {}, {"softcap": 0.0}
    yield "softcap must be > 0", {}, {"softcap": 1e-320}
    yield "softcap must be > 0", {}, {"softcap": float("nan")}
    yield "window must be > 0", {}, {"window": 0}
    yield "max_len must be >= 0 and selected None", {}, {"max_len": -1}
    picked = torch.zeros(2, 1, 1, 1, dtype=torch.int32)
    yield "scores come out of the dense pass", {}, {"max_len": 4, "selected": picked}
    yield "counts needs selected", {}, {"counts": torch.zeros(2, 1, 1, dtype=torch.int32)}
    yield "selected must be [B, 1 or T, 1 or Hkv or Hq, k]", {}, {"selected": picked.repeat(1, 1, 3, 1)}
    yield "selected positions must be 0..seq_lens-1", {}, {"selected": picked + 40}
    falling = torch.tensor([3, 1], dtype=torch.int32).expand(2, 1, 1, 2)
    yield "strictly ascending", {}, {"selected": falling}


@pytest.mark.parametrize("way", ["kernel", "reference"])
@pytest.mark.parametrize(("message", "part", "options"), [pytest.param(*r, id=r[0][:50]) for r in refusals()])
def test_refusals(message, part, options, way):
    whole = one_part(0, [60, 30], "int4", "int8", page=16)
    parts = [dataclasses.replace(whole, **part)]
    call = {"q": queries(0, 2, 1, 4, 64), "seq_lens": whole.lens, **options}
    refuse(way, message, call.pop("q"), parts, call.pop("seq_lens"), **call)


def refuse(way, message, q, parts, seq_lens, **options):
    call = packed_decode if way == "kernel" else packed_decode_reference
    with pytest.raises(RuntimeError) as caught:
        call(q, parts, seq_lens, **options)
    assert "packed_decode: " in str(caught.value)
    assert message in str(caught.value)


def packed_decode_reference(q, parts, seq_lens, **options):
    return declared["packed_decode"](q, *flatten(parts), seq_lens, **options)


@pytest.mark.parametrize("way", ["kernel", "reference"])
def test_refuses_parts_that_do_not_fit(way):
    part = one_part(0, [60, 30], "int4", "int4", page=16)
    q = queries(0, 2, 1, 4, 64)
    refuse(way, "parts must be 1..16 parts of 14 tensors and 4 numbers", q, [part] * 17, part.lens)
    other = one_part(0, [60, 30], "int4", "int4", page=16, heads=4)
    refuse(way, "parts[1].block_table must be of 2 sequences and 2 KV heads", q, [part, other], part.lens)
    narrow = one_part(0, [60, 30], "int8", "int8", dim=80, group=16, page=16)
    wrong = dataclasses.replace(narrow, k_codec=2, k=narrow.k[..., :40].contiguous())
    message = "the codec of parts[0].k needs a head dimension that is a multiple of 32, got 80"
    refuse(way, message, queries(0, 2, 1, 4, 80), [wrong], narrow.lens)
    short = dataclasses.replace(one_part(0, [60, 30], "int4", "int4", page=8), k_tiles=1)
    refuse(way, "parts[0].k_tiles needs a page size that is a multiple of 16, got 8", q, [short], part.lens)
    odd = one_part(0, [60, 30], "fp8_e4m3", "full", dim=24, group=24, page=16)
    message = "the codec of parts[0].k needs a head dimension that is a multiple of 16, got 24"
    refuse(way, message, queries(0, 2, 1, 4, 24), [odd], odd.lens)


@pytest.mark.parametrize("way", ["kernel", "reference"])
def test_refuses_places_that_do_not_fit(way):
    lens = [60, 30]
    parts = reordered(1, lens, ("int8", "int8"), ("int4", "int4"))
    q, seq_lens = queries(1, 2, 1, 4, 64), int32(*lens)
    selected, counts = inputs.selection(0, lens, 1, 1, 9)
    for field, value, message in (
        ("first", int32(0, 0), "parts[0].positions excludes first and begin"),
        ("positions", parts[0].positions[..., :9], "parts[0].positions must be [B, Hkv, pages * P]"),
        ("positions", parts[0].positions + 60, "parts[0].positions must be 0..seq_lens-1 for slots in use"),
        ("positions", parts[0].positions - 60, "parts[0].positions must be 0..seq_lens-1 for slots in use"),
        (
            "where",
            parts[0].where[..., :59],
            "parts[0].where must reach to seq_lens where positions are selected",
        ),
        ("where", None, "parts[0].where must reach to seq_lens where positions are selected"),
        ("where", parts[0].where[:1], "parts[0].where must be [B, Hkv, length]"),
    ):
        changed = [dataclasses.replace(parts[0], **{field: value}), parts[1]]
        refuse(way, message, q, changed, seq_lens, selected=selected, counts=counts)


def test_sixteen_parts_and_an_empty_batch():
    whole = one_part(28, [160], "int4", "int4", page=10)
    cut = []
    for i in range(16):
        table = whole.block_table[:, i : i + 1]
        cut.append(dataclasses.replace(whole, block_table=table, lens=int32(10), first=int32(10 * i)))
    q = queries(28, 1, 1, 4, 64)
    got, want = packed_decode(q, cut, int32(160)), packed_decode(q, [whole], int32(160))
    torch.testing.assert_close(got[0], want[0], atol=1e-6, rtol=1e-5)
    part = dataclasses.replace(whole, block_table=whole.block_table[:0], lens=int32())
    out, lse, scores = packed_decode(q[:0], [part], int32(), max_len=5)
    assert (out.shape, lse.shape, scores.shape) == ((0, 1, 4, 64), (0, 1, 4), (0, 1, 4, 5))


def test_the_reference_decodes_as_the_oracle_does():
    for label, _, parts, _, _ in packed_cases.of("small"):
        part = parts[min(1, len(parts) - 1)]
        dim = 32 * part.k.shape[3] // {0: 32, 1: 32, 2: 16, 3: 8, 4: 32, 5: 32}[part.k_codec]
        got = decoded(part, "k", dim)
        for page, head, slot in ((0, 0, 0), (len(got) - 1, got.shape[1] - 1, got.shape[2] - 1)):
            want = torch.from_numpy(packed_oracle.vector(part, "k", page, head, slot, dim))
            torch.testing.assert_close(
                got[page, head, slot].double(), want, atol=1e-6, rtol=1e-6, equal_nan=True, msg=label
            )


@pytest.mark.parametrize("way", ["kernel", "reference"])
def test_a_part_that_begins_behind_its_end_is_empty(way):
    part = dataclasses.replace(one_part(0, [60, 30], "int4", "int8", page=16), begin=int32(2**31 - 1, 30))
    part = dataclasses.replace(part, first=int32(1, 0))
    call = packed_decode if way == "kernel" else packed_decode_reference
    out, lse, _ = call(queries(0, 2, 1, 4, 64), [part], int32(200, 30))
    assert (lse == float("-inf")).all()
    assert not out.any()
