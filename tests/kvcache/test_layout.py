"""Layouts: whatever is done to a batch, every sequence reads back its own tokens, each once."""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tokops.kvcache import Codec

from .stores import CPU, DIM, HEADS, Cache, held

OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("append"), st.just(1)),
    st.tuples(st.just("prompt"), st.integers(1, 40)),
    st.tuples(st.just("mixed"), st.integers(1, 12)),
    st.tuples(st.just("crop"), st.integers(0, 40)),
    st.tuples(st.just("reorder"), st.lists(st.integers(0, 7), min_size=1, max_size=4)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("unshare"), st.none()),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("reset"), st.none()),
)


def check_books(layout):
    for slab in layout.slabs:
        table = slab.table
        held = np.bincount(table.pages[table.pages >= 0].ravel(), minlength=table.capacity)
        assert (held == table._holders).all()
        assert sorted(table._free + np.flatnonzero(held).tolist()) == list(range(table.capacity))
        assert slab.first % layout.page == 0
        assert table.length <= slab.span
    ends = [slab.end for slab in layout.slabs]
    assert all(slab.first == end for slab, end in zip(layout.slabs[1:], ends, strict=False))
    assert (ends[-1] if ends else 0) == layout.absorbed


def check(cache, model, starts=None):
    """Every store holds its own tokens, and nothing else, from the first visible one on."""
    length = model.shape[2]
    assert cache.layout.length == length
    check_books(cache.layout)
    if not cache.layout.batch:
        return
    starts = [0] * model.shape[1] if starts is None else starts
    cache.settle()
    for store, own in zip(cache.stores, model, strict=True):
        assert store.seq_lens.tolist() == [length] * own.shape[0]
        for side, sign in (("k", 1), ("v", -1)):
            for b, (positions, vectors) in enumerate(held(store, side)):
                positions, order = positions.sort()
                visible = positions >= starts[b]
                assert positions[visible].tolist() == list(range(starts[b], length)), (
                    "held twice, or not at all"
                )
                assert torch.equal(vectors[order][visible], sign * own[b, starts[b] :]), f"sequence {b}"


