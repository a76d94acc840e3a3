"""One layer's pages as a selecting method sees them."""

from torch import Tensor

from ..attention import paged_decode, paged_decode_scores, paged_scores
from ..methods import Selection


class Reader:
    """See :class:`tokops.methods.LayerReader`. The store behind it is full-precision pages."""

    __slots__ = (
        "_options",
        "_pages",
        "_scan",
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
        self.kv_heads = layer.k_pages.shape[1]
        self.out: Tensor | None = None
        self.keys_scanned = 0
        self._options = options
        self._pages = (layer.k_pages, layer.v_pages, layer.table.table, layer.table.seq_lens)
        self._scan = {"starts": self.starts, "scale": options["scale"], "window": options["window"]}

    def scores(self, reduce: str = "none") -> Tensor:
        """Scores ``[B, T, Hs, length]`` of the rows against all keys, from one read of the keys."""
        keys, _, table, lens = self._pages
        self.keys_scanned += 1
        return self._rows(
            paged_scores(self.q, keys, table, lens, reduce=reduce, max_len=self.length, **self._scan)
        )

    def decode_scores(self, reduce: str = "none") -> Tensor:
        """The same scores out of the dense pass, whose result is kept."""
        self.out, _, scores = paged_decode_scores(
            self.q, *self._pages, reduce=reduce, max_len=self.length, **self._options
        )
        return self._rows(scores)

    def _rows(self, scores):
        return scores[:, None] if scores.dim() == 3 else scores

    def decode(self, selection: Selection | None = None) -> Tensor:
        """Attention of the rows over all positions, or over a selection."""
        positions, counts = selection if selection is not None else (None, None)
        return paged_decode(self.q, *self._pages, selected=positions, counts=counts, **self._options)[0]
