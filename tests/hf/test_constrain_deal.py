"""DeAL: against beam search, against the exact maximum by enumeration, and what it costs."""

import itertools
import math
import re

import pytest
import torch
from tiny_models import build, byte_tokenizer

import tokops
from tokops.methods import DeAL, QuantizedKV, Speculate, banned_words, keyword_coverage, length_distance

PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 9, 4, 40], [3, 4, 5, 6, 7], [30, 31, 32, 11, 12]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1] * 5]),
}
NEW = 8


def likes(ids):
    """A heuristic on ids: more multiples of three, and not the same twice in a row."""
    return sum(i % 3 == 0 for i in ids) - 0.5 * sum(a == b for a, b in itertools.pairwise(ids))


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def ending():
    """A model whose texts end now and then."""
    model = build("llama", num_hidden_layers=3)
    model.generation_config.eos_token_id = list(range(3, 97, 6))
    return model


def generate(model, method, **settings):
    with tokops.patch(model, method):
        return model.generate(**{**PROMPTS, "max_new_tokens": NEW, "do_sample": False, **settings})


@pytest.mark.parametrize("which", ["model", "ending"])
@pytest.mark.parametrize("beams", [2, 4])
def test_without_a_weight_it_is_beam_search(which, beams, request):
    model = request.getfixturevalue(which)
    # Without a penalty on length. (As padding transformers' beams do not take token 0.)
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 1}
    expected = model.generate(**PROMPTS, **settings, num_beams=beams, length_penalty=0.0)
    for look_ahead in (0, 3):
        method = DeAL(likes, lam=0.0, k=97, beams=beams, look_ahead=look_ahead, on_ids=True)
        assert torch.equal(generate(model, method, **settings), expected)


def test_without_a_weight_one_beam_and_one_candidate_are_greedy_decoding(model):
    expected = model.generate(**PROMPTS, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(generate(model, DeAL(likes, lam=0.0, look_ahead=2, on_ids=True)), expected)
    assert torch.equal(generate(model, DeAL(likes, lam=3.0, k=1, look_ahead=2, on_ids=True)), expected)


def small():
    """A model of seven tokens, which ends with the last."""
    model = build("llama", num_hidden_layers=2, vocab_size=7, pad_token_id=0, bos_token_id=1, eos_token_id=6)
    model.generation_config.eos_token_id = 6
    return model


@torch.no_grad()
def every_text(model, prompt, most):
    """Log-probabilities of all complete texts of up to ``most`` tokens, in float64."""
    found = {}

    def grow(text, logp):
        if text and (text[-1] == 6 or len(text) == most):
            found[text] = logp
            return
        law = model(torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, -1].double().log_softmax(-1)
        for token in range(7):
            grow((*text, token), logp + float(law[token]))

    grow((), 0.0)
    return found


def test_wide_enough_it_finds_the_exact_maximum():
    model, prompt, most = small(), [1, 3, 2], 4
    texts = every_text(model, prompt, most)
    for lam, norm in ((0.7, 0.0), (2.0, 0.0), (2.0, 1.0)):
        best = max(texts, key=lambda y: texts[y] / len(y) ** norm + lam * likes(y))
        method = DeAL(likes, lam=lam, k=7, beams=400, look_ahead=most, on_ids=True, norm=norm)
        with tokops.patch(model, method):
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=most, do_sample=False, return_dict_in_generate=True
            )
        got = tuple(out.sequences[0, 3:].tolist())
        assert got == best
        assert out.logp[0] == pytest.approx(texts[best], abs=1e-4)
        assert out.ranks[0] == pytest.approx(texts[best] / len(best) ** norm + lam * likes(best), abs=1e-4)


