"""Features of ``generate`` around the cache: streaming, continuing, copying, sharing a prompt."""

import copy
import threading

import pytest
import torch
from tiny_models import build
from transformers.generation.streamers import BaseStreamer

import tokops

GREEDY = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=5)


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.done = [], threading.Event()

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.done.set()


def test_streams_from_a_thread(model, prompts):
    ids = prompts["input_ids"][1:]
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model):
        stream = Collect()
        thread = threading.Thread(target=model.generate, args=(ids,), kwargs={**GREEDY, "streamer": stream})
        thread.start()
        thread.join()
    assert stream.done.is_set()
    assert stream.tokens == expected[0].tolist()


def test_a_conversation_continues_on_its_cache(model, prompts):
    ids = prompts["input_ids"][1:]
    more = torch.randint(3, 97, (1, 7), generator=torch.Generator().manual_seed(4))
    first = model.generate(ids, **GREEDY)
    expected = model.generate(torch.cat([first, more], 1), **GREEDY)
    with tokops.patch(model, page_size=8) as run:
        cache = run.new_cache()
        whole = torch.cat([model.generate(ids, **GREEDY, past_key_values=cache), more], 1)
        assert cache.prompt_length == ids.shape[1]
        kept = copy.deepcopy(cache)
        assert torch.equal(model.generate(whole, **GREEDY, past_key_values=cache), expected)
        assert cache.prompt_length == whole.shape[1]
        assert torch.equal(model.generate(whole, **GREEDY, past_key_values=kept), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_continuations_of_one_document(shared, model, prompts):
    """Prefilled once, repeated, and continued with eight different tokens."""
    document, length = prompts["input_ids"][1:], 21
    ids = torch.cat([document.expand(8, -1), torch.arange(10, 18)[:, None]], 1)
    expected = model.generate(ids, **GREEDY)
    with tokops.patch(model, page_size=4) as run:
        cache = run.new_cache()
        with torch.no_grad():
            model(document, past_key_values=cache)
        cache.batch_repeat_interleave(8)
        if not shared:
            cache.unshare()
        assert torch.equal(model.generate(ids, **GREEDY, past_key_values=cache), expected)
        report = run.report()
    token = 5 * 2 * 2 * 16 * 4
    cached = length + 1 + 11  # the last token given out is not cached
    assert report.kv_bytes_full == 8 * cached * token
    own = 8 * cached - 7 * (length // 4 * 4) * shared
    assert report.kv_bytes == own * token


def test_a_reset_cache_serves_again(model, prompts):
    with tokops.patch(model) as run:
        cache = run.new_cache()
        first = model.generate(**prompts, **GREEDY, past_key_values=cache)
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(model.generate(**prompts, **GREEDY, past_key_values=cache), first)


def test_padding_counts_as_not_read(model, prompts):
    with tokops.patch(model) as run:
        model.generate(**prompts, **GREEDY)
        report = run.report()
    mean = sum(range(22, 33)) / 11 - 6 / 2  # row 0 starts at 6
    assert report.tokens_read_per_step == pytest.approx(5 * mean)
    assert report.read_ratio == 1.0


def test_embeddings_as_input(model, prompts):
    ids = prompts["input_ids"][1:]
    embedded = model.get_input_embeddings()(ids)
    expected = model.generate(inputs_embeds=embedded, **GREEDY)
    with tokops.patch(model):
        assert torch.equal(model.generate(inputs_embeds=embedded, **GREEDY), expected)
