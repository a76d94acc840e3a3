"""Two models write one text: SpeculativeThinking's loop, with both caches kept from one hand-over to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ..methods.speculative_thinking import Reflections, SpeculativeThinking
from ..sampling import Sampling, sample
from .families import CACHE
from .patching import run_of

SMALL, LARGE, PROMPT = "small", "large", "prompt"


@dataclass(frozen=True)
class Span:
    """Tokens written in one go.

    Attributes:
        writer: "small", "large", or "prompt" for the recap prompt.
        reason: "think" (the small model writes), "begin", "probe" (a turn), "verify", "recap".
        first, last: positions ``[first, last)`` in the text.
    """

    writer: str
    reason: str
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Handover:
    """A decision who writes next, as a hook sees it before it is carried out.

    Attributes:
        reason: "begin", "probe", "verify" or "recap".
        writer: who is going to write: "small" or "large".
        position: length of the text so far, the prompt's tokens among it.
        span: at a probe the tokens that the small model would write; they are not in the text yet.
        answer: at a probe what the large model would write instead, None if it was not asked.
        text: ``span`` as text.
        reflections, threshold: how often the text has reflected, and when the large model looks back.
    """

    reason: str
    writer: str
    position: int
    span: tuple[int, ...]
    answer: tuple[int, ...] | None
    text: str
    reflections: int
    threshold: float


@dataclass(frozen=True)
class Guided:
    """What both models wrote.

    Attributes:
        sequences: ``[1, L]`` int64 on the prompt's device: prompt and new tokens.
        prompt_length: tokens of the prompt.
        spans: who wrote what, in order; together they are the new tokens.
        forwards: forwards of every model.
        read: tokens that went through every model; with caches that are kept each writer reads a token once, but for
            rejected probes.
    """

    sequences: Tensor
    prompt_length: int
    spans: tuple[Span, ...]
    forwards: dict[str, int]
    read: dict[str, int]

    @property
    def written(self) -> dict[str, int]:
        """New tokens by writer."""
        return {
            writer: sum(len(span) for span in self.spans if span.writer == writer)
            for writer in (SMALL, LARGE, PROMPT)
        }


class Writer:
    """One model and its cache, which holds a prefix of the text and what the model has just written.

    Args:
        model: a causal transformers model, patched or not.
        sampling: how its tokens are drawn.
        seed, stream: of its random numbers, which are keyed by position.
        vocab: tokens it may draw; rows of logits beyond them are padding.
        ends: tokens that end a text.
    """

    def __init__(self, model, sampling: Sampling, seed: int, stream: int, vocab: int, ends: frozenset[int]):
        self.model = model
        self.sampling = sampling
        self.seed = seed
        self.stream = stream
        self.vocab = vocab
        self.ends = ends
        run = run_of(model)
        for method in () if run is None else run.methods:
            if method.loop is not None:
                raise ValueError(
                    f"generate_guided: {type(method).__name__} has a decoding loop of its own and does not run in it"
                )
            if method.hooks is not None:
                raise ValueError(
                    f"generate_guided: {type(method).__name__} constrains generate and does not run in it"
                )
        self.cache = DynamicCache(config=model.config) if run is None else run.new_cache()
        if hasattr(self.cache, "activate_past_recording"):
            self.cache.activate_past_recording()
        self.cached = 0
        self.forwards = 0
        self.read = 0

    def write(
        self, text: Sequence[int], limit: int, stop: Callable[[list[int]], bool] | None = None
    ) -> tuple[list[int], bool]:
        """Up to ``limit`` tokens behind a text, until one ends it or ``stop`` says so, given what was written.

        Returns:
            The tokens, and whether ``stop`` stopped them.
        """
        self.rewind(len(text) - 1)  # the last token is read (again) to ask for what comes after it
        written: list[int] = []
        while len(written) < limit:
            logits = self._forward(written[-1:] or list(text[self.cached :]))
            token = int(self._sample(logits, self.cached))
            if token < 0:
                raise RuntimeError(f"generate_guided: no token at position {self.cached} has a finite logit")
            written.append(token)
            if token in self.ends:
                break
            if stop is not None and stop(written):
                return written, True
        return written, False

    def _sample(self, logits: Tensor, position: int) -> Tensor:
        s = self.sampling
        return sample(
            logits[:, : self.vocab],
            seed=self.seed,
            stream=self.stream,
            position=position,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
        )

    def _forward(self, tokens: list[int]) -> Tensor:
        device = self.model.device
        positions = torch.arange(self.cached, self.cached + len(tokens), device=device)[None]
        out = self.model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self.cache},
        )
        self.cached += len(tokens)
        self.forwards += 1
        self.read += len(tokens)
        return out.logits[:, -1].float()

    def rewind(self, length: int) -> None:
        """Forget what lies behind the first ``length`` tokens."""
        surplus = self.cached - length
        if surplus > 0:
            self.cache.crop(-surplus)
            self.cached -= surplus


class _Text:
    """The text so far, and who wrote it."""

    def __init__(self, ids: list[int], tokenizer, limit: int, ends: frozenset[int], streamer):
        self.ids = list(ids)
        self.tokenizer = tokenizer
        self.full = len(ids) + limit
        self.ends = ends
        self.streamer = streamer
        self.spans: list[Span] = []

    @property
    def room(self) -> int:
        return self.full - len(self.ids)

    @property
    def ended(self) -> bool:
        return not self.room or bool(self.spans and self.ids[-1] in self.ends)

    def add(self, writer: str, reason: str, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        self.spans.append(Span(writer, reason, len(self.ids), len(self.ids) + len(tokens)))
        self.ids += tokens
        if self.streamer is not None:
            self.streamer.put(torch.tensor(tokens))

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class _Guide:
    """The loop: who writes, how much, and why."""

    def __init__(self, policy: SpeculativeThinking, text: _Text, small: Writer, large: Writer, hook):
        self.policy = policy
        self.text = text
        self.small = small
        self.large = large
        self.hook = hook
        self.reflections = Reflections(policy)
        # A trigger spans at most as many tokens as it has bytes.
        self.reach = max((len(trigger.encode()) for trigger in policy.triggers), default=0)

    def run(self) -> None:
        text, policy = self.text, self.policy
        if policy.begin and text.room and self._decide("begin", LARGE) == LARGE:
            self._take_over("begin", policy.begin)
        while not text.ended:
            written, triggered = self.small.write(text.ids, min(policy.stretch, text.room), self._triggered)
            text.add(SMALL, "think", written)
            if text.ended or not triggered:
                continue
            if self.reflections.due:
                self._look_back()
            else:
                self._turn()

    def _triggered(self, written: list[int]) -> bool:
        if not self.reach:
            return False
        tail = self.text.decode(written[-self.reach :])
        return any(trigger in tail for trigger in self.policy.triggers)

    def _take_over(self, reason: str, length: int) -> None:
        self.text.add(LARGE, reason, self.large.write(self.text.ids, min(length, self.text.room))[0])

    def _look_back(self) -> None:
        if self._decide("recap", LARGE) == SMALL:
            self.reflections.count = 0
            return
        prompt = self.text.tokenizer(self.policy.recap_prompt, add_special_tokens=False).input_ids
        self.text.add(PROMPT, "recap", prompt[: self.text.room])
        self._take_over("recap", self.reflections.length)
        self.reflections.looked_back()

    def _turn(self) -> None:
        """The small model's next tokens are looked at, and written by one of the two."""
        text, policy = self.text, self.policy
        at, length = len(text.ids), min(policy.probe, text.room)
        probe, answer, asked = self.small.write(text.ids, length)[0], [], False
        tone = policy.tone(text.decode(probe))
        writer = SMALL
        if tone or not policy.reasoning:
            answer, asked = self.large.write(text.ids, length)[0], True
            if policy.prefers_large(tone, policy.tone(text.decode(answer))):
                writer = LARGE
        writer = self._decide("probe", writer, probe, answer if asked else None)
        if writer == LARGE and not asked:
            answer, asked = self.large.write(text.ids, length)[0], True
        if writer == LARGE:
            self.small.rewind(at)
        elif asked:
            self.large.rewind(at)
        chosen = answer if writer == LARGE else probe
        text.add(writer, "probe", chosen)
        said = text.decode(chosen)
        if policy.tone(said) < 0:
            self.reflections.count += 1
        verifying = policy.verification and policy.verifies(said) and not text.ended
        if verifying and self._decide("verify", LARGE) == LARGE:
            self._take_over("verify", policy.verification)

    def _decide(self, reason: str, writer: str, span=(), answer=None) -> str:
        if self.hook is None:
            return writer
        answer = None if answer is None else tuple(answer)
        counters = (self.reflections.count, self.reflections.threshold)
        said = self.text.decode(span) if span else ""
        handover = Handover(reason, writer, len(self.text.ids), tuple(span), answer, said, *counters)
        wish = self.hook(handover)
        if wish not in (None, SMALL, LARGE):
            raise ValueError(
                f"generate_guided: hook must return None, {SMALL!r} or {LARGE!r}, got {wish!r} at a {reason}"
            )
        return writer if wish is None else wish


