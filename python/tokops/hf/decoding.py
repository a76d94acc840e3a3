"""What decoding loops share, and that of cache correction, run through ``generate(custom_generate=...)``."""

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .families import CACHE, given_cache


def random_streams(name: str, streams, batch: int, bits: int = 31) -> list[int]:
    """Numbers of the sequences' random streams as ``generate(streams=)`` gives them; None: their places in the batch.

    Args:
        name: of the method, for messages.
        streams: a sequence of integers, a tensor, or None.
        batch: number of sequences.
        bits: of a number at most.

    Raises:
        ValueError: another number of them, no integers, or out of range.
    """
    numbers = list(range(batch)) if streams is None else torch.as_tensor(streams).tolist()
    whole = isinstance(numbers, list) and all(isinstance(x, int) and 0 <= x < 2**bits for x in numbers)
    if not whole or len(numbers) != batch:
        raise ValueError(f"{name}: streams must be {batch} integers in 0..2^{bits} - 1, got {numbers}")
    return numbers


class Feed:
    """Forwards of one generation: cuts inputs to what the cache lacks and keeps mask and positions in step."""

    def __init__(self, model, cache, mask, ids):
        self.model = model
        self.cache = cache
        self.mask = mask
        self.offset = cache.prompt_length - ids.shape[1]  # cached tokens that ids leaves out

    def __call__(self, ids, first: int, last: int):
        """Run positions ``[first, last)``, whose tokens are in ``ids``; returns the last row's logits."""
        tokens = ids[:, first - self.offset : last - self.offset]
        mask = self.mask
        if mask is None:
            positions = torch.arange(first, last, device=ids.device)[None]
        else:
            if mask.shape[1] < last:
                mask = self.mask = torch.cat([mask, mask.new_ones(len(mask), last - mask.shape[1])], 1)
            mask = mask[:, :last]
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, first:]
        out = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self.cache},
        )
        return out.logits[:, -1]


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
    **model_kwargs,
):
    """Greedy decoding or sampling; every ``method.correction_period`` tokens the last ones run again as one chunk.

    The chunk overwrites the keys and values that sparse layers made slightly wrong. Tokens already given out stay.
    """
    cache = given_cache(model_kwargs)
    cache.activate_past_recording()
    feed = Feed(model, cache, model_kwargs.get("attention_mask"), input_ids)
    prompt, chunk = cache.prompt_length, generation_config.prefill_chunk_size or cache.prompt_length
    for first in range(cache.get_seq_length(), prompt, chunk):
        logits = feed(input_ids, first, min(first + chunk, prompt))
    corrected = prompt
    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    while True:
        scores = logits_processor(input_ids, logits.float())
        if generation_config.do_sample:
            tokens = torch.multinomial(torch.softmax(scores, -1), 1)[:, 0]
        else:
            tokens = scores.argmax(-1)
        if generation_config.pad_token_id is not None:
            tokens = torch.where(unfinished, tokens, generation_config.pad_token_id)
        input_ids = torch.cat([input_ids, tokens[:, None]], 1)
        if streamer is not None:
            streamer.put(tokens.cpu())
        unfinished = unfinished & ~stopping_criteria(input_ids, scores)
        if not bool(unfinished.any()):
            break
        length = cache.get_seq_length()
        if length - corrected >= method.correction_period:
            cache.crop(corrected - length)
            cache.prompt_length = length
            feed(input_ids, corrected, length)
            corrected = length
        logits = feed(input_ids, length, length + 1)
    if streamer is not None:
        streamer.end()
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=input_ids, **{CACHE: cache})
    return input_ids
