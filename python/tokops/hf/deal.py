"""DeAL with one beam: a logits processor that continues every candidate before it judges it."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..methods.deal import DeAL
from .constrain import Hooks, Padding, Setting, TextStates, ends_of
from .continuing import Reader, Texts, Writer
from .processing import RowProcessor


@dataclass
class _Text:
    """A text: where its prompt ends, the h of what it was judged by, whether it has ended, h of its candidates."""

    prompt: int
    h: float = 0.0
    ended: bool = False
    judged: dict[int, float] = field(default_factory=dict)


class DeALProcessor(RowProcessor):
    """Ranks the likeliest candidates by ``logP + lam * h`` of what they lead to; see :class:`tokops.methods.DeAL`.

    To a candidate's log-probability it adds ``lam`` times what its h is above that of the text before it. So sums
    along a text, which beams are ranked by, are ``logP + lam * h`` of the whole.

    Attributes:
        reader: counts forwards and tokens of the continuations.
    """

    def __init__(self, method: DeAL, model, texts: Texts, ends: frozenset[int], padding: Padding):
        self.method, self.reader = method, Reader(model)
        self._texts, self._ends, self._padding = texts, ends, padding
        seed = method.seed
        if seed is None:
            seed = int(torch.randint(2**62, ())) if method.temperature else 0
        self._writer = Writer(method.look_ahead, ends, method.temperature, method.no_repeat_ngram, seed)
        self._states = TextStates(lambda ids, extra: _Text(len(ids)), self._follow)

    def _follow(self, text, token, extra):
        return _Text(text.prompt, text.judged.get(token, 0.0), text.ended or token in self._ends)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = input_ids.tolist()
        states = self._states.of(input_ids)
        laws = scores.float().log_softmax(-1)
        out = torch.full_like(scores, float("-inf"))
        for i, (ids, text) in enumerate(zip(rows, states, strict=True)):
            if text.ended or not self.method.lam:
                out[i] = scores[i]
                continue
            start = self._padding.start(ids[: text.prompt])
            values, tokens = _likeliest(laws[i], self.method.k)
            judged = self._judge(ids[start : text.prompt], ids[text.prompt :], tokens)
            text.judged.update(zip(tokens, judged, strict=True))
            before = text.h if math.isfinite(text.h) else 0.0
            gains = torch.tensor([h - before for h in judged], device=scores.device, dtype=torch.float64)
            out[i, tokens] = (values.double() + self.method.lam * gains).to(out.dtype)
            if bool(out[i].isneginf().all()):  # every candidate is forbidden: they stay as likely as they are
                out[i, tokens] = values.to(out.dtype)
        return out

    def _judge(self, prompt: list[int], written: list[int], tokens: list[int]) -> list[float]:
        """h of a text behind each candidate."""
        going = [token for token in tokens if token not in self._ends]
        ahead: dict[int, list[int]] = {}
        if going and self.method.look_ahead:
            ahead = dict(
                zip(going, self.reader.continuations([*prompt, *written], going, self._writer), strict=True)
            )
        texts = self._texts.show([[*written, token, *ahead.get(token, [])] for token in tokens])
        return self.method.score(self._texts.show([prompt]) * len(texts), texts)


def _likeliest(law: Tensor, k: int) -> tuple[Tensor, list[int]]:
    """The k largest entries of a law, the first of equals, none of them -inf."""
    values, tokens = law.sort(descending=True, stable=True)
    count = min(k, int(values.isfinite().sum()))
    return values[:count], tokens[:count].tolist()


def texts_for(method: DeAL, tokenizer) -> Texts:
    """How a method's heuristics are shown texts.

    Raises:
        ValueError: they want text, and there is no tokenizer.
    """
    if not method.on_ids and tokenizer is None:
        raise ValueError("DeAL: pass tokenizer= to generate, or set on_ids=True")
    return Texts(None if method.on_ids else tokenizer)


def make_processor(method: DeAL, model, tokenizer=None, *, eos=None) -> DeALProcessor:
    """The processor of a method with one beam.

    Args:
        method: a :class:`tokops.methods.DeAL`.
        model: the model that decodes; it also writes the continuations.
        tokenizer: for heuristics of text.
        eos: end tokens; None: the model's, or the tokenizer's.

    Raises:
        ValueError: several beams or chunks, which take ``tokops.patch``; no tokenizer.
    """
    if method.searches:
        raise ValueError("DeAL with several beams or chunks is a decoding loop: use tokops.patch")
    ends = ends_of(model, tokenizer) if eos is None else frozenset(eos)
    return DeALProcessor(method, model, texts_for(method, tokenizer), ends, Padding.of(model, None, None))


def hooks(method: DeAL, setting: Setting) -> Hooks:
    """What the method adds to one generation."""
    texts = texts_for(method, setting.tokenizer)
    ends = setting.eos or ends_of(setting.model, setting.tokenizer)
    processor = DeALProcessor(method, setting.model, texts, ends, setting.padding)
    return Hooks([processor], held=[processor.reader])
