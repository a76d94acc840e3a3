"""Needles: where they are planted, and what counts as found."""

from types import SimpleNamespace

import pytest
import torch

import tokops
from tokops.hf.prompts import read_prompt
from tokops.kv import needles
from tokops.methods import Dense


def test_needles_lie_in_the_middle_once_each(text, tokenizer):
    hay = needles.build(text, tokenizer, 1400, 5, seed=3)
    read = tokenizer.decode(hay.ids)
    assert len(hay.ids) <= 1400
    for needle in hay.needles:
        sentence = f"\n\n{needle.question}{needle.answer}.\n\n"
        assert read.count(sentence) == 1
        assert 0.15 * len(read) < read.index(sentence) < 0.85 * len(read)
    plain = read
    for needle in hay.needles:
        plain = plain.replace(f"\n\n{needle.question}{needle.answer}.\n\n", "")
    assert text.startswith(plain)
    assert len(plain) > 1400 - 5 * 80


def test_places_follow_from_the_seed(text, tokenizer):
    same = [needles.build(text, tokenizer, 1200, 4, seed=1).ids for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], needles.build(text, tokenizer, 1200, 4, seed=2).ids)


def test_answers_differ():
    assert len({x.answer for x in needles.NEEDLES}) == len({x.question for x in needles.NEEDLES}) == 16


@pytest.mark.parametrize(
    ("tokens", "count", "message"),
    [
        (1200, 17, "there are 1 to 16 needles, got 17"),
        (1200, 0, "there are 1 to 16 needles, got 0"),
        (300, 4, "no four sentences of the text fit into 300 tokens beside 4 needles"),
    ],
)
def test_what_does_not_fit_is_refused(text, tokenizer, tokens, count, message):
    with pytest.raises(needles.SizeError, match=message):
        needles.build(text, tokenizer, tokens, count)


class _Words:
    """A tokenizer of whole words, which knows the vocabulary that it is given."""

    def __init__(self, words):
        self.words = words

    def __call__(self, text, **kwargs):
        return SimpleNamespace(input_ids=[self.words.index(x) for x in text.split()])


class _Cache:
    """Counts what is put in and taken back."""

    held = 0

    def crop(self, tokens):
        self.held += tokens


def test_found_said_and_loss_are_told_apart():
    asked = (
        needles.Needle("a is", " one"),
        needles.Needle("b is", " two"),
        needles.Needle("c is", " six"),
    )
    words = ["a", "b", "c", "is", "one", "two", "six", "other"]
    # What the model says after "a is", "b is" and "c is": it says one; prefers two to one and six; prefers one.
    said = {0: [4.0, 1.0, 0.0, 2.0], 1: [1.0, 3.0, 0.0, 5.0], 2: [3.0, 0.0, 2.0, 1.0]}

    class Model:
        device = torch.device("cpu")

        def __call__(self, ids, use_cache, **kwargs):
            cache = next(iter(kwargs.values()))
            cache.held += ids.shape[1]
            rows = torch.full((1, ids.shape[1], 8), -50.0)
            rows[0, -1, 4:] = torch.tensor(said[int(ids[0, 0])])
            return SimpleNamespace(logits=rows)

    cache, ticks = _Cache(), []
    found = needles.ask(Model(), cache, _Words(words), asked, ticks.append)
    assert (found.found, found.said, found.asked) == (2, 1, 3)
    assert found.accuracy == pytest.approx(2 / 3)
    rows = torch.tensor([said[i] for i in range(3)]).log_softmax(-1)
    assert found.loss == pytest.approx(-float(rows[[0, 1, 2], [0, 1, 2]].mean()), rel=1e-5)
    assert cache.held == 0
    assert ticks == [1, 1, 1]


@torch.no_grad()
def test_answers_that_share_their_first_token_are_compared_whole(model, tokenizer, text):
    """A byte tokenizer begins every answer with a space: likelihoods are those of whole answers."""
    prompt = read_prompt(model, tokenizer(text[:300], return_tensors="pt").input_ids[0])
    with tokops.patch(model, Dense()) as run:
        cache = prompt.fill(run.new_cache())
        two = needles.NEEDLES[:2]
        likely, greedy = needles._likely(model, cache, tokenizer, two[0].question, [x.answer for x in two])
        assert cache.get_seq_length() == 300
    question = tokenizer("\n\n" + two[0].question).input_ids
    for got, needle in zip(likely, two, strict=True):
        end = tokenizer(needle.answer).input_ids
        whole = torch.tensor([prompt.ids.tolist() + question + end])
        rows = model(whole).logits[0, -len(end) - 1 : -1].log_softmax(-1)
        assert float(got) == pytest.approx(float(rows[range(len(end)), end].sum()), abs=1e-3)
    assert greedy == set()
