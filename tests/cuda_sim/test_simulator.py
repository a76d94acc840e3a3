"""The simulator itself: its words do what CUDA's do, and a kernel that is wrong on a GPU is wrong here."""

import ctypes
import re
import subprocess
import sys

import numpy as np
import pytest
import sim_build
import torch

SEEDS = range(8)
LANES = np.arange(32)


class Samples:
    """samples/words.cu: `samples.name(arrays and ints...)` runs one; raises RuntimeError with its message."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))

    def seed(self, seed: int) -> None:
        self._library.tokops_sim_seed(seed)

    def __getattr__(self, name: str):
        function = getattr(self._library, f"sample_{name}")
        function.restype = ctypes.c_char_p

        def call(*args):
            raw = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else int(a) for a in args]
            message = function(*raw)
            if message is not None:
                raise RuntimeError(message.decode())

        return call


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples(sim_build.sample_library())


@pytest.fixture(params=SEEDS)
def seeded(request, samples) -> Samples:
    """The samples under each of several schedules."""
    samples.seed(request.param)
    return samples


def ints(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


MIRRORS = [np.arange(127, -1, -1), np.full(128, 0 + 1 + 2 + 3), np.arange(128) ^ 31]


@pytest.mark.parametrize("kind", range(3))
def test_barriers_order_memory(seeded, kind):
    out = ints(5, 128)
    seeded.mirror(out, kind, 1, 5)
    assert (out == MIRRORS[kind]).all()


@pytest.mark.parametrize("kind", range(3))
def test_missing_barrier_changes_the_result(seeded, kind):
    """In every schedule: after a write, before the next write, within a warp."""
    out = ints(5, 128)
    seeded.mirror(out, kind, 0, 5)
    assert (out != MIRRORS[kind]).any()


def test_shuffles(seeded):
    out = ints(9, 32)
    seeded.shuffles(out)
    group8 = LANES & ~7
    source = [
        np.full(32, 5),
        group8 + (LANES + 3) % 8,
        np.where(LANES >= 2, LANES - 2, LANES),
        np.where(group8 <= LANES - 3, LANES - 3, LANES),
        np.where(LANES + 5 < 32, LANES + 5, LANES),
        np.where((LANES + 3) // 16 == LANES // 16, LANES + 3, LANES),
        LANES ^ 6,
        np.where((LANES ^ 12) // 8 <= LANES // 8, LANES ^ 12, LANES),
    ]
    np.testing.assert_array_equal(out[:8], 100 + np.stack(source))
    np.testing.assert_array_equal(out[8], np.where(LANES < 16, 115, 131 + 100 + (LANES ^ 1)))


def test_votes_and_warp_reductions(seeded):
    out = np.zeros((8, 32), np.uint32)
    seeded.votes(out)
    want = [
        sum(1 << i for i in range(0, 32, 3)),
        2,
        2,
        31 * 16,
        15 + 100 * 7,
        0xFFFFFFFF ^ 64,
        0xFF << (LANES & ~7),
        31 * 16 + 1000 * (LANES | 7),
    ]
    for got, expected in zip(out, want, strict=True):
        assert (got == expected).all()


def test_block_votes_count_threads_that_still_run(seeded):
    out = ints(3, 4)
    seeded.block_votes(out, 4)
    np.testing.assert_array_equal(out, [[10] * 4, [1] * 4, [1] * 4])


@pytest.mark.parametrize("half", [0, 1], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("trans", [0, 1])
def test_fragments_multiply_matrices(seeded, half, trans):
    dtype = torch.float16 if half else torch.bfloat16
    gen = torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=gen).to(dtype) for shape in ((16, 16), (16, 8)))
    given = (b if trans else b.t()).contiguous()
    d = np.zeros((16, 8), np.float32)
    seeded.product(a.view(torch.int16).numpy(), given.view(torch.int16).numpy(), d, half, trans, 1)
    np.testing.assert_allclose(d, (a.double() @ b.double()).numpy(), rtol=1e-5, atol=1e-5)


def test_copy_without_its_wait_is_not_there(seeded):
    a, b = np.ones((16, 16), np.float16), np.ones((16, 8), np.float16)
    d = np.zeros((16, 8), np.float32)
    seeded.product(a, b, d, 1, 1, 0)
    assert np.isnan(d).all()


@pytest.mark.parametrize("n", [0, 1, 37, 64])
def test_copies_that_are_not_real_give_zeros(samples, n):
    data, out = np.arange(1, n + 1, dtype=np.float32), np.full(64, 9, np.float32)
    samples.zero_fill(data, out, n)
    np.testing.assert_array_equal(out, np.concatenate([data, np.zeros(64 - n)]))


def test_copy_into_a_buffer_in_use_is_seen(seeded):
    data, out = 1000 * np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    want = np.arange(127, -1, -1) + data
    seeded.refill(data, out, 1)
    np.testing.assert_array_equal(out, want)
    seeded.refill(data, out, 0)
    assert (out != want).any()


def test_last_block_adds_up(seeded):
    blocks = 37
    data = np.arange(blocks * 128, dtype=np.float32) % 61
    part, done, out = np.zeros(blocks, np.float32), np.zeros(1, np.uint32), np.zeros(1, np.float32)
    seeded.last_block(data, part, done, out, blocks)
    assert out[0] == data.sum()


def test_atomics(seeded):
    out = ints(6)
    seeded.atomics(out)
    assert out[[0, 1, 2, 3, 5]].tolist() == [400 * 399 // 2, 399, -5, (1 << 20) - 1, 800]
    assert out.view(np.float32)[4] == 200


def test_block_order_is_shuffled(samples):
    seen = set()
    for seed in SEEDS:
        samples.seed(seed)
        out = ints(9)
        samples.chain(out, 8)
        seen.add(tuple(out))
    assert len(seen) > 4


def test_schedules_repeat(samples):
    runs = []
    for _ in range(2):
        samples.seed(3)
        out = ints(5, 128)
        samples.mirror(out, 1, 0, 5)
        runs.append(out)
    np.testing.assert_array_equal(*runs)


def test_shared_memory_starts_as_nan_in_every_block(seeded):
    out = np.zeros((6, 32, 2), np.float32)
    seeded.unwritten(out, 6)
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (0, r"barrier divergence: others wait in __syncthreads at words.cu:\d+, this one came to"),
        (1, r"deadlock: 48 wait in __syncthreads at words.cu:\d+ .*; 16 wait in __syncwarp at words.cu"),
        (2, "warp divergence: other lanes wait in"),
        (3, "__shfl_sync: the caller is not in its own mask"),
        (4, r"__trap, thread \(\d+, 0, 0\) of block"),
    ],
)
def test_divergence_is_an_error_with_a_place(seeded, kind, message):
    with pytest.raises(RuntimeError, match=message):
        seeded.diverge(kind)
    seeded.launch(2, 64, 0)  # and the next launch is none the worse


@pytest.mark.parametrize(("grid", "block", "shared"), [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 1 << 20)])
def test_impossible_launches_are_refused(samples, grid, block, shared):
    with pytest.raises(RuntimeError, match="launch: "):
        samples.launch(grid, block, shared)


@pytest.mark.parametrize(
    ("kind", "by", "report"),
    [
        (0, 8, None),
        (0, 9, "out of bounds for type|global-buffer-overflow"),
        (1, 0, None),
        (1, 1, "heap-buffer-overflow"),
        (2, 0, None),
        (2, 1, "heap-buffer-overflow"),
    ],
)
def test_overruns_are_reported(kind, by, report):
    """Past the end of static shared, dynamic shared and global memory, by one word or by none."""
    program = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); lib.malloc.restype = ctypes.c_void_p\n"
        "lib.sample_overrun(ctypes.c_void_p(lib.malloc(128)), int(sys.argv[2]), int(sys.argv[3]))"
    )
    library = str(sim_build.sample_library(sanitized=True))
    command = [sys.executable, "-c", program, library, str(kind), str(by)]
    done = subprocess.run(command, env=sim_build.environment(sanitized=True), capture_output=True, text=True)
    if report is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert re.search(report, done.stderr), done.stderr
