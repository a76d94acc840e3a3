"""The decoding loop of DeAL with several beams or chunks, run through ``generate(custom_generate=...)``."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..methods.deal import DeAL
from ..sampling import sample
from .constrain import ends_of, unwatched
from .continuing import Writer
from .deal import texts_for
from .decoding import Feed
from .families import CACHE, given_cache
from .processing import processors_of
from .stopping import StopRule


@dataclass
class DeALOutput(GenerateDecoderOnlyOutput):
    """What ``generate(return_dict_in_generate=True)`` gives: as ever, and how the texts were judged.

    Attributes:
        ranks: ``[B]``, the score of every text, ``logP / length ** norm + lam * h``.
        logp: ``[B]``, its log-probability.
        forwards: forwards of the model after the prompt.
        continued: candidates that were continued; reused: those that took their beam's; skipped: those that were not
            worth it.
    """

    ranks: list[float] | None = None
    logp: list[float] | None = None
    forwards: int | None = None
    continued: int | None = None
    reused: int | None = None
    skipped: int | None = None


@dataclass(eq=False)
class _Beam:
    """A text of one request."""

    request: int
    tokens: list[int]  # generated
    logp: float = 0.0
    rank: float = 0.0
    row: int = -1  # in the cache
    source: int = -1  # its row in the forward that its logits are of
    ahead: list[int] = field(default_factory=list)  # what it was judged by, behind its tokens
    complete: bool = False  # nothing can follow what it was judged by


class _Search:
    """The beams of all requests. All texts that go on are of one length, and in one cache, row by row."""

    def __init__(
        self, model, method: DeAL, cache, ids: Tensor, mask, processors, stop: StopRule, texts, ends, config
    ):
        self.model, self.method, self.cache = model, method, cache
        self._ids, self._processors, self._stop, self._texts = ids, processors, stop, texts
        self._ends, self._sampling = ends, config.do_sample
        self.length = ids.shape[1]
        visible = None if mask is None else mask[:, : cache.prompt_length].int()
        self._starts = [0] * len(ids) if visible is None else visible.argmax(-1).tolist()
        self._offset = cache.prompt_length - ids.shape[1]
        seed = method.seed
        chance = config.do_sample or method.temperature or method.chunk
        self.seed = (int(torch.randint(2**62, ())) if chance else 0) if seed is None else seed
        self.writer = Writer(method.look_ahead, ends, method.temperature, method.no_repeat_ngram, self.seed)
        self.frontier = [_Beam(b, [], row=b, source=b) for b in range(len(ids))]
        self.done: list[list[_Beam]] = [[] for _ in ids]
        self._prompts = self._texts.show(
            [row[max(s - self._offset, 0) :] for row, s in zip(ids.tolist(), self._starts, strict=True)]
        )
        self.forwards = self.continued = self.reused = self.skipped = 0

    # ---- Forwards.

    def forward(self, tokens: Tensor, requests: list[int]) -> Tensor:
        """Read one token per row; returns ``[R, V]`` logits."""
        starts = torch.tensor([self._starts[b] for b in requests], device=tokens.device)
        length = self.cache.get_seq_length()
        mask = None
        if bool(starts.any()):
            mask = (torch.arange(length + 1, device=tokens.device) >= starts[:, None]).long()
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=(length - starts)[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self.cache},
        )
        self.forwards += 1
        return out.logits[:, -1].float()

    def _select(self, rows: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(rows, dtype=torch.int64))

    def _texts_of(self, beams: list[_Beam]) -> Tensor:
        """Prompts and tokens ``[n, L]`` of beams of one length."""
        prompts = self._ids[[beam.request for beam in beams]]
        return torch.cat([prompts, prompts.new_tensor([beam.tokens for beam in beams])], 1)

    def _law(self, beams: list[_Beam], logits: Tensor) -> Tensor:
        """Processed log-probabilities, in transformers' order: processors see log-probabilities of beams."""
        rows = [beam.request for beam in beams]
        processors = processors_of(self._processors, rows, [(beam.source, -1) for beam in beams])
        return processors(self._texts_of(beams), logits.log_softmax(-1))

    # ---- Candidates.

    def _candidates(self, beam: _Beam, law: Tensor) -> list[_Beam]:
        """The likeliest tokens behind a beam, or drawn ones; children of equal score are in the order of tokens."""
        count = min(self.method.k, int(law.isfinite().sum()))
        keys = law
        if self._sampling:
            # The k largest of law + Gumbel noise are a draw without replacement.
            stream = beam.request * 4096 + self.frontier.index(beam)
            noise = torch.rand(
                len(law),
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(_mixed(self.seed, stream, self.length)),
            )
            keys = law.double() - (-noise.clamp_min(1e-300).log()).log().to(law.device)
        order = keys.sort(descending=True, stable=True).indices[:count]
        return [
            _Beam(beam.request, [*beam.tokens, token], beam.logp + value, row=beam.row)
            for token, value in zip(order.tolist(), law[order].double().tolist(), strict=True)
        ]

    def _ended(self, beam: _Beam, new: int) -> bool:
        """Whether a text ends within its last ``new`` tokens, behind which it is cut."""
        before, after = beam.tokens[:-new], beam.tokens[-new:]
        ids = self._texts_of([beam]) if self._stop.needs_ids else None
        count, ended = self._stop.cut(after, self._ids.shape[1] + len(before), ids)
        beam.tokens = before + after[:count]
        return ended

    def _judge(self, beams: list[_Beam]) -> None:
        """Rank texts, each with what it is judged by behind it."""
        method = self.method
        scores = [0.0] * len(beams)
        if method.lam:
            shown = self._texts.show([[*beam.tokens, *beam.ahead] for beam in beams])
            scores = method.score([self._prompts[beam.request] for beam in beams], shown)
        for beam, h in zip(beams, scores, strict=True):
            beam.rank = self._likelihood(beam) + (method.lam * h if method.lam else 0.0)

    def _likelihood(self, beam: _Beam) -> float:
        return beam.logp / max(len(beam.tokens), 1) ** self.method.norm

    def _best(self, beams: list[_Beam], count: int) -> list[_Beam]:
        return sorted(beams, key=lambda beam: (-beam.rank, -beam.logp))[:count]

    # ---- Token by token.

    def step(self, logits: Tensor) -> Tensor:
        """One token for all beams; takes and returns logits ``[R, V]`` behind the beams."""
        law = self._law(self.frontier, logits)
        children: list[_Beam] = []
        for beam in self.frontier:
            if not bool(law[beam.row].isfinite().any()):
                raise RuntimeError(f"DeAL: no token of sequence {beam.request} has a finite logit")
            own = self._candidates(beam, law[beam.row])
            for child in own:
                if beam.ahead and beam.ahead[0] == child.tokens[-1]:
                    child.ahead, child.complete = beam.ahead[1:], beam.complete
            children += own
        ended = [self._ended(child, 1) for child in children]
        over = [child for child, end in zip(children, ended, strict=True) if end]
        going = [child for child, end in zip(children, ended, strict=True) if not end]
        for child in over:
            child.ahead = []
        self._judge(over)
        kept = self._look_ahead(going) if going else None
        chosen = self._choose(going, over)
        return self._commit(chosen, kept)

    def _look_ahead(self, going: list[_Beam]) -> Tensor | None:
        """Judge texts by how they go on; the logits behind those that were read, if they are in the cache now."""
        method = self.method
        if not method.look_ahead or not method.lam:
            for child in going:
                child.ahead = []
            self._judge(going)
            return None
        fresh = []
        for child in going:
            short = method.look_ahead - len(child.ahead)
            if child.ahead and (child.complete or 0 < short <= method.reuse):
                self.reused += 1
            else:
                child.ahead = []
                fresh.append(child)
        self._judge([child for child in going if child.ahead])
        if method.h_max is None:
            # Those that take their beam's continuation are read along, so that what is chosen is in the cache.
            return self._continue(going, fresh)
        by_request: dict[int, list[_Beam]] = {}
        for child in fresh:
            by_request.setdefault(child.request, []).append(child)
        first = [
            child
            for own in by_request.values()
            for child in sorted(own, key=lambda c: -self._likelihood(c))[: method.beams]
        ]
        self._continue_aside(first)
        judged = [child for child in going if child.ahead]
        second = []
        for request, own in by_request.items():
            ranks = sorted((c.rank for c in judged if c.request == request), reverse=True)
            least = ranks[method.beams - 1] if len(ranks) >= method.beams else -math.inf
            for child in own:
                if not child.ahead:
                    hope = self._likelihood(child) + method.lam * method.h_max
                    if hope >= least:
                        second.append(child)
                    else:
                        child.rank = -math.inf
                        self.skipped += 1
        self._continue_aside(second)
        return None

    def _write(self, fresh: list[_Beam], logits: Tensor, requests: list[int]) -> int:
        """Continue texts, which are the first rows of the cache; returns the forwards it took."""
        held = len(requests)

        def forward(tokens):
            padded = torch.zeros(held, dtype=torch.int64, device=tokens.device)
            padded[: len(tokens)] = tokens
            with unwatched():
                return self.forward(padded, requests)[: len(tokens)]

        texts = [self._texts_of([child])[0].tolist() for child in fresh]
        written, calls = self.writer.write(texts, logits[: len(fresh)], forward)
        for child, own in zip(fresh, written, strict=True):
            child.ahead, child.complete = own, own[-1] in self._ends
        self.continued += len(fresh)
        self._judge(fresh)
        return calls

    def _continue(self, going: list[_Beam], fresh: list[_Beam]) -> Tensor:
        """Read all candidates and continue some; the cache then holds all candidates, in the order of their rows."""
        order = [*fresh, *(child for child in going if child not in fresh)]
        self._select([child.row for child in order])
        for row, child in enumerate(order):
            child.row = row
        requests = [child.request for child in order]
        tokens = torch.tensor([child.tokens[-1] for child in order], device=self._ids.device)
        logits = self.forward(tokens, requests)
        if fresh:
            self.cache.crop(-self._write(fresh, logits, requests))
        return logits

    def _continue_aside(self, fresh: list[_Beam]) -> None:
        """Continue candidates and leave the cache as it was."""
        if not fresh:
            return
        held = len(self.frontier)
        # The beams stay in rows behind the candidates'.
        self._select([*(child.row for child in fresh), *range(held)])
        requests = [*(child.request for child in fresh), *(beam.request for beam in self.frontier)]
        last = [*(child.tokens[-1] for child in fresh), *([0] * held)]
        with unwatched():
            logits = self.forward(torch.tensor(last, device=self._ids.device), requests)
        calls = self._write(fresh, logits, requests)
        self.cache.crop(-calls - 1)
        self._select(list(range(len(fresh), len(fresh) + held)))

    def _choose(self, going: list[_Beam], over: list[_Beam]) -> list[_Beam]:
        """The beams that stay, request by request; finished ones among the best compete until the end."""
        chosen: list[_Beam] = []
        finished = {id(child) for child in over}
        for request in range(len(self._ids)):
            own = [child for child in (*going, *over) if child.request == request]
            best = self._best(own, self.method.beams)
            self.done[request] += [child for child in best if id(child) in finished]
            chosen += self._best([c for c in own if id(c) not in finished], self.method.beams)
        return self._worth(chosen)

    def _worth(self, chosen: list[_Beam]) -> list[_Beam]:
        """Without those that cannot end better than what has ended, where that is known."""
        method = self.method
        if method.norm or (method.lam and method.h_max is None):
            return chosen
        hope = method.lam * method.h_max if method.lam and method.h_max is not None else 0.0
        best = [max((beam.rank for beam in own), default=-math.inf) for own in self.done]
        return [beam for beam in chosen if beam.logp + hope > best[beam.request]]

    def _commit(self, chosen: list[_Beam], logits: Tensor | None) -> Tensor:
        """Have the cache and logits of the chosen texts."""
        self.length += 1
        rows = [beam.row for beam in chosen]
        self.frontier = chosen
        for row, beam in enumerate(chosen):
            beam.row, beam.source = row, row if logits is None else rows[row]
        if not chosen:
            return torch.empty(0)
        self._select(rows)
        if logits is not None:
            return logits[rows]
        tokens = torch.tensor([beam.tokens[-1] for beam in chosen], device=self._ids.device)
        return self.forward(tokens, [beam.request for beam in chosen])

    # ---- Chunks.

    def chunk(self, logits: Tensor) -> Tensor:
        """A chunk for all beams; takes and returns logits behind the beams."""
        method = self.method
        drawn = [
            _Beam(beam.request, list(beam.tokens), beam.logp, row=beam.row, source=beam.source)
            for beam in self.frontier
            for _ in range(method.samples)
        ]
        streams = torch.tensor([(b.request << 12) + i % (1 << 12) for i, b in enumerate(drawn)])
        self._select([beam.row for beam in drawn])
        logits = logits[[beam.row for beam in drawn]]
        for row, beam in enumerate(drawn):
            beam.row = row
        over: list[_Beam] = []
        alive = set(range(len(drawn)))
        for _ in range(method.chunk):
            law = self._law(drawn, logits)
            tokens = sample(
                law, seed=self.seed, stream=streams.to(law.device), temperature=method.chunk_temperature,
                position=torch.full_like(streams, self.length).to(law.device),
            ).long()  # fmt: skip
            lost = [i for i in alive if int(tokens[i]) < 0]
            if lost:
                raise RuntimeError(f"DeAL: no token of sequence {drawn[lost[0]].request} has a finite logit")
            tokens = tokens.clamp_min(0)
            costs = law.log_softmax(-1).double().gather(1, tokens[:, None])[:, 0].tolist()
            for i, (token, cost) in enumerate(zip(tokens.tolist(), costs, strict=True)):
                beam = drawn[i]
                beam.tokens.append(token)
                beam.logp += cost
                if i in alive and self._ended(beam, 1):
                    alive.discard(i)
                    over.append(_Beam(beam.request, list(beam.tokens), beam.logp))
            self.length += 1
            if not alive:
                break
            logits = self.forward(tokens, [beam.request for beam in drawn])
            for beam in drawn:
                beam.source = beam.row
        going = _distinct([beam for i, beam in enumerate(drawn) if i in alive])
        over = _distinct(over)
        self._judge(going)
        self._judge(over)
        self.frontier = self._choose(going, over)
        if not self.frontier:
            return torch.empty(0)
        rows = [beam.row for beam in self.frontier]
        self._select(rows)
        for row, beam in enumerate(self.frontier):
            beam.row = row
        return logits[rows]

    def best(self) -> list[_Beam]:
        """The best text of every request."""
        return [self._best([*own], 1)[0] for own in self.done]


