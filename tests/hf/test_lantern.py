"""LANTERN through tokops.patch: lossless without a budget, the exact relaxed law with one, and refusals."""

import pytest
import torch
from joint_laws import SIZE, excess, joint_law, narrow, samples
from slow_loop import NEW, PROMPTS, padded, tiny
from tiny_models import build

import tokops
from tokops.methods import LANTERN, Speculate, TidalDecode
from tokops.speculative import lantern_tv, neighbour_table

PROMPT = [1, 3, 2]


def table(size=97, k=96, seed=0):
    codes = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    return neighbour_table(codes, k, normalise=False)


def generate(model, methods, prompts=PROMPTS, new=NEW, **settings):
    """New tokens of a padded batch, and tokens per call."""
    methods = methods if isinstance(methods, tuple) else (methods,)
    with tokops.patch(model, *methods, page_size=8) as run:
        out = model.generate(**padded(prompts), max_new_tokens=new, **{"do_sample": False, **settings})
    return out[:, -new:], run.report().tokens_per_call


# ---- No budget.

#: How children come about, and the lossless mode that it goes with.
CHILDREN = {
    "drawn": ({}, "rrs_wo"),
    "likeliest": ({"children": "likeliest"}, "target_only"),
    "prompt lookup": ({"draft": "prompt_lookup"}, "target_only"),
}
NOTHING = [
    {"delta": 0.0},
    {"lam": 1.0},
    {"delta": 0.0, "residual": "plain"},
    {"delta": 0.0, "residual": "compat"},
]


@pytest.mark.parametrize("budget", NOTHING, ids=str)
@pytest.mark.parametrize("children", CHILDREN)
def test_without_a_budget_tokens_are_those_of_the_lossless_mode(children, budget):
    model, prompts = narrow(0), [[1, 3, 2, 4], [2, 1], [1, 2, 3, 1, 2, 3, 1]]
    options, mode = CHILDREN[children]
    options = {"draft": narrow(1, 1), "nodes": 9, "seed": 3, **options}
    relaxed = LANTERN(neighbours=table(SIZE, SIZE - 1), **options, **budget)
    options.pop("children", None)
    # Tokens that cannot be sampled are neighbours of those that can.
    chance = {"do_sample": True, "top_k": 3}
    want, calls = generate(model, Speculate(verify=mode, **options), prompts, **chance)
    got, same = generate(model, relaxed, prompts, **chance)
    assert torch.equal(got, want)
    assert same == calls > 1
    plain_tokens = model.generate(**padded(prompts), do_sample=False, max_new_tokens=NEW)[:, -NEW:]
    assert torch.equal(generate(model, relaxed, prompts)[0], plain_tokens)


def test_tokens_that_are_no_code_are_verified_without_loss():
    """Codes are tokens 60 to 96, and none of them can be sampled: a whole budget changes nothing."""
    model, draft = tiny(), build("llama", seed=1)
    chance = {"do_sample": True, "suppress_tokens": list(range(60, 97)), "temperature": 2.0}
    options = {"nodes": 9, "seed": 3}
    relaxed = LANTERN(draft, neighbours=table(37, 36), token_offset=60, delta=1.0, **options)
    want, calls = generate(model, Speculate(draft, verify="rrs_wo", **options), **chance)
    got, same = generate(model, relaxed, **chance)
    assert torch.equal(got, want)
    assert same == calls > 1


def test_a_method_that_selects_gives_the_tokens_it_gives_without_speculation():
    model, tidal = tiny(), TidalDecode(budget=9, reselect_layer=3)
    with tokops.patch(model, tidal, page_size=8):
        want = model.generate(**padded(PROMPTS), do_sample=False, max_new_tokens=NEW)[:, -NEW:]
    out, calls = generate(model, (LANTERN(build("llama"), neighbours=table(), delta=0.0, nodes=9), tidal))
    assert torch.equal(out, want)
    assert calls > 1


# ---- A budget.


@torch.no_grad()
def relaxed_law(model, draft, neighbours, **budget):
    """Law of three tokens where the second is decided by one level with one draft."""
    first = joint_law([model], PROMPT)
    law = joint_law([model] * 3, PROMPT)
    far = []
    for x in range(SIZE):
        q, p = (joint_law([m], [*PROMPT, x]) for m in (model, draft))
        level = lantern_tv(q, p, neighbours, **budget)
        far.append(float(level.tv))
        law[x] = first[x] * level.law[:, None] * law[x] / law[x].sum(1, keepdim=True)
    assert max(far) > 0.05
    return law


@pytest.mark.parametrize(
    "budget",
    [
        {"delta": 0.2},
        {"delta": 0.2, "residual": "plain"},
        {"delta": 0.35, "residual": "compat"},
        {"lam": 2.5},
    ],
    ids=str,
)
def test_sampled_texts_follow_the_relaxed_law(budget):
    """4000 texts of three tokens: the first is the model's, the second has a draft, the third no room for one."""
    model, draft, neighbours = narrow(0), narrow(1, 1), table(SIZE, SIZE - 1)
    method = LANTERN(draft, tree=(-1, 0), nodes=2, neighbours=neighbours, seed=5, **budget)
    with tokops.patch(model, method, page_size=8):
        counts = samples(model, PROMPT, 3, 4000)
    assert excess(counts, relaxed_law(model, draft, neighbours, **budget)) < 1
    assert excess(counts, joint_law([model] * 3, PROMPT)) > 1.5


