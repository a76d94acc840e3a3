"""Heads as drafters: losslessness whatever they are, identity, oracles, offsets, their own caches, checkpoints."""

import pytest
import torch
from scipy.stats import chi2
from slow_loop import NEW, PROMPTS, greedy, padded, plain, prompt_states, speculate, tiny
from tiny_models import build
from torch import nn

import tokops
from tokops.hf.drafting import Session
from tokops.hf.draftlayers import rotary_of
from tokops.hf.head_checkpoints import heads_from_state
from tokops.hf.heads import Heads, HeadsConfig, HeadsDrafter, load_heads
from tokops.methods import Speculate
from tokops.sampling import Sampling
from tokops.speculative import best_first_tree, tree_build, tree_verify

ACCEPTANCE = [[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.2, 0.1]]


@pytest.fixture
def model():
    return tiny()


def randomised(module, scale=0.3):
    """Weights nobody would train."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


CONFIGS = {
    "linear": HeadsConfig(3),
    "linear two blocks, own unembedding": HeadsConfig(3, blocks=2, private_unembedding=True),
    "transformer": HeadsConfig(3, "transformer"),
    "transformer two layers": HeadsConfig(2, "transformer", blocks=2),
}
TREES = {
    "best first": best_first_tree(ACCEPTANCE, 12),
    "chain": [(0,), (0, 0), (0, 0, 0)],
    "gaps": [(1,), (4,), (1, 2), (1, 0), (1, 2, 3)],
    "deeper than the heads": [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)],
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("config", CONFIGS)
def test_any_heads_and_any_tree_give_greedy_tokens(model, config, tree):
    heads = randomised(Heads(model, CONFIGS[config]))
    texts, _ = speculate(model, HeadsDrafter(model, heads, TREES[tree]), PROMPTS, NEW)
    assert texts == plain()


def test_new_linear_heads_predict_what_the_base_model_does(model):
    heads = Heads(model, HeadsConfig(4)).eval()
    states = prompt_states(model, PROMPTS[2])[None]
    logits = heads.logits(heads(states), model.lm_head)
    assert torch.equal(logits.argmax(-1), model.lm_head(states).argmax(-1).expand(4, -1, -1))


def test_zero_heads_are_accepted_where_the_model_repeats_itself(model):
    """Head 1 of the identity proposes the root once more: accepted exactly where a token follows itself."""
    drafter = HeadsDrafter(model, Heads(model, HeadsConfig(1)), [(0,)])
    texts, steps = speculate(model, drafter, PROMPTS[:1], NEW)
    assert texts == plain()[:1]
    at, first = len(PROMPTS[0]), len(PROMPTS[0])
    for given in steps[0]:
        repeats = texts[0][at + 1] == texts[0][at] if at + 1 < len(texts[0]) else False
        assert given == 1 + (repeats and given + at - first < NEW)
        at += given


class Oracle(Heads):
    """Heads that look the continuation up: the logits of head i at the hidden state of position t name t + 1 + i."""

    def __init__(self, model, texts, shift=0):
        super().__init__(model, HeadsConfig(3))
        self.model, self.shift = [model], shift
        self.known = [(prompt_states(model, text), text) for text in texts]

    def forward(self, x, *args):
        return torch.stack([x] * 3)

    def logits(self, hidden, unembed, heads=None):
        out = torch.zeros(*hidden[:heads].shape[:-1], self.model[0].config.vocab_size)
        for b, row in enumerate(hidden[0]):
            for states, text in self.known:
                gap = (states - row).abs().amax(-1)
                if gap.min() < 1e-4:
                    t = int(gap.argmin())
                    for i in range(len(out)):
                        at = t + 2 + i + self.shift
                        if at < len(text):
                            out[i, b, text[at]] = 1.0
        return out


def test_oracle_heads_give_all_tokens_of_every_step(model):
    long = [greedy(model, prompt, NEW + 6) for prompt in PROMPTS]
    drafter = HeadsDrafter(model, Oracle(model, long), [(0,), (0, 0), (0, 0, 0)])
    texts, steps = speculate(model, drafter, PROMPTS, 1 + 4 * 5)
    assert texts == [text[: len(prompt) + 21] for text, prompt in zip(long, PROMPTS, strict=True)]
    assert steps == [[4] * 5] * 3


def test_an_offset_too_far_is_not_accepted(model):
    """The same oracle one token off: what an off-by-one in offsets would do."""
    long = [greedy(model, PROMPTS[0], NEW + 6)]
    off = Oracle(model, long, shift=1)
    _, steps = speculate(model, HeadsDrafter(model, off, [(0,), (0, 0), (0, 0, 0)]), PROMPTS[:1], 21)
    assert sum(steps[0]) / len(steps[0]) < 2.5


def test_heads_for_a_periodic_text_are_scored_at_their_offsets(model):
    """abcabc...: head i takes the hidden state of a token to that of the one i places on."""
    heads = Heads(model, HeadsConfig(3)).eval()
    period, width = [40, 41, 42], model.config.hidden_size
    states = torch.eye(width)[:3] * 4
    unembed = nn.Linear(width, model.config.vocab_size, bias=False)
    with torch.no_grad():
        unembed.weight.zero_()
        for t in range(3):
            unembed.weight[period[(t + 1) % 3], t] = 1.0
            for i in range(3):
                heads.weight[i, 0, :, t] = 10 * (torch.eye(width)[(t + i + 1) % 3] - torch.eye(width)[t])
    for t in range(3):
        found = heads.logits(heads(states[t][None, None]), unembed)[:, 0, 0].argmax(-1).tolist()
        assert found == [period[(t + 2 + i) % 3] for i in range(3)]


class Tables(Heads):
    """Heads whose logits are fixed tables, one row a head."""

    def __init__(self, model, tables):
        super().__init__(model, HeadsConfig(len(tables)))
        self.tables = tables

    def logits(self, hidden, unembed, heads=None):
        return self.tables[:heads, None].expand(-1, hidden.shape[1], -1)


def sampled_session(tokens):
    batch = len(tokens)
    return Session(
        None, tokens, [True] * batch, Sampling(temperature=1.0), 11, torch.arange(batch), [9] * batch,
        torch.device("cpu"),
    )  # fmt: skip


def test_drawn_candidates_keep_the_law_under_rrs_wo():
    """Six tokens, two heads that are tables: the first two tokens of 20000 streams against the target's own law.

    Children of all parents of a level are the same draws; only one parent is visited, so that the law is exact.
    """
    count, generator = 20000, torch.Generator().manual_seed(2)
    target = (torch.randn(7, 6, generator=generator) * 1.5).softmax(
        -1
    )  # row 6 for the root, else by the token
    tables = torch.randn(2, 6, generator=generator) * 1.5
    small = build("llama", vocab_size=6)
    drafter = HeadsDrafter(
        small, Tables(small, tables), [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0)], sample=True
    )
    session = sampled_session([[0]] * count)
    drafter.begin(session, [torch.zeros(1, 64)] * count)
    proposal = drafter.propose(session)
    torch.testing.assert_close(proposal.draft_probs, tables.softmax(-1).expand(count, -1, -1))
    first, second = (proposal.tokens[:, nodes].sort(1).values for nodes in ([1, 2, 3], [4, 5]))
    assert (first.diff(dim=1) > 0).all()  # no token twice
    assert (second.diff(dim=1) > 0).all()
    laws = target[torch.cat([torch.full_like(proposal.tokens[:, :1], 6), proposal.tokens[:, 1:]], 1).long()]
    _, _, out = tree_verify(
        "rrs_wo",
        proposal.tokens,
        tree_build(proposal.parents),
        probs=laws,
        draft_probs=proposal.draft_probs,
        draft_rows=proposal.draft_rows,
        seed=session.seed,
        stream=session.streams,
        position=session.positions,
    )
    pairs = out[:, :2].long()
    missing = pairs[:, 1] < 0
    pairs[missing, 1] = torch.multinomial(target[pairs[missing, 0]], 1, generator=generator)[:, 0]
    law = (target[6][:, None] * target[:6]).flatten() * count
    counts = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36)
    assert float(((counts - law) ** 2 / law).sum()) < chi2.ppf(0.999, 35)
    assert 0.1 < float(missing.double().mean()) < 0.9  # both ways are taken


def test_tokens_that_cannot_be_drawn_are_left_out():
    """A head that knows two tokens only has two children, whatever the tree asks for."""
    tables = torch.full((2, 6), float("-inf"))
    tables[0, [2, 4]], tables[1, 1] = 0.0, 0.0
    small = build("llama", vocab_size=6)
    tree = [(0,), (1,), (2,), (0, 0), (0, 1), (2, 0)]
    drafter = HeadsDrafter(small, Tables(small, tables), tree, sample=True)
    session = sampled_session([[3], [3, 5]])
    drafter.begin(session, [torch.zeros(1, 64), torch.zeros(2, 64)])
    proposal = drafter.propose(session)
    assert proposal.n_nodes.tolist() == [4, 4]
    assert proposal.parents.tolist() == [[-1, 0, 0, 1]] * 2
    assert sorted(proposal.tokens[0, 1:3].tolist()) == [2, 4]
    assert proposal.tokens[:, 3].tolist() == [1, 1]
    assert proposal.draft_rows.tolist() == [[0, 0, 0, 1]] * 2


@pytest.mark.parametrize("blocks", [1, 2])
def test_transformer_heads_with_their_caches_are_those_on_all_states(model, blocks):
    heads = randomised(Heads(model, HeadsConfig(2, "transformer", blocks)), 0.1)
    drafter = HeadsDrafter(model, heads, [(0,), (1,), (0, 0)])
    seen = []

    def watch(session, proposal, verdict):
        for b, text in enumerate(session.tokens):
            x = prompt_states(model, text[:-1])[None]
            positions = torch.arange(x.shape[1])[None]
            mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()[None, None]
            full = heads(x, positions, rotary_of(model, x, positions), mask)
            if session.active[b]:
                torch.testing.assert_close(drafter._last[:, b], full[:, 0, -1], atol=1e-4, rtol=1e-4)
                seen.append(b)

    speculate(model, drafter, PROMPTS, 12, watch)
    assert {0, 1, 2} == set(seen)


@pytest.mark.parametrize("arch", ["linear", "transformer"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_heads_that_read_what_the_last_layer_reads(model, arch, chunk):
    """Through generate, a padded batch, the prompt in chunks or at once; afterwards nothing is left on the model."""
    heads, made = randomised(Heads(model, HeadsConfig(2, arch, feed="penultimate")), 0.1), []

    def draft(patched):
        made.append(HeadsDrafter(patched, heads, [(0,), (1,), (0, 0)]))
        return made[0]

    with tokops.patch(model, Speculate(draft)):
        model.generate(**padded(PROMPTS), do_sample=False, max_new_tokens=NEW, prefill_chunk_size=chunk)
    for b, text in enumerate(plain()):
        x = prompt_states(model, text, "penultimate")[None]
        positions = torch.arange(x.shape[1])[None]
        causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()[None, None]
        with torch.no_grad():
            whole = heads(x, positions, rotary_of(model, x, positions), causal)[:, 0]
        gap = (whole - made[0]._last[:, b, None]).abs().amax((0, 2))
        assert gap.min() < 1e-4
        # The last step may have given several tokens, of which the last is not read any more.
        assert int(gap.argmin()) >= len(text) - 4
        if arch == "transformer":
            assert int(gap.argmin()) == made[0]._caches[0][0].lengths[b] - 1
    made[0].end()
    assert not model.model.layers[-1]._forward_pre_hooks


def test_long_prompts_are_read_in_parts(model, monkeypatch):
    from tokops.hf import heads as module

    heads = randomised(Heads(model, HeadsConfig(2, "transformer")), 0.1)
    found = []
    for chunk in (256, 4):
        monkeypatch.setattr(module, "CHUNK", chunk)
        drafter = HeadsDrafter(model, heads, [(0,)])
        speculate(model, drafter, PROMPTS, 2)
        found.append(drafter._last)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_selected_sequences_take_their_state_along(model):
    heads = randomised(Heads(model, HeadsConfig(2, "transformer")), 0.1)
    drafter = HeadsDrafter(model, heads, [(0,), (0, 0)])
    speculate(model, drafter, PROMPTS, 6)
    before = drafter._last
    drafter.select([2, 0])
    assert torch.equal(drafter._last, before[:, [2, 0]])
    assert drafter._caches[1][0].lengths == [len(PROMPTS[2]) + 5, len(PROMPTS[0]) + 5]


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_heads_come_back(model, config, tmp_path):
    heads = randomised(Heads(model, CONFIGS[config]))
    heads.save(tmp_path, model, ACCEPTANCE)
    again, acceptance = load_heads(tmp_path, model)
    assert again.config == heads.config
    assert acceptance == ACCEPTANCE
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["auxiliary_head.", ""])
@pytest.mark.parametrize("private", [False, True])
def test_caft_checkpoints(model, prefix, private):
    generator = torch.Generator().manual_seed(3)
    layer = model.model.layers[0].state_dict()
    for kind in ("linear", "transformer"):
        names = {"linear.weight": (64, 64), "linear.bias": (64,)} if kind == "linear" else {
            name: tensor.shape for name, tensor in layer.items()
        }  # fmt: skip
        state = {
            f"{prefix}{i}.layers.0.{name}": torch.randn(shape, generator=generator)
            for i in range(2) for name, shape in names.items()
        }  # fmt: skip
        if private:
            state |= {f"{prefix}{i}.lm_head.weight": torch.randn(97, 64) for i in range(2)}
        heads = heads_from_state(model, state, "penultimate")
        assert heads.config == HeadsConfig(2, kind, 1, "penultimate", private)
        x = torch.randn(1, 3, 64)
        if kind == "linear":
            w, b = (state[f"{prefix}1.layers.0.linear.{name}"] for name in ("weight", "bias"))
            torch.testing.assert_close(heads(x)[1], x + nn.functional.silu(x @ w.T + b))
        else:
            found = heads.layers[1][0].self_attn.v_proj.weight
            assert torch.equal(found, state[f"{prefix}1.layers.0.self_attn.v_proj.weight"])
        if private:
            expected = x @ state[f"{prefix}1.lm_head.weight"].T
            torch.testing.assert_close(heads.logits(torch.stack([x, x]), model.lm_head)[1], expected)


def test_medusa_checkpoints(model):
    state = {}
    for i in range(2):
        for j in range(2):
            state |= {f"{i}.{j}.linear.weight": torch.randn(64, 64), f"{i}.{j}.linear.bias": torch.randn(64)}
        state[f"{i}.2.weight"] = torch.randn(97, 64)
    heads = heads_from_state(model, state, "last_post_norm")
    assert heads.config == HeadsConfig(2, "linear", 2, "last_post_norm", True)
    first = out = torch.randn(5, 64)
    for j in range(2):
        out = out + nn.functional.silu(out @ state[f"1.{j}.linear.weight"].T + state[f"1.{j}.linear.bias"])
    hidden = heads(first[None])
    torch.testing.assert_close(hidden[1, 0], out, rtol=1e-5, atol=1e-3)  # sums of 64 terms of about 100
    want = out @ state["1.2.weight"].T
    torch.testing.assert_close(heads.logits(hidden, model.lm_head)[1, 0], want, rtol=1e-5, atol=1e-3)


BAD_STATES = {
    "neither of CAFT's layout nor of Medusa's": {"encoder.weight": torch.zeros(2)},
    "every block of every head": {
        "1.0.linear.weight": torch.zeros(64, 64),
        "1.0.linear.bias": torch.zeros(64),
    },
    "not heads of this model": {"0.0.linear.weight": torch.zeros(8, 8), "0.0.linear.bias": torch.zeros(8)},
}


@pytest.mark.parametrize("words", BAD_STATES)
def test_checkpoints_that_are_none(model, words):
    with pytest.raises(ValueError, match=words):
        heads_from_state(model, BAD_STATES[words], "last_post_norm")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: HeadsConfig(heads=0), "heads must be at least 1, got 0"),
        (lambda m: HeadsConfig(arch="mlp"), "arch must be linear or transformer, got 'mlp'"),
        (lambda m: HeadsConfig(feed="last"), "feed must be last_post_norm or penultimate, got 'last'"),
        (lambda m: HeadsDrafter(m, Heads(m, HeadsConfig(1)), []), "below the root"),
        (lambda m: HeadsDrafter(m, Heads(m, HeadsConfig(1)), [(97,)]), "vocabulary's size 97, got 97"),
        (
            lambda m: HeadsDrafter(m, Heads(m, HeadsConfig(1)), [(0,), (2,)], sample=True),
            "node 0 has \\[0, 2\\]",
        ),
    ],
)
def test_refusals(model, make, words):
    with pytest.raises(ValueError, match=words):
        make(model)
