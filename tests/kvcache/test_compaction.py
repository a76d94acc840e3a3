"""Plans against brute force and the published fixtures; the window under random traffic; what moves move."""

import random

import pytest
import torch

from tokops.kvcache.compaction import SlotWindow, move_rows, plan_compaction


def owners(pattern):
    """Requests 0, 1, .. where the pattern is not zero."""
    numbers = iter(range(len(pattern)))
    return [next(numbers) if taken else -1 for taken in pattern]


@pytest.mark.parametrize(
    ("pattern", "start", "size", "moves"),
    [
        ((1, 1, 0, 1, 0, 0, 1), 0, 4, ((6, 2),)),
        ((0, 1, 1, 0, 1, 1), 1, 4, ((5, 3),)),
        ((1, 0, 0, 0, 1), 0, 2, ((4, 1),)),
        ((0, 0, 0), 0, 0, ()),
        ((1, 1, 1), 0, 3, ()),
        ((), 0, 0, ()),
        ((0, 1, 0), 1, 1, ()),
    ],
)
def test_published_plans(pattern, start, size, moves):
    plan = plan_compaction(owners(pattern))
    assert (plan.start, plan.size, plan.moves) == (start, size, moves)


def test_what_is_short_moves():
    assert plan_compaction([0, -1, 1, 2], [9, 0, 1, 1]).moves == ((3, 1),)
    assert (
        plan_compaction([0, -1, 1, 2], [9, 7, 1, 1]).start == 0
    )  # what a free slot is said to cost does not count
    assert plan_compaction([0, -1, 1, 2], [1, 0, 5, 5]).moves == ((0, 1),)


def brute_force(owner, cost):
    """Cheapest cost outside any window, and the first window that has it."""
    taken = [slot for slot, request in enumerate(owner) if request != -1]
    n = len(taken)
    outside = [sum(cost[slot] for slot in taken if not s <= slot < s + n) for s in range(len(owner) - n + 1)]
    return min(outside), outside.index(min(outside))


def test_plans_are_optimal_and_their_moves_independent():
    rng = random.Random(0)
    for _ in range(3000):
        slots = rng.randint(1, 12)
        owner = owners([rng.random() < rng.choice([0.2, 0.5, 0.9]) for _ in range(slots)])
        cost = [rng.choice([0, 1, 1, 2, 7, 30]) for _ in range(slots)]
        plan = plan_compaction(owner, cost)
        taken = {slot for slot, request in enumerate(owner) if request != -1}
        if taken:
            best, first = brute_force(owner, cost)
            assert plan.start == first
            assert sum(cost[source] for source, _ in plan.moves) == best
        window = set(range(plan.start, plan.start + plan.size))
        sources, targets = {s for s, _ in plan.moves}, {t for _, t in plan.moves}
        assert plan.size == len(taken)
        assert sources == taken - window
        assert targets == window - taken
        assert list(plan.moves) == list(zip(sorted(sources), sorted(targets), strict=True))


def test_a_stable_plan_keeps_the_order():
    rng = random.Random(1)
    for _ in range(500):
        owner = owners([rng.random() < 0.6 for _ in range(rng.randint(1, 12))])
        plan = plan_compaction(owner, stable=True)
        after = list(owner)
        for source, target in plan.moves:
            assert after[target] == -1
            assert target < source
            after[target], after[source] = after[source], -1
        assert after[plan.start : plan.start + plan.size] == [request for request in owner if request != -1]


@pytest.mark.parametrize("options", [{}, {"hole_share": 0.0}, {"batch_sizes": (1, 2, 4, 8, 16)}])
def test_ten_thousand_steps_of_traffic(options):
    """Every row of the arena carries its request's number: after any step each request finds its own."""
    rng = random.Random(2)
    slots = SlotWindow(16, **options)
    arena, number, moved = torch.full((16, 3), -1), 0, 0
    for _ in range(10_000):
        busy = rng.random() < 0.5
        if busy and not slots.full:
            row = slots.admit(number)
            arena[row] = number
            number += 1
        elif slots.slot_of:
            request = rng.choice(sorted(slots.slot_of))
            before = arena.clone()
            arena[slots.retire(request)] = -1
            assert ((arena != before).sum(1) > 0).sum() <= 1  # nothing but the one that left
            if slots.due:
                plan = slots.compact()
                moved += move_rows([arena], plan.moves)
                for source, _ in plan.moves:
                    arena[source] = -1
                assert sorted(slots.slot_of.values()) == list(slots.window)
                assert slots.holes == 0
        assert {request: slots.owner.index(request) for request in slots.slot_of} == slots.slot_of
        assert sum(request != -1 for request in slots.owner) == len(slots.slot_of)
        assert arena[:, 0].tolist() == slots.owner
        taken = set(slots.slot_of.values())
        assert taken <= set(slots.window)
        assert slots.holes <= max(options.get("hole_share", 0.25) * slots.size, 0)
        if taken:
            assert {slots.window[0], slots.window[-1]} <= taken
    assert moved > 0


