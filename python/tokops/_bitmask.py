"""The references' side of csrc/common/bitmask.h: bit ``t % 32`` of word ``t / 32`` is 1 where token t is allowed."""

import torch
from torch import Size, Tensor

from ._check import check_tensor, refuse_unless


def check(op: str, name: str, mask: Tensor, rows: int, like: Tensor) -> None:
    """Refuse what is no mask ``[rows or 1, W]`` int32."""
    check_tensor(op, name, mask, 2, (torch.int32,), like)
    refuse_unless(mask.shape[0] in (rows, 1), op, f"{name} must have {rows} rows or 1, got {mask.shape[0]}")


def rows_of(op: str, mask: Tensor | None, shape: Size) -> Tensor | None:
    """A mask ``[..., W]`` or ``[W]`` as the ``[rows or 1, W]`` that an op takes for a batch of this shape."""
    if mask is None:
        return None
    refuse_unless(mask.dim() >= 1, op, "mask must have at least 1 dimension")
    lead = mask.shape[:-1]
    refuse_unless(
        lead == shape or lead.numel() == 1,
        op,
        f"mask must be [..., W] with ... = {list(shape)} or 1, got {list(mask.shape)}",
    )
    return mask.reshape(lead.numel(), mask.shape[-1])


def allowed(mask: Tensor, size: int) -> Tensor:
    """The first ``size`` bits of every row ``[..., size]`` bool; False beyond the mask."""
    bits = (mask[..., None] >> torch.arange(32, device=mask.device)) & 1
    known = bits.flatten(-2)[..., :size].bool()
    found = known.new_zeros(*mask.shape[:-1], size)
    found[..., : known.shape[-1]] = known
    return found


def packed(allowed: Tensor) -> Tensor:
    """Bools ``[..., V]`` as words ``[..., ceil(V / 32)]`` int32; bits beyond V are 0."""
    size = allowed.shape[-1]
    bits = torch.nn.functional.pad(allowed.int(), (0, -size % 32)).unflatten(-1, (-1, 32)).long()
    words = (bits << torch.arange(32, device=allowed.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
