"""Token trees: from the parent of every node to links, depths and ancestor words."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["Tree", "parents_from_eagle", "retrieve_index", "tree_build"]

_MOST = 1024


class Tree(NamedTuple):
    """Trees of a batch. Node 0 is the root, the last committed token; a parent stands before its children.

    Attributes:
        parents: ``[B, N]`` int32; -1 at the root and at padding.
        first_child, next_sibling: ``[B, N]`` int32 links, -1 where there is none. Siblings are in ascending order,
            which is the order they are tested in.
        depth: ``[B, N]`` int32, 0 at the root and at padding.
        ancestors: ``[B, N, ceil(N / 64)]`` int64 words of 64 bits: bit j of row i says that node j is i or above it.
        max_depth: a depth that no node exceeds.
    """

    parents: Tensor
    first_child: Tensor
    next_sibling: Tensor
    depth: Tensor
    ancestors: Tensor
    max_depth: int


def _check(parents):
    check_tensor("tree_build", "parents", parents, 2, (torch.int32,), parents)
    n = parents.shape[1]
    refuse_unless(1 <= n <= _MOST, "tree_build", f"a tree must have 1..{_MOST} nodes, got {n}")


def _check_values(parents):
    node = torch.arange(parents.shape[1], device=parents.device).clamp_min(0)
    wrong = (parents < -1) | (parents >= node)
    if bool(wrong.any()):
        b, i = wrong.nonzero()[0].tolist()
        refuse_unless(
            False,
            "tree_build",
            "parents must be -1 at the root and, further on, -1 (padding) or an earlier node, got "
            f"{int(parents[b, i])} at node {i} of tree {b}",
        )


def _empty(parents):
    b, n = parents.shape
    ints = [parents.new_empty(b, n) for _ in range(3)]
    return (*ints, parents.new_empty((b, n, -(-n // 64)), dtype=torch.int64))


@op("tree_build(Tensor parents) -> (Tensor first_child, Tensor next_sibling, Tensor depth, Tensor ancestors)")
def reference(parents):
    """The definition: a matrix of who is above whom, squared until nothing changes."""
    _check(parents)
    _check_values(parents)
    n = parents.shape[1]
    node = torch.arange(n, device=parents.device)
    child = parents.long()[:, :, None] == node  # [B, i, j]: j is the parent of i
    above = child | torch.eye(n, dtype=torch.bool, device=parents.device)
    for _ in range(n.bit_length()):
        above = (above.float() @ above.float()) > 0
    depth = above.sum(-1).int() - 1
    first = torch.where(child.any(1), child.int().argmax(1), -1).int()
    same = (parents[:, :, None] == parents[:, None]) & (parents[:, :, None] >= 0)
    later = same & (node > node[:, None])
    following = torch.where(later.any(-1), later.int().argmax(-1), -1).int()
    bits = torch.nn.functional.pad(above, (0, -n % 64)).unflatten(-1, (-1, 64)).long()
    words = (bits << torch.arange(64, device=parents.device)).sum(-1)
    return first, following, depth, words


@torch.library.register_fake("tokops::tree_build")
def _(parents):
    _check(parents)
    return _empty(parents)


def tree_build(parents: Tensor, *, max_depth: int | None = None) -> Tree:
    """Link the nodes of draft trees (layouts: SpecInfer, Medusa; arXiv 2305.09781, 2401.10774).

    Args:
        parents: ``[B, N]`` int32, N at most 1024: ``parents[:, 0] = -1``, ``parents[:, i] < i``; a -1 further on marks
            a row of padding, which is alone and no node's child.
        max_depth: a depth that no node exceeds, which decides how wide results of
            :func:`tokops.speculative.tree_verify` are. None: the deepest node's on the CPU, N - 1 on CUDA, where
            looking would cost a synchronisation.

    Raises:
        RuntimeError: wrong shape or dtype; parents that do not stand before their children, or nodes deeper than
            max_depth (values: on the CPU, and on CUDA with TOKOPS_CHECK=1).

    Example:
        >>> tree_build(torch.tensor([[-1, 0, 0, 1]], dtype=torch.int32)).depth
        tensor([[0, 1, 1, 2]], dtype=torch.int32)
    """
    looks = not parents.is_cuda or checked()
    if parents.is_cuda and looks:
        _check(parents)
        _check_values(parents)
    links = torch.ops.tokops.tree_build.default(parents)
    deepest = int(links[2].max()) if looks and parents.numel() else parents.shape[1] - 1
    if max_depth is not None:
        refuse_unless(
            not looks or deepest <= max_depth,
            "tree_build",
            f"no node may be deeper than max_depth {max_depth}, got one of depth {deepest}",
        )
        deepest = max_depth
    return Tree(parents, *links, deepest)


def parents_from_eagle(parent_list: Tensor, selected_index: Tensor, branch: int) -> Tensor:
    """Parents of the trees that EAGLE-style drafters describe by their candidate history.

    Args:
        parent_list: ``[B, 1 + branch * (D - 1)]`` ids, in the history, of the nodes that were expanded.
        selected_index: ``[B, N - 1]`` ids of the kept candidates, ascending: the first ``branch`` are the root's
            children, then ``branch`` candidates for every expanded node.
        branch: candidates per expanded node.

    Returns:
        ``[B, N]`` int32. A candidate whose parent was not kept is padding (-1), and so is all below it.

    Raises:
        RuntimeError: a branch below 1, or lists of different batches.
    """
    name = "parents_from_eagle"
    refuse_unless(branch >= 1, name, f"branch must be at least 1, got {branch}")
    refuse_unless(
        parent_list.dim() == selected_index.dim() == 2 and len(parent_list) == len(selected_index),
        name,
        f"parent_list and selected_index must be [B, ...], got {list(parent_list.shape)} and "
        f"{list(selected_index.shape)}",
    )
    selected = selected_index.long().contiguous()
    group = selected // branch
    top = group == 0
    known = group < parent_list.shape[1]
    parent_id = parent_list.long().gather(1, torch.where(known, group, 0))
    place = torch.searchsorted(selected, parent_id)
    found = known & (place < selected.shape[1])
    found &= selected.gather(1, place.clamp_max(max(selected.shape[1] - 1, 0))) == parent_id
    parents = torch.where(top, 0, torch.where(found, place + 1, -1)).int()
    parents = torch.nn.functional.pad(parents, (1, 0), value=-1)
    for _ in range(parents.shape[1]):  # what hangs under padding is padding
        orphan = (parents > 0) & (parents.gather(1, parents.long().clamp_min(0)) < 0)
        if not bool(orphan.any()):
            break
        parents = torch.where(orphan, -1, parents)
    return parents


def retrieve_index(tree: Tree) -> Tensor:
    """Paths from the root to every leaf, as Medusa and EAGLE have them: ``[B, leaves, D + 1]`` int32, -1 padded.

    Args:
        tree: trees of a batch; padding has no row. Rows are in the order of the leaves' numbers.
    """
    parents = tree.parents.cpu().tolist()
    paths = []
    for row in parents:
        inner = set(row)
        leaves = [i for i in range(len(row)) if i not in inner and (i == 0 or row[i] >= 0)]
        found = []
        for leaf in leaves:
            path = []
            while leaf >= 0:
                path.append(leaf)
                leaf = row[leaf]
            found.append(path[::-1])
        paths.append(found)
    width = max((len(path) for found in paths for path in found), default=1)
    height = max((len(found) for found in paths), default=0)
    out = torch.full((len(paths), height, width), -1, dtype=torch.int32)
    for b, found in enumerate(paths):
        for r, path in enumerate(found):
            out[b, r, : len(path)] = torch.tensor(path, dtype=torch.int32)
    return out.to(tree.parents.device)


def random_parents(batch: int, nodes: int, gen: torch.Generator, reach: int = 1 << 30) -> Tensor:
    """Random trees ``[batch, nodes]``, each node's parent one of the ``reach`` nodes before it."""
    rows = []
    for _ in range(batch):
        pick = [int(torch.randint(max(0, i - reach), i, (), generator=gen)) for i in range(1, nodes)]
        rows.append([-1, *pick])
    return torch.tensor(rows, dtype=torch.int32).view(batch, nodes)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        yield "tree_build", "B 32 N 64", (random_parents(32, 64, gen),), {}
        return
    known = torch.tensor([[-1, 0, 0, 0, 1, 1, 2, 4]], dtype=torch.int32)
    yield "tree_build", "the sheet's tree", (known,), {}
    for b, n, reach in (
        (1, 1, 1),
        (2, 2, 9),
        (3, 64, 9),
        (2, 65, 200),
        (2, 130, 1),
        (1, 256, 20),
        (1, 1024, 40),
    ):
        parents = random_parents(b, n, gen, reach)
        yield "tree_build", f"B {b} N {n} reach {reach}", (parents,), {}
        padded = parents.clone()
        padded[:, n // 2 + 1 :] = -1
        yield "tree_build", f"B {b} N {n} reach {reach}, padded", (padded,), {}
    yield "tree_build", "no trees", (torch.zeros(0, 3, dtype=torch.int32),), {}
