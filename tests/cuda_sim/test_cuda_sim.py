"""The op suite on the CUDA kernels, run by the simulator: five schedules, AddressSanitizer and UBSan."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import mutate
import pytest
import sim_build

from tokops._native import declared

SEEDS = range(5)
PARTS = 2  # of a suite, so that no core waits long for the last one


def _suite(library: str, seed: int, part: int) -> tuple[list[dict], str | None]:
    """What suite.py printed under one schedule, and its errors where it ended badly."""
    done = subprocess.run(
        [sys.executable, str(sim_build.HERE / "suite.py"), library, "--seed", str(seed),
         "--part", str(part), str(PARTS)],
        env=sim_build.environment(sanitized=True), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines, None if done.returncode in (0, 1) else done.stderr[:6000]


def _read(result: dict, lines: list[dict], errors: str | None) -> None:
    """Adds to the kernels, the errors by op and case, and where it died."""
    open_case = None
    for line in lines:
        result["kernels"] += line.get("kernels", [])
        open_case = line if "begin" in line else None
        if "end" in line:
            result["cases"].setdefault(line["end"], {})[line["label"]] = line["error"]
    if errors is not None or open_case or not lines:
        op, label = (open_case["begin"], open_case["label"]) if open_case else (None, "")
        result["died"] = (op, label, errors or "")


@pytest.fixture(scope="module")
def results() -> dict[int, dict]:
    """The suite under every schedule, as many processes at a time as there are cores."""
    library = str(sim_build.op_library(sanitized=True))
    found: dict[int, dict] = {seed: {"kernels": [], "cases": {}, "died": None} for seed in SEEDS}
    work = [(seed, part) for seed in SEEDS for part in range(PARTS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (seed, _), told in zip(work, pool.map(lambda x: _suite(library, *x), work), strict=True):
            _read(found[seed], *told)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(declared))
@pytest.mark.parametrize("seed", SEEDS)
def test_kernel_matches_reference(results, seed, op):
    result = results[seed]
    died = result["died"]
    assert not died or died[0] != op, f"the process died in {died[1]}:\n{died[2]}"
    if op not in result["kernels"]:
        assert not died or result["kernels"], died[2]
        lacking = [str(b.relative_to(sim_build.ROOT)) for b in sim_build.sources()[2]]
        pytest.skip(f"{op} has no CUDA kernel; bindings without a .cu: {', '.join(lacking) or 'none'}")
    cases = result["cases"].get(op, {})
    if not cases and died:
        pytest.fail(f"did not run: the process died before, in {died[0]} {died[1]}")
    assert cases, f"{op} has no cases('small')"
    wrong = {label: error for label, error in cases.items() if error}
    assert not wrong, "\n".join(f"{label}: {error}" for label, error in wrong.items())


def test_mutants_apply():
    """mutate.py takes half an hour and runs by hand; that each entry names one place is checked here."""
    assert len(list(mutate.barriers())) >= 5
    assert len(list(mutate.shifts())) >= 30
