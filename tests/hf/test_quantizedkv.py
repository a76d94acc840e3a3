"""QuantizedKV on tiny models: stock tokens in full precision, and the stock model over the decoded cache otherwise."""

import copy
import pickle

import pytest
import torch
from stored import stock_logits
from tiny_models import build

import tokops
from tokops.hf import cache as cache_module
from tokops.kvcache import Codec
from tokops.methods import Dense, Method, QuantizedKV

NEW = 24
FULL = {
    "plain": QuantizedKV(bits=16, sinks=0),
    "sinks and residual": QuantizedKV(bits=16, sinks=3, residual=5),
    "rotated": QuantizedKV(bits=16, rotate=True, full_first=True, residual=11),
}
FORMATS = {
    "int8": QuantizedKV(8),
    "int4": QuantizedKV(4),
    "int4 plain": QuantizedKV(4, rotate=False, full_first=False),
    "int3": QuantizedKV(3, full_first=False),
    "int2 with residual": QuantizedKV(2, residual=8),
    "keys 8, values 4": QuantizedKV((8, 4), sinks=2),
    "e4m3": QuantizedKV("fp8_e4m3"),
    "e5m2 keys, full values": QuantizedKV(("fp8_e5m2", 16)),
    "channels": QuantizedKV(4, key_geometry="channel", group=16, residual=16),
    "channels of both": QuantizedKV(
        8, key_geometry="channel", value_geometry="channel", group=16, residual=20
    ),
    "int4 in tiles": QuantizedKV(4, key_tiles=True),
    "channels in tiles": QuantizedKV((2, 8), key_geometry="channel", group=16, residual=16, key_tiles=True),
    "heads": QuantizedKV("fp8_e4m3", key_geometry="head", value_geometry="head", residual=0),
}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.9},
    "chunked prefill": {"prefill_chunk_size": 5},
    "several returned": {"do_sample": True, "num_return_sequences": 2},
}


def run(model, inputs, **mode):
    torch.manual_seed(3)
    return model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, **{"do_sample": False, **mode})


@pytest.fixture(scope="module")
def model():
    return build("llama", head_dim=32)


@pytest.fixture
def long_prompts():
    ids = torch.randint(3, 97, (2, 70), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :19] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FULL)
def test_full_precision_gives_stock_tokens(name, mode, model, prompts):
    expected = run(model, prompts, **MODES[mode])
    with tokops.patch(model, FULL[name], page_size=8):
        assert torch.equal(run(model, prompts, **MODES[mode]), expected)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "qwen2", "qwen3"])
@pytest.mark.parametrize("mode", ["greedy", "beams", "chunked prefill"])
def test_families_with_softcap_sinks_and_windows(family, mode, prompts):
    model = build(family, head_dim=32)
    expected = run(model, prompts, **MODES[mode])
    with tokops.patch(model, FULL["rotated"], page_size=8):
        assert torch.equal(run(model, prompts, **MODES[mode]), expected)


@pytest.mark.parametrize("name", FULL)
def test_prompt_lookup_and_assistant(name, model):
    drafter = build("llama", seed=5)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7] * 2])}
    expected = run(model, inputs)
    with tokops.patch(model, FULL[name], page_size=4):
        for mode in ({"prompt_lookup_num_tokens": 4}, {"assistant_model": drafter}):
            assert torch.equal(run(model, inputs, **mode), expected)


def forward(model, cache, ids, mask):
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits


@pytest.mark.parametrize("name", FULL)
def test_step_by_step_equals_whole(name, model, long_prompts):
    """Chunks of many sizes, longer than what one call decodes among them; prompts and drafts by turns."""
    ids = torch.randint(3, 97, (2, 340))
    ids[:, :70] = long_prompts["input_ids"]
    mask = torch.cat([long_prompts["attention_mask"], torch.ones(2, 270).long()], 1)
    expected = forward(model, None, ids, mask)
    with tokops.patch(model, FULL[name], page_size=16) as patched:
        cache, at, parts = patched.new_cache(), 0, []
        for rows, prompt_length in (
            (9, 340),
            (12, 340),
            (1, 0),
            (7, 30),
            (270, 340),
            (1, 0),
            (33, 0),
            (7, 0),
        ):
            cache.prompt_length = prompt_length
            parts.append(forward(model, cache, ids[:, at : at + rows], mask[:, : at + rows]))
            at += rows
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], atol=5e-4, rtol=1e-3)


