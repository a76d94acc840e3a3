"""Packed pools in plain PyTorch: what the references of this family are made of, and how they check pools."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .codec import MAX_HEAD_DIM, PACK_BLOCK

FULL, INT8, INT4, INT2, E4M3, E5M2, INT3 = range(7)
#: Bits of a code, by id.
BITS = {INT8: 8, INT4: 4, INT2: 2, E4M3: 8, E5M2: 8, INT3: 4}
#: Largest integer code, by id.
TOP = {INT8: 255, INT4: 15, INT2: 3, INT3: 7}
FP8 = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
LARGEST_INPUT = 65504.0
SMALLEST_FP8_SCALE = 2.0**-100
INT = (torch.int32,)


@dataclass(frozen=True)
class Pool:
    """What the tensors of a packed pool say: ``[N, H, P, D]`` elements, and which of them share a scale."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    codec: int
    dim: int
    geometry: str  # "token", "channel", "head", or "full"
    group: int

    @property
    def page(self) -> int:
        return self.codes.shape[2]

    @property
    def symmetric(self) -> bool:
        return self.codec == INT8 and self.zero.numel() == 0


def _geometry(scale: Tensor, codes: Tensor, dim: int) -> tuple[str, int] | None:
    n, heads, page = codes.shape[:3]
    pages, h, rows, columns = scale.shape
    if h != heads:
        return None
    if pages == n and rows == page and columns > 0 and dim % columns == 0:
        return "token", dim // columns
    if pages in (n, 1) and rows == columns == 1:
        return "head", dim
    if pages == n and rows > 0 and page > 0 and page % rows == 0 and columns == dim:
        return "channel", page // rows
    return None


def check_codes(op: str, of: str, codes: Tensor, codec: int) -> int:
    """Check the codes of a pool; return D. ``of`` precedes the names of a pool's tensors in messages."""
    refuse_unless(0 <= codec <= 6, op, f"{of}codec must be 0..6, got {codec}")
    check_tensor(op, f"{of}codes", codes, 4, FLOATS if codec == FULL else (torch.uint8,), codes)
    dense = codes.shape[3] <= 1 or codes.stride(3) == 1
    refuse_unless(dense, op, f"{of}codes must have a contiguous last dimension")
    dim = codes.shape[3] if codec == FULL else codes.shape[3] * 8 // BITS[codec]
    refuse_unless(
        1 <= dim <= MAX_HEAD_DIM, op, f"{of}codes must hold 1..{MAX_HEAD_DIM} elements per row, got {dim}"
    )
    whole = codec == FULL or BITS[codec] == 8 or dim % PACK_BLOCK == 0
    refuse_unless(whole, op, f"{of}codes must hold whole blocks of {PACK_BLOCK} elements per row, got {dim}")
    return dim


def pool_of(op: str, of: str, codes: Tensor, scale: Tensor, zero: Tensor, codec: int) -> Pool:
    """Check the three tensors of a pool."""
    dim = check_codes(op, of, codes, codec)
    if codec == FULL:
        empty = scale.numel() == 0 and zero.numel() == 0
        refuse_unless(empty, op, f"{of}scale and {of}zero must be empty for codec 0")
        return Pool(codes, scale, zero, codec, dim, "full", dim)
    check_tensor(op, f"{of}scale", scale, 4, (torch.float16, torch.float32), codes)
    found = _geometry(scale, codes, dim)
    n, heads, page = codes.shape[:3]
    refuse_unless(
        found is not None,
        op,
        f"{of}scale must be [N, H, P, D/group], [N, H, P/group, D] or [N or 1, H, 1, 1] with N {n}, H {heads}, "
        f"P {page}, D {dim}, got {list(scale.shape)}",
    )
    assert found is not None
    if zero.numel() or not (codec in (INT8, E4M3, E5M2) or scale.numel() == 0):
        refuse_unless(codec not in FP8, op, f"{of}zero must be empty for fp8, got {list(zero.shape)}")
        check_shape(op, f"{of}zero", zero, scale.shape, "the shape of the scale")
        check_tensor(op, f"{of}zero", zero, 4, (scale.dtype,), codes)
    return Pool(codes, scale, zero, codec, dim, *found)