@torch.no_grad()
def slow(model, method, prompt, new, ends=()):
    """The search in a few lines, every forward from scratch; one request; returns text and rank."""

    def law(text):
        return model(torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, -1].float().log_softmax(-1)

    def ahead(text):
        tail = []
        while len(tail) < method.look_ahead:
            tail.append(int(law([*text, *tail]).argmax()))
            if tail[-1] in ends:
                break
        return tail

    frontier, done = [((), 0.0)], []
    for _ in range(new):
        scored = []
        for text, logp in frontier:
            values, tokens = law(text).sort(descending=True, stable=True)
            for value, token in zip(values[: method.k].tolist(), tokens[: method.k].tolist(), strict=True):
                z, over = (*text, token), token in ends or len(text) + 1 == new
                h = likes([*z, *([] if over else ahead(z))])
                scored.append(
                    ((logp + value) / len(z) ** method.norm + method.lam * h, logp + value, z, over)
                )
        scored.sort(key=lambda s: (-s[0], -s[1]))
        done += [s for s in scored[: method.beams] if s[3]]
        frontier = [(z, logp) for _, logp, z, over in scored if not over][: method.beams]
        if not frontier:
            break
    return max(done, key=lambda s: (s[0], s[1]))[2]


@pytest.mark.parametrize("which", ["model", "ending"])
@pytest.mark.parametrize("options", [{"beams": 3, "k": 4}, {"beams": 2, "k": 3, "norm": 1.0}])
def test_a_padded_batch_gives_what_the_slow_search_gives_one_by_one(which, options, request):
    model = request.getfixturevalue(which)
    ends = model.generation_config.eos_token_id or ()
    for look_ahead in (0, 1, 3):
        method = DeAL(likes, lam=0.8, look_ahead=look_ahead, on_ids=True, **options)
        got = generate(model, method)
        for i in range(3):
            start = int(PROMPTS["attention_mask"][i].argmax())
            expected = slow(model, method, PROMPTS["input_ids"][i, start:].tolist(), NEW, ends)
            text = got[i, 5:].tolist()
            assert text[: len(expected)] == list(expected)
            assert not any(text[len(expected) :])


@pytest.mark.parametrize("which", ["model", "ending"])
def test_candidates_that_are_not_worth_it_are_not_continued(which, request):
    model = request.getfixturevalue(which)
    plain = DeAL(likes, lam=0.3, k=6, beams=2, look_ahead=3, on_ids=True)
    bounded = DeAL(likes, lam=0.3, k=6, beams=2, look_ahead=3, on_ids=True, h_max=float(NEW + 3))
    tight = DeAL(lambda ids: min(likes(ids), 1.0), lam=0.3, k=6, beams=2, look_ahead=3, on_ids=True)
    pruned = DeAL(
        lambda ids: min(likes(ids), 1.0), lam=0.3, k=6, beams=2, look_ahead=3, on_ids=True, h_max=1.0
    )
    for one, other in ((plain, bounded), (tight, pruned)):
        a = generate(model, one, return_dict_in_generate=True)
        b = generate(model, other, return_dict_in_generate=True)
        assert torch.equal(a.sequences, b.sequences)
    assert b.skipped > 0
    assert b.continued < a.continued


def test_the_cost_is_as_many_forwards_as_tokens_ahead(model):
    for look_ahead, beams in ((0, 2), (1, 2), (3, 2), (5, 3)):
        method = DeAL(likes, k=4, beams=beams, look_ahead=look_ahead, on_ids=True)
        out = generate(model, method, return_dict_in_generate=True)
        # The last token's candidates end there: nothing is read for them.
        assert out.forwards == (NEW - 1) * max(look_ahead, 1)
    assert out.continued == 3 * (4 + (NEW - 2) * 3 * 4)


def test_a_candidate_may_take_its_beams_continuation(model):
    whole = generate(
        model, DeAL(likes, k=4, beams=2, look_ahead=6, on_ids=True), return_dict_in_generate=True
    )
    saved = generate(
        model, DeAL(likes, k=4, beams=2, look_ahead=6, reuse=2, on_ids=True), return_dict_in_generate=True
    )
    assert whole.reused == 0
    assert saved.reused > 0
    assert saved.continued + saved.reused == whole.continued
    # Of the k candidates of a beam at most one is spared.
    assert saved.reused <= 3 * 2 * (NEW - 2)


