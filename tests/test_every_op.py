"""What holds of every op, over the named inputs that each op module gives."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
import torch
from compare import assert_same, assert_within_dtype_error

import tokops
from tokops import _native
from tokops._discover import modules_of

FAMILIES = [
    m.name for m in pkgutil.iter_modules(tokops.__path__) if m.ispkg and m.name not in ("hf", "methods")
]
MODULES = [
    module
    for family in FAMILIES
    for package in [importlib.import_module(f"tokops.{family}")]
    for module in modules_of(package.__name__, package.__path__)
]
CASES = [case for module in MODULES if hasattr(module, "cases") for case in module.cases("small")]
IDS = [f"{op}: {label}" for op, label, _, _ in CASES]
ISAS = ("base", "avx2", "avxvnni", "avx512", "avx512bf16", "amx")


def tree_map(f, x):
    if isinstance(x, torch.Tensor):
        return f(x)
    if isinstance(x, (list, tuple)):
        return type(x)(tree_map(f, y) for y in x)
    return {k: tree_map(f, v) for k, v in x.items()} if isinstance(x, dict) else x


def tensors(x) -> list[torch.Tensor]:
    found = []
    tree_map(found.append, x)
    return found


def run(fn, args, kwargs):
    """Results of a call, and its arguments after it, on copies of the arguments."""
    args, kwargs = tree_map(torch.clone, args), tree_map(torch.clone, kwargs)
    results = fn(*args, **kwargs)
    return tensors(results) + tensors(args)


def assert_agree(got, want, dtype):
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        if g.dtype.is_floating_point:
            assert_within_dtype_error(g, w, dtype if g.dtype == torch.float32 else g.dtype)
        else:
            assert_same(g, w)


def lowest_float(args) -> torch.dtype:
    """The dtype an op computes in: of its first floating argument."""
    return next((t.dtype for t in tensors(args) if t.dtype.is_floating_point), torch.float32)


def check_reference(op, args, kwargs):
    """The kernel gives what the reference does; returns what it gave."""
    # lse and scores are float32 sums of products of rounded inputs: exact inputs, so float32 error.
    dtype = torch.float32 if lowest_float(args) == torch.float32 else torch.float16
    got = run(getattr(torch.ops.tokops, op).default, args, kwargs)
    assert_agree(got, run(_native.declared[op], args, kwargs), dtype)
    return got


def check_shifted(op, args, kwargs, want):
    """The kernel gives what it gave, on operands that start inside of a larger storage, at an odd element."""

    def shifted(t):
        room = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)  # keeps the strides of pools
        size = room.untyped_storage().nbytes() // max(t.element_size(), 1) + 3
        view = torch.empty(size, dtype=t.dtype).as_strided(t.shape, t.stride(), 3)
        return view.copy_(t)

    native = getattr(torch.ops.tokops, op).default
    args, kwargs = tree_map(shifted, args), tree_map(shifted, kwargs)
    got = tensors(native(*args, **kwargs)) + tensors(args)
    if "cpu" in _native.loaded:
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g.nan_to_num(7.0), w.nan_to_num(7.0))
    else:  # torch sums in an order that depends on the alignment
        assert_agree(got, want, lowest_float(args))


@pytest.mark.parametrize(("op", "label", "args", "kwargs"), CASES, ids=IDS)
def test_native_is_the_reference(op, label, args, kwargs, device):
    if device != "cpu" and label.endswith("(CPU)"):
        pytest.skip("a format that the CPU alone reads")
    args, kwargs = (tree_map(lambda t: t.to(device), x) for x in (args, kwargs))
    check_reference(op, args, kwargs)


@pytest.mark.parametrize(("op", "label", "args", "kwargs"), CASES, ids=IDS)
def test_shifted_views_change_nothing(op, label, args, kwargs):
    want = run(getattr(torch.ops.tokops, op).default, args, kwargs)
    check_shifted(op, args, kwargs, want)


def first_case_of_each_op():
    seen = set()
    for case in CASES:
        if case[0] not in seen:
            seen.add(case[0])
            yield case


@pytest.mark.parametrize(("op", "label", "args", "kwargs"), list(first_case_of_each_op()))
def test_opcheck(op, label, args, kwargs):
    args, kwargs = tree_map(torch.clone, args), tree_map(torch.clone, kwargs)
    torch.library.opcheck(getattr(torch.ops.tokops, op).default, args, kwargs)


def test_every_declared_op_has_cases():
    assert {op for op, *_ in CASES} == set(_native.declared)


@pytest.mark.skipif("cpu" not in _native.loaded, reason="the references are loaded instead of kernels")
def test_every_declared_op_has_a_kernel():
    for op in _native.declared:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tokops::{op}", "CPU"), op


def child(**environment):
    """This file again in a fresh process, under another instruction set or none."""
    env = {**os.environ, **environment, "TOKOPS_CHILD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TOKOPS_CHILD") == "1", reason="already the child")
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    probe = "import torch, tokops; print(torch.ops.tokops._cpu_isa())"
    env = {**os.environ, "TOKOPS_CPU_ISA": isa}
    got = subprocess.run(
        [sys.executable, "-c", probe], env=env, capture_output=True, text=True
    ).stdout.strip()
    if got != isa:
        pytest.skip(f"this CPU has no {isa}")
    result = child(TOKOPS_CPU_ISA=isa)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TOKOPS_CHILD") == "1", reason="already the child")
@pytest.mark.parametrize("maker", ["amd", "intel"])
def test_what_suits_the_cpus_of_each_maker(maker):
    result = child(TOKOPS_CPU_TUNE=maker)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TOKOPS_CHILD") == "1", reason="already the child")
def test_references_alone():
    result = child(TOKOPS_REFERENCE="1")
    assert result.returncode == 0, result.stdout[-3000:]
