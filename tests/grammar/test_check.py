"""`tokops grammar check`: what it says of schemas and instances."""

import json

import pytest

pytest.importorskip("typer", reason="the extra `hf` is not installed")
from typer.testing import CliRunner

from tokops import cli
from tokops.grammar import checking
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
    if not isinstance(schema, bytes):
        schema = (schema if isinstance(schema, str) else json.dumps(schema)).encode()
    (tmp_path / "schema.json").write_bytes(schema)
    arguments = ["grammar", "check", str(tmp_path / "schema.json")]
    if instance is not None:
        (tmp_path / "instance.json").write_bytes(instance.encode())
        arguments.append(str(tmp_path / "instance.json"))
    result = CliRunner().invoke(cli.build(), [*arguments, *options], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
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

    assert "is nested too deep" in run(tmp_path, "[" * 100_000 + "]" * 100_000, code=1)
    assert "is not UTF-8: " in run(tmp_path, '{"title": "\u00e9"}'.encode("latin-1"), code=1)


def test_a_schema_of_which_no_text_is_found(tmp_path, monkeypatch):
    impossible = {"type": "array", "uniqueItems": True, "items": {"const": True}, "minItems": 2}
    assert "no value satisfies the schema" in run(tmp_path, impossible, None, code=1)
    assert run(tmp_path, {"anyOf": [impossible, {"const": "a"}]}).count('sample: "a"') == 3

    def nowhere(*args, **options):
        raise checking.DeadEnd("nothing may follow '['")

    monkeypatch.setattr(checking, "sample", nowhere)
    said = run(tmp_path, {"type": "array"}, None, code=1)
    assert "compiles, but no text was found that it allows: nothing may follow '['" in said


@pytest.mark.parametrize(
    ("instance", "options", "said"),
    [
        (
            '{\r\n"name": "\\" \\\\"\r\n}',
            (),
            "at fault; carriage returns are not allowed, write line ends as \\n\n",
        ),
        (
            '{"name":%s"a b"}' % (" " * 70),
            (),
            "at fault; --whitespace any --max-whitespace 70 allows what is there",
        ),
        ('{"name": "a"}', ("--whitespace", "none"), "--whitespace any --max-whitespace 64 allows"),
        ('{"name":\n"a"}', ("--whitespace", "space"), "--whitespace any --max-whitespace 64 allows"),
        ('{"name":  "a"}', ("--max-whitespace", "1"), "--whitespace any --max-whitespace 2 allows"),
    ],
)
def test_white_space_that_is_at_fault(tmp_path, instance, options, said):
    assert said in run(tmp_path, SCHEMA, instance, "--samples", "0", *options, code=1)


@pytest.mark.parametrize(
    "instance", ['{\r\n"name": 1}', '{"name": 1\r\n1}', '{\r\n"name": "a"', "[" * 100_000]
)
def test_white_space_that_is_not_alone_at_fault(tmp_path, instance):
    assert "white space" not in run(tmp_path, SCHEMA, instance, "--samples", "0", code=1)


def test_options_of_white_space(tmp_path):
    for options in (("--max-whitespace", "70"), ("--whitespace", "any", "--max-whitespace", "70")):
        assert "is allowed" in run(tmp_path, SCHEMA, '{"name":%s"a"}' % (" " * 70), *options)
    assert "is allowed" in run(tmp_path, SCHEMA, '{"name":"a"}', "--whitespace", "none")


def test_schemas_that_references_lead_to(tmp_path):
    documents = tmp_path / "documents"
    (documents / "more").mkdir(parents=True)
    one, other, bare = documents / "one.json", documents / "more" / "other.json", documents / "bare.json"
    one.write_text(json.dumps({"$id": "http://example.com/one", "$ref": "other"}))
    other.write_text(json.dumps({"$id": "http://example.com/other#", "const": 7}))
    bare.write_text("true")
    schema = {"$ref": "http://example.com/one"}
    assert "there is no document" in run(tmp_path, schema, code=1)
    assert "sample: 7" in run(tmp_path, schema, None, "--registry", str(documents))
    assert "sample: 7" in run(tmp_path, schema, None, "--registry", str(one), "--registry", str(other))
    assert "the schema has no $id" in run(tmp_path, schema, None, "--registry", str(bare), code=1)
    bare.write_text("{")
    assert "bare.json is not JSON" in run(tmp_path, schema, None, "--registry", str(documents), code=1)


def test_options_are_checked(tmp_path):
    run(tmp_path, SCHEMA, None, "--formats", "maybe", code=2)
    run(tmp_path, SCHEMA, None, "--whitespace", "compact", code=2)
    run(tmp_path, SCHEMA, None, "--max-whitespace", "60001", code=2)


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
