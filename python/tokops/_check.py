"""The words in which tokops refuses an argument: op, argument, what was expected, what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def refuse_unless(ok: bool, op: str, message: str) -> None:
    """Raise RuntimeError ``op: message`` unless ``ok``."""
    torch._check(ok, lambda: f"{op}: {message}")


def check_tensor(
    op: str, name: str, t: Tensor, dims: int | tuple[int, ...], dtypes: Sequence[torch.dtype], like: Tensor
) -> None:
    """Check rank, dtype and device of one argument."""
    wanted = (dims,) if isinstance(dims, int) else dims
    refuse_unless(
        t.dim() in wanted, op, f"{name} must have {' or '.join(map(str, wanted))} dimensions, got {t.dim()}"
    )
    refuse_unless(
        t.dtype in dtypes,
        op,
        f"{name} must be {' or '.join(str(d)[6:] for d in dtypes)}, got {str(t.dtype)[6:]}",
    )
    refuse_unless(t.device == like.device, op, f"{name} must be on {like.device}, got {t.device}")


def check_shape(op: str, name: str, t: Tensor, shape: Sequence[int], words: str) -> None:
    """Check the exact shape of one argument; ``words`` names its axes."""
    refuse_unless(
        tuple(t.shape) == tuple(shape), op, f"{name} must be {words} = {list(shape)}, got {list(t.shape)}"
    )
