"""Tree speculation through ``generate``: greedy tokens are stock's, whatever is drafted, and whatever ends a text."""

import copy

import pytest
import torch
from odd_drafters import Odd
from tiny_models import FAMILIES, build, byte_tokenizer
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import tokops
from tokops.hf.families import CACHE
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


def test_texts_that_end_with_their_first_token(model, prompts):
    free = model.generate(**prompts, **GREEDY)
    for ends in ([int(free[0, 21])], [int(free[1, 21])], free[:, 21].tolist()):
        expected = model.generate(**prompts, **GREEDY, eos_token_id=ends)
        for draft in ("prompt_lookup", "early_exit", "right trees"):
            with tokops.patch(model, DRAFTS[draft](texts_of(free, prompts))):
                assert torch.equal(model.generate(**prompts, **GREEDY, eos_token_id=ends), expected)


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
        assert out[CACHE] is cache
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


def test_a_drafter_learns_the_tokens_that_generate_was_given(model, prompts):
    seen = []

    class Listening(Odd):
        def begin(self, session, hidden):
            seen.append([list(text) for text in session.tokens])

    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, 3), value=1)
    more = torch.randint(3, 97, (2, 3), generator=torch.Generator().manual_seed(4))
    with tokops.patch(model, Speculate(lambda model: Listening())) as run:
        cache = run.new_cache()
        with torch.no_grad():
            model(**prompts, past_key_values=cache)
        out = model.generate(more, attention_mask=mask, **GREEDY, past_key_values=cache)
        whole = model.generate(torch.cat([prompts["input_ids"], more], 1), attention_mask=mask, **GREEDY)
    assert seen[0] == out[:, :4].tolist()
    assert seen[1] == [whole[0, 6:25].tolist(), whole[1, :25].tolist()]


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("draft", ["early_exit", "right trees"])
def test_continuations_that_share_the_pages_of_one_document(draft, copied, model, prompts):
    document = prompts["input_ids"][1:]
    ids = torch.cat([document.expand(5, -1), torch.arange(10, 15)[:, None]], 1)
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model, DRAFTS[draft](expected.tolist()), page_size=4) as run:
        cache = run.new_cache()
        with torch.no_grad():
            model(document, past_key_values=cache)
        cache.batch_repeat_interleave(5)
        used = copy.deepcopy(cache) if copied else cache
        assert torch.equal(model.generate(ids, **GREEDY, past_key_values=used), expected)
        if copied:
            assert torch.equal(model.generate(ids, **GREEDY, past_key_values=cache), expected)


class Watching(Odd):
    """Keeps the final hidden states of every sequence's tokens."""

    wants_hidden = True

    def begin(self, session, hidden):
        self.states = [[rows] for rows in hidden]

    def commit(self, session, proposal, verdict):
        for own, rows, kept in zip(self.states, verdict.hidden, verdict.kept, strict=True):
            own.append(rows[kept])


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_drafter_sees_the_hidden_states_of_what_is_kept(chunk, model, prompts):
    expected = model.generate(**prompts, **GREEDY)
    truth = texts_of(expected, prompts)
    drafter = Watching(truth)
    with tokops.patch(model, Speculate(lambda model: drafter)):
        model.generate(**prompts, **GREEDY, prefill_chunk_size=chunk)
    for text, states in zip(truth, drafter.states, strict=True):
        with torch.no_grad():
            want = model.model(torch.tensor([text[:-1]])).last_hidden_state[0]
        torch.testing.assert_close(torch.cat(states), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_smallest_trees_and_prompts(nodes, model):
    prompts = {
        "input_ids": torch.tensor([[0, 0, 5], [7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
    }
    expected = model.generate(**prompts, **GREEDY)
    alone = model.generate(torch.tensor([[5]]), **GREEDY)
    for draft in ("prompt_lookup", "early_exit", "none"):
        with tokops.patch(model, Speculate(draft, nodes=nodes)):
            assert torch.equal(model.generate(**prompts, **GREEDY), expected)
            assert torch.equal(model.generate(torch.tensor([[5]]), **GREEDY), alone)


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