def check_against_stock(model, run, cache, ids, mask, pieces):
    """Decodes pieces of ids; every one's logits are those of the stock model over the decoded cache."""
    at = cache.get_seq_length()
    for rows in pieces:
        new, seen = ids[:, at : at + rows], mask[:, : at + rows]
        got = forward(model, cache, new, seen)
        run.undo()
        want = stock_logits(model, cache, new, seen)
        again = tokops.patch(model, *run.methods, page_size=16)
        again.adopt(cache)
        run = again
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
        at += rows
    return run


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_decoded_cache(name, family, long_prompts):
    """Prompt, single tokens, drafts of several, a crop into packed pages, and more of the same."""
    model = build(family, head_dim=32)
    ids, mask = long_prompts["input_ids"], long_prompts["attention_mask"]
    patched = tokops.patch(model, FORMATS[name], page_size=16)
    cache = patched.new_cache(prompt_length=45)
    forward(model, cache, ids[:, :45], mask[:, :45])
    patched = check_against_stock(model, patched, cache, ids, mask, [1, 1, 3, 1, 7, 1])
    cache.crop(-21)  # below the prompt's end, where int8 pages begin
    cache.prompt_length = 0
    patched = check_against_stock(model, patched, cache, ids, mask, [1, 2, 1, 9, 1])
    patched.undo()


def test_quantising_changes_something_and_little(model, long_prompts):
    expected = forward(model, None, long_prompts["input_ids"], long_prompts["attention_mask"])[:, -1]
    errors = []
    for method in (FULL["plain"], FORMATS["int8"], FORMATS["int4 plain"], QuantizedKV(2, residual=0)):
        with tokops.patch(model, method, page_size=16) as patched:
            cache = patched.new_cache()
            ids, mask = long_prompts["input_ids"], long_prompts["attention_mask"]
            forward(model, cache, ids[:, :-1], mask[:, :-1])
            got = forward(model, cache, ids[:, -1:], mask)[:, -1]
        errors.append(float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt()))
    assert errors[0] < 1e-4 < errors[1] < 0.05
    assert errors[1] < errors[2] < errors[3]


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "keys 8, values 4", "e4m3"])
def test_padding_and_batching_change_nothing(name, model):
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(3, 97, (1, n), generator=generator) for n in (12, 25, 40)]
    batch = torch.cat([torch.nn.functional.pad(ids, (40 - ids.shape[1], 0)) for ids in texts])
    mask = torch.stack([(torch.arange(40) >= 40 - ids.shape[1]).long() for ids in texts])
    with tokops.patch(model, FORMATS[name], page_size=8):
        alone = [run(model, {"input_ids": ids})[:, ids.shape[1] :] for ids in texts]
        together = run(model, {"input_ids": batch, "attention_mask": mask})
    assert torch.equal(together[:, 40:], torch.cat(alone))


@pytest.mark.parametrize("name", ["channels", "channels of both", "int2 with residual"])
def test_padding_of_whole_pages_changes_nothing_per_channel(name, model):
    """Groups of tokens lie where pages do: padding of whole pages moves none, and none of it enters a scale."""
    ids = torch.randint(3, 97, (1, 70), generator=torch.Generator().manual_seed(6))
    padded = torch.nn.functional.pad(ids, (32, 0), value=5)
    mask = (torch.arange(102) >= 32).long()[None]
    with tokops.patch(model, FORMATS[name], page_size=16) as patched:
        results = []
        for tokens, seen in ((ids, mask[:, 32:]), (padded, mask)):
            cache = patched.new_cache()
            forward(model, cache, tokens[:, :-1], seen[:, :-1])
            results.append(forward(model, cache, tokens[:, -1:], seen))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_what_padding_holds_changes_nothing(name, model):
    ids = torch.randint(3, 97, (2, 70), generator=torch.Generator().manual_seed(6))
    mask = torch.ones_like(ids)
    mask[0, :23] = 0
    with tokops.patch(model, FORMATS[name], page_size=16):
        expected = run(model, {"input_ids": ids, "attention_mask": mask})[:, 70:]
        ids[0, :23] = 11
        assert torch.equal(run(model, {"input_ids": ids, "attention_mask": mask})[:, 70:], expected)


