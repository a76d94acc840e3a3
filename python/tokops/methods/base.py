"""What a method is, and the narrow interface through which it fills the ``select`` slot."""

import operator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

SLOTS = ("reduce", "mask", "store", "select", "weigh", "route", "draft", "verify", "constrain")


class Selection(NamedTuple):
    """Positions that queries read: int32 ``positions [B, S, Hs, k]`` ascending, -1 padded; ``counts [B, S, Hs]``.

    S is 1 (one list for all query rows) or the number of rows; Hs is 1, Hkv or Hq.
    """

    positions: Tensor
    counts: Tensor


@dataclass(frozen=True)
class ModelShape:
    """What a method may know of the model it is applied to.

    Args:
        family: transformers' ``model_type``.
        name: the model's name, for lookups and messages.
        digest: a hash of the configuration.
        layers, hidden, heads, kv_heads, head_dim, vocab: sizes.
        windows: sliding window of every layer, None where attention is full.
    """

    family: str
    name: str
    digest: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    windows: tuple[int | None, ...]

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers that see the whole context."""
        return tuple(i for i, window in enumerate(self.windows) if window is None)


@dataclass
class Step:
    """One forward pass over one cache: what all its layers share.

    Args:
        past: cached tokens before this forward.
        rows: new tokens per sequence.
        prompt_rows: how many of the new tokens are prompt. They are read densely; the rest are decoding.
        memo: what a method keeps from one layer to the next; gone with the forward.
    """

    past: int
    rows: int
    prompt_rows: int
    memo: dict[Any, Any] = field(default_factory=dict)


class LayerReader(Protocol):
    """One layer's cache, seen by a selecting method while rows are decoded.

    ``q [B, T, Hq, D]`` are the decoding rows; row ``i`` sits at slot ``length - T + i``, which is its position, and
    sees slots from ``starts[b]`` (None: 0) up to its own. The cache behind it may be of any store.

    Where ``drafted`` holds, rows are nodes of a tree behind every sequence's own tokens (or one new token of
    sequences of different lengths; ``length`` is the largest). Row ``i`` of sequence ``b`` then sits at slot
    ``lengths[b] + i`` and sees its ancestors only. Lists are of slots. ``positions [B or 1, T]`` are the rows'
    positions in their own text and ``key_positions [B or 1, length]`` those of the slots, whoever sees them: both
    are int64. Along what a row sees, slots ascend as positions do.
    """

    layer: int
    q: Tensor
    length: int
    starts: Tensor | None
    kv_heads: int
    drafted: bool
    positions: Tensor
    key_positions: Tensor

    def scores(self, reduce: str = "none") -> Tensor:
        """Scores ``[B, T, Hs, length]`` as :func:`tokops.attention.paged_scores` gives them; -inf where unseen."""

    def decode_scores(self, reduce: str = "none") -> Tensor:
        """The same scores out of the dense pass; a ``select`` that then returns None gets that dense result."""


@dataclass(frozen=True)
class Method:
    """Base of all methods. A subclass validates its numbers in ``__post_init__`` and names the slots it fills."""

    slots: ClassVar[tuple[str, ...]] = ()
    #: Tokens after which what was generated is run again as one dense chunk; 0 is never. Without an annotation,
    #: or it would be the first field of a subclass that makes it one.
    correction_period = 0

    @property
    def loop(self) -> str | None:
        """Module of ``tokops.hf`` whose ``generate_loop`` decodes under this method; None is transformers' own."""
        return "decoding" if self.correction_period else None

    @property
    def hooks(self) -> str | None:
        """Module of ``tokops.hf`` whose ``hooks`` gives the processors and criteria of one generation; None: none."""
        return None

    def resolve(self, shape: ModelShape) -> "Method":
        """This method with everything that depends on the model filled in.

        Raises:
            ValueError: the method cannot run on such a model.
        """
        return self

    def select(self, reader: LayerReader, step: Step) -> Selection | None:
        """Which cached positions the decoding rows of one layer read; None is all of them.

        Called for every full-attention layer, in order, whenever rows are decoded. State that must reach a later
        layer goes into ``step.memo``.
        """
        return None

    def new_layout(self, page_size: int, shape: ModelShape) -> Any:
        """The bookkeeping of a new cache whose full-attention layers this method stores.

        None: full-precision pages. Else an object like :class:`tokops.kvcache.layout.Layout`, whose
        ``new_store(index)`` gives the :class:`tokops.kvcache.Store` of one layer.
        """
        return None

    def describe(self) -> str:
        """What this method does with its slots, in a phrase, for reports."""
        return repr(self)


def is_whole(x: object) -> bool:
    """Whether x is an integer, numpy's among them; truth values are none."""
    try:
        operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(x, bool)


def refuse_fractions(method: Method, *names: str) -> None:
    """Raise ValueError unless these fields are whole numbers, or None where that is the default."""
    for option in fields(method):
        value = getattr(method, option.name)
        if option.name not in names or (value is None and option.default is None):
            continue
        if not is_whole(value):
            raise ValueError(f"{type(method).__name__}: {option.name} must be a whole number, got {value!r}")
