"""What scores tokens for :class:`tokops.methods.StreamingMonitor`: probes, keywords, callables, models."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from ..methods._words import split_bytes
from ..methods.streaming_monitor import KeywordMonitor, LinearProbe, MonitorModel
from .constrain import Watch, text_name, watch_hidden
from .continuing import Reader
from .token_bytes import token_bytes

#: A scorer's ``score(memo, prompt, written, seen, count)`` gives: how many of the ``count`` scores so far stay, the
#: scores behind them for what was written after ``seen`` tokens, and a new memo. It is None for a text's beginning.


class ProbeScorer:
    """Scores of texts that the model has read, by text."""

    #: Texts remembered.
    CAPACITY = 1 << 16

    def __init__(self, probe: LinearProbe, model):
        self.probe = probe
        self.watch: Watch = watch_hidden(model, probe.layer, "StreamingMonitor")
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def record(self, input_ids: Tensor, places) -> None:
        hidden = self.watch.at(places, len(input_ids))
        for ids, score in zip(input_ids, self.probe.score(hidden).tolist(), strict=True):
            self._scores[text_name(ids)] = score
        while len(self._scores) > max(self.CAPACITY, 4 * len(input_ids)):
            self._scores.popitem(last=False)

    def of(self, ids: Tensor) -> float:
        found = self._scores.get(text_name(ids))
        if found is None:
            raise RuntimeError(
                "StreamingMonitor: the probe has not seen this text: pass logits_processor=criterion.processors"
            )
        return found


class KeywordScorer:
    def __init__(self, monitor: KeywordMonitor, tokenizer):
        if tokenizer is None:
            raise ValueError("StreamingMonitor: keywords need a tokenizer: pass tokenizer= to generate")
        self._monitor, self._bytes = monitor, token_bytes(tokenizer)

    def score(self, memo, prompt, written, seen, count):
        state, pending = memo or (0, b"")
        scores = []
        for token in written[seen:]:
            data = pending + (self._bytes[token] if token < len(self._bytes) else b"")
            text, pending = split_bytes(data) or (data.decode(errors="replace"), b"")
            state, found = self._monitor.step(state, text)
            scores.append(float(found))
        return count, scores, (state, pending)


class CalledScorer:
    def __init__(self, function):
        self._function = function

    def score(self, memo, prompt, written, seen, count):
        scores = [float(x) for x in self._function([*prompt, *written], seen)]
        if len(scores) != len(written) - seen:
            raise ValueError(
                f"StreamingMonitor: the scorer must give {len(written) - seen} scores, got {len(scores)}"
            )
        return count, scores, None


class ModelScorer:
    """A monitor of its own, with the tokens of the model that decodes or with its own."""

    def __init__(self, monitor: MonitorModel, tokenizer):
        if monitor.tokenizer is not None and tokenizer is None:
            raise ValueError(
                "StreamingMonitor: a monitor with a tokenizer needs tokenizer= of the model that decodes"
            )
        self._monitor, self._tokenizer = monitor, tokenizer
        self.reader = Reader(monitor.model)
        #: Whether the monitor has tokens of its own.
        self.retokenises = monitor.tokenizer is not None
        # Whether words can be encoded one after the other, as those that put a space before a text cannot.
        self._by_word = monitor.tokenizer is not None and (
            self._encode("one two") == [*self._encode("one"), *self._encode(" two")]
        )

    def score(self, memo, prompt, written, seen, count):
        if self._monitor.tokenizer is None:
            head = prompt if self._monitor.prompt is None else self._monitor.prompt(prompt)
            return count, self._read(head, written, seen), None
        head, old, where, ids = memo or (self._prompt(prompt), [], 0, [])
        text = self._tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text.rstrip("�")  # a character that is not whole yet
        # Up to the last boundary between words the tokens will not change any more.
        tail = self._encode(text[where:])
        new = [*ids, *tail]
        keep = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
        )
        scores = self._read(head, new, keep) if len(new) > keep else []
        edge = _last_boundary(text) if self._by_word else 0
        if edge > where:
            ids, where = [*ids, *self._encode(text[where:edge])], edge
            if new[: len(ids)] != ids:  # this tokenizer joins across words: from the beginning, then
                ids, where = [], 0
        return keep, scores, (head, new, where, ids)

    def _prompt(self, prompt):
        text = self._tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self._monitor.prompt is not None:
            return list(self._monitor.prompt(text))
        return list(self._monitor.tokenizer.encode(text))

    def _encode(self, text):
        return list(self._monitor.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _read(self, head: Sequence[int], written: Sequence[int], first: int) -> list[float]:
        if first >= len(written):
            return []
        _, hidden = self.reader.read([*head, *written], len(head) + first, hidden=True)
        return self._monitor.score(hidden).tolist()


def _last_boundary(text: str) -> int:
    """Where the last single space between two words is; 0 if there is none."""
    for i in range(len(text) - 2, 0, -1):
        if text[i].isspace() and not text[i - 1].isspace() and not text[i + 1].isspace():
            return i
    return 0
