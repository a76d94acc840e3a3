"""PPD: trained prompt tokens let the model guess its next tokens while it verifies the last guesses."""

from dataclasses import dataclass
from typing import ClassVar

from ._trained import TrainedDraft

__all__ = ["PPD"]


@dataclass(frozen=True, eq=False)
class PPD(TrainedDraft):
    """Parallel prompt decoding (Chen et al., EMNLP 2025, arXiv 2405.18628).

    See :class:`tokops.hf.ppd.PPDDrafter` for what happens, and :class:`Speculate` for what is not listed here.

    Args:
        draft: a folder that ``tokops train-draft ppd`` wrote, or prompt tokens ``[M, d]`` as a tensor.
        nodes: rows of a verifying forward at most, prompt tokens counted: M + 2..256.
        acceptance: ``[M, K]`` as in :func:`tokops.speculative.ppd_plan`; None: what was measured after the training.
        minimum: prompt tokens that every candidate keeps, however unlikely it is (the published planner: 1).
        latency: measured with ``tokops tune-tree``: how many rows pay is then decided by it.

    Raises:
        ValueError: a number out of range, a mode of verification that its trees are not right for, or an option of
            other drafters.
    """

    module: ClassVar[str] = "ppd"
    kind: ClassVar[str] = "ppd"

    minimum: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.minimum < 0:
            raise ValueError(f"PPD: minimum must be at least 0, got {self.minimum}")
        for option in ("tree", "depth"):
            if getattr(self, option) is not None:
                raise ValueError(
                    f"PPD: {option} has no meaning, its trees are planned, got {getattr(self, option)}"
                )
