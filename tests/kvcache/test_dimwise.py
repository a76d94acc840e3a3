"""dimwise_quantize and dimwise_dequantize against brute force and the published numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from tokops.kvcache import dimwise_dequantize, dimwise_quantize, gaussian_levels

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INF, NAN = math.inf, math.nan


def brute_force(x, levels, lo=-5.0, hi=5.0, r=3.0):
    """The sheet's formula in float32, and every distance in float64; numpy's argmin is the lowest of equals."""
    f = np.float32
    u = (x.float().numpy().reshape(-1, 1) - f(lo)) / f(hi - lo) * f(2 * r) - f(r)
    u = np.clip(u, f(-r), f(r)).astype(np.float64)
    codes = [np.abs(part - levels.double().numpy()).argmin(1) for part in np.array_split(u, 64)]
    return torch.from_numpy(np.concatenate(codes).astype(np.uint8)).view(x.shape)


def codes_of(x, levels, device, **scale):
    return dimwise_quantize(x.to(device), levels.to(device), **scale)[0].cpu()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_million_values(device, bits):
    """Random ones, floats next to every threshold, and infinities."""
    levels = gaussian_levels(bits)
    x = torch.randn(1_000_000) * 2.5
    middles = (levels[1:].double() + levels[:-1].double()) / 2
    near = ((middles + 3) / 6 * 10 - 5).float().numpy()
    steps = np.arange(-40, 41, dtype=np.int32)
    near = (near.view(np.int32)[:, None] + steps).reshape(-1).view(np.float32)
    near = torch.from_numpy(near[np.isfinite(near)])
    x[: len(near)] = near
    x[-4:] = torch.tensor([INF, -INF, 3.4e38, -3.4e38])
    assert torch.equal(codes_of(x, levels, device), brute_force(x, levels))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_sixteen_bit_value(device, dtype):
    levels = gaussian_levels(6)
    bits = torch.arange(-(2**15), 2**15).short()
    x = bits.view(dtype) if dtype != torch.float32 else bits.float() / 2**12
    x = x[~x.isnan()]
    codes, values = dimwise_quantize(x.to(device), levels.to(device))
    assert codes.dtype == torch.uint8
    assert values.dtype == dtype
    assert torch.equal(codes.cpu(), brute_force(x, levels))
    want = (levels.double()[codes.cpu().long()] + 3) / 6 * 10 - 5
    torch.testing.assert_close(values.cpu().double(), want.to(dtype).double(), rtol=1e-7, atol=0)


def test_exact_midpoints_go_to_the_lower_level(device):
    """On this scale u is x without rounding, so that ties are real."""
    scale = {"lo": -4.0, "hi": 4.0, "r": 4.0}
    levels = (torch.randperm(2000)[:200].sort().values - 1000).float() / 256
    middles = (levels[1:] + levels[:-1]) / 2
    for step, higher in ((0.0, 0), (2.0**-20, 1), (-(2.0**-20), 0)):
        got = codes_of(middles + step, levels, device, **scale)
        assert torch.equal(got, (torch.arange(199) + higher).byte())
        assert torch.equal(got, brute_force(middles + step, levels, **scale))
    assert torch.equal(codes_of(levels, levels, device, **scale), torch.arange(200).byte())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 256),
    lo=st.sampled_from([-5.0, 0.0, 0.1, -1e-3, 1000.0, -3e30]),
    span=st.sampled_from([1.0, 10.0, 0.37, 5e-4, 1e30]),
    r=st.sampled_from([3.0, 1.0, 0.7, 1e-3]),
)
def test_any_levels_on_any_scale(seed, count, lo, span, r):
    gen = torch.Generator().manual_seed(seed)
    levels = torch.unique((torch.rand(count + 2, generator=gen) * 1.98 - 0.99) * r)[:256]
    x = (torch.rand(500, generator=gen).double() * 1.4 - 0.2) * span + lo
    x = torch.cat([x.float(), torch.tensor([0.0, -0.0, INF, -INF, lo, lo + span, 1e-40])])
    hi = lo + span
    if not np.float32(lo) < np.float32(hi):
        return
    got = dimwise_quantize(x, levels, lo=lo, hi=hi, r=r)[0]
    assert torch.equal(got, brute_force(x, levels, lo, hi, r))


def test_codes_survive_their_values(device):
    for bits in range(1, 9):
        levels = gaussian_levels(bits).to(device)
        codes = torch.arange(2**bits, device=device).byte()
        values = dimwise_dequantize(codes, levels)
        assert values.dtype == torch.float32
        assert torch.equal(dimwise_quantize(values, levels)[0], codes)
        assert torch.equal(dimwise_quantize(values, levels)[1], values)
        want = (levels.double() + 3) / 6 * 10 - 5
        torch.testing.assert_close(values.double(), want, rtol=1e-7, atol=0)


def test_nan_gets_code_zero(device):
    levels = gaussian_levels(6).to(device)
    for dtype in FLOATS:
        x = torch.tensor([NAN, 4.9, -NAN], dtype=dtype, device=device)
        codes, values = dimwise_quantize(x, levels)
        assert codes.tolist() == [0, 63, 0]
        assert values.isfinite().all()


def test_values_beyond_the_range_saturate(device):
    levels = gaussian_levels(6)
    got = codes_of(torch.tensor([-5.0, -5.1, -1e30, -INF, 5.0, 6.0, INF]), levels, device)
    assert got.tolist() == [0, 0, 0, 0, 63, 63, 63]


@pytest.mark.parametrize("dtype", FLOATS)
def test_shapes_and_views(device, dtype):
    levels = gaussian_levels(6).to(device)
    for shape in ((), (1,), (0,), (3, 0, 2), (65,), (2, 3, 4, 5)):
        x = torch.randn(shape).to(dtype).to(device)
        codes, values = dimwise_quantize(x, levels)
        assert codes.shape == values.shape == dimwise_dequantize(codes, levels).shape == x.shape
        assert torch.equal(codes.cpu(), brute_force(x.cpu(), levels.cpu()))
    x = torch.randn(40, 60, 3).to(dtype).to(device)
    for view in (x.transpose(0, 2), x[::3, 1:, 1], x[:1].expand(5, -1, -1)):
        for got, want in zip(
            dimwise_quantize(view, levels), dimwise_quantize(view.contiguous(), levels), strict=True
        ):
            assert torch.equal(got, want)
    codes = dimwise_quantize(x, levels)[0]
    assert torch.equal(
        dimwise_dequantize(codes.mT, levels), dimwise_dequantize(codes.mT.contiguous(), levels)
    )
    doubled = torch.stack([levels, levels], -1)[:, 0]  # levels two apart
    assert torch.equal(dimwise_quantize(x, doubled)[0], codes)


# ---- Levels.


def test_levels_of_six_bits():
    levels = gaussian_levels()
    assert levels.dtype == torch.float32
    for i, want in ((0, -2.437096), (1, -1.994237), (31, -0.0195855), (32, 0.0195855)):
        assert levels[i].item() == pytest.approx(want, abs=5e-7)
    assert stats.norm.ppf(1 / 64) == pytest.approx(-2.153875, abs=5e-7)  # the first inner edge


@pytest.mark.parametrize(("bits", "r"), [(1, 3.0), (3, 3.0), (6, 3.0), (8, 3.0), (5, 2.0), (6, 8.0)])
def test_levels_are_means_of_equally_likely_cells(bits, r):
    count = 2**bits
    levels = gaussian_levels(bits, r)
    assert (levels.diff() > 0).all()
    assert torch.equal(levels, -levels.flip(0))
    edges = np.clip(stats.norm.ppf(np.arange(count + 1) / count), -r, r)
    for i in {0, 1, count // 2, count - 1}:
        a, b = edges[i], edges[min(i + 1, count)]
        mass = integrate.quad(stats.norm.pdf, a, b)[0]
        mean = integrate.quad(lambda z: z * stats.norm.pdf(z), a, b)[0] / mass
        assert levels[i].item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(("bits", "want"), [(4, 0.0206), (5, 0.00865), (6, 0.00384), (7, 0.00179)])
def test_error_of_a_unit_gaussian(device, bits, want):
    """In u: the scale -3..3 maps to itself, and clipping counts. Evenly spaced quantiles: rare large values make
    the mean of a random sample uncertain by more than what is allowed here."""
    x = torch.special.ndtri((torch.arange(1_000_000).double() + 0.5) / 1_000_000).float()
    values = dimwise_quantize(x.to(device), gaussian_levels(bits).to(device), lo=-3.0, hi=3.0)[1].cpu()
    assert (values.double() - x.double()).square().mean().item() == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize(
    ("bits", "r", "message"),
    [
        (0, 3.0, "bits must be 1..8, got 0"),
        (9, 3.0, "bits must be 1..8, got 9"),
        (6, 2.0, "r must be finite and above 2.1539, the last edge of 6 bits, got 2.0"),
        (6, NAN, "r must be finite and above 2.1539"),
        (6, INF, "r must be finite"),
    ],
)
def test_bad_levels(bits, r, message):
    with pytest.raises(ValueError, match=message):
        gaussian_levels(bits, r)


# ---- Refusals.

X, C, L = torch.zeros(3), torch.zeros(3, dtype=torch.uint8), torch.tensor([-1.0, 0.0, 2.0])
SHARED = [
    (L.double(), {}, "levels must be float32, got float64"),
    (L[None], {}, "levels must have 1 dimensions, got 2"),
    (L[:1], {}, "levels must be 2..256, got 1"),
    (torch.linspace(-1, 1, 257), {}, "levels must be 2..256, got 257"),
    (L.flip(0), {}, "levels must be strictly ascending within -r..r"),
    (torch.tensor([0.0, 1.0, 1.0]), {}, "levels must be strictly ascending within -r..r"),
    (torch.tensor([0.0, NAN, 1.0]), {}, "levels must be strictly ascending within -r..r"),
    (torch.tensor([0.0, 3.5]), {}, "levels must be strictly ascending within -r..r"),
    (torch.tensor([-3.5, 0.0]), {}, "levels must be strictly ascending within -r..r"),
    (L, {"lo": 5.0}, "lo must be below hi, got 5.* and 5"),
    (L, {"hi": INF}, "lo must be below hi, got -5.* and inf"),
    (L, {"lo": NAN}, "lo must be below hi, got nan and 5"),
    (L, {"lo": -3e38, "hi": 3e38}, r"hi - lo must be finite, got 6e\+38"),
    (L, {"r": 0.0}, "r must be > 0, got 0"),
    (L, {"r": -3.0}, "r must be > 0, got -3"),
]


@pytest.mark.parametrize(("levels", "extra", "message"), SHARED)
def test_bad_scale(levels, extra, message):
    with pytest.raises(RuntimeError, match="dimwise_quantize: .*" + message):
        dimwise_quantize(X, levels, **extra)
    with pytest.raises(RuntimeError, match="dimwise_dequantize: .*" + message):
        dimwise_dequantize(C, levels, **extra)


def test_bad_operands():
    with pytest.raises(
        RuntimeError, match=r"dimwise_quantize: .*x must be float32 or bfloat16 or float16, got int64"
    ):
        dimwise_quantize(torch.zeros(3).long(), L)
    with pytest.raises(RuntimeError, match=r"dimwise_dequantize: .*codes must be uint8, got int32"):
        dimwise_dequantize(C.int(), L)
    with pytest.raises(RuntimeError, match=r"dimwise_dequantize: .*codes must be 0..2, got 3"):
        dimwise_dequantize(torch.tensor([1, 3, 2], dtype=torch.uint8), L)
