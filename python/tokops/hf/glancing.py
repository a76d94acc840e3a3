"""Coupled sequential glancing: how the Falcon drafter is trained to agree with itself inside a block."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, smooth_l1_loss

from .falcon import FalconModule

__all__ = ["GlancingLoss", "coupled_sequential_glancing_loss", "glancing_positions", "glancing_ratio"]


def glancing_ratio(epoch: float, epochs: float, start: float = 0.4, end: float = 0.0) -> float:
    """lambda, the part of the wrongly predicted positions that are revealed; falls linearly over training.

    Args:
        epoch: e, 0..epochs.
        epochs: E.
        start, end: at the beginning and the end; the paper's 0.4 * (E - e) / E by default, the released code's
            0.35 * (E - e) / E + 0.1 with start 0.45 and end 0.1.

    Raises:
        ValueError: epoch outside 0..epochs, or epochs of 0.
    """
    if not 0 <= epoch <= epochs or epochs <= 0:
        raise ValueError(f"glancing_ratio: epoch must be 0..{epochs} of more than 0, got {epoch}")
    return (start - end) * (epochs - epoch) / epochs + end


def glancing_positions(count: int, rows: int, block: int, generator: torch.Generator | None = None) -> Tensor:
    """Which of the drafter's rows are revealed.

    A block predicts k tokens one after the other. Revealed is the beginning of a block: runs of 1..k-1 rows from its
    first one on, so that the rows after them see what comes just before the token they predict. Blocks are drawn
    without replacement, the length of every run uniformly, until ``count`` rows are revealed or no block is left.
    Blocks are counted from the last row; an incomplete first block is left alone.

    Args:
        count: N rows to reveal, as far as there are: a block reveals at most k - 1.
        rows: rows of the sequence.
        block: k.

    Returns:
        ``[rows]`` bool.
    """
    revealed = torch.zeros(rows, dtype=torch.bool)
    whole = rows // block
    first = rows - whole * block
    left = min(count, whole * (block - 1))
    for number in torch.randperm(whole, generator=generator).tolist() if left > 0 else ():
        run = int(torch.randint(1, block, (1,), generator=generator))
        begin = first + number * block
        revealed[begin : begin + min(run, left)] = True
        left -= min(run, left)
        if not left:
            break
    return revealed


@dataclass(frozen=True)
class GlancingLoss:
    """What :func:`coupled_sequential_glancing_loss` gives.

    Attributes:
        total: scalar, to be differentiated.
        feature, soft, hard: its parts, scalars: Smooth-L1, KL to the target's law, cross-entropy with its best token.
        wrong: ``[B]`` rows that the first pass predicted wrongly, the Hamming distance d.
        revealed: ``[B, T]`` bool, rows whose input was replaced.
    """

    total: Tensor
    feature: Tensor
    soft: Tensor
    hard: Tensor
    wrong: Tensor
    revealed: Tensor


def coupled_sequential_glancing_loss(
    module: FalconModule,
    features: Tensor,
    tokens: Tensor,
    embed: nn.Module,
    unembed: nn.Module,
    rotary: tuple[Tensor, Tensor],
    *,
    ratio: float,
    noise: float = 0.1,
    feature_weight: float = 1.0,
    logit_weight: float = 0.1,
    soft: float = 0.9,
    generator: torch.Generator | None = None,
) -> GlancingLoss:
    """The objective of Falcon (AAAI 2025): two passes, of which the second sees some of the right answers.

    Row i of 0..T-1 reads the pair ``(f_i, t_{i+1})`` and predicts ``f_{i+k}``. The first pass, without gradient,
    counts the rows whose best token is not the target's: d per sequence. Then N = floor(ratio * d) rows
    (:func:`glancing_positions`) read ``(f_{i+k}, t_{i+k+1})`` instead, the pair that they would have predicted. The
    rows after them in their block thus see the consecutive pairs just before what they predict, tokens and features
    alike, and learn a block whose tokens depend on each other. A revealed row reads its own answer, so it is left
    out of the loss (the released code leaves it in). With k = 1 nothing can be revealed.

    The loss is ``feature_weight * SmoothL1 + logit_weight * (soft * KL + (1 - soft) * CE)``, each a mean over rows
    (and over d for Smooth-L1), with targets from the base model's own features: KL(target || draft) and the
    cross-entropy with the target's best token.

    Args:
        module: the drafter.
        features: ``[B, T + k, d]``, f_0.. of the base model.
        tokens: ``[B, T + k + 1]`` int64, t_0..
        embed, unembed: the base model's; their parameters should be frozen.
        rotary: of positions 0..T-1, from :func:`tokops.hf.draftlayers.rotary_of`.
        ratio: lambda of this step, from :func:`glancing_ratio`, 0..1.
        noise: uniform noise from -noise..noise on the features that are read, in both passes the same.
        generator: draws noise and revealed rows.

    Raises:
        ValueError: shapes that do not belong together, T < 1, or a ratio outside 0..1.
    """
    k = module.block
    batch, width = features.shape[:2]
    rows = width - k
    if rows < 1 or tokens.shape != (batch, width + 1):
        raise ValueError(
            f"coupled_sequential_glancing_loss: features must be [B, T + {k}, d] with T >= 1 and tokens "
            f"[B, T + {k} + 1], got {list(features.shape)} and {list(tokens.shape)}"
        )
    if not 0 <= ratio <= 1:
        raise ValueError(f"coupled_sequential_glancing_loss: ratio must be 0..1, got {ratio}")
    target = features[:, k:]
    with torch.no_grad():
        law = unembed(target).log_softmax(-1)
        best = law.argmax(-1)
        jitter = torch.rand(target.shape, generator=generator, dtype=features.dtype).to(features.device)
        read = features[:, :rows] + (2 * jitter - 1) * noise
        wrong = (unembed(module(read, embed(tokens[:, 1 : rows + 1]), rotary)).argmax(-1) != best).sum(-1)
        counts = (wrong.double() * ratio).floor().long().tolist()
        revealed = torch.stack([glancing_positions(n, rows, k, generator) for n in counts]).to(
            features.device
        )
        read = torch.where(revealed[..., None], target, read)
        following = torch.where(revealed, tokens[:, k + 1 :], tokens[:, 1 : rows + 1])
    kept = ~revealed
    out = module(read, embed(following), rotary)[kept]
    drafted = unembed(out).log_softmax(-1)
    feature = smooth_l1_loss(out, target[kept])
    close = kl_div(drafted, law[kept], reduction="batchmean", log_target=True)
    hard = cross_entropy(drafted, best[kept])
    total = feature_weight * feature + logit_weight * (soft * close + (1 - soft) * hard)
    return GlancingLoss(total, feature.detach(), close.detach(), hard.detach(), wrong, revealed)
