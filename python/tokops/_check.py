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
    torch._check(
        t.dim() in wanted,
        lambda: f"{op}: {name} must have {' or '.join(map(str, wanted))} dimensions, got {t.dim()}",
    )
    torch._check(
        t.dtype in dtypes,
        lambda: f"{op}: {name} must be {' or '.join(str(d)[6:] for d in dtypes)}, got {str(t.dtype)[6:]}",
    )
    torch._check(t.device == like.device, lambda: f"{op}: {name} must be on {like.device}, got {t.device}")


def check_shape(op: str, name: str, t: Tensor, shape: Sequence[int], words: str) -> None:
    """Check the exact shape of one argument; ``words`` names its axes."""
    torch._check(
        tuple(t.shape) == tuple(shape),
        lambda: f"{op}: {name} must be {words} = {list(shape)}, got {list(t.shape)}",
    )


def check_softcap(op: str, softcap: float | None) -> None:
    """Refuse a cap that is no positive number in float32, in which kernels divide by it."""
    ok = softcap is None or softcap >= torch.finfo(torch.float32).tiny
    refuse_unless(ok, op, f"softcap must be > 0 in float32, got {softcap}")
