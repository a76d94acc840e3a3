"""SuffixIndex against substrings counted in plain Python, and against transformers' prompt lookup."""

import copy
import math
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokops.speculative import SuffixIndex

COUNTED = 65
BREAK = -1
_WHOLE_TEXT = st.integers(1, 4).flatmap(lambda k: st.lists(st.integers(0, k - 1), max_size=40))
_BROKEN_TEXT = st.lists(st.sampled_from([0, 0, 1, 1, 2, BREAK]), max_size=40)


def index_of(*texts, capacity=None):
    """An index of some texts, with no more room than the longest needs."""
    longest = max((len(t) for t in texts), default=0)
    index = SuffixIndex(len(texts), capacity or max(longest, 1))
    rows = [[*t, *[0] * (longest - len(t))] for t in texts]
    tokens = torch.tensor(rows, dtype=torch.int64).view(len(texts), longest)
    index.append(tokens, torch.tensor([len(t) for t in texts], dtype=torch.int64))
    return index


def ends(text, part):
    """Tokens up to the end of each occurrence of a part."""
    m = len(part)
    return [i + m for i in range(len(text) - m + 1) if text[i : i + m] == part]


def apart(text):
    """The text with every break a token of its own, which is what keeps matches from crossing it."""
    return [t if t >= 0 else -1 - i for i, t in enumerate(text)]


def followers(text, context):
    """token -> how often it stands behind a context."""
    behind = [text[e] for e in ends(text, context) if e < len(text) and text[e] >= 0]
    return {t: behind.count(t) for t in behind}


def probability(text, context, token, min_match):
    """The estimate as the docstring words it, as an exact fraction; 0 for what is never proposed."""
    left, before = Fraction(1), None
    for m in range(len(context), min_match - 1, -1):
        where = ends(text, context[len(context) - m :])
        if not where or where == before:
            continue
        before = where
        counts = followers(text, context[len(context) - m :])
        n, d = sum(counts.values()), len(counts)
        if token in counts:
            return left * Fraction(counts[token] * m * m, n * m * m + 16 * d)
        if d:
            left *= Fraction(16 * d, n * m * m + 16 * d)
    return Fraction(0)


def children(text, path, depth, min_match, max_match, branch):
    """token -> probability of what may follow a path, the likeliest `branch` of them, likeliest first."""
    if len(path) >= depth:
        return {}
    context = (text + path)[-max_match:]
    chances = {t: probability(text, context, t, min_match) for t in set(text) if t >= 0}
    recent = {t: max(ends(text, [t])) for t in chances}
    for t in chances:  # the last occurrence behind the longest context that it has followed
        for m in range(len(context), min_match - 1, -1):
            if where := ends(text, [*context[len(context) - m :], t]):
                recent[t] = where[-1]
                break
    order = sorted((t for t in chances if chances[t]), key=lambda t: (-chances[t], -recent[t]))
    return {t: chances[t] for t in order[:branch]}


def tree_of(draft, row=0):
    """Tokens, parents and weights of one sequence without padding, which is checked."""
    tokens, parents, n_nodes, *weights = draft
    n = int(n_nodes[row])
    assert tokens[row, n:].tolist() == [0] * (tokens.shape[1] - n)
    assert parents[row, n:].tolist() == [-1] * (tokens.shape[1] - n)
    return (tokens[row, :n].tolist(), parents[row, :n].tolist(), *(w[row, :n].tolist() for w in weights))


def walk(index, part):
    """The automaton's state of a part, or None: what csrc/speculative/suffix_index.h says about edges."""
    heads, _, states, edges, _ = (t[0] for t in index.tensors)
    state = 0
    for token in part:
        out = {}
        if states[state][6]:
            out[int(states[state][5])] = int(states[state][6])
        at = int(states[state][7])
        while at:
            assert int(edges[at - 1][0]) == state
            out[int(edges[at - 1][1])] = int(edges[at - 1][2])
            at = int(edges[at - 1][3])
        if token not in out:
            return None
        state = out[token]
        assert state <= int(heads[1])
    return states[state].tolist()


