"""Decoding loops of our own, run through ``generate(custom_generate=...)``."""

import torch


def corrected_loop(model, input_ids, logits_processor, stopping_criteria, generation_config, *, period, streamer=None,
                   **model_kwargs):
    raise NotImplementedError
