"""ASAp and CARS: bounds against exact masses, laws against enumeration, the trie against a dense table."""

import itertools
import math
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import build
from tokops.lib._grammar import AsapTrie

import tokops
from grammar.toy import assert_follows, markov, masked_law, text_law, words_constraint, words_of
from tokops._bitmask import packed
from tokops.grammar import Vocabulary, compile_regex
from tokops.grammar.constraint import Counting, MatcherConstraint
from tokops.hf.asap_processor import ASApProcessor
from tokops.methods import ASAp, QuantizedKV, Speculate

NAN, NONE = float("nan"), -math.inf
V, EOS = 6, 5


class Model:
    """A language model over tuples: every context has a row of logits of its own."""

    def __init__(self, size=V, seed=0, scale=1.5):
        self.size, self.seed, self.scale = size, seed, scale
        self.rows = {}

    def __call__(self, context):
        if context not in self.rows:
            rng = np.random.default_rng([self.seed, *context, len(context)])
            self.rows[context] = (rng.standard_normal(self.size) * self.scale).astype(np.float32)
        return self.rows[context].copy()

    def logs(self, context):
        row = self(context).astype(np.float64)
        return row - row.max() - np.log(np.exp(row - row.max()).sum())


def exact_masses(model, words, eos=EOS):
    """Prefix -> the probability that what follows makes it a valid word, by recursion."""
    valid = {tuple(word) for word in words}
    prefixes = {word[:n] for word in valid for n in range(len(word) + 1)}
    masses = {}
    for prefix in sorted(prefixes, key=len, reverse=True):
        p = np.exp(model.logs(prefix))
        masses[prefix] = sum(p[t] * masses[(*prefix, t)] for t in range(eos) if (*prefix, t) in prefixes)
        masses[prefix] += p[eos] * (prefix in valid)
    return masses


def mask_at(constraint, context, size=V):
    return packed(torch.tensor([constraint.ok(context, t) for t in range(size)])).numpy()


def softmax(row):
    row = np.asarray(row, np.float64)
    p = np.exp(row - row.max())
    return p / p.sum()


class Sampler:
    """ASAp or CARS over a trie, one text after the other, without any model of transformers."""

    def __init__(self, model, constraint, trie, seed=0, cars=False, masks=True):
        self.model, self.constraint, self.trie = model, constraint, trie
        self.rng, self.cars, self.masks = np.random.default_rng(seed), cars, masks

    def text(self):
        """A word, None where it was rejected."""
        context, node, token, logit, ended = (), -1, -1, NAN, None
        self.trie.freeze()
        while True:
            raw = self.model(context)
            row = raw.copy()
            mask = mask_at(self.constraint, context, len(raw)) if self.masks else None
            node = self.trie.visit(node, token, logit, row, mask, not self.cars or context == ())
            if row.max() == NONE:
                break
            token = int(self.rng.choice(len(row), p=softmax(row)))
            logit = float(raw[token])
            if not self.constraint.ok(context, token):
                assert self.cars
                self.trie.reject(node, token, logit)
                break
            if token == EOS:
                ended = context
                break
            context = (*context, token)
        self.trie.end(node)
        self.trie.merge()
        return ended

    def first_row(self):
        """The law of the next text's first token."""
        row = self.model(())
        self.trie.visit(-1, -1, NAN, row, mask_at(self.constraint, (), len(row)), True)
        return softmax(row)


def random_words(seed, count=9, longest=4):
    rng = random.Random(seed)
    words = {tuple(rng.randrange(EOS) for _ in range(rng.randint(0, longest))) for _ in range(count)}
    return sorted(words)


def nodes_of(trie):
    """Context -> node, by walking."""
    found, stack = {}, [((), 0)] if len(trie) else []
    while stack:
        context, at = stack.pop()
        found[context] = trie.node(at)
        for token, child in zip(found[context]["tokens"], found[context]["children"], strict=True):
            if child >= 0:
                stack.append(((*context, int(token)), int(child)))
    return found