def check_pair(op: str, of: str, v: Tensor, k: Tensor) -> None:
    """Check that V's pool goes with K's."""
    refuse_unless(v.device == k.device, op, f"{of}v_codes must be on the same device as the first argument")
    refuse_unless(
        v.shape[:3] == k.shape[:3],
        op,
        f"{of}v_codes must have the N, H and P of {of}k_codes {list(k.shape)}, got {list(v.shape)}",
    )


def check_table(op: str, name: str, table: Tensor, codes: Tensor) -> int:
    """Check a block table against a pool; return the number of KV heads."""
    check_tensor(op, name, table, (2, 3), INT, codes)
    refuse_unless(
        table.dim() == 2 or codes.shape[1] == 1,
        op,
        f"{name} [B, Hkv, pages] needs one head per page, got {codes.shape[1]}",
    )
    return table.shape[1] if table.dim() == 3 else codes.shape[1]


def slots(codes: Tensor, table: Tensor, heads: int, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Page, head and place in the page ``[B, Hkv, n]`` of slots ``[B, Hkv, n]`` of a sequence."""
    entries = table if table.dim() == 3 else table[:, None].expand(-1, heads, -1)
    page = torch.gather(entries.long(), 2, positions // codes.shape[2])
    shared = codes.shape[1] == heads and table.dim() == 2
    head = torch.arange(heads, device=codes.device) if shared else page.new_zeros(heads)
    return page, head[None, :, None].expand_as(page), positions % codes.shape[2]


# ---- Bits. ----


def pack(codes: Tensor, codec: int) -> Tensor:
    """Codes ``[..., D]`` (uint8, one each) as the bytes of rows."""
    bits = BITS[codec]
    if bits == 8:
        return codes
    parts = 8 // bits  # of a byte; element j + i * 32 / parts of a block goes to bits i * bits.. of byte j
    blocks = codes.unflatten(-1, (-1, parts, PACK_BLOCK // parts))
    shift = torch.arange(parts, device=codes.device, dtype=torch.uint8)[:, None] * bits
    return (blocks << shift).sum(-2, dtype=torch.uint8).flatten(-2)


def unpack(rows: Tensor, codec: int) -> Tensor:
    """The reverse of :func:`pack`."""
    bits = BITS[codec]
    if bits == 8:
        return rows
    parts = 8 // bits
    blocks = rows.unflatten(-1, (-1, 1, PACK_BLOCK // parts))
    shift = torch.arange(parts, device=rows.device, dtype=torch.uint8)[:, None] * bits
    return ((blocks >> shift) & (2**bits - 1)).flatten(-3)


def code_values(codes: Tensor, codec: int) -> Tensor:
    """The number each code stands for, float32."""
    return codes.contiguous().view(FP8[codec]).float() if codec in FP8 else codes.float()


# ---- Grids: the scale and zero of a group. ----


def _half(x: Tensor, up: bool) -> Tensor:
    """The float16 next to x that is not below (``up``) or not above it."""
    nearest = x.half()
    wrong = nearest.float() < x if up else nearest.float() > x
    bits = nearest.view(torch.int16).int()
    grow = (bits >= 0) if up else (bits < 0)  # away from zero: one more in the magnitude
    bits = torch.where(wrong, bits + torch.where(grow, 1, -1), bits)
    return bits.to(torch.int16).view(torch.float16)


def keep(x: Tensor, dtype: torch.dtype, up: bool) -> Tensor:
    """x as stored in ``dtype``: float16 is rounded up or down."""
    return x.float() if dtype == torch.float32 else _half(x, up)


def clamp_input(x: Tensor) -> Tensor:
    """What is quantised in place of x: finite and within float16, in float32."""
    return x.float().nan_to_num(0.0, LARGEST_INPUT, -LARGEST_INPUT).clamp(-LARGEST_INPUT, LARGEST_INPUT)


def grid_of(lo: Tensor, hi: Tensor, codec: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Stored scale and zero of groups whose elements are lo..hi; the zero of a symmetric grid is -128 scales."""
    most = torch.maximum(hi, -lo)

    def divided(x: Tensor, by: float) -> Tensor:  # by a tensor: CUDA multiplies by a scalar's reciprocal
        return x / torch.full_like(x, by)

    if codec in FP8:
        scale = divided(most, torch.finfo(FP8[codec]).max).clamp_min(SMALLEST_FP8_SCALE)
        scale = keep(scale, dtype, up=True)
        return scale, torch.zeros_like(scale)
    scale = keep(divided(most, 127) if symmetric else divided(hi - lo, TOP[codec]), dtype, up=True)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, -128 * scale if symmetric else keep(lo + 0.0, dtype, up=False)


def encode(x: Tensor, scale: Tensor, zero: Tensor, codec: int, symmetric: bool) -> Tensor:
    """Codes (uint8, one each) of clamped elements on grids that broadcast to them."""

    def within(t: Tensor, low: float, high: float) -> Tensor:
        t = torch.where(t > low, t, low)
        return torch.where(t < high, t, high)

    scale, zero = scale.float(), zero.float()
    if codec in FP8:
        most = torch.finfo(FP8[codec]).max
        return within(x / scale, -most, most).to(FP8[codec]).view(torch.uint8)
    if symmetric:
        return (within(x / scale, -127, 127).round() + 128).to(torch.uint8)
    return within((x - zero) / scale, 0, TOP[codec]).round().to(torch.uint8)


def element_grids(pool: Pool, page: Tensor, head: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero of every element of some slots, ``[..., D]`` float32."""
    n = pool.codes.shape[0]
    row = {"token": place, "channel": place // max(pool.group, 1), "head": torch.zeros_like(place)}

    def of_elements(t: Tensor) -> Tensor:
        rows = t.expand(n, -1, -1, -1)[page, head, row[pool.geometry]].float()  # [..., columns]
        return rows.repeat_interleave(pool.dim // rows.shape[-1], -1)

    scale = of_elements(pool.scale)
    if pool.zero.numel():
        return scale, of_elements(pool.zero)
    return scale, -128 * scale if pool.codec == INT8 else torch.zeros_like(scale)


def decode_slots(pool: Pool, page: Tensor, head: Tensor, place: Tensor) -> Tensor:
    """Elements ``[..., D]`` float32 of slots."""
    rows = pool.codes[page, head, place]
    if pool.codec == FULL:
        return rows.float()
    scale, zero = element_grids(pool, page, head, place)
    return code_values(unpack(rows, pool.codec), pool.codec) * scale + zero


def encode_slots(pool: Pool, x: Tensor, page: Tensor, head: Tensor, place: Tensor) -> None:
    """Write elements ``[n, D]`` to n slots of a full pool, or of token or head geometry."""
    if pool.codec == FULL:
        pool.codes[page, head, place] = x.to(pool.codes.dtype)
        return
    x = clamp_input(x)
    if pool.geometry == "token":
        groups = x.unflatten(-1, (-1, pool.group))
        scale, zero = grid_of(groups.amin(-1), groups.amax(-1), pool.codec, pool.symmetric, pool.scale.dtype)
        pool.scale[page, head, place] = scale
        if pool.zero.numel():
            pool.zero[page, head, place] = zero
    scale, zero = element_grids(pool, page, head, place)
    pool.codes[page, head, place] = pack(encode(x, scale, zero, pool.codec, pool.symmetric), pool.codec)
