"""Refusal tokens: the first token of an answer says whether it is a refusal; a threshold or a bias decides it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._check import FLOATS
from ..grammar import first_token_control
from ._constrain import Constrain, refuser

__all__ = ["RefusalCurve", "RefusalTokens", "choose_threshold", "refusal_curve"]

#: Modes, and what they are to ``first_token_control``.
_MODES = {"none": 0, "threshold": 1, "category": 1, "sum": 2, "bias": 0}
_MOST, _UNUSED = 32, float("nan")


@dataclass(frozen=True)
class RefusalTokens(Constrain):
    """Control of refusals in models trained with control tokens (Jain et al., COLM 2025, arXiv 2412.06748).

    Such a model puts ``[refuse]``, or a token of a category of refusals, or ``[respond]`` before every answer. With
    pi the softmax of the logits over ``softmax_temperature`` at the first position of the answer, the mode decides:

    * ``none``: the model chooses as ever; the score is recorded.
    * ``threshold``: refuse where pi[refuse] >= tau, else respond. tau = -1: where pi[refuse] >= pi[respond]. With
      several categories the likeliest one stands for them, and its own tau counts.
    * ``category``: where the likeliest category is one of ``selected``, refuse with it if pi >= its tau and else
      respond; where it is not, the model chooses as ever.
    * ``sum``: refuse, with the likeliest category, where the sum over the categories is >= tau (of the likeliest).
    * ``bias``: ``biases`` are added to the logits of the refusals and ``respond_bias`` to that of respond, -inf
      suppresses and inf forces one; all other tokens are forbidden. A threshold tau on the renormalised probability
      of two tokens is the bias ``log((1 - tau) / tau)``, see :func:`RefusalTokens.bias_of`, under greedy decoding.

    Where something is decided all other tokens are forbidden, so that neither sampling temperature nor other
    processors can change it. On a patched model the decision is made on the model's own logits; a processor given to
    ``generate`` alone sees what earlier ones have left, so put it first and beware of ``repetition_penalty``, which
    ``generate`` puts before it. Later tokens are left alone.

    Control tokens should be special tokens, so that decoding leaves them out, and text of users must be encoded
    without special tokens: a prompt could else contain them.

    Args:
        refuse: the refusal's token, or one per category, up to 32: ids, or strings of which the tokenizer's last id
            counts, as in the published code. Strings must be one token (a leading space aside).
        respond: the other one.
        mode: see above.
        tau: a threshold, or one per category.
        biases: a bias, or one per category.
        respond_bias: see above.
        selected: for ``category``: numbers of the categories that may refuse; None: all.
        softmax_temperature: of the decision, never of the text; 1e-5..1e5.

    Raises:
        ValueError: a number out of range, or lists of different lengths.
    """

    module: ClassVar[str] = "refusal_tokens"

    refuse: Any
    respond: Any
    mode: str = "threshold"
    tau: Any = -1.0
    biases: Any = 0.0
    respond_bias: float = 0.0
    selected: tuple[int, ...] | None = None
    softmax_temperature: float = 1.0

    def __post_init__(self):
        refuse = refuser(self)
        if isinstance(self.refuse, int | str):
            object.__setattr__(self, "refuse", (self.refuse,))
        object.__setattr__(self, "refuse", tuple(self.refuse))
        count = len(self.refuse)
        refuse(not 1 <= count <= _MOST, f"refuse must name 1..{_MOST} tokens, got {count}")
        refuse(self.mode not in _MODES, f"mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        for name in ("tau", "biases"):
            value = getattr(self, name)
            values = (float(value),) * count if isinstance(value, int | float) else tuple(map(float, value))
            refuse(len(values) != count, f"{name} must be one number or {count}, got {len(values)}")
            refuse(any(x != x for x in values), f"{name} must be numbers, got {value}")
            object.__setattr__(self, name, values)
        refuse(any(x < 0 and x != -1 for x in self.tau), f"tau must be at least 0, or -1, got {self.tau}")
        refuse(
            self.mode in ("category", "sum") and -1 in self.tau,
            f"tau -1 compares with respond and goes with mode threshold, got mode {self.mode}",
        )
        refuse(
            self.respond_bias != self.respond_bias, f"respond_bias must be a number, got {self.respond_bias}"
        )
        forced = [*self.biases, self.respond_bias]
        refuse(forced.count(float("inf")) > 1, f"one token can be forced, got biases {forced}")
        refuse(all(x == float("-inf") for x in forced), "biases suppress every control token")
        if self.selected is not None:
            object.__setattr__(self, "selected", tuple(self.selected))
            refuse(self.mode != "category", f"selected goes with mode category, got {self.mode!r}")
            refuse(
                not all(0 <= x < count for x in self.selected),
                f"selected must be numbers in 0..{count - 1}, got {self.selected}",
            )
        refuse(
            not 1e-5 <= self.softmax_temperature <= 1e5,
            f"softmax_temperature must be 1e-5..1e5, got {self.softmax_temperature}",
        )

    @staticmethod
    def bias_of(tau: float) -> float:
        """The bias on refuse that equals a threshold on the renormalised probability of refuse and respond."""
        if not 0 <= tau <= 1:
            raise ValueError(f"RefusalTokens: tau must be 0..1, got {tau}")
        odds = torch.tensor(tau, dtype=torch.float64)
        return float(torch.log1p(-odds) - torch.log(odds))

    def decide(self, logits: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the mode decides for rows of first-position logits.

        Args:
            logits: ``[B, V]``, before any processor.
            ids: the refusals' tokens and then respond's.

        Returns:
            ``[B]`` int64: the token, -1 where the model is left to choose; and pi of the refusals ``[B, C]`` float32.
        """
        return decide_rows([self] * len(logits), [ids] * len(logits), logits)


