"""What tree_verify takes: its modes, and the checks of its arguments."""

import torch

from .._check import FLOATS, check_shape, check_tensor, refuse_unless

#: Every mode of :func:`tree_verify`.
VERIFY_MODES = (
    "greedy", "target_only", "rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block", "typical", "lantern",
)  # fmt: skip
#: Modes whose tokens follow the target's law (greedy: its most likely tokens).
LOSSLESS_MODES = VERIFY_MODES[:7]
#: Modes that need to know the law the children were drawn from.
DRAFT_MODES = ("rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block")
_DISTINCT = ("target_only", "rrs_wo", "greedy_plus_one", "lantern")
RESIDUALS = ("moved", "plain", "compat")
_MOST = 1 << 22
NAME = "tree_verify"


def refuse(ok, message):
    refuse_unless(ok, NAME, message)


def check(
    mode, tokens, parents, first_child, next_sibling, max_depth, logits, probs, draft_probs, draft_rows,
    stream, position, n_nodes, rho, neighbours, token_offset, residual,
):  # fmt: skip
    refuse(mode in VERIFY_MODES, f"mode must be one of {', '.join(VERIFY_MODES)}, got {mode}")
    check_tensor(NAME, "tokens", tokens, 2, (torch.int32,), tokens)
    b, n = tokens.shape
    refuse(n >= 1, "a tree must have a root")
    refuse(0 <= max_depth < n, f"max_depth must be 0..{n - 1}, got {max_depth}")
    for name, x in (("parents", parents), ("first_child", first_child), ("next_sibling", next_sibling)):
        check_tensor(NAME, name, x, 2, (torch.int32,), tokens)
        check_shape(NAME, name, x, (b, n), "[B, N]")
    for name, x, dtype in (
        ("stream", stream, torch.int64),
        ("position", position, torch.int64),
        ("n_nodes", n_nodes, torch.int32),
    ):
        if x is not None:
            check_tensor(NAME, name, x, 1, (dtype,), tokens)
            check_shape(NAME, name, x, (b,), "[B]")
    refuse((logits is None) != (probs is None), "one of logits and probs must be given")
    name, target = ("probs", probs) if logits is None else ("logits", logits)
    check_tensor(NAME, name, target, 3, FLOATS if logits is not None else (torch.float32,), tokens)
    v = target.shape[2]
    check_shape(NAME, name, target, (b, n, v), "[B, N, V]")
    refuse(1 <= v <= _MOST, f"the vocabulary must be 1..{_MOST} tokens, got {v}")
    _check_draft(mode, tokens, draft_probs, draft_rows, v)
    if rho is not None:
        refuse(mode == "kseq", f"mode {mode} takes no rho")
        check_tensor(NAME, "rho", rho, 2, (torch.float64,), tokens)
        check_shape(NAME, "rho", rho, (b, n), "[B, N]")
    words = "takes no" if neighbours is not None else "needs"
    refuse((neighbours is not None) == (mode == "lantern"), f"mode {mode} {words} neighbours")
    refuse(residual in RESIDUALS, f"residual must be one of {', '.join(RESIDUALS)}, got {residual}")
    if neighbours is not None:
        check_tensor(NAME, "neighbours", neighbours, 2, (torch.int32,), tokens)
        codes = len(neighbours)
        refuse(
            token_offset >= 0 and token_offset + codes <= v,
            f"token_offset {token_offset} and {codes} codes leave the vocabulary of {v}",
        )
    return b, max_depth + 1


def _check_draft(mode, tokens, draft_probs, draft_rows, v):
    refuse((draft_probs is None) == (draft_rows is None), "draft_probs and draft_rows go together")
    given = draft_probs is not None
    refuse(given or mode not in DRAFT_MODES, f"mode {mode} needs draft_probs and draft_rows")
    if given:
        check_tensor(NAME, "draft_probs", draft_probs, 3, (torch.float32,), tokens)
        b, n = tokens.shape
        check_shape(NAME, "draft_probs", draft_probs, (b, draft_probs.shape[1], v), "[B, M, V]")
        check_tensor(NAME, "draft_rows", draft_rows, 2, (torch.int32,), tokens)
        check_shape(NAME, "draft_rows", draft_rows, (b, n), "[B, N]")


