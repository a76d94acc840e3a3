"""Packed stores: all bytes count, codes are written once, and padding, sinks and drafts leave no trace in them."""

import pytest
import torch

from tokops.kvcache import Codec

from .stores import DIM, HEADS, Cache, held

FORMATS = {
    "int8": (Codec("int8", group=32), Codec("int8", group=16, symmetric=True)),
    "int4": (Codec("int4", group=32), Codec("int4", group=32)),
    "channel": (Codec("int4", "channel", 4), Codec("int2", group=32)),
    "both per channel": (Codec("int8", "channel", 4), Codec("int4", "channel", 4)),
    "head": (Codec("fp8_e4m3", "head"), Codec("int8", "head")),
    "full keys": (Codec("full"), Codec("fp8_e5m2", group=32)),
}


def tensors_of(store):
    """Every tensor that a store keeps, each once."""
    kept = [t for pools in store._pools for pool in pools for t in pool.tensors]
    kept += [store._tail.k, store._tail.v, *(store._sinks or ())]
    return {t.data_ptr(): t for t in kept if t.numel()}.values()


def live_bytes(store):
    """Bytes of the slots in use: out of the parts' tensors and the tables, nothing out of the layout's sums."""
    total, layout = 0, store.layout
    for slab, (keys, values) in zip(layout.slabs, store._pools, strict=False):
        slots = {}  # page -> slots in use
        for row in slab.table.pages:
            for column, page in enumerate(row.tolist()):
                used = min(layout.absorbed - slab.first - column * layout.page, layout.page)
                slots[page] = max(slots.get(page, 0), used)
        used = sum(slots.values())
        for pool in (keys, values):
            total += used * pool.codes[0, :, 0].nbytes
            for grid in (pool.scale, pool.zero):
                if grid.numel() and grid.shape[2:] != (1, 1):
                    total += used * grid.shape[2] // layout.page * grid[0, :, 0].nbytes
    for pool in {id(p.scale): p for pools in store._pools for p in pools}.values():
        total += sum(t.nbytes for t in (pool.scale, pool.zero) if t.numel() and t.shape[2:] == (1, 1))
    for b in range(layout.batch):
        sinks = min(max(layout.absorbed - layout.host_starts[b], 0), layout.sinks)
        total += 2 * HEADS * DIM * 4 * (sinks + layout.length - layout.absorbed)
    return total


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("sinks", "residual"), [(0, 8), (3, 8), (8, 20), (5, 0)])
def test_bytes_are_those_of_the_tensors(name, sinks, residual):
    keys, values = FORMATS[name]
    cache = Cache(keys, values, layers=3, sinks=sinks, residual=residual)
    layout, starts = cache.layout, torch.tensor([0, 9], dtype=torch.int32)

    def compare():
        layout._settle()
        tables = sum(slab.table.pages.nbytes for slab in layout.slabs)
        assert layout.live_bytes() == sum(map(live_bytes, cache.stores)) + tables
        allocated = sum(t.nbytes for store in cache.stores for t in tensors_of(store))
        allocated += sum(slab.table._device.nbytes for slab in layout.slabs)
        assert layout.allocated_bytes() == allocated
        assert layout.full_bytes() == 3 * 2 * layout.length * layout.batch * HEADS * DIM * 4

    cache.forward(torch.randn(3, 2, 41, HEADS, DIM), 41, starts)
    compare()
    for rows in (1, 1, 3, 1, 9, 1):
        cache.forward(torch.randn(3, 2, rows, HEADS, DIM))
        compare()
    cache.select([1, 0, 1])
    compare()
    for _ in range(9):
        cache.forward(torch.randn(3, 3, 1, HEADS, DIM))
        compare()
    cache.crop(11)
    cache.forward(torch.randn(3, 3, 1, HEADS, DIM))
    compare()
    cache.reset()
    assert (layout.live_bytes(), layout.allocated_bytes(), layout.full_bytes()) == (0, 0, 0)


