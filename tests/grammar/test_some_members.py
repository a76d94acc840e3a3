"""Objects of which some members must differ from a schema, several such constraints at once."""

import itertools
import json

import jsonschema
import pytest

from tokops.grammar import GrammarError, compile_json_schema

from .spelled import VOCABULARY, allowed, closed, key, texts

LETTER = {"enum": ["p", "q"]}
SOME_NOT_P = {"not": {"additionalProperties": {"const": "p"}}}
SOME_NOT_Q = {"not": {"additionalProperties": {"const": "q"}}}
SOME_A_NOT_P = {"not": {"patternProperties": {"a": {"const": "p"}}}}
SOME_B_NOT_Q = {"not": {"patternProperties": {"b$": {"const": "q"}}}}
ABC = {"a": LETTER, "ab": LETTER, "c": LETTER}


@pytest.mark.parametrize("most", [0, 1, 2, 3])
@pytest.mark.parametrize("required", ["", "a", "c"])
@pytest.mark.parametrize(
    "some", [(SOME_NOT_P, SOME_NOT_Q), (SOME_A_NOT_P, SOME_B_NOT_Q), (SOME_NOT_P, SOME_A_NOT_P, SOME_B_NOT_Q)]
)
def test_closed_objects(some, required, most):
    """The texts spell every object that is valid and no other, and nothing leads astray."""
    schema = closed(list(required), {"maxProperties": most, "allOf": list(some)}, **ABC)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    want = set()
    for names in itertools.chain.from_iterable(itertools.combinations(ABC, n) for n in range(4)):
        for values in itertools.product("pq", repeat=len(names)):
            found = dict(zip(names, values, strict=True))
            if valid(found):
                want.add(key(found))
    if not want:
        with pytest.raises(GrammarError, match="no value satisfies"):
            compile_json_schema(schema, VOCABULARY)
        return
    grammar = compile_json_schema(schema, VOCABULARY, whitespace="none")
    assert {key(json.loads(text)) for text in texts(grammar.matcher())} == want


def test_other_members_serve_within_the_bound():
    schema = {"maxProperties": 2, "required": ["c"], "additionalProperties": {"enum": ["p", "q", "r"]}}
    schema |= {"type": "object", "allOf": [SOME_A_NOT_P, SOME_B_NOT_Q]}
    matcher = compile_json_schema(schema, VOCABULARY, whitespace="none").matcher()
    assert matcher.accept_bytes(b'{"c":"p","')
    # One name with an a is not p, and one that ends with b is not q: the one that is left must be both.
    assert ord('"') not in allowed(matcher)
    assert not matcher.accept_bytes(b'a"')
    assert not matcher.accept_bytes(b'b"')
    assert not matcher.accept_bytes(b'ab":"p"')
    assert not matcher.accept_bytes(b'ab":"q"')
    assert matcher.accept_bytes(b'ab":"r"}')
