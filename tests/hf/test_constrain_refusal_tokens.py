"""Refusal tokens: what every mode decides, on logits and in ``generate``, row by row and once."""

import itertools
import math
import re

import pytest
import torch
from tiny_models import build, byte_tokenizer
from transformers import RepetitionPenaltyLogitsProcessor

import tokops
from tokops.methods import RefusalTokens, Speculate
from tokops.methods.refusal_tokens import choose_threshold, refusal_curve

REFUSE, OTHER, RESPOND = 11, 12, 13
IDS = [REFUSE, OTHER, RESPOND]
PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 9, 4, 40], [3, 4, 5, 6, 7], [30, 31, 32, 11, 12]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1] * 5]),
}


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=3)


@pytest.fixture
def logits():
    return torch.randn(64, 97, generator=torch.Generator().manual_seed(5)) * 3


def probabilities(logits, temperature=1.0):
    """Of the control tokens, in float64."""
    return (logits.double() / temperature).softmax(-1)[:, IDS]


def test_thresholds_at_the_ends_and_against_the_pair(logits):
    def decided(tau):
        return RefusalTokens(REFUSE, RESPOND, tau=tau).decide(logits, [REFUSE, RESPOND])[0]

    assert set(decided(0.0).tolist()) == {REFUSE}
    assert set(decided(1.001).tolist()) == {RESPOND}
    p = logits[:, [REFUSE, RESPOND]]
    assert torch.equal(decided(-1.0), torch.tensor([REFUSE, RESPOND])[p.argmax(-1)])
    kept = [
        set((decided(tau) == REFUSE).nonzero()[:, 0].tolist())
        for tau in (0.0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 1.001)
    ]
    assert all(a >= b for a, b in itertools.pairwise(kept))
    assert len({len(x) for x in kept}) > 3


def test_a_tie_refuses():
    logits = torch.zeros(1, 4)
    decide = RefusalTokens(0, 1, tau=0.25).decide(logits, [0, 1])
    assert decide[0].tolist() == [0]
    assert RefusalTokens(0, 1).decide(logits, [0, 1])[0].tolist() == [0]


def test_a_bias_is_a_threshold_on_the_pair(logits):
    for tau in (0.05, 0.3, 0.5, 0.9):
        method = RefusalTokens(REFUSE, RESPOND, mode="bias", biases=RefusalTokens.bias_of(tau))
        got = method.processor()(torch.full((64, 3), 5), logits).argmax(-1)
        pair = logits.double()[:, [REFUSE, RESPOND]].softmax(-1)
        assert torch.equal(got, torch.where(pair[:, 0] >= tau, REFUSE, RESPOND))
    assert RefusalTokens.bias_of(0.0) == math.inf
    assert RefusalTokens.bias_of(1.0) == -math.inf


