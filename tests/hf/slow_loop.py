"""Speculative decoding that is slow and obviously right: everything is computed anew from all tokens at every step."""

import functools

import torch
from tiny_models import build

from tokops.hf.drafting import Session, Verdict
from tokops.sampling import Sampling

#: Of different lengths, one shorter than a drafter's block.
PROMPTS = [[5, 9, 33, 4, 60, 8], [70, 3], [12, 13, 14, 15, 16, 17, 18, 19, 20]]
NEW = 24


@functools.cache
def tiny():
    """The model of the drafters' tests."""
    return build("llama")


@functools.cache
def plain():
    """What plain greedy decoding makes of the prompts."""
    return [greedy(tiny(), prompt, NEW) for prompt in PROMPTS]


def padded(prompts):
    """What ``generate`` takes: ids padded on the left, and their mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.arange(width) >= width - torch.tensor([[len(prompt)] for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask.long()}


def forward(model, tokens, rows=(), parents=(), embeddings=None):
    """Run a text of committed tokens with a tree hung behind its last one; hidden states of the tree's rows.

    ``rows`` and ``parents`` are those of one sequence's proposal, without padding; row 0 is the last committed token.
    """
    rows, parents = list(rows) or [tokens[-1]], list(parents) or [-1]
    past, count = len(tokens) - 1, len(rows)
    embed = model.get_input_embeddings()
    x = embed(torch.tensor([tokens[:-1] + [max(t, 0) for t in rows]]))
    depth, seen = [0] * count, torch.zeros(past + count, past + count, dtype=torch.bool)
    seen[:past, :past] = torch.ones(past, past).tril().bool()
    seen[past:, :past] = True
    for i in range(count):
        if rows[i] < 0:
            x[0, past + i] = embeddings[-1 - rows[i]]
        node = i
        while node >= 0:
            seen[past + i, past + node] = True
            node = parents[node]
        depth[i] = 0 if i == 0 else depth[parents[i]] + 1
    mask = torch.zeros(1, 1, past + count, past + count).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.tensor([list(range(past)) + [past + d for d in depth]])
    out = model.base_model(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state[0, past:]


def prompt_states(model, prompt, feed="last_post_norm"):
    """Final hidden states ``[L, d]`` of a text, or with feed "penultimate" what the last layer reads."""
    out = model.base_model(torch.tensor([prompt]), use_cache=False, output_hidden_states=True)
    return out.last_hidden_state[0] if feed == "last_post_norm" else out.hidden_states[-2][0]


@torch.no_grad()
def greedy(model, prompt, new):
    """Plain greedy decoding of one text."""
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(model.lm_head(prompt_states(model, tokens)[-1]).argmax()))
    return tokens


@torch.no_grad()
def speculate(model, drafter, prompts, new, watch=None, temperature=0.0):
    """Greedy tree speculation of a batch; returns the texts, and per sequence the tokens that every step gave.

    ``watch(session, proposal, verdict)`` is called after every step. Checks that proposals keep to their layout.
    """
    states = [prompt_states(model, prompt) for prompt in prompts]
    texts = [[*p, int(model.lm_head(s[-1]).argmax())] for p, s in zip(prompts, states, strict=True)]
    batch = len(prompts)
    session = Session(
        model, texts, [True] * batch, Sampling(temperature=temperature), 7, torch.arange(batch), [new - 1] * batch,
        torch.device("cpu"),
    )  # fmt: skip
    steps = [[] for _ in prompts]
    drafter.begin(session, states if drafter.wants_hidden else None)
    while any(session.active):
        proposal = drafter.propose(session)
        sizes = [proposal.nodes] * batch if proposal.n_nodes is None else proposal.n_nodes.tolist()
        hidden = torch.full((*proposal.tokens.shape, model.config.hidden_size), torch.nan)
        kept, given = [], []
        for b in range(batch):
            if not session.active[b]:
                kept.append([])
                given.append([])
                continue
            tokens, parents = proposal.tokens[b].tolist(), proposal.parents[b].tolist()
            check_layout(tokens, parents, sizes[b], proposal.nodes, texts[b][-1])
            rows = [i for i in range(len(tokens)) if i == 0 or parents[i] >= 0]
            place = {row: i for i, row in enumerate(rows)} | {-1: -1}
            nodes = [tokens[i] for i in rows], [place[parents[i]] for i in rows]
            hidden[b, rows] = forward(model, texts[b], *nodes, drafter.embeddings)
            best = model.lm_head(hidden[b, : sizes[b]]).argmax(-1).tolist()
            path = [0]
            while child := [
                i for i in range(sizes[b]) if parents[i] == path[-1] and tokens[i] == best[path[-1]]
            ]:
                path.append(child[0])
            path = path[: session.room[b]]
            kept.append(path)
            given.append([tokens[i] for i in path[1:]] + [best[path[-1]]])
        for b in range(batch):
            texts[b] += given[b]
            session.room[b] -= len(given[b])
            if given[b]:
                steps[b].append(len(given[b]))
        session.active = [room > 0 for room in session.room]
        verdict = Verdict(kept, given, hidden)
        drafter.commit(session, proposal, verdict)
        if watch is not None:
            watch(session, proposal, verdict)
    return texts, steps


def check_layout(tokens, parents, size, nodes, root):
    """Proposals begin with the root, are topological, and their siblings carry different tokens."""
    assert tokens[0] == root
    assert parents[0] == -1
    assert 1 <= size <= nodes <= len(tokens)
    assert all(parents[i] == -1 for i in range(size, nodes))
    assert all(0 <= parents[i] < i and tokens[i] >= 0 for i in range(1, size))
    pairs = list(zip(parents[1:size], tokens[1:size], strict=True))
    assert len(pairs) == len(set(pairs))
    for i in range(nodes, len(tokens)):
        assert parents[i] == -1 or (parents[i] < i and tokens[i] < 0)
