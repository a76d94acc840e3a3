"""The KL table of quantised caches on two Debian texts, beside a simulation's.

The simulation quantised and decoded SmolLM2's keys and values in plain torch: two windows of 4096 tokens ("The
Anarchist FAQ", the King James Bible), teacher-forced 64 tokens a forward, pages of 64, the newest 128 to 191 tokens
in full precision, perplexity over positions from 512 on, KL and top-1 over every fourth chunk of these. Here the same
windows go through `tokops.patch` and the kernels. A row's KL should be within 10 % of the simulation's; of those given
with one digit, within rounding.

    python benchmarks/kv_reference.py --threads 2 --out benchmarks/results

Needs apt-get and dpkg-deb, and the package index of Debian 12. Prompts are read as chunks here, against what is packed
already, as the simulation did: a prompt of one forward would be attended to in full precision.
"""

import argparse
import json
import math
import pathlib
import re
import subprocess
import tempfile

import torch
from tqdm import tqdm

import tokops
from tokops.bench.run import machine
from tokops.hf import load_smollm2
from tokops.hf.quality import kl_divergence, teacher_forced
from tokops.methods import Dense, QuantizedKV

WINDOW, CHUNK, SCORED = 4096, 64, 512
_PLAIN = {"sinks": 0, "residual": 128, "full_first": False, "rotate": False}
_ROTATED = {**_PLAIN, "rotate": True}

#: Method, and perplexity, KL and top-1 of the simulation.
ROWS = {
    "int8 / int8": (QuantizedKV(8, **_PLAIN), 10.22, 3e-5, 0.997),
    "e4m3 / e4m3, a scale per token": (QuantizedKV("fp8_e4m3", **_PLAIN), 10.23, 0.0007, 0.986),
    "int4 / int4, rotated": (QuantizedKV(4, **_ROTATED), 10.26, 0.0042, 0.965),
    "int4 per channel / int4": (QuantizedKV(4, key_geometry="channel", **_PLAIN), 10.28, 0.0066, 0.957),
    "int4 / int4": (QuantizedKV(4, **_PLAIN), 10.30, 0.0109, 0.946),
    "int4 / full": (QuantizedKV((4, 16), **_PLAIN), 10.29, 0.0084, 0.954),
    "full / int4": (QuantizedKV((16, 4), **_PLAIN), 10.24, 0.0020, 0.976),
    "int3 / int3, rotated": (QuantizedKV(3, **_ROTATED), 10.51, 0.031, 0.916),
    "int3 per channel / int3": (QuantizedKV(3, key_geometry="channel", **_PLAIN), 10.58, 0.038, 0.895),
    "int2 per channel / int2, groups of 32": (QuantizedKV(2, key_geometry="channel", **_PLAIN), 13.25, 0.296, 0.725),
    "the same, first page full": (
        QuantizedKV(2, key_geometry="channel", **{**_PLAIN, "full_first": True}), 11.66, 0.153, 0.804,
    ),
}  # fmt: skip


def packages(*names: str) -> pathlib.Path:
    """A folder with the files of Debian packages."""
    folder = pathlib.Path(tempfile.mkdtemp())
    subprocess.run(["apt-get", "download", *names], cwd=folder, check=True, capture_output=True)
    for file in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", file, folder / "root"], check=True)
    return folder / "root"


def anarchism() -> str:
    """The FAQ's pages, in the order of their names, without tags and with single spaces; entities stay as they are."""
    pages = sorted(packages("anarchism").glob("usr/share/doc/anarchism/html/**/*.html"))
    text = "\n".join(re.sub(r"<[^>]+>", "", x.read_text("utf-8", "ignore")) for x in pages)
    return re.sub(r"\s+", " ", text)


def bible() -> str:
    """Every verse, without its number."""
    root = packages("bible-kjv", "bible-kjv-text")
    lines = subprocess.run(
        [root / "usr/bin/bible", "-p", root / "usr/lib", "-f", "Gen1:1-Rev22:21"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return "\n".join(line.partition(" ")[2] for line in lines)


def window(text: str, tokenizer) -> torch.Tensor:
    """The first tokens of the middle of a text, one more than a window has."""
    begin = len(text) // 3
    return tokenizer(text[begin : begin + 200_000], return_tensors="pt").input_ids[0][: WINDOW + 1]


@torch.no_grad()
def predictions(model, method, ids: torch.Tensor, bar) -> torch.Tensor:
    """Logits of a window's positions from SCORED on."""
    with tokops.patch(model, method, page_size=64) as run:
        return teacher_forced(model, run.new_cache(), ids[:-1], CHUNK, bar.update)[SCORED:]


def measure(model, windows: list[torch.Tensor]) -> list[dict]:
    """Rows of the table, dense first."""
    rows, dense = [], []
    every = torch.arange(WINDOW - SCORED) // CHUNK % 4 == 0
    for label, (method, *expected) in {"dense": (Dense(), 10.22, 0.0, 1.0), **ROWS}.items():
        loss, kl, same = [], [], []
        with tqdm(total=len(windows) * WINDOW, desc=label, unit="token") as bar:
            for i, ids in enumerate(windows):
                logits = predictions(model, method, ids, bar)
                if len(dense) == i:
                    dense.append(logits)
                loss.append(torch.nn.functional.cross_entropy(logits, ids[SCORED + 1 :], reduction="none"))
                kl.append(kl_divergence(dense[i][every], logits[every]))
                same.append((dense[i][every].argmax(-1) == logits[every].argmax(-1)).double())
        rows.append(
            {
                "store": label,
                "perplexity": math.exp(torch.cat(loss).double().mean()),
                "kl": float(torch.cat(kl).mean()),
                "top1": float(torch.cat(same).mean()),
                "simulated": dict(zip(("perplexity", "kl", "top1"), expected, strict=True)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_smollm2(torch.float32)
    rows = measure(model, [window(text, tokenizer) for text in (anarchism(), bible())])
    for row in rows:
        old = row["simulated"]
        print(
            f"{row['store']:40} ppl {row['perplexity']:6.2f} ({old['perplexity']:5.2f})  KL {row['kl']:.6f} "
            f"({old['kl']:g})  top-1 {row['top1']:.3f} ({old['top1']:.3f})"
        )
    if options.out:
        file = options.out / "kv-reference.json"
        file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
