"""The layers of our cache: they hand themselves to our attention function, which reads through them."""

import torch
from torch import Tensor
from transformers import CacheLayerMixin

from ..attention import (
    paged_append,
    paged_decode,
    paged_decode_scores,
    paged_scores,
    prefill_attention,
    vote_scores,
)
from ..kvcache import decode
from .drafts import MAX_ROWS, Rows


class _Layer(CacheLayerMixin):
    """What every layer of ours answers to transformers."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    window: int | None = None
    length = 0

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        raise NotImplementedError("tokops caches are not offloaded")

    prefetch = offload


class PagedLayer(_Layer):
    """Keys and values of one layer in pages; ``update`` returns the layer and the new tokens."""

    def __init__(self, index: int, state, window: int | None = None):
        super().__init__()
        self.index = index
        self.state = state
        self.window = window
        self.table = state.table(window)
        self.is_sliding = window is not None
        self.length = 0
        #: ``[2, N, Hkv, P, D]``, and its halves: keys and values are one tensor for the calls that take all layers.
        self.pages: Tensor | None = None
        self.k_pages: Tensor | None = None
        self.v_pages: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        _, heads, _, dim = key_states.shape
        if value_states.shape != key_states.shape:
            raise ValueError(
                f"keys and values must have one shape, got {list(key_states.shape)} and {list(value_states.shape)}"
            )
        self._hold(key_states.new_empty(2, heads, 0, self.table.size, dim).transpose(1, 2))
        self.table.token_bytes += 2 * heads * dim * key_states.element_size()
        self.table.layers += 1
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append new tokens ``[B, Hkv, T, D]``; returns this layer, and the new keys and values."""
        table = self.table
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = key_states.shape[2]
        if self.length + rows != table.length:
            raise RuntimeError(
                f"layer {self.index} holds {self.length} tokens and gets {rows}, the cache is at {table.length}: a "
                "forward was interrupted, reset() the cache"
            )
        if table.copies is not None or self.k_pages.shape[0] < table.capacity:
            self.follow()
        k, v = key_states.transpose(1, 2), value_states.transpose(1, 2)
        if k.requires_grad:
            k, v = k.detach(), v.detach()
        if table.skipped:
            k, v = k[:, table.skipped :], v[:, table.skipped :]
        paged_append(self.k_pages, self.v_pages, table.table, table.seq_lens, k, v)
        self.length = table.length
        return self, (key_states, value_states)

    def follow(self) -> None:
        """Grow the pools to the table's capacity and make the copies it asks for."""
        table = self.table
        assert self.pages is not None, "the first forward has made them"
        if self.pages.shape[1] < table.capacity:
            self._hold(self._grown(self.pages))
        if table.copies is not None:
            source, target = table.copies
            self.pages[:, target] = self.pages[:, source]

    def join(self, other: "PagedLayer", source: Tensor, target: Tensor) -> None:
        """Copy pages of another layer, after the table has joined the other's."""
        self.follow()
        assert self.pages is not None, "both layers hold tokens"
        assert other.pages is not None, "both layers hold tokens"
        self.pages[:, target.to(self.device)] = other.pages[:, source.to(self.device)]
        self.length = self.table.length

    def _hold(self, pages: Tensor | None) -> None:
        self.pages = pages
        self.k_pages, self.v_pages = (None, None) if pages is None else pages.unbind(0)

    def _grown(self, pages: Tensor) -> Tensor:
        # A head's pages lie side by side, so that a sequence in consecutive pages is read as one stream.
        _, held, heads, *page = pages.shape
        pool = pages.new_empty(2, heads, self.table.capacity, *page).transpose(1, 2)
        pool[:, :held] = pages
        return pool

    def __getstate__(self) -> dict:
        return {**self.__dict__, "k_pages": None, "v_pages": None}  # views, which would be saved as copies

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._hold(self.pages)

    def gather(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions ``[first, last)`` of all sequences, copied to ``[B, n, Hkv, D]``."""
        size = self.table.size
        column = first // size
        pages = self.table.table[:, column : -(-last // size)].long()
        out = []
        for pool in (self.k_pages, self.v_pages):
            rows = pool[pages].transpose(2, 3).flatten(1, 2)  # [B, pages * P, Hkv, D]
            out.append(rows[:, first - column * size : last - column * size])
        return out[0], out[1]

    def decode(self, q: Tensor, options: dict, selected=None, counts=None, behind: int = 0) -> Tensor:
        """Attention of rows ``q [B, T, Hq, D]`` that ``behind`` cached tokens follow, dense or over a selection."""
        seq_lens = self.table.seq_lens - behind if behind else self.table.seq_lens
        return paged_decode(
            q,
            self.k_pages,
            self.v_pages,
            self.table.table,
            seq_lens,
            selected=selected,
            counts=counts,
            **options,
        )[0]

    def scores(self, q: Tensor, options: dict, reduce: str) -> tuple[Tensor, Tensor | None]:
        """Scores of the newest rows as :func:`tokops.attention.paged_scores` gives them; no output."""
        scan = {name: options[name] for name in ("starts", "scale", "window", "ancestors") if name in options}
        table, lens = self.table.table, self.table.seq_lens
        return paged_scores(q, self.k_pages, table, lens, reduce=reduce, max_len=self.length, **scan), None

    def decode_scores(self, q: Tensor, options: dict, reduce: str) -> tuple[Tensor, Tensor | None]:
        """The same scores, and the dense output, out of one pass."""
        pages = (self.k_pages, self.v_pages, self.table.table, self.table.seq_lens)
        out, _, scores = paged_decode_scores(q, *pages, reduce=reduce, max_len=self.length, **options)
        return scores, out

    def prompt(self, q: Tensor, new: tuple[Tensor, Tensor], options: dict) -> Tensor:
        """Attention of many rows, the first of a forward, over what was cached before it and the new tokens."""
        past = self.state.step.past
        k, v = (x.transpose(1, 2)[:, : q.shape[1]] for x in new)
        first = 0 if self.window is None else max(0, past - self.window + 1)
        old = self.gather(first, past)
        if first and options["starts"] is not None:
            options = {**options, "starts": (options["starts"] - first).clamp_min(0)}
        k, v = (torch.cat([a, b], 1) for a, b in zip(old, (k, v), strict=True))
        return prefill_attention(q.detach(), k.detach(), v.detach(), **options)

    @property
    def seq_lens(self) -> Tensor:
        """Tokens of every sequence, the new ones included: ``[B]`` int32."""
        return self.table.seq_lens

    def newest(self) -> list[Rows]:
        """Where the rows of the last forward are, for :func:`~tokops.hf.drafts.compact`."""
        assert self.pages is not None, "a forward has written to them"
        return [Rows(self.pages, self.table.table, self.table.seq_lens)]

    def absorb(self, q: Tensor, options: dict) -> None:
        """Called after a prompt's attention; full-precision pages have taken its tokens already."""

    def follow_crop(self, restored: tuple[int, int]) -> None:
        """The tables have been cropped."""
        self.length = self.table.length

    def follow_keep(self, rows: Tensor | None, counts: Tensor, most: int) -> None:
        """The tables have dropped what was not kept of the last forward, and this layer's rows have moved."""
        self.length = self.table.length

    def select(self, rows: list[int]) -> None:
        """The tables have been reordered; pools stay as they are."""
        self.length = self.table.length

    def reset(self) -> None:
        """Give back the pools."""
        self.length, self.is_initialized = 0, False
        self._hold(None)

    @property
    def kv_heads(self) -> int:
        return self.k_pages.shape[1]


class StoreLayer(_Layer):
    """A layer that a storing method keeps; ``update`` returns the layer and the new tokens."""

    def __init__(self, index: int, state):
        super().__init__()
        self.index = index
        self.state = state
        self.store = state.layout.new_store(index)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        if value_states.shape != key_states.shape:
            raise ValueError(
                f"keys and values must have one shape, got {list(key_states.shape)} and {list(value_states.shape)}"
            )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append new tokens ``[B, Hkv, T, D]``; returns this layer, and the new keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.dtype != self.dtype:
            raise ValueError(f"layer {self.index} holds {self.dtype}, the new tokens are {key_states.dtype}")
        if self.length + key_states.shape[2] != self.state.layout.length:
            raise RuntimeError(
                f"layer {self.index} holds {self.length} tokens and gets {key_states.shape[2]}, the cache is at "
                f"{self.state.layout.length}: a forward was interrupted, reset() the cache"
            )
        k, v = (x.transpose(1, 2).detach() for x in (key_states, value_states))
        self.store.append(k, v)
        self.length = self.state.layout.length
        return self, (key_states, value_states)

    def decode(self, q: Tensor, options: dict, selected=None, counts=None, behind: int = 0) -> Tensor:
        """See :meth:`PagedLayer.decode`."""
        return decode(q.detach(), self.store, selected=selected, counts=counts, behind=behind, **options).out

    def decode_scores(self, q: Tensor, options: dict, reduce: str) -> tuple[Tensor, Tensor | None]:
        """See :meth:`PagedLayer.decode_scores`."""
        out, _, scores, _ = decode(q.detach(), self.store, scores=True, **options)
        assert scores is not None  # asked for
        heads = self.store.kv_heads
        if reduce in ("max", "sum"):
            groups = scores.unflatten(2, (heads, -1))
            scores = groups.amax(3) if reduce == "max" else groups.sum(3)
        elif reduce != "none":
            scores = vote_scores(scores, heads, reduce)
        return scores, out

    scores = decode_scores

    def prompt(self, q: Tensor, new: tuple[Tensor, Tensor], options: dict) -> Tensor:
        """See :meth:`PagedLayer.prompt`: packed pages are read a tile at a time, for blocks of rows."""
        out = []
        behind = self.length - self.state.step.past
        for block in q.split(MAX_ROWS, 1):
            behind -= block.shape[1]
            out.append(self.decode(block, options, behind=behind))
        return torch.cat(out, 1)

    def absorb(self, q: Tensor, options: dict) -> None:
        """Called after a prompt's attention: the store packs what the prompt brought."""
        self.state.layout.see_starts(options["starts"])
        self.store.absorb(q.detach(), **options)

    @property
    def seq_lens(self) -> Tensor:
        """See :attr:`PagedLayer.seq_lens`."""
        return self.store.seq_lens

    def newest(self) -> list[Rows]:
        """See :meth:`PagedLayer.newest`: drafts are in a store's tail."""
        return [Rows(*self.store.newest())]

    def follow_keep(self, rows: Tensor | None, counts: Tensor, most: int) -> None:
        """See :meth:`PagedLayer.follow_keep`."""
        self.store.keep(rows, counts, most)
        self.length = self.state.layout.length

    def follow_crop(self, restored: tuple[int, int]) -> None:
        """The layout has been cropped."""
        self.store.crop(restored)
        self.length = self.state.layout.length

    def select(self, rows: list[int]) -> None:
        """The layout has been reordered."""
        if self.is_initialized:
            self.store.select(torch.tensor(rows, dtype=torch.long, device=self.device))
        self.length = self.state.layout.length

    def reset(self) -> None:
        """Hold nothing."""
        self.length, self.is_initialized = 0, False
        self.store.reset()

    @property
    def kv_heads(self) -> int:
        return self.store.kv_heads
