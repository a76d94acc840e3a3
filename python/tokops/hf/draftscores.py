"""How often a drafter's candidates are what the model says: acceptance tables, by level and rank."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .falcon import Blocks, FalconModule
from .families import CACHE
from .heads import Heads
from .training import Recorded, prompt_rows, read_heads

__all__ = ["falcon_acceptance", "heads_acceptance", "prompt_acceptance", "ranks_of"]

#: Positions of a text that are looked at together.
_ROWS = 64


def ranks_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """The rank of every token among the logits ``[..., V]`` of its row, from 0; equal ones by id. ``[...]`` int64."""
    own = logits.gather(-1, tokens[..., None])
    before = torch.arange(logits.shape[-1], device=logits.device) < tokens[..., None]
    return ((logits > own) | ((logits == own) & before)).sum(-1)


class _Table:
    """Counts of ranks by level."""

    def __init__(self, levels: int, width: int):
        self.counts, self.seen = torch.zeros(levels, width, dtype=torch.int64), torch.zeros(levels)

    def add(self, level: int, ranks: Tensor) -> None:
        width = self.counts.shape[1]
        self.counts[level] += torch.bincount(ranks.flatten().cpu(), minlength=width)[:width]
        self.seen[level] += ranks.numel()

    def rows(self) -> list[list[float]]:
        return (self.counts / self.seen.clamp_min(1)[:, None]).tolist()


def _cuts(first: int, last: int) -> Iterator[range]:
    for begin in range(first, last, _ROWS):
        yield range(begin, min(begin + _ROWS, last))


@torch.no_grad()
def heads_acceptance(
    model: Any, heads: Heads, recorded: Recorded, first: int = 1, width: int = 10
) -> list[list[float]]:
    """The part of positions at which head i's candidate of rank r is the token 1 + i places on.

    Args:
        recorded: texts; if the model wrote them greedily from token ``first`` on, this is the acceptance of greedy
            decoding.
        first: the first token that counts.
        width: ranks.

    Returns:
        ``[n][width]``.
    """
    table, unembed = _Table(heads.config.heads, width), model.get_output_embeddings()
    for ids, fed in zip(recorded.ids, recorded.fed, strict=True):
        hidden = read_heads(model, heads, fed[None])[:, 0]
        for cut in _cuts(first - 1, len(ids) - 1 - len(hidden)):
            logits = heads.logits(hidden[:, cut.start : cut.stop], unembed)
            for level, rows in enumerate(logits):
                table.add(level, ranks_of(rows, ids[cut.start + 2 + level : cut.stop + 2 + level]))
    return table.rows()


@torch.no_grad()
def prompt_acceptance(
    model: Any, embeddings: Tensor, ids: Tensor, first: int = 1, width: int = 10
) -> list[list[float]]:
    """The same of prompt tokens ``[M, d]`` on texts ``[n, W]``: prompt token j names the token 1 + j places on."""
    most, table = len(embeddings), _Table(len(embeddings), width)
    unembed = model.get_output_embeddings()
    for text in ids.to(model.device):
        cache = DynamicCache(config=model.config)
        model.base_model(text[None], use_cache=True, **{CACHE: cache})
        for cut in _cuts(first - 1, len(text) - 1 - most):
            at = torch.arange(cut.start, cut.stop, device=text.device)
            logits = unembed(prompt_rows(model, cache, len(text), at[None], embeddings)[0])
            cache.crop(-most * len(cut))
            for level in range(most):
                table.add(level, ranks_of(logits[:, level], text[at + 2 + level]))
    return table.rows()


@torch.no_grad()
def falcon_acceptance(
    model: Any,
    module: FalconModule,
    recorded: Recorded,
    first: int = 1,
    width: int = 20,
    depth: int = 6,
) -> list[list[float]]:
    """The same of a Falcon layer, by depth, where all tokens before were accepted.

    Args:
        depth: levels; later passes read the features that earlier ones predicted, and the text's tokens.
    """
    table, unembed, k = _Table(depth, width), model.get_output_embeddings(), module.block
    for ids, final in zip(recorded.ids, recorded.final, strict=True):
        text = ids.tolist()
        for cut in _cuts(max(first, k), len(text) - depth):
            blocks = Blocks(model, module, len(cut))
            blocks.extend([final[:root] for root in cut])
            hidden, state = blocks.first([text[: root + 1] for root in cut])
            seen = torch.ones(1, 0, dtype=torch.bool)
            for level in range(depth):
                if level and level % k == 0:
                    path = torch.stack([ids[root + level - k + 1 : root + level + 1] for root in cut])
                    seen = torch.ones(1, seen.shape[1] + 1, dtype=torch.bool)
                    out, state = blocks.next(path[:, None], hidden[:, None], state, seen)
                    hidden = out[:, 0]
                tokens = ids[cut.start + level + 1 : cut.stop + level + 1]
                table.add(level, ranks_of(unembed(hidden[:, level % k]), tokens))
    return table.rows()
