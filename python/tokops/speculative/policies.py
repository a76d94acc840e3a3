"""Which tree a decoding loop drafts: one frozen dataclass per way, each with an optional latency table."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .dynamic_trees import DYNAMIC_VERIFY, DraftPool
from .falcon_trees import FalconTables, falcon_tables
from .latency import LatencyTable
from .ppd_plan import PPDPlan, ppd_plan, ppd_size
from .tree_size import choose_size, dynamic_size
from .trees import Tree, acceptance_rows, grow, tree_from_parents, tree_from_paths

#: The most rows that one verifying forward takes.
MOST_NODES = 256

_DETERMINISTIC = ("greedy", "target_only", "typical", "lantern")


def _entries(owner: str, acceptance: Any) -> tuple:
    """A checked table as nested tuples, so that policies can be compared and hashed."""
    rows = acceptance_rows(owner, acceptance).tolist()
    return tuple(tuple(row) if isinstance(row, list) else row for row in rows)


@dataclass(frozen=True, kw_only=True)
class TreePolicy:
    """What all tree policies have. The shape of a tree never changes what is sampled, only how fast.

    Args:
        latency: measured with ``tokops tune-tree``; with it the tree is cut, for the context at hand, where tokens
            per second peak, plain decoding included. None: always the full size.
        draft_seconds: time of one sequential drafting pass.
        fixed_seconds: time of a step besides verification and drafting.
    """

    #: Verification modes that the policy's trees are right for; None is all of them.
    verify: ClassVar[tuple[str, ...] | None] = None

    latency: LatencyTable | None = None
    draft_seconds: float = 0.0
    fixed_seconds: float = 0.0

    def __post_init__(self):
        self._least("draft_seconds", 0)
        self._least("fixed_seconds", 0)

    def _least(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self, name)
        if value is not None and not least <= value <= (value if most is None else most):
            limit = f"{least}..{most}" if most is not None else f"at least {least}"
            raise ValueError(f"{type(self).__name__}: {name} must be {limit}, got {value}")

    def _most(self) -> int:
        return MOST_NODES if self.latency is None else min(MOST_NODES, self.latency.sizes[-1])

    def _shape(
        self,
        acceptance: Any,
        context: int,
        nodes: int,
        depth: int | None,
        block: int = 1,
        groups: int | None = None,
    ) -> Tree:
        """The best tree of at most ``nodes`` nodes, or with a latency table the fastest."""
        if self.latency is None:
            return grow(type(self).__name__, acceptance, nodes, depth, block=block, groups=groups)
        return choose_size(
            self.latency,
            acceptance,
            context=context,
            draft=self.draft_seconds,
            fixed=self.fixed_seconds,
            depth=depth,
            most=nodes,
            block=block,
            groups=groups,
        ).tree

    def check(self, verify: str) -> None:
        """Refuse a verification mode whose draft law these trees do not have.

        Raises:
            ValueError: naming the mode and those that are right.
        """
        if self.verify is not None and verify not in self.verify:
            raise ValueError(
                f"{type(self).__name__} takes the drafter's best candidates and is right under "
                f"verify={' or '.join(map(repr, self.verify))}, got {verify!r}"
            )


@dataclass(frozen=True)
class StaticTree(TreePolicy):
    """One tree for all steps: the best under an acceptance table, or a given one.

    Args:
        acceptance: as in :func:`~tokops.speculative.best_first_tree`, or None.
        parents: as in :func:`~tokops.speculative.tree_from_parents`, or None; exactly one of the two is given.
        nodes: the most nodes of a tree from acceptance, 1..256.
        depth: its most levels.

    Raises:
        ValueError: both or neither given, a number out of range, a table or parents that are none, and parents with a
            latency table, which would need acceptances to weigh.
    """

    acceptance: Any = None
    parents: tuple[int, ...] | None = None
    nodes: int = 32
    depth: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self._least("nodes", 1, MOST_NODES)
        self._least("depth", 0)
        if (self.acceptance is None) == (self.parents is None):
            raise ValueError("StaticTree: give either acceptance or parents")
        if self.acceptance is not None:
            object.__setattr__(self, "acceptance", _entries("StaticTree", self.acceptance))
        else:
            object.__setattr__(self, "parents", tuple(int(parent) for parent in self.parents))
            if len(tree_from_parents(self.parents)) > MOST_NODES:
                raise ValueError(f"StaticTree: parents must be at most {MOST_NODES}, got {len(self.parents)}")
            if self.latency is not None:
                raise ValueError("StaticTree: a latency table needs acceptance to weigh it with, got parents")

    def tree(self, context: int = 0) -> Tree:
        """The tree to draft at a context length."""
        if self.parents is not None:
            return tree_from_parents(self.parents)
        return self._shape(self.acceptance, context, self.nodes, self.depth)


@dataclass(frozen=True)
class Eagle2Tree(TreePolicy):
    """A tree chosen at every step from the drafter's probabilities (EAGLE-2).

    Args:
        branch: children per node and nodes per level, k.
        expansions: levels after the first that are drafted.
        nodes: the most nodes, root included, 1..256.

    Raises:
        ValueError: a number out of range.
    """

    verify: ClassVar[tuple[str, ...] | None] = DYNAMIC_VERIFY

    branch: int = 10
    expansions: int = 7
    nodes: int = 60

    def __post_init__(self):
        super().__post_init__()
        self._least("branch", 1)
        self._least("expansions", 0)
        self._least("nodes", 1, MOST_NODES)

    def pool(self, root: Tensor) -> DraftPool:
        """An empty history, to be expanded ``1 + expansions`` times."""
        return DraftPool(root, self.branch)

    def curve(self, context: int = 0, device: Any = None) -> tuple[Tensor, Tensor] | None:
        """Sizes and seconds for :meth:`tree`, made once per context bucket; None without a latency table."""
        if self.latency is None:
            return None
        extra = self.fixed_seconds + self.expansions * self.draft_seconds
        return self.latency.curve(context, extra=extra, most=min(self.nodes, self._most()), device=device)

    def tree(self, pool: DraftPool, curve: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Tokens, parents and counts as :func:`~tokops.speculative.dynamic_tree` gives them, ``nodes`` columns.

        Args:
            pool: expanded.
            curve: what :meth:`curve` gave; every sequence then gets its own size. None: all get ``nodes``.
        """
        if curve is None:
            return pool.tree(self.nodes)
        return pool.tree(dynamic_size(pool.acceptance(), *curve), n_max=self.nodes)


