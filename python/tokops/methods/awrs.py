"""AWRS: exact samples under a yes/no constraint that is asked about a handful of tokens, and weights for them."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .._exact import Stream, Use
from ..grammar import apply_bitmask_
from ..grammar._grammar import Grammar
from ..grammar.constraint import Constraint, constraint_of
from ..sampling import draw, law
from ._rejection import Ok, Outcome, Source, geometric, improper, recursive, rejected, two_loop
from .base import Method
from .cntp import trial_stream

__all__ = ["AWRS"]

_AHEAD = 8  # candidates drawn at once; then twice as many each time
_MOST_AHEAD = 32  # an op draws more of them slower than twice as many rows
_GEOMETRIC = 1 << 32  # in place of a round's number: no round has it
_PEAKED = 2 / 3
_SAMPLERS = ("auto", "recursive", "geometric", "two_loop")


class Draws(NamedTuple):
    """A token for every row.

    Attributes:
        tokens: the tokens; of a row where none was accepted the last that was rejected, -1 where there was none.
        accepted: whether the token is legal.
        log_weights: log of an unbiased estimate of the legal mass, in float64; -inf where nothing was accepted.
        checks: how often the constraint was asked.
    """

    tokens: list[int]
    accepted: list[bool]
    log_weights: list[float]
    checks: list[int]


@dataclass(frozen=True)
class AWRS(Method):
    """Adaptive weighted rejection sampling (COLM 2025, arXiv 2504.05410), for ``generate(do_sample=True)``.

    Every token is an exact sample of the model's law among the legal tokens, though the constraint is asked about
    a few of them only: candidates come without replacement, in the order of the law. With the token comes an
    unbiased estimate of the legal mass; the product of these along a text is its importance weight, with which
    :class:`SMC` corrects that a law masked token by token is not the law of valid texts. By itself a text follows
    the masked law.

    ``generate`` takes more arguments: ``seed`` (None draws one from torch's generator), ``streams``, numbers ``[B]``
    of the requests (None: their places in the batch), and ``constraints``, one per request in place of the method's.
    Draws are keyed by seed, request and position, so that neither the batch nor its order changes a request's
    tokens. Laws are those after the logits processors: with a temperature, top-k or top-p the target is that law,
    restricted. Weights and checks are in the output of ``return_dict_in_generate=True``.

    Args:
        constraint: what texts must be, a compiled grammar or any :class:`tokops.grammar.Constraint`; None allows
            everything.
        max_rejects: rejected candidates after which a token is given up, with weight 0; None: never.
        max_accepts: legal candidates a weight is estimated from; more of them lower its variance.
        proper: weights are unbiased. If not, the first legal candidate is taken, with weight 1.
        sampler: ``recursive``, ``geometric``, ``two_loop`` (as published) or ``auto``: geometric where ``max_accepts``
            is above 2 or a token has 2/3 of the law, else recursive.
        use_masks: where the constraint has a mask of all legal tokens, take the legal mass from it, exactly.

    Raises:
        ValueError: a number out of range, or more than two ``max_accepts`` for a sampler that stops at two.
        TypeError: ``constraint`` is neither.
    """

    slots: ClassVar[tuple[str, ...]] = ("constrain",)

    constraint: Constraint | Grammar | None = None
    max_rejects: int | None = None
    max_accepts: int = 2
    proper: bool = True
    sampler: str = "auto"
    use_masks: bool = True

    def __post_init__(self):
        object.__setattr__(self, "constraint", constraint_of("AWRS", self.constraint))
        two = self.sampler in ("recursive", "two_loop")
        for ok, message in (
            (
                self.max_rejects is None or self.max_rejects >= 2,
                f"max_rejects must be at least 2, got {self.max_rejects}",
            ),
            (self.max_accepts >= 2, f"max_accepts must be at least 2, got {self.max_accepts}"),
            (self.sampler in _SAMPLERS, f"sampler must be {', '.join(_SAMPLERS)}, got {self.sampler!r}"),
            (
                not two or self.max_accepts == 2,
                f"the sampler {self.sampler} stops at 2 legal tokens, got max_accepts {self.max_accepts}",
            ),
        ):
            if not ok:
                raise ValueError(f"AWRS: {message}")

    @property
    def loop(self) -> str:
        """See :attr:`Method.loop`."""
        return "awrs"

    def choose(self, top: float) -> str:
        """The sampler for a law whose most likely token has the probability ``top``."""
        if not self.proper:
            return "improper"
        if self.sampler != "auto":
            return self.sampler
        return "geometric" if self.max_accepts > 2 or top >= _PEAKED else "recursive"

    def run(self, sampler: str, source: Source, ok: Ok) -> Outcome:
        """One token by a named sampler."""
        most = math.inf if self.max_rejects is None else self.max_rejects
        if sampler == "geometric":
            return geometric(source, ok, most, self.max_accepts)
        samplers = {"improper": improper, "two_loop": two_loop, "recursive": recursive}
        return samplers[sampler](source, ok, most)

    def sample(
        self,
        logits: Tensor,
        oks: Sequence[Ok],
        *,
        seed: int,
        streams: Sequence[int],
        positions: Sequence[int],
        masks: Sequence[Tensor | None] | None = None,
        prune: Tensor | None = None,
        proposal: Tensor | None = None,
    ) -> Draws:
        """A legal token for every row of logits, and its weight.

        Args:
            logits: ``[P, V]`` float32, bfloat16 or float16.
            oks: of every row, whether a token is legal. A token is asked about once at most.
            seed: of the generation, 64 bits.
            streams: of every row, its random stream.
            positions: of every row, the index in its text of the token that is drawn.
            masks: of every row a packed mask ``[W]`` int32 of its legal tokens; such a row is not asked about. None:
                there is none.
            prune: ``[W]`` int32, or one mask per row ``[P, W]``: tokens that are legal anywhere. What else the law
                holds is taken out of it first and counted in the weights.
            proposal: ``[P, V]`` logits to draw from instead; weights are then relative to ``logits``.

        Raises:
            RuntimeError: wrong shape, dtype or device.
        """
        probs = law(logits if proposal is None else proposal)
        whole = kept = _sums(probs)
        if prune is not None:
            apply_bitmask_(probs, prune.to(probs.device), fill=0.0)
            kept = _sums(probs)
        masks = [None] * len(probs) if masks is None else masks
        exact = [row for row, mask in enumerate(masks) if mask is not None]
        asked = [row for row, mask in enumerate(masks) if mask is None]
        found: dict[int, tuple[Outcome, int]] = {}
        numbers = _Numbers(seed, streams, positions)
        if exact:
            found |= self._exact(probs, kept, exact, masks, numbers)
        if asked:
            found |= self._asked(probs, kept, asked, oks, numbers)
        outcomes = [found[row] for row in range(len(probs))]
        tokens = [outcome.token for outcome, _ in outcomes]
        accepted = [outcome.accepted for outcome, _ in outcomes]
        log_weights = [
            math.log(outcome.weight) if outcome.weight > 0 else -math.inf for outcome, _ in outcomes
        ]
        if self.proper:
            change = (kept / whole.clamp_min(1e-300)).log()
            if proposal is not None:
                at = torch.tensor(tokens, device=logits.device).clamp_min(0)[:, None]
                p, q = (x.double().log_softmax(-1).gather(1, at)[:, 0] for x in (logits, proposal))
                change = change + p - q
            log_weights = [
                weight + more if kept else -math.inf
                for weight, more, kept in zip(log_weights, change.tolist(), accepted, strict=True)
            ]
        return Draws(tokens, accepted, log_weights, [checks for _, checks in outcomes])

    def _exact(self, probs, kept, rows, masks, numbers):
        """Rows whose masks are known: no candidates, no variance."""
        index = torch.tensor(rows, device=probs.device)
        words = pad_sequence([masks[row] for row in rows], batch_first=True).to(probs.device)
        legal = apply_bitmask_(probs[index], words, fill=0.0)
        share = _sums(legal) / kept[index].clamp_min(1e-300)
        tokens = numbers.candidates(legal, rows, 1, 0)[:, 0].tolist()
        found = {}
        for row, token, weight in zip(rows, tokens, share.tolist(), strict=True):
            weight = min(weight, 1.0) if self.proper else 1.0
            found[row] = (rejected(-1) if token < 0 else Outcome(token, weight, True), 0)
        return found

    def _asked(self, probs, kept, rows, oks, numbers):
        index = torch.tensor(rows, device=probs.device)
        kept = kept.clamp_min(1e-300)
        top = (probs.amax(-1) / kept)[index].tolist()
        samplers = {row: self.choose(p) for row, p in zip(rows, top, strict=True)}
        ahead: dict[int, list[list[tuple[int, float]]]] = {row: [] for row in rows}
        twice = [row for row in rows if samplers[row] in ("geometric", "two_loop")]
        for number, some in enumerate((rows, twice)):
            if some:
                for row, ready in zip(some, numbers.ahead(probs, some, number), strict=True):
                    ahead[row].append(ready)
        totals = kept.tolist()
        found = {}
        for row in rows:
            source = _Row(probs[row], totals[row], numbers, row, ahead[row])
            asked: dict[int, bool] = {}

            def ok(token: int, asked=asked, row=row) -> bool:
                if token not in asked:
                    asked[token] = bool(oks[row](token))
                return asked[token]

            outcome = self.run(samplers[row], source, ok)
            found[row] = (outcome, len(asked))
        return found


def _sums(weights: Tensor) -> Tensor:
    """Sums ``[P]`` float64 of rows; row by row, because torch else converts all of them first."""
    if not len(weights):
        return weights.new_zeros(0, dtype=torch.float64)
    if weights.device.type != "cpu":
        return weights.sum(-1, dtype=torch.float64)
    return torch.stack([row.sum(dtype=torch.float64) for row in weights])


class _Numbers:
    """The random numbers of some rows: a round of candidates has a stream of its own, and each further part of it."""

    def __init__(self, seed: int, streams: Sequence[int], positions: Sequence[int]):
        self.seed, self.streams, self.positions = seed, streams, positions

    def candidates(self, weights: Tensor, rows: Sequence[int], count: int, number: int, part: int = 0):
        """``[rows, count]`` int32: candidates without replacement, by weights ``[rows, V]``."""
        device = weights.device
        return draw(
            weights,
            count,
            seed=self.seed,
            stream=torch.tensor([trial_stream(self.streams[r], number, part) for r in rows], device=device),
            position=torch.tensor([self.positions[r] for r in rows], device=device),
        )

    def ahead(self, probs: Tensor, rows: Sequence[int], number: int) -> list[list[tuple[int, float]]]:
        """The first candidates of a round of some rows, with their weights."""
        chosen = probs if len(rows) == len(probs) else probs[torch.tensor(rows, device=probs.device)]
        return _with_weights(chosen, self.candidates(chosen, rows, _AHEAD, number))

    def uniform(self, row: int, slot: int) -> float:
        """In [0, 1), for the geometric numbers of a row."""
        random = Stream(self.seed, trial_stream(self.streams[row], _GEOMETRIC, 0))
        return random.uniform(self.positions[row], slot, Use.PLAIN)


def _with_weights(weights: Tensor, ids: Tensor) -> list[list[tuple[int, float]]]:
    taken = weights.gather(1, ids.clamp_min(0).long())
    return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), taken.tolist(), strict=True)]


class _Row:
    """The :class:`Source` of one row. Candidates that were drawn ahead are used where nothing is excluded yet."""

    def __init__(self, weights: Tensor, total: float, numbers: _Numbers, row: int, ahead):
        self._weights, self._total = weights, total
        self._numbers, self._row, self._ahead = numbers, row, ahead
        self._rounds = self._geometrics = 0

    def stream(self, excluded: Collection[int]) -> Iterator[tuple[int, float]]:
        """See :meth:`Source.stream`."""
        number, self._rounds = self._rounds, self._rounds + 1
        ready = self._ahead[number] if number < len(self._ahead) and not excluded else None
        return self._candidates(number, set(excluded), ready)

    def _candidates(self, number: int, gone: set[int], ready):
        left, part, count = None, 0, _AHEAD
        while True:
            if ready is None:
                left = self._weights.clone() if left is None else left
                left[torch.tensor(sorted(gone), dtype=torch.long, device=left.device)] = 0.0
                ids = self._numbers.candidates(left[None], [self._row], count, number, part)
                ready = _with_weights(left[None], ids)[0]
            for token, weight in ready:
                if token < 0:
                    return
                gone.add(token)
                yield token, weight / self._total
            ready, part, count = None, part + 1, min(2 * count, _MOST_AHEAD)

    def geometric(self, success: float) -> int:
        """See :meth:`Source.geometric`."""
        u = self._numbers.uniform(self._row, self._geometrics)
        self._geometrics += 1
        if success >= 1.0:
            return 1
        return 1 + math.floor(math.log1p(-u) / math.log1p(-success))
