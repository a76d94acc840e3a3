"""JSON Schema as formulas over small facts about one value, for the mask oracle."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction
from urllib.parse import unquote, urldefrag, urljoin

from .facts import conjunction, disjunction, flip, negate, of_json, plain, within
from .languages import ALL, ANY, Unsupported, both, complement, either, matches, repeat, words
from .numerals import Numbers
from .patterns import format_language, pattern

UNSUPPORTED = ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef")
#: Keywords whose values are schemas or lists of them, and those whose values are objects of schemas.
SINGLE = {
    "items",
    "prefixItems",
    "additionalItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    *UNSUPPORTED,
}
SINGLE |= {"allOf", "anyOf", "oneOf", "not", "if", "then", "else"}
MAPS = {"properties", "patternProperties", "dependentSchemas", "dependencies", "definitions", "$defs"}
DRAFTS = ("draft-04", "draft-06", "draft-07", "2019-09", "2020-12")


class Schema:
    """A schema with its references, and the formula of every demand on a value of every type.

    Schema 0 is `true`, schema 1 is `false`; `root` is the number of the whole.
    """

    def __init__(self, schema, assert_formats: bool = True):
        if isinstance(schema, str):
            schema = json.loads(schema, parse_float=Decimal)
        self.assert_formats = assert_formats
        uri = str(schema.get("$schema", "")) if isinstance(schema, dict) else ""
        if uri and not re.match(r"https?://json-schema\.org/(draft|schema)", uri):
            raise Unsupported(f"schemas of {uri}")
        self.draft = next((d for d in DRAFTS if d in uri), DRAFTS[-1])
        self.old = self.draft.startswith("draft")
        self.nodes: list = [True, False]
        self._numbers: dict[int, int] = {}
        self._base: dict[int, str] = {}
        self._ids: dict[str, object] = {"": schema}
        self._collect(schema, "")
        self._formulas: dict = {}
        self._open: set = set()
        # Whether no value of a type is what two formulas say: the solver, who knows better, sets it.
        self.disjoint = lambda own, theirs, t: False
        self.root = self.node(schema)

    def _collect(self, x, base: str) -> None:
        if isinstance(x, list):
            for one in x:
                self._collect(one, base)
        if not isinstance(x, dict):
            return
        own = x.get("id" if self.draft == "draft-04" else "$id")
        if isinstance(own, str) and not (self.old and "$ref" in x):
            if own.startswith("#"):
                self._ids[base + own] = x
            else:
                base = urldefrag(urljoin(base, own))[0]
                self._ids[base] = x
        self._base[id(x)] = base
        for name in ("$anchor", "$dynamicAnchor"):
            if isinstance(x.get(name), str):
                self._ids[f"{base}#{x[name]}"] = x
        for key, one in x.items():
            if key in MAPS and isinstance(one, dict):
                self._collect(list(one.values()), base)
            elif key in SINGLE:
                self._collect(one, base)

    def node(self, schema) -> int:
        """The number of a (sub)schema."""
        if isinstance(schema, bool):
            return 0 if schema else 1
        if not isinstance(schema, dict):
            raise Unsupported(f"{schema!r} is no schema")
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = len(self.nodes)
            self.nodes.append(schema)
        return self._numbers[id(schema)]

    def resolve(self, base: str, reference: str):
        """The schema that a reference means."""
        full = base + reference if reference.startswith("#") else urljoin(base, reference)
        document, _, fragment = full.partition("#")
        if f"{document}#{fragment}" in self._ids and fragment:
            return self._ids[f"{document}#{fragment}"]
        found = self._ids.get(document)
        if found is None or (fragment and not fragment.startswith("/")):
            raise Unsupported(f"reference {reference}")
        for part in unquote(fragment).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unsupported(f"reference {reference}") from None
        return found

    def formula(self, demand, t: str):
        """What a demand says about a value of type ``t``."""
        key = demand, t
        if key not in self._formulas:
            if demand[0] in "-!":
                self._formulas[key] = negate(self.formula(flip(demand), t))
            elif demand[0] == "=":
                self._formulas[key] = self._equal(demand[1], t)
            else:
                if key in self._open:
                    raise Unsupported("a reference to itself")
                self._open.add(key)
                try:
                    self._formulas[key] = self._schema(self.nodes[demand[1]], t)
                finally:
                    self._open.discard(key)
        return self._formulas[key]

    @staticmethod
    def _equal(v, t: str):
        if v[0] != t:
            return False
        if t == "array":
            items = (("all", i, i, ("=", x)) for i, x in enumerate(v[1]))
            return conjunction([("size", len(v[1]), len(v[1])), *items])
        if t == "object":
            parts: list = [("size", len(v[1]), len(v[1]))]
            for key, x in v[1]:
                parts += [("keys", words((key,)), ("=", x)), ("key", words((key,)), ("=", x))]
            return conjunction(parts)
        return ("in", frozenset((v,)))

    def among(self, values, t: str):
        """One of the values."""
        own = [v for v in values if v[0] == t]
        if t in ("array", "object"):
            return disjunction(self._equal(v, t) for v in own)
        return ("in", frozenset(own)) if own else False

    def _schema(self, s, t: str):
        if isinstance(s, bool):
            return s
        for keyword in UNSUPPORTED:
            if keyword in s:
                raise Unsupported(keyword)
        parts = []
        if "$ref" in s:
            target = self.node(self.resolve(self._base.get(id(s), ""), s["$ref"]))
            if self.old:
                return self.formula(("+", target), t)
            parts.append(self.formula(("+", target), t))
        parts += [self._types(s, t), self._lists(s, t)]
        parts += getattr(self, f"_{t}", lambda s: [])(s)
        parts += self._applicators(s, t)
        return conjunction(parts)

    @staticmethod
    def _types(s, t: str):
        if "type" not in s:
            return True
        names = s["type"] if isinstance(s["type"], list) else [s["type"]]
        if t == "number" and "integer" in names and "number" not in names:
            return ("multiple", Fraction(1), True)
        return t in names

    def _lists(self, s, t: str):
        parts = []
        if "enum" in s:
            parts.append(self.among(list(map(of_json, s["enum"])), t))
        if "const" in s and self.draft != "draft-04":
            parts.append(self.among([of_json(s["const"])], t))
        return conjunction(parts)

    @staticmethod
    def _number(s):
        low, high = s.get("exclusiveMinimum"), s.get("exclusiveMaximum")
        for name, fact, exclusive in (("minimum", "ge", low), ("maximum", "le", high)):
            if name in s:
                yield (fact, Fraction(str(s[name])), exclusive is True)
            if exclusive is not None and not isinstance(exclusive, bool):
                yield (fact, Fraction(str(exclusive)), True)
        if "multipleOf" in s:
            yield ("multiple", Fraction(str(s["multipleOf"])), True)

    def _string(self, s):
        yield within("length", int(s.get("minLength", 0)), _whole(s.get("maxLength")))
        if "pattern" in s:
            yield ("lang", pattern(s["pattern"]))
        if "format" in s and self.assert_formats and isinstance(s["format"], str):
            language = format_language(s["format"])
            if language is not None:
                yield ("lang", language)

    def _array(self, s):
        yield within("size", int(s.get("minItems", 0)), _whole(s.get("maxItems")))
        prefix, rest = s.get("prefixItems", []), s.get("items")
        if self.draft != "2020-12":
            prefix = []
        # The documentation reads a list as older drafts do, also in the newest.
        if isinstance(rest, list):
            if prefix:
                raise Unsupported("items of an older draft beside prefixItems")
            prefix, rest = rest, s.get("additionalItems")
        for i, one in enumerate(prefix):
            yield ("all", i, i, ("+", self.node(one)))
        if rest is not None:
            yield ("all", len(prefix), None, ("+", self.node(rest)))
        if "contains" in s and self.draft != "draft-04":
            low, high = 1, None
            if not self.old:
                low, high = int(s.get("minContains", 1)), _whole(s.get("maxContains"))
            if low > 0 or high is not None:
                yield ("contains", ("+", self.node(s["contains"])), low, high)
        if s.get("uniqueItems"):
            yield ("unique", True)

    def _object(self, s):
        yield within("size", int(s.get("minProperties", 0)), _whole(s.get("maxProperties")))
        for key in s.get("required", []) if isinstance(s.get("required", []), list) else []:
            yield ("key", words((key,)), ("+", 0))
        patterns = {pattern(p): one for p, one in s.get("patternProperties", {}).items()}
        for key, one in s.get("properties", {}).items():
            yield ("keys", words((key,)), ("+", self.node(one)))
        for language, one in patterns.items():
            yield ("keys", language, ("+", self.node(one)))
        if "additionalProperties" in s:
            rest = complement(either([words(s.get("properties", {})), *patterns]))
            yield ("keys", rest, ("+", self.node(s["additionalProperties"])))
        if "propertyNames" in s and self.draft != "draft-04":
            yield ("names", self.language(self.formula(("+", self.node(s["propertyNames"])), "string")))
        yield from self._dependents(s)

    def _dependents(self, s):
        # The documentation reads dependencies in all drafts.
        for name in (
            ("dependencies",) if self.old else ("dependentRequired", "dependentSchemas", "dependencies")
        ):
            for key, needed in s.get(name, {}).items():
                if isinstance(needed, (list, str)):
                    needed = [needed] if isinstance(needed, str) else needed
                    follows = conjunction(("key", words((one,)), ("+", 0)) for one in needed)
                else:
                    follows = self.formula(("+", self.node(needed)), "object")
                yield disjunction((("keys", words((key,)), ("+", 1)), follows))

    def _applicators(self, s, t: str):
        def of(one, sign="+"):
            return self.formula((sign, self.node(one)), t)

        yield from (of(one) for one in s.get("allOf", []))
        if "anyOf" in s:
            yield disjunction(map(of, s["anyOf"]))
        if "oneOf" in s:
            yield self._one_of([self.node(one) for one in s["oneOf"]], t)
        if "not" in s:
            yield of(s["not"], "-")
        if "if" in s and ("then" in s or "else" in s) and self.draft not in ("draft-04", "draft-06"):
            follows = conjunction((of(s["if"]), of(s.get("then", True))))
            yield disjunction((follows, conjunction((of(s["if"], "-"), of(s.get("else", True))))))

    def _one_of(self, nodes, t: str):
        either_one = []
        for i, one in enumerate(nodes):
            own = self.formula(("+", one), t)
            others = []
            for j, other in enumerate(nodes):
                theirs = self.formula(("+", other), t)
                if i != j and own is not False and theirs is not False and not self.disjoint(own, theirs, t):
                    others.append(negate(theirs))
            either_one.append(conjunction([own, *others]))
        return disjunction(either_one)

    def language(self, f):
        """The strings that a formula is true of."""
        if isinstance(f, bool):
            return ALL if f else complement(ALL)
        if f[0] in ("and", "or"):
            return (both if f[0] == "and" else either)(list(map(self.language, f[1])))
        if f[0] == "lang":
            return f[1]
        if f[0] == "length":
            return repeat(ANY, f[1], f[2])
        out = words(v[1] for v in f[1])
        return out if f[0] == "in" else complement(out)

    def holds(self, demand, v) -> bool:
        """Whether a value meets a demand."""
        return self._true(self.formula(demand, v[0]), v)

    def _true(self, f, v) -> bool:
        if isinstance(f, bool):
            return f
        kind = f[0]
        if kind in ("and", "or"):
            return (all if kind == "and" else any)(self._true(one, v) for one in f[1])
        if v[0] == "number":
            return number_fact(v, f)
        if kind in ("in", "apart"):
            return (v in f[1]) == (kind == "in")
        if kind == "lang":
            return matches(f[1], v[1])
        if kind in ("length", "size"):
            return f[1] <= len(v[1]) and (f[2] is None or len(v[1]) <= f[2])
        if kind in ("all", "some"):
            elements = v[1][f[1] : None if f[2] is None else f[2] + 1]
            return (all if kind == "all" else any)(self.holds(f[3], one) for one in elements)
        if kind == "contains":
            count = sum(self.holds(f[1], one) for one in v[1])
            return f[2] <= count and (f[3] is None or count <= f[3])
        if kind == "unique":
            return (len(set(map(plain, v[1]))) == len(v[1])) == f[1]
        if kind == "names":
            return all(matches(f[1], key) for key, _ in v[1])
        values = (one for key, one in v[1] if matches(f[1], key))
        return (all if kind == "keys" else any)(self.holds(f[2], one) for one in values)


def number_fact(v, f) -> bool:
    """Whether a fact is true of a number; of one written with an exponent, only a bound of 0 is."""
    return add_fact(Numbers(), f).has(v[1]) and (len(v) == 2 or (f[0] in ("ge", "le") and f[1] == 0))


def add_fact(numbers: Numbers, f) -> Numbers:
    """Narrow a set of numbers by a fact."""
    if f[0] == "ge":
        numbers.above(f[1], f[2])
    elif f[0] == "le":
        numbers.below(f[1], f[2])
    elif f[0] == "multiple":
        (numbers.multiples if f[2] else numbers.others).append(f[1])
    elif f[0] == "in":
        own = frozenset(v[1] for v in f[1])
        numbers.among = own if numbers.among is None else numbers.among & own
    else:
        numbers.apart |= frozenset(v[1] for v in f[1])
    return numbers


def _whole(x) -> int | None:
    return None if x is None else int(x)
