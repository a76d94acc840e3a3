"""Masks on logits, masks combined, budgets of letters: against bits read one by one, and what is refused."""

import math
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import tokops
from tokops.grammar import apply_bitmask_, compose_filters, masked_sample, multiset_mask
from tokops.sampling import law, sample

INT, MINUS = torch.int32, float("-inf")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def words_of(rows) -> torch.Tensor:
    """Lists of bools as a mask, bit by bit."""
    width = -(-len(rows[0]) // 32)
    out = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        for t, allowed in enumerate(row):
            out[i, t // 32] |= int(allowed) << (t % 32)
    return torch.where(out >= 2**31, out - 2**32, out).to(INT)


def bit(mask, row, token) -> bool:
    if token // 32 >= mask.shape[1]:
        return False
    return bool(int(mask[row if mask.shape[0] > 1 else 0, token // 32]) >> token % 32 & 1)


def random_mask(rows, width, seed=0, device="cpu"):
    """Words of all kinds: any, none, all, and the sign bit alone."""
    gen = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (rows, width), generator=gen)
    kind = torch.randint(0, 5, (rows, width), generator=gen)
    words = torch.where(kind == 0, 0, torch.where(kind == 1, -1, torch.where(kind == 2, -(2**31), words)))
    return words.to(INT).to(device)


def by_hand(logits, mask, rows=None, fill=MINUS, bias=None):
    """Token by token."""
    out = logits.clone()
    for i, row in enumerate(range(len(logits)) if rows is None else rows):
        for t in range(logits.shape[1]):
            if row >= 0 and not bit(mask, i, t):
                old = out[row, t].float() + bias if bias is not None else torch.tensor(fill)
                out[row, t] = old.to(out.dtype)
    return out


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("v", [1, 31, 32, 33, 63, 96, 257, 1025])
def test_every_token_by_hand(device, dtype, v):
    gen = torch.Generator().manual_seed(v)
    logits = torch.randn(3, v, generator=gen).to(dtype).to(device)
    mask = random_mask(3, -(-v // 32), v, device)
    for options in ({}, {"fill": -7.5}, {"bias": -2.25}):
        got = apply_bitmask_(logits.clone(), mask, **options)
        assert torch.equal(got, by_hand(logits, mask, **options))
        one = apply_bitmask_(logits.clone(), mask[1], **options)
        assert torch.equal(one, by_hand(logits, mask[1:2], **options))


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 9])
def test_tokens_beyond_the_mask_are_forbidden_and_bits_beyond_the_logits_ignored(device, width):
    logits = torch.randn(2, 100, device=device)
    mask = random_mask(2, width, 5, device)
    assert torch.equal(apply_bitmask_(logits.clone(), mask), by_hand(logits, mask))
    assert torch.equal(apply_bitmask_(logits.clone(), mask, bias=3.0), by_hand(logits, mask, bias=3.0))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_rows_name_the_rows_of_the_logits(device, kind):
    logits, mask = torch.randn(5, 70, device=device), random_mask(3, 3, 1, device)
    rows = torch.tensor([4, -1, 2], dtype=kind, device=device)
    got = apply_bitmask_(logits.clone(), mask, rows)
    assert torch.equal(got, by_hand(logits, mask, [4, -1, 2]))
    assert torch.equal(got[[0, 1, 3]], logits[[0, 1, 3]])
    one = apply_bitmask_(logits.clone(), mask[0], rows)
    assert torch.equal(one, by_hand(logits, mask[:1], [4, -1, 2]))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("first", [0, 1, 8])
def test_views_change_nothing_outside_themselves(device, dtype, first):
    whole = torch.randn(4, 300, device=device).to(dtype)
    mask = random_mask(8, 9, 2, device)[::2, :7]
    before, view = whole.clone(), whole[:, first : first + 200]
    want = by_hand(before[:, first : first + 200], mask)
    assert apply_bitmask_(view, mask) is view
    assert torch.equal(view, want)
    before[:, first : first + 200] = want
    assert torch.equal(whole, before)
    row = whole[2, 40:90]
    assert apply_bitmask_(row, mask[3]) is row
    assert torch.equal(row, by_hand(before[2:3, 40:90], mask[3:])[0])


def test_a_long_batch_is_split_without_a_seam(device):
    v = 3 * 32 * 1024 + 77
    logits, mask = torch.randn(3, v, device=device), random_mask(3, -(-v // 32), 3, device)
    bits = (mask[..., None] >> torch.arange(32, device=device) & 1).flatten(1)[:, :v].bool()
    assert torch.equal(apply_bitmask_(logits.clone(), mask), logits.masked_fill(~bits, MINUS))


def test_what_is_allowed_keeps_its_bits(device):
    odd = torch.tensor([[float("nan"), MINUS, float("inf"), -0.0]], device=device)
    got = apply_bitmask_(odd.clone(), torch.tensor([[0b1111]], dtype=INT, device=device))
    assert torch.equal(got.view(INT), odd.view(INT))
    got = apply_bitmask_(odd.clone(), torch.tensor([[0]], dtype=INT, device=device), bias=1.0)
    assert got[0].nan_to_num(7.0, math.inf, MINUS).tolist() == [7.0, MINUS, math.inf, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 40).T}, "logits must have a contiguous last dimension"),
        (
            {"logits": torch.zeros(2, 40).int()},
            "logits must be float32, bfloat16 or float16|logits must be float32 or",
        ),
        ({"logits": torch.zeros(1, 2, 40)}, "logits must have 2 dimensions, got 3"),
        ({"mask": torch.zeros(2, 2)}, "mask must be int32, got float32"),
        ({"mask": torch.zeros(3, 2, dtype=INT)}, "mask must have 2 rows or 1, got 3"),
        ({"rows": torch.tensor([0])}, "mask must have 1 rows or 1, got 2"),
        ({"rows": torch.tensor([0, 2])}, r"rows must be -1\.\.1, got 2"),
        ({"rows": torch.tensor([0, -2])}, r"rows must be -1\.\.1, got -2"),
        ({"rows": torch.tensor([1, 1])}, "rows must differ, got 1 twice"),
        ({"rows": torch.tensor([0.0, 1.0])}, "rows must be int32 or int64, got float32"),
    ],
)
def test_apply_refuses(change, message):
    args = {"logits": torch.zeros(2, 40), "mask": torch.zeros(2, 2, dtype=INT)} | change
    with pytest.raises(RuntimeError, match=f"apply_bitmask_: ({message})"):
        apply_bitmask_(**args)


SETTINGS = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.3, "top_k": 50, "top_p": 0.95, "min_p": 0.01},
)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sampling_under_a_mask_is_masking_then_sampling(device, dtype, options):
    gen = torch.Generator().manual_seed(4)
    logits = (torch.randn(40, 1000, generator=gen) * 3).to(dtype).to(device)
    logits[3] = logits[3].round()  # many ties
    numbers = {"seed": 11, "stream": torch.arange(40, device=device), "position": 3}
    for mask in (
        random_mask(40, 32, 6, device),
        random_mask(40, 30, 7, device),
        random_mask(1, 32, 8, device),
    ):
        masked = apply_bitmask_(logits.clone(), mask)
        tokens = masked_sample(logits, mask, **numbers, **options)
        assert torch.equal(tokens, sample(masked, **numbers, **options))
        assert torch.equal(law(logits, mask=mask, **options), law(masked, **options))
        assert all(bit(mask, i, t) for i, t in enumerate(tokens.tolist()))


