"""MiniCache through a model: one whose layers are alike, random ones, and the real one, which it refuses."""

import copy
import pickle

import pytest
import torch
from kvcache.merge_oracle import by_hand, slerp
from tiny_models import build
from transformers import DynamicCache

import tokops
from tokops.kvcache import Codec
from tokops.methods import Dense, MiniCache, TidalDecode

GREEDY = {"do_sample": False, "max_new_tokens": 30}
PAGE = 8
LAYERS = 7


@pytest.fixture(scope="module")
def random_model():
    return build("llama", num_hidden_layers=LAYERS, head_dim=32)


def make_alike(model):
    """Keys and values of all layers get one direction each, while their lengths and everything else differ.

    They are made of half of the hidden state, and no layer writes to that half.
    """
    first, half = model.model.layers[0].self_attn, model.config.hidden_size // 2
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                weight.copy_(getattr(first, name).weight)
                weight[:, half:] = 0
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight[:half] = 0
                projection.weight[half:] *= 8  # what they write changes the length of the state
    return model


@pytest.fixture(scope="module")
def model():
    return make_alike(build("llama", num_hidden_layers=LAYERS, head_dim=32))


@pytest.fixture(scope="module")
def prompts():
    """Three prompts, of 40 tokens and of 16 and 8 fewer, and the attention mask."""
    ids = torch.randint(3, 97, (3, 40), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row, padding in ((0, 16), (1, 8)):
        ids[row, :padding] = mask[row, :padding] = 0
    return ids, mask


MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "num_return_sequences": 2, "top_k": 20},
    "contrast": {"repetition_penalty": 1.3},
}


def generate(model, ids, mask, mode):
    torch.manual_seed(0)
    return model.generate(ids, attention_mask=mask, **{**GREEDY, **mode})


@pytest.mark.parametrize("mode", MODES)
def test_a_model_whose_layers_are_alike_gives_its_own_tokens(mode, model, prompts):
    """With the guard on, a third of the cache less, and padding, beams and samples as ever."""
    expected = generate(model, *prompts, MODES[mode])
    with tokops.patch(model, MiniCache(residual=8), page_size=PAGE) as run:
        assert torch.equal(generate(model, *prompts, MODES[mode]), expected)
        report = run.report()
    assert len(report.notes) == 2  # layers 3 and 4, 5 and 6
    assert all("merged: distance of keys 0.000, of values 0.000" in note for note in report.notes)
    assert "layers 5 and 6 merged" in str(report)
    if mode == "greedy":
        assert report.kv_bytes < 0.9 * report.kv_bytes_full


@pytest.mark.parametrize("assistant", [False, True])
def test_drafts_are_taken_back(assistant, model, random_model, prompts):
    ids = prompts[0][2:]
    ids = torch.cat([ids, ids[:, :12]], 1)  # repeats itself, so that prompt lookup finds something
    drafts = {"assistant_model": random_model} if assistant else {"prompt_lookup_num_tokens": 5}
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model, MiniCache(residual=8), page_size=PAGE) as run:
        assert torch.equal(model.generate(ids, **GREEDY, **drafts), expected)
        assert run.report().notes


def test_a_conversation_continues_on_its_cache(model, prompts):
    ids, more = prompts[0][2:], prompts[0][2:, :17].flip(1)
    first = model.generate(ids, **GREEDY)
    expected = model.generate(torch.cat([first, more], 1), **GREEDY)
    with tokops.patch(model, MiniCache(residual=8), page_size=PAGE) as run:
        cache = run.new_cache()
        whole = torch.cat([model.generate(ids, **GREEDY, past_key_values=cache), more], 1)
        kept, saved = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        run.adopt(saved)
        for held in (cache, kept, saved):
            assert torch.equal(model.generate(whole, **GREEDY, past_key_values=held), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_continuations_of_one_document(shared, model, prompts):
    document = prompts[0][2:]
    ids = torch.cat([document.expand(6, -1), torch.arange(10, 16)[:, None]], 1)
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model, MiniCache(residual=8), page_size=PAGE) as run:
        cache = run.new_cache()
        with torch.no_grad():
            model(document, past_key_values=cache)
        cache.batch_repeat_interleave(6)
        if not shared:
            cache.unshare()
        assert torch.equal(model.generate(ids, **GREEDY, past_key_values=cache), expected)