@torch.no_grad()
def generate_guided(
    small,
    large,
    tokenizer,
    input_ids: Tensor,
    policy: SpeculativeThinking | None = None,
    *,
    max_new_tokens: int,
    seed: int = 0,
    streams: tuple[int, int] = (0, 1),
    eos_token_id: int | Sequence[int] | None = None,
    large_tokenizer=None,
    hook: Callable[[Handover], str | None] | None = None,
    streamer=None,
) -> Guided:
    """A small model reasons, a large one takes over at turns of thought (Speculative Thinking, arXiv 2504.12329).

    Both caches live as long as the text: who takes over reads what was written since its last turn in one forward,
    and a probe that is not used is taken back. A probe that shows no turn is kept, which is the same law as
    discarding it and letting the small model write on, and costs nothing.

    Random numbers are keyed by seed, stream and position. With ``streams`` that differ what the large model writes
    is a fresh sample of its own; with equal ones both draw the same numbers at the same position, so that a model
    helped by itself writes what it writes alone.

    Args:
        small, large: causal transformers models, each patched by :func:`tokops.patch` or not, with one vocabulary.
        tokenizer: of both.
        input_ids: ``[1, L]`` int64 prompt, L >= 1.
        policy: when the large model takes over; None is the published one, for reasoning models.
        max_new_tokens: length of the text at most, the recap prompts among it.
        seed: of the random numbers.
        streams: the random streams of the small and of the large model.
        eos_token_id: tokens that end the text. None: those of both models' generation configurations.
        large_tokenizer: the large model's tokenizer, if it has one of its own; it is compared with ``tokenizer``.
        hook: called with a :class:`Handover` before every decision; may return "small" or "large" to overrule it,
            None to let it be. "small" declines to begin, to verify or to look back; then the reflections are counted
            anew.
        streamer: gets the prompt and every span when it is part of the text.

    Returns:
        The text, who wrote what, and what it cost.

    Raises:
        ValueError: a batch, an empty prompt, tokenizers that differ, a token that one of the models has no row for,
            or a hook that returns something else.
        RuntimeError: a model gives no token a finite logit. NaN counts as -inf.
    """
    policy = SpeculativeThinking() if policy is None else policy
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(
            f"generate_guided: input_ids must be [1, L], one prompt of at least one token, got {list(input_ids.shape)}"
        )
    if max_new_tokens < 0:
        raise ValueError(f"generate_guided: max_new_tokens must be at least 0, got {max_new_tokens}")
    if large_tokenizer is not None and large_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError("generate_guided: the models' tokenizers differ; both must read the same tokens")
    vocab = min(small.config.vocab_size, large.config.vocab_size)
    if max(len(tokenizer), int(input_ids.max()) + 1) > vocab:
        raise ValueError(
            f"generate_guided: both models must have a row for every token, got {vocab} rows for "
            f"{max(len(tokenizer), int(input_ids.max()) + 1)} tokens"
        )
    ends = _ends(eos_token_id, small, large)
    one = Writer(small, policy.small, seed, streams[0], vocab, ends)
    other = Writer(large, policy.large, seed, streams[1], vocab, ends)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    text = _Text(input_ids[0].tolist(), tokenizer, max_new_tokens, ends, streamer)
    _Guide(policy, text, one, other, hook).run()
    if streamer is not None:
        streamer.end()
    return Guided(
        sequences=torch.tensor([text.ids], device=input_ids.device),
        prompt_length=input_ids.shape[1],
        spans=tuple(text.spans),
        forwards={SMALL: one.forwards, LARGE: other.forwards},
        read={SMALL: one.read, LARGE: other.read},
    )


def _ends(given, *models) -> frozenset[int]:
    ids = [model.generation_config.eos_token_id for model in models] if given is None else [given]
    flat = [token for one in ids if one is not None for token in ([one] if isinstance(one, int) else one)]
    return frozenset(int(token) for token in flat)