def _limits(policy: RefusalTokens) -> list[float]:
    """Thresholds of the categories, as ``first_token_control`` takes them."""
    used = range(len(policy.refuse)) if policy.selected is None else policy.selected
    return [tau if c in used else _UNUSED for c, tau in enumerate(policy.tau)]


def decide_rows(
    policies: Sequence[RefusalTokens], ids: Sequence[Sequence[int]], logits: Tensor
) -> tuple[Tensor, Tensor]:
    """What the policy of every row decides for rows of first-position logits.

    Args:
        policies: one per row.
        ids: for every row the refusals' tokens and then respond's.
        logits: ``[B, V]``, before any processor; NaN counts as -inf.

    Returns:
        ``[B]`` int64: the token, -1 where the model is left to choose; and pi of the refusals ``[B, C]`` float32, with
        the C of the row that has the most of them, and 0 behind the others'.

    Raises:
        ValueError: a token that the model does not have.
    """
    size = logits.shape[1]
    for token in {token for row in ids for token in row}:
        if not 0 <= token < size:
            raise ValueError(f"RefusalTokens: token {token} is beyond the model's {size}")
    most = max((len(policy.refuse) for policy in policies), default=1)
    tokens, tau = [], []
    for policy, row in zip(policies, ids, strict=True):
        spare = most - len(policy.refuse)
        tokens.append([*row[:-1], *[-1] * spare, row[-1]])
        tau.append([*_limits(policy), *[_UNUSED] * spare])
    tables = (
        torch.tensor(tokens, dtype=torch.int32, device=logits.device).view(-1, most + 1),
        torch.tensor(tau, dtype=torch.float32, device=logits.device).view(-1, most),
        torch.tensor([_MODES[p.mode] for p in policies], dtype=torch.int32, device=logits.device),
    )
    logits = logits if logits.dtype in FLOATS else logits.float()
    decided, scores = torch.empty_like(tables[2]), torch.empty_like(tables[1])
    temperatures = [p.softmax_temperature for p in policies]
    for temperature in set(temperatures):
        rows: Any = slice(None)  # almost always; a launch for each of several temperatures
        if len(set(temperatures)) > 1:
            rows = torch.tensor([x == temperature for x in temperatures], device=logits.device)
        some = (table[rows] for table in tables)
        decided[rows], found = first_token_control(logits[rows], *some, temperature=temperature)
        scores[rows] = found[:, :-1]
    return decided.long(), scores


class RefusalCurve(NamedTuple):
    """How refusals depend on the threshold: float64 ``[n]`` each, thresholds descending.

    ``false_refusals`` and ``true_refusals`` are shares of the answers that should, and should not, have been given.
    """

    thresholds: Tensor
    false_refusals: Tensor
    true_refusals: Tensor

    @property
    def area(self) -> float:
        """Under true over false refusals, from (0, 0) to (1, 1)."""
        x = torch.cat(
            [torch.zeros(1, dtype=torch.float64), self.false_refusals, torch.ones(1, dtype=torch.float64)]
        )
        y = torch.cat(
            [torch.zeros(1, dtype=torch.float64), self.true_refusals, torch.ones(1, dtype=torch.float64)]
        )
        return float(torch.trapezoid(y, x))


def refusal_curve(scores: Tensor, refuse: Tensor) -> RefusalCurve:
    """Shares of refusals at every score that was seen, taken as the threshold.

    Args:
        scores: ``[n]``, of a validation set.
        refuse: ``[n]`` bool, which should be refused; some and not all.

    Raises:
        ValueError: shapes differ, or only one kind is there.
    """
    scores, refuse = scores.double().flatten(), refuse.bool().flatten()
    if scores.shape != refuse.shape or not bool(refuse.any()) or bool(refuse.all()):
        raise ValueError(
            f"refusal_curve: scores and refuse must be of one length with both kinds, got {len(scores)} and "
            f"{len(refuse)} with {int(refuse.sum())} to refuse"
        )
    thresholds = scores.unique().flip(0)
    above = scores[None] >= thresholds[:, None]
    share = [(above & kind).sum(1).double() / kind.sum() for kind in (~refuse, refuse)]
    return RefusalCurve(thresholds, *share)


def choose_threshold(scores: Tensor, refuse: Tensor, false_refusal_rate: float | None = None) -> float:
    """A threshold for :class:`RefusalTokens` from a validation set.

    Args:
        scores, refuse: see :func:`refusal_curve`.
        false_refusal_rate: the lowest threshold that refuses at most this share of what should be answered; above 1,
            which never refuses, where none does. None: the threshold of the best F1 of refusals, the highest of
            equals.

    Raises:
        ValueError: as in :func:`refusal_curve`; a rate outside 0..1.
    """
    curve = refusal_curve(scores, refuse)
    if false_refusal_rate is not None:
        if not 0 <= false_refusal_rate <= 1:
            raise ValueError(f"choose_threshold: false_refusal_rate must be 0..1, got {false_refusal_rate}")
        fits = curve.thresholds[curve.false_refusals <= false_refusal_rate]
        return float(fits[-1]) if len(fits) else 1.0 + 1e-6
    wanted = float(refuse.bool().sum())
    hits = curve.true_refusals * wanted
    false = curve.false_refusals * (refuse.numel() - wanted)
    f1 = 2 * hits / (hits + false + wanted)
    return float(curve.thresholds[int(f1.argmax())])
