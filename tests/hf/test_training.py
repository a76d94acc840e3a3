"""Training of drafters: the glancing objective by hand, losses that fall, acceptance above the untrained one."""

import json
import math

import pytest
import torch
from slow_loop import forward, prompt_states, speculate, tiny
from tiny_models import build, byte_tokenizer
from torch import nn
from typer.testing import CliRunner

from tokops.cli import build as program
from tokops.hf import draftscores, training
from tokops.hf.falcon import FalconDrafter, FalconModule, load_falcon
from tokops.hf.glancing import coupled_sequential_glancing_loss, glancing_positions, glancing_ratio
from tokops.hf.heads import Heads, HeadsConfig, HeadsDrafter, load_heads
from tokops.hf.ppd import PPDDrafter, load_prompt_embeddings
from tokops.speculative import best_first_tree, falcon_tree
from tokops.speculative.ppd_plan import ppd_plan


def test_the_ratio_of_the_paper_and_of_its_code():
    assert [glancing_ratio(e, 20) for e in (0, 10, 20)] == pytest.approx([0.4, 0.2, 0.0])
    released = [0.35 * (20 - e) / 20 + 0.1 for e in (0, 7, 20)]
    assert [glancing_ratio(e, 20, 0.45, 0.1) for e in (0, 7, 20)] == pytest.approx(released)
    with pytest.raises(ValueError, match=r"epoch must be 0\.\.20 of more than 0, got 21"):
        glancing_ratio(21, 20)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7, 8, 12])
def test_revealed_rows_begin_blocks(block, rows):
    first = rows % block
    most = rows // block * (block - 1)
    lengths = set()
    for count in range(rows + 2):
        for seed in range(20):
            found = glancing_positions(count, rows, block, torch.Generator().manual_seed(seed))
            assert not found[:first].any()
            blocks = found[first:].reshape(-1, block)
            assert int(found.sum()) <= min(count, most)
            assert not blocks[:, -1].any() or block == 1
            runs = blocks.long()
            assert (runs.diff(dim=1) <= 0).all()  # from the first row of a block on
            lengths |= set(runs.sum(1).tolist())
            if block == 2:
                assert int(found.sum()) == min(count, most)
    if rows >= block > 1:
        assert lengths == set(range(block))


class Stub(nn.Module):
    """Predicts what it is told, and writes down what it was given."""

    def __init__(self, block, outputs):
        super().__init__()
        self.block, self.outputs, self.seen = block, outputs, []

    def forward(self, features, embeds, rotary):
        self.seen.append((features.clone(), embeds.clone()))
        return self.outputs


def one_hot(tokens, vocab=6):
    return torch.eye(vocab)[torch.tensor(tokens)]


def test_the_glancing_loss_by_hand():
    """k = 2, six features: rows 0..3 predict f_2..f_5. Three of four are wrong, so that N = floor(0.7 * 3) = 2."""
    features = one_hot([[0, 1, 2, 3, 4, 5]]) * 3
    tokens = torch.tensor([[10, 11, 12, 13, 14, 15, 16]])
    embed = nn.Embedding(20, 6)
    outputs = (one_hot([[2, 0, 0, 0]]) * 2).requires_grad_()
    stub = Stub(2, outputs)
    loss = coupled_sequential_glancing_loss(
        stub, features, tokens, embed, nn.Identity(), (), ratio=0.7, noise=0.0, generator=torch.Generator()
    )
    assert loss.wrong.tolist() == [3]
    assert loss.revealed.tolist() == [[True, False, True, False]]
    (first, first_tokens), (second, second_tokens) = stub.seen
    assert torch.equal(first, features[:, :4])
    assert torch.equal(first_tokens, embed(tokens[:, 1:5]))
    # Revealed rows read the pair that they would have predicted: (f_2, t_3) and (f_4, t_5).
    assert torch.equal(second, one_hot([[2, 1, 4, 3]]) * 3)
    assert torch.equal(second_tokens, embed(torch.tensor([[13, 12, 15, 14]])))
    # Rows 1 and 3 remain; they predict token 0 where f_3 and f_5 say 3 and 5.
    feature = (2 - 0.5 + 3 - 0.5) / 6  # |0 - 2| and |3 - 0| of six numbers, beyond 1
    z, w = math.exp(3) + 5, math.exp(2) + 5
    p, rest = math.exp(3) / z, 1 / z
    ours, other = 2 - math.log(w), -math.log(w)
    soft = p * (math.log(p) - other) + rest * (math.log(rest) - ours) + 4 * rest * (math.log(rest) - other)
    parts = [float(x) for x in (loss.feature, loss.soft, loss.hard)]
    assert parts == pytest.approx([feature, soft, -other], rel=1e-5)
    assert float(loss.total.detach()) == pytest.approx(feature + 0.1 * (0.9 * soft - 0.1 * other), rel=1e-5)
    loss.total.backward()
    assert not outputs.grad[0, [0, 2]].any()
    assert outputs.grad[0, [1, 3]].any()


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_right_drafter_is_shown_nothing(block):
    features = one_hot([[0, 1, 2, 3, 4, 5, 0, 1]]) * 3
    stub = Stub(block, features[:, block:].clone().requires_grad_())
    loss = coupled_sequential_glancing_loss(
        stub,
        features,
        torch.zeros(1, 9, dtype=torch.int64),
        nn.Embedding(2, 6),
        nn.Identity(),
        (),
        ratio=1.0,
        noise=0,
    )
    assert not loss.revealed.any()
    assert not loss.wrong.any()
    assert float(loss.feature) == 0
    assert float(loss.soft) == pytest.approx(0, abs=1e-6)


