"""What constraining methods share: hooks of one generation, states of texts, and a look at the last forward."""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_UNWATCHED: ContextVar[bool] = ContextVar("tokops_unwatched", default=False)


@dataclass
class Setting:
    """One call of ``generate``, as a method's ``hooks`` sees it.

    Attributes:
        model: the model that decodes.
        tokenizer: what ``generate`` was given as ``tokenizer``; None if nothing.
        padding: where the prompts begin.
        eos: tokens that end a text.
        assisted: whether candidates of an assistant are judged several at a time.
        streamer: what ``generate`` was given as ``streamer``.
    """

    model: Any
    tokenizer: Any
    padding: "Padding"
    eos: frozenset[int]
    assisted: bool = False
    streamer: Any = None


@dataclass
class Hooks:
    """What a method adds to one generation.

    Attributes:
        processors, criteria: for ``generate``.
        held: hooks on the model and caches, which are closed when the generation is over.
    """

    processors: list = field(default_factory=list)
    criteria: list = field(default_factory=list)
    held: list = field(default_factory=list)

    def close(self) -> None:
        """Take hooks off the model and let caches go; what was found out stays."""
        for one in self.held:
            one.close()


@dataclass(frozen=True)
class Padding:
    """Where prompts begin in left-padded rows: where their mask says so, else behind leading padding tokens.

    Args:
        pad: the padding token.
        known: first visible positions by the prompt's :func:`text_name`.
    """

    pad: int | None = None
    known: dict[bytes, int] = field(default_factory=dict)

    @staticmethod
    def of(model, ids: Tensor | None, mask: Tensor | None) -> "Padding":
        """The padding of prompts ``[B, L]`` with a mask ``[B, L]``; either may be missing."""
        known = {}
        if ids is not None and mask is not None and ids.shape == mask.shape:
            known = {
                text_name(row): start for row, start in zip(ids, mask.int().argmax(-1).tolist(), strict=True)
            }
        return Padding(None if model is None else model.generation_config.pad_token_id, known)

    def start(self, prompt: Sequence[int]) -> int:
        """First position of a prompt."""
        name = text_name(torch.tensor(list(prompt))) if self.known else None
        if name in self.known:
            return self.known[name]
        start, ids = 0, prompt
        while start < len(ids) - 1 and ids[start] == self.pad:
            start += 1
        return start


def ends_of(model, tokenizer=None) -> frozenset[int]:
    """The tokens that end a text, as the model's generation settings or else the tokenizer say."""
    ends = None if model is None else model.generation_config.eos_token_id
    if ends is None and tokenizer is not None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset((ends,) if isinstance(ends, int) else ends)


class TextStates:
    """A state per text, found by the text itself: it follows from that of the text without its last token.

    So branches of a tree, beams that change places and tokens that are taken back need no care. A text that does not
    continue any that was seen begins a new generation. Texts that were not asked for lately are forgotten.

    Args:
        begin: the state of a prompt, from its ids and ``extra``.
        follow: the state of a text with one more token, from the state before, the token and ``extra``.
        behind_prompt: the first text of a generation is its prompt and one token, as stopping criteria see it; else
            it is the prompt.
        capacity: texts to remember.
    """

    def __init__(
        self,
        begin: Callable[[list[int], Any], Any],
        follow: Callable[[Any, int, Any], Any],
        behind_prompt: bool = False,
        capacity: int = 1 << 16,
    ):
        self._begin, self._follow = _weakly(begin), _weakly(follow)
        self._behind_prompt, self._capacity = behind_prompt, capacity
        self._states: OrderedDict[bytes, Any] = OrderedDict()

    def of(self, ids: Tensor, extra: Sequence[Any] | None = None) -> list[Any]:
        """The states of texts ``[R, L]``.

        Args:
            ids: the texts, with their prompts and padding.
            extra: something per text for ``begin`` and ``follow``.
        """
        rows = ids.detach().to("cpu", torch.int64).contiguous().numpy()
        extras = [None] * len(rows) if extra is None else extra
        states = [self._state(row, more) for row, more in zip(rows, extras, strict=True)]
        while len(self._states) > max(self._capacity, 4 * len(rows)):
            self._states.popitem(last=False)
        return states

    def find(self, ids: Sequence[int]) -> Any:
        """The state of one text that was seen, None of one that was not."""
        return self._states.get(_digests(torch.tensor(list(ids), dtype=torch.int64).numpy())[1])

    def _state(self, row, extra):
        before, own = _digests(row)
        if own in self._states:
            self._states.move_to_end(own)
            return self._states[own]
        if before in self._states:
            self._states.move_to_end(before)
            state = self._follow(self._states[before], int(row[-1]), extra)
        elif self._behind_prompt:
            self._states[before] = self._begin(row[:-1].tolist(), extra)
            state = self._follow(self._states[before], int(row[-1]), extra)
        else:
            state = self._begin(row.tolist(), extra)
        self._states[own] = state
        return state


