"""Which tokens MiniCache keeps apart because the two layers of a pair disagree about them."""

import math

import torch
from torch import Tensor


def _check(distance, gamma, starts):
    if distance.dim() != 3:
        raise ValueError(f"distance must be [B, H, T], got {list(distance.shape)}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be 0..1, got {gamma}")
    if starts is not None and tuple(starts.shape) != tuple(distance.shape[:1]):
        raise ValueError(f"starts must be [B] = [{distance.shape[0]}], got {list(starts.shape)}")


def _real(distance: Tensor, starts: Tensor | None) -> Tensor:
    """Positions of tokens, ``[B or 1, 1, T]``: all but left padding."""
    at = torch.arange(distance.shape[-1], device=distance.device)
    return (at >= (0 if starts is None else starts[:, None, None])).expand(
        -1 if starts is not None else 1, 1, -1
    )


def _ranks(key: Tensor) -> Tensor:
    """Place of every entry of the last axis in descending order; of equal ones the first comes first."""
    order = torch.sort(key, dim=-1, descending=True, stable=True).indices
    place = torch.arange(key.shape[-1], device=key.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


def minicache_threshold(distance: Tensor, gamma: float = 0.05, *, starts: Tensor | None = None) -> Tensor:
    """The distance above which tokens are among the top ``gamma`` of the range of their head.

    Args:
        distance: ``[B, H, T]`` as :func:`tokops.kvcache.minicache_merge` gives it.
        gamma: share of the range, 0 (no token) to 1 (every token).
        starts: ``[B]`` first token of each sequence (left padding); what is before it does not count.

    Returns:
        ``[B, H]``: ``d_max - gamma * (d_max - d_min)`` over the tokens; -inf at gamma 1, +inf without tokens. NaN
        distances do not count.

    Raises:
        ValueError: a wrong shape or a number out of range.
    """
    _check(distance, gamma, starts)
    counts = _real(distance, starts) & ~distance.isnan()
    if gamma == 1:
        return torch.where(counts.any(-1), -math.inf, math.inf).to(distance.dtype)
    if distance.shape[-1] == 0:
        return distance.new_full(distance.shape[:2], math.inf)
    high = distance.masked_fill(~counts, -math.inf).amax(-1)
    low = distance.masked_fill(~counts, math.inf).amin(-1)
    return (high - gamma * (high - low)).masked_fill(~counts.any(-1), math.inf)


def _capped(chosen: Tensor, key: Tensor, cap: float, page: int) -> Tensor:
    """Of the chosen tokens of every page, the ``floor(cap * page)`` with the largest keys."""
    t = chosen.shape[-1]
    short = -t % page
    key = torch.nn.functional.pad(key.masked_fill(~chosen, -math.inf), (0, short), value=-math.inf)
    ranks = _ranks(key.unflatten(-1, (-1, page))).flatten(-2)[..., :t]
    return chosen & (ranks < math.floor(cap * page))


def _check_rules(distance, gamma, mode, sinks, starts, threshold, cap, page):
    _check(distance, gamma, starts)
    if mode not in ("range", "topk"):
        raise ValueError(f"mode must be range or topk, got {mode}")
    if mode == "topk" and threshold is not None:
        raise ValueError("threshold is for mode range, got topk")
    if sinks < 0:
        raise ValueError(f"sinks must be >= 0, got {sinks}")
    if cap is not None and not 0 <= cap <= 1:
        raise ValueError(f"cap must be 0..1, got {cap}")
    if page is not None and page < 1:
        raise ValueError(f"page must be >= 1, got {page}")


def minicache_retain(
    distance: Tensor,
    gamma: float = 0.05,
    *,
    mode: str = "range",
    sinks: int = 4,
    starts: Tensor | None = None,
    threshold: float | Tensor | None = None,
    cap: float | None = None,
    page: int | None = None,
    share_heads: bool = False,
) -> Tensor:
    """The tokens whose directions disagree too much to be merged, per head.

    The most different tokens are kept apart. (The rule as printed in the paper, "below", would keep the most
    similar ones of a distance.) A NaN distance is kept apart before any other.

    Args:
        distance: ``[B, H, T]`` as :func:`tokops.kvcache.minicache_merge` gives it.
        gamma: share of the range of distances (``range``) or of the tokens (``topk``), 0..1.
        mode: ``range`` keeps what is strictly above :func:`minicache_threshold`; ``topk`` keeps exactly
            ``ceil(gamma * tokens)`` per head (the sinks among them, and no fewer than the sinks), ties to the
            lowest index.
        sinks: first tokens of a sequence, always kept; 0 where T does not begin at its start.
        starts: ``[B]`` first token of each sequence (left padding); what is before it is never kept.
        threshold: a frozen threshold, a number or ``[B, H]``, in place of that of this range. Not for ``topk``.
        cap: at most ``floor(cap * page)`` tokens of a page are kept, the most different ones, besides sinks.
        page: tokens of a page of ``cap``; None is all T.
        share_heads: every head keeps what any head of its sequence keeps, after all other rules.

    Returns:
        ``[B, H, T]`` bool, True where a token is kept apart.

    Raises:
        ValueError: a wrong shape, mode, combination or number, naming the argument.

    Example:
        >>> minicache_retain(torch.tensor([[[0.1, 0.5, 0.2, 0.48]]]), 0.1, sinks=1)
        tensor([[[ True,  True, False,  True]]])
    """
    _check_rules(distance, gamma, mode, sinks, starts, threshold, cap, page)
    real = _real(distance, starts)
    first = real & (real.cumsum(-1) <= sinks)
    key = distance.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(~real, -math.inf)
    if mode == "topk":
        tokens = real.sum(-1, keepdim=True)
        count = torch.maximum(torch.ceil(gamma * tokens.double()).long(), tokens.clamp(max=sinks))
        # Sinks before NaN before numbers.
        order = torch.where(key.isposinf(), torch.finfo(key.dtype).max, key).masked_fill(first, math.inf)
        chosen = (_ranks(order) < count) & real
    else:
        limit = minicache_threshold(distance, gamma, starts=starts) if threshold is None else threshold
        limit = torch.as_tensor(limit, dtype=distance.dtype, device=distance.device)
        chosen = (key > limit.expand(distance.shape[:2])[..., None]) & real
    if cap is not None and distance.shape[-1]:
        chosen = _capped(chosen & ~first, key, cap, page or distance.shape[-1])
    chosen = chosen | first
    return chosen.any(1, keepdim=True).expand_as(chosen).contiguous() if share_heads else chosen
