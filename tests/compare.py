"""Comparisons that say what they allow by name."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tokops import _native

#: Largest error of a result relative to max(1, |value|), by the dtype it was computed in.
WITHIN = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}
#: Head dimensions that decoding has CUDA kernels for.
CUDA_HEAD_DIMS = (64, 80, 96, 128, 192, 256)


def assert_within_dtype_error(got: Tensor, want: Tensor, dtype: torch.dtype | None = None) -> None:
    """Same shape, same non-finite entries, and a difference that rounding in ``dtype`` explains."""
    assert got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}"
    allowed = WITHIN[dtype or got.dtype]
    got, want = got.double().cpu(), want.double().cpu()
    odd = ~want.isfinite()
    assert torch.equal(~got.isfinite(), odd), "non-finite entries differ"
    assert torch.equal(got[odd].nan_to_num(7.0), want[odd].nan_to_num(7.0)), "non-finite values differ"
    error = ((got - want).abs() / want.abs().clamp_min(1.0))[~odd]
    assert error.numel() == 0 or error.max() <= allowed, f"error {error.max():.3g}, allowed {allowed:.3g}"


def assert_same(got: Tensor, want: Tensor) -> None:
    """Bitwise equality of integers."""
    assert torch.equal(got.cpu(), want.cpu()), f"{got} differs from {want}"


@contextlib.contextmanager
def refusing_head_dim(dim: int, device: torch.device) -> Iterator[None]:
    """What is inside runs; where CUDA has no kernel for the head dimension, it must say so instead."""
    if device.type != "cuda" or dim in CUDA_HEAD_DIMS or "cuda" not in _native.loaded:
        yield
        return
    message = f"head dimension must be 64, 80, 96, 128, 192 or 256 on CUDA, got {dim}"
    with pytest.raises(RuntimeError, match=message):
        yield