def text_name(ids: Tensor) -> bytes:
    """A name for a text ``[L]`` that no other has."""
    return _digests(ids.detach().to("cpu", torch.int64).contiguous().numpy())[1]


def _digests(row) -> tuple[bytes, bytes]:
    """Names of a text without its last token, and of the whole."""
    digest = hashlib.blake2b(row[:-1].tobytes(), digest_size=16)
    before = digest.digest()
    digest.update(row[-1:].tobytes())
    return before, digest.digest()


def _weakly(function: Callable) -> Callable:
    """A function; of an object's own method one that does not keep the object, which keeps the states."""
    if not hasattr(function, "__self__"):
        return function
    method = weakref.WeakMethod(function)
    return lambda *given: method()(*given)  # type: ignore[misc]


@contextmanager
def unwatched() -> Iterator[None]:
    """Forwards within are of a processor's own: no :class:`Watch` sees them."""
    token = _UNWATCHED.set(True)
    try:
        yield
    finally:
        _UNWATCHED.reset(token)


class Watch:
    """What a module put out in the last forward, or in all since the last look.

    It takes its hook off the module when it is closed or no longer used.

    Args:
        module: of the model that decodes.
        take: the tensor ``[B, T, ...]`` in what the module puts out.
        what: for messages.
        history: keep all forwards since the last look, for :meth:`seen`; else the last one.
    """

    def __init__(
        self, module: torch.nn.Module, take: Callable[[Any], Tensor], what: str, history: bool = False
    ):
        self._what, self._history = what, history
        self._kept: list[Tensor] = []
        self._looked = True
        watch = weakref.ref(self)

        def keep(module, args, output):
            own = watch()
            if own is not None and not _UNWATCHED.get():
                own._see(take(output))

        self._handle = module.register_forward_hook(keep)
        weakref.finalize(self, self._handle.remove)

    def close(self) -> None:
        """Take the hook off."""
        self._handle.remove()
        self._kept = []

    def _see(self, out: Tensor) -> None:
        if self._looked or not self._history:
            self._kept = []
        self._looked = False
        self._kept.append(out.detach())

    def at(self, places: Sequence[tuple[int, int]] | None, count: int) -> Tensor:
        """What the last forward put out for the last token of every row of a call, ``[count, ...]``.

        Args:
            places: see :class:`tokops.hf.processing.RowProcessor`.
            count: rows of the call.

        Raises:
            RuntimeError: no forward was seen, or it is not said which of its tokens are meant.
        """
        last = self._kept[-1] if self._kept else None
        if last is not None and places is not None:
            self._looked = True
            rows, nodes = (torch.tensor(x, device=last.device) for x in zip(*places, strict=True))
            return last[rows, nodes]
        if last is None or len(last) != count or self._looked:
            raise RuntimeError(
                f"{self._what}: no forward of the model has put out just what belongs to these {count} texts; assisted "
                "decoding of transformers and InflightGenerator are not supported"
            )
        self._looked = True
        return last[:, -1]

    def seen(self, row: int) -> Tensor:
        """What all forwards since the look before the last one put out for a row of the batch, ``[tokens, ...]``."""
        return torch.cat([out[row] for out in self._kept])


def watch_logits(model, what: str) -> Watch:
    """The model's own logits, before any processor."""
    return Watch(model, lambda output: output.logits, what)


def watch_hidden(model, layer: int | None, what: str, history: bool = False) -> Watch:
    """Hidden states: what a decoder layer puts out, or None: what ``lm_head`` takes.

    Raises:
        ValueError: no such layer.
    """
    if layer is None:
        return Watch(model.base_model, lambda output: output.last_hidden_state, what, history)
    layers = model.base_model.layers
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"{what}: layer must be {-len(layers)}..{len(layers) - 1}, got {layer}")

    def take(output):
        return output if isinstance(output, Tensor) else output[0]

    return Watch(layers[layer], take, what, history)
