"""Rows of logits behind token sequences that change at their ends, over a cache that is rolled back."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList

from .cache import PagedCache
from .drafts import MAX_ROWS
from .families import CACHE
from .patching import run_of


class CachedRows:
    """A model that is asked for rows behind sequences, most of whose tokens it has read before.

    The cache holds one sequence. What a new one has in common with it is kept, the rest is rolled back. Several
    sequences with a common beginning, which the first cover of a text needs, are one draft tree where the model is
    patched by :func:`tokops.patch`, else chains one after the other.

    Args:
        model: a causal transformers model, patched or not.
        processors: logits processors that rows pass through, given the sequence; None is none.

    Attributes:
        forwards: forwards of the model.
        read: tokens that went through it.
    """

    def __init__(self, model, processors: LogitsProcessorList | None = None):
        self.model = model
        self.processors = processors
        run = run_of(model)
        self.cache = DynamicCache(config=model.config) if run is None else run.new_cache()
        if hasattr(self.cache, "activate_past_recording"):
            self.cache.activate_past_recording()
        self.held: tuple[int, ...] = ()
        self.forwards = 0
        self.read = 0

    @torch.no_grad()
    def __call__(self, sequences: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Rows ``[n, V]`` float32 behind sequences of at least one token."""
        if not all(sequences):
            raise ValueError("a model gives no law without a token to begin with: pass begin=")
        base = _common(sequences)
        base = base[: min(len(base), min(map(len, sequences)) - 1)]
        nodes = sorted({s[:end] for s in sequences for end in range(len(base) + 1, len(s) + 1)})
        leaves = [s for s, after in zip(nodes, [*nodes[1:], ()], strict=True) if after[: len(s)] != s]
        rows: dict[tuple[int, ...], Tensor] = {}
        # A tree takes a forward, and the base one of its own if it is not held yet.
        if len(leaves) > 2 - (self.held[: len(base)] == base) and self._fits_tree(base, nodes):
            self._hold(base)
            self._read_tree(base, nodes, sequences[-1], rows)
        else:
            wanted = set(sequences)
            for leaf in leaves:
                self._read_chain(leaf, wanted, rows)
        out = torch.stack([self._processed(s, rows[s]) for s in sequences])
        return out.cpu().numpy()

    def _processed(self, sequence: tuple[int, ...], row: Tensor) -> Tensor:
        if self.processors is None:
            return row
        ids = torch.tensor([sequence], device=row.device)
        return self.processors(ids, row[None])[0].float()

    def _fits_tree(self, base, nodes) -> bool:
        if not isinstance(self.cache, PagedCache) or len(nodes) > MAX_ROWS or not base:
            return False
        if self.cache.state.layout is None:
            return True
        return len(base) == len(self.held) and self.cache.room()[0] > max(map(len, nodes)) - len(base)

    def _read_chain(self, leaf: tuple[int, ...], wanted: set, rows: dict) -> None:
        """Read one sequence, and note the rows behind what is wanted of its beginnings."""
        places = [end for end in range(1, len(leaf) + 1) if leaf[:end] in wanted and leaf[:end] not in rows]
        # Tokens whose rows are wanted are read again, even if the cache holds them.
        first = places[0] - 1
        self._rewind(min(len(_common([leaf, self.held])), first))
        logits = self._forward(leaf, len(leaf) - first)
        for end in places:
            rows[leaf[:end]] = logits[end - 1 - first]

    def _hold(self, ids: tuple[int, ...]) -> None:
        """Have the cache hold a sequence."""
        self._rewind(len(_common([ids, self.held])))
        if len(self.held) < len(ids):
            self._forward(ids, 1)

    def _forward(self, ids: tuple[int, ...], keep: int) -> Tensor:
        """Read what the cache lacks of a sequence; logits ``[keep, V]`` behind its last tokens."""
        held = len(self.held)
        out = self.model(
            input_ids=torch.tensor([ids[held:]], device=self.model.device),
            position_ids=torch.arange(held, len(ids), device=self.model.device)[None],
            use_cache=True,
            logits_to_keep=keep,
            **{CACHE: self.cache},
        )
        self.held = ids
        self.forwards += 1
        self.read += len(ids) - held
        return out.logits[0].float()

    def _rewind(self, length: int) -> None:
        if len(self.held) > length:
            self.cache.crop(length - len(self.held))
            self.held = self.held[:length]

    def _read_tree(self, base, nodes, kept: tuple[int, ...], rows: dict) -> None:
        """Read what hangs behind the base as one draft, and keep the tokens of one sequence."""
        place = {node: at for at, node in enumerate(nodes)}
        parents = [place.get(node[:-1], -1) for node in nodes]
        words = (len(nodes) + 63) // 64
        bits = np.zeros((len(nodes), words), np.uint64)
        for at, parent in enumerate(parents):
            if parent >= 0:
                bits[at] = bits[parent]
            bits[at, at // 64] |= np.uint64(1) << np.uint64(at % 64)
        device = self.model.device
        depths = torch.tensor(
            [[len(node) - len(base) - 1 for node in nodes]], dtype=torch.int32, device=device
        )
        ancestors = torch.from_numpy(bits.view(np.int64))[None].to(device)
        self.cache.draft(ancestors, depths)
        out = self.model(
            input_ids=torch.tensor([[node[-1] for node in nodes]], device=device),
            attention_mask=None,
            position_ids=len(base) + depths.long(),
            use_cache=True,
            **{CACHE: self.cache},
        )
        self.forwards += 1
        self.read += len(nodes)
        path = [place[kept[:end]] for end in range(len(base) + 1, len(kept) + 1)]
        self.cache.keep(torch.tensor([path], dtype=torch.int32, device=device), [len(path)])
        self.held = kept
        for node, row in zip(nodes, out.logits[0].float(), strict=True):
            rows[node] = row


def _common(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first, last = min(sequences), max(sequences)
    at = 0
    while at < min(len(first), len(last)) and first[at] == last[at]:
        at += 1
    return first[:at]