def test_noise_is_bounded_and_the_same_in_both_passes():
    features = torch.zeros(2, 50, 6)
    stub = Stub(2, torch.zeros(2, 48, 6, requires_grad=True))
    coupled_sequential_glancing_loss(
        stub,
        features,
        torch.zeros(2, 51, dtype=torch.int64),
        nn.Embedding(2, 6),
        nn.Identity(),
        (),
        ratio=0.5,
    )
    (first, _), (second, _) = stub.seen
    assert 0.09 < first.abs().max() <= 0.1
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("features", "tokens", "ratio", "words"),
    [
        ((1, 2, 6), (1, 3), 0.5, r"T >= 1 and tokens \[B, T \+ 2 \+ 1\], got \[1, 2, 6\]"),
        ((1, 5, 6), (1, 5), 0.5, r"got \[1, 5, 6\] and \[1, 5\]"),
        ((1, 5, 6), (1, 6), 1.5, r"ratio must be 0\.\.1, got 1\.5"),
    ],
)
def test_the_glancing_loss_refuses(features, tokens, ratio, words):
    with pytest.raises(ValueError, match=words):
        coupled_sequential_glancing_loss(
            Stub(2, None),
            torch.zeros(features),
            torch.zeros(tokens),
            nn.Identity(),
            nn.Identity(),
            (),
            ratio=ratio,
        )


def test_ranks_go_by_logit_then_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]]).expand(4, -1)
    assert draftscores.ranks_of(logits, torch.arange(4)).tolist() == [3, 0, 1, 2]


def test_prompt_rows_are_prompt_tokens_read_one_by_one():
    from transformers import DynamicCache

    from tokops.hf.families import CACHE

    model, ids = tiny(), torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(4))
    embeddings = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    cuts = torch.tensor([[0, 7, 11], [3, 4, 10]])
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model.base_model(ids, use_cache=True, **{CACHE: cache})
        found = training.prompt_rows(model, cache, 12, cuts, embeddings)
        for b in range(2):
            for c, cut in enumerate(cuts[b].tolist()):
                text = ids[b, : cut + 1].tolist()
                alone = forward(model, text, [text[-1], -1, -2, -3], range(-1, 3), embeddings)[1:]
                torch.testing.assert_close(found[b, c], alone, atol=1e-5, rtol=1e-5)


def test_continuations_are_greedy_and_recorded_states_are_the_models():
    from slow_loop import greedy

    model, prompts = tiny(), torch.tensor([[5, 9, 33], [7, 8, 50]])
    own = training.continuations(model, prompts, 9)
    assert own.tolist() == [greedy(model, prompt, 9) for prompt in prompts.tolist()]
    found = training.record(model, own, "penultimate")
    torch.testing.assert_close(found.final[1], prompt_states(model, own[1].tolist()))
    last = model.model.layers[-1]
    read = []
    hook = last.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    prompt_states(model, own[0].tolist())
    hook.remove()
    torch.testing.assert_close(found.fed[0], read[0][0])


@pytest.fixture(scope="module")
def taught():
    """A model whose greedy texts are easy to foresee, prompts, and what it writes after them."""
    model = build("llama", num_hidden_layers=2)
    with torch.no_grad():  # mostly a map from token to token: cycles
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        model.model.embed_tokens.weight.mul_(50)
        model.lm_head.weight.mul_(20)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 97, (48, 4), generator=generator)
    texts = training.continuations(model, prompts, 28)
    return model, texts[:40], texts[40:]


def falls(losses):
    tenth = len(losses) // 10
    return sum(losses[-tenth:]) < 0.7 * sum(losses[:tenth])


def tokens_per_step(model, drafter, held):
    _, steps = speculate(model, drafter, held[:3, :4].tolist(), 24)
    return sum(map(sum, steps)) / sum(map(len, steps))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["linear", "transformer"])
