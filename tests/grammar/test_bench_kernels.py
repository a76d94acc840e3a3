"""The benchmark of the grammar kernels on tiny shapes: every kind of case is checked against opponents and timed."""

import time

import pytest
import torch

from tokops.bench import grammar_kernels as bench
from tokops.bench import run
from tokops.bench.attention import Bar, Case

WORKLOADS = {
    "apply": lambda: bench.apply(3, 320, 0.5, torch.float32, "cpu"),
    "apply bf16": lambda: bench.apply(1, 320, 0.01, torch.bfloat16, "cpu"),
    "draws": lambda: bench.draws(3, 320, 0.5, torch.float32, "cpu"),
    "compose": lambda: bench.compose(3, 2, 320, "cpu"),
    "budgets": lambda: bench.budgets(3, 320, 26, "cpu"),
    "triggers": lambda: bench.triggers(4, 320),
    "long string": lambda: bench.long_string(1000, 320),
    "steps": lambda: bench.steps(9, 0, 320, "cpu"),
    "cold steps": lambda: bench.steps(9, 2, 320, "cpu"),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_kind_of_case_is_checked_and_timed(name):
    row = run.measure(Case(name, (), WORKLOADS[name]), rounds=2, seconds=0.01)
    assert row.seconds > 0
    assert row.peers


def test_a_copy_of_the_rows_is_a_bar():
    row = run.measure(Case("apply", (Bar(bench.COPY, 1e9),), WORKLOADS["apply"]), rounds=2, seconds=0.01)
    assert [(v.against, v.met) for v in row.verdicts] == [(bench.COPY, False)]


def test_one_percent_in_float32_is_held_to_the_copy():
    held = [case.label for case in bench.cases() if any(bar.against == bench.COPY for bar in case.bars)]
    assert held == [f"apply_bitmask_ [{rows}, 131072] 1 % allowed, fp32" for rows in (1, 8)]
    assert len(list(bench.cases(quick=True))) < len(list(bench.cases()))


def test_128_tools_behind_one_trigger():
    """Asked are 100 ms, of processor time; the test leaves room for a slow machine."""
    work = bench.triggers(128, 8192)
    work.check()
    taken = []
    for _ in range(3):
        begin = time.process_time()
        work.ours()
        taken.append(time.process_time() - begin)
    assert min(taken) < 1.0


def test_a_long_string_has_the_masks_of_one_without_end():
    """Asked is a mask in twice the time; the test leaves room for noise."""
    row = run.measure(
        Case("string", (Bar(bench.UNBOUNDED, 0.1),), lambda: bench.long_string(100_000, 8192)),
        rounds=5,
        seconds=0.05,
    )
    assert [v.met for v in row.verdicts] == [True]


def test_what_the_engine_is_held_to():
    bars = {case.label: case.bars for case in bench.cases(quick=True)}
    assert bars["compile_tags 128 tools"] == (Bar(bench.TENTH, 1.0, 0.1),)
    assert bars["mask within maxLength 100000"] == (Bar(bench.UNBOUNDED, 0.5),)
    steps = "DeviceEngine step [64, 131072]"
    on_cuda = {case.label: case.bars for case in bench.cases("cuda")}
    assert not any("tools" in label for label in on_cuda)
    assert bars[steps] == ()
    assert on_cuda[steps] == (Bar("15 us", 1.0, 15e-6),)
    assert on_cuda[f"{steps}, 1 without a mask"] == (Bar("100 us", 1.0, 100e-6),)


def test_a_wrong_mask_is_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "apply_bitmask_", lambda logits, mask: logits)
    with pytest.raises(AssertionError, match="apply_bitmask_ forbade other tokens"):
        run.measure(Case("apply", (), WORKLOADS["apply"]))
