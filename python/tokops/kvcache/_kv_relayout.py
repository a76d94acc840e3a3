"""Packed rows in another physical order."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, refuse_unless
from .._native import op
from . import packing

__all__ = ["kv_relayout"]

_NAME = "kv_relayout"
_TILE = 16
_ORDERS = ("row", "tile")


def _check(codes, codec, source, target):
    for name, order in (("source", source), ("target", target)):
        refuse_unless(order in _ORDERS, _NAME, f"{name} must be row or tile, got {order}")
    dim = packing.check_codes(_NAME, "", codes, codec)
    page = codes.shape[2]
    refuse_unless(page % _TILE == 0, _NAME, f"the page size must be a multiple of {_TILE}, got {page}")
    refuse_unless(
        codec == packing.FULL or dim % 4 == 0,
        _NAME,
        f"codes must hold a multiple of 4 elements per row, got {dim}",
    )


@op("kv_relayout(Tensor codes, int codec, str source, str target) -> Tensor")
def reference(codes, codec, source, target):
    """The definition: axes of a tile in another order, codes taken out of their bytes and put back."""
    _check(codes, codec, source, target)
    if source == target:
        return codes.clone(memory_format=torch.contiguous_format)
    if codec == packing.FULL:
        tiles = codes.flatten(2).unflatten(2, (-1, _TILE, codes.shape[3]))
        if source == "tile":
            tiles = tiles.reshape(*tiles.shape[:3], codes.shape[3], _TILE)
        return tiles.mT.reshape(codes.shape).clone(memory_format=torch.contiguous_format)
    bits = packing.BITS[codec]
    shift = torch.arange(8 // bits, device=codes.device, dtype=torch.uint8) * bits
    if target == "tile":
        each = packing.unpack(codes, codec)  # [N, H, P, D]: tile, token; column, part, byte
        each = each.unflatten(3, (-1, 8 // bits, 4)).unflatten(2, (-1, _TILE))
        columns = (each << shift[:, None]).sum(-2, dtype=torch.uint8)  # [N, H, tile, token, column, byte]
        return columns.transpose(3, 4).reshape(codes.shape).contiguous()
    columns = codes.reshape(*codes.shape[:2], -1, codes.shape[3] // 4, _TILE, 4).transpose(3, 4)
    each = (columns[..., None, :] >> shift[:, None]) & (2**bits - 1)
    return packing.pack(each.flatten(4).flatten(2, 3), codec).contiguous()


@torch.library.register_fake("tokops::kv_relayout")
def _(codes, codec, source, target):
    _check(codes, codec, source, target)
    return codes.new_empty(codes.shape)


def kv_relayout(codes: Tensor, codec: int, source: str, target: str) -> Tensor:
    """Packed rows in another physical order, for readers that take many tokens at once.

    In ``"row"`` order a page is rows of tokens. In ``"tile"`` order it is tiles of 16 tokens: full elements as
    ``[D][16 tokens]``; codes of b bits as ``[D b / 32][16 tokens][4 bytes]``, where bits ``i b``.. of byte ``r``
    of column ``j`` hold dimension ``32 / b j + 4 i + r``.

    Args:
        codes: ``[N, H, P, bytes of a row]`` uint8, or ``[N, H, P, D]`` full elements; P a multiple of 16.
        codec: :attr:`Codec.code`.
        source, target: ``"row"`` or ``"tile"``.

    Returns:
        A new tensor of the same shape, contiguous, whose pages are in ``target`` order.

    Raises:
        RuntimeError: wrong shape or dtype, an unknown order, D that is no multiple of 4.
    """
    return torch.ops.tokops.kv_relayout.default(codes, codec, source, target)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of kv_relayout, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    n, page, dims = (64, 64, (128,)) if size == "large" else (2, 32, (64, 96, 256))
    for dim in dims:
        for dtype in FLOATS:
            x = torch.randn(n, 3, page, dim, generator=gen).to(dtype)
            for orders in (("row", "tile"), ("tile", "row")):
                yield "kv_relayout", f"full {dtype} D {dim} {orders[0]} to {orders[1]}", (x, 0, *orders), {}
        for codec, bits in packing.BITS.items():
            rows = torch.randint(0, 256, (n, 3, page, dim * bits // 8), generator=gen).byte()
            for orders in (("row", "tile"), ("tile", "row"), ("row", "row")):
                yield (
                    "kv_relayout",
                    f"codec {codec} D {dim} {orders[0]} to {orders[1]}",
                    (rows, codec, *orders),
                    {},
                )