def test_looking_ahead_leaves_the_cache_as_it_was(model):
    """Log-probabilities of the result are those of a fresh forward, although continuations were in the cache."""
    for options in ({}, {"h_max": 50.0}, {"reuse": 2}):
        out = generate(
            model,
            DeAL(likes, k=5, beams=3, look_ahead=4, on_ids=True, **options),
            return_dict_in_generate=True,
        )
        for i in range(3):
            start = int(PROMPTS["attention_mask"][i].argmax())
            ids = out.sequences[i : i + 1, start:]
            with torch.no_grad():
                law = model(ids).logits[0].double().log_softmax(-1)
            at = 5 - start
            expected = sum(float(law[at + t - 1, ids[0, at + t]]) for t in range(NEW))
            assert out.logp[i] == pytest.approx(expected, abs=1e-3)


def test_sliding_windows_are_given_back():
    model = build("mistral", num_hidden_layers=3)
    method = DeAL(likes, lam=0.8, k=3, beams=2, look_ahead=4, on_ids=True)
    ids = torch.arange(5, 25)[None]
    with tokops.patch(model, method, page_size=4):
        got = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert got[0, 20:].tolist() == list(slow(model, method, ids[0].tolist(), NEW))


def test_more_weight_never_gives_less_of_what_is_asked_for():
    """On a fixed set of candidates."""
    model, prompt = small(), [1, 3, 2]
    texts = every_text(model, prompt, 3)
    found = []
    for lam in (0.0, 0.2, 0.5, 1.0, 3.0):
        with tokops.patch(model, DeAL(likes, lam=lam, k=7, beams=60, look_ahead=3, on_ids=True)):
            got = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)
        text = tuple(t for t in got[0, 3:].tolist())
        found.append(likes(next(y for y in texts if text[: len(y)] == y)))
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_what_is_forbidden_is_avoided_where_there_is_another_way(model):
    plain = model.generate(**PROMPTS, max_new_tokens=NEW, do_sample=False)[:, 5:]
    banned = {int(row[2]) for row in plain}

    def innocent(ids):
        return -math.inf if banned & set(ids) else 0.0

    for method in (
        DeAL(innocent, k=8, look_ahead=0, on_ids=True),
        DeAL(innocent, k=8, look_ahead=2, beams=2, on_ids=True),
    ):
        assert not banned & set(generate(model, method)[:, 5:].flatten().tolist())


# ---- One beam: a processor.


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_the_processor_is_the_search_with_one_beam(look_ahead, model):
    method = DeAL(likes, lam=0.8, k=4, look_ahead=look_ahead, on_ids=True)
    expected = []
    for i in range(3):
        start = int(PROMPTS["attention_mask"][i].argmax())
        expected.append(slow_processor(model, method, PROMPTS["input_ids"][i, start:].tolist()))
    settings = {**PROMPTS, "max_new_tokens": NEW, "do_sample": False}
    alone = model.generate(**settings, logits_processor=[method.processor(model)])
    assert alone[:, 5:].tolist() == expected
    assert generate(model, method)[:, 5:].tolist() == expected
    for draft in ("prompt_lookup", "early_exit"):
        with tokops.patch(model, method, Speculate(draft, nodes=4)):
            assert model.generate(**settings)[:, 5:].tolist() == expected


def slow_processor(model, method, prompt):
    """One beam whose texts are always continued, as a processor cannot know that the last token is the last."""
    text = []
    for _ in range(NEW):
        with torch.no_grad():
            law = model(torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, -1].log_softmax(-1)
        values, tokens = law.sort(descending=True, stable=True)
        ranked = []
        for value, token in zip(values[: method.k].tolist(), tokens[: method.k].tolist(), strict=True):
            tail = []
            while len(tail) < method.look_ahead:
                with torch.no_grad():
                    out = model(torch.tensor([[*prompt, *text, token, *tail]]), use_cache=False).logits[0, -1]
                tail.append(int(out.argmax()))
            ranked.append((value + method.lam * likes([*text, token, *tail]), value, token))
        text.append(max(ranked, key=lambda r: (r[0], r[1]))[2])
    return text


