"""What ``tokops.patch`` refuses, and that undoing it leaves no trace."""

import copy
import gc
import subprocess
import sys
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_models import build
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

import tokops
from tokops.methods import Dense, Method, Selection, TidalDecode

GREEDY = {"do_sample": False, "max_new_tokens": 10}


@pytest.fixture
def model():
    return build("llama", num_hidden_layers=6)


def attributes(model):
    """Everything that hangs on a model and its modules, by name."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[name, key] = (id(value), len(value) if isinstance(value, dict) else None)
    return found, copy.deepcopy(vars(model.config)), copy.deepcopy(vars(model.generation_config))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_undo_leaves_no_trace(implementation, model, prompts):
    model.set_attn_implementation(implementation)
    before = attributes(model)
    expected = model.generate(**prompts, **GREEDY, output_scores=True, return_dict_in_generate=True)
    for leave in ("undo", "with", "error", "twice"):
        run = tokops.patch(model, TidalDecode(budget=6, reselect_layer=4))
        assert model.config._attn_implementation == "tokops"
        if leave == "error":
            with pytest.raises(KeyError), run:
                raise KeyError
        elif leave == "with":
            with run:
                model.generate(**prompts, **GREEDY)
        else:
            model.generate(**prompts, **GREEDY)
            for _ in range(1 + (leave == "twice")):
                run.undo()
        assert attributes(model) == before
        got = model.generate(**prompts, **GREEDY, output_scores=True, return_dict_in_generate=True)
        assert torch.equal(got.sequences, expected.sequences)
        assert all(torch.equal(a, b) for a, b in zip(got.scores, expected.scores, strict=True))


def test_a_patch_is_active_from_the_call_and_on_one_model_only(model, prompts):
    other = build("llama", num_hidden_layers=6, seed=1)
    run = tokops.patch(model)
    model.generate(**prompts, **GREEDY)
    assert run.report().steps == 9
    assert other.config._attn_implementation == "eager"
    other.generate(**prompts, **GREEDY)
    assert run.report().steps == 9
    run.undo()


def test_caches_and_models_are_freed_without_a_collection(model, prompts):
    """No reference cycle may hold pools until the garbage collector comes by."""
    gc.collect()
    gc.disable()
    try:
        with tokops.patch(model) as run:
            cache = run.new_cache()
            model.generate(**prompts, **GREEDY, past_key_values=cache)
            pool = weakref.ref(cache.layers[0].k_pages)
            held = run.report().kv_bytes
            del cache
            assert pool() is None
            assert run.report().kv_bytes == held > 0
    finally:
        gc.enable()


def test_refuses_what_it_cannot_patch(model):
    with pytest.raises(TypeError, match="needs a transformers model, got Linear"):
        tokops.patch(torch.nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match="not been tested on model family 'gpt2'; it supports gemma2, gpt_oss, llama"
    ):
        tokops.patch(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10)))
    with pytest.raises(TypeError, match=r"takes methods such as tokops.methods.Dense\(\), got 'dense'"):
        tokops.patch(model, "dense")
    with pytest.raises(ValueError, match="page_size must be at least 1, got 0"):
        tokops.patch(model, page_size=0)
    with tokops.patch(model), pytest.raises(ValueError, match="patched by tokops already"):
        tokops.patch(model)


def test_refuses_methods_that_clash(model):
    one, two = TidalDecode(budget=6, reselect_layer=4), TidalDecode(budget=8, reselect_layer=4)
    with pytest.raises(ValueError, match="TidalDecode and TidalDecode clash: both fill the slot 'select'"):
        tokops.patch(model, one, Dense(), two)
    with pytest.raises(ValueError, match="Dense and Dense clash: both fill the slot 'store'"):
        tokops.patch(model, Dense(), Dense())
    tokops.patch(model, Dense(), one).undo()


@dataclass(frozen=True)
class _OtherStore(Method):
    slots: ClassVar[tuple[str, ...]] = ("store",)


def test_refuses_correction_over_another_store(model):
    method = TidalDecode(budget=6, reselect_layer=4, correction_period=5)
    with pytest.raises(ValueError, match="needs full-precision pages and clashes with _OtherStore"):
        tokops.patch(model, method, _OtherStore())


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
        ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
    ],
)
def test_generate_refuses_by_name(mode, message, model, prompts):
    with tokops.patch(model), pytest.raises(NotImplementedError, match=message):
        model.generate(**prompts, **GREEDY, **mode)
    with tokops.patch(model):
        config = copy.deepcopy(model.generation_config)
        for name, value in mode.items():
            setattr(config, name, value)
        with pytest.raises(NotImplementedError, match=message):
            model.generate(**prompts, generation_config=config)


def test_forward_refuses_by_name(model, prompts):
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    with tokops.patch(model) as run, torch.no_grad():
        with pytest.raises(
            NotImplementedError, match="output_attentions=True: attention weights are never formed"
        ):
            model(ids, output_attentions=True)
        with pytest.raises(TypeError, match=r"needs a tokops cache, got DynamicCache"):
            model(ids, past_key_values=DynamicCache(config=model.config))
        with pytest.raises(NotImplementedError, match=r"continuous batching \(generate_batch\)"):
            model.generate_batch([[1, 2, 3]])
        with pytest.raises(
            NotImplementedError, match=r"2-D attention_mask .* got one of shape \[2, 1, 21, 21\]"
        ):
            model(ids, attention_mask=torch.ones(2, 1, 21, 21, dtype=torch.bool))
        with pytest.raises(NotImplementedError, match="packed sequences"):
            model(
                ids,
                position_ids=torch.cat([torch.arange(10), torch.arange(11)])[None].expand(2, -1),
                use_cache=False,
            )
        holes = mask.clone()
        holes[1, 5] = 0
        with pytest.raises(NotImplementedError, match=r"padding on the left .* has padding between tokens"):
            model(ids, attention_mask=holes)
        cache = run.new_cache()
        ended = torch.ones_like(mask)
        ended[1, -3:] = 0
        model(ids, attention_mask=ended, past_key_values=cache)
        with pytest.raises(NotImplementedError, match="padding between tokens"):
            model(ids[:, :1], attention_mask=torch.cat([ended, mask[:, -1:]], 1), past_key_values=cache)
        cache = run.new_cache()
        model(ids[:, :9], past_key_values=cache)
        with pytest.raises(NotImplementedError, match="padding at the end, and tokens follow it"):
            model(ids[:, 9:], attention_mask=ended, past_key_values=cache)
    with tokops.patch(model), pytest.raises(ValueError, match=r"belongs to another tokops.patch"):
        model(ids, past_key_values=cache)


def test_padding_at_the_end_of_a_prompt_is_harmless(model, prompts):
    ids = prompts["input_ids"][1:]
    padded = torch.nn.functional.pad(ids, (0, 5))
    mask = (torch.arange(padded.shape[1]) < ids.shape[1])[None].long()
    with tokops.patch(model), torch.no_grad():
        torch.testing.assert_close(
            model(padded, attention_mask=mask).logits[:, :21], model(ids).logits, atol=1e-5, rtol=1e-5
        )


def test_a_model_that_shares_its_config_fails_loudly(model, prompts):
    twin = type(model)(model.config).eval()
    with tokops.patch(model), pytest.raises(TypeError, match="it shares its config object with one that is"):
        twin.generate(**prompts, **GREEDY)


def test_gradients_are_right_or_refused(model, prompts):
    ids = prompts["input_ids"]
    model(ids, use_cache=False).logits.square().mean().backward()
    expected = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    with tokops.patch(model) as run:
        for keep in (False, True):
            model.zero_grad()
            model(ids, use_cache=keep).logits.square().mean().backward()
            got = model.model.layers[0].self_attn.k_proj.weight.grad
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-3)
        cache = run.new_cache()
        model(ids[:, :20], past_key_values=cache)
        with pytest.raises(NotImplementedError, match="decoding over a cache has no gradient"):
            model(ids[:, 20:], past_key_values=cache).logits.sum().backward()


def test_dropout_is_refused():
    model = build("llama", attention_dropout=0.1)
    with tokops.patch(model), pytest.raises(NotImplementedError, match=r"no attention dropout, got 0.1"):
        model.train()(torch.tensor([[3, 4]]))


@dataclass(frozen=True)
class EveryOther(Method):
    """Reads the best half by raw score: what a selecting method needs at least."""

    slots: ClassVar[tuple[str, ...]] = ("select",)

    def select(self, reader, step):
        scores = reader.scores("max")
        scores[..., -1] = float("inf")
        return Selection(*tokops.attention.topk_positions(scores, None, max(1, reader.length // 2)))


def test_a_ten_line_method_plugs_in(model, prompts):
    ids = prompts["input_ids"][1:]
    with tokops.patch(model, Dense(), EveryOther()) as run:
        model.generate(ids, **GREEDY)
        report = run.report()
    visible = sum(range(22, 31)) / 9
    read = sum(n // 2 for n in range(22, 31)) / 9
    assert report.tokens_read_per_step == pytest.approx(
        6 * (read + visible / 2)
    )  # keys are scanned once more
    assert report.slots == {"store": "Dense", "select": "EveryOther"}
    assert set(report.to_dict()) >= {"tokens_read_per_step", "kv_bytes", "kv_bytes_read_per_token"}
    assert "of dense" in str(report)


def test_tokops_imports_without_transformers():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import tokops; print(tokops.methods.TidalDecode(reselect_layer=5).budget)\n"
        "try: tokops.patch(None)\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["512", "tokops.patch needs transformers: pip install 'tokops[hf]'"]


def test_one_method_has_a_decoding_loop_of_its_own(tiny):
    class Looping(Dense):
        slots = ("draft",)
        loop = "decoding"

    method = TidalDecode(budget=6, reselect_layer=3, correction_period=5)
    with pytest.raises(ValueError, match="TidalDecode and Looping clash: both have a decoding loop"):
        tokops.patch(tiny("llama"), method, Looping())
    model = tiny("llama")
    ids = torch.arange(3, 12)[None]
    with tokops.patch(model, method):
        for name, value in {"use_cache": False, "num_beams": 2, "output_scores": True}.items():
            with pytest.raises(NotImplementedError, match=f"TidalDecode has a decoding loop .* {name}"):
                model.generate(ids, max_new_tokens=2, return_dict_in_generate=True, **{name: value})
