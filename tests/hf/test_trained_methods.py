"""PPD, Falcon and ConceptHeads through tokops.patch: plain tokens, batches, sampling, stores, and refusals."""

import dataclasses

import pytest
import torch
from scipy.stats import chi2
from slow_loop import NEW, PROMPTS, padded, plain, tiny
from tiny_models import build
from transformers import LogitsProcessor, LogitsProcessorList

import tokops
from tokops.hf.drafters import NoDrafter
from tokops.hf.falcon import FalconModule
from tokops.hf.families import CACHE
from tokops.hf.heads import Heads, HeadsConfig
from tokops.hf.ppd import save_prompt_embeddings
from tokops.methods import PPD, ConceptHeads, Falcon, TidalDecode
from tokops.speculative import LatencyTable

GREEDY = {"do_sample": False, "max_new_tokens": NEW}
SIX = [(0,), (1,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]
TABLE = ((0.5, 0.2, 0.1), (0.4, 0.2, 0.1), (0.3, 0.1, 0.05))


@pytest.fixture
def model():
    return tiny()


def drafts(model):
    """One method of every kind, with parameters nobody trained."""
    torch.manual_seed(3)
    width = model.config.hidden_size
    return {
        "ppd": PPD(torch.randn(3, width), nodes=24, acceptance=TABLE),
        "ppd with a prompt token each": PPD(torch.randn(2, width), nodes=9, acceptance=TABLE[:2], minimum=1),
        "linear heads": ConceptHeads(Heads(model, HeadsConfig(3)), nodes=12, acceptance=TABLE),
        "transformer heads": ConceptHeads(
            Heads(model, HeadsConfig(2, "transformer")), tree=[(0,), (2,), (0, 1)]
        ),
        "falcon": Falcon(FalconModule(model, 2), nodes=16, acceptance=TABLE * 2),
        "falcon, one token a block": Falcon(
            FalconModule(model, 1, "lstm"), tree=[(0,), (1,), (0, 0), (0, 1), (0, 0, 0)]
        ),
    }


NAMES = list(drafts(tiny()))


@pytest.mark.parametrize("given", ["all tokens", "new tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_continues_on_its_cache(model, name, given):
    """What the cache held from the start has no hidden states any more."""
    whole = torch.cat([model.generate(torch.tensor(PROMPTS[1:2]), **GREEDY), torch.tensor([[7, 9, 4]])], 1)
    expected = model.generate(whole, **GREEDY)
    with tokops.patch(model, drafts(model)[name], page_size=8) as run:
        cache = run.new_cache()
        model.generate(torch.tensor(PROMPTS[1:2]), **GREEDY, past_key_values=cache)
        new = whole[:, cache.get_seq_length() :] if given == "new tokens" else whole
        found = model.generate(new, attention_mask=torch.ones_like(whole), **GREEDY, past_key_values=cache)
    assert found[:, -NEW:].tolist() == expected[:, -NEW:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_of_a_padded_batch(model, name):
    with tokops.patch(model, drafts(model)[name], page_size=8) as run:
        # Plain decoding gives one token before the first step.
        found = model.generate(**padded(PROMPTS), do_sample=False, max_new_tokens=NEW)
        alone = model.generate(torch.tensor(PROMPTS[1:2]), do_sample=False, max_new_tokens=NEW)
        assert run.report().tokens_per_call >= 1
    assert found[:, -NEW:].tolist() == [text[-NEW:] for text in plain()]
    assert alone[0].tolist() == plain()[1]


@pytest.mark.parametrize("name", ["ppd", "linear heads", "falcon"])
def test_a_latency_table_is_read_at_the_prompts_length(model, name):
    """Rows that cost nothing behind 16 tokens and as much as a forward each behind more."""
    sizes = (1, 2, 4, 8, 16, 32)
    table = LatencyTable(sizes, (16, 256), ((1.0,) * len(sizes), tuple(map(float, sizes))))
    method = dataclasses.replace(drafts(model)[name], latency=table)
    assert not isinstance(method.drafter(model, 16), NoDrafter)
    assert isinstance(method.drafter(model, 17), NoDrafter)


def test_a_latency_table_counts_drafting_passes(model):
    """Rows cost nothing, but a pass of the drafter as much as ten forwards."""
    free = LatencyTable((1, 4, 32), (256,), ((1.0,) * 3,))
    falcon = dataclasses.replace(drafts(model)["falcon"], latency=free)
    assert len(falcon.drafter(model, 9).tree) == 16
    costly = dataclasses.replace(falcon, draft_seconds=10.0)
    assert isinstance(costly.drafter(model, 9), NoDrafter)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Falcon: draft_seconds must be at least 0 and finite"):
            dataclasses.replace(falcon, draft_seconds=wrong)
    with pytest.raises(ValueError, match="draft_seconds is read beside latency alone"):
        dataclasses.replace(costly, latency=None)


@pytest.mark.parametrize("name", NAMES)
def test_sampled_tokens_are_those_of_plain_sampling(model, name):
    """match_plain: whatever is drafted, the tokens are those of the loop that drafts nothing."""
    method = dataclasses.replace(drafts(model)[name], match_plain=True, seed=5)
    plainly = tokops.methods.Speculate("none", match_plain=True, seed=5)
    texts = []
    for each in (method, plainly):
        with tokops.patch(model, each):
            texts.append(model.generate(**padded(PROMPTS), do_sample=True, top_k=20, max_new_tokens=16))
    assert torch.equal(*texts)


def test_drawn_heads_keep_the_law():
    """rrs_wo through generate: the second token of many sequences against the model's own law."""
    small = build("llama", vocab_size=12, pad_token_id=0)
    heads = Heads(small, HeadsConfig(2))
    prompt = torch.tensor([[5, 9, 3]])
    count = 6000
    method = ConceptHeads(heads, verify="rrs_wo", tree=[(0,), (1,), (0, 0)], seed=1)
    with tokops.patch(small, method) as run:
        found = small.generate(prompt.expand(count, -1), do_sample=True, top_k=0, max_new_tokens=3)[:, 3:]
        assert run.report().tokens_per_call > 1.1
    with torch.no_grad():
        first = small(prompt).logits[0, -1].softmax(-1)
        token = int(first.argmax())
        second = small(torch.tensor([[5, 9, 3, token]])).logits[0, -1].softmax(-1)
    chosen = found[found[:, 0] == token, 1]
    counts = torch.bincount(chosen, minlength=12)
    chi = ((counts - second * len(chosen)) ** 2 / (second * len(chosen))).sum()
    assert float(chi) < chi2.ppf(0.999, 11)


class Forbid(LogitsProcessor):
    """Forbids what stands last in the text: every branch has its own."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, input_ids[:, -1:], float("-inf"))


@pytest.mark.parametrize("name", ["ppd", "linear heads", "falcon"])
def test_processors_and_stops_hold_inside_a_block(model, name):
    options = dict(
        do_sample=False,
        max_new_tokens=NEW,
        logits_processor=LogitsProcessorList([Forbid()]),
        eos_token_id=[45, 60],
    )
    expected = model.generate(torch.tensor(PROMPTS[:1]), **options)
    with tokops.patch(model, drafts(model)[name]):
        assert torch.equal(model.generate(torch.tensor(PROMPTS[:1]), **options), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_holds_the_text_and_nothing_else(model, name):
    """What is decoded next, out of the cache that speculation left, is what the text alone would give."""
    prompt = torch.tensor(PROMPTS[2:])
    with tokops.patch(model, drafts(model)[name], page_size=8):
        out = model.generate(prompt, do_sample=False, max_new_tokens=NEW, return_dict_in_generate=True)
        cache = out[CACHE]
        assert cache.get_seq_length() == out.sequences.shape[1] - 1
        with torch.no_grad():
            last = torch.tensor([[cache.get_seq_length()]])
            following = model(out.sequences[:, -1:], position_ids=last, **{CACHE: cache}).logits[0, -1]
    with torch.no_grad():
        torch.testing.assert_close(following, model(out.sequences).logits[0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ppd", "linear heads", "falcon"])
def test_under_a_selection(name):
    """Rows of a tree select for themselves: the tokens are those of the same selection without speculation."""
    model = build("llama", num_hidden_layers=7)
    sparse, prompt = TidalDecode(budget=6, reselect_layer=5), torch.tensor([PROMPTS[2] * 3])
    options = {"do_sample": False, "max_new_tokens": NEW}
    with tokops.patch(model, sparse):
        expected = model.generate(prompt, **options)
    with tokops.patch(model, sparse, drafts(model)[name]):
        assert torch.equal(model.generate(prompt, **options), expected)
    assert not torch.equal(model.generate(prompt, **options), expected)


def test_a_folder_is_read_once_per_model(model, tmp_path, monkeypatch):
    from tokops.hf import ppd

    save_prompt_embeddings(tmp_path, model, torch.randn(3, 64), [list(row) for row in TABLE])
    reads, load = [], ppd.load_prompt_embeddings
    monkeypatch.setattr(ppd, "load_prompt_embeddings", lambda *args: reads.append(args) or load(*args))
    with tokops.patch(model, PPD(tmp_path)):
        for _ in range(2):
            found = model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=NEW)
    assert found[0].tolist() == plain()[0]
    assert len(reads) == 1
    other = build("llama", num_hidden_layers=3)
    with tokops.patch(other, PPD(tmp_path)), pytest.raises(ValueError, match="trained for a model"):
        other.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=NEW)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: PPD(), "draft must be a folder that `tokops train-draft ppd` wrote"),
        (
            lambda m: PPD("x", verify="rrs"),
            "verify must be one of target_only, greedy, typical, lantern, got 'rrs'",
        ),
        (lambda m: ConceptHeads("x", verify="kseq"), "typical, lantern, rrs_wo, got 'kseq'"),
        (lambda m: Falcon("x", exit_layer=2), "exit_layer has no meaning for a trained drafter, got 2"),
        (lambda m: Falcon("x", tree=SIX, groups=0), "groups has no meaning for a tree that is given, got 0"),
        (
            lambda m: Falcon("x", tree=SIX, draft_seconds=1.0),
            "draft_seconds has no meaning for a tree that is",
        ),
        (
            lambda m: ConceptHeads("x", tree=SIX, acceptance=TABLE),
            "acceptance has no meaning for a tree that",
        ),
        (lambda m: ConceptHeads("x", tree=SIX, nodes=2), "tree must have at most nodes, 2, got one of 6"),
        (lambda m: Falcon("x", tree=SIX, depth=1), "tree must be at most as deep as depth, 1, got one of 4"),
        (lambda m: Falcon("x", tree=[(i,) for i in range(256)]), "tree must have at most 256 nodes, got 257"),
        (lambda m: Falcon("x", groups=-1), "groups must be at least 0, got -1"),
        (lambda m: PPD("x", minimum=-1), "minimum must be at least 0, got -1"),
        (lambda m: PPD("x", tree=[(0,)]), "tree has no meaning, its trees are planned"),
    ],
)
def test_methods_that_cannot_be(model, make, words):
    with pytest.raises(ValueError, match=words):
        make(model)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: PPD("/nowhere"), FileNotFoundError, "holds no drafter"),
        (lambda m: PPD(FalconModule(m)), TypeError, "draft must be a folder or Tensor, got FalconModule"),
        (lambda m: Falcon(FalconModule(m)), ValueError, "acceptance must be given"),
        (
            lambda m: PPD(torch.zeros(3, 64), nodes=4, acceptance=TABLE),
            ValueError,
            "nodes must be at least 5",
        ),
    ],
)
def test_drafts_that_cannot_be(model, make, error, words):
    with tokops.patch(model, make(model)), pytest.raises(error, match=words):
        model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=4)
