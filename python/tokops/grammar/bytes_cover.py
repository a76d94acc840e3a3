"""The law of the next byte of a model of tokens, from the token sequences that cover the bytes so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .bytes_validity import Begun, BPEValidity, EveryEncoding, Node
from .bytes_vocabulary import END_OF_TEXT, ByteVocabulary

_REBASE = 64  # tokens behind the common ones before they are looked for anew


class NoContinuation(ValueError):
    """No token sequence that is kept begins with the bytes so far."""


@dataclass(eq=False)
class _Open:
    """A sequence that ends where the text does: its model's row is needed to go on."""

    path: tuple[int, ...]
    weight: float  # log-probability, given the common tokens
    context: object


@dataclass(eq=False)
class _Group:
    """Sequences that differ in their last token, which reaches past the end of the text."""

    path: tuple[int, ...]
    weight: float
    context: object
    row: np.ndarray  # log-probabilities in the order of the vocabulary, -inf where a token may not come
    low: int
    high: int
    depth: int  # bytes of the last token that the text has already
    end: float  # log-probability that the text ends; counts at depth 0

    @property
    def mass(self) -> float:
        """Log-probability of all of them; at depth 0 of the one that they begin with, whatever may follow it."""
        return self.weight + (_log_sum(self.row[self.low : self.high]) if self.depth else 0.0)


def _log_sum(x: np.ndarray) -> float:
    top = x.max(initial=-math.inf)
    return top if top == -math.inf else float(top + np.log(np.exp(x - top).sum()))


