"""Drafting from a suffix index, beside transformers' prompt lookup: `pytest benchmarks/test_suffix_index.py -s`.

What a token costs to append and a tree to draft at a context of 8192 tokens, and how many tokens a call of the target
would give if it wrote the texts of tokops.data, one word or mark a token: a page of prose, and a copy of one.
"""

import re
from functools import partial

import pytest
import torch

from tokops.bench.timing import interleaved, medians
from tokops.data import held_out_text
from tokops.speculative import SuffixIndex

LENGTH = 8192
STOCK = {"nodes": 11, "depth": 10, "max_match": 2, "branch": 1}  # transformers' defaults


def words(most):
    """Token ids of a text."""
    ids = {}
    found = re.findall(r" ?\w+|[^\w\s]|\n", held_out_text())[:most]
    return [ids.setdefault(word, len(ids)) for word in found]


def filled(tokens):
    index = SuffixIndex(1, len(tokens))
    index.append(torch.tensor([tokens], dtype=torch.int32))
    return index


def test_append(benchmark):
    tokens = torch.tensor([words(LENGTH)], dtype=torch.int32)

    def fresh():
        return (SuffixIndex(1, LENGTH), tokens), {}

    benchmark.pedantic(SuffixIndex.append, setup=fresh, rounds=30)
    each = benchmark.stats.stats.median / LENGTH * 1e6
    benchmark.extra_info["microseconds per token"] = each
    print(f"\nappend: {each:.3f} us per token (bar 1)")


def test_draft(benchmark):
    generation = pytest.importorskip("transformers.generation.candidate_generator")
    tokens = words(LENGTH)
    index, text = filled(tokens), torch.tensor([tokens])
    lookup = generation.PromptLookupCandidateGenerator(
        num_output_tokens=10, max_matching_ngram_size=2, max_length=2 * LENGTH
    )
    calls = {
        "tree of 32": index.draft,
        "chain of 10": partial(index.draft, **STOCK),
        "transformers' chain of 10": partial(lookup.get_candidates, text),
    }
    want = lookup.get_candidates(text)[0][0, LENGTH:].tolist()
    drafted, _, n = calls["chain of 10"]()
    assert drafted[0, 1 : int(n)].tolist() == want
    taken = medians(interleaved(calls, rounds=200, seconds=2.0))
    benchmark.pedantic(index.draft, rounds=100, warmup_rounds=3)
    benchmark.extra_info.update({name: 1e6 * seconds for name, seconds in taken.items()})
    print("\n" + "; ".join(f"{name} {1e6 * seconds:.1f} us" for name, seconds in taken.items()) + " (bar 50)")


def tokens_per_call(tokens, begin, **how):
    """Tokens that one call of a target gives which writes ``tokens[begin:]`` whatever is drafted."""
    index, at, calls = filled(tokens[:begin]), begin, 0
    while at < len(tokens):
        drafted, parents, n = index.draft(**how)
        pairs = zip(parents[0, 1:].tolist(), drafted[0, 1 : int(n)].tolist(), strict=False)
        children = {pair: i for i, pair in enumerate(pairs, 1)}
        node, new = 0, []
        while at + len(new) < len(tokens):
            new.append(tokens[at + len(new)])
            if (node := children.get((node, new[-1]))) is None:
                break
        index.append(torch.tensor([new]))
        at, calls = at + len(new), calls + 1
    return (len(tokens) - begin) / calls


@pytest.mark.parametrize("kind", ["prose", "copy"])
def test_tokens_per_call(benchmark, kind):
    tokens = words(LENGTH) if kind == "prose" else words(LENGTH // 4) * 2
    begin = len(tokens) // 2
    tree = benchmark.pedantic(tokens_per_call, (tokens, begin), rounds=1)
    chain = tokens_per_call(tokens, begin, **STOCK)
    benchmark.extra_info.update({"tree of 32": tree, "chain of 10": chain})
    print(f"\n{kind}: {tree:.2f} tokens per call, prompt lookup {chain:.2f}")
