"""Prompt tokens as drafters: losslessness whatever they are, who sees them, states, and the planner's promise."""

import numpy as np
import pytest
import torch
from slow_loop import NEW, PROMPTS, forward, plain, speculate, tiny

from tokops.hf.drafting import Session, Verdict
from tokops.hf.ppd import PPDDrafter, load_prompt_embeddings, save_prompt_embeddings
from tokops.sampling import Sampling
from tokops.speculative import PPDState, ppd_chain, ppd_plan

ACCEPTANCE = [[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.1, 0.05]]


@pytest.fixture
def model():
    return tiny()


def embeddings(model, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.config.hidden_size, generator=generator)


PLANS = {
    "planned": ppd_plan(ACCEPTANCE, 24),
    "at least one each": ppd_plan(ACCEPTANCE, 12, minimum=1),
    "tiny": ppd_plan(ACCEPTANCE, 1),
    "none where it would matter": ppd_chain(
        [
            PPDState((), (), (), 0.0),
            PPDState(((2,), (0,)), (0.1, 0.5), (0, 0), 0.6),
            PPDState(((0,), (0, 1)), (0.1, 0.2), (2, 0), 0.5),
            PPDState(((0,), (0, 0), (0, 0, 2)), (0.1, 0.1, 0.1), (1, 3, 0), 0.6),
        ],
        9,
    ),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("seed", [0, 1])
def test_any_prompt_tokens_and_any_plan_give_greedy_tokens(model, name, seed):
    drafter = PPDDrafter(model, embeddings(model, seed=seed), PLANS[name])
    texts, _ = speculate(model, drafter, PROMPTS, NEW)
    assert texts == plain()


def test_real_rows_do_not_see_prompt_rows(model):
    """Logits of the nodes are those of the same tree without its prompt rows."""
    seen = []

    def watch(session, proposal, verdict):
        for b, kept in enumerate(verdict.kept):
            if kept:
                n = int(proposal.n_nodes[b])
                committed = session.tokens[b][: len(session.tokens[b]) - len(verdict.tokens[b])]
                alone = forward(
                    model, committed, proposal.tokens[b, :n].tolist(), proposal.parents[b, :n].tolist()
                )
                torch.testing.assert_close(verdict.hidden[b, :n], alone, atol=1e-5, rtol=1e-5)
                seen.append(n)

    speculate(model, PPDDrafter(model, embeddings(model), PLANS["planned"]), PROMPTS, 10, watch)
    assert max(seen) > 2


def test_guesses_are_what_prompt_tokens_say_behind_the_accepted_text(model):
    """Candidates of level l are the best tokens after the accepted text and prompt tokens 1..l, read one by one."""
    drafter = PPDDrafter(model, embeddings(model), PLANS["planned"])
    probes = drafter.embeddings
    checked = []

    def watch(session, proposal, verdict):
        for b in range(session.batch):
            guesses = drafter._guesses[b]
            if not session.active[b] or not len(guesses):
                continue
            before = session.tokens[b][:-1]  # without the next root
            rows = [before[-1], *[-1 - j for j in range(len(guesses))]]
            states = forward(model, before, rows, range(-1, len(guesses)), probes)
            best = model.lm_head(states[1:]).topk(guesses.shape[1]).indices
            assert torch.equal(best, guesses)
            checked.append(len(guesses))

    speculate(model, drafter, PROMPTS, 16, watch)
    assert 3 in checked


def test_the_first_tree_is_the_root_with_all_prompt_tokens(model):
    proposals = []
    drafter = PPDDrafter(model, embeddings(model), PLANS["planned"])
    speculate(model, drafter, PROMPTS[:1], 4, lambda s, p, v: proposals.append(p))
    assert proposals[0].tokens[0, 1:].tolist() == [-1, -2, -3]
    assert proposals[0].parents.tolist() == [[-1, 0, 1, 2]]
    assert proposals[0].nodes == 1


def test_less_room_means_a_smaller_tree(model):
    sizes = []
    drafter = PPDDrafter(model, embeddings(model), PLANS["planned"])
    speculate(model, drafter, PROMPTS[:1], 6, lambda s, p, v: sizes.append((s.room[0] + len(v.tokens[0]), p)))
    for room, proposal in sizes:
        depth = [0]
        for parent in proposal.parents[0, 1 : proposal.nodes].tolist():
            depth.append(depth[parent] + 1)
        assert max(depth) < max(room, 1)


def test_a_selected_sequence_takes_its_state_along(model):
    drafter = PPDDrafter(model, embeddings(model), PLANS["planned"])
    speculate(model, drafter, PROMPTS, 8)
    before = drafter._guesses
    drafter.select([1, 1, 0])
    assert [x.data_ptr() for x in drafter._guesses] == [before[i].data_ptr() for i in (1, 1, 0)]


class Law:
    """A model of which only the unembedding is used: every hidden row says which 3 tokens it guesses."""

    def __init__(self, vocab):
        self.config = type("Config", (), {"vocab_size": vocab})()

    def get_output_embeddings(self):
        return lambda rows: rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planned", "at least one each"])
def test_the_planner_keeps_its_promise(name):
    """Decoding against a synthetic law of acceptance: accepted tokens per step are the plan's, within 3 sigma.

    The token l steps ahead is the guess of rank r of prompt token l with probability A[l][r], independently.
    """
    plan, vocab, batch, steps = PLANS[name], 16, 64, 400
    drafter = PPDDrafter(Law(vocab), torch.zeros(3, vocab), plan)
    rng = np.random.default_rng(0)
    session = Session(
        None, [[0]] * batch, [True] * batch, Sampling(), 0, torch.arange(batch), [99] * batch, torch.device("cpu")
    )  # fmt: skip
    drafter.begin(session, None)
    table = np.array([[*row, 1 - sum(row)] for row in ACCEPTANCE])
    accepted = []
    for step in range(steps):
        proposal = drafter.propose(session)
        # Prompt token j guesses the tokens 3 j - 2, 3 j - 1, 3 j, best first; 15 is what nobody guesses.
        law = torch.zeros(*proposal.tokens.shape, vocab)
        for j in range(3):
            law[..., 3 * j + 1 : 3 * j + 4] = (proposal.tokens == -1 - j)[..., None] * torch.tensor(
                [3.0, 2.0, 1.0]
            )
        kept = []
        for b in range(batch):
            path, level = [0], 0
            parents, tokens = proposal.parents[b].tolist(), proposal.tokens[b].tolist()
            while level < 3:
                rank = rng.choice(4, p=table[level])
                want = 15 if rank == 3 else 3 * level + 1 + rank
                child = [
                    i
                    for i in range(1, int(proposal.n_nodes[b]))
                    if parents[i] == path[-1] and tokens[i] == want
                ]
                if not child:
                    break
                path.append(child[0])
                level += 1
            kept.append(path)
        drafter.commit(session, proposal, Verdict(kept, [[0]] * batch, law))
        if step >= 20:
            accepted.append(np.mean([len(path) - 1 for path in kept]))
    # Steps of a sequence depend on each other through its state: sigma from blocks of 20 steps.
    blocks = np.array(accepted).reshape(-1, 20).mean(1)
    sigma = blocks.std(ddof=1) / len(blocks) ** 0.5
    assert sigma < 0.02
    assert abs(blocks.mean() - plan.accepted) < 3 * sigma


def test_saved_prompt_tokens_come_back(model, tmp_path):
    tokens = embeddings(model)
    save_prompt_embeddings(tmp_path, model, tokens, ACCEPTANCE)
    again, acceptance = load_prompt_embeddings(tmp_path, model)
    assert torch.equal(again, tokens)
    assert acceptance == ACCEPTANCE
    other = type(model)(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="trained for a model of configuration"):
        load_prompt_embeddings(tmp_path, other)
    with pytest.raises(FileNotFoundError, match="holds no drafter"):
        load_prompt_embeddings(tmp_path / "nowhere", model)


def test_refusals(model):
    with pytest.raises(ValueError, match="plan must be for 2 prompt tokens"):
        PPDDrafter(model, embeddings(model, 2), PLANS["planned"])
    wide = ppd_plan([[0.01] * 99], 99, sizes=[99])
    with pytest.raises(ValueError, match="vocabulary's size 97, got 98"):
        PPDDrafter(model, embeddings(model, 1), wide)