# ---- Bounds and laws.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cars", [False, True])
@pytest.mark.parametrize("keep_all", [1024, 0])
def test_bounds_fall_onto_the_exact_masses(seed, cars, keep_all):
    model, words = Model(seed=seed), random_words(seed)
    constraint, exact = words_constraint(words, EOS), exact_masses(model, words)
    trie = AsapTrie(V, keep_all=keep_all, least=0.2)
    sampler = Sampler(model, constraint, trie, seed, cars)
    before = {}
    for _ in range(400):
        sampler.text()
        if len(before) == len(exact) and cars:
            break
        nodes = nodes_of(trie)
        for context, node in nodes.items():
            mass = math.exp(node["mass"])
            if context in exact:  # a rejected text leads outside
                assert mass >= exact[context] * (1 - 1e-6)
            assert mass <= before.get(context, 1.0)
            assert (node["log_theta"] <= 0).all()
            before[context] = mass
    # All of what is left unvisited gets its visit, so that nothing is left to chance.
    for prefix in exact:
        trie.freeze()
        node, token, logit = -1, -1, NAN
        for n in range(len(prefix) + 1):
            raw = model(prefix[:n])
            node = trie.visit(node, token, logit, raw.copy(), mask_at(constraint, prefix[:n]), True)
            if n < len(prefix):
                token, logit = prefix[n], float(raw[prefix[n]])
        trie.end(node)
        trie.merge()
    for context, node in nodes_of(trie).items():
        if context in exact:
            assert math.exp(node["mass"]) == pytest.approx(exact[context], rel=1e-5)
    # The law of a text is then exactly that of valid texts: KL is 0.
    law = {word: math.exp(sum(model.logs(word[:n])[t] for n, t in enumerate((*word, EOS)))) for word in words}
    divergence = 0.0
    for word, p in law.items():
        node, logs, token, logit = -1, 0.0, -1, NAN
        for n, following in enumerate((*word, EOS)):
            row = model(word[:n])
            raw = row.copy()
            node = trie.visit(node, token, logit, row, mask_at(constraint, word[:n]), True)
            logs += math.log(softmax(row)[following])
            token, logit = following, float(raw[following])
        share = p / sum(law.values())
        assert math.exp(logs) == pytest.approx(share, rel=1e-4)
        divergence += share * (math.log(share) - logs)
    assert abs(divergence) < 1e-5


def test_the_first_text_is_masked_decoding():
    model, words = Model(seed=3), random_words(3)
    constraint = words_constraint(words, EOS)
    counts = {}
    for seed in range(1500):
        word = Sampler(model, constraint, AsapTrie(V), seed).text()
        counts[word] = counts.get(word, 0) + 1
    law = {}
    for word in words:
        p = 1.0
        for n, token in enumerate((*word, EOS)):
            row = np.exp(model.logs(word[:n]))
            p *= row[token] / sum(row[t] for t in range(V) if constraint.ok(word[:n], t))
        law[word] = p
    assert_follows(counts, law)


def test_five_bits():
    """One valid string begins with 0, all others with 1: masks write it with all of the first 0's mass."""
    words = [(0,) * 5, *((1, *rest) for rest in itertools.product((0, 1), repeat=4))]
    model = Model(seed=1, scale=0.0)  # every token alike: 1/6
    constraint = words_constraint(words, EOS)
    sampler = Sampler(model, constraint, AsapTrie(V), 7)
    assert sampler.first_row()[:2] == pytest.approx([0.5, 0.5])
    shares = []
    for _ in range(12):
        runs = [sampler.text() for _ in range(25)]
        shares.append(sum(word == words[0] for word in runs) / 25)
    assert shares[0] > 0.15
    # Behind a 1 there are sixteen strings and behind a 0 one.
    assert sampler.first_row()[0] == pytest.approx(1 / 17, abs=0.002)
    assert sum(shares[-8:]) / 8 < 0.13
    assert all(math.isfinite(x) for x in shares)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_cars_is_exact_from_the_first_text_on(masks, seed):
    model, words = Model(seed=seed, scale=1.0), random_words(seed)
    constraint = words_constraint(words, EOS)
    law = {word: math.exp(sum(model.logs(word[:n])[t] for n, t in enumerate((*word, EOS)))) for word in words}
    place: list[dict] = [{} for _ in range(3)]  # the first, second and third accepted text
    for run in range(500):
        sampler = Sampler(model, constraint, AsapTrie(V), 10_000 * seed + run, cars=True, masks=masks)
        accepted = []
        while len(accepted) < 3:
            word = sampler.text()
            if word is not None:
                place[len(accepted)][word] = place[len(accepted)].get(word, 0) + 1
                accepted.append(word)
    for counts in place:
        assert_follows(counts, law)


