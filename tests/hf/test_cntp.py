"""CNTP against a slow loop that recomputes everything, against its exact law, and what its batches must not change."""

import functools
import itertools
import math
import operator

import pytest
import torch
from tiny_models import build, byte_tokenizer
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

import tokops
from tokops.hf.punctuation import punctuation_ids
from tokops.methods import CNTP, TidalDecode
from tokops.methods.cntp import entropy_of, trial_stream
from tokops.sampling import sample

STOPS = tuple(range(3, 97, 5))
MIXED = {"h_min": 0.6, "h_max": 1.8, "n_max": 5, "stop_tokens": STOPS, "max_trial_len": 6}
WARPERS = LogitsProcessorList(
    [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)]
)
SETTINGS = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.3}
SEED = 11


@pytest.fixture(scope="module")
def model():
    model = build("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(
            20.0
        )  # laws from sharp to flat, so that some steps branch and others do not
    return model


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, 97, (1, n), generator=generator) for n in (9, 17, 12)]


def batch_of(texts):
    longest = max(ids.shape[1] for ids in texts)
    ids = torch.cat([torch.nn.functional.pad(ids, (longest - ids.shape[1], 0)) for ids in texts])
    mask = torch.stack([(torch.arange(longest) >= longest - ids.shape[1]).long() for ids in texts])
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, method, inputs, new=30, **options):
    if isinstance(inputs, torch.Tensor):
        inputs = {"input_ids": inputs}
    with tokops.patch(model, method, page_size=4):
        return model.generate(
            **inputs,
            **{**SETTINGS, "max_new_tokens": new, "seed": SEED, "return_dict_in_generate": True, **options},
        )


@torch.no_grad()
def slow(model, method, ids, stream=0, new=30, end=None):
    """One request, trial after trial, every forward from scratch; returns the text and (start, N, winner, score)."""
    limit, branches = ids.shape[1] + new, []

    def law(text):
        logits = model(text, use_cache=False).logits[:, -1].float()
        scores = WARPERS(text, logits)
        return scores, (scores if method.score_on == "processed" else logits).double().log_softmax(-1)

    def extend(text, stream, scores):
        token = sample(scores, seed=SEED, stream=stream, position=text.shape[1])
        return torch.cat([text, token[:, None].long()], 1)

    while ids.shape[1] < limit and (end is None or ids[0, -1] != end):
        start = ids.shape[1]
        scores, _ = law(ids)
        q = torch.softmax(scores, -1)
        n = int(method.trials(-(q * (q + 1e-10).log()).sum()))
        if n == 1:
            ids = extend(ids, stream, scores)
            continue
        trials = []
        for trial in range(n):
            text, cost = ids, 0.0
            while True:
                scores, logs = law(text)
                text = extend(text, trial_stream(stream, start, trial), scores)
                last = int(text[0, -1])
                cost -= float(logs[0, last])
                length = text.shape[1] - start
                over = (
                    last in STOPS or last == end or length == method.max_trial_len or text.shape[1] == limit
                )
                if over:
                    break
            trials.append((cost / length, trial, text))
        score, winner, ids = min(trials, key=lambda t: t[:2])
        branches.append((start, n, winner, score))
    return ids, branches


def check(got, expected, texts):
    """Rows of a batch against single slow runs."""
    sequences = got.sequences
    for i, (ids, branches) in enumerate(expected):
        padding = max(t.shape[1] for t in texts) - texts[i].shape[1]
        assert torch.equal(sequences[i, padding : padding + ids.shape[1]], ids[0])
        assert not sequences[i, padding + ids.shape[1] :].any()
        mine = [(b.start, b.trials, b.winner) for b in got.branches if b.request == i]
        assert mine == [branch[:3] for branch in branches]
        scores = [b.score for b in got.branches if b.request == i]
        assert scores == pytest.approx([branch[3] for branch in branches], abs=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"score_on": "raw"}, {"fixed": True, "n_max": 3}, {"max_trial_len": 1}, {"n_min": 2}]
)
def test_tokens_are_those_of_the_slow_loop(model, texts, changes):
    method = CNTP(**{**MIXED, **changes})
    expected = [slow(model, method, ids, stream) for stream, ids in enumerate(texts)]
    got = generate(model, method, batch_of(texts))
    check(got, expected, texts)
    lengths = {branch.length for branch in got.branches}
    if not changes:
        assert {branch.trials for branch in got.branches} == {2, 3, 4, 5}
        assert len(lengths) > 3
        assert sum(branch.length for branch in got.branches) < 3 * 30  # some tokens are drawn one by one
    assert any(branch.winner for branch in got.branches)


