"""How much attention every cached token received."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import check_shape, check_softcap, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["attention_mass"]

_OP = "attention_mass"


def _check(scores, lse, heads, softcap, q_lens):
    check_tensor(_OP, "scores", scores, 4, (torch.float32,), scores)
    b, t, hq, _ = scores.shape
    check_tensor(_OP, "lse", lse, 3, (torch.float32,), scores)
    check_shape(_OP, "lse", lse, (b, t, hq), "[B, T, Hq]")
    refuse_unless(
        heads > 0 and hq % heads == 0, _OP, f"scores have {hq} heads, not a multiple of heads {heads}"
    )
    check_softcap(_OP, softcap)
    if q_lens is not None:
        check_tensor(_OP, "q_lens", q_lens, 1, (torch.int32,), scores)
        check_shape(_OP, "q_lens", q_lens, (b,), "[B]")


def _check_values(q_lens, t):
    ok = bool(((q_lens >= 0) & (q_lens <= t)).all())
    refuse_unless(ok, _OP, f"q_lens must be 0..{t}, got {q_lens.tolist()}")


def given(scores: Tensor, lse: Tensor, softcap: float | None) -> Tensor:
    """exp(bend(scores) - lse[..., None]): 0 where a score is -inf or NaN, or lse is."""
    seen = ~(scores.isneginf() | scores.isnan()) & ~(lse.isneginf() | lse.isnan())[..., None]
    x = scores.clamp(max=torch.finfo(torch.float32).max)
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    return torch.exp((x - lse[..., None]).clamp(max=88.0)).masked_fill(~seen, 0.0)


@op(
    "attention_mass(Tensor scores, Tensor lse, int heads, *, float? softcap=None, Tensor? q_lens=None) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)
def reference(scores, lse, heads, *, softcap=None, q_lens=None):
    """The definition: every row's softmax, summed over rows and the heads of a group."""
    _check(scores, lse, heads, softcap, q_lens)
    b, t, hq, length = scores.shape
    mass = given(scores, lse, softcap)
    if q_lens is not None:
        _check_values(q_lens, t)
        exists = torch.arange(t, device=scores.device) < q_lens[:, None]
        mass = mass.masked_fill(~exists[:, :, None, None], 0.0)
    return mass.view(b, t, heads, hq // heads, length).sum((1, 3))


@torch.library.register_fake("tokops::attention_mass")
def _(scores, lse, heads, *, softcap=None, q_lens=None):
    _check(scores, lse, heads, softcap, q_lens)
    return scores.new_empty((scores.shape[0], heads, scores.shape[3]))


def attention_mass(
    scores: Tensor, lse: Tensor, heads: int, *, softcap: float | None = None, q_lens: Tensor | None = None
) -> Tensor:
    """Sum the attention that every cached token received over the new tokens and the heads of each group.

    The importance that H2O and MiKV accumulate: ``sum over i, g of exp(bend(score_igl) - lse_ig)``, which is the
    softmax weight where ``lse`` is the normaliser of the same scores.

    Args:
        scores: ``[B, T, Hq, L]`` float32 scaled ``q . k`` before the soft cap; -inf (or NaN) where a row does not
            see, as :func:`tokops.attention.paged_decode_scores` gives them with ``reduce="none"``.
        lse: ``[B, T, Hq]`` float32 normalisers; a row whose lse is -inf (or NaN) counts nothing.
        heads: KV heads; Hq is a multiple of it.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        q_lens: ``[B]`` int32: only rows ``i < q_lens[b]`` exist (None: all T).

    Returns:
        ``[B, heads, L]`` float32, the same for any number of threads. ``score - lse`` above 88 counts as 88.

    Raises:
        RuntimeError: wrong rank, dtype, device, shape, head counts, softcap or q_lens, naming the argument.

    Example:
        >>> scores = torch.zeros(1, 2, 4, 8)  # every row sees 8 equal keys
        >>> attention_mass(scores, scores.logsumexp(-1), 2)[0, 0, 0]
        tensor(0.5000)
    """
    if q_lens is not None and q_lens.is_cuda and checked():
        _check_values(q_lens, scores.shape[1])
    return torch.ops.tokops.attention_mass.default(scores, lse, heads, softcap=softcap, q_lens=q_lens)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    large = [(1, 1, 32, 8, 16384), (8, 4, 32, 8, 8128)]
    small = [(2, 3, 8, 2, 300), (1, 1, 3, 1, 17), (2, 2, 4, 4, 1), (1, 1, 6, 2, 1030), (0, 1, 4, 2, 8)]
    small += [(2, 0, 4, 2, 9), (1, 1, 4, 2, 0)]
    for b, t, hq, heads, length in large if size == "large" else small:
        scores = torch.randn(b, t, hq, length, generator=gen) * 4
        scores[torch.rand(scores.shape, generator=gen) < 0.2] = float("-inf")
        lse = scores.logsumexp(-1) if length else torch.zeros(b, t, hq)
        lens = torch.randint(0, t + 1, (b,), generator=gen, dtype=torch.int32)
        for extra in ({}, {"softcap": 5.0}, {"q_lens": lens}):
            yield _OP, f"{[b, t, hq, length]} over {heads} {', '.join(extra)}", (scores, lse, heads), extra
    odd = torch.randn(1, 2, 4, 40, generator=gen)
    odd[..., 3], odd[..., 5], odd[0, 1] = float("nan"), float("inf"), float("-inf")
    lse = odd.nan_to_num(posinf=1.0).logsumexp(-1)
    lse[0, 0, 2] = float("nan")
    yield _OP, "nan, inf and an empty row", (odd, lse, 2), {}
    yield _OP, "nan, inf and an empty row, softcap", (odd, lse, 2), {"softcap": 2.0}
