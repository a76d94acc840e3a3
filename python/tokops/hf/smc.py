"""The decoding loop of SMC: particles of all requests in one batch, drawn anew by permuting the cache's page tables."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .._bitmask import packed
from .._exact import Stream, Use
from ..methods.cntp import trial_stream
from ..methods.smc import SMC, effective, log_sum, normalised, pick, resample
from .awrs import draw_tokens, warn_dead
from .constrained import Batch, Text, begin, draw_seed, end_ids, refuse_greedy, sequences
from .families import CACHE

#: Numbers of streams beside those of the particles, which are below 2^32.
_PARTICLE, _RESAMPLE, _CHOOSE = 1 << 40, 1 << 41, 1 << 42


@dataclass
class SMCOutput(GenerateDecoderOnlyOutput):
    """What ``generate(return_dict_in_generate=True)`` gives: all particles, and what they say of the law.

    Attributes:
        sequences: ``[B * P, L]``: the particles of the first request, then those of the next.
        log_weights: ``[B, P]`` float64, not normalised.
        log_z: ``[B]`` float64: log of the weights' mean, whose exponential estimates the chance of a valid text.
        complete: ``[B, P]`` bool: an end token ended the text.
        checks: ``[B]`` int64: how often the constraint was asked.
        drawn: ``[B]`` int64: tokens that were drawn, by all particles, lost ones among them.
        resampled: ``[B]`` int64: how often particles were drawn anew.
        chosen: ``[B]`` int64: the particle of each request that ``generate`` gives without a dictionary.
        forwards, rows: forwards of the model after the prompt, and rows in all of them.
    """

    log_weights: Tensor | None = None
    log_z: Tensor | None = None
    complete: Tensor | None = None
    checks: Tensor | None = None
    drawn: Tensor | None = None
    resampled: Tensor | None = None
    chosen: Tensor | None = None
    forwards: int | None = None
    rows: int | None = None


class _Request:
    """The particles of one request."""

    def __init__(self, text: Text, method: SMC, seed: int):
        self.method = method
        self.number = text.request
        self.random = [Stream(seed, trial_stream(text.stream, use, 0)) for use in (_RESAMPLE, _CHOOSE)]
        #: A place has a stream: copies of one text go on with different numbers.
        self.streams = [trial_stream(text.stream, _PARTICLE, i) for i in range(method.particles)]
        self.particles: list[Text] = []
        self.moved: list[Text] = []  # those that got a token in this step
        self.twists = [0.0] * method.particles
        self.checks = self.drawn = self.resampled = self.steps = 0
        self._place([text] * method.particles)

    def _place(self, sources: list[Text]) -> None:
        particles = []
        for source, stream in zip(sources, self.streams, strict=True):
            twin = copy.copy(source)
            twin.tokens, twin.checks, twin.stream = list(source.tokens), list(source.checks), stream
            particles.append(twin)
        self.particles = particles

    def untwist(self) -> None:
        """Take back what the critic said of texts that go on."""
        for i, text in enumerate(self.particles):
            text.log_weight -= self.twists[i]
            self.twists[i] = 0.0

    def judge(self) -> None:
        """Ask the critic about every text that has a new token; a text it gives weight 0 ends."""
        if self.method.critic is None:
            return
        for i, text in enumerate(self.particles):
            if not text.dead and text in self.moved:
                value = float(self.method.critic(self.number, tuple(text.tokens), text.complete))
                text.log_weight += value
                if value == -math.inf:
                    text.ended = text.dead = True
                elif not text.ended:
                    self.twists[i] = value

    def begin_step(self) -> list[Text]:
        """The texts that get a token now."""
        self.untwist()
        self.moved = [text for text in self.particles if not text.ended]
        return self.moved

    def end_step(self) -> list[int]:
        """Draw particles anew where their weights ask for it; the places that they come from."""
        self.judge()
        self.steps += 1
        count = self.method.particles
        places = list(range(count))
        weights = [text.log_weight for text in self.particles]
        going = any(not text.ended for text in self.particles)
        if not going or not 0 < effective(weights) < self.method.threshold * count:
            return places
        places = resample(
            normalised(weights),
            lambda i: self.random[0].uniform(self.steps, i, Use.PLAIN),
            self.method.resampling,
        )
        self.resampled += 1
        mean = log_sum(weights) - math.log(count)
        self._place([self.particles[i] for i in places])
        self.twists = [self.twists[i] for i in places]
        for text in self.particles:
            text.log_weight = mean
        return places

    def choose(self) -> int:
        """A particle, by the weights; the first where all are 0."""
        shares = normalised([text.log_weight for text in self.particles])
        if not any(shares):
            return 0
        return pick(shares, self.random[1].uniform(0, 0, Use.PLAIN))


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
    """Sequential Monte Carlo, see :class:`tokops.methods.SMC`."""
    refuse_greedy("SMC", generation_config)
    if streamer is not None:
        raise NotImplementedError(
            "SMC does not support a streamer: texts are replaced while they are written"
        )
    sampler = method.awrs
    mask = model_kwargs.get("attention_mask")
    texts = begin("SMC", len(input_ids), mask, streams, sampler.constraint, constraints)
    ends = end_ids(generation_config, [text.constraint for text in texts])
    seed = draw_seed(seed)
    batch = Batch(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config.prefill_chunk_size,
        model_kwargs,
    )
    requests = [_Request(text, method, seed) for text in texts]
    logits = batch.prefill()
    ends = frozenset(token for token in ends if token < logits.shape[1])
    index = [b for b in range(len(texts)) for _ in range(method.particles)]
    batch.select(index)
    logits = logits[torch.tensor(index, device=logits.device)]
    limit = generation_config.max_length
    while True:
        rows = [text for request in requests for text in request.begin_step()]
        scores = batch.scores(logits)
        last = bool(ends) and limit is not None and batch.ids.shape[1] + 1 >= limit
        masks = [_ends_only(text, ends, scores.shape[1]) for text in rows] if last else None
        draws = draw_tokens(sampler, batch, rows, scores, seed, masks)
        for text, token, accepted, weight, checks in zip(rows, *draws, strict=True):
            request = requests[text.request]
            request.checks += checks + (len(ends) if last else 0)
            request.drawn += 1
            text.log_weight += weight
            if accepted:
                text.take(token, token in ends)
            else:
                text.ended = text.dead = True
        batch.append([max(token, 0) for token in draws.tokens])
        for text, stop in zip(rows, batch.stopped(scores), strict=True):
            text.ended = text.ended or stop
        running = _resample(requests, rows)
        if not running:
            break
        batch.select(running)
        logits = batch.forward()
    return _output(method, requests, batch, generation_config)


def _ends_only(text: Text, ends: frozenset[int], size: int) -> Tensor:
    """The packed mask of the end tokens that are legal."""
    legal = torch.zeros(size, dtype=torch.bool)
    for token in ends:
        legal[token] = text.ok(token)
    return packed(legal)


def _resample(requests: list[_Request], rows: list[Text]) -> list[int]:
    """End the step of all requests; the rows, in order, that the texts which go on come from."""
    where = {id(text): row for row, text in enumerate(rows)}
    running = []
    for request in requests:
        before = request.particles
        for place, text in zip(request.end_step(), request.particles, strict=True):
            if not text.ended:
                running.append(where[id(before[place])])
    return running


def _output(method: SMC, requests: list[_Request], batch: Batch, config):
    chosen = [request.choose() for request in requests]
    texts = [text for request in requests for text in request.particles]
    kept = [request.particles[i] for request, i in zip(requests, chosen, strict=True)]
    warn_dead("SMC", kept)
    if not config.return_dict_in_generate:
        return sequences(batch.prompt, kept, config.pad_token_id)
    shape = (len(requests), method.particles)
    weights = torch.tensor([text.log_weight for text in texts], dtype=torch.float64).view(shape)
    return SMCOutput(
        sequences=sequences(batch.prompt, texts, config.pad_token_id),
        log_weights=weights,
        log_z=weights.logsumexp(-1) - math.log(method.particles),
        complete=torch.tensor([text.complete for text in texts]).view(shape),
        checks=torch.tensor([request.checks for request in requests]),
        drawn=torch.tensor([request.drawn for request in requests]),
        resampled=torch.tensor([request.resampled for request in requests]),
        chosen=torch.tensor(chosen),
        forwards=batch.forwards,
        rows=batch.rows,
        **{CACHE: batch.cache},
    )
