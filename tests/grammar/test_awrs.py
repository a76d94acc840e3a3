"""AWRS: unbiased by enumeration of all chances, exact in law, and asked no more than it must."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build

import tokops
from grammar.toy import assert_follows, assert_mean, markov, masked_law, text_law, words_constraint, words_of
from tokops._bitmask import allowed, packed
from tokops.grammar import Vocabulary, compile_regex
from tokops.grammar.constraint import (
    Counting,
    MatcherConstraint,
    PredicateConstraint,
    mask_by_asking,
)
from tokops.methods import AWRS, QuantizedKV
from tokops.methods._rejection import geometric, improper, recursive, two_loop

LAWS = {
    "sheet": ((0.5, 0.3, 0.2), (0, 1, 1)),
    "all legal": ((0.5, 0.3, 0.2), (1, 1, 1)),
    "peaked, legal": ((0.9, 0.06, 0.04), (1, 0, 1)),
    "peaked, illegal": ((0.9, 0.06, 0.04), (0, 1, 0)),
    "none legal": ((0.5, 0.3, 0.2), (0, 0, 0)),
    "a zero": ((0.6, 0.0, 0.4), (0, 1, 1)),
    "one token": ((1.0,), (1,)),
    "flat": ((0.25, 0.25, 0.25, 0.25), (1, 0, 0, 1)),
}


class Script:
    """Chances by a script, which grows as they come up; counts the branches of every choice."""

    def __init__(self, law, choices, trials):
        self.law, self.choices, self.trials = law, choices, trials
        self.at, self.prob, self.options = 0, 1.0, []

    def choose(self, probs):
        if self.at == len(self.choices):
            self.choices.append(0)
        chosen = self.choices[self.at]
        self.at += 1
        self.options.append(len(probs))
        self.prob *= probs[chosen]
        return chosen

    def stream(self, excluded):
        left = [t for t, p in enumerate(self.law) if p > 0 and t not in excluded]
        while left:
            whole = sum(self.law[t] for t in left)
            token = left.pop(self.choose([self.law[t] / whole for t in left]))
            yield token, self.law[token]

    def geometric(self, success):
        fail = 1 - success
        probs = [success * fail**n for n in range(self.trials - 1)]
        return 1 + self.choose([*probs, fail ** (self.trials - 1)])


def enumerate_chances(sampler, law, trials):
    """(probability, outcome) of every way a sampler can go."""
    choices: list[int] = []
    while True:
        script = Script(law, choices, trials)
        outcome = sampler(script)
        yield script.prob, outcome
        del choices[script.at :]
        while choices and choices[-1] + 1 == script.options[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


#: name -> sampler, the number of trials after which geometric numbers are cut, and the error of that.
SAMPLERS = {
    "two_loop": (lambda s, ok: two_loop(s, ok, math.inf), 1, 1e-12),
    "two_loop 2": (lambda s, ok: two_loop(s, ok, 2), 1, 1e-12),
    "two_loop 3": (lambda s, ok: two_loop(s, ok, 3), 1, 1e-12),
    "recursive": (lambda s, ok: recursive(s, ok, math.inf), 1, 1e-12),
    "recursive 2": (lambda s, ok: recursive(s, ok, 2), 1, 1e-12),
    "recursive 3": (lambda s, ok: recursive(s, ok, 3), 1, 1e-12),
    # Beyond max_rejects all numbers of trials are alike, so that these are exact.
    "geometric 2 of 5": (lambda s, ok: geometric(s, ok, 5, 2), 6, 1e-12),
    "geometric 3 of 4": (lambda s, ok: geometric(s, ok, 4, 3), 5, 1e-12),
    "geometric 4 of 2": (lambda s, ok: geometric(s, ok, 2, 4), 3, 1e-12),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_are_unbiased_for_every_token(name, law):
    sampler, trials, error = SAMPLERS[name]
    probs, legal = LAWS[law]
    whole, found, most = 0.0, [0.0] * len(probs), 0
    for p, outcome in enumerate_chances(lambda s: sampler(s, lambda t: bool(legal[t])), probs, trials):
        whole += p
        assert outcome.accepted == (outcome.weight > 0)
        if outcome.accepted:
            assert legal[outcome.token]
            found[outcome.token] += p * outcome.weight
        else:
            assert outcome.token == -1 or not legal[outcome.token]
        most = max(most, outcome.weight)
    assert whole == pytest.approx(1.0, abs=1e-9)
    assert found == pytest.approx([p * ok for p, ok in zip(probs, legal, strict=True)], abs=error)
    assert most <= 1 + 1e-12
    if law == "all legal":
        assert sum(found) == pytest.approx(1.0)
        assert most == pytest.approx(1.0)


@pytest.mark.parametrize("law", ["sheet", "all legal", "peaked, legal", "a zero", "one token"])
def test_endless_geometric_is_unbiased(law):
    """Of laws with at most one bad token; numbers of trials are cut where hardly any are left."""
    probs, legal = LAWS[law]
    bad = sum(p for p, ok in zip(probs, legal, strict=True) if not ok)
    found = [0.0] * len(probs)
    for p, outcome in enumerate_chances(
        lambda s: geometric(s, lambda t: bool(legal[t]), math.inf, 2), probs, 50
    ):
        if outcome.accepted:
            found[outcome.token] += p * outcome.weight
    wanted = [p * ok for p, ok in zip(probs, legal, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-12 + bad**50)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["two_loop", "recursive", "geometric", "improper"])
def test_tokens_follow_the_restricted_law(name, law):
    """Where nothing is given up, what is accepted is an exact sample. (With max_rejects early tokens are favoured.)"""
    probs, legal = LAWS[law]

    def run(script):
        def ok(token):
            return bool(legal[token])

        if name == "geometric":
            return geometric(script, ok, math.inf, 2)
        return {"two_loop": two_loop, "recursive": recursive, "improper": improper}[name](
            script, ok, math.inf
        )

    found = [0.0] * len(probs)
    # How many trials a geometric number stands for does not change the token.
    for p, outcome in enumerate_chances(run, probs, 2):
        if outcome.accepted:
            found[outcome.token] += p
    wanted = np.array([p * ok for p, ok in zip(probs, legal, strict=True)])
    if wanted.sum():
        assert found == pytest.approx((wanted / wanted.sum()).tolist(), abs=1e-12)


class Chance:
    """Chances by Python's generator."""

    def __init__(self, law, random):
        self.law, self.random = law, random

    def stream(self, excluded):
        left = [t for t, p in enumerate(self.law) if p > 0 and t not in excluded]
        while left:
            token = self.random.choices(left, [self.law[t] for t in left])[0]
            left.remove(token)
            yield token, self.law[token]

    def geometric(self, success):
        n = 1
        while self.random.random() >= success:
            n += 1
        return n