def test_gains_add_up_to_the_score_of_the_text(model):
    """So that transformers' beams are ranked by logP + lam h."""
    method = DeAL(likes, lam=0.8, k=97, look_ahead=0, on_ids=True)
    settings = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "length_penalty": 0.0}
    ids = PROMPTS["input_ids"][1:2]
    out = model.generate(
        ids,
        **settings,
        logits_processor=[method.processor(model)],
        return_dict_in_generate=True,
        output_scores=True,
    )
    text = out.sequences[0, 5:].tolist()
    with torch.no_grad():
        law = model(out.sequences[:1]).logits[0].double().log_softmax(-1)
    logp = sum(float(law[4 + t, token]) for t, token in enumerate(text))
    assert float(out.sequences_scores[0]) == pytest.approx(logp + 0.8 * likes(text), abs=1e-3)


def test_a_continuation_takes_as_many_forwards_as_tokens_and_reads_only_what_is_new(model):
    method = DeAL(likes, k=4, look_ahead=3, on_ids=True)
    processor = method.processor(model)
    model.generate(
        PROMPTS["input_ids"][1:2], max_new_tokens=NEW, do_sample=False, logits_processor=[processor]
    )
    reader = processor.reader
    assert reader.forwards == NEW * (1 + 3)
    assert reader.tokens == 5 + (NEW - 1) + NEW * 4 * 3


def test_candidates_are_sampled_by_likelihood_and_score(model):
    """The law of the first token is proportional to exp(logP + lam h) over the candidates."""
    method = DeAL(likes, lam=0.5, k=6, look_ahead=0, on_ids=True)
    ids = PROMPTS["input_ids"][1:2]
    with torch.no_grad():
        law = model(ids).logits[:, -1].float()
    got = method.processor(model)(ids, law)[0].double().softmax(-1)
    values, tokens = law[0].double().log_softmax(-1).topk(6)
    wanted = (values + 0.5 * torch.tensor([float(t % 3 == 0) for t in tokens.tolist()])).softmax(-1)
    torch.testing.assert_close(got[tokens], wanted, atol=1e-6, rtol=1e-5)
    assert int((got > 0).sum()) == 6


# ---- Chunks, texts, heuristics.


def test_chunks_keep_the_best_of_what_was_drawn(ending):
    settings = {"max_new_tokens": 12, "return_dict_in_generate": True}
    scores = []
    for samples in (1, 8):
        method = DeAL(likes, lam=5.0, chunk=4, samples=samples, beams=2, seed=3, on_ids=True)
        out = generate(ending, method, **settings)
        again = generate(ending, method, **settings)
        assert torch.equal(out.sequences, again.sequences)
        assert out.forwards <= 12
        for i in range(3):
            start = int(PROMPTS["attention_mask"][i].argmax())
            ids = out.sequences[i, start:]
            at = 5 - start
            with torch.no_grad():
                law = ending(ids[None]).logits[0].double().log_softmax(-1)
            text = ids[at:].tolist()
            ends = [t for t, token in enumerate(text) if token in ending.generation_config.eos_token_id]
            text = text[: ends[0] + 1] if ends else text
            logp = sum(float(law[at + t - 1, token]) for t, token in enumerate(text))
            assert out.logp[i] == pytest.approx(logp, abs=1e-3)
            assert out.ranks[i] == pytest.approx(logp + 5.0 * likes(text), abs=1e-2)
        scores.append(sum(out.ranks))
    assert scores[1] > scores[0]


