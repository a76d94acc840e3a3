"""Random inputs for the ops over packed pools: what `cases` draws from."""

import torch
from torch import Tensor

from .codec import Codec


def table(gen: torch.Generator, batch: int, heads: int, pages: int, per_head: bool) -> Tensor:
    """A block table whose entries are all different, of pools with a page more."""
    shape = (batch, heads, pages) if per_head else (batch, pages)
    count = torch.Size(shape).numel()
    return torch.randperm(count + 1, generator=gen)[:count].view(shape).int()


def pool(
    gen: torch.Generator,
    codec: Codec,
    block_table: Tensor,
    heads: int,
    page: int,
    dim: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero that hold something everywhere, so that a write out of place shows; grids suit randn."""
    own = 1 if block_table.dim() == 3 else heads
    codes, scale, zero = codec.empty(block_table.numel() + 1, own, page, dim, dtype)
    if codec.kind == "full":
        codes.copy_(torch.randn(codes.shape, generator=gen))
    else:
        codes.copy_(torch.randint(0, 120, codes.shape, generator=gen))  # of fp8: finite
    scale.copy_(8.0 / max(codec.levels - 1, 1) * (0.5 + torch.rand(scale.shape, generator=gen)))
    zero.copy_(-4.0 + torch.rand(zero.shape, generator=gen))
    return codes, scale, zero