def test_heads_learn(taught, arch):
    model, texts, held = taught
    heads, losses = Heads(model, HeadsConfig(3, arch)), []
    recorded, other = training.record(model, texts), training.record(model, held)
    before = draftscores.heads_acceptance(model, heads, other, 4)
    training.train_heads(model, heads, recorded, 150, batch=4, rate=3e-3, tick=losses.append)
    after = draftscores.heads_acceptance(model, heads, other, 4)
    assert falls(losses)
    assert all(new[0] > old[0] + 0.2 for old, new in zip(before, after, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    tree = best_first_tree(after, 8)
    drafted = tokens_per_step(model, HeadsDrafter(model, heads, tree), held)
    assert (
        drafted
        > tokens_per_step(model, HeadsDrafter(model, Heads(model, HeadsConfig(3, arch)), tree), held) + 0.3
    )


def repeated(count, length, seed):
    """Texts of three tokens over and over."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (count, 3), generator=generator).repeat(1, -(-length // 3))[:, :length]


@pytest.fixture(scope="module")
def periodic():
    """A model that learnt to go on repeating what was said three tokens ago, and what it writes."""
    model = build("llama", num_hidden_layers=2)
    with torch.no_grad():  # attention that can still be learnt
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.div_(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(200):
        ids = repeated(32, 15, step)
        logits = model(ids).logits[:, 2:-1]
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 3:].flatten()).backward()
        optimizer.step()
    return model, repeated(64, 15, 5000), training.continuations(model, repeated(8, 6, 999), 12)


@pytest.mark.slow
def test_prompt_tokens_learn(periodic):
    """Two places on in a period of three: what an off-by-one in positions or targets would never learn."""
    model, texts, held = periodic
    first, losses = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), []
    before = draftscores.prompt_acceptance(model, first, held, 4, width=3)
    learned = training.train_prompt_embeddings(
        model, first, texts, 150, batch=4, cuts=8, rate=5e-2, tick=losses.append
    )
    after = draftscores.prompt_acceptance(model, learned, held, 4, width=3)
    assert falls(losses)
    assert all(new[0] > max(0.85, old[0] + 0.1) for old, new in zip(before, after, strict=True))
    assert tokens_per_step(model, PPDDrafter(model, learned, ppd_plan(after, 8)), held) > 2.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "reducer"), [(1, "token_mlp"), (2, "token_mlp"), (2, "lstm"), (3, "token_mlp")]
)
def test_the_falcon_layer_learns(taught, block, reducer):
    model, texts, held = taught
    module, losses = FalconModule(model, block, reducer), []
    recorded, other = training.record(model, texts), training.record(model, held)
    before = draftscores.falcon_acceptance(model, module, other, 4, depth=4)
    training.train_falcon(model, module, recorded, 150, batch=8, rate=3e-3, tick=losses.append)
    after = draftscores.falcon_acceptance(model, module, other, 4, depth=4)
    assert falls(losses)
    assert all(new[0] > old[0] + 0.2 for old, new in zip(before, after, strict=True))
    drafter = FalconDrafter(model, module, falcon_tree(after, 12, block))
    assert tokens_per_step(model, drafter, held) > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppd", "heads", "falcon"])
def test_the_command_trains_measures_and_saves(kind, tmp_path):
    model = build("llama", vocab_size=300, num_hidden_layers=2)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(
        "It is a truth universally acknowledged, that a single man must be in want of a wife. " * 6
    )
    arguments = (
        "train-draft", kind, tmp_path / "model", "--text", text, "--held-out", text, "--steps", 4, "--window", 32,
        "--prompts", 2, "--given", 8, "--written", 24, "--levels", 2, "--out", tmp_path / "out",
    )  # fmt: skip
    found = CliRunner().invoke(program(), [str(x) for x in arguments])
    assert found.exit_code == 0, found.output
    assert "loss" in found.output
    assert "tokens per step of 32 rows" in found.output
    assert "2 of 2 texts are those of plain greedy decoding" in " ".join(found.output.split())
    loaders = {"ppd": load_prompt_embeddings, "heads": load_heads, "falcon": load_falcon}
    _, acceptance = loaders[kind](tmp_path / "out", model)
    assert len(acceptance) == 2
    facts = json.loads((tmp_path / "out" / "drafter.json").read_text())
    assert facts["training"]["plan"]["steps"] == 4
    for other in loaders.keys() - {kind}:
        with pytest.raises(ValueError, match=f"kind '{kind}', expected '{other}'"):
            loaders[other](tmp_path / "out", model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eagle", "smollm2"), "ppd, heads, falcon"),
        (("heads", "/nowhere/at/all"), "cannot load"),
    ],
)
def test_the_command_refuses(arguments, words, tmp_path):
    found = CliRunner().invoke(program(), ["train-draft", *arguments, "--out", str(tmp_path)])
    assert found.exit_code == 2
    assert words in " ".join(found.output.replace("│", " ").split())
