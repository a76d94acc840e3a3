"""Quality measures, contexts and baselines on tiny random models, against direct computations."""

import math

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tokops.hf import baselines, contexts, quality

CACHES = {
    "dynamic": baselines.dynamic_cache,
    "static": baselines.static_cache,
    "packed": baselines.packed_cache,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 97, (60,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def context(model, ids):
    return contexts.prefill(model, ids[None, :40], chunk=16)


def test_kl_of_a_distribution_with_itself_is_zero_and_of_two_is_the_sum_over_the_vocabulary():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    assert quality.kl_divergence(p.log(), p.log() + 3.0).abs().max() < 1e-12
    want = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert quality.kl_divergence(p.log(), q.log()).tolist() == pytest.approx([want], rel=1e-6)


def test_kl_is_not_symmetric_and_works_across_its_chunks():
    generator = torch.Generator().manual_seed(2)
    p, q = torch.randn(150, 31, generator=generator), torch.randn(150, 31, generator=generator)
    want = torch.nn.functional.kl_div(
        q.double().log_softmax(-1), p.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(quality.kl_divergence(p, q), want, rtol=1e-12, atol=1e-12)
    assert (quality.kl_divergence(q, p) - want).abs().max() > 0.1


def test_perplexity_of_a_uniform_prediction_is_the_vocabulary():
    assert quality.perplexity(torch.zeros(100, 17), torch.arange(100) % 17) == pytest.approx(17.0)


def test_perplexity_is_that_of_one_forward_over_the_whole_text(model, ids, context):
    cache = context.fill(DynamicCache(config=model.config))
    logits = quality.teacher_forced(model, cache, ids[40:59])
    with torch.no_grad():
        log_p = model(ids[None]).logits[0].double().log_softmax(-1)
    loss = -torch.stack([log_p[i, ids[i + 1]] for i in range(40, 59)]).mean()
    assert quality.perplexity(logits, ids[41:60]) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_a_model_agrees_with_itself(model, ids, context):
    runs = [
        quality.teacher_forced(model, context.fill(DynamicCache(config=model.config)), ids[40:59])
        for _ in range(2)
    ]
    found = quality.compare(runs[0], runs[1], ids[41:60])
    assert (found.kl, found.top1, found.tokens) == (0.0, 1.0, 19)


def test_agreement_counts_the_positions_that_name_the_same_token():
    dense, other = torch.eye(4) * 5, torch.eye(4)[[0, 1, 3, 2]] * 5
    assert quality.compare(dense, other, torch.zeros(4, dtype=torch.long)).top1 == 0.5


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("chunk", [1, 5])
def test_baselines_predict_what_one_forward_over_the_text_does(model, ids, context, name, chunk):
    runner = contexts.twin(model)
    if name == "packed":
        baselines.use_packed_attention(runner)
    cache = context.fill(CACHES[name](runner, 60))
    got = quality.teacher_forced(runner, cache, ids[40:59], chunk)
    with torch.no_grad():
        want = model(ids[None]).logits[0, 40:59]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert cache.get_seq_length() == 59


@pytest.mark.parametrize("name", CACHES)
def test_copies_of_the_document_continue_like_the_document(model, ids, context, name):
    runner = contexts.twin(model)
    if name == "packed":
        baselines.use_packed_attention(runner)
    cache = context.fill(CACHES[name](runner, 60), batch=3)
    starts = torch.tensor([[5], [6], [7]])
    with torch.no_grad():
        got = runner(starts, past_key_values=cache).logits[:, -1]
        want = torch.stack([model(torch.cat([ids[:40], token])[None]).logits[0, -1] for token in starts])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_full_packed_cache_says_so(model, context):
    with pytest.raises(RuntimeError, match="holds 40 tokens, 41 were given"):
        model(torch.tensor([[5]]), past_key_values=context.fill(baselines.packed_cache(model, 40)))


def test_prefill_in_chunks_is_prefill(model, ids, context):
    whole = contexts.prefill(model, ids[None, :40], chunk=64)
    for a, b in zip((*context.keys, *context.values), (*whole.keys, *whole.values), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        want = model(ids[None, :40]).logits[0, -1]
    torch.testing.assert_close(context.logits, want, rtol=1e-3, atol=1e-4)
    assert context.tokens == 40
    assert context.bytes_per_token == 3 * 2 * 2 * 16 * 4


def test_a_filled_cache_is_a_copy(model, context):
    before = [k.clone() for k in context.keys]
    cache = context.fill(baselines.packed_cache(model, 60))
    cache.layers[0].keys.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, context.keys, strict=True))


def test_a_context_in_another_precision_keeps_its_logits(context):
    low = context.to(torch.bfloat16)
    assert low.keys[0].dtype == torch.bfloat16
    assert low.bytes_per_token * 2 == context.bytes_per_token
    assert torch.equal(low.logits, context.logits)


def test_a_twin_shares_weights_and_nothing_else(model):
    other = contexts.twin(model)
    assert other.model.layers[0].self_attn.q_proj.weight is model.model.layers[0].self_attn.q_proj.weight
    assert other.model.layers[0] is not model.model.layers[0]
    before = model.config._attn_implementation
    baselines.use_packed_attention(other)
    assert other.config._attn_implementation != before == model.config._attn_implementation


def test_greedy_is_generate(model, ids, context):
    cache = context.fill(DynamicCache(config=model.config))
    first = int(context.logits.argmax())
    tokens, gaps = quality.greedy(model, cache, first, 12)
    want = model.generate(
        ids[None, :40], do_sample=False, max_new_tokens=13, min_new_tokens=13, pad_token_id=0
    )
    assert [first, *tokens.tolist()] == want[0, 40:].tolist()
    with torch.no_grad():
        top = model(want).logits[0, 40:52].topk(2).values
    torch.testing.assert_close(gaps, top[:, 0] - top[:, 1], rtol=1e-3, atol=1e-3)


def test_the_first_difference_carries_the_gap_of_the_expected_run():
    expected = torch.tensor([4, 5, 6, 7]), torch.tensor([1.0, 2.0, 0.25, 3.0])
    got = torch.tensor([4, 5, 9, 8]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    assert quality.first_difference(expected, expected) is None
    assert quality.first_difference(expected, got) == quality.Difference(2, 6, 9, 0.25)
