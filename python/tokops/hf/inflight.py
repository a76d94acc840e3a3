"""In-flight batching: requests enter and leave a running batch; nothing that was computed is computed again."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..kvcache.compaction import SlotWindow
from ..sampling import Sampling, sample
from .cache import PagedCache
from .families import CACHE
from .patching import run_of


class Emitted(NamedTuple):
    """One new token of one request.

    Attributes:
        request: the number that :meth:`InflightGenerator.submit` gave it.
        token: its id; -1 where there is none, because the request has failed: see :attr:`InflightGenerator.errors`.
        last: whether the request has ended with it.
    """

    request: int
    token: int
    last: bool


@dataclass(eq=False)
class _Request:
    number: int
    ids: Tensor  # [1, L] prompt
    limit: int
    sampling: Sampling
    stream: int
    ends: frozenset[int]
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    tokens: list[int] = field(default_factory=list)

    @property
    def text(self) -> Tensor:
        """Prompt and tokens so far, ``[1, L]``."""
        return torch.cat([self.ids, torch.tensor([self.tokens], dtype=torch.long, device=self.ids.device)], 1)

    @property
    def position(self) -> int:
        """Index of the token that is drawn next."""
        return self.ids.shape[1] + len(self.tokens)


class InflightGenerator:
    """A batch that runs on while requests enter and leave it, over the paged cache of a patched model (Flover).

    Every :meth:`step` reads the prompts of waiting requests while slots are free, each by itself, and adds the cache
    that results to the running one; then it decodes one token for all requests in the batch, whatever their lengths,
    and lets those go that have ended. Rows change places by permuting page tables. A request's tokens depend on its
    prompt, its settings, ``seed`` and its random stream; not on what runs beside it (but for the rounding of matrix
    products of other sizes, which can turn a near tie).

    Everything that belongs to a request (sampling, processors, criteria, random stream) is kept by request and
    follows it wherever its row goes. Padding is never needed.

    What is wrong with one request does not concern the others: where its processors or criteria raise, or no token has
    a finite logit (NaN counts as -inf), it ends with the tokens it has, and :attr:`errors` has the reason.

    Args:
        model: a transformers model under :func:`tokops.patch`, with full-precision pages and any selecting method.
        max_slots: requests in the batch at most.
        seed: of the random numbers.
        admit_per_step: prompts read in one step at most, so that those in the batch need not wait long; None is as
            many as there are free slots.
        prefill_chunk_size: tokens of a prompt read in one forward; None reads it whole.

    Raises:
        ValueError: the model is not patched, has a method with a decoding loop of its own or one that constrains, or
            a number is out of range.
        NotImplementedError: the model's cache is kept by a storing method.

    Source:
        Flover (Yao et al., HiPC 2023, arXiv 2305.13484).

    Example::

        with tokops.patch(model):
            batch = InflightGenerator(model, max_slots=16)
            first = batch.submit(ids, max_new_tokens=100)
            for request, token, last in batch.step():
                ...
            texts = batch.run()
    """

    def __init__(
        self,
        model,
        max_slots: int,
        *,
        seed: int = 0,
        admit_per_step: int | None = None,
        prefill_chunk_size: int | None = None,
    ):
        run = run_of(model)
        if run is None:
            raise ValueError("InflightGenerator: the model must be patched, call tokops.patch(model) first")
        for method in run.methods:
            if method.loop is not None:
                raise ValueError(
                    f"InflightGenerator: {type(method).__name__} has a decoding loop of its own and does not run in it"
                )
            if method.hooks is not None:
                raise ValueError(
                    f"InflightGenerator: {type(method).__name__} constrains generate; pass its processor to submit"
                )
        if run.new_cache().state.layout is not None:
            raise NotImplementedError("InflightGenerator needs full-precision pages, not a storing method")
        for name, value in (("admit_per_step", admit_per_step), ("prefill_chunk_size", prefill_chunk_size)):
            if value is not None and value < 1:
                raise ValueError(f"InflightGenerator: {name} must be at least 1 or None, got {value}")
        self.model = model
        self.seed = seed
        self.admit_per_step = admit_per_step
        self.prefill_chunk_size = prefill_chunk_size
        #: Which request is in which slot. Pages move for nothing, so that holes are closed at once.
        self.slots = SlotWindow(max_slots, hole_share=0.0)
        #: Forwards that decoded, and rows in all of them; tokens of prompts that were read.
        self.steps = self.rows = self.read = 0
        self._run = run
        self._cache: PagedCache | None = None
        self._batch: list[
            _Request
        ] = []  # in the order of the cache's sequences, which is that of their slots
        self._waiting: deque[_Request] = deque()
        self._finished: dict[int, list[int]] = {}
        #: Why requests have failed, by number.
        self.errors: dict[int, Exception] = {}
        self._emitted: list[Emitted] = []  # in this step; a step that raises leaves them to the next one
        self._count = 0

    def submit(
        self,
        input_ids: Tensor | Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stream: int | None = None,
        eos_token_id: int | Iterable[int] | None = None,
        processors: Iterable | None = None,
        criteria: Iterable | None = None,
    ) -> int:
        """Queue a request.

        Args:
            input_ids: its prompt, ``[L]`` or ``[1, L]`` integers, L >= 1.
            max_new_tokens: tokens at most, at least 1.
            sampling: how its tokens are drawn; None is greedy.
            stream: its random stream, 32 bits; None is its number.
            eos_token_id: tokens that end it; None: those of the model's generation configuration.
            processors: logits processors, called with this request's text ``[1, L]`` and scores ``[1, V]`` alone, in
                order of its tokens; so they may keep state. They come before ``sampling``.
            criteria: stopping criteria, called likewise.

        Returns:
            Its number, counted from 0.

        Raises:
            ValueError: an empty prompt, several prompts, ids that are no tokens, or no tokens to generate.
        """
        ids = torch.as_tensor(input_ids, dtype=torch.long, device=self.model.device)
        ids = ids[None] if ids.dim() == 1 else ids
        if ids.dim() != 2 or ids.shape[0] != 1 or not ids.shape[1]:
            raise ValueError(
                f"InflightGenerator: input_ids must be one prompt of at least one token, got {list(ids.shape)}"
            )
        vocab = self.model.get_input_embeddings().num_embeddings
        if int(ids.min()) < 0 or int(ids.max()) >= vocab:
            raise ValueError(
                f"InflightGenerator: input_ids must be 0..{vocab - 1}, got {int(ids.min())}..{int(ids.max())}"
            )
        if max_new_tokens < 1:
            raise ValueError(f"InflightGenerator: max_new_tokens must be at least 1, got {max_new_tokens}")
        ends = self.model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        ends = () if ends is None else (ends,) if isinstance(ends, int) else ends
        number, self._count = self._count, self._count + 1
        self._waiting.append(
            _Request(
                number=number,
                ids=ids,
                limit=max_new_tokens,
                sampling=Sampling(temperature=0.0) if sampling is None else sampling,
                stream=number if stream is None else stream,
                ends=frozenset(ends),
                processors=LogitsProcessorList(processors or ()),
                criteria=StoppingCriteriaList(criteria or ()),
            )
        )
        return number

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._batch

    def result(self, request: int) -> list[int] | None:
        """The tokens of a request that has ended, without its prompt; None while it has not.

        Those of one that has failed are what it had by then.
        """
        return self._finished.get(request)

    def run(self) -> dict[int, list[int]]:
        """Step until everything that was submitted has ended; returns all results so far.

        Look into :attr:`errors` for those that have failed.
        """
        while not self.idle:
            self.step()
        return dict(self._finished)

    def cancel(self, request: int) -> None:
        """Let a request go, wherever it is; what it has written so far is its result.

        Raises:
            KeyError: no such request, or it has ended.
        """
        for one in (*self._waiting, *self._batch):
            if one.number == request:
                self._finished[request] = one.tokens
                if one in self._batch:
                    self._leave([one])
                else:
                    self._waiting.remove(one)
                return
        raise KeyError(request)

    @torch.no_grad()
    def step(self) -> list[Emitted]:
        """Admit what fits, decode one token for the whole batch, and let go what has ended.

        Returns:
            The new tokens: first those of requests that were admitted, each of which has two then unless it ended.
        """
        try:
            self._admit()
        finally:
            self._arrange()
        if self._batch:
            self._draw(self._batch, self._forward())
            self._leave([request for request in self._batch if request.number in self._finished])
        emitted, self._emitted = self._emitted, []
        return emitted

    def _admit(self) -> None:
        admitted = 0
        while self._waiting and not self.slots.full and admitted != self.admit_per_step:
            request = self._waiting[0]
            cache, logits = self._prefill(request.ids)  # where this raises, the request waits on
            self._waiting.popleft()
            admitted += 1
            self._draw([request], logits)
            if request.number in self._finished:
                continue
            if self._cache is None:
                self._cache = cache
            else:
                self._cache.join(cache)
            self.slots.admit(request.number)
            self._batch.append(request)

    def _prefill(self, ids: Tensor) -> tuple[PagedCache, Tensor]:
        """A request's own cache and the logits ``[1, V]`` of its prompt's last token."""
        cache = self._run.new_cache(prompt_length=ids.shape[1])
        for part in ids.split(self.prefill_chunk_size or ids.shape[1], 1):
            out = self.model(input_ids=part, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        self.read += ids.shape[1]
        return cache, out.logits[:, -1].float()

    def _forward(self) -> Tensor:
        assert self._cache is not None, "requests run"
        device = self.model.device
        lengths = self._cache.lengths
        self._cache.draft(None, None)
        out = self.model(
            input_ids=torch.tensor([request.tokens[-1:] for request in self._batch], device=device),
            attention_mask=None,
            position_ids=torch.tensor(lengths, device=device)[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self._cache},
        )
        self._cache.keep(None, [1] * len(lengths))
        self.steps += 1
        self.rows += len(lengths)
        return out.logits[:, -1].float()

    def _draw(self, requests: list[_Request], logits: Tensor) -> None:
        """A token for each; those that end with it, or cannot have one, are finished."""
        device = logits.device
        drawing, scores = [], []
        for request, row in zip(requests, logits, strict=True):
            try:
                scores.append(request.processors(request.text, row[None])[0] if request.processors else row)
                drawing.append(request)
            except Exception as error:
                self._fail(request, error)
        if not drawing:
            return
        fields = ("temperature", "top_k", "top_p", "min_p")
        settings = {
            name: torch.tensor([float(getattr(request.sampling, name)) for request in drawing], device=device)
            for name in fields
        }
        tokens = sample(
            torch.stack(scores),
            seed=self.seed,
            stream=torch.tensor([request.stream for request in drawing], device=device),
            position=torch.tensor([request.position for request in drawing], device=device),
            **settings,
        ).tolist()
        for request, token, row in zip(drawing, tokens, scores, strict=True):
            if token < 0:
                words = f"InflightGenerator: no token of request {request.number} has a finite logit"
                self._fail(request, RuntimeError(words))
            else:
                self._take(request, token, row)

    def _take(self, request: _Request, token: int, scores: Tensor) -> None:
        """Give a request its token, and finish it if that is its last."""
        request.tokens.append(token)
        last = len(request.tokens) == request.limit or token in request.ends
        if not last and request.criteria:
            try:
                last = bool(request.criteria(request.text, scores[None]).all())
            except Exception as error:
                self._emitted.append(Emitted(request.number, token, False))
                self._fail(request, error)
                return
        if last:
            self._finished[request.number] = request.tokens
        self._emitted.append(Emitted(request.number, token, last))

    def _fail(self, request: _Request, error: Exception) -> None:
        self._finished[request.number] = request.tokens
        self.errors[request.number] = error
        self._emitted.append(Emitted(request.number, -1, True))

    def _leave(self, requests: list[_Request]) -> None:
        if not requests:
            return
        for request in requests:
            self.slots.retire(request.number)
        if self.slots.due:
            self.slots.compact()
        self._arrange()

    def _arrange(self) -> None:
        """Have the cache's sequences in the order of the slots, and drop those that are in none."""
        if not self.slots.size:
            self._cache, self._batch = None, []
            return
        assert self._cache is not None, "requests run"
        places = {request.number: place for place, request in enumerate(self._batch)}
        order = [places[self.slots.owner[slot]] for slot in self.slots.window]
        if order != list(range(len(places))):
            self._cache.batch_select_indices(torch.tensor(order))
            self._batch = [self._batch[place] for place in order]
