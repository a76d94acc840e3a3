"""Page bookkeeping against a plain tensor: whatever is done to a batch, every sequence reads back its own tokens."""

import copy
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tiny_models import build

import tokops
from tokops.kvcache.pages import PageTable

OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("draft"), st.integers(0, 999)),
    st.tuples(st.just("crop"), st.integers(0, 9)),
    st.tuples(st.just("reorder"), st.lists(st.integers(0, 7), min_size=1, max_size=4)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("keep"), st.lists(st.booleans(), min_size=8, max_size=8)),
    st.tuples(st.just("join"), st.integers(1, 30)),
    st.tuples(st.just("unshare"), st.none()),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("reset"), st.none()),
)


@pytest.fixture(scope="module")
def run():
    with tokops.patch(build("llama", num_hidden_layers=2), page_size=4) as patched:
        yield patched


def check_books(table: PageTable) -> None:
    """Every page is either free or held as often as the host table says, and the device has the same table."""
    held = np.bincount(table.pages[table.pages >= 0].ravel(), minlength=table.capacity)
    assert (held == table._holders).all()
    assert sorted(table._free + np.flatnonzero(held).tolist()) == list(range(table.capacity))
    if table.table is not None:
        assert table.table.tolist() == np.maximum(table.pages, 0).tolist()
        assert table.seq_lens.tolist() == table.lengths.tolist()
        assert (table.length, table.shortest) == (table.lengths.max(), table.lengths.min())


