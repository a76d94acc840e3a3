"""LANTERN: drafted image tokens borrow probability of codes that look alike. Lossy."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .base import ModelShape
from .speculate import Speculate

__all__ = ["LANTERN"]

_RESIDUALS = ("moved", "plain", "compat")
_CHILDREN = ("drawn", "likeliest")
_DELTA = 0.1


@dataclass(frozen=True, eq=False)
class LANTERN(Speculate):
    """Relaxed speculation for autoregressive image models (Jang et al., ICLR 2025, arXiv 2410.03355; LANTERN++,
    arXiv 2502.06352).

    **Lossy**: a drafted code is tested with the probability of its nearest codes added to its own, as many as stay
    within a budget. The budget bounds what one test moves. It does not bound how far the emitted law is from the
    model's: that drifts towards the draft's law, and is the draft's once everything is accepted;
    :func:`tokops.speculative.lantern_tv` says how far. With ``delta=0`` or ``lam=1`` nothing is borrowed, and the
    tokens are those of ``Speculate`` with ``rrs_wo`` (drawn children) or ``target_only`` at the same seed.

    Tokens that are no code, text and special tokens among them, are verified without loss. A model of text alone has
    no table, and is refused for want of one. Batches of conditional and unconditional rows (classifier-free guidance)
    are refused: pass a model whose logits are guided already.

    See :class:`Speculate` for what ``generate`` may be asked for.

    Args:
        draft: as in :class:`Speculate`. A trained drafter's ``drafter`` method is such a callable:
            ``LANTERN(draft=Falcon("folder").drafter, ...)``.
        nodes, depth, tree, acceptance, min_match, max_match, exit_layer, seed, latency: as in :class:`Speculate`;
            trees are static.
        neighbours: ``[Vc, K]`` codes nearest to every code, of :func:`tokops.speculative.neighbour_table`; a tensor
            of integers, or nested sequences.
        k: columns of the table that are used.
        delta: the budget, 0..1: mass that a token may borrow (LANTERN).
        lam: instead of ``delta``, at least 1: a token with what it borrows has at most so many times its own
            probability (LANTERN++). ``delta`` must then be left alone.
        token_offset: the token that code 0 is.
        residual: what a rejected drawn child leaves, see :func:`tokops.speculative.tree_verify`.
        children: of a model that drafts: ``drawn`` without replacement from its law, or its ``likeliest``. None: drawn,
            where a model or early exit drafts. Other drafts say themselves how theirs came about.

    Raises:
        ValueError: no table, a number out of range, or options that contradict each other; when patching, codes that
            the model's vocabulary does not have.
    """

    draft: Any = "early_exit"
    verify: str | None = field(default="lantern", init=False, repr=False)
    match_plain: bool = field(default=False, init=False, repr=False)
    eps: float = field(default=0.09, init=False, repr=False)
    delta: float = _DELTA
    neighbours: Any = None
    k: int = 1000
    lam: float | None = None
    token_offset: int = 0
    residual: str = "moved"
    children: str | None = None

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"LANTERN: {message}")

        refuse(
            self.neighbours is None,
            "neighbours must be the neighbour table of an image codebook, got None: a vocabulary of text has no "
            "neighbours to borrow from",
        )
        refuse(self.k < 1, f"k must be at least 1, got {self.k}")
        refuse(not 0 <= self.delta <= 1, f"delta must be 0..1, got {self.delta}: a factor is lam")
        refuse(
            self.lam is not None and not 1 <= self.lam < float("inf"),
            f"lam must be at least 1 and finite, got {self.lam}",
        )
        refuse(
            self.lam is not None and self.delta != _DELTA,
            f"delta and lam are two budgets: one must be left out, got {self.delta} and {self.lam}",
        )
        refuse(self.token_offset < 0, f"token_offset must be at least 0, got {self.token_offset}")
        refuse(
            self.residual not in _RESIDUALS,
            f"residual must be one of {', '.join(_RESIDUALS)}, got {self.residual!r}",
        )
        self._check_children(refuse)
        table = self.table
        refuse(
            table.dim() != 2 or not table.numel(),
            f"neighbours must be [codes, K] with at least one column, got {list(table.shape)}",
        )
        low, high = (int(x) for x in table.aminmax())
        refuse(
            low < 0 or high >= len(table),
            f"neighbours must be codes 0..{len(table) - 1}, got {low}..{high}",
        )
        super().__post_init__()

    def _check_children(self, refuse):
        refuse(
            self.children not in (None, *_CHILDREN),
            f"children must be one of {', '.join(_CHILDREN)}, got {self.children!r}",
        )
        refuse(
            self.children == "drawn" and not self._can_draw,
            "drawn children need a model that drafts, got "
            f"{self.draft if isinstance(self.draft, str) else type(self.draft).__name__}, which gives its own",
        )

    @property
    def _can_draw(self) -> bool:
        return hasattr(self.draft, "config") or self.draft == "early_exit"

    @property
    def drawn(self) -> bool:
        return self.children != "likeliest" and self._can_draw

    @cached_property
    def table(self) -> Tensor:
        """``[codes, K]`` int32, the columns that are used."""
        table = torch.as_tensor(self.neighbours)
        if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
            raise ValueError(f"LANTERN: neighbours must be integers, got {str(table.dtype)[6:]}")
        return table[..., : self.k].int().contiguous()

    def resolve(self, shape: ModelShape) -> "LANTERN":
        if self.token_offset + len(self.table) > shape.vocab:
            raise ValueError(
                f"LANTERN: {shape.name or 'the model'} has a vocabulary of {shape.vocab}, which {len(self.table)} "
                f"codes from token {self.token_offset} on leave"
            )
        super().resolve(shape)
        return self

    @property
    def verify_options(self) -> dict[str, Any]:
        # The op takes budgets above 1 for factors, and a factor of 1 lends nothing.
        budget = self.delta if self.lam is None else self.lam if self.lam > 1 else 0.0
        return {
            "delta": budget,
            "neighbours": self.table,
            "token_offset": self.token_offset,
            # Where nothing can be lent, neighbours of probability 0 must not be taken for lenders.
            "residual": self.residual if budget > 0 else "moved",
        }

    def describe(self) -> str:
        draft = self.draft if isinstance(self.draft, str) else type(self.draft).__name__
        budget = f"delta={self.delta}" if self.lam is None else f"lam={self.lam}"
        return f"LANTERN(draft={draft}, {budget}, codes={len(self.table)}, nodes={self.nodes})"
