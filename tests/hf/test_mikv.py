"""MiKV on models: stock tokens where nothing is lost, however a cache is used, and the published order of quality."""

import copy

import pytest
import torch
from tiny_models import build

import tokops
from tokops.data import long_text
from tokops.hf import load_smollm2, quality
from tokops.kvcache.tiers import listed
from tokops.methods import Dense, Method, MiKV, Selection, TidalDecode

EXACT = {
    "16 bits below": MiKV(low=16, interval=5),
    "no balancer": MiKV(low=16, ratio=0.1, balancer=False, interval=3),
    "a budget": MiKV(low=16, budget=20, recent=0.3, interval=7),
    "by age": MiKV(low=16, normalise_by_age=True, obs_window=8),
    "all important": MiKV(low=2, ratio=1.0),
}
NEW = 30


@pytest.fixture(scope="module")
def model():
    return build("llama", head_dim=32)


@pytest.fixture(scope="module")
def text():
    return torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(3))


def generate(model, ids, **kwargs):
    return model.generate(ids, do_sample=False, max_new_tokens=NEW, **kwargs)[:, ids.shape[1] :]


@pytest.mark.parametrize("name", EXACT)
def test_nothing_is_lost_where_both_pools_are_full_precision(name, model, text):
    expected = generate(model, text), generate(model, text, num_beams=3)
    with tokops.patch(model, EXACT[name], page_size=8):
        assert torch.equal(generate(model, text), expected[0])
        assert torch.equal(generate(model, text, prompt_lookup_num_tokens=4), expected[0])
        assert torch.equal(generate(model, text, num_beams=3), expected[1])


@pytest.mark.parametrize("method", [MiKV(low=16, interval=4), MiKV(high=8, low=2, interval=4)])
def test_padding_and_batching_change_nothing(method, model, text):
    short = text[:, 20:]
    batch = torch.cat([torch.nn.functional.pad(short, (20, 0)), text])
    mask = torch.ones_like(batch)
    mask[0, :20] = 0
    with tokops.patch(model, method, page_size=8):
        alone = torch.cat([generate(model, ids) for ids in (short, text)])
        assert torch.equal(generate(model, batch, attention_mask=mask), alone)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "qwen3"])
def test_families_with_windows_soft_caps_and_sinks(family, text):
    model = build(family, head_dim=32)
    expected = generate(model, text)
    with tokops.patch(model, MiKV(low=16, interval=4)) as run:
        assert torch.equal(generate(model, text), expected)
        cache = run.new_cache()
        model(text, past_key_values=cache)
        stores = [layer.store for layer in cache.layers if hasattr(layer, "store")]
        for store in stores:
            given = store.acc[..., :60].sum(-1)
            whole = torch.full_like(given, 60.0 * 4)
            if family == "gpt_oss":  # the model's own sinks take a share
                assert bool((given < 0.98 * whole).all())
            else:
                torch.testing.assert_close(given, whole, rtol=1e-4, atol=0)