class ByteCover:
    """A text of bytes under a model of tokens.

    The text's cover are the token sequences that begin with it and would not without their last token. No two of
    them begin one another, so the text's probability is the sum of theirs. One (in rare cases several) ends exactly
    where the text does; all others reach past it. A byte that is added narrows these and needs the model's row behind
    that one, if there is one. Everything that shares all but its last token is one range of the vocabulary.

    The next byte's law is the mass of the cover by next byte, normalised: the lemma's. Sequences that the tokenizer
    would not make get no mass. What the model gives them is taken away where it occurs: as a whole at each byte
    (``renormalise="bytes"``), or at each token, which makes the model a law over the tokenizer's texts whose bytes
    multiply to that law exactly (``"tokens"``).

    Args:
        vocabulary: tokens as bytes.
        logits: given token sequences, rows ``[n, V]`` of logits behind each, float32; V at least the vocabulary's.
        validity: which sequences count.
        ends: tokens that end the text.
        beam: sequences and groups that are kept, the heaviest; None keeps all.
        threshold: those are dropped whose share of the mass is below it.
        renormalise: ``"bytes"`` or ``"tokens"``.

    Raises:
        ValueError: an unknown ``renormalise``, a beam below 1 or a threshold outside 0..1.

    Source: Phan et al. 2024 (arXiv 2410.09303); cutting by pairs: Hayase et al. 2025 (arXiv 2506.14123).
    """

    def __init__(
        self,
        vocabulary: ByteVocabulary,
        logits: Callable[[Sequence[tuple[int, ...]]], np.ndarray],
        validity: BPEValidity | EveryEncoding,
        ends: Sequence[int] = (),
        beam: int | None = None,
        threshold: float = 0.0,
        renormalise: str = "bytes",
    ):
        if renormalise not in ("bytes", "tokens"):
            raise ValueError(f"ByteCover: renormalise must be bytes or tokens, got {renormalise!r}")
        if (beam is not None and beam < 1) or not 0 <= threshold < 1:
            raise ValueError(
                f"ByteCover: beam must be at least 1 and threshold in 0..1, got {beam}, {threshold}"
            )
        self.vocabulary = vocabulary
        self.validity = validity
        self._logits = logits
        self._ends = np.array(sorted(ends), np.int64)
        self._beam = beam
        self._threshold = threshold
        self._tokens = renormalise == "tokens"
        self.base: tuple[int, ...] = ()
        self.text = b""
        #: Log-probability of the text, given the tokens it began with, without normalising by bytes.
        self.log_mass = 0.0
        self._open: list[_Open] = []
        self._groups: list[_Group] = []
        self._law: np.ndarray | None = None
        self.ended = False

    # ---- The beginning.

    def start(self, base: Sequence[int], begun: Begun, data: bytes, nodes: list[list[Node]]) -> None:
        """Begin with a text whose sequences are known, as :meth:`BPEValidity.nodes` gives them; or begin anew.

        All rows are asked for in one call: they are behind a small tree of tokens.

        Args:
            base: tokens before the text; with the certain ones of it there must be at least one.
            begun: the certain tokens.
            data: the text.
            nodes: the sequences behind them, by position.
        """
        longest = self.vocabulary.longest
        near = range(max(len(data) - longest + 1, begun.at), len(data))
        wanted = [(node, self.vocabulary.range(data[at:])) for at in near for node in nodes[at]]
        covers = [(node, (longer, high)) for node, (_, longer, high) in wanted if longer < high]
        exact = nodes[len(data)]
        paths = [node.path() for node, _ in covers] + [node.path() for node in exact]
        if not paths:
            raise NoContinuation(f"no text of the tokenizer begins with {data[-40:]!r}")
        rows = self._rows((*base, *begun.ids), [*covers, *((node, None) for node in exact)])
        common = len(_common_prefix(paths))
        self.base = (*base, *begun.ids, *paths[0][:common])
        self.text, self.log_mass = data, 0.0
        self._groups, self._open, self._law = [], [], None
        for node, bounds in [*covers, *((node, None) for node in exact)]:
            path = node.path()
            weight, row, end = self._weight(rows, node, common), *rows[path]
            if bounds is not None:
                low, high = bounds
                depth = len(data) - node.at
                group = _Group(path[common:], weight, node.context, row, low, high, depth, -math.inf)
            else:
                group = _Group(path[common:], weight, node.context, row, 0, len(row), 0, end)
            if group.mass > -math.inf:
                self._groups.append(group)
        self._settle()

    def start_plain(self, base: Sequence[int], context=()) -> None:
        """Begin with an empty text behind tokens, at least one."""
        self.base = tuple(base)
        self._open = [_Open((), 0.0, context)]

    def _rows(self, base: tuple[int, ...], wanted) -> dict[tuple[int, ...], tuple[np.ndarray, float]]:
        """Rows behind all sequences and what they begin with, from the first common one on."""
        paths = [node.path() for node, _ in wanted]
        common = len(_common_prefix(paths))
        contexts = {}
        for node, _ in wanted:
            path = node.path()
            while len(path) >= common:
                contexts[path] = node.context
                path, node = path[:-1], node.parent
                if node is None:
                    break
        order = sorted(contexts, key=len)
        rows = self._logits([base + path for path in order])
        return {path: self._row(row, contexts[path]) for path, row in zip(order, rows, strict=True)}

    def _weight(self, rows, node: Node, common: int) -> float:
        """Log-probability of a sequence, given the tokens that all have in common."""
        path = node.path()
        total = 0.0
        for at in range(common, len(path)):
            total += float(rows[path[:at]][0][self._place[path[at]]])
        return total

    @property
    def _place(self) -> np.ndarray:
        """Places of ids in the vocabulary's order."""
        if not hasattr(self, "_places"):
            self._places = np.zeros(len(self.vocabulary), np.int64)
            self._places[self.vocabulary.order] = np.arange(len(self.vocabulary.order))
        return self._places

    # ---- Rows of the model.

    def _row(self, logits: np.ndarray, context) -> tuple[np.ndarray, float]:
        """Log-probabilities in the vocabulary's order, and that of the end, where they may come."""
        row = logits.astype(np.float64)
        if np.isnan(row).any():
            raise ValueError("ByteCover: the model gave NaN")
        row -= _log_sum(row)
        found = row[self.vocabulary.order]
        mask = self.validity.mask(context)
        if mask is not None:
            found = np.where(mask[self.vocabulary.order], found, -math.inf)
        end = _log_sum(row[self._ends]) if len(self._ends) and self.validity.ends(context) else -math.inf
        if self._tokens:
            total = np.logaddexp(_log_sum(found), end)
            if total > -math.inf:
                found, end = found - total, end - total
        return found, end

    def _expand(self) -> None:
        if not self._open:
            return
        rows = self._logits([self.base + one.path for one in self._open])
        for one, logits in zip(self._open, rows, strict=True):
            row, end = self._row(logits, one.context)
            group = _Group(one.path, one.weight, one.context, row, 0, len(row), 0, end)
            if group.mass > -math.inf:
                self._groups.append(group)
        self._open = []
        self._settle()

    # ---- Bytes.

    def law(self) -> np.ndarray:
        """Log-probabilities of the next byte and, at 256, of the end: float64 ``[257]``.

        Raises:
            NoContinuation: nothing may follow.
        """
        if self._law is None:
            self._expand()
            mass = self._masses()
            total = _log_sum(mass)
            if total == -math.inf:
                raise NoContinuation(
                    f"nothing that may come next has any probability behind {self.text[-40:]!r}"
                )
            self._law = mass - total
        return self._law

    def _masses(self) -> np.ndarray:
        parts = [(group, group.weight + group.row[group.low : group.high]) for group in self._groups]
        ends = [group.weight + group.end for group in self._groups if group.depth == 0]
        top = max([*(part.max(initial=-math.inf) for _, part in parts), *ends], default=-math.inf)
        if top == -math.inf:
            return np.full(END_OF_TEXT + 1, -math.inf)
        mass = np.zeros(END_OF_TEXT + 1)
        for group, part in parts:
            column = self.vocabulary.column(group.low, group.high, group.depth)
            mass += np.bincount(column, np.exp(part - top), END_OF_TEXT + 1)
        mass[END_OF_TEXT] = sum(math.exp(end - top) for end in ends)
        with np.errstate(divide="ignore"):
            return np.log(mass) + top

    def feed(self, symbol: int) -> None:
        """Add a byte, or end the text with 256.

        Raises:
            ValueError: not 0..256, or a text that has ended.
            NoContinuation: no sequence goes on with this byte. The text stays as it was.
        """
        if self.ended:
            raise ValueError("the text has ended")
        if not 0 <= symbol <= END_OF_TEXT:
            raise ValueError(f"a byte must be 0..255, or 256 for the end, got {symbol}")
        self._expand()
        if symbol == END_OF_TEXT:
            self.ended = True
            return
        if not self._take(symbol) and not self._heal(symbol):
            raise NoContinuation(
                f"no token sequence that is kept goes on with byte {symbol} behind {self.text[-40:]!r}"
            )
        self._law = None
        self._prune()
        self._settle()

    def _take(self, byte: int) -> bool:
        """Add a byte, if something goes on with it."""
        groups: list[_Group] = []
        opened: list[_Open] = []
        for group in self._groups:
            low, high = self.vocabulary.narrow(group.low, group.high, group.depth, byte)
            depth = group.depth + 1
            while low < high and self.vocabulary.lengths[low] == depth:
                self._reach(group, low, opened)
                low += 1
            if low < high and group.row[low:high].max() > -math.inf:
                narrow = (group.path, group.weight, group.context, group.row, low, high, depth, group.end)
                groups.append(_Group(*narrow))
        if not groups and not opened:
            return False
        self._groups, self._open = groups, opened
        self.text += bytes([byte])
        return True

    def _reach(self, group: _Group, place: int, opened: list[_Open]) -> None:
        """A token's last byte has come."""
        if group.row[place] == -math.inf:
            return
        token = int(self.vocabulary.order[place])
        context = self.validity.advance(group.context, token)  # type: ignore[arg-type]
        if context is not None:
            opened.append(_Open((*group.path, token), group.weight + float(group.row[place]), context))

    # ---- What is kept.

    def _prune(self) -> None:
        if not self.prunes:
            return
        states = [(group.mass, group) for group in self._groups] + [(one.weight, one) for one in self._open]
        total = _log_sum(np.array([mass for mass, _ in states]))
        least = total + (math.log(self._threshold) if self._threshold else -math.inf)
        kept = sorted((s for s in states if s[0] >= least), key=lambda s: -s[0])[: self._beam]
        chosen = {id(state) for _, state in kept}
        self._groups = [group for group in self._groups if id(group) in chosen]
        self._open = [one for one in self._open if id(one) in chosen]

    def _heal(self, byte: int) -> bool:
        """Where everything that could go on was dropped: cut the heaviest group's unfinished token short.

        Its longest beginning that is a token is taken as one; what is left of it, and the byte, are read anew.
        """
        if not isinstance(self.validity, EveryEncoding):
            return False
        before = (self._groups, self._open, self.base, self.log_mass, self.text)
        for group in sorted(before[0], key=lambda g: -g.mass):
            partial = self.text[len(self.text) - group.depth :] if group.depth else b""
            for stop in range(len(partial), 0, -1):
                if self._replay(group, partial[:stop], partial[stop:] + bytes([byte])):
                    return True
                self._groups, self._open, self.base, self.log_mass, self.text = before
        return False

    def _replay(self, group: _Group, token: bytes, rest: bytes) -> bool:
        opened: list[_Open] = []
        for number in self.vocabulary.exact(token):
            self._reach(group, int(self._place[number]), opened)
        self._groups, self._open = [], opened
        self.text = self.text[: len(self.text) - group.depth + len(token)]
        for one in rest:
            self._expand()
            if not self._take(one):
                return False
        return True

    def _settle(self) -> None:
        """Weights relative to the heaviest, and what all sequences have in common to the base."""
        states: list = [*self._groups, *self._open]
        if not states:
            return
        top = max(state.weight for state in states)
        for state in states:
            state.weight -= top
        self.log_mass += top
        if max(len(state.path) for state in states) > _REBASE:
            common = _common_prefix([state.path for state in states])
            self.base += common
            for state in states:
                state.path = state.path[len(common) :]

    @property
    def total(self) -> float:
        """Log-probability of the text, given the tokens it began with (the lemma's sum over its cover)."""
        masses = [group.mass for group in self._groups] + [one.weight for one in self._open]
        return self.log_mass + _log_sum(np.array(masses))

    @property
    def prunes(self) -> bool:
        """Whether anything is ever dropped."""
        return self._beam is not None or self._threshold > 0

    @property
    def states(self) -> int:
        """Groups and single sequences that are held."""
        return len(self._groups) + len(self._open)


def _common_prefix(paths: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first, last = min(paths), max(paths)
    at = 0
    while at < min(len(first), len(last)) and first[at] == last[at]:
        at += 1
    return first[:at]
