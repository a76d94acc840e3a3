"""The decoding loop of AWRS: one token a step for all texts that still run, each with its weight."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..grammar.constraint import mask_of, prune_of
from ..methods.awrs import AWRS, Draws
from .constrained import Batch, Text, begin, draw_seed, end_ids, refuse_greedy, sequences
from .families import CACHE


@dataclass
class AWRSOutput(GenerateDecoderOnlyOutput):
    """What ``generate(return_dict_in_generate=True)`` gives: as ever, and the weights.

    Attributes:
        log_weights: ``[B]`` float64: log of the importance weight of every text; -inf where no legal token was found.
        checks: for every text and token, how often the constraint was asked.
        complete: ``[B]`` bool: an end token ended the text.
    """

    log_weights: Tensor | None = None
    checks: list[list[int]] | None = None
    complete: Tensor | None = None


def draw_tokens(
    method: AWRS, batch: Batch, texts: Sequence[Text], scores: Tensor, seed: int, masks=None
) -> Draws:
    """A token for every row of scores, whose texts are given; ``masks`` stand in place of the constraints'."""
    if masks is None:
        masks = [
            mask_of(text.constraint, text.state) if method.use_masks and text.constraint is not None else None
            for text in texts
        ]
    return method.sample(
        scores,
        [text.ok for text in texts],
        seed=seed,
        streams=[text.stream for text in texts],
        positions=[batch.position(text) for text in texts],
        masks=masks,
        prune=_prune(texts, scores),
    )


def _prune(texts: Sequence[Text], scores: Tensor) -> Tensor | None:
    """Masks ``[P, W]`` of what is legal anywhere, None where no constraint knows."""
    each = [None if text.constraint is None else prune_of(text.constraint) for text in texts]
    known = [mask for mask in each if mask is not None]
    if not known:
        return None
    words = (scores.shape[1] + 31) // 32
    if len({id(mask) for mask in known}) == 1 and len(known) == len(each):
        return known[0]
    rows = torch.full((len(each), words), -1, dtype=torch.int32)
    for row, mask in zip(rows, each, strict=True):
        if mask is not None:
            row.zero_()
            row[: len(mask)] = mask[:words]
    return rows


def warn_dead(name: str, texts: Sequence[Text]) -> None:
    """Say which texts found no legal token."""
    dead = sorted({text.request for text in texts if text.dead})
    if dead:
        some = ", ".join(map(str, dead[:8])) + (f" and {len(dead) - 8} more" if len(dead) > 8 else "")
        warnings.warn(
            f"{name}: no legal token was found for requests {some}; their texts break off", stacklevel=3
        )


def generate_loop(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    *,
    run,
    method,
    streamer=None,
    tokenizer=None,
    seed=None,
    streams=None,
    constraints=None,
    **model_kwargs,
):
    """Adaptive weighted rejection sampling, see :class:`tokops.methods.AWRS`."""
    refuse_greedy("AWRS", generation_config)
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"AWRS: a streamer takes one request, got {len(input_ids)}")
    mask = model_kwargs.get("attention_mask")
    texts = begin("AWRS", len(input_ids), mask, streams, method.constraint, constraints)
    ends = end_ids(generation_config, [text.constraint for text in texts])
    seed = draw_seed(seed)
    batch = Batch(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config.prefill_chunk_size,
        model_kwargs,
    )
    logits = batch.prefill()
    rows = list(texts)
    while True:
        scores = batch.scores(logits)
        draws = draw_tokens(method, batch, rows, scores, seed)
        for text, token, accepted, weight, checks in zip(rows, *draws, strict=True):
            text.log_weight += weight
            text.checks.append(checks)
            if accepted:
                text.take(token, token in ends)
            else:
                text.ended = text.dead = True
            if accepted and streamer is not None:
                streamer.put(torch.tensor([token]))
        batch.append([max(token, 0) for token in draws.tokens])
        for text, stop in zip(rows, batch.stopped(scores), strict=True):
            text.ended = text.ended or stop
        running = [row for row, text in enumerate(rows) if not text.ended]
        if not running:
            break
        batch.select(running)
        rows = [rows[row] for row in running]
        logits = batch.forward()
    if streamer is not None:
        streamer.end()
    warn_dead("AWRS", texts)
    ids = sequences(input_ids, texts, generation_config.pad_token_id)
    if not generation_config.return_dict_in_generate:
        return ids
    return AWRSOutput(
        sequences=ids,
        log_weights=torch.tensor([text.log_weight for text in texts], dtype=torch.float64),
        checks=[text.checks for text in texts],
        complete=torch.tensor([text.complete for text in texts]),
        **{CACHE: batch.cache},
    )
