"""Tiles of packed attention by products of bytes in 256 bits; by words on CPUs that have none."""

import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
CXX = os.environ.get("CXX", "g++")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
WAYS = {  # flags of the compiler, and what the CPU must have
    "words": ((*AVX2, "-DTOKOPS_BYTES_BY_WORDS"), ("avx2", "fma", "f16c")),
    "avxvnni": ((*AVX2, "-mavxvnni"), ("avx2", "fma", "f16c", "avx_vnni")),
}


def cpu_flags() -> set[str]:
    info = pathlib.Path("/proc/cpuinfo")
    line = (
        next((x for x in info.read_text().splitlines() if x.startswith("flags")), "") if info.exists() else ""
    )
    return set(line.split())


@pytest.mark.parametrize("way", WAYS)
def test_tiles_are_those_of_float64(way, tmp_path):
    flags, needed = WAYS[way]
    if missing := set(needed) - cpu_flags():
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    if shutil.which(CXX) is None:
        pytest.skip(f"there is no {CXX}")
    program = tmp_path / "byte_products"
    source, include = HERE / "byte_products.cpp", HERE.parents[1] / "csrc"
    command = [
        CXX,
        "-std=c++20",
        "-O1",
        *flags,
        f"-I{include}",
        "-DTOKOPS_BACKEND_IS_CUDA=0",
        source,
        "-o",
        program,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:2000]
    found = subprocess.run([program], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "by products of bytes, 32 a vector" in found.stdout
