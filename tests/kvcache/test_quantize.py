"""quantize and head_scale: whole tensors as packed pools."""

import numpy as np
import pytest
import torch

from tokops.kvcache import Codec, head_scale, kv_dequantize, quantize

from . import oracle
from .pools import CODECS, name


@pytest.mark.parametrize("codec", CODECS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(device, codec, dtype):
    x = torch.randn(3, 8, 2, 64).to(dtype).transpose(1, 2)
    pool = quantize(x.to(device), codec)
    want = codec.empty(3, 2, 8, 64)
    assert [(t.shape, t.dtype) for t in pool] == [(t.shape, t.dtype) for t in want]
    got = kv_dequantize(*pool, None, codec.code, 64).cpu()
    error, x = (got - x.float()).abs(), x.float()
    if codec.levels:
        step = kv_dequantize(*(torch.ones_like(pool[0]), *pool[1:]), None, codec.code, 64)
        step = (
            (step - kv_dequantize(*(torch.zeros_like(pool[0]), *pool[1:]), None, codec.code, 64)).abs().cpu()
        )
        if codec.bits < 8:  # bytes of ones are codes 1 and 0 in turn
            step = step.amax() if codec.geometry == "head" else pool[1].float().amax().cpu()
        assert (error <= step * 0.5001 + 2.0**-10 * x.abs().amax() + 1e-6).all()
    else:
        relative = 2.0**-4 if codec.kind == "fp8_e4m3" else 2.0**-3
        assert (error <= relative * x.abs() + 1e-3).all()


def test_full_is_a_copy(device):
    x = torch.randn(2, 3, 4, 33, device=device).half()
    codes, scale, zero = quantize(x, Codec("full"))
    assert torch.equal(codes, x)
    assert codes.data_ptr() != x.data_ptr()
    assert scale.numel() == zero.numel() == 0


@pytest.mark.parametrize(
    ("kind", "symmetric"), [("int8", False), ("int8", True), ("int2", False), ("fp8_e5m2", False)]
)
def test_scale_of_a_head(device, kind, symmetric):
    x = torch.randn(3, 2, 4, 32) * torch.tensor([1.0, 7.0]).view(2, 1, 1)
    codec = Codec(kind, "head", symmetric=symmetric)
    scale, zero = (t.cpu() for t in head_scale(x.to(device), codec))
    for h in range(2):
        s, z = oracle.grid(x[:, h].numpy().ravel(), kind, symmetric, not codec.is_fp8)
        assert scale[0, h].item() == s
        assert zero.numel() == 0 if z is None else zero[0, h].item() == z
    codes = quantize(x.to(device), codec)[0].cpu()
    for n, h, p in np.ndindex(3, 2, 4):
        args = (scale[0, h].item(), zero[0, h].item() if zero.numel() else None)
        oracle.assert_codes_nearest(x[n, h, p].numpy(), codes[n, h, p].numpy(), kind, *args)


def test_one_page_of_one_token(device):
    x = torch.randn(1, 2, 1, 32, device=device)
    for codec in (Codec("int8", "head"), Codec("int8", group=32), Codec("int8", "channel", 1)):
        got = kv_dequantize(*quantize(x, codec), None, codec.code, 32)
        assert (got - x).abs().max() < 0.02


def test_empty(device):
    codes, scale, _ = quantize(torch.zeros(0, 2, 8, 64, device=device), Codec("int4"))
    assert codes.shape == (0, 2, 8, 32)
    assert scale.shape == (0, 2, 8, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(torch.zeros(2, 2, 8, 96), Codec("int8")), "dimension 96 is not divisible by the group 64"),
        (lambda: quantize(torch.zeros(2, 2, 8, 64), Codec("int8", "channel")), "page size 8 is not a multiple of"),
        (lambda: head_scale(torch.zeros(2, 2, 8, 64), Codec("full")), "head_scale: a full codec has no scales"),
        (lambda: head_scale(torch.zeros(2, 2, 0, 64), Codec("int8")), r"head_scale: x must be .*got \[2, 2, 0, 64\]"),
    ],
)  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_tensors():
    with pytest.raises(RuntimeError, match="quantize: x must be float32 or bfloat16 or float16, got float64"):
        quantize(torch.zeros(2, 2, 8, 64).double(), Codec("int8"))
    with pytest.raises(RuntimeError, match="quantize: x must have 4 dimensions, got 3"):
        quantize(torch.zeros(2, 8, 64), Codec("int8"))
