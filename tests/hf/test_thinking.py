"""Two models, one text: every branch by scripts, identity with plain sampling, and caches that are always right."""

import functools
import math
import operator
from types import SimpleNamespace

import pytest
import torch
from tiny_models import build, byte_tokenizer
from transformers import GenerationConfig, LlamaConfig

import tokops
from tokops.hf import generate_guided, thinking
from tokops.methods import SpeculativeThinking, sentiment
from tokops.sampling import Sampling, sample

PROMPT = torch.arange(40, 47)[None]
GREEDY = Sampling(temperature=0)
#: One letter for every kind of word, so that scripts are short.
LETTERS = {"triggers": ("|",), "positive": ("p",), "negative": ("n",), "verify": ("v",)}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


class Scripted(torch.nn.Module):
    """Writes ``script(position)``; its cache holds the tokens it has read, which it checks to be gapless."""

    def __init__(self, tokenizer, script):
        super().__init__()
        shape = {"hidden_size": 4, "num_attention_heads": 1, "num_key_value_heads": 1}
        self.config = LlamaConfig(vocab_size=256, num_hidden_layers=1, **shape)
        self.generation_config = GenerationConfig(eos_token_id=None)
        self.device = torch.device("cpu")
        self.ids = {letter: tokenizer(letter).input_ids[0] for letter in map(chr, range(33, 127))}
        self.script = script
        self.context: list[int] = []

    def forward(self, input_ids, position_ids, use_cache, logits_to_keep, cache=None, past_key_values=None):
        cache = past_key_values if cache is None else cache
        held = cache.get_seq_length()
        assert position_ids[0].tolist() == list(range(held, held + input_ids.shape[1]))
        keys = input_ids[:, None, :, None].float()
        self.context = cache.update(keys, keys, 0)[0].flatten().long().tolist()
        logits = torch.zeros(1, 1, 256)
        logits[0, 0, self.ids[self.script(len(self.context))]] = 1.0
        return SimpleNamespace(logits=logits)


def play(tokenizer, small, large, *, new=60, **options):
    """Scripts are strings repeated from the end of the prompt on, or functions of the position behind it."""

    def script(text):
        tell = text if callable(text) else lambda at: text[at % len(text)]
        return lambda position: tell(position - PROMPT.shape[1])

    models = [Scripted(tokenizer, script(text)) for text in (small, large)]
    settings = {name: options.pop(name) for name in ("hook", "streamer", "eos_token_id") if name in options}
    policy = SpeculativeThinking(**{**LETTERS, "small": GREEDY, "large": GREEDY, "probe": 3, **options})
    result = generate_guided(*models, tokenizer, PROMPT, policy, max_new_tokens=new, **settings)
    text = tokenizer.decode(result.sequences[0, PROMPT.shape[1] :])
    assert sum(result.written.values()) == len(text) == sum(map(len, result.spans))
    assert [span.first for span in result.spans[1:]] == [span.last for span in result.spans[:-1]]
    return result, text


def story(result):
    return [(span.writer, span.reason, len(span)) for span in result.spans]


@pytest.mark.parametrize(
    ("text", "tone"),
    [
        ("Wait, yes", -1),
        ("yeah, yes. wait", 1),
        ("Hmm", 0),
        ("let me verify", -1),
        ("", 0),
        ("Checked ANOTHER", -1),
    ],
)
def test_the_tone_of_a_text(text, tone):
    assert SpeculativeThinking().tone(text) == tone
    assert sentiment(text, ("yes",), ()) == int("yes" in text.lower())


def test_a_turn_of_thought_is_written_by_the_large_model(tokenizer):
    result, text = play(tokenizer, "ab|n..", "......p.....", new=12)
    assert story(result) == [("small", "think", 3), ("large", "probe", 3)] * 2
    assert text == "ab|...ab|..."
    assert result.written == {"small": 6, "large": 6, "prompt": 0}


def test_a_probe_without_a_turn_is_kept_and_the_large_model_reads_nothing(tokenizer):
    result, text = play(tokenizer, "ab|c..", "?", new=12)
    assert story(result) == [("small", "think", 3), ("small", "probe", 3)] * 2
    assert text == "ab|c..ab|c.."
    assert result.forwards == {"small": 12, "large": 0}


def test_every_token_is_read_once_and_rejected_probes_twice(tokenizer):
    result, _ = play(tokenizer, "ab|n..", "?", new=12)
    prompt = PROMPT.shape[1]
    # The small model reads all but the last three tokens, and of each of its two probes the first two tokens.
    assert result.read == {"small": prompt + 12 - 3 + 2 * 2, "large": prompt + 12 - 1}
    assert result.forwards == {"small": 12, "large": 6}


