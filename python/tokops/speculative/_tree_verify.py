"""Verification of token trees: exact for every lossless mode, batched, and the same on every device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _exact
from .._check import FLOATS
from .._native import checked, op
from ..sampling import Sampling, draw
from ._tree_build import TreeLinks, random_parents, tree_build
from .verify_arguments import (
    DRAFT_MODES,
    LOSSLESS_MODES,
    NAME,
    RESIDUALS,
    VERIFY_MODES,
    check,
    check_values,
    refuse,
)
from .walk import FaultyRow, Request, Walk

__all__ = ["DRAFT_MODES", "LOSSLESS_MODES", "VERIFY_MODES", "tree_verify"]


@op(
    "tree_verify(str mode, Tensor tokens, Tensor parents, Tensor first_child, Tensor next_sibling, int max_depth, "
    "Tensor? logits, Tensor? probs, Tensor? draft_probs, Tensor? draft_rows, int seed, Tensor stream, "
    "Tensor position, Tensor? n_nodes, bool match_plain, float temperature, int top_k, float top_p, float min_p, "
    "float eps, float delta, Tensor? rho, Tensor? neighbours, int token_offset, str residual) -> "
    "(Tensor accept_len, Tensor accept_node, Tensor out_tokens, Tensor rows_read)"
)
def reference(
    mode, tokens, parents, first_child, next_sibling, max_depth, logits, probs, draft_probs, draft_rows, seed,
    stream, position, n_nodes, match_plain, temperature, top_k, top_p, min_p, eps, delta, rho, neighbours,
    token_offset, residual,
):  # fmt: skip
    """The definition: :class:`tokops.speculative.walk.Walk`, request after request."""
    b, columns = check(
        mode, tokens, parents, first_child, next_sibling, max_depth, logits, probs, draft_probs, draft_rows,
        stream, position, n_nodes, rho, neighbours, token_offset, residual,
    )  # fmt: skip
    target = probs if logits is None else logits
    laws = 0 if draft_probs is None else draft_probs.shape[1]
    trees = check_values(
        mode, tokens, parents, first_child, next_sibling, max_depth, target.shape[2], draft_rows, laws, n_nodes,
        neighbours,
    )  # fmt: skip
    greedy = temperature == 0
    raw = mode == "lantern" and greedy
    settings = (1.0, 0, 1.0, 0.0) if raw else (temperature, top_k, top_p, min_p)
    walks = []
    for i in range(b):
        walk = Walk(
            Request(
                mode=mode,
                tokens=tokens[i].tolist(),
                children=trees[i],
                target=target[i],
                weigh=None if logits is None else lambda row: _exact.weigh(row, *settings),
                draft=None if draft_probs is None else draft_probs[i],
                draft_rows=None if draft_rows is None else draft_rows[i].tolist(),
                random=_exact.Stream(seed, int(stream[i])),
                position=int(position[i]),
                match_plain=match_plain,
                greedy=greedy,
                eps=eps,
                delta=delta,
                rho=None if rho is None else rho[i].tolist(),
                neighbours=neighbours,
                offset=token_offset,
                residual=residual,
            )
        )
        try:
            walk.run()
        except FaultyRow as fault:
            refuse(False, f"{fault.words} (node {fault.node} of tree {i})")
        walks.append(walk)

    def padded(rows):
        return tokens.new_tensor([row + [-1] * (columns - len(row)) for row in rows]).view(b, columns)

    return (
        tokens.new_tensor([len(walk.path) - 1 for walk in walks]),
        padded([walk.path for walk in walks]),
        padded([walk.out for walk in walks]),
        tokens.new_tensor([walk.rows_read for walk in walks]),
    )


@torch.library.register_fake("tokops::tree_verify")
def _(
    mode, tokens, parents, first_child, next_sibling, max_depth, logits, probs, draft_probs, draft_rows, seed,
    stream, position, n_nodes, match_plain, temperature, top_k, top_p, min_p, eps, delta, rho, neighbours,
    token_offset, residual,
):  # fmt: skip
    b, columns = check(
        mode, tokens, parents, first_child, next_sibling, max_depth, logits, probs, draft_probs, draft_rows,
        stream, position, n_nodes, rho, neighbours, token_offset, residual,
    )  # fmt: skip
    return (
        tokens.new_empty(b),
        tokens.new_empty(b, columns),
        tokens.new_empty(b, columns),
        tokens.new_empty(b),
    )


def tree_verify(
    mode: str,
    tokens: Tensor,
    tree: TreeLinks,
    logits: Tensor | None = None,
    probs: Tensor | None = None,
    draft_probs: Tensor | None = None,
    draft_rows: Tensor | None = None,
    seed: int = 0,
    stream: Tensor | None = None,
    position: Tensor | None = None,
    n_nodes: Tensor | None = None,
    match_plain: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    eps: float = 0.09,
    delta: float = 0.3,
    rho: float | Tensor | None = None,
    neighbours: Tensor | None = None,
    token_offset: int = 0,
    residual: str = "moved",
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk down every tree, accept at most one child per level, and decide one more token.

    ================== ================================================================ ======================
    mode               rule                                                             law of the tokens
    ================== ================================================================ ======================
    ``greedy``         the child that is the target's most likely token                 greedy decoding
    ``target_only``    children as given (SpecInfer, EAGLE-2): one coin against the     the target's
                       mass of the children tried so far
    ``rrs``            children drawn i.i.d. from the draft (SpecInfer, 2305.09781)     the target's
    ``rrs_wo``         children drawn without replacement (Sequoia, 2402.12374)         the target's
    ``greedy_plus_one`` all children but the last are the draft's most likely, the last  the target's
                       is drawn from the rest (2502.18779)
    ``kseq``           k i.i.d. drafts, one chain each under the root (SpecTr,          the target's
                       2310.15141); equal tokens survive together
    ``chain_block``    one chain, judged as a whole (2403.10444)                        the target's
    ``typical``        every node by itself against ``min(eps, delta * exp(-H))``       lossy
                       (Medusa, 2401.10774), the longest path, then the most likely
                       token
    ``lantern``        a child borrows its neighbours' mass (LANTERN, 2410.03355)       lossy
    ================== ================================================================ ======================

    "The target's" holds if the children were drawn as the mode says, from exactly the ``draft_probs`` that are passed,
    and chosen without a look at the random numbers of this call. Draws are named by ``seed``, the request's
    ``stream`` and the index of the token that is decided: results do not depend on the batch, and are the same on CPU
    and CUDA. From logits, only rows on the accepted path are read.

    Args:
        mode: see above.
        tokens: ``[B, N]`` int32; node 0 is the last committed token.
        tree: of :func:`tokops.speculative.tree_build`. Siblings are tested in its order. Modes ``target_only``,
            ``rrs_wo``, ``greedy_plus_one`` and ``lantern`` need siblings with distinct tokens.
        logits: ``[B, N, V]`` float32, bfloat16 or float16 rows of the target, NaN counts as -inf; V at most 2^22.
        probs: ``[B, N, V]`` float32 laws of the target instead, normalised.
        draft_probs: ``[B, M, V]`` float32 normalised laws that children were drawn from. ``greedy``, ``target_only``
            and ``typical`` do not look at them; ``lantern`` takes children as given without them.
        draft_rows: ``[B, N]`` int32, for every node the row of ``draft_probs`` it was drawn from; siblings share one.
        seed: 64 bits.
        stream: ``[B]`` int64, the request's; None: 0, 1, 2, ...
        position: ``[B]`` int64, index of the token that is decided at the root; None: 0.
        n_nodes: ``[B]`` int32, nodes of every tree; later ones are padding. None: all N.
        match_plain: for ``target_only``: draw what :func:`tokops.sampling.sample` draws at this seed, stream and
            position, and look for it among the children. The tokens are then those of plain sampling.
        temperature, top_k, top_p, min_p: how logits become the target's law, see :class:`tokops.sampling.Sampling`.
        eps, delta: of ``typical``. For ``lantern``, ``delta`` is the budget: at most 1 it bounds the mass that is
            moved (LANTERN's delta), above 1 it bounds a token's mass by so many times its own (LANTERN++'s lambda).
        rho: for ``kseq``: division factor, a number or ``[B, N]`` float64 by node, instead of the smallest valid one.
        neighbours: for ``lantern``: ``[codes, K]`` int32, nearest codes of every code, itself left out.
        token_offset: for ``lantern``: the token that code 0 is. Tokens that are no code borrow nothing.
        residual: for ``lantern``, after a rejection: ``moved`` takes the draft off the law that was tested (default),
            ``plain`` off the target, ``compat`` as the released code does.

    Returns:
        ``accept_len [B]`` int32, accepted tokens; ``accept_node [B, max_depth + 1]`` int32, the path from node 0 on,
        -1 padded; ``out_tokens [B, max_depth + 1]`` int32, the accepted tokens and the last one, -1 padded.

    Raises:
        RuntimeError: wrong shape, dtype or range. On the CPU, and on CUDA with TOKOPS_CHECK=1 as far as trees go:
            links, tokens, sibling rules. On the CPU also laws of the rows that are read: nothing finite, a sum other
            than 1, a drafted token of probability 0. On CUDA the last token is then -1.
        ValueError: a setting out of range, or one that the mode does not know.

    Example:
        >>> tree = tree_build(torch.tensor([[-1, 0, 0]], dtype=torch.int32))
        >>> tokens = torch.tensor([[5, 1, 2]], dtype=torch.int32)
        >>> tree_verify("greedy", tokens, tree, logits=torch.eye(3)[[2, 0, 1]][None])[2]
        tensor([[2, 1]], dtype=torch.int32)
    """
    _check_settings(mode, probs, match_plain, temperature, top_k, top_p, min_p, eps, delta)
    batch = tokens.shape[0]
    if stream is None:
        stream = torch.arange(batch, device=tokens.device)
    if position is None:
        position = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
    if rho is not None and not isinstance(rho, Tensor):
        rho = torch.full(tokens.shape, float(rho), dtype=torch.float64, device=tokens.device)
    target = probs if logits is None else logits
    if tokens.is_cuda and checked() and target is not None:
        laws = 0 if draft_probs is None else draft_probs.shape[1]
        links = (tree.parents, tree.first_child, tree.next_sibling, tree.max_depth)
        check_values(mode, tokens, *links, target.shape[2], draft_rows, laws, n_nodes, neighbours)
    seed &= (1 << 64) - 1
    return torch.ops.tokops.tree_verify.default(
        mode, tokens, tree.parents, tree.first_child, tree.next_sibling, tree.max_depth, logits, probs, draft_probs,
        draft_rows, seed - (1 << 64) if seed >> 63 else seed, stream, position, n_nodes, match_plain, temperature,
        top_k, top_p, min_p, eps, delta, rho, neighbours, token_offset, residual,
    )[:3]  # fmt: skip


