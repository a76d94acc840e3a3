"""StreamingMonitor on transformers: a stopping criterion, a processor that forces the end, and a gate for streamers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ..methods.streaming_monitor import Evidence, KeywordMonitor, LinearProbe, MonitorModel, StreamingMonitor
from .constrain import Hooks, Padding, Setting, TextStates, ends_of
from .monitor_scorers import CalledScorer, KeywordScorer, ModelScorer, ProbeScorer
from .processing import RowProcessor


class MonitorReport(NamedTuple):
    """What became of one text.

    Attributes:
        stopped: whether the monitor ended it.
        first: the generated token, from 0, at which the rule first said so; None if it never did.
        flagged: tokens flagged.
        scores: of the monitor's tokens, in order.
    """

    stopped: bool
    first: int | None
    flagged: int
    scores: list[float]


@dataclass(frozen=True, eq=False)
class _Cell:
    """A score in a text's trail, with all before it."""

    before: "_Cell | None"
    size: int
    score: float
    evidence: Evidence
    first: int | None


@dataclass(frozen=True, eq=False)
class _Text:
    """One text: its prompt's length, its own, what was scored, and what the scorer remembers."""

    prompt: int
    length: int = 0
    trail: _Cell | None = None
    memo: Any = None
    seen: int = 0  # tokens the scorer has seen
    ended: bool = False
    stopped: bool = False


class MonitorStates:
    """The texts of a generation as a monitor sees them.

    Args:
        method: the rule.
        scorer: as one of this module's.
        ends: tokens that end a text; they are not scored.
        padding: how prompts are padded.
        behind_prompt: the first text that is asked for is a prompt and a token.
    """

    def __init__(
        self,
        method: StreamingMonitor,
        scorer: Any,
        ends: frozenset[int],
        padding: Padding,
        behind_prompt: bool,
    ):
        self.method, self.scorer, self._ends, self._padding = method, scorer, ends, padding
        # A criterion asks about a text whose last token the model has not read yet.
        self._lag = int(behind_prompt and isinstance(scorer, ProbeScorer))
        self._states = TextStates(lambda ids, extra: _Text(len(ids)), self._follow, behind_prompt)

    def of(self, input_ids: Tensor) -> list[_Text]:
        """The state of every text."""
        return self._states.of(input_ids, list(input_ids))

    def find(self, ids: Sequence[int]) -> _Text | None:
        return self._states.find(ids)

    def _follow(self, text: _Text, token: int, ids: Tensor) -> _Text:
        if text.ended or text.stopped:
            return text
        ended = token in self._ends
        text = replace(text, length=text.length + 1, ended=ended)
        due = ended or text.length % self.method.every == 0
        if isinstance(self.scorer, ProbeScorer):
            # The end token is not scored; with a lag the token before the last one is.
            if text.length > self._lag and not (ended and not self._lag):
                score = self.scorer.of(ids[: len(ids) - self._lag])
                text = self._add(text, [score], text.length - self._lag)
        elif due:
            tokens = ids.tolist()
            prompt, written = tokens[: text.prompt], tokens[text.prompt : len(ids) - ended]
            size = 0 if text.trail is None else text.trail.size
            if len(written) > text.seen:
                prompt = prompt[self._padding.start(prompt) :]
                keep, scores, memo = self.scorer.score(text.memo, prompt, written, text.seen, size)
                trail = text.trail
                while trail is not None and trail.size > keep:
                    trail = trail.before
                text = self._add(
                    replace(text, trail=trail, memo=memo, seen=len(written)), scores, len(written)
                )
        first = None if text.trail is None else text.trail.first
        return replace(text, stopped=due and not ended and first is not None)

    def _add(self, text: _Text, scores: Sequence[float], upto: int) -> _Text:
        """A text with more scores; the last of them is of token ``upto``, counted from 1."""
        trail = text.trail
        for i, score in enumerate(scores):
            evidence = self.method.add(Evidence() if trail is None else trail.evidence, score)
            first = None if trail is None else trail.first
            if first is None and self.method.stops(evidence):
                # With other tokens than the monitor's own, the token that brought the news is named.
                first = max(upto - len(scores) + i, 0) if not self._retokenises else upto - 1
            trail = _Cell(trail, 1 if trail is None else trail.size + 1, score, evidence, first)
        return replace(text, trail=trail)

    @property
    def _retokenises(self) -> bool:
        return isinstance(self.scorer, ModelScorer) and self.scorer.retokenises

    def approved(self, text: _Text) -> int:
        """How many tokens of a text were found to be in order."""
        if text.trail is not None and text.trail.first is not None:
            return text.trail.first
        if text.ended:
            return text.length
        return text.length - self._lag if isinstance(self.scorer, ProbeScorer) else text.seen

    def report(self, ids: Sequence[int], pad: int | None = None) -> MonitorReport:
        """What became of a text, with its prompt and padding behind its end.

        Raises:
            KeyError: no such text was seen.
        """
        ids = list(ids)
        # Padding is of one token, an end token or -1 perhaps; and a processor has not seen the last token.
        fill, text = {pad, ids[-1]}, self.find(ids)
        while text is None and len(ids) > 1 and ids[-1] in fill:
            ids.pop()
            text = self.find(ids)
        if text is None:
            raise KeyError("the monitor has not seen this text")
        scores: list[float] = []
        trail = text.trail
        while trail is not None:
            scores.append(trail.score)
            trail = trail.before
        top = text.trail
        return MonitorReport(
            text.stopped,
            None if top is None else top.first,
            0 if top is None else top.evidence.count,
            scores[::-1],
        )


