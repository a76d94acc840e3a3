"""The law that a row of logits stands for, in fp64: temperature, then top-k, top-p, min-p, each on what is left."""

import numpy as np

from .pairs import softmax


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Law fp64 [V]; ties at a cut go to the lowest index, NaN counts as -inf."""
    logits = np.asarray(logits, np.float64)
    law = softmax(np.where(np.isnan(logits), -np.inf, logits) / temperature)
    order = np.lexsort((np.arange(len(law)), -law))
    if top_k:
        law[order[top_k:]] = 0
        law /= law.sum()
    if top_p < 1:
        enough = int(np.searchsorted(law[order].cumsum(), top_p)) + 1
        law[order[enough:]] = 0
        law /= law.sum()
    law[law < min_p * law.max()] = 0
    return law / law.sum()
