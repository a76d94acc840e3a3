"""Falcon: a small layer drafts several tokens per pass, and every pass expands a whole level of blocks."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ._trained import TrainedDraft

__all__ = ["Falcon"]


@dataclass(frozen=True, eq=False)
class Falcon(TrainedDraft):
    """Semi-autoregressive drafting (Gao et al., AAAI 2025, 39(22) 23933-23941).

    See :class:`tokops.hf.falcon.FalconDrafter` for what happens, and :class:`Speculate` for what is not listed here.

    Args:
        draft: a folder that ``tokops train-draft falcon`` wrote, or a :class:`tokops.hf.falcon.FalconModule`.
        tree: rank paths as published trees list them, or a :class:`tokops.speculative.Tree`; None: the best tree
            under ``acceptance``.
        acceptance: ``[depth, ranks]``; None: what was measured after the training.
        depth: of a tree at most; None: the rows of ``acceptance``.
        groups: blocks that are drafted per step at most, besides the first.
        latency: measured with ``tokops tune-tree``: how many nodes pay is then decided by it.
        draft_seconds: time of one drafting pass, which such a decision counts.

    Raises:
        ValueError: a number out of range, a mode of verification that its trees are not right for, or an option of
            other drafters.
    """

    module: ClassVar[str] = "falcon"
    kind: ClassVar[str] = "falcon"
    shaping: ClassVar[tuple[str, ...]] = (*TrainedDraft.shaping, "groups", "draft_seconds")

    groups: int | None = None
    draft_seconds: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.groups is not None and self.groups < 0:
            raise ValueError(f"Falcon: groups must be at least 0, got {self.groups}")
        if not 0 <= self.draft_seconds < math.inf:
            raise ValueError(f"Falcon: draft_seconds must be at least 0 and finite, got {self.draft_seconds}")
        if self.draft_seconds and self.latency is None:
            raise ValueError("Falcon: draft_seconds is read beside latency alone")