def test_biases_move_suppress_and_force(logits):
    def law(**options):
        method = RefusalTokens((REFUSE, OTHER), RESPOND, mode="bias", **options)
        return method.processor()(torch.full((64, 3), 5), logits).double().softmax(-1)

    plain = law()
    own = probabilities(logits)
    torch.testing.assert_close(plain[:, IDS], own / own.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert torch.equal(plain.nonzero()[:, 1].unique(), torch.tensor(IDS))
    moved = logits.double()[:, IDS] + torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(
        law(biases=(1.0, -2.0), respond_bias=0.5)[:, IDS], moved.softmax(-1), atol=1e-6, rtol=1e-5
    )
    assert (law(biases=-math.inf)[:, RESPOND] == 1).all()
    assert (law(biases=(math.inf, 0.0))[:, REFUSE] == 1).all()


def test_categories_decide_only_for_those_selected(logits):
    p = probabilities(logits, 1.5)
    best = p[:, :2].argmax(-1)
    method = RefusalTokens(
        (REFUSE, OTHER), RESPOND, mode="category", tau=(0.1, 0.02), selected=(1,), softmax_temperature=1.5
    )
    got, scores = method.decide(logits, IDS)
    torch.testing.assert_close(scores.double(), p[:, :2], atol=1e-6, rtol=1e-5)
    expected = torch.where(p[:, 1] >= 0.02, OTHER, RESPOND)
    assert torch.equal(got, torch.where(best == 1, expected, -1))
    out = method.processor()(torch.full((64, 3), 5), logits)
    assert torch.equal(out[best == 0], logits[best == 0])
    assert torch.equal(out[best == 1].argmax(-1), expected[best == 1])


def test_the_sum_of_categories_refuses_with_the_likeliest(logits):
    p = probabilities(logits)
    sums, best = p[:, :2].sum(-1), p[:, :2].amax(-1)
    tau = float((sums + best)[int((sums / best).argmax())] / 2)  # between the two for one row at least
    got, _ = RefusalTokens((REFUSE, OTHER), RESPOND, mode="sum", tau=tau).decide(logits, IDS)
    named = torch.tensor([REFUSE, OTHER])[p[:, :2].argmax(-1)]
    assert torch.equal(got, torch.where(sums >= tau, named, RESPOND))
    alone, _ = RefusalTokens((REFUSE, OTHER), RESPOND, mode="category", tau=tau).decide(logits, IDS)
    assert not torch.equal(got, alone)


@pytest.mark.parametrize(
    "settings", [{"do_sample": False}, {"do_sample": True, "temperature": 5.0}, {"num_beams": 3}]
)
@pytest.mark.parametrize("patched", [False, True])
def test_exactly_one_control_token_is_emitted(settings, patched, model):
    for tau, token in ((0.0, REFUSE), (2.0, RESPOND)):
        method = RefusalTokens(REFUSE, RESPOND, tau=tau)
        if patched:
            with tokops.patch(model, method):
                torch.manual_seed(1)
                got = model.generate(**PROMPTS, **settings, max_new_tokens=8)
        else:
            torch.manual_seed(1)
            got = model.generate(
                **PROMPTS, **settings, max_new_tokens=8, logits_processor=[method.processor(model=model)]
            )
        assert (got[:, 5] == token).all()
        # What follows is what follows this token anyway.
        if settings == {"do_sample": False}:
            mask = torch.cat([PROMPTS["attention_mask"], torch.ones(3, 1).long()], 1)
            free = model.generate(input_ids=got[:, :6], attention_mask=mask, max_new_tokens=7, **settings)
            assert torch.equal(got, free)


def test_the_temperature_of_the_decision_is_not_that_of_the_text(model):
    settings = {**PROMPTS, "do_sample": False, "max_new_tokens": 8}
    found = []
    for temperature in (1.0, 2.0):
        with tokops.patch(model, RefusalTokens(REFUSE, RESPOND, tau=0.0, softmax_temperature=temperature)):
            found.append(model.generate(**settings))
    assert torch.equal(*found)


def test_a_batch_of_policies_is_what_each_decides_alone(model):
    policies = [
        RefusalTokens(REFUSE, RESPOND, tau=0.0),
        RefusalTokens((REFUSE, OTHER), RESPOND, mode="bias", biases=(-math.inf, math.inf)),
        RefusalTokens(REFUSE, RESPOND, mode="none"),
    ]
    settings = {"do_sample": False, "max_new_tokens": 6}
    processor = policies[0].processor(requests=policies)
    got = model.generate(**PROMPTS, **settings, logits_processor=[processor])
    for i, policy in enumerate(policies):
        start = int(PROMPTS["attention_mask"][i].argmax())
        alone = model.generate(
            PROMPTS["input_ids"][i : i + 1, start:], **settings, logits_processor=[policy.processor()]
        )
        assert torch.equal(got[i, 5:], alone[0, 5 - start :])
    assert len(processor.scores) == 3
    # Beams of one request are next to each other.
    beams = model.generate(
        **PROMPTS, num_beams=2, max_new_tokens=4, logits_processor=[policies[0].processor(requests=policies)]
    )
    assert beams[0, 5] == REFUSE
    assert beams[1, 5] == OTHER


def test_rows_of_policies_with_other_categories_modes_and_temperatures(logits):
    """One call decides all rows: tables of different widths, and what one row has is nothing to another."""
    third, nan = 40, float("nan")
    policies = [
        RefusalTokens(
            (REFUSE, OTHER, third), RESPOND, mode="category", tau=(1e-3, 0.3, 5e-3), selected=(0, 2)
        ),
        RefusalTokens(REFUSE, OTHER, softmax_temperature=2.0),
        RefusalTokens((OTHER, third), REFUSE, mode="sum", tau=1e-3, softmax_temperature=0.5),
        RefusalTokens(third, RESPOND, mode="none"),
        RefusalTokens((REFUSE, third), OTHER, mode="bias", biases=(1.0, -1.0)),
    ]
    logits = logits[:60].clone()
    logits[5:20, third] = nan
    tokens = [[REFUSE, OTHER, third, RESPOND], [REFUSE, OTHER], [OTHER, third, REFUSE], [third, RESPOND]]
    tokens.append([REFUSE, third, OTHER])
    processor = policies[0].processor(requests=policies)
    got = processor(torch.full((60, 3), 5), logits)
    x = logits.double().nan_to_num(-math.inf)
    outcomes: list[set] = [set() for _ in policies]
    for i, row in enumerate(x):  # rows of one policy are next to each other
        own = i * len(policies) // 60
        policy, ids = policies[own], tokens[own]
        p = (row / policy.softmax_temperature).softmax(-1)[ids]
        assert processor.scores[i] == pytest.approx(p[:-1].tolist(), abs=1e-6)
        best = int(p[:-1].argmax())
        wanted = {
            0: -1 if best == 1 else ids[best] if p[best] >= policy.tau[best] else RESPOND,
            1: ids[0] if row[ids[0]] >= row[ids[1]] else ids[1],
            2: ids[best] if p[:-1].sum() >= 1e-3 else ids[-1],
            3: -1,
        }.get(own)
        if own == 4:
            moved = row[ids] + torch.tensor([1.0, -1.0, 0.0])
            assert torch.equal(got[i].isneginf().logical_not().nonzero()[:, 0], torch.tensor(sorted(ids)))
            torch.testing.assert_close(got[i, ids].double().softmax(-1), moved.softmax(-1), atol=1e-6, rtol=0)
        elif wanted == -1:
            assert torch.equal(got[i].nan_to_num(9.0), logits[i].nan_to_num(9.0))
        else:
            assert torch.equal(got[i] == 0, torch.arange(97) == wanted)
            assert int(got[i].isneginf().sum()) == 96
        outcomes[own].add(wanted)
    assert [len(x) for x in outcomes] == [3, 2, 2, 1, 1]


def test_what_is_next_to_impossible_is_told_apart_all_the_same():
    """Probabilities are 0 far below the largest: the pair and the likeliest category are a matter of the logits."""
    logits = torch.full((2, 8), -70.0)
    logits[:, 0], logits[0, 2], logits[1, 3] = 0.0, -50.0, -50.0
    assert RefusalTokens(2, 3).decide(logits, [2, 3])[0].tolist() == [2, 3]
    several = RefusalTokens((1, 2, 3), 4, mode="category", tau=0.0)
    got, scores = several.decide(logits, [1, 2, 3, 4])
    assert got.tolist() == [2, 3]
    assert not scores.any()


def test_tokens_that_the_model_does_not_have(model):
    rows = torch.randn(2, 97)
    for refuse, respond, token in ((97, 5, 97), (5, 200, 200), (-1, 5, -1)):
        with pytest.raises(ValueError, match=f"RefusalTokens: token {token} is beyond the model's 97"):
            RefusalTokens(refuse, respond).processor()(torch.full((2, 3), 5), rows)
    fine = RefusalTokens(REFUSE, RESPOND)
    with pytest.raises(ValueError, match="token 97 is beyond"):
        model.generate(
            **PROMPTS, max_new_tokens=2,
            logits_processor=[fine.processor(requests=[fine, RefusalTokens(97, 5), fine])],
        )  # fmt: skip


@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit"])
def test_speculation_gives_the_tokens_of_one_by_one_decoding(draft, model):
    method = RefusalTokens(REFUSE, RESPOND)
    settings = {**PROMPTS, "do_sample": False, "max_new_tokens": 12}
    with tokops.patch(model, method):
        expected = model.generate(**settings)
    with tokops.patch(model, method, Speculate(draft, nodes=6)):
        assert torch.equal(model.generate(**settings), expected)


def test_a_patched_model_decides_on_its_own_logits(model):
    """A repetition penalty comes first in ``generate``: it must not change the decision."""
    ids = torch.tensor([[REFUSE, 5, REFUSE, 9]])
    with torch.no_grad():
        logits = model(ids).logits[:, -1].float()
    p = logits[0].double().softmax(-1)
    tau = float(p[REFUSE]) * 0.999
    method = RefusalTokens(REFUSE, RESPOND, tau=tau)
    scores = RepetitionPenaltyLogitsProcessor(3.0)(ids, logits)
    assert float(scores.double().softmax(-1)[0, REFUSE]) != pytest.approx(float(p[REFUSE]), rel=1e-3)
    for penalty in (1.0, 3.0, 0.3):
        with tokops.patch(model, method) as run:
            got = model.generate(ids, repetition_penalty=penalty, max_new_tokens=2, do_sample=False)
            assert got[0, 4] == REFUSE
            assert run.hooks[0].processors[0].scores[0][0] == pytest.approx(float(p[REFUSE]), rel=1e-4)


def test_the_hook_is_gone_after_every_generation(model):
    with tokops.patch(model, RefusalTokens(REFUSE, RESPOND)):
        before = len(model._forward_hooks)
        model.generate(**PROMPTS, max_new_tokens=2)
        assert len(model._forward_hooks) == before
        with pytest.raises(NotImplementedError, match="does not support assisted decoding"):
            model.generate(PROMPTS["input_ids"][1:2], prompt_lookup_num_tokens=2, max_new_tokens=2)


def test_one_processor_serves_one_generation_after_the_other(model):
    processor = RefusalTokens(REFUSE, RESPOND, tau=0.0).processor()
    ids = PROMPTS["input_ids"][1:]
    for _ in range(2):  # a chat: every turn is the whole text before and a new question
        ids = model.generate(ids, max_new_tokens=5, do_sample=False, logits_processor=[processor])
        assert (ids[:, -5] == REFUSE).all()
        ids = torch.cat([ids, torch.tensor([[17, 18], [19, 20]])], 1)


def test_tokens_given_as_text_must_be_one_token():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[refuse]", "[respond]"], special_tokens=True)
    method = RefusalTokens(" [refuse]", "[respond]", tau=0.0)
    scores = torch.randn(1, len(tokenizer))
    assert method.processor(tokenizer)(
        torch.tensor([[5]]), scores
    ).argmax() == tokenizer.convert_tokens_to_ids("[refuse]")
    with pytest.raises(ValueError, match="'no' must be one token of the tokenizer, it is 2"):
        RefusalTokens("no", "[respond]").processor(tokenizer)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        method.processor()
    with pytest.raises(ValueError, match="tokens must differ"):
        RefusalTokens(5, 5).processor()


def test_curves_and_thresholds_of_a_validation_set():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.2])
    refuse = torch.tensor([True, True, False, True, False, False])
    curve = refusal_curve(scores, refuse)
    assert curve.true_refusals.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1, 1])
    assert curve.false_refusals.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    wins = sum(float(a > b) for a in scores[refuse] for b in scores[~refuse])
    assert curve.area == pytest.approx(wins / 9)
    assert choose_threshold(scores, refuse, 0.0) == pytest.approx(0.8)
    assert choose_threshold(scores, refuse, 0.4) == pytest.approx(0.6)
    assert choose_threshold(scores, refuse) == pytest.approx(0.6)  # F1 of 6/7
    assert choose_threshold(torch.tensor([0.9, 0.1]), torch.tensor([False, True]), 0.0) > 1
    with pytest.raises(ValueError, match="with both kinds"):
        refusal_curve(scores, torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maybe"}, "mode must be one of none, threshold"),
        ({"tau": -0.5}, "tau must be at least 0, or -1"),
        ({"tau": (0.1, 0.2)}, "tau must be one number or 1, got 2"),
        ({"mode": "sum"}, "tau -1 compares with respond"),
        ({"selected": (0,)}, "selected goes with mode category"),
        ({"mode": "category", "tau": 0.1, "selected": (3,)}, "selected must be numbers in 0..0"),
        ({"softmax_temperature": 0.0}, "softmax_temperature must be 1e-5..1e5"),
        ({"refuse": range(33)}, "refuse must name 1..32 tokens, got 33"),
        ({"refuse": ()}, "refuse must name 1..32 tokens, got 0"),
        ({"biases": math.inf, "respond_bias": math.inf}, "one token can be forced"),
        ({"biases": -math.inf, "respond_bias": -math.inf}, "biases suppress every control token"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RefusalTokens(**{"refuse": REFUSE, "respond": RESPOND, **options})