@pytest.mark.parametrize(
    ("sampler", "deviation"),
    [
        (lambda s, ok: two_loop(s, ok, math.inf), 0.31),
        (lambda s, ok: recursive(s, ok, math.inf), 0.25),
        (lambda s, ok: geometric(s, ok, math.inf, 2), 0.31),
        (lambda s, ok: geometric(s, ok, math.inf, 4), 0.20),
    ],
)
def test_deviations_are_the_known_ones(sampler, deviation):
    probs, legal = LAWS["sheet"]
    chance = Chance(probs, random.Random(3))
    weights = np.array([sampler(chance, lambda t: bool(legal[t])).weight for _ in range(8000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.015)
    assert weights.std() == pytest.approx(deviation, abs=0.01)


# ---- Over rows of logits.


def rows(logits, method, legal, stream=0, **options):
    count = len(logits)
    return method.sample(
        logits,
        [lambda token: bool(legal[token])] * count,
        **{
            "seed": 5,
            "streams": list(range(stream, stream + count)),
            "positions": [11] * count,
            **options,
        },
    )


METHODS = {
    "auto": AWRS(),
    "recursive": AWRS(sampler="recursive"),
    "geometric": AWRS(sampler="geometric"),
    "geometric 4": AWRS(max_accepts=4),
    "two_loop": AWRS(sampler="two_loop"),
    "improper": AWRS(proper=False),
    "few rejects": AWRS(max_rejects=3),
    "few rejects, geometric": AWRS(max_rejects=3, sampler="geometric"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("peak", [0.0, 4.0])
def test_draws_of_rows_are_exact_and_unbiased(name, peak):
    """Through the library's own draws: more tokens than are drawn ahead, some of them of no weight."""
    method, count = METHODS[name], 3000
    logits = torch.randn(24, generator=torch.Generator().manual_seed(2))
    logits[7] += peak
    logits[3] = -math.inf
    legal = torch.rand(24, generator=torch.Generator().manual_seed(8)) < 0.3
    legal[3] = True
    legal[7] = False
    probs = logits.double().softmax(-1)
    draws = rows(logits.expand(count, -1), method, legal)
    weights = torch.tensor(draws.log_weights, dtype=torch.float64).exp()
    tokens = torch.tensor(draws.tokens)
    assert torch.equal(torch.tensor(draws.accepted), weights > 0)
    assert legal[tokens[weights > 0]].all()
    assert not (tokens == 3).any()
    if method.proper:
        assert_mean(weights, float(probs[legal].sum()))
        for token in legal.nonzero().flatten().tolist():
            assert_mean(weights * (tokens == token), float(probs[token]))
    else:
        assert set(weights.tolist()) == {1.0}
    if method.max_rejects is None:
        assert all(draws.accepted)
        counts = dict(zip(*(x.tolist() for x in tokens.unique(return_counts=True)), strict=True))
        assert_follows(
            counts, {t: float(probs[t]) for t in legal.nonzero().flatten().tolist() if probs[t] > 0}
        )


def test_a_row_is_drawn_as_in_any_batch():
    logits = torch.randn(9, 40, generator=torch.Generator().manual_seed(1)) * 2
    legal = torch.arange(40) % 5 == 0
    for method in METHODS.values():
        whole = rows(logits, method, legal)
        for row in (0, 4, 8):
            alone = rows(logits[row : row + 1], method, legal, stream=row)
            assert [x[0] for x in alone] == [x[row] for x in whole]
        other = rows(logits, method, legal, seed=6)
        moved = rows(logits, method, legal, positions=[12] * 9)
        assert other.tokens != whole.tokens != moved.tokens


def test_candidates_come_once_each_and_run_out():
    """300 tokens of which none is legal: every sampler asks about each once and rejects the last."""
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    for name in ("auto", "geometric", "two_loop", "improper"):
        seen = []

        def ok(token, seen=seen):
            seen.append(token)
            return False

        draws = METHODS[name].sample(logits, [ok], seed=1, streams=[0], positions=[0])
        assert sorted(seen) == list(range(300))
        assert (draws.tokens, draws.accepted) == ([seen[-1]], [False])
        assert (draws.log_weights, draws.checks) == ([-math.inf], [300])


def test_an_empty_row_is_rejected():
    draws = rows(torch.full((1, 5), -math.inf), AWRS(), torch.ones(5))
    assert draws == ([-1], [False], [-math.inf], [0])


def test_everything_legal_costs_one_or_two_checks():
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(1)) * 3
    for name in ("auto", "recursive", "geometric", "two_loop"):
        draws = rows(logits, METHODS[name], torch.ones(50))
        assert draws.log_weights == pytest.approx([0.0] * 200, abs=1e-6)
        assert set(draws.checks) <= {1, 2}


@pytest.mark.parametrize("share", [0.667, 0.8, 0.97])
def test_a_likely_legal_token_costs_two_checks_on_average(share):
    logits = torch.full((2000, 30), math.log((1 - share) / 29))
    logits[:, 4] = math.log(share)
    draws = rows(logits, AWRS(), torch.arange(30) == 4)
    checks = torch.tensor(draws.checks, dtype=torch.float64)
    bound = 1 + 2 * (1 - share) / share
    assert checks.mean() <= bound + 4 * checks.std() / math.sqrt(2000)
    assert checks.mean() <= 2.1
    assert_mean(torch.tensor(draws.log_weights).exp(), share)


def test_never_more_checks_than_tokens():
    logits = torch.randn(300, 7, generator=torch.Generator().manual_seed(1))
    for method in METHODS.values():
        assert max(rows(logits, method, torch.arange(7) == 2).checks) <= 7


def test_a_mask_gives_the_exact_mass_and_asks_nothing():
    logits = torch.randn(4000, 70, generator=torch.Generator().manual_seed(1))[:1].expand(4000, -1)
    legal = torch.arange(70) % 6 == 1
    probs = logits[0].double().softmax(-1)

    def refuse(token):
        raise AssertionError("the mask is known")

    draws = AWRS().sample(
        logits,
        [refuse] * 4000,
        seed=1,
        streams=range(4000),
        positions=[3] * 4000,
        masks=[packed(legal)] * 4000,
    )
    assert set(draws.checks) == {0}
    assert draws.log_weights == pytest.approx([float(probs[legal].sum().log())] * 4000, abs=1e-6)
    counts = {t: draws.tokens.count(t) for t in set(draws.tokens)}
    assert_follows(counts, {t: float(probs[t]) for t in legal.nonzero().flatten().tolist()})
    nothing = AWRS().sample(
        logits[:1], [refuse], seed=1, streams=[0], positions=[3], masks=[torch.zeros(3, dtype=torch.int32)]
    )
    assert nothing == ([-1], [False], [-math.inf], [0])


def test_masks_of_some_rows_only():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    legal = torch.arange(40) % 3 == 0
    mask = packed(legal)
    draws = rows(logits, AWRS(), legal, masks=[mask, None] * 3)
    assert [c > 0 for c in draws.checks] == [False, True] * 3
    plain = rows(logits, AWRS(), legal)
    assert draws.tokens[1::2] == plain.tokens[1::2]
    assert legal[torch.tensor(draws.tokens)].all()


def test_pruned_tokens_are_never_asked_about_and_count_in_the_weight():
    count = 3000
    logits = torch.randn(20, generator=torch.Generator().manual_seed(4))
    legal, possible = torch.arange(20) % 4 == 0, torch.arange(20) % 2 == 0
    probs = logits.double().softmax(-1)
    asked = set()

    def ok(token):
        asked.add(token)
        return bool(legal[token])

    for prune in (packed(possible), packed(possible).expand(count, -1)):
        draws = AWRS().sample(
            logits.expand(count, -1),
            [ok] * count,
            seed=2,
            streams=range(count),
            positions=[0] * count,
            prune=prune,
        )
        assert_mean(torch.tensor(draws.log_weights, dtype=torch.float64).exp(), float(probs[legal].sum()))
    assert possible[torch.tensor(sorted(asked))].all()


def test_a_proposal_changes_where_from_but_not_what():
    count = 4000
    gen = torch.Generator().manual_seed(4)
    logits, proposal = torch.randn(12, generator=gen), torch.randn(12, generator=gen)
    legal = torch.arange(12) % 3 == 0
    probs, q = logits.double().softmax(-1), proposal.double().softmax(-1)
    draws = rows(
        logits.expand(count, -1),
        AWRS(),
        legal,
        proposal=proposal.expand(count, -1),
        prune=packed(torch.arange(12) != 5),
    )
    weights, tokens = torch.tensor(draws.log_weights, dtype=torch.float64).exp(), torch.tensor(draws.tokens)
    for token in (0, 3, 6, 9):
        assert_mean(weights * (tokens == token), float(probs[token]))
    assert_follows(
        {t: draws.tokens.count(t) for t in set(draws.tokens)}, {t: float(q[t]) for t in (0, 3, 6, 9)}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(dtype):
    logits = (torch.randn(50, 30, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    legal = torch.arange(30) % 4 == 0
    assert rows(logits, AWRS(), legal) == rows(logits.float(), AWRS(), legal)


def test_peaked_laws_keep_their_digits():
    """A legal token of mass 1e-9, beside a bad one of nearly 1 and a bad one of 2e-9."""
    logits = torch.tensor([0.0, math.log(1e-9), math.log(2e-9)])
    legal = torch.tensor([False, True, False])
    draws = rows(logits.expand(64, -1), AWRS(sampler="recursive"), legal)
    assert torch.tensor(draws.log_weights).exp().tolist() == pytest.approx([1e-9] * 64, rel=1e-4)
    draws = rows(logits.expand(4000, -1), AWRS(), legal)
    assert_mean(torch.tensor(draws.log_weights, dtype=torch.float64).exp(), 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rejects": 1}, "max_rejects must be at least 2, got 1"),
        ({"max_accepts": 1}, "max_accepts must be at least 2, got 1"),
        ({"sampler": "best"}, "sampler must be auto, recursive, geometric, two_loop, got 'best'"),
        (
            {"sampler": "recursive", "max_accepts": 3},
            "recursive stops at 2 legal tokens, got max_accepts 3",
        ),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AWRS(**options)


def test_the_sampler_is_chosen_by_the_peak():
    assert AWRS().choose(0.6) == "recursive"
    assert AWRS().choose(0.7) == "geometric"
    assert AWRS(max_accepts=3).choose(0.1) == "geometric"
    assert AWRS(proper=False).choose(0.7) == "improper"
    assert AWRS(sampler="two_loop").choose(0.7) == "two_loop"


# ---- Constraints.


def test_predicates_over_bytes():
    tokens = [b"", b"a", b"ab", b"b", b"", b"ab"]
    constraint = Counting(
        PredicateConstraint(
            lambda t: b"abab".startswith(t), lambda t: t == b"abab", eos_ids=[4], tokens=tokens
        )
    )
    state = constraint.start()
    assert [t for t in range(6) if constraint.ok(state, t)] == [1, 2, 5]
    assert constraint.checks == 6
    state = constraint.advance(constraint.advance(state, 5), 2)
    assert [t for t in range(7) if constraint.ok(state, t)] == [4]
    assert constraint.advances == 2
    assert allowed(constraint.prune, 6).tolist() == [False, True, True, True, True, True]
    assert constraint.mask(state) is None
    assert constraint.masks == 0
    assert allowed(mask_by_asking(constraint, b"", 6), 6).tolist() == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="eos_ids must name a token"):
        PredicateConstraint(bool, bool, eos_ids=[])
    with pytest.raises(ValueError, match="prefix refuses the empty text"):
        PredicateConstraint(lambda t: False, bool, eos_ids=[1]).start()


class Matcher:
    """A matcher of a grammar for the words over tokens 0 and 1 of three tokens; 2 ends them."""

    def __init__(self, tokens=()):
        self.tokens = list(tokens)

    def legal(self):
        return [2] if len(self.tokens) == 3 else [] if 2 in self.tokens else [0, 1]

    def accept(self, token):
        if token not in self.legal():
            return False
        self.tokens.append(token)
        return True

    def rollback(self, count):
        del self.tokens[len(self.tokens) - count :]

    def fork(self):
        return Matcher(self.tokens)

    def fill(self, row):
        row.zero_()
        for token in self.legal():
            row[0] |= 1 << token


class Grammar:
    vocabulary = SimpleNamespace(width=3, eos_ids=[2])

    def matcher(self):
        return Matcher()


def test_matchers_are_left_as_they_were():
    constraint = MatcherConstraint(Grammar())
    assert constraint.eos_ids == {2}
    first = constraint.start()
    assert [constraint.ok(first, t) for t in range(-1, 5)] == [False, True, True, False, False, False]
    state = first
    for token in (0, 1, 1):
        state = constraint.advance(state, token)
    assert first.tokens == []
    assert [constraint.ok(state, t) for t in range(3)] == [False, False, True]
    assert constraint.mask(state).tolist() == [4]
    assert constraint.mask(first).tolist() == [3]
    with pytest.raises(ValueError, match="token 0 is not legal here"):
        constraint.advance(state, 0)


# ---- Through generate.

EOS, START, V = 4, 3, 5
WORDS = [(0,), (0, 1), (0, 1, 2), (1, 1), (2, 0, 0), (2, 2), (1, 0, 2)]
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(5)) * 1.2


def generate(model, method, ids, **options):
    if isinstance(ids, list):
        ids = torch.tensor(ids)
    defaults = {
        "do_sample": True, "top_k": 0, "max_new_tokens": 6, "eos_token_id": EOS, "pad_token_id": 0, "seed": 3,
        "return_dict_in_generate": True,
    }  # fmt: skip
    with tokops.patch(model, *(method if isinstance(method, tuple) else (method,)), page_size=4):
        return model.generate(ids, **{**defaults, **options})


@pytest.mark.parametrize("masks", [False, True])
def test_texts_follow_the_masked_law_and_weights_correct_it(masks):
    method = AWRS(words_constraint(WORDS, EOS, masks))
    got = generate(markov(TABLE), method, torch.full((4000, 1), START))
    words = words_of(got.sequences, 1, EOS)
    assert got.complete.all()
    assert_follows({w: words.count(w) for w in set(words)}, masked_law(TABLE, START, WORDS, EOS))
    weights, law = got.log_weights.exp(), text_law(TABLE, START, WORDS, EOS)
    assert_mean(weights, sum(law.values()))
    for word, p in law.items():
        assert_mean(weights * torch.tensor([w == word for w in words]), p)
    checks = [c for row in got.checks for c in row]
    assert len(checks) == sum(len(word) + 1 for word in words)
    assert (max(checks) == 0) == masks
    if masks:  # the mass is exact: a word has one weight
        for word in WORDS:
            seen = got.log_weights[torch.tensor([w == word for w in words])]
            assert seen.std() < 1e-5


def test_constraint_evaluations_are_counted():
    constraint = Counting(words_constraint(WORDS, EOS))
    got = generate(markov(TABLE), AWRS(constraint), torch.full((50, 1), START))
    assert constraint.checks == sum(map(sum, got.checks))
    per_token = constraint.checks / sum(map(len, got.checks))
    assert 1 <= per_token <= V + 1


def test_requests_do_not_depend_on_their_batch():
    model = build("llama", num_hidden_layers=2)
    generator = torch.Generator().manual_seed(4)
    texts = [torch.randint(3, 97, (1, n), generator=generator) for n in (5, 12, 9)]
    ids = torch.cat([torch.nn.functional.pad(t, (12 - t.shape[1], 0)) for t in texts])
    mask = torch.stack([(torch.arange(12) >= 12 - t.shape[1]).long() for t in texts])
    # Ends differ: texts leave the batch at different times.
    odd = PredicateConstraint(lambda t: all(x % 16 == 1 for x in t), lambda t: True, eos_ids=[2])
    options = {"eos_token_id": 2, "max_new_tokens": 15, "temperature": 2.0}
    together = generate(model, AWRS(odd), ids, attention_mask=mask, streams=[7, 8, 9], **options)
    lengths = [len(c) for c in together.checks]
    assert len(set(lengths)) > 1
    for i, text in enumerate(texts):
        alone = generate(model, AWRS(odd), text, streams=[7 + i], **options)
        n = alone.sequences.shape[1] - text.shape[1]
        assert torch.equal(alone.sequences[0, -n:], together.sequences[i, 12 : 12 + n])
        assert float(alone.log_weights[0]) == pytest.approx(float(together.log_weights[i]), abs=1e-4)
        assert alone.checks[0] == together.checks[i]
    quantized = generate(
        model, (AWRS(odd), QuantizedKV(bits=16)), ids, attention_mask=mask, streams=[7, 8, 9], **options
    )
    assert torch.equal(quantized.sequences, together.sequences)


def test_constraints_of_single_requests():
    one, two = words_constraint([(0, 1)], EOS), words_constraint([(2, 2, 2)], EOS, masks=True)
    got = generate(markov(TABLE), AWRS(), [[START]] * 3, constraints=[one, two, None])
    words = words_of(got.sequences, 1, EOS)
    assert words[:2] == [(0, 1), (2, 2, 2)]
    with pytest.raises(ValueError, match="AWRS: constraints must be 1, one per request, got 2"):
        generate(markov(TABLE), AWRS(), [[START]], constraints=[one, two])


def test_a_grammar_is_a_constraint():
    tokens = [b"a", b"b", b"c", b"d", b"e"]
    grammar = compile_regex(
        "ab*c?", Vocabulary([b"" if i in (START, EOS) else t for i, t in enumerate(tokens)], [EOS])
    )
    method = AWRS(grammar)
    assert isinstance(method.constraint, MatcherConstraint)
    ids, options = [[START]] * 8, {"max_new_tokens": 12}
    got = generate(markov(TABLE), method, ids, **options)
    want = generate(markov(TABLE), AWRS(MatcherConstraint(grammar)), ids, **options)
    assert got.sequences.equal(want.sequences)
    assert got.complete.any()
    with pytest.raises(
        TypeError, match=r"constraints: expected constraints, got a Grammar: give MatcherConstraint"
    ):
        generate(markov(TABLE), AWRS(), [[START]], constraints=[grammar])
    with pytest.raises(
        TypeError, match=r"AWRS: constraint: expected a Grammar, or what has start\(\).*got str"
    ):
        AWRS("ab*c?")


def test_dead_ends_have_weight_nothing_and_are_told():
    def prefix(t):
        return len(t) <= 1  # promises what nothing completes

    constraint = PredicateConstraint(prefix, lambda t: False, eos_ids=[EOS])
    with pytest.warns(UserWarning, match=r"AWRS: no legal token was found for requests 0, 1;"):
        got = generate(markov(TABLE), AWRS(constraint), [[START]] * 2)
    assert got.log_weights.tolist() == [-math.inf] * 2
    assert not got.complete.any()
    assert got.sequences.shape == (2, 2)


def test_what_is_refused():
    model = markov(TABLE)
    with pytest.raises(ValueError, match="AWRS needs do_sample=True"):
        generate(model, AWRS(), [[START]], do_sample=False)
    with pytest.raises(ValueError, match="AWRS: streams must be 1 integers"):
        generate(model, AWRS(), [[START]], streams=[1, 2])
    with pytest.raises(NotImplementedError, match="AWRS has a decoding loop of its own"):
        generate(model, AWRS(), [[START]], num_beams=2)
    with pytest.raises(ValueError, match="prefix refuses the empty text"):
        generate(model, AWRS(PredicateConstraint(lambda t: False, bool, eos_ids=[1])), [[START]])