FORCED = {
    "range": MiniCache(guard="force", residual=8, gamma=0.2),
    "topk": MiniCache(guard="force", residual=8, retain="topk", gamma=0.1, share_heads=True),
    "4 bit": MiniCache(guard="force", residual=8, bits=4),
}


@pytest.mark.parametrize("name", FORCED)
def test_batches_of_whole_pages_of_padding_are_as_rows_alone(name, random_model, prompts):
    """Cuts are common to a batch; with pads that are whole pages every row is cut where it would be alone."""
    ids, mask = prompts
    with tokops.patch(random_model, FORCED[name], page_size=PAGE):
        together = random_model.generate(ids, attention_mask=mask, **GREEDY)
        for row, padding in enumerate((16, 8, 0)):
            alone = random_model.generate(ids[row : row + 1, padding:], **GREEDY)
            assert torch.equal(together[row, padding:], alone[0])


@pytest.mark.parametrize("tokens", [4, 13, 24, 30, 35])
def test_a_cropped_cache_goes_on(tokens, model, prompts):
    """Out of the tail, and into pages: the logits that follow are those of a model that never saw what was cropped."""
    ids = torch.cat([prompts[0][2:], prompts[0][2:, :16].flip(1)], 1)
    with torch.no_grad():
        expected = model(ids).logits[:, 40 - tokens :]
        with tokops.patch(model, MiniCache(residual=8), page_size=PAGE) as run:
            cache = run.new_cache(prompt_length=40 - tokens)
            model(ids[:, :40], past_key_values=cache)
            cache.crop(-tokens)
            assert cache.get_seq_length() == 40 - tokens
            got = [model(part, past_key_values=cache).logits for part in ids[:, 40 - tokens :].split(3, 1)]
            assert cache.state.layout.packed == 40
    torch.testing.assert_close(torch.cat(got, 1), expected, atol=2e-2, rtol=1e-2)


def test_logits_are_those_of_the_closed_form(random_model, prompts):
    """Stock transformers over a cache whose prompt was replaced by what MiniCache keeps of it."""
    ids = prompts[0][1:2, 8:], prompts[0][2:]
    ids = torch.cat([ids[1], ids[0]], 1)  # 72 tokens
    method = MiniCache(guard="force", residual=8, gamma=0.2, sinks=3, t=0.3)
    with torch.no_grad():
        stock = DynamicCache(config=random_model.config)
        random_model(ids[:, :61], past_key_values=stock)
        dense = copy.deepcopy(stock)
        for lower, upper in ((3, 4), (5, 6)):
            layers = [stock.layers[i] for i in (lower, upper)]
            tokens = [[x.transpose(1, 2) for x in (layer.keys, layer.values)] for layer in layers]
            merged = by_hand(tokens, ((0, 48),), {"gamma": 0.2}, sinks=3, starts=(0,))
            assert 20 < merged.sum() < 2 * 48
            for i, name in enumerate(("keys", "values")):
                e = slerp(tokens[0][i], tokens[1][i], 0.3).transpose(1, 2)
                for layer in layers:
                    x = getattr(layer, name)
                    new = (e * x.double().norm(dim=-1, keepdim=True)).float()
                    setattr(layer, name, torch.where(merged[..., None], new, x))
        expected = random_model(ids[:, 61:64], past_key_values=stock).logits
        unmerged = random_model(ids[:, 61:64], past_key_values=dense).logits
        with tokops.patch(random_model, method, page_size=PAGE) as run:
            cache = run.new_cache(prompt_length=61)
            random_model(ids[:, :61], past_key_values=cache)
            got = random_model(ids[:, 61:64], past_key_values=cache).logits
            assert cache.state.layout.packed == 48
    assert (got - expected).norm() < 5e-3 * (expected - unmerged).norm()


