"""kv_transfer: what moves verbatim, what is coded anew, and that nothing else changes."""

import itertools

import numpy as np
import pytest
import torch

from tokops.kvcache import Codec, kv_append, kv_transfer

from . import oracle
from .pools import CODECS, grids, name, place, pool, read, table_of

FULL = Codec("full")
TARGETS = [c for c in CODECS if c.geometry != "channel"]


def transfer(source, target, lists, codecs):
    kv_transfer(
        source, target, *lists, source_codecs=(codecs[0].write_code,) * 2, target_codecs=(codecs[1].write_code,) * 2
    )  # fmt: skip


def side(codec, batch, heads, page, pages, dim, per_head, dtype=torch.float32, seed=0):
    """Two pools of one codec that hold numbers of about -4..4, and a table."""
    table = table_of(batch, heads, pages, per_head, seed)
    n = table.numel() + 2
    tensors = [
        t for i in range(2) for t in pool(codec, n, 1 if per_head else heads, page, dim, dtype, seed + i)
    ]
    if codec.kind == "full":
        tensors[0].normal_()
        tensors[3].normal_()
    return [*tensors, table]


def lists_of(batch, heads, n, capacity_from, capacity_to):
    slots = [torch.rand(batch, heads, c).argsort(-1)[..., :n].int() for c in (capacity_from, capacity_to)]
    return *slots, torch.randint(0, n + 1, (batch, heads)).int()


def same_bytes(source, target) -> bool:
    """Pools of the cases here whose rows mean the same; every head grid is its pool's own."""
    return source == target and source.geometry != "head"


def assert_moved(codecs, source, target, before, lists):
    """Every entry of the lists arrived, in K and V; all other slots hold what they held."""
    dim = target[0].shape[3] if codecs[1].kind == "full" else target[0].shape[3] * 8 // codecs[1].bits
    page_from, page_to = source[0].shape[2], target[0].shape[2]
    slots_from, slots_to, counts = lists
    for first in (0, 3):
        a, b, old = source[first : first + 3], target[first : first + 3], before[first : first + 3]
        touched = torch.zeros(b[0].shape[:3], dtype=torch.bool)
        for i, h in itertools.product(*map(range, counts.shape)):
            for j in range(int(counts[i, h])):
                at_from = place(source[6], page_from, i, h, int(slots_from[i, h, j]))
                at = place(target[6], page_to, i, h, int(slots_to[i, h, j]))
                touched[at] = True
                if same_bytes(*codecs):
                    for x, y in zip(a, b, strict=True):
                        assert x.numel() == 0 or torch.equal(x[at_from], y[at])
                    continue
                x = read(codecs[0], a, at_from, dim).astype(np.float32)
                assert_coded(codecs[1], b, at, x)
        assert touched.any()
        assert torch.equal(b[0][~touched], old[0][~touched])
        for new, was in zip(b[1:], old[1:], strict=True):
            if codecs[1].geometry == "head" or new.numel() == 0:
                assert torch.equal(new, was)
            else:
                assert torch.equal(new[~touched], was[~touched])


def assert_coded(codec, tensors, at, x):
    if codec.kind == "full":
        assert torch.equal(tensors[0][at], torch.from_numpy(x).to(tensors[0].dtype))
        return
    s, z = grids(codec, tensors[1], tensors[2], at, len(x))
    oracle.assert_codes_nearest(x, tensors[0][at].numpy(), codec.kind, s, z)
    if codec.geometry == "token":
        for g in range(0, len(x), codec.group):
            group = x[g : g + codec.group]
            want = oracle.grid(group, codec.kind, codec.symmetric, not codec.is_fp8, np.float32)
            assert (s[g], z if z is None else z[g]) == want


PAIRS = (
    [(c, FULL) for c in CODECS]
    + [(FULL, c) for c in TARGETS]
    + [(c, c) for c in (FULL, *TARGETS)]
    + list(zip(CODECS, TARGETS[3:] + TARGETS, strict=False))
)


