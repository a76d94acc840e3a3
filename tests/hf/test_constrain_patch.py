"""Constraining methods through ``patch``: in sequence, beside everything else, and gone afterwards."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_models import build
from toy_words import END, TOKENS, text_of
from transformers import LogitsProcessor, StoppingCriteria

import tokops
from tokops.hf import InflightGenerator
from tokops.hf.caad import build_grounding
from tokops.hf.constrain import Padding, TextStates
from tokops.hf.thinking import Writer
from tokops.methods import (
    CAAD,
    CNTP,
    DeAL,
    Dense,
    LinearProbe,
    Method,
    QuantizedKV,
    RefusalTokens,
    Speculate,
    StreamingMonitor,
    TidalDecode,
    VocabularyFilters,
)
from tokops.sampling import Sampling

PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 0, 9, 4, 40], [3, 4, 5, 6, 7, 8], [30, 31, 32, 11, 12, 60]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6, [1] * 6]),
}
GREEDY = {**PROMPTS, "do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=7, head_dim=32)


def likes(ids):
    return float(sum(i % 3 == 0 for i in ids))


@pytest.fixture(scope="module")
def methods(model):
    """One of each, which all have something to say."""
    store = build_grounding(model, None, [([9, 4, 40], [20, 21, 22, 23])], dtype=torch.float32)
    return [
        VocabularyFilters(strings=TOKENS, lipogram="eao"),
        CAAD(store, alpha=0.8, beta=0.0),
        RefusalTokens(11, 13),
        DeAL(likes, k=3, look_ahead=2, on_ids=True),
        StreamingMonitor(LinearProbe(torch.ones(64) / 8), theta=0.5, k=9),
    ]


def test_several_constrain_in_the_order_given(model, methods):
    for chosen in (methods, methods[::-1]):
        with tokops.patch(model, *chosen) as run:
            got = model.generate(**GREEDY)
            report = run.report()
        assert report.slots == {"constrain": ", ".join(type(m).__name__ for m in chosen)}
        assert [type(m).__name__ in text for m, text in zip(chosen, report.methods, strict=True)] == [
            True
        ] * 5
        assert len(run.hooks) == 5
        # One by one by hand, in the same order.
        added, criteria = [], []
        for m in chosen:
            if isinstance(m, StreamingMonitor):
                criteria.append(m.criterion(model))
                added += criteria[-1].processors
            elif isinstance(m, VocabularyFilters | RefusalTokens):
                added.append(m.processor(model=model))
            else:
                added.append(m.processor(model))
        by_hand = model.generate(**GREEDY, logits_processor=added, stopping_criteria=criteria)
        assert torch.equal(got, by_hand)
    assert (got[:, 6] == 13).all() or (got[:, 6] == 11).all()


def test_all_of_them_under_speculation(model, methods):
    with tokops.patch(model, *methods):
        expected = model.generate(**GREEDY)
    for draft in ("prompt_lookup", "early_exit"):
        with tokops.patch(model, *methods, Speculate(draft, nodes=5)) as run:
            assert torch.equal(model.generate(**GREEDY), expected)
            assert run.report().slots["verify"] == "Speculate"


def test_the_same_numbers_give_the_same_samples_under_speculation(model, methods):
    """Sampling with ``match_plain`` draws the very tokens of plain sampling, under constraints too."""
    chosen = [methods[0], methods[1], methods[4]]
    settings = {**GREEDY, "do_sample": True, "temperature": 1.2}
    found = []
    for draft in ("none", "prompt_lookup", "early_exit"):
        with tokops.patch(model, *chosen, Speculate(draft, match_plain=draft != "none", nodes=6, seed=5)):
            found.append(model.generate(**settings))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not set("eao") & set("".join(text_of(row[6:]) for row in found[0]))


def test_any_store_and_selection_beside_them(model, methods):
    for beside in ((QuantizedKV(bits=8),), (TidalDecode(budget=8, reselect_layer=5),), (Dense(),)):
        with tokops.patch(model, *beside, *methods[:3], methods[4]) as run:
            got = model.generate(**GREEDY)
            alone = [
                model.generate(ids[None, int(mask.argmax()) :], do_sample=False, max_new_tokens=12)[0, -12:]
                for ids, mask in zip(*PROMPTS.values(), strict=True)
            ]
            assert {"constrain", *beside[0].slots} == set(run.report().slots)
        for row, own in zip(got[:, 6:], alone, strict=True):
            kept = int((row != 0).sum())
            assert torch.equal(row[:kept], own[:kept])


def test_trials_are_constrained_too(model):
    method = VocabularyFilters(strings=TOKENS, lipogram="eao", min_words=3)
    with tokops.patch(
        model, method, CNTP(h_max=3.0, n_max=4, stop_tokens=tuple(range(40, 70)), max_trial_len=5)
    ):
        got = model.generate(**PROMPTS, do_sample=True, max_new_tokens=12, seed=1)
    assert not set("eao") & set("".join(text_of(row[6:]) for row in got))


class Loud(LogitsProcessor):
    """Wants one token, whatever it costs."""

    def __call__(self, input_ids, scores):
        return torch.where(torch.arange(scores.shape[1]) == TOKENS.index(b"e"), 50.0, scores)


class Short(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 9)


def test_the_callers_own_come_first_and_stay(model):
    with tokops.patch(model, VocabularyFilters(strings=TOKENS, lipogram="e")):
        processors, criteria = [Loud()], [Short()]
        got = model.generate(**GREEDY, logits_processor=processors, stopping_criteria=criteria)
        assert got.shape[1] == 9
        assert not set("e") & set("".join(text_of(row[6:]) for row in got))
        assert len(processors) == len(criteria) == 1
        with pytest.raises(TypeError, match="by keyword"):
            model.generate(PROMPTS["input_ids"], None, processors)


def test_hooks_are_gone_after_a_generation_and_after_an_error(model, methods):
    def count():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    with tokops.patch(model, *methods):
        before = count()
        model.generate(**GREEDY)
        assert count() == before
        with pytest.raises(RuntimeError, match="stop here"):
            model.generate(
                **GREEDY, logits_processor=[lambda ids, scores: exec("raise RuntimeError('stop here')")]
            )
        assert count() == before
    processor = methods[1].processor(model)
    assert count() == before - 1 + 1  # the patch's own hook is gone, the processor's is there
    del processor
    assert count() == before - 1


def test_loops_that_do_not_know_them_refuse(model, methods):
    with tokops.patch(model, methods[0]):
        with pytest.raises(
            ValueError, match="VocabularyFilters constrains generate; pass its processor to submit"
        ):
            InflightGenerator(model, max_slots=2)
        with pytest.raises(ValueError, match="VocabularyFilters constrains generate and does not run in it"):
            Writer(model, Sampling(temperature=0.0), 0, 0, 97, frozenset())


def test_a_processor_serves_an_inflight_batch(model):
    method = VocabularyFilters(strings=TOKENS, lipogram="eao", min_words=2)
    with tokops.patch(model):
        batch = InflightGenerator(model, max_slots=2)
        for ids in PROMPTS["input_ids"][1:]:
            batch.submit(ids, max_new_tokens=12, processors=[method.processor(model=model)])
        got = batch.run()
    alone = model.generate(
        PROMPTS["input_ids"][1:],
        do_sample=False,
        max_new_tokens=12,
        logits_processor=[method.processor(model=model)],
    )
    assert [got[i] for i in (0, 1)] == alone[:, 6:].tolist()


@dataclass(frozen=True)
class _Other(Method):
    slots: ClassVar[tuple[str, ...]] = ("constrain", "verify")


def test_other_slots_still_clash(model, methods):
    with pytest.raises(ValueError, match="clash: both fill the slot 'verify'"):
        tokops.patch(model, _Other(), methods[0], _Other())
    tokops.patch(model, methods[0], methods[0], _Other()).undo()


# ---- What the processors share.


def test_states_follow_texts_through_trees_beams_and_new_prompts():
    begun, followed = [], Counter()

    def begin(ids, extra):
        begun.append(tuple(ids))
        return (len(ids), ())

    def follow(state, token, extra):
        followed[extra] += 1
        return (state[0], (*state[1], token))

    states = TextStates(begin, follow)
    prompt = [5, 6, 7]
    assert states.of(torch.tensor([prompt, [8, 8, 8]])) == [(3, ()), (3, ())]
    # A tree: depth by depth, branches of different tokens, the same text twice.
    assert states.of(torch.tensor([[*prompt, 1], [*prompt, 2], [*prompt, 1]]), "aab") == [
        (3, (1,)),
        (3, (2,)),
        (3, (1,)),
    ]
    assert followed == {"a": 2}
    assert states.of(torch.tensor([[*prompt, 2, 9]])) == [(3, (2, 9))]
    # A rejected branch is taken up again; a beam changes places.
    assert states.of(torch.tensor([[8, 8, 8, 4], [*prompt, 1]])) == [(3, (4,)), (3, (1,))]
    # The next turn of a chat: more than one token longer than anything seen.
    assert states.of(torch.tensor([[*prompt, 2, 9, 1, 1]])) == [(7, ())]
    assert begun == [(5, 6, 7), (8, 8, 8), (5, 6, 7, 2, 9, 1, 1)]
    assert states.find([*prompt, 2]) == (3, (2,))
    assert states.find([1, 2, 3]) is None


def test_states_of_criteria_begin_behind_the_prompt():
    states = TextStates(
        lambda ids, extra: (len(ids), 0), lambda state, token, extra: (state[0], state[1] + 1), True
    )
    assert states.of(torch.tensor([[5, 6, 7]])) == [(2, 1)]
    assert states.of(torch.tensor([[5, 6, 7, 8]])) == [(2, 2)]
    assert states.of(torch.tensor([[5, 6, 9]])) == [(2, 1)]


def test_states_that_nobody_asks_for_are_forgotten():
    states = TextStates(lambda ids, extra: 0, lambda state, token, extra: state + 1, capacity=10)
    text = [5]
    for n in range(40):
        assert states.of(torch.tensor([text])) == [n]
        text.append(n)
    assert len(states._states) == 10


def test_where_a_prompt_begins():
    known = Padding.of(build("llama", num_hidden_layers=1), *PROMPTS.values())
    assert [known.start(row) for row in PROMPTS["input_ids"].tolist()] == [3, 0, 0]
    # A mask is believed, also where the text begins with the padding token.
    ids, mask = torch.tensor([[0, 0, 5]]), torch.tensor([[0, 1, 1]])
    model = build("llama", num_hidden_layers=1)
    assert Padding.of(model, ids, mask).start([0, 0, 5]) == 1
    assert Padding.of(model, ids, None).start([0, 0, 5]) == 2
    assert Padding().start([0, 0, 5]) == 0
    assert END == 2
