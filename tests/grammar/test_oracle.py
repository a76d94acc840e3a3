"""The mask oracle against what is known without it: the official suite, plain validation, and enumeration."""

import functools
import itertools
import json
import pathlib
import random
import re
from decimal import Decimal
from fractions import Fraction

import pytest

from . import languages
from .facts import of_json
from .mask_points import OWN, schemas, spelled, wander
from .masks import TokenTree, small_vocabulary
from .numerals import Numbers, value
from .oracle import Oracle, Unsupported, complete, pending_ranges
from .patterns import format_language, pattern

SUITE = pathlib.Path(__file__).resolve().parents[1] / "data" / "json_schema_test_suite"
DRAFTS = {
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
# Draft 7's optional assertions about contents of strings are annotations here.
FILES = [
    (draft, path)
    for draft in DRAFTS
    for path in sorted((SUITE / draft).rglob("*.json"))
    if path.stem != "content"
]
OWN_SCHEMAS = schemas(OWN)


@pytest.mark.parametrize(("draft", "path"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_official_suite(draft, path):
    """Whatever the oracle decides of the suite is right; but for numbers with exponents and A-labels of host names."""
    for group in json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal):
        schema = group["schema"]
        if isinstance(schema, dict) and "$schema" not in schema:
            schema = {"$schema": DRAFTS[draft], **schema}
        asserts = "format" in path.parts[-2:-1] or path.stem == "format-assertion"
        try:
            oracle = Oracle(schema, assert_formats=asserts)
            for test in group["tests"]:
                text = json.dumps(test["data"], default=float, ensure_ascii=False)
                if re.search(r"\d[eE][+-]?\d", text) or (path.stem == "hostname" and "xn--" in text):
                    continue
                said = group["description"], test["description"]
                assert oracle.accepts(text.encode()) == test["valid"], said
        except Unsupported:
            continue


def test_most_of_the_suite_is_decided():
    decided = total = 0
    for draft, path in FILES:
        if "optional" in path.parts:
            continue
        for group in json.loads(path.read_text(encoding="utf-8")):
            total += 1
            try:
                schema = group["schema"]
                Oracle({"$schema": DRAFTS[draft], **schema} if isinstance(schema, dict) else schema)
                decided += 1
            except Unsupported:
                continue
    assert decided >= 0.7 * total, (decided, total)


@pytest.mark.parametrize(
    ("name", "schema", "instances"), OWN_SCHEMAS, ids=[name for name, _, _ in OWN_SCHEMAS]
)
def test_prefixes_of_valid_texts_are_viable(name, schema, instances):
    oracle, draw = Oracle(schema), random.Random(name)
    for instance in instances:
        for text in (
            json.dumps(instance, ensure_ascii=False),
            spelled(instance, draw),
            spelled(instance, draw),
        ):
            assert oracle.accepts(text.encode()), text


def wish(point) -> str:
    """What would bring a text nearer to its end, after which closers come."""
    left = ""
    if point.phase == "key" and not point.pending:
        left = next((name for name in sorted(point.frame.next_keys[0]) if name.startswith(point.left)), "")
    elif point.phase == "string" and not point.pending:
        for one in point.frame.scalars("string"):
            rest = languages.steps(one.language, point.left)
            low, high = one.low - len(point.left), None if one.high is None else one.high - len(point.left)
            found = next(languages.texts(rest, low, high), None)
            if found is not None:
                left = point.left + found
                break
    return json.dumps(left[len(point.left) :][:1], ensure_ascii=False)[1:-1] if left else ""


def finish(oracle, prefix: bytes, draw: random.Random) -> bytes | None:
    """A whole text that begins with a viable prefix."""
    point, out = oracle.walk(prefix), bytearray(prefix)
    closers = b'}]",:0123456789{[truefalsn-./'
    while not point.ends:
        if len(out) > len(prefix) + 300:
            return None
        wished = wish(point).encode()
        after = oracle.walk(wished, point) if wished else None
        if after is None:
            tries = (
                (b'"' if point.phase in ("key", "string") else b"")
                + closers
                + bytes(draw.sample(range(256), 256))
            )
            b, after = next((b, p) for b in tries if (p := point.step(b)) is not None and p.viable)
            wished = bytes((b,))
        out += wished
        point = after
    return bytes(out)


@pytest.mark.parametrize(
    ("name", "schema", "instances"), OWN_SCHEMAS, ids=[name for name, _, _ in OWN_SCHEMAS]
)
def test_viable_prefixes_can_be_finished(name, schema, instances):
    oracle, draw = Oracle(schema), random.Random(name)
    finished = 0
    for _ in range(12):
        prefix = wander(oracle, draw, 40)
        text = finish(oracle, prefix, draw)
        if text is not None:
            finished += 1
            data = json.loads(text, parse_float=Decimal, object_pairs_hook=without_repetition)
            assert oracle.schema.holds(("+", oracle.schema.root), of_json(data)), text
    assert finished >= 6


def without_repetition(pairs):
    assert len({key for key, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


@functools.cache
def small_texts() -> dict[str, tuple]:
    """All JSON texts of up to five pieces, and their values."""
    out, pieces = {}, ['"a"', '""', '"', "1", "-", ",", ":", "{", "}", "[", "]"]
    for text in {"".join(some) for size in range(6) for some in itertools.product(pieces, repeat=size)}:
        try:
            out[text] = of_json(json.loads(text, parse_float=Decimal, object_pairs_hook=without_repetition))
        except (ValueError, AssertionError):
            continue
    return out


SMALL = [
    {"type": "integer", "minimum": 1},
    {"enum": ["a", 1, [1], {"a": 1}]},
    {"type": "array", "items": {"enum": [1, "a"]}, "uniqueItems": True, "minItems": 2},
    {"type": "object", "required": ["a"], "additionalProperties": {"type": "integer"}},
    {"oneOf": [{"minItems": 1}, {"items": {"const": 1}}], "type": "array"},
    {"not": {"type": ["number", "string", "object", "boolean", "null"]}, "contains": {"const": "a"}},
    {"type": "number", "exclusiveMaximum": 0},
    {"type": "object", "propertyNames": {"maxLength": 1}, "minProperties": 1, "maxProperties": 1},
]


@pytest.mark.parametrize("schema", SMALL, ids=json.dumps)
def test_enumeration(schema):
    """All texts of up to five pieces: whether each is allowed, by parsing and validating; and their prefixes."""
    oracle = Oracle(schema)
    allowed = {text for text, v in small_texts().items() if oracle.schema.holds(("+", oracle.schema.root), v)}
    assert allowed
    for text in allowed:
        assert oracle.accepts(text.encode()), text
    prefixes = {""} | {text[:n] for text in allowed for n in range(1, len(text) + 1)}
    for prefix in prefixes:
        point = oracle.walk(prefix.encode())
        assert point is not None, prefix
        assert point.ends == (prefix in allowed), prefix


PATTERNS = [
    "^a+b?$",
    "a|b",
    "^(a|bc)*$",
    "^[^a]{2}$",
    "a{1,2}$",
    "^(?=a)[ab]+$",
    "^(?!ab)",
    "b(?=a)",
    "^a.c$",
    "(^a|b$)",
    "^$",
]


@pytest.mark.parametrize("source", PATTERNS)
def test_patterns_by_python(source):
    language, expression = pattern(source), re.compile(source.replace("$", r"\Z"))
    for size in range(5):
        for letters in itertools.product("abc", repeat=size):
            text = "".join(letters)
            assert languages.matches(language, text) == bool(expression.search(text)), (source, text)


def test_numbers_of_texts_by_length():
    language = pattern("^(ab|c){1,3}$")
    lengths = {len(text) for text in languages.texts(language, 0, 20)}
    assert lengths == {1, 2, 3, 4, 5, 6}
    for low in range(8):
        for high in range(8):
            assert languages.has_text(language, low, high) == any(low <= n <= high for n in lengths)
    assert languages.has_text(pattern("^(aaa)*$"), 100, 102)
    assert not languages.has_text(pattern("^(aaa)*$"), 100, 101)
    assert len(list(languages.texts(language))) == 2 + 4 + 8


NUMBER_SETS = [
    Numbers(low=(Fraction(3), False), high=(Fraction(12), True)),
    Numbers(low=(Fraction(-15, 10), True), high=(Fraction(1, 10), False), multiples=[Fraction(1, 2)]),
    Numbers(
        multiples=[Fraction(3), Fraction(2)],
        others=[Fraction(12)],
        low=(Fraction(0), True),
        high=(Fraction(40), False),
    ),
    Numbers(among=frozenset({Fraction(1), Fraction(-25, 10), Fraction(120)})),
    Numbers(
        low=(Fraction(1), False),
        high=(Fraction(3), False),
        multiples=[Fraction(1)],
        apart=frozenset({Fraction(2)}),
    ),
    Numbers(high=(Fraction(-99), False), low=(Fraction(-101), False), multiples=[Fraction(1)]),
]


@pytest.mark.parametrize("numbers", NUMBER_SETS, ids=range(len(NUMBER_SETS)))
def test_numerals_by_enumeration(numbers):
    """All numerals of up to three digits before and two after the point, and all of their prefixes."""
    fractions = ["", *(f".{n}" for n in range(10)), *(f".{n:02}" for n in range(100))]
    texts = [f"{sign}{n}{rest}" for sign in ("", "-") for n in range(130) for rest in fractions]
    members = {text for text in texts if numbers.has(value(text))}
    assert members
    begun = {text[:n] for text in members for n in range(len(text) + 1)}
    for part in {text[:n] for text in texts for n in range(len(text) + 1)}:
        if part in begun:
            assert numbers.can_become(part), part
        elif numbers.multiples or "." not in part:  # else more digits may come than were enumerated
            assert not numbers.can_become(part), part


@pytest.mark.parametrize("text", ["a", "é", "日", "😀", "\x7f", "\u2028"])
def test_begun_characters(text):
    raw = text.encode()
    units = memoryview(text.encode("utf-16-le")).cast("H")
    for spelling in (raw, "".join(f"\\u{unit:04X}" for unit in units).encode()):
        for n in range(1, len(spelling) + 1):
            ranges = pending_ranges(spelling[:n])
            assert any(low <= ord(text) <= high for low, high in ranges)
            assert complete(spelling[:n]) == (n == len(spelling))
        assert ranges == ((ord(text), ord(text)),)


@pytest.mark.parametrize(
    "wrong",
    [b"\xc0", b"\xed\xa0", b"\xf5", b"\x80", b"\\x", b"\\ud800\\u0", b"\\udc00", b"\\ud800x", b"\\u00g"],
)
def test_wrong_characters(wrong):
    assert not pending_ranges(wrong)


def test_dates_by_the_calendar():
    import calendar

    language = format_language("date")
    for year in (1900, 2000, 2023, 2024):
        for month in range(14):
            for day in range(33):
                right = 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
                assert languages.matches(language, f"{year}-{month:02}-{day:02}") == right


def test_masks_are_those_of_single_tokens():
    tokens, _ = small_vocabulary()
    tree, oracle = (
        TokenTree(tokens),
        Oracle({"type": "object", "properties": {"name": {"type": "integer"}}, "maxProperties": 1}),
    )
    for prefix in (b"", b"{", b'{"na', b'{"name": 1', b'{"name": 1 '):
        point = oracle.walk(prefix)
        found = tree.decide(point, 10**9)
        assert found.keys() == {i for i, token in enumerate(tokens) if token}
        for i in random.Random(0).sample(sorted(found), 400):
            assert found[i] == (oracle.walk(prefix + tokens[i]) is not None), (prefix, tokens[i])
