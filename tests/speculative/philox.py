"""Random numbers of token decisions: Philox4x32-10 and draws from fixed-point weights, for ints and uint64 arrays."""

import numpy as np

MASK = 0xFFFFFFFF
ACCEPT, FINAL, DRAFT, PLAIN = 0, 1, 2, 3  # tags: what a number is for


def philox(counter, key):
    """Four 32-bit words from four counter words and two key words; ints, or uint64 arrays that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def r64(seed, stream, pos, slot, tag):
    """The 64 random bits of one purpose at one token of one request."""
    words = philox((pos, stream, slot, tag), (seed & MASK, seed >> 32 & MASK))
    return words[1] << 32 | words[0]


def uniform(bits):
    """53 of the 64 bits as a number in [0, 1)."""
    return (bits >> 11) * 2.0**-53


def fixed(weights):
    """Weights in units of 2^-40, cut off: integers, so that sums do not depend on their order."""
    return np.trunc(np.asarray(weights, np.float64) * 2.0**40).astype(np.uint64)


def mulhi64(a, b):
    """The upper 64 bits of a product of two 64-bit numbers; ints, or uint64 arrays."""
    a0, a1, b0, b1 = a & MASK, a >> 32, b & MASK, b >> 32
    middle = a1 * b0 + (a0 * b0 >> 32)
    return a1 * b1 + (middle >> 32) + ((middle & MASK) + a0 * b1 >> 32)


def categorical(bits, weights):
    """The smallest x whose prefix of fixed-point weights exceeds mulhi64(bits, sum); None if nothing has weight.

    Only in this exact form, one row at a time: `categorical_rows` is for many.
    """
    units = [int(f) for f in fixed(weights)]
    target, prefix = int(bits) * sum(units) >> 64, 0
    for x, f in enumerate(units):
        prefix += f
        if prefix > target:
            return x
    return None


def categorical_rows(bits, weights):
    """`categorical` over rows: bits uint64 [B], weights [B, V]; every row must have weight."""
    prefix = fixed(weights).cumsum(-1)
    assert (prefix[:, -1] > 0).all()
    return (prefix <= mulhi64(bits, prefix[:, -1])[:, None]).sum(-1)
