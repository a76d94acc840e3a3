"""Codec: the shapes and sizes that follow from a format, and what it refuses."""

import pytest
import torch

from tokops.kvcache import Codec


@pytest.mark.parametrize(
    ("codec", "bits", "code", "write_code", "row", "scale", "zero"),
    [
        (Codec("int8"), 8, 1, 1, 128, (5, 2, 64, 2), (5, 2, 64, 2)),
        (Codec("int8", symmetric=True), 8, 1, 1, 128, (5, 2, 64, 2), (0,)),
        (Codec("int4", group=32), 4, 2, 2, 64, (5, 2, 64, 4), (5, 2, 64, 4)),
        (Codec("int3", "channel", 32), 4, 2, 6, 64, (5, 2, 2, 128), (5, 2, 2, 128)),
        (Codec("int2", "head"), 2, 3, 3, 32, (1, 2, 1, 1), (1, 2, 1, 1)),
        (Codec("fp8_e4m3", "head"), 8, 4, 4, 128, (1, 2, 1, 1), (0,)),
        (Codec("fp8_e5m2", group=128), 8, 5, 5, 128, (5, 2, 64, 1), (0,)),
        (Codec("full"), 0, 0, 0, 256, (0,), (0,)),
    ],
)
def test_shapes(codec, bits, code, write_code, row, scale, zero):
    assert (codec.bits, codec.code, codec.write_code, codec.row_bytes(128)) == (bits, code, write_code, row)
    codes, s, z = codec.empty(5, 2, 64, 128, dtype=torch.bfloat16)
    assert codes.shape == (5, 2, 64, 128 if codec.kind == "full" else row)
    assert codes.dtype == (torch.bfloat16 if codec.kind == "full" else torch.uint8)
    assert codes.element_size() * codes.shape[3] == row
    assert s.shape == scale
    assert z.shape == zero
    assert s.dtype == z.dtype == (torch.float32 if "fp8" in codec.kind else torch.float16)


def test_levels():
    assert [Codec(k).levels for k in ("int8", "int4", "int3", "int2", "fp8_e5m2")] == [256, 16, 8, 4, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "int5"}, "kind must be one of full, int8, .*got 'int5'"),
        ({"kind": "int4", "geometry": "row"}, "geometry must be one of token, channel, head, got 'row'"),
        ({"kind": "int4", "group": 0}, "group must be an integer of at least 1, got 0"),
        ({"kind": "int4", "group": 32.0}, "group must be an integer of at least 1, got 32.0"),
        ({"kind": "int4", "symmetric": True}, "symmetric is for int8 alone, got int4"),
        ({"kind": "fp8_e4m3", "symmetric": True}, "symmetric is for int8 alone, got fp8_e4m3"),
    ],
)
def test_bad_codecs(arguments, message):
    with pytest.raises(ValueError, match=f"Codec: {message}"):
        Codec(**arguments)


@pytest.mark.parametrize(
    ("codec", "dim", "page", "message"),
    [
        (Codec("int8"), 96, 64, "the head dimension 96 is not divisible by the group 64"),
        (Codec("int4", group=16), 80, 64, "int4 needs a head dimension divisible by 32, got 80"),
        (Codec("int3", group=48), 96, 64, "int3 needs a group of dimensions divisible by 32, got 48"),
        (Codec("int4", group=16), 64, 64, "int4 needs a group of dimensions divisible by 32, got 16"),
        (Codec("int2", "head"), 16, 64, "int2 needs a head dimension divisible by 32, got 16"),
        (Codec("int8", "channel", 48), 64, 64, "the page size 64 is not a multiple of the group 48"),
        (Codec("int8"), 512, 64, r"the head dimension must be 1\.\.256, got 512"),
        (Codec("full"), 0, 64, r"the head dimension must be 1\.\.256, got 0"),
        (Codec("full"), 64, 0, "the page size must be at least 1, got 0"),
    ],
)
def test_bad_shapes(codec, dim, page, message):
    with pytest.raises(ValueError, match=f"Codec: {message}"):
        codec.check(dim, page)
    with pytest.raises(ValueError, match=f"Codec: {message}"):
        codec.empty(2, 1, page, dim)