@pytest.mark.parametrize("codecs", PAIRS, ids=lambda pair: " to ".join(map(name, pair)))
def test_against_the_oracle(device, codecs):
    batch, heads, dim, n = 2, 2, 64, 7
    i = PAIRS.index(codecs)
    dtype = (torch.float32, torch.bfloat16, torch.float16)[i % 3]
    source = side(codecs[0], batch, heads, 8, 3, dim, i % 2 == 0, dtype)
    target = side(codecs[1], batch, heads, 4, 5, dim, i % 4 < 2, dtype, seed=5)
    lists = lists_of(batch, heads, n, 24, 20)
    got = [t.clone().to(device) for t in target]
    transfer([t.to(device) for t in source], got, [t.to(device) for t in lists], codecs)
    assert_moved(codecs, source, [t.cpu() for t in got], target, lists)


@pytest.mark.parametrize("codec", [FULL, *TARGETS], ids=name)
def test_holes_are_filled_in_place(device, codec):
    """The source is the target: the last tokens move into holes, bit by bit, with their scales."""
    batch, heads, page, pages, dim = 2, 2, 4, 4, 32
    codec = Codec(codec.kind, codec.geometry, min(codec.group, dim), codec.symmetric)
    want = side(codec, batch, heads, page, pages, dim, True)
    got = [t.clone().to(device) for t in want]
    slots_from = torch.tensor([15, 12, 14]).int().expand(batch, heads, 3)
    slots_to = torch.tensor([0, 5, 9]).int().expand(batch, heads, 3)
    counts = torch.tensor([[3, 2], [0, 1]]).int()
    transfer(got, got, [t.to(device) for t in (slots_from, slots_to, counts)], (codec, codec))
    for b, h in itertools.product(range(batch), range(heads)):
        for j in range(int(counts[b, h])):
            old = place(want[6], page, b, h, int(slots_from[b, h, j]))
            new = place(want[6], page, b, h, int(slots_to[b, h, j]))
            for i in (0, 3):
                want[i][new] = want[i][old]
            if codec.geometry == "token":
                for i in (1, 2, 4, 5):
                    if want[i].numel():
                        want[i][new] = want[i][old]
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.cpu(), w)


def test_int3_rows_are_int4_rows():
    codecs = Codec("int3", group=32), Codec("int4", group=32)
    source, target = side(codecs[0], 1, 1, 4, 2, 64, False), side(codecs[1], 1, 1, 4, 2, 64, False, seed=3)
    source[0] &= 0x77
    slots = torch.arange(8).int().view(1, 1, 8)
    transfer(source, target, (slots, slots.flip(-1), torch.tensor([[8]]).int()), codecs)
    for s in range(8):
        old, new = place(source[6], 4, 0, 0, s), place(target[6], 4, 0, 0, 7 - s)
        for a, b in zip(source[:6], target[:6], strict=True):
            assert torch.equal(a[old], b[new])


def test_a_demoted_token_is_what_kv_append_would_write(device):
    """From full precision into a low tier: the same bytes and scales as an append of the token."""
    low = Codec("int4", group=32)
    batch, heads, rows, dim = 2, 3, 8, 64
    x = [torch.randn(batch, rows, heads, dim, device=device) for _ in range(2)]
    table, lens = (
        torch.arange(batch, device=device).int()[:, None],
        torch.full((batch,), rows, device=device).int(),
    )
    full, got, want = (
        [t.to(device) for c in (c, c) for t in c.empty(batch, heads, rows, dim)] for c in (FULL, low, low)
    )
    for t in (*got, *want):
        t.zero_()
    kv_append(*full, table, lens, *x, k_codec=0, v_codec=0)
    kv_append(*want, table, lens, *x, k_codec=low.write_code, v_codec=low.write_code)
    slots = torch.arange(rows, device=device).int().expand(batch, heads, rows)
    counts = torch.full((batch, heads), rows, device=device).int()
    transfer([*full, table], [*got, table], (slots, slots, counts), (FULL, low))
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def test_dead_entries_are_not_read(device):
    codec = Codec("int8", group=32)
    source, target = side(codec, 1, 2, 4, 2, 32, False), side(FULL, 1, 2, 4, 2, 32, False, seed=2)
    source[6] = source[6].clone()
    source[6][0, 1] = -9
    got = [t.clone().to(device) for t in target]
    slots = torch.tensor([[[1, -1, 99], [3, 2, 7]]]).int()
    lists = (slots, slots, torch.tensor([[1, 2]]).int())
    transfer([t.to(device) for t in source], got, [t.to(device) for t in lists], (codec, FULL))
    assert_moved((codec, FULL), source, [t.cpu() for t in got], target, lists)
