"""Random packed pools for the tests of this family, and reading them slot by slot."""

import numpy as np
import torch
from torch import Tensor

from tokops.kvcache import Codec

from . import oracle

CODECS = [
    Codec("int8"),
    Codec("int8", symmetric=True, group=32),
    Codec("int4", group=32),
    Codec("int3", group=64),
    Codec("int2", group=32),
    Codec("fp8_e4m3"),
    Codec("fp8_e5m2", group=32),
    Codec("int8", "channel", 4),
    Codec("int8", "channel", 8, symmetric=True),
    Codec("int4", "channel", 8),
    Codec("int3", "channel", 2),
    Codec("int2", "channel", 8),
    Codec("fp8_e4m3", "channel", 4),
    Codec("int8", "head"),
    Codec("int8", "head", symmetric=True),
    Codec("int4", "head"),
    Codec("fp8_e4m3", "head"),
    Codec("fp8_e5m2", "head"),
]


def name(codec: Codec) -> str:
    return f"{codec.kind}-{codec.geometry}-{codec.group}{'-symmetric' * codec.symmetric}"


def pool(codec: Codec, n: int, heads: int, page: int, dim: int, dtype=torch.float32, seed: int = 0):
    """Codes, scale and zero that hold something everywhere; head grids cover about -4..4."""
    gen = torch.Generator().manual_seed(seed)
    codes, scale, zero = codec.empty(n, heads, page, dim, dtype)
    codes.copy_(torch.randint(0, 128, codes.shape, generator=gen))
    span = 8.0 / max(codec.levels - 1, 1) if codec.levels else 4.0 / 448
    scale.copy_(span * (0.9 + 0.2 * torch.rand(scale.shape, generator=gen)))
    zero.fill_(-4.0)
    return [codes, scale, zero]


def table_of(batch: int, heads: int, pages: int, per_head: bool, seed: int = 0) -> Tensor:
    """A table of entries that are all different, of a pool with two pages more."""
    gen = torch.Generator().manual_seed(seed)
    shape = (batch, heads, pages) if per_head else (batch, pages)
    n = torch.Size(shape).numel()
    return torch.randperm(n + 2, generator=gen)[:n].view(shape).int()


def place(table: Tensor, page: int, b: int, h: int, slot: int) -> tuple[int, int, int]:
    """Page, head and place in the page of a slot."""
    entry = table[b, h] if table.dim() == 3 else table[b]
    return int(entry[slot // page]), h if table.dim() == 2 else 0, slot % page


def grids(codec: Codec, scale: Tensor, zero: Tensor, at: tuple[int, int, int], dim: int):
    """Scale and zero of each element of the slot at (page, head, place)."""
    n, h, s = at

    def of(t: Tensor) -> np.ndarray:
        if codec.geometry == "head":
            row = t[n if t.shape[0] > 1 else 0, h, 0]
        else:
            row = t[n, h, s if codec.geometry == "token" else s // codec.group]
        return np.repeat(row.double().numpy(), dim // row.numel())

    return of(scale), of(zero) if zero.numel() else None


def read(codec: Codec, tensors, at: tuple[int, int, int], dim: int) -> np.ndarray:
    """Elements of a slot in float64."""
    codes, scale, zero = (t.cpu() for t in tensors)
    if codec.kind == "full":
        return codes[at].double().numpy()
    return oracle.decode(codes[at].numpy(), codec.kind, dim, *grids(codec, scale, zero, at, dim))
