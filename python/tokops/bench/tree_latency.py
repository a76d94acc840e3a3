"""Seconds of forwards that verify a draft tree, by its size and the context: what ``tokops tune-tree`` measures."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokops.hf import patch
from tokops.hf.families import CACHE
from tokops.hf.latency import latency_key
from tokops.speculative import LatencyTable

from .timing import interleaved, medians

_CHUNK = 512  # prompt tokens per forward
_MOST = 256  # rows that one forward decodes, and that a crop can take back behind a sliding window


@torch.no_grad()
def measure_latency(
    model: Any,
    ids: Tensor,
    *,
    sizes: Sequence[int],
    contexts: Sequence[int],
    batch: int = 1,
    rounds: int = 20,
    warmup: int = 5,
    seconds: float = 4.0,
    tick: Callable[[], None] = lambda: None,
) -> LatencyTable:
    """Time forwards that verify n tokens behind a context, patched by tokops, with the crop that takes them back.

    All sizes run in turn, so that a slow minute of the machine hits all alike. The nodes hang below each other as a
    chain; a tree of as many reads the same rows. The median over the rounds is kept.

    Args:
        model: an unpatched model of a tested family.
        ids: ``[n]`` int64 token ids of a text; it is repeated where a context and a draft need more.
        sizes: ascending numbers of tokens per sequence, 1 first, at most 256.
        contexts: ascending context lengths.
        batch: sequences per forward, each with pages of its own.
        rounds: samples per size and context.
        warmup: untimed forwards per size before them.
        seconds: a size that has taken this long in all at a context is not sampled further, once it has 5 samples.
        tick: called ``len(contexts) * rounds`` times in all.

    Raises:
        ValueError: sizes or contexts as :class:`~tokops.speculative.LatencyTable` refuses them, more than 256 tokens,
            or no text.
    """
    # Refuses what it would refuse after minutes of measuring.
    LatencyTable(tuple(sizes), tuple(contexts), ((1.0,) * len(sizes),) * len(contexts), batch=batch)
    if sizes[-1] > _MOST:
        raise ValueError(f"measure_latency: sizes must be at most {_MOST}, got {sizes[-1]}")
    if not ids.numel():
        raise ValueError("measure_latency: ids must hold at least one token, got none")
    if contexts[0] < 1:
        raise ValueError(f"measure_latency: contexts must be at least 1, got {contexts[0]}")
    effort = {"rounds": rounds, "warmup": warmup, "seconds": seconds}
    text = ids.repeat(-(-(contexts[-1] + sizes[-1]) // len(ids))).to(model.device)
    with patch(model) as run:
        rows = [_row(model, run, text, context, sizes, batch, effort, tick) for context in contexts]
    return LatencyTable(tuple(sizes), tuple(contexts), tuple(rows), **latency_key(model, batch))


def _row(model, run, text, context, sizes, batch, effort, tick) -> tuple[float, ...]:
    """Median seconds of every size at one context."""
    cache = run.new_cache(prompt_length=context)
    for part in text[None, :context].split(_CHUNK, dim=1):
        model(part, use_cache=True, logits_to_keep=1, **{CACHE: cache})
    if batch > 1:
        cache.batch_repeat_interleave(batch)
        cache.unshare()
    drafts = text[context : context + sizes[-1]].expand(batch, -1)

    def verify(nodes: int) -> None:
        model(drafts[:, :nodes], use_cache=True, **{CACHE: cache})
        cache.crop(-nodes)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    calls = {nodes: partial(verify, nodes) for nodes in sizes}
    return tuple(medians(interleaved(calls, tick=tick, **effort)).values())