@pytest.mark.parametrize(
    ("small", "large", "writer"),
    [("n..", "n..", "small"), ("n..", "...", "large"), ("n..", "p..", "large"), ("p..", "n..", "large"),
     ("p..", "...", "small"), ("p..", "p..", "small"), ("...", "n..", "small")],
)  # fmt: skip
def test_who_is_preferred_where_the_large_model_is_not_always(tokenizer, small, large, writer):
    result, text = play(tokenizer, "ab|" + small, "..." + large, new=6, choose_large=False)
    assert story(result)[1] == (writer, "probe", 3)
    assert text == "ab|" + (small if writer == "small" else large)


def test_a_model_that_does_not_reason_is_helped_at_every_turn(tokenizer):
    result, _ = play(tokenizer, "ab|...", "?", new=12, reasoning=False, begin=4)
    assert story(result) == [
        ("large", "begin", 4), ("small", "think", 5), ("large", "probe", 3),
    ]  # fmt: skip
    result, _ = play(tokenizer, "ab|...", "?", new=6, reasoning=False, choose_large=False)
    assert story(result)[1] == ("small", "probe", 3)


def test_what_wants_to_verify_is_verified_by_the_large_model(tokenizer):
    result, _ = play(tokenizer, "ab|n..", "...v..", new=16, verification=5)
    assert story(result)[:3] == [("small", "think", 3), ("large", "probe", 3), ("large", "verify", 5)]
    result, _ = play(tokenizer, "ab|v..", "...n..", new=16, verification=5)
    assert "verify" not in {span.reason for span in result.spans}  # the probe was not appended
    result, _ = play(tokenizer, "ab|v..", "...v..", new=6, verification=5)
    assert story(result)[-1] == ("large", "probe", 3)  # no room is left


def test_reflecting_too_often_makes_the_large_model_look_back(tokenizer):
    """Published numbers: after 15, 20, 25, 30, 30 reflections, 125, 150, 175, 200, 200 tokens long."""
    result, text = play(tokenizer, "a|n", "n", new=5200, probe=20, recap_prompt="Recall:")
    recaps = [i for i, span in enumerate(result.spans) if (span.writer, span.reason) == ("prompt", "recap")]
    lengths = [len(result.spans[i + 1]) for i in recaps]
    counts, since = [], 0
    for span in result.spans:
        if span.reason == "probe":
            since += 1
        elif span.writer == "prompt":
            counts.append(since)
            since = 0
    assert lengths[:5] == [125, 150, 175, 200, 200]
    assert counts[:5] == [15, 20, 25, 30, 30]
    assert {len(result.spans[i]) for i in recaps} == {len("Recall:")}
    assert text.count("Recall:") == len(recaps) == result.written["prompt"] / 7
    assert all(
        result.spans[i + 1].reason == "recap" and result.spans[i + 1].writer == "large" for i in recaps
    )


def test_without_words_and_triggers_the_small_model_is_alone(tokenizer):
    alone = {"triggers": (), "positive": (), "negative": (), "verify": ()}
    result, text = play(tokenizer, "ab|nv", "?", new=23, stretch=10, **alone)
    assert text == ("ab|nv" * 5)[:23]
    assert story(result) == [("small", "think", 10), ("small", "think", 10), ("small", "think", 3)]
    assert result.forwards["large"] == 0


def test_with_a_long_beginning_the_large_model_is_alone(tokenizer):
    result, text = play(tokenizer, "?", "ab|nv", new=23, begin=23, triggers=())
    assert text == ("ab|nv" * 5)[:23]
    assert story(result) == [("large", "begin", 23)]
    assert result.forwards["small"] == 0


def test_a_trigger_may_end_inside_a_token_or_span_several(tokenizer):
    result, _ = play(tokenizer, "abc=>n..", "?", new=8, triggers=("=>", "zzz"))
    assert story(result) == [("small", "think", 5), ("large", "probe", 3)]

    class Glued:
        """A tokenizer whose "b" is written ``.|b``."""

        def __len__(self):
            return 256

        def decode(self, tokens, **options):
            return tokenizer.decode(tokens).replace("b", ".|b")

    small, large = (Scripted(tokenizer, lambda at, t=text: t[(at - 7) % len(t)]) for text in ("abn..", "?"))
    policy = SpeculativeThinking(**LETTERS, probe=3, small=GREEDY, large=GREEDY)
    result = generate_guided(small, large, Glued(), PROMPT, policy, max_new_tokens=5)
    assert story(result) == [("small", "think", 2), ("large", "probe", 3)]


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ("ab$|n..", "?", [("small", "think", 3)]),
        ("ab|.$.", "?", [("small", "think", 3), ("small", "probe", 2)]),
        ("ab|n..", "....$", [("small", "think", 3), ("large", "probe", 2)]),
        ("ab|n$.", "......", [("small", "think", 3), ("large", "probe", 3), ("small", "think", 3)]),
        ("ab|n..", "...v..$", [("small", "think", 3), ("large", "probe", 3), ("large", "verify", 1)]),
    ],
)
def test_the_end_of_the_text_is_seen_wherever_it_is_written(tokenizer, small, large, expected):
    end = tokenizer("$").input_ids[0]
    result, text = play(tokenizer, small, large, new=9, eos_token_id=end)
    assert story(result)[: len(expected)] == expected
    if "$" in text:
        assert text.index("$") == len(text) - 1


