"""Logits processors for other rows than those of the batch they were made for, and what of them is a law's setting."""

import copy
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from ..sampling import Sampling

_WARPERS = {
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
}
#: Tensors ``[B, ...]`` that transformers' processors keep of the batch: where prompts begin, and the prompts.
_OF_ROWS = ("prompt_ignore_length", "encoder_input_ids")


class RowProcessor(LogitsProcessor):
    """A processor that may ask which sequences of the batch it is called with, and where the forward has them."""

    #: For every row of the call, which sequence of the batch it belongs to; None: see :meth:`row`.
    rows: Sequence[int] | None = None
    #: For every row of the call, its row and its token in what the last forward put out; None: the last tokens.
    places: Sequence[tuple[int, int]] | None = None

    def of_rows(self, rows: Sequence[int], places: Sequence[tuple[int, int]] | None) -> "RowProcessor":
        """This processor for other rows; everything else is shared."""
        twin = copy.copy(self)
        twin.rows, twin.places = rows, places
        return twin

    def row(self, index: int, count: int, batch: int) -> int:
        """Which of ``batch`` sequences row ``index`` of a call with ``count`` rows belongs to (beams are in order)."""
        return self.rows[index] if self.rows is not None else index * batch // count


def processors_of(
    processors: LogitsProcessorList,
    rows: Sequence[int],
    places: Sequence[tuple[int, int]] | None = None,
) -> LogitsProcessorList:
    """The processors of a batch, to be called with some of its sequences, in any order and any number of times.

    Args:
        processors: as ``generate`` makes them for a batch.
        rows: for every sequence of the call, which of the batch it belongs to.
        places: for every sequence of the call, where the last forward has the token that it ends with: the row, and
            the index in it. None: row for row, the last token.

    Returns:
        A list that shares all state that is not of sequences.
    """
    return LogitsProcessorList(_of(processor, rows, places) for processor in processors)


def _of(processor, rows, places):
    if isinstance(processor, RowProcessor):
        return processor.of_rows(rows, places)
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda i, ids: allowed(rows[i], ids), num_beams=1)
    kept = {name: getattr(processor, name, None) for name in _OF_ROWS}
    kept = {name: value for name, value in kept.items() if isinstance(value, torch.Tensor)}
    if not kept:
        return processor
    twin = copy.copy(processor)
    for name, value in kept.items():
        setattr(twin, name, value[torch.tensor(rows, device=value.device)])
    return twin


def split_processors(
    processors: LogitsProcessorList, do_sample: bool
) -> tuple[LogitsProcessorList, Sampling]:
    """What must see a node's path, and the law's settings, which verification applies to the rows it reads.

    Temperature, top-k, top-p and min-p are taken out where they come last and in that order; else everything stays a
    processor. transformers keeps all tokens that tie at a top-k cut, ours the first of them.
    """
    if not do_sample:
        return processors, Sampling(temperature=0.0)
    names = [_WARPERS.get(type(p).__name__, "") for p in processors]
    first = next((i for i, name in enumerate(names) if name), len(names))
    tail, order = names[first:], list(_WARPERS.values())
    plain = "" not in tail and tail == sorted(set(tail), key=lambda name: order.index(name))
    if not plain or any(getattr(p, "min_tokens_to_keep", 1) > 1 for p in processors[first:]):
        return processors, Sampling()
    values = {name: getattr(p, name) for name, p in zip(tail, processors[first:], strict=True)}
    return LogitsProcessorList(processors[:first]), Sampling(**values)
