"""CAAD: the mixture against its definition in a few lines, datastores, embeddings, and what generates."""

import re

import pytest
import torch
from tiny_models import build, byte_tokenizer

import tokops
from tokops.hf.caad import build_grounding
from tokops.methods import CAAD, CNTP, Grounding, Speculate

PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 9, 4, 40], [3, 4, 5, 6, 7], [30, 31, 32, 11, 12]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1] * 5]),
}
PAIRS = [([5, 6, 7], [20, 21, 22]), ([9, 4, 40], [60, 61]), ([30, 31], [70, 71, 72, 73])]


@pytest.fixture(scope="module")
def model():
    model = build("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
        model.get_input_embeddings().weight[0].fill_(0.1)  # padding is not nothing
    return model


@pytest.fixture
def store():
    generator = torch.Generator().manual_seed(6)
    return Grounding.of(
        torch.randn(12, 8, generator=generator),
        torch.randn(12, 40, generator=generator) * 3,
        dtype=torch.float32,
    )


def definition(m, logits, e):
    """One row, in float64."""
    keys, laws = m.grounding.keys.double(), m.grounding.laws.double()
    s = keys @ (e.double() / e.double().norm())
    order = sorted(range(len(s)), key=lambda j: (-float(s[j]), j))[: m.neighbours]
    w = (s[order] / m.weight_temperature).softmax(-1)
    g = (
        (w[:, None] * laws[order]).sum(0)
        if m.average == "log"
        else (w[:, None] * laws[order].exp()).sum(0).log()
    )
    l = logits.double().log_softmax(-1)
    a = m.alpha
    if m.adapt == "similarity":
        a *= min(max(float(s.max()), 0.0), 1.0)
    if m.adapt == "entropy":
        a *= float(-(l.exp() * l).sum()) / float(torch.log(torch.tensor(float(len(l)))))
    if m.s_min is not None and s.max() < m.s_min:
        return logits.double(), w
    mixed = (1 - a) * l + a * g
    if m.beta:
        mixed[l < l.max() + torch.tensor(m.beta).double().log()] = float("-inf")
    return mixed.log_softmax(-1), w


@pytest.mark.parametrize(
    "options",
    [
        {}, {"neighbours": 1}, {"neighbours": 50}, {"alpha": 1.0, "beta": 0.0}, {"average": "prob", "beta": 0.01},
        {"adapt": "similarity"}, {"adapt": "entropy", "alpha": 0.8}, {"s_min": 0.4, "beta": 0.0},
        {"weight_temperature": 2.0},
    ],
)  # fmt: skip
def test_the_mixture_is_its_definition(options, store):
    generator = torch.Generator().manual_seed(7)
    logits, embedded = torch.randn(9, 40, generator=generator) * 2, torch.randn(9, 8, generator=generator)
    m = CAAD(store, **options)
    got = m.mix(logits, embedded)
    _, weights, similar = m.nearest(embedded)
    torch.testing.assert_close(weights.sum(-1), torch.ones(9))
    for i in range(9):
        expected, w = definition(m, logits[i], embedded[i])
        torch.testing.assert_close(got[i].double(), expected, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(weights[i].double(), w, atol=1e-5, rtol=1e-4)
        guided = m.s_min is None or similar[i] >= m.s_min
        if guided:  # normalised, and nothing outside the plausible tokens
            assert float(got[i].double().exp().sum()) == pytest.approx(1.0, abs=1e-5)
            if m.beta:
                low = logits[i] < logits[i].max() + torch.tensor(m.beta).log() - 1e-5
                assert got[i][low].isneginf().all()
        # A batch is its rows.
        torch.testing.assert_close(m.mix(logits[i : i + 1], embedded[i : i + 1])[0], got[i])
    if m.s_min is not None:
        assert 0 < int((similar < m.s_min).sum()) < 9


def test_nothing_changes_without_a_share_or_a_datastore(store):
    logits, embedded = torch.randn(3, 40), torch.randn(3, 8)
    assert torch.equal(CAAD(store, alpha=0.0).mix(logits, embedded), logits)
    empty = store.select(torch.empty(0, dtype=torch.int64))
    assert len(empty) == 0
    assert torch.equal(CAAD(empty).mix(logits, embedded), logits)


def test_order_of_the_datastore_does_not_matter_and_ties_go_to_the_first(store):
    logits, embedded = torch.randn(3, 40), torch.randn(3, 8)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        CAAD(store.select(order)).mix(logits, embedded), CAAD(store).mix(logits, embedded)
    )
    twice = Grounding.of(torch.ones(2, 8), torch.tensor([[0.0, 5.0], [5.0, 0.0]]), dtype=torch.float32)
    assert CAAD(twice, neighbours=1).nearest(torch.ones(1, 8))[0].tolist() == [[0]]


def test_minus_infinity_stays_and_does_not_poison():
    logits = torch.tensor([[1.0, 2.0, float("-inf"), 0.0]])
    store = Grounding.of(torch.ones(1, 2), logits)  # float16, with a masked token
    assert store.laws.isfinite().all()
    got = CAAD(store, alpha=1.0, beta=0.0).mix(logits, torch.ones(1, 2))
    assert got[0, 2].isneginf()
    torch.testing.assert_close(got.softmax(-1), logits.softmax(-1), atol=2e-3, rtol=2e-3)


def test_sparse_laws_become_the_dense_ones():
    generator = torch.Generator().manual_seed(8)
    keys, laws = torch.randn(6, 8, generator=generator), torch.randn(6, 40, generator=generator) * 4
    logits, embedded = torch.randn(4, 40, generator=generator), torch.randn(4, 8, generator=generator)
    dense = (
        CAAD(Grounding.of(keys, laws, dtype=torch.float32), beta=0.0, alpha=0.9).mix(logits, embedded).exp()
    )
    errors = []
    for top in (1, 5, 20, 39, 40):
        store = Grounding.of(keys, laws, top=top, dtype=torch.float32)
        errors.append(
            float((CAAD(store, beta=0.0, alpha=0.9).mix(logits, embedded).exp() - dense).abs().max())
        )
    assert errors == sorted(errors, reverse=True)
    assert errors[-2] < 1e-5  # one token is left for the floor
    assert errors[-1] == 0
    assert errors[0] > 0.05
    # All mass is somewhere.
    law = Grounding.of(keys, laws, top=5, dtype=torch.float32).average(
        torch.tensor([[2]]), torch.ones(1, 1), "log"
    )
    assert float(law.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_datastore_is_saved_and_loaded(tmp_path, store):
    for kept in (
        store,
        Grounding.of(torch.ones(2, 3), torch.randn(2, 9), top=2, tokenizer="t", model="m", embed="last"),
    ):
        kept.save(tmp_path / "store")
        again = Grounding.load(tmp_path / "store")
        for name, value in vars(kept).items():
            other = getattr(again, name)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_a_datastore_holds_the_models_laws_at_every_place_of_the_answers(model):
    store = build_grounding(model, None, PAIRS, dtype=torch.float32, end=2)
    assert len(store) == sum(len(answer) + 1 for _, answer in PAIRS)
    texts = [[*q, *a[:t]] for q, a in PAIRS for t in range(len(a) + 1)]
    for i, text in enumerate(texts):
        with torch.no_grad():
            out = model(torch.tensor([text]), output_hidden_states=True)
        torch.testing.assert_close(
            store.laws[i], out.logits[0, -1].log_softmax(-1).clamp_min(-1e4), atol=1e-4, rtol=1e-4
        )
        last = torch.nn.functional.normalize(out.hidden_states[-1][0, -1], dim=-1)
        torch.testing.assert_close(store.keys[i], last, atol=1e-5, rtol=1e-4)
    assert not model.base_model._forward_hooks
    strict = build_grounding(model, None, PAIRS, drop_below=-3.0)
    assert len(strict) < len(store)
    bonus = build_grounding(model, None, PAIRS, dtype=torch.float32, gold_bonus=50.0)
    assert bonus.laws[:3].argmax(-1).tolist() == [20, 21, 22]


EMBEDDERS = {
    "last": {},
    "last of a layer": {"layer": 1},
    "mean": {"embed": "mean"},
    "mean of a layer": {"embed": "mean", "layer": 0},
    "encoder": {
        "embed": lambda texts: [[len(t), sum(t) % 7, t[-1]] for t in texts],
        "embed_on": "ids",
        "window": 4,
    },
}


def slow(model, method, ids, new, embed="last", layer=None, window=128, **_):
    """Greedy decoding, every forward from scratch."""
    for _ in range(new):
        with torch.no_grad():
            out = model(ids, use_cache=False, output_hidden_states=True)
        # The last of hidden_states is what lm_head takes; before it layer i is at i + 1.
        states = (out.hidden_states[-1] if layer is None else out.hidden_states[layer + 1])[0]
        if callable(embed):
            e = torch.tensor(embed([ids[0, -window:].tolist()])).float()
        else:
            e = states[-1:] if embed == "last" else states.mean(0, keepdim=True)
        ids = torch.cat([ids, method.mix(out.logits[:, -1].float(), e).argmax(-1)[:, None]], 1)
    return ids


@pytest.mark.parametrize("name", EMBEDDERS)
def test_generation_follows_the_slow_loop(name, model):
    """Alone, patched, in a padded batch, under speculation, and in chunks of the prompt: the same tokens."""
    options = EMBEDDERS[name]
    store = build_grounding(model, None, PAIRS, dtype=torch.float32, **options)
    method = CAAD(store, alpha=0.6, beta=0.001, **options)
    new = 10
    expected = []
    for ids, mask in zip(*PROMPTS.values(), strict=True):
        start = int(mask.argmax())
        row = slow(model, method, ids[None, start:], new, **options)
        expected.append(torch.cat([ids[:start], row[0]]))
    expected = torch.stack(expected)
    settings = {**PROMPTS, "do_sample": False, "max_new_tokens": new}
    assert not torch.equal(model.generate(**settings), expected)
    assert torch.equal(model.generate(**settings, logits_processor=[method.processor(model)]), expected)
    with tokops.patch(model, method):
        assert torch.equal(model.generate(**settings), expected)
        assert torch.equal(model.generate(**settings, prefill_chunk_size=2), expected)
    for draft in ("prompt_lookup", "early_exit"):
        with tokops.patch(model, method, Speculate(draft, nodes=6)):
            assert torch.equal(model.generate(**settings), expected)
    with tokops.patch(model, method, CNTP(n_max=1, stop_tokens=())):
        assert torch.equal(model.generate(**{**settings, "do_sample": True, "top_k": 1}), expected)


def test_every_prompt_finds_its_own_answer(model):
    """With a share of 1 and one neighbour the first token is the stored one of the very same context."""
    starts = PROMPTS["attention_mask"].argmax(-1).tolist()
    pairs = [
        (ids[start:].tolist(), [70 + i])
        for i, (ids, start) in enumerate(zip(PROMPTS["input_ids"], starts, strict=True))
    ]
    for options in EMBEDDERS.values():
        store = build_grounding(model, None, pairs, gold_bonus=100.0, dtype=torch.float32, **options)
        method = CAAD(store, alpha=1.0, beta=0.0, neighbours=1, s_min=0.9999, **options)
        for also in ((), (Speculate(nodes=4),)):
            with tokops.patch(model, method, *also):
                got = model.generate(**PROMPTS, do_sample=False, max_new_tokens=2)
            assert got[:, 5].tolist() == [70, 71, 72]


def test_beams_are_embedded_row_by_row(model):
    store = build_grounding(model, None, PAIRS, dtype=torch.float32)
    method = CAAD(store, alpha=0.6)
    settings = {**PROMPTS, "num_beams": 3, "max_new_tokens": 8}
    with tokops.patch(model, method):
        together = model.generate(**settings)
        for i in range(3):
            start = int(PROMPTS["attention_mask"][i].argmax())
            alone = model.generate(PROMPTS["input_ids"][i : i + 1, start:], num_beams=3, max_new_tokens=8)
            assert torch.equal(together[i, 5:], alone[0, 5 - start :])


def test_guidance_ends_after_max_tokens(model):
    store = build_grounding(model, None, PAIRS, dtype=torch.float32)
    settings = {"do_sample": False, "max_new_tokens": 8}
    ids = PROMPTS["input_ids"][1:]
    with tokops.patch(model, CAAD(store, alpha=0.9, beta=0.0, max_tokens=3)):
        got = model.generate(ids, **settings)
    with tokops.patch(model, CAAD(store, alpha=0.9, beta=0.0)):
        guided = model.generate(ids, **settings)
    assert torch.equal(got[:, :8], guided[:, :8])
    assert torch.equal(got, model.generate(got[:, :8], do_sample=False, max_new_tokens=5))
    assert not torch.equal(got, guided)


def test_another_model_vocabulary_or_tokenizer_is_refused(model):
    store = build_grounding(model, byte_tokenizer(), PAIRS)
    other = build("llama", num_hidden_layers=2)
    with pytest.raises(ValueError, match="the datastore is of another model"):
        tokops.patch(other, CAAD(store))
    with pytest.raises(ValueError, match="the datastore is of another model"):
        CAAD(store).processor(other)
    with pytest.raises(ValueError, match="a vocabulary of 5, the model has 97"):
        tokops.patch(model, CAAD(Grounding.of(torch.ones(1, 2), torch.ones(1, 5))))
    tokenizer = byte_tokenizer()
    CAAD(store).processor(model, tokenizer)
    tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="the datastore is of another tokenizer"):
        CAAD(store).processor(model, tokenizer)
    with pytest.raises(ValueError, match="was embedded by last, not by mean"):
        CAAD(store, embed="mean")


def test_a_processor_refuses_forwards_it_cannot_place(model):
    processor = CAAD(build_grounding(model, None, PAIRS)).processor(model)
    with pytest.raises(
        RuntimeError, match="no forward of the model has put out just what belongs to these 1 texts"
    ):
        processor(torch.tensor([[5]]), torch.zeros(1, 97))
    with pytest.raises(RuntimeError, match="assisted decoding of transformers"):
        model.generate(
            torch.tensor([[5, 6, 5, 6, 5]]),
            prompt_lookup_num_tokens=3,
            max_new_tokens=6,
            logits_processor=[processor],
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "neighbours must be at least 1"), ({"alpha": 1.5}, "alpha must be 0..1"),
        ({"s_min": 2.0}, "s_min must be -1..1"), ({"weight_temperature": 0.0}, "weight_temperature must be above 0"),
        ({"beta": -0.1}, "beta must be 0..1"), ({"max_tokens": -1}, "max_tokens must not be negative"),
        ({"average": "median"}, "average must be log or prob"), ({"adapt": "maybe"}, "adapt must be none"),
        ({"embed": "first"}, "embed must be last, mean or a callable"), ({"window": 0}, "window must be at least 1"),
        ({"embed_on": "bytes"}, "embed_on must be text or ids"), ({"grounding": None}, "grounding must be a Grounding"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, message, store):
    with pytest.raises(ValueError, match=re.escape(message)):
        CAAD(**{"grounding": store, **options})
