"""The decoding loop of CNTP: every request of a batch is on its own, decoding one by one or trying continuations."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .._exact import sane_logits
from ..methods.cntp import CNTP, entropy_of, trial_stream
from ..sampling import sample
from .decoding import Feed, random_streams
from .families import CACHE, given_cache
from .processing import processors_of
from .punctuation import punctuation_ids


@dataclass(frozen=True)
class Branch:
    """One branch that was decided.

    Attributes:
        request: its place in the batch.
        start: position of the first token of the trials, in the request's own text.
        trials: how many there were.
        winner: number of the trial that was kept, from 0.
        length: its tokens.
        longest: tokens of the trial that the branch was decided after; what it took in forwards.
        score: its mean negative log-probability, in nats.
    """

    request: int
    start: int
    trials: int
    winner: int
    length: int
    longest: int
    score: float


@dataclass
class CNTPOutput(GenerateDecoderOnlyOutput):
    """What ``generate(return_dict_in_generate=True)`` gives: as ever, and which branches there were.

    Attributes:
        branches: in the order in which they were decided.
        forwards: forwards of the model after the prompt.
        rows: sequences in all of those.
    """

    branches: list[Branch] | None = None
    forwards: int | None = None
    rows: int | None = None


@dataclass
class _Request:
    stream: int
    padding: int
    finished: bool = False
    start: int = 0  # of the branch it is at, in its own text
    trials: int = 0


@dataclass(eq=False)
class _Row:
    """One sequence of the running batch: a request that decodes one by one, or one of its trials."""

    request: int
    source: int  # its row in the last forward
    filled: int  # tokens of its text, padding and the token not read yet among them
    trial: int | None = None
    tokens: list[int] = field(default_factory=list)  # of the trial
    surprise: float = 0.0  # their summed negative log-probability
    waiting: bool = False  # the trial has ended
    ended: bool = False  # by a stopping criterion
    token: int | None = None  # drawn after the last forward

    @property
    def score(self) -> tuple[float, int]:
        """What the smallest of wins."""
        return self.surprise / len(self.tokens), self.trial or 0


class _Texts:
    """Texts of all rows as one tensor, which processors and criteria look at."""

    def __init__(self, ids: Tensor):
        self.ids = ids.clone()

    def of(self, rows: list[_Row]) -> Tensor:
        """Texts ``[n, filled]`` of rows of one length, without what was drawn after the last forward."""
        index = torch.tensor([row.source for row in rows], device=self.ids.device)
        return self.ids[index, : rows[0].filled - (rows[0].token is not None)]

    def follow(self, rows: list[_Row]) -> None:
        """Become the texts of these rows, with what they have drawn."""
        index = torch.tensor([row.source for row in rows], device=self.ids.device)
        longest = max(row.filled for row in rows)
        room = self.ids.shape[1]
        if longest > room:
            self.ids = torch.cat([self.ids, self.ids.new_zeros(len(self.ids), max(longest - room, room))], 1)
        self.ids = self.ids[index]
        drawn = [(i, row.filled - 1, row.token) for i, row in enumerate(rows) if row.token is not None]
        if drawn:
            where, column, token = torch.tensor(drawn, device=self.ids.device).unbind(1)
            self.ids[where, column] = token

    def last(self, rows: list[_Row]) -> Tensor:
        """The newest token of every row, ``[R, 1]``."""
        column = torch.tensor([row.filled - 1 for row in rows], device=self.ids.device)
        return self.ids.gather(1, column[:, None])


def _by_length(rows: list[_Row]) -> list[list[_Row]]:
    groups: dict[int, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.filled, []).append(row)
    return list(groups.values())


class _Loop:
    """The running batch."""

    def __init__(
        self, model, method: CNTP, cache, texts: Tensor, requests, seed, processors, criteria, stops, emit
    ):
        self.model = model
        self.method = method
        self.cache = cache
        self.texts = _Texts(texts)
        self.requests: list[_Request] = requests
        #: Of every request the row that decodes it, or those of its trials.
        self.groups = [[_Row(i, i, texts.shape[1])] for i in range(len(requests))]
        self.seed = seed
        self.processors = processors
        self.criteria = criteria
        self.stops: frozenset[int] = stops
        self.emit = emit
        self.branches: list[Branch] = []
        self.forwards = 0
        self.forwarded = 0

    @property
    def rows(self) -> list[_Row]:
        """The rows of the batch, requests in order."""
        return [row for group in self.groups for row in group]

    def run(self, logits: Tensor) -> None:
        """Decode, given the logits of the prompts' last tokens."""
        while True:
            read = len(logits)
            drawn = self._advance(logits)
            rows = self.rows
            self.texts.follow(rows)
            if self.forwards:
                # Where nothing was drawn the token is read again: a trial that waits, a finished request.
                self.cache.keep(None, [int(row in drawn) for row in range(read)])
            order = [row.source for row in rows]
            if order != list(range(read)):
                self.cache.batch_select_indices(torch.tensor(order))
            for place, row in enumerate(rows):
                row.source, row.token = place, None
            if all(request.finished for request in self.requests):
                return
            logits = self._forward(rows)

    def _forward(self, rows: list[_Row]) -> Tensor:
        device = self.texts.ids.device
        padding = [self.requests[row.request].padding for row in rows]
        starts = torch.tensor(padding, dtype=torch.int32, device=device)
        lengths = torch.tensor(self.cache.lengths, device=device)
        self.cache.draft(None, None, starts if any(padding) else None)
        out = self.model(
            input_ids=self.texts.last(rows),
            attention_mask=None,
            position_ids=(lengths - starts)[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self.cache},
        )
        self.forwards += 1
        self.forwarded += len(rows)
        return out.logits[:, -1].float()

    def _advance(self, logits: Tensor) -> set[int]:
        """Draw from all rows that go on, branch and decide; returns the rows of the forward that were drawn from."""
        drawn: set[int] = set()
        ready = [row for row in self.rows if not row.waiting and not self.requests[row.request].finished]
        while ready:
            drawn |= {row.source for row in ready}
            for rows in _by_length(ready):
                self._draw(rows, logits)
            # A winner that had to wait has its next token's logits already.
            ready = [row for row in map(self._decide, range(len(self.groups))) if row is not None]
        return drawn

    def _draw(self, group: list[_Row], logits: Tensor) -> None:
        """One token for rows of one length, or the first tokens of trials where a row branches."""
        raw = sane_logits(logits[torch.tensor([row.source for row in group], device=logits.device)])
        places = [(row.source, -1) for row in group]
        processors = processors_of(self.processors, [row.request for row in group], places)
        scores = sane_logits(processors(self.texts.of(group), raw))
        entropy = entropy_of(scores)
        for row, nothing in zip(group, entropy.isnan().tolist(), strict=True):
            if nothing:
                raise RuntimeError(f"CNTP: no token of request {row.request} has a finite logit")
        trials = self.method.trials(entropy).tolist()
        rows: list[_Row] = []
        index = []
        for at, (row, count) in enumerate(zip(group, trials, strict=True)):
            new = [row] if row.trial is not None or count == 1 else self._branch(row, count)
            rows += new
            index += [at] * len(new)
        where = torch.tensor(index, device=logits.device)
        positions = [row.filled - self.requests[row.request].padding for row in rows]
        tokens = sample(
            scores[where],
            seed=self.seed,
            stream=torch.tensor([self._stream(row) for row in rows], device=logits.device),
            position=torch.tensor(positions, device=logits.device),
        ).long()
        judged = scores if self.method.score_on == "processed" else raw
        surprise = self._surprise(judged, where, tokens, rows)
        for row, token, cost in zip(rows, tokens.tolist(), surprise, strict=True):
            row.token = token
            row.filled += 1
            row.surprise += cost
            if row.trial is not None:
                row.tokens.append(token)
        stopped = self.criteria(torch.cat([self.texts.of(rows), tokens[:, None]], 1), scores[where])
        for row, stop in zip(rows, stopped.tolist(), strict=True):
            self._take(row, stop)

    def _branch(self, row: _Row, count: int) -> list[_Row]:
        request = self.requests[row.request]
        request.start, request.trials = row.filled - request.padding, count
        self.groups[row.request] = [
            _Row(row.request, row.source, row.filled, trial) for trial in range(count)
        ]
        return self.groups[row.request]

    def _stream(self, row: _Row) -> int:
        request = self.requests[row.request]
        return request.stream if row.trial is None else trial_stream(request.stream, request.start, row.trial)

    def _surprise(self, judged: Tensor, where: Tensor, tokens: Tensor, rows: list[_Row]) -> list[float]:
        """Negative log-probabilities of the trials' tokens, in float64; 0 for rows that are no trials."""
        trying = [i for i, row in enumerate(rows) if row.trial is not None]
        cost = [0.0] * len(rows)
        if trying:
            index = torch.tensor(trying, device=judged.device)
            law = judged[where[index]].double().log_softmax(-1)
            for i, value in zip(trying, (-law.gather(1, tokens[index, None])[:, 0]).tolist(), strict=True):
                cost[i] = value
        return cost

    def _take(self, row: _Row, stop: bool) -> None:
        """What a new token means for its row."""
        if row.trial is None:
            assert row.token is not None, "it was just drawn"
            self.requests[row.request].finished = stop
            self.emit([row.token])
            return
        row.ended = stop
        row.waiting = stop or row.tokens[-1] in self.stops or len(row.tokens) == self.method.max_trial_len

    def _decide(self, number: int) -> _Row | None:
        """Drop trials that have lost, and end the branch when one is left; the row to draw from at once, if any."""
        group = self.groups[number]
        over = [row for row in group if row.waiting]
        if not over:
            return None
        best = min(over, key=lambda row: row.score)
        # Equal trials may differ in the last bit, because rows of a batch do: the first of them is the winner.
        best = min((row for row in over if row.tokens == best.tokens), key=lambda row: row.score[1])
        alive = [row for row in group if not row.waiting and not self._hopeless(row, best)]
        self.groups[number] = [row for row in group if row is best or row in alive]
        if alive:
            return None
        request = self.requests[number]
        score = best.score
        longest = max(len(row.tokens) for row in group)
        self.branches.append(
            Branch(number, request.start, request.trials, score[1], len(best.tokens), longest, score[0])
        )
        self.emit(best.tokens)
        request.finished = best.ended
        waited = best.token is None
        best.trial, best.tokens, best.surprise, best.waiting = None, [], 0.0, False
        return best if waited and not request.finished else None

    def _hopeless(self, row: _Row, best: _Row) -> bool:
        return self.method.abort and row.surprise / self.method.max_trial_len > best.score[0]


