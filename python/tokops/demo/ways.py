"""The ways of decoding that the demo compares, each on a model of its own over the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import Cache, PreTrainedModel

from tokops.hf import baselines, patch
from tokops.hf.contexts import Context, twin
from tokops.methods import Dense, Method, TidalDecode

STOCK, STATIC, PACKED, DENSE = "stock DynamicCache", "stock StaticCache", "plain PyTorch, packed", "Dense"


@dataclass(frozen=True)
class Way:
    """One way of decoding.

    Attributes:
        name: for the table.
        model: ready to decode with a cache of ``new_cache(room)``.
        run: the patch, None for what is not ours.
    """

    name: str
    model: PreTrainedModel
    new_cache: Callable[[int], Cache]
    run: Any = None

    def start(self, context: Context, room: int, batch: int = 1) -> Cache:
        """A cache that holds a copy of the document for every row of the batch."""
        cache = context.fill(self.new_cache(room), batch)
        if self.run is not None:
            cache.prompt_length = context.tokens
        return cache

    def attach(self, cache: Cache) -> None:
        """Go on with a cache that another way of ours has filled; there is not memory for one each."""
        self.run.adopt(cache)

    def bytes_read(self, context: Context, room: int) -> float:
        """Bytes of cache that attention reads for one decoded token after the document.

        For ours the patch has counted them. DynamicCache moreover copies the whole cache at every step, which
        is not counted.
        """
        if self.run is not None:
            return self.run.report().kv_bytes_read_per_token
        return context.bytes_per_token * (room if self.name == STATIC else context.tokens + 1)


def tidal(budget: int) -> str:
    """The name of TidalDecode at a budget."""
    return f"TidalDecode {budget}"


def stock_ways(model: PreTrainedModel) -> list[Way]:
    """Transformers' caches and the best plain PyTorch one."""
    ways = []
    for name, build in (
        (STOCK, baselines.dynamic_cache),
        (STATIC, baselines.static_cache),
        (PACKED, baselines.packed_cache),
    ):
        own = twin(model)
        if name == PACKED:
            baselines.use_packed_attention(own)
        ways.append(Way(name, own, partial(build, own)))
    return ways


def our_way(model: PreTrainedModel, name: str, *methods: Method) -> Way:
    """Methods of ours, on a patched twin."""
    own = twin(model)
    run = patch(own, *methods)
    return Way(name, own, lambda room: run.new_cache(), run)


def our_ways(model: PreTrainedModel, budgets: Sequence[int], reselect_layer: int | None = None) -> list[Way]:
    """Dense, and TidalDecode at several budgets."""
    methods = {tidal(k): TidalDecode(budget=k, reselect_layer=reselect_layer) for k in budgets}
    return [our_way(model, name, method) for name, method in {DENSE: Dense(), **methods}.items()]