def test_beams_and_continuations_share_packed_pages(model, prompts):
    with tokops.patch(model, FORMATS["int8"], page_size=8) as patched:
        one = run(model, prompts)
        assert torch.equal(run(model, prompts, num_beams=4, num_return_sequences=4)[::4][:, :21], one[:, :21])
        beams = patched.report().kv_bytes
        run(model, {k: v.repeat_interleave(4, 0) for k, v in prompts.items()})
        assert beams < 0.8 * patched.report().kv_bytes
        cache = patched.new_cache()
        first = run(model, prompts, past_key_values=cache)
        twin = copy.deepcopy(cache)
        more = {
            "input_ids": torch.cat([first, prompts["input_ids"][:, 6:]], 1),
            "attention_mask": torch.cat([prompts["attention_mask"], torch.ones(2, NEW + 15).long()], 1),
        }
        expected = run(model, more, past_key_values=cache)
        assert torch.equal(run(model, more, past_key_values=twin), expected)


def test_report(model, prompts):
    with tokops.patch(model, FORMATS["int4 plain"], page_size=8) as patched:
        cache = patched.new_cache()
        run(model, prompts, past_key_values=cache)
        report = patched.report()
    length = 21 + NEW - 1
    assert report.kv_bytes_full == 2 * length * 4 * 2 * 2 * 32 * 4
    layout = cache.state.layout
    assert report.kv_bytes == layout.live_bytes()
    assert report.kv_bytes_allocated == layout.allocated_bytes() > report.kv_bytes
    per_token = report.kv_bytes / (2 * length * 4)
    assert report.kv_bytes_read_per_token == pytest.approx(report.tokens_read_per_step * per_token)
    assert report.slots == {"store": "QuantizedKV"}


def test_caches_are_saved_and_loaded(model, prompts, monkeypatch):
    more = {k: torch.cat([v, v.new_ones(2, NEW + 3)], 1) for k, v in prompts.items()}
    with tokops.patch(model, FORMATS["int4"], page_size=8) as patched:
        cache = patched.new_cache()
        run(model, prompts, past_key_values=cache)
        saved = pickle.dumps(cache)
        expected = run(model, more, past_key_values=cache)
        loaded = pickle.loads(saved)
        with pytest.raises(ValueError, match=r"loaded from a file: run.adopt\(cache\) takes it over"):
            run(model, more, past_key_values=loaded)
    with tokops.patch(model, FORMATS["int4"], page_size=8) as patched:
        patched.adopt(loaded)
        assert torch.equal(run(model, more, past_key_values=loaded), expected)
    with tokops.patch(build("llama", head_dim=32, num_hidden_layers=3)) as other:
        with pytest.raises(ValueError, match="this cache is of another model: llama"):
            other.adopt(pickle.loads(saved))
        with pytest.raises(TypeError, match="only a tokops cache can be taken over, got list"):
            other.adopt([])
    before = cache_module.FORMAT
    monkeypatch.setattr(cache_module, "FORMAT", before + 1)
    reads = (
        f"this cache was saved in format {before}, this tokops reads format {before + 1}: fill a new cache"
    )
    with pytest.raises(ValueError, match=reads):
        pickle.loads(saved)


def test_refuses_a_cache_of_another_run_or_dtype(model, prompts):
    with tokops.patch(model, FORMATS["int8"]) as patched:
        cache = patched.new_cache()
        forward(model, cache, **{"ids": prompts["input_ids"], "mask": prompts["attention_mask"]})
        token = torch.zeros(2, 2, 1, 32)
        with pytest.raises(
            ValueError, match=r"layer 0 holds torch.float32, the new tokens are torch.bfloat16"
        ):
            cache.update(token.bfloat16(), token.bfloat16(), 0)
        cache = patched.new_cache()
        cache.update(token, token, 0)
        with pytest.raises(ValueError, match="keys and values must have one shape"):
            cache.update(token, token[..., :16], 1)
        cache.update(token, token, 0)
        with pytest.raises(RuntimeError, match="a forward was interrupted, reset"):
            cache.update(token, token, 2)
    with tokops.patch(model, Dense()), pytest.raises(ValueError, match=r"belongs to another tokops.patch"):
        run(model, prompts, past_key_values=cache)