@settings(max_examples=60, deadline=None)
@given(_WHOLE_TEXT | _BROKEN_TEXT)
@example([0, 1, 1, 1, 1, 1, 1, 1])  # the most states
@example([0, 1, 1, 1, 1, 1, 1, 2])  # the most edges
@example([0] * 80)  # longer than what is counted
@example([0, 1, 2] * 30)
def test_every_substring_has_its_occurrences(text):
    index, text = index_of(text), apart(text)
    assert index.tensors[1][0, : len(text)].tolist() == text
    parts = {
        tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, min(len(text), i + COUNTED) + 1)
    }
    for part in parts:
        where = ends(text, list(part))
        _, _, count, last, first, *_ = walk(index, part)
        assert (count, last, first) == (len(where), where[-1], where[0])
        for token in {0, 1, 2, 3} - {text[e] for e in where if e < len(text)}:
            assert walk(index, (*part, token)) is None


@settings(max_examples=150, deadline=None)
@given(
    _WHOLE_TEXT | _BROKEN_TEXT,
    st.integers(1, 12),
    st.integers(0, 6),
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(2, 4),
)
def test_the_tree_is_the_likeliest(text, nodes, depth, min_match, more, branch):
    arguments = (nodes, depth, min_match, min_match + more, branch)
    draft = index_of(text).weighed_draft(*arguments)
    tokens, parents, weights = tree_of(draft)
    text = apart(text)
    if not text or text[-1] < 0:
        assert tokens == []
        return
    assert (tokens[0], parents[0], weights[0]) == (text[-1], -1, 1.0)
    paths, exact, offers = [[]], [Fraction(1)], [children(text, [], *arguments[1:])]
    for i in range(1, len(tokens)):
        parent = parents[i]
        assert 0 <= parent < i
        siblings = [t for t, p in zip(tokens[:i], parents[:i], strict=True) if p == parent]
        # The children of a node come likeliest first, the more recent of equals before the other.
        assert tokens[i] == list(offers[parent])[len(siblings)]
        exact.append(exact[parent] * offers[parent][tokens[i]])
        paths.append([*paths[parent], tokens[i]])
        offers.append(children(text, paths[i], *arguments[1:]))
        assert math.isclose(weights[i], exact[i], rel_tol=1e-6)
        assert weights[i] <= weights[i - 1]
    left = [
        exact[i] * chance
        for i, offer in enumerate(offers)
        for chance in list(offer.values())[sum(p == i for p in parents) :]
    ]
    if len(tokens) < nodes:
        assert not left
    assert all(x <= min(exact) * (1 + Fraction(1, 10**12)) for x in left)


@settings(max_examples=150, deadline=None)
@given(_WHOLE_TEXT.filter(len), st.integers(1, 6), st.integers(1, 12))
def test_a_chain_is_transformers_prompt_lookup(text, max_match, size):
    generation = pytest.importorskip("transformers.generation.candidate_generator")
    lookup = generation.PromptLookupCandidateGenerator(
        num_output_tokens=size, max_matching_ngram_size=max_match, max_length=1000
    )
    want = lookup.get_candidates(torch.tensor([text]))[0][0, len(text) :].tolist()
    for nodes, depth in ((size + 1, 1000), (1000, size)):
        draft = index_of(text).weighed_draft(nodes, depth, 1, max_match, 1)
        tokens, parents, weights = tree_of(draft)
        assert tokens == [text[-1], *want]
        assert parents == list(range(-1, len(want)))
        assert weights == [1.0] * len(tokens)


def test_a_chain_stops_at_a_break():
    assert tree_of(index_of([1, 2, 3, BREAK, 1]).draft(branch=1))[0] == [1, 2, 3]
    assert tree_of(index_of([1, BREAK, 1]).draft(branch=1))[0] == [1]
    assert tree_of(index_of([1, 2, 3, 1, 2]).draft(branch=1, min_match=3, max_match=4))[0] == [2]


def test_nothing_matches_across_a_break():
    tokens, _ = tree_of(index_of([1, 2, BREAK, 3, 1, 2]).draft())
    assert tokens == [2]
    tokens, _ = tree_of(index_of([1, 2, 3, BREAK, 3, 1, 2]).draft(nodes=3))
    assert tokens == [2, 3, 1]  # 3 from the other text, and what followed it here


def test_equals_go_to_the_most_recent():
    tokens, parents = tree_of(index_of([7, 1, 7, 9, 7, 5, 7]).draft(depth=1))
    assert (tokens, parents) == ([7, 5, 9, 1], [-1, 0, 0, 0])


