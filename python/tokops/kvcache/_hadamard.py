"""The rotation that spreads outliers of keys and values over all dimensions before they are quantised."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import op
from .codec import MAX_HEAD_DIM

__all__ = ["hadamard"]

_NAME = "hadamard"


def _check(x, signs):
    refuse_unless(x.dim() >= 1, _NAME, "x must have at least 1 dimension, got 0")
    dim = x.shape[-1]
    refuse_unless(
        1 <= dim <= MAX_HEAD_DIM, _NAME, f"the last dimension of x must be 1..{MAX_HEAD_DIM}, got {dim}"
    )
    refuse_unless(x.dtype in FLOATS, _NAME, f"x must be float32, bfloat16 or float16, got {str(x.dtype)[6:]}")
    if signs is not None:
        check_tensor(_NAME, "signs", signs, 1, (torch.float32,), x)
        check_shape(_NAME, "signs", signs, (dim,), "[D]")


@op("hadamard(Tensor x, Tensor? signs=None, bool inverse=False) -> Tensor")
def reference(x, signs=None, inverse=False):
    """The definition: one stage of sums and differences per bit of n."""
    _check(x, signs)
    dim = x.shape[-1]
    n = dim & -dim
    y = x.float()
    if signs is not None and not inverse:
        y = y * signs
    step = 1
    while step < n:
        pairs = y.unflatten(-1, (-1, 2, step))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack([a + b, a - b], -2).flatten(-3)
        step *= 2
    y = y * n**-0.5
    if signs is not None and inverse:
        y = y * signs
    return y.to(x.dtype).contiguous()


@torch.library.register_fake("tokops::hadamard")
def _(x, signs=None, inverse=False):
    _check(x, signs)
    return x.new_empty(x.shape)


def hadamard(x: Tensor, signs: Tensor | None = None, inverse: bool = False) -> Tensor:
    """Walsh-Hadamard transform of the last dimension: ``(signs * x) H``, or with ``inverse`` ``signs * (x H)``.

    ``H`` is block-diagonal of blocks of n, the largest power of two that divides the last dimension, and scaled
    by n^-1/2: symmetric and its own inverse. Products of transformed vectors are those of the vectors.

    Args:
        x: ``[..., D]`` float32, bfloat16 or float16, D up to 256, any strides; computed in float32.
        signs: ``[D]`` float32 of +1 and -1; None: all +1.
        inverse: undo what a call without it did.

    Returns:
        ``[..., D]`` in x's dtype, contiguous.

    Raises:
        RuntimeError: wrong shape, dtype or device, naming the argument.

    >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    return torch.ops.tokops.hadamard.default(x, signs, inverse)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of hadamard, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for dim in (64, 128):
            yield "hadamard", f"D {dim}", (torch.randn(8, 8, 4096, dim, generator=gen).bfloat16(),), {}
        return
    dims = (1, 2, 4, 6, 8, 16, 32, 33, 64, 80, 96, 128, 192, 256)
    for i, dim in enumerate(dims):
        x = torch.randn(2, 3, 5, dim, generator=gen).to(FLOATS[i % 3])
        signs = torch.randint(0, 2, (dim,), generator=gen) * 2.0 - 1
        yield "hadamard", f"D {dim}", (x,), {}
        yield "hadamard", f"D {dim} signs", (x.transpose(0, 2), signs), {"inverse": i % 2 == 0}
    x = torch.randn(2, 2, 2, 3, 64, generator=gen).transpose(0, 3)
    yield "hadamard", "five axes", (x,), {}
    yield "hadamard", "a vector, not dense", (torch.randn(64, 2, generator=gen)[:, 1],), {}
    yield "hadamard", "empty", (torch.zeros(2, 0, 64),), {}
