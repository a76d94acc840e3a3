"""Tree speculation where tokens are drawn: plain sampling's very tokens, processors on every branch, and exact laws."""

import pytest
import torch
from odd_drafters import Odd
from scipy.stats import chi2
from tiny_models import build
from transformers import LogitsProcessor

import tokops
from tokops.hf.drafters import ModelDrafter
from tokops.methods import Speculate
from tokops.sampling import sample

NEW = 20
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
SAMPLED = {"do_sample": True, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def model():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    return model


def texts_of(out, prompts):
    """Texts without padding on the left."""
    return [row[mask.argmax() :].tolist() for row, mask in zip(out, prompts["attention_mask"], strict=True)]


def drafts(truth):
    """Drafts of every kind that are verified against the tokens of plain sampling."""
    settings = {"match_plain": True, "seed": 3}
    yield Speculate("prompt_lookup", **settings)
    yield Speculate("early_exit", nodes=9, **settings)
    yield Speculate(lambda model: Odd(truth, rows=25), **settings)
    yield Speculate(lambda model: Odd(truth, rows=40, chain=True, empty=0.2), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"temperature": 0.6, "top_k": 7},
        {"temperature": 1.4, "top_k": 0, "top_p": 0.8},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.2},
        {"top_k": 0, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"top_k": 9, "typical_p": 0.9, "renormalize_logits": True},
    ],
    ids=str,
)
def test_matching_plain_sampling_gives_its_tokens(settings, model, prompts):
    with tokops.patch(model, Speculate("none", seed=3)):
        expected = model.generate(**prompts, **SAMPLED, **settings)
    truth = texts_of(expected, prompts)
    for method in drafts(truth):
        with tokops.patch(model, method) as run:
            assert torch.equal(model.generate(**prompts, **SAMPLED, **settings), expected)
            if callable(method.draft):
                assert run.report().tokens_per_call > 1.3, "drafts are meant to be accepted"


@pytest.mark.parametrize(
    "settings", [{"top_k": 0, "min_p": 0.2}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}], ids=str
)
def test_no_draft_is_plain_sampling_by_hand(settings, model, prompts):
    """Every token by a forward of the stock model over the whole text, and a draw named by seed, row and position."""
    expected = []
    for row, (ids, mask) in enumerate(zip(prompts["input_ids"], prompts["attention_mask"], strict=True)):
        text = ids[mask.argmax() :].tolist()
        for _ in range(NEW):
            with torch.no_grad():
                logits = model(torch.tensor([text])).logits[:, -1]
            text.append(int(sample(logits, seed=3, stream=row, position=len(text), **settings)))
        expected.append(text)
    with tokops.patch(model, Speculate("none", seed=3)):
        out = model.generate(**prompts, **SAMPLED, **settings)
    assert texts_of(out, prompts) == expected


def test_a_sequence_draws_its_own_numbers_whoever_is_beside_it(model, prompts):
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    for verify in ("rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block", "target_only"):
        method = Speculate("early_exit", verify=verify, seed=11, nodes=7, depth=2)
        with tokops.patch(model, method):
            alone = model.generate(ids[:1, 6:], **SAMPLED)[0, 15:]
            for others in ([1], [1, 1, 0]):
                rows = [0, *others]
                out = model.generate(ids[rows], attention_mask=mask[rows], eos_token_id=40, **SAMPLED)
                tokens = out[0, 21:].tolist()
                tokens = tokens[: tokens.index(40) + 1] if 40 in tokens else tokens
                assert tokens == alone[: len(tokens)].tolist()
                assert len(set(map(tuple, out[:, 21:].tolist()))) == len(rows), "streams are of their own"


def test_streams_name_the_numbers_of_a_sequence_wherever_it_is(model, prompts):
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    rows, streams = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([7, 2**32 - 1, 0, 3, 4])

    def generate(method, order):
        given = {"attention_mask": mask[rows[order]], "streams": streams[order].tolist()}
        with tokops.patch(model, method):
            return model.generate(ids[rows[order]], **given, **SAMPLED)

    for method in (
        Speculate("none", seed=3),
        Speculate("prompt_lookup", match_plain=True, seed=3),
        Speculate("early_exit", match_plain=True, nodes=7, seed=3),
        Speculate("early_exit", verify="rrs_wo", nodes=7, depth=2, seed=3),
    ):
        whole = generate(method, torch.arange(5))
        assert len(set(map(tuple, whole.tolist()))) == 5
        for order in ([3, 1, 4, 0, 2], [2], [4, 0]):
            assert torch.equal(generate(method, torch.tensor(order)), whole[order])