def test_requests_do_not_depend_on_their_batch(model, texts):
    method = CNTP(**MIXED)
    together = generate(model, method, batch_of(texts), streams=[7, 8, 9])
    order = [2, 0, 1]
    permuted = generate(model, method, batch_of([texts[i] for i in order]), streams=[7 + i for i in order])
    assert torch.equal(permuted.sequences, together.sequences[order])
    for i, ids in enumerate(texts):
        alone = generate(model, method, ids, streams=torch.tensor([7 + i]))
        assert torch.equal(alone.sequences[0], together.sequences[i, 17 - ids.shape[1] :])
    other = generate(model, method, batch_of(texts), streams=[1, 2, 3])
    assert not torch.equal(other.sequences, together.sequences)


def test_a_branch_costs_as_many_forwards_as_its_longest_trial_has_tokens(model, texts):
    got = generate(model, CNTP(**MIXED), texts[0], new=60)
    single = 60 - sum(branch.length for branch in got.branches)
    # A winner that waited for longer trials has its next token's logits when the branch is decided.
    waited = sum(b.length < b.longest for b in got.branches if b.start + b.length < texts[0].shape[1] + 60)
    assert waited > 2
    assert got.forwards == single + sum(branch.longest for branch in got.branches) - waited - 1


@pytest.mark.parametrize("changes", [{"n_max": 1}, {"h_min": math.inf}])
def test_without_trials_it_is_plain_sampling(model, texts, changes):
    method = CNTP(**{**MIXED, **changes})
    got = generate(model, method, batch_of(texts))
    assert got.branches == []
    assert got.rows == got.forwards * 3
    for i, ids in enumerate(texts):
        plain = ids
        for _ in range(30):
            scores = WARPERS(plain, model(plain, use_cache=False).logits[:, -1].float())
            token = sample(scores, seed=SEED, stream=i, position=plain.shape[1])
            plain = torch.cat([plain, token[:, None].long()], 1)
        assert torch.equal(got.sequences[i, 17 - ids.shape[1] :], plain[0])


def test_published_numbers_of_trials():
    method = CNTP()
    entropies = torch.tensor([0.0, 0.01, 0.17, 0.18, 0.755, 1.4999, 1.5, 9.0])
    assert method.trials(entropies).tolist() == [1, 1, 1, 2, 5, 9, 10, 10]
    assert CNTP(fixed=True).trials(entropies).tolist() == [1, 1] + [10] * 6
    assert CNTP(n_min=3, n_max=4).trials(entropies).tolist() == [3] * 6 + [4] * 2
    assert entropy_of(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2, abs=1e-6)
    assert entropy_of(torch.tensor([0.0, -math.inf, -math.inf])).item() == pytest.approx(0.0, abs=1e-6)


# The exact law, on a model whose next token depends on the last one only.

V, STOP, LEN, TRIALS = 5, 4, 3, 3


def markov(table):
    """A model of which the logits after token i are row i of the table."""
    model = build("llama", vocab_size=V, hidden_size=8, num_attention_heads=2, head_dim=4, num_hidden_layers=1,
                  pad_token_id=None, bos_token_id=None, eos_token_id=None)  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("norm.weight"):
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(V, 8))
        model.lm_head.weight[:, :V] = table.T / math.sqrt(8)
    return model


