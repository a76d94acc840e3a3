"""Byte-level laws of models of tokens: generation, filling in the middle, and ensembles over different tokenizers."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from ..grammar.bytes_cover import ByteCover, NoContinuation
from ..grammar.bytes_validity import BPEValidity, EveryEncoding, NotExact
from ..grammar.bytes_vocabulary import END_OF_TEXT, Spelling
from .bytedraw import ByteModel, ByteText, Source
from .byteprompts import Prompt, Prompts
from .byterows import CachedRows

__all__ = ["ByteEnsemble", "ByteLevel", "ByteSession", "ByteText", "Prompt"]


class ByteSession(Source):
    """One text under a byte-level model, with its own cache. Made by :meth:`ByteLevel.session`.

    Attributes:
        text: the bytes behind the last special token, the prompt's among them.
        cover: the token sequences behind them.
    """

    def __init__(self, cover: ByteCover, rows: CachedRows, ids: Sequence[int], lead: int):
        self.cover = cover
        self.rows = rows
        self._ids = ids  # before the text
        self._lead = lead  # bytes that the tokenizer has put in front

    @property
    def text(self) -> bytes:  # type: ignore[override]
        return self.cover.text[self._lead :]

    @property
    def cost(self) -> tuple[int, int]:
        return self.rows.forwards, self.rows.read

    @property
    def certain(self) -> bool:  # type: ignore[override]
        return not self.cover.prunes

    def law(self) -> Tensor:
        """Log-probabilities of the next byte and, at 256, of the end: float64 ``[257]`` on the CPU.

        Raises:
            NoContinuation: nothing may follow.
        """
        return torch.from_numpy(self.cover.law().copy())

    def feed(self, data: bytes | int) -> None:
        """Add bytes, or one symbol; 256 ends the text.

        Raises:
            NoContinuation: the tokenizer spells no text that goes on like this; the text stays as it was before the
                byte at fault.
        """
        for symbol in [data] if isinstance(data, int) else data:
            try:
                self.cover.feed(symbol)
            except NoContinuation:
                # What goes on like this may have been dropped as too light: look at the whole text again.
                if not self.cover.prunes or not self.begin(self.cover.text + bytes([symbol])):
                    raise

    def begin(self, full: bytes) -> bool:
        """Find the cover of a whole text anew, if its sequences can be told exactly."""
        validity = self.cover.validity
        if not isinstance(validity, BPEValidity):
            return False
        begun = validity.begin(full)
        self.cover.start(self._ids, begun, full, validity.nodes(begun, full))
        return True


class _EnsembleSession(Source):
    """The same text under several models."""

    def __init__(self, members: Sequence[Source], weights: Sequence[float]):
        self.members = members
        self._log_weights = torch.tensor(weights, dtype=torch.float64).log()

    @property
    def text(self) -> bytes:  # type: ignore[override]
        return self.members[0].text

    @property
    def cost(self) -> tuple[int, int]:
        forwards, read = zip(*(member.cost for member in self.members), strict=True)
        return sum(forwards), sum(read)

    @property
    def certain(self) -> bool:  # type: ignore[override]
        return any(member.certain for member in self.members)

    def law(self) -> Tensor:
        laws = torch.stack([member.law() for member in self.members])
        mixed = torch.logsumexp(laws + self._log_weights[:, None], 0)
        for member, law in zip(self.members, laws, strict=True):
            if member.certain:
                mixed[:END_OF_TEXT].masked_fill_(law[:END_OF_TEXT] == -math.inf, -math.inf)
        if bool((mixed == -math.inf).all()):
            raise NoContinuation(f"no byte may come next for all members behind {self.text[-40:]!r}")
        return mixed - mixed.logsumexp(0)

    def feed(self, data: bytes | int) -> None:
        for symbol in [data] if isinstance(data, int) else data:
            for member in self.members:
                if member.certain and symbol < END_OF_TEXT and float(member.law()[symbol]) == -math.inf:
                    raise NoContinuation(
                        f"a member cannot go on with byte {symbol} behind {self.text[-40:]!r}"
                    )
            # Those that may still refuse come first, so that the members stay at one text.
            for member in sorted(self.members, key=lambda member: member.certain):
                member.feed(symbol)


class ByteLevel(ByteModel):
    """A model of tokens as a model of bytes, with the same law over texts (arXiv 2410.09303, 2506.14123).

    Prompts may stop anywhere, in the middle of a token too, and what follows is as likely as the model says that texts
    with this beginning go on so. All tokenizers lead to the same 257 symbols: 256 bytes and the end.

    Args:
        model: a causal transformers model, patched by :func:`tokops.patch` or not.
        tokenizer: its fast tokenizer.
        validity: ``"exact"``: only token sequences count that the tokenizer makes. BPE tokenizers, byte-level or with
            spaces as a character and byte fallback, whose normalizer changes nothing but spaces. ``"none"``: all
            sequences count, for any tokenizer whose tokens are bytes; the lightest ones are dropped.
        beam: sequences (or groups of those with all but the last token in common) that are kept; ``math.inf`` keeps
            all. None: all if exact, else 8.
        threshold: those are dropped whose share of the mass is below it, which changes laws by about as much. None: 0
            if exact, else 0.01. A text that goes on in a dropped way is looked at anew if exact. With 0.01 there are
            about as many forwards as tokens; with 0, as bytes. With ``"none"``, ``beam=math.inf`` and ``threshold=0``
            every encoding counts, of which there are exponentially many.
        renormalise: what happens to the mass of sequences that the tokenizer would not make. ``"bytes"``: it is left
            out of every byte's law. ``"tokens"``: of every token's, so that the bytes' laws multiply to a law of
            texts exactly.
        begin: tokens before a text. None: what the tokenizer puts there; if that is nothing and no token of the text
            is certain, the tokenizer's bos token, else its eos token.
        ends: tokens that end a text. None: those of the model's generation configuration, and the tokenizer's.
        processors: logits processors that rows of tokens pass through before they are summed up, such as
            temperature: then the bytes follow what the model with these processors samples.

    Raises:
        NotExact: (a ValueError) a tokenizer that exact validity is not known for; the message says why.
        ValueError: an unknown setting, a slow tokenizer, or tokens without bytes of their own.

    Example::

        model = ByteLevel(*tokops.hf.load_smollm2())
        model.next_byte_law("The capital of Fr")[ord("a")]
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        validity: str = "exact",
        beam: float | None = None,
        threshold: float | None = None,
        renormalise: str = "bytes",
        begin: Sequence[int] | None = None,
        ends: Sequence[int] | None = None,
        processors: LogitsProcessorList | None = None,
    ):
        if validity not in ("exact", "none"):
            raise ValueError(f"ByteLevel: validity must be exact or none, got {validity!r}")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"ByteLevel needs a fast tokenizer (of the tokenizers library), got {type(tokenizer).__name__}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.spelling = Spelling(json.loads(backend.to_str()))
        rows = model.config.get_text_config().vocab_size
        if len(self.spelling.vocabulary) > rows:
            raise ValueError(
                f"ByteLevel: the tokenizer has {len(self.spelling.vocabulary)} tokens, the model rows for {rows}"
            )
        exact = validity == "exact"
        self.validity: BPEValidity | EveryEncoding = EveryEncoding()
        if exact:
            try:
                self.validity = BPEValidity(self.spelling)
            except NotExact as error:
                raise NotExact(f"ByteLevel: no exact validity: {error}. validity='none' reads it") from None
        kept = (math.inf if exact else 8) if beam is None else beam
        self._options: dict[str, Any] = {
            "beam": None if kept == math.inf else int(kept),
            "threshold": (0.0 if exact else 0.01) if threshold is None else threshold,
            "renormalise": renormalise,
        }
        begin = None if begin is None else tuple(begin)
        self._prompts = Prompts(tokenizer, self.spelling, self.validity, rows, begin)
        self.ends = self._ends(ends)
        self.processors = processors
        ByteCover(
            self.spelling.vocabulary, lambda _: np.empty(0), self.validity, **self._options
        )  # checks them
        self._check_tokenizer()

    def _ends(self, given) -> tuple[int, ...]:
        if given is not None:
            return tuple(given)
        config = getattr(self.model, "generation_config", None)
        found = [getattr(config, "eos_token_id", None), self.tokenizer.eos_token_id]
        flat = [i for one in found if one is not None for i in ([one] if isinstance(one, int) else one)]
        return tuple(sorted(set(flat)))

    def _check_tokenizer(self) -> None:
        """Refuse a tokenizer that encodes otherwise than was understood from its description."""
        if not isinstance(self.validity, BPEValidity):
            return
        backend = self.tokenizer.backend_tokenizer
        for text in _SAMPLES:
            known = [c for c in text if self.spelling.byte_level or c.encode() in self.validity.symbols or
                     self.spelling.fallback]  # fmt: skip
            text = "".join(known)
            data = text.encode()
            try:
                mine = self.validity.encode(self.spelling.lead_of(data, True) + data) if text else []
            except ValueError:
                continue  # a byte without a token, which the tokenizer leaves out
            theirs = backend.encode(text, add_special_tokens=False).ids
            if mine != theirs:
                raise NotExact(
                    f"ByteLevel: no exact validity: the tokenizer makes {theirs} of {text!r}, its description "
                    f"{mine}. validity='none' reads it"
                )

    # ---- Prompts.

    def session(self, prompt: Prompt = "") -> ByteSession:
        """A text that begins with a prompt, of which laws can be asked and to which bytes can be added."""
        ids, data = self._prompts.segments(prompt)
        rows = CachedRows(self.model, self.processors)
        cover = ByteCover(self.spelling.vocabulary, rows, self.validity, self.ends, **self._options)
        lead = self.spelling.lead_of(data, not any(isinstance(i, int) for i in self._prompts.parts(prompt)))
        full = lead + data
        if isinstance(self.validity, BPEValidity):
            # Only where nothing is certain a token is needed that the tokenizer does not put there.
            if not ids and not self.validity.begin(full).ids:
                ids = self._prompts.first_token()
            session = ByteSession(cover, rows, ids, len(lead))
            session.begin(full)
            return session
        certain, rest = self._prompts.backed_off(full, bool(lead))
        cover.start_plain([*ids, *certain] or self._prompts.first_token())
        for byte in rest:
            cover.feed(byte)
        return ByteSession(cover, rows, ids, len(lead))

    # ---- Filling in the middle.

    def fill_in_the_middle(
        self,
        prefix: str | bytes,
        suffix: str | bytes,
        max_new_bytes: int,
        *,
        pre: int | str | None = None,
        suf: int | str | None = None,
        mid: int | str | None = None,
        order: str = "psm",
        heal: bool = True,
        **options,
    ) -> ByteText:
        """Draw what stands between a prefix and a suffix, each of which may stop or begin within a token.

        The special tokens are borders that no token reaches across. In ``"psm"`` order the prompt is PRE prefix SUF
        suffix MID; with ``heal`` the prefix's last, uncertain tokens are moved behind MID, where they are the given
        beginning of the middle, so that the law behind them is that of all encodings of the text that goes on
        from there. Without, the middle begins anew behind MID, which is what a model knows that was trained on middles
        cut at characters. In ``"spm"`` order it is PRE SUF suffix MID prefix, and the prefix is simply gone on with.

        Args:
            prefix, suffix: the texts around the middle.
            max_new_bytes: bytes drawn at most.
            pre, suf, mid: the special tokens or their ids; None: those of the tokenizer by a known name.
            order: ``"psm"`` or ``"spm"``.
            heal: see above; ``"psm"`` only.
            options: of :meth:`generate`.

        Raises:
            ValueError: an unknown order; a special token that the tokenizer does not have.
        """
        prompt = self.fim_prompt(prefix, suffix, pre=pre, suf=suf, mid=mid, order=order, heal=heal)
        return self.generate(prompt, max_new_bytes, **options)

    def fim_prompt(
        self, prefix, suffix, *, pre=None, suf=None, mid=None, order: str = "psm", heal: bool = True
    ) -> list[int | bytes]:
        """The prompt of :meth:`fill_in_the_middle`, for :meth:`next_byte_law` and ensembles."""
        if order not in ("psm", "spm"):
            raise ValueError(f"ByteLevel: order must be psm or spm, got {order!r}")
        start, hole, middle = (
            self._prompts.special(n, t) for n, t in (("pre", pre), ("suf", suf), ("mid", mid))
        )
        prefix, suffix = (t.encode() if isinstance(t, str) else bytes(t) for t in (prefix, suffix))
        if order == "spm":
            return [start, hole, suffix, middle, prefix]
        at = len(prefix)
        if heal:
            lead = self.spelling.lead_of(prefix, False)
            if isinstance(self.validity, BPEValidity):
                at = max(self.validity.begin(lead + prefix).at - len(lead), 0)
            else:
                at -= len(self._prompts.backed_off(lead + prefix, bool(lead))[1])
        return [start, prefix[: max(at, 0)], hole, suffix, middle, prefix[max(at, 0) :]]


