"""ggml blocks against the gguf package and by hand, and their way into packed pools and out."""

import numpy as np
import pytest
import torch

from tokops.kvcache import Codec, ggml, kv_dequantize, quantize

gguf = pytest.importorskip("gguf", reason="the extra `hf` is not installed")
KINDS = ("q8_0", "q4_0", "q4_1")


def reference(kind):
    return gguf.GGMLQuantizationType[kind.upper()]


def rows():
    x = torch.randn(7, 96)
    x[1] = 0
    x[2] = 1.5
    x[3, 5] = -60.0
    x[4] *= 1e-6
    x[5] = torch.linspace(-8, 7, 96)
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_against_gguf(kind):
    x = rows()
    raw = ggml.encode(x, kind)
    assert np.array_equal(raw.numpy(), gguf.quantize(x.numpy(), reference(kind)))
    assert np.array_equal(ggml.decode(raw, kind).numpy(), gguf.dequantize(raw.numpy(), reference(kind)))


def test_blocks_by_hand():
    x = torch.arange(32.0) - 16  # -16..15
    half = lambda value: list(np.float16(value).tobytes())  # noqa: E731
    y = torch.cat([torch.tensor([-127.0, 0.5, -0.5, 1.5, 126.6]), torch.arange(27.0)])  # halves go outwards
    codes = [129, 1, 255, 2, 127, *range(27)]
    assert ggml.encode(y, "q8_0").tolist() == half(1.0) + codes
    # q4_0: the largest magnitude is -16, so d = 2 and code = int(x / 2 + 8.5) = (i + 1) // 2
    codes = [min(15, (i + 1) // 2) for i in range(32)]
    assert ggml.encode(x, "q4_0").tolist() == half(2.0) + [
        a | b << 4 for a, b in zip(codes[:16], codes[16:], strict=True)
    ]
    codes = list(range(16)) * 2
    y = torch.tensor(codes) * 0.5 - 3
    assert ggml.encode(y, "q4_1").tolist() == half(0.5) + half(-3.0) + [17 * i for i in range(16)]
    assert torch.equal(ggml.decode(ggml.encode(y, "q4_1"), "q4_1"), y)


@pytest.mark.parametrize("kind", KINDS)
def test_into_a_pool_and_out(device, kind):
    raw = ggml.encode(torch.randn(2, 3, 4, 64), kind)
    codes, scale, zero = (t.to(device) for t in ggml.to_pool(raw, kind))
    codec = Codec("int8", group=32, symmetric=True) if kind == "q8_0" else Codec("int4", group=32)
    want = codec.empty(2, 3, 4, 64)
    assert [t.shape for t in (codes, scale, zero)] == [t.shape for t in want]
    assert torch.equal(kv_dequantize(codes, scale, zero, None, codec.code, 64).cpu(), ggml.decode(raw, kind))
    assert torch.equal(ggml.from_pool(codes, scale, zero, kind), raw)


def test_our_pools_as_blocks():
    x = torch.randn(2, 2, 4, 64)
    for kind, codec in (("q8_0", Codec("int8", group=32, symmetric=True)), ("q4_1", Codec("int4", group=32))):
        pool = quantize(x, codec)
        got = ggml.decode(ggml.from_pool(*pool, kind), kind)
        assert torch.equal(got, kv_dequantize(*pool, None, codec.code, 64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ggml.encode(torch.zeros(32), "q5_0"), "encode: kind must be one of q8_0, q4_0, q4_1, got 'q5_0'"),
        (lambda: ggml.encode(torch.zeros(2, 33), "q8_0"), "encode: the last dimension must be a multiple of 32"),
        (lambda: ggml.decode(torch.zeros(35).byte(), "q8_0"), "decode: q8_0 needs uint8 rows of a multiple of 34"),
        (lambda: ggml.decode(torch.zeros(36), "q4_0"), "decode: q4_0 needs uint8 rows .*got float32"),
        (lambda: ggml.to_pool(torch.zeros(2).byte(), "q4_1"), "to_pool: q4_1 needs uint8 rows of a multiple of 20"),
        (lambda: ggml.from_pool(*quantize(torch.randn(1, 1, 2, 64), Codec("int8")), "q8_0"),
         "from_pool: q8_0 needs float16 scales of groups of 32"),
        (lambda: ggml.from_pool(*quantize(torch.randn(1, 1, 2, 64), Codec("int8", group=32)), "q8_0"),
         "from_pool: q8_0 needs no zero"),
        (lambda: ggml.from_pool(*quantize(torch.randn(1, 1, 2, 64), Codec("int4", group=32)), "q4_0"),
         r"from_pool: q4_0 needs zero = -8 \* scale"),
    ],
)  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
