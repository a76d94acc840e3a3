"""Laws of the next tokens of tiny models, out of every text there is, and whether samples follow them."""

import itertools

import torch
from scipy.stats import chi2
from tiny_models import build

#: A vocabulary that few tokens leave nothing of.
SIZE = 5


def narrow(seed, layers=2, vocabulary=SIZE):
    """A tiny random model of few tokens, whose laws differ with the text and from those of another seed."""
    model = build("llama", seed=seed, vocab_size=vocabulary, num_hidden_layers=layers)
    with torch.no_grad():
        model.lm_head.weight.mul_(6.0)
    return model


@torch.no_grad()
def joint_law(models, prompt, temperature=1.0, top_k=SIZE):
    """``[SIZE] * len(models)`` float64: the law of sampled tokens behind a prompt, each of a model of its own."""
    law = torch.ones((), dtype=torch.float64)
    for i, model in enumerate(models):
        texts = list(itertools.product(range(SIZE), repeat=i))
        logits = (
            model(torch.tensor([[*prompt, *text] for text in texts])).logits[:, -1].double() / temperature
        )
        kept = logits.topk(top_k).indices
        logits = torch.full_like(logits, -torch.inf).scatter(1, kept, logits.gather(1, kept))
        law = law[..., None] * logits.softmax(-1).view(*law.shape, SIZE)
    return law


def samples(model, prompt, new, count, **settings):
    """``[SIZE] * new`` counts of what ``generate`` gives ``count`` copies of a prompt."""
    ids = torch.tensor([prompt] * count)
    out = model.generate(ids, do_sample=True, max_new_tokens=new, **{"top_k": 0, **settings})
    cells = (out[:, len(prompt) :] * SIZE ** torch.arange(new - 1, -1, -1)).sum(1)
    return cells.bincount(minlength=SIZE**new).view([SIZE] * new)


def excess(counts, law):
    """Chi-square of counts against a law, over its 0.999 quantile; rare cells are one."""
    counts, want = counts.flatten().double(), law.flatten() * counts.sum()
    rare = want < 5
    if (counts[want == 0] > 0).any():
        return float("inf")
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    want = torch.cat([want[~rare], want[rare].sum()[None]])
    seen, want = seen[want > 0], want[want > 0]
    return float(((seen - want) ** 2 / want).sum()) / chi2.ppf(0.999, len(seen) - 1)
