"""What packed_decode asks of one part."""

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from . import logical
from .parts import CODECS, Part

_NAME = "packed_decode"


def _check_side(name: str, part: Part, side: str, q: Tensor) -> None:
    data, codec = getattr(part, side), getattr(part, f"{side}_codec")
    refuse_unless(0 <= codec < len(CODECS), _NAME, f"{name}_codec must be 0..{len(CODECS) - 1}, got {codec}")
    check_tensor(_NAME, name, data, 4, (torch.uint8,) if codec else (q.dtype,), q)
    d, bits = q.shape[3], {0: 8, 1: 8, 2: 4, 3: 2, 4: 8, 5: 8}[codec]
    least = 32 if bits < 8 else 16
    if codec:
        refuse_unless(
            d % least == 0,
            _NAME,
            f"the codec of {name} needs a head dimension that is a multiple of {least}, got {d}",
        )
    refuse_unless(
        data.shape[3] == d * bits // 8,
        _NAME,
        f"{name} must have rows of {d * bits // 8} for head dimension {d}, got {data.shape[3]}",
    )
    refuse_unless(
        data.shape[3] <= 1 or data.stride(3) == 1, _NAME, f"{name} must have a contiguous last dimension"
    )
    if codec:
        _check_scale(name, part, side, data, least, d)
    norm = getattr(part, f"{side}_norm")
    if norm is not None:
        check_tensor(_NAME, f"{name}_norm", norm, 3, (torch.float16,), q)
        check_shape(_NAME, f"{name}_norm", norm, data.shape[:3], "[N, H, P]")


def _check_scale(name, part, side, data, least, d):
    scale, zero = getattr(part, f"{side}_scale"), getattr(part, f"{side}_zero")
    refuse_unless(scale is not None, _NAME, f"{name}_scale must have 4 dimensions, got None")
    check_tensor(_NAME, f"{name}_scale", scale, 4, (torch.float16, torch.float32), data)
    page = data.shape[2]
    rows, columns = scale.shape[2:]
    head = rows == columns == 1
    channel = columns == d and rows != page and rows > 0 and page % rows == 0
    token = rows == page and columns > 0 and d % columns == 0 and d // columns % least == 0
    refuse_unless(
        head or channel or token,
        _NAME,
        f"{name}_scale must be [N, H, {page}, {d} / group] with a group of a multiple of {least}, "
        f"[N, H, {page} / group, {d}] or [N, H, 1, 1], got {list(scale.shape)}",
    )
    refuse_unless(
        scale.shape[0] in (1, data.shape[0]) and scale.shape[1] in (1, data.shape[1]),
        _NAME,
        f"{name}_scale must have the pages and heads of {name} {list(data.shape)}, got {list(scale.shape)}",
    )
    if zero is not None:
        check_tensor(_NAME, f"{name}_zero", zero, 4, (scale.dtype,), data)
        same = zero.shape == scale.shape and all(
            n <= 1 or a == b for n, a, b in zip(zero.shape, zero.stride(), scale.stride(), strict=True)
        )
        refuse_unless(
            same,
            _NAME,
            f"{name}_zero must have the shape and strides of {name}_scale {list(scale.shape)}, "
            f"got {list(zero.shape)}",
        )


def _check_tiles(name: str, part: Part, selected: Tensor | None) -> None:
    refuse_unless(part.k_tiles in (0, 1), _NAME, f"{name} must be 0 or 1, got {part.k_tiles}")
    if not part.k_tiles:
        return
    k = part.k
    on_cpu = k.device.type in ("cpu", "meta")
    refuse_unless(on_cpu, _NAME, f"{name}: keys in tiles are read by the CPU alone")
    integers = CODECS[part.k_codec].startswith("int")
    refuse_unless(integers, _NAME, f"{name} needs codes of int8, int4 or int2, got codec {part.k_codec}")
    refuse_unless(
        k.shape[2] % 16 == 0, _NAME, f"{name} needs a page size that is a multiple of 16, got {k.shape[2]}"
    )
    refuse_unless(
        k.shape[2] <= 1 or k.stride(2) == k.shape[3],
        _NAME,
        f"{name} needs pages whose rows lie one behind the other",
    )
    refuse_unless(selected is None, _NAME, f"{name}: keys in tiles are read densely, not selected")


def check_part(i: int, part: Part, q: Tensor, heads: int, selected: Tensor | None) -> None:
    """Refuse shapes, dtypes and combinations that the op does not take."""
    b, name = q.shape[0], f"parts[{i}]"
    for side in ("k", "v"):
        _check_side(f"{name}.{side}", part, side, q)
    _check_tiles(f"{name}.k_tiles", part, selected)
    pages = list(part.k.shape)
    refuse_unless(
        list(part.v.shape[:3]) == pages[:3],
        _NAME,
        f"{name}.v must have the pages, heads and page size of {name}.k {pages}, got {list(part.v.shape)}",
    )
    table = part.block_table
    check_tensor(_NAME, f"{name}.block_table", table, (2, 3), logical.INT, q)
    if table.dim() == 3:
        refuse_unless(
            part.k.shape[1] == 1,
            _NAME,
            f"{name}.k must have one head per page when block_table is [B, Hkv, pages], got {part.k.shape[1]}",
        )
    refuse_unless(
        table.shape[0] == b and logical.kv_heads(part.k, table) == heads,
        _NAME,
        f"{name}.block_table must be of {b} sequences and {heads} KV heads, got {list(table.shape)}",
    )
    check_tensor(_NAME, f"{name}.lens", part.lens, (1, 2), logical.INT, q)
    check_shape(_NAME, f"{name}.lens", part.lens, (b, heads)[: part.lens.dim()], "[B] or [B, Hkv]")
    for field in ("first", "begin"):
        x = getattr(part, field)
        if x is not None:
            check_tensor(_NAME, f"{name}.{field}", x, 1, logical.INT, q)
            check_shape(_NAME, f"{name}.{field}", x, (b,), "[B]")
    if part.positions is not None:
        refuse_unless(
            part.first is None and part.begin is None, _NAME, f"{name}.positions excludes first and begin"
        )
        check_tensor(_NAME, f"{name}.positions", part.positions, 3, logical.INT, q)
        check_shape(
            _NAME, f"{name}.positions", part.positions, (b, heads, part.capacity), "[B, Hkv, pages * P]"
        )
    refuse_unless(
        0 <= part.slot_base < 2**31, _NAME, f"{name}.slot_base must be 0..2^31-1, got {part.slot_base}"
    )
    if part.where is not None:
        check_tensor(_NAME, f"{name}.where", part.where, 3, logical.INT, q)
        check_shape(_NAME, f"{name}.where", part.where[..., :0], (b, heads, 0), "[B, Hkv, length]")
