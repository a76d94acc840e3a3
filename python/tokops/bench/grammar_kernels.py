"""The benchmark of the grammar kernels: masks on logits, draws under a mask, masks combined, budgets of letters."""

import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tokops.grammar import apply_bitmask_, compose_filters, masked_sample, multiset_mask
from tokops.sampling import sample

from .attention import Bar, Case, Peers, Workload

_VOCABULARY = 131072
_MINUS = float("-inf")
COPY, FILL, XGRAMMAR = "copy of the rows", "masked_fill with a ready bool mask", "xgrammar"
TWO_STEPS, MULTINOMIAL = "apply_bitmask_, then sample", "masked_fill + softmax + multinomial"
#: What a mask on the CPU may cost beside a copy of the rows: 1.5 times as much, with 1 % allowed in float32.
_OF_COPY = 1 / 1.5


def _allowed(rows: int, vocabulary: int, part: float, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens that are allowed: bools ``[rows, V]`` and the same as words."""
    generator = torch.Generator(device).manual_seed(1)
    allowed = torch.rand(rows, vocabulary, generator=generator, device=device) < part
    bits = allowed.view(rows, -1, 32).long() << torch.arange(32, device=device)
    words = bits.sum(-1)
    return allowed, torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _logits(rows: int, vocabulary: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator(device).manual_seed(2)
    return (torch.randn(rows, vocabulary, generator=generator, device=device) * 4).to(dtype)


def apply(rows, vocabulary, part, dtype, device) -> Workload:
    """A mask on logits in place, beside a plain copy of the rows, torch, and xgrammar where it is installed."""
    logits = _logits(rows, vocabulary, dtype, device)
    allowed, mask = _allowed(rows, vocabulary, part, device)
    forbidden = ~allowed
    mine, theirs, filled, elsewhere = (logits.clone() for _ in range(4))
    ours = partial(apply_bitmask_, mine, mask)
    peers: Peers = {
        COPY: partial(elsewhere.copy_, logits),
        FILL: partial(filled.masked_fill_, forbidden, _MINUS),
    }
    if importlib.util.find_spec("xgrammar") is not None:
        peer = importlib.import_module("xgrammar").apply_token_bitmask_inplace
        peers[XGRAMMAR] = partial(peer, theirs, mask)

    def check():
        want = logits.masked_fill(forbidden, _MINUS)
        assert torch.equal(ours(), want), "apply_bitmask_ forbade other tokens"
        if XGRAMMAR in peers:
            peers[XGRAMMAR]()
            assert torch.equal(theirs, want), "xgrammar forbade other tokens"

    return Workload(ours, peers, (), check)


def draws(rows, vocabulary, part, dtype, device) -> Workload:
    """A draw under a mask, beside the same in two steps and torch."""
    logits = _logits(rows, vocabulary, dtype, device)
    allowed, mask = _allowed(rows, vocabulary, part, device)
    numbers = torch.arange(rows, device=device)
    settings = {"seed": 3, "stream": numbers, "position": numbers}
    ours = partial(masked_sample, logits, mask, **settings)
    scratch = logits.clone()

    def two_steps() -> Tensor:
        return sample(apply_bitmask_(scratch.copy_(logits), mask), **settings)

    peers: Peers = {TWO_STEPS: two_steps}
    if device == "cpu":  # on CUDA multinomial may wait for the device
        peers[MULTINOMIAL] = lambda: torch.multinomial(
            torch.softmax(logits.masked_fill(~allowed, _MINUS).float(), -1), 1
        )

    def check():
        assert torch.equal(ours(), two_steps()), "masked_sample drew other tokens than two steps"

    return Workload(ours, peers, (), check)


def compose(filters, rows, vocabulary, device) -> Workload:
    """Masks combined, beside torch."""
    masks = [_allowed(rows, vocabulary, 0.9, device)[1].roll(i, 1) for i in range(filters)]

    def in_turn() -> Tensor:
        out = masks[0].clone()
        for mask in masks[1:]:
            out &= mask
        return out

    ours = partial(compose_filters, masks)

    def check():
        assert torch.equal(ours(), in_turn()), "compose_filters allows other tokens"

    return Workload(ours, {"torch, mask by mask": in_turn}, tuple(masks), check)


def budgets(rows, vocabulary, letters, device) -> Workload:
    """Masks of budgets, beside torch, which holds every sum of every row."""
    generator = torch.Generator(device).manual_seed(4)
    effect = (torch.rand(vocabulary, letters, generator=generator, device=device) < 0.15).to(torch.int8)
    used = torch.randint(0, 4, (rows, letters), generator=generator, device=device).to(torch.int16)
    budget = used + torch.randint(0, 4, used.shape, generator=generator, device=device).to(torch.int16)
    ours = partial(multiset_mask, effect, used, budget)

    def by_torch() -> Tensor:
        return (used[:, None] + effect <= budget[:, None]).all(-1)

    def check():
        bits = (ours()[..., None] >> torch.arange(32, device=device) & 1).flatten(1).bool()
        assert torch.equal(bits[:, :vocabulary], by_torch()), "multiset_mask allows other tokens"

    return Workload(ours, {"torch, unpacked": by_torch}, (effect,), check)


def cases(device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """Masks that allow 99, 50 and 1 % of the vocabulary, and what has no bar beside them.

    Args:
        device: "cpu" or "cuda".
        quick: bfloat16 only, and batches of 8.
    """
    for dtype in (torch.bfloat16,) if quick else (torch.float32, torch.bfloat16):
        name = "fp32" if dtype == torch.float32 else "bf16"
        for rows in (8,) if quick else (1, 8):
            for percent in (99, 50, 1):
                bars = [Bar(XGRAMMAR, 1.0)]
                if device == "cpu" and percent == 1 and dtype == torch.float32:
                    bars.insert(0, Bar(COPY, _OF_COPY))
                yield Case(
                    f"apply_bitmask_ [{rows}, {_VOCABULARY}] {percent} % allowed, {name}",
                    tuple(bars),
                    partial(apply, rows, _VOCABULARY, percent / 100, dtype, device),
                )
        yield Case(
            f"masked_sample [8, {_VOCABULARY}] 50 % allowed, {name}",
            (),
            partial(draws, 8, _VOCABULARY, 0.5, dtype, device),
        )
    yield Case(f"compose_filters 4 of [8, {_VOCABULARY}]", (), partial(compose, 4, 8, _VOCABULARY, device))
    for rows in (1, 8):
        yield Case(
            f"multiset_mask [{_VOCABULARY}, 26] B{rows}", (), partial(budgets, rows, _VOCABULARY, 26, device)
        )