def test_longer_matches_are_preferred():
    # 9 has followed 2 three times, 3 once, but behind 1 2.
    text = [2, 9, 2, 9, 2, 9, 5, 6, 8, 1, 2, 3, 5, 6, 8, 1, 2]
    tokens, parents, weights = tree_of(index_of(text).weighed_draft(nodes=3, depth=1))
    assert (tokens, parents) == ([2, 3, 9], [-1, 0, 0])
    # Behind 5 6 8 1 2: 25 of 41; the rest is left to 2, which four tokens of two kinds followed.
    assert weights[1:] == pytest.approx([25 / 41, 16 / 41 * 3 / 36])


def test_small_trees_begin_large_ones():
    text = torch.randint(0, 6, (1, 300))
    index = SuffixIndex(1, 300)
    index.append(text)
    large = index.draft(nodes=200, depth=9)
    for nodes in (1, 2, 3, 17, 199):
        tokens, parents, _ = index.draft(nodes=nodes, depth=9)
        assert torch.equal(tokens, large[0][:, :nodes])
        assert torch.equal(parents, large[1][:, :nodes])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(_BROKEN_TEXT, min_size=3, max_size=3), max_size=4), st.integers(1, 50))
def test_pieces_make_the_whole(pieces, capacity):
    """Sequences of different lengths, appended in pieces and over several growths, one by one or together."""
    together = SuffixIndex(3, capacity)
    for piece in pieces:
        width = max(map(len, piece))
        rows = torch.tensor([[*t, *[77] * (width - len(t))] for t in piece], dtype=torch.int64)
        together.append(rows.view(3, width), torch.tensor([len(t) for t in piece]))
    texts = [[t for piece in pieces for t in piece[b]] for b in range(3)]
    assert together.lengths.tolist() == [len(t) for t in texts]
    assert together.capacity >= max(map(len, texts))
    for got, want in zip(together.tensors, index_of(*texts, capacity=together.capacity).tensors, strict=True):
        assert torch.equal(got, want)
    for row, text in enumerate(texts):
        assert tree_of(together.draft(), row) == tree_of(index_of(text).draft())


def test_select():
    texts = [[1, 2, 1], [3, 4, 5, 3], [], [6]]
    index = index_of(*texts)
    for rows in ([3, 1, 1, 0], torch.tensor([2, 0], dtype=torch.int32), []):
        there = copy.deepcopy(index)
        there.select(rows)
        want = [texts[i] for i in rows]
        assert there.batch == len(want)
        assert there.lengths.tolist() == [len(t) for t in want]
        for row, text in enumerate(want):
            assert tree_of(there.draft(), row) == tree_of(index_of(text).draft())
    index.select([1, 1])
    index.append(torch.tensor([[4], [9]]))  # what was one sequence goes two ways
    assert tree_of(index.draft(), 0)[0][:4] == [4, 5, 3, 4]
    assert tree_of(index.draft(), 1)[0] == [9]


def test_an_index_can_be_pickled():
    index = index_of([1, 2, 1, 2, 1])
    loaded = pickle.loads(pickle.dumps(index))
    for i in (index, loaded):
        i.append(torch.tensor([[3]]))
    assert all(torch.equal(a, b) for a, b in zip(index.tensors, loaded.tensors, strict=True))


def test_the_largest_token():
    top = 2**31 - 1
    tokens, _ = tree_of(index_of([top, 0, top - 1, top]).draft(nodes=3))
    assert tokens == [top, 0, top - 1]
    index = SuffixIndex(1)
    index.append(torch.tensor([[-(2**40), 5]]))  # any negative number is a break
    assert index.tensors[1][0, :2].tolist() == [-1, 5]


