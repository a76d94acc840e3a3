"""The decoding loop of ASAp and CARS: rounds of texts, which start again where they fail and teach all that follow."""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..grammar.constraint import mask_by_asking, mask_of
from ..methods.asap import ASAp
from ..methods.cntp import trial_stream
from ..sampling import sample
from .asap_processor import NAN, Same, forbid, visit
from .awrs import warn_dead
from .constrained import Batch, Text, begin, draw_seed, end_ids, refuse_greedy, sequences
from .families import CACHE


@dataclass
class ASApOutput(GenerateDecoderOnlyOutput):
    """What ``generate(return_dict_in_generate=True)`` gives: as ever, and what it took.

    Attributes:
        complete: ``[B]`` bool: an end token ended the text.
        attempts: ``[B]`` int64: how often it was started.
        drawn: ``[B]`` int64: tokens that were drawn, those of rejected texts among them.
        checks: ``[B]`` int64: how often the constraint was asked about a token.
        tries: the trie of every request, None where there is no constraint.
    """

    complete: Tensor | None = None
    attempts: Tensor | None = None
    drawn: Tensor | None = None
    checks: Tensor | None = None
    tries: list | None = None


class _Gone:
    """A model as part of a key, which it does not keep alive."""

    def __init__(self, model):
        self._model, self._hash = weakref.ref(model), id(model)

    def __eq__(self, other) -> bool:
        return isinstance(other, _Gone) and self._model() is not None and self._model() is other._model()

    def __hash__(self) -> int:
        return self._hash


def settings_of(processors: LogitsProcessorList) -> tuple:
    """What decides the law besides model and prompt: every processor's kind and numbers, or itself."""

    def plain(value):
        if isinstance(value, torch.Tensor) and value.numel() <= 4096:
            return tuple(value.flatten().tolist())
        if isinstance(value, (int, float, str, bytes, type(None))):
            return value
        if isinstance(value, (list, tuple)):
            return tuple(plain(x) for x in value)
        return Same(value)

    return tuple(
        (type(processor), *((name, plain(value)) for name, value in sorted(vars(processor).items())))
        for processor in processors
    )


