"""Drawing of tokens under a mask: the draw of the family ``sampling`` by another name."""

from torch import Tensor

from ..sampling import sample

__all__ = ["masked_sample"]


def masked_sample(logits: Tensor, mask: Tensor, **settings) -> Tensor:
    """Draw one allowed token from every row of logits: :func:`tokops.sampling.sample` with its argument ``mask``.

    Args:
        logits: ``[..., V]`` float32, bfloat16 or float16.
        mask: ``[..., W]`` int32, or ``[W]`` for all rows: bit ``t % 32`` of word ``t / 32`` is 1 where token t may be
            drawn; tokens beyond the mask may not.
        settings: seed, stream, position, temperature, top_k, top_p and min_p of :func:`tokops.sampling.sample`.

    Returns:
        ``[...]`` int32 tokens; -1 for a row that allows no finite logit.

    Raises:
        RuntimeError, ValueError: as :func:`tokops.sampling.sample`.
    """
    return sample(logits, mask=mask, **settings)
