"""What a store is to the code that decodes over it, and the call that does."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .._native import checked
from ..attention import Part, merge_states, packed_decode
from ..attention.arguments import four_axes
from ._attention_mass import attention_mass

__all__ = ["Decoded", "Store", "decode"]


class Store(Protocol):
    """The cache of one layer for a batch of sequences of one logical length, drafts included.

    All parts hold keys and values as the store transforms them; ``rotate`` and ``query`` do the same to queries.
    A store may also have ``observe(scores, lse, softcap)``: it is then told of every dense pass the scaled scores
    ``[B, T, Hq, L]`` before the soft cap and the ``lse [B, T, Hq]`` of its rows, those at positions from L - T on.

    A store may have ``own``, keys and values ``[B, T, Hkv, D]`` of the newest tokens, neither transformed nor packed.
    Parts then hold these tokens as others see them, and a token sees itself as it is here. None: all see the same.
    """

    rotate: bool
    q_int8: bool

    @property
    def length(self) -> int:
        """Logical tokens of every sequence."""

    @property
    def seq_lens(self) -> Tensor:
        """The same, ``[B]`` int32 on the store's device."""

    @property
    def kv_heads(self) -> int:
        """KV heads."""

    def parts(self) -> list[Part]:
        """Everything that is held, each position once."""

    def flat_parts(self) -> tuple[list[Tensor], list[int]]:
        """The parts as the op takes them, made anew only when they have changed."""

    def query(self, q: Tensor) -> Tensor:
        """Queries ``[B, T, Hq, D]`` to go with the keys as they are kept, rotation aside."""


class Decoded(NamedTuple):
    """``out [B, T, Hq, D]``, ``lse [B, T, Hq]``; ``scores [B, T, Hq, L]`` and ``mass [B, Hkv, L]`` if asked for."""

    out: Tensor
    lse: Tensor
    scores: Tensor | None = None
    mass: Tensor | None = None


def decode(
    q: Tensor,
    store: Store,
    *,
    selected: Tensor | None = None,
    counts: Tensor | None = None,
    starts: Tensor | None = None,
    q_lens: Tensor | None = None,
    behind: int = 0,
    scale: float | None = None,
    ancestors: Tensor | None = None,
    sink_logit: Tensor | None = None,
    log_gamma: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
    scores: bool = False,
    mass: bool = False,
) -> Decoded:
    """Attention of the newest tokens over a store of any kind, dense or over a selection, in one call.

    Args:
        q: ``[B, T, Hq, D]`` queries, T at most 256; their keys and values are in the store.
        store: see :class:`Store`.
        selected, counts: logical positions, as in :func:`tokops.attention.packed_decode`.
        behind: tokens of the store that come after these rows (a long prompt is read in blocks of rows).
        scores: also give the scaled ``q . k`` of every logical position, -inf where unseen.
        mass: also give the attention that every position received, summed over rows and the heads of a group.

    Other arguments are those of :func:`tokops.attention.packed_decode`.

    Raises:
        RuntimeError: wrong shape, dtype, device or range, naming the argument; scores or mass of a selection;
            mass together with log_gamma.
    """
    torch._check(
        not (mass and log_gamma is not None),
        lambda: "decode: mass does not know log_gamma, ask for one of them",
    )
    seq_lens = store.seq_lens - behind if behind else store.seq_lens
    selected, counts = four_axes(selected, counts)
    own = getattr(store, "own", None)
    if own is not None:
        torch._check(
            log_gamma is None and q_lens is None and window is None and not behind,
            lambda: (
                "decode: tokens that are read as they will be packed know no log_gamma, q_lens, window or behind"
            ),
        )
        ancestors = _others(q, ancestors)
    plain = selected is None and log_gamma is None and q_lens is None
    observe = getattr(store, "observe", None) if plain else None
    options = {
        "q_lens": q_lens,
        "starts": starts,
        "scale": scale,
        "selected": selected,
        "counts": counts,
        "ancestors": ancestors,
        "sink_logit": sink_logit,
        "log_gamma": log_gamma,
        "softcap": softcap,
        "window": window,
        "rotate": store.rotate,
        "q_int8": store.q_int8,
        "max_len": store.length - behind if scores or mass or observe else None,
    }
    q = store.query(q)
    if checked():
        out, lse, raw = packed_decode(q, store.parts(), seq_lens, **options)
    else:
        out, lse, raw = torch.ops.tokops.packed_decode.default(q, *store.flat_parts(), seq_lens, **options)
    if own is not None:
        held = _own(q, own, store, scale, selected, counts, softcap)
        out, lse, raw = _with_own(out, lse, raw, own, *held)
    if observe:
        observe(raw, lse, softcap)
    share = attention_mass(raw, lse, store.kv_heads, softcap=softcap, q_lens=q_lens) if mass else None
    return Decoded(out, lse, raw if scores else None, share)


def _others(q: Tensor, ancestors: Tensor | None) -> Tensor:
    """Ancestor words ``[B, T, W]`` without the nodes themselves; of a chain where none are given."""
    batch, rows = q.shape[:2]
    node = torch.arange(rows, device=q.device)
    own = torch.zeros(rows, (rows + 63) // 64, dtype=torch.int64, device=q.device)
    own[node, node // 64] = torch.ones_like(node) << (node % 64)
    if ancestors is None:
        # One bit a column: the sum over the rows before is the union of their bits.
        return (own.cumsum(0) - own).expand(batch, -1, -1).contiguous()
    return ancestors & ~torch.nn.functional.pad(own, (0, ancestors.shape[2] - own.shape[1]))


def _own(q, own, store, scale, selected, counts, softcap):
    """What tokens see of themselves: scores ``[B, T, Hq]``, logits (-inf where not selected), and slots ``[B, T]``."""
    rows = q.shape[1]
    group = q.shape[2] // own[0].shape[2]
    scores = (q.float() * own[0].float().repeat_interleave(group, 2)).sum(-1)
    scores = scores * (q.shape[3] ** -0.5 if scale is None else scale)
    logits = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    slots = (store.seq_lens - rows)[:, None] + torch.arange(rows, device=q.device)
    if selected is not None:
        chosen = selected == slots[..., None, None]
        if counts is not None:
            chosen &= torch.arange(selected.shape[3], device=q.device) < counts[..., None]
        chosen = chosen.any(-1)
        chosen = chosen.repeat_interleave(q.shape[2] // chosen.shape[2], 2)
        logits = logits.masked_fill(~chosen, float("-inf"))
    return scores, logits, slots


def _with_own(out, lse, raw, own, scores, logits, slots):
    """Results over all others, and what tokens see of themselves, as one."""
    values = own[1].repeat_interleave(out.shape[2] // own[1].shape[2], 2).to(out.dtype)
    out, lse = merge_states([out, values.contiguous()], [lse, logits])
    if raw is not None and raw.dim() == 4:
        raw.scatter_(3, slots[:, :, None, None].expand(-1, -1, raw.shape[2], -1).long(), scores[..., None])
    return out, lse, raw
