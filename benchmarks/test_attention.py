"""The attention benchmark under pytest-benchmark: `pytest benchmarks [--benchmark-json FILE]`.

Every case is checked against its opponents, then ours, opponents and floor are timed in turn; their medians
and ratios stand in ``extra_info``, and pytest-benchmark's own columns are the times of ours.
"""

import pytest
import torch

from tokops.bench.attention import cases
from tokops.bench.run import machine, measure

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize(
    ("device", "case"),
    [pytest.param(name, case, id=f"{name}: {case.label}") for name in DEVICES for case in cases(name)],
)
def test_attention(benchmark, device, case):
    row = measure(case, device=device)
    benchmark.group = device
    benchmark.extra_info.update(machine(device) | row.to_dict())
    benchmark.pedantic(case.build().ours, rounds=10, warmup_rounds=1)
    print(
        f"\n{row.label}: {row.rate:.1f} GB/s, {row.of_floor:.0%} of the read bandwidth; "
        + "; ".join(f"{v.against} {v.ratio:.2f} (bar {v.least:.2f})" for v in row.verdicts)
    )