def test_the_loop_draws_candidates_where_generate_samples(model):
    method = DeAL(likes, lam=0.0, k=2, beams=2, look_ahead=0, seed=1, on_ids=True)
    settings = {"do_sample": True, "temperature": 3.0}
    one = generate(model, method, **settings)
    assert torch.equal(generate(model, method, **settings), one)
    other = DeAL(likes, lam=0.0, k=2, beams=2, look_ahead=0, seed=2, on_ids=True)
    assert not torch.equal(generate(model, other, **settings), one)
    # One token to choose from is greedy decoding.
    assert torch.equal(
        generate(model, method, do_sample=True, top_k=1), generate(model, DeAL(likes, lam=0.0, on_ids=True))
    )


def test_heuristics_see_text_without_special_tokens_and_unfinished_characters():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    model = build("llama", num_hidden_layers=2, vocab_size=len(tokenizer))
    seen = []

    class Reward:
        def score(self, prompts, texts):
            seen.extend(zip(prompts, texts, strict=True))
            return [float(len(text)) for text in texts]

    ids = torch.tensor([tokenizer.encode("ab")])
    for beams in (1, 2):
        with tokops.patch(model, DeAL(Reward(), k=3, look_ahead=2, beams=beams)):
            model.generate(ids, max_new_tokens=3, do_sample=False, tokenizer=tokenizer)
            with pytest.raises(ValueError, match="pass tokenizer= to generate, or set on_ids=True"):
                model.generate(ids, max_new_tokens=1)
    assert seen
    assert all(prompt == "ab" and "<end>" not in text and not text.endswith("�") for prompt, text in seen)


def test_weights_and_empty_texts():
    method = DeAL((len, lambda text: 1.0), weights=(2.0, 0.5))
    assert method.score(["p", "p"], ["abc", ""]) == [6.5, 0.0]
    with pytest.raises(ValueError, match="a heuristic must give 1 numbers"):
        DeAL(lambda text: math.nan).score(["p"], ["a"])


def test_ready_made_heuristics():
    cover = keyword_coverage(["cat", ("run", "runs", "ran")])
    assert [cover(t) for t in ("", "A Cat.", "a cat ran", "concatenate")] == [0.0, 0.5, 1.0, 0.0]
    assert banned_words(["bad"])("not badly") == 0.0
    assert banned_words(["bad"])("Bad!") == -math.inf
    assert banned_words(["bad", "worse"], cost=2.0)("bad, worse, bad") == -6.0
    assert length_distance(3)("one two") == -1.0
    assert length_distance(2, "sentences")("One. Two! Three?") == -1.0
    assert length_distance(4, "characters")("four") == 0.0
    for wrong in (
        lambda: keyword_coverage([]),
        lambda: banned_words([""]),
        lambda: length_distance(3, "pages"),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()


def test_refusals(model):
    searching = DeAL(likes, beams=2, on_ids=True)
    with pytest.raises(ValueError, match=r"is a decoding loop: use tokops\.patch"):
        searching.processor(model)
    with pytest.raises(ValueError, match="both have a decoding loop of their own"):
        tokops.patch(model, searching, Speculate())
    with (
        tokops.patch(model, searching, QuantizedKV(bits=8)),
        pytest.raises(NotImplementedError, match="needs full-precision pages"),
    ):
        model.generate(**PROMPTS, max_new_tokens=2)
    with (
        tokops.patch(model, searching),
        pytest.raises(NotImplementedError, match="does not support num_beams"),
    ):
        model.generate(**PROMPTS, max_new_tokens=2, num_beams=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, "lam must be at least 0"), ({"k": 0}, "k must be at least 1"),
        ({"look_ahead": -1}, "look_ahead must be at least 0"), ({"beams": 0}, "beams must be at least 1"),
        ({"weights": (1.0, 2.0)}, "weights must be 1 numbers, got 2"), ({"heuristics": "cats"}, "must be callable"),
        ({"norm": 1.0}, "norm goes with several beams"), ({"reuse": 2}, "reuse goes with several beams"),
        ({"h_max": 0.0}, "h_max goes with several beams"), ({"chunk": 4, "reuse": 1}, "reuse does not go with chunks"),
        ({"chunk_temperature": 0.0}, "chunk_temperature must be above 0"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DeAL(**{"heuristics": likes, **options})
