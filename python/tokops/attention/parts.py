"""Parts of a cache: pools of pages, full-precision or packed, that :func:`packed_decode` reads in one call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Names of the packed formats by number; int3 is int4 with eight levels.
CODECS = ("full", "int8", "int4", "int2", "fp8_e4m3", "fp8_e5m2")

_TENSORS = (
    "k", "k_scale", "k_zero", "k_norm", "v", "v_scale", "v_zero", "v_norm",
    "block_table", "lens", "first", "begin", "positions", "where",
)  # fmt: skip
_NUMBERS = ("k_codec", "v_codec", "slot_base", "k_tiles")


@dataclass(frozen=True)
class Part:
    """Pages of one kind. A cached vector is ``(code * scale + zero) * norm``; parts hold different positions.

    Slot ``s`` of sequence ``b`` holds logical position ``first[b] + s``, or ``positions[b, h, s]`` where a store
    keeps tokens in an order of its own.

    Args:
        k, v: ``[N, H, P, D]`` in q's dtype, or uint8 codes ``[N, H, P, D * bits / 8]`` (in blocks of 32 dimensions:
            byte ``j`` of int4 holds ``j`` and, above it, ``j + 16``; of int2 ``j + 8 i`` in bits ``2 i``). Last
            dimension contiguous. H is Hkv, or 1 with a table per head.
        block_table: ``[B, pages]`` or ``[B, Hkv, pages]`` int32.
        lens: ``[B]`` or ``[B, Hkv]`` int32 slots in use.
        k_codec, v_codec: index into :data:`CODECS`.
        k_scale, v_scale: float16 or float32, ``[N, H, P, D / group]`` (a scale per token and group of dimensions),
            ``[N, H, P / group, D]`` (per channel and group of tokens) or ``[1, H, 1, 1]``.
        k_zero, v_zero: like the scale. None is ``-128 * scale`` for int8 and 0 for fp8.
        k_norm, v_norm: ``[N, H, P]`` float16 factor of every vector. NaN in k_norm: the slot holds nothing.
        first, begin: ``[B]`` int32; slots below ``begin`` are not part of it. None is 0.
        positions: ``[B, Hkv, pages * P]`` int32, instead of ``first`` and ``begin``.
        where: ``[B, Hkv, length]`` int32: logical position -> ``slot_base`` + slot; other numbers are other parts'.
            Needed with ``positions`` where positions are selected. One ``where`` can serve all parts of a store.
        slot_base: number of this part's first slot in ``where``.
        k_tiles: 1 where the pages of ``k`` are in ``"tile"`` order (:func:`tokops.kvcache.kv_relayout`), for the CPU
            and dense reads alone: codes of int8, int4 or int2, rows one behind the other, P a multiple of
            16.
    """

    k: Tensor
    v: Tensor
    block_table: Tensor
    lens: Tensor
    k_codec: int = 0
    v_codec: int = 0
    k_scale: Tensor | None = None
    k_zero: Tensor | None = None
    k_norm: Tensor | None = None
    v_scale: Tensor | None = None
    v_zero: Tensor | None = None
    v_norm: Tensor | None = None
    first: Tensor | None = None
    begin: Tensor | None = None
    positions: Tensor | None = None
    where: Tensor | None = None
    slot_base: int = 0
    k_tiles: int = 0

    @property
    def capacity(self) -> int:
        """Slots of one sequence."""
        return self.block_table.shape[-1] * self.k.shape[2]


_EMPTY: dict[torch.device, Tensor] = {}


def flatten(parts: Sequence[Part]) -> tuple[list[Tensor], list[int]]:
    """Tensors and numbers of all parts, as the op takes them; an empty tensor stands for None."""
    tensors: list[Tensor] = []
    numbers: list[int] = []
    for part in parts:
        empty = _EMPTY.get(part.k.device)
        if empty is None:
            empty = _EMPTY[part.k.device] = torch.empty(0, device=part.k.device)
        for name in _TENSORS:
            value = getattr(part, name)
            tensors.append(empty if value is None else value)
        numbers += [getattr(part, name) for name in _NUMBERS]
    return tensors, numbers


def unflatten(tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Part]:
    """The inverse of :func:`flatten`."""
    parts = []
    for i in range(len(numbers) // len(_NUMBERS)):
        named: dict = dict(zip(_TENSORS, tensors[i * len(_TENSORS) : (i + 1) * len(_TENSORS)], strict=True))
        required = ("k", "v", "block_table", "lens")
        named = {n: t if n in required or t.dim() > 1 or t.numel() else None for n, t in named.items()}
        named.update(zip(_NUMBERS, numbers[i * len(_NUMBERS) : (i + 1) * len(_NUMBERS)], strict=True))
        parts.append(Part(**named))
    return parts


def unpack(codes: Tensor, codec: int, dim: int) -> Tensor:
    """Codes as numbers, ``[..., dim]`` float32, scales not applied."""
    kind = CODECS[codec]
    if kind == "full":
        return codes.float()
    if kind == "int8":
        return codes.float()
    if kind.startswith("fp8"):
        dtype = torch.float8_e4m3fn if kind == "fp8_e4m3" else torch.float8_e5m2
        return codes.contiguous().view(dtype).float()
    bits = 4 if kind == "int4" else 2
    blocks = codes.unflatten(-1, (dim // 32, 4 * bits))
    planes = [(blocks >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.cat(planes, -1).flatten(-2).float()


def _untiled(codes: Tensor, codec: int, dim: int) -> Tensor:
    """:func:`unpack` of pages in tiles: of 16 tokens four bytes each, whose bits ``i b``.. are four dimensions."""
    bits = {1: 8, 2: 4, 3: 2}[codec]
    columns = codes.flatten(2).unflatten(2, (-1, dim * bits // 32, 16, 4)).transpose(3, 4)
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)[:, None]
    numbers = (columns[..., None, :] >> shifts) & ((1 << bits) - 1)  # [N, H, tile, token, column, i, byte]
    return numbers.flatten(4).flatten(2, 3).float()


def decoded(part: Part, side: str, dim: int) -> Tensor:
    """The keys ("k") or values ("v") of a part's pool, ``[N, H, P, dim]`` float32."""
    codes, codec = getattr(part, side), getattr(part, f"{side}_codec")
    x = _untiled(codes, codec, dim) if side == "k" and part.k_tiles else unpack(codes, codec, dim)
    if codec:
        scale, zero = getattr(part, f"{side}_scale").float(), getattr(part, f"{side}_zero")
        if zero is None:
            zero = -128 * scale if CODECS[codec] == "int8" else torch.zeros_like(scale)
        x = x * _spread(scale, x) + _spread(zero.float(), x)
    norm = getattr(part, f"{side}_norm")
    return x if norm is None else x * norm.float()[..., None]


def _spread(scale: Tensor, x: Tensor) -> Tensor:
    """A scale of any geometry, one number an element of ``x [N, H, P, D]``."""
    rows, columns = x.shape[2] // scale.shape[2], x.shape[3] // scale.shape[3]
    return scale.repeat_interleave(rows, 2).repeat_interleave(columns, 3).expand_as(x)
