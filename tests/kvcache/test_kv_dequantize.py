"""kv_dequantize and kv_relayout: bytes read by the letter of the format, and in tile order."""

import itertools

import pytest
import torch

from tokops.kvcache import Codec, kv_dequantize, kv_relayout

from . import oracle
from .pools import CODECS, name, pool, read


@pytest.mark.parametrize("codec", [*CODECS, Codec("full")], ids=name)
def test_against_the_oracle(device, codec):
    n, heads, page, dim = 3, 2, 8, 64
    tensors = pool(codec, n, heads, page, dim, torch.bfloat16)
    norm = torch.rand(n, heads, page).half()
    on = [t.to(device) for t in tensors]
    plain = kv_dequantize(*on, None, codec.code, dim).cpu()
    scaled = kv_dequantize(*on, norm.to(device), codec.code, dim).cpu()
    assert plain.dtype == torch.float32
    for at in itertools.product(range(n), range(heads), range(page)):
        want = torch.from_numpy(read(codec, tensors, at, dim))
        assert torch.equal(plain[at], want.float())
        assert torch.allclose(scaled[at].double(), want * norm[at].double(), rtol=1e-6, atol=0)


def test_every_fp8_code_is_torch_s(device):
    every = torch.arange(256).byte()
    for kind, dtype in (("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)):
        scale = torch.ones(1, 1, 1, 1, device=device)
        got = kv_dequantize(every.view(1, 1, 1, 256).to(device), scale, None, None, Codec(kind).code, 256)
        got = got.flatten().cpu()
        want = every.view(dtype).float()
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(7.0, 1e9, -1e9), want.nan_to_num(7.0, 1e9, -1e9))
        by_hand = torch.tensor([oracle.fp8(c, kind) for c in range(256)])
        assert torch.equal(got.nan_to_num(7.0, 1e9, -1e9), by_hand.float().nan_to_num(7.0, 1e9, -1e9))


def test_strided_pools_and_shared_head_scales(device):
    codec = Codec("int8", "head")
    codes, scale, zero = pool(codec, 4, 3, 8, 32)
    want = kv_dequantize(codes.to(device), scale.to(device), zero.to(device), None, codec.code, 32)
    wide = torch.zeros(3, 4, 8, 40, dtype=torch.uint8).transpose(0, 1)[..., 5:37].copy_(codes).to(device)
    grids = [t.to(device).expand(4, 3, 1, 1) for t in (scale, zero)]
    norm = torch.ones(8, 3, 4).half().permute(2, 1, 0).to(device)
    assert torch.equal(kv_dequantize(wide, *grids, norm, codec.code, 32), want)
    own = [t.clone() * torch.tensor([1.0, 2, 3, 4], device=device).half().view(4, 1, 1, 1) for t in grids]
    got = kv_dequantize(wide, *own, None, codec.code, 32)
    factor = torch.tensor([1.0, 2, 3, 4], device=device).view(4, 1, 1, 1)
    assert torch.allclose(got, want * factor, rtol=2e-3, atol=2e-2)


def test_a_norm_that_is_nan_marks_its_token_alone(device):
    codec = Codec("int4", group=32)
    tensors = [t.to(device) for t in pool(codec, 1, 1, 4, 32)]
    norm = torch.ones(1, 1, 4, device=device)
    norm[0, 0, 2] = float("nan")
    got = kv_dequantize(*tensors, norm, codec.code, 32)
    assert got[0, 0, 2].isnan().all()
    assert got[0, 0, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("kind", ["int8", "fp8_e5m2", "int4", "int3", "int2", "full"])
@pytest.mark.parametrize("dim", [32, 96, 256])
def test_tile_order(device, kind, dim):
    """Every code is found again where the format says: one loop per element, over bytes on their own."""
    codec, n, heads, page = Codec(kind), 2, 2, 32
    if kind == "full":
        rows = torch.randn(n, heads, page, dim).bfloat16()
    else:
        rows = torch.randint(0, 256, (n, heads, page, dim * codec.bits // 8)).byte()
    tiles = kv_relayout(rows.to(device), codec.code, "row", "tile").cpu()
    assert tiles.shape == rows.shape
    assert torch.equal(kv_relayout(tiles.to(device), codec.code, "tile", "row").cpu(), rows)
    bits = codec.bits
    for a, h, t in itertools.product(range(n), range(heads), range(0, page, 5)):
        tile = tiles[a, h, t // 16 * 16 : t // 16 * 16 + 16].flatten()
        codes = None if kind == "full" else oracle.unpack(rows[a, h, t].tolist(), kind, dim)
        for d in range(dim):
            if kind == "full":
                assert tile[d * 16 + t % 16] == rows[a, h, t, d]
                continue
            column, within = divmod(d, 32 // bits)
            byte = int(tile[column * 64 + t % 16 * 4 + within % 4])
            assert byte >> within // 4 * bits & (2**bits - 1) == codes[d]


def test_tiles_of_float32_and_of_strided_pages(device):
    x = torch.randn(2, 16, 3, 64, device=device).transpose(1, 2)
    got = kv_relayout(x, 0, "row", "tile")
    assert torch.equal(got, x.mT.reshape(2, 3, 16, 64))
    assert torch.equal(kv_relayout(x, 0, "row", "row"), x)
    assert kv_relayout(x, 0, "tile", "tile").is_contiguous()


BYTES = torch.zeros(2, 1, 16, 32, dtype=torch.uint8)
SCALE = torch.ones(2, 1, 16, 2).half()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((BYTES, SCALE, None, None, 9, 64), r"codec must be 0\.\.6, got 9"),
        ((BYTES, None, None, None, 2, 64), "scale must have 4 dimensions, got 1"),
        ((BYTES, SCALE, None, None, 2, 64), r"zero must be the shape of the scale = \[2, 1, 16, 2\], got \[0\]"),
        ((BYTES, SCALE, SCALE, None, 2, 32), "dim must be the 64 elements of a row of codes, got 32"),
        ((BYTES, SCALE, SCALE, SCALE, 2, 64), "norm must have 3 dimensions, got 4"),
        ((BYTES, SCALE, SCALE, SCALE[:, 0], 2, 64), r"norm must be \[N, H, P\] = \[2, 1, 16\], got \[2, 16, 2\]"),
        ((BYTES, SCALE, SCALE, BYTES[..., 0], 2, 64), "norm must be float16 or float32, got uint8"),
        ((BYTES, None, None, None, 0, 32), "codes must be float32 or bfloat16 or float16, got uint8"),
    ],
)  # fmt: skip
def test_bad_arguments_of_dequantize(args, message):
    with pytest.raises(RuntimeError, match="kv_dequantize: " + message):
        kv_dequantize(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((BYTES, 2, "rows", "tile"), "source must be row or tile, got rows"),
        ((BYTES, 2, "row", ""), "target must be row or tile, got "),
        ((BYTES, -1, "row", "tile"), r"codec must be 0\.\.6, got -1"),
        ((BYTES[:, :, :15], 2, "row", "tile"), "the page size must be a multiple of 16, got 15"),
        ((BYTES[..., :30].contiguous(), 1, "row", "tile"), "codes must hold a multiple of 4 elements per row, got 30"),
        ((BYTES[..., :30].contiguous(), 3, "row", "tile"), "codes must hold whole blocks of 32 .*got 120"),
        ((BYTES.float(), 1, "row", "tile"), "codes must be uint8, got float32"),
    ],
)  # fmt: skip
def test_bad_arguments_of_relayout(args, message):
    with pytest.raises(RuntimeError, match="kv_relayout: " + message):
        kv_relayout(*args)