class _Attempt:
    """One try at a text: where it is in the trie."""

    def __init__(self, text: Text, trie, stream: int):
        self.text, self.trie = text, trie
        self.stream = stream
        self.node, self.token, self.logit = -1, -1, NAN
        self.deepest = -1  # the last context that the trie knows
        self.begun = False
        self.over = False
        self.rejected = False

    def adjust(self, row: Tensor, variant: str) -> None:
        """Change the logits of the next token in place."""
        constraint, state = self.text.constraint, self.text.state
        if self.trie is None or constraint is None:
            return
        self.raw = row.clone()
        self.mask = mask_of(constraint, state)
        if self.mask is None and variant == "asap":
            self.mask = mask_by_asking(constraint, state, len(row))
            self.text.checks.append(len(row))
        first = not self.begun
        if first or self.node >= 0:
            fresh_too = variant == "asap" or first
            self.node = visit(self.trie, self.node, self.token, self.logit, row, self.mask, fresh_too)
            self.deepest = self.node if self.node >= 0 else self.deepest
        elif variant == "asap" and self.mask is not None:
            forbid(row, self.mask)
        self.begun = True

    def take(self, token: int, ends: frozenset[int], variant: str) -> None:
        """What a drawn token means."""
        text = self.text
        if token < 0:
            return self._reject(-1)
        if text.constraint is None or variant == "asap":
            legal = True
        elif self.mask is not None:
            legal = (
                bool(self.mask[token // 32] >> (token % 32) & 1) if token // 32 < len(self.mask) else False
            )
        else:
            legal = text.ok(token)
            text.checks.append(1)
        if not legal:
            return self._reject(token)
        text.take(token, token in ends)
        self.token = token
        self.over = text.ended
        self.logit = NAN if self.trie is None else float(self.raw[token])

    def _reject(self, token: int) -> None:
        self.over = self.rejected = True
        if self.trie is not None and self.node >= 0 and token >= 0:
            self.trie.reject(self.node, token, float(self.raw[token]))

    def end(self) -> None:
        """Say where the text has come to an end, or no further."""
        if self.trie is not None and self.deepest >= 0:
            self.trie.end(self.deepest)


class _Loop:
    """Rounds of attempts: all texts that are still wanted, each once a round."""

    def __init__(self, batch: Batch, texts: list[Text], method: ASAp, seed: int, ends, run, settings):
        self.batch, self.texts, self.method, self.seed = batch, texts, method, seed
        self.ends, self.run, self.settings = ends, run, settings
        self.tries: list = []
        self.starts = [text.state for text in texts]
        self.attempts = [0] * len(texts)
        self.drawn = [0] * len(texts)

    def go(self) -> None:
        logits = self.batch.prefill()
        self.tries = [self._trie(text, logits.shape[1]) for text in self.texts]
        wanted = list(self.texts)
        while wanted:
            again = self._round(wanted, logits)
            rows = [row for row, text in enumerate(wanted) if text in again]
            if rows:
                self._rewind(rows)
                logits = logits[torch.tensor(rows, device=logits.device)]
            wanted = again

    def _trie(self, text: Text, vocabulary: int):
        if text.constraint is None:
            return None
        prompt = tuple(self.batch.prompt[text.request, text.padding :].tolist())
        key = (_Gone(self.batch.model), Same(text.constraint), prompt, self.settings)
        return self.method.tries.of(key, vocabulary, self.method.max_bytes)

    def _round(self, texts: list[Text], logits: Tensor) -> list[Text]:
        """One attempt at every text; those to begin again."""
        attempts = []
        for text in texts:
            number = self.attempts[text.request]
            self.attempts[text.request] += 1
            attempts.append(_Attempt(text, self.tries[text.request], trial_stream(text.stream, number, 0)))
        mine = {id(trie): trie for trie in self.tries if trie is not None}
        for trie in mine.values():
            trie.freeze()
        try:
            self._write(attempts, logits)
        finally:
            for trie in mine.values():
                trie.merge()
        again = []
        for attempt in attempts:
            text = attempt.text
            if not attempt.rejected:
                continue
            text.tokens, text.ended, text.complete = [], False, False
            text.state = self.starts[text.request]
            trie = self.tries[text.request]
            hopeless = trie is None or (len(trie) > 0 and trie.node(0)["mass"] == float("-inf"))
            if self.attempts[text.request] < self.method.max_attempts and not hopeless:
                again.append(text)
            else:
                text.ended = text.dead = True
        return again

    def _write(self, attempts: list[_Attempt], logits: Tensor) -> None:
        variant = self.method.variant
        while True:
            scores = self.batch.scores(logits)
            going = [(row, attempt) for row, attempt in enumerate(attempts) if not attempt.over]
            for row, attempt in going:
                attempt.adjust(scores[row], variant)
            tokens = sample(
                scores,
                seed=self.seed,
                stream=torch.tensor([attempt.stream for attempt in attempts], device=scores.device),
                position=torch.tensor([self.batch.position(a.text) for a in attempts], device=scores.device),
            ).tolist()
            for row, attempt in going:
                self.drawn[attempt.text.request] += tokens[row] >= 0
                attempt.take(tokens[row], self.ends, variant)
            self.batch.append([max(token, 0) for token in tokens])
            stopped = self.batch.stopped(scores)
            for row, attempt in going:
                attempt.over = attempt.over or stopped[row]
                if attempt.over:
                    attempt.end()
            if all(attempt.over for attempt in attempts):
                return
            # A text that is over stays in the batch until the round is: its prompt may be needed again.
            logits = self.batch.forward()

    def _rewind(self, rows: list[int]) -> None:
        """Back to the prompts, of these rows alone."""
        batch = self.batch
        batch.select(rows)
        batch.ids = batch.ids[:, : batch.prompt.shape[1]]
        length = batch.cache.prompt_length
        if batch.cache.state.layout is None and not batch.watched:
            behind = batch.cache.get_seq_length() - length
            if behind:
                batch.cache.crop(-behind)
        else:
            # A store keeps other values of a prompt's end once it has packed it, and who looks at the last forward
            # must see that of the prompts: read them again.
            batch.renew(self.run.new_cache(length))


def generate_loop(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    *,
    run,
    method,
    streamer=None,
    tokenizer=None,
    seed=None,
    streams=None,
    constraints=None,
    **model_kwargs,
):
    """Grammar-aligned decoding, see :class:`tokops.methods.ASAp`."""
    refuse_greedy("ASAp", generation_config)
    if streamer is not None:
        raise NotImplementedError("ASAp does not support a streamer: a text may begin again")
    mask = model_kwargs.get("attention_mask")
    texts = begin("ASAp", len(input_ids), mask, streams, method.constraint, constraints)
    ends = end_ids(generation_config, [text.constraint for text in texts])
    batch = Batch(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config.prefill_chunk_size,
        model_kwargs,
    )
    if batch.feed.offset:
        raise NotImplementedError(
            "ASAp: what is learned belongs to a prompt: pass all of it as input_ids, also what the cache holds"
        )
    batch.cache.activate_past_recording()
    loop = _Loop(batch, texts, method, draw_seed(seed), ends, run, settings_of(logits_processor))
    loop.go()
    warn_dead("ASAp", texts)
    ids = sequences(input_ids, texts, generation_config.pad_token_id)
    if not generation_config.return_dict_in_generate:
        return ids
    return ASApOutput(
        sequences=ids,
        complete=torch.tensor([text.complete for text in texts]),
        attempts=torch.tensor(loop.attempts),
        drawn=torch.tensor(loop.drawn),
        checks=torch.tensor([sum(text.checks) for text in texts]),
        tries=loop.tries,
        **{CACHE: batch.cache},
    )
