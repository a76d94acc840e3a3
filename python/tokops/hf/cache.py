"""The paged cache: a transformers ``Cache`` whose layers hand themselves to our attention function."""

import copy

import torch
from torch import Tensor
from transformers import Cache, CacheLayerMixin, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..attention import paged_append
from ..methods import Method, Step
from .pages import PageTable

#: Tokens per page. A beam that splits copies at most one page per layer and a sequence wastes at most 63 slots,
#: while 64 rows are still a run of 8 KiB or more per head, which streams as fast as a contiguous cache.
PAGE_SIZE = 64


class CacheState:
    """What the layers of one cache share: page tables, the current forward, and the plan that reads them."""

    def __init__(self, page_size: int, plan: "Plan"):
        self.page_size = page_size
        self.plan = plan
        self.tables: dict[int | None, PageTable] = {}
        self.step: Step | None = None
        #: Cached positions from here on are decoding, before it prompt. None: only single tokens are decoding.
        self.prompt_length: int | None = None

    def table(self, window: int | None) -> PageTable:
        return self.tables.setdefault(window, PageTable(self.page_size, window))

    @property
    def length(self) -> int:
        return next(iter(self.tables.values())).length

    def begin(self, batch: int, rows: int, device: torch.device) -> None:
        """Start a forward of new tokens: room in all tables, and a fresh step."""
        past = self.length
        for table in self.tables.values():
            table.advance(batch, rows, device)
        if self.prompt_length is None:
            prompt_rows = rows if rows > 1 or past == 0 else 0
        else:
            prompt_rows = min(max(self.prompt_length - past, 0), rows)
        self.step = Step(past, rows, prompt_rows)
        self.plan.counters.begin(self)


class Plan:
    """What a patched model does with its caches: resolved methods and counters."""

    def __init__(self, methods: tuple[Method, ...], counters):
        self.methods = methods
        self.counters = counters
        selecting = [m for m in methods if "select" in m.slots]
        self.select = selecting[0].select if selecting else None


class PagedLayer(CacheLayerMixin):
    """Keys and values of one layer in pages; ``update`` returns the layer and the new tokens."""

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, index: int, state: CacheState, window: int | None = None):
        super().__init__()
        self.index = index
        self.state = state
        self.window = window
        self.table = state.table(window)
        self.is_sliding = window is not None
        self.length = 0
        self.k_pages: Tensor | None = None
        self.v_pages: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        _, heads, _, dim = key_states.shape
        if value_states.shape != key_states.shape:
            raise ValueError(
                f"keys and values must have one shape, got {list(key_states.shape)} and {list(value_states.shape)}"
            )
        self.k_pages = key_states.new_empty(0, heads, self.table.size, dim)
        self.v_pages = torch.empty_like(self.k_pages)
        self.table.token_bytes += 2 * heads * dim * key_states.element_size()
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
        if self.k_pages.shape[0] < table.capacity:
            self.k_pages, self.v_pages = (self._grown(x) for x in (self.k_pages, self.v_pages))
        if table.copies is not None:
            source, target = table.copies
            self.k_pages[target] = self.k_pages[source]
            self.v_pages[target] = self.v_pages[source]

    def _grown(self, pages):
        pool = pages.new_empty(self.table.capacity, *pages.shape[1:])
        pool[: pages.shape[0]] = pages
        return pool

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

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        raise NotImplementedError("tokops caches are not offloaded")

    prefetch = offload


class PagedCache(Cache):
    """Keys and values of all layers in pages. Sequences may share pages; a page is copied when written to.

    Every layer is paged. One with a sliding window releases pages that have left its window.

    Args:
        config: the model's configuration; decides the kind of every layer.
        plan: what the patched model does with the cache; made by ``run.new_cache()``.
        page_size: tokens per page.
    """

    def __init__(self, config, plan: Plan, page_size: int = PAGE_SIZE):
        self.state = CacheState(page_size, plan)
        layers = []
        for index, layer in enumerate(DynamicCache(config=config).layers):
            if type(layer) is DynamicLayer:
                window = None
            elif type(layer) is DynamicSlidingWindowLayer:
                window = layer.sliding_window
            else:
                raise ValueError(f"tokops has no pages for layer {index}, a {type(layer).__name__}")
            layers.append(PagedLayer(index, self.state, window))
        super().__init__(layers=layers)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        if layer_idx == 0:
            self.state.begin(key_states.shape[0], key_states.shape[2], key_states.device)
        return self.layers[layer_idx].update(key_states, value_states)

    @property
    def prompt_length(self) -> int | None:
        """Positions before it are prompt and read densely. None: only tokens that come one by one are decoding.

        ``generate`` sets it. Set it in a loop of your own that verifies drafts of several tokens.
        """
        return self.state.prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | None) -> None:
        self.state.prompt_length = value

    def _settle(self):
        for layer in self.layers:
            layer.length = layer.table.length

    def reset(self) -> None:
        """Forget everything; pools are given back."""
        for table in self.state.tables.values():
            table.reset()
        for layer in self.layers:
            layer.length, layer.k_pages, layer.v_pages, layer.is_initialized = 0, None, None, False
        self.state.step = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens."""
        remove = int(tokens_to_remove)
        if remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, got {remove}")
        for table in self.state.tables.values():
            table.crop(-remove)
        self._settle()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, in the order given; pages are shared, not copied."""
        rows = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        for table in self.state.tables.values():
            table.select(rows.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Hold every sequence ``repeats`` times; pages are shared, not copied."""
        for table in self.state.tables.values():
            table.select([row for row in range(table.batch) for _ in range(repeats)])

    def unshare(self) -> None:
        """Give every sequence pages of its own, with copies of what they hold."""
        for window, table in self.state.tables.items():
            table.unshare()
            for layer in self.layers:
                if layer.window == window and layer.is_initialized:
                    layer.follow()
            table.copies = None

    def activate_past_recording(self) -> None:
        """Keep what leaves a sliding window until the next crop."""
        for table in self.state.tables.values():
            table.keep_past = True

    def __deepcopy__(self, memo):
        # The plan belongs to the patched model, which must not be copied along.
        memo[id(self.state.plan)] = self.state.plan
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return twin
