"""`tokops kv` and `tokops demo --compose`, called as a user calls them, on tiny models."""

import json

import pytest
import torch

pytest.importorskip("typer", reason="the extra `hf` is not installed")
from tiny_models import build, byte_tokenizer
from typer.testing import CliRunner

from tokops.cli import build as program
from tokops.demo import compose
from tokops.hf import model as real
from tokops.kv import plan as plans

PLAN = plans.Plan(tokens=420, stretch=128, chunk=32, needles=2, needle_tokens=600, rounds=2)
TEXT = " ".join(f"Sentence {i} speaks of the number {i * i}." for i in range(60))
SIZES = {
    "vocab_size": 300,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "max_position_embeddings": 1024,
}


def invoke(*arguments):
    return CliRunner().invoke(program(), [str(x) for x in arguments], env={"COLUMNS": "100"})


def said(found):
    return " ".join(found.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that from_pretrained reads, and a text beside it."""
    folder = tmp_path_factory.mktemp("saved")
    build("llama", **SIZES).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def command(saved, monkeypatch, tmp_path):
    monkeypatch.setattr(plans, "FULL", PLAN)
    return lambda *more: invoke(
        "kv", saved / "model", "--text", saved / "text.txt", "--out", tmp_path / "out", *more
    )


def test_kv_measures_a_list_and_writes_it(command, tmp_path):
    found = command("--stores", "QuantizedKV(bits=8), QuantizedKV(bits=4), Eviction(ratio=0.5)")
    assert found.exit_code == 0, found.output
    assert "Prediction: KL =" in said(found)
    assert "decode steps, in turn" in found.output
    read = json.loads((tmp_path / "out" / "kv.json").read_text())
    labels = [row["label"] for row in read["rows"]]
    assert labels == ["Dense", "QuantizedKV(bits=8)", "QuantizedKV(bits=4)", "Eviction(ratio=0.5)"]
    assert read["model"] == "model"
    assert read["machine"]["threads"] == torch.get_num_threads()
    assert 0 < read["rows"][1]["quality"]["kl"] < read["rows"][2]["quality"]["kl"]
    assert (tmp_path / "out" / "kv.png").stat().st_size > 20_000


def test_kv_measures_half_precision_and_another_length(command, tmp_path):
    found = command("--stores", "QuantizedKV(bits=8)", "--dtype", "bf16", "--tokens", 700)
    assert found.exit_code == 0, found.output
    read = json.loads((tmp_path / "out" / "kv.json").read_text())
    assert read["plan"]["tokens"] == read["plan"]["needle_tokens"] == 700
    assert read["rows"][0]["bytes_per_token"] == 5 * 2 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stores", "Quantised(bits=4)"), "there is no method 'Quantised'"),
        (("--stores", "QuantizedKV(bits=7)"), "bits must be one of"),
        (("--tokens", "100"), "at least 341 tokens are needed"),
        (("--tokens", "5000"), "tokens, 5001 are needed"),
        (("--tokens", "1100"), "the model has 1024 positions, the plan needs 1164"),
        (("--dtype", "int3"), "fp32, bf16, fp16"),
    ],
)
def test_kv_refuses(command, arguments, words, tmp_path):
    found = command(*arguments)
    assert found.exit_code == 2, found.output
    assert words in said(found)
    assert not (tmp_path / "out").exists()


def test_kv_refuses_a_family_that_was_never_tested(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 300, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = invoke("kv", tmp_path, "--stores", "Dense")
    assert found.exit_code == 2
    assert "has not been tested on model family 'gpt2'" in said(found)


def test_the_demo_composes_a_selection_with_stores(monkeypatch, tmp_path):
    small = plans.Plan(tokens=420, stretch=32, chunk=8, needles=0, rounds=2)
    monkeypatch.setattr(compose, "QUICK", small)
    monkeypatch.setattr(compose, "_SELECTION", "TidalDecode(budget=64, reselect_layer=3)")
    monkeypatch.setattr(real, "load_smollm2", lambda dtype: (build("llama", **SIZES), byte_tokenizer()))
    found = invoke("demo", "--compose", "--quick", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    rows = {row["label"]: row for row in json.loads((tmp_path / "out" / "compose.json").read_text())["rows"]}
    assert all(row["refused"] is None for row in rows.values())
    stores = ["Dense", "QuantizedKV(bits=4)", "MiKV(high=8, low=4)"]
    assert list(rows) == [
        x for store in stores for x in (store, f"TidalDecode(budget=64, reselect_layer=3) + {store}")
    ]
    for store in stores:
        alone, selected = rows[store], rows[f"TidalDecode(budget=64, reselect_layer=3) + {store}"]
        assert selected["kv_bytes"] == alone["kv_bytes"]
        # Layers 2 and 3 choose and read all, as 0 and 1 do; layer 4 reads 64 tokens.
        assert selected["tokens_read"] == pytest.approx(alone["tokens_read"] * 4 / 5 + 64, rel=1e-3)
        assert selected["kv_bytes_read"] < alone["kv_bytes_read"]
    assert rows["Dense"]["quality"]["kl"] == 0 < rows["QuantizedKV(bits=4)"]["quality"]["kl"]
    assert "tokens read" in found.output
