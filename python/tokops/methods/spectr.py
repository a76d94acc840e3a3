"""SpecTr: independent drafts are verified together, and nearly as many tokens survive as any exact rule allows."""

from dataclasses import dataclass, field
from typing import Any

from .speculate import Speculate

__all__ = ["SpecTr"]

_MOST_ROWS = 256


@dataclass(frozen=True, eq=False)
class SpecTr(Speculate):
    """Speculation by optimal transport, k-SEQ (Sun et al., NeurIPS 2023, arXiv 2310.15141).

    A model drafts ``drafts`` sequences of ``length`` tokens, each token drawn independently from its law under the same
    temperature, top-k, top-p and min-p as the decoding. They hang as chains under the last token, equal ones too: a
    token that is drafted twice is tested twice. At every level one token is decided out of the drafts that agree with
    all before; sampled tokens follow the model's law exactly, and the chance to go on is at least 1 - 1/e of the best
    that any exact rule has with such drafts. Where ``generate`` does not sample, chains begin with the most likely
    tokens, and the tokens are those of plain greedy decoding.

    See :class:`Speculate` for what ``generate`` may be asked for.

    Args:
        draft: a transformers model with the same vocabulary, ``"early_exit"`` (the first ``exit_layer`` layers of the
            model itself), or a callable that makes a :class:`tokops.hf.drafting.Drafter` from the model, whose
            proposals must be chains drawn independently.
        drafts: k, sequences, 1..64. 1 is standard speculative sampling.
        length: L, tokens of each. The root and all drafts are run in one forward of at most 256 rows.
        rho: the division factor of every level, instead of the smallest valid one. At least ``drafts``, for which it is
            valid whatever the laws are. The law stays exact, but often fewer tokens are accepted than of one draft.
        exit_layer: for early exit; None: a third of the layers.
        seed: of the random numbers; None: one from torch's generator.

    Raises:
        ValueError: a number out of range, or a draft that draws nothing.
    """

    draft: Any = "early_exit"
    verify: str | None = field(default="kseq", init=False, repr=False)
    nodes: int = field(default=32, init=False, repr=False)
    depth: int | None = field(default=None, init=False, repr=False)
    tree: Any = field(default=None, init=False, repr=False)
    acceptance: Any = field(default=None, init=False, repr=False)
    min_match: int = field(default=1, init=False, repr=False)
    max_match: int = field(default=32, init=False, repr=False)
    match_plain: bool = field(default=False, init=False, repr=False)
    eps: float = field(default=0.09, init=False, repr=False)
    delta: float = field(default=0.3, init=False, repr=False)
    latency: Any = field(default=None, init=False, repr=False)
    drafts: int = 4
    length: int = 4
    rho: float | None = None

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"SpecTr: {message}")

        refuse(not 1 <= self.drafts <= 64, f"drafts must be 1..64, got {self.drafts}")
        refuse(self.length < 1, f"length must be at least 1, got {self.length}")
        rows = 1 + self.drafts * self.length
        refuse(
            rows > _MOST_ROWS,
            f"drafts * length must be at most {_MOST_ROWS - 1}, got {self.drafts} * {self.length}",
        )
        refuse(
            self.rho is not None and not self.drafts <= self.rho < float("inf"),
            f"rho must be at least drafts, {self.drafts}, and finite, got {self.rho}",
        )
        object.__setattr__(self, "nodes", rows)
        object.__setattr__(self, "depth", self.length)
        super().__post_init__()

    @property
    def verify_options(self) -> dict[str, Any]:
        return {"rho": self.rho}

    def describe(self) -> str:
        draft = self.draft if isinstance(self.draft, str) else type(self.draft).__name__
        return f"SpecTr(draft={draft}, drafts={self.drafts}, length={self.length})"
