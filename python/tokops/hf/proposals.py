"""What drafters share when they build proposals: static trees whose nodes name a rank."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..speculative.trees import Tree, tree_from_paths
from .drafting import Proposal, Session

__all__ = [
    "as_tree",
    "deepest_useful",
    "keep_nodes",
    "limit_depth",
    "pad_proposal",
    "root_alone",
    "tree_tokens",
    "width_of",
]


def as_tree(tree: Any) -> Tree:
    """A :class:`tokops.speculative.Tree` as it is; rank paths through :func:`tokops.speculative.tree_from_paths`."""
    return tree if isinstance(tree, Tree) else tree_from_paths(tree)


@functools.lru_cache(maxsize=256)
def limit_depth(tree: Tree, depth: int) -> Tree:
    """The nodes of at most this depth."""
    if depth >= tree.depth:
        return tree
    return keep_nodes(tree, [node for node, d in enumerate(tree.depths) if d <= depth])


def keep_nodes(tree: Tree, keep: Sequence[int]) -> Tree:
    """Some nodes of a tree, ascending, with all their ancestors among them."""
    new = {-1: -1} | {node: i for i, node in enumerate(keep)}
    return Tree(
        tuple(new[tree.parents[node]] for node in keep),
        tuple(tree.ranks[node] for node in keep),
        tuple(tree.depths[node] for node in keep),
    )


def width_of(tree: Tree) -> int:
    """Candidates that a level needs: 1 + the largest rank."""
    return 1 + max(tree.ranks[1:], default=-1)


def deepest_useful(session: Session) -> int:
    """The depth beyond which no active sequence has room: a tree of depth D gives up to D + 1 tokens."""
    rooms = [room for room, active in zip(session.room, session.active, strict=True) if active]
    return max(max(rooms, default=1) - 1, 0)


def root_alone(session: Session) -> Proposal:
    """Nothing but the roots."""
    roots = torch.tensor(session.roots, dtype=torch.int32, device=session.device)[:, None]
    return Proposal(roots, torch.full_like(roots, -1), 1)


def tree_tokens(tree: Tree, roots: Tensor, candidates: Tensor) -> Tensor:
    """The tokens of a tree's nodes.

    Args:
        tree: at most as deep and as wide as there are candidates.
        roots: ``[B]`` ids.
        candidates: ``[B, levels, K]`` ids; a node of rank r at depth l is ``candidates[:, l - 1, r]``.

    Returns:
        ``[B, N]`` int32.
    """
    levels = torch.tensor(tree.depths[1:], dtype=torch.int64, device=roots.device) - 1
    ranks = torch.tensor(tree.ranks[1:], dtype=torch.int64, device=roots.device)
    return torch.cat([roots[:, None], candidates[:, levels, ranks]], 1).int()


def pad_proposal(
    session: Session,
    trees: Sequence[Tree],
    tokens: Sequence[Tensor],
    draft_probs: Tensor,
    draft_rows: Sequence[Sequence[int]],
) -> Proposal:
    """A proposal of trees of different sizes.

    Args:
        trees: per sequence.
        tokens: per sequence, ``[n]`` ids of its tree's nodes.
        draft_probs, draft_rows: see :class:`Proposal`; the rows per sequence and node.
    """

    def padded(rows, fill):
        rows = [torch.as_tensor(row, dtype=torch.int32, device=session.device) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    sizes = torch.tensor([len(tree) for tree in trees], dtype=torch.int32, device=session.device)
    return Proposal(
        padded(tokens, 0),
        padded([tree.parents for tree in trees], -1),
        int(sizes.max()),
        sizes,
        draft_probs,
        padded(draft_rows, 0),
    )
