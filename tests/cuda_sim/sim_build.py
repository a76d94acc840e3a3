"""Builds csrc's CUDA kernels with g++ over the simulator, into a library that a CPU torch can load."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CXX = os.environ.get("CXX", "g++")
#: Where headers come from when no CUDA toolkit is installed; torch's own CUDA 13 wheels need them too.
HEADER_WHEELS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85")
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-g1", "-Wall", "-Wno-unknown-pragmas")
SANITIZE = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
#: As nvcc does with CUDA's own words, the simulator's come before the first line of the file.
KERNEL = ("-x", "c++", "-DTOKOPS_CUDA_SIM_KERNEL", "-include", "sim.h")


def cuda_headers() -> pathlib.Path:
    """The folder with cuda_runtime.h: from PyPI wheels, else from an installed toolkit."""
    spec = importlib.util.find_spec("nvidia")
    places = [pathlib.Path(p) / "cu13/include" for p in (spec.submodule_search_locations if spec else ())]
    nvcc = shutil.which("nvcc")
    if nvcc:
        places.append(pathlib.Path(nvcc).resolve().parents[1] / "include")
    places.append(pathlib.Path("/usr/local/cuda/include"))
    for place in places:
        if (place / "cuda_fp16.h").exists() and (place / "crt/host_defines.h").exists():
            return place
    raise RuntimeError(f"no CUDA headers: pip install {' '.join(HEADER_WHEELS)}")


@dataclasses.dataclass(frozen=True)
class Unit:
    """One source file, its object and the flags between."""

    source: pathlib.Path
    target: pathlib.Path
    flags: tuple[str, ...]

    def headers(self) -> list[str]:
        """The files that the last compilation read."""
        return self.target.with_suffix(".d").read_text().split(":", 1)[1].replace("\\\n", " ").split()


def folder(sanitized: bool) -> pathlib.Path:
    """Where objects and libraries go."""
    return ROOT / "build/cuda_sim" / ("sanitized" if sanitized else "plain")


def _object(source: pathlib.Path, sanitized: bool) -> pathlib.Path:
    base = CSRC if source.is_relative_to(CSRC) else HERE
    return folder(sanitized) / ("_".join(source.relative_to(base).parts) + ".o")  # shared.ld looks for .cu.o


def _includes() -> tuple[str, ...]:
    return (f"-I{CSRC}", f"-I{HERE}", "-isystem", str(cuda_headers()))


def kernel_unit(source: pathlib.Path, sanitized: bool) -> Unit:
    """A .cu file, compiled as C++."""
    flags = (*FLAGS, *KERNEL, *_includes(), "-O1", *(SANITIZE if sanitized else ()))
    return Unit(source, _object(source, sanitized), flags)


def simulator_units(sanitized: bool) -> list[Unit]:
    """The simulator, never under AddressSanitizer: it copies red zones and leaves frames behind."""
    flags = (*FLAGS, *_includes(), "-O2")
    return [Unit(f, _object(f, sanitized), flags) for f in sorted(HERE.glob("*.cpp"))]


def _binding_unit(source: pathlib.Path, sanitized: bool) -> Unit:
    include = pathlib.Path(torch.__file__).parent / "include"
    words = ("TOKOPS_CUDA_SIM=1", "TOKOPS_BACKEND_IS_CUDA=0", "TORCH_TARGET_VERSION=0x020b000000000000")
    flags = (*FLAGS, *(f"-D{w}" for w in words), f"-I{CSRC}", "-isystem", str(include), "-O1")
    return Unit(source, _object(source, sanitized), flags + (SANITIZE if sanitized else ()))


def sources() -> tuple[list[pathlib.Path], list[pathlib.Path], list[pathlib.Path]]:
    """Kernels, bindings that have one, and bindings that have none (x.cpp without x.cu or x.<part>.cu)."""
    kernels = sorted(CSRC.rglob("*.cu"))
    stems = {(k.parent, k.name.split(".", 1)[0]) for k in kernels}
    bindings = [b for b in sorted(CSRC.rglob("*.cpp")) if not b.name.endswith(".isa.cpp")]
    has = {b: (b.parent, b.stem) in stems or b.parent.name == "common" for b in bindings}
    return kernels, [b for b in bindings if has[b]], [b for b in bindings if not has[b]]


def _stale(unit: Unit, command: Sequence[str]) -> bool:
    """Whether an object must be made again: other flags, or a newer source or header than it."""
    made = unit.target.with_suffix(".cmd")
    if not (unit.target.exists() and made.exists() and made.read_text() == " ".join(command)):
        return True
    time = unit.target.stat().st_mtime
    return any(not os.path.exists(f) or os.stat(f).st_mtime > time for f in unit.headers())


def _older(library: pathlib.Path, units: Sequence[Unit]) -> bool:
    """Whether a library lacks an object's last state, which another library's build may have made."""
    made = library.stat().st_mtime if library.exists() else 0.0
    return any(unit.target.stat().st_mtime > made for unit in units)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr or done.stdout}")


def _compile(unit: Unit) -> None:
    depends = unit.target.with_suffix(".d")
    command = [CXX, *unit.flags, "-MMD", "-MF", str(depends), "-c", str(unit.source), "-o", str(unit.target)]
    if not _stale(unit, command):
        return
    unit.target.parent.mkdir(parents=True, exist_ok=True)
    _run(command)
    unit.target.with_suffix(".cmd").write_text(" ".join(command))


def link(units: Sequence[Unit], library: pathlib.Path, flags: Sequence[str] = ()) -> pathlib.Path:
    """Compile what changed, as many files at a time as there are cores, and link if anything did."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        list(pool.map(_compile, units))
    script = f"-Wl,-z,defs,-Bsymbolic,-T,{HERE / 'shared.ld'}"
    objects = [str(unit.target) for unit in units]
    command = [CXX, "-shared", "-fuse-ld=bfd", "-o", str(library), *objects, script, *flags]
    made = library.with_suffix(".cmd")
    if not (made.exists() and made.read_text() == " ".join(command)) or _older(library, units):
        _run(command)
        made.write_text(" ".join(command))
    return library


