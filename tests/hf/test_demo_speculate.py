"""The demo of speculation on tiny random models: its texts, its rows, what it says of differences, its commands."""

import dataclasses
import io
import itertools
import json

import pytest
import torch
from rich.console import Console
from tiny_models import build, byte_tokenizer
from typer.testing import CliRunner

from tokops.cli import build as program
from tokops.demo import exactness, speculate, speculate_report, texts
from tokops.hf import model as real
from tokops.hf.patching import run_of
from tokops.hf.quality import Difference
from tokops.kv.report import write_json

PLAN = speculate.Plan(prompt=128, new=16, rounds=1, least=1, seconds=0.0)
EXACT = exactness.Plan(prompts=4, new=10, batch=3, shortest=100, longest=130)
NAMES = [
    speculate.STOCK,
    speculate.STOCK_LOOKUP,
    speculate.DENSE,
    speculate.DENSE_LOOKUP,
    speculate.LOOKUP,
    speculate.EARLY_EXIT,
]
KINDS = [texts.CODE, texts.PROSE, texts.QUOTING, texts.FRESH]


def no_stage(name, total):
    return lambda done: None


@pytest.fixture(scope="module")
def model():
    return build("llama", vocab_size=300, max_position_embeddings=512)


@pytest.fixture(scope="module")
def result(model):
    return speculate.run(model, byte_tokenizer(), PLAN, no_stage)


def plain(model, ids, new):
    """Greedy decoding without a cache: tokens, and gaps between the two largest logits."""
    tokens, gaps = [], []
    with torch.no_grad():
        for _ in range(new):
            best = model(ids, use_cache=False).logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            ids = torch.cat([ids, best.indices[:1][None]], 1)
    return tokens, gaps


def test_every_text_is_decoded_in_every_way(result):
    assert [(row.text, row.way) for row in result.rows] == [(kind, name) for kind in KINDS for name in NAMES]
    for row in result.rows:
        assert row.tokens_per_second > 0
        assert row.difference is None or row.difference.gap < exactness.MOST_GAP
        if row.way in (speculate.STOCK, speculate.DENSE):
            assert row.tokens_per_call == 1.0
        assert row.tokens_per_call >= 1.0
        same = result.row(row.text, speculate.STOCK).tokens_per_second
        assert row.ratio == pytest.approx(row.tokens_per_second / same)
    assert max(row.tokens_per_call for row in result.rows if row.way == speculate.LOOKUP) > 1.0
    assert max(row.tokens_per_call for row in result.rows if row.way == speculate.EARLY_EXIT) > 1.0


def test_ways_count_calls_and_never_stop_early(model):
    ids = texts.kinds(byte_tokenizer(), 128)[1].ids
    tokens, gaps = plain(model, ids, 12)
    stops = build("llama", vocab_size=300, max_position_embeddings=512)
    stops.generation_config.eos_token_id = tokens[2]
    for way in speculate.ways(stops):
        found = way(ids, 12)
        assert found.tokens.tolist() == [tokens], way.name
        assert found.calls <= 12
        assert found.seconds > 0
    reference, seen = speculate.reference(speculate.stock(stops), texts.Text("any", ids), 12)
    assert reference.calls == 12
    torch.testing.assert_close(seen, torch.tensor(gaps), rtol=1e-3, atol=1e-4)
    assert run_of(stops) is None
    assert stops.generation_config.eos_token_id == tokens[2]


def test_where_nothing_may_repeat_nothing_does(model):
    text = texts.kinds(byte_tokenizer(), 128)[3]
    assert text.kind == texts.FRESH
    for way in speculate.ways(model):
        ids = text.ids[0].tolist() + way(text.ids, 24, **text.options).tokens[0].tolist()
        pairs = list(itertools.pairwise(ids))
        for i in range(127, len(pairs)):
            assert pairs[i] not in pairs[:i], way.name


