"""The whole measurement on a tiny model: every row, refusals, the table, the picture and the file."""

import dataclasses
import io
import json

import pytest
import torch
from conftest import PLAN
from rich.console import Console

import tokops
from tokops.hf.prompts import read_prompt
from tokops.hf.quality import compare, teacher_forced
from tokops.kv import needles, report, run
from tokops.kv.measure import losses
from tokops.kv.plan import FULL, LEAST_PROMPT, QUICK, Plan, Row
from tokops.kv.stores import parse
from tokops.methods import MiKV, QuantizedKV

STORES = (
    "QuantizedKV(bits=8), QuantizedKV(bits=4), QuantizedKV(bits=(8, 4)), QuantizedKV(bits=2), MiKV(high=8, low=4), "
    "Eviction(ratio=0.25), QuantizedKV(bits=4, key_geometry='channel', group=48), "
    "TidalDecode(budget=16, reselect_layer=9) + QuantizedKV(bits=4)"
)
SPOILT = "QuantizedKV(bits=4, key_geometry='channel', group=48)"
TOO_DEEP = "TidalDecode(budget=16, reselect_layer=9) + QuantizedKV(bits=4)"


@pytest.fixture(scope="module")
def result(model, tokenizer, text):
    return run.run(model, tokenizer, text, parse(STORES), PLAN, lambda name, total: lambda done: None)


@pytest.fixture(scope="module")
def rows(result):
    return {row.label: row for row in result.rows}


def test_dense_comes_first_and_agrees_with_itself(result):
    dense = result.rows[0]
    assert dense.label == "Dense"
    assert (dense.quality.kl, dense.quality.top1, dense.loss.mean, dense.ratio) == (0.0, 1.0, 0.0, 1.0)
    assert dense.kv_bytes == dense.kv_bytes_full == PLAN.tokens * 3 * 2 * 2 * 32 * 4
    assert dense.bytes_per_token == 3 * 2 * 2 * 32 * 4
    assert dense.tokens_read == pytest.approx(3 * (PLAN.tokens + 2), abs=3)


def test_numbers_are_those_of_the_method_run_by_hand(rows, model, ids):
    given, targets = ids[PLAN.prompt : PLAN.tokens], ids[PLAN.prompt + 1 : PLAN.tokens + 1]
    prompt = read_prompt(model, ids[: PLAN.prompt])
    dense = None
    for label, method in (
        ("Dense", tokops.methods.Dense()),
        ("QuantizedKV(bits=4)", QuantizedKV(bits=4)),
        ("MiKV(high=8, low=4)", MiKV(high=8, low=4)),
    ):
        with tokops.patch(model, method) as patched:
            logits = teacher_forced(model, prompt.fill(patched.new_cache()), given, PLAN.chunk)
            held = patched.report()
        dense = logits if dense is None else dense
        assert rows[label].quality == compare(dense, logits, targets)
        assert rows[label].kv_bytes == held.kv_bytes
        assert rows[label].loss.mean == pytest.approx(
            float((losses(logits, targets) - losses(dense, targets)).mean()), rel=1e-9, abs=1e-12
        )


def test_rows_are_ordered_by_what_they_lose(rows):
    kl = {label: row.quality.kl for label, row in rows.items() if row.quality is not None}
    assert kl["QuantizedKV(bits=8)"] < kl["QuantizedKV(bits=4)"] < kl["QuantizedKV(bits=2)"]
    assert rows["QuantizedKV(bits=8)"].kv_bytes < rows["Dense"].kv_bytes


def test_eviction_holds_its_share_and_has_no_speed(rows):
    row = rows["Eviction(ratio=0.25)"]
    assert row.kv_bytes / row.kv_bytes_full == pytest.approx(0.25, abs=0.02)
    assert row.kv_bytes_allocated is row.tokens_per_second is row.ratio is None


def test_a_store_that_cannot_run_says_why(rows):
    assert "layer 9 cannot select" in rows[TOO_DEEP].refused
    assert rows[TOO_DEEP].quality is None
    assert "not a multiple of the group 48" in rows[SPOILT].refused


