"""Eviction keeps what H2O keeps, against a loop of its own; dropped tokens are never read again."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import build

import tokops
from tokops.hf.prompts import Prompt, read_prompt
from tokops.hf.quality import teacher_forced
from tokops.kv.eviction import Eviction
from tokops.methods import Dense, Step

HEADS, GROUP, DIM, LENGTH = 2, 3, 8, 50


def random_prompt(generator, length=LENGTH):
    q = torch.randn(1, length, HEADS * GROUP, DIM, generator=generator) * 2
    k, v = torch.randn(2, 1, HEADS, length, DIM, generator=generator)
    return Prompt(torch.zeros(length), (q,), (k,), (v,), ({"scale": 0.5},))


def prompt_mass(prompt):
    """Attention that every key of the prompt received, [Hkv, L], from whole matrices in float64."""
    q, k = prompt.queries[0][0].double(), prompt.keys[0][0].double()
    mass = torch.zeros(HEADS, prompt.tokens, dtype=torch.float64)
    above = torch.ones(prompt.tokens, prompt.tokens, dtype=torch.bool).triu(1)
    for head in range(HEADS * GROUP):
        logits = (0.5 * q[:, head] @ k[head // GROUP].T).masked_fill(above, -math.inf)
        mass[head // GROUP] += logits.softmax(-1).sum(0)
    return mass


def survivors(mass, candidates, length, ratio, sinks):
    """The rule in words: sinks, the newest half of the budget, then the heaviest of the rest."""
    recent = math.ceil(ratio * length / 2)
    budget = max(math.ceil(ratio * length), recent + sinks)
    always = {i for i in candidates if i < sinks or i >= length - recent}
    rest = sorted(candidates - always, key=lambda i: (-float(mass[i]), i))
    return always | set(rest[: budget - len(always)])


class Reader:
    """A layer whose rows have given scores."""

    layer, kv_heads, starts = 0, HEADS, None

    def __init__(self, scores):
        self.given = scores  # [T, Hq, L]
        self.length = scores.shape[-1]
        self.q = torch.zeros(1, scores.shape[0], HEADS * GROUP, DIM)

    def scores(self, reduce):
        assert reduce == "none"
        return self.given[None].clone()


def rows_of(generator, past, rows):
    scores = torch.randn(rows, HEADS * GROUP, past + rows, generator=generator) * 2
    later = torch.arange(past + rows) > past + torch.arange(rows)[:, None]
    return scores.masked_fill(later[:, None], -math.inf)


@pytest.mark.parametrize(("ratio", "sinks"), [(0.25, 4), (0.5, 0), (0.1, 1)])
def test_what_is_kept_is_h2o_over_a_prompt_and_several_steps(ratio, sinks):
    generator = torch.Generator().manual_seed(11)
    prompt = random_prompt(generator)
    method = Eviction(ratio=ratio, sinks=sinks)
    method.start(prompt)
    mass = [dict(enumerate(row.tolist())) for row in prompt_mass(prompt)]
    kept = [survivors(m, set(range(LENGTH)), LENGTH, ratio, sinks) for m in mass]
    past = LENGTH
    for rows in (1, 7, 16, 1, 1, 30):
        scores = rows_of(generator, past, rows)
        selection = method.select(Reader(scores), Step(past, rows, 0))
        for head in range(HEADS):
            if past > LENGTH:
                kept[head] = survivors(mass[head], kept[head], past, ratio, sinks)
            kept[head] |= set(range(past, past + rows))
            count = int(selection.counts[0, 0, head])
            assert selection.positions[0, 0, head, :count].tolist() == sorted(kept[head])
            mass[head].update(dict.fromkeys(range(past, past + rows), 0.0))
            seen = torch.tensor(sorted(kept[head]))
            for weights in (
                scores[:, head * GROUP : (head + 1) * GROUP, seen].double().softmax(-1).flatten(0, 1)
            ):
                for position, weight in zip(seen.tolist(), weights.tolist(), strict=True):
                    mass[head][position] += weight
        past += rows


def test_tokens_that_are_taken_back_leave_no_trace():
    generator = torch.Generator().manual_seed(12)
    prompt = random_prompt(generator)
    first, second = rows_of(generator, LENGTH, 5), rows_of(generator, LENGTH, 3)
    later = rows_of(generator, LENGTH + 3, 2)
    chosen = []
    for drafts in (False, True):
        method = Eviction()
        method.start(prompt)
        if drafts:
            method.select(Reader(first), Step(LENGTH, 5, 0))
        method.select(Reader(second), Step(LENGTH, 3, 0))
        chosen.append(method.select(Reader(later), Step(LENGTH + 3, 2, 0)).positions)
    assert torch.equal(*chosen)


def test_nothing_is_dropped_while_decoding_without_demotion():
    generator = torch.Generator().manual_seed(13)
    method = Eviction(demote=False)
    method.start(random_prompt(generator))
    first = method.select(Reader(rows_of(generator, LENGTH, 20)), Step(LENGTH, 20, 0))
    second = method.select(Reader(rows_of(generator, LENGTH + 20, 1)), Step(LENGTH + 20, 1, 0))
    assert second.positions.shape[-1] == first.positions.shape[-1] + 1


def decode(model, prompt, given, method):
    with tokops.patch(model, method) as run:
        cache = prompt.fill(run.new_cache())
        if isinstance(method, Eviction):
            method.start(prompt)
        return teacher_forced(model, cache, given, 8)


def test_keeping_all_is_dense_and_keeping_some_is_not(model, ids):
    prompt, given = read_prompt(model, ids[:280]), ids[280:320]
    dense = decode(model, prompt, given, Dense())
    torch.testing.assert_close(decode(model, prompt, given, Eviction(ratio=1.0)), dense, rtol=1e-4, atol=1e-4)
    assert (decode(model, prompt, given, Eviction(ratio=0.25)) - dense).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "share"), [({"ratio": 0.5}, 25 / 50), ({"ratio": 0.1, "sinks": 20}, 23 / 50)]
)
def test_the_share_that_is_kept_is_told(options, share):
    method = Eviction(**options)
    method.start(random_prompt(torch.Generator().manual_seed(14)))
    assert method.kept_share() == pytest.approx(share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "Eviction: ratio must be above 0 and at most 1, got 0.0"),
        ({"ratio": 1.5}, "Eviction: ratio must be above 0 and at most 1, got 1.5"),
        ({"sinks": -1}, "Eviction: sinks must be >= 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Eviction(**options)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mistral"])
def test_other_attention_is_refused(family):
    with pytest.raises(ValueError, match=f"Eviction: attention of {family} is not a plain softmax"):
        tokops.patch(build(family), Eviction())


def test_a_cache_that_it_does_not_know_is_refused():
    generator = torch.Generator().manual_seed(15)
    method, reader = Eviction(), Reader(rows_of(generator, LENGTH + 9, 2))
    with pytest.raises(NotImplementedError, match="Eviction knows no prompt"):
        method.select(reader, Step(LENGTH + 9, 2, 0))
    method.start(random_prompt(generator))
    with pytest.raises(NotImplementedError, match="Eviction has ranked 50 tokens, the cache holds 59"):
        method.select(reader, Step(LENGTH + 9, 2, 0))
    method.select(Reader(rows_of(generator, LENGTH, 5)), Step(LENGTH, 5, 0))
    with pytest.raises(NotImplementedError, match="takes back all tokens of a forward or none"):
        method.select(SimpleNamespace(layer=0), Step(LENGTH + 2, 1, 0))