class ByteEnsemble(ByteModel):
    """Several models that read one text, each with its own tokenizer: the weighted mean of their next bytes' laws.

    A byte that one of them cannot go on with at all gets nothing.

    Args:
        members: :class:`ByteLevel` models, or ensembles.
        weights: one per member, above 0; they are divided by their sum. None: equal ones.

    Raises:
        ValueError: no members, or other weights.

    Example::

        both = ByteEnsemble([ByteLevel(small, one), ByteLevel(large, other)], weights=[1, 3])
        both.generate("Once upon a ti", 40).text
    """

    def __init__(self, members: Sequence[ByteModel], weights: Sequence[float] | None = None):
        weights = [1.0] * len(members) if weights is None else list(weights)
        if not members or len(weights) != len(members) or not all(0 < w < math.inf for w in weights):
            raise ValueError(
                f"ByteEnsemble: there must be members and a weight above 0 for each, got {len(members)} and {weights}"
            )
        self.members = tuple(members)
        self.weights = tuple(w / sum(weights) for w in weights)

    def session(self, prompt: Prompt | Sequence[Prompt] = "") -> _EnsembleSession:
        """A text that begins with a prompt: one for all members, or a tuple with one for each."""
        prompts = prompt if isinstance(prompt, tuple) else (prompt,) * len(self.members)
        if len(prompts) != len(self.members):
            raise ValueError(
                f"ByteEnsemble: a tuple of prompts must have {len(self.members)}, got {len(prompts)}"
            )
        sessions = [member.session(one) for member, one in zip(self.members, prompts, strict=True)]
        return _EnsembleSession(sessions, self.weights)


#: Texts that pre-tokenizers differ on.
_SAMPLES = (
    "Hello world, it's 12345 o'clock; we'll see 3.14  times\n\n  indented\tcode() {\r\n}   end ",
    "don't DON'T 'tis I'VE x''s a'b 'reat ''  'll'",
    "  two   three\n \n\n a\u00a0b\u2003c  \t\n",
    "naïve café Größe 日本語テキスト 한국어 русский עברית हिन्दी ١٢٣ ½ ² Ⅷ 🙂👍🏽 e\u0301 ﬁ",
    "snake_case camelCase HTTPServer x1y2 100% $5 a+b==c != d /* // <!-- --> \\n '\"`",
    "1 22 333 4444 55555 a1 1a 0x1F 1,000,000.5e-3",
    "?",
)