def op_units(sanitized: bool = False) -> list[Unit]:
    """What the simulated op library is made of."""
    kernels, bindings, _ = sources()
    units = [_binding_unit(b, sanitized) for b in bindings] + simulator_units(sanitized)
    return units + [kernel_unit(k, sanitized) for k in kernels]


def op_flags(sanitized: bool = False) -> list[str]:
    """How it is linked."""
    torch_libraries = pathlib.Path(torch.__file__).parent / "lib"
    return [f"-L{torch_libraries}", "-ltorch_cpu", *(SANITIZE if sanitized else ())]


def op_library(sanitized: bool = False) -> pathlib.Path:
    """Build the simulated op library."""
    return link(op_units(sanitized), folder(sanitized) / "libtokops_sim.so", op_flags(sanitized))


def sample_library(sanitized: bool = False) -> pathlib.Path:
    """Build the library of samples/words.cu."""
    units = [kernel_unit(HERE / "samples/words.cu", sanitized), *simulator_units(sanitized)]
    return link(units, folder(sanitized) / "libsamples.so", SANITIZE if sanitized else ())


def environment(sanitized: bool) -> dict[str, str]:
    """What a process needs around it to load one of these libraries."""
    found = dict(os.environ, TOKOPS_REFERENCE="1", OMP_NUM_THREADS="1")
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT / "python"), *filter(None, [found.get("PYTHONPATH")])])
    if sanitized:
        # libstdc++ too: the sanitizer looks up its throw at start, before torch would bring it.
        preload = [
            subprocess.check_output([CXX, f"-print-file-name={lib}"], text=True).strip()
            for lib in ("libasan.so", "libubsan.so", "libstdc++.so")
        ]
        found.update(
            LD_PRELOAD=":".join(preload),
            ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
            UBSAN_OPTIONS="print_stacktrace=1",
        )
    return found


if __name__ == "__main__":
    print(op_library())
    print(op_library(sanitized=True))
