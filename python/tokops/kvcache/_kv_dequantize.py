"""Reading packed pools back as numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import op
from . import packing
from .codec import Codec

__all__ = ["kv_dequantize"]

_NAME = "kv_dequantize"


def _check(codes, scale, zero, norm, codec, dim):
    scale, zero = (codes.new_empty(0, dtype=torch.float16) if t is None else t for t in (scale, zero))
    pool = packing.pool_of(_NAME, "", codes, scale, zero, codec)
    refuse_unless(dim == pool.dim, _NAME, f"dim must be the {pool.dim} elements of a row of codes, got {dim}")
    if norm is not None:
        check_tensor(_NAME, "norm", norm, 3, (torch.float16, torch.float32), codes)
        check_shape(_NAME, "norm", norm, codes.shape[:3], "[N, H, P]")
    return pool


@op("kv_dequantize(Tensor codes, Tensor? scale, Tensor? zero, Tensor? norm, int codec, int dim) -> Tensor")
def reference(codes, scale, zero, norm, codec, dim):
    """The definition: code * scale + zero, times the norm of its token."""
    pool = _check(codes, scale, zero, norm, codec, dim)
    axes = (torch.arange(n, device=codes.device) for n in codes.shape[:3])
    x = packing.decode_slots(pool, *torch.meshgrid(*axes, indexing="ij"))
    return x if norm is None else x * norm[..., None].float()


@torch.library.register_fake("tokops::kv_dequantize")
def _(codes, scale, zero, norm, codec, dim):
    _check(codes, scale, zero, norm, codec, dim)
    return codes.new_empty((*codes.shape[:3], dim), dtype=torch.float32)


def kv_dequantize(
    codes: Tensor, scale: Tensor | None, zero: Tensor | None, norm: Tensor | None, codec: int, dim: int
) -> Tensor:
    """The elements of whole packed pools: ``(code * scale + zero) * norm``.

    Args:
        codes, scale, zero: as in :func:`tokops.kvcache.kv_append`; scale and zero may be None where they would
            be empty.
        norm: ``[N, H, P]`` float16 or float32 factor of each token, or None.
        codec: :attr:`Codec.code`, or :attr:`Codec.write_code`.
        dim: D, the elements of a row.

    Returns:
        ``[N, H, P, D]`` float32.

    Raises:
        RuntimeError: wrong shape, dtype or device, naming the argument.
    """
    return torch.ops.tokops.kv_dequantize.default(codes, scale, zero, norm, codec, dim)


_CODECS = [
    Codec("int8"),
    Codec("int8", "channel", 4, symmetric=True),
    Codec("int4", group=32),
    Codec("int3", "head"),
    Codec("int2", "channel", 8),
    Codec("fp8_e4m3"),
    Codec("fp8_e5m2", "head"),
    Codec("full"),
]


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of kv_dequantize, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    n, heads, page = (128, 8, 64) if size == "large" else (3, 2, 8)
    for i, codec in enumerate(_CODECS[:4] if size == "large" else _CODECS):
        dim = (64, 128, 192)[i % 3]
        codes, scale, zero = codec.empty(n, heads, page, dim, FLOATS[i % 3])
        codes.copy_(torch.randint(0, 124, codes.shape, generator=gen))
        scale.copy_(torch.rand(scale.shape, generator=gen))
        zero.copy_(torch.randn(zero.shape, generator=gen))
        norm = torch.randn(n, heads, page, generator=gen).half()
        norm[0, 0, 0] = float("nan")
        label = f"{codec.kind} {codec.geometry}"
        full = codec.kind == "full"
        yield "kv_dequantize", label, (codes, None if full else scale, zero, None, codec.code, dim), {}
        yield "kv_dequantize", label + " norm", (codes, scale, zero, norm, codec.write_code, dim), {}
    if size != "large":
        every = torch.arange(256).to(torch.uint8).repeat(2).view(2, 1, 1, 256)
        for code in (packing.E4M3, packing.E5M2):
            args = (every, torch.tensor([1.0, 0.3]).view(2, 1, 1, 1), None, None, code, 256)
            yield "kv_dequantize", f"every code of {code}", args, {}