@pytest.mark.parametrize(
    ("message", "refused"),
    [("MiKV: layers 1 and 2 are not alike", True), ("packed_decode: parts[0].k must have ...", False)],
)
def test_a_guard_that_speaks_while_reading_is_a_refusal_and_a_fault_is_not(
    message, refused, model, tokenizer, text, no_stage, monkeypatch
):
    def guard(self, q, **options):
        raise RuntimeError(message)

    layout = MiKV().new_layout(64, tokops.hf.families.shape_of(model.config))
    monkeypatch.setattr(type(layout.new_store(0)), "absorb", guard)
    small = dataclasses.replace(PLAN, needles=0)
    if refused:
        found = run.run(model, tokenizer, text, parse("MiKV"), small, no_stage)
        assert found.rows[1].refused == message
    else:
        with pytest.raises(RuntimeError, match="packed_decode"):
            run.run(model, tokenizer, text, parse("MiKV"), small, no_stage)


def test_the_table_fits_and_the_sentences_speak(result):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(result))
    shown = console.export_text()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "cannot run" in shown
    said = report.sentences(result)
    assert any(line.startswith(f"{TOO_DEEP} cannot run: TidalDecode") for line in said)
    assert any(line.startswith("Eviction is played as a selection") for line in said)
    assert any(line.startswith("Prediction: KL = ") for line in said)
    assert any(f"text of {PLAN.needle_tokens} tokens" in line for line in said)


def test_the_law_of_weights_is_told_for_the_model_whose_training_is_known(result):
    known = dataclasses.replace(result, model="SmolLM2-135M-Instruct")
    (line,) = [
        x for x in report.sentences(known) if x.startswith("Prediction for quantised weights (not caches)")
    ]
    assert "0.36 nats at 4 bits" in line


def test_picture_and_file(result, tmp_path):
    report.picture(result, tmp_path / "kv.png")
    assert (tmp_path / "kv.png").stat().st_size > 20_000
    report.write_json(result, {"device": "here"}, tmp_path / "kv.json")
    read = json.loads((tmp_path / "kv.json").read_text())
    assert set(read) == {"machine", "model", "plan", "rows", "prediction"}
    fields = {field.name for field in dataclasses.fields(Row)} | {"bytes_per_token"}
    assert all(set(row) == fields for row in read["rows"])
    assert set(read["rows"][1]["quality"]) == {"kl", "top1", "perplexity", "tokens"}
    assert set(read["rows"][1]["needle"]) == {"found", "asked", "said", "loss"}
    assert set(read["rows"][1]["loss"]) == {"mean", "stderr", "low", "high", "tokens"}
    assert read["rows"][1]["quality"]["tokens"] == PLAN.stretch
    assert read["prediction"]["fitted"] == ["QuantizedKV(bits=8)", "QuantizedKV(bits=4)"]


def row(label, size, kl):
    quality = run.compare(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
    return Row(label, tokens=1, kv_bytes=size, quality=dataclasses.replace(quality, kl=kl))


def test_the_frontier_is_what_nothing_beats():
    rows = [row("a", 10, 0.5), row("b", 20, 0.1), row("c", 20, 0.05), row("d", 30, 0.2), row("e", 40, 0.0)]
    assert [x.label for x in report.frontier(rows)] == ["a", "c", "e"]
    assert report.frontier([Row("refused", refused="no")]) == []


def test_plans_fit_the_model_and_leave_residual_windows_full():
    for plan in (FULL, QUICK):
        assert plan.room <= 8192
        assert plan.prompt >= LEAST_PROMPT
    assert FULL.resized(8064).room <= 8192
    assert FULL.resized(2048) == Plan(tokens=2048, stretch=512, needle_tokens=2048)
    with pytest.raises(needles.SizeError, match="at least 341 tokens are needed, so that residual windows"):
        FULL.resized(340)
    assert FULL.resized(341).prompt >= LEAST_PROMPT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 2500}, r"the text has \d+ tokens, 2501 are needed"),
        ({"tokens": 1030}, "the model has 1024 positions, the plan needs 1034"),
    ],
)
def test_what_is_too_long_is_refused(changes, message, model, tokenizer, text, no_stage):
    with pytest.raises(needles.SizeError, match=message):
        run.run(model, tokenizer, text, parse("Dense"), dataclasses.replace(PLAN, **changes), no_stage)
