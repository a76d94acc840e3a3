"""The Falcon drafter: losslessness, blocks under the relaxed mask, groups as naive drafting, its committed state."""

import itertools

import pytest
import torch
from slow_loop import NEW, PROMPTS, plain, prompt_states, speculate, tiny

from tokops.hf.draftlayers import relaxed_causal_mask, rotary_of, run_layer
from tokops.hf.falcon import Blocks, FalconDrafter, FalconModule, load_falcon

#: Depth 5, with and without children below boundaries of blocks of 1, 2 and 3.
TREE = [
    (0,), (1,), (3,), (0, 0), (0, 2), (1, 0), (0, 0, 0), (0, 0, 1), (0, 2, 0), (1, 0, 4), (0, 0, 0, 0), (0, 0, 1, 2),
    (1, 0, 4, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1),
]  # fmt: skip


@pytest.fixture
def model():
    return tiny()


def module_for(model, block, reducer="token_mlp", seed=0):
    """Random weights, large enough that everything matters."""
    torch.manual_seed(seed)
    module = FalconModule(model, block, reducer).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    return module


CASES = list(itertools.product([1, 2, 3, 4], ["token_mlp", "lstm"]))


@pytest.mark.parametrize(("block", "reducer"), CASES)
def test_any_weights_and_any_tree_give_greedy_tokens(model, block, reducer):
    drafter = FalconDrafter(model, module_for(model, block, reducer), TREE)
    texts, _ = speculate(model, drafter, PROMPTS, NEW)
    assert texts == plain()


def test_the_mask_of_the_sheet():
    rows = [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0]] * 2 + [[1] * 5]
    assert relaxed_causal_mask(5, 2, from_end=False).int().tolist() == rows
    # From the end it is the first block that is incomplete.
    rows = [[1, 0, 0, 0, 0]] + [[1, 1, 1, 0, 0]] * 2 + [[1] * 5] * 2
    assert relaxed_causal_mask(5, 2).int().tolist() == rows
    for length in (1, 4, 7):
        assert torch.equal(relaxed_causal_mask(length, 1), torch.ones(length, length).tril().bool())
        last = relaxed_causal_mask(length, 3)[-3:]
        assert last.all()  # the last k rows are one block, whatever the length


def naive_path(model, module, text, path):
    """Features of a path drafted for itself, the whole text read anew: ``[len(path) // k + 1, k, d]``, pass by pass."""
    k = module.block
    features, tokens, passes = prompt_states(model, text[:-1]), list(text), []
    for number in range(len(path) // k + 1):
        x, _ = module.reduce(features[None], model.get_input_embeddings()(torch.tensor(tokens[1:]))[None])
        positions = torch.arange(x.shape[1])[None]
        mask = relaxed_causal_mask(x.shape[1], k)[None, None]
        out = run_layer(module.layer, x, positions, rotary_of(model, x, positions), mask)[0, -k:]
        passes.append(out)
        features = torch.cat([features, out])
        tokens += path[number * k : (number + 1) * k]
    return torch.stack(passes)


@pytest.mark.parametrize(("block", "reducer"), CASES)
def test_drafting_by_groups_is_naive_drafting_of_every_path(model, block, reducer):
    """After every step, every node of the next tree is the candidate that drafting its path alone ranks there."""
    module = module_for(model, block, reducer)
    drafter = FalconDrafter(model, module, TREE)
    tree, seen = drafter.tree, []

    def watch(session, proposal, verdict):
        if not all(session.active) or len(seen) > 250:
            return
        for b, text in enumerate(session.tokens):
            drafted = drafter._draft(session, tree)[b].tolist()
            for node in range(1, len(tree)):
                path, at = [], node
                while at:
                    path.insert(0, drafted[at])
                    at = tree.parents[at]
                number = (len(path) - 1) // block
                if len(text) - 1 < block:
                    continue
                row = naive_path(model, module, text, path[: number * block])[number, (len(path) - 1) % block]
                order = model.lm_head(row).sort(descending=True, stable=True)
                assert drafted[node] == int(order.indices[tree.ranks[node]])
                seen.append(len(path))

    with torch.no_grad():
        speculate(model, drafter, PROMPTS, 14, watch)
    assert {1, 2, 3, 4, 5} <= set(seen)


@pytest.mark.parametrize(("block", "reducer"), CASES)
def test_features_of_groups_are_those_of_their_paths(model, block, reducer):
    module, texts = module_for(model, block, reducer), [[*p, 50, 51, 52, 53] for p in PROMPTS]
    with torch.no_grad():
        blocks = Blocks(model, module, len(texts))
        blocks.extend([prompt_states(model, text[:-1]) for text in texts])
        first, state = blocks.first(texts)
        tokens = torch.arange(2 * block).reshape(1, 2, block).expand(3, -1, -1) + 20
        both = tuple(x.repeat_interleave(2, 1) for x in state)
        second, state = blocks.next(tokens, first[:, None].expand(-1, 2, -1, -1), both, torch.eye(2).bool())
        further = torch.arange(block).expand(3, 1, block) + 60
        parent = tuple(x.reshape(2, 3, 2, -1)[:, :, 1] for x in state)
        seen = torch.tensor([[False, True, True]])
        third, _ = blocks.next(further, second[:, 1:], parent, seen)
        for b, text in enumerate(texts):
            path = [*tokens[b, 1].tolist(), *further[b, 0].tolist()]
            expected = naive_path(model, module, text, path)
            found = torch.stack([first[b], second[b, 1], third[b, 0]])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("block", "reducer"), CASES)
