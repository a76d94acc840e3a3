"""`tokops tune-tree` on tiny models: what is measured, what is kept, what is printed, what is refused."""

import json

import pytest
import torch
from tiny_models import byte_tokenizer
from typer.testing import CliRunner

from tokops.bench import tree_latency
from tokops.cli import build
from tokops.commands import tune_tree
from tokops.hf import latency, patch
from tokops.hf.families import CACHE
from tokops.speculative import LatencyTable, choose_size


def invoke(*arguments):
    return CliRunner().invoke(build(), ["tune-tree", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path, tiny):
    tiny("llama", vocab_size=300).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_measures_keeps_and_prints(saved, tmp_path, monkeypatch):
    measured = []

    def spy(*args, **kwargs):
        measured.append(measure(*args, **kwargs))
        return measured[0]

    measure = tree_latency.measure_latency
    monkeypatch.setattr(tree_latency, "measure_latency", spy)
    threads = torch.get_num_threads()
    found = invoke(
        saved, "--context", "40,16", "--nodes", "4,2", "--batch", 2, "--rounds", 2, "--threads", threads
    )
    assert found.exit_code == 0, found.output
    (table,) = measured
    assert (table.sizes, table.contexts, table.batch, table.dtype) == ((1, 2, 4), (16, 40), 2, "float32")
    assert table.model == "model"
    assert f", {threads} threads" in table.device
    model, _ = tune_tree.load(str(saved), "fp32")
    assert latency.find_latency(model, batch=2) == table
    assert latency.find_latency(model) is None
    assert str(tmp_path / "cache" / "tokops" / "latency" / f"{table.digest}.json") in found.output
    for context in table.contexts:
        chosen = choose_size(table, tune_tree.ACCEPTANCE, context=context)
        if chosen.nodes > 1:
            assert f"context {context}: n = {chosen.nodes}, D = {chosen.depth}: " in found.output
        else:
            assert f"context {context}: plain decoding (n = 1, D = 0) is fastest" in found.output


def test_prints_the_choice_for_a_given_table(saved, tmp_path, monkeypatch):
    fixed = LatencyTable((1, 2, 4, 8, 16, 32), (16,), ((0.01, 0.01, 0.01, 0.012, 0.014, 0.018),))
    monkeypatch.setattr(tree_latency, "measure_latency", lambda *args, **kwargs: fixed)
    found = invoke(saved, "--context", 16, "--draft-ms", 0.3, "--out", tmp_path / "here")
    assert "by the built-in acceptance table" in found.output
    assert "context 16: n = 16, D = 4: 3.22 tokens per step, 2.12x plain decoding" in found.output
    assert (tmp_path / "here" / ".json").exists()
    rates = tmp_path / "rates.json"
    rates.write_text("[0.1, 0.05]")
    found = invoke(saved, "--context", 16, "--draft-ms", 5, "--acceptance", rates, "--out", tmp_path / "here")
    assert str(rates) in found.output
    assert "context 16: plain decoding (n = 1, D = 0) is fastest" in found.output


def test_contexts_that_do_not_fit_are_left_out_unless_asked_for(saved, monkeypatch):
    monkeypatch.setattr(tree_latency, "interleaved", lambda calls, **_: {n: [0.001 * n] for n in calls})
    found = invoke(saved, "--nodes", 8)
    assert found.exit_code == 0, found.output
    assert "context 256:" in found.output
    assert "context 1024" not in found.output
    (written,) = (json.loads(path.read_text()) for path in saved.parent.glob("cache/tokops/latency/*.json"))
    (record,) = written.values()
    assert record["contexts"] == [256]
    assert record["seconds"] == [[0.001, 0.008]]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_forward_sees_the_same_cache(tiny, family, batch):
    """Crops take drafts back exactly, past a sliding window too; sequences have rows of their own."""
    model, ids = tiny(family), torch.arange(3, 60) % 97
    seen = []
    hook = model.register_forward_hook(lambda *args: seen.append(args[-1].logits))
    ticks = []
    table = tree_latency.measure_latency(
        model,
        ids,
        sizes=(1, 3, 9),
        contexts=(5, 66),
        batch=batch,
        rounds=3,
        warmup=1,
        tick=lambda: ticks.append(1),
    )
    hook.remove()
    assert len(ticks) == 6
    assert len(table.seconds) == 2
    text = ids.repeat(2)
    with patch(model) as run:
        for context, forwards in ((5, seen[: len(seen) // 2]), (66, seen[len(seen) // 2 :])):
            want = model(text[None, : context + 9], **{CACHE: run.new_cache()}).logits[:, context:]
            verified = forwards[1:]  # the first reads the prompt
            assert sorted({x.shape[1] for x in verified}) == [1, 3, 9]
            assert len(verified) == 3 * (3 + 1)
            for logits in verified:
                assert logits.shape[0] == batch
                rows = want[:, : logits.shape[1]].expand_as(logits)
                torch.testing.assert_close(logits, rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": (2, 4)}, "sizes must ascend from 1"),
        ({"sizes": (1, 300)}, "sizes must be at most 256, got 300"),
        ({"contexts": (0, 4)}, "contexts must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"ids": torch.zeros(0, dtype=torch.long)}, "ids must hold at least one token"),
    ],
)
def test_measuring_refuses(tiny, changes, words):
    given = {"ids": torch.arange(9), "sizes": (1, 2), "contexts": (4,)}
    with pytest.raises(ValueError, match=words):
        tree_latency.measure_latency(tiny("llama"), **{**given, **changes})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{saved}/..",), "cannot load"),
        (("{saved}", "--nodes", "1,x"), "--nodes must be numbers with commas between, got '1,x'"),
        (("{saved}", "--nodes", "0,2"), "--nodes must be 1..256, got '0,2'"),
        (("{saved}", "--nodes", "1,257"), "--nodes must be 1..256, got '1,257'"),
        (("{saved}", "--context", "0"), "--context must be 1 or more, got '0'"),
        (("{saved}", "--context", "256,400", "--nodes", "200"), "--context must be at most 312"),
        (("{saved}", "--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
        (("{saved}", "--acceptance", "{saved}/config.json"), "holds no acceptance table"),
        (("{saved}", "--dtype", "int3"), "fp32, bf16, fp16"),
    ],
)
def test_command_refuses(saved, arguments, words):
    found = invoke(*(argument.replace("{saved}", str(saved)) for argument in arguments))
    assert found.exit_code == 2
    assert words in " ".join(found.output.replace("│", " ").split())


def test_command_refuses_other_families(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "gpt2"
    )
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    found = invoke(tmp_path / "gpt2")
    assert found.exit_code == 2
    assert "has not been tested on model family" in " ".join(found.output.replace("│", " ").split())
