"""The official JSON Schema Test Suite: a group is judged exactly or its schema is refused by name."""

import collections
import functools
import json
import pathlib

import pytest

from .engine import judge

SUITE = pathlib.Path(__file__).resolve().parents[1] / "data" / "json_schema_test_suite"
DRAFTS = {
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}
FILES = [
    (draft, str(path.relative_to(SUITE / draft).with_suffix("")))
    for draft in DRAFTS
    for path in sorted((SUITE / draft).rglob("*.json"))
]
#: What `$ref` may lead to.
REMOTES = {
    f"http://localhost:1234/{path.relative_to(SUITE / 'remotes')}": json.loads(
        path.read_text(encoding="utf-8")
    )
    for path in sorted((SUITE / "remotes").rglob("*.json"))
}
#: Groups that are compiled and judged otherwise than the suite does, and why.
_REASONS = {
    (
        "optional/float-overflow",
        "all integers are multiples of 0.5, if overflow is handled",
    ): "integers have no exponent",
    (
        "optional/format/ecmascript-regex",
        "ECMA 262 named groups and backreferences are valid",
    ): "format regex: no back-references",
    ("optional/format/hostname", "validation of A-label (punycode) host names"): "A-labels are left out",
    ("optional/format/idn-hostname", "validation of internationalized host names"): "A-labels are left out",
}
EXCEPTIONS: dict[tuple[str, str, str], str] = {
    (d, *which): why for d in DRAFTS for which, why in _REASONS.items()
}


@functools.cache
def verdicts(draft: str, name: str) -> list[tuple[str, str, str]]:
    """Description, verdict and what is wrong, of every group of a file."""
    asserts = "format/" in name or name.endswith(("format-assertion", "optional/content"))
    options = {"registry": REMOTES} | ({} if asserts else {"formats": "annotate"})
    out = []
    for group in json.loads((SUITE / draft / f"{name}.json").read_text(encoding="utf-8")):
        schema = group["schema"]
        if isinstance(schema, dict) and "$schema" not in schema:
            schema = {"$schema": DRAFTS[draft], **schema}
        out.append((group["description"], *judge(schema, group["tests"], **options)))
    return out


@pytest.mark.parametrize(("draft", "name"), FILES, ids=lambda value: value)
def test_no_group_is_judged_wrongly(draft, name):
    wrong = [
        f"{description}: {verdict} ({said})"
        for description, verdict, said in verdicts(draft, name)
        if verdict not in ("exact", "refused") and (draft, name, description) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("draft", DRAFTS)
def test_most_groups_are_exact(draft):
    found = collections.Counter(
        verdict for d, name in FILES if d == draft for _, verdict, _ in verdicts(draft, name)
    )
    assert found["exact"] >= 0.8 * found.total(), found


def test_exceptions_are_still_needed():
    for draft, name, description in EXCEPTIONS:
        found = {group: verdict for group, verdict, _ in verdicts(draft, name)}
        assert found[description] not in ("exact", "refused"), (draft, name, description)