@pytest.mark.parametrize("residual", ["moved", "plain", "compat"])
def test_a_whole_budget_gives_the_law_of_the_draft(residual):
    """After the first token two are drafted and accepted, and the last is the model's again."""
    model, draft = narrow(0), narrow(1, 1)
    method = LANTERN(
        draft, tree=(-1, 0, 1), neighbours=table(SIZE, SIZE - 1), delta=1.0, residual=residual, seed=5
    )
    with tokops.patch(model, method, page_size=8) as run:
        counts = samples(model, PROMPT, 4, 4000)
    assert run.report().tokens_per_call == 3
    assert excess(counts, joint_law([model, draft, draft, model], PROMPT)) < 1


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("children", ["drawn", "likeliest"])
def test_a_whole_budget_accepts_everything(children, sampled):
    model, draft = tiny(), build("llama", seed=1)
    method = LANTERN(draft, tree=(-1, 0, 0, 1, 3), neighbours=table(), delta=1.0, children=children, seed=2)
    _, calls = generate(model, method, new=1 + 4 * 5, do_sample=sampled)
    assert calls == 4


@torch.no_grad()
def test_greedy_tokens_are_the_largest_once_they_have_borrowed():
    """Every text is gone through once more, with one forward per text and sums by hand."""
    model, draft, near, delta = tiny(), build("llama", seed=1), table(), 0.3
    others = 0
    for mode in ("drawn", "likeliest"):  # without sampling both are the likeliest
        method = LANTERN(draft, nodes=16, neighbours=near, k=20, delta=delta, children=mode)
        out, _ = generate(model, method)
        for prompt, new in zip(PROMPTS, out.tolist(), strict=True):
            text = prompt + new
            laws = model(torch.tensor([text])).logits[0].double().softmax(-1)
            for i in range(len(prompt), len(text)):
                q, x = laws[i - 1], text[i]
                mass = 0.0
                for y in near[x, :20].tolist():
                    if mass + q[y] > delta:
                        break
                    mass += float(q[y])
                others += x != int(q.argmax())
                assert x == int(q.argmax()) or q[x] + mass > q.max() - 1e-5
    assert others > 10


def test_columns_beyond_k_are_not_used():
    method = LANTERN(neighbours=table(), k=7)
    assert torch.equal(method.verify_options["neighbours"], table()[:, :7])
    assert LANTERN(neighbours=[[1], [0]]).table.tolist() == [[1], [0]]


# ---- What it takes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"neighbours": None}, "neighbours must be the neighbour table of an image codebook, got None"),
        ({"neighbours": torch.zeros(3, dtype=torch.int32)}, r"neighbours must be \[codes, K\].*, got \[3\]"),
        ({"neighbours": torch.zeros(3, 0, dtype=torch.int32)}, r"with at least one column, got \[3, 0\]"),
        ({"neighbours": [[1], [2]]}, r"neighbours must be codes 0..1, got 1..2"),
        ({"neighbours": [[1], [-1]]}, r"neighbours must be codes 0..1, got -1..1"),
        ({"neighbours": torch.zeros(3, 2)}, "neighbours must be integers, got float32"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"delta": 1.5}, "delta must be 0..1, got 1.5: a factor is lam"),
        ({"delta": float("nan")}, "delta must be 0..1, got nan"),
        ({"lam": 0.9}, "lam must be at least 1 and finite, got 0.9"),
        ({"lam": 2.0, "delta": 0.2}, "delta and lam are two budgets: one must be left out, got 0.2 and 2.0"),
        ({"token_offset": -1}, "token_offset must be at least 0, got -1"),
        ({"residual": "all"}, "residual must be one of moved, plain, compat, got 'all'"),
        ({"children": "all"}, "children must be one of drawn, likeliest, got 'all'"),
        ({"children": "drawn", "draft": "prompt_lookup"}, "drawn children need a model that drafts"),
        ({"nodes": 300}, "nodes must be 1..256, got 300"),
    ],
    ids=str,
)
def test_numbers_that_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"LANTERN: .*{words}"):
        LANTERN(**{"neighbours": table(), **arguments})


@pytest.mark.parametrize("option", ["verify", "match_plain", "eps"])
def test_options_of_other_modes_do_not_exist(option):
    with pytest.raises(TypeError, match=option):
        LANTERN(neighbours=table(), **{option: 1})


def test_codes_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="a vocabulary of 97, which 97 codes from token 1 on leave"):
        tokops.patch(tiny(), LANTERN(neighbours=table(), token_offset=1))


def test_nothing_relaxes_by_itself():
    assert Speculate().mode == "target_only"
    with pytest.raises(ValueError, match="Speculate: verify lantern needs a table of neighbours: use tokops"):
        Speculate("early_exit", verify="lantern")
