"""Positions of the largest scores, exact and in a total order."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["threshold_positions", "topk_positions"]


def _check(op_name, scores, lens, k, k_max, threshold=None):
    refuse_unless(scores.dim() >= 1, op_name, "scores must have at least 1 dimension")
    check_tensor(op_name, "scores", scores, scores.dim(), (torch.float32,), scores)
    rows = scores.shape[:-1]
    for name, x, dtype in (
        ("lens", lens, torch.int32),
        ("k", k, torch.int32),
        ("threshold", threshold, torch.float32),
    ):
        if x is not None:
            check_tensor(op_name, name, x, len(rows), (dtype,), scores)
            check_shape(op_name, name, x, rows, "scores' shape without its last axis")
    refuse_unless(k_max >= 0, op_name, f"k must be >= 0, got {k_max}")


def _check_lens(op_name, scores, lens, k):
    if lens is not None:
        ok = (lens >= 0) & (lens <= scores.shape[-1])
        refuse_unless(
            bool(ok.all()), op_name, f"lens must be 0..{scores.shape[-1]}, got {lens.flatten()[:8].tolist()}"
        )
    if k is not None:
        refuse_unless(bool((k >= 0).all()), op_name, f"k must be >= 0, got {k.flatten()[:8].tolist()}")


def _empty(scores, k_max):
    return (
        scores.new_empty((*scores.shape[:-1], k_max), dtype=torch.int32),
        scores.new_empty(scores.shape[:-1], dtype=torch.int32),
    )


@op(
    "topk_positions(Tensor scores, Tensor? lens, Tensor? k, int k_max, Tensor? threshold=None)"
    " -> (Tensor positions, Tensor counts)"
)
def reference(scores, lens, k, k_max, threshold=None):
    """The definition: a stable descending sort, cut at k, in ascending order of position."""
    _check("topk_positions", scores, lens, k, k_max, threshold)
    _check_lens("topk_positions", scores, lens, k)
    length = scores.shape[-1]
    key = scores.masked_fill(scores.isnan(), float("-inf"))
    if lens is not None:
        key = key.masked_fill(torch.arange(length, device=key.device) >= lens[..., None], float("-inf"))
    order = torch.sort(key + 0.0, dim=-1, descending=True, stable=True)  # + 0.0: -0 ties with +0
    good = order.values > float("-inf")
    if threshold is not None:
        good = good & (order.values > threshold[..., None])
    rank = torch.arange(length, device=key.device)
    good = good & (rank < k_max) & (rank < (k_max if k is None else k[..., None]))
    counts = good.sum(-1, dtype=torch.int32)
    chosen = torch.where(good, order.indices, length).sort(-1).values[..., :k_max]
    positions = torch.full((*scores.shape[:-1], k_max), -1, dtype=torch.int32, device=scores.device)
    positions[..., : chosen.shape[-1]] = torch.where(chosen < length, chosen, -1).int()
    return positions, counts


@torch.library.register_fake("tokops::topk_positions")
def _(scores, lens, k, k_max, threshold=None):
    _check("topk_positions", scores, lens, k, k_max, threshold)
    return _empty(scores, k_max)


def topk_positions(
    scores: Tensor, lens: Tensor | None, k: int | Tensor, *, k_max: int | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of the k largest scores of every row: an exact set, ascending.

    The order is total: larger score first, then lower position; -0 ties with +0. NaN counts as -inf, and -inf
    is never selected.

    Args:
        scores: ``[..., L]`` float32.
        lens: ``[...]`` int32 valid scores per row, 0..L; None: all L.
        k: how many, an int or ``[...]`` int32 per row; more than there are gives what there is.
        k_max: columns of the result; None is k, or the largest entry of k (read on the host).

    Returns:
        ``positions [..., k_max]`` int32, ascending, padded with -1, and ``counts [...]`` int32.

    Raises:
        RuntimeError: k or lens out of range (lens and a tensor k: on the CPU, and on CUDA with
            TOKOPS_CHECK=1), wrong dtype or shape.

    Example:
        >>> topk_positions(torch.tensor([3.0, 9.0, 9.0, 1.0]), None, 2)[0]
        tensor([1, 2], dtype=torch.int32)
    """
    if isinstance(k, Tensor):
        k_max = int(k.max()) if k_max is None and k.numel() else (k_max or 0)
        rows = k
    else:
        rows, k_max = None, k if k_max is None else min(k, k_max) if k >= 0 else k
    if scores.is_cuda and checked():
        _check_lens("topk_positions", scores, lens, rows)
    return torch.ops.tokops.topk_positions.default(scores, lens, rows, k_max)


def threshold_positions(
    scores: Tensor, lens: Tensor | None, threshold: float | Tensor, cap: int
) -> tuple[Tensor, Tensor]:
    """Positions of all scores above a threshold; where more than ``cap`` are, the ``cap`` largest of them.

    Args:
        scores, lens: as in :func:`topk_positions`.
        threshold: a float, or ``[...]`` float32 per row; a score must be strictly larger. NaN selects
            nothing.
        cap: columns of the result.

    Returns:
        ``positions [..., cap]`` int32, ascending, padded with -1, and ``counts [...]`` int32.

    Raises:
        RuntimeError: as :func:`topk_positions`.
    """
    if not isinstance(threshold, Tensor):
        threshold = scores.new_full(scores.shape[:-1], threshold, dtype=torch.float32)
    if scores.is_cuda and checked():
        _check_lens("topk_positions", scores, lens, None)
    return torch.ops.tokops.topk_positions.default(scores, lens, None, cap, threshold)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for rows, length, k in ((32, 16384, 1024), (8, 131072, 2048), (1, 1 << 20, 2048)):
            yield (
                "topk_positions",
                f"[{rows}, {length}] k {k}",
                (torch.randn(rows, length, generator=gen), None, None, k),
                {},
            )
        return
    for length in (0, 1, 15, 17, 300, 5000):
        scores = torch.randn(2, 3, length, generator=gen)
        lens = torch.randint(0, length + 1, (2, 3), generator=gen, dtype=torch.int32)
        for k in sorted({0, 1, length // 3, length, length + 2}):
            yield "topk_positions", f"L {length} k {k}", (scores, None, None, k), {}
            per_row = torch.randint(0, k + 2, (2, 3), generator=gen, dtype=torch.int32)
            yield "topk_positions", f"L {length} k {k}, ties, per row", (scores.round(), lens, per_row, k), {}
        odd = scores.clone()
        odd[..., ::5], odd[..., 1::5], odd[..., 2::5] = float("nan"), float("-inf"), -0.0
        threshold = torch.tensor([[0.0, float("-inf"), float("nan")], [-1.0, float("inf"), 0.5]])
        yield "topk_positions", f"L {length} above a threshold", (odd, lens, None, length // 2, threshold), {}
    steps = torch.tensor([float("-inf"), -3.4028234663852886e38, -0.0, 0.0, 1.401298464324817e-45, 1.0])
    close = steps[torch.randint(0, 6, (3, 200), generator=gen)]
    lowest = torch.tensor([float("-inf"), 0.0, -3.4028234663852886e38])
    yield "topk_positions", "scores next to the threshold", (close, None, None, 150, lowest), {}
    yield "topk_positions", "scores next to the threshold, few", (close, None, None, 20, lowest), {}
    yield "topk_positions", "no rows", (torch.zeros(0, 4), None, None, 2), {}
    yield "topk_positions", "one row, no batch axis", (torch.randn(40, generator=gen), None, None, 5), {}