def _children(b, first, following, count, n):
    """Children of every node of one tree, those before ``count``."""
    found = []
    for i in range(n):
        children, c = [], _link(b, i, first[i], n)
        while c != -1:
            if c < count:
                children.append(c)
            c = _link(b, c, following[c], n)
        found.append(children if i < count else [])
    return found


def _link(b, i, to, n):
    refuse(to == -1 or i < to < n, f"link {to} of node {i} of tree {b} does not lead to a later node")
    return to


def _depth(b, i, parents):
    """Depth of a node; None for padding."""
    depth, a = 0, i
    while a > 0:
        up = parents[a]
        if up < 0:
            return None
        refuse(up < a, f"parents must stand before their children, node {a} of tree {b} has parent {up}")
        depth, a = depth + 1, up
    return depth


def check_values(
    mode, tokens, parents, first_child, next_sibling, max_depth, v, draft_rows, laws, n_nodes, neighbours
):
    """Children of every node, once everything that is read of the trees is in range."""
    n = tokens.shape[1]
    counts = [n] * len(tokens) if n_nodes is None else n_nodes.tolist()
    lists = [x.tolist() for x in (tokens, parents, first_child, next_sibling)]
    rows = None if draft_rows is None else draft_rows.tolist()
    trees = []
    for b, (tok, par, first, following) in enumerate(zip(*lists, strict=True)):
        refuse(1 <= counts[b] <= n, f"n_nodes must be 1..{n}, got {counts[b]} for tree {b}")
        children = _children(b, first, following, counts[b], n)
        for i in range(counts[b]):
            depth = _depth(b, i, par)
            if depth is None:
                continue
            refuse(
                i == 0 or 0 <= tok[i] < v, f"tokens must be 0..{v - 1}, got {tok[i]} at node {i} of tree {b}"
            )
            refuse(
                depth <= max_depth, f"node {i} of tree {b} is deeper than {max_depth}, the tree's max_depth"
            )
            for c in children[i]:
                refuse(
                    par[c] == i,
                    f"links and parents disagree, node {c} of tree {b} stands below {i} and has parent {par[c]}",
                )
            _check_siblings(mode, b, i, children[i], tok)
            for c in children[i] if rows is not None else ():
                refuse(
                    0 <= rows[b][c] < laws,
                    f"draft_rows must be 0..{laws - 1}, got {rows[b][c]} at node {c} of tree {b}",
                )
                refuse(
                    rows[b][c] == rows[b][children[i][0]],
                    f"draft_rows of siblings must be the same, those of the children of node {i} of tree {b} are not",
                )
        trees.append(children)
    if neighbours is not None and neighbours.numel():
        wrong = neighbours[(neighbours < 0) | (neighbours >= len(neighbours))]
        refuse(
            not wrong.numel(),
            f"neighbours must be codes 0..{len(neighbours) - 1}, got {int(wrong[0]) if wrong.numel() else 0}",
        )
    return trees


def _check_siblings(mode, b, i, children, tok):
    where = f"node {i} of tree {b} has"
    if mode in _DISTINCT:
        seen = set()
        for c in children:
            refuse(
                tok[c] not in seen,
                f"mode {mode} needs siblings with distinct tokens, {where} two with token {tok[c]}",
            )
            seen.add(tok[c])
    if mode == "chain_block":
        refuse(len(children) <= 1, f"mode chain_block needs chains, {where} {len(children)} children")
    if mode == "kseq":
        needs = "chains below the root" if i else "at most 64 drafts"
        refuse(
            len(children) <= (1 if i else 64), f"mode kseq needs {needs}, {where} {len(children)} children"
        )
