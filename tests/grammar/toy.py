"""Languages and models that are small enough to be enumerated: laws of whole texts, in float64."""

import itertools
import math

import torch
from scipy.stats import chi2
from tiny_models import build

from tokops._bitmask import packed
from tokops.grammar.constraint import PredicateConstraint


def words_constraint(words, eos, masks=False):
    """A constraint that holds for some token tuples; with ``masks`` it has packed masks too."""
    valid = {tuple(word) for word in words}
    prefixes = {(), *(word[:n] for word in valid for n in range(len(word) + 1))}
    constraint = PredicateConstraint(prefixes.__contains__, valid.__contains__, eos_ids=[eos])
    if masks:
        size = max([eos, *itertools.chain(*valid)]) + 1
        table = {
            prefix: packed(torch.tensor([constraint.ok(prefix, token) for token in range(size)]))
            for prefix in prefixes
        }
        constraint.mask = table.get
    return constraint


def markov(table, layers=1):
    """A model of which the logits after token i are row i of the table ``[V, V]``."""
    size = len(table)
    model = build("llama", vocab_size=size, hidden_size=8, num_attention_heads=2, head_dim=4, num_hidden_layers=layers,
                  pad_token_id=None, bos_token_id=None, eos_token_id=None)  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("norm.weight"):
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, 8))
        model.lm_head.weight[:, :size] = table.T / math.sqrt(8)
    model.generation_config.pad_token_id = size - 1
    return model


def text_law(table, start, words, eos):
    """Word -> the probability that the Markov model writes it and then ends."""
    logs = table.double().log_softmax(-1)
    return {
        tuple(word): math.exp(sum(float(logs[a, b]) for a, b in itertools.pairwise((start, *word, eos))))
        for word in words
    }


def masked_law(table, start, words, eos):
    """Word -> its probability under masks token by token."""
    constraint = words_constraint(words, eos)
    probs = table.double().softmax(-1)
    law = {}
    for word in map(tuple, words):
        p = 1.0
        for n, token in enumerate((*word, eos)):
            row = probs[(start, *word)[n]]
            legal = sum(float(row[t]) for t in range(len(row)) if constraint.ok(word[:n], t))
            p *= float(row[token]) / legal
        law[word] = p
    return law


def words_of(sequences, prompt, eos):
    """The new tokens of every text up to its end token, as tuples."""
    words = []
    for row in sequences[:, prompt:].tolist():
        words.append(tuple(row[: row.index(eos)]) if eos in row else None)
    return words


def assert_follows(counts, law, alpha=1e-4):
    """Chi-square: counts could be draws from a law; cells that are hardly expected are taken together."""
    runs, whole = sum(counts.values()), sum(law.values())
    assert set(counts) <= set(law), set(counts) - set(law)
    rare = [cell for cell, p in law.items() if p / whole * runs < 8]
    cells = [(counts.get(c, 0), p / whole * runs) for c, p in law.items() if c not in rare]
    if rare:
        cells.append((sum(counts.get(c, 0) for c in rare), sum(law[c] for c in rare) / whole * runs))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells if wanted > 0)
    assert statistic < chi2.ppf(1 - alpha, max(len(cells) - 1, 1)), (counts, law)


def assert_mean(values, wanted, sigmas=4.5):
    """The mean of independent numbers is what it should be."""
    values = torch.as_tensor(values, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - wanted) <= sigmas * error + 1e-12, (float(values.mean()), wanted, error)
