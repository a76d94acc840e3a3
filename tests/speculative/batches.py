"""Requests of the oracle as the tensors of one tree_verify call, and the call's answer as the oracle gives it."""

import numpy as np
import torch

from tokops.speculative import tree_build, tree_verify

from .draws import drafts_of
from .laws import division_factor
from .oracle import Request
from .pairs import softmax

#: Modes that ask for the laws the children were drawn from; lantern may.
WITH_DRAFT = ("rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block", "lantern")


def padded(rows, width, fill):
    out = np.full((len(rows), width, *np.shape(rows[0])[1:]), fill, np.asarray(rows[0]).dtype)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def arguments(mode, requests, device):
    """Keyword arguments of tree_verify for requests of one seed and one set of options; trees of any size."""
    n = max(len(r.tokens) for r in requests)

    def tensor(rows, fill, dtype, width=n):
        return torch.from_numpy(padded([np.asarray(row) for row in rows], width, fill)).to(device, dtype)

    args = {
        "tokens": tensor([r.tokens for r in requests], 1, torch.int32),
        "tree": tree_build(tensor([r.parents for r in requests], -1, torch.int32)),
        "probs": tensor([r.q for r in requests], 0.125, torch.float32),
        "seed": requests[0].seed,
        "stream": torch.tensor([r.stream for r in requests], device=device),
        "position": torch.tensor([r.position for r in requests], device=device),
        "n_nodes": torch.tensor([len(r.tokens) for r in requests], dtype=torch.int32, device=device),
        **requests[0].options,
    }
    if requests[0].p is not None and mode in WITH_DRAFT:
        width = max(len(r.p) for r in requests)
        args["draft_probs"] = tensor([r.p for r in requests], 0, torch.float32, width)
        if requests[0].rows is not None:
            args["draft_rows"] = tensor([r.rows for r in requests], 0, torch.int32)
    if isinstance(args.get("rho"), list):
        args["rho"] = tensor([r.options["rho"] for r in requests], 1, torch.float64)
    if "neighbours" in args:
        args["neighbours"] = torch.tensor(args["neighbours"], dtype=torch.int32, device=device)
    return args


def answers(result):
    """[(accept_len, path, tokens)] of a tree_verify result, whose rows must end in -1."""
    lengths, nodes, tokens = (x.cpu() for x in result)
    assert lengths.dtype == nodes.dtype == tokens.dtype == torch.int32
    assert lengths.dim() == 1
    assert nodes.shape == tokens.shape
    out = []
    for length, path, row in zip(lengths.tolist(), nodes.tolist(), tokens.tolist(), strict=True):
        out.append((length, path[: length + 1], row[: length + 1]))
        assert set(path[length + 1 :]) | set(row[length + 1 :]) <= {-1}
    return out


def run(mode, requests, device, **changes):
    args = {**arguments(mode, requests, device), **changes}
    return answers(tree_verify(mode, args.pop("tokens"), args.pop("tree"), **args))


def random_law(gen, size):
    """fp32 laws of many shapes: flat, sharp, with zeros, with one token alone."""
    logits = gen.standard_normal(size) * gen.choice([0.3, 1.5, 4.0])
    law = softmax(logits)
    if gen.random() < 0.4:
        law = law * (gen.random(size) < 0.6)
    if gen.random() < 0.05 or law.sum() == 0:
        law = np.eye(size)[gen.integers(size)]
    return (law / law.sum()).astype(np.float32)


def laws_of(seed, path, size):
    """(q, p) of a context: the same for equal paths, near to each other half of the time."""
    gen = np.random.default_rng([seed, size, *path])
    q, p = random_law(gen, size), random_law(gen, size)
    if gen.random() < 0.5:
        p = (0.7 * q.astype(float) + 0.3 * p.astype(float)).astype(np.float32)
    return q, p


def random_request(mode, seed, size, nodes=24, depth=4, with_draft=True, **options):
    """A tree that the mode may verify, drawn from draft laws that depend on the path; stream and position too."""
    gen = np.random.default_rng([seed, size, nodes])
    stream, position = int(gen.integers(2**31)), int(gen.integers(2**20))
    tokens, parents, paths, rows = [int(gen.integers(size))], [-1], [()], [0]
    laws = {}
    for node in range(nodes):
        if node == len(tokens):
            break
        children = int(gen.integers(0 if node else 1, 5)) if len(paths[node]) < depth else 0
        children = min(children, nodes - len(tokens), size - 1)
        if mode == "chain_block" or (mode == "kseq" and node):
            children = min(children, 1)
        if children == 0:
            continue
        laws[node] = len(laws)
        p = laws_of(seed, paths[node], size)[1]
        for x in drafts_where_mass(mode, p, children, seed + node, stream, position + len(paths[node])):
            tokens.append(x)
            parents.append(node)
            paths.append((*paths[node], x))
            rows.append(laws[node])
    q = np.stack([laws_of(seed, path, size)[0] for path in paths])
    # Rows of draft laws stand in any order.
    order = gen.permutation(len(laws)) if laws else np.zeros(1, int)
    p = np.zeros((len(order), size), np.float32)
    for node, row in laws.items():
        p[order[row]] = laws_of(seed, paths[node], size)[1]
    rows = [0, *(int(order[row]) for row in rows[1:])]
    if options.get("rho") == "by node":  # valid where fewer drafts survive too
        both = [[law.tolist() for law in laws_of(seed, path, size)] for path in paths]
        options["rho"] = [division_factor(*pair, parents.count(0)) for pair in both]
    return Request(tokens, parents, q, p if with_draft else None, rows, 11, stream, position, options)


def drafts_where_mass(mode, p, k, seed, stream, pos):
    """Drafts, fewer than k where the law has fewer tokens to draw without replacement."""
    if mode in ("rrs_wo", "greedy_plus_one", "lantern"):
        k = min(k, int((p >= 2.0**-39).sum()))
    return drafts_of(mode, p, k, seed, stream, pos)
