"""CAAD: logits are mixed with those the model had at similar places of a few true answers."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._constrain import Constrain, refuser
from .base import ModelShape

__all__ = ["CAAD", "Grounding"]

#: What stands for a log-probability of -inf: averages would be poisoned by it, and float16 has it.
LEAST = -1e4


@dataclass(frozen=True, eq=False)
class Grounding:
    """A datastore: for places in true answers, an embedding of the text so far and the model's next-token law there.

    Laws are log-probabilities, dense, or the likeliest m of every row and one value for all the others.

    Args:
        keys: ``[M, d]`` floats, of length 1.
        laws: ``[M, V]`` floats, or None where they are sparse.
        ids, values: ``[M, m]`` tokens and their log-probabilities, or None.
        floor: ``[M]`` float32, the log-probability of every other token, or None.
        vocab: V, the width of the model's logits.
        tokenizer: a fingerprint of the tokenizer, "" if unknown.
        model: a hash of the model's configuration, "" if unknown.
        embed: how contexts were embedded; "" if unknown.

    Raises:
        ValueError: shapes that do not fit, or tokens out of range.
    """

    keys: Tensor
    laws: Tensor | None
    ids: Tensor | None
    values: Tensor | None
    floor: Tensor | None
    vocab: int
    tokenizer: str = ""
    model: str = ""
    embed: str = ""

    def __post_init__(self):
        rows = self.keys.shape[0]

        def refuse(wrong, message):
            if wrong:
                raise ValueError(f"Grounding: {message}")

        refuse(self.keys.dim() != 2, f"keys must be [M, d], got {list(self.keys.shape)}")
        if self.laws is not None:
            refuse(
                self.laws.shape != (rows, self.vocab),
                f"laws must be [{rows}, {self.vocab}], got {list(self.laws.shape)}",
            )
            refuse(not bool(self.laws.isfinite().all()), "laws must be finite")
            return
        refuse(
            self.ids is None or self.values is None or self.floor is None,
            "laws or ids, values, floor must be given",
        )
        refuse(
            self.ids.dim() != 2 or len(self.ids) != rows or self.ids.shape != self.values.shape,
            f"ids and values must be [{rows}, m], got {list(self.ids.shape)} and {list(self.values.shape)}",
        )
        refuse(self.floor.shape != (rows,), f"floor must be [{rows}], got {list(self.floor.shape)}")
        refuse(
            self.ids.numel() > 0 and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < self.vocab,
            f"ids must be 0..{self.vocab - 1}",
        )

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def of(
        keys: Tensor, logits: Tensor, *, top: int | None = None, dtype=torch.float16, **known: str
    ) -> "Grounding":
        """A datastore of embeddings and logits.

        Args:
            keys: ``[M, d]``; they are scaled to length 1.
            logits: ``[M, V]``, as the model gives them.
            top: likeliest tokens to keep of every law; None keeps all.
            dtype: of what is kept.
            known: ``tokenizer``, ``model``, ``embed``.
        """
        keys = torch.nn.functional.normalize(keys.float(), dim=-1).to(dtype)
        laws = logits.float().log_softmax(-1).clamp_min(LEAST)
        vocab = laws.shape[1]
        if top is None or top >= vocab:
            return Grounding(keys, laws.to(dtype), None, None, None, vocab, **known)
        if top < 1:
            raise ValueError(f"Grounding: top must be at least 1 or None, got {top}")
        values, ids = laws.topk(top, -1)
        # What is left is summed as it is: one minus the rest would be rounding where the law is sharp.
        left = laws.scatter(-1, ids, float("-inf")).logsumexp(-1)
        floor = (left - math.log(vocab - top)).clamp_min(LEAST)
        return Grounding(keys, None, ids.int(), values.to(dtype), floor, vocab, **known)

    def select(self, rows: Tensor) -> "Grounding":
        """Some rows, in the order given."""
        return self._changed(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> "Grounding":
        """The same on another device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Grounding":
        """The same with all tensors changed."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {n: change(v) if isinstance(v, Tensor) else v for n, v in values.items()}
        return Grounding(**changed)

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a file for :meth:`load`."""
        torch.save({f.name: getattr(self, f.name) for f in fields(self)}, path)

    @staticmethod
    def load(path: str | os.PathLike) -> "Grounding":
        """What :meth:`save` has written."""
        return Grounding(**torch.load(path, weights_only=True))

    def average(self, rows: Tensor, weights: Tensor, mean: str) -> Tensor:
        """Weighted means of laws, ``[B, V]`` float32 log-probabilities; one row of every law at a time.

        Args:
            rows: ``[B, N]`` int64.
            weights: ``[B, N]``, which sum to 1.
            mean: ``log``: of log-probabilities; ``prob``: of probabilities.
        """
        out = torch.zeros(len(rows), self.vocab, device=rows.device)
        for row, weight in zip(rows.unbind(1), weights.float().unbind(1), strict=True):
            if self.laws is not None:
                law = self.laws[row].float()
            else:
                assert self.floor is not None, "sparse"
                assert self.ids is not None, "sparse"
                assert self.values is not None, "sparse"
                law = self.floor[row][:, None].expand(-1, self.vocab).clone()
                law.scatter_(1, self.ids[row].long(), self.values[row].float())
            out += weight[:, None] * (law if mean == "log" else law.exp())
        return out if mean == "log" else out.log().clamp_min(LEAST)