def test_a_mask_of_ones_changes_no_draw(device):
    logits = torch.randn(6, 500, device=device)
    ones = torch.full((16,), -1, dtype=INT, device=device)
    numbers = {"seed": 2, "stream": torch.arange(6, device=device)}
    assert torch.equal(masked_sample(logits, ones, **numbers), sample(logits, **numbers))


def test_rows_that_allow_nothing(device):
    logits = torch.tensor([[1.0, 2.0, MINUS], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], device=device)
    mask = torch.tensor([[0b100], [0], [0b001]], dtype=INT, device=device)
    assert masked_sample(logits, mask, seed=1).tolist() == [-1, -1, 0]
    assert law(logits, mask=mask).tolist() == [[0.0] * 3, [0.0] * 3, [1.0, 0.0, 0.0]]


def test_shapes_of_masks_for_sampling():
    logits = torch.randn(2, 3, 40)
    mask = random_mask(6, 2, 9).view(2, 3, 2)
    got = masked_sample(logits, mask, seed=5, temperature=0.0)
    for i in range(2):
        for j in range(3):
            assert got[i, j] == masked_sample(logits[i, j], mask[i, j], seed=5, temperature=0.0)
    with pytest.raises(RuntimeError, match=r"sample: mask must be \[..., W\] with ... = \[2, 3\] or 1, got"):
        masked_sample(logits, mask[0], seed=5)
    with pytest.raises(RuntimeError, match="sample: mask must be int32, got int64"):
        masked_sample(logits, mask.long(), seed=5)
    with pytest.raises(RuntimeError, match="law: mask must have at least 1 word a row"):
        law(logits, mask=mask[..., :0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=4, max_size=4), min_size=1, max_size=70))
def test_composing_is_a_bitwise_and(masks):
    want = [-1] * 4
    for words in masks:
        want = [a & b for a, b in zip(want, words, strict=True)]
    rows = [torch.tensor(words, dtype=INT) for words in masks]
    assert compose_filters(rows).tolist() == [want]
    assert compose_filters(torch.stack(rows)[:, None]).tolist() == [want]


