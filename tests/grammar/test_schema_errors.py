"""What a schema does not say is told: warnings of keywords without effect, errors with their place, no value at all."""

import json
import random
import sys

import jsonschema
import pytest

from tokops import grammar as G

from .engine import accepts, byte_vocabulary

DRAFT4, DRAFT6, DRAFT7 = (f"http://json-schema.org/draft-0{n}/schema#" for n in (4, 6, 7))
DRAFT2019 = "https://json-schema.org/draft/2019-09/schema"
ROOT = "the root"


def compiled(schema, **options):
    return G.compile_json_schema(schema, byte_vocabulary(), **options)


def refused(compiles, *arguments, **options):
    with pytest.raises(G.GrammarError) as caught:
        compiles(*arguments, byte_vocabulary(), **options)
    error = caught.value
    assert error.reason
    assert str(error).startswith(error.keyword)
    return error


# --- Warnings

UNREAD = [
    *((DRAFT4, {k: {"const": 1}}, k, "draft 4") for k in ("contains", "propertyNames", "if", "then")),
    (DRAFT4, {"const": 1}, "const", "draft 4"),
    (DRAFT6, {"if": {}, "then": False}, "then", "draft 6"),
    *(
        (DRAFT7, {k: value}, k, "draft 7")
        for k, value in {
            "prefixItems": [False],
            "dependentRequired": {"a": ["b"]},
            "dependentSchemas": {"a": False},
            "minContains": 2,
            "maxContains": 2,
            "unevaluatedItems": False,
            "unevaluatedProperties": False,
            "$recursiveRef": "#",
            "$dynamicRef": "#",
        }.items()
    ),
    (DRAFT7, {"$ref": "#/definitions/a", "minLength": 3, "definitions": {"a": {}}}, "minLength", "$ref"),
    (DRAFT7, {"$ref": "#/definitions/a", "odd": 3, "definitions": {"a": {}}}, "odd", "$ref"),
    (DRAFT2019, {"prefixItems": [False]}, "prefixItems", "draft 2019-09"),
    (None, {"$recursiveRef": "#"}, "$recursiveRef", "draft 2020-12"),
    (None, {"$recursiveRef": "#", "unevaluatedItems": False}, "$recursiveRef", "draft 2020-12"),
    (None, {"additionalItems": False, "items": {}}, "additionalItems", "without a list"),
    (None, {"items": [{}]}, "items", "prefixItems"),
    (None, {"dependencies": {"a": ["b"]}}, "dependencies", "draft 7"),
    (None, {"then": False}, "then", "without if"),
    (None, {"minContains": 2}, "minContains", "without contains"),
    (None, {"exclusiveMaximum": True}, "exclusiveMaximum", "without maximum"),
    (None, {"exclusiveMinimum": True, "minimum": 1}, "exclusiveMinimum", "as in draft 4"),
    (DRAFT4, {"exclusiveMinimum": 1}, "exclusiveMinimum", "draft 6"),
    (None, {"odd": 1, "unevaluatedProperties": False}, 'unknown keyword "odd"', "not checked"),
]


@pytest.mark.parametrize("at", ["", "/properties/a~1b", "/allOf/0"])
@pytest.mark.parametrize(("draft", "schema", "keyword", "why"), UNREAD)
def test_what_is_not_read_is_told(draft, schema, keyword, why, at):
    if at == "/allOf/0":  # read with what it evaluates
        schema = {"allOf": [schema], "unevaluatedProperties": {}, "unevaluatedItems": {}}
    elif at:
        schema = {"properties": {"a/b": schema}}
    if "$ref" in schema.get("properties", {}).get("a/b", schema.get("allOf", [{}])[0]):
        schema["definitions"] = {"a": {}}
    if draft:
        schema = {"$schema": draft, **schema}
    found = [w for w in compiled(schema).warnings if w.startswith(f"{keyword} at {at or ROOT}: ")]
    assert any(why in w for w in found), found


@pytest.mark.parametrize(
    "said", ["draft-08", "http://example.com/meta", "http://json-schema.org/schema#", 7, None]
)
def test_drafts_that_are_not_known(said):
    assert [w.partition(":")[0] for w in compiled({"$schema": said, "type": "null"}).warnings] == [
        "$schema at the root"
    ]