class ProbeRecorder(RowProcessor):
    """Looks at hidden states for a probe and leaves the logits alone."""

    def __init__(self, probe: ProbeScorer):
        self._probe = probe

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._probe.record(input_ids, self.places)
        return scores


class MonitorCriterion(StoppingCriteria):
    """Ends texts row by row; see :class:`tokops.methods.StreamingMonitor`.

    Attributes:
        processors: what must be among the logits processors: for a probe what looks at hidden states, else nothing.
    """

    def __init__(
        self, method: StreamingMonitor, model, tokenizer, ends, padding: Padding, gate: "Gate | None" = None
    ):
        scorer = _scorer(method, model, tokenizer)
        self.states = MonitorStates(method, scorer, ends, padding, behind_prompt=True)
        self.processors = [ProbeRecorder(scorer)] if isinstance(scorer, ProbeScorer) else []
        self._pad = padding.pad
        # transformers fills finished rows where a criterion has this attribute, and lets them run on where none has.
        self.eos_token_id = torch.tensor(sorted(ends), dtype=torch.int64)
        self._gate = gate
        if gate is not None:
            gate.states = self.states

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.states.of(input_ids)
        if self._gate is not None:
            self._gate.flush()
        return torch.tensor([text.stopped for text in texts], dtype=torch.bool, device=input_ids.device)

    def report(self, sequence: Sequence[int] | Tensor) -> MonitorReport:
        """What became of one of the sequences that ``generate`` returned."""
        ids = sequence.tolist() if isinstance(sequence, Tensor) else sequence
        return self.states.report(ids, self._pad)


class MonitorProcessor(RowProcessor):
    """Allows nothing but the end where the monitor ends a text."""

    def __init__(self, method: StreamingMonitor, model, tokenizer, ends: frozenset[int], padding: Padding):
        if not ends:
            raise ValueError("StreamingMonitor: a processor ends texts with an end token, and none is known")
        self.scorer = _scorer(method, model, tokenizer)
        self.states = MonitorStates(method, self.scorer, ends, padding, behind_prompt=False)
        self._end, self._pad = min(ends), padding.pad

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if isinstance(self.scorer, ProbeScorer):
            self.scorer.record(input_ids, self.places)
        stopped = [text.stopped for text in self.states.of(input_ids)]
        if not any(stopped):
            return scores
        only = torch.full_like(scores, float("-inf"))
        only[:, self._end] = 0.0
        return torch.where(torch.tensor(stopped, device=scores.device)[:, None], only, scores)

    report = MonitorCriterion.report


