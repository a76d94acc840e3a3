"""What tree speculation refuses: features of ``generate``, and proposals that are none."""

from dataclasses import fields

import pytest
import torch
from odd_drafters import Odd
from tiny_models import build

import tokops
from tokops.hf.drafting import Proposal
from tokops.hf.draftshapes import shape_of_method
from tokops.methods import Speculate
from tokops.speculative import Eagle2Tree, LatencyTable

GREEDY = {"do_sample": False, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def model():
    return build("llama")


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


def test_an_empty_batch_is_refused(model):
    for method in (Speculate(), Speculate("none"), Speculate("early_exit")):
        with (
            tokops.patch(model, method),
            pytest.raises(ValueError, match=r"input_ids must hold a sequence at least, got \[0, 5\]"),
        ):
            model.generate(torch.zeros(0, 5, dtype=torch.long), **GREEDY)


@pytest.mark.parametrize("streams", [[1], [1, 2, 3], [-1, 0], [0, 2**32], [0.5, 1.0], 4])
def test_streams_that_are_none_are_refused(streams, model, prompts):
    with (
        tokops.patch(model, Speculate()),
        pytest.raises(ValueError, match=r"Speculate: streams must be 2 integers in 0\.\.2\^32 - 1, got"),
    ):
        model.generate(**prompts, do_sample=True, streams=streams)


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


SIX = [-1, 0, 0, 0, 1, 1]
TABLE = LatencyTable((1, 2), (256,), ((1.0, 1.5),))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tree": SIX}, r"tree has no meaning for prompt_lookup, got \[-1, 0, 0, 0, 1, 1\]"),
        ({"acceptance": [[0.1]]}, "acceptance has no meaning for prompt_lookup"),
        ({"acceptance": torch.tensor([[0.1]])}, "acceptance has no meaning for prompt_lookup"),
        ({"exit_layer": 7}, "exit_layer has no meaning for prompt_lookup, got 7"),
        ({"draft": "none", "min_match": 2}, "min_match has no meaning for none, got 2"),
        ({"draft": "early_exit", "max_match": 8}, "max_match has no meaning for early_exit, got 8"),
        ({"draft": "a model", "min_match": 3}, "min_match has no meaning for a model that drafts, got 3"),
        ({"draft": "a model", "exit_layer": 1}, "exit_layer has no meaning for a model that drafts, got 1"),
        (
            {"draft": "early_exit", "latency": TABLE},
            "latency has no meaning for early_exit, got LatencyTable",
        ),
        ({"draft": "a model", "latency": TABLE}, "latency has no meaning for a model that drafts"),
        ({"draft": lambda model: Odd(), "tree": SIX}, "tree has no meaning for a drafter of its own"),
        ({"draft": "early_exit", "tree": SIX, "nodes": 2}, "tree must have at most nodes, 2, got one of 6"),
        ({"draft": "early_exit", "tree": Eagle2Tree(nodes=9), "nodes": 8}, "at most nodes, 8, got one of 9"),
        (
            {"draft": "early_exit", "tree": Eagle2Tree(branch=40, expansions=7)},
            r"expand at most 256 nodes, branch \* expansions, got 40 \* 7",
        ),
        ({"draft": "early_exit", "tree": SIX, "depth": 1}, "at most as deep as depth, 1, got one of 2"),
        ({"draft": "early_exit", "tree": [-1] + [0] * 256}, "tree must have at most 256 nodes, got 257"),
        ({"draft": "early_exit", "tree": [-1, 2, 0]}, r"parents\[1\] must be 0\.\.0, got 2"),
        ({"draft": "early_exit", "tree": SIX, "acceptance": [0.5]}, "no meaning for a tree that is given"),
        ({"draft": "early_exit", "acceptance": [[0.9, 0.9]]}, "a row of acceptance must sum to at most 1"),
        (
            {"draft": "early_exit", "verify": "kseq", "acceptance": [0.5]},
            "acceptance has no meaning for verify kseq",
        ),
        ({"draft": "early_exit", "verify": "kseq", "tree": SIX}, "kseq needs a tree of at most 64 chains"),
        ({"draft": "early_exit", "verify": "kseq", "tree": [-1] + [0] * 65}, "at most 64 chains"),
        (
            {"draft": "early_exit", "verify": "chain_block", "tree": [-1, 0, 0]},
            "needs a tree that is a chain",
        ),
        ({"draft": "early_exit", "exit_layer": 0}, "exit_layer must be at least 1 or None, got 0"),
        ({"draft": "early_exit", "exit_layer": -1}, "exit_layer must be at least 1 or None, got -1"),
        ({"verify": "typical", "eps": -1}, r"eps must be 0\.\.1, got -1"),
        ({"verify": "typical", "delta": float("nan")}, "delta must be at least 0 and finite, got nan"),
    ],
    ids=str,
)
def test_options_that_change_nothing_or_contradict_are_refused(options, words, model):
    options = {**options, "draft": model} if options.get("draft") == "a model" else options
    with pytest.raises(ValueError, match=words):
        Speculate(**options)


def test_options_that_are_what_they_are_without_being_given_are_accepted(model):
    usual = {field.name: field.default for field in fields(Speculate)}
    for draft in ("prompt_lookup", "early_exit", "none", model, lambda model: Odd()):
        Speculate(**{**usual, "draft": draft})
    assert Speculate("early_exit", tree=iter(SIX), nodes=6, depth=2).tree == tuple(SIX)
    assert len(Speculate("early_exit", tree=range(-1, 40)).tree) == 41, "nodes was not given"


def test_more_layers_than_the_model_has_are_refused_when_patching(model):
    for layers in (4, 99):
        with pytest.raises(ValueError, match=f"exit_layer must be below the 4 layers of .*, got {layers}"):
            tokops.patch(model, Speculate("early_exit", exit_layer=layers))
    single = build("llama", num_hidden_layers=1)
    with pytest.raises(ValueError, match="exit_layer must be below the 1 layers"):
        tokops.patch(single, Speculate("early_exit"))
    tokops.patch(model, Speculate("early_exit", exit_layer=3)).undo()


@pytest.mark.parametrize("nodes", range(1, 8))
def test_no_tree_is_larger_than_asked_for(nodes):
    for verify in ("target_only", "rrs", "kseq", "chain_block"):
        for depth in (None, 1, 2, 6):
            shape = shape_of_method(Speculate("early_exit", verify=verify, nodes=nodes, depth=depth))
            assert min(nodes, 2) <= len(shape) <= nodes


@pytest.mark.parametrize("verify", ["target_only", "rrs_wo", "greedy_plus_one", "rrs", "kseq"])
def test_nodes_with_more_children_than_there_are_tokens(verify, prompts):
    few = build("llama", vocab_size=5)
    ids = 1 + prompts["input_ids"] % 4
    expected = few.generate(ids, **GREEDY)
    with tokops.patch(few, Speculate("early_exit", verify=verify, tree=[-1] + [0] * 9, seed=0)):
        assert torch.equal(few.generate(ids, **GREEDY), expected)
        assert few.generate(ids, do_sample=True, max_new_tokens=9).shape[1] == ids.shape[1] + 9


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
