"""The random-number contract against its published answers."""

import numpy as np

from .philox import MASK, categorical, categorical_rows, fixed, mulhi64, philox, r64, uniform

SEED = 0x123456789ABCDEF0


def test_known_answers():
    assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((MASK,) * 4, (MASK,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert r64(SEED, 7, 0, 0, 0) == 0xA531F3CA8B234F76
    assert r64(SEED, 7, 5, 3, 2) == 0x62A241716BBCE531


def test_arrays_give_the_same_words():
    n = np.arange(50, dtype=np.uint64)
    rows = r64(SEED, n * n, n * 71993, n % 5, 2)
    assert [int(x) for x in rows] == [r64(SEED, i * i, i * 71993, i % 5, 2) for i in range(50)]


def test_uniform_is_below_one_and_exact():
    assert uniform(2**64 - 1) == 1 - 2.0**-53
    assert uniform(2**11 - 1) == 0


def test_mulhi64():
    gen = np.random.default_rng(0)
    a, b = gen.integers(0, 2**64, (2, 200), dtype=np.uint64)
    a[:2], b[:2] = 2**64 - 1, 2**64 - 1
    got = mulhi64(a, b)
    assert [int(x) for x in got] == [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
    assert mulhi64(2**64 - 1, 2**64 - 1) == 2**64 - 2


def test_categorical_divides_the_bits_in_proportion():
    weights = [0.0, 0.25, 0.0, 0.75]
    quarter = 2**62
    assert [categorical(b, weights) for b in (0, quarter - 1, quarter, 2**64 - 1)] == [1, 1, 3, 3]
    assert categorical(0, [0.0, 2.0**-41]) is None
    assert fixed([2.0**-40, 1.5 * 2.0**-40]).tolist() == [1, 1]


def test_rows_draw_as_one_row_does():
    gen = np.random.default_rng(1)
    weights = gen.random((300, 9)).astype(np.float32) * (gen.random((300, 9)) < 0.6)
    weights[:, 4] += 0.01
    bits = gen.integers(0, 2**64, 300, dtype=np.uint64)
    got = categorical_rows(bits, weights).tolist()
    assert got == [categorical(b, w) for b, w in zip(bits, weights, strict=True)]
