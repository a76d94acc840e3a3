"""Attention over pages by the book: one query row at a time, in float64, sharing no code with the library."""

import math

import numpy as np
import torch


def floats(t):
    return t.double().cpu().numpy()


def key_rows(pages, table, length, head):
    """Rows 0..length-1 of one sequence and KV head, walking its page table."""
    size = pages.shape[2]
    own = table.dim() == 2  # [Hkv, pages]
    out = []
    for j in range(length):
        page = int(table[head][j // size] if own else table[j // size])
        out.append(floats(pages[page, 0 if own else head, j % size]))
    return out


def parents_of(words):
    """For every node of one tree, the set of its ancestors and itself."""
    return [{m for m in range(words.shape[0]) if (int(row[m // 64]) >> (m % 64)) & 1} for row in words]


def visible_keys(length, rows, i, start, window, tree):
    """Keys that new token i of a sequence sees, in order."""
    first = length - rows
    depth = (lambda m: len(tree[m]) - 1) if tree else (lambda m: m)
    me = first + depth(i)
    keys = []
    for j in range(start, length):
        if j >= first and tree:
            if j - first not in tree[i]:
                continue
            place = first + depth(j - first)
        else:
            place = j
            if j > first + i:
                continue
        if window is not None and place <= me - window:
            continue
        keys.append(j)
    return keys, me


def attend(q, k, scale, keys, values, start, me, sink, gamma, softcap):
    """One row: output, lse and the raw scores of its keys."""
    raw = []
    for j in keys:
        s = scale * float(q @ k[j])
        raw.append(-math.inf if math.isnan(s) else s)
    logits = []
    for j, s in zip(keys, raw, strict=True):
        if softcap is not None and s > -math.inf:
            s = softcap * math.tanh(s / softcap)
        if gamma is not None and j == start and me > start:
            s += gamma
        logits.append(s)
    everything = logits + ([] if sink is None else [sink])
    top = max(everything, default=-math.inf)
    if top == -math.inf:
        return np.zeros(q.shape[0]), -math.inf, raw
    total = sum(math.exp(s - top) for s in everything)
    out = np.zeros(q.shape[0])
    for j, s in zip(keys, logits, strict=True):
        if s > -math.inf:
            out = out + math.exp(s - top) / total * values[j]
    return out, top + math.log(total), raw


def paged_decode(
    q,
    k_pages,
    v_pages,
    block_table,
    seq_lens,
    *,
    q_lens=None,
    starts=None,
    scale=None,
    selected=None,
    counts=None,
    ancestors=None,
    sink_logit=None,
    log_gamma=None,
    softcap=None,
    window=None,
):
    """out, lse, and raw scores [B, T, Hq, capacity] (-inf where unseen)."""
    batch, t, hq, d = q.shape
    hkv = block_table.shape[1] if block_table.dim() == 3 else k_pages.shape[1]
    capacity = block_table.shape[-1] * k_pages.shape[2]
    scale = d**-0.5 if scale is None else scale
    out, lse = np.zeros((batch, t, hq, d)), np.full((batch, t, hq), -math.inf)
    scores = np.full((batch, t, hq, capacity), -math.inf)
    for b in range(batch):
        start = int(starts[b]) if starts is not None else 0
        tree = parents_of(ancestors[b]) if ancestors is not None else None
        for h in range(hq):
            g = h // (hq // hkv)
            length = int(seq_lens[b] if seq_lens.dim() == 1 else seq_lens[b, g])
            rows = int(q_lens[b]) if q_lens is not None else (t if length else 0)
            keys, values = (key_rows(p, block_table[b], length, g) for p in (k_pages, v_pages))
            for i in range(rows):
                seen, me = visible_keys(length, rows, i, start, window, tree)
                if selected is not None:
                    s, hs = min(i, selected.shape[1] - 1), selected.shape[2]
                    at = {1: 0, hkv: g, hq: h}[hs] if hs != 1 else 0
                    chosen = selected[b, s, at].tolist()
                    chosen = (
                        chosen[: int(counts[b, s, at])]
                        if counts is not None
                        else [x for x in chosen if x >= 0]
                    )
                    seen = [j for j in seen if j in set(chosen)]
                row = floats(q[b, i, h])
                sink = float(sink_logit[h]) if sink_logit is not None else None
                gamma = float(log_gamma[h]) if log_gamma is not None else None
                out[b, i, h], lse[b, i, h], raw = attend(
                    row, keys, scale, seen, values, start, me, sink, gamma, softcap
                )
                for j, s in zip(seen, raw, strict=True):
                    scores[b, i, h, j] = s
    return torch.from_numpy(out), torch.from_numpy(lse), torch.from_numpy(scores)
