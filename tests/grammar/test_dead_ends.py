"""No mask leads to a place from which no text is reached; every complete text is valid."""

import itertools
import json
import random

import jsonschema
import pytest

from tokops.grammar import GrammarError, compile_json_schema

from .spelled import VOCABULARY, key, texts

ALPHABET = b'"{}[]:,012abcnul'
SCALARS = (
    {"const": 1},
    {"enum": [1, 2]},
    {"enum": ["a", "b"]},
    {"enum": ["a", 1, None]},
    {"type": "null"},
)
NAMES = ("a", "b", "c")


def explored(grammar, most=1500):
    """All complete texts over a small alphabet, and the places from which none is reached; None: too many."""
    todo, places, complete = [b""], {}, set()
    while todo:
        text = todo.pop()
        if len(places) > most:
            return None
        matcher = grammar.matcher()
        assert matcher.accept_bytes(text)
        if matcher.is_complete():
            complete.add(text)
        places[text] = [text + bytes([b]) for b in matcher.allowed_bytes() if b in ALPHABET]
        todo += places[text]
    reached = set(complete)
    for text in sorted(places, key=len, reverse=True):
        if any(further in reached for further in places[text]):
            reached.add(text)
    return complete, [text for text in places if text not in reached]


def check(schema, **options):
    """Whether the schema has any text; those it has are valid, and all places lead to one."""
    try:
        grammar = compile_json_schema(schema, VOCABULARY, whitespace="none", **options)
    except GrammarError:
        return None
    found = explored(grammar)
    if found is None:
        return None
    complete, dead = found
    assert not dead, (min(dead, key=len), schema)
    oracle = jsonschema.Draft202012Validator(schema)
    assert all(oracle.is_valid(json.loads(text)) for text in complete), schema
    return {key(json.loads(text)) for text in complete}


def random_object(r):
    schema = {
        "type": "object",
        "properties": {name: r.choice(SCALARS[:2]) for name in r.sample(NAMES, r.randint(1, 3))},
        "additionalProperties": False,
    }
    for _ in range(r.randint(1, 3)):
        schema |= r.choice(
            (
                {"minProperties": r.randint(1, 3)},
                {"maxProperties": r.randint(1, 2)},
                {"required": [r.choice(NAMES)]},
                {"dependentRequired": {r.choice(NAMES): [r.choice(NAMES)]}},
                {"anyOf": [{"required": [name]} for name in r.sample(NAMES, 2)]},
                {"not": {"additionalProperties": {"const": r.choice((1, 2))}}},
            )
        )
    return schema


def random_array(r):
    schema = {"type": "array", "maxItems": r.randint(1, 3), "items": r.choice((False, *SCALARS))}
    if r.random() < 0.6:
        schema["prefixItems"] = r.choices(SCALARS, k=r.randint(1, 3))
    schema["uniqueItems"] = r.random() < 0.8
    if r.random() < 0.5:
        schema["minItems"] = r.randint(1, 3)
    if r.random() < 0.4:
        schema |= {"contains": r.choice(SCALARS), "minContains": r.randint(0, 2), "maxContains": 2}
    return schema


@pytest.mark.parametrize("order", ["any", "schema"])
def test_objects(order):
    r = random.Random(1)
    looked_at = sum(check(random_object(r), key_order=order) is not None for _ in range(300))
    assert looked_at > 100


def test_arrays():
    r = random.Random(2)
    looked_at = 0
    for _ in range(500):
        schema = random_array(r)
        found = check(schema)
        if found is None:
            continue
        looked_at += 1
        oracle = jsonschema.Draft202012Validator(schema)
        values = (list(x) for n in range(4) for x in itertools.product((1, 2, "a", "b", None), repeat=n))
        assert found >= {key(x) for x in values if oracle.is_valid(x)}, schema
    assert looked_at > 200


@pytest.mark.parametrize(
    "items",
    [
        {"prefixItems": [{"enum": ["a", "b", "c"]}, {"const": "a"}], "minItems": 2, "maxItems": 2},
        {"prefixItems": [{"type": "string", "maxLength": 1}, {"const": "a"}], "minItems": 2, "maxItems": 2},
        {
            "prefixItems": [{"enum": [1, 2]}, {"enum": [1, 2]}],
            "items": {"enum": [0, 1, 2]},
            "minItems": 3,
            "maxItems": 3,
        },
        {
            "prefixItems": [{"enum": [1, 2]}, {"const": 1}],
            "items": False,
            "contains": {"const": 1},
            "minContains": 1,
        },
    ],
)
def test_items_leave_later_ones_what_they_need(items):
    assert check({"type": "array", "uniqueItems": True, **items}) is not None


AB = {"type": "string", "pattern": "^[ab]*$", "maxLength": 2}


@pytest.mark.parametrize(
    ("items", "count"),
    [
        ({"prefixItems": [AB, {"const": "a"}], "minItems": 2, "maxItems": 2}, 6),
        ({"prefixItems": [AB, AB, *[{"enum": ["a", "b"]}] * 2], "minItems": 4, "maxItems": 4}, 40),
        (
            {
                "prefixItems": [{"enum": ["a", "ab", "b"]}, {"enum": ["a", "ab"]}, {"const": "ab"}],
                "minItems": 3,
            },
            None,
        ),
        ({"prefixItems": [{"enum": ["a", "ab"]}, {"const": "ab"}], "items": False}, 4),
        (
            {
                "prefixItems": [{"enum": ["a", "ab"]}, {"const": "ab"}],
                "items": False,
                "contains": {"const": "ab"},
            },
            2,
        ),
    ],
)
def test_masks_know_what_an_item_ends_as(items, count):
    """Of tokens that end one item and begin the next: every mask is what accept says."""
    schema = {"type": "array", "uniqueItems": True, "items": False, **items}
    found = list(texts(compile_json_schema(schema, VOCABULARY, whitespace="none").matcher()))
    assert len(found) == (count or 1)


@pytest.mark.parametrize("more", [{}, {"required": ["b"]}, {"minProperties": 1}])
def test_unique_objects_in_the_schemas_order(more):
    letter = {"enum": [1, 2]}
    closed = {
        "type": "object",
        "properties": {"b": letter, "a": letter},
        "additionalProperties": False,
        **more,
    }
    schema = {"type": "array", "items": closed, "uniqueItems": True, "maxItems": 2}
    assert check(schema, key_order="schema") == check(schema) is not None
