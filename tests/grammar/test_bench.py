"""The grammar benchmark: what it counts, over engines that are made for the test."""

import faulthandler
import json
import os
import signal
import time

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="the extra `hf` is not installed")
pytest.importorskip("rich", reason="the extra `hf` is not installed")
from rich.console import Console

from tokops.bench import grammar, grammar_engines, grammar_items, grammar_report, grammar_worker
from tokops.bench.grammar_items import Item
from tokops.bench.vocabularies import RealVocabulary, _byte_level, byte_letters

TOKENS = [*(bytes((b,)) for b in range(256)), b""]


class Texts(grammar_engines.Engine):
    """Allows the texts that a "schema" lists, and does what else the schema asks for."""

    def __init__(self, vocabulary=None, threads=1):
        super().__init__(
            RealVocabulary("bytes", TOKENS, 256, [], lambda text: list(text.encode()), None), threads
        )

    def compile(self, schema, **options):
        if schema.get("refuse"):
            raise ValueError("refuse: not here")
        if schema.get("crash"):
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        while schema.get("late"):
            pass
        if schema.get("hog"):
            held = [np.ones(1 << 27, np.uint8) for _ in range(8)]
            time.sleep(5)
            del held
        return schema

    def matcher(self, grammar):
        return [grammar, b""]

    def allowed(self, matcher):
        schema, done = matcher
        texts = [text.encode() for text in schema["texts"]]
        out = {text[len(done)] for text in texts if text.startswith(done) and len(text) > len(done)}
        return out | ({256} if done in texts and not schema.get("endless") else set())

    def fill(self, matcher):
        bits = np.zeros(self.width * 32, np.uint8)
        bits[list(self.allowed(matcher))] = 1
        self.row[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, matcher, token):
        if token not in self.allowed(matcher) or (matcher[0].get("liar") and len(matcher[1]) == 2):
            return False
        matcher[1] += bytes((token,))
        return True


def outcome(tests, **schema):
    return grammar_worker.measure(Texts(), Item("x", "", schema, tests))


def test_verdicts():
    tests = [("ab", True), ("ax", False), ("a", False)]
    assert grammar.judge(outcome(tests, texts=['"ab"'])) == "exact"
    assert grammar.judge(outcome(tests, texts=['"b"'])) == "over"
    assert grammar.judge(outcome(tests, texts=['"ab"', '"a"'])) == "under"
    assert grammar.judge(outcome(tests, texts=['"a"'])) == "both"
    refused = outcome(tests, refuse=True)
    assert grammar.judge(refused) == "refused"
    assert refused.reason == "ValueError: refuse: not here"


def test_the_end_must_be_allowed():
    assert grammar.judge(outcome([("ab", True)], texts=['"ab"'], endless=True)) == "over"


def test_disagreement_of_mask_and_accept():
    found = outcome([("ab", True)], texts=['"ab"'], liar=True)
    assert found.walks[0].disagreed
    assert not found.walks[0].accepted
    assert found.walks[0].at == 2


def test_times_are_counted_per_call():
    found = outcome([("ab", True), ("ax", False)], texts=['"ab"'])
    good, bad = found.walks
    assert (len(good.masks), len(good.accepts), len(good.warm_masks), len(good.warm_accepts)) == (5, 4, 5, 4)
    assert (bad.at, len(bad.masks), len(bad.accepts), len(bad.warm_masks)) == (2, 3, 2, 3)
    assert 0 < found.compile_ns <= found.first_mask_ns


@pytest.fixture
def texts_engine(monkeypatch):
    """Worker processes that are forked know the engine of this file."""
    monkeypatch.setitem(grammar_engines.ENGINES, "texts", Texts)
    monkeypatch.setitem(grammar_engines.PACKAGES, "texts", "tokops")
    monkeypatch.setattr(grammar_worker, "load", lambda name: None)
    context = grammar.multiprocessing.get_context("fork")
    monkeypatch.setattr(grammar.multiprocessing, "get_context", lambda kind: context)


def test_what_kills_a_process(texts_engine):
    good = {"texts": ['"a"']}
    asked = [good, {"crash": 1}, {"late": 1}, {"hog": 1}, {"refuse": 1}, good]
    items = [Item(str(i), "", schema, [("a", True)]) for i, schema in enumerate(asked)]
    [result] = grammar.run(items, ["texts"], limits=grammar.Limits(seconds=6.0, memory=0.5))
    assert [one.status for one in result.outcomes] == [
        "compiled",
        "crash",
        "time-out",
        "memory",
        "refused",
        "compiled",
    ]
    summary = grammar.summary(result)
    assert (summary["compiled"], summary["exact"], summary["with instances"]) == (2, 2, 6)
    assert summary["first mask"]["99"] > 1.5e6, "a time-out counts at its limit"
    assert grammar.summary(result, {0, 5})["first mask"]["99"] < 1.5e6


