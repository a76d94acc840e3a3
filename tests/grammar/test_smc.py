"""SMC: particles follow the model's law among valid texts, and the cache follows the particles."""

import itertools
import math
import random

import pytest
import torch
from tiny_models import build

import tokops
from grammar.toy import assert_follows, assert_mean, markov, masked_law, text_law, words_constraint, words_of
from tokops.grammar.constraint import Counting, PredicateConstraint
from tokops.hf import constrained
from tokops.hf.families import CACHE
from tokops.methods import AWRS, SMC, Dense, MiKV, MiniCache, QuantizedKV
from tokops.methods.smc import effective, log_sum, normalised, pick, resample

SCHEMES = ("stratified", "systematic", "multinomial", "residual")
EOS, START, V = 4, 3, 5
#: Most of what begins with 0 is not valid: masks send far too many texts there.
WORDS = [(0, 1, 2), (1,), (1, 1), (1, 0, 2), (2, 2), (2, 0, 0), (2, 1, 1)]
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(5)) * 1.2
LAW = text_law(TABLE, START, WORDS, EOS)
PROMPT = 1


def generate(model, method, ids, page_size=4, **options):
    if isinstance(ids, list):
        ids = torch.tensor(ids)
    defaults = {
        "do_sample": True, "top_k": 0, "max_new_tokens": 6, "eos_token_id": EOS, "pad_token_id": 0, "seed": 3,
        "return_dict_in_generate": True,
    }  # fmt: skip
    with tokops.patch(model, *(method if isinstance(method, tuple) else (method,)), page_size=page_size):
        return model.generate(ids, **{**defaults, **options})


# ---- Weights.