def test_selections_read_through_pairs(model, random_model, prompts):
    """TidalDecode with a budget that covers the text is MiniCache alone, over either model."""
    ids = prompts[0][2:]
    for one, method in ((model, MiniCache(residual=8)), (random_model, FORCED["range"])):
        with tokops.patch(one, method, page_size=PAGE):
            expected = one.generate(ids, **GREEDY)
        with tokops.patch(one, TidalDecode(budget=100, reselect_layer=4), method, page_size=PAGE):
            assert torch.equal(one.generate(ids, **GREEDY), expected)
        with tokops.patch(one, TidalDecode(budget=16, reselect_layer=4), method, page_size=PAGE) as run:
            one.generate(ids, **GREEDY)
            assert run.report().read_ratio < 0.8


@pytest.mark.parametrize(
    "changes", [{"start": LAYERS}, {"start": LAYERS - 1}, {"gamma": 1.0, "guard": "force"}]
)
def test_what_merges_nothing_is_dense(changes, random_model, prompts):
    expected = random_model.generate(prompts[0], attention_mask=prompts[1], **GREEDY)
    method = MiniCache(residual=8, **changes)
    with tokops.patch(random_model, method, page_size=PAGE):
        assert torch.equal(random_model.generate(prompts[0], attention_mask=prompts[1], **GREEDY), expected)


def test_bytes_of_a_model_without_pairs(random_model, prompts):
    with tokops.patch(random_model, MiniCache(start=LAYERS, residual=8), page_size=PAGE) as run:
        random_model.generate(prompts[0], attention_mask=prompts[1], **GREEDY)
        report = run.report()
    tables = 3 * 56 // PAGE * 4  # of 69 tokens 56 are in pages
    assert report.kv_bytes == report.kv_bytes_full + tables
    assert report.notes == []


def test_what_layers_share_is_read_by_both(model):
    """Memory is saved, not traffic: a token read in a layer is its direction there and two norms."""
    ids = torch.randint(3, 97, (1, 400), generator=torch.Generator().manual_seed(1))
    reports = []
    for method in (Dense(), MiniCache(start=1, residual=0, sinks=0, gamma=0.0)):
        with tokops.patch(model, method, page_size=PAGE) as run:
            model.generate(ids, do_sample=False, max_new_tokens=2, min_new_tokens=2)
            reports.append(run.report())
    dense, mini = reports
    assert mini.tokens_read_per_step == dense.tokens_read_per_step
    assert mini.kv_bytes < 0.6 * dense.kv_bytes
    norms, tables = 400 * 2 * 2 * 2 * 6, 400 // PAGE * 4  # two heads, keys and values, 2 bytes, 6 layers
    assert mini.kv_bytes_read_per_token == pytest.approx(dense.kv_bytes_read_per_token + norms + tables)


def test_windows_are_never_paired():
    """Of alternating layers the full ones are paired, one with the next that is full."""
    model = build("gemma2", num_hidden_layers=8)
    ids = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(1))
    with tokops.patch(model, MiniCache(guard="force", residual=8), page_size=PAGE) as run:
        cache = run.new_cache()
        assert [pair.layers for pair in cache.state.layout.pairs] == [(5, 7)]
        model.generate(ids, **GREEDY)
        assert [note[:17] for note in run.report().notes] == ["layers 5 and 7 me"]


# ---- The guard.


def test_the_guard_refuses_a_random_model(random_model, prompts):
    with tokops.patch(random_model, MiniCache(residual=8), page_size=PAGE) as run:
        cache = run.new_cache()
        with pytest.raises(RuntimeError, match=r"layers 3 and 4 are not alike: .*0\.4.*guard='skip'"):
            random_model.generate(prompts[0][2:], past_key_values=cache, **GREEDY)
        with pytest.raises(RuntimeError, match=r"reset\(\) the cache"):
            random_model(prompts[0][2:], past_key_values=cache)
        cache.reset()
        random_model(prompts[0][2:, :10], past_key_values=cache)


@pytest.mark.parametrize("padding", [36, 16])
def test_the_guard_measures_no_padding(padding, model, prompts):
    """Of a prompt whose first pages are padding alone nothing is packed until there is something to measure."""
    ids, mask = prompts[0][2:].clone(), prompts[1][2:].clone()
    mask[:, :padding] = 0
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    with tokops.patch(model, MiniCache(residual=8), page_size=PAGE) as run:
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), expected)
        notes = run.report().notes
    assert len(notes) == 2
    assert all("merged: distance of keys 0.0" in note for note in notes)