def test_report(texts_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(grammar_report, "OURS", "texts")
    items = [
        Item("one", "", {"texts": ['"a"']}, [("a", True), ("b", False)]),
        Item("two", "", {"texts": ['"b"']}, [("a", True)]),
    ]
    results = grammar.run(items, ["texts"])
    console = Console(width=250, record=True)
    console.print(grammar_report.coverage_table(results))
    console.print(grammar_report.time_table(results, None, "times"))
    text = console.export_text()
    assert "100.0 %" in text
    assert "50.0 %" in text
    assert any("1 compiled schemas with a wrong verdict" in line for line in grammar_report.bars(results))
    assert grammar_report.wrong(results, "texts") == ["over: two: valid instance 0 refused at token 1"]
    grammar_report.write_json(results, {"cpu": "x"}, tmp_path / "grammar.json")
    grammar_report.picture(results, tmp_path / "grammar.png")
    written = json.loads((tmp_path / "grammar.json").read_text())
    assert written["all"][0]["exact"] == 1
    assert [one["verdicts"] for one in written["schemas"]] == [{"texts": "exact"}, {"texts": "over"}]
    assert (tmp_path / "grammar.png").stat().st_size > 10_000


def test_three_kinds_of_files(tmp_path):
    line = {"id": "a", "dataset": "d", "schema": True, "tests": [{"valid": True, "data": 1}]}
    (tmp_path / "all.jsonl").write_text(json.dumps(line) + "\n\n" + json.dumps(line | {"id": "b"}) + "\n")
    assert [item.name for item in grammar_items.read(tmp_path / "all.jsonl")] == ["a", "b"]
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "Set---x.json").write_text(json.dumps({"schema": {}, "meta": {}, "tests": line["tests"]}))
    [item] = grammar_items.read(bench)
    assert (item.name, item.group, item.tests) == ("Set---x", "Set", [(1, True)])
    suite = tmp_path / "suite" / "draft7"
    (suite / "optional" / "format").mkdir(parents=True)
    groups = json.dumps(
        [
            {
                "description": "g",
                "schema": {"type": "null"},
                "tests": [{"description": "", "data": None, "valid": True}],
            }
        ]
    )
    (suite / "type.json").write_text(groups)
    (suite / "optional" / "format" / "date.json").write_text(groups)
    dates, types = grammar_items.read(tmp_path / "suite")
    assert types.schema == {"$schema": "http://json-schema.org/draft-07/schema#", "type": "null"}
    assert types.options == {"formats": "annotate"}
    assert dates.options == {}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no schemas"):
        grammar_items.read(tmp_path / "empty")


def test_plain_schemas_count_without_instances(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"type": "null"}))
    (tmp_path / "two.json").write_text(json.dumps({"$ref": "#/definitions/x", "definitions": {"x": {}}}))
    (tmp_path / "other.json").write_text(json.dumps({"name": "package", "version": "1"}))
    assert [(item.name, item.tests) for item in grammar_items.read(tmp_path)] == [("one", []), ("two", [])]
    assert [item.schema for item in grammar_items.read(tmp_path / "one.json")] == [{"type": "null"}]
    lines = [{"type": "null"}, {"schema": True, "tests": [{"valid": True, "data": 1}]}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [item.tests for item in grammar_items.read(tmp_path / "lines.jsonl")] == [[], [(1, True)]]
    (tmp_path / "wrapped.json").write_text(json.dumps(lines[1]))
    assert [item.name for item in grammar_items.read(tmp_path)] == ["wrapped"]


def test_report_without_instances(texts_engine, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(grammar_report, "OURS", "texts")
    items = [Item("one", "", {"texts": ['"a"']}, []), Item("two", "", {"refuse": True}, [])]
    results = grammar.run(items, ["texts"])
    console = Console(width=250, record=True)
    console.print(grammar_report.coverage_table(results))
    console.print(grammar_report.time_table(results, None, "times"))
    text = console.export_text()
    assert "50.0 %" in text
    assert "first mask p50" in text
    assert "instances" not in text
    assert "accept" not in text
    assert not any(" mask p" in line and "first" not in line for line in grammar_report.bars(results))
    [said] = grammar_report.bare(items)
    assert said.startswith("none of the 2 schemas came with instances")
    some = [*items, Item("three", "", {}, [("a", True)])]
    assert grammar_report.bare(some)[0].startswith("2 of 3 schemas came without instances")
    assert grammar_report.bare(some[2:]) == []
    grammar_report.picture(results, tmp_path / "grammar.png")
    assert not [one for one in recwarn if "legend" in str(one.message)]


def test_sampling_keeps_the_order():
    items = [Item(str(i), "", True, []) for i in range(20)]
    chosen = [int(item.name) for item in grammar_items.sample(items, 5, 3)]
    assert chosen == sorted(chosen)
    assert len(chosen) == 5
    assert grammar_items.sample(items, 0) == items


def test_byte_level_vocabulary():
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    letters = byte_letters()
    tokenizer = Tokenizer(BPE({letters[b]: b for b in range(256)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    vocabulary = _byte_level("bytes", tokenizer)
    assert vocabulary.tokens == TOKENS
    assert (vocabulary.eos, vocabulary.specials) == (256, [256])
    text = "né \n😀"
    assert b"".join(vocabulary.tokens[i] for i in vocabulary.encode(text)) == text.encode()
