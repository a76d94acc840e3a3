"""How far a drafter's own probabilities can be trusted, learned while a text is decoded."""

from collections.abc import Sequence

import numpy as np

#: Binary logarithms of the exponents that are weighed against each other, and how far from 0 they are thought to lie.
_POWERS = np.arange(-2.0, 2.25, 0.25)
_SPREAD = 0.7
_EXPONENTS = 2.0 ** _POWERS[:, None]
#: Claims between which what is believed is interpolated: denser where it bends, near 0.
_CLAIMS = np.linspace(0.0, 1.0, 65) ** 2
_POWERED = _CLAIMS**_EXPONENTS
#: What the children of a node may claim together, so that no observation is impossible.
_MOST = 0.98


class DraftTrust:
    """Learns per sequence whether a drafter claims too much or too little.

    A drafter's estimates come from elsewhere: counts of what followed before, a smaller model. A text that is copied
    keeps them better than they say, one that only looks like it breaks them. A claim p of a child is taken to mean
    ``p ** g`` with one unknown g per sequence, thought to be log-normal around 1, with a deviation of 0.7 in its
    binary logarithm. Every verified tree is evidence, by Bayes' rule: at each accepted node that had
    children, which of them came true, or that none did. The order of a tree's nodes is that of their claims for
    every g, so that a tree need not be built anew.

    Args:
        batch: sequences.

    Raises:
        ValueError: a negative batch.
    """

    def __init__(self, batch: int):
        if batch < 0:
            raise ValueError(f"DraftTrust: batch must be 0 or more, got {batch}")
        prior = -0.5 * (_POWERS / _SPREAD) ** 2
        self._evidence = np.tile(prior, (batch, 1))  # [B, G] log-weights of the exponents
        self._tables: list[np.ndarray | None] = [None] * batch

    def believed(self, weights: np.ndarray) -> np.ndarray:
        """What weights are expected to be.

        Args:
            weights: ``[B, n]`` probabilities of paths, 0..1, as the drafter claims them.

        Returns:
            ``[B, n]`` float64, 0..1 and in the same order; between 1/256 and 1, which is what matters, within 1e-3.

        Raises:
            ValueError: another batch.
        """
        if weights.ndim != 2 or len(weights) != len(self._tables):
            raise ValueError(
                f"DraftTrust.believed: weights must be [{len(self._tables)}, n], got {list(weights.shape)}"
            )
        found = np.empty(weights.shape)
        for b, row in enumerate(weights):
            found[b] = np.interp(row, _CLAIMS, self._table(b))
        return found

    def _table(self, row: int) -> np.ndarray:
        """What is believed at :data:`_CLAIMS`; made anew after evidence."""
        table = self._tables[row]
        if table is None:
            shares = np.exp(self._evidence[row] - self._evidence[row].max())
            table = self._tables[row] = np.minimum(shares @ _POWERED / shares.sum(), 1.0)
        return table

    def update(
        self,
        row: int,
        weights: Sequence[float],
        parents: Sequence[int],
        kept: Sequence[int],
        cut: bool = False,
    ) -> None:
        """Count one verified tree.

        Args:
            row: its sequence.
            weights: ``[n]`` of its nodes, the root's 1 first, as the drafter claimed them.
            parents: ``[n]``, -1 for the root and padding.
            kept: accepted nodes from the root on; none: nothing is counted.
            cut: the path ended for another reason than that no child of its last node came true.

        Raises:
            ValueError: a path that does not begin at the root, or a node that is no child of the one before it.
        """
        if not len(kept):
            return
        self._tables[row] = None
        if kept[0] != 0:
            raise ValueError(f"DraftTrust.update: a path must begin at the root 0, got {list(kept)}")
        evidence = self._evidence[row]
        following = [*kept[1:], None]
        for node, child in zip(kept, following, strict=True):
            tried = [i for i in range(node + 1, len(parents)) if parents[i] == node]
            if child is not None and child not in tried:
                raise ValueError(f"DraftTrust.update: {child} must be a child of {node}, got {list(kept)}")
            if not tried or (child is None and cut):
                continue
            claims = np.asarray([weights[i] for i in tried], np.float64) / max(float(weights[node]), 1e-300)
            powers = claims.clip(1e-9, 1.0) ** _EXPONENTS
            claimed = powers.sum(1)
            if child is None:
                evidence += np.log1p(-np.minimum(claimed, _MOST))
            else:
                evidence += np.log(powers[:, tried.index(child)] * np.minimum(1.0, _MOST / claimed))

    def select(self, rows: Sequence[int]) -> None:
        """Keep some sequences, in the order given."""
        self._evidence = self._evidence[list(rows)]
        self._tables = [self._tables[row] for row in rows]
