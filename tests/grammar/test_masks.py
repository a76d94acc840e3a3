"""Whole masks equal the oracle's: every bit, at places along instances and random texts."""

import json
import random

import numpy as np
import pytest

import tokops.grammar

from .mask_points import OWN, SHARED, Comparison, compare, schemas, spelled
from .masks import small_vocabulary
from .oracle import Oracle

OWN_SCHEMAS = schemas(OWN)


@pytest.fixture(scope="module")
def comparison():
    return Comparison(*small_vocabulary(), budget=3000, seconds=5)


@pytest.mark.parametrize(
    ("name", "schema", "instances"), OWN_SCHEMAS, ids=[name for name, _, _ in OWN_SCHEMAS]
)
def test_own_schemas(comparison, name, schema, instances):
    before, comparison.run.wrong = comparison.run.points, []
    comparison.schema(name, schema, instances, 10)
    assert not comparison.run.wrong, "\n".join(map(str, comparison.run.wrong))
    assert comparison.run.points > before or comparison.run.left_out


def test_most_places_were_compared(comparison):
    assert comparison.run.points >= 8 * len(OWN_SCHEMAS), comparison.run.left_out


@pytest.mark.parametrize(
    ("schema", "prefix"),
    [
        ({"type": "string", "minLength": 10, "maxLength": 10, "pattern": "[0-9]{10,10}"}, b'"164372'),
        ({"type": "string", "minLength": 3, "maxLength": 6, "pattern": "2222"}, b'"a22\\u'),
        ({"type": "array", "minItems": 1, "items": {"minLength": 1, "maxLength": 1}}, b'["'),
    ],
)
def test_lengths_beside_patterns_and_escapes(comparison, schema, prefix):
    """What fits the pattern and the length each may still not fit both, also in the middle of an escape."""
    matcher = tokops.grammar.compile_json_schema(schema, comparison.vocabulary).matcher()
    assert matcher.accept_bytes(prefix)
    mask = comparison.vocabulary.masks()[0]
    matcher.fill(mask)
    wrong, _ = compare(Oracle(schema).walk(prefix), mask.numpy(), comparison.tree, comparison.end, 10**9)
    assert not [(comparison.tokens[i], allowed) for i, allowed in wrong]


def test_a_flipped_bit_is_found(comparison):
    """The comparison itself: of every kind of token, one bit the other way."""
    oracle, tokens = Oracle({"type": "array", "items": {"type": "string"}}), comparison.tokens
    point = oracle.walk(b'["a')
    truth = comparison.tree.decide(point, 10**9) | {comparison.end: False}
    mask = np.zeros((len(tokens) + 31) // 32, np.int32)
    for i, allowed in truth.items():
        mask.view(np.uint32)[i >> 5] |= np.uint32(allowed) << np.uint32(i & 31)
    assert compare(point, mask, comparison.tree, comparison.end, 10**9) == ([], len(truth))
    for i in (tokens.index(b'"'), tokens.index(b"\n"), tokens.index(b'"]'), 31, 255, comparison.end):
        flipped = mask.copy()
        flipped.view(np.uint32)[i >> 5] ^= np.uint32(1) << np.uint32(i & 31)
        assert compare(point, flipped, comparison.tree, comparison.end, 10**9)[0] == [(i, truth[i])]


def test_spelled_texts_are_the_instance():
    instance = {'a"é😀': [1, -2.5, None, True, {"": "\n\\"}], "b": {}, "c": []}
    texts = {spelled(instance, random.Random(seed)) for seed in range(30)}
    assert len(texts) == 30
    assert all(json.loads(text) == instance for text in texts)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the development sample is not beside the repository")
def test_development_sample(comparison):
    comparison.run.wrong = []
    for name, schema, instances in schemas(SHARED)[::25]:
        comparison.schema(name, schema, instances, 2)
    assert not comparison.run.wrong, "\n".join(map(str, comparison.run.wrong))