@settings(max_examples=200, deadline=None)
@given(operations=st.lists(OPERATIONS, min_size=1, max_size=14), batch=st.integers(1, 3))
def test_sequences_read_back_their_own_tokens(run, operations, batch):
    cache = run.new_cache()
    clock = 0
    model = [torch.zeros(0, 2, 2, 4) for _ in range(batch)]  # of every sequence: tokens, layers, heads, dim

    def new_tokens(count, into=None, rows=None):
        nonlocal clock
        clock += 1
        into, rows = into or cache, rows or len(model)
        new = torch.arange(2 * rows * count * 8).view(rows, count, 2, 2, 4) + 10_000.0 * clock
        for layer in range(2):
            k = new[:, :, layer].transpose(1, 2)
            into.update(k, -k, layer)
        return new

    for name, value in [("append", 3), *operations]:
        sequences, shortest = len(model), min(map(len, model))
        if name == "append" and shortest < max(map(len, model)):
            cache.draft(None, None)
            new_tokens(value)
            cache.keep(None, [0] * sequences)
        elif name == "append":
            model = [torch.cat(x) for x in zip(model, new_tokens(value), strict=True)]
        elif name == "draft":
            rng = random.Random(value)
            nodes = rng.randint(1, 9)
            cache.draft(None, None)
            new = new_tokens(nodes)
            kept = [sorted(rng.sample(range(nodes), rng.randint(0, nodes))) for _ in model]
            most = max(map(len, kept))
            rows = torch.tensor([[*own, *[0] * (most - len(own))] for own in kept], dtype=torch.int32)
            cache.keep(rows.view(sequences, most), [len(own) for own in kept])
            model = [torch.cat([text, x[own]]) for text, x, own in zip(model, new, kept, strict=True)]
        elif name == "crop":
            value = min(value, shortest)
            cache.crop(-value)
            model = [text[: len(text) - value] for text in model]
        elif name == "reorder":
            rows = [r % sequences for r in value]
            cache.reorder_cache(torch.tensor(rows))
            model = [model[row] for row in rows]
        elif name == "repeat" and sequences < 4:
            cache.batch_repeat_interleave(value)
            model = [text for text in model for _ in range(value)]
        elif name == "keep":
            mask = torch.tensor([*value, *[True] * sequences][:sequences]) | (torch.arange(sequences) == 0)
            cache.batch_select_indices(mask)
            model = [text for text, stays in zip(model, mask.tolist(), strict=True) if stays]
        elif name == "join" and sequences < 4 and max(map(len, model)):
            other = run.new_cache()
            texts = list(new_tokens(value, other, 1 + value % 2))
            other.batch_repeat_interleave(1 + value % 3)
            cache.join(other)
            model += [text for text in texts for _ in range(1 + value % 3)]
            check_books(other.layers[0].table)
        elif name == "unshare":
            cache.unshare()
            table = cache.layers[0].table
            assert table.pages_in_use == (table.pages >= 0).sum()
        elif name == "copy":
            cache = copy.deepcopy(cache)
        elif name == "reset":
            cache.reset()
            model = [text[:0] for text in model]
        table, lengths = cache.layers[0].table, [len(text) for text in model]
        assert cache.get_seq_length() == max(lengths)
        check_books(table)
        if not max(lengths):
            continue
        assert cache.lengths == lengths
        assert table.pages.shape[1] == -(-max(lengths) // table.size)
        for layer in range(2):
            keys, values = cache.layers[layer].gather(0, max(lengths))
            for row, text in enumerate(model):
                assert torch.equal(keys[row, : len(text)], text[:, layer])
                assert torch.equal(values[row, : len(text)], -text[:, layer])
        tokens = {x.item() for text in model for x in text[:, 0, 0, 0]}
        assert len(tokens) <= table.live_tokens() <= sum(lengths)
        assert table.full_bytes() == sum(lengths) * table.token_bytes
        held = (table.pages >= 0).sum(1) * table.size
        assert all(length <= own for length, own in zip(lengths, held, strict=True))


@settings(max_examples=100, deadline=None)
@given(rounds=st.integers(1, 60), window=st.integers(1, 90), seed=st.integers(0, 999))
def test_windows_of_sequences_of_different_lengths(rounds, window, seed):
    """The shortest sequence's window is held for all, and released behind it."""
    rng = random.Random(seed)
    table = PageTable(16, window)
    table.advance(3, rng.randint(1, 400), torch.device("cpu"))
    for _ in range(rounds):
        nodes = rng.randint(1, 256)
        past = table.lengths.copy()
        table.advance(3, nodes, torch.device("cpu"))
        assert table.skipped == 0
        for row, length in enumerate(past.tolist()):
            reach = range(max(0, length - window + 1), length + nodes)
            assert min(table.pages[row, position // 16] for position in reach) >= 0
        counts = np.array([rng.randint(0, nodes) for _ in range(3)])
        table.keep(nodes, counts, torch.from_numpy(counts).int() - nodes)
        assert table.lengths.tolist() == (past + counts).tolist()
        check_books(table)
        behind = max(0, table.shortest - 256 - window - 256 - 16) // 16
        assert (table.pages[:, :behind] < 0).all()


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    steps=st.integers(0, 60),
    window=st.integers(2, 90),
    draft=st.integers(0, 200),
)
def test_windows_release_what_nobody_reads(chunks, steps, window, draft):
    """What a window can see is always held, a rejected draft can be taken back, and memory does not grow."""
    table = PageTable(16, window)
    for rows in [*chunks, *[1] * steps]:
        past = table.length
        table.advance(2, rows, torch.device("cpu"))
        first_new = past + table.skipped
        for position in [*range(max(0, past - window + 1), past), *range(first_new, table.length)]:
            assert table.pages[:, position // 16].min() >= 0, "a token in reach of this forward has no page"
        assert past + rows - first_new >= min(rows, window), "a new token inside the window was not stored"
        check_books(table)
    if steps:
        assert table.pages_in_use <= 2 * (-(-(window + 256) // 16) + 2) + 2 * (-(-chunks[-1] // 16)) * (
            steps < 2
        )
    draft = min(draft, table.length)
    table.crop(draft)
    for position in range(max(0, table.length - window + 1), table.length):
        assert table.pages[:, position // 16].min() >= 0
    check_books(table)


def test_a_crop_behind_the_window_is_refused_unless_the_past_is_recorded():
    for record in (False, True):
        table = PageTable(16, 8)
        table.keep_past = record
        table.advance(1, 40, torch.device("cpu"))
        for _ in range(600):
            table.advance(1, 1, torch.device("cpu"))
        if record:
            table.crop(500)
            assert table.length == 140
            assert (table.pages[0, (140 - 8) // 16 :] >= 0).all()
        else:
            with pytest.raises(
                RuntimeError, match="cannot take back 500 tokens: those behind the window of 8"
            ):
                table.crop(500)


def test_a_cache_refuses_another_batch_and_impossible_crops(run):
    cache = run.new_cache()
    cache.update(torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4), 0)
    with pytest.raises(ValueError, match="holds 2 sequences, the new tokens are for 3"):
        cache.update(torch.zeros(3, 2, 1, 4), torch.zeros(3, 2, 1, 4), 0)
    with pytest.raises(ValueError, match="cannot remove 4 of 3 cached tokens"):
        cache.crop(-4)
    with pytest.raises(ValueError, match="minus the number of tokens"):
        cache.crop(1)


def test_a_refused_crop_leaves_the_cache_as_it_was():
    """One layer looks back without end, another's window has let go of what would be needed."""
    model = build("qwen2")
    ids = torch.randint(3, 97, (1, 300), generator=torch.Generator().manual_seed(0))
    with tokops.patch(model, page_size=4) as run, torch.no_grad():
        cache = run.new_cache()
        model(ids, past_key_values=cache)
        for i in range(120):
            model(ids[:, i : i + 1], past_key_values=cache)
        with pytest.raises(RuntimeError, match="cannot take back 400 tokens: those behind the window"):
            cache.crop(-400)
        assert {table.length for table in cache.state.tables.values()} == {420}
        assert {layer.length for layer in cache.layers} == {420}


def test_indices_of_sequences_that_are_not_there_are_refused(run):
    cache = run.new_cache()
    cache.update(torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4), 0)
    for wrong in ([2], [-3, 0]):
        with pytest.raises(IndexError, match=r"indices must be -2\.\.1, got"):
            cache.batch_select_indices(torch.tensor(wrong))
    cache.batch_select_indices(torch.tensor([-1, 0]))
    assert cache.lengths == [3, 3]


def test_growth_allocates_rarely_and_shared_pages_count_once(run):
    cache = run.new_cache()
    one = torch.zeros(1, 2, 1, 4)
    capacities = set()
    for _ in range(1000):
        for layer in range(2):
            cache.update(one, one, layer)
        capacities.add(cache.layers[0].k_pages.shape[0])
    assert len(capacities) <= 30  # geometric: 250 pages would otherwise be 250 allocations
    table = cache.layers[0].table
    assert table.live_tokens() == 1000
    cache.batch_repeat_interleave(8)
    assert table.live_tokens() == 1000
    cache.update(one.expand(8, -1, -1, -1), one.expand(8, -1, -1, -1), 0)
    assert table.live_tokens() == 1000 + 8  # 1000 tokens fill whole pages: nothing was copied
    cache.update(one.expand(8, -1, -1, -1), one.expand(8, -1, -1, -1), 1)
    cache.unshare()
    assert table.live_tokens() == 8 * 1001