@pytest.mark.parametrize("masks", [True, False])
def test_cars_rejects_less_and_less(masks):
    """The chance to accept is the valid mass over the root's bound, which never grows."""
    model, words = Model(seed=4, scale=1.0), random_words(4)
    constraint, exact = words_constraint(words, EOS), exact_masses(model, words)
    trie = AsapTrie(V)
    sampler = Sampler(model, constraint, trie, 1, cars=True, masks=masks)
    rates = []
    for _ in range(400):
        sampler.text()
        rates.append(exact[()] / math.exp(trie.node(0)["mass"]))
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(rates))
    assert rates[-1] > 3 * rates[0] or rates[-1] > 0.9
    assert rates[-1] <= 1 + 1e-6


# ---- The trie itself.


class Dense:
    """The same as tables of all tokens, in float64, backed up through everything that is known."""

    def __init__(self, size):
        self.size, self.lp, self.legal, self.theta = size, {}, {}, {}

    def visit(self, context, raw, legal):
        if context not in self.lp:
            row = raw.astype(np.float64)
            row = np.where(np.isnan(row), NONE, np.minimum(row, np.finfo(np.float32).max))
            self.lp[context] = row - row.max() - np.log(np.exp(row - row.max()).sum())
            self.legal[context], self.theta[context] = legal, np.zeros(self.size)

    def mass(self, context):
        with np.errstate(divide="ignore"):
            return np.log((np.exp(self.lp[context] + self.theta[context]) * self.legal[context]).sum())

    def end(self, context):
        for n in range(len(context), 0, -1):
            self.theta[context[: n - 1]][context[n - 1]] = self.mass(context[:n])

    def row(self, context, raw):
        return np.where(self.legal[context], raw + self.theta[context], NONE)


