"""StreamingMonitor: scores against one full forward, rules against plain loops, and where texts end."""

import math
import re

import pytest
import torch
from tiny_models import build, byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

import tokops
from tokops.hf.continuing import Reader
from tokops.hf.streaming_monitor import Gate
from tokops.methods import (
    CNTP,
    Evidence,
    KeywordMonitor,
    LinearProbe,
    MonitorModel,
    Speculate,
    StreamingMonitor,
    VocabularyFilters,
)

PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 9, 4, 40], [3, 4, 5, 6, 7], [30, 31, 32, 11, 12]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1] * 5]),
}
NEW = 16
GREEDY = {**PROMPTS, "do_sample": False, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def free(model):
    """What is generated without a monitor."""
    return model.generate(**GREEDY)


def monitors(model):
    """Scorers on tokens, and a function that scores the tokens of a text by definition."""
    generator = torch.Generator().manual_seed(9)
    other = build("llama", num_hidden_layers=2, seed=4)
    weight = torch.randn(64, generator=generator)

    def by_forward(net, layer=None):
        def scores(prompt, text):
            with torch.no_grad():
                out = net(torch.tensor([[*prompt, *text]]), output_hidden_states=True, use_cache=False)
            states = out.hidden_states[-1 if layer is None else layer + 1]
            return torch.sigmoid(states[0, len(prompt) :].double() @ weight.double() / 4).tolist()

        return scores

    return {
        "model": (MonitorModel(other, weight / 4), by_forward(other)),
        "itself": (MonitorModel(model, weight / 4), by_forward(model)),
        "probe": (LinearProbe(weight / 4), by_forward(model)),
        "probe of a layer": (LinearProbe(weight / 4, layer=1), by_forward(model, 1)),
        "callable": (by_token, lambda prompt, text: [wave(token) for token in text]),
    }


def wave(token):
    return math.sin(token * 7 + 1) / 2 + 0.5


def by_token(ids, first):
    """A scorer that says nothing about the prompt: its length is that of all prompts here but for padding."""
    prompt = 3 if ids[:3] == [9, 4, 40] else 5
    return [wave(token) for token in ids[prompt + first :]]


NAMES = ["model", "itself", "probe", "probe of a layer", "callable"]


def first_trigger(method, scores):
    """The rule in a few lines."""
    flags, mean, excess = [], 0.0, 0.0
    for i, score in enumerate(scores):
        flags.append(score >= method.theta)
        mean = method.decay * mean + (1 - method.decay) * score
        excess = max(0.0, excess + score - method.drift)
        if {
            "delay": sum(flags) >= method.k,
            "fraction": sum(flags[-method.window :]) / method.window >= method.share,
            "ema": mean > method.theta,
            "cusum": excess >= method.limit,
        }[method.rule]:
            return i
    return None


RULES = [
    {"k": 1}, {"k": 3}, {"k": 5, "theta": 0.4}, {"k": math.inf}, {"k": 2, "theta": 0.9},
    {"rule": "fraction", "window": 4, "share": 0.75}, {"rule": "ema", "theta": 0.45, "decay": 0.7},
    {"rule": "cusum", "drift": 0.4, "limit": 0.8}, {"k": 3, "every": 4}, {"rule": "ema", "theta": 0.3, "every": 3},
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_texts_end_where_a_full_forward_says(name, rule, model, free):
    """The incremental scores are those of one forward over prompt and text, row by row in a padded batch."""
    scorer, definition = monitors(model)[name]
    method = StreamingMonitor(scorer, **rule)
    lag = int(isinstance(scorer, LinearProbe))
    criterion = method.criterion(model)
    got = model.generate(**GREEDY, stopping_criteria=[criterion], logits_processor=criterion.processors)
    with tokops.patch(model, method) as run:
        patched = model.generate(**GREEDY)
        reports = [run.hooks[0].criteria[0].report(row) for row in patched]
    assert torch.equal(patched, got)
    for i, report in enumerate(reports):
        start = int(PROMPTS["attention_mask"][i].argmax())
        scores = definition(free[i, start:5].tolist(), free[i, 5:].tolist())
        first = first_trigger(method, scores)
        if first is None or first + 1 + lag > NEW:
            stop = NEW
        else:  # a look at every so many tokens, with a probe one token late
            stop = min(-(-(first + 1 + lag) // method.every) * method.every, NEW)
        assert torch.equal(got[i, : 5 + stop], free[i, : 5 + stop])
        assert not got[i, 5 + stop :].any()
        count = len(report.scores)
        assert stop - lag - method.every < count <= stop - lag
        assert report.first == (first if first is not None and first < count else None)
        assert report.stopped == (report.first is not None and stop % method.every == 0)
        assert report.scores == pytest.approx(scores[:count], abs=1e-4)
        assert report.flagged == sum(s >= method.theta for s in report.scores)


def test_first_trigger_grows_with_k_and_theta():
    scores = torch.rand(200, generator=torch.Generator().manual_seed(2)).tolist()
    monitor = KeywordMonitor("x")

    def first(**rule):
        found = StreamingMonitor(monitor, **rule).first_trigger(scores)
        return math.inf if found is None else found

    for theta in (0.2, 0.5, 0.9):
        found = [first(theta=theta, k=k) for k in range(1, 30)]
        assert found == sorted(found)
    for k in (1, 5):
        found = [first(theta=t / 20, k=k) for t in range(21)]
        assert found == sorted(found)
        assert len(set(found)) > 3
    assert StreamingMonitor(monitor, k=1).first_trigger(scores) == next(
        i for i, s in enumerate(scores) if s >= 0.5
    )
    assert StreamingMonitor(monitor, k=math.inf).first_trigger(scores) is None
    for rule in ("fraction", "ema", "cusum"):
        method = StreamingMonitor(monitor, rule=rule, window=8, share=0.7, theta=0.55, limit=1.5)
        assert method.first_trigger(scores) == first_trigger(method, scores)
        assert method.first_trigger([]) is None
    assert Evidence() == Evidence(0, (), 0.0, 0.0)


def test_the_last_k_is_never_reached_and_nothing_changes(model, free):
    with tokops.patch(model, StreamingMonitor(monitors(model)["model"][0], theta=0.0, k=math.inf)):
        assert torch.equal(model.generate(**GREEDY), free)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit"])
def test_speculation_gives_the_tokens_of_one_by_one_decoding(name, draft, model):
    scorer, _ = monitors(model)[name]
    for rule in ({"k": 2}, {"k": 4, "every": 3}):
        method = StreamingMonitor(scorer, **rule)
        with tokops.patch(model, method) as run:
            expected = model.generate(**GREEDY)
            wanted = [run.hooks[0].criteria[0].report(row) for row in expected]
        with tokops.patch(model, method, Speculate(draft, nodes=6)) as run:
            got = model.generate(**GREEDY)
            found = [run.hooks[0].criteria[0].report(row) for row in got]
        assert torch.equal(got, expected)
        for a, b in zip(found, wanted, strict=True):
            assert a[:3] == b[:3]
            assert a.scores == pytest.approx(b.scores, abs=1e-4)


def test_only_tokens_that_were_kept_are_scored(model):
    seen = []

    def scorer(ids, first):
        seen.append(list(ids))
        return by_token(ids, first)

    with tokops.patch(model, StreamingMonitor(scorer, k=math.inf), Speculate("early_exit", nodes=8)):
        got = model.generate(**GREEDY)
    texts = [
        row[int(mask.argmax()) :].tolist() for row, mask in zip(got, PROMPTS["attention_mask"], strict=True)
    ]
    assert all(any(text[: len(ids)] == ids for text in texts) for ids in seen)
    assert len(seen) == 3 * NEW


@pytest.mark.parametrize("name", ["model", "probe", "callable"])
def test_beams_carry_their_own_evidence(name, model):
    scorer, definition = monitors(model)[name]
    method = StreamingMonitor(scorer, k=4)
    with tokops.patch(model, method) as run:
        got = model.generate(**{**GREEDY, "num_beams": 3, "max_new_tokens": 10})
        criterion = run.hooks[0].criteria[0]
        for i, row in enumerate(got):
            start = int(PROMPTS["attention_mask"][i].argmax())
            report = criterion.report(row)
            text = [token for token in row[5:].tolist() if token >= 0]  # beams are filled up with -1 here
            expected = definition(row[start:5].tolist(), text)[: len(report.scores)]
            assert len(report.scores) >= len(text) - 1
            assert report.scores == pytest.approx(expected, abs=1e-4)


def test_the_processor_allows_nothing_but_the_end(model, free):
    for name in NAMES:
        scorer, definition = monitors(model)[name]
        method = StreamingMonitor(scorer, k=2)
        processor = method.processor(model, eos=[2])
        got = model.generate(**GREEDY, eos_token_id=2, logits_processor=[processor])
        for i in range(3):
            start = int(PROMPTS["attention_mask"][i].argmax())
            first = first_trigger(method, definition(free[i, start:5].tolist(), free[i, 5:].tolist()))
            if first is None or first + 1 >= NEW or 2 in free[i, 5 : 6 + first].tolist():
                continue
            assert torch.equal(got[i, : 6 + first], free[i, : 6 + first])
            assert got[i, 6 + first] == 2
            assert processor.report(got[i]).first == first
    with pytest.raises(ValueError, match="no"):
        StreamingMonitor(by_token).processor(model)


def test_end_tokens_are_not_scored(model):
    ends = [int(t) for t in model.generate(**GREEDY)[:, 8]]
    seen = []

    def scorer(ids, first):
        seen.append(ids[-1])
        return by_token(ids, first)

    with tokops.patch(model, StreamingMonitor(scorer, k=math.inf, every=5)) as run:
        got = model.generate(**GREEDY, eos_token_id=ends)
        reports = [run.hooks[0].criteria[0].report(row) for row in got]
    assert not set(ends) & set(seen)
    for row, report in zip(got[:, 5:].tolist(), reports, strict=True):
        at = next(i for i, token in enumerate(row) if token in ends)
        assert len(report.scores) == at


# ---- Other tokenizers.


def word_tokenizer():
    """Byte-level BPE with merges, whose tokens are not those of the tiny models' byte tokenizer."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    corpus = ["the cat sat on the mat and the hat", "é à ü ô the é cat à", "at at at cats hats mats  sat"] * 4
    words.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=words)


TEXT = "the cat é sat  on mats à la hat, cats and ü theat the"


@pytest.mark.parametrize("every", [1, 4])
def test_retokenised_scores_are_those_of_one_forward_over_the_whole_text(every):
    """Token by token, also where a word's tokens change as it grows and where characters come in parts."""
    served, own = byte_tokenizer(), word_tokenizer()
    net = build("llama", num_hidden_layers=2, vocab_size=len(own), seed=3)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1)) / 4
    monitor = MonitorModel(net, weight, tokenizer=own)
    method = StreamingMonitor(monitor, k=math.inf, every=every)
    serving = build("llama", num_hidden_layers=1, vocab_size=256)
    criterion = method.criterion(serving, served)
    prompt, text = served.encode("the hat "), served.encode(TEXT)
    rolled = 0
    before: list[int] = []
    for n in range(1, len(text) + 1):
        ids = torch.tensor([[*prompt, *text[:n]]])
        assert criterion(ids, None).tolist() == [False]
        if n % every:
            continue
        shown = served.decode(text[:n]).rstrip("�")
        tokens = own.encode(shown)
        rolled += before[: len(tokens)] != tokens[: len(before)]
        before = tokens
        head = own.encode("the hat ")
        with torch.no_grad():
            hidden = net.base_model(torch.tensor([[*head, *tokens]]), use_cache=False).last_hidden_state[
                0, len(head) :
            ]
        expected = torch.sigmoid(hidden.double() @ weight.double()).tolist()
        assert criterion.report(ids[0]).scores == pytest.approx(expected, abs=1e-4)
    assert rolled > 3
    # Little more than the new tokens was read each time.
    reader: Reader = criterion.states.scorer.reader
    assert reader.tokens < 3 * len(text)


def test_a_monitor_with_another_tokenizer_ends_a_text():
    served, own = byte_tokenizer(), word_tokenizer()
    serving = build("llama", num_hidden_layers=2, vocab_size=256)
    net = build("llama", num_hidden_layers=2, vocab_size=len(own), seed=3)
    method = StreamingMonitor(MonitorModel(net, torch.ones(64), bias=50.0, tokenizer=own), k=6)
    ids = torch.tensor([served.encode("the cat")])
    # Tokens of text alone, so that every token brings something to read.
    letters = VocabularyFilters(lipogram="x")
    with tokops.patch(serving, letters, method) as run:
        got = serving.generate(ids, do_sample=False, max_new_tokens=NEW, tokenizer=served)
        report = run.hooks[1].criteria[0].report(got[0])
    assert report.stopped
    assert report.flagged >= 6
    assert got.shape[1] == 7 + report.first + 1
    with pytest.raises(ValueError, match="a monitor with a tokenizer needs tokenizer="):
        method.criterion(serving)


def test_keywords_are_found_across_tokens_and_in_any_case():
    tokenizer = byte_tokenizer()
    for words, text, fold in (
        (("she", "he", "hers"), "uSHErs he", True), (("aab", "ab"), "aaab ab", True), (("Éa",), "éa Éa", True),
        (("he",), "HE he", False), (("ababc",), "abababc", True), (("x",), "none", True),
    ):  # fmt: skip
        ids = tokenizer.encode(text)
        monitor = KeywordMonitor(words, fold)
        method = StreamingMonitor(monitor, k=math.inf)
        criterion = method.criterion(build("llama", num_hidden_layers=1, vocab_size=256), tokenizer)
        for n in range(1, len(ids) + 1):
            criterion(torch.tensor([[5, 5, *ids[:n]]]), None)
        got = criterion.report([5, 5, *ids]).scores
        plain = text.casefold() if fold else text
        keys = [w.casefold() if fold else w for w in words]
        ends = {m.start() + len(w) for w in keys for m in re.finditer(f"(?={re.escape(w)})", plain)}
        expected = []
        for lengths in range(1, len(ids) + 1):
            shown = tokenizer.decode(ids[:lengths])
            whole = not shown.endswith("�")
            expected.append(
                float(
                    whole
                    and len(shown) in ends
                    and len(tokenizer.decode(ids[: lengths - 1]).rstrip("�")) < len(shown)
                )
            )
        assert got == expected, (words, text)


# ---- Streams.


class Shown(BaseStreamer):
    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("name", ["callable", "probe"])
@pytest.mark.parametrize("also", [(), (Speculate("early_exit", nodes=6),)])
@pytest.mark.parametrize("every", [1, 3])
def test_a_gate_shows_only_what_was_found_to_be_in_order(name, also, every, model, free):
    scorer, definition = monitors(model)[name]
    settings = {"input_ids": PROMPTS["input_ids"][1:2], "do_sample": False, "max_new_tokens": NEW}
    prompt, text = free[1, :5].tolist(), free[1, 5:].tolist()
    for k in (2, math.inf):
        method = StreamingMonitor(scorer, k=k, every=every)
        shown = Shown()
        with tokops.patch(model, method, *also):
            model.generate(**settings, streamer=Gate(shown, refusal=[95, 96]))
        first = first_trigger(method, definition(prompt, text))
        assert shown.ended
        if first is None:
            assert shown.ids == [*prompt, *text]
        else:
            assert shown.ids == [*prompt, *text[:first], 95, 96]


def test_a_gate_under_trials_shows_the_winner_alone(model):
    method = StreamingMonitor(by_token, k=math.inf)
    settings = {"input_ids": PROMPTS["input_ids"][1:2], "do_sample": True, "max_new_tokens": NEW, "seed": 3}
    cntp = CNTP(h_max=3.0, stop_tokens=tuple(range(40)), max_trial_len=4)
    shown = Shown()
    with tokops.patch(model, method, cntp):
        got = model.generate(**settings, streamer=Gate(shown))
    assert shown.ids == got[0].tolist()


def test_refusals(model):
    with pytest.raises(ValueError, match="keywords need a tokenizer"):
        StreamingMonitor(KeywordMonitor("x")).criterion(model)
    with pytest.raises(ValueError, match="the scorer must give 1 scores, got 0"):
        StreamingMonitor(lambda ids, first: []).criterion(model)(torch.tensor([[5, 6]]), None)
    alone = StreamingMonitor(LinearProbe(torch.ones(64))).criterion(model)
    with pytest.raises(RuntimeError, match=r"pass logits_processor=criterion\.processors"):
        model.generate(**GREEDY, stopping_criteria=[alone])
    with pytest.raises(KeyError, match="has not seen this text"):
        alone.report([1, 2, 3])
    with pytest.raises(ValueError, match=re.escape("layer must be -3..2, got 7")):
        StreamingMonitor(LinearProbe(torch.ones(64), layer=7)).criterion(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "luck"}, "rule must be one of delay"), ({"theta": 1.5}, "theta must be 0..1"),
        ({"k": 0}, "k must be a whole number from 1"), ({"k": 1.5}, "k must be a whole number"),
        ({"window": 0}, "window must be at least 1"), ({"share": 0.0}, "share must be above 0"),
        ({"decay": 1.0}, "decay must be 0..1"), ({"drift": 1.0}, "drift must be 0..1"),
        ({"limit": 0.0}, "limit must be above 0"), ({"every": 0}, "every must be at least 1"),
        ({"scorer": 5}, "scorer must be a monitor or a callable"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamingMonitor(**{"scorer": KeywordMonitor("x"), **options})
    for wrong in (
        lambda: KeywordMonitor([]),
        lambda: LinearProbe(torch.ones(2, 2)),
        lambda: MonitorModel(None, torch.ones(2, 2)),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()
