"""Tree speculation through ``generate``: greedy tokens are stock's, whatever is drafted, and whatever ends a text."""

import pytest
import torch
from odd_drafters import Odd
from tiny_models import FAMILIES, build, byte_tokenizer
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import tokops
from tokops.hf.drafting import Proposal
from tokops.methods import Speculate, TidalDecode
from tokops.speculative import Eagle2Tree

NEW = 20
GREEDY = {"do_sample": False, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def model():
    return build("llama")


def texts_of(out, prompts):
    """Texts without padding on the left."""
    return [row[mask.argmax() :].tolist() for row, mask in zip(out, prompts["attention_mask"], strict=True)]


def odd(truth=(), **settings):
    return lambda model: Odd(truth, **settings)


DRAFTS = {
    "none": lambda truth: Speculate("none"),
    "prompt_lookup": lambda truth: Speculate("prompt_lookup"),
    "early_exit": lambda truth: Speculate("early_exit", nodes=9),
    "a model": lambda truth: Speculate(build("llama", seed=1, num_hidden_layers=2), nodes=9),
    "eagle2": lambda truth: Speculate("early_exit", tree=Eagle2Tree(branch=3, expansions=2, nodes=9)),
    "random trees": lambda truth: Speculate(odd(rows=17)),
    "right trees": lambda truth: Speculate(odd(truth)),
    "equal siblings": lambda truth: Speculate(odd(truth, rows=30, twins=True, vocabulary=6)),
    "often nothing": lambda truth: Speculate(odd(truth, empty=0.6)),
    "deeper than the room": lambda truth: Speculate(odd(truth, rows=70, chain=True)),
    "256 rows": lambda truth: Speculate(odd(truth, rows=256)),
}


@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit", "right trees"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_stocks_in_every_family(family, draft, prompts):
    model = build(family)
    expected = model.generate(**prompts, **GREEDY)
    truth = texts_of(expected, prompts)
    with tokops.patch(model, DRAFTS[draft](truth), page_size=4) as run:
        assert torch.equal(model.generate(**prompts, **GREEDY), expected)
        assert torch.equal(model.generate(prompts["input_ids"][1:], **GREEDY), expected[1:])
        if draft == "right trees":
            assert run.report().tokens_per_call > 1.3


@pytest.mark.parametrize("draft", DRAFTS)
def test_greedy_tokens_are_stocks_under_every_draft(draft, model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    with tokops.patch(model, DRAFTS[draft](texts_of(expected, prompts))):
        for _ in range(2):
            assert torch.equal(model.generate(**prompts, **GREEDY), expected)
        assert torch.equal(model.generate(prompts["input_ids"][1:], **GREEDY), expected[1:])


def test_lossless_modes_are_all_greedy_where_nothing_is_sampled(model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    for verify in ("rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block", "typical"):
        with tokops.patch(model, Speculate("early_exit", verify=verify, nodes=7, depth=2)):
            assert torch.equal(model.generate(**prompts, **GREEDY), expected)


def test_greedy_decoding_leaves_torchs_random_numbers_alone(model, prompts):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with tokops.patch(model, Speculate()):
        model.generate(**prompts, **GREEDY)
    assert torch.equal(torch.get_rng_state(), before)


# ---- What ends a text.


@pytest.mark.parametrize("draft", ["none", "early_exit", "right trees", "deeper than the room"])
def test_end_tokens_inside_a_block(draft, model, prompts):
    free = model.generate(**prompts, **GREEDY)
    truth = texts_of(free, prompts)
    ends = [int(free[0, 26]), int(free[1, 33])]
    for settings in ({"eos_token_id": ends}, {"eos_token_id": ends, "min_new_tokens": 11}):
        expected = model.generate(**prompts, **GREEDY, **settings)
        assert (expected[:, 21:] == 0).any(), "rows are meant to end at different steps"
        with tokops.patch(model, DRAFTS[draft](truth)):
            assert torch.equal(model.generate(**prompts, **GREEDY, **settings), expected)


@pytest.mark.parametrize("new", [1, 2, 3, 5, 8])
def test_a_maximum_length_inside_a_block(new, model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    for draft in ("prompt_lookup", "early_exit", "deeper than the room"):
        method = DRAFTS[draft](texts_of(expected, prompts))
        with tokops.patch(model, method):
            out = model.generate(**prompts, do_sample=False, max_new_tokens=new)
            assert torch.equal(out, expected[:, : 21 + new])


def test_stop_strings():
    model, tokenizer = build("llama", vocab_size=256), byte_tokenizer()
    ids = torch.randint(97, 122, (1, 12), generator=torch.Generator().manual_seed(0))
    printable = {**GREEDY, "suppress_tokens": list(range(94, 256))}
    free = model.generate(ids, **printable)
    word = tokenizer.decode(free[0, 17:19])
    settings = {**printable, "stop_strings": [word], "tokenizer": tokenizer}
    expected = model.generate(ids, **settings)
    assert expected.shape[1] < free.shape[1]
    with tokops.patch(model, Speculate(odd(free.tolist(), rows=9, chain=True))):
        assert torch.equal(model.generate(ids, **settings), expected)


class Growing(StoppingCriteria):
    """Sees every text grow by one token at a time, and ends those that got ``most``."""

    def __init__(self, most):
        self.most, self.seen = most, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen += input_ids.tolist()
        return torch.tensor([len(row) >= self.most for row in input_ids])


def test_a_criterion_sees_every_token_once(model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    criterion = Growing(21 + 13)
    with tokops.patch(model, Speculate(odd(texts_of(expected, prompts)))):
        out = model.generate(**prompts, **GREEDY, stopping_criteria=[criterion])
    assert torch.equal(out, expected[:, : 21 + 13])
    grown = [row[:n].tolist() for row in out for n in range(22, 35)]
    assert sorted(criterion.seen) == sorted(grown)


# ---- Around the loop.


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_tokens_in_order(model, prompts):
    ids = prompts["input_ids"][1:]
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model, Speculate(odd(expected.tolist()))):
        stream = Collect()
        model.generate(ids, **GREEDY, streamer=stream)
        assert stream.ended
        assert stream.tokens == expected[0].tolist()
        with pytest.raises(ValueError, match="a streamer takes one sequence, got 2"):
            model.generate(**prompts, **GREEDY, streamer=Collect())


def test_results_with_names(model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    with tokops.patch(model, Speculate("early_exit")) as run:
        cache = run.new_cache()
        out = model.generate(**prompts, **GREEDY, return_dict_in_generate=True, past_key_values=cache)
        assert torch.equal(out.sequences, expected)
        assert out.cache is cache
        assert cache.lengths == [21 + NEW - 1] * 2, "the last token given out is not cached"


@pytest.mark.parametrize("given", ["all tokens", "new tokens"])
def test_a_conversation_continues_on_its_cache(given, model, prompts):
    more = torch.randint(3, 97, (2, 3), generator=torch.Generator().manual_seed(4))
    first = model.generate(**prompts, **GREEDY)
    whole = torch.cat([first, more], 1)
    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, NEW + 3), value=1)
    expected = model.generate(whole, attention_mask=mask, **GREEDY)
    for draft in ("prompt_lookup", "early_exit", "right trees"):
        method = DRAFTS[draft](texts_of(expected, {"attention_mask": mask}))
        with tokops.patch(model, method, page_size=8) as run:
            cache = run.new_cache()
            model.generate(**prompts, **GREEDY, past_key_values=cache)
            new = whole[:, cache.get_seq_length() :] if given == "new tokens" else whole
            out = model.generate(new, attention_mask=mask, **GREEDY, past_key_values=cache)
        assert torch.equal(out[:, -NEW:], expected[:, -NEW:])


def test_prompts_in_chunks(model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    with tokops.patch(model, Speculate("early_exit")):
        assert torch.equal(model.generate(**prompts, **GREEDY, prefill_chunk_size=5), expected)


def test_tokens_per_call_counts_what_sequences_got(model, prompts):
    ids = prompts["input_ids"][1:]
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model, Speculate(odd(expected.tolist(), rows=3, chain=True))) as run:
        model.generate(ids, do_sample=False, max_new_tokens=13)
        assert run.report().tokens_per_call == 3.0  # the prompt gives the first, four forwards three each
        assert "tokens per call        3.00" in str(run.report())
    with tokops.patch(model, Speculate("none")) as run:
        model.generate(**prompts, **GREEDY)
        assert run.report().tokens_per_call == 1.0


def state_of(model):
    return (
        {n: (sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        dict(vars(model.config)),
        [(p.data_ptr(), p.requires_grad) for p in model.parameters()],
    )  # fmt: skip


class Failing(Odd):
    wants_hidden = True

    def commit(self, session, proposal, verdict):
        raise ArithmeticError("on purpose")


@pytest.mark.parametrize("draft", ["a model", "early_exit", "failing"])
def test_undo_is_exact_also_of_the_drafting_model_and_after_a_failure(draft, model, prompts):
    helper, odd = build("llama", seed=1, num_hidden_layers=2), Failing()
    before, helpers = state_of(model), state_of(helper)
    expected = model.generate(**prompts, **GREEDY)
    given = {"a model": helper, "early_exit": "early_exit", "failing": lambda model: odd}[draft]
    with tokops.patch(model, Speculate(given)):
        if draft == "failing":
            with pytest.raises(ArithmeticError, match="on purpose"):
                model.generate(**prompts, **GREEDY)
            assert odd.ended == 1
        else:
            with pytest.raises(ZeroDivisionError):
                model.generate(**prompts, **GREEDY, stopping_criteria=[lambda ids, scores: 1 // 0])
            model.generate(**prompts, **GREEDY)
        assert state_of(helper) == helpers
    assert state_of(model) == before
    assert torch.equal(model.generate(**prompts, **GREEDY), expected)


# ---- What is refused.


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_beams": 3}, "num_beams"),
        ({"output_scores": True}, "output_scores"),
        ({"output_logits": True}, "output_logits"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"prompt_lookup_num_tokens": 4}, "prompt_lookup_num_tokens"),
        ({"use_cache": False}, "use_cache"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search"),
        ({"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidanceLogitsProcessor"),
        ({"assistant_model": "the helper"}, "assistant_model"),
    ],
)
def test_what_the_loop_does_not_do_is_refused_by_name(settings, name, model, prompts):
    if "assistant_model" in settings:
        settings = {"assistant_model": build("llama", num_hidden_layers=1)}
    with (
        tokops.patch(model, Speculate()),
        pytest.raises(NotImplementedError, match=f"Speculate .*does not support {name}"),
    ):
        model.generate(prompts["input_ids"], **{**GREEDY, **settings})


def test_sampling_under_greedy_verification_is_refused(model, prompts):
    with (
        tokops.patch(model, Speculate(verify="greedy")),
        pytest.raises(ValueError, match="verify greedy goes with do_sample=False"),
    ):
        model.generate(prompts["input_ids"], do_sample=True)


def test_embeddings_are_refused(model, prompts):
    embedded = model.get_input_embeddings()(prompts["input_ids"])
    with tokops.patch(model, Speculate()), pytest.raises(NotImplementedError, match="inputs_embeds"):
        model.generate(inputs_embeds=embedded, **GREEDY)


def test_a_draft_model_of_another_vocabulary_is_refused(model, prompts):
    other = build("llama", vocab_size=90)
    with (
        tokops.patch(model, Speculate(other)),
        pytest.raises(ValueError, match="vocabulary of 90, the model one of 97"),
    ):
        model.generate(**prompts, **GREEDY)
    with tokops.patch(model, Speculate(model)), pytest.raises(ValueError, match="cannot draft for itself"):
        model.generate(**prompts, **GREEDY)


def test_dynamic_trees_go_with_children_that_are_not_drawn():
    with pytest.raises(
        ValueError, match="Speculate: tree Eagle2Tree goes with verify target_only or greedy, got rrs"
    ):
        Speculate("early_exit", verify="rrs", tree=Eagle2Tree())


class Wrong(Odd):
    def __init__(self, change):
        super().__init__(rows=5)
        self.change = change

    def propose(self, session):
        proposal = super().propose(session)
        fields = {
            "tokens": proposal.tokens,
            "parents": proposal.parents,
            "nodes": 5,
            "n_nodes": proposal.n_nodes,
        }
        return Proposal(**{**fields, **self.change(fields)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: {"tokens": f["tokens"][:1]}, r"tokens must be \[2, T\], got \[1, 5\]"),
        (lambda f: {"tokens": f["tokens"][0]}, r"tokens must be \[2, T\], got \[5\]"),
        (lambda f: {"parents": f["parents"][:, :4]}, r"parents must be \[2, 5\], got \[2, 4\]"),
        (lambda f: {"tokens": f["tokens"].long()}, "tokens must be int32, got torch.int64"),
        (lambda f: {"parents": f["parents"].to("meta")}, "parents must be on cpu, got meta"),
        (lambda f: {"n_nodes": f["n_nodes"][:1]}, r"n_nodes must be \[2\], got \[1\]"),
        (lambda f: {"nodes": 6}, "nodes must be 1..5, got 6"),
        (lambda f: {"nodes": 0}, "nodes must be 1..5, got 0"),
        (lambda f: {"tokens": f["tokens"] + 1}, "node 0 must be the last token of every sequence"),
        (lambda f: {"tokens": f["tokens"].index_fill(1, torch.tensor([4]), 97)}, r"0\.\.96, in padding too"),
        (lambda f: {"tokens": f["tokens"].index_fill(1, torch.tensor([4]), -1)}, r"0\.\.96, in padding too"),
        (lambda f: {"tokens": f["tokens"].new_zeros(2, 257)}, r"1\.\.256 rows per sequence, got 257"),
    ],
)
def test_proposals_that_are_none_are_refused(change, words, model, prompts):
    with (
        tokops.patch(model, Speculate(lambda model: Wrong(change))),
        pytest.raises(ValueError, match="Wrong: .*" + words),
    ):
        model.generate(**prompts, **GREEDY)


def test_a_drafter_that_proposes_nothing_is_refused(model, prompts):
    class Silent(Odd):
        def propose(self, session):
            return None

    with (
        tokops.patch(model, Speculate(lambda model: Silent())),
        pytest.raises(TypeError, match="Silent: propose must return a Proposal, got NoneType"),
    ):
        model.generate(**prompts, **GREEDY)


def test_parents_that_come_late_are_refused(model, prompts):
    late = Wrong(lambda f: {"parents": f["parents"].index_fill(1, torch.tensor([1]), 3)})
    with (
        tokops.patch(model, Speculate(lambda model: late)),
        pytest.raises(RuntimeError, match="tree_build: parents"),
    ):
        model.generate(**prompts, **GREEDY)


# ---- Beside methods of other slots.


@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit", "right trees"])
def test_over_selected_tokens_greedy_text_is_that_without_speculation(draft, prompts):
    model = build("llama", num_hidden_layers=7, head_dim=32)
    select = TidalDecode(budget=9, reselect_layer=5)
    with tokops.patch(model, select):
        expected = model.generate(**prompts, **GREEDY)
    with tokops.patch(model, select, DRAFTS[draft](texts_of(expected, prompts))):
        assert torch.equal(model.generate(**prompts, **GREEDY), expected)


def test_two_loops_and_two_drafters_clash(model):
    with pytest.raises(ValueError, match="clash"):
        tokops.patch(model, Speculate(), TidalDecode(budget=9, reselect_layer=3, correction_period=4))
    with pytest.raises(ValueError, match="both fill the slot 'draft'"):
        tokops.patch(model, Speculate(), Speculate())
