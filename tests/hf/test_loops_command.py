"""`tokops loops`: what it measures, on a tiny model; that loops of ours give the tokens of the loops beside them."""

import json

import pytest
import torch
from tiny_models import build, byte_tokenizer
from typer.testing import CliRunner

from tokops import cli
from tokops.demo import loops
from tokops.hf import model as models

TINY = loops.Plan(questions=2, new=12, requests=5, slots=2, prompts=(3, 9), lengths=(2, 9), rounds=1)


@pytest.fixture(scope="module")
def small():
    return build("llama", vocab_size=256, num_hidden_layers=2), byte_tokenizer()


def test_every_way_is_measured_and_loops_agree(small):
    ticks = []
    text = torch.randint(3, 250, (200,), generator=torch.Generator().manual_seed(0))
    rows, said = loops.run(*small, text, TINY, lambda name, total: lambda done: ticks.append((name, total)))
    by = {(row.loop, row.way): row for row in rows}
    assert len(ticks) == len(rows) == len(by) == 10
    assert (
        "2 of 2 answers are the same token by token as trial after trial, 2 of 2 in a batch as alone"
        in said[0]
    )
    assert "5 of 5 answers are the same token by token as one by one" in said[1]
    cntp = {way: row for (loop, way), row in by.items() if loop == "CNTP"}
    assert {row.tokens for row in cntp.values()} == {24}
    assert cntp["CNTP"].forwards < cntp["trial after trial, cache copied"].forwards / 2
    assert cntp["CNTP(n_max=1)"].read == cntp["plain sampling, Dense"].read
    flights = [row for (loop, _), row in by.items() if loop == "in-flight"]
    assert len({row.tokens for row in flights}) == 1
    alone, padded, inflight = flights
    assert inflight.read == alone.read < padded.read
    assert inflight.forwards < alone.forwards
    assert len(loops.table(rows).rows) == len(rows)


def test_the_command_prints_and_writes_what_it_found(small, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_smollm2", lambda dtype: small)
    monkeypatch.setattr(loops, "QUICK", TINY)
    result = CliRunner().invoke(cli.build(), ["loops", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "tokens read" in result.output
    found = json.loads((tmp_path / "loops.json").read_text())
    assert {row["loop"] for row in found["rows"]} == {"CNTP", "in-flight", "SpeculativeThinking"}
    assert found["plan"]["slots"] == 2


def test_without_the_model_the_command_says_what_to_do(monkeypatch, tmp_path):
    def missing(dtype):
        raise models.ModelDownloadError("no index")

    monkeypatch.setattr(models, "load_smollm2", missing)
    result = CliRunner().invoke(cli.build(), ["loops", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "no index" in result.output