def test_keys_that_are_not_finite(model, prompts, monkeypatch):
    broken = build("llama", head_dim=32)
    with torch.no_grad():
        broken.model.layers[1].self_attn.k_proj.weight[3] = float("nan")
    with tokops.patch(broken, FORMATS["int8"]):
        run(broken, prompts)  # taken for 0
        monkeypatch.setenv("TOKOPS_CHECK", "1")
        with pytest.raises(RuntimeError, match="kv_append: k must be finite where it is written"):
            run(broken, prompts)
    expected = run(model, prompts)
    with tokops.patch(model, FULL["sinks and residual"]):
        assert torch.equal(run(model, prompts), expected)


def test_refuses_models_it_cannot_keep():
    with pytest.raises(ValueError, match=r"every layer of .* has a sliding window, whose cache is bounded"):
        tokops.patch(build("mistral"), QuantizedKV())
    with pytest.raises(ValueError, match="int4 needs a head dimension divisible by 32, got 16"):
        tokops.patch(build("llama"), QuantizedKV(4))
    with pytest.raises(ValueError, match="head dimension divisible by 16, got 8"):
        tokops.patch(build("llama", head_dim=8), QuantizedKV("fp8_e4m3"))
    with pytest.raises(ValueError, match="page size 8 is not a multiple of the group 64"):
        tokops.patch(build("llama", head_dim=32), QuantizedKV(8, key_geometry="channel"), page_size=8)


@pytest.mark.parametrize(
    ("options", "dim", "keys", "values", "rotate", "residual", "sinks"),
    [
        ({"bits": 8}, 64, Codec("int8"), Codec("int8"), False, 0, 4),
        ({"bits": 8}, 96, Codec("int8", group=32), Codec("int8", group=32), False, 0, 4),
        ({"bits": 8}, 80, Codec("int8", group=16), Codec("int8", group=16), False, 0, 4),
        ({"bits": 4}, 128, Codec("int4"), Codec("int4"), True, 0, 64),
        ({"bits": 8, "group": 48}, 96, Codec("int8", group=48), Codec("int8", group=48), False, 0, 4),
        ({"bits": 4, "group": 48}, 96, Codec("int4", group=32), Codec("int4", group=32), True, 0, 64),
        ({"bits": 3, "group": 112}, 224, Codec("int3", group=32), Codec("int3", group=32), True, 0, 64),
        ({"bits": (8, 4), "group": 80}, 160, Codec("int8", group=80), Codec("int4", group=32), True, 0, 64),
        ({"bits": 4, "group": 96}, 192, Codec("int4", group=96), Codec("int4", group=96), True, 0, 64),
        ({"bits": 3}, 96, Codec("int3", group=32), Codec("int3", group=32), True, 0, 64),
        ({"bits": 2}, 64, Codec("int2", group=32), Codec("int2", group=32), True, 128, 64),
        ({"bits": "fp8_e4m3"}, 80, Codec("fp8_e4m3", group=80), Codec("fp8_e4m3", group=80), False, 0, 4),
        ({"bits": (8, 4)}, 64, Codec("int8"), Codec("int4"), True, 0, 64),
        ({"bits": (16, "fp8_e5m2")}, 64, Codec("full"), Codec("fp8_e5m2"), False, 0, 4),
        (
            {"bits": 4, "key_geometry": "channel"},
            64,
            Codec("int4", "channel"),
            Codec("int4"),
            False,
            128,
            64,
        ),
        (
            {"bits": "fp8_e4m3", "key_geometry": "head", "value_geometry": "head"},
            64,
            Codec("fp8_e4m3", "head"),
            Codec("fp8_e4m3", "head"),
            False,
            128,
            4,
        ),
        (
            {"bits": 2, "rotate": False, "residual": 7, "full_first": False, "sinks": 9, "group": 16},
            64,
            Codec("int2", group=32),
            Codec("int2", group=32),
            False,
            7,
            9,
        ),
    ],
)
def test_what_none_resolves_to(options, dim, keys, values, rotate, residual, sinks):
    shape = tokops.hf.families.shape_of(build("llama", head_dim=dim, num_hidden_layers=1).config)
    layout = QuantizedKV(**options).new_layout(64, shape)
    assert layout.codecs == (keys, values)
    assert (layout.rotate, layout.residual, layout.sinks) == (rotate, residual, sinks)