def segment_law(table, last):
    """Segment -> probability to be kept at a branch after ``last``: the formula, over all segments."""
    logs = table.double().log_softmax(-1)
    weights, scores = {}, {}
    for length in range(1, LEN + 1):
        for tokens in itertools.product(range(V), repeat=length):
            if STOP in tokens[:-1] or (tokens[-1] != STOP and length < LEN):
                continue
            total = sum(float(logs[a, b]) for a, b in itertools.pairwise((last, *tokens)))
            weights[tokens], scores[tokens] = math.exp(total), round(-total / length, 9)
    law = {}
    for tokens, weight in weights.items():
        higher = sum(w for s, w in weights.items() if scores[s] > scores[tokens])
        same = sum(w for s, w in weights.items() if scores[s] == scores[tokens])
        law[tokens] = weight / same * ((higher + same) ** TRIALS - higher**TRIALS)
    return law


def chi_square(counts, law, runs):
    """Statistic and degrees of freedom, segments that are hardly expected taken together."""
    rare = [s for s, p in law.items() if p * runs < 8]
    cells = [(counts.get(s, 0), p * runs) for s, p in law.items() if s not in rare]
    if rare:
        cells.append((sum(counts.get(s, 0) for s in rare), sum(law[s] for s in rare) * runs))
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in cells if wanted > 1e-9), len(cells) - 1


@pytest.mark.parametrize("base", [(0.0, 0.0, 0.0, 0.0, 0.0), (0.4, 0.1, 0.1, 0.1, 0.3)])
def test_what_is_kept_follows_the_exact_law(base):
    """Two branches in a row: the second must not know the numbers of trials that lost the first.

    Where all rows are about (0.4, .., 0.3), many trials lose to a lone full stop by what they draw behind it.
    """
    from scipy.stats import chi2

    noise = torch.randn(V, V, generator=torch.Generator().manual_seed(5))
    table = torch.tensor(base).log() + 0.05 * noise if any(base) else 1.2 * noise
    first = segment_law(table, 2)
    following = {last: segment_law(table, last) for last in range(V)}
    both = {(one, two): p * q for one, p in first.items() for two, q in following[one[-1]].items()}
    assert sum(first.values()) == pytest.approx(1.0, abs=1e-9)
    assert sum(both.values()) == pytest.approx(1.0, abs=1e-9)
    method = CNTP(h_min=0.0, n_min=TRIALS, n_max=TRIALS, stop_tokens=(STOP,), max_trial_len=LEN)
    runs, size = 40_000, 4000
    counts: tuple[dict, dict] = ({}, {})
    with tokops.patch(markov(table), method) as run:
        for start in range(0, runs, size):
            got = run.model.generate(
                torch.full((size, 1), 2), do_sample=True, max_new_tokens=2 * LEN, seed=1,
                streams=torch.arange(start, start + size), return_dict_in_generate=True,
            )  # fmt: skip
            segments: dict = {}
            for branch in got.branches:
                text = got.sequences[branch.request, branch.start : branch.start + branch.length]
                segments.setdefault(branch.request, []).append(tuple(text.tolist()))
            for one, two, *_ in segments.values():
                for seen, kept in zip(counts, (one, (one, two)), strict=True):
                    seen[kept] = seen.get(kept, 0) + 1
    for seen, law in zip(counts, (first, both), strict=True):
        assert sum(seen.values()) == runs
        statistic, freedom = chi_square(seen, law, runs)
        assert freedom > 20
        assert statistic < chi2.ppf(0.999, freedom)
    plain = {s: math.exp(sum(float(table.double().log_softmax(-1)[a, b]) for a, b in itertools.pairwise((2, *s))))
             for s in first}  # fmt: skip
    statistic, freedom = chi_square(counts[0], plain, runs)
    assert statistic > 10 * chi2.ppf(0.999, freedom)  # it is not the model's own law


