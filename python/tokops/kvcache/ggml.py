"""The block formats of ggml: what they hold, and how they come in and out of packed pools.

Blocks of 32 elements: ``q8_0`` is a float16 scale and 32 int8, ``q4_0`` a float16 scale and 16 bytes of nibbles,
``q4_1`` a float16 scale, a float16 minimum and 16 bytes of nibbles. Rounding is that of ggml's reference code.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["decode", "encode", "from_pool", "to_pool"]

BLOCK = 32
#: Bytes of a block's scales, and of the whole block.
_BYTES = {"q8_0": (2, 34), "q4_0": (2, 18), "q4_1": (4, 20)}


def _check_kind(name: str, kind: str) -> tuple[int, int]:
    if kind not in _BYTES:
        raise ValueError(f"{name}: kind must be one of {', '.join(_BYTES)}, got {kind!r}")
    return _BYTES[kind]


def _blocks(name: str, kind: str, raw: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scales ``[..., blocks, 1 or 2]`` float16 and codes ``[..., blocks, bytes]`` of raw bytes."""
    head, size = _check_kind(name, kind)
    if raw.dtype != torch.uint8 or raw.dim() == 0 or raw.shape[-1] % size:
        raise ValueError(
            f"{name}: {kind} needs uint8 rows of a multiple of {size} bytes, got {str(raw.dtype)[6:]} "
            f"{list(raw.shape)}"
        )
    blocks = raw.cpu().contiguous().numpy().reshape(*raw.shape[:-1], -1, size)
    return np.ascontiguousarray(blocks[..., :head]).view(np.float16), blocks[..., head:]


def _raw(scales: np.ndarray, codes: np.ndarray) -> Tensor:
    """Raw bytes ``[..., bytes]`` of scales and codes."""
    blocks = np.concatenate([np.ascontiguousarray(scales, np.float16).view(np.uint8), codes], axis=-1)
    return torch.from_numpy(blocks.reshape(*blocks.shape[:-2], -1))


def _nibbles(codes: np.ndarray) -> np.ndarray:
    return codes[..., :16] | codes[..., 16:] << 4


def _from_nibbles(packed: np.ndarray) -> np.ndarray:
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(d == 0, 0, 1 / d).astype(np.float32)


def encode(x: Tensor, kind: str) -> Tensor:
    """Numbers as raw blocks.

    Args:
        x: ``[..., D]`` floating, D a multiple of 32.
        kind: ``"q8_0"``, ``"q4_0"`` or ``"q4_1"``.

    Returns:
        ``[..., D / 32 * bytes of a block]`` uint8.

    Raises:
        ValueError: an unknown kind, or D that is no multiple of 32.
    """
    _check_kind("encode", kind)
    if x.dim() == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"encode: the last dimension must be a multiple of {BLOCK}, got {list(x.shape)}")
    blocks = x.detach().float().cpu().contiguous().numpy().reshape(*x.shape[:-1], -1, BLOCK)
    if kind == "q8_0":
        d = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
        scaled = blocks * _inverse(d)
        q = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))  # halves away from zero
        return _raw(d, q.astype(np.int8).view(np.uint8))
    if kind == "q4_0":
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
        d = largest / np.float32(-8)
        scaled = (blocks.astype(np.float64) * _inverse(d) + 8.5).astype(np.float32)
        return _raw(d, _nibbles(np.trunc(scaled).clip(0, 15).astype(np.uint8)))
    low = blocks.min(-1, keepdims=True)
    d = (blocks.max(-1, keepdims=True) - low) / np.float32(15)
    scaled = ((blocks - low).astype(np.float64) * _inverse(d) + 0.5).astype(np.float32)
    codes = np.trunc(scaled).clip(0, 15).astype(np.uint8)
    return _raw(np.concatenate([d, low], axis=-1), _nibbles(codes))


def decode(raw: Tensor, kind: str) -> Tensor:
    """The numbers of raw blocks: the reverse of :func:`encode`, ``[..., D]`` float32.

    Raises:
        ValueError: an unknown kind, or rows that are no whole blocks of bytes.
    """
    scales, codes = _blocks("decode", kind, raw)
    d = scales[..., :1].astype(np.float32)
    if kind == "q8_0":
        x = codes.view(np.int8).astype(np.float32) * d
    elif kind == "q4_0":
        x = (_from_nibbles(codes).astype(np.float32) - 8) * d
    else:
        x = _from_nibbles(codes).astype(np.float32) * d + scales[..., 1:].astype(np.float32)
    return torch.from_numpy(x.reshape(*raw.shape[:-1], -1))


def to_pool(raw: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Raw blocks as a packed pool of groups of 32: codes, scale and zero, exactly the same numbers.

    Args:
        raw: ``[N, H, P, D / 32 * bytes of a block]`` uint8.
        kind: ``"q8_0"`` becomes symmetric int8, ``"q4_0"`` and ``"q4_1"`` become int4.

    Returns:
        ``(codes, scale, zero)`` of ``Codec("int8", group=32, symmetric=True)`` or ``Codec("int4", group=32)``.

    Raises:
        ValueError: an unknown kind, or rows that are no whole blocks of bytes.
    """
    scales, codes = _blocks("to_pool", kind, raw)
    d = scales[..., 0]
    if kind == "q8_0":
        codes = codes + np.uint8(128)
        zero = np.empty(0, np.float16)
    else:
        zero = np.ascontiguousarray(scales[..., 1]) if kind == "q4_1" else np.float16(-8) * d
    rows = codes.reshape(*raw.shape[:-1], -1)
    return torch.from_numpy(rows), torch.from_numpy(np.ascontiguousarray(d)), torch.from_numpy(zero)


def from_pool(codes: Tensor, scale: Tensor, zero: Tensor, kind: str) -> Tensor:
    """A packed pool of groups of 32 as raw blocks: the reverse of :func:`to_pool`.

    Args:
        codes, scale, zero: Of ``Codec("int8", group=32, symmetric=True)`` for ``"q8_0"``, of
            ``Codec("int4", group=32)`` for ``"q4_1"``, and for ``"q4_0"`` one whose zero is -8 times its scale.
        kind: The format.

    Returns:
        ``[N, H, P, D / 32 * bytes of a block]`` uint8.

    Raises:
        ValueError: an unknown kind, or a pool that the format cannot hold.
    """
    _check_kind("from_pool", kind)
    bits = 8 if kind == "q8_0" else 4
    d = scale.cpu()
    if d.dtype != torch.float16 or codes.shape[-1] * 8 // bits != d.shape[-1] * BLOCK:
        raise ValueError(f"from_pool: {kind} needs float16 scales of groups of {BLOCK} elements")
    if (zero.numel() == 0) != (kind == "q8_0"):
        raise ValueError(f"from_pool: {kind} needs {'no zero' if kind == 'q8_0' else 'a zero'}")
    if kind == "q4_0" and not torch.equal(zero.cpu(), -8 * d):
        raise ValueError("from_pool: q4_0 needs zero = -8 * scale")
    blocks = codes.cpu().numpy().reshape(*d.shape, BLOCK * bits // 8)
    scales = [d.numpy()[..., None], *([zero.cpu().numpy()[..., None]] if kind == "q4_1" else [])]
    return _raw(np.concatenate(scales, -1), blocks + np.uint8(128) if kind == "q8_0" else blocks)
