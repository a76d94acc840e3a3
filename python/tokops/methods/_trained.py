"""What methods share whose drafters were trained for one model."""

import importlib
import os
import pathlib
from dataclasses import dataclass
from typing import Any, ClassVar

from ..speculative import Tree, tree_from_paths
from .speculate import Speculate


@dataclass(frozen=True, eq=False)
class TrainedDraft(Speculate):
    """Base of methods whose ``draft`` is a trained drafter: a folder, or what was loaded from one."""

    #: The module of :mod:`tokops.hf` whose ``make_drafter(method, model, context)`` makes drafters.
    module: ClassVar[str] = ""
    #: What the command that trains it calls it.
    kind: ClassVar[str] = ""
    #: Verification modes that its candidates are right for.
    modes: ClassVar[tuple[str, ...]] = ("target_only", "greedy", "typical", "lantern")

    #: Options that say which tree is best, and have no meaning where one is given.
    shaping: ClassVar[tuple[str, ...]] = ("acceptance", "latency")

    draft: Any = None

    def __post_init__(self):
        name = type(self).__name__
        if self.draft is None:
            raise ValueError(
                f"{name}: draft must be a folder that `tokops train-draft {self.kind}` wrote, or what is loaded from "
                "one, got None"
            )
        if isinstance(self.draft, (str, os.PathLike)):
            object.__setattr__(self, "draft", pathlib.Path(self.draft))
        super().__post_init__()
        if self.mode not in self.modes:
            raise ValueError(f"{name}: verify must be one of {', '.join(self.modes)}, got {self.verify!r}")

    @property
    def _unread(self) -> dict[str, tuple[str, ...]]:
        return {
            "a trained drafter": ("min_match", "max_match", "exit_layer"),
            "a tree that is given": self.shaping if self.tree is not None else (),
        }

    def _check_shape(self, refuse) -> None:
        """The drafter reads its trees, in its own way; one that is given is within the bounds."""
        if self.tree is not None:
            tree = self.tree if isinstance(self.tree, Tree) else tree_from_paths(self.tree)
            self._check_bounds(refuse, len(tree), tree.depth)

    def drafter(self, model: Any, context: int = 0) -> Any:
        return importlib.import_module(f"tokops.hf.{self.module}").make_drafter(self, model, context)

    def describe(self) -> str:
        source = self.draft if isinstance(self.draft, pathlib.Path) else type(self.draft).__name__
        return f"{type(self).__name__}(draft={source}, verify={self.mode}, nodes={self.nodes})"
