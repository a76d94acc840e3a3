"""The demo's parts on a tiny random model: every row, the picture, the sentences, and what can go wrong."""

import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from tokops.demo import measure, report, run, ways
from tokops.demo.plan import FULL, QUICK, Plan, available_memory
from tokops.hf import contexts, quality
from tokops.kv.report import write_json

PLAN = Plan(
    prompt=40,
    stretch=12,
    chunk=4,
    greedy=8,
    budgets=(4, 8),
    batch=3,
    batch_budgets=(8,),
    rounds=2,
    least=1,
    seconds=0.0,
)
CONFIG = {
    "vocab_size": 97,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
RESELECT = 4


def no_stage(name, total):
    return lambda done: None


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    low = LlamaForCausalLM(LlamaConfig(**CONFIG))
    low.load_state_dict(model.state_dict())
    return {"fp32": model, "bf16": low.to(torch.bfloat16).eval()}


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 97, (60,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def context(models, ids):
    return contexts.prefill(models["fp32"], ids[None, :40])


@pytest.fixture(scope="module")
def result(models, ids):
    return run.run(models, ids, PLAN, no_stage, RESELECT)


def test_every_way_stands_in_every_setting(result):
    ours = [ways.DENSE, ways.tidal(8)]
    want = [ways.STOCK, ways.STATIC, ways.PACKED, ways.DENSE, ways.tidal(4), ways.tidal(8)]
    for dtype in ("fp32", "bf16"):
        found = {}
        for row in result.rows:
            if row.dtype == dtype:
                found.setdefault(row.setting, []).append(row.way)
        assert found == {"batch 1": want, "batch 3, copied": want[:4] + ours[1:], "batch 3, shared": ours}


def test_rows_hold_rates_ratios_and_bytes(result):
    per_token = 2 * 6 * 2 * 16 * 4
    for row in result.rows:
        assert row.tokens_per_second > 0
        if row.way == ways.STOCK:
            assert row.ratio == 1.0
        if row.dtype == "fp32" and row.way in (ways.STOCK, ways.PACKED):
            assert row.kv_bytes_read == 41 * per_token
        if row.dtype == "fp32" and row.way == ways.STATIC:
            assert row.kv_bytes_read == PLAN.room * per_token
    dense, tidal = (
        next(r for r in result.rows if (r.dtype, r.setting, r.way) == ("fp32", "batch 1", way))
        for way in (ways.DENSE, ways.tidal(4))
    )
    assert dense.kv_bytes_read == pytest.approx(41 * per_token)
    assert tidal.kv_bytes_read == pytest.approx((4 * 41 + 2 * 4) / 6 * per_token)


def test_dense_decodes_what_stock_does(result):
    assert result.steps_compared == 8
    assert result.difference is None or result.difference.gap < 1e-4
    rows = {row.way: row for row in result.rows if (row.dtype, row.setting) == ("fp32", "batch 1")}
    assert rows[ways.DENSE].quality.kl < 1e-8
    assert rows[ways.DENSE].quality.top1 == 1.0
    assert rows[ways.tidal(4)].quality.kl > 1e-4
    assert rows[ways.PACKED].quality is None


def test_dense_at_batch_3_decodes_what_stock_does(models, context):
    first = measure.first_tokens(context, 3)
    assert first.shape == (3, 1)
    assert len(set(first.flatten().tolist())) == 3
    stock, dense = ways.stock_ways(models["fp32"])[0], ways.our_ways(models["fp32"], ())[0]
    shared = dense.start(context, 60)
    shared.batch_repeat_interleave(3)
    steppers = [
        measure.Stepper(way, cache, first)
        for way, cache in (
            (stock, stock.start(context, 60, 3)),
            (dense, dense.start(context, 60, 3)),
            (dense, shared),
        )
    ]
    for _ in range(5):
        for stepper in steppers:
            stepper()
        assert steppers[0].last.tolist() == steppers[1].last.tolist() == steppers[2].last.tolist()


def test_a_step_on_a_shared_cache_is_taken_back(models, context):
    dense, tidal = ways.our_ways(models["fp32"], (4,), RESELECT)
    cache, own = dense.start(context, 60), tidal.start(context, 60)
    first = measure.first_tokens(context, 1)
    measure.SharedStepper(dense, cache, first)()
    assert cache.get_seq_length() == 40
    step = measure.SharedStepper(tidal, cache, first)
    step()
    alone = measure.Stepper(tidal, own, first)
    alone()
    assert step.last.tolist() == alone.last.tolist()
    assert tidal.run.report().tokens_read_per_step == 4 * 41 + 2 * 4
    assert dense.run.report().tokens_read_per_step == 6 * 41


@pytest.mark.parametrize("chunk", [4, 12])
def test_several_tokens_in_a_forward_predict_what_one_by_one_does(models, ids, context, chunk):
    for way in ways.our_ways(models["fp32"], (4, 8), RESELECT):
        one, several = (
            quality.teacher_forced(way.model, way.start(context, 60), ids[40:52], size) for size in (1, chunk)
        )
        torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


def test_the_table_the_sentences_and_the_files(result, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(result))
    text = console.export_text()
    assert "bf16, batch 3, shared" in text
    assert "…" not in text
    assert text.count("TidalDecode 8") == 6
    said = " ".join(report.sentences(result))
    assert "Batch 1 in fp32 is bound by the weights" in said
    assert "8 steps" in said
    report.picture(result, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    write_json(result, {"device": "test"}, tmp_path / "demo.json")
    read = json.loads((tmp_path / "demo.json").read_text())
    assert len(read["rows"]) == len(result.rows)
    assert read["plan"]["budgets"] == [4, 8]


def test_a_difference_is_told_with_its_gap(result):
    other = dataclasses.replace(result, difference=quality.Difference(5, 11, 12, 3e-5))
    said = report.sentences(other)[0]
    assert "step 5" in said
    assert "3.0e-05" in said


def test_what_does_not_fit_into_memory_is_left_out_and_said(models, ids, monkeypatch):
    monkeypatch.setattr(run, "available_memory", lambda: 1000)
    small = dataclasses.replace(PLAN, budgets=(4,))
    found = run.run({"fp32": models["fp32"]}, ids, small, no_stage, RESELECT)
    assert {row.setting for row in found.rows} == {"batch 1"}
    assert "fp32, batch 3, copied, was left out" in report.sentences(found)[-1]


def test_a_document_that_is_too_short_is_refused(models, ids):
    with pytest.raises(ValueError, match="has 50 tokens, the plan needs 53"):
        run.run(models, ids[:50], PLAN, no_stage, RESELECT)


def test_the_plans_stay_inside_the_model():
    for plan in (FULL, QUICK):
        assert plan.room <= 8192
        assert max(plan.budgets) < plan.prompt
        assert set(plan.batch_budgets) <= set(plan.budgets)
    memory = available_memory()
    assert memory is None or memory > 0
