"""Parallel prompt decoding: trained prompt tokens behind a tree's nodes guess the tokens of the next tree."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..speculative.policies import PPDTree
from ..speculative.ppd_plan import PPDPlan
from .drafters import NoDrafter
from .draftfiles import Saved, load_drafter, save_drafter, trained_draft
from .drafting import Drafter, Proposal, Session, Verdict
from .draftlayers import top_ranked
from .families import shape_of

__all__ = ["PPDDrafter", "load_prompt_embeddings", "make_drafter", "save_prompt_embeddings"]

NAME = "prompt_embeddings"


def save_prompt_embeddings(
    folder: str | os.PathLike,
    model: Any,
    embeddings: Tensor,
    acceptance: Any = None,
    training: dict | None = None,
) -> None:
    """Write ``embeddings [M, d]`` into a folder, for :func:`load_prompt_embeddings`."""
    digest = shape_of(model.config).digest
    save_drafter(folder, Saved("ppd", digest, {}, {NAME: embeddings}, acceptance, training or {}))


def load_prompt_embeddings(folder: str | os.PathLike, model: Any) -> tuple[Tensor, list[list[float]] | None]:
    """Prompt tokens ``[M, d]`` that ``tokops train-draft ppd`` wrote, and their acceptance table.

    Raises:
        FileNotFoundError, ValueError: see :func:`tokops.hf.draftfiles.load_drafter`.
    """
    saved = load_drafter(folder, "ppd", shape_of(model.config).digest)
    if NAME not in saved.tensors:
        raise ValueError(f"{folder} must hold a tensor {NAME!r}, got {sorted(saved.tensors)}")
    return saved.tensors[NAME].to(model.device, model.dtype), saved.acceptance


class PPDDrafter(Drafter):
    """Drafts with prompt tokens (Chen et al., arXiv 2405.18628).

    Prompt token j of 1..M, j places behind a token, makes the model predict the token j + 1 places ahead of it. Every
    node of a tree may carry a chain of them. Those of the accepted node give the candidates of the next tree, and how
    many there were is that tree's state: a node with c prompt tokens leads to state c, and a tree of which nothing
    was accepted to state M, because the root always carries M. State 0 is the root with its M prompt tokens alone;
    the first step is such a one too, so that a prompt is read as it is without drafting.

    Only the accepted node's prompt rows go through the unembedding, not those of all nodes. Candidates of a level are
    the same under every parent. They are deterministic given the past: any lossless verification of such trees keeps
    the law, whatever the embeddings are. Where less may still be given out than a tree is deep, the tree of a lower
    state is used.

    Args:
        model: the base model.
        embeddings: ``[M, d]`` prompt tokens.
        plan: trees of the states 0..M, from :func:`tokops.speculative.ppd_plan`.

    Raises:
        ValueError: a plan for another number of prompt tokens, or with ranks beyond the vocabulary.
    """

    wants_hidden = True

    def __init__(self, model: Any, embeddings: Tensor, plan: PPDPlan):
        self.model, self.embeddings, self.plan = model, embeddings, plan
        if plan.prompt_tokens != len(embeddings):
            raise ValueError(
                f"PPDDrafter: plan must be for {len(embeddings)} prompt tokens, as there are embeddings, got "
                f"{plan.prompt_tokens}"
            )
        # At least one, so that the guesses of an empty plan can be counted.
        self._width = 1 + max((int(rows.ranks.max()) for rows in plan.tables), default=0)
        self._width = max(self._width, 1)
        if self._width > model.config.vocab_size:
            raise ValueError(
                f"PPDDrafter: plan must have ranks below the vocabulary's size {model.config.vocab_size}, got "
                f"{self._width - 1}"
            )
        self._guesses: list[Tensor] = []  # per sequence [state, width]: as many rows as the state says

    def begin(self, session: Session, hidden: Sequence[Tensor] | None) -> None:
        nothing = torch.zeros(0, self._width, dtype=torch.int64, device=session.device)
        self._guesses = [nothing for _ in range(session.batch)]

    def propose(self, session: Session) -> Proposal:
        states = [
            min(len(guesses), max(room - 1, 0))
            for guesses, room in zip(self._guesses, session.room, strict=True)
        ]
        tables = [self.plan.tables[state] for state in states]
        nodes = max(rows.real for rows in tables)
        width = nodes + max(len(rows.prompt) - rows.real for rows in tables)
        tokens = np.zeros((session.batch, width), np.int32)
        parents = np.full((session.batch, width), -1, np.int32)
        for b, rows in enumerate(tables):
            real, end = rows.real, nodes + len(rows.prompt) - rows.real
            parents[b, :real] = rows.parents[:real]
            above = rows.parents[real:]
            parents[b, nodes:end] = np.where(above < real, above, above + nodes - real)
            tokens[b, nodes:end] = -rows.prompt[real:]
        found = torch.from_numpy(tokens).to(session.device)
        for b, rows in enumerate(tables):
            levels = torch.from_numpy(rows.positions[1 : rows.real] - 1).long().to(session.device)
            ranks = torch.from_numpy(rows.ranks[1 : rows.real]).long().to(session.device)
            found[b, 0] = session.roots[b]
            found[b, 1 : rows.real] = self._guesses[b][levels, ranks].int()
        sizes = torch.tensor([rows.real for rows in tables], dtype=torch.int32, device=session.device)
        return Proposal(found, torch.from_numpy(parents).to(session.device), nodes, sizes, memo=tables)

    @torch.no_grad()
    def commit(self, session: Session, proposal: Proposal, verdict: Verdict) -> None:
        assert verdict.hidden is not None, "the loop gives hidden states to a drafter that wants them"
        picked = []
        for hidden, kept, rows in zip(verdict.hidden, verdict.kept, proposal.memo, strict=True):
            chain = rows.chains[kept[-1]] if kept else rows.chains[0][:0]
            picked.append(hidden[(chain[chain >= 0] + proposal.nodes - rows.real).tolist()])
        ids = top_ranked(self.model.get_output_embeddings()(torch.cat(picked)), self._width)
        self._guesses = list(ids.split([len(rows) for rows in picked]))

    def select(self, rows: list[int]) -> None:
        self._guesses = [self._guesses[row] for row in rows]


def make_drafter(method: Any, model: Any, context: int = 0) -> Drafter:
    """The drafter of :class:`tokops.methods.PPD` for a model and prompts of so many tokens."""
    embeddings, acceptance = trained_draft(method, model, Tensor, load_prompt_embeddings)
    most = len(embeddings)
    if method.nodes < most + 2:
        raise ValueError(
            f"PPD: nodes must be at least {most + 2} with {most} prompt tokens, got {method.nodes}"
        )
    policy = PPDTree(
        acceptance=acceptance, budget=method.nodes - 1 - most, minimum=method.minimum, latency=method.latency
    )
    plan = policy.plan(context)
    return NoDrafter() if plan is None else PPDDrafter(model, embeddings, plan)