def test_a_draft_inside_of_a_schema_is_not_read():
    (told,) = compiled({"items": {"$schema": DRAFT4, "const": 1}}).warnings
    assert told.startswith("$schema at /items: ")
    assert "2020-12" in told


@pytest.mark.parametrize("draft", [4, 6, 7, 2019, 2020])
def test_annotations_are_not_told(draft):
    schema = {
        "title": "t",
        "description": "d",
        "default": 1,
        "examples": [1],
        "$comment": "c",
        "readOnly": True,
        "writeOnly": True,
        "deprecated": True,
        "contentMediaType": "text/html",
        "contentEncoding": "quoted-printable",
        "definitions": {"a": {"type": "string"}},
        "$defs": {"b": {"type": "null"}},
        "$id": "http://example.com/x",
        "id": "http://example.com/x",
        "$anchor": "here",
        "$vocabulary": {},
    }
    assert compiled(schema, draft=draft).warnings == []
    assert compiled({"$ref": "#/definitions/a", **schema}, draft=draft).warnings == []


def test_many_warnings_are_cut_off_aloud():
    warnings = compiled({"properties": {f"p{i}": {"odd": 1} for i in range(300)}}).warnings
    assert len(warnings) == 201
    assert "more" in warnings[-1]


def test_warnings_say_in_which_tag():
    tags = [{"begin": "<a>"}, {"begin": "<b>", "schema": {"items": {"odd": 1}}}]
    (told,) = G.compile_tags(tags, byte_vocabulary()).warnings
    assert told.startswith('unknown keyword "odd" at /1/schema/items: ')


def test_older_drafts_are_read_as_they_are_beside_unevaluated():
    old = {"$schema": DRAFT7, "$ref": "#/definitions/x", "required": ["a"], "definitions": {"x": {}}}
    schema = {"allOf": [{"$ref": "http://example.com/old"}], "unevaluatedProperties": False}
    grammar = compiled(schema, registry={"http://example.com/old": old})
    assert accepts(grammar, b"{}")
    (told,) = grammar.warnings
    assert told.startswith("required at http://example.com/old#: ")


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"exclusiveMaximum": "3"}, "exclusiveMaximum"),
        ({"items": [{}], "prefixItems": [{}]}, "items"),
        ({"allOf": {}, "unevaluatedItems": False}, "allOf"),
        ({"anyOf": 3, "unevaluatedItems": False}, "anyOf"),
        ({"oneOf": [], "unevaluatedItems": False}, "oneOf"),
        ({"dependentSchemas": [], "unevaluatedItems": False}, "dependentSchemas"),
        ({"$schema": DRAFT4, "required": True}, "required"),
    ],
)
def test_malformed_keywords(schema, keyword):
    error = refused(G.compile_json_schema, schema)
    assert (error.keyword, error.pointer) == (keyword, "")


@pytest.mark.parametrize("keyword", ["unevaluatedItems", "unevaluatedProperties"])
def test_malformed_where_nothing_is_left(keyword):
    error = refused(G.compile_json_schema, {"items": {}, "additionalProperties": {}, keyword: 5})
    assert (error.keyword, error.pointer) == ("schema", f"/{keyword}")


# --- Where errors stand


def deep(levels):
    schema = True
    for _ in range(levels):
        schema = {"items": schema}
    return schema


CHOICES = {
    "allOf": [
        {"anyOf": [{"required": [f"p{i}{j}"], "properties": {f"p{i}{j}": {}}} for j in range(6)]}
        for i in range(6)
    ]
}
PLACES = [
    ({"properties": {"a": {"not": {"uniqueItems": True}}}}, "uniqueItems", "/properties/a/not"),
    ({"a": [{"b~/c": "\ud800"}]}, "string", "/a/0/b~0~1c"),
    ({"a": {"\ud800": 1}}, "string", "/a"),
    ({"a": [1, float("nan")]}, "number", "/a/1"),
    ('{"a": [1, NaN]}', "schema", "/a/1"),
    ({"a": {1: 2}}, "object", "/a"),
    ({"a": {"b": {1, 2}}}, "schema", "/a/b"),
    ({"a": {"const": 10**5000}}, "number", "/a/const"),
    ({"properties": {"a": {"maximum": 1e308, "items": {"const": 10**4299}}}}, None, None),
    ('{"properties": {"a": {"maximum": 1e200000}}}', "number", "/properties/a"),
    ({"items": CHOICES}, "max_alternatives", "/items"),
    ({"items": {"allOf": [{"contains": {"const": i}} for i in range(5)]}}, "contains", "/items"),
    ({"items": {"contains": {"const": 1}, "minContains": 2000000}}, "contains", "/items"),
    (deep(401), "nesting", "/items" * 401),
    ('{"items":' * 5000 + "true" + "}" * 5000, "nesting", ""),
    ('{"a":\n ]}', "schema", "2:2"),
]


