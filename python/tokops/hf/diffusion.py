"""The denoising loop of masked diffusion models, under a grammar: LLaDA's, each token checked before it is kept."""

import math
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grammar.infill import InfillGrammar, InfillUnknownError
from ..grammar.infill_canvas import Canvas

__all__ = ["DiffusionOutput", "generate_infill"]

#: Logits that are handled in fp64 at once.
_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class DiffusionOutput:
    """What :func:`generate_infill` gives.

    Attributes:
        sequences: int64 ``[1, P + L]``: the prompt and the region; open positions hold the mask token.
        text: bytes of the region's text, which belongs to the grammar unless ``status`` is ``"partial"``; None for a
            partial text that was not completed.
        status: ``"complete"`` where the tokens are the text, ``"autocompleted"`` where it was completed without the
            model, ``"partial"`` where it was not.
        forwards: calls of the model.
        commits: tokens that were committed.
        resamples: proposals that were refused.
        questions: what was asked of the grammar; more than one for a proposal where room is scarce.
        unknown: proposals that were not decided in time.
        seconds: spent on questions.
    """

    sequences: Tensor
    text: bytes | None
    status: str
    forwards: int
    commits: int
    resamples: int
    questions: int
    unknown: int
    seconds: float


@torch.no_grad()
def generate_infill(
    model: Callable,
    input_ids: Tensor,
    grammar: InfillGrammar,
    tokens: Sequence[bytes],
    *,
    mask_id: int,
    eos_ids: Collection[int] = (),
    length: int = 256,
    steps: int = 32,
    block_length: int | None = None,
    temperature: float = 0.2,
    order: str = "confidence",
    max_resamples: int = 100,
    template: Tensor | None = None,
    open_end: bool = True,
    room: bool = True,
    autocomplete: bool = True,
    seconds: float = 100.0,
    autocomplete_seconds: float = 60.0,
    on_unknown: str = "reject",
    seed: int | None = None,
) -> DiffusionOutput:
    """Fills a region by denoising so that its text belongs to a grammar.

    At every step the model is called once. Then, for each of the step's tokens: of every open position the most likely
    token is proposed; the position with the highest confidence is tried; it is committed if some text of the grammar
    agrees with all that is committed, and otherwise never proposed there again.

    Args:
        model: called with ids ``[1, P + L]``; gives logits ``[1, P + L, V]``, or an object with such ``logits``. Logits
            at a position are about that position's token.
        input_ids: int64 ``[1, P]``, the prompt. P may be 0.
        grammar: of the region's text; the prompt is no part of it.
        tokens: bytes of every token, ``b""`` for those that are no text. Fewer than V: the others are never proposed.
        mask_id: stands for an open position.
        eos_ids: tokens that end the text; after the first all positions become the same token.
        length: L.
        steps: calls of the model, if none ends early.
        block_length: blocks of so many positions are filled one after the other, each with its share of the steps.
            None: one block.
        temperature: of Gumbel noise on the logits (fp64); 0 proposes the most likely token.
        order: ``"confidence"``: the position whose proposal has the highest probability, without noise; ``"random"``.
        max_resamples: refusals in a row, without a commit, after which the loop gives up. A position offers as many
            different tokens in one step.
        template: int64 ``[1, L]``: tokens of the region that are given (infilling of a text with several holes), the
            mask token elsewhere.
        open_end: whether text that fills the region may go on behind it, by the completion. False: it must fit.
        room: whether proposals are refused that need more tokens than are left, where that is certain.
        autocomplete: whether a text that is not complete at the end gets the shortest completion.
        seconds, autocomplete_seconds: for one question, and for the completion.
        on_unknown: what an unanswered question means: ``"reject"``, ``"accept"``, ``"raise"``.
        seed: of noise and random order. None: torch's global generator.

    Raises:
        ValueError: a number out of range, a batch, or a template without a completion.
        InfillUnknownError: a question was not answered in time, with ``on_unknown="raise"``, or about the template.
    """
    name = "generate_infill"
    _check(name, input_ids, template, length, steps, block_length, temperature, order, max_resamples)
    if template is not None:
        length = template.shape[1]
    region = torch.full((1, length), mask_id, dtype=torch.int64, device=input_ids.device)
    if template is not None:
        region.copy_(template)
    checker = grammar.checker()
    known = [(i, t) for i, t in enumerate(region[0].tolist()) if t != mask_id]
    clock = _Clock()
    with clock:
        canvas = Canvas(
            checker,
            [b"" if i == mask_id else token for i, token in enumerate(tokens)],
            length,
            ends=eos_ids,
            known=known,
            open_end=open_end,
            room=room,
            seconds=seconds,
            on_unknown=on_unknown,
        )
    generator = None
    if seed is not None:
        generator = torch.Generator(input_ids.device).manual_seed(seed)
    loop = _Loop(model, input_ids, canvas, clock, mask_id, temperature, order, max_resamples, generator)
    block = block_length or length
    blocks = math.ceil(length / block)
    for i in range(blocks):
        share = steps * (i + 1) // blocks - steps * i // blocks
        if not loop.run(range(i * block, min(length, (i + 1) * block)), max(share, 1)):
            break
    return _finish(loop, autocomplete, autocomplete_seconds)


