"""How many nodes a draft tree should have: most emitted tokens per second of the machine at hand."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .latency import LatencyTable
from .trees import Tree, acceptance_rows, grow


@dataclasses.dataclass(frozen=True)
class SizeChoice:
    """Trees of one size and what they are expected to give.

    Args:
        trees: one per acceptance table.
        nodes, depth: its size and the levels that are drafted for it; 1 and 0 are plain decoding.
        expected: tokens per step and sequence.
        seconds: time of a step.
        speedup: against plain decoding.
    """

    trees: tuple[Tree, ...]
    nodes: int
    depth: int
    expected: float
    seconds: float
    speedup: float

    @property
    def tree(self) -> Tree:
        """The tree, where there is one acceptance table."""
        return self.trees[0]


def choose_size(
    table: LatencyTable,
    acceptance: Any,
    *,
    context: int = 0,
    draft: float = 0.0,
    fixed: float = 0.0,
    depth: int | None = None,
    most: int | None = None,
    block: int = 1,
    groups: int | None = None,
) -> SizeChoice:
    """The static tree with the least time per emitted token.

    Minimises (fixed + passes * draft + verify(n)) / F(n, D) over the sizes n that ``table.edges`` gives and the depths
    D, where F is the expectation of the best tree. Plain decoding (n = 1, D = 0, no drafting) is always tried. Of
    equal costs the smaller n, then the smaller D is taken.

    Args:
        table: measured with the batch in use.
        acceptance: as in :func:`~tokops.speculative.best_first_tree`; or a list of such tables, one per sequence of
            the batch, that share n and D.
        context: committed tokens.
        draft: seconds of one drafting pass; 0 for heads and prompt tokens that the verifying forward carries.
        fixed: seconds per step for sampling, moving rows and launches.
        depth: the most levels; None: all of the table.
        most: the largest n; None: all that was measured.
        block: levels that one drafting pass gives (Falcon), so that D levels take D / block passes, rounded up.
        groups: as in :func:`~tokops.speculative.falcon_tree`, with ``block`` above 1.

    Raises:
        ValueError: a negative time, a number out of range, a list whose length is not the batch of the table.
    """
    several = isinstance(acceptance, (list, tuple)) and np.ndim(acceptance[0]) == 2
    given = [acceptance_rows("choose_size", a) for a in (acceptance if several else [acceptance])]
    if several and (len(given) != table.batch or any(a.ndim != 2 for a in given)):
        raise ValueError(
            f"choose_size: acceptance must be one table, or one [D, K] per sequence of the latency table's batch of "
            f"{table.batch}, got {[list(a.shape) for a in given]}"
        )
    limits = (("draft", draft, 0), ("fixed", fixed, 0), ("block", block, 1), ("depth", depth, 0))
    for name, value, least in limits:
        if value is not None and not value >= least:
            raise ValueError(f"choose_size: {name} must be at least {least}, got {value}")
    offered = table.edges(context, most)
    if not offered:
        raise ValueError(f"choose_size: most must be at least 1, got {most}")
    plain = fixed + table.at(1, context)
    best: tuple[tuple[float, int, int], SizeChoice] | None = None
    for levels in range((min(map(len, given)) if given[0].ndim == 2 else offered[-1] - 1) + 1):
        if depth is not None and levels > depth:
            break
        trees = [grow("choose_size", a, offered[-1], levels, block=block, groups=groups) for a in given]
        if max(tree.depth for tree in trees) < levels:
            break
        for nodes in {min(n, max(map(len, trees))) for n in offered}:
            seconds = fixed + math.ceil(levels / block) * draft + table.at(nodes, context)
            value = sum(tree.expected[min(nodes, len(tree)) - 1] for tree in trees) / len(trees)
            key = (seconds / value, nodes, levels)
            if best is None or key < best[0]:
                kept = tuple(tree.first(min(nodes, len(tree))) for tree in trees)
                best = (key, SizeChoice(kept, nodes, levels, value, seconds, plain * value / seconds))
    assert best is not None  # levels = 0 and one node are always tried
    return best[1]


def _first_best(ratio: Tensor) -> Tensor:
    """Index of the first of the largest entries of the last axis; argmax does not say which it takes."""
    index = torch.arange(ratio.shape[-1], device=ratio.device)
    return torch.where(ratio == ratio.amax(-1, keepdim=True), index, ratio.shape[-1]).amin(-1)


def dynamic_size(acceptance: Tensor, sizes: Tensor, seconds: Tensor) -> Tensor:
    """How many nodes of a re-ranked tree to verify, from the drafter's own probabilities; no host synchronisation.

    Maximises (1 + sum of the n - 1 largest cumulative probabilities) / seconds(n); of equal ratios the smaller n.

    Args:
        acceptance: ``[B, H]`` cumulative probabilities of the candidates, descending, root left out; NaN counts as 0.
            :meth:`~tokops.speculative.DraftPool.acceptance` gives them.
        sizes: ``[S]`` int64, ascending, 1 first: of the latency table, or of the captured graphs.
        seconds: ``[S]`` float64 of a whole step at these sizes; ``LatencyTable.curve`` gives both.

    Returns:
        ``[B]`` int32 nodes, root included.

    Raises:
        ValueError: shapes that do not fit, or no size.
    """
    if acceptance.dim() != 2 or sizes.dim() != 1 or seconds.shape != sizes.shape or not len(sizes):
        raise ValueError(
            "dynamic_size: acceptance must be [B, H], sizes and seconds [S] with S >= 1, got "
            f"{list(acceptance.shape)}, {list(sizes.shape)}, {list(seconds.shape)}"
        )
    gains = acceptance.double().nan_to_num(0.0)
    sums = torch.cat([gains.new_ones(len(gains), 1), gains], 1).cumsum(1)
    expected = sums[:, (sizes - 1).clamp_max(sums.shape[1] - 1)]
    return sizes[_first_best(expected / seconds)].int()


def common_size(acceptance: np.ndarray, sizes: np.ndarray, seconds: np.ndarray) -> int:
    """One size for all sequences of a batch that is drafted on the host, where one kernel shape serves all.

    Maximises the sum over the sequences of what :func:`dynamic_size` maximises for each; of equal ratios the smaller
    size.

    Args:
        acceptance: ``[B, H]`` float64 as there, of the unfinished sequences, without NaN.
        sizes, seconds: ``[S]`` as there.

    Returns:
        Nodes per sequence, root included.

    Raises:
        ValueError: shapes that do not fit, or no size.
    """
    if acceptance.ndim != 2 or sizes.ndim != 1 or seconds.shape != sizes.shape or not len(sizes):
        raise ValueError(
            "common_size: acceptance must be [B, H], sizes and seconds [S] with S >= 1, got "
            f"{list(acceptance.shape)}, {list(sizes.shape)}, {list(seconds.shape)}"
        )
    batch, most = acceptance.shape
    expected = np.empty(most + 1)
    expected[0] = batch
    expected[1:] = acceptance.sum(0)
    at = np.minimum(sizes - 1, most)
    return int(sizes[np.argmax(expected.cumsum()[at] / seconds)])


def pooled_sizes(acceptance: Tensor, seconds: Tensor) -> Tensor:
    """Nodes per sequence of a ragged batch that shares one token budget; no host synchronisation.

    The candidates of all sequences are pooled and the m likeliest verified, for the m that maximises (B + sum of
    their cumulative probabilities) / seconds(m), over all m: latency has stairs, so the first m whose marginal gain
    does not pay need not be the best. Equal candidates: the earlier sequence first; equal ratios: the smaller m.

    Args:
        acceptance: ``[B, H]`` as in :func:`dynamic_size`, of the unfinished sequences.
        seconds: ``[M + 1]`` float64 of a whole step by drafted tokens of the batch; ``LatencyTable.totals`` gives
            it.

    Returns:
        ``[B]`` int32 nodes, root included; their sum is B + m.

    Raises:
        ValueError: shapes that do not fit, or no time.
    """
    if acceptance.dim() != 2 or seconds.dim() != 1 or not len(seconds):
        raise ValueError(
            "pooled_sizes: acceptance must be [B, H] and seconds [M + 1], got "
            f"{list(acceptance.shape)}, {list(seconds.shape)}"
        )
    gains = acceptance.double().nan_to_num(0.0)
    pooled, order = gains.flatten().sort(descending=True, stable=True)
    start = pooled.new_full((1,), float(len(gains)))
    expected = torch.cat([start, pooled]).cumsum(0)[: len(seconds)]
    drafted = _first_best(expected / seconds[: len(expected)])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return 1 + (place < drafted).view(gains.shape).sum(1).int()
