"""Quantising of whole tensors, by way of kv_append."""

import torch
from torch import Tensor

from .._check import FLOATS, check_tensor
from . import packing
from ._kv_append import kv_append
from .codec import Codec

__all__ = ["head_scale", "quantize"]


def head_scale(x: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """The scale and zero that head geometry needs beforehand, from examples of what will be stored.

    Args:
        x: ``[N, H, P, D]`` float32, bfloat16 or float16 examples; each head gets the range of its own.
        codec: Any but full.

    Returns:
        scale and zero ``[1, H, 1, 1]`` in ``codec.scale_dtype``; zero is ``[0]`` where the codec stores none.

    Raises:
        ValueError: a full codec, or examples that are not ``[N, H, P, D]`` with at least one element per head.
    """
    if codec.kind == "full":
        raise ValueError("head_scale: a full codec has no scales")
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"head_scale: x must be [N, H, P, D] and not empty, got {list(x.shape)}")
    x = packing.clamp_input(x)
    lo, hi = (f(x, (0, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    scale, zero = packing.grid_of(lo, hi, codec.write_code, codec.symmetric, codec.scale_dtype)
    zero = zero if codec.has_zero else zero.new_empty(0)
    return scale.to(codec.scale_dtype), zero.to(codec.scale_dtype)


def quantize(x: Tensor, codec: Codec) -> tuple[Tensor, Tensor, Tensor]:
    """Pages of numbers as a packed pool: codes, scale and zero.

    Args:
        x: ``[N, H, P, D]`` float32, bfloat16 or float16, any strides: N pages of P tokens of H heads.
        codec: The format. Head geometry takes its scales from x (:func:`head_scale`).

    Returns:
        ``(codes, scale, zero)`` as :meth:`Codec.empty` shapes them; :func:`kv_dequantize` reads them back.

    Raises:
        ValueError: P and D do not suit the codec.
        RuntimeError: wrong rank or dtype; under ``TOKOPS_CHECK=1`` an x that is not finite.

    >>> codes, scale, zero = quantize(torch.randn(2, 8, 64, 128), Codec("int4"))
    >>> codes.shape, scale.shape
    (torch.Size([2, 8, 64, 64]), torch.Size([2, 8, 64, 2]))
    """
    check_tensor("quantize", "x", x, 4, FLOATS, x)
    n, heads, page, dim = x.shape
    codes, scale, zero = codec.empty(n, heads, page, dim, x.dtype, x.device)
    if codec.geometry == "head" and codec.kind != "full" and x.numel():
        scale, zero = head_scale(x, codec)
    # kv_append writes values too: here one element a token.
    rest = Codec("full").empty(n, heads, page, 1, x.dtype, x.device)
    table = torch.arange(n, dtype=torch.int32, device=x.device)[:, None]
    lens = torch.full((n,), page, dtype=torch.int32, device=x.device)
    rows = x.transpose(1, 2)
    kv_append(
        codes, scale, zero, *rest, table, lens, rows, rows[..., :1], k_codec=codec.write_code, v_codec=0
    )
    return codes, scale, zero
