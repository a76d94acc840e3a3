"""Random schemas, grammars and token streams: ``python -m tests.grammar.fuzz --minutes 20``.

Verdicts on random instances are compared with jsonschema's; texts drawn from a grammar must be valid under its schema;
no state may be without a next byte; and whatever is thrown at the compilers, they answer with a grammar or an error.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import resource
import time

from tokops import grammar as G

from .engine import byte_vocabulary

KEYS = ["a", "b", "ab", "c"]
SCALAR = [
    "type",
    "enum",
    "const",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "required",
    "minItems",
    "maxProperties",
]
NESTED = [
    *SCALAR,
    "exclusiveMinimum",
    "multipleOf",
    "pattern",
    "items",
    "prefixItems",
    "maxItems",
    "uniqueItems",
    "contains",
    "maxContains",
    "minContains",
    "properties",
    "patternProperties",
    "additionalProperties",
    "minProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "unevaluatedProperties",
    "unevaluatedItems",
]
NAMES = [
    {"pattern": "^a"},
    {"maxLength": 1},
    {"enum": ["a", "b"]},
    {"minLength": 2},
    {"const": "a"},
    {"not": {"const": "b"}},
]
TYPES = [
    "null",
    "boolean",
    "number",
    "integer",
    "string",
    "array",
    "object",
    ["string", "object"],
    ["array", "integer"],
]


def value(draw: random.Random, depth: int = 0):
    """A small JSON value."""
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind < 5:
        return [
            None,
            True,
            False,
            draw.choice([0, 1, 2, -1, 1.5, 3, 10, 0.25, 7]),
            draw.choice(["", "a", "ab", "b", "abc", "é", "x y"]),
        ][kind]
    if kind == 5:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {k: value(draw, depth + 1) for k in draw.sample(KEYS, draw.randrange(4))}


def schema(draw: random.Random, depth: int = 0):
    """A schema of draft 2020-12 with all kinds of keywords."""
    if draw.random() < 0.08:
        return draw.choice([True, False, {}])
    found: dict = {}

    def inner():
        return schema(draw, depth + 1)

    for _ in range(draw.randrange(1, 4)):
        k = draw.choice(NESTED if depth < 3 else SCALAR)
        if k == "type":
            found[k] = draw.choice(TYPES)
        elif k == "enum":
            found[k] = [value(draw, 1) for _ in range(draw.randrange(1, 4))]
        elif k == "const":
            found[k] = value(draw, 1)
        elif k in ("minimum", "maximum", "exclusiveMinimum"):
            found[k] = draw.choice([0, 1, 2, -1, 1.5])
        elif k == "multipleOf":
            found[k] = draw.choice([1, 2, 0.5, 0.25, 3])
        elif k in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
            found[k] = draw.randrange(4)
        elif k in ("minContains", "maxContains"):
            found[k] = draw.randrange(3)
            found.setdefault("contains", inner())
        elif k == "pattern":  # without the dot, which Python reads otherwise
            found[k] = draw.choice(["a", "^a", "b$", "^[ab]*$", "^a?b"])
        elif k in (
            "items",
            "contains",
            "additionalProperties",
            "not",
            "unevaluatedProperties",
            "unevaluatedItems",
        ):
            found[k] = inner()
        elif k == "propertyNames":
            found[k] = draw.choice(NAMES)
        elif k == "prefixItems":
            found[k] = [inner() for _ in range(draw.randrange(1, 3))]
        elif k == "uniqueItems":
            found[k] = True
        elif k in ("properties", "dependentSchemas"):
            found[k] = {q: inner() for q in draw.sample(KEYS, draw.randrange(1, 3))}
        elif k == "patternProperties":
            found[k] = {q: inner() for q in draw.sample(["^a", "b$", "c", "^[ab]$"], draw.randrange(1, 3))}
        elif k == "required":
            found[k] = draw.sample(KEYS, draw.randrange(1, 3))
        elif k == "dependentRequired":
            found[k] = {draw.choice(KEYS): draw.sample(KEYS, draw.randrange(1, 3))}
        elif k in ("allOf", "anyOf", "oneOf"):
            found[k] = [inner() for _ in range(draw.randrange(1, 4))]
        elif k == "if":
            found[k] = inner()
            for branch in ("then", "else"):
                if draw.random() < 0.8:
                    found[branch] = inner()
    return found


def check_schema(seed: int, counts: collections.Counter) -> None:
    """One random schema: verdicts and drawn texts against jsonschema."""
    from jsonschema import Draft202012Validator

    draw = random.Random(seed)
    s = schema(draw)
    oracle = Draft202012Validator(s)

    def valid(x) -> bool | None:
        try:
            return oracle.is_valid(x)
        except (OverflowError, ValueError):  # of infinite floats
            return None

    instances = [value(draw) for _ in range(40)]
    try:
        grammar = G.compile_json_schema(s, byte_vocabulary())
    except G.GrammarError as error:
        counts["refused"] += 1
        if "no value" in str(error):
            assert not any(valid(x) for x in instances), (seed, s)
        return
    counts["schemas"] += 1
    for x in instances:
        try:
            accepted = grammar.accepts(json.dumps(x, ensure_ascii=False))
        except G.BudgetError:
            counts["too many readings"] += 1
            continue
        counts["verdicts"] += 1
        assert accepted == valid(x), (seed, s, x)
    ordered = G.compile_json_schema(s, byte_vocabulary(), key_order="schema")
    for way in (grammar, grammar, ordered):
        m = way.matcher()
        try:
            for _ in range(60):
                allowed = m.allowed_bytes()
                assert allowed or m.is_complete(), (seed, s, m.text)
                if m.is_complete() and (not allowed or draw.random() < 0.3):
                    break
                m.accept(
                    draw.choice([b for b in allowed if chr(b) in '"{}[],:abc0123tfnulrase'] or list(allowed))
                )
        except G.BudgetError:
            counts["too many readings"] += 1
            continue
        if m.is_complete():
            if re.search(rb"\d[eE]|\d{15}|\.\d{8}", m.text):  # beyond what Python's floats tell apart
                continue
            counts["drawn texts"] += 1
            assert valid(json.loads(m.text)) is not False, (seed, s, m.text)


PIECES = [
    "a",
    "b",
    '"x"',
    "[a-z]",
    "(",
    ")",
    "|",
    "*",
    "+",
    "?",
    "{2,3}",
    "::=",
    "\n",
    "root",
    "expr",
    " ",
    "/a+/",
    "%ignore ",
    "start: ",
    "\\d",
    "^",
    "$",
    "(?!",
    "\\",
    "\x00",
    "é",
    "{",
    "}",
    "%json ",
    ";",
    "[",
    "]",
    "-",
]


def check_source(seed: int, counts: collections.Counter) -> None:
    """Random text for every front end: a grammar or an error; where it is a grammar, random tokens."""
    draw = random.Random(seed)
    text = "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 30)))
    begin = draw.choice(["", "root ::= ", "start: "])
    for compiles in (G.compile_regex, G.compile_ebnf, G.compile_lark, G.compile_json_schema):
        try:
            grammar = compiles(begin + text if compiles is not G.compile_regex else text, byte_vocabulary())
        except G.GrammarError:
            counts["refused sources"] += 1
            continue
        counts["sources"] += 1
        m = grammar.matcher()
        for _ in range(40):
            token = draw.randrange(257)
            took = m.accept(token)
            assert not (took and token == 256) or m.is_done()
            if not took and (allowed := m.allowed_bytes()):
                m.accept(draw.choice(allowed))
        m.rollback(draw.randrange(m.accepted + 1))


def run(seconds: float, seed: int = 0) -> collections.Counter:
    """Both checks in turn for a time; raises AssertionError with the seed of what went wrong."""
    counts: collections.Counter = collections.Counter()
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        seed += 1
        check_schema(seed, counts)
        if seed % 8 == 0:
            check_source(seed, counts)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = run(60 * arguments.minutes, arguments.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        dict(counts), f"peak memory {peak} MiB, languages {byte_vocabulary().native.language_bytes >> 20} MiB"
    )


if __name__ == "__main__":
    main()
