"""What else computes the same attention: plain torch in several formulations, and FlashInfer."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa


def _folded(q: Tensor, heads: int) -> Tensor:
    """``[B, 1, Hq, D]`` queries as ``[B, Hkv, G, D]``: the heads of a group become query rows."""
    return q.view(q.shape[0], heads, -1, q.shape[-1])


def sdpa_gqa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's own grouped flag, which is what transformers calls for an unpadded decode step."""
    return sdpa(q.transpose(1, 2), k, v, enable_gqa=True).transpose(1, 2)


def sdpa_expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values repeated for every query head."""
    group = q.shape[2] // k.shape[1]
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return sdpa(q.transpose(1, 2), keys, values).transpose(1, 2)


def sdpa_folded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Group heads as query rows: every cached byte is read once per group."""
    return sdpa(_folded(q, k.shape[1]), k, v, attn_mask=mask).reshape(q.shape)


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two batched products and a softmax, group heads as rows."""
    logits = _folded(q, k.shape[1]) @ k.transpose(-1, -2)
    weights = torch.softmax(logits.float() * q.shape[-1] ** -0.5, -1).to(q.dtype)
    return (weights @ v).reshape(q.shape)


def bmm_split(q: Tensor, k: Tensor, v: Tensor, splits: int = 16) -> Tensor:
    """The same with the sequence cut into pieces: more than one product per KV head for the threads."""
    if k.shape[2] % splits:
        return bmm(q, k, v)
    keys, values = k.unflatten(2, (splits, -1)), v.unflatten(2, (splits, -1))
    logits = _folded(q, k.shape[1])[:, :, None] @ keys.transpose(-1, -2)  # [B, Hkv, splits, G, L / splits]
    logits = logits.float() * q.shape[-1] ** -0.5
    weights = torch.exp(logits - logits.amax((2, 4), keepdim=True))
    total = weights.sum((2, 4))[..., None]
    return ((weights.to(q.dtype) @ values).float().sum(2) / total).to(q.dtype).reshape(q.shape)


DENSE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa enable_gqa": sdpa_gqa,
    "sdpa expanded": sdpa_expanded,
    "sdpa folded": sdpa_folded,
    "bmm": bmm,
    "bmm split": bmm_split,
}


def gathered(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Selected rows copied out, then attention over the copy; index ``[B, Hkv, k]`` int64."""
    rows = index[..., None].expand(-1, -1, -1, k.shape[-1])
    return sdpa_folded(q, k.gather(2, rows), v.gather(2, rows))


def has_flashinfer(q: Tensor) -> bool:
    """Whether FlashInfer is installed, the tensors are where it runs, and of a dtype it has kernels for."""
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and importlib.util.find_spec("flashinfer") is not None
    )


def flashinfer_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, block_table: Tensor, seq_lens: Tensor
) -> Callable[[], Tensor]:
    """A planned FlashInfer decode over the same pages; see :func:`has_flashinfer`.

    Args:
        q: ``[B, 1, Hq, D]``.
        k_pages, v_pages: ``[N, Hkv, P, D]``.
        block_table: ``[B, pages]`` int32; seq_lens: ``[B]`` int32.
    """
    import flashinfer

    page = k_pages.shape[2]
    pages = (seq_lens + page - 1) // page
    indptr = torch.zeros(len(seq_lens) + 1, dtype=torch.int32, device=q.device)
    indptr[1:] = pages.cumsum(0)
    rows = torch.arange(block_table.shape[1], device=q.device) < pages[:, None]
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    last = ((seq_lens - 1) % page + 1).int()
    heads = (q.shape[2], k_pages.shape[1], q.shape[3])
    wrapper.plan(
        indptr, block_table[rows], last, *heads, page, q_data_type=q.dtype, kv_data_type=k_pages.dtype
    )
    return lambda: wrapper.run(q[:, 0], (k_pages, v_pages))[:, None]