def _distinct(beams: list[_Beam]) -> list[_Beam]:
    """Without texts that are there already."""
    return list({(beam.request, *beam.tokens): beam for beam in reversed(beams)}.values())[::-1]


def _mixed(*numbers: int) -> int:
    """A seed out of several numbers."""
    return hash(numbers) & (2**63 - 1)


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
    **model_kwargs,
):
    """DeAL's search over a batch; see :class:`tokops.methods.DeAL`."""
    if streamer is not None:
        raise NotImplementedError("DeAL chooses texts at the end and does not support a streamer")
    cache = given_cache(model_kwargs)
    if cache.state.layout is not None:
        raise NotImplementedError(
            "DeAL with several beams or chunks needs full-precision pages, not a storing method"
        )
    cache.activate_past_recording()
    mask = model_kwargs.get("attention_mask")
    feed = Feed(model, cache, mask, input_ids)
    prompt, size = cache.prompt_length, generation_config.prefill_chunk_size or cache.prompt_length
    for first in range(cache.get_seq_length(), prompt, size):
        logits = feed(input_ids, first, min(first + size, prompt))
    ends = (
        ends_of(model, tokenizer)
        if generation_config.eos_token_id is None
        else _as_set(generation_config.eos_token_id)
    )
    search = _Search(
        model, method, cache, input_ids, mask, logits_processor, StopRule(stopping_criteria),
        texts_for(method, tokenizer), ends, generation_config,
    )  # fmt: skip
    logits = logits.float()
    while search.frontier:
        logits = search.chunk(logits) if method.chunk else search.step(logits)
    found = search.best()
    fill = generation_config.pad_token_id or 0
    width = max(len(beam.tokens) for beam in found)
    rows = [beam.tokens + [fill] * (width - len(beam.tokens)) for beam in found]
    sequences = torch.cat([input_ids, input_ids.new_tensor(rows)], 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return DeALOutput(
        sequences=sequences, **{CACHE: cache}, ranks=[beam.rank for beam in found], logp=[beam.logp for beam in found],
        forwards=search.forwards, continued=search.continued, reused=search.reused, skipped=search.skipped,
    )  # fmt: skip


def _as_set(ends) -> frozenset[int]:
    return frozenset((ends,) if isinstance(ends, int) else torch.as_tensor(ends).flatten().tolist())