def _check_settings(mode, probs, match_plain, temperature, top_k, top_p, min_p, eps, delta):
    def refuse(wrong, message):
        if wrong:
            raise ValueError(f"tree_verify: {message}")

    Sampling(temperature, top_k, top_p, min_p)
    plain = (temperature, top_k, top_p, min_p) == (1.0, 0, 1.0, 0.0)
    given = probs is not None and mode != "greedy"
    refuse(
        given and not plain and not (mode == "lantern" and temperature == 0),
        "probs are a law already: temperature, top_k, top_p and min_p go with logits",
    )
    refuse(match_plain and mode != "target_only", f"match_plain goes with mode target_only, not with {mode}")
    refuse(not eps >= 0, f"eps must be >= 0, got {eps}")
    refuse(not delta >= 0, f"delta must be >= 0, got {delta}")


def _drawn_tree(gen, b, n, v, mode, rows):
    """Trees whose children are drawn as the mode wants it: parents, tokens, draft rows."""
    if mode == "kseq":
        depth = max(1, (n - 1) // 3)
        parents = [-1, *([0] * 3), *range(1, n - 3)][:n] if depth > 1 else [-1, *([0] * (n - 1))]
        parents = torch.tensor([parents] * b, dtype=torch.int32)
    elif mode == "chain_block":
        parents = torch.arange(-1, n - 1, dtype=torch.int32).expand(b, n).contiguous()
    else:
        parents = random_parents(b, n, gen, 6)
    drawn = draw(rows, n, seed=3, stream=torch.arange(b)[:, None], position=torch.arange(rows.shape[1]),
                 replace=mode in ("rrs", "kseq", "chain_block"))  # fmt: skip
    tokens, draft_rows = torch.zeros(2, b, n, dtype=torch.int32)
    for i in range(b):
        used: dict[int, int] = {}
        for c in range(1, n):
            parent = int(parents[i, c])
            row = 0 if mode == "kseq" and parent == 0 else parent % rows.shape[1]
            ordinal = used.setdefault(parent, 0)
            used[parent] += 1
            draft_rows[i, c] = row
            tokens[i, c] = drawn[i, row, ordinal] if drawn[i, row, ordinal] >= 0 else 0
            if mode == "kseq" and parent:  # deeper tokens depend on their own position
                tokens[i, c] = drawn[i, row, (parent + ordinal) % n]
    return parents, tokens, draft_rows


def _case(gen, mode, b, n, v, given, settings=(1.0, 0, 1.0, 0.0), dtype=torch.float32, ragged=False, **extra):
    rows = torch.softmax(torch.randn(b, max(n // 2, 1), v, generator=gen) * 1.5, -1)
    parents, tokens, draft_rows = _drawn_tree(gen, b, n, v, mode, rows)
    if mode in ("greedy", "target_only", "typical"):
        rows = draft_rows = None
    if extra.pop("undrawn", False):
        rows = draft_rows = None
    tree = tree_build(parents)
    logits = torch.randn(b, n, v, generator=gen) * 1.5
    probs = torch.softmax(logits, -1) if given else None
    numbers = (torch.arange(b) + 7, torch.arange(b) * 100)
    counts = torch.randint(1, n + 1, (b,), generator=gen, dtype=torch.int32) if ragged else None
    defaults = {
        "match_plain": False,
        "eps": 0.09,
        "delta": 0.3,
        "rho": None,
        "neighbours": None,
        "residual": "moved",
    }
    x = {**defaults, **extra}
    return (
        mode, tokens, tree.parents, tree.first_child, tree.next_sibling, tree.max_depth,
        None if given else logits.to(dtype), probs, rows, draft_rows, 0x123456789ABCDEF0, *numbers, counts,
        x["match_plain"], *settings, x["eps"], x["delta"], x["rho"], x["neighbours"], x.get("offset", 0), x["residual"],
    )  # fmt: skip


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the op, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for b, n in ((1, 64), (8, 64)):
            for mode in ("greedy", "target_only"):
                yield NAME, f"{mode} B {b} N {n} V 131072", _case(gen, mode, b, n, 131072, False), {}
        return
    for mode in VERIFY_MODES[:8]:
        for b, n, v in ((4, 1, 5), (7, 8, 8), (4, 20, 300), (2, 12, 5001)):
            for given in (True, False):
                label = f"{mode} B {b} N {n} V {v} from {'probs' if given else 'logits'}"
                yield NAME, label, _case(gen, mode, b, n, v, given, ragged=n == 20), {}
    for dtype in FLOATS:
        for mode in ("greedy", "target_only", "rrs_wo"):
            settings = (0.8, 40, 0.9, 0.01)
            label = f"{mode} {str(dtype)[6:]} with settings"
            yield NAME, label, _case(gen, mode, 2, 20, 300, False, settings, dtype), {}
    yield NAME, "match_plain", _case(gen, "target_only", 9, 20, 60, False, match_plain=True), {}
    yield NAME, "temperature 0", _case(gen, "rrs_wo", 6, 9, 60, False, (0.0, 0, 1.0, 0.0)), {}
    rho = torch.full((6, 16), 3.0, dtype=torch.float64)
    yield NAME, "kseq with rho", _case(gen, "kseq", 6, 16, 8, True, rho=rho), {}
    yield NAME, "typical, low bar", _case(gen, "typical", 3, 20, 8, False, eps=0.02, delta=0.1), {}
    near = torch.stack([torch.randperm(40, generator=gen) for _ in range(40)])
    near = near[near != torch.arange(40)[:, None]].view(40, 39).int()
    for residual in RESIDUALS:
        for delta in (0.0, 0.1, 1.5):
            for undrawn in (False, True):
                extra = {
                    "neighbours": near,
                    "offset": 5,
                    "delta": delta,
                    "residual": residual,
                    "undrawn": undrawn,
                }
                label = f"lantern {residual} {delta} {'given' if undrawn else 'drawn'}"
                yield NAME, label, _case(gen, "lantern", 3, 12, 50, delta == 0.1, **extra), {}
    extra = {"neighbours": near, "offset": 5, "delta": 0.2, "undrawn": True}
    yield NAME, "lantern greedy", _case(gen, "lantern", 6, 12, 50, False, (0.0, 0, 1.0, 0.0), **extra), {}
    yield NAME, "no trees", _case(gen, "greedy", 0, 3, 5, False), {}
