"""The commands demo, calibrate and bench, called as a user calls them, on tiny models and shapes."""

import json
from functools import partial

import pytest
import torch
from tiny_models import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tokops.bench import attention
from tokops.cli import build
from tokops.commands import calibrate
from tokops.demo import plan as plans
from tokops.hf import model as real
from tokops.hf.families import shape_of
from tokops.methods import TidalDecode, _calibration

SMALL = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
PLAN = plans.Plan(
    prompt=40,
    stretch=6,
    chunk=3,
    greedy=4,
    budgets=(4,),
    batch=2,
    batch_budgets=(4,),
    rounds=1,
    least=1,
    seconds=0.0,
)


def invoke(*arguments):
    return CliRunner().invoke(build(), [str(x) for x in arguments])


def tiny(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).to(dtype).eval()


@pytest.fixture
def saved(tmp_path):
    """A folder that from_pretrained reads."""
    tiny().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CALIBRATE = ("--tokens", 48, "--budget", 8, "--prompts", 2, "--steps", 2, "--candidates", 2)


def test_calibrate_then_demo(saved, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged, that a single man in want of a wife. " * 2)
    found = invoke("calibrate", saved, "--text", text, *CALIBRATE)
    assert found.exit_code == 0, found.output
    (written,) = (tmp_path / "cache" / "tokops" / "calibration").glob("*.json")
    (record,) = json.loads(written.read_text()).values()
    assert record["select_layer"] == 2
    assert record["reselect_layers"][0] in (3, 4, 5)
    assert f"layer {record['reselect_layers'][0]} of this model" in " ".join(found.output.split())

    monkeypatch.setattr(plans, "QUICK", PLAN)
    monkeypatch.setattr(real, "load_smollm2", lambda dtype: (tiny(dtype), byte_tokenizer()))
    found = invoke("demo", "--quick", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "TidalDecode 4" in found.output
    assert "is bound by the weights" in found.output
    numbers = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert {row["dtype"] for row in numbers["rows"]} == {"fp32", "bf16"}
    assert numbers["steps_compared"] == 4
    assert (tmp_path / "out" / "demo.png").exists()


def test_demo_without_the_model_says_why(tmp_path, monkeypatch):
    def fail(dtype):
        raise real.ModelDownloadError("could not download it: no network")

    monkeypatch.setattr(real, "load_smollm2", fail)
    found = invoke("demo", "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "no network" in found.output
    assert "Traceback" not in found.output


def test_calibration_goes_where_it_is_told(saved, tmp_path):
    found = invoke("calibrate", saved, *CALIBRATE, "--metric", "overlap", "--out", tmp_path / "here")
    assert found.exit_code == 0, found.output
    (written,) = (tmp_path / "here").glob("*.json")
    (record,) = json.loads(written.read_text()).values()
    assert record["metric"] == "overlap"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{saved}/..",), "cannot load"),
        (("{saved}", "--metric", "taste"), "mass or overlap"),
        (("{saved}", "--dtype", "int3"), "fp32, bf16, fp16"),
        (("{saved}", "--tokens", "100", "--budget", "98", "--steps", "2"), "more than --budget and --steps"),
        (("{saved}", "--text", "{saved}/config.json", "--tokens", "5000"), "a prompt needs 5000"),
    ],
)
def test_calibrate_refuses(saved, arguments, words):
    found = invoke("calibrate", *(x.replace("{saved}", str(saved)) for x in arguments))
    assert found.exit_code == 2
    assert words in " ".join(found.output.replace("│", " ").split())


def test_prompts_are_spread_over_the_text():
    parts = calibrate.cut(torch.arange(100), 4, 10)
    assert [int(part[0, 0]) for part in parts] == [0, 30, 60, 90]
    assert [int(part[0, -1]) for part in parts] == [9, 39, 69, 99]
    assert [p.tolist() for p in calibrate.cut(torch.arange(10), 3, 10)] == [[list(range(10))]]


def small_cases(device="cpu", quick=False):
    """One case of every kind."""
    fp32, bf16 = torch.float32, torch.bfloat16
    floor, dense = attention.Bar("floor", 0.0), attention.Bar("our dense", 1e9)
    yield attention.Case(
        "dense",
        (floor, attention.Bar("fastest torch", 0.0)),
        partial(attention.dense, 2, 8, 2, 64, 256, bf16, device),
    )
    yield attention.Case("ragged", (floor,), partial(attention.ragged, 4, 6, 2, 64, 256, 16, fp32, device))
    yield attention.Case("selected", (dense,), partial(attention.selected, 8, 2, 64, 256, 16, bf16, device))
    yield attention.Case(
        "scores none", (dense,), partial(attention.scores, 8, 2, 64, 256, "none", fp32, device)
    )
    yield attention.Case(
        "scores max", (dense,), partial(attention.scores, 8, 2, 64, 256, "max", fp32, device)
    )
    yield attention.Case("topk", (floor,), partial(attention.topk, 4, 256, 16, device))


def test_bench_checks_times_and_draws_every_kind_of_case(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "cases", small_cases)
    found = invoke("bench", "attention", "--quick", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    rows = {row["label"]: row for row in json.loads((tmp_path / "attention.json").read_text())["rows"]}
    assert list(rows) == [case.label for case in small_cases()]
    assert rows["dense"]["read_bytes"] == 2 * 2 * 2 * 256 * 64 * 2
    assert rows["selected"]["read_bytes"] == 2 * 2 * 16 * 64 * 2
    assert rows["ragged"]["read_bytes"] == 2 * 2 * (1 + 86 + 171 + 256) * 64 * 4
    assert [v["met"] for v in rows["dense"]["verdicts"]] == [True, True]
    assert rows["selected"]["verdicts"][0]["met"] is False
    for row in rows.values():
        assert row["of_floor"] == pytest.approx(row["floor_seconds"] / row["seconds"])


def test_bench_refuses_to_time_a_wrong_result(monkeypatch):
    from tokops.bench import run

    case = next(small_cases())
    work = case.build()
    wrong = attention.Workload(
        lambda: (work.ours()[0] + 0.1, None),
        work.peers,
        work.reads,
        lambda: attention.agree(work.ours()[0] + 0.1, work.peers["bmm"]()),
    )
    monkeypatch.setattr(run, "interleaved", lambda *args, **kwargs: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match="not close"):
        run.measure(attention.Case("wrong", (), lambda: wrong))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "tpu"), "cpu or cuda"),
        (("--only", "nothing like it"), "no case contains"),
        pytest.param(
            ("--device", "cuda"),
            "sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bench_refuses(arguments, words):
    found = invoke("bench", "attention", *arguments)
    assert found.exit_code == 2
    assert words in " ".join(found.output.replace("│", " ").split())


def test_the_layer_of_the_demo_model_is_shipped():
    """What `tokops calibrate smollm2 --prompts 16 --candidates 5` found; it beats its neighbours."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=9.999999747378752e-06,  # 1e-5 rounded to float32, as the model file has it
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
    )
    shape = shape_of(config)
    layer = TidalDecode().resolve(shape).reselect_layer
    record = _calibration.load(shape)
    assert record["reselect_layers"] == [layer]
    assert record["recall"][str(layer)] > max(record["recall"][str(layer + step)] for step in (-1, 1))
    assert record["kl"][str(layer)] == min(record["kl"].values())
