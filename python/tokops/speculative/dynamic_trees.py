"""Draft trees chosen anew at every step from the drafter's own probabilities, after EAGLE-2."""

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import checked
from ..attention import topk_positions

#: Verification modes that stay exact whatever the choice of children looked at.
DYNAMIC_VERIFY = ("target_only", "greedy")


def check_dynamic(verify: str) -> None:
    """Refuse a verification mode under which re-ranked trees would change what is sampled.

    Modes that use draft probabilities are exact for children drawn from the stated law. Keeping the drawn children
    of best score is another law.

    Args:
        verify: a mode of ``tree_verify``.

    Raises:
        ValueError: any mode but ``target_only`` and ``greedy``.
    """
    if verify not in DYNAMIC_VERIFY:
        raise ValueError(
            "a dynamic tree keeps the children of best score and is exact only under "
            f"verify={' or '.join(map(repr, DYNAMIC_VERIFY))}, got {verify!r}"
        )


def _check(scores, tokens, parents, root, nodes, n_max):
    name = "dynamic_tree"
    check_tensor(name, "scores", scores, 2, (torch.float32,), scores)
    for label, x in (("tokens", tokens), ("parents", parents)):
        check_tensor(name, label, x, 2, (torch.int32,), scores)
        check_shape(name, label, x, scores.shape, "[B, H]")
    check_tensor(name, "root", root, 1, (torch.int32,), scores)
    check_shape(name, "root", root, scores.shape[:1], "[B]")
    if isinstance(nodes, Tensor):
        check_tensor(name, "nodes", nodes, 1, (torch.int32,), scores)
        check_shape(name, "nodes", nodes, scores.shape[:1], "[B]")
    refuse_unless(n_max >= 1, name, f"nodes must be at least 1, got {n_max}")


def _check_values(scores, parents, nodes):
    name = "dynamic_tree"
    ids = torch.arange(scores.shape[1], device=scores.device)
    refuse_unless(
        bool(((parents >= -1) & (parents < ids)).all()),
        name,
        "parents must be -1 or an earlier id of the history",
    )
    above = scores.gather(1, parents.clamp_min(0).long())
    refuse_unless(
        bool(((parents < 0) | (scores <= above) | ~(scores > float("-inf"))).all()),  # the last: also NaN
        name,
        "scores must be cumulative log-probabilities: none larger than its parent's",
    )
    if isinstance(nodes, Tensor):
        refuse_unless(bool((nodes >= 1).all()), name, f"nodes must be at least 1, got {nodes.tolist()}")


