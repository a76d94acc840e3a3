"""Cache correction: after a period the cache is what a dense pass over the same tokens would have left."""

import pytest
import torch
from tiny_models import build
from transformers import StoppingCriteria, StoppingCriteriaList

import tokops
from tokops.methods import TidalDecode


def method(period, budget=8):
    return TidalDecode(budget=budget, reselect_layer=5, correction_period=period)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request):
    changes = {"max_window_layers": 6} if request.param == "qwen2" else {}
    return build(request.param, num_hidden_layers=8, **changes)


def generate(model, prompts, new=21, **mode):
    torch.manual_seed(0)
    return model.generate(**prompts, max_new_tokens=new, **{"do_sample": False, **mode})


def rows(layer, first, last):
    return torch.cat(layer.gather(first, last), -1)


def test_corrected_rows_are_dense_rows(model, prompts):
    """21 new tokens: 20 are cached, corrections run after 7 and 14, so 14 are corrected and 6 are not."""
    with tokops.patch(model, method(7), page_size=8) as run:
        cache = run.new_cache()
        ids = generate(model, prompts, past_key_values=cache)
    length = cache.get_seq_length()
    prompt = prompts["input_ids"].shape[1]
    mask = torch.cat([prompts["attention_mask"], torch.ones(2, 20, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with tokops.patch(model) as run, torch.no_grad():
        dense = run.new_cache()
        model(input_ids=ids[:, :length], attention_mask=mask, position_ids=positions, past_key_values=dense)
    assert length == prompt + 20
    for layer, expected in zip(cache.layers, dense.layers, strict=True):
        first = 0 if layer.window is None else length - layer.window + 1
        got, want = rows(layer, first, length), rows(expected, first, length)
        inside = slice(6, prompt + 14) if layer.window is None else slice(0, max(0, prompt + 14 - first))
        torch.testing.assert_close(got[:, inside], want[:, inside], atol=2e-4, rtol=1e-3)
    last = cache.layers[5]
    assert (rows(last, prompt + 14, length) - rows(dense.layers[5], prompt + 14, length)).abs().max() > 1e-3


def test_without_sparsity_it_changes_nothing(model, prompts):
    expected = generate(model, prompts)
    with tokops.patch(model, method(4, budget=200)):
        assert torch.equal(generate(model, prompts), expected)
        assert torch.equal(generate(model, prompts, prefill_chunk_size=6), expected)


def test_tokens_given_out_stay_and_later_ones_follow_the_corrected_cache(model, prompts):
    with tokops.patch(model, method(0)):
        never = generate(model, prompts)
    with tokops.patch(model, method(7)):
        corrected = generate(model, prompts)
    prompt = prompts["input_ids"].shape[1]
    assert torch.equal(corrected[:, : prompt + 8], never[:, : prompt + 8])


def test_sampling_streaming_stopping_and_continuing(model, prompts):
    class Stream:
        def __init__(self):
            self.tokens, self.ended = [], 0

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended += 1

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 30)

    alone = {"input_ids": prompts["input_ids"][1:]}
    with tokops.patch(model, method(3, budget=200)) as run:
        stream = Stream()
        ids = generate(model, alone, streamer=stream)
        assert stream.tokens == ids[0].tolist()
        assert stream.ended == 1
        stopped = generate(model, alone, stopping_criteria=StoppingCriteriaList([After()]))
        assert torch.equal(stopped, ids[:, :30])
        cache = run.new_cache()
        first = generate(model, alone, new=9, past_key_values=cache, return_dict_in_generate=True).sequences
        again = generate(model, {"input_ids": first}, new=12, past_key_values=cache)
        assert torch.equal(again, ids)
        sampled = generate(model, prompts, do_sample=True, top_k=10)
    expected = generate(model, prompts, do_sample=True, top_k=10)
    assert torch.equal(sampled, expected)


def test_finished_sequences_are_padded_like_stock(model, prompts):
    free = generate(model, prompts)
    stop = int(free[0, 25])
    expected = generate(model, prompts, eos_token_id=stop)
    with tokops.patch(model, method(3, budget=200)):
        assert torch.equal(generate(model, prompts, eos_token_id=stop), expected)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"num_beams": 2}, "does not support num_beams"),
        ({"prompt_lookup_num_tokens": 2}, "does not support prompt_lookup_num_tokens"),
        ({"custom_generate": lambda **kwargs: None}, "does not support custom_generate"),
        ({"output_scores": True, "return_dict_in_generate": True}, "does not support output_scores"),
    ],
)
def test_refuses_by_name(mode, message, model, prompts):
    with tokops.patch(model, method(3)), pytest.raises(NotImplementedError, match=message):
        generate(model, prompts, **mode)
