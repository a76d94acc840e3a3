"""The suffix automaton of one sequence, for a reference, in the layout of csrc/speculative/suffix_index.h."""

from torch import Tensor

#: Occurrences are counted of substrings up to this long.
LONGEST_COUNTED = 65

_LENGTH, _LINK, _COUNT, _LAST, _FIRST, _TOKEN, _TARGET, _EDGES = range(8)
_GOLDEN = 0x9E3779B97F4A7C15


class Automaton:
    """States of substrings that end at the same places, each with its length, link, occurrences and edges.

    Args:
        rows: one sequence of the tensors ``heads, text, states, edges, places``.
    """

    def __init__(self, *rows: Tensor):
        self.head, self.text, self.states, self.edges, self.places = (t.tolist() for t in rows)

    def rows(self) -> tuple[list, ...]:
        """What the tensors hold now."""
        return self.head, self.text, self.states, self.edges, self.places

    def append(self, token: int) -> None:
        """Make the states of the text with one more token; a negative one is a break."""
        length = self.head[0] + 1
        token = token if token >= 0 else -length
        self.head[1] += 1
        fresh, p = self.head[1], self.head[3]
        self.states[fresh] = [length, 0, 0, length, length, 0, 0, 0]
        while (target := self._target(p, token)) is None:
            self._add_edge(p, token, fresh)
            if p == 0:
                break
            p = self.states[p][_LINK]
        if target is not None:
            self.states[fresh][_LINK] = self._behind(p, token, target)
        self.head[3] = fresh
        self.text[length - 1] = token
        self._count(token)

    def _place(self, state: int, token: int) -> int:
        bits = len(self.places).bit_length() - 1
        key = state << 32 | token & 0xFFFFFFFF
        i = (key * _GOLDEN & 0xFFFFFFFFFFFFFFFF) >> 64 - bits
        while self.places[i] and self.edges[self.places[i] - 1][:2] != [state, token]:
            i = (i + 1) % len(self.places)
        return i

    def _target(self, state: int, token: int) -> int | None:
        s = self.states[state]
        if s[_TARGET] and s[_TOKEN] == token:
            return s[_TARGET]
        at = self.places[self._place(state, token)]
        return self.edges[at - 1][2] if at else None

    def _add_edge(self, state: int, token: int, target: int) -> None:
        s = self.states[state]
        if s[_TARGET] == 0:
            s[_TOKEN], s[_TARGET] = token, target
            return
        place = self._place(state, token)
        self.edges[self.head[2]] = [state, token, target, s[_EDGES]]
        self.head[2] += 1
        self.places[place] = s[_EDGES] = self.head[2]

    def _redirect(self, state: int, token: int, target: int) -> None:
        s = self.states[state]
        if s[_TARGET] and s[_TOKEN] == token:
            s[_TARGET] = target
        else:
            self.edges[self.places[self._place(state, token)] - 1][2] = target

    def _behind(self, p: int, token: int, q: int) -> int:
        """The state of p's longest substring with ``token`` behind it, split off q where q has longer ones."""
        if self.states[q][_LENGTH] == self.states[p][_LENGTH] + 1:
            return q
        self.head[1] += 1
        half = self.head[1]
        copied = self.states[q]
        self.states[half] = [self.states[p][_LENGTH] + 1, *copied[1:_TOKEN], copied[_TOKEN], 0, 0]
        if copied[_TARGET]:
            self._add_edge(half, copied[_TOKEN], copied[_TARGET])
        at = copied[_EDGES]
        while at:
            _, t, target, at = self.edges[at - 1]
            self._add_edge(half, t, target)
        copied[_LINK] = half
        while self._target(p, token) == q:
            self._redirect(p, token, half)
            if p == 0:
                break
            p = self.states[p][_LINK]
        return half

    def _count(self, token: int) -> None:
        """One occurrence more of every suffix, of those that are counted."""
        state = self._target(self.head[4], token)  # of both halves where that state has been split since
        assert state is not None  # append has made the edge
        self.head[0] += 1
        link = self.states[state][_LINK]
        longest = min(self.head[0], LONGEST_COUNTED)
        self.head[4] = link if self.states[link][_LENGTH] >= longest else state
        s = self.head[4]
        while s:
            self.states[s][_COUNT] += 1
            self.states[s][_LAST] = self.head[0]
            s = self.states[s][_LINK]
