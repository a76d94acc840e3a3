"""What a drafter is to the decoding loop that verifies its trees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._native import checked
from ..sampling import Sampling
from .drafts import MAX_ROWS


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
        stride: what :attr:`positions` grow by with every token. Above 1 no step finds random numbers that an earlier
            one has used: what a chain that is judged as a whole gives out depends on numbers of the tokens that it
            did not give out, so that they must not decide those tokens once more.
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
    stride: int = 1

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
        """``[B]`` int64 names of the random numbers that decide a token at every root; one more per level below.

        With a ``stride`` of 1 they are the tokens' indices.
        """
        return torch.tensor([len(tokens) * self.stride for tokens in self.tokens], device=self.device)


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
            hidden: per sequence, the final hidden states ``[L, d]`` of its prompt, if wanted; without the beginning
                that a cache given to ``generate`` has held already.
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


def check_proposal(
    drafter: str, proposal: Proposal, session: Session, vocabulary: int, embeddings: int = 0
) -> None:
    """Refuse what is not a proposal for the session's sequences, before anything is run.

    Values are looked at on the CPU, and on CUDA under TOKOPS_CHECK=1.

    Args:
        drafter: its name, for messages.
        proposal: what it proposes.
        session: the generation.
        vocabulary: tokens of the model.
        embeddings: M, how many embeddings of its own the drafter has.

    Raises:
        TypeError: not a :class:`Proposal`.
        ValueError: a wrong shape, dtype, device, number of rows, root or token.
    """

    def refuse(wrong: bool, what: str) -> None:
        if wrong:
            raise ValueError(f"{drafter}: {what}")

    if not isinstance(proposal, Proposal):
        raise TypeError(f"{drafter}: propose must return a Proposal, got {type(proposal).__name__}")
    tokens, batch = proposal.tokens, session.batch
    shape = tuple(tokens.shape)
    refuse(len(shape) != 2 or shape[0] != batch, f"tokens must be [{batch}, T], got {list(shape)}")
    rows = shape[1]
    refuse(not 1 <= rows <= MAX_ROWS, f"a forward takes 1..{MAX_ROWS} rows per sequence, got {rows}")
    refuse(not 1 <= proposal.nodes <= rows, f"nodes must be 1..{rows}, got {proposal.nodes}")
    for name, x, expected in (
        ("tokens", tokens, (batch, rows)),
        ("parents", proposal.parents, (batch, rows)),
        ("n_nodes", proposal.n_nodes, (batch,)),
    ):
        if x is None:
            refuse(name != "n_nodes", f"{name} must be a tensor, got None")
            continue
        refuse(tuple(x.shape) != expected, f"{name} must be {list(expected)}, got {list(x.shape)}")
        refuse(x.dtype != torch.int32, f"{name} must be int32, got {x.dtype}")
        refuse(x.device.type != session.device.type, f"{name} must be on {session.device}, got {x.device}")
    if tokens.is_cuda and not checked():
        return
    low, high = int(tokens.min()), int(tokens.max())
    refuse(
        low < -embeddings or high >= vocabulary,
        f"tokens must be {-embeddings}..{vocabulary - 1}, in padding too, got {low}..{high}",
    )
    nodes = int(tokens[:, : proposal.nodes].min())
    refuse(nodes < 0, f"a node's token must not be negative, got {nodes}")
    roots = tokens[:, 0].tolist()
    refuse(
        roots != session.roots,
        f"node 0 must be the last token of every sequence, {session.roots}, got {roots}",
    )