def test_sums_of_weights():
    assert log_sum([]) == log_sum([-math.inf] * 3) == -math.inf
    assert log_sum([math.log(0.2), math.log(0.3)]) == pytest.approx(math.log(0.5), abs=1e-15)
    assert log_sum([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2), abs=1e-12)
    assert normalised([-1000.0, -1001.0, -math.inf]) == pytest.approx(
        [1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0]
    )
    assert normalised([-math.inf] * 2) == [0.0, 0.0]
    assert effective([-5.0] * 4) == pytest.approx(4)
    assert effective([0.0, -math.inf, -math.inf]) == pytest.approx(1)
    assert effective([-math.inf] * 3) == 0.0
    weights = [0.1, 0.2, 0.3, 0.4]
    assert effective([math.log(w) for w in weights]) == pytest.approx(1 / sum(w * w for w in weights))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "weights",
    [(0.1, 0.2, 0.3, 0.4), (0.0, 0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3), (0.73, 0.27)],
)
def test_resampling_is_unbiased(scheme, weights):
    rng = random.Random(1)
    count, runs = len(weights), 20000
    sums = [0.0] * count
    for _ in range(runs):
        uniforms = [rng.random() for _ in range(count)]
        chosen = resample(weights, uniforms.__getitem__, scheme)
        assert len(chosen) == count
        assert chosen == sorted(chosen)
        for i, weight in enumerate(weights):
            copies = chosen.count(i)
            sums[i] += copies
            assert weight > 0 or not copies
            if scheme == "systematic":
                assert abs(copies - count * weight) < 1 + 1e-9
            if scheme == "stratified":
                assert abs(copies - count * weight) < 2
            if scheme == "residual":
                assert copies >= math.floor(count * weight + 1e-9)
    error = 4.5 * math.sqrt(count / runs)
    assert [s / runs for s in sums] == pytest.approx([count * w for w in weights], abs=error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_at_the_ends_of_the_line(scheme):
    for u in (0.0, 1 - 2**-53):
        assert resample((0.0, 1.0, 0.0), lambda i, u=u: u, scheme) == [1, 1, 1]
    assert pick((0.0, 0.3, 0.7, 0.0), 0.0) == 1
    assert pick((0.0, 0.3, 0.7, 0.0), 1 - 2**-53) == 2
    assert [pick((0.3, 0.7), u) for u in (0.29, 0.31)] == [0, 1]


# ---- Laws, by enumeration.


def judge(request, tokens, complete):
    """A critic that likes texts with many ones, also while they are written."""
    return 0.7 * tokens.count(1) - 0.2 * len(tokens)


@pytest.mark.parametrize("critic", [None, judge])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weighted_texts_follow_the_law_of_valid_texts(scheme, critic):
    particles, requests = 4, 1500
    method = SMC(
        AWRS(words_constraint(WORDS, EOS)),
        particles=particles,
        threshold=0.9,
        resampling=scheme,
        critic=critic,
    )
    got = generate(markov(TABLE), method, torch.full((requests, 1), START))
    assert got.log_weights.shape == got.complete.shape == (requests, particles)
    assert got.resampled.double().mean() > 0.3
    words = words_of(got.sequences, PROMPT, EOS)
    law = dict(LAW)
    if critic is not None:
        law = {word: p * math.exp(judge(0, (*word, EOS), True)) for word, p in LAW.items()}
    assert torch.allclose(got.log_z, got.log_weights.exp().mean(-1).log(), atol=1e-9)
    assert_mean(got.log_z.exp(), sum(law.values()))
    weights = got.log_weights.exp()
    for word, p in law.items():
        hits = torch.tensor([w == word for w in words]).view(requests, particles)
        assert_mean((weights * hits).mean(-1), p)


def test_texts_drawn_by_weight_come_near_the_law():
    """One particle follows the masked law; of many, the one that is chosen by weight is nearer to the law itself."""
    model, ids = markov(TABLE), torch.full((800, 1), START)
    distances = {}
    for particles in (1, 16):
        method = SMC(AWRS(words_constraint(WORDS, EOS, masks=True)), particles=particles)
        words = words_of(generate(model, method, ids, return_dict_in_generate=False), PROMPT, EOS)
        shares = {word: words.count(word) / len(words) for word in WORDS}
        assert sum(shares.values()) == pytest.approx(1)
        distances[particles] = sum(abs(p / sum(LAW.values()) - shares[word]) for word, p in LAW.items()) / 2
    masked = masked_law(TABLE, START, WORDS, EOS)
    far = sum(abs(p / sum(LAW.values()) - masked[word]) for word, p in LAW.items()) / 2
    assert distances[1] == pytest.approx(far, abs=0.06)
    assert distances[16] < 0.6 * far


def test_the_chosen_particle_is_drawn_by_its_weight():
    method = SMC(AWRS(words_constraint(WORDS, EOS)), particles=3, threshold=0.0)
    got = generate(markov(TABLE), method, torch.full((1500, 1), START))
    shares = got.log_weights.softmax(-1)
    hits = torch.nn.functional.one_hot(got.chosen, 3)
    for i in range(3):
        assert_mean(hits[:, i] - shares[:, i], 0.0)
    assert (shares.gather(1, got.chosen[:, None]) > 0).all()


def test_one_particle_is_awrs():
    constraint = words_constraint(WORDS, EOS)
    got = generate(
        markov(TABLE), SMC(AWRS(constraint), particles=1, threshold=0.0), torch.full((2500, 1), START)
    )
    words = words_of(got.sequences, PROMPT, EOS)
    assert_follows({w: words.count(w) for w in set(words)}, masked_law(TABLE, START, WORDS, EOS))
    assert not got.resampled.any()


def test_length_bounded_law():
    """Texts end by force at the last token, at the probability of an end: longer ones count as invalid."""
    requests = 2500
    constraint = PredicateConstraint(lambda t: sum(t) % 4 != 3, lambda t: len(t) != 1, eos_ids=[EOS])
    words = [
        word
        for n in range(4)
        for word in itertools.product((0, 1, 2, 3), repeat=n)
        if len(word) != 1 and all(sum(word[:k]) % 4 != 3 for k in range(n + 1))
    ]
    law = text_law(TABLE, START, words, EOS)
    method = SMC(AWRS(constraint), particles=4, threshold=0.7)
    got = generate(markov(TABLE), method, torch.full((requests, 1), START), max_new_tokens=4)
    assert_mean(got.log_z.exp(), sum(law.values()))
    assert got.sequences.shape[1] == PROMPT + 4
    seen = words_of(got.sequences, PROMPT, EOS)
    assert set(seen) <= {*words, None}
    assert all(
        w is not None
        for w, lw in zip(seen, got.log_weights.flatten().tolist(), strict=True)
        if lw > -math.inf
    )
    weights = got.log_weights.exp()
    for word in sorted(law, key=law.get)[-8:]:
        hits = torch.tensor([w == word for w in seen]).view(requests, 4)
        assert_mean((weights * hits).mean(-1), law[word])


def test_without_end_tokens_texts_stop_at_their_length():
    constraint = words_constraint([(0, 1, 2, 0), (2, 2, 2, 2)], 99)
    got = generate(
        markov(TABLE), SMC(AWRS(constraint)), [[START]], eos_token_id=None, max_new_tokens=4, pad_token_id=0
    )
    assert {tuple(row) for row in got.sequences[:, 1:].tolist()} <= {(0, 1, 2, 0), (2, 2, 2, 2)}
    assert not got.complete.any()


# ---- The cache.


@pytest.mark.parametrize(
    ("family", "store"),
    [
        ("llama", Dense()),
        ("mistral", Dense()),
        ("llama", QuantizedKV(bits=16)),
        ("llama", QuantizedKV(bits=4, residual=4)),
        ("llama", MiKV(interval=4)),
        ("llama", MiniCache(guard="skip", residual=8)),
    ],
)
def test_every_particle_keeps_its_own_cache(family, store, monkeypatch):
    """Resampled at every token: what the model then says of a text is what it says of it without any resampling."""
    model = build(family, num_hidden_layers=4, head_dim=32)
    odd = PredicateConstraint(lambda t: all(x % 3 == 1 for x in t), lambda t: len(t) == 13, eos_ids=[2])
    seen = []
    scores = constrained.Batch.scores

    def spy(batch, logits):
        out = scores(batch, logits)
        seen.append(
            (batch.ids.clone(), None if batch.feed.mask is None else batch.feed.mask.clone(), out.clone())
        )
        return out

    monkeypatch.setattr(constrained.Batch, "scores", spy)
    gen = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 97, (2, 9), generator=gen)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    method = SMC(AWRS(odd), particles=3, threshold=1.0, resampling="multinomial")
    options = {"eos_token_id": None, "temperature": 1.7, "max_new_tokens": 14}
    got = generate(model, (method, store), ids, 8, attention_mask=mask, **options)
    assert got.resampled.min() > 6
    assert got.complete.all()
    assert torch.equal(seen[-1][0], got.sequences[:, :-1])  # what the batch read is what the particles wrote
    shared = 0
    with tokops.patch(model, store, page_size=8) as run:
        for texts, padding, after in seen[1::4]:
            shared += len({tuple(row) for row in texts.tolist()}) < len(texts)
            for row in range(len(texts)):
                own = mask[0:1] if padding is None else padding[row : row + 1, :9]
                wanted = replay(run, texts[row : row + 1], own, 9)
                assert torch.allclose(after[row], wanted / 1.7, atol=2e-3), (row, texts.shape)
    assert shared


