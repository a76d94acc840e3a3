"""What a constraint is to code that decodes under it: a state, and a yes or no for every next token."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .._bitmask import packed

__all__ = [
    "Constraint",
    "Counting",
    "MatcherConstraint",
    "PredicateConstraint",
    "constraint_of",
    "mask_by_asking",
    "mask_of",
    "prune_of",
]


class Constraint(Protocol):
    """What a text must be, asked token by token.

    States are values: asking about one, or advancing it, leaves it as it was, so that texts may share it.

    A constraint may also have ``mask(state) -> int32 [W] | None``, bit ``t % 32`` of word ``t // 32`` for every token
    that ``ok`` would allow; ``prune``, such a mask of the tokens that are legal anywhere; and ``eos_ids``, the tokens
    that end a text. They must agree with ``ok``.
    """

    def start(self) -> Any:
        """The state of the empty text.

        Raises:
            ValueError: no text at all satisfies the constraint.
        """

    def ok(self, state: Any, token: int) -> bool:
        """Whether a text that satisfies the constraint can go on with a token; for an end token, whether it is one."""

    def advance(self, state: Any, token: int) -> Any:
        """The state behind a token for which ``ok`` holds."""


def mask_of(constraint: Constraint, state: Any) -> Tensor | None:
    """The packed mask ``[W]`` int32 of a state, None where a constraint has none."""
    mask = getattr(constraint, "mask", None)
    return None if mask is None else mask(state)


def prune_of(constraint: Constraint) -> Tensor | None:
    """The packed mask ``[W]`` int32 of tokens that are legal anywhere, None where nobody knows."""
    return getattr(constraint, "prune", None)


def mask_by_asking(constraint: Constraint, state: Any, size: int) -> Tensor:
    """The packed mask of a state by asking for every one of ``size`` tokens: for small vocabularies."""
    return packed(torch.tensor([constraint.ok(state, token) for token in range(size)]))


class PredicateConstraint:
    """Any yes/no checker: of prefixes, and of whole texts.

    ``prefix(text)`` says whether something valid begins with the text, ``complete(text)`` whether the text is valid.
    A ``prefix`` that only knows whole texts leads into dead ends. A text is the tuple of its tokens, or where
    ``tokens`` gives their bytes, these bytes; end tokens are not part of it.

    Args:
        prefix, complete: the checkers.
        eos_ids: tokens that end a text.
        tokens: bytes of every token. One without bytes, other than end tokens, is never legal.

    Raises:
        ValueError: no end token.

    Example::

        digits = PredicateConstraint(lambda t: t.isdigit() or not t, lambda t: len(t) == 3, eos_ids=[2], tokens=table)
    """

    def __init__(
        self,
        prefix: Callable[[Any], bool],
        complete: Callable[[Any], bool],
        *,
        eos_ids: Collection[int],
        tokens: Sequence[bytes] | None = None,
    ):
        if not eos_ids:
            raise ValueError("PredicateConstraint: eos_ids must name a token that ends a text")
        self._prefix, self._complete = prefix, complete
        #: Tokens that end a text.
        self.eos_ids = frozenset(eos_ids)
        self._tokens = tokens
        #: See :class:`Constraint`.
        self.prune = None
        if tokens is not None:
            legal = [bool(text) or i in self.eos_ids for i, text in enumerate(tokens)]
            self.prune = packed(torch.tensor(legal))

    def start(self) -> Any:
        """See :meth:`Constraint.start`."""
        empty: Any = () if self._tokens is None else b""
        if not self._prefix(empty):
            raise ValueError("PredicateConstraint: prefix refuses the empty text")
        return empty

    def ok(self, state: Any, token: int) -> bool:
        """See :meth:`Constraint.ok`; one call of a checker."""
        if token in self.eos_ids:
            return bool(self._complete(state))
        if self._tokens is not None and not (0 <= token < len(self._tokens) and self._tokens[token]):
            return False
        return bool(self._prefix(self.advance(state, token)))

    def advance(self, state: Any, token: int) -> Any:
        """See :meth:`Constraint.advance`; calls no checker."""
        if token in self.eos_ids:
            return state
        return (*state, token) if self._tokens is None else state + self._tokens[token]


class MatcherConstraint:
    """A compiled grammar as a constraint; states are matchers.

    Args:
        grammar: a :class:`tokops.grammar.Grammar`, or what has its ``matcher()``, with ``accept(token) -> bool``,
            ``rollback(n)``, ``fork()`` and ``fill(row)``, and its ``vocabulary`` with ``width`` and ``eos_ids``.
    """

    def __init__(self, grammar: Any):
        self._grammar = grammar
        self._width = grammar.vocabulary.width
        #: Tokens that end a text.
        self.eos_ids = frozenset(grammar.vocabulary.eos_ids)

    def start(self) -> Any:
        """See :meth:`Constraint.start`."""
        return self._grammar.matcher()

    def ok(self, state: Any, token: int) -> bool:
        """See :meth:`Constraint.ok`."""
        accepted = 0 <= token < self._width and state.accept(token)
        if accepted:
            state.rollback(1)
        return accepted

    def advance(self, state: Any, token: int) -> Any:
        """See :meth:`Constraint.advance`.

        Raises:
            ValueError: the token is not legal here.
        """
        twin = state.fork()
        if not twin.accept(token):
            raise ValueError(f"MatcherConstraint: token {token} is not legal here")
        return twin

    def mask(self, state: Any) -> Tensor:
        """See :class:`Constraint`."""
        row = torch.zeros((self._width + 31) // 32, dtype=torch.int32)
        state.fill(row)
        return row


def constraint_of(name: str, given: Any) -> Constraint | None:
    """A constraint as it is, a compiled grammar as one, None as None.

    Args:
        name: of the method it is given to, for messages.
        given: a constraint, a :class:`tokops.grammar.Grammar` or None.

    Raises:
        TypeError: it is something else.
    """
    if given is None or all(callable(getattr(given, part, None)) for part in ("start", "ok", "advance")):
        return given
    if callable(getattr(given, "matcher", None)) and hasattr(given, "vocabulary"):
        return MatcherConstraint(given)
    raise TypeError(
        f"{name}: constraint: expected a Grammar, or what has start(), ok(state, token) and advance(state, token), "
        f"got {type(given).__name__}"
    )


class Counting:
    """A constraint that counts what it is asked.

    Attributes:
        checks, masks, advances: calls of ``ok``, ``mask`` and ``advance`` so far.
    """

    def __init__(self, inner: Constraint):
        self.inner = inner
        self.checks = self.masks = self.advances = 0
        self.prune = prune_of(inner)
        self.eos_ids = frozenset(getattr(inner, "eos_ids", ()))

    def start(self) -> Any:
        """See :meth:`Constraint.start`."""
        return self.inner.start()

    def ok(self, state: Any, token: int) -> bool:
        """See :meth:`Constraint.ok`."""
        self.checks += 1
        return self.inner.ok(state, token)

    def advance(self, state: Any, token: int) -> Any:
        """See :meth:`Constraint.advance`."""
        self.advances += 1
        return self.inner.advance(state, token)

    def mask(self, state: Any) -> Tensor | None:
        """See :class:`Constraint`."""
        mask = mask_of(self.inner, state)
        self.masks += mask is not None
        return mask
