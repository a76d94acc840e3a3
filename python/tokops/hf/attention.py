"""The attention function and the mask function that transformers calls for a patched model."""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from ..attention import prefill_attention
from .drafts import MAX_ROWS
from .layers import PagedLayer, StoreLayer
from .reader import Reader

NAME = "tokops"


class _NoBackward(torch.autograd.Function):
    """Marks a result that has no gradient, so that a backward pass fails instead of being wrong."""

    @staticmethod
    def forward(ctx, out, query):
        return out.view_as(out)

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError(
            "tokops: decoding over a cache has no gradient; train with use_cache=False or an undone patch"
        )


def mask(
    *,
    batch_size=None,
    q_length=None,
    kv_length=None,
    attention_mask=None,
    allow_is_causal_skip=True,
    mask_function=None,
    **kwargs,
) -> Tensor | None:
    """Padding as the first visible position of every sequence, ``[B]`` int32; None where there is no padding.

    Causality, windows and lengths are the kernels' own business.
    """
    if not allow_is_causal_skip:
        raise NotImplementedError(
            "tokops knows causal and sliding-window masks with padding; packed sequences (position_ids that restart) "
            "and custom mask functions are not supported"
        )
    if attention_mask is None:
        return None
    seen = attention_mask[:, :kv_length]
    count = seen.sum(-1)
    if int(count.min()) == kv_length:
        return None
    starts = torch.where(count > 0, seen.int().argmax(-1), kv_length)
    last = seen.shape[1] - seen.flip(-1).int().argmax(-1)
    contiguous = bool(((count == 0) | (last - starts == count)).all())
    # A padded end is harmless in a prompt: only rows of padding could see it.
    if not contiguous or (q_length != kv_length and not bool(((count == 0) | (last == kv_length)).all())):
        raise NotImplementedError(
            "tokops needs padding on the left (padding_side='left'): this attention_mask has padding "
            + ("between tokens" if not contiguous else "at the end, and tokens follow it")
        )
    return starts.int()


def attention(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **kwargs,
):
    """Attention of one layer: ``query [B, Hq, T, D]``; key and value are what our cache returned, or tensors."""
    if kwargs.get("cache") is not None:
        raise NotImplementedError("tokops does not support continuous batching (generate_batch)")
    if dropout:
        raise NotImplementedError(f"tokops has no attention dropout, got {dropout}: call model.eval()")
    if attention_mask is not None and attention_mask.dim() != 1:
        raise NotImplementedError(
            f"tokops takes a 2-D attention_mask with padding on the left, got one of shape {list(attention_mask.shape)}"
        )
    options = {
        "scale": scaling,
        "starts": attention_mask,
        "softcap": softcap,
        "window": sliding_window,
        "sink_logit": None if s_aux is None else s_aux.float(),
    }
    q = query.transpose(1, 2)
    if isinstance(key, (PagedLayer, StoreLayer)):
        if key.state.draft is not None:
            options |= _of_draft(key.state.draft, attention_mask)
        out = _over_cache(key, q, value, options)
        if key.state.step.prompt_rows:
            key.absorb(q, options)
        return out, None
    if key.shape[2] != query.shape[2]:
        raise TypeError(
            "tokops attention needs a tokops cache: pass past_key_values=run.new_cache(). If this model was not "
            "patched, it shares its config object with one that is"
        )
    return prefill_attention(q, key.transpose(1, 2), value.transpose(1, 2), **options), None


def _of_draft(draft, attention_mask):
    if attention_mask is not None:
        raise ValueError(
            "tokops: a draft's forward takes attention_mask=None, padding on the left goes to draft(starts=...)"
        )
    return (
        {"starts": draft.starts}
        if draft.ancestors is None
        else {"starts": draft.starts, "ancestors": draft.ancestors}
    )


def _over_cache(layer, q, new, options):
    if layer.window != options["window"]:
        raise RuntimeError(
            f"layer {layer.index} attends over a window of {options['window']}, its cache keeps one of {layer.window}"
        )
    state = layer.state
    step, select = state.step, state.plan.select
    rows = q.shape[1]
    if options["starts"] is not None:
        state.plan.counters.padding(state, options["starts"])
    prompt = rows if select is None or layer.window is not None else step.prompt_rows
    if prompt == rows:
        return _dense(layer, q, new, options, rows)
    if rows - prompt > MAX_ROWS:
        raise NotImplementedError(f"tokops decodes at most {MAX_ROWS} tokens at once, got {rows - prompt}")
    reader = Reader(layer, q[:, prompt:], options)
    selection = select(reader, step)
    state.plan.counters.decoded(state, reader, selection)
    out = reader.decode(selection) if selection is not None or reader.out is None else reader.out
    out = _guard(out, q)
    if prompt:
        out = torch.cat([_dense(layer, q[:, :prompt], new, options, rows), out], 1)
    return out


def _dense(layer, q, new, options, rows):
    """Dense attention of the first rows of a forward of ``rows`` tokens."""
    past, behind = layer.state.step.past, rows - q.shape[1]
    if (past or layer.state.nodes) and q.shape[1] <= MAX_ROWS:
        return _guard(layer.decode(q, options, behind=behind), q)
    if past:
        return _guard(layer.prompt(q, new, options), q)
    k, v = (x.transpose(1, 2)[:, : q.shape[1]] for x in new)
    return prefill_attention(q, k, v, **options)


def _guard(out, q):
    if torch.is_grad_enabled() and q.requires_grad:
        return _NoBackward.apply(out, q)
    return out


def register() -> None:
    """Make both functions known to transformers under one name; nothing changes until a model asks for it."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
