"""`tokops info`: which kernels this process uses, and why."""

import os
import platform

import torch
import typer
from rich.console import Console
from rich.table import Table

import tokops
from tokops import _native

SWITCHES = {
    "TOKOPS_CUDA": "build: 1 builds the CUDA library, 0 does not; unset: if torch has CUDA and nvcc is there",
    "TOKOPS_CUDA_ARCHS": "build: CUDA targets, as CMake names them",
    "TOKOPS_CPU_ISA": "run: the highest CPU instruction set to use",
    "TOKOPS_CPU_TUNE": "run: amd or intel, whose CPUs the choices are made for; unset: this CPU's maker",
    "TOKOPS_REFERENCE": "run: 1 loads no kernels; the plain PyTorch references run",
    "TOKOPS_CHECK": "run: 1 checks index values on CUDA devices too, at the cost of a synchronisation",
}


def _cpu_isa() -> str:
    chosen = torch.ops.tokops._cpu_isa()
    asked = os.environ.get("TOKOPS_CPU_ISA")
    if asked is None or asked == chosen:
        return f"kernels for {chosen}" + (" (TOKOPS_CPU_ISA)" if asked else ", the best this CPU has")
    return f"kernels for {chosen}; TOKOPS_CPU_ISA={asked} is unknown or more than this CPU has"


def _libraries() -> Table:
    table = Table("library", "state", "why, or where", title="native libraries", title_justify="left")
    for name in ("cpu", "cuda"):
        if name in _native.loaded:
            detail = _cpu_isa() if name == "cpu" else _native.loaded[name]
            table.add_row(name, "loaded", detail)
        else:
            table.add_row(name, "not loaded", _native.absent[name])
    return table


def _ops() -> Table:
    """For every op, what a call on each device runs."""
    table = Table("op", "on cpu", "on cuda", title="ops", title_justify="left")
    for name in sorted(_native.declared):
        kernels = (
            torch._C._dispatch_has_kernel_for_dispatch_key(f"tokops::{name}", key) for key in ("CPU", "CUDA")
        )
        table.add_row(name, *("kernel" if has else "reference" for has in kernels))
    return table


def info() -> None:
    """Which kernels are loaded and why, per op and device; versions, devices and switches."""
    console = Console()
    console.print(
        f"tokops {tokops.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            console.print(f"cuda:{index}: {device.name}, compute capability {device.major}.{device.minor}")
    else:
        console.print("no CUDA device: " + ("torch sees none" if torch.version.cuda else "torch has no CUDA"))
    console.print(_libraries())
    console.print(_ops())
    switches = Table("switch", "value", "meaning", title="environment", title_justify="left")
    for name, meaning in SWITCHES.items():
        switches.add_row(name, os.environ.get(name, "unset"), meaning)
    console.print(switches)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(info)
