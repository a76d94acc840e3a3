"""Drawing of tokens: the same seed gives the same tokens on every device, at any batch size and in any order."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _bitmask, _exact
from .._check import FLOATS, check_shape, check_tensor, refuse_unless
from .._native import op

__all__ = ["Sampling", "draw", "law", "sample"]

_SETTINGS = "float temperature, int top_k, float top_p, float min_p, Tensor? per_row"
_MOST = 1 << 22
_USES = {"draft": _exact.Use.DRAFT, "plain": _exact.Use.PLAIN}


@dataclass(frozen=True)
class Sampling:
    """How logits become a law: temperature, then top-k, top-p and min-p, each on what the one before it left.

    Args:
        temperature: logits are divided by it; 0 leaves the most likely token alone (the first of equals).
        top_k: tokens that are kept, the most likely ones; of equal ones the first. 0 keeps all.
        top_p: the fewest most likely tokens whose probabilities reach it are kept; 1 keeps all.
        min_p: tokens are kept that are at least so many times as likely as the most likely one; 0 keeps all.

    Raises:
        ValueError: a number out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, ok, wanted in (
            ("temperature", self.temperature == 0 or 1e-5 <= self.temperature <= 1e5, "0 or 1e-5..1e5"),
            ("top_k", 0 <= self.top_k < 2**31, "0..2^31 - 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0..1"),
        ):
            if not ok:
                raise ValueError(f"Sampling: {name} must be {wanted}, got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0


def _check_rows(name, logits, per_row, mask):
    check_tensor(name, "logits", logits, 2, FLOATS, logits)
    _check_vocabulary(name, logits.shape[1])
    if per_row is not None:
        check_tensor(name, "per_row", per_row, 2, (torch.float32,), logits)
        check_shape(name, "per_row", per_row, (logits.shape[0], 4), "[rows, 4]")
    if mask is not None:
        _bitmask.check(name, "mask", mask, logits.shape[0], logits)
        refuse_unless(mask.shape[1] > 0, name, "mask must have at least 1 word a row")


def _check_vocabulary(name, size):
    refuse_unless(1 <= size <= _MOST, name, f"the vocabulary must be 1..{_MOST} tokens, got {size}")


def _check_numbers(name, like, **tensors):
    for key, x in tensors.items():
        check_tensor(name, key, x, 1, (torch.int64,), like)
        check_shape(name, key, x, like.shape[:1], "[rows]")


def _weights(logits, temperature, top_k, top_p, min_p, per_row, mask):
    """Weights ``[rows, V]`` of rows of logits."""
    if mask is not None:
        logits = torch.where(_bitmask.allowed(mask, logits.shape[1]), logits, float("-inf"))
    settings = [(temperature, top_k, top_p, min_p)] * len(logits)
    if per_row is not None:
        settings = [(t, int(k), p, m) for t, k, p, m in per_row.tolist()]
    rows = [_exact.weigh(row, *s) for row, s in zip(logits, settings, strict=True)]
    return torch.stack(rows) if rows else logits.float()


@op(
    f"sample(Tensor logits, int seed, Tensor stream, Tensor position, {_SETTINGS}, int slot, int use, "
    "Tensor? mask=None) -> Tensor"
)
def sample_reference(
    logits, seed, stream, position, temperature, top_k, top_p, min_p, per_row, slot, use, mask=None
):
    """The definition: weights, their integers, one draw a row."""
    _check_rows("sample", logits, per_row, mask)
    _check_numbers("sample", logits, stream=stream, position=position)
    weights = _exact.fixed(_weights(logits, temperature, top_k, top_p, min_p, per_row, mask))
    tokens = []
    for w, s, at in zip(weights, stream.tolist(), position.tolist(), strict=True):
        total = int(w.sum())
        random = _exact.Stream(seed, s)
        tokens.append(random.pick(w, total, at, slot, _exact.Use(use)) if total else -1)
    return torch.tensor(tokens, dtype=torch.int32, device=logits.device)


@torch.library.register_fake("tokops::sample")
def _(logits, seed, stream, position, temperature, top_k, top_p, min_p, per_row, slot, use, mask=None):
    _check_rows("sample", logits, per_row, mask)
    _check_numbers("sample", logits, stream=stream, position=position)
    return logits.new_empty(logits.shape[:1], dtype=torch.int32)


@op(f"law(Tensor logits, {_SETTINGS}, Tensor? mask=None) -> Tensor")
def law_reference(logits, temperature, top_k, top_p, min_p, per_row, mask=None):
    """The definition: weights over their sum, one product a token."""
    _check_rows("law", logits, per_row, mask)
    w = _weights(logits, temperature, top_k, top_p, min_p, per_row, mask)
    total = _exact.fixed(w).sum(-1, keepdim=True).double()
    return torch.where(total > 0, w * (_exact.ONE / total).float(), 0.0)


@torch.library.register_fake("tokops::law")
def _(logits, temperature, top_k, top_p, min_p, per_row, mask=None):
    _check_rows("law", logits, per_row, mask)
    return logits.new_empty(logits.shape, dtype=torch.float32)


def _check_draw(probs, stream, position, count):
    check_tensor("draw", "probs", probs, 2, (torch.float32,), probs)
    _check_vocabulary("draw", probs.shape[1])
    refuse_unless(0 <= count <= 1024, "draw", f"count must be 0..1024, got {count}")
    _check_numbers("draw", probs, stream=stream, position=position)


@op(
    "draw(Tensor probs, int seed, Tensor stream, Tensor position, int count, bool replace, int use) -> Tensor"
)
def draw_reference(probs, seed, stream, position, count, replace, use):
    """The definition: one draw after the other, each from the weights that are left."""
    _check_draw(probs, stream, position, count)
    tokens = torch.full((len(probs), count), -1, dtype=torch.int32)
    for row, (weights, s, at) in enumerate(
        zip(_exact.fixed(probs), stream.tolist(), position.tolist(), strict=True)
    ):
        w, random = weights.clone(), _exact.Stream(seed, s)
        for i in range(count):
            total = int(w.sum())
            if total:
                tokens[row, i] = random.pick(w, total, at, i, _exact.Use(use))
                if not replace:
                    w[tokens[row, i]] = 0
    return tokens.to(probs.device)


@torch.library.register_fake("tokops::draw")
def _(probs, seed, stream, position, count, replace, use):
    _check_draw(probs, stream, position, count)
    return probs.new_empty((probs.shape[0], count), dtype=torch.int32)


def _seed(seed: int) -> int:
    """A seed of 64 bits as the signed number that an op takes."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def _rows(x, shape, device):
    """Numbers ``[rows]`` int64 from a number or a tensor of the batch shape."""
    if not isinstance(x, Tensor):
        return torch.full((shape.numel(),), x, dtype=torch.int64, device=device)
    return x.to(torch.int64).expand(shape).reshape(-1)


def _settings(name, logits, temperature, top_k, top_p, min_p):
    """The four numbers, checked, and ``per_row [rows, 4]`` where one of them is a tensor."""
    given = (temperature, top_k, top_p, min_p)
    if not any(isinstance(x, Tensor) for x in given):
        s = Sampling(*given)
        return (float(s.temperature), s.top_k, float(s.top_p), float(s.min_p), None)
    shape = logits.shape[:-1]
    columns = [
        torch.as_tensor(x, dtype=torch.float32, device=logits.device).expand(shape).reshape(-1) for x in given
    ]
    return (1.0, 0, 1.0, 0.0, torch.stack(columns, -1))


def sample(
    logits: Tensor,
    *,
    seed: int,
    stream: int | Tensor = 0,
    position: int | Tensor = 0,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Draw one token from every row of logits.

    A draw is named by seed, stream and position, and takes nothing from other rows: the same three give the same
    token on CPU and CUDA, in any batch. Law and draw are those of
    :func:`tokops.speculative.tree_verify`, whose ``match_plain`` gives these very tokens.

    Args:
        logits: ``[..., V]`` float32, bfloat16 or float16, V at most 2^22; NaN counts as -inf.
        seed: of the generation, 64 bits.
        stream: of the request, an int or ``[...]`` int64; its low 32 bits count.
        position: index in the request's sequence of the token that is drawn, an int or ``[...]`` int64.
        temperature, top_k, top_p, min_p: see :class:`Sampling`; numbers, or ``[...]`` tensors with one per row
            (which are not checked for their range).
        mask: ``[..., W]`` int32, or ``[W]`` for all rows: bit ``t % 32`` of word ``t / 32`` is 1 where token t may
            be drawn. What is not allowed, and tokens beyond the mask, count as -inf: the tokens are those that
            :func:`tokops.grammar.apply_bitmask_` and this function without a mask would give.

    Returns:
        ``[...]`` int32 tokens; -1 for a row without a finite logit that is allowed.

    Raises:
        RuntimeError: wrong shape, dtype or device.
        ValueError: a setting out of range.
    """
    torch._check(logits.dim() >= 1, lambda: "sample: logits must have at least 1 dimension")
    shape = logits.shape[:-1]
    numbers = [_rows(x, shape, logits.device) for x in (stream, position)]
    settings = _settings("sample", logits, temperature, top_k, top_p, min_p)
    rows = logits.reshape(-1, logits.shape[-1])
    bits = _bitmask.rows_of("sample", mask, shape)
    tokens = torch.ops.tokops.sample.default(rows, _seed(seed), *numbers, *settings, 0, _USES["plain"], bits)
    return tokens.view(shape)


def law(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The law that tokens are drawn from: logits after temperature, top-k, top-p and min-p, normalised.

    Args:
        logits: ``[..., V]`` as in :func:`sample`.
        temperature, top_k, top_p, min_p: see :class:`Sampling`; numbers, or ``[...]`` tensors.
        mask: tokens that are allowed, as in :func:`sample`; the law is over these.

    Returns:
        ``[..., V]`` float32; all 0 for a row without a finite logit that is allowed.

    Raises:
        RuntimeError, ValueError: as :func:`sample`.
    """
    torch._check(logits.dim() >= 1, lambda: "law: logits must have at least 1 dimension")
    settings = _settings("law", logits, temperature, top_k, top_p, min_p)
    rows = logits.reshape(-1, logits.shape[-1])
    bits = _bitmask.rows_of("law", mask, logits.shape[:-1])
    return torch.ops.tokops.law.default(rows, *settings, bits).view(logits.shape)


def draw(
    probs: Tensor,
    count: int = 1,
    *,
    seed: int,
    stream: int | Tensor = 0,
    position: int | Tensor = 0,
    replace: bool = False,
    use: str = "draft",
) -> Tensor:
    """Draw tokens from laws: the children of a node of a draft tree.

    Args:
        probs: ``[..., V]`` float32 weights, at most 1 each; they need not be normalised.
        count: draws per row; draw i has slot i.
        seed, stream, position: as in :func:`sample`; position is that of the token the draft is for.
        replace: whether a token may be drawn again. Without it, draw i is from the weights that are left.
        use: ``"draft"`` or ``"plain"``: which of the request's random numbers are used up.

    Returns:
        ``[..., count]`` int32; -1 where no weight is left.

    Raises:
        RuntimeError: wrong shape, dtype or device, or a count that is not 0..1024.
        ValueError: an unknown use.
    """
    if use not in _USES:
        raise ValueError(f"draw: use must be {' or '.join(_USES)}, got {use!r}")
    torch._check(probs.dim() >= 1, lambda: "draw: probs must have at least 1 dimension")
    shape = probs.shape[:-1]
    numbers = [_rows(x, shape, probs.device) for x in (stream, position)]
    rows = probs.reshape(-1, probs.shape[-1])
    return torch.ops.tokops.draw.default(rows, _seed(seed), *numbers, count, replace, _USES[use]).view(
        *shape, count
    )


def _case_settings(rows, gen):
    yield "plain", (1.0, 0, 1.0, 0.0, None)
    yield "greedy", (0.0, 0, 1.0, 0.0, None)
    yield "top-k 3", (0.7, 3, 1.0, 0.0, None)
    yield "top-p 0.8", (1.3, 0, 0.8, 0.0, None)
    yield "min-p 0.2", (1.0, 0, 1.0, 0.2, None)
    yield "all", (0.9, 40, 0.9, 0.01, None)
    mixed = torch.tensor([[1.0, 0, 1.0, 0.0], [0.0, 0, 1.0, 0.0], [0.5, 2, 0.9, 0.1]])
    yield "per row", (1.0, 0, 1.0, 0.0, mixed[torch.arange(rows) % 3])


def _case_mask(rows, v, gen):
    """Words of all kinds: none, all and some of 32 tokens; the last row is short of a word where it can be."""
    some = torch.rand(rows, v, generator=gen) < torch.tensor([0.5, 0.02, 0.97])[torch.arange(rows) % 3, None]
    words = _bitmask.packed(some)
    words[:, 2:4], words[:, 4:6] = 0, -1
    return words[:, : max(1, words.shape[1] - 1)].contiguous()


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of the three ops, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for rows, v in ((1, 131072), (8, 131072), (64, 49152)):
            logits = torch.randn(rows, v, generator=gen) * 4
            numbers = (torch.arange(rows), torch.arange(rows) * 7)
            for name, settings in (
                ("plain", (1.0, 0, 1.0, 0.0, None)),
                ("top-p 0.9", (1.0, 0, 0.9, 0.0, None)),
            ):
                yield "sample", f"[{rows}, {v}] {name}", (logits, 1, *numbers, *settings, 0, 3), {}
            mask = _bitmask.packed(torch.rand(rows, v, generator=gen) < 0.5)
            yield "sample", f"[{rows}, {v}] masked", (logits, 1, *numbers, *settings, 0, 3, mask), {}
        return
    for rows, v in ((1, 1), (3, 8), (4, 1000), (2, 5001)):
        for dtype in FLOATS[: 1 if v > 5000 else 3]:
            logits = (torch.randn(rows, v, generator=gen) * 3).to(dtype)
            if rows == 4:
                logits[0], logits[1, ::2], logits[2, 5:9] = float("-inf"), float("nan"), float("inf")
                logits[3] = logits[3].round()  # many ties
            numbers = (torch.arange(rows) + 5, torch.arange(rows) * 11)
            for name, settings in _case_settings(rows, gen):
                label = f"{name} [{rows}, {v}] {str(dtype)[6:]}"
                yield "sample", label, (logits, 0x123456789ABCDEF0, *numbers, *settings, 0, 3), {}
                yield "law", label, (logits, *settings), {}
            for kept, settings in ((rows, (1.0, 0, 1.0, 0.0, None)), (1, (0.9, 40, 0.9, 0.01, None))):
                mask = _case_mask(kept, v, gen)
                label = f"{kept} masks [{rows}, {v}] {str(dtype)[6:]}"
                yield "sample", label, (logits, 77, *numbers, *settings, 0, 3, mask), {}
                yield "law", label, (logits, *settings, mask), {}
        probs = torch.rand(rows, v, generator=gen) / v
        for replace in (False, True):
            label = f"[{rows}, {v}] {'with' if replace else 'without'} replacement"
            yield "draw", label, (probs, -7, *numbers, 5, replace, 2), {}
    yield (
        "sample",
        "no rows",
        (torch.zeros(0, 4), 0, torch.arange(0), torch.arange(0), 1.0, 0, 1.0, 0.0, None, 0, 3),
        {},
    )
