"""hadamard against the matrix written out, and what the rotation promises."""

import pytest
import torch
from compare import assert_within_dtype_error
from scipy.linalg import block_diag
from scipy.linalg import hadamard as matrix_of

from tokops.kvcache import hadamard

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def matrix(dim):
    n = dim & -dim
    return torch.from_numpy(block_diag(*[matrix_of(n) / n**0.5] * (dim // n)))


def signs_of(dim):
    return torch.randint(0, 2, (dim,)) * 2.0 - 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 12, 24, 32, 64, 80, 96, 128, 192, 256])
def test_against_the_matrix(device, dim, dtype):
    x, signs = torch.randn(3, 2, 7, dim).to(dtype), signs_of(dim)
    h, wide = matrix(dim), x.double()
    on = x.to(device)
    assert_within_dtype_error(hadamard(on), (wide @ h).to(dtype))
    assert_within_dtype_error(hadamard(on, signs.to(device)), ((wide * signs) @ h).to(dtype))
    assert_within_dtype_error(hadamard(on, signs.to(device), inverse=True), ((wide @ h) * signs).to(dtype))


@pytest.mark.parametrize("dim", [32, 80, 128, 192, 256])
def test_twice_is_the_identity(device, dim):
    x, signs = torch.randn(5, dim, device=device), signs_of(dim).to(device)
    assert_within_dtype_error(hadamard(hadamard(x)), x)
    assert_within_dtype_error(hadamard(hadamard(x, signs), signs, inverse=True), x)
    assert not torch.allclose(hadamard(x, signs), hadamard(x), atol=0.1)


def test_products_stay_and_outliers_spread(device):
    q, k, signs = torch.randn(9, 128), torch.randn(11, 128), signs_of(128)
    k[:, 3] += 40
    turned = [hadamard(t.to(device), signs.to(device)).cpu() for t in (q, k)]
    assert torch.allclose(turned[0] @ turned[1].T, q @ k.T, atol=1e-3)
    assert turned[1].abs().max() < 10


def test_any_strides(device):
    want = torch.randn(2, 3, 4, 5, 64)
    for view in (
        want.transpose(0, 3).contiguous().transpose(0, 3),
        want.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0),
        torch.stack([want, want], -2)[..., 1, :],
    ):
        got = hadamard(view.to(device))
        assert got.is_contiguous()
        assert torch.equal(got, hadamard(want.to(device)))
    rows = torch.randn(6, 100, device=device)[::2, 7:71]
    assert torch.equal(hadamard(rows), hadamard(rows.clone(memory_format=torch.contiguous_format)))
    expanded = torch.randn(64, device=device).expand(3, 2, 64)
    assert torch.equal(hadamard(expanded), hadamard(expanded.contiguous()))


def test_what_is_not_finite_stays_in_its_block(device):
    x = torch.randn(2, 96, device=device)
    x[0, 40] = float("nan")
    got = hadamard(x)
    assert got[0, 32:64].isnan().all()
    assert torch.equal(got[0, :32], hadamard(x[:1, :32])[0])
    assert got[1].isfinite().all()


@pytest.mark.parametrize(
    ("x", "signs", "message"),
    [
        (torch.zeros(()), None, "x must have at least 1 dimension, got 0"),
        (torch.zeros(2, 257), None, r"the last dimension of x must be 1\.\.256, got 257"),
        (torch.zeros(2, 0), None, r"the last dimension of x must be 1\.\.256, got 0"),
        (torch.zeros(2, 8).double(), None, "x must be float32, bfloat16 or float16, got float64"),
        (torch.zeros(2, 8), torch.ones(4), r"signs must be \[D\] = \[8\], got \[4\]"),
        (torch.zeros(2, 8), torch.ones(8).half(), "signs must be float32, got float16"),
        (torch.zeros(2, 8), torch.ones(1, 8), "signs must have 1 dimensions, got 2"),
    ],
)
def test_bad_arguments(x, signs, message):
    with pytest.raises(RuntimeError, match="hadamard: " + message):
        hadamard(x, signs)