def test_skipped_pairs_are_dense_and_told(random_model, prompts):
    expected = random_model.generate(prompts[0], attention_mask=prompts[1], **GREEDY)
    with tokops.patch(random_model, MiniCache(guard="skip", residual=8), page_size=PAGE) as run:
        assert torch.equal(random_model.generate(prompts[0], attention_mask=prompts[1], **GREEDY), expected)
        notes = run.report().notes
    assert [note[:30] for note in notes] == [
        "layers 3 and 4 kept apart: dis",
        "layers 5 and 6 kept apart: dis",
    ]


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_is_refused():
    """Its neighbouring layers are all but orthogonal, and that is said before anything is lost."""
    from tokops.data import held_out_text
    from tokops.hf import load_smollm2

    model, tokenizer = load_smollm2(progress=False)
    ids = torch.tensor([tokenizer(held_out_text()[:2000])["input_ids"][:300]])
    with (
        tokops.patch(model, MiniCache()),
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"layers 15 and 16 are not alike: .*0\.[45]\d\d, .*0\.[45]\d\d"),
    ):
        model(ids)
    with tokops.patch(model, MiniCache(guard="skip")) as run, torch.no_grad():
        cache = run.new_cache()
        logits = model(ids, past_key_values=cache).logits
        model(ids[:, -1:], past_key_values=cache)
        distances = cache.state.layout.distances
    assert list(distances) == [(i, i + 1) for i in range(15, 29, 2)]
    assert all(0.45 < d < 0.6 for pair in distances.values() for d in pair), distances
    assert len(run.report().notes) == 7
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-3, rtol=1e-3)


# ---- Options.


def test_defaults_depend_on_the_model(random_model):
    for method, start, residual in ((MiniCache(), 3, 64), (MiniCache(bits=4, start=1), 1, 128)):
        with tokops.patch(random_model, method) as run:
            (resolved,) = run.methods
            assert (resolved.start, resolved.residual) == (start, residual)
            layout = run.new_cache().state.layout
    assert [pair.layers for pair in layout.pairs] == [(1, 2), (3, 4), (5, 6)]
    assert layout.codecs == (Codec("int4", "channel", 64), Codec("int4", "token", 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": -1}, r"t must be 0\.\.1, got -1"),
        ({"gamma": 1.1}, r"gamma must be 0\.\.1, got 1\.1"),
        ({"start": -1}, "start must be >= 0, got -1"),
        ({"retain": "all"}, "retain must be one of range, topk, got 'all'"),
        ({"bits": 2}, "bits must be None or 4, got 2"),
        ({"residual": -1}, "residual must be >= 0, got -1"),
        ({"sinks": -1}, "sinks must be >= 0, got -1"),
        ({"sinks": 0.5}, "sinks must be a whole number, got 0.5"),
        ({"residual": 1.5}, "residual must be a whole number, got 1.5"),
        ({"start": 1.5}, "start must be a whole number, got 1.5"),
        ({"bits": 4.0}, "bits must be a whole number, got 4.0"),
        ({"guard": "no"}, "guard must be one of refuse, skip, force, got 'no'"),
        ({"max_distance": -0.1}, r"max_distance must be 0\.\.1, got -0\.1"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=f"MiniCache: {message}"):
        MiniCache(**changes)


@pytest.mark.parametrize(
    ("changes", "page", "message"),
    [
        ({"start": 8}, 8, r"start must be 0\.\.7 \(layers\), got 8"),
        ({}, 4, "whole pages of at least 8 tokens, got 4"),
        ({"bits": 4, "residual": 32}, 64, "residual 32 is shorter than the channel group of 64 tokens"),
    ],
)
def test_models_and_pages_it_cannot_have(changes, page, message, random_model):
    with pytest.raises(ValueError, match=message):
        tokops.patch(random_model, MiniCache(**changes), page_size=page)


def test_four_bits_need_a_head_dimension():
    with pytest.raises(ValueError, match="needs a head dimension divisible by 32, got 16"):
        tokops.patch(build("llama"), MiniCache(bits=4))


def test_a_model_of_windows_alone_is_refused():
    with pytest.raises(ValueError, match=r"every layer .* has a sliding window"):
        tokops.patch(build("mistral"), MiniCache())