# The cache.


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_cache_is_that_of_a_fresh_prefill(family, texts):
    model = build(family, num_hidden_layers=3)
    with tokops.patch(model, CNTP(**MIXED), page_size=4) as run:
        cache = run.new_cache()
        inputs = batch_of(texts)
        got = model.generate(
            **inputs,
            **SETTINGS,
            max_new_tokens=30,
            seed=1,
            past_key_values=cache,
            return_dict_in_generate=True,
        )
        assert len(got.branches) > 5
        length = got.sequences.shape[1] - 1
        assert cache.lengths == [length] * 3
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 29, dtype=torch.long)], 1)
        fresh = run.new_cache()
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        with torch.no_grad():
            model(got.sequences[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=fresh)
    for layer, other in zip(cache.layers, fresh.layers, strict=True):
        first = 0 if layer.window is None else length - layer.window + 1
        for mine, wanted in zip(layer.gather(first, length), other.gather(first, length), strict=True):
            for row, ids in enumerate(texts):
                seen = slice(max(17 - ids.shape[1] - first, 0), None)
                torch.testing.assert_close(mine[row, seen], wanted[row, seen], atol=1e-4, rtol=1e-4)


def test_trials_share_the_pages_of_their_prefix(model, texts):
    held = []

    class Watch(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            table = cache.state.tables[None]
            held.append((table.batch, table.pages_in_use, cache.get_seq_length()))
            return torch.zeros(len(input_ids), dtype=torch.bool)

    method = CNTP(h_min=0.0, n_min=8, n_max=8, stop_tokens=(), max_trial_len=6)
    prompt = torch.randint(3, 97, (1, 81), generator=torch.Generator().manual_seed(6))
    with tokops.patch(model, method, page_size=4) as run:
        cache = run.new_cache()
        model.generate(
            prompt, **SETTINGS, max_new_tokens=12, past_key_values=cache, stopping_criteria=[Watch()]
        )
        assert max(batch for batch, _, _ in held) == 8
        for batch, pages, length in held:
            assert pages <= 81 // 4 + 1 + batch * (-(-(length - 80) // 4) + 1)
        assert cache.state.tables[None].pages_in_use == -(-cache.get_seq_length() // 4)


# What a generation is made of besides.


def test_the_end_of_a_text_ends_a_trial_and_the_request(model, texts):
    method = CNTP(**MIXED)
    base = [slow(model, method, ids, stream) for stream, ids in enumerate(texts)]
    found = 0
    for end in {int(ids[0, -k]) for ids, _ in base for k in (9, 14)}:
        expected = [slow(model, method, ids, stream, end=end) for stream, ids in enumerate(texts)]
        got = generate(model, method, batch_of(texts), eos_token_id=end)
        check(got, expected, texts)
        found += sum(ids[0, -1] == end for ids, _ in expected)
    assert found > 3


def test_strings_stop_a_request_inside_a_trial():
    model, tokenizer = build("llama", vocab_size=256), byte_tokenizer()
    method, ids = CNTP(h_min=0.0, stop_tokens=(), max_trial_len=8), torch.arange(40, 50)[None]
    letters = list("abcdefghijklmnopqrstuvwxyz")
    free = tokenizer.decode(generate(model, method, ids, new=60).sequences[0, 10:])
    stopped = generate(model, method, ids, new=60, stop_strings=letters, tokenizer=tokenizer)
    text = tokenizer.decode(stopped.sequences[0, 10:])
    assert any(letter in free[:-1] for letter in letters)
    assert [letter in letters for letter in text] == [False] * (len(text) - 1) + [True]


def test_hopeless_trials_leave_early_and_change_nothing(model, texts):
    method = {**MIXED, "n_min": 4, "n_max": 8, "max_trial_len": 12, "stop_tokens": STOPS[:6]}
    patient = generate(model, CNTP(**method), batch_of(texts), new=60)
    eager = generate(model, CNTP(**method, abort=True), batch_of(texts), new=60)
    assert torch.equal(eager.sequences, patient.sequences)
    assert sorted((b.request, b.start, b.winner, b.length) for b in eager.branches) == sorted(
        (b.request, b.start, b.winner, b.length) for b in patient.branches
    )
    assert eager.rows < patient.rows


def test_of_equal_trials_the_first_is_kept(model, texts):
    """With one token left by top-k all trials are the same."""
    method = CNTP(**{**MIXED, "n_min": 5})
    got = generate(model, method, batch_of(texts), top_k=1)
    assert {branch.winner for branch in got.branches} == {0}
    assert {branch.trials for branch in got.branches} == {5}


def test_streaming_gives_tokens_when_they_are_final(model, texts):
    class Stream:
        def __init__(self):
            self.parts, self.ended = [], 0

        def put(self, value):
            self.parts.append(value.flatten().tolist())

        def end(self):
            self.ended += 1

    stream = Stream()
    got = generate(model, CNTP(**MIXED), texts[1], streamer=stream)
    assert functools.reduce(operator.iadd, stream.parts, []) == got.sequences[0].tolist()
    assert stream.ended == 1
    assert [len(part) for part in stream.parts[1:] if len(part) > 1] == [
        b.length for b in got.branches if b.length > 1
    ]
    with pytest.raises(ValueError, match="streamer"):
        generate(model, CNTP(**MIXED), batch_of(texts), streamer=Stream())


def test_a_seed_is_drawn_from_torch_and_sequences_may_be_several(model, texts):
    def run():
        return generate(model, CNTP(**MIXED), texts[0], seed=None, num_return_sequences=3).sequences

    torch.manual_seed(1)
    one = run()
    torch.manual_seed(1)
    again = run()
    assert torch.equal(one, again)
    assert not torch.equal(run(), one)
    assert len({tuple(row) for row in one.tolist()}) == 3


def test_it_selects_as_one_by_one_decoding_does(model, texts):
    """TidalDecode under it: with a budget that covers all, tokens are those of dense attention."""
    model = build("llama", num_hidden_layers=6)
    method = CNTP(**MIXED)
    expected = generate(model, method, batch_of(texts))
    with tokops.patch(model, method, TidalDecode(budget=100, reselect_layer=4), page_size=4):
        options = {**SETTINGS, "max_new_tokens": 30, "seed": SEED}
        assert torch.equal(model.generate(**batch_of(texts), **options), expected.sequences)
    with tokops.patch(model, method, TidalDecode(budget=6, reselect_layer=4), page_size=4) as run:
        sparse = model.generate(**batch_of(texts), **options)
        assert run.report().read_ratio < 0.9
        for i, ids in enumerate(texts):
            alone = model.generate(ids, **options, streams=[i])
            assert torch.equal(alone[0], sparse[i, 17 - ids.shape[1] :])


def test_tokens_of_punctuation():
    tokenizer = byte_tokenizer()
    marks = ".,\n?!:;)]}"
    assert punctuation_ids(tokenizer, marks) == {tokenizer(mark).input_ids[0] for mark in marks}
    assert punctuation_ids(tokenizer, marks, "first_id") == punctuation_ids(tokenizer, marks)

    class Merged:
        """A vocabulary with merges, one of them a special token."""

        words = (".", " .", ").", ".\n", "a.", "[end]", ". ", "a")
        all_special_ids = (5,)

        def __len__(self):
            return len(self.words)

        def batch_decode(self, ids, **options):
            return [self.words[i] for (i,) in ids]

        def __call__(self, text, **options):
            return type("Ids", (), {"input_ids": [1 if text == "." else self.words.index(text)]})

    assert punctuation_ids(Merged(), ".\n") == {0, 1, 2, 3, 4}
    assert punctuation_ids(Merged(), ".", "first_id") == {1}


def test_the_tokenizer_given_to_generate_says_what_punctuation_is():
    model, tokenizer = build("llama", vocab_size=256), byte_tokenizer()
    options = {name: value for name, value in MIXED.items() if name != "stop_tokens"}
    ids = torch.arange(40, 50)[None]
    stops = tuple(sorted(punctuation_ids(tokenizer, ".,\n?!:;)]}")))
    expected = generate(model, CNTP(**options, stop_tokens=stops), ids).sequences
    assert torch.equal(generate(model, CNTP(**options), ids, tokenizer=tokenizer).sequences, expected)
    with pytest.raises(ValueError, match="pass tokenizer= to generate, or give the method stop_tokens="):
        generate(model, CNTP(**options), ids)


class Spoiling(LogitsProcessor):
    """Overwrites the logits of texts that are long enough."""

    def __init__(self, value, length):
        self.value, self.length = value, length

    def __call__(self, input_ids, scores):
        return scores if input_ids.shape[1] < self.length else torch.full_like(scores, self.value)


@pytest.mark.parametrize("score_on", ["processed", "raw"])
def test_nan_logits_are_those_of_tokens_that_cannot_be_drawn(model, texts, score_on):
    method = CNTP(**{**MIXED, "score_on": score_on})
    outs = []
    for value in (float("nan"), -torch.inf):

        def spoil(module, args, out, value=value):
            out.logits[..., ::3] = value

        hook = model.register_forward_hook(spoil)
        try:
            outs.append(generate(model, method, batch_of(texts)))
        finally:
            hook.remove()
    got, expected = outs
    assert torch.equal(got.sequences, expected.sequences)
    assert got.branches == expected.branches
    assert got.branches


@pytest.mark.parametrize("value", [float("nan"), -torch.inf])
@pytest.mark.parametrize("changes", [{}, {"n_max": 1}, {"h_min": math.inf}])
def test_a_text_that_nothing_may_follow_is_named(model, texts, value, changes):
    batch = batch_of(texts[:2])
    nothing = Spoiling(value, batch["input_ids"].shape[1] + 4)
    with pytest.raises(RuntimeError, match=r"CNTP: no token of request [01] has a finite logit"):
        generate(model, CNTP(**{**MIXED, **changes}), batch, logits_processor=[nothing])


def test_entropies_of_odd_rows():
    nan, inf = float("nan"), torch.inf
    rows = torch.tensor([[0.0, 0.0, nan], [0.0, inf, nan], [nan, nan, -inf], [-inf, -inf, -inf]])
    entropy = entropy_of(rows)
    assert entropy[:2].tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)
    assert entropy[2:].isnan().all()
    for method in (CNTP(n_min=2), CNTP(n_min=2, fixed=True), CNTP(n_min=2, h_min=math.inf)):
        assert method.trials(entropy)[2:].tolist() == [2, 2]


def test_what_it_refuses(model, texts):
    for name, value in {
        "num_beams": 2,
        "output_scores": True,
        "output_logits": True,
        "use_cache": False,
    }.items():
        with pytest.raises(NotImplementedError, match=f"CNTP has a decoding loop .* {name}"):
            generate(model, CNTP(**MIXED), texts[0], **{name: value})
    with pytest.raises(ValueError, match="do_sample=True"):
        generate(model, CNTP(**MIXED), texts[0], do_sample=False)
    for streams in ([1, 2], [-1], [2**31]):
        with pytest.raises(ValueError, match="streams must be 1 integers"):
            generate(model, CNTP(**MIXED), texts[0], streams=streams)
    with pytest.raises(ValueError, match="CNTP and TidalDecode clash: both have a decoding loop"):
        tokops.patch(
            model,
            CNTP(**MIXED),
            TidalDecode(budget=8, select_layer=1, reselect_layer=2, dense_layers=(0,), correction_period=4),
        )
    for wrong, match in (
        ({"h_min": -1.0}, "h_min must be at least 0"),
        ({"h_min": 2.0}, "h_max must be above h_min, 2.0, got 1.5"),
        ({"n_min": 0}, "1 <= n_min <= n_max"),
        ({"n_min": 11}, "1 <= n_min <= n_max"),
        ({"n_min": 1.5}, "n_min must be an integer, got 1.5"),
        ({"n_max": 4.0}, "n_max must be an integer, got 4.0"),
        ({"max_trial_len": 9.5}, "max_trial_len must be an integer, got 9.5"),
        ({"stop_tokens": (5, 5.5)}, r"stop_tokens must be integers, got \(5, 5.5\)"),
        ({"max_trial_len": 0}, "max_trial_len must be at least 1"),
        ({"punct": "all"}, "punct must be suffix or first_id"),
        ({"score_on": "none"}, "score_on must be processed or raw"),
    ):
        with pytest.raises(ValueError, match=match):
            CNTP(**wrong)
