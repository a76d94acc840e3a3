"""The benchmark of the grammar kernels on tiny shapes: every kind of case is checked against opponents and timed."""

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


def test_a_wrong_mask_is_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "apply_bitmask_", lambda logits, mask: logits)
    with pytest.raises(AssertionError, match="apply_bitmask_ forbade other tokens"):
        run.measure(Case("apply", (), WORKLOADS["apply"]))
