"""SpecTr through tokops.patch: plain greedy tokens, the exact law of sampled texts, what drafts give, and refusals."""

import pytest
import torch
from joint_laws import SIZE, excess, joint_law, narrow, samples
from slow_loop import NEW, PROMPTS, padded, plain, tiny
from tiny_models import build

import tokops
from tokops.methods import SpecTr, Speculate, TidalDecode

PROMPT = [1, 3, 2]


def generate(model, methods, prompts=PROMPTS, new=NEW, **settings):
    """New tokens of a padded batch, and tokens per call."""
    methods = methods if isinstance(methods, tuple) else (methods,)
    with tokops.patch(model, *methods, page_size=8) as run:
        out = model.generate(**padded(prompts), max_new_tokens=new, **{"do_sample": False, **settings})
    return out[:, -new:], run.report().tokens_per_call


# ---- Greedy decoding.


@pytest.mark.parametrize("draft", ["early_exit", "another model", "the same weights"])
def test_greedy_tokens_are_those_of_plain_decoding(draft):
    seeds = {"another model": 1, "the same weights": 0}
    model = tiny()
    draft = build("llama", seed=seeds[draft]) if draft in seeds else draft
    method = SpecTr(draft, drafts=3, length=3)
    out, _ = generate(model, method)
    assert out.tolist() == [text[-NEW:] for text in plain()]
    alone, _ = generate(model, method, PROMPTS[1:2])
    assert alone[0].tolist() == plain()[1][-NEW:]


def test_a_method_that_selects_gives_the_tokens_it_gives_without_speculation():
    model, tidal = tiny(), TidalDecode(budget=9, reselect_layer=3)
    with tokops.patch(model, tidal, page_size=8):
        want = model.generate(**padded(PROMPTS), do_sample=False, max_new_tokens=NEW)[:, -NEW:]
    out, calls = generate(model, (SpecTr(build("llama"), drafts=2, length=3), tidal))
    assert torch.equal(out, want)
    assert calls > 1


# ---- Sampling.


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ({}, {}),
        ({"drafts": 1, "length": 2}, {}),
        ({"drafts": 6, "length": 2}, {"temperature": 0.7, "top_k": 3}),
        ({"rho": 4.0}, {}),
        ({"rho": 9.0, "length": 1}, {"temperature": 1.4}),
    ],
    ids=str,
)
def test_sampled_texts_follow_the_law(method, settings):
    """4000 texts of four tokens each. Of five tokens four drafts hold equal ones nearly always: merging them, or
    testing them once, would show."""
    model, draft = narrow(0), narrow(1, 1)
    with tokops.patch(model, SpecTr(draft, seed=5, **method), page_size=8) as run:
        counts = samples(model, PROMPT, 4, 4000, **settings)
    law = {"temperature": settings.get("temperature", 1.0), "top_k": settings.get("top_k", SIZE)}
    assert excess(counts, joint_law([model] * 4, PROMPT, **law)) < 1
    assert excess(counts, joint_law([draft] * 4, PROMPT, **law)) > 5  # the draft's is another law
    assert run.report().tokens_per_call > 1.2


def test_one_draft_is_standard_speculative_sampling():
    model, draft = tiny(), build("llama", seed=1)
    chain = Speculate(draft, verify="rrs", nodes=4, depth=3, tree=range(-1, 3), seed=11)
    want, calls = generate(model, chain, do_sample=True)
    got, same = generate(model, SpecTr(draft, drafts=1, length=3, seed=11), do_sample=True)
    assert torch.equal(got, want)
    assert same == calls > 1


def test_a_draft_that_is_the_model_is_accepted_whole():
    """Prefill decides one token; every step after it gives three accepted tokens and one behind them."""
    model = tiny()
    for drafts in (1, 3):
        _, calls = generate(
            model, SpecTr(build("llama"), drafts=drafts, length=3, seed=2), new=1 + 4 * 5, do_sample=True
        )
        assert calls == 4


def test_more_drafts_give_more_tokens():
    model, draft = narrow(0), narrow(1, 1)
    calls = []
    for drafts in (1, 2, 4, 8):
        _, rate = generate(
            model, SpecTr(draft, drafts=drafts, length=3, seed=3), [PROMPT] * 200, new=25, do_sample=True, top_k=0
        )  # fmt: skip
        calls.append(rate)
    assert calls == sorted(calls)
    assert calls[-1] > 1.2 * calls[0]


def test_a_seed_decides_the_tokens():
    model, draft = narrow(0), narrow(1, 1)
    batch = [PROMPT] * 50
    runs = [
        generate(model, SpecTr(draft, drafts=2, length=2, seed=seed), batch, do_sample=True)[0]
        for seed in (4, 4, 5)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    alone, _ = generate(model, SpecTr(draft, drafts=2, length=2, seed=4), batch[:1], do_sample=True)
    assert torch.equal(alone[0], runs[0][0])


# ---- What it takes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"drafts": 0}, "drafts must be 1..64, got 0"),
        ({"drafts": 65, "length": 1}, "drafts must be 1..64, got 65"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"drafts": 32, "length": 8}, r"drafts \* length must be at most 255, got 32 \* 8"),
        ({"rho": 3.5}, "rho must be at least drafts, 4, and finite, got 3.5"),
        ({"rho": float("inf")}, "rho must be at least drafts"),
        ({"rho": float("nan")}, "rho must be at least drafts"),
        ({"draft": "prompt_lookup"}, "verify kseq needs children that were drawn, prompt_lookup has none"),
        ({"draft": "none"}, "verify kseq needs children that were drawn, none has none"),
        ({"draft": "eagle"}, "draft must be one of"),
    ],
)
def test_numbers_that_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"SpecTr: {words}"):
        SpecTr(**arguments)


@pytest.mark.parametrize("option", ["verify", "nodes", "depth", "tree", "match_plain", "delta", "min_match"])
def test_options_of_other_drafts_do_not_exist(option):
    with pytest.raises(TypeError, match=option):
        SpecTr(**{option: 1})


def test_drafts_and_length_decide_the_rows():
    method = SpecTr(drafts=3, length=5)
    assert (method.mode, method.nodes, method.depth) == ("kseq", 16, 5)
    assert eval(repr(method)).nodes == 16


def test_models_that_cannot_draft_are_refused():
    model = tiny()
    with pytest.raises(
        ValueError, match="SpecTr: the drafting model has a vocabulary of 5, the model one of 97"
    ):
        generate(model, SpecTr(narrow(0)), do_sample=True)
    with pytest.raises(ValueError, match="SpecTr: a model cannot draft for itself"):
        generate(model, SpecTr(model), do_sample=True)
