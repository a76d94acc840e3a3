"""Tree speculation: a drafter proposes token trees, the model verifies them in one forward."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..speculative import (
    DRAFT_MODES,
    DYNAMIC_VERIFY,
    VERIFY_MODES,
    Eagle2Tree,
    LatencyTable,
    tree_from_parents,
)
from ..speculative.trees import acceptance_rows
from .base import Method, ModelShape

__all__ = ["Speculate"]

_DRAFTS = ("prompt_lookup", "early_exit", "none")
_MATCHES = ("min_match", "max_match")
_SHAPES = ("tree", "acceptance")
#: Options that drafts do not read.
_UNREAD = {
    "prompt_lookup": (*_SHAPES, "exit_layer"),
    "early_exit": (*_MATCHES, "latency"),
    "none": (*_SHAPES, *_MATCHES, "exit_layer", "latency"),
    "a model that drafts": (*_MATCHES, "exit_layer", "latency"),
    "a drafter of its own": (*_SHAPES, *_MATCHES, "exit_layer", "latency"),
}
_MOST_ROWS, _MOST_DRAFTS = 256, 64


@dataclass(frozen=True, eq=False)
class Speculate(Method):
    """Batched tree speculation, through ``generate`` as it is: padding, sampling, processors, stopping, streaming.

    Every step drafts a token tree per sequence, runs all of its nodes in one forward under ancestor masks, verifies
    it (:func:`tokops.speculative.tree_verify`) and keeps the accepted path. Logits processors are applied to every
    node with the node's own path, stopping criteria see one sequence at a time, token by token. Greedy decoding gives
    the tokens of plain greedy decoding, sampling under a lossless ``verify`` follows the model's law, and with
    ``match_plain`` gives the very tokens of plain sampling at the same seed. Beams are refused. ``generate`` takes one
    more argument, ``streams``: ``[B]`` 32-bit numbers that name the sequences' random numbers, beside the seed and the
    position; None: their places in the batch.

    Args:
        draft: ``"prompt_lookup"``: what followed earlier occurrences of the last tokens, in the prompt and in what
            was generated; ``"early_exit"``: the first ``exit_layer`` layers of the model itself; ``"none"``: plain
            decoding under the same random numbers; a transformers model with the same vocabulary; or a callable that
            makes a :class:`tokops.hf.drafting.Drafter` from the model.
        verify: a mode of ``tree_verify``; None is ``target_only``. Where ``generate`` does not sample, lossless modes
            are all greedy decoding; ``"greedy"`` refuses to sample.
        nodes: of a tree at most, the root counted; 1..256.
        depth: of a tree at most; None: 16 for prompt lookup, 4 for a model that drafts.
        tree: for a model that drafts: the parents of a tree's nodes, or a
            :class:`tokops.speculative.Eagle2Tree` policy, which goes with deterministic drafts. None: a tree that is
            good for ``acceptance``.
        acceptance: ``[depth, children]`` chances that the j-th child is the one, for the shape of a static tree. None:
            a usual table.
        min_match, max_match: for prompt lookup: tokens that an earlier occurrence must, and may, have in common.
        exit_layer: for early exit; None: a third of the layers.
        match_plain: with ``target_only``: the tokens of plain sampling at the same seed.
        seed: of the random numbers; None: one from torch's generator, so that ``torch.manual_seed`` decides.
        eps, delta: of ``typical``.
        latency: for prompt lookup, measured with ``tokops tune-tree``: trees are cut where more nodes cost more than
            they give. None: what that command has saved for this machine and model, else a usual curve. Static trees
            have the size that ``nodes`` and ``tree`` say; an ``Eagle2Tree`` takes a table of its own.

    Raises:
        ValueError: a number out of range, options that contradict each other or that the draft does not read; when
            patching, more layers to exit after than the model has.
    """

    slots: ClassVar[tuple[str, ...]] = ("draft", "verify")

    draft: Any = "prompt_lookup"
    verify: str | None = None
    nodes: int = 32
    depth: int | None = None
    tree: Any = None
    acceptance: Any = None
    min_match: int = 1
    max_match: int = 32
    exit_layer: int | None = None
    match_plain: bool = False
    seed: int | None = None
    eps: float = 0.09
    delta: float = 0.3
    latency: LatencyTable | None = None

    def __post_init__(self):
        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"{type(self).__name__}: {message}")

        known = isinstance(self.draft, str)
        refuse(
            known and self.draft not in _DRAFTS,
            f"draft must be one of {', '.join(_DRAFTS)}, a model or a callable, got {self.draft!r}",
        )
        refuse(
            self.verify is not None and self.verify not in VERIFY_MODES,
            f"verify must be one of {', '.join(VERIFY_MODES)}, got {self.verify!r}",
        )
        refuse(
            self.mode == "lantern" and self.verify_options.get("neighbours") is None,
            "verify lantern needs a table of neighbours: use tokops.methods.LANTERN",
        )
        refuse(not 1 <= self.nodes <= 256, f"nodes must be 1..256, got {self.nodes}")
        refuse(
            self.depth is not None and not 1 <= self.depth < 256, f"depth must be 1..255, got {self.depth}"
        )
        refuse(
            self.match_plain and self.mode != "target_only",
            f"match_plain goes with verify target_only, got {self.verify!r}",
        )
        refuse(
            self.draft in ("prompt_lookup", "none") and self.mode in DRAFT_MODES,
            f"verify {self.mode} needs children that were drawn, {self.draft} has none: use target_only",
        )
        refuse(
            isinstance(self.tree, Eagle2Tree) and self.mode not in DYNAMIC_VERIFY,
            f"tree {type(self.tree).__name__} goes with verify {' or '.join(DYNAMIC_VERIFY)}, got {self.mode}",
        )
        refuse(
            not 1 <= self.min_match <= self.max_match <= 64,
            f"min_match and max_match must be 1..64, got {self.min_match} and {self.max_match}",
        )
        refuse(
            self.exit_layer is not None and self.exit_layer < 1,
            f"exit_layer must be at least 1 or None, got {self.exit_layer}",
        )
        refuse(not 0 <= self.eps <= 1, f"eps must be 0..1, got {self.eps}")
        refuse(not 0 <= self.delta < float("inf"), f"delta must be at least 0 and finite, got {self.delta}")
        usual = {field.name: field.default for field in fields(self)}
        for what, options in self._unread.items():
            for option in options:
                given = getattr(self, option)
                refuse(not _same(given, usual[option]), f"{option} has no meaning for {what}, got {given}")
        self._check_shape(refuse)

    @property
    def _unread(self) -> dict[str, tuple[str, ...]]:
        """Options that change nothing, by what they have no meaning for."""
        draft = self.draft
        if not isinstance(draft, str):
            draft = "a drafter of its own" if _is_factory(draft) else "a model that drafts"
        chains = self.mode in ("kseq", "chain_block")
        return {
            draft: _UNREAD[draft],
            f"verify {self.mode}": ("acceptance",) if chains else (),
            "a tree that is given": ("acceptance",) if self.tree is not None else (),
        }

    def _check_shape(self, refuse) -> None:
        """What a model drafts is a tree within the bounds, and one that the verification takes."""
        if self.acceptance is not None:
            acceptance_rows(type(self).__name__, self.acceptance)
        if self.tree is None:
            return
        if isinstance(self.tree, Eagle2Tree):
            size, depth = self.tree.nodes, None
            refuse(
                self.tree.branch * self.tree.expansions > _MOST_ROWS,
                f"tree must expand at most {_MOST_ROWS} nodes, branch * expansions, got {self.tree.branch} * "
                f"{self.tree.expansions}",
            )
        else:
            object.__setattr__(self, "tree", tuple(int(parent) for parent in self.tree))
            tree = tree_from_parents(self.tree)
            size, depth = len(tree), tree.depth
            below = [self.tree.count(node) for node in range(size)]
            refuse(
                self.mode == "chain_block" and max(below) > 1,
                f"verify chain_block needs a tree that is a chain, got {list(self.tree)}",
            )
            refuse(
                self.mode == "kseq" and (below[0] > _MOST_DRAFTS or max(below[1:], default=0) > 1),
                f"verify kseq needs a tree of at most {_MOST_DRAFTS} chains under the root, got {list(self.tree)}",
            )
        self._check_bounds(refuse, size, depth)

    def _check_bounds(self, refuse, size: int, depth: int | None) -> None:
        """Refuse a given tree that no forward holds, or beyond ``nodes`` and ``depth`` where those were given too."""
        refuse(size > _MOST_ROWS, f"tree must have at most {_MOST_ROWS} nodes, got {size}")
        refuse(
            self.nodes != _USUAL["nodes"] and size > self.nodes,
            f"tree must have at most nodes, {self.nodes}, got one of {size}",
        )
        refuse(
            self.depth is not None and depth is not None and depth > self.depth,
            f"tree must be at most as deep as depth, {self.depth}, got one of {depth}",
        )

    def resolve(self, shape: ModelShape) -> "Speculate":
        if self.draft != "early_exit" or (self.exit_layer is None and self.nodes == 1):
            return self
        layers = max(1, shape.layers // 3) if self.exit_layer is None else self.exit_layer
        if layers >= shape.layers:
            raise ValueError(
                f"{type(self).__name__}: exit_layer must be below the {shape.layers} layers of "
                f"{shape.name or 'the model'}, got {layers}"
            )
        return self

    @property
    def mode(self) -> str:
        """The verification mode where ``generate`` samples."""
        return self.verify or "target_only"

    @property
    def drawn(self) -> bool:
        """Whether a model that drafts draws children from its law, rather than taking its likeliest tokens."""
        return self.mode in DRAFT_MODES

    @property
    def loop(self) -> str:
        return "speculation"

    @property
    def verify_options(self) -> dict[str, Any]:
        """What ``tree_verify`` is told beside rows and trees."""
        plain = self.match_plain or self.draft == "none"
        return {"eps": self.eps, "delta": self.delta, "match_plain": plain}

    def drafter(self, model: Any, context: int = 0) -> Any:
        """A drafter of this method's own for a model and prompts of so many tokens; None: ``draft`` says it."""
        made: Callable[[Any], Any] | None = self.draft if _is_factory(self.draft) else None
        return made(model) if made is not None else None

    def __eq__(self, other: object) -> bool:
        """Same class and same options; models, drafters and tensors are the same if they are one object."""
        if type(self) is not type(other):
            return False
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash(self.describe())

    def describe(self) -> str:
        draft = self.draft if isinstance(self.draft, str) else type(self.draft).__name__
        return f"{type(self).__name__}(draft={draft}, verify={self.mode}, nodes={self.nodes})"


#: What every option is where nobody says.
_USUAL = {field.name: field.default for field in fields(Speculate)}


def _same(a: Any, b: Any) -> bool:
    plain = (str, int, float, tuple, type(None), LatencyTable)
    return a is b or (isinstance(a, plain) and isinstance(b, plain) and a == b)


def _is_factory(draft: Any) -> bool:
    """Whether ``draft`` makes drafters; a model is callable too, but has a configuration."""
    return callable(draft) and not hasattr(draft, "config")
