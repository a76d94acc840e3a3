"""Packed rows by the letter of the format, in float64 and one element at a time: no code of tokops."""

import numpy as np

LARGEST = 65504.0
LEVELS = {"int8": 256, "int4": 16, "int3": 8, "int2": 4}
#: Exponent bits, mantissa bits, exponent bias, largest finite number.
FP8 = {"fp8_e4m3": (4, 3, 7, 448.0), "fp8_e5m2": (5, 2, 15, 57344.0)}


def unpack(row, kind: str, dim: int) -> list[int]:
    """The codes of one row of bytes."""
    row = [int(x) for x in row]
    codes = []
    for d in range(dim):
        block, j = divmod(d, 32)
        if kind in ("int4", "int3"):
            byte = row[16 * block + j % 16]
            codes.append(byte >> 4 if j >= 16 else byte & 15)
        elif kind == "int2":
            codes.append((row[8 * block + j % 8] >> 2 * (j // 8)) & 3)
        else:
            codes.append(row[d])
    return codes


def fp8(code: int, kind: str) -> float:
    """The number an fp8 code stands for."""
    exponent_bits, mantissa_bits, bias, _ = FP8[kind]
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    if kind == "fp8_e4m3" and code & 0x7F == 0x7F:
        return float("nan")
    if kind == "fp8_e5m2" and exponent == (1 << exponent_bits) - 1:
        return float("nan") if mantissa else sign * float("inf")
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def decode(row, kind: str, dim: int, scale, zero) -> np.ndarray:
    """Elements of a row; ``scale`` and ``zero`` per element, ``zero`` None where none is stored."""
    codes = unpack(row, kind, dim)
    if kind in FP8:
        return np.array([fp8(c, kind) for c in codes]) * scale
    return np.array(codes, dtype=np.float64) * scale + (-128.0 * scale if zero is None else zero)


def clamp(x) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64).copy()
    x[np.isnan(x)] = 0.0
    return np.clip(x, -LARGEST, LARGEST)


def half(x: float, up: bool) -> float:
    """x to float16, upwards or downwards."""
    h = np.float16(x)
    if up and float(h) < x:
        h = np.nextafter(h, np.float16(np.inf))
    if not up and float(h) > x:
        h = np.nextafter(h, np.float16(-np.inf))
    return float(h)


def grid(group, kind: str, symmetric: bool, half_scale: bool) -> tuple[float, float | None]:
    """Scale and zero that a group of elements gets."""
    group = clamp(group)
    lo, hi, most = group.min(), group.max(), np.abs(group).max()
    if kind in FP8:
        s = max(most / FP8[kind][3], 2.0**-100)
        return (half(s, True) if half_scale else float(np.float32(s))), None
    s = most / 127 if symmetric else (hi - lo) / (LEVELS[kind] - 1)
    s = half(s, True) if half_scale else float(np.float32(s))
    s = s if s > 0 else 1.0
    if symmetric:
        return s, None
    return s, half(lo, False) if half_scale else lo


def assert_codes_nearest(x, row, kind: str, scale, zero) -> None:
    """Every code is the one nearest to its element on the grid, or the outermost one."""
    x = clamp(x)
    codes = np.array(unpack(row, kind, len(x)))
    if kind in FP8:
        table = np.array([fp8(c, kind) for c in range(256)])
        table = table[np.isfinite(table)]
        got, y = np.array([fp8(c, kind) for c in codes]), x / scale
        best = np.abs(np.clip(y, table.min(), table.max())[:, None] - table).min(1)
        off = np.abs(np.clip(y, table.min(), table.max()) - got)
        assert (off <= best + 1e-6 * np.abs(y)).all()
        return
    low, high = (1, 255) if zero is None else (0, LEVELS[kind] - 1)
    at = x / scale + 128 if zero is None else (x - zero) / scale
    assert ((codes >= low) & (codes <= high)).all()
    assert (np.abs(np.clip(at, low, high) - codes) <= 0.5 + 1e-4).all()
