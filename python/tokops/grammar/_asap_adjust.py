"""Grammar-aligned decoding on dense tables: logits moved by the known futures of their tokens, and masses of nodes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _bitmask
from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import checked, op

__all__ = ["asap_adjust", "node_mass"]

_FLOAT, _INT = (torch.float32,), (torch.int32,)
_MINUS = float("-inf")


def _check(logits, mask, log_theta, rows):
    name = "asap_adjust"
    check_tensor(name, "logits", logits, 2, FLOATS, logits)
    batch, size = logits.shape
    if mask is not None:
        _bitmask.check(name, "mask", mask, batch, logits)
        refuse_unless(mask.shape[1] > 0, name, "mask must have at least 1 word a row")
    check_tensor(name, "log_theta", log_theta, 2, _FLOAT, logits)
    check_shape(name, "log_theta", log_theta, (log_theta.shape[0], size), "[R, V]")
    check_tensor(name, "rows", rows, 1, _INT, logits)
    check_shape(name, "rows", rows, (batch,), "[B]")


def _check_values(log_theta, rows):
    most = log_theta.shape[0] - 1
    ok = bool(((rows >= -1) & (rows <= most)).all())
    refuse_unless(ok, "asap_adjust", f"rows must be -1..{most}, got {rows.tolist()[:8]}")


def _sane(x):
    return torch.where(x.isnan(), _MINUS, x).clamp_max(torch.finfo(torch.float32).max)


def _logsumexp(x):
    if x.shape[-1] == 0:
        return x.new_full(x.shape[:-1], _MINUS)
    return torch.logsumexp(x.double(), -1).float()


@op("asap_adjust(Tensor logits, Tensor? mask, Tensor log_theta, Tensor rows) -> Tensor")
def adjust_reference(logits, mask, log_theta, rows):
    """The definition: log-softmax of all tokens, plus the node's row, where the mask allows."""
    _check(logits, mask, log_theta, rows)
    _check_values(log_theta, rows)
    x = _sane(logits.float())
    logp = _sane(x - _logsumexp(x)[:, None])
    there = (rows >= 0)[:, None]
    nodes = log_theta[rows.clamp_min(0).long()] if len(log_theta) else torch.zeros_like(logp)
    moved = torch.where(there, logp + nodes, logp)
    moved = torch.where(moved.isnan(), _MINUS, moved)
    if mask is None:
        return moved
    return torch.where(_bitmask.allowed(mask, logits.shape[1]), moved, _MINUS)


@torch.library.register_fake("tokops::asap_adjust")
def _(logits, mask, log_theta, rows):
    _check(logits, mask, log_theta, rows)
    return logits.new_empty(logits.shape, dtype=torch.float32)


def _check_mass(logp, log_theta):
    check_tensor("node_mass", "logp", logp, 2, _FLOAT, logp)
    check_tensor("node_mass", "log_theta", log_theta, 2, _FLOAT, logp)
    check_shape("node_mass", "log_theta", log_theta, logp.shape, "[N, V]")


@op("node_mass(Tensor logp, Tensor log_theta) -> Tensor")
def mass_reference(logp, log_theta):
    """The definition: ln of the sum of all products."""
    _check_mass(logp, log_theta)
    return _logsumexp(_sane(logp + log_theta))


@torch.library.register_fake("tokops::node_mass")
def _(logp, log_theta):
    _check_mass(logp, log_theta)
    return logp.new_empty(logp.shape[:1])


