"""How much the demo measures, and the rows that come out of it."""

import os
import pathlib
from dataclasses import asdict, dataclass

import torch

from tokops.hf.quality import Quality

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """Sizes of one run of the demo.

    Attributes:
        prompt: tokens of the document that are prefilled.
        stretch: held-out tokens after it, over which quality is measured.
        chunk: of them, tokens per forward.
        greedy: steps of the comparison with stock decoding, token by token.
        budgets: TidalDecode budgets at batch 1, with their quality.
        batch: continuations of the one document.
        batch_budgets: TidalDecode budgets at that batch.
        rounds: most timed steps of each way of decoding.
        least: timed steps that even a slow way gets.
        seconds: time after which a way that has its least steps is not timed further.
    """

    prompt: int = 7900
    stretch: int = 192
    chunk: int = 8
    greedy: int = 256
    budgets: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    batch: int = 8
    batch_budgets: tuple[int, ...] = (128, 512, 2048)
    rounds: int = 20
    least: int = 5
    seconds: float = 3.0

    @property
    def room(self) -> int:
        """Tokens that a cache has to hold."""
        return self.prompt + max(self.stretch, self.greedy, self.rounds + 2) + 2


FULL = Plan()
QUICK = Plan(
    prompt=3900,
    stretch=64,
    greedy=64,
    budgets=(128, 512, 2048),
    batch_budgets=(512,),
    rounds=8,
    least=3,
    seconds=1.0,
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        dtype: "fp32" or "bf16".
        setting: "batch 1", "batch 8, copied" or "batch 8, shared".
        way: name of the way of decoding.
        tokens_per_second: over the whole batch, from the median step.
        ratio: to stock DynamicCache at the same precision and batch.
        kv_bytes_read: bytes of cache that attention reads per decoded token.
        quality: agreement with dense decoding; None where it is that of the same way at batch 1.
    """

    dtype: str
    setting: str
    way: str
    tokens_per_second: float
    ratio: float
    kv_bytes_read: float
    quality: Quality | None = None

    def to_dict(self) -> dict:
        """The row as plain data."""
        return asdict(self)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not tell."""
    info = pathlib.Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
    if hasattr(os, "sysconf") and all(name in os.sysconf_names for name in names):
        return os.sysconf(names[0]) * os.sysconf(names[1])
    return None
