"""The paged cache: a transformers ``Cache`` whose layers hand themselves to our attention function."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .._check import check_tensor
from ..kvcache.lengths import UNLIMITED
from ..kvcache.pages import PageTable
from ..methods import Method, ModelShape, Step
from .drafts import Draft, compact
from .layers import PagedLayer, StoreLayer

#: Tokens per page. A beam that splits copies at most one page per layer and a sequence wastes at most 63 slots,
#: while 64 rows are still a run of 8 KiB or more per head, which streams as fast as a contiguous cache.
PAGE_SIZE = 64

#: How a pickled cache is laid out. A cache of another number is refused: raised by whatever changes its fields.
FORMAT = 5


class CacheState:
    """What the layers of one cache share: page tables, the current forward, and the plan that reads them."""

    def __init__(self, page_size: int, plan: "Plan"):
        self.page_size = page_size
        self.plan = plan
        self.shape = plan.shape
        self.tables: dict[int | None, PageTable] = {}
        #: Bookkeeping of the layers that a storing method keeps, None where all are full-precision pages.
        self.layout = plan.new_layout(page_size)
        self.step: Step | None = None
        #: Cached positions from here on are decoding, before it prompt. None: only single tokens are decoding.
        self.prompt_length: int | None = None
        #: What the tokens of the next forward are, and of the one at work, until they are kept.
        self.draft: Draft | None = None
        #: Tokens per sequence of a draft that has been run and is not kept yet.
        self.nodes = 0

    def table(self, window: int | None) -> PageTable:
        return self.tables.setdefault(window, PageTable(self.page_size, window))

    @property
    def books(self) -> list:
        """Everything that knows how many tokens and bytes are held."""
        return [*self.tables.values(), *([] if self.layout is None else [self.layout])]

    @property
    def length(self) -> int:
        return self.books[0].length

    @property
    def mean_length(self) -> float:
        """Tokens of a sequence, on average."""
        lengths = self.books[0].lengths
        return float(lengths.sum()) / max(len(lengths), 1)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "plan": None}  # the patched model's, which is not saved along

    def begin(self, batch: int, rows: int, device: torch.device) -> None:
        """Start a forward of new tokens: room in all tables, and a fresh step."""
        past = self.length
        self.refuse_nodes()
        if self.draft is not None:
            self.draft.check(batch, rows)
            prompt_rows = 0
        elif self.books[0].shortest != past:
            raise RuntimeError(
                f"the cache holds {self.books[0].shortest}..{past} tokens per sequence: call draft() before a forward "
                "over sequences of different lengths"
            )
        elif self.prompt_length is None:
            prompt_rows = rows if rows > 1 or past == 0 else 0
        else:
            prompt_rows = min(max(self.prompt_length - past, 0), rows)
        for table in self.tables.values():
            table.advance(batch, rows, device)
        if self.layout is not None:
            draft = {} if self.draft is None else {"draft": True, "depths": self.draft.depths}
            self.layout.begin(batch, rows, prompt_rows, device, **draft)
        self.nodes = 0 if self.draft is None else rows
        self.step = Step(past, rows, prompt_rows)
        self.plan.counters.begin(self)

    def refuse_nodes(self) -> None:
        """Refuse to go on while nobody has said what is kept of a draft."""
        if self.nodes:
            raise RuntimeError(
                f"the cache holds a draft of {self.nodes} tokens per sequence: call keep() on it first"
            )


class Plan:
    """What a patched model does with its caches: resolved methods and counters."""

    def __init__(self, methods: tuple[Method, ...], counters, shape: ModelShape):
        self.methods = methods
        self.shape = shape
        self.counters = counters
        selecting = [m for m in methods if "select" in m.slots]
        self.select = selecting[0].select if selecting else None
        self._storing = [m for m in methods if "store" in m.slots]

    def new_layout(self, page_size: int):
        """The bookkeeping of a new cache's stores, None where full-precision pages are the store."""
        return self._storing[0].new_layout(page_size, self.shape) if self._storing else None


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
            if window is None and self.state.layout is not None:
                layers.append(StoreLayer(index, self.state))
            else:
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

    def reset(self) -> None:
        """Forget everything; pools are given back."""
        for book in self.state.books:
            book.reset()
        for layer in self.layers:
            layer.reset()
        self.state.step = self.state.draft = None
        self.state.nodes = 0

    # ---- Drafts, and sequences of different lengths.

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sequence, left padding included; tokens of a draft count once they are kept."""
        return (self.state.books[0].lengths - self.state.nodes).tolist()

    def draft(self, ancestors: Tensor | None, depths: Tensor | None, starts: Tensor | None = None) -> None:
        """Say that the tokens of the next forward are drafts, which hang behind what each sequence holds.

        Row ``i`` of the forward is a node of sequence ``b``'s tree; its keys and values go to slot
        ``lengths[b] + i`` and its position is ``lengths[b] + depths[b, i]``. It sees the sequence's tokens and its
        ancestors; a sliding window counts by depth. Call the model with ``attention_mask=None``, ``position_ids`` =
        ``lengths - starts + depths`` and as many tokens for every sequence, then say with :meth:`keep` which nodes
        stay. Sequences of different lengths take new tokens in this way only.

        Args:
            ancestors: ``[B, T, W]`` int64, T at most 256: bit ``j % 64`` of word ``j // 64`` of row ``i`` says that
                node ``j`` is ``i`` itself or one of its ancestors. An ancestor comes before its descendants. None:
                the tokens are a chain, which a plain step of one token is.
            depths: ``[B, T]`` int32, ancestors of a node besides itself; None with ``ancestors``.
            starts: ``[B]`` int32 first visible position of every sequence (left padding); None is 0.

        Raises:
            RuntimeError: wrong dtype, shape or device; the last draft was not kept.
            ValueError: one of ``ancestors`` and ``depths`` without the other; at the forward, other sizes than its.
        """
        self.state.refuse_nodes()
        self.state.draft = Draft(ancestors, depths, starts)

    def keep(self, rows: Tensor | None, counts: Sequence[int]) -> None:
        """After a draft's forward, take some nodes of every sequence as its next tokens and forget the others.

        Args:
            rows: ``[B, n]`` int32 on the cache's device: the nodes to keep, in order. The first ``counts[b]`` of a
                row are strictly ascending and below T. None keeps the first ``counts[b]`` nodes.
            counts: how many of each sequence; 0 keeps nothing of this forward.

        Raises:
            RuntimeError: no draft has been run, or its forward was interrupted; wrong dtype, shape or device;
                on the CPU, or with TOKOPS_CHECK=1, rows that do not ascend.
            ValueError: counts out of range.
        """
        state = self.state
        nodes, book = state.nodes, state.books[0]
        if not nodes:
            raise RuntimeError("keep: no draft has been run: call draft() and run a forward first")
        if any(layer.length != book.length for layer in self.layers):
            raise RuntimeError("keep: the draft's forward was interrupted, reset() the cache")
        device = self.layers[0].device
        most = self._check_kept(rows, counts, nodes, device)
        held = torch.tensor(list(counts), dtype=torch.int32).to(device)
        # A single node is where it belongs already; what else is named is refused below.
        if rows is not None and most and (nodes > 1 or rows.is_cuda or bool(rows.any())):
            compact([pages for layer in self.layers for pages in layer.newest()], nodes, rows, held)
        change = held - nodes
        for kept in state.books:
            kept.keep(nodes, np.asarray(counts, np.int64), change)
        for layer in self.layers:
            layer.follow_keep(rows, held, most)
        state.nodes, state.draft = 0, None

    def _check_kept(self, rows, counts, nodes, device) -> int:
        batch = self.state.books[0].batch
        limit = nodes
        if rows is not None:
            check_tensor("keep", "rows", rows, 2, (torch.int32,), torch.empty(0, device=device))
            if rows.shape[0] != batch or rows.shape[1] > nodes:
                raise ValueError(
                    f"keep: rows must be [{batch}, at most {nodes}] of a draft of {nodes} tokens, got "
                    f"{list(rows.shape)}"
                )
            limit = rows.shape[1]
        if len(counts) != batch or not all(0 <= count <= limit for count in counts):
            raise ValueError(f"keep: counts must be {batch} numbers in 0..{limit}, got {list(counts)}")
        layout = self.state.layout
        if layout is not None and any(np.asarray(counts)[layout.finished]):
            raise ValueError(f"keep: a finished sequence keeps no tokens, got counts {list(counts)}")
        return max(counts, default=0)

    def room(self) -> list[int]:
        """How many tokens each sequence may commit before a store packs (or demotes) tokens anew.

        A tree is computed over one state of the store, where decoding one by one would go from state to state. The
        two are equal as long as no :meth:`keep` takes more tokens than there is room for. All sequences are packed
        together: one that is ahead has room 0, and keeps nothing, until the others have come to the same length.
        Where nothing limits it (full precision; stores that pack every token at once, which a draft sees as they
        will be packed; finished sequences) the number is 2**31 - 1.
        """
        layout = self.state.layout
        return [UNLIMITED] * self.state.books[0].batch if layout is None else layout.room()

    def finish(self, done: Sequence[bool]) -> None:
        """Say which sequences get no more tokens, so that stores do not wait for them with packing.

        They still take part in forwards, as garbage, and must keep 0 of their nodes. Keeping them is not needed
        where it is simpler to drop them with :meth:`batch_select_indices`.

        Args:
            done: a bool per sequence.

        Raises:
            ValueError: not one bool per sequence, or a finished sequence goes on after others were packed past its
                end.
        """
        state = self.state
        if len(done) != state.books[0].batch:
            raise ValueError(f"finish: done must be {state.books[0].batch} bools, got {list(done)}")
        if state.layout is not None:
            state.layout.finish(done)

    # ---- Changes between forwards.

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of every sequence, however long it is.

        Of sequences of different lengths, tokens that a store has packed behind the end of the shortest return to
        full precision as they were packed. MiKV refuses that. A cache without tokens is as new, but for its batch size.
        """
        self.state.refuse_nodes()
        remove = int(tokens_to_remove)
        if remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, got {remove}")
        layout = self.state.layout
        if layout is not None:
            layout.check_crop(-remove)
        for table in self.state.tables.values():
            table.check_crop(-remove)
        for table in self.state.tables.values():
            table.crop(-remove)
        restored = (0, 0) if layout is None else layout.crop(-remove)
        for layer in self.layers:
            layer.follow_crop(restored)
        if layout is not None:
            layout.drop_pages()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences, in the order given; pages are shared, not copied."""
        self._select((indices.nonzero().flatten() if indices.dtype == torch.bool else indices).tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Hold every sequence ``repeats`` times; pages are shared, not copied."""
        self._select([row for row in range(self.state.books[0].batch) for _ in range(repeats)])

    def _select(self, rows: list[int]) -> None:
        self.state.refuse_nodes()
        batch = self.state.books[0].batch
        if batch and any(not -batch <= row < batch for row in rows):
            raise IndexError(f"indices must be {-batch}..{batch - 1}, got {rows}")
        rows = (
            [row % batch for row in rows] if batch else rows
        )  # beams reorder a cache that holds nothing yet
        for book in self.state.books:
            book.select(rows)
        for layer in self.layers:
            layer.select(rows)

    def join(self, other: "PagedCache") -> None:
        """Hold the sequences of another cache, too, behind those here; their lengths may differ.

        Pages are copied over, those that sequences share once. The other cache stays as it is.

        Args:
            other: of the same run, with tokens in it, as here.

        Raises:
            TypeError: not a tokops cache.
            ValueError: a cache of another run, or one of the two holds nothing.
            NotImplementedError: a storing method keeps the tokens; only full-precision pages are joined.
        """
        if not isinstance(other, PagedCache):
            raise TypeError(f"join: only a tokops cache can be joined, got {type(other).__name__}")
        if other.state.plan is not self.state.plan or other.state.page_size != self.state.page_size:
            raise ValueError("join: the other cache belongs to another tokops.patch")
        if self.state.layout is not None:
            raise NotImplementedError("join: caches with a storing method are not joined")
        if not self.lengths or not other.lengths:
            raise ValueError("join: both caches must hold tokens")
        self.state.refuse_nodes()
        other.state.refuse_nodes()
        for window, table in self.state.tables.items():
            pages = table.join(other.state.tables[window])
            for mine, theirs in zip(self.layers, other.layers, strict=True):
                if mine.window == window:
                    mine.join(theirs, *pages)

    def unshare(self) -> None:
        """Give every sequence pages of its own, with copies of what they hold."""
        for window, table in self.state.tables.items():
            table.unshare()
            for layer in self.layers:
                if isinstance(layer, PagedLayer) and layer.window == window and layer.is_initialized:
                    layer.follow()
            table.copies = None
        if self.state.layout is not None:
            self.state.layout.unshare()
            for layer in self.layers:
                if isinstance(layer, StoreLayer):
                    layer.store.follow()

    def activate_past_recording(self) -> None:
        """Keep what leaves a sliding window until the next crop."""
        for table in self.state.tables.values():
            table.keep_past = True

    def __getstate__(self) -> dict:
        return {**self.__dict__, "format": FORMAT}

    def __setstate__(self, state: dict) -> None:
        found = state.pop("format", None)
        if found != FORMAT:
            raise ValueError(
                f"this cache was saved in format {found}, this tokops reads format {FORMAT}: fill a new cache instead"
            )
        self.__dict__.update(state)

    def __deepcopy__(self, memo):
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        twin.state.plan = self.state.plan  # the patched model's, which must not be copied along
        return twin