def test_leaving_from_an_edge_moves_nothing_and_from_the_middle_leaves_a_hole():
    slots = SlotWindow(6)
    for request in range(6):
        slots.admit(request)
    slots.retire(0)
    slots.retire(5)
    assert slots.window == range(1, 5)
    assert slots.holes == 0
    assert not slots.due
    slots.retire(2)
    assert slots.window == range(1, 5)
    assert slots.holes == 1
    assert not slots.due
    slots.retire(1)  # the hole beside it goes too
    assert slots.window == range(3, 5)
    assert slots.holes == 0
    assert [slots.admit(request) for request in (7, 8, 9)] == [5, 2, 1]


def test_compaction_is_due_when_a_smaller_batch_would_do():
    slots = SlotWindow(8, hole_share=1.0, batch_sizes=(4, 2))
    for request in range(5):
        slots.admit(request)
    slots.retire(1)
    assert slots.due  # 4 fit a prepared size, 5 do not
    slots.compact()
    assert slots.window == range(0, 4)
    assert slots.slot_of == {0: 0, 4: 1, 2: 2, 3: 3}
    slots.retire(4)
    assert not slots.due  # 3 need the size of 4 all the same


@pytest.mark.parametrize("stable", [False, True])
def test_moves_copy_what_is_alive(stable):
    generator = torch.Generator().manual_seed(3)
    layers = [torch.randn(7, 2, 5, 4, generator=generator) for _ in range(6)]
    before = [layer.clone() for layer in layers]
    owner, lengths = [0, -1, 1, -1, -1, 2, 3], [5, 0, 3, 0, 0, 1, 0]
    plan = plan_compaction(owner, lengths, stable=stable)
    moved = move_rows(layers, plan.moves, lengths, length_dim=2)
    copied = sum(lengths[source] for source, _ in plan.moves)
    assert moved == 2 * copied * len(layers) * 2 * 4 * 4
    came = {target: source for source, target in plan.moves}
    for layer, old in zip(layers, before, strict=True):
        for row in range(7):
            source = came.get(row, row)
            n = lengths[source] if row in came else 0
            assert torch.equal(layer[row, :, :n], old[source, :, :n])
            assert torch.equal(layer[row, :, n:], old[row, :, n:])


def test_rows_without_a_length_move_whole():
    state = torch.arange(12.0).reshape(4, 3)
    assert move_rows([state], [(3, 0)]) == 2 * 3 * 4
    assert state[0].tolist() == [9.0, 10.0, 11.0]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one entry per slot, 3, got 2"):
        plan_compaction([0, -1, 1], [1, 1])
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="cost must be >= 0"):
            plan_compaction([0, -1, 1], [1, 1, wrong])
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        SlotWindow(0)
    with pytest.raises(ValueError, match="hole_share"):
        SlotWindow(1, hole_share=1.5)
    slots = SlotWindow(1)
    slots.admit(4)
    with pytest.raises(ValueError, match="new and >= 0, got 4"):
        slots.admit(4)
    with pytest.raises(ValueError, match="all 1 slots are taken"):
        slots.admit(5)
    with pytest.raises(KeyError):
        slots.retire(5)
    rows = [torch.zeros(3, 4)]
    with pytest.raises(ValueError, match="go together"):
        move_rows(rows, [(1, 0)], [1, 1, 1])
    with pytest.raises(ValueError, match=r"rows must be in \[0, 3\), got 3"):
        move_rows(rows, [(3, 0)])
    with pytest.raises(ValueError, match="one entry per row, 3, got 1"):
        move_rows(rows, [(1, 0)], [1], length_dim=1)
    with pytest.raises(ValueError, match="length_dim must be in"):
        move_rows(rows, [(1, 0)], [1, 1, 1], length_dim=2)
    with pytest.raises(ValueError, match=r"live must be in \[0, 4\], got 5 for row 1"):
        move_rows(rows, [(1, 0)], [1, 5, 1], length_dim=1)