@torch.no_grad()
def test_caches_are_cropped_copied_reordered_and_repeated(model, text):
    with tokops.patch(model, MiKV(low=16, interval=4), page_size=8) as run:

        def logits(cache, ids):
            return model(ids, past_key_values=cache).logits

        cache = run.new_cache(prompt_length=40)
        logits(cache, text[:, :40])
        for i in range(40, 52):
            logits(cache, text[:, i : i + 1])
        twin = copy.deepcopy(cache)
        whole = logits(run.new_cache(), text)
        torch.testing.assert_close(logits(cache, text[:, 52:60]), whole[:, 52:60], rtol=1e-4, atol=1e-4)
        cache.crop(-30)  # into what was prompt
        cache.prompt_length = 60
        torch.testing.assert_close(logits(cache, text[:, 30:45]), whole[:, 30:45], rtol=1e-4, atol=1e-4)
        twin.batch_repeat_interleave(3)
        twin.unshare()
        others = text[:, 52:53] + torch.tensor([[0], [1], [2]])
        split = logits(twin, others)
        torch.testing.assert_close(split[:1], whole[:, 52:53], rtol=1e-4, atol=1e-4)
        twin.batch_select_indices(torch.tensor([2, 0]))
        again = logits(twin, text[:, 53:60].expand(2, -1))
        torch.testing.assert_close(again[1:], whole[:, 53:60], rtol=1e-4, atol=1e-4)
        changed = torch.cat([text[:, :52], others[2:], text[:, 53:]], 1)
        torch.testing.assert_close(again[:1], logits(run.new_cache(), changed)[:, 53:], rtol=1e-4, atol=1e-4)
        twin.reset()
        torch.testing.assert_close(logits(twin, text), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_first_forward_may_bring_drafts_and_prompts_may_come_in_chunks(model, text):
    with tokops.patch(model, MiKV(low=16, interval=4)) as run:
        whole = model(text, past_key_values=run.new_cache()).logits
        cache = run.new_cache(prompt_length=40)
        got = [model(part, past_key_values=cache).logits for part in (text[:, :33], text[:, 33:45])]
        cache.crop(-3)
        got[1] = got[1][:, :-3]
        got += [model(part, past_key_values=cache).logits for part in text[:, 42:].split(5, 1)]
    torch.testing.assert_close(torch.cat(got, 1), whole, rtol=1e-4, atol=1e-4)


def test_a_covering_selection_over_mixed_precision_changes_nothing(text):
    model = build("llama", head_dim=32, num_hidden_layers=7)
    store = MiKV(low=2, interval=4)
    with tokops.patch(model, store):
        expected = generate(model, text)
    with tokops.patch(model, TidalDecode(budget=100, reselect_layer=5), store):
        assert torch.equal(generate(model, text), expected)
    with tokops.patch(model, TidalDecode(budget=12, reselect_layer=5), store) as run:
        sparse = generate(model, text)
        assert sparse.shape == expected.shape
        report = run.report()
    assert report.slots == {"select": "TidalDecode", "store": "MiKV"}
    assert report.read_ratio < 0.8


def test_the_report_counts_less_than_full_precision(model, text):
    with tokops.patch(model, MiKV(low=2)) as run:
        generate(model, text)
        report = run.report()
    assert report.kv_bytes_full == 4 * 89 * 2 * 2 * 32 * 4
    assert 0.3 < report.kv_bytes / report.kv_bytes_full < 0.65
    assert report.kv_bytes < report.kv_bytes_allocated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": 2}, "high must be one of 16, 8, 4, got 2"),
        ({"low": 8}, "low must be one of 16, 4, 3, 2, got 8"),
        ({"high": 8, "low": 16}, "low 16 has more bits than high 8"),
        ({"ratio": 1.5}, "ratio must be 0..1, got 1.5"),
        ({"recent": -0.5}, "recent must be 0..1, got -0.5"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"budget": 7}, "a budget of 7 does not hold 4 sinks and the newest 4"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"sinks": -1}, "sinks must be at least 0, got -1"),
        ({"obs_window": 0}, "obs_window must be at least 1, got 0"),
        ({"group": 48}, "group must be a multiple of 32, got 48"),
        ({"interval": 1.5}, "interval must be a whole number, got 1.5"),
        ({"interval": None}, "interval must be a whole number, got None"),
        ({"budget": 20.5}, "budget must be a whole number, got 20.5"),
        ({"obs_window": 2.5}, "obs_window must be a whole number, got 2.5"),
        ({"sinks": 1.5}, "sinks must be a whole number, got 1.5"),
        ({"group": 64.0}, "group must be a whole number, got 64.0"),
        ({"high": 16.0}, "high must be a whole number, got 16.0"),
        ({"low": True}, "low must be a whole number, got True"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^MiKV: {message}"):
        MiKV(**options)


@pytest.mark.parametrize("method", [MiKV(), MiKV(high=8, low=2), MiKV(balancer=False)])
def test_keys_that_are_not_finite(method, model, text, monkeypatch):
    monkeypatch.setenv("TOKOPS_CHECK", "1")
    with tokops.patch(model, method, page_size=8):
        generate(model, text)
    broken = build("llama", head_dim=32)
    with torch.no_grad():
        broken.model.layers[1].self_attn.k_proj.weight[3] = float("nan")
    with (
        tokops.patch(broken, method, page_size=8),
        pytest.raises(RuntimeError, match="kv_transfer: k must be finite where it is moved"),
    ):
        generate(broken, text)


def test_models_that_cannot_be_stored_are_refused(model):
    with pytest.raises(ValueError, match="the head dimension 32 is not divisible by the group 64"):
        tokops.patch(model, MiKV(group=64))
    with pytest.raises(ValueError, match="int4 needs a head dimension divisible by 32, got 16"):
        tokops.patch(build("llama"), MiKV())
    with pytest.raises(ValueError, match=r"every layer of .* has a sliding window"):
        tokops.patch(build("mistral", head_dim=32), MiKV())
    with pytest.raises(ValueError, match="clash"):
        tokops.patch(model, MiKV(), tokops.methods.QuantizedKV())


class Evict(Method):
    """Reads only what MiKV keeps in high precision: what eviction of the others would leave."""

    slots = ("select",)

    def select(self, reader, step):
        store, position = reader._layer.store, torch.arange(reader.length)
        where = store.where[..., : reader.length]
        kept = ((where >= 0) & (where < store.low.base)) | (position >= store._settled)
        lists, counts = listed(kept, int(kept.sum(-1).max()))
        lists = lists.masked_fill(torch.arange(lists.shape[-1]) >= counts[..., None], -1)
        return Selection(lists[:, None].int(), counts[:, None])


@pytest.mark.model
@pytest.mark.slow
def test_quality_on_a_real_model_has_the_published_order():
    model, tokenizer = load_smollm2(progress=False)
    text = long_text()[20_000:24_000]
    ids = tokenizer(text, return_tensors="pt").input_ids[0, :577]

    @torch.no_grad()
    def logits(*methods):
        with tokops.patch(model, *methods) as run:
            cache = run.new_cache(prompt_length=512)
            model(ids[None, :512], past_key_values=cache)
            return quality.teacher_forced(model, cache, ids[512:576], chunk=8)

    dense = logits(Dense())
    ways = {
        "full": (MiKV(low=16),),
        "int4": (MiKV(low=4),),
        "int3": (MiKV(low=3),),
        "int2": (MiKV(low=2),),
        "int2 unbalanced": (MiKV(low=2, balancer=False),),
        "evicted": (MiKV(low=16), Evict()),
    }
    kl = {name: quality.compare(dense, logits(*methods), ids[513:577]).kl for name, methods in ways.items()}
    assert kl["full"] < 1e-8
    assert 4 * kl["int4"] < kl["int3"] < kl["evicted"] / 3
    assert 5 * kl["int3"] < kl["int2"] < 0.7 * kl["int2 unbalanced"]


@pytest.mark.model
@pytest.mark.slow
def test_a_fact_amid_a_prompt_is_found_in_the_low_pool_and_lost_by_eviction():
    model, tokenizer = load_smollm2(progress=False)
    text = long_text()

    @torch.no_grad()
    def answer(methods, prompt, question):
        prompt = tokenizer(prompt, return_tensors="pt").input_ids
        ids = tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids
        with tokops.patch(model, *methods) as run:
            cache = run.new_cache(prompt_length=prompt.shape[1])
            model(prompt, past_key_values=cache)
            found = []
            for _ in range(4):  # a space and three digits
                ids = model(ids, past_key_values=cache).logits[0, -1:].argmax(-1)[None]
                found.append(int(ids))
        return tokenizer.decode(found).strip()

    facts = [("blue", "237"), ("green", "682"), ("red", "967")]
    ways = {"dense": (Dense(),), "int4": (MiKV(),), "evicted": (MiKV(low=16), Evict())}
    right = dict.fromkeys(ways, 0)
    for i, (box, number) in enumerate(facts):
        before, after = (text[at + 1000 * i : at + 1000 * i + 1500] for at in (5000, 19_000))
        fact = f"The secret number of the {box} box is"
        for name, methods in ways.items():
            right[name] += answer(methods, f"{before}\n{fact} {number}.\n{after}\n", fact) == number
    assert right == {"dense": 3, "int4": 3, "evicted": 0}
