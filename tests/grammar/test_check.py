"""`tokops grammar check`: what it says of schemas and instances."""

import json

import pytest

pytest.importorskip("typer", reason="the extra `hf` is not installed")
from typer.testing import CliRunner

from tokops import cli
from tokops.grammar.checking import examine, json_path, key_names, sample

from .engine import accepts, byte_vocabulary
from .mask_points import OWN, schemas

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["x", "y"]}}},
    "required": ["name"],
    "additionalProperties": False,
}


def run(tmp_path, schema, instance=None, *options, code=0):
    (tmp_path / "schema.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    arguments = ["grammar", "check", str(tmp_path / "schema.json")]
    if instance is not None:
        (tmp_path / "instance.json").write_text(instance)
        arguments.append(str(tmp_path / "instance.json"))
    result = CliRunner().invoke(cli.build(), [*arguments, *options], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_good_instance(tmp_path):
    said = run(tmp_path, SCHEMA, '{"tags": ["x"], "name": "n"}\n')
    assert "schema.json compiles" in said
    assert "instance.json is allowed" in said
    assert said.count("sample: ") == 3


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        ('{"name": "n", "tags": ["x", "z"]}', 'byte 29, at $["tags"][1]: found'),
        ('{"name": "n", "other": 1}', "byte 15, at $"),
        ('{"tags": []}', "byte 11, at $"),
        ('{"name": "n"', "byte 12, at $"),
        ('{"name": 1}', 'byte 9, at $["name"]: found'),
    ],
)
def test_where_an_instance_fails(tmp_path, instance, said):
    assert said in run(tmp_path, SCHEMA, instance, "--samples", "0", code=1)


def test_what_was_expected(tmp_path):
    said = run(tmp_path, SCHEMA, '{"name": "n", "tags": ["z"]}', "--samples", "0", code=1)
    assert "'x\"'" in said
    assert "'y\"'" in said


def test_a_schema_that_does_not_compile(tmp_path):
    said = run(tmp_path, {"type": "string", "pattern": "(a)\\1"}, code=1)
    assert "does not compile: pattern at the root: " in said


def test_no_json(tmp_path):
    assert "is not JSON" in run(tmp_path, "{", code=1)


def test_options_are_checked(tmp_path):
    run(tmp_path, SCHEMA, None, "--formats", "maybe", code=2)


@pytest.mark.parametrize(
    ("name", "schema", "instances"), schemas(OWN), ids=lambda value: value if isinstance(value, str) else ""
)
def test_samples_are_allowed(name, schema, instances):
    import tokops.grammar

    grammar = tokops.grammar.compile_json_schema(schema, byte_vocabulary())
    whole = 0
    for seed in range(5):
        text = sample(grammar, seed, words=key_names(schema))
        if not text.endswith("..."):
            whole += 1
            assert accepts(grammar, text.encode())
            json.loads(text)
            assert examine(grammar, text.encode()) is None
    assert whole or name == "search"  # digits before a euro sign are not found by chance


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"", "$"),
        (b'{"a', "$"),
        (b'{"a": ', '$["a"]'),
        (b'{"a": [1, {"b\\"": 2', '$["a"][1]["b\\""]'),
        (b'{"a": [1, 2], "c": [', '$["c"][0]'),
        (b'["}", [', "$[1][0]"),
    ],
)
def test_json_path(text, path):
    assert json_path(text) == path