@pytest.mark.parametrize("size", [5, 33, 97, 3000])
@pytest.mark.parametrize("keep_all", [10, 5000])
def test_rows_are_those_of_dense_tables(size, keep_all):
    """Random texts of a random model, with few tokens kept one by one, so that many come out of the tail."""
    rng = np.random.default_rng(size)
    model, trie, dense = Model(size, size, 2.0), AsapTrie(size, keep_all=keep_all, least=0.01), Dense(size)
    legal_at = {}
    for _ in range(40):
        context, node, token, logit = (), -1, -1, NAN
        for _ in range(int(rng.integers(1, 5))):
            raw = model(context)
            if context not in legal_at:
                legal_at[context] = rng.random(size) < rng.choice([0.05, 0.6, 1.0])
                legal_at[context][rng.integers(size)] = True
            legal = legal_at[context]
            dense.visit(context, raw, legal)
            row = raw.copy()
            node = trie.visit(node, token, logit, row, packed(torch.from_numpy(legal)).numpy(), True)
            assert node >= 0
            np.testing.assert_allclose(row, dense.row(context, raw), rtol=2e-5, atol=2e-5)
            # Any legal token, likely or not: few different ones, so that texts meet.
            token = int(rng.choice(np.flatnonzero(legal)[:3]))
            logit, last, context = float(raw[token]), context, (*context, token)
        trie.end(node)
        dense.end(last)
    nodes = nodes_of(trie)
    assert set(nodes) == set(dense.lp)
    for context, node in nodes.items():
        kept = len(node["tokens"]) + node["tail_count"]
        assert kept == legal_at[context].sum()
        np.testing.assert_allclose(node["log_probs"], dense.lp[context][node["tokens"]], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(math.exp(node["mass"]), math.exp(dense.mass(context)), rtol=2e-5)
        assert node["depth"] == len(context)
        assert trie.find(list(context)) >= 0
    assert trie.find([0, 0, 0, 0, 0, 0, 0]) == -1
    assert trie.find([-1]) == trie.find([size]) == -1
    if size == 3000 and keep_all == 10:
        assert any(node["tail_count"] > 1000 for node in nodes.values())


def test_a_tail_far_below_what_is_kept():
    """The difference of the sums has no digit of it left: the tail is added up by itself, odd logits apart."""
    rng = np.random.default_rng(1)
    row = (rng.standard_normal(3001) - 40).astype(np.float32)
    row[7], row[50:60], row[60:90] = 0.0, NAN, NONE
    legal = rng.random(3001) < 0.9
    legal[[7, 55, 65]] = True
    trie = AsapTrie(3001, keep_all=10)
    trie.visit(-1, -1, NAN, row.copy(), packed(torch.from_numpy(legal)).numpy(), True)
    node = trie.node(0)
    rest = np.exp(row[legal & np.isfinite(row) & (row < 0)].astype(np.float64))
    assert node["tokens"].tolist() == [7]
    assert node["tail_count"] == len(rest)
    assert math.exp(node["tail"]) == pytest.approx(rest.sum(), rel=1e-6)
    # What has no mass has none beside the smallest that there is.
    row = np.full(3001, NONE, np.float32)
    row[::3], row[7], row[8] = NAN, 0.0, -85.0
    trie = AsapTrie(3001, keep_all=1)
    trie.visit(-1, -1, NAN, row.copy(), None, True)
    assert (trie.node(0)["tokens"].tolist(), trie.node(0)["tail_count"]) == ([7], 1)
    assert trie.node(0)["tail"] == pytest.approx(-85, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TOKOPS_CHILD") == "1", reason="already the child")
@pytest.mark.parametrize("isa", ["base", "avx2"])
def test_rows_under_other_instruction_sets(isa):
    """This CPU has at least the second one, or these are the tests above once more."""
    env = {**os.environ, "TOKOPS_CPU_ISA": isa, "TOKOPS_CHILD": "1"}
    names = "rows_are or odd_logits or impossible or tail or underflow"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", names]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:]


def test_odd_logits():
    """NaN and -inf have no mass, +inf counts as the largest number; a row of nothing is a dead end."""
    inf = math.inf
    for raw, wanted in (
        ([0.0, NAN, 0.0, -inf], [0.5, 0, 0.5, 0]),
        ([inf, 3.0, 1e30, inf], [0.5, 0, 0, 0.5]),
        ([-inf, -inf, -inf, 7.0], [0, 0, 0, 1.0]),
    ):
        trie = AsapTrie(4)
        trie.visit(-1, -1, NAN, np.array(raw, np.float32), None, True)
        node = trie.node(0)
        law = np.zeros(4)
        law[node["tokens"]] = np.exp(node["log_probs"])
        assert law == pytest.approx(wanted, abs=1e-7)
        assert node["mass"] == pytest.approx(0.0, abs=1e-7)
    trie = AsapTrie(3)
    trie.visit(-1, -1, NAN, np.full(3, -inf, np.float32), None, True)
    assert trie.node(0)["mass"] == -inf
    trie = AsapTrie(40)
    row = np.zeros(40, np.float32)
    trie.visit(-1, -1, NAN, row, np.zeros(1, np.int32), True)  # the mask is shorter than the row
    assert trie.node(0)["mass"] == -inf
    assert (row == -inf).all()


def test_legal_tokens_that_are_next_to_impossible_keep_their_mass():
    row = np.array([0.0, -200.0, -201.0, 50.0], np.float32)
    trie = AsapTrie(4)
    trie.visit(-1, -1, NAN, row, np.array([0b0110], np.int32), True)
    assert trie.node(0)["log_probs"] == pytest.approx([-250, -251], abs=1e-4)
    assert trie.node(0)["mass"] == pytest.approx(-250 + math.log1p(math.exp(-1)), abs=1e-4)


def test_long_texts_do_not_underflow():
    """3000 tokens of which each context has 1e-3 legal: log masses of thousands."""
    trie, node, token, logit = AsapTrie(4), -1, -1, NAN
    for _ in range(3000):
        row = np.array([math.log(1e-3), 0.0, -1.0, -2.0], np.float32)
        raw = row.copy()
        node = trie.visit(node, token, logit, row, np.array([1], np.int32), True)
        token, logit = 0, float(raw[0])
    trie.end(node)
    lp = math.log(1e-3) - math.log(1e-3 + 1 + math.exp(-1) + math.exp(-2))
    assert trie.node(0)["mass"] == pytest.approx(3000 * lp, rel=1e-5)


def test_frozen_bounds_change_at_the_merge_alone():
    model, words = Model(seed=2), random_words(2)
    constraint = words_constraint(words, EOS)
    trie = AsapTrie(V)
    Sampler(model, constraint, trie, 1).text()
    trie.freeze()

    def walk(word):
        node, token, logit, rows = -1, -1, NAN, []
        for n in range(len(word) + 1):
            raw = model(word[:n])
            row = raw.copy()
            node = trie.visit(node, token, logit, row, mask_at(constraint, word[:n]), True)
            rows.append(row)
            token, logit = (word[n], float(raw[word[n]])) if n < len(word) else (-1, NAN)
        return node, rows

    before = [walk(word)[1] for word in words]
    for word in words:
        trie.end(walk(word)[0])
    for word, rows in zip(words, before, strict=True):
        assert all((a == b).all() for a, b in zip(walk(word)[1], rows, strict=True))
    assert trie.frozen
    with pytest.raises(ValueError, match=r"merge\(\) before save\(\)"):
        trie.save()
    trie.merge()
    after = [walk(word)[1] for word in words]
    assert any((a != b).any() for x, y in zip(after, before, strict=True) for a, b in zip(x, y, strict=True))
    # The order in which texts ended does not matter.
    other = AsapTrie(V)
    for word in words[::-1]:
        node, token, logit = -1, -1, NAN
        for n in range(len(word) + 1):
            raw = model(word[:n])
            node = other.visit(node, token, logit, raw.copy(), mask_at(constraint, word[:n]), True)
            token, logit = (word[n], float(raw[word[n]])) if n < len(word) else (-1, NAN)
        other.end(node)
    assert other.node(0)["mass"] == pytest.approx(trie.node(0)["mass"], abs=1e-12)


def filled(seed=5, texts=60):
    model, words = Model(seed=seed), random_words(seed)
    trie = AsapTrie(V, keep_all=2, least=0.3)
    sampler = Sampler(model, words_constraint(words, EOS), trie, 1, cars=True)
    for _ in range(texts):
        sampler.text()
    return trie, sampler


def test_saved_and_loaded_it_is_the_same_to_the_last_bit():
    trie, sampler = filled()
    assert len(trie) > 8
    for twin in (AsapTrie.load(trie.save()), pickle.loads(pickle.dumps(trie))):
        assert twin.save() == trie.save()
        assert (len(twin), twin.memory, twin.vocabulary) == (len(trie), trie.memory, V)
        mine, its = nodes_of(trie), nodes_of(twin)
        assert mine.keys() == its.keys()
        for context, node in mine.items():
            assert all(np.array_equal(node[name], its[context][name], equal_nan=True) for name in node)
    # Both go on alike.
    twin = AsapTrie.load(trie.save())
    states = sampler.rng.bit_generator.state
    first = [sampler.text() for _ in range(30)]
    sampler.rng.bit_generator.state, sampler.trie = states, twin
    assert [sampler.text() for _ in range(30)] == first
    assert twin.save() == trie.save()
    assert AsapTrie.load(AsapTrie(7).save()).vocabulary == 7


def test_bytes_that_are_no_trie_are_refused():
    saved = filled()[0].save()
    for bad in (b"", b"tokASAp1", saved[:-1], saved + b"x", b"x" + saved[1:]):
        with pytest.raises(ValueError, match="AsapTrie: "):
            AsapTrie.load(bad)
    rng = random.Random(0)
    for _ in range(3000):  # whatever comes: refused, or a trie that can be used
        broken = bytearray(saved)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            trie = AsapTrie.load(bytes(broken))
        except ValueError:
            continue
        row = np.zeros(trie.vocabulary, np.float32)
        if trie.vocabulary < 10**6 and len(trie):
            trie.visit(-1, -1, NAN, row, None, True)
            trie.end(len(trie) - 1)
            nodes_of(trie)


def test_memory_is_bounded():
    """Beyond the bound nothing new is recorded; rows are masked all the same, and bounds stay upper bounds."""
    words = [word for n in range(5) for word in itertools.product(range(3), repeat=n)]
    model, constraint, trie = Model(seed=1), words_constraint(words, EOS), AsapTrie(V, max_bytes=3000)
    exact, rng, unknown = exact_masses(model, words), np.random.default_rng(1), 0
    for _ in range(100):
        context, node, deepest, token, logit = (), -1, -1, -1, NAN
        while token != EOS:
            raw = model(context)
            row, mask = raw.copy(), mask_at(constraint, context)
            if context == () or node >= 0:
                node = trie.visit(node, token, logit, row, mask, True)
                deepest = max(deepest, node)
                assert [x > NONE for x in row] == [constraint.ok(context, t) for t in range(V)]
            else:
                break
            unknown += node < 0
            token = int(rng.choice(V, p=softmax(row)))
            logit, context = float(raw[token]), (*context, token)
        trie.end(deepest)
    assert trie.memory < 3000 + 400
    assert len(trie) > 3
    assert unknown > 20
    for context, known in nodes_of(trie).items():
        assert math.exp(known["mass"]) >= exact[context] * (1 - 1e-6)


def test_what_the_trie_refuses():
    trie = AsapTrie(5)
    row = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="no such node"):
        trie.visit(0, 0, 0.0, row, None, True)
    trie.visit(-1, -1, NAN, row, None, True)
    for call in (
        lambda: trie.visit(0, 5, 0.0, row, None, True),
        lambda: trie.visit(0, -1, 0.0, row, None, True),
        lambda: trie.reject(0, 9, 0.0),
    ):
        with pytest.raises(ValueError, match="no such token"):
            call()
    for call in (
        lambda: trie.end(3),
        lambda: trie.node(-1),
        lambda: trie.child(7, 0),
        lambda: trie.visit(9, 0, 0.0, row, None, True),
    ):
        with pytest.raises(ValueError, match="no such node"):
            call()
    with pytest.raises(ValueError, match=r"logits must be \[5\] float32"):
        trie.visit(-1, -1, NAN, np.zeros(6, np.float32), None, True)
    with pytest.raises(TypeError):
        trie.visit(-1, -1, NAN, np.zeros(5, np.float64), None, True)
    frozen = np.zeros(5, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        trie.visit(-1, -1, NAN, frozen, None, True)
    for options in (
        {"vocabulary": 0},
        {"vocabulary": 5, "least": 0.0},
        {"vocabulary": 5, "keep_all": -1},
        {"vocabulary": 5, "max_bytes": 0},
    ):
        with pytest.raises(ValueError, match="AsapTrie: "):
            AsapTrie(**options)


# ---- Through generate.

START, SIZE, END = 3, 5, 4
WORDS = [(0, 1, 2), (1,), (1, 1), (1, 0, 2), (2, 2), (2, 0, 0), (2, 1, 1)]
TABLE = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 1.2
LAW = text_law(TABLE, START, WORDS, END)


def generate(model, method, ids, **options):
    defaults = {
        "do_sample": True, "top_k": 0, "max_new_tokens": 6, "eos_token_id": END, "pad_token_id": 0, "seed": 3,
        "return_dict_in_generate": True,
    }  # fmt: skip
    with tokops.patch(model, *(method if isinstance(method, tuple) else (method,)), page_size=4):
        return model.generate(torch.as_tensor(ids), **{**defaults, **options})


def counts_of(sequences):
    words = words_of(sequences, 1, END)
    return {word: words.count(word) for word in set(words)}


@pytest.mark.parametrize("masks", [True, False])
def test_one_batch_is_masked_decoding_and_later_ones_the_law(masks):
    model, ids = markov(TABLE), torch.full((1500, 1), START)
    constraint = Counting(words_constraint(WORDS, END, masks))
    method = ASAp(constraint)
    first = generate(model, method, ids)
    assert_follows(counts_of(first.sequences), masked_law(TABLE, START, WORDS, END))
    assert first.complete.all()
    assert set(first.attempts.tolist()) == {1}
    assert int(first.checks.sum()) == (0 if masks else SIZE * int(first.drawn.sum()))
    second = generate(model, method, ids, seed=4)
    assert second.tries[0] is first.tries[0]
    assert len(method.tries) == 1
    assert_follows(counts_of(second.sequences), LAW)
    assert math.exp(second.tries[0].node(0)["mass"]) == pytest.approx(sum(LAW.values()), rel=1e-4)


@pytest.mark.parametrize("masks", [True, False])
def test_cars_batches_are_exact_at_once(masks):
    model, ids = markov(TABLE), torch.full((1500, 1), START)
    method = ASAp(Counting(words_constraint(WORDS, END, masks)), "cars")
    first = generate(model, method, ids)
    assert_follows(counts_of(first.sequences), LAW)
    assert first.attempts.max() > 1
    assert int(first.checks.sum()) == (0 if masks else int(first.drawn.sum()))
    second = generate(model, method, ids, seed=4)
    assert_follows(counts_of(second.sequences), LAW)
    assert second.attempts.double().mean() < first.attempts.double().mean()


def deep(store=None, family="llama", variant="cars", **options):
    """Texts of a model that attends, with constraints that are often missed; one padded request."""
    model = build(family, num_hidden_layers=2, head_dim=32)
    gen = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 97, (3, 9), generator=gen)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    odd = words_constraint([], 2)
    odd.ok = lambda state, t: sum(state) % 5 == 0 and len(state) > 2 if t == 2 else t % 4 != 0
    method = ASAp(odd, variant)
    return generate(
        model, method if store is None else (method, store), ids,
        **{"attention_mask": mask, "eos_token_id": 2, "max_new_tokens": 6, "temperature": 1.5, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "store"),
    [
        ("llama", None),
        ("mistral", None),
        ("llama", QuantizedKV(bits=16)),
        ("llama", QuantizedKV(bits=4, residual=4)),
    ],
)
def test_texts_that_begin_again_find_their_prompts_as_they_were(family, store):
    got = deep(store, family)
    assert got.attempts.max() > 2
    model = build(family, num_hidden_layers=2, head_dim=32)
    for row in range(3):
        trie = got.tries[row]
        nodes = nodes_of(trie)
        if store is not None and store.bits != 16:
            continue
        ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(4))[
            row, 4 if row == 1 else 0 :
        ]
        for context in list(nodes)[:12]:
            text = torch.cat([ids, torch.tensor(context, dtype=torch.long)])[None]
            with torch.no_grad():
                logs = (model(text, use_cache=False).logits[0, -1].double() / 1.5).log_softmax(-1)
            node = nodes[context]
            np.testing.assert_allclose(node["log_probs"], logs[node["tokens"]].numpy(), atol=2e-3)


