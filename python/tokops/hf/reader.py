"""One layer's cache as a selecting method sees it."""

import torch
from torch import Tensor

from ..methods import Selection


class Reader:
    """See :class:`tokops.methods.LayerReader`. The layer behind it keeps its tokens as it likes."""

    __slots__ = (
        "_draft",
        "_layer",
        "_options",
        "keys_scanned",
        "kv_heads",
        "layer",
        "length",
        "out",
        "q",
        "starts",
    )

    def __init__(self, layer, q: Tensor, options: dict):
        self.layer = layer.index
        self.q = q
        self.length = layer.length
        self.starts = options["starts"]
        self.kv_heads = layer.kv_heads
        self.out: Tensor | None = None
        self.keys_scanned = 0
        self._draft = layer.state.draft
        self._layer = layer
        self._options = options

    @property
    def drafted(self) -> bool:
        """See :class:`tokops.methods.LayerReader`."""
        return self._draft is not None

    @property
    def positions(self) -> Tensor:
        """See :class:`tokops.methods.LayerReader`."""
        rows = self.q.shape[1]
        node = torch.arange(rows, device=self.q.device)
        if self._draft is None:
            return node[None] + (self.length - rows)
        depth = node if self._draft.depths is None else self._draft.depths.long()
        return (self._layer.seq_lens - rows)[:, None] + depth

    @property
    def key_positions(self) -> Tensor:
        """See :class:`tokops.methods.LayerReader`."""
        slot = torch.arange(self.length, device=self.q.device)[None]
        if self._draft is None or self._draft.depths is None:
            return slot
        rows = self.q.shape[1]
        first = (self._layer.seq_lens - rows)[:, None]
        node = slot - first
        depth = self._draft.depths.long().gather(1, node.clamp(0, rows - 1))
        return torch.where((node >= 0) & (node < rows), first + depth, slot)

    def scores(self, reduce: str = "none") -> Tensor:
        """Scores ``[B, T, Hs, length]`` of the rows against all keys, from one read of the keys."""
        scores, out = self._layer.scores(self.q, self._options, reduce)
        if out is None:
            self.keys_scanned += 1
        else:
            self.out = out
        return self._rows(scores)

    def decode_scores(self, reduce: str = "none") -> Tensor:
        """The same scores out of the dense pass, whose result is kept."""
        scores, self.out = self._layer.decode_scores(self.q, self._options, reduce)
        return self._rows(scores)

    def _rows(self, scores):
        return scores[:, None] if scores.dim() == 3 else scores

    def decode(self, selection: Selection | None = None) -> Tensor:
        """Attention of the rows over all positions, or over a selection."""
        positions, counts = selection if selection is not None else (None, None)
        return self._layer.decode(self.q, self._options, positions, counts)
