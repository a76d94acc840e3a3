"""The demo of constrained texts on a tiny random model: its rows, what is counted, its command."""

import json
import math

import pytest
import torch
from tiny_models import build, byte_tokenizer
from typer.testing import CliRunner

from tokops.cli import build as program
from tokops.demo import constrain
from tokops.grammar import Vocabulary, compile_json_schema
from tokops.hf import model as real

PLAN = constrain.Plan(texts=4, batch=4, new=60)


def tokenizer():
    """Bytes, and an end token."""
    found = byte_tokenizer()
    found.add_special_tokens({"eos_token": "<end>"})
    return found


@pytest.fixture(scope="module")
def model():
    return build("llama", vocab_size=300, max_position_embeddings=512)


@pytest.fixture(scope="module")
def result(model):
    return constrain.run(model, tokenizer(), PLAN, lambda name, total: lambda done: None)


def test_rows(result):
    rows = {row.way: row for row in result.rows}
    assert list(rows) == [
        "no constraint", "GrammarProcessor", "AWRS, asking", "AWRS, masks", "SMC, 4 particles", "ASAp"
    ]  # fmt: skip
    assert rows["no constraint"].valid == 0  # a random model writes no JSON
    for row in rows.values():
        assert row.texts == 4
        assert 0 <= row.valid <= 1
        assert row.tokens_per_second > 0
        assert (row.log_probability is None) == (row.valid == 0)
    assert rows["AWRS, asking"].checks > max(1, rows["AWRS, masks"].checks)
    assert len(result.log_z) == 4
    assert all(math.isfinite(z) or z == -math.inf for z in result.log_z)


def test_log_probability_is_the_models(model):
    prompt, text = torch.tensor([[5, 6, 7]]), [8, 9]
    with torch.no_grad():
        logp = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].double().log_softmax(-1)
    want = float(logp[2, 8] + logp[3, 9])
    assert constrain._log_probability(model, prompt, text) == pytest.approx(want, rel=1e-5)


def test_a_text_is_valid_once_it_has_ended(model):
    words = tokenizer()
    vocabulary = Vocabulary.from_transformers(words, width=300)
    grammar = compile_json_schema(constrain.SCHEMA, vocabulary, whitespace="space")
    text = words('{"name": "a", "age": 3, "city": "b"}', add_special_tokens=False).input_ids
    assert not constrain._valid(grammar, text)
    assert constrain._valid(grammar, [*text, min(vocabulary.eos_ids)])
    assert not constrain._valid(grammar, [*text[:-1], min(vocabulary.eos_ids)])


def test_command(model, monkeypatch, tmp_path):
    monkeypatch.setattr(real, "load_smollm2", lambda dtype: (model, tokenizer()))
    monkeypatch.setattr(constrain, "QUICK", PLAN)
    found = CliRunner().invoke(program(), ["demo", "--constrain", "--quick", "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    written = json.loads((tmp_path / "constrain.json").read_text())
    assert {row["way"] for row in written["rows"]} >= {"ASAp", "GrammarProcessor"}
    clash = CliRunner().invoke(program(), ["demo", "--constrain", "--compose"])
    assert clash.exit_code == 2