def test_stores_read_prompts_anew():
    """The law of the same context is the same in every attempt, also where a store packs what it holds."""
    once, more = (
        deep(QuantizedKV(bits=4, residual=4)),
        deep(QuantizedKV(bits=4, residual=4), streams=[5, 6, 7]),
    )
    for a, b in zip(once.tries, more.tries, strict=True):
        mine, its = nodes_of(a), nodes_of(b)
        for context in set(mine) & set(its):
            shared = np.intersect1d(mine[context]["tokens"], its[context]["tokens"], return_indices=True)
            np.testing.assert_allclose(
                mine[context]["log_probs"][shared[1]], its[context]["log_probs"][shared[2]], atol=1e-3
            )


def test_requests_have_tries_of_their_own_and_settings_too():
    model = markov(TABLE)
    method = ASAp(words_constraint(WORDS, END, masks=True))
    first = generate(model, method, [[START], [2], [START]])
    assert first.tries[0] is first.tries[2]
    assert first.tries[0] is not first.tries[1]
    assert len(method.tries) == 2
    warmer = generate(model, method, [[START]], temperature=2.0)
    assert warmer.tries[0] is not first.tries[0]
    assert generate(model, method, [[START]]).tries[0] is first.tries[0]
    other = generate(markov(TABLE), method, [[START]])
    assert other.tries[0] is not first.tries[0]
    method.tries.clear()
    assert len(method.tries) == 0