class _Clock:
    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._start


class _Loop:
    def __init__(self, model, prompt, canvas, clock, mask_id, temperature, order, max_resamples, generator):
        self.model, self.prompt, self.canvas, self.clock = model, prompt, canvas, clock
        self.mask_id, self.temperature, self.order = mask_id, temperature, order
        self.max_resamples, self.generator = max_resamples, generator
        self.forwards = self.commits = self.resamples = 0
        self._in_a_row = 0  # refusals since the last commit

    def sequences(self) -> Tensor:
        ids = [self.mask_id if token is None else token for token in self.canvas.ids]
        return torch.cat([self.prompt, torch.tensor([ids], device=self.prompt.device)], dim=1)

    def run(self, block: range, steps: int) -> bool:
        """Fills a block; False where no proposal was allowed any more."""
        for step in range(steps):
            open_ = [position for position in self.canvas.open if position in block]
            if not open_:
                return True
            wanted = math.ceil(len(open_) / (steps - step))
            if not self._denoise(open_, wanted):
                return False
        return True

    def _logits(self, positions: list[int]) -> Tensor:
        ids = self.sequences()
        logits = self.model(ids)
        logits = getattr(logits, "logits", logits)
        self.forwards += 1
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise ValueError(
                f"generate_infill: the model must give [1, {ids.shape[1]}, V], got {list(logits.shape)}"
            )
        at = torch.tensor(positions, device=logits.device) + self.prompt.shape[1]
        return logits[0, at]

    def _denoise(self, positions: list[int], wanted: int) -> bool:
        """Commits up to so many tokens of one call of the model; False to give up."""
        proposals = _Proposals(self, positions, self._logits(positions))
        tried = False
        while wanted > 0:
            best = proposals.best()
            if best is None:
                return tried
            if self._in_a_row > self.max_resamples:
                return False
            row, position, token = best
            tried = True
            with self.clock:
                committed = self.canvas.commit(position, token)
            if committed:
                self.commits += 1
                self._in_a_row = 0
                wanted -= 1
                proposals.keep(set(self.canvas.open))
            else:
                self.resamples += 1
                self._in_a_row += 1
                proposals.next(row)
        return True


