"""Logits processors for other rows than those of the batch they were made for."""

import copy
from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, PrefixConstrainedLogitsProcessor

#: Tensors ``[B, ...]`` that transformers' processors keep of the batch: where prompts begin, and the prompts.
_OF_ROWS = ("prompt_ignore_length", "encoder_input_ids")


def processors_of(processors: LogitsProcessorList, rows: Sequence[int]) -> LogitsProcessorList:
    """The processors of a batch, to be called with some of its sequences, in any order and any number of times.

    Args:
        processors: as ``generate`` makes them for a batch.
        rows: for every sequence of the call, which of the batch it belongs to.

    Returns:
        A list that shares all state that is not of sequences.
    """
    return LogitsProcessorList(_of(processor, rows) for processor in processors)


def _of(processor, rows):
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
