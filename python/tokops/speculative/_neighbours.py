"""Neighbourhoods of a codebook for LANTERN: the table, the mass a token may borrow, and what that does to a law."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._exact import ONE, fixed

__all__ = ["LanternLaw", "lantern_mass", "lantern_tv", "neighbour_table"]

#: Numbers that a tile of distances or of laws holds.
_TILE = 1 << 22
_LAWS = (torch.float32, torch.float64)
_RESIDUALS = ("moved", "plain", "compat")


def neighbour_table(codebook: Tensor, k: int, *, normalise: bool, alive: Tensor | None = None) -> Tensor:
    """The k nearest codes of every code, nearest first: what mode ``lantern`` of :func:`tree_verify` reads.

    Distances are Euclidean, summed up in float64 pair by pair, so that equal codes are equally far from every other.
    Equally distant codes come in the order of their ids. A tile of rows is held at a time, never the whole matrix of
    distances; the work is Vc^2 d, once per codebook.

    Args:
        codebook: ``[Vc, d]`` float32, bfloat16, float16 or float64, the vectors that the quantiser compares with.
        k: neighbours per code, at least 1. Where fewer others are left, the table has so many columns.
        normalise: whether the quantiser divides vectors by their norm when it is used (LlamaGen's does). The table is
            wrong if this is, so it has no default.
        alive: ``[Vc]`` bool, codes that the quantiser ever uses; the others are nobody's neighbours, since they
            would take columns for no probability. None: all. At least two.

    Returns:
        ``[Vc, min(k, codes alive - 1)]`` int32 on the codebook's device. No row holds its own code.

    Raises:
        RuntimeError: wrong rank, shape, dtype or device, fewer than two codes, a number that is not finite, k below 1.

    Source: LANTERN (Jang et al., ICLR 2025, arXiv 2410.03355).

    >>> import torch, tokops
    >>> codes = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    >>> tokops.speculative.neighbour_table(codes, 2, normalise=False).tolist()
    [[1, 2], [0, 2], [3, 1], [2, 1]]
    """
    name = "neighbour_table"
    check_tensor(
        name, "codebook", codebook, 2, (torch.float32, torch.bfloat16, torch.float16, torch.float64), codebook
    )
    size = len(codebook)
    refuse_unless(size >= 2, name, f"codebook must have at least 2 codes, got {size}")
    refuse_unless(bool(codebook.isfinite().all()), name, "codebook must be finite, got NaN or infinity")
    refuse_unless(k >= 1, name, f"k must be at least 1, got {k}")
    living = size
    if alive is not None:
        check_tensor(name, "alive", alive, 1, (torch.bool,), codebook)
        check_shape(name, "alive", alive, (size,), "[Vc]")
        living = int(alive.sum())
        refuse_unless(living >= 2, name, f"alive must leave at least 2 codes, got {living}")
    width = min(k, living - 1)
    points = codebook.double()
    if normalise:
        points = torch.nn.functional.normalize(points, dim=1)
    table = torch.empty(size, width, dtype=torch.int32, device=codebook.device)
    rows = max(1, _TILE // size)
    for first in range(0, size, rows):
        mine = points[first : first + rows]
        apart = torch.cdist(mine, points, compute_mode="donot_use_mm_for_euclid_dist")
        if alive is not None:
            apart.masked_fill_(~alive, torch.inf)
        at = torch.arange(len(mine), device=points.device)
        apart[at, at + first] = torch.inf
        table[first : first + rows] = _nearest(apart, width)
    return table


def _nearest(apart: Tensor, count: int) -> Tensor:
    """Columns of the ``count`` smallest entries of every row in rising order, equal ones by column."""
    bar = apart.kthvalue(count, dim=1, keepdim=True).values
    closer, level = apart < bar, apart == bar
    room = count - closer.sum(1, keepdim=True)
    kept = closer | (level & (level.cumsum(1) <= room))
    columns = kept.nonzero()[:, 1].view(len(apart), count)
    order = apart.gather(1, columns).sort(stable=True, dim=1).indices
    return columns.gather(1, order).int()


def _check_budget(name, delta, lam):
    refuse_unless(bool(0 <= delta <= 1), name, f"delta must be 0..1, got {delta}")
    refuse_unless(lam is None or bool(lam >= 1), name, f"lam must be at least 1, got {lam}")


def _check_table(name, neighbours, token_offset, like, vocabulary):
    check_tensor(name, "neighbours", neighbours, 2, (torch.int32,), like)
    codes = len(neighbours)
    refuse_unless(
        token_offset >= 0 and token_offset + codes <= vocabulary,
        name,
        f"token_offset {token_offset} and {codes} codes leave the vocabulary of {vocabulary}",
    )
    wrong = neighbours[(neighbours < 0) | (neighbours >= codes)]
    refuse_unless(
        not wrong.numel(), name, f"neighbours must be codes 0..{codes - 1}, got {wrong[:8].tolist()}"
    )


def lantern_mass(
    probs: Tensor,
    tokens: Tensor,
    neighbours: Tensor,
    *,
    delta: float = 0.1,
    lam: float | None = None,
    token_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """The mass that tokens may borrow of their neighbours, as :func:`tree_verify` computes it.

    Of a token's neighbours the nearest ones lend all they have, as many as stay within the budget together. This is
    also the total variation between the target's law and the one a token is tested against.

    Args:
        probs: ``[R, V]`` float32 or float64, laws of the target; they are cut to multiples of 2^-40.
        tokens: ``[R]`` or ``[R, n]`` int64 or int32, each 0..V - 1.
        neighbours: ``[Vc, K]`` int32, of :func:`neighbour_table`.
        delta: the budget, 0..1 (LANTERN).
        lam: instead of ``delta``: the budget is so many times the token's own probability, less itself; at least 1
            (LANTERN++, arXiv 2502.06352).
        token_offset: the token that code 0 is. Tokens that are no code borrow nothing.

    Returns:
        ``mass`` float64 and ``count`` int64, both shaped like ``tokens``: what is borrowed, and of how many.

    Raises:
        RuntimeError: wrong rank, shape, dtype, device or range.
    """
    name = "lantern_mass"
    check_tensor(name, "probs", probs, 2, _LAWS, probs)
    check_tensor(name, "tokens", tokens, (1, 2), (torch.int64, torch.int32), probs)
    rows, vocabulary = probs.shape
    check_shape(name, "tokens", tokens, (rows, *tokens.shape[1:]), "[R] or [R, n]")
    _check_budget(name, delta, lam)
    _check_table(name, neighbours, token_offset, probs, vocabulary)
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    refuse_unless(not wrong.numel(), name, f"tokens must be 0..{vocabulary - 1}, got {wrong[:8].tolist()}")
    given = tokens.long().view(rows, -1)
    counts = fixed(probs)
    own = counts.gather(1, given)
    budget = (lam - 1) * own.double() if lam is not None else delta * counts.sum(1, keepdim=True).double()
    code = given - token_offset
    inside = (code >= 0) & (code < len(neighbours))
    near = neighbours[code.clamp(0, len(neighbours) - 1)].long() + token_offset
    sums = counts.gather(1, near.flatten(1)).view(near.shape).cumsum(-1)
    fits = (sums <= budget.expand_as(own).long()[..., None]) & inside[..., None]
    mass = torch.where(fits, sums, 0).amax(-1) if near.shape[-1] else torch.zeros_like(own)
    return (mass.double() / ONE).view(tokens.shape), fits.sum(-1).view(tokens.shape)


@dataclass(frozen=True)
class LanternLaw:
    """What LANTERN makes of one level with one draft.

    Attributes:
        law: ``[..., V]`` float64, of the token that is emitted.
        accepted: ``[...]``, the chance that it is the draft.
        tv: ``[...]``, exact total variation between ``law`` and the target's law q.
        bound: ``[...]``, total variation between the draft's law p and q. ``accepted - (1 - bound) <= tv <= bound``
            always holds, with equality on the left for the residual ``plain``: each draft that is accepted and would
            not have been draws the law towards p, up to p itself.
        mean_mass: ``[...]``, what a draft borrows, in the mean over p.
        largest_mass: ``[...]``, and at most; the budget holds for this number, and not for ``tv``.
    """

    law: Tensor
    accepted: Tensor
    tv: Tensor
    bound: Tensor
    mean_mass: Tensor
    largest_mass: Tensor


def lantern_tv(
    q: Tensor,
    p: Tensor,
    neighbours: Tensor,
    *,
    delta: float = 0.1,
    lam: float | None = None,
    token_offset: int = 0,
    residual: str = "moved",
) -> LanternLaw:
    """How far LANTERN moves a law: one level, one draft from p, summed over all drafts that there are.

    The budget bounds how much mass a draft's test moves, not how far the law moves: that is bounded by the distance
    between draft and target alone, which is reached once everything is accepted. A diagnostic: it takes V laws of V
    tokens, tile by tile, and waits for its inputs to check them.

    Args:
        q: ``[..., V]`` float32 or float64, laws of the target.
        p: the drafts' laws, of the same shape and dtype.
        neighbours, delta, lam, token_offset: see :func:`lantern_mass`.
        residual: ``moved``, ``plain`` or ``compat``, see :func:`tree_verify`.

    Returns:
        :class:`LanternLaw`.

    Raises:
        RuntimeError: wrong rank, shape, dtype, device or range, or a law that does not sum to 1.

    Source: LANTERN (arXiv 2410.03355); the bound is derived in ``docs/methods/lantern.md``.
    """
    name = "lantern_tv"
    refuse_unless(q.dim() >= 1, name, "q must have at least 1 dimension, got 0")
    for key, law in (("q", q), ("p", p)):
        check_tensor(name, key, law, q.dim(), (q.dtype,) if q.dtype in _LAWS else _LAWS, q)
        check_shape(name, key, law, q.shape, "the shape of q")
        sums = law.double().sum(-1)
        ok = bool((law >= 0).all()) and bool(((sums - 1).abs() <= 1e-4).all())
        refuse_unless(ok, name, f"{key} must be laws: not negative, with sums of 1, got sums {sums.tolist()}")
    refuse_unless(
        residual in _RESIDUALS, name, f"residual must be one of {', '.join(_RESIDUALS)}, got {residual}"
    )
    size = q.shape[-1]
    every = torch.arange(size, device=q.device)
    levels = []
    for target, draft in zip(q.reshape(-1, size), p.reshape(-1, size), strict=True):
        rows = target[None].expand(1, size)
        mass, count = lantern_mass(
            rows, every[None], neighbours, delta=delta, lam=lam, token_offset=token_offset
        )
        levels.append(
            _level(target.double(), draft.double(), neighbours, mass[0], count[0], token_offset, residual)
        )
    shape = q.shape[:-1]
    law, accepted, mean, largest = (torch.stack(parts) for parts in zip(*levels, strict=True))
    law = law.view(q.shape)
    far, between = ((x - q.double()).abs().sum(-1) / 2 for x in (law, p.double()))
    return LanternLaw(law, accepted.view(shape), far, between, mean.view(shape), largest.view(shape))


def _level(q, p, neighbours, mass, count, offset, residual):
    """Law, chance of acceptance, mean and largest mass of one row."""
    passing = torch.where(p > 0, ((q + mass) / p.clamp_min(torch.finfo(p.dtype).tiny)).clamp_max(1), 1.0)
    law, lost = p * passing, p * (1 - passing)
    rejected = lost.nonzero()[:, 0]
    for xs in rejected.split(max(1, _TILE // len(q))):
        left, offered = q.repeat(len(xs), 1), p.repeat(len(xs), 1)
        at = torch.arange(len(xs), device=q.device)
        code = (xs - offset).clamp(0, len(neighbours) - 1)
        near = neighbours[code].long() + offset
        if residual == "moved":
            rank = torch.arange(near.shape[1], device=q.device)
            left.scatter_(1, near, torch.where(rank < count[xs, None], 0.0, left.gather(1, near)))
            left[at, xs] += mass[xs]
        elif residual == "compat":
            relaxed = count[xs, None] > 0
            offered.scatter_(1, near, torch.where(relaxed, 0.0, offered.gather(1, near)))
            offered[at, xs] = torch.where(relaxed[:, 0], 0.0, offered[at, xs])
        left = (left - offered).clamp_min(0)
        mass_left = left.sum(1, keepdim=True)
        left[at, xs] += mass_left[:, 0] == 0  # the rejection was rounding: the draft is taken
        law = law + (lost[xs, None] * left / mass_left.where(mass_left > 0, 1.0)).sum(0)
    drafted = torch.where(p > 0, mass, 0.0)
    return law, (p * passing).sum(), (p * mass).sum(), drafted.max()
