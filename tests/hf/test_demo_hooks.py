"""The demo of constraining hooks on a tiny random model: its rows, what they measure, its command."""

import json

import pytest
import torch
from tiny_models import build, byte_tokenizer
from typer.testing import CliRunner

from tokops.cli import build as program
from tokops.demo import effects, hooks
from tokops.hf import model as real

PLAN = hooks.Plan(texts=2, prompt=16, new=6, questions=2, chat=8, rounds=1, least=1)


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
    return hooks.run(model, tokenizer(), PLAN, lambda name, total: lambda done: None)


def test_rows(result):
    rows = {row.way: row for row in result.rows}
    assert len(rows) == 11
    for row in rows.values():
        assert row.tokens_per_second > 0
    assert rows["Dense"].ratio == 1.0
    assert rows["Dense"].forwards_per_token == 1.0
    assert rows["DeAL, 1 beam"].forwards_per_token > 2
    seen = {row.way: {e.measure: e.given for e in row.effects} for row in result.rows}
    assert seen['VocabularyFilters(lipogram="e")']["letters e"] == 0
    assert seen["VocabularyFilters(shorter_than=6)"]["words of more than 5 letters"] == 0
    for scorer in ("probe", "keywords"):
        assert seen[f"StreamingMonitor, {scorer}"]["texts changed before their end"] == 0
    refusals = seen["RefusalTokens, stand-in"]
    assert refusals["decisions other than pi >= tau"] == 0


def test_counts():
    assert effects._count_e("Émile fell ẽ") == 4
    assert effects._count_long("No: longer words, and short, shorter") == 2


def test_code_begins_where_its_fence_is_whole(model):
    words = tokenizer()
    found = effects.Effects(model, words, 1, 16, 2, 1, 4)
    tokens = torch.tensor(words("ab ``c ```d", add_special_tokens=False).input_ids)
    assert found._code(tokens) == 10
    assert found._code(tokens[:9]) is None


def test_laws_along_an_answer_are_those_of_the_model(model):
    words = tokenizer()
    found = effects.Effects(model, words, 1, 16, 2, 1, 4)
    method = effects.CAAD(found._grounding(0.0), alpha=0.0)
    plain, same = found._along(method, "Why?", "So.")
    ids = words("Question: Why?\nAnswer: So.", return_tensors="pt").input_ids
    with torch.no_grad():
        laws = model(ids).logits[0].double().log_softmax(-1)
    want = laws[-5:-1].gather(1, ids[0, -4:, None])[:, 0]
    assert torch.allclose(plain[0].double(), want, atol=1e-5)
    assert torch.equal(same[0], plain[0])
    assert torch.equal(plain[1], laws[-5:-1].argmax(-1) == ids[0, -4:])


def test_command(model, monkeypatch, tmp_path):
    monkeypatch.setattr(real, "load_smollm2", lambda dtype: (model, tokenizer()))
    monkeypatch.setattr(hooks, "QUICK", PLAN)
    found = CliRunner().invoke(program(), ["demo", "--hooks", "--quick", "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    written = json.loads((tmp_path / "hooks.json").read_text())
    assert {row["way"] for row in written["rows"]} >= {"Dense", "CAAD"}
    clash = CliRunner().invoke(program(), ["demo", "--hooks", "--constrain"])
    assert clash.exit_code == 2
