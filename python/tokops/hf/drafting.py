"""What a drafter is to the decoding loop that verifies its trees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..sampling import Sampling


@dataclass(frozen=True)
class Proposal:
    """Trees for the sequences of a batch, in the layout of :func:`tokops.speculative.tree_build`.

    Rows before ``nodes`` are nodes of the trees: verified, and kept where accepted. Node 0 is the root, the last
    committed token. Rows from there on are probes: they hang under nodes and are run in the same forward, no node
    sees them, and they are never kept.

    Attributes:
        tokens: ``[B, T]`` int32 ids; ``-1 - j`` in a probe is row j of the drafter's ``embeddings``.
        parents: ``[B, T]`` int32, ``parents[:, 0] = -1`` and ``parents[i] < i``; -1 also marks rows that are padding.
        nodes: N, rows that are nodes; the root is one.
        n_nodes: ``[B]`` int32 nodes of every sequence, 1..N; None: all N.
        draft_probs: ``[B, M, V]`` float32, the laws the children were drawn from; None where they were not drawn.
        draft_rows: ``[B, N]`` int32, for every node the row of ``draft_probs`` that it was drawn from.
        memo: what the drafter wants to find again in :meth:`Drafter.commit`.
    """

    tokens: Tensor
    parents: Tensor
    nodes: int
    n_nodes: Tensor | None = None
    draft_probs: Tensor | None = None
    draft_rows: Tensor | None = None
    memo: Any = None


@dataclass(frozen=True)
class Verdict:
    """What became of a proposal.

    Attributes:
        kept: per sequence, the accepted nodes from the root on; none for a sequence that is finished.
        tokens: per sequence, the tokens it was given: the accepted ones, and the one decided last, its next root.
        hidden: ``[B, T, d]`` final hidden states (what ``lm_head`` takes) of all rows, if the drafter wants them.
    """

    kept: list[list[int]]
    tokens: list[list[int]]
    hidden: Tensor | None = None


@dataclass
class Session:
    """One generation, as its drafter sees it.

    Attributes:
        model: the model that decodes.
        tokens: per sequence, all tokens so far without padding; the last one is the next root.
        active: per sequence, whether it still decodes.
        sampling: how tokens are drawn from logits; ``temperature`` 0 is greedy.
        seed: of the generation.
        streams: ``[B]`` int64, the random stream of every sequence.
        room: per sequence, how many tokens may still be given out; a deeper tree is a waste.
        device: where tensors of proposals belong.
    """

    model: Any
    tokens: list[list[int]]
    active: list[bool]
    sampling: Sampling
    seed: int
    streams: Tensor
    room: list[int]
    device: torch.device
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """B, sequences."""
        return len(self.tokens)

    @property
    def roots(self) -> list[int]:
        """The last token of every sequence."""
        return [tokens[-1] for tokens in self.tokens]

    @property
    def positions(self) -> Tensor:
        """``[B]`` int64, the index of the token that is decided at every root."""
        return torch.tensor([len(tokens) for tokens in self.tokens], device=self.device)


class Drafter:
    """Proposes trees. One drafter serves one generation; what it learnt of a sequence goes with the sequence."""

    #: Whether it wants the final hidden states of the prompt and of every row.
    wants_hidden = False
    #: ``[M, d]`` embeddings that negative tokens of probes name.
    embeddings: Tensor | None = None

    def begin(self, session: Session, hidden: Sequence[Tensor] | None) -> None:
        """The prompts have been read, and every sequence has got its first token, the root of the first tree.

        Args:
            session: the generation.
            hidden: per sequence, the final hidden states ``[L, d]`` of its prompt, if wanted.
        """

    def propose(self, session: Session) -> Proposal:
        """Trees for all sequences; what is proposed for finished ones does not matter."""
        raise NotImplementedError

    def commit(self, session: Session, proposal: Proposal, verdict: Verdict) -> None:
        """Called after the verification; ``session.tokens`` has the new tokens."""

    def select(self, rows: list[int]) -> None:
        """Keep some sequences, in the order given."""

    def end(self) -> None:
        """The generation is over."""
