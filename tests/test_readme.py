"""The README's Python runs as it stands, and its tables name what there is."""

import ast
import pathlib
import re

import pytest
import torch

import tokops

README = pathlib.Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_op_example():
    names = {}
    exec(compile(BLOCKS[0], str(README), "exec"), names)
    assert names["out"].shape == (1, 1, 8, 64)
    assert names["selected"].shape == (1, 2, 128)
    assert names["counts"].tolist() == [[128, 128]]
    assert torch.isfinite(names["out"]).all()


@pytest.mark.model
def test_model_example(capsys):
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    exec(compile(BLOCKS[1], str(README), "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("The capital of France is Paris.")
    assert "TidalDecode" in said


@pytest.mark.model
def test_grammar_example(capsys):
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    exec(compile(BLOCKS[2], str(README), "exec"), {})
    said = ast.literal_eval(capsys.readouterr().out)
    assert said["city"] == "Paris"
    assert said["country"] == "France"


@pytest.mark.model
def test_draft_example(capsys):
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    exec(compile(BLOCKS[3], str(README), "exec"), {})
    assert "tokens per call" in capsys.readouterr().out


def rows(title: str) -> set[str]:
    """The names in code quotes in the first column of the table with that title."""
    table = TEXT[TEXT.index(f"| {title}") :].split("\n\n")[0].splitlines()[2:]
    return {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_tables_are_complete():
    assert rows("op in `tokops.attention`") == set(tokops.attention.__all__)
    assert rows("op in `tokops.kvcache`") == set(tokops.kvcache.__all__)
    assert rows("method") == set(tokops.methods.catalogue())


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (README.parent / target).exists(), target