class Gate(BaseStreamer):
    """A streamer that passes on only what the monitor has found to be in order, for one text.

    Args:
        streamer: what shows the text.
        refusal: ids to show instead of the rest, where the monitor ends the text.
    """

    def __init__(self, streamer: BaseStreamer, refusal: Sequence[int] = ()):
        self._streamer, self._refusal = streamer, list(refusal)
        self.states: MonitorStates | None = None
        self._prompt: list[int] | None = None
        self._tokens: list[int] = []
        self._shown = 0

    def put(self, value: Tensor) -> None:
        ids = value.flatten().tolist()
        if self._prompt is None:
            self._prompt = ids
            self._streamer.put(value)
            return
        self._tokens += ids
        self.flush()

    def _known(self) -> _Text | None:
        """The longest beginning of the text that was looked at."""
        if self.states is None or self._prompt is None:
            return None
        for count in range(len(self._tokens), max(self._shown - 1, 0), -1):
            text = self.states.find([*self._prompt, *self._tokens[:count]])
            if text is not None:
                return text
        return None

    def flush(self) -> None:
        """Pass on what is in order now."""
        text = self._known()
        if text is not None and self.states is not None:
            self._show(self.states.approved(text))

    def _show(self, upto: int) -> None:
        while self._shown < min(upto, len(self._tokens)):
            self._streamer.put(torch.tensor([self._tokens[self._shown]]))
            self._shown += 1

    def end(self) -> None:
        text = self._known()
        if text is not None and text.stopped:
            for token in self._refusal:
                self._streamer.put(torch.tensor([token]))
        else:
            self._show(len(self._tokens))
        self._streamer.end()
        self._prompt, self._tokens, self._shown = None, [], 0


def _scorer(method: StreamingMonitor, model, tokenizer) -> Any:
    scorer = method.scorer
    if isinstance(scorer, LinearProbe):
        if model is None:
            raise ValueError("StreamingMonitor: a probe needs the model that decodes")
        return ProbeScorer(scorer, model)
    if isinstance(scorer, MonitorModel):
        return ModelScorer(scorer, tokenizer)
    return KeywordScorer(scorer, tokenizer) if isinstance(scorer, KeywordMonitor) else CalledScorer(scorer)


def make_criterion(method, model, tokenizer=None, *, eos=None, gate=None) -> MonitorCriterion:
    """The stopping criterion of a method.

    Args:
        method: a :class:`tokops.methods.StreamingMonitor`.
        model: the model that decodes.
        tokenizer: its tokenizer, where the scorer reads text.
        eos: end tokens; None: the model's, or the tokenizer's.
        gate: a :class:`Gate` that is ``generate``'s streamer.
    """
    ends = ends_of(model, tokenizer) if eos is None else frozenset(eos)
    return MonitorCriterion(method, model, tokenizer, ends, Padding.of(model, None, None), gate)


def make_processor(method, model, tokenizer=None, *, eos=None) -> MonitorProcessor:
    """A logits processor that ends texts with an end token; arguments as in :func:`make_criterion`."""
    ends = ends_of(model, tokenizer) if eos is None else frozenset(eos)
    return MonitorProcessor(method, model, tokenizer, ends, Padding.of(model, None, None))


def hooks(method: StreamingMonitor, setting: Setting) -> Hooks:
    """What the method adds to one generation.

    Raises:
        NotImplementedError: a probe under assisted decoding, whose forwards have several positions.
    """
    if setting.assisted and isinstance(method.scorer, LinearProbe):
        raise NotImplementedError(
            "StreamingMonitor with a probe does not support assisted decoding of transformers"
        )
    ends = setting.eos or ends_of(setting.model, setting.tokenizer)
    gate = setting.streamer if isinstance(setting.streamer, Gate) else None
    criterion = MonitorCriterion(method, setting.model, setting.tokenizer, ends, setting.padding, gate)
    scorer = criterion.states.scorer
    held = [x for name in ("watch", "reader") if (x := getattr(scorer, name, None)) is not None]
    return Hooks(list(criterion.processors), [criterion], held)
