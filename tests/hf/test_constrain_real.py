"""Constraining methods on the real model, beside other methods: text that does what is asked."""

import re

import pytest
import torch

import tokops
from tokops.hf import load_smollm2
from tokops.hf.caad import build_grounding
from tokops.methods import (
    CAAD,
    DeAL,
    KeywordMonitor,
    QuantizedKV,
    RefusalTokens,
    Speculate,
    StreamingMonitor,
    VocabularyFilters,
    keyword_coverage,
)

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def real():
    return load_smollm2(torch.float32)


@pytest.fixture(scope="module")
def prompt(real):
    _, tokenizer = real
    return tokenizer("Once upon a time there was a small brown dog that", return_tensors="pt")


def text_of(real, prompt, *methods, new=16, **settings):
    model, tokenizer = real
    with tokops.patch(model, *methods) as run:
        out = model.generate(**prompt, max_new_tokens=new, do_sample=False, tokenizer=tokenizer, **settings)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :]), out, run


def test_a_lipogram_is_the_same_over_another_store_and_under_speculation(real, prompt):
    free, _, _ = text_of(real, prompt)
    assert "e" in free
    method = VocabularyFilters(lipogram="e", fold=True)
    text, plain, _ = text_of(real, prompt, method)
    assert "e" not in text.lower()
    assert len(re.findall(r"[a-z]+", text.lower())) > 5
    _, spoken, run = text_of(real, prompt, method, Speculate())
    assert torch.equal(spoken, plain)
    assert run.report().tokens_per_call >= 1.0
    stored, _, _ = text_of(real, prompt, method, QuantizedKV(bits=8))
    assert "e" not in stored.lower()


def test_words_are_those_of_a_lexicon(real, prompt):
    lexicon = [
        "a",
        "and",
        "big",
        "cat",
        "dog",
        "he",
        "home",
        "in",
        "it",
        "ran",
        "saw",
        "sun",
        "the",
        "to",
        "was",
    ]
    method = VocabularyFilters(by_word=True, lexicon=lexicon, min_words=5)
    text, _, _ = text_of(real, prompt, method)
    words = [word.rstrip("'") for word in re.findall(r"[A-Za-z][A-Za-z']*", text)]
    assert set(word.lower() for word in words[:-1]) <= set(lexicon)
    assert any(word.startswith(words[-1].lower()) for word in lexicon)
    assert len(words) >= 5


def test_short_words_in_a_tight_budget_of_letters(real, prompt):
    method = VocabularyFilters(
        by_word=True, shorter_than=5, isogram=1, budget="a" * 6 + "e" * 6 + "bcdhimnorstuwy" * 5
    )
    text, _, _ = text_of(real, prompt, method)
    words = re.findall(r"[^\W\d_]+", text)
    assert all(len(w) < 5 and len(set(w)) == len(w) for w in words)
    assert text.count("a") <= 6
    assert text.count("e") <= 6
    assert not set("fgjklpqvxz") & set(text)


def test_keywords_are_reached_by_looking_ahead(real, prompt):
    cover = keyword_coverage(["bark", ("run", "ran")])
    free, _, _ = text_of(real, prompt, new=6)
    assert cover(free) == 0.0
    for method in (
        DeAL(cover, lam=20.0, k=16, look_ahead=2),
        DeAL(cover, lam=20.0, k=16, look_ahead=2, beams=2),
    ):
        text, _, _ = text_of(real, prompt, method, new=6)
        assert cover(text) > 0.0


def test_a_keyword_ends_a_text(real, prompt):
    free, out, _ = text_of(real, prompt)
    word = re.findall(r"[a-z]{4,}", free)[1]
    method = StreamingMonitor(KeywordMonitor(word), k=1)
    text, stopped, run = text_of(real, prompt, method, Speculate())
    assert free.startswith(text)
    assert text.lower().rstrip(" .,").endswith(word) or word in text.lower()[-len(word) - 12 :]
    assert run.hooks[0].criteria[0].report(stopped[0]).stopped
    assert stopped.shape[1] < out.shape[1]


def test_true_answers_draw_towards_themselves(real):
    model, tokenizer = real
    pairs = [
        ("Question: What is the capital of Atlantis?\nAnswer:", " There is no such place."),
        ("Question: Who built the pyramids?\nAnswer:", " Egyptian workers did."),
    ]
    store = build_grounding(model, tokenizer, pairs, top=64, gold_bonus=15.0, end=tokenizer.eos_token_id)
    question = tokenizer("Question: What is the capital of Atlantis?\nAnswer:", return_tensors="pt")
    guided, _, _ = text_of(real, question, CAAD(store, alpha=0.9, beta=0.0, neighbours=1), new=8)
    free, _, _ = text_of(real, question, new=8)
    assert guided.startswith(" There is no such place.")
    assert not free.startswith(" There is no")


def test_the_first_token_is_decided(real):
    _, tokenizer = real
    question = tokenizer("Is the sky blue? Answer:", return_tensors="pt")
    for tau, word in ((0.0, " No"), (1.1, " Yes")):
        text, _, _ = text_of(real, question, RefusalTokens(" No", " Yes", tau=tau), new=4)
        assert text.startswith(word)