def _stop_tokens(method: CNTP, tokenizer) -> frozenset[int]:
    if method.stop_tokens is not None:
        return frozenset(method.stop_tokens)
    if tokenizer is None:
        raise ValueError("CNTP: pass tokenizer= to generate, or give the method stop_tokens=")
    return punctuation_ids(tokenizer, method.characters, method.punct)


def _requests(streams, ids: Tensor, mask: Tensor | None) -> list[_Request]:
    batch = len(ids)
    numbers = random_streams("CNTP", streams, batch)
    padding = [0] * batch if mask is None else mask.int().argmax(-1).tolist()
    return [_Request(number, pad) for number, pad in zip(numbers, padding, strict=True)]


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
    **model_kwargs,
):
    """Cautious next token prediction, see :class:`tokops.methods.CNTP`.

    Processors and criteria see every row's own text, rows of one length at a time; they must judge rows one by one.
    """
    if not generation_config.do_sample:
        raise ValueError("CNTP needs do_sample=True: without chance all trials are the same")
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"CNTP: a streamer takes one request, got {len(input_ids)}")
    stops = _stop_tokens(method, tokenizer)
    mask = model_kwargs.get("attention_mask")
    requests = _requests(streams, input_ids, mask)
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    cache = given_cache(model_kwargs)
    feed = Feed(model, cache, mask, input_ids)
    prompt, chunk = cache.prompt_length, generation_config.prefill_chunk_size or cache.prompt_length
    for first in range(cache.get_seq_length(), prompt, chunk):
        logits = feed(input_ids, first, min(first + chunk, prompt))

    def emit(tokens):
        if streamer is not None:
            streamer.put(torch.tensor(tokens))

    loop = _Loop(
        model, method, cache, input_ids, requests, seed, logits_processor, stopping_criteria, stops, emit
    )
    loop.run(logits.float())
    if streamer is not None:
        streamer.end()
    ids = loop.texts.ids[:, : max(row.filled for row in loop.rows)]
    filled = torch.tensor([row.filled for row in loop.rows], device=ids.device)
    behind = torch.arange(ids.shape[1], device=ids.device) >= filled[:, None]
    ids = ids.masked_fill(behind, generation_config.pad_token_id or 0)
    if not generation_config.return_dict_in_generate:
        return ids
    counts = {"branches": loop.branches, "forwards": loop.forwards, "rows": loop.forwarded}
    return CNTPOutput(sequences=ids, **{CACHE: cache}, **counts)
