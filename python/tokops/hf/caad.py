"""CAAD's datastore, and its logits processor with what embeds the text so far."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..methods.caad import CAAD, Grounding, embedding_name
from .constrain import Hooks, Padding, Setting, TextStates, watch_hidden
from .families import digest
from .processing import RowProcessor

__all__ = ["build_grounding", "fingerprint"]


def fingerprint(tokenizer) -> str:
    """A short hash of a tokenizer's tokens and their ids; "" for no tokenizer."""
    if tokenizer is None:
        return ""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.sha256(vocabulary).hexdigest()[:16]


@torch.no_grad()
def build_grounding(
    model,
    tokenizer,
    pairs: Sequence[tuple[Any, Any]],
    *,
    prompt: Callable[[str], list[int]] | None = None,
    embed: str | Callable = "last",
    layer: int | None = None,
    window: int = 128,
    embed_on: str = "text",
    top: int | None = None,
    dtype: torch.dtype = torch.float16,
    end: int | None = None,
    drop_below: float | None = None,
    gold_bonus: float = 0.0,
    tick: Callable[[int], None] = lambda pairs: None,
) -> Grounding:
    """A datastore out of questions and true answers.

    The model reads every question with its answer; each position that predicts a token of the answer gives an entry.

    Args:
        model: the model that will decode.
        tokenizer: its tokenizer; None where pairs are lists of ids.
        pairs: questions and answers, as text or as ids. Answers as text follow the prompt directly: begin them with a
            space where the template wants one.
        prompt: the ids of a question as they will be when decoding, with the chat template; None: the tokenizer's.
        embed, layer, window, embed_on: see :class:`tokops.methods.CAAD`.
        top: likeliest tokens kept of every law; None: all, which are V * 2 bytes an entry.
        dtype: of what is kept.
        end: token that ends an answer, so that ends are in the datastore, too; None adds none.
        drop_below: positions whose true token has a lower log-probability are left out; None: none.
        gold_bonus: added to the logit of the true token.
        tick: called after every pair with their number so far.

    Raises:
        ValueError: an empty question or answer, a text without a tokenizer, or no pairs.
    """
    if not pairs:
        raise ValueError("build_grounding: pairs must be at least one question and answer, got none")
    external = None if isinstance(embed, str) else _External(embed, window, embed_on, tokenizer, Padding())
    watch = watch_hidden(model, layer, "build_grounding") if external is None else None
    keys, laws = [], []
    try:
        for number, (question, answer) in enumerate(pairs, 1):
            before = _ids(tokenizer, question, prompt, begins=True)
            after = _ids(tokenizer, answer, None, begins=False)
            after += [] if end is None else [end]
            if not before or not after:
                raise ValueError(f"build_grounding: pair {number} has an empty question or answer")
            ids = torch.tensor([before + after[:-1]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 :].float()
            gold = torch.tensor(after, device=logits.device)[:, None]
            likely = logits.log_softmax(-1).gather(1, gold)[:, 0]
            logits.scatter_add_(1, gold, torch.full_like(logits[:, :1], gold_bonus).expand_as(gold))
            keep = torch.ones_like(likely, dtype=torch.bool) if drop_below is None else likely >= drop_below
            if watch is not None:
                hidden = watch.seen(0).float()
                if embed == "mean":
                    count = torch.arange(1, len(hidden) + 1, device=hidden.device)
                    hidden = hidden.cumsum(0) / count[:, None]
                vectors = hidden[len(before) - 1 :]
            else:
                assert external is not None, "one of the two"
                texts = [before + after[:t] for t in range(len(after))]
                vectors = torch.cat([external(torch.tensor([text]), None) for text in texts])
            keys.append(vectors[keep.to(vectors.device)].to(logits.device))
            laws.append(logits[keep])
            tick(number)
    finally:
        if watch is not None:
            watch.close()
    return Grounding.of(
        torch.cat(keys), torch.cat(laws), top=top, dtype=dtype,
        tokenizer=fingerprint(tokenizer), model=digest(model.config), embed=embedding_name(embed, layer),
    )  # fmt: skip


def _ids(tokenizer, text, prompt, begins) -> list[int]:
    if not isinstance(text, str):
        return list(text)
    if prompt is not None:
        return list(prompt(text))
    if tokenizer is None:
        raise ValueError(f"build_grounding: text needs a tokenizer, got {text!r} and none")
    return list(tokenizer.encode(text, add_special_tokens=begins))


class _External:
    """An encoder of sentences, on the end of every text."""

    def __init__(self, embed, window: int, on: str, tokenizer, padding: Padding):
        if on == "text" and tokenizer is None:
            raise ValueError("CAAD: pass tokenizer= to generate, or set embed_on='ids'")
        self._embed, self._window, self._on = embed, window, on
        self._tokenizer = tokenizer
        self._starts = TextStates(lambda ids, extra: padding.start(ids), lambda start, token, extra: start)

    def __call__(self, input_ids: Tensor, places) -> Tensor:
        starts = self._starts.of(input_ids)
        texts = [ids[start:][-self._window :] for ids, start in zip(input_ids.tolist(), starts, strict=True)]
        if self._on == "text":
            texts = self._tokenizer.batch_decode(texts, skip_special_tokens=True)
        return torch.as_tensor(self._embed(texts)).float()


class _Hidden:
    """The model's own hidden states, of the last token or of all on average."""

    def __init__(self, model, layer: int | None, pool: str, padding: Padding):
        self.watch = watch_hidden(model, layer, "CAAD", history=pool == "mean")
        self._pool, self._padding = pool, padding
        self._sums = TextStates(self._begin, lambda state, token, extra: (state[0] + extra[1], state[1] + 1))

    def _begin(self, ids, extra):
        visible = len(ids) - self._padding.start(ids)
        seen = self.watch.seen(extra[0])[-visible:].float()
        return seen.sum(0), len(seen)

    def __call__(self, input_ids: Tensor, places) -> Tensor:
        last = self.watch.at(places, len(input_ids)).float()
        if self._pool == "last":
            return last
        extras = [(i if places is None else places[i][0], last[i]) for i in range(len(last))]
        return torch.stack([total / number for total, number in self._sums.of(input_ids, extras)])


class CAADProcessor(RowProcessor):
    """Mixes the datastore into every law; see :class:`tokops.methods.CAAD`."""

    def __init__(self, method: CAAD, embedder: Any):
        self._method, self._embedder = method, embedder
        self._lengths = TextStates(lambda ids, extra: 0, lambda length, token, extra: length + 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        method = self._method
        embedded = self._embedder(input_ids, self.places).to(scores.device)
        mixed = method.mix(scores, embedded)
        if method.max_tokens is not None:
            guided = [length < method.max_tokens for length in self._lengths.of(input_ids)]
            mixed = torch.where(torch.tensor(guided, device=scores.device)[:, None], mixed, scores)
        return mixed


def make_processor(method: CAAD, model, tokenizer=None) -> CAADProcessor:
    """The processor of a method.

    Args:
        method: a :class:`tokops.methods.CAAD`.
        model: the model that decodes.
        tokenizer: for an encoder of sentences; where it is given, the datastore must be of it.

    Raises:
        ValueError: a datastore of another tokenizer, model or vocabulary.
    """
    return _make(method, model, tokenizer, Padding.of(model, None, None))


def _make(method, model, tokenizer, padding) -> CAADProcessor:
    known = method.grounding.tokenizer
    if tokenizer is not None and known and known != fingerprint(tokenizer):
        raise ValueError(
            f"CAAD: the datastore is of another tokenizer, {known} and not {fingerprint(tokenizer)}"
        )
    if method.grounding.model and method.grounding.model != digest(model.config):
        raise ValueError(
            f"CAAD: the datastore is of another model, {method.grounding.model} and not {digest(model.config)}"
        )
    placed = CAAD(**{**vars(method), "grounding": method.grounding.to(model.device)})
    if isinstance(method.embed, str):
        return CAADProcessor(placed, _Hidden(model, method.layer, method.embed, padding))
    return CAADProcessor(placed, _External(method.embed, method.window, method.embed_on, tokenizer, padding))


def hooks(method: CAAD, setting: Setting) -> Hooks:
    """What the method adds to one generation.

    Raises:
        NotImplementedError: hidden states under assisted decoding, whose forwards have several positions.
    """
    if setting.assisted and isinstance(method.embed, str):
        raise NotImplementedError(
            "CAAD with hidden states does not support assisted decoding of transformers"
        )
    processor = _make(method, setting.model, setting.tokenizer, setting.padding)
    watch = getattr(processor._embedder, "watch", None)
    return Hooks([processor], held=[] if watch is None else [watch])