def test_a_token_that_differs_is_told_with_the_gap_there(model, monkeypatch):
    text = texts.kinds(byte_tokenizer(), 128)[1]
    decode = speculate.Way.__call__

    def wrong(self, *args, **kwargs):
        found = decode(self, *args, **kwargs)
        if self.name == speculate.LOOKUP:
            found.tokens[0, 3] ^= 1
        return found

    monkeypatch.setattr(speculate.Way, "__call__", wrong)
    rows = {row.way: row for row in speculate._rows(text, speculate.ways(model), PLAN, lambda done: None)}
    tokens, gaps = plain(model, text.ids, 4)
    difference = rows[speculate.LOOKUP].difference
    assert (difference.step, difference.expected, difference.got) == (3, tokens[3], tokens[3] ^ 1)
    assert difference.gap == pytest.approx(gaps[3], rel=1e-2)
    assert rows[speculate.EARLY_EXIT].difference is None

    findings = exactness.run(model, byte_tokenizer(), EXACT, no_stage).findings
    for found in findings:
        hit = found.way == speculate.LOOKUP and (found.batch == 1 or found.prompt in (0, 3))
        assert (found.difference is not None) == hit
        assert not hit or found.difference.step == 3


def test_quoting_begins_the_passage_again():
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(texts.Sources(tokenizer).cut(texts.QUOTING, 200))
    passage, opening = text.split(texts._BRIDGE)
    assert len(opening) == 25
    assert passage.startswith(opening)


def test_prompts_are_pieces_of_different_places_and_lengths():
    sources = texts.Sources(byte_tokenizer())
    first, second = (sources.cut(texts.PROSE, 64, place) for place in (0, 1))
    assert first.tolist() != second.tolist()
    many = len(sources._texts[texts.CODE]) // 64
    assert sources.cut(texts.CODE, 64, many + 2).tolist() == sources.cut(texts.CODE, 64, 2).tolist()
    found = texts.ragged(byte_tokenizer(), 20, 100, 300)
    assert [text.kind for text in found[:4]] == [texts.CODE, texts.PROSE, texts.QUOTING, texts.CODE]
    lengths = [text.ids.shape[1] for text in found]
    assert (min(lengths), max(lengths)) == (100, 300)
    assert len(set(lengths)) == 20
    assert lengths != sorted(lengths)


@pytest.mark.parametrize(
    ("kind", "length", "words"),
    [(texts.CODE, 10**6, "the prompt is to have 1000000"), (texts.QUOTING, 60, "needs more than")],
)
def test_prompts_that_cannot_be_cut_are_refused(kind, length, words):
    with pytest.raises(ValueError, match=words):
        texts.Sources(byte_tokenizer()).cut(kind, length)


def numbers(copying=1.5, calls=2.0, fresh=1.0, gap=None):
    """A result that has what the verdicts look at."""
    apart = None if gap is None else Difference(7, 1, 2, gap)

    def row(text, way, per_call, rate):
        return speculate.Row(text, way, per_call, rate, 1.0, None)

    rows = [
        row(texts.QUOTING, speculate.DENSE_LOOKUP, 2.0, 10.0),
        row(texts.QUOTING, speculate.LOOKUP, calls, 10.0 * copying),
        row(texts.FRESH, speculate.DENSE, 1.0, 10.0),
        dataclasses.replace(row(texts.FRESH, speculate.LOOKUP, 1.0, 10.0 * fresh), difference=apart),
    ]
    return speculate.Result("model", PLAN, rows)


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True, True]),
        ({"copying": 1.19}, [False, True, True, True]),
        ({"calls": 1.9}, [True, False, True, True]),
        ({"fresh": 0.96}, [True, True, False, True]),
        ({"gap": 2e-5}, [True, True, True, True]),
        ({"gap": 2e-4}, [True, True, True, False]),
    ],
)
def test_the_verdicts(changes, met):
    found = numbers(**changes)
    assert [ok for _, ok in speculate_report.verdicts(found)] == met
    said = speculate_report.sentences(found)
    assert [words.endswith(": met.") for words in said] == met
    if "gap" in changes:
        assert "3 of 4 runs" in said[3]
        assert f"{changes['gap']:.1e}" in said[3]
        assert speculate_report.told(found.rows[3].difference).startswith("differs at 7, gap 2e-0")


