"""A region of tokens that is filled in any order, every token checked against a grammar before it is committed."""

from collections.abc import Collection, Iterable, Sequence

from .infill import Completion, Gap, InfillChecker, InfillUnknownError, Part

__all__ = ["Canvas"]

#: Gaps, and open tokens in them, up to which their number is compared with the shortest completion: with few gaps that
#: costs about as much as the answer itself.
_FEW = 4
_SCARCE = 64


class Canvas:
    """Tokens of a region, some of them open, and which tokens may be committed.

    A token is allowed where the open positions can still be filled so that the text belongs to the grammar. What was
    refused once stays refused: committing other tokens only takes completions away. So it is not asked again.

    Args:
        checker: of the grammar.
        tokens: bytes of every token; ``b""`` for those that are no text, which are never allowed.
        length: positions.
        ends: ids of tokens that end the text. The first of them does, and all after it become the same token.
        known: tokens at positions from the start, by position.
        open_end: whether a text that fills the region without an end may go on behind it (what a completion then
            adds). False: it must be complete by then.
        least: bytes that a gap of that many or more open tokens is known to have, as every token has one. Larger
            numbers see more dead ends, and cost time.
        room: whether to refuse what needs more tokens than are left: only with few gaps, and by the length of the
            longest token, so it sees some of these cases and never errs on the other side.
        seconds: for one question.
        on_unknown: what an unanswered question means for the token: ``"reject"``, ``"accept"`` (the text may then
            turn out to have no completion) or ``"raise"``. Counted in :attr:`unknown` and never taken for a "no".

    Raises:
        ValueError: numbers out of range, a known token that is no text, or known tokens that rule out any completion.
        InfillUnknownError: whether the known tokens can be completed was not decided.
    """

    def __init__(
        self,
        checker: InfillChecker,
        tokens: Sequence[bytes],
        length: int,
        *,
        ends: Collection[int] = (),
        known: Iterable[tuple[int, int]] = (),
        open_end: bool = True,
        least: int = 1,
        room: bool = True,
        seconds: float | None = 10.0,
        on_unknown: str = "reject",
    ):
        for name, ok, wanted in (
            ("length", length >= 1, "at least 1"),
            ("least", 0 <= least <= 64, "0..64"),
            ("on_unknown", on_unknown in ("reject", "accept", "raise"), "reject, accept or raise"),
            ("ends", all(0 <= end < len(tokens) for end in ends), f"within 0..{len(tokens) - 1}"),
        ):
            if not ok:
                raise ValueError(f"Canvas: {name} must be {wanted}, got {locals()[name]}")
        self.checker = checker
        self.tokens = tokens
        self.ends = frozenset(int(end) for end in ends)
        self.ids: list[int | None] = [None] * length
        self.refused: list[set[int]] = [set() for _ in range(length)]
        self.questions = 0
        self.unknown = 0
        self._open_end = open_end
        self._least = least
        self._room = room
        self._seconds = seconds
        self._on_unknown = on_unknown
        self._longest = max((len(token) for i, token in enumerate(tokens) if i not in self.ends), default=0)
        for position, token in known:
            if not 0 <= position < length:
                raise ValueError(f"Canvas: known positions are 0..{length - 1}, got {position}")
            if self._form(position, token) is False:
                raise ValueError(f"Canvas: token {token} can't be at position {position}")
            self._put(position, token)
        if not self._ask(self.parts(self.ids)):
            raise ValueError("Canvas: the known tokens leave no text of the grammar")

    @property
    def open(self) -> list[int]:
        """Positions that are not filled, before the end of the text."""
        return [position for position, token in enumerate(self.ids) if token is None]

    def allows(self, position: int, token: int) -> bool:
        """Whether a token may be committed at an open position. Remembers what it refuses.

        Raises:
            ValueError: the position is filled, or there is none such.
            InfillUnknownError: the question was not decided, and ``on_unknown="raise"``.
        """
        if not 0 <= position < len(self.ids) or self.ids[position] is not None:
            raise ValueError(f"Canvas: position {position} is not open")
        if token in self.refused[position]:
            return False
        good = self._form(position, token)
        if good:
            ids = list(self.ids)
            self._put(position, token, ids)
            try:
                good = self._ask(self.parts(ids)) and self._fits(ids)
            except InfillUnknownError:
                self.unknown += 1
                if self._on_unknown == "raise":
                    raise
                return self._on_unknown == "accept"
        if not good:
            self.refused[position].add(token)
        return good

    def commit(self, position: int, token: int) -> bool:
        """Fills a position if the token is allowed there; says whether it was."""
        if not self.allows(position, token):
            return False
        self._put(position, token)
        return True

    def text(self) -> bytes | None:
        """The text, or None while a position before its end is open."""
        words = [part for part in self.parts(self.ids, bounded=True) if isinstance(part, bytes)]
        return None if self.open else b"".join(words)

    def complete(self, *, seconds: float | None = None) -> Completion | None:
        """The shortest text that the committed tokens allow, however many tokens its gaps would take.

        Raises:
            InfillUnknownError: as :meth:`InfillChecker.complete`.
        """
        parts = self.parts(self.ids, least=0)
        return self.checker.complete(parts, seconds=seconds)

    def parts(
        self, ids: Sequence[int | None], *, least: int | None = None, bounded: bool = False
    ) -> list[Part]:
        """Words and gaps of tokens of the region. ``bounded``: without what may follow behind the region."""
        least = self._least if least is None else least
        parts: list[Part] = []
        word = b""
        masks = 0
        ended = False
        for token in ids:
            if token is None:
                if word:
                    parts.append(word)
                    word = b""
                masks += 1
                continue
            if token in self.ends:
                ended = True
                break
            if masks:
                parts.append(Gap(min(masks, least)))
                masks = 0
            word += self.tokens[token]
        if word:
            parts.append(word)
        if masks:
            # The text may also end at the first of them.
            parts.append(Gap(0 if self.ends else min(masks, least)))
        if not (ended or bounded) and self._open_end:
            parts.append(Gap())
        return parts

    def _form(self, position: int, token: int) -> bool:
        if not 0 <= token < len(self.tokens):
            return False
        if token in self.ends:
            return all(later is None or later in self.ends for later in self.ids[position + 1 :])
        return bool(self.tokens[token]) and not any(
            earlier in self.ends for earlier in self.ids[:position] if earlier is not None
        )

    def _put(self, position: int, token: int, ids: list[int | None] | None = None) -> None:
        ids = self.ids if ids is None else ids
        ids[position] = token
        if token in self.ends:
            ids[position:] = [token] * (len(ids) - position)

    def _ask(self, parts: list[Part]) -> bool:
        self.questions += 1
        return self.checker.is_completable(parts, seconds=self._seconds)

    def _fits(self, ids: list[int | None]) -> bool:
        """Whether gaps that must be filled by the open positions alone might be."""
        masks = _runs(ids)
        ended = any(token in self.ends for token in ids if token is not None)
        if masks and ids[-1] is None and not ended and self._open_end:
            masks.pop()
            weights = [1] * len(masks) + [0]
        else:
            weights = [1] * len(masks) + ([] if ended or not self._open_end else [0])
        if not self._room or not 1 <= len(masks) <= _FEW or sum(masks) > _SCARCE:
            return True
        parts = self.parts(ids)
        room = [count * self._longest for count in masks]

        def fills(weights):
            self.questions += 1
            completion = self.checker.complete(parts, weights=weights, seconds=self._seconds)
            return (
                [len(fill) for fill in completion.fills[: len(masks)]]
                if completion
                else [1 << 30] * len(masks)
            )

        shortest = fills(weights)
        if sum(shortest) > sum(room):
            return False
        # Gaps that the shortest text overfills may still do in another.
        for gap, count in enumerate(shortest):
            if count > room[gap] and fills([int(i == gap) for i in range(len(weights))])[gap] > room[gap]:
                return False
        return True


def _runs(ids: Sequence[int | None]) -> list[int]:
    """Numbers of open tokens next to each other."""
    runs: list[int] = []
    before: int | None = -1
    for token in ids:
        if token is None:
            if before is None:
                runs[-1] += 1
            else:
                runs.append(1)
        before = token
    return runs
