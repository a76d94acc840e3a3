"""Attention over parts by the book: bytes decoded by the letter of the format, then one row at a time in float64."""

import functools
import math

import numpy as np
import torch
from kvcache import oracle as formats

from . import oracle

NAMES = ("full", "int8", "int4", "int2", "fp8_e4m3", "fp8_e5m2")
_FP8 = {kind: np.array([formats.fp8(c, kind) for c in range(256)]) for kind in formats.FP8}


def grid(t, page, head, slot, dim, size):
    """Scale or zero of every dimension of one vector, out of a tensor [N or 1, H or 1, rows, columns]."""
    rows, columns = t.shape[2:]
    row = 0 if rows == 1 else slot // (size // rows)
    own = t[page if t.shape[0] > 1 else 0, head if t.shape[1] > 1 else 0, row].double().numpy()
    return own[[d // (dim // columns) for d in range(dim)]]


def tiled(page, kind, slot, dim):
    """Codes of one vector of a page ``[P, row bytes]`` in tiles: ``[dim bits / 32][16 tokens][4 bytes]`` each."""
    bits = {"int8": 8, "int4": 4, "int2": 2}[kind]
    flat, codes = page.reshape(-1).tolist(), []
    for d in range(dim):
        column, rest = divmod(d, 32 // bits)
        byte = flat[slot // 16 * 16 * page.shape[1] + (column * 16 + slot % 16) * 4 + rest % 4]
        codes.append(byte >> rest // 4 * bits & (1 << bits) - 1)
    return codes


def vector(part, side, page, head, slot, dim):
    """One cached vector in float64."""
    data = getattr(part, side)
    kind, row = NAMES[getattr(part, f"{side}_codec")], data[page, head, slot]
    if kind == "full":
        x = row.double().numpy()
    else:
        at = (page, head, slot, dim, data.shape[2])
        scale, zero = getattr(part, f"{side}_scale"), getattr(part, f"{side}_zero")
        s = grid(scale, *at)
        if side == "k" and part.k_tiles:
            codes = np.array(tiled(data[page, head], kind, slot, dim))
        else:
            codes = np.array(formats.unpack(row.numpy(), kind, dim))
        none = 0.0 if kind in _FP8 else -128 * s
        x = (_FP8[kind][codes] if kind in _FP8 else codes) * s
        x = x + (none if zero is None else grid(zero, *at))
    norm = getattr(part, f"{side}_norm")
    return x if norm is None else x * float(norm[page, head, slot])


def held(parts, b, h, dim):
    """Position -> (key, value) of all that the parts hold of one sequence and KV head."""
    found = {}
    for part in parts:
        table = part.block_table[b, h] if part.block_table.dim() == 3 else part.block_table[b]
        length = int(part.lens[b, h] if part.lens.dim() == 2 else part.lens[b])
        head, size = 0 if part.block_table.dim() == 3 else h, part.k.shape[2]
        for slot in range(0 if part.begin is None else int(part.begin[b]), length):
            if part.positions is not None:
                position = int(part.positions[b, h, slot])
            else:
                position = slot + (0 if part.first is None else int(part.first[b]))
            at = int(table[slot // size]), head, slot % size
            assert position not in found
            found[position] = tuple(vector(part, side, *at, dim) for side in "kv")
    return found


@functools.cache
def signs(n):
    """The Hadamard matrix of size n, by the bits that two indices share."""
    return np.array([[(-1) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]) / math.sqrt(n)


def hadamard(x):
    """A vector, transformed in blocks of the largest power of two that divides its length."""
    n = len(x) & -len(x)
    return (x.reshape(-1, n) @ signs(n)).reshape(-1)


def chosen(selected, counts, b, i, h, g, hkv):
    """The positions listed for row i of query head h in KV group g."""
    s, hs = min(i, selected.shape[1] - 1), selected.shape[2]
    at = b, s, 0 if hs == 1 else g if hs == hkv else h
    row = selected[at].tolist()
    return set(row[: int(counts[at])] if counts is not None else [x for x in row if x >= 0])


def packed_decode(
    q, parts, seq_lens, *, q_lens=None, starts=None, scale=None, selected=None, counts=None, ancestors=None,
    sink_logit=None, log_gamma=None, softcap=None, window=None, rotate=False, max_len=None,
):  # fmt: skip
    """out, lse, and raw scores ``[B, T, Hq, max_len or the longest]``, -inf where unseen or not held."""
    batch, t, hq, dim = q.shape
    table = parts[0].block_table
    hkv = table.shape[1] if table.dim() == 3 else parts[0].k.shape[1]
    scale = dim**-0.5 if scale is None else scale
    width = max_len if max_len is not None else int(seq_lens.max())
    out, lse = np.zeros((batch, t, hq, dim)), np.full((batch, t, hq), -math.inf)
    scores = np.full((batch, t, hq, width), -math.inf)
    for b in range(batch):
        length, start = int(seq_lens[b]), 0 if starts is None else int(starts[b])
        rows = int(q_lens[b]) if q_lens is not None else (t if length else 0)
        tree = None if ancestors is None else oracle.parents_of(ancestors[b])
        caches = [held(parts, b, g, dim) for g in range(hkv)]
        for h in range(hq):
            g = h // (hq // hkv)
            for i in range(rows):
                seen, me = oracle.visible_keys(length, rows, i, start, window, tree)
                seen = [j for j in seen if j in caches[g]]
                if selected is not None:
                    listed = chosen(selected, counts, b, i, h, g, hkv)
                    seen = [j for j in seen if j in listed]
                row = q[b, i, h].double().numpy()
                row = hadamard(row) if rotate else row
                out[b, i, h], lse[b, i, h], raw = oracle.attend(
                    row, {j: caches[g][j][0] for j in seen}, scale, seen, {j: caches[g][j][1] for j in seen}, start,
                    me, None if sink_logit is None else float(sink_logit[h]),
                    None if log_gamma is None else float(log_gamma[h]), softcap,
                )  # fmt: skip
                out[b, i, h] = hadamard(out[b, i, h]) if rotate else out[b, i, h]
                for j, s in zip(seen, raw, strict=True):
                    if j < width:
                        scores[b, i, h, j] = s
    return torch.from_numpy(out), torch.from_numpy(lse), torch.from_numpy(scores)