@pytest.mark.parametrize(("schema", "keyword", "pointer"), PLACES, ids=[str(p[1:])[:40] for p in PLACES])
def test_errors_say_where(schema, keyword, pointer):
    if keyword is None:
        compiled(schema)
        return
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which some packages raise: its parser has no place to tell
    try:
        error = refused(G.compile_json_schema, schema, timeout=30.0)
    finally:
        sys.setrecursionlimit(limit)
    assert (error.keyword, error.pointer) == (keyword, pointer)


def test_bounds_on_languages_say_where():
    pattern = "^(?=.*a.{20}$)(?!.*[ab].{20}$).*$"
    error = refused(G.compile_json_schema, {"items": {"pattern": pattern}}, timeout=60.0)
    assert isinstance(error, G.BudgetError)
    assert (error.keyword, error.pointer) == ("max_bytes", "/items")


def test_text_holds_integers_of_any_size():
    digits = "7" * 5000
    grammar = compiled('{"const": ' + digits + ', "minLength": ' + digits + "}")
    assert accepts(grammar, digits.encode())
    assert not accepts(grammar, digits[1:].encode())


def test_registry_documents_are_named():
    registry = {"http://example.com/a": {"items": {"type": "text", "odd": 1}}}
    error = refused(G.compile_json_schema, {"$ref": "http://example.com/a"}, registry=registry)
    assert (error.keyword, error.pointer) == ("type", "http://example.com/a#/items")
    error = refused(G.compile_json_schema, True, registry={"u": {"a": float("inf")}})
    assert (error.keyword, error.pointer) == ("number", "u#/a")


@pytest.mark.parametrize(
    ("schema", "keyword", "pointer"),
    [
        ({"properties": {"x": {"type": "text"}}}, "type", "/1/schema/properties/x"),
        ({"x": float("nan")}, "number", "/1/schema/x"),
        ('{"x": ', "schema", "/1/schema"),
        ("[" * 100000, "nesting", "/1/schema"),
        (False, "schema", "/1/schema"),
    ],
)
def test_errors_say_in_which_tag(schema, keyword, pointer):
    error = refused(G.compile_tags, [{"begin": "<a>"}, {"begin": "<b>", "schema": schema}])
    assert (error.keyword, error.pointer) == (keyword, pointer)


@pytest.mark.parametrize(
    ("schema", "keyword", "pointer"),
    [
        ('{"type":"foo"}', "type", "2:4"),
        ('{"items":{"type":"foo"}}', "type", "2:4/items"),
        ('{"items":foo}', "schema", "2:4"),
        ('{"not":{}}', "schema", "2:4"),
    ],
)
def test_errors_say_where_in_lark(schema, keyword, pointer):
    error = refused(G.compile_lark, f'start: "a" b "c" %json {{}}\nb: %json {schema}')
    assert (error.keyword, error.pointer) == (keyword, pointer)


@pytest.mark.parametrize(
    ("pattern", "pointer"), [("a(", "1:2"), ("[z-a]", "1:3"), ("\u00e9\u00e9\n(x", "2:1"), ("(" * 999, "1:1")]
)
def test_errors_say_where_in_a_pattern(pattern, pointer):
    assert refused(G.compile_regex, pattern).pointer == pointer


# --- Schemas without a value

ARRAY = {"type": "array"}
NO_ONE = {**ARRAY, "prefixItems": [{"const": 2}], "maxItems": 1, "contains": {"const": 1}}
ENDLESS = {
    **ARRAY,
    "prefixItems": [{"anyOf": [{"const": 1}, {"$ref": "#"}]}, ARRAY],
    "maxItems": 1,
    "contains": ARRAY,
}


