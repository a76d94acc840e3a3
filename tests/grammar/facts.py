"""Values, demands on them, and formulas over small facts, for the mask oracle.

A value is a tagged tuple: ("null",), ("boolean", b), ("number", Fraction) or ("number", Fraction, True) where it was
written with an exponent, ("string", s), ("array", (..)), ("object", ((key, value), .. by key)).

A demand on a value is ("+", n) or ("-", n): schema number n holds or does not; ("=", v) or ("!", v): it is v or not.
A formula is True, False, ("and", ..), ("or", ..) or a fact:

    ("lang", L) ("length", low, high)                          of a string
    ("ge", x, excluded) ("le", x, excluded) ("multiple", m, whether)      of a number
    ("in", values) ("apart", values)                           of null, a boolean, a number or a string
    ("all", i, j, demand) ("some", i, j, demand)               of the elements i..j (j None: to the end) of an array
    ("contains", demand, low, high) ("size", low, high) ("unique", whether)
    ("keys", L, demand) ("key", L, demand)                     every member, some member whose key is in L
    ("names", L) ("size", low, high)                           of an object
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from .languages import complement

TYPES = ("null", "boolean", "number", "string", "array", "object")
NULL = ("null",)
NEVER = ("+", 1)


def of_json(x) -> tuple:
    """A tagged value out of what `json.loads` gives."""
    if x is None:
        return NULL
    if isinstance(x, bool):
        return ("boolean", x)
    if isinstance(x, (int, float, Decimal)):
        return ("number", Fraction(str(x)))
    if isinstance(x, str):
        return ("string", x)
    if isinstance(x, list):
        return ("array", tuple(map(of_json, x)))
    return ("object", tuple(sorted((k, of_json(v)) for k, v in x.items())))


def plain(v: tuple) -> tuple:
    """The value without the marks of how its numbers were written."""
    if v[0] == "array":
        return ("array", tuple(map(plain, v[1])))
    if v[0] == "object":
        return ("object", tuple((k, plain(x)) for k, x in v[1]))
    return v[:2]


def flip(demand):
    """The opposite demand."""
    return ({"+": "-", "-": "+", "=": "!", "!": "="}[demand[0]], demand[1])


def conjunction(parts):
    """And, with what is plain folded."""
    out = []
    for part in parts:
        if part is False:
            return False
        if part is not True:
            out += part[1] if part[0] == "and" else [part]
    return True if not out else out[0] if len(out) == 1 else ("and", tuple(dict.fromkeys(out)))


def disjunction(parts):
    """Or, with what is plain folded."""
    out = []
    for part in parts:
        if part is True:
            return True
        if part is not False:
            out += part[1] if part[0] == "or" else [part]
    return False if not out else out[0] if len(out) == 1 else ("or", tuple(dict.fromkeys(out)))


def within(kind: str, low: int, high: int | None):
    """("length" | "size", low, high), folded."""
    if high is not None and high < max(low, 0):
        return False
    return True if low <= 0 and high is None else (kind, max(low, 0), high)


def negate(f):
    """The opposite formula, by the laws of De Morgan down to the facts."""
    if isinstance(f, bool):
        return not f
    kind = f[0]
    if kind in ("and", "or"):
        return (disjunction if kind == "and" else conjunction)(map(negate, f[1]))
    if kind == "lang":
        return ("lang", complement(f[1]))
    if kind in ("length", "size"):
        over = False if f[2] is None else within(kind, f[2] + 1, None)
        return disjunction((within(kind, 0, f[1] - 1), over))
    if kind in ("ge", "le"):
        return ("le" if kind == "ge" else "ge", f[1], not f[2])
    if kind in ("multiple", "unique"):
        return (*f[:-1], not f[-1])
    if kind in ("in", "apart"):
        return ("apart" if kind == "in" else "in", f[1])
    if kind in ("all", "some"):
        return ("some" if kind == "all" else "all", f[1], f[2], flip(f[3]))
    if kind == "contains":
        fewer = f[2] > 0 and ("contains", f[1], 0, f[2] - 1)
        return disjunction((fewer, f[3] is not None and ("contains", f[1], f[3] + 1, None)))
    if kind in ("keys", "key"):
        return ("key" if kind == "keys" else "keys", f[1], flip(f[2]))
    return ("key", complement(f[1]), ("+", 0))


def conjoin(demands) -> frozenset | None:
    """The demands without those that say nothing; None where one can't be met."""
    out = frozenset(one for one in demands if one != ("+", 0) and one != ("-", 1))
    return None if any(one in (NEVER, ("-", 0)) or flip(one) in out for one in out) else out
