"""ConceptHeads: extra heads on the last hidden state draft one token each."""

from dataclasses import dataclass
from typing import ClassVar

from ._trained import TrainedDraft

__all__ = ["ConceptHeads"]


@dataclass(frozen=True, eq=False)
class ConceptHeads(TrainedDraft):
    """Heads that predict several tokens ahead, as drafters: Medusa (arXiv 2401.10774), CAFT (arXiv 2506.07833).

    See :class:`tokops.hf.heads.HeadsDrafter` for what happens, and :class:`Speculate` for what is not listed here.

    Args:
        draft: a folder that ``tokops train-draft heads`` wrote, or :class:`tokops.hf.heads.Heads`, for example from
            :func:`tokops.hf.head_checkpoints.heads_from_state`.
        verify: besides what trees of best candidates allow, ``rrs_wo``: where ``generate`` samples, candidates are
            then drawn from the heads' laws.
        tree: rank paths, or a :class:`tokops.speculative.Tree`; None: the best tree under ``acceptance``.
        acceptance: ``[heads, ranks]``; None: what was measured after the training.
        depth: of a tree at most; None: as many as there are heads.
        latency: measured with ``tokops tune-tree``: how many nodes pay is then decided by it.

    Raises:
        ValueError: a number out of range, a mode of verification that its trees are not right for, or an option of
            other drafters.
    """

    module: ClassVar[str] = "heads"
    kind: ClassVar[str] = "heads"
    modes: ClassVar[tuple[str, ...]] = (*TrainedDraft.modes, "rrs_wo")