@settings(max_examples=70, deadline=None)
@given(
    operations=st.lists(OPERATIONS, min_size=1, max_size=12),
    batch=st.integers(1, 3),
    residual=st.sampled_from([0, 0, 5, 8, 20]),
    sinks=st.sampled_from([0, 3, 8, 11]),
    page=st.sampled_from([4, 8]),
    first=st.sampled_from(["prompt", "append"]),
)
def test_sequences_read_back_their_own_tokens(operations, batch, residual, sinks, page, first):
    cache = Cache(Codec("full"), Codec("full"), residual=residual, sinks=sinks, page=page)
    model = torch.zeros(2, batch, 0, HEADS, DIM)
    clock = 0.0
    for name, value in [(first, 13), *operations]:
        sequences, length = model.shape[1:3]
        if name in ("append", "prompt", "mixed"):
            clock += 1
            new = torch.arange(2 * sequences * value * HEADS * DIM).float() + 10000.0 * clock
            new = new.view(2, sequences, value, HEADS, DIM)
            cache.forward(new, {"append": 0, "prompt": value, "mixed": value // 2}[name])
            model = torch.cat([model, new], 2)
        elif name == "crop":
            value = min(value, length)
            cache.crop(value)
            model = model[:, :, : length - value]
        elif name == "reorder":
            rows = [r % sequences for r in value]
            cache.select(rows)
            model = model[:, rows]
        elif name == "repeat" and sequences < 4:
            rows = [r for r in range(sequences) for _ in range(value)]
            cache.select(rows)
            model = model[:, rows]
        elif name == "unshare":
            cache.unshare()
            assert all(s.table.pages_in_use == s.table.pages.size for s in cache.layout.slabs)
        elif name == "copy":
            cache = copy.deepcopy(cache)
        elif name == "reset":
            cache.reset()
            model = model[:, :, :0]
        check(cache, model)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    pads=st.lists(st.integers(0, 30), min_size=2, max_size=3),
    sinks=st.sampled_from([0, 3, 8, 17]),
    residual=st.sampled_from([0, 5]),
    crop=st.integers(0, 20),
)
def test_padding_and_sinks(pieces, pads, sinks, residual, crop):
    """A padded prompt in pieces, the first of them all padding perhaps; then a crop and more tokens."""
    length = sum(pieces)
    starts = [min(p, length - 1) for p in pads]
    cache = Cache(Codec("full"), Codec("full"), sinks=sinks, residual=residual)
    model = torch.randn(2, len(pads), length + 30, HEADS, DIM)
    at = 0
    for rows in pieces:
        told = torch.tensor([min(s, at + rows) for s in starts], dtype=torch.int32)
        cache.forward(model[:, :, at : at + rows], rows, told if told.any() else None)
        at += rows
    check(cache, model[:, :, :at], starts)
    assert cache.layout.host_starts == starts
    crop = min(crop, at - max(starts) - 1)
    cache.crop(crop)
    at -= crop
    check(cache, model[:, :, :at], starts)
    for rows in (1, 1, 9, 1, 1, 5):
        cache.forward(model[:, :, at : at + rows])
        at += rows
        check(cache, model[:, :, :at], starts)
    packed = cache.layout.packed
    want = [min(max(packed - s, 0), sinks) for s in starts]
    assert cache.layout.sink_lens.tolist() == want


@pytest.mark.parametrize("left", [0, 1, 4, 8])
@pytest.mark.parametrize("sinks", [0, 3])
def test_what_follows_a_crop_into_padding_is_seen(left, sinks):
    """Of one sequence only padding is left, or nothing of both: its next token is its first."""
    cache = Cache(Codec("full"), Codec("full"), sinks=sinks)
    model = torch.randn(2, 2, 40, HEADS, DIM)
    cache.forward(model[:, :, :20], 20, torch.tensor([9, 0], dtype=torch.int32))
    cache.crop(20 - left)
    model[:, :, left:20] = torch.randn(2, 2, 20 - left, HEADS, DIM)
    for at in range(left, 25):
        cache.forward(model[:, :, at : at + 1])
        check(cache, model[:, :, : at + 1], [left, 0])
    cache.forward(model[:, :, 25:40], 15)
    check(cache, model, [left, 0])


def test_a_sequence_that_a_crop_leaves_empty_starts_anew():
    """Sequences of different lengths, the padded one of which loses all it has."""
    cache = Cache(Codec("full"), Codec("full"), layers=1, sinks=1)
    tokens = torch.randn(1, 2, 30, HEADS, DIM)
    cache.forward(tokens[:, :, :2], 2, torch.tensor([1, 0], dtype=torch.int32))
    cache.layout.begin(2, 3, 0, CPU, draft=True)
    cache.stores[0].append(tokens[0, :, 2:5], -tokens[0, :, 2:5])
    counts = np.array([0, 3])
    cache.layout.keep(3, counts, torch.tensor(counts - 3))
    cache.stores[0].keep(None, torch.tensor(counts), 3)
    cache.crop(2)
    assert cache.layout.lengths.tolist() == [0, 3]
    assert cache.layout.host_starts == cache.layout.starts.tolist() == [0, 0]


def test_a_shared_page_is_copied_once_and_before_it_is_written():
    """A token that is packed before a prompt, into a page that sequences shared, survives the prompt."""
    cache = Cache(Codec("full"), Codec("full"), layers=1)
    model = torch.randn(1, 1, 40, HEADS, DIM).repeat(1, 3, 1, 1, 1)
    model[:, :, 13:] = torch.randn(1, 3, 27, HEADS, DIM)
    cache.forward(model[:, :1, :13], 13)
    cache.select([0, 0, 0])
    cache.forward(model[:, :, 13:14])  # in the tail
    cache.forward(model[:, :, 14:30], 16)
    check(cache, model[:, :, :30])


def test_pools_that_grow_keep_what_they_hold():
    """Sequences that multiply beyond the pages that a slab has reserved."""
    cache = Cache(Codec("int4", group=32), Codec("full"), layers=1, page=64)
    cache.forward(torch.randn(1, 1, 300, HEADS, DIM), 300)
    cache.settle()
    before, pages = [held(cache.stores[0], side)[0] for side in "kv"], cache.stores[0]._pools[0][0].pages
    cache.select([0, 0, 0, 0])
    cache.unshare()
    assert cache.stores[0]._pools[0][0].pages > pages
    for old, side in zip(before, "kv", strict=True):
        for own in held(cache.stores[0], side):
            assert all(map(torch.equal, own, old))


def test_layouts_refuse():
    with pytest.raises(ValueError, match=r"must share one group of tokens, got \[4, 8\]"):
        Cache(Codec("int8", "channel", 4), Codec("int8", "channel", 8))
    with pytest.raises(ValueError, match="page size 8 is not a multiple of the group 16"):
        Cache(Codec("int8", "channel", 16), Codec("int8")).forward(torch.zeros(2, 1, 1, HEADS, DIM), 1)
    with pytest.raises(ValueError, match="head dimension 32 is not divisible by the group 64"):
        Cache(Codec("int8"), Codec("int8")).forward(torch.zeros(2, 1, 1, HEADS, DIM), 1)
    cache = Cache(Codec("full"), Codec("full"))
    cache.forward(torch.zeros(2, 2, 3, HEADS, DIM), 3)
    with pytest.raises(ValueError, match="holds 2 sequences, the new tokens are for 3"):
        cache.forward(torch.zeros(2, 3, 1, HEADS, DIM))
    with pytest.raises(ValueError, match="cannot remove 4 of 3 cached tokens"):
        cache.crop(4)
