"""Next bytes out of next tokens: the mass of a token trie's node, by the byte that follows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["byte_marginal"]

_NAME = "byte_marginal"
_INT = (torch.int32,)
_BINS = 257
_MINUS = float("-inf")


def _check(logp, order, offsets, data, low, high, depth):
    check_tensor(_NAME, "logp", logp, 2, FLOATS, logp)
    check_tensor(_NAME, "order", order, 1, _INT, logp)
    check_tensor(_NAME, "offsets", offsets, 1, _INT, logp)
    check_shape(_NAME, "offsets", offsets, (order.shape[0] + 1,), "[S + 1]")
    check_tensor(_NAME, "bytes", data, 1, (torch.uint8,), logp)
    for name, x in (("low", low), ("high", high), ("depth", depth)):
        check_tensor(_NAME, name, x, 1, _INT, logp)
        check_shape(_NAME, name, x, logp.shape[:1], "[B]")


def _check_values(logp, order, offsets, data, low, high, depth):
    size, most = order.shape[0], logp.shape[1] - 1
    wrong = order[(order < 0) | (order > most)]
    refuse_unless(not len(wrong), _NAME, f"order must be 0..{most}, got {wrong[:1].tolist()}")
    bad = ((offsets[:-1] < 0) | (offsets.diff() < 0)).nonzero().flatten().tolist()[:1]
    for i in bad:
        pair = f"{int(offsets[i])} and {int(offsets[i + 1])}"
        refuse_unless(False, _NAME, f"offsets must ascend from 0, got {pair}")
    end = int(offsets[-1])
    refuse_unless(end <= len(data), _NAME, f"offsets must be at most {len(data)}, got {end}")
    odd = (low < 0) | (low > high) | (high > size) | (depth < 0)
    for b in odd.nonzero().flatten().tolist()[:1]:
        refuse_unless(
            False,
            _NAME,
            f"0 <= low <= high <= {size} and depth >= 0 must hold, got {int(low[b])}, {int(high[b])} and "
            f"{int(depth[b])} in row {b}",
        )


@op(
    "byte_marginal(Tensor logp, Tensor order, Tensor offsets, Tensor bytes, Tensor low, Tensor high, "
    "Tensor depth) -> Tensor"
)
def marginal_reference(logp, order, offsets, bytes, low, high, depth):
    """The definition: token by token into the bin of its next byte."""
    _check(logp, order, offsets, bytes, low, high, depth)
    _check_values(logp, order, offsets, bytes, low, high, depth)
    x = torch.where(logp.isnan(), _MINUS, logp.float()).clamp_max(torch.finfo(torch.float32).max)
    out = x.new_full((len(x), _BINS), _MINUS)
    lengths = offsets.diff()
    for row, begin, end, d in zip(range(len(x)), low.tolist(), high.tolist(), depth.tolist(), strict=True):
        ids = order[begin:end].long()
        longer = lengths[begin:end] > d
        at = torch.where(longer, offsets[begin:end] + d, 0).long()
        bins = (
            torch.where(longer, bytes[at].long(), _BINS - 1)
            if len(bytes)
            else torch.full_like(ids, _BINS - 1)
        )
        for b in bins.unique().tolist():
            out[row, b] = torch.logsumexp(x[row, ids[bins == b]].double(), 0)
    return out


@torch.library.register_fake("tokops::byte_marginal")
def _(logp, order, offsets, bytes, low, high, depth):
    _check(logp, order, offsets, bytes, low, high, depth)
    return logp.new_empty((logp.shape[0], _BINS), dtype=torch.float32)


def byte_marginal(
    logp: Tensor, order: Tensor, offsets: Tensor, bytes: Tensor, low: Tensor, high: Tensor, depth: Tensor
) -> Tensor:
    """The law of the next byte at a node of the token trie, from the law of the next token.

    The trie is the vocabulary sorted by bytes: a node is the run ``low..high`` of tokens that begin with its bytes,
    ``depth`` of them. Only that run is read. Results do not depend on an order of adding between threads but for
    float32 rounding. It is for rows that are on the device and laws that need no more than float32.
    :class:`tokops.hf.bytelevel.ByteLevel` sums in float64 on the host, so that laws of bytes multiply to those of
    texts; on a CPU that takes no longer.

    Args:
        logp: ``[B, V]`` float32, bfloat16 or float16 log-probabilities by token id; NaN counts as -inf.
        order: ``[S]`` int32 ids of the tokens that have bytes, sorted by these; equal bytes side by side.
        offsets: ``[S + 1]`` int32: the bytes of sorted token i are ``bytes[offsets[i]:offsets[i + 1]]``.
        bytes: uint8, all of them in one piece.
        low, high, depth: ``[B]`` int32 the node of each row; the root is 0, S and 0.

    Returns:
        ``[B, 257]`` float32 log-masses: by the byte at ``depth``; the last is that of the tokens that end at the node.

    Raises:
        RuntimeError: wrong shape, dtype or device; on the CPU, and under ``TOKOPS_CHECK=1``, ids, offsets or runs out
            of range (on CUDA what lies outside the tables is skipped otherwise).
    """
    if checked():
        _check(logp, order, offsets, bytes, low, high, depth)
        _check_values(logp, order, offsets, bytes, low, high, depth)
    return torch.ops.tokops.byte_marginal.default(logp, order, offsets, bytes, low, high, depth)


def _vocabulary(gen, size, letters, longest, unused=0):
    """Random byte strings, equal ones and empty ones among them, with the ids of a shuffled vocabulary."""
    lengths = torch.randint(0, longest + 1, (size,), generator=gen).tolist()
    words = sorted(bytes(torch.randint(0, letters, (n,), generator=gen).tolist()) for n in lengths)
    order = torch.randperm(size + unused, generator=gen)[:size].int()
    offsets = torch.tensor([0] + [len(w) for w in words]).cumsum(0).int()
    data = torch.frombuffer(bytearray(b"".join(words) or b"\0"), dtype=torch.uint8)
    return words, order, offsets, data


def _node(words, prefix):
    inside = [i for i, w in enumerate(words) if w.startswith(prefix)]
    return (inside[0], inside[-1] + 1, len(prefix)) if inside else (0, 0, len(prefix))


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of byte_marginal, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        words, order, offsets, data = _vocabulary(gen, 100000, 256, 8, 28000)
        logp = torch.log_softmax(torch.randn(8, 128000, generator=gen) * 4, -1)
        root = (torch.full((8,), x).int() for x in (0, 100000, 0))
        yield "byte_marginal", "root [8, 128000]", (logp, order, offsets, data, *root), {}
        return
    for count, letters, longest in ((1, 1, 1), (40, 3, 4), (3000, 2, 9), (700, 256, 3)):
        words, order, offsets, data = _vocabulary(gen, count, letters, longest, count // 5)
        some = [words[i] for i in torch.randint(0, count, (3,), generator=gen).tolist()]
        prefixes = [b"", some[0], some[1][:-1], some[2][:1], b"\xff\xff\xff\xff\xff"]
        nodes = torch.tensor([_node(words, p) for p in prefixes]).int()
        for dtype in FLOATS:
            logits = torch.randn(len(prefixes), count + count // 5, generator=gen) * 6
            logits[:, ::9], logits[1, ::4] = _MINUS, float("nan")
            args = (logits.to(dtype), order, offsets, data, *nodes.t().contiguous().unbind(0))
            yield "byte_marginal", f"{count} of {letters} letters {str(dtype)[6:]}", args, {}
    none = torch.zeros(0, dtype=torch.int32)
    yield (
        "byte_marginal",
        "no rows",
        (torch.zeros(0, 5), order[:0], none.new_zeros(1), data, none, none, none),
        {},
    )