class _Proposals:
    """Every open position's tokens of one step, best first, and which position is next."""

    def __init__(self, loop: _Loop, positions: list[int], logits: Tensor):
        size = min(logits.shape[1], len(loop.canvas.tokens))
        silent = [i for i in range(size) if not loop.canvas.tokens[i] and i not in loop.canvas.ends]
        self._positions = positions
        self._tokens: list[list[int]] = []
        self._sure: list[list[float]] = []
        rows = max(1, _ELEMENTS // size)
        for begin in range(0, len(positions), rows):
            self._add(loop, positions[begin : begin + rows], logits[begin : begin + rows, :size], silent)
        self._next = [0] * len(positions)
        self._rows = {row for row, tokens in enumerate(self._tokens) if tokens}
        self._rank: list[float] | None = None
        if loop.order == "random":
            rank = torch.rand(len(positions), device=logits.device, generator=loop.generator)
            self._rank = rank.tolist()

    def _add(self, loop: _Loop, positions: list[int], logits: Tensor, silent: list[int]) -> None:
        """As many tokens of each position as may be tried, in the order of logits with noise."""
        logits = logits.double().nan_to_num(nan=-torch.inf)
        scores = logits.clone()
        scores[:, silent] = -torch.inf
        for row, position in enumerate(positions):
            refused = [token for token in loop.canvas.refused[position] if token < scores.shape[1]]
            scores[row, refused] = -torch.inf
        if loop.temperature > 0:
            uniform = torch.rand(
                scores.shape, dtype=torch.float64, device=scores.device, generator=loop.generator
            )
            scores -= loop.temperature * (-uniform.clamp_min(1e-300).log()).log()
        best = scores.topk(min(scores.shape[1], loop.max_resamples + 1), dim=1)
        sure = logits.gather(1, best.indices) - logits.logsumexp(1, keepdim=True)
        counts = (best.values > -torch.inf).sum(1).tolist()
        self._tokens += [row[:n] for row, n in zip(best.indices.tolist(), counts, strict=True)]
        self._sure += sure.tolist()

    def best(self) -> tuple[int, int, int] | None:
        """Row, position and token of the proposal to try; of equal ones the first."""
        if not self._rows:
            return None
        row = max(
            sorted(self._rows), key=lambda r: self._rank[r] if self._rank else self._sure[r][self._next[r]]
        )
        return row, self._positions[row], self._tokens[row][self._next[row]]

    def next(self, row: int) -> None:
        self._next[row] += 1
        if self._next[row] >= len(self._tokens[row]):
            self._rows.discard(row)

    def keep(self, positions: set[int]) -> None:
        self._rows = {row for row in self._rows if self._positions[row] in positions}


def _finish(loop: _Loop, autocomplete: bool, seconds: float) -> DiffusionOutput:
    canvas = loop.canvas
    with loop.clock:
        text, status = canvas.text(), "complete"
        canvas.questions += 1
        try:
            good = text is not None and canvas.checker.is_completable([text], seconds=seconds)
            if not good:
                text, status = None, "partial"
                if autocomplete:
                    completion = canvas.complete(seconds=seconds)
                    if completion is not None:
                        text, status = completion.text, "autocompleted"
        except InfillUnknownError as out:
            warnings.warn(f"generate_infill: the text at the end was not decided ({out.bound})", stacklevel=3)
            text, status = None, "partial"
    if canvas.unknown:
        warnings.warn(f"generate_infill: {canvas.unknown} proposals were not decided in time", stacklevel=3)
    return DiffusionOutput(
        loop.sequences(),
        text,
        status,
        loop.forwards,
        loop.commits,
        loop.resamples,
        canvas.questions,
        canvas.unknown,
        loop.clock.seconds,
    )


def _check(name, input_ids, template, length, steps, block_length, temperature, order, max_resamples):
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"{name}: input_ids must be [1, P], one sequence, got {list(input_ids.shape)}")
    if template is not None and (template.ndim != 2 or template.shape[0] != 1):
        raise ValueError(f"{name}: template must be [1, L], got {list(template.shape)}")
    for key, value, ok, wanted in (
        ("length", length, length >= 1, "at least 1"),
        ("steps", steps, steps >= 1, "at least 1"),
        ("block_length", block_length, block_length is None or block_length >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < math.inf, "0 or above"),
        ("order", order, order in ("confidence", "random"), "confidence or random"),
        ("max_resamples", max_resamples, max_resamples >= 0, "0 or above"),
    ):
        if not ok:
            raise ValueError(f"{name}: {key} must be {wanted}, got {value}")
