"""Sixty seconds of :mod:`fuzz`."""

import pytest

from . import fuzz


def test_random_schemas_and_sources():
    pytest.importorskip("jsonschema")
    counts = fuzz.run(60.0, seed=20261126)
    assert counts["verdicts"] > 1000
    assert counts["drawn texts"] > 100
    assert counts["sources"] > 10
