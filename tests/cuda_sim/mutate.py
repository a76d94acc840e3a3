"""Breaks paged_decode's and packed_decode's CUDA kernels on purpose, place by place, and shows that a test turns red.

Every barrier and every wait for a copy is taken out in turn, then every line of mutants.py is applied: a
shifted index, a swapped pair, a bound one off. A mutant that no schedule of the plain library catches is
tried under the sanitizers. Prints each mutant's fate; status 1 if one survived that is not explained.

    python tests/cuda_sim/mutate.py [--only WORD] [--list]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import mutants
import sim_build

OPS = ("paged_decode", "paged_decode_scores", "paged_scores", "packed_decode")
SEEDS = range(5)
TIMEOUT = 300  # a mutant may loop for ever
#: Barriers and waits: what stands there, and the same without its waiting.
BARRIERS = (
    (re.compile(r"__syncthreads_or\("), "("),
    (re.compile(r"__syncthreads\(\);"), ";"),
    (re.compile(r"__syncwarp\([^;]*\);"), ";"),
    (re.compile(r"(?<!void )\bTeam::sync\(\);"), ";"),
    (re.compile(r"ptx::cp_async_wait<[^;]*>\(\);"), ";"),
)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed file. `explained` says why nothing can turn red, where that is so."""

    file: pathlib.Path
    line: int
    what: str
    text: str
    explained: str = ""


def files() -> dict[str, pathlib.Path]:
    """The kernels' files by the short names that the list uses: cu, mma.cu, tile.cuh, ..., packed.cu, ..."""
    folder = sim_build.CSRC / "attention"
    found = [p for name in ("paged", "packed") for p in sorted(folder.glob(f"{name}_decode*.cu*"))]
    return {p.name.removeprefix("paged_decode.").replace("packed_decode", "packed"): p for p in found}


def _mutant(file: pathlib.Path, text: str, span: tuple[int, int], new: str, explained: str = "") -> Mutant:
    old = " ".join(text[slice(*span)].split())
    line = text.count("\n", 0, span[0]) + 1
    what = f"{old}  ->  {new or 'nothing'}"
    return Mutant(file, line, what, text[: span[0]] + new + text[span[1] :], explained)


def barriers() -> Iterator[Mutant]:
    """Each barrier and each wait, removed."""
    for file in files().values():
        text = file.read_text()
        for pattern, new in BARRIERS:
            for m in pattern.finditer(text):
                yield _mutant(file, text, m.span(), new)


def shifts() -> Iterator[Mutant]:
    """The list of mutants.py. Raises LookupError for an entry that does not name exactly one place."""
    for name, old, new, *explained in mutants.SHIFTS:
        file = files()[name]
        text = file.read_text()
        # The formatter may break a line anywhere that a space stands.
        places = list(re.finditer(r"\s+".join(map(re.escape, old.split())), text))
        if len(places) != 1:
            raise LookupError(f"{file.name}: {old!r} stands in {len(places)} places")
        yield _mutant(file, text, places[0].span(), new, *explained)


def build(mutant: Mutant, folder: pathlib.Path, sanitized: bool) -> pathlib.Path:
    """The op library with one file changed: only what includes it is compiled again."""
    changed = folder / mutant.file.relative_to(sim_build.CSRC)
    changed.parent.mkdir(parents=True, exist_ok=True)
    if not changed.exists() or changed.read_text() != mutant.text:
        changed.write_text(mutant.text)
    units = []
    for unit in sim_build.op_units(sanitized):
        if str(mutant.file) in unit.headers():
            source = changed if unit.source == mutant.file else unit.source
            target = folder / ("sanitized" if sanitized else "plain") / unit.target.name
            unit = sim_build.Unit(source, target, (f"-I{folder}", *unit.flags))
        units.append(unit)
    return sim_build.link(units, folder / f"libmutant{int(sanitized)}.so", sim_build.op_flags(sanitized))


def red(library: pathlib.Path, sanitized: bool) -> str | None:
    """How the suite fails on a library, or None."""
    command = [sys.executable, str(sim_build.HERE / "suite.py"), str(library), "--stop"]
    command += [word for op in OPS for word in ("--op", op)]
    command += [word for seed in SEEDS for word in ("--seed", str(seed))]
    try:
        done = subprocess.run(
            command, env=sim_build.environment(sanitized), capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return "never ends"
    if done.returncode == 0:
        return None
    if done.returncode == 1 and '"error": "' in done.stdout:
        return "wrong result"
    report = re.search(r"runtime error: .*|ERROR: AddressSanitizer: [\w-]*", done.stderr)
    return report[0] if report else f"process ended with {done.returncode}"


def verdict(number: int, mutant: Mutant) -> tuple[Mutant, str | None]:
    folder = sim_build.ROOT / "build/cuda_sim/mutants" / str(number)
    found = None
    for sanitized in (False, True):
        if found is None and not (sanitized and mutant.explained):
            try:
                found = red(build(mutant, folder, sanitized), sanitized)
            except RuntimeError as e:
                found = f"does not compile: {str(e)[-300:]}"
    return mutant, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose description has this word")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    chosen = [m for m in (*barriers(), *shifts()) if options.only in f"{m.file.name}:{m.line} {m.what}"]
    if options.list:
        print(*(f"{m.file.name}:{m.line} {m.what}" for m in chosen), sep="\n")
        return
    for sanitized in (False, True):
        failure = red(sim_build.op_library(sanitized), sanitized)
        if failure:
            sys.exit(f"the kernel as it is fails already: {failure}")
    survivors = []
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        for mutant, found in pool.map(lambda job: verdict(*job), enumerate(chosen)):
            state = found or (f"survives: {mutant.explained}" if mutant.explained else "SURVIVES")
            print(f"{mutant.file.name}:{mutant.line} {mutant.what}\n    {state}", flush=True)
            unexplained = found is None and not mutant.explained
            survivors += [mutant] if unexplained or (found or "").startswith("does not compile") else []
    print(f"{len(chosen)} mutants, {len(survivors)} to look at")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
