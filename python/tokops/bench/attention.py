"""The attention benchmark: shapes, floors, opponents and the bars that the ops are held to.

What the CPU kernel taught (Xeon with AVX-512 and no AMX, one thread, bf16; a key of 64 dimensions for 3 rows needs 28
multiply-adds, some 4 ns; it takes 16 to 17, 25 for 6 rows, hot or cold):

- Bytes are not its bound but what stands around the products: turning bf16 into floats, and the words that say what to
  call into the cache next. Even and odd dimensions by a shift and a mask, the queries in that order too, calls four
  rows at a time and dimensions known at compile time: 8 to 18 % less, 10 to 25 % with AVX2.
- vdpbf16ps is slower here than the two multiply-adds it replaces (0.82 ns against 0.52): scores by it took half as long
  again. vpdpbusd does four times a multiply-add's work in its time, so scores of int8 queries use it.

And on an EPYC (Zen 5, AVX-512 and BF16; bf16, 9/3x64 and 32/8x128, caches from memory):

- Prefetches in bursts, and those into the second cache, made compute and memory take turns: their times added up. Lines
  called a few at a time between the products, into the first cache, some 8 KB ahead: 1.85 ms for 2.2 (L16384); fp32 3.6
  for 4.8. Loads instead of prefetches, or none: half the bandwidth, for a key's lines are read in no order that the
  processor foresees. More than 8 KB ahead gains nothing.
- vdpbf16ps does twice a multiply-add's work in its time and needs no conversion: 1.15 for 1.85.
- Heads whose pages lie side by side are one stream: 549 us for 642 (9/3x64 L8128 fp32, one thread). Huge pages gain 5
  to 14 % of one thread's time and nothing that could be seen in a model's step.

And on an EPYC with AVX2 alone (Zen 3; a core that another guest may share, so times move by half):

- Arithmetic is the bound: at G = 4 the read bandwidth of bf16 asks for 60 % of the multiply-adds there are, at G = 7
  for all. Sixteen registers decide: a vector of eight dimensions of one row, bf16 widened on the way and never stored,
  up to six rows beside two keys: a tile's scores run at 55 to 65 % of the peak where they ran at 15 to 35, values at 70
  to 85 for 55 to 70. Of the whole call that is 10 to 15 % hot (170 us to 148, 12/2x64 L2048), 40 % with G = 1.
- Unrolled further, or with sums and a mask more than fit, the compiler moves sums about and all of it is lost.
- Keys called a whole tile ahead: 12.6 ms for 14.9 (L16384 fp32, one thread).

What the CUDA kernel taught (H200, bf16, B64 32/8x128 L8192, floor 2.1 GB at 4.2 TB/s, 0.51 ms):

- Tiles shared by a block, a barrier each, 1100 instructions per 16 keys: 1.27 ms. Every warp on its own ring, waiting
  for nobody: 0.59. Queries as the eight columns of a product instead of a quarter of its sixteen rows, copies by
  offsets made once per key, sums scaled only when the maximum has moved by 2^8: 0.54, at 420 instructions.
- Twelve warps a multiprocessor with 8 KB each on the way keep memory busy; what they lack is more of them, not bytes.
- A merge by one block per row costs 6.4 us whatever the rows; a warp per row that starts before the kernel ahead of it
  has ended, 2 to 3. Of many splits of few rows an early start cost 2 us.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tokops.attention import paged_decode, paged_decode_scores, topk_positions

from . import opponents

Peers = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Bar:
    """``time of against / time of ours`` has to reach ``least``.

    ``against`` names an opponent, or is "floor" or "fastest torch" (the fastest dense formulation in torch). With
    ``seconds`` it is the name of that fixed time.
    """

    against: str
    least: float
    seconds: float | None = None


@dataclass(frozen=True)
class Workload:
    """One op on one set of inputs.

    Attributes:
        ours: the call under test.
        peers: opponents on the same inputs, by name.
        reads: dense tensors that hold exactly what the call reads; empty where bytes are no measure.
        fraction: part of ``reads`` that the call reads (pages of a ragged batch are not all full).
        check: raises where ours and a peer disagree.
        layers: ops in one call; a row's times are those of one.
    """

    ours: Callable[[], object]
    peers: Peers
    reads: tuple[Tensor, ...]
    check: Callable[[], None]
    fraction: float = 1.0
    layers: int = 1


@dataclass(frozen=True)
class Case:
    """A named workload, built when it is run, with its bars."""

    label: str
    bars: tuple[Bar, ...]
    build: Callable[[], Workload] = field(repr=False)


def _random(shape, dtype, device, seed):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def lengths(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def inputs(batch, hq, hkv, d, length, dtype, device):
    q = _random((batch, 1, hq, d), dtype, device, 1)
    k = _random((batch, hkv, length, d), dtype, device, 2)
    v = _random((batch, hkv, length, d), dtype, device, 3)
    table = torch.arange(batch, dtype=torch.int32, device=device)[:, None]
    return q, k, v, table, lengths([length] * batch, device)


def agree(ours: Tensor, peer: Tensor) -> None:
    """Both within a few roundings of their dtype; a benchmark of a wrong result is worth nothing."""
    rtol, atol = (1e-3, 2e-5) if ours.dtype == torch.float32 else (5e-2, 4e-3)
    torch.testing.assert_close(ours.float(), peer.float(), rtol=rtol, atol=atol)


#: Bytes of the caches that are read in turn on a CPU: a model comes back to a layer's cache when it has read all
#: others, so that one cache which stays near the core would be no measure.
_IN_TURN = 256 << 20


def layered(device: str, size: int, one: Callable[[], Workload]) -> Workload:
    """A workload on caches of ``size`` bytes, over as many of them as a model with long contexts has.

    Args:
        one: builds the workload of one layer; all of them read different memory.
    """
    layers = [one() for _ in range(1 if device != "cpu" else max(1, _IN_TURN // size))]
    if len(layers) == 1:
        return layers[0]

    def through(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
        def call() -> None:
            for layer in calls:
                layer()

        return call

    first = layers[0]
    return Workload(
        through([layer.ours for layer in layers]),
        {name: through([layer.peers[name] for layer in layers]) for name in first.peers},
        tuple(x for layer in layers for x in layer.reads),
        first.check,
        first.fraction,
        len(layers),
    )


def dense(batch, hq, hkv, d, length, dtype, device) -> Workload:
    """Dense decode over contiguous caches."""
    q, k, v, table, lens = inputs(batch, hq, hkv, d, length, dtype, device)
    ours = partial(paged_decode, q, k, v, table, lens)
    peers: Peers = {name: partial(call, q, k, v) for name, call in opponents.DENSE.items()}
    if opponents.has_flashinfer(q):
        peers["flashinfer"] = _flashinfer(q, k, v, lens)

    def check():
        for call in peers.values():
            agree(ours()[0], call())

    return Workload(ours, peers, (k, v), check)


def as_pages(k, v, page):
    """Contiguous caches cut into pages laid out in a shuffled order: pools and table."""
    batch, heads, length, d = k.shape
    pages = length // page
    order = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(4)).to(k.device)
    pools = []
    for x in (k, v):
        rows = x.view(batch, heads, pages, page, d).transpose(1, 2).reshape(-1, heads, page, d)
        pools.append(torch.empty_like(rows).index_copy_(0, order, rows))
    return *pools, order.view(batch, pages).int()


def _flashinfer(q, k, v, lens):
    k_pages, v_pages, table = as_pages(k, v, 16)
    return opponents.flashinfer_decode(q, k_pages, v_pages, table, lens)


def ragged(batch, hq, hkv, d, longest, page, dtype, device) -> Workload:
    """A ragged batch in scattered pages, beside one contiguous sequence of as many tokens."""
    q, k, v, whole, _ = inputs(batch, hq, hkv, d, longest, dtype, device)
    lens = [1 + round(i * (longest - 1) / (batch - 1)) for i in range(batch)]
    seq_lens, total = lengths(lens, device), sum(lens)
    k_pages, v_pages, table = as_pages(k, v, page)
    ours = partial(paged_decode, q, k_pages, v_pages, table, seq_lens)
    one = [x.transpose(0, 1).reshape(1, hkv, -1, d)[:, :, :total] for x in (k, v)]
    mask = (torch.arange(longest, device=device) < seq_lens[:, None])[:, None, None]
    peers: Peers = {
        "our contiguous": partial(paged_decode, q[:1], *one, whole[:1], lengths([total], device)),
        "sdpa folded": partial(opponents.sdpa_folded, q, k, v, mask),
    }
    if opponents.has_flashinfer(q):
        peers["flashinfer"] = opponents.flashinfer_decode(q, k_pages, v_pages, table, seq_lens)

    def check():
        agree(ours()[0], peers["sdpa folded"]())

    return Workload(ours, peers, (k_pages, v_pages), check, total / (batch * longest))


def selected(hq, hkv, d, length, k_selected, dtype, device) -> Workload:
    """Decode over a list per KV head, beside the dense op and a gather."""
    q, k, v, table, lens = inputs(1, hq, hkv, d, length, dtype, device)
    generator = torch.Generator().manual_seed(5)
    lists = [torch.randperm(length, generator=generator)[:k_selected].sort().values for _ in range(hkv)]
    index = torch.stack(lists)[None].to(device)
    positions = index[:, None].int().contiguous()
    counts = torch.full((1, 1, hkv), k_selected, dtype=torch.int32, device=device)
    ours = partial(paged_decode, q, k, v, table, lens, selected=positions, counts=counts)
    peers: Peers = {
        "our dense": partial(paged_decode, q, k, v, table, lens),
        "gather + sdpa": partial(opponents.gathered, q, k, v, index),
    }

    def check():
        agree(ours()[0], peers["gather + sdpa"]())

    return Workload(ours, peers, (k, v), check, k_selected / length)


def scores(hq, hkv, d, length, reduce, dtype, device) -> Workload:
    """The dense pass that also gives its scores, beside the dense pass alone."""
    q, k, v, table, lens = inputs(1, hq, hkv, d, length, dtype, device)
    ours = partial(paged_decode_scores, q, k, v, table, lens, reduce=reduce)
    peers: Peers = {"our dense": partial(paged_decode, q, k, v, table, lens)}

    def check():
        out, _, got = ours()
        agree(out, peers["our dense"]()[0])
        logits = q.view(1, hkv, -1, d).float() @ k.float().transpose(-1, -2) * d**-0.5
        want = logits.amax(2) if reduce == "max" else logits.flatten(1, 2)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)

    return Workload(ours, peers, (k, v), check)


def topk(rows, length, k, device) -> Workload:
    """Exact selection of the largest scores."""
    values = _random((rows, length), torch.float32, device, 6)
    lens = lengths([length] * rows, device)
    ours = partial(topk_positions, values, lens, k)
    peers: Peers = {
        "torch.topk": partial(torch.topk, values, k, -1),
        "torch.topk unsorted": partial(torch.topk, values, k, -1, True, False),
    }

    def check():
        want = values.topk(k).indices.sort(-1).values
        assert torch.equal(ours()[0].long(), want), "topk_positions and torch.topk chose different sets"

    return Workload(ours, peers, (values,), check)


def _of_dtype(dtype, device, quick) -> Iterator[Case]:
    name = "fp32" if dtype == torch.float32 else "bf16"
    gqa = Bar("sdpa enable_gqa", 12.0 if dtype == torch.float32 else 18.0)
    bars: tuple[Bar, ...] = (Bar("floor", 0.80), gqa, Bar("fastest torch", 3.0))
    if device != "cpu":
        bars = (Bar("floor", 0.60), Bar("flashinfer", 0.95))
    yield Case(f"dense B1 32/8x128 L16384 {name}", bars, partial(dense, 1, 32, 8, 128, 16384, dtype, device))
    for page in (64,) if quick else (16, 64):
        yield Case(
            f"ragged B8 32/8x128 page {page} {name}",
            (Bar("our contiguous", 1 / 1.15),),
            partial(ragged, 8, 32, 8, 128, 16384, page, dtype, device),
        )
    for hq, hkv in ((9, 3),) if quick else ((9, 3), (12, 2), (14, 2)):
        yield Case(
            f"dense B1 {hq}/{hkv}x64 L8128 {name}",
            (Bar("floor", 0.75), Bar("fastest torch", 1.5)),
            partial(
                layered,
                device,
                2 * hkv * 64 * 8128 * dtype.itemsize,
                partial(dense, 1, hq, hkv, 64, 8128, dtype, device),
            ),
        )
    yield Case(
        f"selected 1024 of 16384 {name}",
        (Bar("our dense", 8.0),),
        partial(selected, 32, 8, 128, 16384, 1024, dtype, device),
    )
    for reduce in ("max",) if quick else ("none", "max"):
        yield Case(
            f"scores {reduce} L16384 {name}",
            (Bar("our dense", 1 / 1.25),),
            partial(scores, 32, 8, 128, 16384, reduce, dtype, device),
        )


def cases(device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """The acceptance table, one case per row and dtype.

    Args:
        device: "cpu" or "cuda".
        quick: bfloat16 only, with one page size, one group and one reduction.
    """
    for dtype in (torch.bfloat16,) if quick else (torch.float32, torch.bfloat16):
        yield from _of_dtype(dtype, device, quick)
    yield Case(
        "topk 1024 of [32, 16384] fp32", (Bar("torch.topk", 5.0),), partial(topk, 32, 16384, 1024, device)
    )
    if device != "cpu":
        yield Case(
            "dense B64 32/8x128 L8192 bf16",
            (Bar("floor", 0.80), Bar("flashinfer", 0.95)),
            partial(dense, 64, 32, 8, 128, 8192, torch.bfloat16, device),
        )
        yield Case(
            "dense B1 32/8x128 L131072 bf16",
            (Bar("floor", 0.60),),
            partial(dense, 1, 32, 8, 128, 131072, torch.bfloat16, device),
        )