def dynamic_tree(
    scores: Tensor,
    tokens: Tensor,
    parents: Tensor,
    root: Tensor,
    nodes: int | Tensor,
    *,
    n_max: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of a drafting history as a tree, without a host synchronisation.

    Keeps the candidates of largest score, among equal scores those of lower id, in ascending order of id. As a child
    scores at most what its parent does and has a larger id, the kept ones are closed under parents, also where a
    probability is exactly 1. Candidates of NaN or -inf are never kept, nor are theirs.

    Legal under ``target_only`` and ``greedy`` verification alone, see :func:`check_dynamic`.

    Args:
        scores: ``[B, H]`` float32 cumulative log-probabilities: a candidate's is its parent's plus log p, log p <= 0.
        tokens: ``[B, H]`` int32.
        parents: ``[B, H]`` int32, the id (column) of every candidate's parent, an earlier one; -1 for the root.
        root: ``[B]`` int32, the last committed tokens.
        nodes: the most nodes of a tree, root included: an int, or ``[B]`` int32.
        n_max: columns N of the result; None: ``nodes``, or the largest of them (read on the host).

    Returns:
        ``tokens [B, N]`` int32 with 0 in padding, ``parents [B, N]`` int32 with -1 for the root and for padding, and
        ``n_nodes [B]`` int32.

    Raises:
        RuntimeError: wrong shape, dtype or device, nodes < 1; and, on the CPU always and on CUDA with
            TOKOPS_CHECK=1, parents that are no earlier ids, or a child that scores above its parent.

    Example:
        >>> i = lambda *x: torch.tensor([x], dtype=torch.int32)
        >>> dynamic_tree(torch.tensor([[-1.0, -2.0, -1.5]]), i(7, 8, 9), i(-1, -1, 0), i(5)[0], 3)[1]
        tensor([[-1,  0,  1]], dtype=torch.int32)

    Source: EAGLE-2 (arXiv 2406.16858).
    """
    if n_max is None:
        n_max = nodes if isinstance(nodes, int) else int(nodes.max())
    _check(scores, tokens, parents, root, nodes, n_max)
    if checked() or not scores.is_cuda:
        _check_values(scores, parents, nodes)
    keep = nodes - 1 if isinstance(nodes, Tensor) else torch.full_like(root, min(nodes, n_max) - 1)
    ids, counts = topk_positions(scores.contiguous(), None, keep, k_max=n_max - 1)
    if scores.shape[1] == 0:
        ids = ids.new_full((len(scores), n_max - 1), -1)
        return _rooted(root, torch.zeros_like(ids)), _rooted(torch.full_like(root, -1), ids), counts + 1
    real, columns = ids >= 0, ids.clamp_min(0).long()
    above = parents.gather(1, columns)
    # Padding sorts behind all ids; the place of an id among the kept ones is its node but for the root.
    kept = torch.where(real, ids, scores.shape[1])
    node = torch.searchsorted(kept, above, out_int32=True) + 1
    node = torch.where(real, torch.where(above < 0, 0, node), -1)
    token = torch.where(real, tokens.gather(1, columns), 0)
    return _rooted(root, token), _rooted(torch.full_like(root, -1), node), counts + 1


def _rooted(first: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([first[:, None], rest], 1).int()


class DraftPool:
    """The history of one EAGLE-2 draft: expand the best nodes of a level, again and again, then pick the tree.

    Level 0 holds the ``branch`` best children of the root; each later level the ``branch`` best children of each of
    the ``branch`` best candidates of the level before. Frontiers are in ascending order of id.

    Args:
        root: ``[B]`` int32, the last committed tokens.
        branch: children per node and nodes per level.

    Raises:
        ValueError: branch < 1.

    Example: ``pool = DraftPool(root, 10)``; per level ``ids = pool.expand(tokens, log_probs)`` with the drafter's
    best children of the frontier; then ``pool.tree(60)``.
    """

    def __init__(self, root: Tensor, branch: int = 10):
        if branch < 1:
            raise ValueError(f"DraftPool: branch must be at least 1, got {branch}")
        self.root, self.branch = root, branch
        empty = root.new_empty(len(root), 0)
        self.scores = empty.float()
        self.tokens = self.parents = empty
        #: ``[B, F]`` int32 ids of the candidates to expand next, -1 where there are fewer; at first -1 is the root.
        self.frontier = root.new_full((len(root), 1), -1)

    def expand(self, tokens: Tensor, log_probs: Tensor) -> Tensor:
        """Add the children of the frontier.

        Args:
            tokens: ``[B, F, K]`` int32, K <= branch candidates of every node of the frontier, best first.
            log_probs: ``[B, F, K]`` float32, of the drafter. What rounding put above 0 counts as 0; NaN and -inf are
                never kept.

        Returns:
            The next frontier, ``[B, branch]`` int32 ids, ascending, -1 padded.

        Raises:
            RuntimeError: wrong shape or dtype.
        """
        first, width = self.scores.shape[1] == 0, self.frontier.shape[1]
        name = "DraftPool.expand"
        check_tensor(name, "tokens", tokens, 3, (torch.int32,), self.root)
        check_tensor(name, "log_probs", log_probs, 3, (torch.float32,), self.root)
        check_shape(name, "tokens", tokens, (len(self.root), width, tokens.shape[2]), "[B, frontier, K]")
        check_shape(name, "log_probs", log_probs, tokens.shape, "tokens' shape")
        refuse_unless(
            1 <= tokens.shape[2] <= self.branch, name, f"K must be 1..{self.branch}, got {tokens.shape[2]}"
        )
        begin = self.scores.shape[1]
        if first:
            above = torch.zeros_like(self.frontier, dtype=torch.float32)
        else:
            above = self.scores.gather(1, self.frontier.clamp_min(0).long())
            above = above.masked_fill(self.frontier < 0, float("-inf"))
        level = (above[..., None] + log_probs.clamp_max(0.0)).flatten(1)
        parents = self.frontier[..., None].expand_as(tokens).flatten(1)
        self.scores = torch.cat([self.scores, level], 1)
        self.tokens = torch.cat([self.tokens, tokens.flatten(1)], 1)
        self.parents = torch.cat([self.parents, parents], 1)
        best = topk_positions(level, None, self.branch)[0]
        self.frontier = torch.where(best >= 0, best + begin, -1)
        return self.frontier

    def acceptance(self) -> Tensor:
        """``[B, H]`` cumulative probabilities, descending: what :func:`~tokops.speculative.dynamic_size` takes."""
        return self.scores.nan_to_num(nan=float("-inf")).exp().sort(-1, descending=True).values

    def tree(self, nodes: int | Tensor, n_max: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`dynamic_tree` of everything expanded so far."""
        return dynamic_tree(self.scores, self.tokens, self.parents, self.root, nodes, n_max=n_max)