def test_dead_ends_begin_again_and_hopeless_requests_break_off():
    # A prefix that promises (0,) though nothing follows it.
    constraint = words_constraint([(1, 1)], END)
    plain = constraint.ok
    constraint.ok = lambda state, t: (state == () and t == 0) or plain(state, t)
    got = generate(markov(TABLE), ASAp(constraint), torch.full((40, 1), START))
    assert got.complete.all()
    assert set(counts_of(got.sequences)) == {(1, 1)}
    assert set(got.attempts.tolist()) == {1, 2}
    with pytest.warns(UserWarning, match=r"ASAp: no legal token was found for requests 0;"):
        got = generate(markov(TABLE), ASAp(words_constraint([], END)), [[START]])
    assert got.attempts.tolist() == [1]
    with pytest.warns(UserWarning, match="ASAp: no legal token"):
        got = generate(
            markov(TABLE), ASAp(words_constraint([(0, 3, 0)], END), "cars", max_attempts=2), [[START]]
        )
    assert got.attempts.tolist() == [2]


def test_texts_that_are_cut_off_say_nothing_of_what_follows():
    words = [(0, 0, 0), (1, 1, 1)]
    got = generate(
        markov(TABLE), ASAp(words_constraint(words, END)), torch.full((30, 1), START), max_new_tokens=1
    )
    assert not got.complete.any()
    root = got.tries[0].node(0)
    assert (root["log_theta"] == 0).all()  # the contexts behind them were never seen
    assert len(got.tries[0]) == 1


