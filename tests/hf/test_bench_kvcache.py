"""The benchmarks of packed caches on tiny shapes: every kind of case, the opponents, the verdict."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from tiny_models import build, byte_tokenizer
from typer.testing import CliRunner

from tokops.bench import kvcache, opponent_caches
from tokops.bench.attention import Bar, Case
from tokops.cli import build as program
from tokops.hf import model as real
from tokops.hf.quality import Quality

SIZES = {
    "vocab_size": 300,
    "head_dim": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
PLAN = opponent_caches.Plan(prompt=128, stretch=32, chunk=16, rounds=2)


def invoke(*arguments):
    return CliRunner().invoke(program(), [str(x) for x in arguments], env={"COLUMNS": "100"})


def small_cases(device="cpu", quick=False):
    """One case of every kind."""
    yield Case(
        "int8", (Bar("our bf16", 0.0),), partial(kvcache.packed, 1, 9, 3, 64, 256, "int8", False, device)
    )
    yield Case(
        "int4", (Bar("our int8", 1e9),), partial(kvcache.packed, 2, 8, 2, 128, 192, "int4", True, device)
    )
    yield Case("fp8", (), partial(kvcache.packed, 1, 4, 2, 64, 192, "fp8_e4m3", False, device))
    yield Case("selected", (), partial(kvcache.selected, 8, 2, 64, 256, 32, "int4", device))
    yield Case("append 1", (), partial(kvcache.append, 2, 64, 1, "int4", device))
    yield Case("append 128", (), partial(kvcache.append, 2, 64, 128, "int8", device))


def test_every_kind_of_case_is_checked_timed_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(kvcache, "cases", small_cases)
    found = invoke("bench", "kvcache", "--quick", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    rows = {row["label"]: row for row in json.loads((tmp_path / "kvcache.json").read_text())["rows"]}
    assert list(rows) == [case.label for case in small_cases()]
    # Codes of keys and values, and a scale and a zero of 2 bytes per token, head and group of 64.
    assert rows["int8"]["read_bytes"] == 2 * 3 * 256 * (64 + 4)
    assert rows["int4"]["read_bytes"] == 2 * 2 * 2 * 192 * (64 + 8)
    assert rows["fp8"]["read_bytes"] == 2 * 2 * 192 * (64 + 4)
    assert rows["selected"]["read_bytes"] == 2 * 2 * 32 * (32 + 4)
    assert rows["append 1"]["read_bytes"] == 2 * 2 * 64 * 2
    assert set(rows["int4"]["peers"]) == {"our bf16", "our int8", "our exact query"}
    assert set(rows["selected"]["peers"]) == {"our dense int4", "dequantise, then select"}
    assert [rows[x]["verdicts"][0]["met"] for x in ("int8", "int4")] == [True, False]
    assert (tmp_path / "kvcache.png").stat().st_size > 10_000


def off(op):
    """The op with a small error in what it returns or, where it returns nothing, in the codes of the last page."""

    def wrong(*args, **kwargs):
        result = op(*args, **kwargs)
        if result is None:
            args[0][-1, 0, -1, 0] ^= 2
            return None
        return (result[0] + 0.05, *result[1:])

    return wrong


@pytest.mark.parametrize(
    ("op", "build_case"),
    [
        ("packed_decode", partial(kvcache.packed, 1, 4, 2, 64, 128, "int8", False, "cpu")),
        ("packed_decode", partial(kvcache.packed, 1, 4, 2, 64, 128, "int8", True, "cpu")),
        ("packed_decode", partial(kvcache.selected, 4, 2, 64, 128, 16, "int4", "cpu")),
        ("kv_append", partial(kvcache.append, 2, 64, 1, "int8", "cpu")),
        ("kv_append", partial(kvcache.append, 2, 64, 128, "int4", "cpu")),
    ],
)
def test_a_wrong_result_is_not_timed(op, build_case, monkeypatch):
    build_case().check()
    monkeypatch.setattr(kvcache, op, off(getattr(kvcache, op)))
    with pytest.raises(AssertionError):
        build_case().check()


def test_the_cases_name_the_acceptance_table():
    labels = [case.label for case in kvcache.cases()]
    bars = {case.label: {bar.against: bar.least for bar in case.bars} for case in kvcache.cases()}
    assert bars["int8 9/3x64 L8128"] == {"our bf16": 1.3}
    assert bars["int8 32/8x128 L8128"] == {"our bf16": 1.5}
    assert bars["int4 32/8x128 L8128"] == {"our int8": 1.1}
    assert bars["int8 9/3x64 L8128 int8 query"] == {"our bf16": 1.4}
    assert bars["int8 32/8x128 L8128 int8 query"] == {"our bf16": 1.7}
    assert bars["int4 9/3x64 L8128 int8 query"] == {"our int8": 1.25}
    assert bars["int4 selected 1024 of 16384"] == {"our dense int4": 6.0}
    assert sum(label.startswith("kv_append") for label in labels) == 4
    assert {case.label for case in kvcache.cases(quick=True)} < set(labels)


@pytest.fixture(scope="module")
def model():
    return build("llama", **SIZES)


@pytest.fixture
def ids():
    return torch.randint(3, 97, (200,), generator=torch.Generator().manual_seed(5))


def no_stage(name, total):
    return lambda done: None


def test_what_is_not_installed_is_named_and_the_rest_runs(model, ids, monkeypatch):
    monkeypatch.setattr(opponent_caches, "BACKENDS", {"quanto": ("no.such", {}), "hqq": ("nor_this", {})})
    rows = {row.label: row for row in opponent_caches.measure(model, ids, PLAN, no_stage)}
    assert list(rows) == [
        "Dense", opponent_caches.OURS, "QuantizedKV(bits=4)", "QuantizedKV(bits=8)", "stock DynamicCache",
        "transformers QuantizedCache, quanto 4 bit", "transformers QuantizedCache, hqq 4 bit",
    ]  # fmt: skip
    assert rows["transformers QuantizedCache, quanto 4 bit"].missing == "no.such is not installed"
    assert rows["stock DynamicCache"].quality.kl < 1e-6
    assert rows["stock DynamicCache"].quality.top1 == 1.0
    assert rows["QuantizedKV(bits=8)"].quality.kl < rows["QuantizedKV(bits=4)"].quality.kl
    assert rows[opponent_caches.OURS].ratio == 1.0
    assert "packages it needs are not installed" in opponent_caches.verdict(list(rows.values()))


@pytest.mark.parametrize("backend", list(opponent_caches.BACKENDS))
def test_their_caches_run(backend, model, ids):
    module = opponent_caches.BACKENDS[backend][0]
    if not opponent_caches._installed(module):
        pytest.skip(f"{module} is not installed")
    rows = {row.label: row for row in opponent_caches.measure(model, ids, PLAN, no_stage)}
    assert rows[opponent_caches._label(backend)].quality.kl > 0


def test_a_text_that_is_too_short_is_refused(model, ids):
    with pytest.raises(ValueError, match="the text has 100 tokens, 161 are needed"):
        opponent_caches.measure(model, ids[:100], PLAN, no_stage)


def rows_with(ratio, kl, ppl):
    ours = opponent_caches.Row(opponent_caches.OURS, None, Quality(0.01, 0.9, 10.0, 5), 9.0, 1.0)
    slow = opponent_caches.Row("transformers QuantizedCache, a", None, Quality(kl, 0.9, ppl, 5), 1.0, 9.0)
    return [ours, slow, dataclasses.replace(slow, label="transformers QuantizedCache, b", ratio=ratio)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (rows_with(3.5, 0.02, 10.5), ("3.50 times", "bar 3, met", "no worse in perplexity")),
        (rows_with(2.5, 0.02, 10.5), ("2.50 times", "bar 3, MISSED", "no worse in perplexity")),
        (rows_with(3.5, 0.005, 10.5), ("met", "NOT as good in perplexity or KL")),
        (rows_with(3.5, 0.02, 9.9), ("met", "NOT as good in perplexity or KL")),
    ],
)
def test_the_verdict_looks_at_the_fastest_and_at_quality(rows, words):
    said = opponent_caches.verdict(rows)
    for word in words:
        assert word in said


def test_the_command(model, monkeypatch, tmp_path):
    monkeypatch.setattr(opponent_caches, "QUICK", PLAN)
    monkeypatch.setattr(opponent_caches, "BACKENDS", {"hqq": ("no_hqq", {})})
    monkeypatch.setattr(real, "load_smollm2", lambda dtype: (model, byte_tokenizer()))
    found = invoke("bench", "caches", "--quick", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert "left out: no_hqq is not installed" in " ".join(found.output.replace("│", " ").split())
    read = json.loads((tmp_path / "caches.json").read_text())
    assert read["plan"]["prompt"] == 128
    assert read["rows"][-1]["missing"] == "no_hqq is not installed"


def test_the_command_without_the_model_says_why(monkeypatch):
    def fail(dtype):
        raise real.ModelDownloadError("could not download it: no network")

    monkeypatch.setattr(real, "load_smollm2", fail)
    found = invoke("bench", "caches")
    assert found.exit_code == 1
    assert "no network" in found.output


def test_installed_looks_without_importing():
    assert opponent_caches._installed("json")
    assert not opponent_caches._installed("no_such_package.part")
