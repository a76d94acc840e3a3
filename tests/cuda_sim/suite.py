"""Runs ops' `cases("small")` on a simulated library against their references, in this process, under one schedule.

Prints one JSON object per line: `{"begin": op, "label": ...}` before a case, `{"end": op, "label": ..., "error": ...}`
after it, and first `{"kernels": [...]}`, the ops that the library has. A sanitizer that stops the process leaves a case
without an end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Iterator

import torch

import tokops._native

#: What rounding to the dtype, and sums in another order, may change: rtol, atol.
TOLERANCE = {
    torch.float32: (1e-4, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1e-2),
}


def cases() -> Iterator[tuple[str, str, tuple, dict]]:
    """Small inputs of every op that has some: (op, label, args, kwargs)."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("tokops.") and hasattr(module, "cases"):
            yield from module.cases("small")


def kernels() -> list[str]:
    """Declared ops for which the loaded library has a kernel."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in tokops._native.declared if has(f"tokops::{name}", "CPU")]


def _copied(x):
    if isinstance(x, torch.Tensor):  # strides and all: an expanded view stays one
        base = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0).clone()
        return base.as_strided(x.shape, x.stride(), x.storage_offset())
    if isinstance(x, dict):
        return {k: _copied(v) for k, v in x.items()}
    return type(x)(_copied(v) for v in x) if isinstance(x, list | tuple) else x


def _tensors(x) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [t for v in x for t in _tensors(v)] if isinstance(x, list | tuple) else []


def difference(op: str, args: tuple, kwargs: dict) -> str | None:
    """What the kernel's results and arguments after the call have that the reference's have not."""
    sides = []
    for call in (getattr(torch.ops.tokops, op).default, tokops._native.declared[op]):
        a, k = _copied(args), _copied(kwargs)
        try:
            sides.append(_tensors((call(*a, **k), a, k)))
        except RuntimeError as e:
            return f"{'kernel' if not sides else 'reference'} raised {e}"
    for i, (got, want) in enumerate(zip(*sides, strict=True)):
        rtol, atol = TOLERANCE.get(want.dtype, (0, 0))
        try:
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as e:
            return f"tensor {i} of results and arguments: {e}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", action="append", help="only these ops")
    parser.add_argument("--every", type=int, default=1, help="only each n-th case of an op")
    parser.add_argument("--stop", action="store_true", help="end at the first case that fails")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.ops.load_library(options.library)
    set_seed = ctypes.CDLL(options.library).tokops_sim_seed
    found = kernels()
    print(json.dumps({"kernels": found}), flush=True)
    wanted = [n for n in found if n in (options.op or found)]
    count = dict.fromkeys(wanted, 0)
    failed = False
    for op, label, args, kwargs in cases():
        if op not in wanted:
            continue
        count[op] += 1
        if count[op] % options.every:
            continue
        print(json.dumps({"begin": op, "label": label}), flush=True)
        set_seed(options.seed)  # a case meets the same schedule whether others ran before it or not
        error = difference(op, args, kwargs)
        print(json.dumps({"end": op, "label": label, "error": error}), flush=True)
        failed |= error is not None
        if failed and options.stop:
            break
    sys.exit(failed)


if __name__ == "__main__":
    main()