def test_empty():
    index = SuffixIndex(2, 1)
    index.append(torch.zeros(2, 0, dtype=torch.int32))
    tokens, parents, n_nodes, weights = index.weighed_draft(nodes=3)
    assert n_nodes.tolist() == [0, 0]
    assert tokens.tolist() == [[0] * 3] * 2
    assert parents.tolist() == [[-1] * 3] * 2
    assert weights.tolist() == [[0.0] * 3] * 2
    assert SuffixIndex(0).draft(nodes=4)[0].shape == (0, 4)
    assert tree_of(index_of([5]).draft(nodes=1)) == ([5], [-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: SuffixIndex(-1), "SuffixIndex: batch must be >= 0, got -1"),
        (lambda i: SuffixIndex(1, 0), r"SuffixIndex: capacity must be 1\.\.2\^28, got 0"),
        (lambda i: i.append(torch.zeros(2)), "append: tokens must have 2 dimensions, got 1"),
        (lambda i: i.append(torch.zeros(2, 1)), "append: tokens must be int32 or int64, got float32"),
        (lambda i: i.append(torch.zeros(3, 1).int()), r"tokens must be \[B, T\] = \[2, 1\], got \[3, 1\]"),
        (lambda i: i.append(torch.tensor([[0], [2**31]])), r"tokens must be below 2\^31, got 2147483648"),
        (
            lambda i: i.append(torch.zeros(2, 1).int(), torch.tensor([1, 2])),
            r"append: counts must be 0\.\.1, got \[1, 2\]",
        ),
        (
            lambda i: i.append(torch.zeros(2, 1).int(), torch.tensor([1])),
            r"append: counts must be \[B\] = \[2\], got \[1\]",
        ),
        (lambda i: i.draft(nodes=0), r"suffix_draft: nodes must be 1\.\.1024, got 0"),
        (lambda i: i.draft(depth=-1), r"suffix_draft: depth must be 0\.\.1024, got -1"),
        (lambda i: i.draft(max_match=65), r"suffix_draft: max_match must be 1\.\.64, got 65"),
        (lambda i: i.draft(min_match=3, max_match=2), r"suffix_draft: min_match must be 1\.\.2, got 3"),
        (lambda i: i.draft(branch=0), r"suffix_draft: branch must be 1\.\.1024, got 0"),
        (lambda i: i.select([0, 2]), r"select: rows must be 0\.\.1, got \[0, 2\]"),
        (lambda i: i.select([-1]), r"select: rows must be 0\.\.1, got \[-1\]"),
        (lambda i: i.select(torch.zeros(1)), "select: rows must be int32 or int64, got float32"),
    ],
)
def test_refusals(call, message):
    index = index_of([1, 2, 1], [4])
    before = [t.clone() for t in index.tensors]
    with pytest.raises(RuntimeError, match=message):
        call(index)
    assert all(torch.equal(a, b) for a, b in zip(index.tensors, before, strict=True))


def _with(i, tensor):
    tensors = list(index_of([1, 2, 1], [4]).tensors)
    tensors[i] = tensor
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_with(0, torch.zeros(2, 5)), "heads must be int32, got float32"),
        (_with(0, torch.zeros(2, 4).int()), r"heads must be \[B, 5\] = \[2, 5\], got \[2, 4\]"),
        (_with(1, torch.zeros(3, 2).int().t()), "text must be contiguous"),
        (_with(1, torch.zeros(2, 0).int()), r"text must have room for 1\.\.2\^28 tokens, got 0"),
        (
            _with(2, torch.zeros(2, 3, 8).int()),
            r"states must be \[B, 2 C, 8\] = \[2, 6, 8\], got \[2, 3, 8\]",
        ),
        (_with(3, torch.zeros(2, 3).int()), "edges must have 3 dimensions, got 2"),
        (_with(4, torch.zeros(2, 6).int()), r"places must be \[B, power of two >= 2 C\] = \[2, 8\]"),
        (
            _with(0, torch.tensor([[3, 4, 1, 9, 0], [1, 1, 0, 1, 1]]).int()),
            r"heads must be as suffix_extend left them, got \[3, 4, 1, 9, 0\] for sequence 0",
        ),
    ],
)
def test_refusals_of_the_ops(tensors, message):
    tokens, counts = torch.zeros(2, 1).int(), torch.zeros(2).int()
    with pytest.raises(RuntimeError, match=f"suffix_extend: {message}"):
        torch.ops.tokops.suffix_extend.default(*tensors, tokens, counts)
    with pytest.raises(RuntimeError, match=f"suffix_draft: {message}"):
        torch.ops.tokops.suffix_draft.default(*tensors, 4, 2, 1, 2, 2)


def test_no_more_than_there_is_room_for():
    tensors = index_of([1, 2, 1], [4]).tensors
    with pytest.raises(RuntimeError, match="counts must be at most the room left, 0 for sequence 0, got 1"):
        torch.ops.tokops.suffix_extend.default(*tensors, torch.zeros(2, 1).int(), torch.ones(2).int())
