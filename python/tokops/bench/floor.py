"""Floors: how fast this machine reads the very bytes that an op has to read."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor


def _words(x: Tensor) -> Tensor:
    """The storage of a dense tensor as float32 words, so that a 16-bit tensor costs no conversion."""
    return x.reshape(-1).view(torch.float32)


def _by_sum(words: Tensor) -> Tensor:
    return words.sum()


def _by_max(words: Tensor) -> Tensor:
    return words.amax()


def _by_dot(words: Tensor) -> Tensor:
    return words @ words


def _by_product(words: Tensor) -> Tensor:
    width = min(4096, words.numel() & -words.numel())
    return words.view(-1, width) @ words.new_ones(width)


#: Ways to read every byte once with torch; which one is fastest differs between machines and versions.
READS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": _by_sum,
    "amax": _by_max,
    "dot": _by_dot,
    "matrix-vector": _by_product,
}


def read_passes(tensors: Sequence[Tensor]) -> dict[str, Callable[[], None]]:
    """Passes that read the storage of some tensors once, by the name of the torch op that reads.

    On CUDA the pass is a copy instead, the usual yardstick there; :func:`bytes_moved` counts both directions.
    """
    words = [_words(x) for x in tensors]
    if words[0].is_cuda:
        targets = [torch.empty_like(x) for x in words]
        return {"copy": partial(_copy, targets, words)}
    return {name: partial(_read, read, words) for name, read in READS.items()}


def _copy(targets: Sequence[Tensor], words: Sequence[Tensor]) -> None:
    for target, x in zip(targets, words, strict=True):
        target.copy_(x)


def _read(read: Callable[[Tensor], Tensor], words: Sequence[Tensor]) -> None:
    for x in words:
        read(x)


def bytes_moved(tensors: Sequence[Tensor]) -> int:
    """Bytes that one of the passes moves."""
    total = sum(x.numel() * x.element_size() for x in tensors)
    return 2 * total if tensors[0].is_cuda else total
