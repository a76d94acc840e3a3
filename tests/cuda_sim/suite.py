"""Runs the checks of tests/test_every_op.py on a simulated library, in this process, under one schedule.

Prints one JSON object per line: first `{"kernels": [...]}`, the ops that the library has, then for every case
`{"begin": op, "label": ...}` and `{"end": op, "label": ..., "error": ...}`. A case without an end is one in
which a sanitizer stopped the process.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import pathlib
import sys
import traceback

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import test_every_op as every


def kernels() -> list[str]:
    """Declared ops for which the loaded library has a kernel."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in every._native.declared if has(f"tokops::{name}", "CPU")]


def error_of(op: str, args: tuple, kwargs: dict, shifted: bool) -> str | None:
    """What is wrong with the kernel on one case: against the reference, and maybe on shifted operands."""
    try:
        got = every.check_reference(op, args, kwargs)
        if shifted:
            every.check_shifted(op, args, kwargs, got)
    except (AssertionError, RuntimeError):
        return traceback.format_exc(limit=-1)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("--seed", type=int, action="append", help="schedules, one after the other; default 0")
    parser.add_argument("--op", action="append", help="only these ops")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="of the cases: every nth from i on")
    parser.add_argument("--stop", action="store_true", help="end at the first case that fails")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # new memory is then full of NaN: what is not written shows
    torch.ops.load_library(options.library)
    set_seed = ctypes.CDLL(options.library).tokops_sim_seed
    found = kernels()
    print(json.dumps({"kernels": found}), flush=True)
    failed, (first, step) = False, options.part
    for seed in options.seed or [0]:
        for number, (op, label, args, kwargs) in list(enumerate(every.CASES))[first::step]:
            if op not in (options.op or found) or op not in found or label.endswith("(CPU)"):
                continue
            print(json.dumps({"begin": op, "label": label}), flush=True)
            set_seed(seed)  # a case meets the same schedule whether others ran before it or not
            # Where operands start is no matter of schedules: once in five.
            error = error_of(op, args, kwargs, shifted=(number + seed) % 5 == 0)
            print(json.dumps({"end": op, "label": label, "error": error}), flush=True)
            failed |= error is not None
            if failed and options.stop:
                sys.exit(1)
    sys.exit(failed)


if __name__ == "__main__":
    main()