def test_committed_state_is_that_of_the_text(model, block, reducer):
    """Fed step by step, some steps shorter than a block, the first pass is that of the whole text at once."""
    module = module_for(model, block, reducer)
    text = list(range(10, 40))
    states = prompt_states(model, text[:-1])
    with torch.no_grad():
        grown, length = Blocks(model, module, 1), 6
        grown.extend([states[:length]])
        for more in (1, 1, 2, 1, 0, 3, 5, 1):
            found, _ = grown.first([text[: length + 1]])
            anew = Blocks(model, module, 1)
            anew.extend([states[:length]])
            expected, _ = anew.first([text[: length + 1]])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            grown.extend([states[length : length + more]])
            length += more


def test_long_prompts_are_read_in_parts(model, monkeypatch):
    from tokops.hf import falcon

    module, text = module_for(model, 3), list(range(10, 60))
    found = []
    with torch.no_grad():
        for chunk in (256, 8):
            monkeypatch.setattr(falcon, "CHUNK", chunk)
            blocks = Blocks(model, module, 2)
            blocks.extend([prompt_states(model, text[:-1]), prompt_states(model, text[:20])])
            found.append(blocks.first([text, text[:21]])[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_one_token_blocks_are_eagle(model):
    """k = 1: a row a token, causal, and the feature of the parent beside the token itself."""
    module, text = module_for(model, 1), [*PROMPTS[0], 50]
    features, embed = prompt_states(model, text[:-1]), model.get_input_embeddings()
    x, _ = module.reduce(features[None], embed(torch.tensor(text[1:]))[None])
    positions = torch.arange(x.shape[1])[None]
    causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()[None, None]
    with torch.no_grad():
        expected = run_layer(module.layer, x, positions, rotary_of(model, x, positions), causal)[0, -1]
        blocks = Blocks(model, module, 1)
        blocks.extend([features])
        torch.testing.assert_close(blocks.first([text])[0][0, 0], expected, atol=1e-5, rtol=1e-5)


def test_candidates_of_a_block_are_the_same_under_every_parent(model):
    tree = [(i,) for i in range(3)] + [(i, j) for i in range(3) for j in range(4)]
    drafter = FalconDrafter(model, module_for(model, 2), tree)

    def watch(session, proposal, verdict):
        if proposal.nodes == 16:
            children = proposal.tokens[:, 4:].reshape(-1, 3, 4)
            assert (children == children[:, :1]).all()
            watch.count += 1

    watch.count = 0
    speculate(model, drafter, PROMPTS, 8, watch)
    assert watch.count


def test_selected_sequences_take_their_state_along(model):
    drafter = FalconDrafter(model, module_for(model, 2), TREE)
    found = []

    def watch(session, proposal, verdict):
        if len(session.tokens[0]) > 14 and not found:
            whole = drafter._draft(session, drafter.tree)
            rows = [2, 0]
            drafter.select(rows)
            session.tokens = [session.tokens[row] for row in rows]
            part = drafter._draft(session, drafter.tree)
            found.append(torch.equal(part, whole[rows]))
            raise StopIteration

    with pytest.raises(StopIteration), torch.no_grad():
        speculate(model, drafter, PROMPTS, NEW, watch)
    assert found == [True]


@pytest.mark.parametrize("reducer", ["token_mlp", "lstm"])
def test_a_saved_drafter_comes_back(model, reducer, tmp_path):
    module = module_for(model, 3, reducer)
    module.save(tmp_path, model, [[0.5, 0.1]])
    again, acceptance = load_falcon(tmp_path, model)
    assert (again.block, again.reducer, acceptance) == (3, reducer, [[0.5, 0.1]])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: FalconModule(m, 0), "block must be at least 1, got 0"),
        (lambda m: FalconModule(m, 2, "gru"), "reducer must be token_mlp or lstm, got 'gru'"),
        (lambda m: FalconDrafter(m, FalconModule(m), []), "got depth 0"),
        (lambda m: FalconDrafter(m, FalconModule(m), [(20,)]), "ranks 0..19, got depth 1 and ranks up to 20"),
    ],
)
def test_refusals(model, make, words):
    with pytest.raises(ValueError, match=words):
        make(model)
