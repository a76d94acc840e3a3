"""Keys and queries of one range: outlying key channels would spoil a scale that channels share."""

import torch
from torch import Tensor

_LEAST_PROMPT = 32  # visible tokens; of fewer, the largest are chance


def balancer(q: Tensor, k: Tensor, starts: Tensor | None = None) -> Tensor:
    """What keys are multiplied by, and queries divided by, so that both have the same range in every channel.

    Args:
        q, k: ``[B, T, Hq, D]`` and ``[B, T, Hkv, D]``, as they are multiplied with each other.
        starts: ``[B]`` first visible position; what is before it does not count.

    Returns:
        ``[B, Hkv, D]`` float32 ``sqrt(max |q| / max |k|)`` within 0.01..100; 1 for sequences of less than 32 tokens.
    """
    position = torch.arange(k.shape[1], device=k.device)
    if starts is not None:
        pad = (position < starts[:, None])[..., None, None]
        q, k = q.masked_fill(pad, 0), k.masked_fill(pad, 0)
    high = [torch.maximum(x.amax(1), -x.amin(1)).float() for x in (q, k)]
    high[0] = high[0].unflatten(1, (k.shape[2], -1)).amax(2)
    bal = (high[0].clamp_min(1e-5) / high[1].clamp_min(1e-5)).sqrt().clamp(1e-2, 1e2)
    if starts is not None:
        return torch.where((k.shape[1] - starts >= _LEAST_PROMPT)[:, None, None], bal, 1.0)
    return bal if k.shape[1] >= _LEAST_PROMPT else torch.ones_like(bal)
