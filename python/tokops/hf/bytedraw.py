"""Drawing bytes: what a model of bytes and an ensemble of them have in common."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..grammar.bytes_vocabulary import END_OF_TEXT
from ..sampling import Sampling, sample
from .byteprompts import Prompt

#: Says which bytes may come next, given those so far: 257 bools, the last for the end.
ByteMask = Callable[[bytes], Sequence[bool] | np.ndarray | Tensor]


@dataclass(frozen=True)
class ByteText:
    """What was generated.

    Attributes:
        data: the new bytes, without the prompt.
        ended: whether the model ended the text; if not, the limit or a stop string did.
        forwards, read: forwards of the models, and tokens that went through them, from the prompt on.
    """

    data: bytes
    ended: bool
    forwards: int
    read: int

    @property
    def text(self) -> str:
        """The bytes as text; what is no UTF-8, such as an incomplete last character, becomes U+FFFD."""
        return self.data.decode("utf-8", "replace")


class Source:
    """What gives laws of bytes and is fed with bytes: one text of a model, or of an ensemble.

    Attributes:
        text: the bytes so far.
        certain: whether a byte of probability 0 can really not come, because nothing is ever dropped.
    """

    text: bytes
    certain: bool

    def law(self) -> Tensor:
        raise NotImplementedError

    def feed(self, data: bytes | int) -> None:
        raise NotImplementedError

    @property
    def cost(self) -> tuple[int, int]:
        raise NotImplementedError


class ByteModel:
    """What models and ensembles share."""

    def session(self, prompt: Prompt = "") -> Source:
        raise NotImplementedError

    def next_byte_law(self, prompt: Prompt) -> Tensor:
        """Probabilities of the next byte behind a prompt and, at 256, of the end: float64 ``[257]``, sum 1.

        Args:
            prompt: text (special tokens in it are recognised), bytes (nothing is), or a list of these and token ids.

        Raises:
            ValueError: no text of the tokenizer begins like this; no token to begin with.
        """
        return self.session(prompt).law().exp()

    def log_prob(self, text: str | bytes, prompt: Prompt = "", end: bool = False) -> float:
        """Log-probability, in nats, that a prompt is followed by a text (and then by the end).

        Raises:
            ValueError: as :meth:`next_byte_law`.
        """
        source = self.session(prompt)
        total = 0.0
        symbols = [*(text.encode() if isinstance(text, str) else text), *([END_OF_TEXT] if end else [])]
        for symbol in symbols:
            step = float(source.law()[symbol])
            if step == -math.inf:
                return step
            total += step
            source.feed(symbol)
        return total

    def stream(
        self,
        prompt: Prompt,
        max_new_bytes: int,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        stream: int = 0,
        mask: ByteMask | None = None,
    ) -> Iterator[int]:
        """The symbols that :meth:`generate` draws, one by one; the last one is 256 if the model ends the text."""
        yield from _draw(self.session(prompt), max_new_bytes, sampling, seed, stream, mask)

    def generate(
        self,
        prompt: Prompt,
        max_new_bytes: int,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        stream: int = 0,
        stop: Sequence[str | bytes] = (),
        mask: ByteMask | None = None,
    ) -> ByteText:
        """Draw bytes behind a prompt.

        Temperature, top-k, top-p and min-p of ``sampling`` are those of bytes, which is another law than that of the
        same settings on tokens; see ``processors`` of :class:`ByteLevel` for these.

        Args:
            prompt: as in :meth:`next_byte_law`.
            max_new_bytes: bytes drawn at most.
            sampling: how bytes are drawn; None is the law itself.
            seed, stream: of the random numbers, which are keyed by the byte's place behind the prompt.
            stop: ends the text when it is there; it stays in the result.
            mask: which bytes may come next, given the new ones so far.

        Raises:
            ValueError: as :meth:`next_byte_law`; a mask of another length, or one that leaves nothing.
        """
        source = self.session(prompt)
        return _generated(source, max_new_bytes, sampling, seed, stream, stop, mask)


def _draw(source, limit, sampling, seed, stream, mask) -> Iterator[int]:
    if limit < 0:
        raise ValueError(f"max_new_bytes must be at least 0, got {limit}")
    s = Sampling() if sampling is None else sampling
    made = b""
    while len(made) < limit:
        law = source.law()
        if mask is not None:
            allowed = torch.as_tensor(np.asarray(mask(made)), dtype=torch.bool)
            if allowed.shape != law.shape:
                raise ValueError(f"mask must give {len(law)} bools, got {list(allowed.shape)}")
            law = law.masked_fill(~allowed, -math.inf)
            if bool((law == -math.inf).all()):
                raise ValueError(f"mask leaves no byte that may come behind {made[-40:]!r}")
        settings = {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p}
        symbol = int(sample(law.float()[None], seed=seed, stream=stream, position=len(made), **settings))
        yield symbol
        if symbol == END_OF_TEXT:
            return
        made += bytes([symbol])
        if len(made) < limit:
            source.feed(symbol)


def _generated(source, limit, sampling, seed, stream, stop, mask) -> ByteText:
    stops = tuple(s.encode() if isinstance(s, str) else bytes(s) for s in stop)
    if not all(stops):
        raise ValueError("a stop string must not be empty")
    data, ended = b"", False
    for symbol in _draw(source, limit, sampling, seed, stream, mask):
        if symbol == END_OF_TEXT:
            ended = True
            break
        data += bytes([symbol])
        if stops and data.endswith(stops):
            break
    return ByteText(data, ended, *source.cost)