def test_hooks_see_and_overrule_every_decision(tokenizer):
    seen = []

    def hook(handover):
        seen.append(handover)
        return wishes.get(handover.reason)

    options = {
        "begin": 2,
        "verification": 4,
        "recap_after": 1,
        "recap_length": 5,
        "recap_prompt": "so",
        "hook": hook,
    }
    wishes: dict = {}
    stubborn, _ = play(tokenizer, "ab|n..", "v", new=160, **options)
    assert {h.reason for h in seen} == {"begin", "probe", "verify", "recap"}
    probe = next(h for h in seen if h.reason == "probe")
    assert (probe.writer, probe.text, len(probe.span), len(probe.answer)) == ("large", "n..", 3, 3)
    assert probe.position == PROMPT.shape[1] + sum(map(len, stubborn.spans[:2]))
    assert {h.threshold for h in seen if h.reason == "recap"} >= {1, 6}
    wishes = dict.fromkeys(("begin", "probe", "verify", "recap"), "small")
    alone, text = play(tokenizer, "ab|n..", "v", new=80, **options)
    assert alone.written["large"] == alone.written["prompt"] == 0
    assert text == ("ab|n.." * 14)[:80]
    wishes = {"probe": "large"}
    asked, _ = play(tokenizer, "ab|...", "?", new=12, hook=hook)
    assert story(asked) == [("small", "think", 3), ("large", "probe", 3)] * 2
    assert seen[-1].answer is None  # a probe without a turn: nobody had asked the large model
    with pytest.raises(ValueError, match="hook must return None, 'small' or 'large', got 'both' at a probe"):
        play(tokenizer, "ab|...", "?", new=12, hook=lambda handover: "both")


def test_streaming_gives_the_text_span_by_span(tokenizer):
    class Stream:
        def __init__(self):
            self.parts, self.ended = [], 0

        def put(self, tokens):
            self.parts.append(tokens.flatten().tolist())

        def end(self):
            self.ended += 1

    stream = Stream()
    result, _ = play(tokenizer, "ab|n..", "?", new=12, streamer=stream)
    assert [len(part) for part in stream.parts] == [PROMPT.shape[1], 3, 3, 3, 3]
    assert functools.reduce(operator.iadd, stream.parts, []) == result.sequences[0].tolist()
    assert stream.ended == 1


# Real models: tiny ones with random weights whose tokens are bytes.

LOOSE = {
    "triggers": tuple(map(chr, range(32, 127))), "positive": tuple("bcdfg01234"), "negative": tuple("hjklm.,;:"),
    "verify": tuple("npqrst!?<>%&#*"),
    "probe": 4, "verification": 6, "recap_after": math.inf, "small": Sampling(0.9, 60, 0.98),
    "large": Sampling(0.9, 60, 0.98),
}  # fmt: skip


def plain(model, seed, new):
    """Plain sampling, the whole text anew for every token."""
    ids = PROMPT
    for _ in range(new):
        logits = model(ids, use_cache=False).logits[:, -1].float()
        where = {"stream": 0, "position": ids.shape[1]}
        token = sample(logits, seed=seed, **where, temperature=0.9, top_k=60, top_p=0.98)
        ids = torch.cat([ids, token.view(1, 1).long()], 1)
    return ids