def processor_counts(model, aligned, runs, batch, **options):
    counts: dict = {}
    for seed in range(runs):
        torch.manual_seed(seed)
        sequences = model.generate(
            torch.full((batch, 1), START), do_sample=True, top_k=0, max_new_tokens=6, eos_token_id=END, pad_token_id=0,
            logits_processor=[aligned], **options,
        )  # fmt: skip
        aligned.end(sequences)
        for word, count in counts_of(sequences).items():
            counts[word] = counts.get(word, 0) + count
    return counts


@pytest.mark.parametrize("masks", [True, False])
def test_as_a_logits_processor_alone(masks):
    model = markov(TABLE)
    aligned = ASApProcessor(words_constraint(WORDS, END, masks))
    assert_follows(processor_counts(model, aligned, 1, 1500), masked_law(TABLE, START, WORDS, END))
    assert_follows(processor_counts(model, aligned, 2, 1000), LAW)
    assert math.exp(aligned.trie([START]).node(0)["mass"]) == pytest.approx(sum(LAW.values()), rel=1e-4)
    fresh = ASApProcessor(words_constraint(WORDS, END, masks), aligned.tries)
    assert fresh.tries is aligned.tries


def test_a_processor_under_speculation():
    """Nodes of a draft tree are contexts like any other, in any order."""
    model = markov(TABLE, layers=2)
    aligned = ASApProcessor(words_constraint(WORDS, END, masks=True))
    with tokops.patch(model, Speculate("early_exit", depth=2, nodes=4, verify="target_only"), page_size=4):
        processor_counts(model, aligned, 15, 20)
        counts = processor_counts(model, aligned, 4, 300)
    assert_follows(counts, LAW)


