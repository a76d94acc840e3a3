"""What tree speculation refuses: features of ``generate``, and proposals that are none."""

import pytest
import torch
from odd_drafters import Odd
from tiny_models import build

import tokops
from tokops.hf.drafting import Proposal
from tokops.methods import Speculate
from tokops.speculative import Eagle2Tree

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