@dataclass(frozen=True, eq=False)
class CAAD(Constrain):
    """Context-aware adaptive decoding (arXiv 2508.02184): truthful answers guide similar ones, in one forward a token.

    At every token the text so far is embedded and the ``neighbours`` nearest entries of the datastore (cosine, the
    first of equals) are averaged with weights ``softmax(similarity / weight_temperature)``; the mean law g is mixed
    into the model's law l: ``(1 - alpha) l + alpha g``, normalised. Tokens with ``l < max(l) + log(beta)`` get no
    probability, so that the datastore cannot bring in what the model finds impossible. Texts without a similar entry
    are left alone, as is everything with ``alpha=0`` or an empty datastore.

    Build a datastore with :func:`tokops.hf.caad.build_grounding`, from ten questions with true answers or so. The
    paper's embedder, mixing formula and numbers could not be verified; the defaults are ours.

    Args:
        grounding: the datastore, of the same model and tokenizer.
        neighbours: N.
        alpha: share of the datastore, 0..1.
        s_min: least similarity of the nearest entry; None: any.
        weight_temperature: of the neighbours' weights, above 0.
        beta: see above, 0..1; 0 cuts nothing.
        max_tokens: tokens of an answer that are guided; None: all.
        average: ``log``: of log-probabilities; ``prob``: of probabilities.
        adapt: ``none``; ``similarity``: alpha times the largest similarity, within 0..1; ``entropy``: alpha times the
            entropy of the model's law over that of the flat one.
        embed: ``last``: hidden state of the last token; ``mean``: of all tokens, on average; or a callable that takes
            a list of texts and returns ``[n, d]``, for an encoder of sentences. It must be what built the datastore.
        layer: whose hidden state; None: what ``lm_head`` takes.
        window: tokens at the end of the text that a callable gets.
        embed_on: a callable gets ``text``, for which ``generate`` needs ``tokenizer=``, or lists of ``ids``.

    Raises:
        ValueError: a number out of range; when patching, a datastore of another model or vocabulary.
    """

    module: ClassVar[str] = "caad"

    grounding: Grounding
    neighbours: int = 10
    alpha: float = 0.3
    s_min: float | None = None
    weight_temperature: float = 0.1
    beta: float = 0.1
    max_tokens: int | None = None
    average: str = "log"
    adapt: str = "none"
    embed: Any = "last"
    layer: int | None = None
    window: int = 128
    embed_on: str = "text"

    def __post_init__(self):
        refuse = refuser(self)
        refuse(
            not isinstance(self.grounding, Grounding),
            f"grounding must be a Grounding, got {self.grounding!r}",
        )
        refuse(self.neighbours < 1, f"neighbours must be at least 1, got {self.neighbours}")
        refuse(not 0 <= self.alpha <= 1, f"alpha must be 0..1, got {self.alpha}")
        refuse(self.s_min is not None and not -1 <= self.s_min <= 1, f"s_min must be -1..1, got {self.s_min}")
        refuse(
            not 0 < self.weight_temperature < float("inf"),
            f"weight_temperature must be above 0, got {self.weight_temperature}",
        )
        refuse(not 0 <= self.beta <= 1, f"beta must be 0..1, got {self.beta}")
        refuse(
            self.max_tokens is not None and self.max_tokens < 0,
            f"max_tokens must not be negative, got {self.max_tokens}",
        )
        refuse(self.average not in ("log", "prob"), f"average must be log or prob, got {self.average!r}")
        refuse(
            self.adapt not in ("none", "similarity", "entropy"),
            f"adapt must be none, similarity or entropy, got {self.adapt!r}",
        )
        refuse(
            self.embed not in ("last", "mean") if isinstance(self.embed, str) else not callable(self.embed),
            f"embed must be last, mean or a callable, got {self.embed!r}",
        )
        refuse(self.window < 1, f"window must be at least 1, got {self.window}")
        refuse(self.embed_on not in ("text", "ids"), f"embed_on must be text or ids, got {self.embed_on!r}")
        refuse(
            bool(self.grounding.embed) and self.grounding.embed != self.embedding,
            f"the datastore was embedded by {self.grounding.embed}, not by {self.embedding}",
        )

    @property
    def embedding(self) -> str:
        """A name for how contexts are embedded."""
        return embedding_name(self.embed, self.layer)

    def resolve(self, shape: ModelShape) -> "CAAD":
        refuse = refuser(self)
        refuse(
            self.grounding.vocab != shape.vocab,
            f"the datastore is of a vocabulary of {self.grounding.vocab}, the model has {shape.vocab}",
        )
        refuse(
            bool(self.grounding.model) and self.grounding.model != shape.digest,
            f"the datastore is of another model, {self.grounding.model} and not {shape.digest}",
        )
        return self

    def nearest(self, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest entries: ``[B, N]`` int64 rows, their weights, and ``[B]`` the largest similarity, float32.

        Args:
            embedded: ``[B, d]``, at least one entry in the datastore.
        """
        keys = self.grounding.keys.float()
        unit = torch.nn.functional.normalize(embedded.float(), dim=-1)
        similar, rows = (unit @ keys.T).sort(dim=-1, descending=True, stable=True)
        similar, rows = similar[:, : self.neighbours], rows[:, : self.neighbours]
        return rows, (similar / self.weight_temperature).softmax(-1), similar[:, 0]

    def mix(self, logits: Tensor, embedded: Tensor) -> Tensor:
        """Logits ``[B, V]`` after the datastore has had its say: log-probabilities; unguided rows as they came.

        Args:
            logits: of the model; -inf stays.
            embedded: ``[B, d]``, contexts.

        Raises:
            ValueError: another vocabulary than the datastore's.
        """
        refuser(self)(
            logits.shape[1] != self.grounding.vocab,
            f"the datastore is of a vocabulary of {self.grounding.vocab}, logits have {logits.shape[1]}",
        )
        if not len(self.grounding) or not self.alpha:
            return logits
        rows, weights, similar = self.nearest(embedded)
        law = logits.float().log_softmax(-1)
        alpha = torch.full_like(similar, self.alpha)
        if self.adapt == "similarity":
            alpha = alpha * similar.clamp(0.0, 1.0)
        elif self.adapt == "entropy":
            flat = torch.log(torch.tensor(float(logits.shape[1])))
            alpha = alpha * (torch.special.entr(law.exp()).sum(-1) / flat).clamp(0.0, 1.0)
        if self.s_min is not None:
            alpha = alpha.masked_fill(similar < self.s_min, 0.0)
        guide = self.grounding.average(rows, weights, self.average)
        mixed = (1 - alpha[:, None]) * law.clamp_min(LEAST) + alpha[:, None] * guide
        least = law.amax(-1, keepdim=True) + torch.tensor(self.beta, device=law.device).log()
        mixed = mixed.masked_fill((law < least) | law.isneginf(), float("-inf")).log_softmax(-1)
        return torch.where(alpha[:, None] > 0, mixed.to(logits.dtype), logits)

    def describe(self) -> str:
        return (
            f"CAAD(grounding of {len(self.grounding)}, neighbours={self.neighbours}, alpha={self.alpha}, "
            f"embed={self.embedding})"
        )


def embedding_name(embed: str | Callable, layer: int | None) -> str:
    """A name for a way to embed contexts; callables have their own."""
    if not isinstance(embed, str):
        return getattr(embed, "__name__", type(embed).__name__)
    return embed if layer is None else f"{embed}:{layer}"