def test_composing_broadcasts_rows_and_leaves_its_masks_alone(device):
    a, b, c = (random_mask(n, 7, n, device) for n in (4, 1, 4))
    before = [x.clone() for x in (a, b, c)]
    assert torch.equal(compose_filters([a, b, c]), a & b & c)
    assert torch.equal(compose_filters([b, a]), a & b)
    assert torch.equal(compose_filters([a[:, :3], c[:, 4:]]), a[:, :3] & c[:, 4:])
    alone = compose_filters([a])
    assert torch.equal(alone, a)
    assert alone.data_ptr() != a.data_ptr()
    assert all(torch.equal(x, y) for x, y in zip((a, b, c), before, strict=True))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "masks must hold at least one mask"),
        (
            [torch.zeros(2, 3, dtype=INT), torch.zeros(2, 4, dtype=INT)],
            r"masks\[1\] must have 3 words a row, got 4",
        ),
        (
            [torch.zeros(2, 3, dtype=INT), torch.zeros(3, 3, dtype=INT)],
            r"masks\[0\] must have 3 rows or 1, got 2",
        ),
        ([torch.zeros(2, 3)], r"masks\[0\] must be int32, got float32"),
        (torch.zeros(2, 3, dtype=INT), "masks must have 3 dimensions, got 2"),
    ],
)
def test_composing_refuses(masks, message):
    with pytest.raises(RuntimeError, match="compose_filters: " + message):
        compose_filters(masks)


def test_budgets_are_the_arithmetic_of_counters(device):
    letters = "abcde"
    gen = torch.Generator().manual_seed(3)
    texts = [
        "".join(letters[int(i)] for i in torch.randint(0, 5, (int(n),), generator=gen))
        for n in torch.randint(0, 6, (333,), generator=gen)
    ]
    effect = torch.tensor([[Counter(text)[x] for x in letters] for text in texts], dtype=torch.int8)
    said, wanted = ["", "abba", "edcba", "aaaaaaa"], ["aabbccddee", "aabbb", "abcde", "abc"]
    used, budget = (
        torch.tensor([[Counter(text)[x] for x in letters] for text in rows], dtype=torch.int16)
        for rows in (said, wanted)
    )
    got = multiset_mask(*(x.to(device) for x in (effect, used, budget)))
    want = [[Counter(a + b) <= Counter(whole) for b in texts] for a, whole in zip(said, wanted, strict=True)]
    assert got.tolist() == words_of(want).tolist()
    assert any(want[0])
    assert not any(want[3])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_budgets_do_not_overflow(data):
    v, a, b = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 3)))
    edge8 = st.sampled_from([-128, -127, -1, 0, 1, 126, 127]) | st.integers(-128, 127)
    edge16 = st.sampled_from([-32768, -129, -128, -1, 0, 126, 127, 128, 32767]) | st.integers(-300, 300)

    def rows(n, of):
        return data.draw(st.lists(st.lists(of, min_size=a, max_size=a), min_size=n, max_size=n))

    effect, used, budget = rows(v, edge8), rows(b, edge16), rows(b, edge16)
    want = [
        [all(u + e <= m for u, e, m in zip(used[i], token, budget[i], strict=True)) for token in effect]
        for i in range(b)
    ]
    got = multiset_mask(
        torch.tensor(effect, dtype=torch.int8),
        torch.tensor(used, dtype=torch.int16),
        torch.tensor(budget, dtype=torch.int16),
    )
    assert got.tolist() == words_of(want).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effect": torch.zeros(5, 3)}, "effect must be int8, got float32"),
        ({"effect": torch.zeros(5, 0, dtype=torch.int8)}, r"effect must have 1\.\.256 columns, got 0"),
        ({"effect": torch.zeros(5, 257, dtype=torch.int8)}, r"effect must have 1\.\.256 columns, got 257"),
        ({"used": torch.zeros(2, 4, dtype=torch.int16)}, r"used must be \[B, A\] = \[2, 3\], got \[2, 4\]"),
        (
            {"budget": torch.zeros(1, 3, dtype=torch.int16)},
            r"budget must be \[B, A\] = \[2, 3\], got \[1, 3\]",
        ),
        ({"budget": torch.zeros(2, 3, dtype=INT)}, "budget must be int16, got int32"),
    ],
)
def test_budgets_refuse(change, message):
    args = {
        "effect": torch.zeros(5, 3, dtype=torch.int8),
        "used": torch.zeros(2, 3, dtype=torch.int16),
        "budget": torch.zeros(2, 3, dtype=torch.int16),
    } | change
    with pytest.raises(RuntimeError, match="multiset_mask: " + message):
        multiset_mask(**args)


def test_the_ops_are_in_the_family():
    names = {"apply_bitmask_", "compose_filters", "masked_sample", "multiset_mask"}
    assert names <= set(tokops.grammar.__all__)
