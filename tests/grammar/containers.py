"""What an unfinished array or object still allows: one alternative of facts each, for the mask oracle."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from .facts import conjoin, flip, plain
from .languages import Language, Unsupported, alive, both, complement, matches, texts, words

if TYPE_CHECKING:
    from .solver import Solver


class Arrays:
    """An alternative for arrays."""

    def __init__(self, solver: Solver, facts):
        self.solver, self.low, self.high, self.unique = solver, 0, None, False
        self.every, self.some, self.contains = [], [], []
        for f in sorted(facts, key=repr):
            if f[0] == "size":
                self.low = max(self.low, f[1])
                self.high = f[2] if self.high is None else self.high if f[2] is None else min(self.high, f[2])
            elif f[0] == "unique":
                if not f[1]:
                    raise Unsupported("an array with equal elements")
                self.unique = True
            elif f[0] == "contains":
                self.contains.append(f[1:])
            else:
                (self.every if f[0] == "all" else self.some).append(f[1:])
        ends = [one[1] if one[1] is not None else one[0] for one in self.every + self.some]
        self.last = max([self.low, *(end + 1 for end in ends)])
        self.last += sum(low for _, low, _ in self.contains) + len(self.some) + 1
        if self.last > 150:
            raise Unsupported("an array of many elements")

    def example(self):
        for found in self._more((), *self._start()):
            values = self._distinct(found)
            if values is not None:
                return ("array", tuple(values))
        return None

    def _start(self):
        return 0, (0,) * len(self.contains), frozenset(range(len(self.some)))

    def _own(self, n: int) -> frozenset:
        return frozenset(d for i, j, d in self.every if i <= n and (j is None or n <= j))

    def _read(self, elements):
        """Number, counts of what is contained and what still is to occur after the elements; None: they are wrong."""
        holds = self.solver.schema.holds
        n, counts, missing = self._start()
        if self.unique and len(set(map(plain, elements))) < len(elements):
            return None
        for n, v in enumerate(elements):
            if not all(holds(d, v) for d in self._own(n)):
                return None
            counts = self._count(counts, [holds(d, v) for d, _, _ in self.contains])
            if counts is None:
                return None
            missing -= {k for k in missing if self._fits(k, n) and holds(self.some[k][2], v)}
        return len(elements), counts, missing

    def _fits(self, k: int, n: int) -> bool:
        i, j, _ = self.some[k]
        return i <= n and (j is None or n <= j)

    def _count(self, counts, more):
        out = []
        for (_, low, high), count, one in zip(self.contains, counts, more, strict=True):
            if one and high is not None and count >= high:
                return None
            out.append(min(count + one, low if high is None else high))
        return tuple(out)

    def _done(self, n, counts, missing) -> bool:
        enough = all(count >= low for count, (_, low, _) in zip(counts, self.contains, strict=True))
        return n >= self.low and enough and not missing

    def _choices(self, n, counts, missing):
        """What element ``n`` may be: demands, and the state after it. Those that bring more come first."""
        if self.high is not None and n >= self.high:
            return
        able = [k for k in sorted(missing) if self._fits(k, n)]
        for taken in itertools.product((True, False), repeat=len(able)):
            for inside in itertools.product((True, False), repeat=len(self.contains)):
                after = self._count(counts, inside)
                if after is None:
                    continue
                demands = set(self._own(n)) | {
                    self.some[k][2] for k, on in zip(able, taken, strict=True) if on
                }
                for (d, _, high), one in zip(self.contains, inside, strict=True):
                    if one or high is not None:
                        demands.add(d if one else flip(d))
                demands = conjoin(demands)
                if demands is not None:
                    yield (
                        demands,
                        n + 1,
                        after,
                        missing - {k for k, on in zip(able, taken, strict=True) if on},
                    )

    def _more(self, apart, n, counts, missing, seen=None):
        """Ways to end an array: tuples of the demands on its further elements, each of which can be met."""
        if self._done(n, counts, missing):
            yield ()
            return
        if n > self.last:
            return
        seen = set() if seen is None else seen
        for demands, *after in self._choices(n, counts, missing):
            full = demands | frozenset(apart)
            if self.solver.value(full) is None:
                continue
            key = (full, *after) if not self.unique else None
            if key is not None and key in seen:
                continue
            found = False
            for rest in self._more(apart, *after, seen):
                found = True
                yield (full, *rest)
                if not self.unique:
                    return
            if not found and key is not None:
                seen.add(key)

    def _values(self, demands: frozenset, most: int) -> list:
        """Different values that meet demands, at most so many."""
        out: list = []
        while len(out) < most:
            v = self.solver.value(demands | {("!", one) for one in out})
            if v is None:
                break
            out.append(v)
        return out

    def _distinct(self, found, without=None):
        """Values for the demands: different ones where elements must differ. None where there are not enough."""
        if not self.unique:
            return [self.solver.value(one) for one in found]
        lists = [[v for v in self._values(one, len(found) + 1) if v != without] for one in found]
        owner: dict = {}

        def place(i: int, tried: set) -> bool:
            for v in lists[i]:
                if v not in tried:
                    tried.add(v)
                    if v not in owner or place(owner[v], tried):
                        owner[v] = i
                        return True
            return False

        if not all(place(i, set()) for i in range(len(lists))):
            return None
        return [v for _, v in sorted((i, v) for v, i in owner.items())] if owner else []

    def closes(self, elements) -> bool:
        """Whether the array may end here."""
        state = self._read(elements)
        return state is not None and self._done(*state) and (self.high is None or state[0] <= self.high)

    def completes(self, elements) -> bool:
        """Whether the array may end here or after more elements."""
        state = self._read(elements)
        if state is None or (self.high is not None and state[0] > self.high):
            return False
        ways = self._more(self._apart(elements), *state)
        return any(self._distinct(found) is not None for found in ways)

    def _apart(self, elements):
        return tuple(("!", plain(v)) for v in elements) if self.unique else ()

    def next_demands(self, elements):
        """What the next element may be: alternatives of demands, after each of which the array can be ended."""
        state = self._read(elements)
        if state is None:
            return
        apart = self._apart(elements)
        for demands, *after in self._choices(*state):
            own = demands | frozenset(apart)
            for found in self._more(apart, *after):
                if not self.unique or not found:
                    yield own
                    break
                if self._distinct(found) is None:
                    continue
                few = [one for one in found if len(self._values(one, len(found) + 1)) <= len(found)]
                taken = {v for one in few for v in self._values(one, len(found) + 1)}
                yield own | {("!", v) for v in taken if self._distinct(found, v) is None}


class Objects:
    """An alternative for objects."""

    def __init__(self, solver: Solver, facts):
        self.solver, self.low, self.high = solver, 0, None
        self.every, self.some, names = [], [], []
        for f in sorted(facts, key=repr):
            if f[0] == "size":
                self.low = max(self.low, f[1])
                self.high = f[2] if self.high is None else self.high if f[2] is None else min(self.high, f[2])
            elif f[0] == "names":
                names.append(f[1])
            else:
                (self.every if f[0] == "keys" else self.some).append(f[1:])
        self.names = both(names)
        known: set[str] = set()
        others: dict[Language, None] = {}
        for language, _ in self.every + self.some:
            if language.kind == "words":
                known |= language.args[0]
            else:
                others[language] = None
        self.known = frozenset(one for one in known if matches(self.names, one))
        classes = [both((self.names, complement(words(known))))]
        for language in others:
            classes = [
                c for one in classes for c in (both((one, language)), both((one, complement(language))))
            ]
            classes = [one for one in classes if alive(one)]
        self.classes = [one for one in classes if alive(one)]
        self._own: dict[str, frozenset | None] = {}

    def own(self, key: str) -> frozenset | None:
        """Demands on a member of this key; None: there can't be one."""
        if key not in self._own:
            found = [d for language, d in self.every if matches(language, key)]
            self._own[key] = conjoin(found) if matches(self.names, key) else None
        return self._own[key]

    def fresh(self, used):
        """A new key of every class that has one, with the class, and all known keys that are not used."""
        for key in sorted(self.known - used):
            yield key, None
        for language in self.classes:
            key = next((k for k in itertools.islice(texts(language), len(used) + 1) if k not in used), None)
            if key is not None:
                yield key, language

    def example(self):
        found = self.further(frozenset(), frozenset(range(len(self.some))), 0)
        return None if found is None else ("object", tuple(sorted(found.items())))

    def further(self, used, missing, n: int) -> dict | None:
        """Members that end the object: few of them, besides the ``n`` with the keys ``used``."""
        return self._assign(used, sorted(missing, key=lambda k: self.some[k][0].kind != "words"), {}, n)

    def _assign(self, used, missing, chosen: dict, n: int) -> dict | None:
        if self.high is not None and n + len(chosen) > self.high:
            return None
        if missing:
            language, demand = self.some[missing[0]]
            if language.kind == "words":
                keys = [key for key in sorted(language.args[0]) if key not in used]
            else:
                keys = [key for key, _ in self.fresh(used | set(chosen)) if matches(language, key)]
                keys = [key for key in chosen if matches(language, key)] + keys
            for key in keys:
                before = chosen.get(key, self.own(key))
                demands = None if before is None else conjoin(before | {demand})
                if demands is not None and self.solver.value(demands) is not None:
                    found = self._assign(used, missing[1:], {**chosen, key: demands}, n)
                    if found is not None:
                        return found
            return None
        out = {key: self.solver.value(demands) for key, demands in chosen.items()}
        while n + len(out) < self.low:
            more = next(
                (
                    (key, v)
                    for key, _ in self.fresh(used | set(out))
                    if (own := self.own(key)) is not None and (v := self.solver.value(own)) is not None
                ),
                None,
            )
            if more is None:
                return None
            out[more[0]] = more[1]
        return out

    def read(self, members):
        """Keys and what still is to occur after the members; None: they are wrong."""
        holds, missing = self.solver.schema.holds, set(range(len(self.some)))
        for key, v in members:
            own = self.own(key)
            if own is None or not all(holds(d, v) for d in own):
                return None
            missing -= {k for k in missing if matches(self.some[k][0], key) and holds(self.some[k][1], v)}
        if self.high is not None and len(members) > self.high:
            return None
        return frozenset(key for key, _ in members), frozenset(missing)

    def demands(self, members, key: str):
        """What the member of a new key may be: alternatives of demands, after each of which the object can be ended."""
        state = self.read(members)
        own = self.own(key)
        if state is None or own is None or key in state[0]:
            return
        used, missing = state[0] | {key}, state[1]
        able = [k for k in sorted(missing) if matches(self.some[k][0], key)]
        found: list[frozenset] = []
        for size in range(len(able) + 1):
            for taken in itertools.combinations(able, size):
                demands = conjoin(own | {self.some[k][1] for k in taken})
                if demands is None or any(one <= demands for one in found):
                    continue
                if self.further(used, missing - set(taken), len(members) + 1) is not None:
                    found.append(demands)
        yield from found
