"""How often any exact verifier could accept one of k independent drafts: the optimum to compare rules with."""

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless

__all__ = ["optimal_acceptance"]

_NAME = "optimal_acceptance"
#: How far from 1 a law may sum: above the rounding of fp32, below a law that was cut and not renormalised.
_TOLERANCE = 1e-4


def _check_law(name: str, law: Tensor, like: Tensor) -> None:
    check_tensor(_NAME, name, law, like.dim(), (torch.float32, torch.float64), like)
    check_shape(_NAME, name, law, like.shape, "the shape of q")
    bad = law[~(law >= 0)]
    refuse_unless(bad.numel() == 0, _NAME, f"{name} must be non-negative, got {bad[:8].tolist()}")
    sums = law.double().sum(-1)
    bad = sums[~((sums - 1).abs() <= _TOLERANCE)]
    refuse_unless(bad.numel() == 0, _NAME, f"{name} must sum to 1 over its last axis, got {bad[:8].tolist()}")


def optimal_acceptance(q: Tensor, p: Tensor, k: int) -> Tensor:
    """The largest chance that an output distributed as q is one of k independent drafts distributed as p.

    No verifier whose output law is exactly q accepts a draft more often: transport with membership cost, whose
    value is 1 + min over token sets S of q(S) - p(S)^k. The minimum lies at a prefix of the tokens in rising
    order of q/p, so a sort and a scan find it for any vocabulary. A diagnostic: it waits for its inputs to
    check them.

    Args:
        q: [..., V] fp32 or fp64, the target's laws.
        p: [..., V] fp32 or fp64, the drafts' laws, the shape of q.
        k: number of drafts, at least 1; it may exceed V.

    Returns:
        [...] fp64, each in [0, 1]; 1 - TV(p, q) for k = 1.

    Raises:
        RuntimeError: for another rank, shape, dtype or device, for k below 1 or no integer, for entries that are
            negative or NaN, and for rows whose sum is off 1 by more than 1e-4.

    Source: "Towards Optimal Multi-draft Speculative Decoding" (ICLR 2025), the minimum cut behind SpecTr
    (NeurIPS 2023).

    >>> import torch, tokops
    >>> q, p = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    >>> tokops.speculative.optimal_acceptance(q, p, 3).item()
    0.5
    """
    refuse_unless(q.dim() >= 1, _NAME, "q must have at least 1 dimension, got 0")
    refuse_unless(q.shape[-1] >= 1, _NAME, f"q must have a vocabulary of at least 1, got {list(q.shape)}")
    _check_law("q", q, q)
    _check_law("p", p, q)
    refuse_unless(
        isinstance(k, int) and not isinstance(k, bool) and k >= 1,
        _NAME,
        f"k must be an integer >= 1, got {k!r}",
    )
    q, p = q.double(), p.double()
    # 0/0 joins the infinite ratios: such a token changes neither mass.
    ratio = torch.where(p > 0, q / p, torch.inf)
    order = ratio.argsort(dim=-1)
    q_below, p_below = q.gather(-1, order).cumsum(-1), p.gather(-1, order).cumsum(-1)
    # The empty set gives 0, hence the upper clamp; rounding could leave [0, 1] by an ulp.
    return (1 + (q_below - p_below**k).amin(-1)).clamp(0, 1)