@dataclass(frozen=True)
class PPDTree(TreePolicy):
    """Trees with prompt tokens, one per state (parallel prompt decoding).

    Args:
        acceptance: ``[M, K]`` as in :func:`~tokops.speculative.ppd_plan`.
        budget: candidates and prompt tokens of a forward; 1 + M rows come on top, 256 in all.
        minimum: prompt tokens that every candidate keeps.
        step: with a latency table, budgets are tried in steps of so many.

    Raises:
        ValueError: a number out of range, or a table that is none.
    """

    verify: ClassVar[tuple[str, ...] | None] = _DETERMINISTIC

    acceptance: Any
    budget: int = 60
    minimum: int = 0
    step: int = 8

    def __post_init__(self):
        super().__post_init__()
        table = acceptance_rows("PPDTree", self.acceptance)
        if table.ndim != 2 or not len(table):
            raise ValueError(f"PPDTree: acceptance must be [M, K] with M >= 1, got {list(table.shape)}")
        object.__setattr__(self, "acceptance", _entries("PPDTree", table))
        self._least("budget", 1, MOST_NODES - 1 - len(table))
        self._least("minimum", 0, len(table))
        self._least("step", 1)

    def plan(self, context: int = 0) -> PPDPlan | None:
        """The plan at a context length; None where plain decoding is faster."""
        if self.latency is None:
            return ppd_plan(self.acceptance, self.budget, self.minimum)
        most = min(self.budget, self._most() - 1 - len(self.acceptance))
        if most < 1:
            return None
        budgets = list(range(most, 0, -self.step))
        return ppd_size(
            self.acceptance, self.latency, budgets, self.minimum, context=context, fixed=self.fixed_seconds
        )


@dataclass(frozen=True)
class FalconTree(TreePolicy):
    """A tree for a drafter that emits a block of tokens per pass (Falcon).

    Args:
        block: tokens per drafting pass, k.
        acceptance: as in :func:`~tokops.speculative.falcon_tree`, or None.
        paths: rank paths as published trees list them, or None; exactly one of the two is given.
        nodes: the most nodes of a tree from acceptance, 1..256.
        depth: its most levels.
        groups: the most groups besides the root's.

    Raises:
        ValueError: both or neither given, a number out of range, a table or paths that are none, and paths with a
            latency table, which would need acceptances to weigh.
    """

    verify: ClassVar[tuple[str, ...] | None] = _DETERMINISTIC

    block: int = 2
    acceptance: Any = None
    paths: Any = None
    nodes: int = 64
    depth: int | None = None
    groups: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self._least("block", 1)
        self._least("nodes", 1, MOST_NODES)
        self._least("depth", 0)
        self._least("groups", 0)
        if (self.acceptance is None) == (self.paths is None):
            raise ValueError("FalconTree: give either acceptance or paths")
        if self.acceptance is not None:
            object.__setattr__(self, "acceptance", _entries("FalconTree", self.acceptance))
        else:
            paths = tree_from_paths(self.paths).paths
            object.__setattr__(self, "paths", paths)
            if len(paths) > MOST_NODES:
                raise ValueError(f"FalconTree: paths must be at most {MOST_NODES} nodes, got {len(paths)}")
            if self.latency is not None:
                raise ValueError("FalconTree: a latency table needs acceptance to weigh it with, got paths")

    def tables(self, context: int = 0) -> FalconTables:
        """The tree to draft at a context length, and its index tables."""
        if self.paths is not None:
            tree = tree_from_paths(self.paths)
        else:
            tree = self._shape(self.acceptance, context, self.nodes, self.depth, self.block, self.groups)
        return falcon_tables(tree, self.block)