def unique(fewest, **more):
    return {**ARRAY, "uniqueItems": True, "minItems": fewest, **more}


IMPOSSIBLE = {
    "a count": NO_ONE,
    "a count of itself": ENDLESS,
    "booleans": unique(3, items={"type": "boolean"}),
    "an enum": unique(3, items={"enum": [1, 2]}),
    "equal numbers": unique(3, items={"enum": [1, 1.0, 2]}),
    "many integers": unique(1001, items={"type": "integer", "minimum": 1, "maximum": 1000}),
    "a matching": unique(3, prefixItems=[{"enum": ["a", "b"]}] * 3),
    "two of one": unique(2, prefixItems=[{"const": "a"}, {"const": "a"}]),
    "items of items": unique(3, items=unique(2, items={"type": "boolean"})),
    "counts of one value": unique(2, items={"type": "boolean"}, contains={"const": True}, minContains=2),
    "counts that leave too few": unique(
        3, items={"enum": [1, 2, 3]}, contains={"enum": [1, 2]}, maxContains=1
    ),
}
POSSIBLE = {
    "booleans": (unique(2, items={"type": "boolean"}), b"[true,false]"),
    "an enum": (unique(2, items={"enum": [1, 2]}), b"[2,1]"),
    "many integers": (unique(20, items={"type": "integer", "minimum": 1, "maximum": 20}), None),
    "a matching": (unique(2, prefixItems=[{"enum": ["a", "b", "c"]}, {"const": "a"}]), b'["b","a"]'),
    "fewer": (unique(1, prefixItems=[{"const": "a"}, {"const": "a"}]), b'["a"]'),
    "counts": (
        unique(2, items={"enum": [1, 2, 3]}, contains={"enum": [1, 2]}, maxContains=1),
        b"[1,3]",
    ),
    "anything": (unique(100000), None),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_no_value_is_known_where_it_is_used(name):
    schema = json.loads(json.dumps(IMPOSSIBLE[name]).replace('"#"', '"#/$defs/x"'))
    defs, x = {"$defs": {"x": schema}}, {"$ref": "#/$defs/x"}
    member = {**defs, "type": "object", "properties": {"a": x}}
    for nowhere in (
        {**defs, **x},
        {**member, "required": ["a"]},
        {**defs, **ARRAY, "items": x, "minItems": 1},
        {**defs, "anyOf": [x, {"type": "object", "minProperties": 1, "additionalProperties": x}]},
    ):
        assert refused(G.compile_json_schema, nowhere).keyword == "schema"
    matcher = compiled({**defs, "anyOf": [x, {"type": "null"}]}).matcher()
    assert matcher.allowed_bytes() == b"n"
    assert matcher.accept_bytes(b"null")
    matcher = compiled(member, whitespace="none").matcher()
    assert matcher.accept_bytes(b"{")
    assert not matcher.accept_bytes(b'"a":')
    assert matcher.accept_bytes(b"}")


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_is_possible_is_not_refused(name):
    schema, text = POSSIBLE[name]
    grammar = compiled(schema)
    assert text is None or accepts(grammar, text)


def test_random_arrays_without_a_value():
    """Of small arrays of unique items those are refused that have no value, and no others."""
    rng, values = random.Random(5), [1, 2, 3, "a"]
    refusals = 0
    for _ in range(200):
        some = [{"enum": rng.sample(values, rng.randint(1, 2))} for _ in range(rng.randint(1, 3))]
        schema = unique(rng.randint(1, 4), prefixItems=some, maxItems=rng.randint(2, 4))
        schema["items"] = {"enum": rng.sample(values, rng.randint(1, 3))}
        if rng.random() < 0.5:
            schema |= {"contains": {"enum": rng.sample(values, 2)}, "minContains": rng.randint(0, 2)}
            schema["maxContains"] = rng.randint(1, 3)
        valid = jsonschema.Draft202012Validator(schema).is_valid
        arrays = [[]]
        for _ in range(4):
            arrays += [[*a, v] for a in arrays if len(a) == len(arrays[-1]) for v in values]
        found = [a for a in arrays if valid(a)]
        if found:
            assert accepts(compiled(schema), json.dumps(found[-1]).encode()), schema
        else:
            refusals += 1
            assert refused(G.compile_json_schema, schema).keyword == "schema", schema
    assert 20 < refusals < 150
