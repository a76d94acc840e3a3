"""The references' side of csrc/common: random numbers by counter, and weights as integers.

Python integers and float tensors whose every operation rounds by itself, so that a reference gives the tokens that the
kernels give.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

ONE = 1 << 40
_MASK = (1 << 32) - 1


class Use(IntEnum):
    """What a draw is for: the last word of the counter."""

    ACCEPT = 0
    FINAL = 1
    DRAFT = 2
    PLAIN = 3
    RACE = 4


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of four words under a key of 64 bits."""
    a, b, c, d = counter
    low, high = key & _MASK, key >> 32 & _MASK
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ low, right & _MASK, (left >> 32) ^ d ^ high, left & _MASK
        low, high = (low + 0x9E3779B9) & _MASK, (high + 0xBB67AE85) & _MASK
    return a, b, c, d


@dataclass(frozen=True)
class Stream:
    """One request's random numbers; a draw is named by position, slot and use."""

    seed: int
    stream: int

    def bits(self, position: int, slot: int, use: Use) -> int:
        """64 random bits."""
        words = philox((position & _MASK, self.stream & _MASK, slot, int(use)), self.seed & (1 << 64) - 1)
        return words[1] << 32 | words[0]

    def uniform(self, position: int, slot: int, use: Use) -> float:
        """A number in [0, 1)."""
        return (self.bits(position, slot, use) >> 11) * 2.0**-53

    def pick(self, weights: Tensor, total: int, position: int, slot: int, use: Use) -> int:
        """The first index whose running sum of int64 ``weights [V]`` is more than a random part of their total."""
        part = self.bits(position, slot, use) * total >> 64
        return int((weights.cumsum(0) <= part).sum())


def fixed(w: Tensor) -> Tensor:
    """Float32 weights as int64 counts of 2^-40, cut; nothing for what is no weight."""
    return torch.where(w > 0, w.clamp_max(2.0**11).nan_to_num(0.0).double() * ONE, 0.0).long()


def fma(a: Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    """``a * b + c`` in float32, rounded once but for a double rounding that about one in 2^29 shows."""
    b, c = (x.double() if isinstance(x, Tensor) else x for x in (b, c))
    return (a.double() * b + c).float()


def f32(x: float) -> float:
    """The nearest float32."""
    return float(torch.tensor(x, dtype=torch.float32))


def exp_nonpositive(z: Tensor) -> Tensor:
    """e^z for float32 z <= 0, as csrc/common/exact.h has it."""
    x = z.clamp_min(-28.5)
    n = fma(x, f32(1.44269504), 12582912.0) - 12582912.0
    r = fma(n, -f32(-2.12194440e-4), fma(n, -0.693359375, x))
    y = torch.full_like(r, f32(1 / 5040))
    for c in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        y = fma(y, r, f32(c))
    return torch.where(z < -28.5, 0.0, torch.ldexp(y, n.int()))


def log_positive(x: Tensor) -> Tensor:
    """ln x for positive normal float32 x, as csrc/common/exact.h has it."""
    bits = x.view(torch.int32) - 0x3F3504F3
    e = (bits >> 23).float()
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    y = torch.full_like(f, f32(7.0376836292e-2))
    for c in (-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
              2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1):  # fmt: skip
        y = fma(y, f, f32(c))
    f2 = f * f
    y = fma(e, f32(-2.12194440e-4), y * f * f2)
    y = fma(f2, -0.5, y)
    return fma(e, 0.693359375, f + y)


def sane_logits(logits: Tensor) -> Tensor:
    """Float32 logits as laws read them: NaN as -inf, inf as the largest number."""
    row = torch.where(logits.isnan(), float("-inf"), logits.float())
    return row.clamp_max(torch.finfo(torch.float32).max)


def weigh(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Weights ``[V]`` float32 of one row of logits; the largest is 1, and all are 0 where the row is empty."""
    row = sane_logits(logits)
    top = row.max()
    if top == float("-inf"):
        return torch.zeros_like(row)
    greedy = temperature == 0
    inverse = 1.0 if greedy else float(torch.ones(()) / torch.tensor(temperature, dtype=torch.float32))
    w = exp_nonpositive((row - top) * inverse)
    order = torch.sort(row + 0.0, descending=True, stable=True).indices  # ties: the lowest index first
    keep = torch.zeros_like(row, dtype=torch.bool)
    k = 1 if greedy else top_k if top_k > 0 else len(row)
    keep[order[:k]] = True
    keep &= row > float("-inf")
    if top_p < 1:
        mass = fixed(torch.where(keep, w, 0.0))[order].cumsum(0)
        total = int(mass[-1])
        product = f32(top_p) * float(total)
        wanted = min(max(int(product) + (int(product) < product), 1), total)
        keep[order[int((mass < wanted).sum()) + 1 :]] = False
    return torch.where(keep & (w >= f32(min_p)), w, 0.0)