def asap_adjust(logits: Tensor, mask: Tensor | None, log_theta: Tensor, rows: Tensor) -> Tensor:
    """Log-probabilities times what is known of the futures of their tokens, under a mask.

    The log-softmax is over all tokens, masked or not, as grammar-aligned decoding wants it; what comes out is not
    normalised. It is for many rows that share a few tables on the device. :class:`tokops.methods.ASAp` keeps its bounds
    on the host, for tokens that are likely or were drawn, the others' being 0: its step is the mask's pass alone, and
    a context takes 24 bytes for each of them in place of a table's 4 V.

    Args:
        logits: ``[B, V]`` float32, bfloat16 or float16; NaN counts as -inf.
        mask: ``[B, W]``, ``[1, W]`` or ``[W]`` int32: bit ``t % 32`` of word ``t / 32`` is 1 where token t is allowed,
            tokens beyond it are not; None allows all.
        log_theta: ``[R, V]`` float32: per visited node, the log of an upper estimate of the mass that is grammatical
            after each token; 0 where nothing is known, -inf where nothing is left.
        rows: ``[B]`` int32 row of ``log_theta`` for each row, -1 for a context that has no node yet.

    Returns:
        ``[B, V]`` float32 ``log_softmax(logits) + log_theta[rows]``, -inf where the mask forbids.

    Raises:
        RuntimeError: wrong shape, dtype or device; on the CPU, and under ``TOKOPS_CHECK=1``, rows out of range (on
            CUDA they count as -1 otherwise).
    """
    mask = mask[None] if mask is not None and mask.dim() == 1 else mask
    if checked():
        _check(logits, mask, log_theta, rows)
        _check_values(log_theta, rows)
    return torch.ops.tokops.asap_adjust.default(logits, mask, log_theta, rows)


def node_mass(logp: Tensor, log_theta: Tensor) -> Tensor:
    """The mass that is grammatical after a context: the sum over tokens of probability times future, as a log.

    What :func:`asap_adjust` is to a step, this is to the end of a text, once for each context along it.

    Args:
        logp: ``[N, V]`` float32 log-probabilities of the tokens after each of N contexts.
        log_theta: ``[N, V]`` float32 logs of their futures.

    Returns:
        ``[N]`` float32 ``logsumexp(logp + log_theta)``; -inf where nothing is left.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return torch.ops.tokops.node_mass.default(logp, log_theta)


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the two ops, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)

    def theta(rows, v):
        x = -torch.rand(rows, v, generator=gen) * 5
        x[torch.rand(rows, v, generator=gen) < 0.3] = _MINUS
        return x

    if size == "large":
        logits, nodes = torch.randn(8, 131072, generator=gen) * 4, theta(4, 131072)
        mask = _bitmask.packed(torch.rand(8, 131072, generator=gen) < 0.5)
        yield "asap_adjust", "[8, 131072]", (logits, mask, nodes, torch.arange(8).int() - 4), {}
        yield "node_mass", "[4, 131072]", (torch.log_softmax(logits[:4], -1), nodes), {}
        return
    for batch, v, nodes in ((1, 1, 1), (3, 40, 2), (4, 1000, 7), (2, 3001, 1)):
        for dtype in FLOATS:
            logits = (torch.randn(batch, v, generator=gen) * 4).to(dtype)
            if batch == 4:
                logits[0], logits[1, ::2], logits[2, 5:9] = _MINUS, float("nan"), float("inf")
            rows = torch.randint(-1, nodes, (batch,), generator=gen).int()
            label = f"[{batch}, {v}] {str(dtype)[6:]}"
            args = theta(nodes, v), rows
            yield "asap_adjust", label, (logits, None, *args), {}
            words = max(1, v // 32)
            mask = _bitmask.packed(torch.rand(batch, 32 * words, generator=gen) < 0.5)
            mask[:, :1] = -1
            yield "asap_adjust", f"masked {label}", (logits, mask, *args), {}
            yield "asap_adjust", f"one mask {label}", (logits, mask[:1].clone(), *args), {}
        logp, futures = torch.log_softmax(torch.randn(nodes, v, generator=gen) * 4, -1), theta(nodes, v)
        futures[0, ::7] = float("nan")
        yield "node_mass", f"[{nodes}, {v}]", (logp, futures), {}
        yield "node_mass", f"nothing left [{nodes}, {v}]", (logp, torch.full_like(futures, _MINUS)), {}
    none = torch.zeros(0, 9), torch.zeros(2, 9)
    yield "asap_adjust", "no rows", (none[0], None, none[1], torch.zeros(0).int()), {}
    yield "asap_adjust", "no nodes", (none[1], None, none[0], torch.full((2,), -1).int()), {}
    yield "node_mass", "no nodes", (none[0], none[0]), {}