@pytest.fixture(scope="module", params=["llama", "mistral"])
def models(request):
    small = {"vocab_size": 256}
    return [
        build(request.param, seed=seed, num_hidden_layers=layers, **small)
        for seed, layers in ((0, 2), (1, 3))
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_helped_by_itself_writes_what_it_writes_alone(models, tokenizer, seed):
    policy = SpeculativeThinking(**LOOSE)
    with torch.no_grad():
        expected = plain(models[0], seed, 60)
    common = {"max_new_tokens": 60, "seed": seed, "streams": (0, 0)}
    result = generate_guided(models[0], models[0], tokenizer, PROMPT, policy, **common)
    assert torch.equal(result.sequences, expected)
    assert {"think", "probe", "verify"} <= {span.reason for span in result.spans}
    assert result.written["large"] > 6


@pytest.mark.parametrize("patched", [False, True])
def test_caches_are_those_of_a_fresh_prefill_at_every_decision(models, tokenizer, monkeypatch, patched):
    writers, base = [], thinking.Writer

    class Recording(base):
        def __init__(self, *args):
            super().__init__(*args)
            self.seen = []
            writers.append(self)

        def _forward(self, tokens):
            self.seen += tokens
            return super()._forward(tokens)

        def rewind(self, length):
            super().rewind(length)
            self.seen = self.seen[: self.cached]

    def rows(layer, window):
        if hasattr(layer, "gather"):
            first = 0 if window is None else max(0, layer.length - window + 1)
            return torch.cat(layer.gather(first, layer.length), -1)
        keys = torch.cat([layer.keys, layer.values], -1).transpose(1, 2)
        return keys if window is None else keys[:, -(window - 1) :]

    checked = []

    def hook(handover):
        for writer in (writer for writer in writers if writer.seen):
            checked.append((handover.position, list(writer.seen)))
            fresh = base(writer.model, writer.sampling, 0, 0, 256, frozenset())
            fresh._forward(writer.seen)
            for layer, other in zip(writer.cache.layers, fresh.cache.layers, strict=True):
                window = getattr(layer, "window", getattr(layer, "sliding_window", None))
                torch.testing.assert_close(rows(layer, window), rows(other, window), atol=1e-4, rtol=1e-4)

    monkeypatch.setattr(thinking, "Writer", Recording)
    policy = SpeculativeThinking(**{**LOOSE, "recap_after": 1, "recap_length": 7, "recap_prompt": "so:"})
    runs = [tokops.patch(model, page_size=8) for model in models] if patched else []
    try:
        result = generate_guided(*models, tokenizer, PROMPT, policy, max_new_tokens=160, hook=hook, seed=3)
    finally:
        for run in runs:
            run.undo()
    text = result.sequences[0].tolist()
    assert len(checked) > 6
    assert all(seen[:position] == text[: min(position, len(seen))] for position, seen in checked)
    assert {"probe", "recap"} <= {span.reason for span in result.spans}
    assert sum(result.written.values()) == 160


def test_patched_and_stock_models_write_the_same(models, tokenizer):
    policy, common = SpeculativeThinking(**LOOSE), {"max_new_tokens": 50, "seed": 5}
    expected = generate_guided(*models, tokenizer, PROMPT, policy, **common)
    with tokops.patch(models[0], page_size=8), tokops.patch(models[1]):
        got = generate_guided(*models, tokenizer, PROMPT, policy, **common)
    assert torch.equal(got.sequences, expected.sequences)
    assert got.spans == expected.spans


@pytest.mark.parametrize("value", [float("nan"), -math.inf])
def test_a_text_that_nothing_may_follow_is_named(tokenizer, value):
    class Broken(Scripted):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            if len(self.context) == PROMPT.shape[1] + 4:
                out.logits.fill_(value)
            return out

    small, large = (Broken(tokenizer, lambda at: "a") for _ in range(2))
    policy = SpeculativeThinking(**LETTERS, small=GREEDY, large=GREEDY)
    with pytest.raises(RuntimeError, match="generate_guided: no token at position 11 has a finite logit"):
        generate_guided(small, large, tokenizer, PROMPT, policy, max_new_tokens=20)


def test_bad_input_is_named(models, tokenizer):
    def refused(match, ids=PROMPT, pair=models, **options):
        with pytest.raises(ValueError, match=match):
            generate_guided(*pair, tokenizer, ids, **{"max_new_tokens": 4, **options})

    refused("one prompt of at least one token, got \\[2, 7\\]", ids=PROMPT.repeat(2, 1))
    refused("got \\[1, 0\\]", ids=PROMPT[:, :0])
    refused("max_new_tokens must be at least 0, got -1", max_new_tokens=-1)
    refused("tokenizers differ", large_tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 1}))
    refused("got 97 rows for 256 tokens", pair=[models[0], build("llama")])
    with tokops.patch(models[0], tokops.methods.Speculate()):
        refused("Speculate has a decoding loop of its own")
    for wrong, match in (
        ({"probe": 0}, "probe must be at least 1, got 0"),
        ({"recap_after": 40}, "recap_after_max must be at least recap_after, 40, got 30"),
        ({"triggers": ("",)}, "triggers must be strings, not empty"),
        ({"verify": ("Check",)}, "in lower case, got 'Check'"),
    ):
        with pytest.raises(ValueError, match=match):
            SpeculativeThinking(**wrong)
