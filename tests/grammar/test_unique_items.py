"""Arrays whose items must differ, where an item that has begun may only become one that is there already."""

import json
import random
from itertools import permutations

import jsonschema
import pytest

from tokops.grammar import compile_json_schema

from .spelled import EOS, TOKENS, VOCABULARY, allowed, closed, key, texts

BOOLEAN, LETTER = {"type": "boolean"}, {"enum": ["p", "q"]}
FLAGS = [{"a": False}, {"a": True}]
AB = {"type": "string", "pattern": "^[ab]*$", "maxLength": 1}


def arrays(items, **more):
    return {"type": "array", "items": items, **more}


def unique(items, most):
    return arrays(items, uniqueItems=True, maxItems=most)


PAIRS = [[x] for x in (False, True)] + [[x, y] for x in (False, True) for y in (False, True)]
ORDERED = [[*x] for n in range(3) for x in permutations("pq", n)]
#: Schemas of items, all their values, and how many an array may hold.
FEW = {
    "required": (closed("a", a=BOOLEAN), FLAGS, 3),
    "optional": (closed(a=BOOLEAN), [{}, *FLAGS], 2),
    "strings": (closed("a", a=AB), [{"a": x} for x in ("", "a", "b")], 3),
    "longest strings": (AB, ["", "a", "b"], 3),
    "two names": (
        closed(a=LETTER, b=LETTER, more={"minProperties": 1}),
        [{"a": x} for x in "pq"] + [{"b": x} for x in "pq"] + [{"a": x, "b": y} for x in "pq" for y in "pq"],
        2,
    ),
    "nested": (closed("k", k=closed("a", a=BOOLEAN)), [{"k": x} for x in FLAGS], 3),
    "two shapes": (
        {"anyOf": [closed("a", a=BOOLEAN), closed("a", a={"enum": [True, "a"]})]},
        [*FLAGS, {"a": "a"}],
        3,
    ),
    "types": ({**closed(a=BOOLEAN), "type": ["object", "boolean"]}, [False, True, {}, *FLAGS], 3),
    "no members": (closed(a=BOOLEAN, more={"maxProperties": 0}), [{}], 2),
    "keys of a pattern": (
        {"type": "object", "patternProperties": {"^x$": BOOLEAN}, "additionalProperties": False},
        [{}, {"x": False}, {"x": True}],
        3,
    ),
    "numbers": (closed("a", a={"enum": [1, 1.5]}), [{"a": 1}, {"a": 1.5}], 2),
    "short arrays": (arrays(BOOLEAN, minItems=1, maxItems=2), PAIRS, 2),
    "arrays that differ inside": (unique(LETTER, 2), ORDERED, 2),
    "arrays with counts": (
        arrays(LETTER, maxItems=2, contains={"const": "p"}, maxContains=1),
        [["p"], ["p", "q"], ["q", "p"]],
        2,
    ),
    "an array in an object": (
        closed("a", a=unique(closed("b", b=BOOLEAN), 1)),
        [{"a": []}, {"a": [{"b": False}]}, {"a": [{"b": True}]}],
        2,
    ),
}


@pytest.mark.parametrize("name", FEW)
def test_items_of_few_values(name):
    """The texts spell all arrays of different values and no others, and nothing leads astray."""
    items, values, most = FEW[name]
    grammar = compile_json_schema(unique(items, most), VOCABULARY, whitespace="none")
    want = {key(list(x)) for n in range(most + 1) for x in permutations(values, n)}
    got = [key(json.loads(text)) for text in texts(grammar.matcher())]
    assert set(got) == want


MANY = {
    "pairs": closed("kv", k={"type": "string"}, v={"type": "string"}),
    "pairs of bounded length": closed("kv", k={"type": "string", "maxLength": 2}, v=AB),
    "one member": {"type": "object", "additionalProperties": BOOLEAN, "maxProperties": 1},
    "a name and others": closed("k", k=AB, more={"additionalProperties": BOOLEAN, "maxProperties": 2}),
    "two shapes": {"anyOf": [closed("k", k={"type": "string"}), closed("k", k=AB, v=BOOLEAN)]},
    "prefix": {"prefixItems": [AB, BOOLEAN], "type": "array", "minItems": 2, "items": False},
}


@pytest.mark.parametrize("order", ["any", "schema"])
@pytest.mark.parametrize("name", MANY)
def test_items_of_many_values(name, order):
    """Random texts: masks are what tokens are accepted, all go on to an end, and the end is valid."""
    schema = {"type": "array", "uniqueItems": True, "items": MANY[name], "minItems": 3, "maxItems": 5}
    grammar = compile_json_schema(schema, VOCABULARY, whitespace="none", key_order=order)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    rng, repeats = random.Random(7), 0
    wanted = [ord(c) for c in 'ab"{}[]:,kvtrue'] + list(range(256, EOS))
    for _ in range(40):
        matcher, text = grammar.matcher(), b""
        while True:
            here = allowed(matcher, text)
            assert here, f"nothing can follow {text}"
            if EOS in here:
                break
            short = [t for t in here if t in wanted] if len(text) < 80 else []
            token = rng.choice(short or here)
            if len(text) > 80:  # towards the end
                token = next((t for c in '"}]' if (t := ord(c)) in here), token)
            assert matcher.accept(token)
            text += TOKENS[token]
        assert valid(json.loads(text)), text
        repeats += text.count(b"},{") + text.count(b"],[")
    assert repeats > 20


def test_a_value_that_is_there_already_is_not_closed():
    schema = unique(MANY["pairs"], 9)
    matcher = compile_json_schema(schema, VOCABULARY, whitespace="none").matcher()
    assert matcher.accept_bytes(b'[{"k":"x","v":"y"},{"v":"y","k":"x')
    assert ord('"') not in allowed(matcher)
    assert ord("x") in allowed(matcher)
    assert not matcher.accept_bytes(b'"')
    assert matcher.accept_bytes(b'x"}]')


def test_no_exponent_makes_another_number_of_zero():
    for text, goes_on in ((b"[3,0,0", False), (b"[0,-0", False), (b"[3,0,3", True)):
        schema = {"type": "array", "uniqueItems": True, "items": {"type": "integer", "minimum": 0}}
        assert compile_json_schema(schema, VOCABULARY).matcher().accept_bytes(text) == goes_on, text
    for text, goes_on in (
        (b"[0,0e", False),
        (b"[0,-0.0E", False),
        (b"[0,0", True),
        (b"[0,0.0", True),
        (b"[1,1e", True),
    ):
        schema = {"type": "array", "uniqueItems": True}
        assert compile_json_schema(schema, VOCABULARY).matcher().accept_bytes(text) == goes_on, text


def test_a_key_takes_the_place_that_another_would_have_had():
    items = closed(k=AB, m={"type": "string"}, more={"minProperties": 1, "maxProperties": 1})
    matcher = compile_json_schema(unique(items, 9), VOCABULARY, whitespace="none").matcher()
    assert matcher.accept_bytes(b'[{"k":""},{"k":"a"},{"k":"b"},{"')
    here = allowed(matcher)
    assert ord("k") not in here
    assert ord("m") in here


def test_equal_spellings_are_one_value():
    matcher = compile_json_schema(unique(closed("a", a={"enum": [1, "b"]}), 3), VOCABULARY).matcher()
    assert matcher.accept_bytes(b'[{"a": 1.0}, {"a": ')
    assert [TOKENS[t] for t in allowed(matcher) if TOKENS[t].strip()] == [b'"']
    assert matcher.accept_bytes(b'"\\u006')
    assert matcher.accept_bytes(b'2"}]')