@pytest.mark.parametrize("residual", [0, 64])
def test_appending_copies_no_history_and_writes_codes_once(residual):
    """1000 tokens one by one: few pools, none of them ever moved, and no byte of a written slot ever changed."""
    cache = Cache(Codec("int4", group=32), Codec("int8", group=32), layers=1, page=64, residual=residual)
    store, layout = cache.stores[0], cache.layout
    cache.forward(torch.randn(1, 2, 300, HEADS, DIM), 300)
    pointers, written, tails = {}, {}, set()
    for step in range(1000):
        cache.forward(torch.randn(1, 2, 1, HEADS, DIM))
        tails.add(store._tail.k.data_ptr())
        for i, pools in enumerate(store._pools):
            for side, pool in enumerate(pools):
                for t, x in enumerate(pool.tensors):
                    if x.numel():
                        assert pointers.setdefault((i, side, t), x.data_ptr()) == x.data_ptr()
        if step % 100 == 99:
            for i, (slab, pools) in enumerate(zip(layout.slabs, store._pools, strict=True)):
                for b, row in enumerate(slab.table.pages.tolist()):
                    for at in range(slab.table.length):
                        page = row[at // 64]
                        now = [x[page, :, at % 64] for p in pools for x in p.tensors if x.numel()]
                        before = written.setdefault((i, b, at), [x.clone() for x in now])
                        assert all(map(torch.equal, now, before))
    assert layout.packed == (1299 if residual == 0 else 1216)
    assert len(layout.slabs) == 2  # the prompt's, and one of 1024 tokens
    assert len(tails) <= 3
    assert layout.allocated_bytes() < layout.full_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_one_by_one_equals_a_prompt(name):
    """The same codes, bit by bit, when the same tokens are packed together."""
    keys, values = FORMATS[name]
    tokens = torch.randn(1, 2, 72, HEADS, DIM)
    whole, steps = (Cache(keys, values, layers=1, residual=8) for _ in range(2))
    whole.forward(tokens, 72)
    first = (
        40 if "head" not in name else 71
    )  # the scales of a head come from the first tokens that are packed
    steps.forward(tokens[:, :, :first], first)
    for i in range(first, 72):
        steps.forward(tokens[:, :, i : i + 1])
    for cache in (whole, steps):  # commit the last ones
        cache.forward(torch.zeros(1, 2, 1, HEADS, DIM))
    for side in ("k", "v"):
        for (p, x), (q, y) in zip(held(whole.stores[0], side), held(steps.stores[0], side), strict=True):
            assert torch.equal(p.sort().values, q.sort().values)
            assert torch.equal(x[p.sort().indices], y[q.sort().indices])


def test_rejected_drafts_are_never_packed():
    """A draft that is cropped away leaves no trace in any page, whatever it was."""
    packed = []
    for reject in (False, True):
        torch.manual_seed(0)
        cache = Cache(Codec("int4", "channel", 4), Codec("int8", group=32), layers=1, residual=8)
        cache.forward(torch.randn(1, 1, 30, HEADS, DIM), 30)
        for _ in range(30):
            if reject:
                cache.forward(torch.full((1, 1, 5, HEADS, DIM), 1e4))
                cache.crop(5)
            cache.forward(torch.randn(1, 1, 2, HEADS, DIM))
        packed.append(held(cache.stores[0], "k")[0])
    (positions, keys), (others, again) = packed
    assert torch.equal(keys[positions.sort().indices], again[others.sort().indices])
    assert keys.abs().max() < 10


#: What elements within +-2 may be off by, keys and values; twice half a step where a cut group is coded anew.
HALF_STEPS = {
    "int8": (0.01, 0.01),
    "int4": (0.14, 0.14),
    "channel": (0.28, 0.7),
    "both per channel": (0.02, 0.28),
    "head": (0.13, 0.01),
    "full keys": (0.0, 0.26),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sinks", [0, 5])
def test_crops_into_packed_pages(name, sinks):
    """What is left decodes as before, and what comes after it is packed anew, with scales of its own."""
    keys, values = FORMATS[name]
    tokens = torch.randn(1, 2, 90, HEADS, DIM).clamp(-2, 2)  # within the scales of a head
    for length in (0, 1, 3, 4, 13, 16, 31, 60):
        cache = Cache(keys, values, layers=1, sinks=sinks, residual=8, page=8)
        cache.forward(tokens[:, :, :61], 61)
        cache.layout._settle()
        cache.layout._place()
        before = [held(cache.stores[0], side) for side in "kv"]
        cache.crop(61 - length)
        for old, side in zip(before, "kv", strict=True):
            for b, (positions, vectors) in enumerate(held(cache.stores[0], side)):
                order = positions.sort()
                assert order.values.tolist() == list(range(length))
                was = dict(zip(old[b][0].tolist(), old[b][1], strict=True))
                for p, x in zip(order.values.tolist(), vectors[order.indices], strict=True):
                    assert torch.equal(x, was[p])
        group = 4 if "channel" in name else 1
        assert cache.layout.packed == min(length // group * group, 48)
        cache.forward(tokens[:, :, length:90], 90 - length)
        cache.settle()
        for side, sign, b in (("k", 1, 0), ("k", 1, 1), ("v", -1, 0), ("v", -1, 1)):
            positions, vectors = held(cache.stores[0], side)[b]
            error = (vectors[positions.sort().indices] - sign * tokens[0, b]).abs().max()
            assert error <= HALF_STEPS[name][side == "v"]


TILED = {
    "int8": (Codec("int8", group=32), Codec("int8", group=16, symmetric=True)),
    "int3": (Codec("int3", group=32), Codec("full")),
    "channel": (Codec("int2", "channel", 8), Codec("int4", "channel", 8)),
    "head": (Codec("int4", "head"), Codec("fp8_e5m2", "head")),
}


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("residual", [0, 8, 40])
@pytest.mark.parametrize("sinks", [0, 5])
def test_tiles_hold_what_rows_do(sinks, residual, name):
    """Through prompts, steps, copies, drafts, crops and padding: bit by bit, but where a crop makes whole pages."""
    options = {"page": 16, "residual": residual, "sinks": sinks}
    tokens = torch.randn(2, 2, 200, HEADS, DIM)
    starts = torch.tensor([0, 21], dtype=torch.int32)
    results = []
    for tiled in (True, False):
        cache = Cache(*TILED[name], key_tiles=tiled, **options)
        if not tiled:  # rows are packed by the page too
            cache.layout.unit = cache.layout.group = 16
            cache.layout.restores = True
        seen = []

        def note(cache=cache, seen=seen):
            cache.settle()
            for store in cache.stores:
                for side in "kv":
                    seen += [x[positions.argsort()] for positions, x in held(store, side)]

        cache.forward(tokens[:, :, :90], 90, starts)
        note()
        for i in range(90, 130):
            cache.forward(tokens[:, :, i : i + 1])
        note()
        cache.select([1, 0, 1])
        for i in range(130, 160):
            cache.forward(tokens[:, [0, 1, 0], i : i + 1])
        note()
        for tokens_off in (3, 30, 70):
            cache.crop(tokens_off)
            note()
            cache.forward(tokens[:, [1, 0, 0], 160:175])
            note()
        results.append(seen)
        pools = [pools for store in cache.stores for pools in store._pools]
        assert pools
        assert all(k.tiles == tiled and not v.tiles for k, v in pools)
    assert len(results[0]) == len(results[1]) > 50
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("padding", [11, 0])
def test_sinks_and_padding_share_no_scale_with_the_rest(padding):
    """Numbers of any size in padding and sinks change no code of a later token, in any geometry."""
    first = [padding + 3, 3]
    starts = torch.tensor([padding, 0], dtype=torch.int32) if padding else None
    for keys in (Codec("int4", "channel", 8), Codec("int8", "head"), Codec("int4", group=32)):
        results = []
        for size in (1.0, 1e4):
            torch.manual_seed(1)
            tokens = torch.randn(1, 2, 40, HEADS, DIM)
            for own, end in zip(tokens[0], first, strict=True):
                own[:end] *= size
            cache = Cache(keys, keys, layers=1, sinks=3, residual=8)
            cache.forward(tokens, 40, starts)
            cache.settle()
            found = [x[p.argsort()] for p, x in held(cache.stores[0], "k")]
            for vectors, own, end in zip(found, tokens[0], first, strict=True):
                kept = vectors[len(vectors) - 40 + end - 3 :]  # padding may be held nowhere
                assert torch.equal(kept[:3], own[end - 3 : end])
                results.append(kept[3:])
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[1], results[3])