def replay(run, text, mask, prompt):
    """Logits behind a text whose new tokens are read one by one, without any batch."""
    cache = run.new_cache(prompt)
    full = torch.cat([mask, mask.new_ones(1, text.shape[1] - mask.shape[1])], 1)
    positions = (full.cumsum(-1) - 1).clamp_min(0)
    parts = [(0, prompt), *((n, n + 1) for n in range(prompt, text.shape[1]))]
    with torch.no_grad():
        for first, last in parts:
            out = run.model(
                input_ids=text[:, first:last], attention_mask=full[:, :last], position_ids=positions[:, first:last],
                **{CACHE: cache}, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
    return out.logits[0, -1].float()


def test_particles_that_have_ended_leave_the_batch():
    got = generate(markov(TABLE), SMC(AWRS(words_constraint(WORDS, EOS)), particles=6), [[START]] * 5)
    steps = got.forwards + 1
    assert steps == 4
    assert got.rows < 30 * got.forwards
    assert got.drawn.sum() == 30 + got.rows


def test_requests_do_not_depend_on_their_batch():
    model = build("llama", num_hidden_layers=2)
    gen = torch.Generator().manual_seed(4)
    texts = [torch.randint(3, 97, (1, n), generator=gen) for n in (5, 12, 9)]
    ids = torch.cat([torch.nn.functional.pad(t, (12 - t.shape[1], 0)) for t in texts])
    mask = torch.stack([(torch.arange(12) >= 12 - t.shape[1]).long() for t in texts])
    odd = PredicateConstraint(lambda t: all(x % 3 == 1 for x in t), lambda t: sum(t) % 4 == 1, eos_ids=[2])
    method = SMC(AWRS(odd), particles=3, threshold=0.8)
    options = {"eos_token_id": 2, "max_new_tokens": 8, "temperature": 2.0}
    together = generate(model, method, ids, attention_mask=mask, streams=[7, 8, 9], **options)
    assert together.resampled.sum() > 0
    for i, text in enumerate(texts):
        alone = generate(model, method, text, streams=[7 + i], **options)
        n = alone.sequences.shape[1] - text.shape[1]
        mine = together.sequences.view(3, 3, -1)[i]
        assert torch.equal(alone.sequences[:, -n:], mine[:, 12 : 12 + n])
        assert torch.allclose(alone.log_weights[0], together.log_weights[i], atol=1e-4)
        assert int(alone.chosen[0]) == int(together.chosen[i])
        assert int(alone.checks[0]) == int(together.checks[i])


def test_evaluations_are_counted():
    constraint = Counting(words_constraint(WORDS, EOS))
    got = generate(markov(TABLE), SMC(AWRS(constraint), particles=4), [[START]] * 8)
    assert int(got.checks.sum()) == constraint.checks
    assert 1 <= constraint.checks / int(got.drawn.sum()) <= V + 1


# ---- What ends badly, and what is refused.


def test_dead_particles_are_replaced_and_dead_requests_told():
    hopeless = PredicateConstraint(lambda t: len(t) <= 2, lambda t: False, eos_ids=[EOS])
    with pytest.warns(UserWarning, match=r"SMC: no legal token was found for requests 0;"):
        got = generate(markov(TABLE), SMC(AWRS(hopeless)), [[START]])
    assert got.log_z.tolist() == [-math.inf]
    assert not got.complete.any()

    # Of what begins with 0 nothing is valid, though the prefix says so: those particles die, others take their place.
    def prefix(t):
        return len(t) <= 1 or (t[0] != 0 and len(t) <= 3)

    half = PredicateConstraint(prefix, lambda t: len(t) == 3 and t[0] != 0, eos_ids=[EOS])
    got = generate(markov(TABLE), SMC(AWRS(half), particles=8, threshold=1.0), [[START]] * 20)
    assert got.complete.double().mean() > 0.9


def test_a_critic_can_rule_texts_out():
    def critic(request, tokens, complete):
        return -math.inf if 2 in tokens else 0.0

    got = generate(
        markov(TABLE), SMC(AWRS(words_constraint(WORDS, EOS)), critic=critic), torch.full((800, 1), START)
    )
    assert_mean(got.log_z.exp(), sum(p for word, p in LAW.items() if 2 not in word))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 0}, "particles must be at least 1, got 0"),
        ({"threshold": 1.5}, r"threshold must be 0\.\.1, got 1\.5"),
        (
            {"resampling": "best"},
            "resampling must be stratified, systematic, multinomial, residual, got 'best'",
        ),
        ({"sampler": AWRS(proper=False)}, "the sampler must be proper, or threshold 0"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SMC(**options)


class Streamer:
    def put(self, tokens):
        pass


def test_what_generate_refuses():
    model = markov(TABLE)
    with pytest.raises(ValueError, match="SMC needs do_sample=True"):
        generate(model, SMC(), [[START]], do_sample=False)
    with pytest.raises(NotImplementedError, match="SMC does not support a streamer"):
        generate(model, SMC(), [[START]], streamer=Streamer())
    with pytest.raises(ValueError, match="SMC and AWRS clash: both have"), tokops.patch(model, SMC(), AWRS()):
        pass
