"""Builds csrc's CUDA kernels with g++ over the simulator: one library that a CPU torch loads in place of ours."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CXX = os.environ.get("CXX", "g++")
#: Where headers come from when no CUDA toolkit is installed; torch's own CUDA 13 wheels need them too.
HEADER_WHEELS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85")
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-g1", "-Wall", "-Wno-unknown-pragmas")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
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
    """One source file to compile; the object is named after `name`."""

    source: pathlib.Path
    name: str
    flags: tuple[str, ...]


def _includes() -> tuple[str, ...]:
    return (f"-I{CSRC}", f"-I{HERE}", "-isystem", str(cuda_headers()))


def kernel_unit(source: pathlib.Path, name: str, sanitized: bool) -> Unit:
    """A .cu file, compiled as C++."""
    return Unit(source, f"{name}.cu.o", (*FLAGS, *KERNEL, *_includes(), "-O1", *(SANITIZE if sanitized else ())))


def simulator_units() -> list[Unit]:
    """The simulator itself. Without AddressSanitizer: it copies red zones and leaves frames behind."""
    return [Unit(HERE / f"{stem}.cpp", f"{stem}.o", (*FLAGS, *_includes(), "-O2")) for stem in ("sim", "runtime")]


def _binding_unit(source: pathlib.Path, sanitized: bool) -> Unit:
    import torch

    include = pathlib.Path(torch.__file__).parent / "include"
    defines = ("-DTOKOPS_CUDA_SIM=1", "-DTOKOPS_BACKEND_IS_CUDA=0", "-DTORCH_TARGET_VERSION=0x020b000000000000")
    name = "_".join(source.relative_to(CSRC).with_suffix(".o").parts)
    flags = (*FLAGS, *defines, f"-I{CSRC}", "-isystem", str(include), "-O1", *(SANITIZE if sanitized else ()))
    return Unit(source, name, flags)


def sources() -> tuple[list[pathlib.Path], list[pathlib.Path], list[pathlib.Path]]:
    """Kernels, the bindings that have one, and the bindings that have none (x.cpp without x.cu or x.<part>.cu)."""
    kernels = sorted(CSRC.rglob("*.cu"))
    stems = {(k.parent, k.name.split(".", 1)[0]) for k in kernels}
    bindings = [b for b in sorted(CSRC.rglob("*.cpp")) if not b.name.endswith(".isa.cpp")]
    has = {b: (b.parent, b.stem) in stems or b.parent.name == "common" for b in bindings}
    return kernels, [b for b in bindings if has[b]], [b for b in bindings if not has[b]]


def _stale(target: pathlib.Path, command: Sequence[str]) -> bool:
    """Whether an object must be made again: other flags, or a newer source or header than it."""
    made, depends = target.with_suffix(".cmd"), target.with_suffix(".d")
    if not (target.exists() and depends.exists() and made.exists() and made.read_text() == " ".join(command)):
        return True
    files = depends.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    time = target.stat().st_mtime
    return any(not os.path.exists(f) or os.stat(f).st_mtime > time for f in files)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr or done.stdout}")


def _compile(unit: Unit, folder: pathlib.Path) -> bool:
    target = folder / unit.name
    command = [CXX, *unit.flags, "-MMD", "-c", str(unit.source), "-o", str(target), "-MF", str(target.with_suffix(".d"))]
    if not _stale(target, command):
        return False
    _run(command)
    target.with_suffix(".cmd").write_text(" ".join(command))
    return True


def link(units: Sequence[Unit], folder: pathlib.Path, library: pathlib.Path, flags: Sequence[str]) -> pathlib.Path:
    """Compile what changed, as many files at a time as there are cores, and link if anything did."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        changed = list(pool.map(lambda unit: _compile(unit, folder), units))
    objects = [str(folder / unit.name) for unit in units]
    stamp, listing = library.with_suffix(".objects"), "\n".join(objects)
    if any(changed) or not library.exists() or not stamp.exists() or stamp.read_text() != listing:
        script = f"-Wl,-z,defs,-Bsymbolic,-T,{HERE / 'shared.ld'}"
        _run([CXX, "-shared", "-fuse-ld=bfd", "-o", str(library), *objects, script, *flags])
        stamp.write_text(listing)
    return library


def library(sanitized: bool = False, replace: dict[pathlib.Path, pathlib.Path] | None = None) -> pathlib.Path:
    """The simulated op library. `replace` compiles other files in place of some kernels, into a library beside it."""
    import torch

    kernels, bindings, _ = sources()
    replace = replace or {}
    folder = ROOT / "build/cuda_sim" / ("sanitized" if sanitized else "plain")
    units = [_binding_unit(b, sanitized) for b in bindings] + simulator_units()
    for k in kernels:
        stem = "_".join(k.relative_to(CSRC).with_suffix("").parts)
        units.append(kernel_unit(replace.get(k, k), stem + ("_replaced" if k in replace else ""), sanitized))
    flags = [f"-L{pathlib.Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", *(SANITIZE if sanitized else ())]
    name = "libtokops_sim_replaced.so" if replace else "libtokops_sim.so"
    return link(units, folder, folder / name, flags)


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
    print(library())
    print(library(sanitized=True))
