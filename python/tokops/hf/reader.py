"""One layer's cache as a selecting method sees it."""

from torch import Tensor

from ..methods import Selection


class Reader:
    """See :class:`tokops.methods.LayerReader`. The layer behind it keeps its tokens as it likes."""

    __slots__ = ("_layer", "_options", "keys_scanned", "kv_heads", "layer", "length", "out", "q", "starts")

    def __init__(self, layer, q: Tensor, options: dict):
        self.layer = layer.index
        self.q = q
        self.length = layer.length
        self.starts = options["starts"]
        self.kv_heads = layer.kv_heads
        self.out: Tensor | None = None
        self.keys_scanned = 0
        self._layer = layer
        self._options = options

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