def test_the_seed_comes_from_torch_unless_it_is_given(model, prompts):
    ids = prompts["input_ids"][1:]

    def twice(method, again):
        with tokops.patch(model, method):
            torch.manual_seed(1)
            first = model.generate(ids, **SAMPLED)
            torch.manual_seed(again)
            return torch.equal(first, model.generate(ids, **SAMPLED))

    assert twice(Speculate("early_exit"), 1)
    assert not twice(Speculate("early_exit"), 2)
    assert twice(Speculate("early_exit", seed=4), 2)


# ---- Processors.


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 9, "eos_token_id": [5, 77]},
        {"bad_words_ids": [[92], [26, 86], [89, 87, 65]], "suppress_tokens": [17]},
        {"sequence_bias": [[[10, 11], 6.0], [[20], 3.0], [[11], 2.5]]},
        {"exponential_decay_length_penalty": (4, 1.3), "eos_token_id": 5},
        {"prefix_allowed_tokens_fn": lambda b, ids: [3 + b + 2 * ((int(ids[-1]) * 7 + i) % 40) for i in (1, 5, 9)]},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_processors_follow_every_branch(settings, model, prompts):
    expected = model.generate(**prompts, **GREEDY, **settings)
    assert not torch.equal(expected, model.generate(**prompts, **GREEDY)), "the processor is meant to matter"
    truth = texts_of(expected, prompts)
    for method in (Speculate(), Speculate("early_exit", nodes=9), Speculate(lambda m: Odd(truth, rows=25))):
        with tokops.patch(model, method):
            assert torch.equal(model.generate(**prompts, **GREEDY, **settings), expected)


class Grammar(LogitsProcessor):
    """Knows a text only as one token behind another that it knows, as an incremental matcher does."""

    def __init__(self, prompts):
        self.known = {tuple(row) for row in prompts.tolist()}
        self.seen = []

    def __call__(self, input_ids, scores):
        assert len(input_ids) == len(scores)
        for text in map(tuple, input_ids.tolist()):
            assert text in self.known or text[:-1] in self.known, "a text whose beginning was never seen"
            self.known.add(text)
            self.seen.append(text)
        # What may follow depends on the sum of the text, so that one branch's mask is wrong for another.
        sums = input_ids.sum(1, keepdim=True)
        return scores.masked_fill((torch.arange(scores.shape[1]) + sums) % 3 == 0, float("-inf"))


@pytest.mark.parametrize("sampled", [False, True])
def test_a_processor_sees_prompts_and_paths_and_nothing_else(sampled, model, prompts):
    settings = {**SAMPLED, "top_k": 0} if sampled else GREEDY
    settings = {**settings, "eos_token_id": 44}
    ids, made = prompts["input_ids"], []
    with tokops.patch(model, Speculate("none", seed=3)):
        expected = model.generate(**prompts, **settings, logits_processor=[Grammar(ids)])
    if not sampled:
        stock = model.generate(**prompts, **settings, logits_processor=[Grammar(ids)])
        assert torch.equal(expected, stock)

    def factory(model):
        made.append(Odd(texts_of(expected, prompts), rows=19))
        return made[-1]

    grammar = Grammar(ids)
    with tokops.patch(model, Speculate(factory, match_plain=True, seed=3)):
        out = model.generate(**prompts, **settings, logits_processor=[grammar])
    assert torch.equal(out, expected)
    allowed, kept = [], [list(row) for row in ids.tolist()]
    final = [row.tolist() for row in out]
    final = [row[: row.index(44, 21) + 1] if 44 in row[21:] else row for row in final]
    for row, whole in zip(kept, final, strict=True):
        row.append(whole[21])
        allowed.append(tuple(row[:-1]))
    for step in made[0].paths:
        for b, paths in enumerate(step):
            if len(kept[b]) == len(final[b]):
                continue
            allowed += [(*kept[b], *path) for path in paths]
            best = max((p for p in paths if list(p) == final[b][len(kept[b]) :][: len(p)]), key=len)
            kept[b] = final[b][: len(kept[b]) + len(best) + 1]
    assert sorted(grammar.seen) == sorted(allowed)


# ---- Laws.

VOCABULARY, LENGTH = 7, 3