def test_the_table_and_the_files(result, tmp_path):
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(speculate_report.table(result))
    said = console.export_text()
    assert "…" not in said
    for name in (*NAMES, *KINDS):
        assert name in said
    speculate_report.picture(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    speculate_report.write_json(result, {"device": "test"}, tmp_path / "x.json")
    read = json.loads((tmp_path / "x.json").read_text())
    assert len(read["rows"]) == len(result.rows)
    assert len(read["verdicts"]) == 4


def test_exactness_alone_and_in_ragged_batches(model, tmp_path):
    found = exactness.run(model, byte_tokenizer(), EXACT, no_stage)
    groups = {(f.way, f.batch): [] for f in found.findings}
    assert list(groups) == [
        (way, batch) for way in (speculate.LOOKUP, speculate.EARLY_EXIT) for batch in (1, 3)
    ]
    for f in found.findings:
        groups[f.way, f.batch].append(f.prompt)
    assert all(prompts == [0, 1, 2, 3] for prompts in groups.values())
    assert found.met
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(exactness.table(found))
    assert console.export_text().count("4 of 4") == 4
    assert exactness.sentence(found).endswith("met.")
    write_json(found, {"device": "test"}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["met"] is True


def test_exactness_counts_differences_and_weighs_their_gaps(model):
    def with_gap(gap):
        finding = exactness.Finding(speculate.LOOKUP, 3, 1, texts.PROSE, 50, Difference(7, 1, 2, gap))
        return exactness.Result("model", EXACT, [finding, dataclasses.replace(finding, difference=None)])

    small, large = with_gap(3e-5), with_gap(3e-4)
    assert small.met
    assert not large.met
    assert "1 of 2 texts differ" in exactness.sentence(small)
    assert exactness.sentence(large).endswith("MISSED.")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(exactness.table(small))
    assert "prompt 1 (prose) at 7, gap 3.0e-05" in console.export_text()


def test_batches_are_padded_on_the_left():
    ids, mask = exactness.padded(
        [texts.Text("a", torch.tensor([[5, 6]])), texts.Text("b", torch.tensor([[7]]))]
    )
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def invoke(*arguments):
    return CliRunner().invoke(program(), [str(x) for x in arguments], env={"COLUMNS": "100"})


def test_the_commands(model, tmp_path, monkeypatch):
    monkeypatch.setattr(speculate, "QUICK", PLAN)
    monkeypatch.setattr(exactness, "QUICK", EXACT)
    monkeypatch.setattr(real, "load_smollm2", lambda dtype: (model, byte_tokenizer()))
    found = invoke("demo", "--speculate", "--quick", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert "tokens/call" in found.output
    assert "(bar 1.2)" in " ".join(found.output.split())
    assert {path.name for path in tmp_path.iterdir()} == {"speculate.json", "speculate.png"}
    found = invoke("demo", "--speculate", "--exactness", "--quick", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert "0 of 16 texts differ" in " ".join(found.output.split())
    assert (tmp_path / "exactness.json").exists()
    found = invoke(
        "demo", "--speculate", "--exactness", "--quick", "--draft", "early_exit", "--out", tmp_path
    )
    assert "0 of 8 texts differ" in " ".join(found.output.split())
    assert "prompt_lookup" not in found.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--compose", "--speculate"), "give one of them"),
        (("--exactness",), "goes with --speculate"),
        (("--compose", "--exactness"), "goes with --speculate"),
        (("--speculate", "--draft", "early_exit"), "goes with --exactness"),
        (("--speculate", "--exactness", "--draft", "medusa"), "must be prompt_lookup or early_exit"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, words, tmp_path):
    found = invoke("demo", *arguments, "--out", tmp_path)
    assert found.exit_code == 2
    assert words in " ".join(found.output.replace("│", " ").split())
