"""minicache_merge against the closed forms of a rotation in a plane, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops.kvcache import minicache_merge

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: Largest error of a component of a unit vector after rounding to the dtype.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-9, torch.float16: 2**-12}


def at_angle(angle, d, rows=1, dtype=torch.float64):
    """Pairs of vectors of random lengths, in a random plane each, at an exact angle."""
    basis = np.stack([np.linalg.qr(np.random.default_rng(i).normal(size=(d, 2)))[0] for i in range(rows)])
    x, z = torch.from_numpy(basis[..., 0]), torch.from_numpy(basis[..., 1])
    y = math.cos(angle) * x + math.sin(angle) * z
    lengths = torch.rand(2, rows, 1, dtype=torch.float64) * 9 + 0.5
    return (lengths[0] * x).to(dtype), (lengths[1] * y).to(dtype)


def angle_between(a, b):
    """Of double vectors, exact near 0 and pi too."""
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a.double(), b.double()))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def slerp_by_hand(x, y, t, eps=1e-6):
    """The direction at t of the way, float64; for pairs that are neither near nor opposite."""
    u, v = (w / w.norm(dim=-1, keepdim=True) for w in (x.double(), y.double()))
    angle = torch.arccos((u * v).sum(-1, keepdim=True).clamp(eps - 1, 1 - eps))
    return (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [2, 3, 8, 31, 64, 80, 128, 257, 1024])
def test_direction_norms_distance(device, d, dtype):
    x, y = torch.randn(2, 40, d).to(dtype)
    x[::2] += y[::2]
    e, nx, ny, distance = (r.cpu() for r in minicache_merge(x.to(device), y.to(device), t=0.35))
    assert (e.dtype, nx.dtype, ny.dtype, distance.dtype) == (
        dtype,
        torch.float16,
        torch.float16,
        torch.float32,
    )
    inside = angle_between(x, y) < 3.0  # opposite vectors have a test of their own
    assert inside.sum() > 20
    error = (e.double() - slerp_by_hand(x, y, 0.35)).abs().amax(-1)[inside]
    assert error.max() < ROUNDING[dtype] * 20 ** (dtype == torch.float32)
    torch.testing.assert_close(nx.double(), x.double().norm(dim=-1), rtol=2**-11, atol=0)
    torch.testing.assert_close(ny.double(), y.double().norm(dim=-1), rtol=2**-11, atol=0)
    torch.testing.assert_close(distance.double(), angle_between(x, y) / math.pi, rtol=0, atol=5e-4)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("angle", [0.05, 0.7, math.pi / 2, 2.0, 3.0])
def test_restored_vectors_are_turned_by_their_share(device, angle, t):
    """Norms are kept; the earlier layer turns by t of the angle, the later by the rest."""
    x, y = at_angle(angle, 64, rows=30, dtype=torch.float32)
    e, nx, ny, distance = (r.cpu() for r in minicache_merge(x.to(device), y.to(device), t=t))
    ones = torch.ones(30, dtype=torch.float64)
    torch.testing.assert_close(e.double().norm(dim=-1), ones, rtol=1e-6, atol=0)
    torch.testing.assert_close(distance.double(), ones * angle / math.pi, rtol=0, atol=1e-5)
    for n, v, turned in ((nx, x, t * angle), (ny, y, (1 - t) * angle)):
        restored = e.double() * n.double()[:, None]
        torch.testing.assert_close(restored.norm(dim=-1), v.double().norm(dim=-1), rtol=2**-11, atol=0)
        torch.testing.assert_close(angle_between(restored, v), ones * turned, rtol=0, atol=2e-5)
    between = angle_between(x, e) + angle_between(e, y)  # on the arc, not elsewhere on its cones
    torch.testing.assert_close(between, ones * angle, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("t", "exact"), [(0.0, 0), (1.0, 1)])
def test_an_end_of_the_arc_is_that_layer(device, t, exact, dtype):
    pair = torch.randn(2, 50, 64).to(dtype)
    e = minicache_merge(*pair.to(device), t=t)[0].cpu()
    u = pair[exact].double() / pair[exact].double().norm(dim=-1, keepdim=True)
    assert (e.double() - u).abs().max() < ROUNDING[dtype]


@pytest.mark.parametrize("eps", [1e-6, 0.0])  # 0: the clamp is off, and the chord takes over
@pytest.mark.parametrize("scale", [1.0, 0.25, 40.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_and_scaled_layers_are_restored(device, dtype, scale, eps):
    x = torch.randn(50, 96).to(dtype)
    y = (x * scale).to(dtype)
    e, nx, ny, distance = (r.cpu() for r in minicache_merge(x.to(device), y.to(device), eps=eps))
    for v, n in ((x, nx), (y, ny)):
        restored = e.double() * v.double().norm(dim=-1, keepdim=True)
        assert ((restored - v.double()) / v.double().norm(dim=-1, keepdim=True)).abs().max() < ROUNDING[
            dtype
        ] * 2
        torch.testing.assert_close(n.double(), v.double().norm(dim=-1), rtol=2**-11, atol=0)
    assert distance.max() < 1e-3


@pytest.mark.parametrize("t", [0.0, 0.5, 0.6, 1.0])
def test_zero_vectors(device, t):
    x, y = torch.randn(2, 4, 24)
    x[0], y[1], x[2], y[2] = 0, 0, 0, 0
    x[3], y[3] = 0, 1e-20  # a tiny vector has a direction too
    e, nx, ny, distance = (r.cpu() for r in minicache_merge(x.to(device), y.to(device), t=t))
    torch.testing.assert_close(e[0], y[0] / y[0].norm())
    torch.testing.assert_close(e[1], x[1] / x[1].norm())
    assert (e[2] == 0).all()
    torch.testing.assert_close(e[3], torch.full((24,), 24**-0.5))
    assert (distance == 0).all()
    assert (nx[0], ny[1], nx[2], ny[2]) == (0, 0, 0, 0)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_opposite_vectors_give_a_unit_vector_far_from_both(device, t):
    x = torch.randn(20, 64)
    e, _, _, distance = (r.cpu() for r in minicache_merge(x.to(device), (-2 * x).to(device), t=t))
    torch.testing.assert_close(e.norm(dim=-1), torch.ones(20))
    assert (distance > 0.999).all()
    if t == 0.5:  # nothing is between: the later layer's direction
        torch.testing.assert_close(e, -x / x.norm(dim=-1, keepdim=True))


def test_what_is_not_finite_shows(device):
    x, y = torch.randn(2, 5, 16)
    x[0, 3], y[1, 2], x[2, 1] = float("nan"), float("inf"), -float("inf")
    x[3, 0], y[3] = float("nan"), 0
    x[4] *= 1e25  # too long to square
    e, nx, ny, distance = (r.cpu() for r in minicache_merge(x.to(device), y.to(device)))
    assert e.isnan().all()
    assert distance.isnan().all()
    assert nx[0].isnan()
    assert ny[1].isinf()
    assert ny[0].isfinite()


def test_long_norms_saturate(device):
    x = torch.full((1, 64), 1e6, device=device)
    _, nx, ny, _ = minicache_merge(x, x * 1e-3)
    assert nx.item() == 65504.0
    assert ny.item() == 8000.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_shapes_and_views(device, dtype):
    for shape in ((5,), (1, 1), (0, 4, 8), (2, 3, 4, 5, 6)):
        x, y = torch.randn(2, *shape).to(dtype).to(device)
        results = minicache_merge(x, y)
        assert [r.shape for r in results] == [x.shape, *[x.shape[:-1]] * 3]
    x = torch.randn(3, 9, 4, 40).to(dtype).to(device)
    y = torch.randn(4, 3, 9, 32).to(dtype).to(device)
    columns = torch.randn(32, 6).to(dtype).to(device).T
    one = torch.randn(1, 1, 1, 8).to(dtype).to(device).expand(2, 3, 4, -1)
    deep = torch.randn(3, 2, 2, 2, 8).to(dtype).to(device).transpose(0, 3)
    pairs = [(x.transpose(1, 2)[..., 5:37], y.transpose(0, 1)), (columns, columns), (one, one), (deep, deep)]
    for pair in pairs:
        want = minicache_merge(*(v.contiguous() for v in pair))
        for got, w in zip(minicache_merge(*pair), want, strict=True):
            torch.testing.assert_close(got, w, rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(2, 40), t=st.floats(0, 1), scale=st.floats(0.01, 100))
def test_lengths_do_not_turn_the_direction(seed, d, t, scale):
    gen = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 4, d, generator=gen)
    y = y + 2 * x  # never opposite
    e, _, _, distance = minicache_merge(x, y, t=t)
    scaled, _, _, same = minicache_merge(x * scale, y, t=t)
    torch.testing.assert_close(scaled, e, rtol=0, atol=2e-4)
    torch.testing.assert_close(same, distance, rtol=0, atol=2e-4)


X = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("args", "extra", "message"),
    [
        ((torch.zeros(()), X), {}, r"x_prev must be \[..., D\] with D at least 1, got \[\]"),
        ((X[..., :0], X), {}, r"x_prev must be \[..., D\] with D at least 1, got \[2, 3, 0\]"),
        ((X.double(), X), {}, "x_prev must be float32 or bfloat16 or float16, got float64"),
        ((X, X.half()), {}, "x_cur must be float32, got float16"),
        ((X, X[0]), {}, "x_cur must have 3 dimensions, got 2"),
        ((X, X[:1]), {}, r"x_cur must be the shape of x_prev = \[2, 3, 8\], got \[1, 3, 8\]"),
        ((X, X), {"t": 1.5}, "t must be 0..1, got 1.5"),
        ((X, X), {"t": float("nan")}, "t must be 0..1, got nan"),
        ((X, X), {"eps": -1e-3}, "eps must be 0 <= eps < 1, got -0.001"),
        ((X, X), {"eps": 1.0}, "eps must be 0 <= eps < 1, got 1"),
    ],
)
def test_bad_arguments(args, extra, message):
    with pytest.raises(RuntimeError, match="minicache_merge: .*" + message):
        minicache_merge(*args, **extra)