@pytest.fixture(scope="module")
def small():
    """A model whose first layers are of another opinion than all of them, but not of quite another."""
    model = build(
        "llama", vocab_size=VOCABULARY, num_hidden_layers=3, hidden_size=32, intermediate_size=32,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    return model


PROMPT = torch.tensor([[3, 5, 4]])


@torch.no_grad()
def law_of(model, temperature=1.0, top_k=None):
    """Probabilities of all texts of three tokens behind the prompt, in float64."""
    law, texts = torch.ones(1, dtype=torch.float64), PROMPT
    for _ in range(LENGTH):
        logits = model(texts).logits[:, -1].double() / temperature
        if top_k is not None:
            cut = logits.topk(top_k).values[:, -1:]
            logits = logits.masked_fill(logits < cut, float("-inf"))
        law = (law[:, None] * logits.softmax(-1)).flatten()
        more = torch.arange(VOCABULARY).repeat(len(texts))[:, None]
        texts = torch.cat([texts.repeat_interleave(VOCABULARY, 0), more], 1)
    return law


def distance(model, law, method, streams=2500, calls=3, **settings):
    """Chi-square of generated texts against a law, over its 0.999 quantile."""
    counts = torch.zeros_like(law)
    weights = torch.tensor([VOCABULARY**i for i in range(LENGTH)][::-1])
    for call in range(calls):
        with tokops.patch(model, method(call)) as run:
            # One token more than is looked at, or no tree would be deeper than one level.
            settings = {"do_sample": True, "max_new_tokens": LENGTH + 1, "top_k": 0, **settings}
            out = model.generate(PROMPT.expand(streams, -1), **settings)
            assert run.report().tokens_per_call > 1.1, "drafts are meant to be accepted"
        counts += torch.bincount((out[:, 3 : 3 + LENGTH] * weights).sum(1), minlength=len(law))
    expected = law * streams * calls
    assert (counts[expected == 0] == 0).all()
    often = expected >= 5
    seen = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    return float(((seen - wanted) ** 2 / wanted).sum()) / chi2.ppf(0.999, max(len(seen) - 1, 1))


MODES = ["target_only", "rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block"]


@pytest.mark.parametrize("verify", MODES)
def test_texts_follow_the_models_law(verify, small):
    def method(seed):
        return Speculate("early_exit", exit_layer=2, verify=verify, nodes=7, depth=2, seed=seed)

    assert distance(small, law_of(small), method) < 1


@pytest.mark.parametrize("support", [1, 2, 3])
@pytest.mark.parametrize("verify", ["rrs_wo", "greedy_plus_one"])
def test_texts_follow_a_cut_law(verify, support, small):
    """Fewer tokens are left than a node has children."""

    def method(seed):
        return Speculate("early_exit", exit_layer=2, verify=verify, tree=[-1, 0, 0, 0, 0, 1, 1, 1], seed=seed)

    law = law_of(small, 0.8, support)
    assert distance(small, law, method, temperature=0.8, top_k=support, calls=2) < 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
        {"temperature": 1e-4},
        {"top_k": 2, "top_p": 0.5, "min_p": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("verify", ["rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block"])
def test_laws_of_few_tokens_go_through(verify, settings, prompts):
    """A peaked law leaves some nodes fewer tokens than children, and others none to draw."""
    peaked = build("llama")
    with torch.no_grad():
        peaked.lm_head.weight.mul_(20)
    with tokops.patch(peaked, Speculate("early_exit", verify=verify, seed=0)):
        assert peaked.generate(**prompts, **SAMPLED, **settings).shape[1] == 21 + NEW


def test_a_drafter_that_lies_about_its_law_is_found_out(small, monkeypatch):
    honest = ModelDrafter._draw

    def lying(self, session, p, *rest):
        return honest(self, session, p.square(), *rest)

    monkeypatch.setattr(ModelDrafter, "_draw", lying)

    def method(seed):
        return Speculate("early_exit", exit_layer=2, verify="rrs", nodes=7, depth=2, seed=seed)

    assert distance(small, law_of(small), method) > 5


def test_a_chain_that_is_judged_as_a_whole_never_meets_its_numbers_again(model, prompts, monkeypatch):
    """Where it ends depends on the numbers of tokens behind that: were they to decide those tokens, too, they would
    no longer be uniform."""
    used = [set(), set()]
    honest = ModelDrafter.propose

    def watched(self, session):
        proposal = honest(self, session)
        for seen, first in zip(used, session.positions.tolist(), strict=True):
            own = set(range(first, first + proposal.nodes))
            assert not own & seen
            seen |= own
        return proposal

    monkeypatch.setattr(ModelDrafter, "propose", watched)
    with tokops.patch(model, Speculate("early_exit", verify="chain_block", depth=5)):
        model.generate(**prompts, **SAMPLED)
    assert len(used[0]) > NEW


def test_chains_that_begin_alike_go_on_by_draws_of_their_own(small, monkeypatch):
    """kseq takes its drafts for independent, also where two of them have agreed so far."""
    alike = []
    honest = ModelDrafter.propose

    def watched(self, session):
        proposal = honest(self, session)
        if proposal.nodes == 5:  # two chains of two
            first, second = proposal.tokens[:, 1:3], proposal.tokens[:, 3:]
            alike.append((second[:, 0] == second[:, 1])[first[:, 0] == first[:, 1]])
        return proposal

    monkeypatch.setattr(ModelDrafter, "propose", watched)
    with tokops.patch(small, Speculate("early_exit", exit_layer=2, verify="kseq", nodes=5, depth=2, seed=0)):
        small.generate(PROMPT.expand(300, -1), do_sample=True, top_k=0, max_new_tokens=4)
    share = torch.cat(alike).float().mean()
    assert 0.1 < share < 0.9