@pytest.mark.parametrize(
    ("bits", "group", "residual"), [(4, 256, 256), (8, 128, 128), (2, 256, 128), ((8, 16), 256, 256)]
)
def test_no_residual_is_shorter_than_a_channel_group(bits, group, residual):
    shape = tokops.hf.families.shape_of(build("llama", head_dim=64, num_hidden_layers=1).config)
    method = QuantizedKV(bits, key_geometry="channel", group=group)
    assert method.new_layout(256, shape).residual == residual


@pytest.mark.parametrize(("bits", "dim", "group"), [(4, 96, 48), (3, 224, 112), ((8, 4), 160, 80)])
def test_groups_that_codes_of_four_bits_cannot_have(bits, dim, group, prompts):
    """They fall back to 32, so that what patch accepts can be decoded."""
    model = build("llama", head_dim=dim, num_hidden_layers=1)
    with tokops.patch(model, QuantizedKV(bits, group=group), page_size=8):
        assert run(model, prompts).shape[1] == prompts["input_ids"].shape[1] + NEW


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits must be one of 8, 4, 3, 2, fp8_e4m3, fp8_e5m2, 16, got 5"),
        ({"bits": (8, 4, 2)}, "bits must be one format or a pair"),
        ({"bits": (8, "int4")}, "got 'int4'"),
        ({"bits": 8.0}, "bits must be one of"),
        ({"group": 24}, "group must be a multiple of 16, got 24"),
        ({"key_geometry": "row"}, "key_geometry must be one of token, channel, head, got 'row'"),
        ({"value_geometry": "row"}, "value_geometry must be one of token, channel, head, got 'row'"),
        ({"sinks": -1}, "sinks must be >= 0, got -1"),
        ({"residual": -1}, "residual must be >= 0, got -1"),
        ({"residual": 1.5}, "residual must be a whole number, got 1.5"),
        ({"sinks": 2.5}, "sinks must be a whole number, got 2.5"),
        ({"sinks": None}, "sinks must be a whole number, got None"),
        ({"group": 64.0}, "group must be a whole number, got 64.0"),
        ({"group": True}, "group must be a whole number, got True"),
        ({"bits": 16, "key_tiles": True}, "key_tiles needs keys of 8, 4, 3 or 2 bits, got 16"),
        ({"bits": ("fp8_e5m2", 8), "key_tiles": True}, "key_tiles needs keys of .*, got 'fp8_e5m2'"),
        ({"key_geometry": "channel", "residual": 63}, "residual 63 is shorter than the channel group of 64"),
        (
            {"bits": (2, 4), "key_geometry": "channel", "value_geometry": "channel"},
            r"keys and values per channel must share one group of tokens, got \[32, 64\]",
        ),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=f"QuantizedKV: .*{message}"):
        QuantizedKV(**options)


@pytest.mark.parametrize("bits", [8, (4, 8), 3])
def test_tiles_hold_what_rows_do(bits, model, long_prompts):
    """The same tokens, packed by the same pages, in another order of bytes."""
    results = []
    for key_tiles in (False, True):
        method = QuantizedKV(bits, residual=16, rotate=True, key_tiles=key_tiles)
        with tokops.patch(model, method, page_size=16) as patched:
            cache = patched.new_cache()
            ids, mask = long_prompts["input_ids"], long_prompts["attention_mask"]
            forward(model, cache, ids[:, :-20], mask[:, :-20])
            steps = range(50, 70)
            logits = [forward(model, cache, ids[:, i : i + 1], mask[:, : i + 1])[:, -1] for i in steps]
            results.append(torch.stack(logits))
            assert any(part.k_tiles for part in cache.layers[0].store.parts()) == key_tiles
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_tiles_are_read_densely_alone(model):
    class Selecting(Method):
        slots = ("select",)

    tiled = QuantizedKV(key_tiles=True)
    with pytest.raises(ValueError, match=r"QuantizedKV\(key_tiles=True\) is read densely alone.*Selecting"):
        tokops.patch(model, Selecting(), tiled)
    with pytest.raises(ValueError, match="keys in tiles need a page size that is a multiple of 16, got 24"):
        tokops.patch(model, tiled, page_size=24)
