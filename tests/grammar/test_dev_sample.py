"""Schemas as people write them, with instances: a small sample of our own, and the development sample if at hand."""

import json

import pytest

from .engine import judge
from .mask_points import OWN, SHARED

#: Schemas of the development sample that are compiled and judged otherwise than its two validators did, and why.
EXCEPTIONS: dict[str, str] = {}
LINES = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["id"])
def test_own_sample(line):
    assert judge(line["schema"], line["tests"]) == ("exact", "")


def test_own_sample_has_both_kinds():
    for line in LINES:
        assert {test["valid"] for test in line["tests"]} == {True, False}, line["id"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the development sample is not beside the repository")
def test_development_sample():
    found = [json.loads(line) for line in SHARED.read_text(encoding="utf-8").splitlines()]
    verdicts = {line["id"]: judge(line["schema"], line["tests"]) for line in found}
    compiled = sum(verdict != "refused" for verdict, _ in verdicts.values())
    assert compiled >= 0.97 * len(found), f"{compiled} of {len(found)} compile"
    tested = [line["id"] for line in found if line["tests"]]
    exact = sum(verdicts[name][0] == "exact" for name in tested)
    assert exact >= 0.97 * len(tested), f"{exact} of {len(tested)} are exact"
    wrong = {name: said for name, said in verdicts.items() if said[0] not in ("exact", "refused")}
    assert wrong.keys() == EXCEPTIONS.keys(), {
        name: wrong.get(name) for name in wrong.keys() ^ EXCEPTIONS.keys()
    }