def test_a_grammar_is_a_constraint():
    grammar = compile_regex("ab*c?", Vocabulary([b"a", b"b", b"c", b"", b""], [END]))
    assert isinstance(ASAp(grammar).constraint, MatcherConstraint)
    assert isinstance(ASApProcessor(grammar).constraint, MatcherConstraint)
    got = generate(markov(TABLE), ASAp(grammar), [[START]] * 8, max_new_tokens=12)
    assert (got.sequences[:, 1] == 0).all()
    for make in (ASAp, ASApProcessor):
        with pytest.raises(
            TypeError, match=f"{make.__name__}: constraint: expected a Grammar, or .*got list"
        ):
            make([0, 1])


class Streamer:
    def put(self, tokens):
        pass


def test_what_is_refused():
    model = markov(TABLE)
    for options, message in (
        ({"variant": "gcd"}, "variant must be asap or cars, got 'gcd'"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, got 0"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ASAp(**options)
    with pytest.raises(ValueError, match="ASAp needs do_sample=True"):
        generate(model, ASAp(), [[START]], do_sample=False)
    with pytest.raises(NotImplementedError, match="ASAp does not support a streamer"):
        generate(model, ASAp(), [[START]], streamer=Streamer())


def test_without_a_constraint_it_is_plain_sampling():
    got = generate(markov(TABLE), ASAp(), torch.full((20, 1), START), eos_token_id=None)
    assert got.tries == [None] * 20
    assert got.sequences.shape == (20, 7)
