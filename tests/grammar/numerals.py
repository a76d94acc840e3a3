"""Which texts of JSON numbers can still become a number of a set, for the mask oracle.

The policy that is checked: a set with a bound other than 0, a multiple, a list or a demand for an integer is written
without exponents; any other may have an exponent of one to three digits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction

from .languages import Unsupported

_PARTIAL = re.compile(r"(-?)(0|[1-9][0-9]*)?(?:(\.)([0-9]*))?(?:([eE])([+-]?)([0-9]{0,3}))?\Z")
_TRIES = 200_000


def value(text: str) -> Fraction:
    """The value of a complete numeral."""
    mantissa, _, exponent = text.lower().partition("e")
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def _lcm(a: Fraction, b: Fraction) -> Fraction:
    scale = math.lcm(a.denominator, b.denominator)
    return Fraction(math.lcm(int(a * scale), int(b * scale)), scale)


@dataclass
class Numbers:
    """Numbers between bounds (value, excluded), multiples of some and not of others, out of a list or not."""

    low: tuple[Fraction, bool] | None = None
    high: tuple[Fraction, bool] | None = None
    multiples: list[Fraction] = field(default_factory=list)
    others: list[Fraction] = field(default_factory=list)
    among: frozenset[Fraction] | None = None
    apart: frozenset[Fraction] = frozenset()

    def above(self, bound: Fraction, excluded: bool) -> None:
        """Raise the lower bound."""
        if self.low is None or (bound, excluded) > self.low:
            self.low = bound, excluded

    def below(self, bound: Fraction, excluded: bool) -> None:
        """Lower the upper bound."""
        if self.high is None or (bound, not excluded) < (self.high[0], not self.high[1]):
            self.high = bound, excluded

    @property
    def exponents(self) -> bool:
        """Whether numerals with an exponent are written."""
        plain = self.multiples or self.others or self.among is not None or self.apart
        return not plain and all(bound is None or bound[0] == 0 for bound in (self.low, self.high))

    def has(self, x: Fraction) -> bool:
        """Whether a value is in the set."""
        return (
            self._inside(x)
            and all((x / m).denominator == 1 for m in self.multiples)
            and not any((x / m).denominator == 1 for m in self.others)
            and (self.among is None or x in self.among)
            and x not in self.apart
        )

    def _inside(self, x: Fraction) -> bool:
        if self.low is not None and (x < self.low[0] or (x == self.low[0] and self.low[1])):
            return False
        return self.high is None or not (x > self.high[0] or (x == self.high[0] and self.high[1]))

    def writes(self, text: str) -> bool:
        """Whether a complete numeral is one of this set."""
        return self.has(value(text)) and (self.exponents or not re.search("[eE]", text))

    def example(self) -> Fraction | None:
        """Any value of the set."""
        for sign in (1, -1):
            found = self._some(sign, Fraction(0), None, False)
            if found is not None:
                return found
        return None

    def can_become(self, text: str) -> bool:
        """Whether some numeral of this set begins with ``text``."""
        parts = _PARTIAL.match(text)
        if parts is None:
            return False
        minus, digits, point, after, e, _, _ = parts.groups()
        sign = -1 if minus else 1
        if e:
            if not digits or (point and not after):
                return False
            return self.exponents and self._inside(value(text[: parts.start(5)]))
        if not digits:
            found = self._some(-1, Fraction(0), None, False) if minus else self.example()
            return not point and found is not None
        if point:
            start = Fraction(f"{digits}.{after or 0}")
            return self._some(sign, start, start + Fraction(1, 10 ** len(after)), False) is not None
        return self._some(sign, Fraction(int(digits)), Fraction(int(digits) + 1), digits != "0") is not None

    def _some(self, sign: int, start: Fraction, end: Fraction | None, longer: bool) -> Fraction | None:
        """A value of the set whose size is in [start, end), or, where ``longer``, in that times a power of ten."""
        low, high = self.low, self.high
        if sign < 0:
            low, high = (high and (-high[0], high[1])), (low and (-low[0], low[1]))
        if self.among is not None:
            for x in self.among:
                size, scale = x * sign, 1
                while self.has(x) and size >= start * scale:
                    if end is None or size < end * scale:
                        return x
                    if not longer:
                        break
                    scale *= 10
            return None
        step = None
        for m in self.multiples:
            step = m if step is None else _lcm(step, m)
        if step is not None and any((step / other).denominator == 1 for other in self.others):
            return None
        scale = Fraction(1)
        while True:
            bottom = (start * scale, False)
            if low is not None and low > bottom:
                bottom = low
            top = None if end is None else (end * scale, True)
            if high is not None and (top is None or (high[0], not high[1]) < (top[0], not top[1])):
                top = high
            found = self._between(sign, bottom, top, step)
            if found is not None:
                return found
            if not longer or (high is not None and start * scale * 10 > high[0]):
                return None
            scale *= 10
            if scale > Fraction(10) ** 400:
                raise Unsupported("no number in a long search")

    def _between(self, sign: int, bottom, top, step: Fraction | None) -> Fraction | None:
        if top is not None and (top[0] < bottom[0] or (top[0] == bottom[0] and (top[1] or bottom[1]))):
            return None
        if step is None:
            return self._dense(sign, bottom, top)
        first = math.ceil(bottom[0] / step)
        if first * step == bottom[0] and bottom[1]:
            first += 1
        last = None
        if top is not None:
            last = math.floor(top[0] / step)
            if last * step == top[0] and top[1]:
                last -= 1
        period = 1
        for other in self.others:
            period = math.lcm(period, int(_lcm(step, other) / step))
        most = first + period * (len(self.apart) + 1)
        last = most if last is None else min(last, most)
        if last - first > _TRIES:
            raise Unsupported("too many multiples to try")
        for k in range(first, last + 1):
            if self.has(sign * k * step):
                return sign * k * step
        return None

    def _dense(self, sign: int, bottom, top) -> Fraction | None:
        """Decimals are dense: between two bounds there are more of them than any list holds."""
        if top is not None and top[0] == bottom[0]:
            return sign * bottom[0] if self.has(sign * bottom[0]) else None
        tries = [bottom[0], Fraction(math.floor(bottom[0]) + 1)]
        width = Fraction(1) if top is None else top[0] - bottom[0]
        unit = Fraction(1)
        while unit >= width:
            unit /= 10
        for _ in range(60):
            unit /= 10
            tries += [(math.floor(bottom[0] / unit) + k) * unit for k in (1, 3, 7)]
            for x in tries:
                if x >= bottom[0] and (top is None or x <= top[0]) and self.has(sign * x):
                    if top is not None and x == top[0] and top[1]:
                        continue
                    return sign * x
            tries = []
        raise Unsupported("no decimal in a long search")
