"""The benchmark of speculation under pytest-benchmark: `pytest benchmarks/test_speculative.py [--benchmark-json FILE]`.

Every case is checked, then ours and its opponents are timed in turn; medians and ratios stand in ``extra_info``.
"""

import pytest
import torch

from tokops.bench.run import machine, measure
from tokops.bench.speculative import cases

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize(
    ("device", "case"),
    [pytest.param(name, case, id=f"{name}: {case.label}") for name in DEVICES for case in cases(name)],
)
def test_speculative(benchmark, device, case):
    row = measure(case, device=device)
    benchmark.group = device
    benchmark.extra_info.update(machine(device) | row.to_dict())
    benchmark.pedantic(case.build().ours, rounds=10, warmup_rounds=1)
    peers = [f"{name} {seconds / row.seconds:.2f}x" for name, seconds in row.peers.items()]
    bars = [f"bar {v.against} {v.ratio:.2f} >= {v.least:.2f}" for v in row.verdicts]
    print(f"\n{row.label}: {row.seconds * 1e6:.1f} us; " + "; ".join(peers + bars))
