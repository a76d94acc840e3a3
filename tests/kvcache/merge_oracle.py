"""MiniCache in closed form, float64: which tokens two layers keep apart, and what the others become."""

import math

import torch

from tokops.kvcache import Codec
from tokops.kvcache.pairs import MergeRule, PairLayout

from .layered import Layers

FULL = (Codec("full"), Codec("full"))
FOUR_BITS = (Codec("int4", "channel", 8), Codec("int4", "token", 32))
PAGE = 8
#: A prompt, and what is merged of it and of tokens read one by one after it, until there are 61.
PROMPT, RANGES = 37, ((0, 24), (24, 32), (32, 40), (40, 48))
#: Norms are float16: a merged vector is right to half a unit in the last of eleven bits, and some of float32.
HALF = 2**-11 * 1.01


def cache(pairs=((0, 1),), layers=2, codecs=FULL, page=PAGE, sinks=2, residual=8, **rule):
    rule = MergeRule(**{"guard": "force", **rule})
    return Layers(PairLayout(list(pairs), rule, *codecs, page=page, sinks=sinks, residual=residual), layers)


def random_tokens(length=61, layers=2, batch=2, heads=3, dim=32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [[torch.randn(batch, length, heads, dim, generator=gen) for _ in range(2)] for _ in range(layers)]


def alike(noise, length=61, batch=2, heads=3, dim=32, seed=0):
    """Two layers whose directions differ by some noise, and whose magnitudes have nothing in common."""
    gen = torch.Generator().manual_seed(seed)
    layers = [[], []]
    for _ in "kv":
        base = torch.randn(batch, length, heads, dim, generator=gen)
        for layer in layers:
            x = base + noise * torch.randn(base.shape, generator=gen)
            layer.append(x * torch.rand(batch, length, heads, 1, generator=gen).mul(3).exp())
    return layers


def angle(x, y):
    """Angle over pi, float64; what :mod:`tokops` clamps is not clamped."""
    u, v = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (x, y))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) / math.pi


def slerp(x, y, t):
    """The unit vectors between two, float64."""
    u, v = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (x, y))
    omega = (angle(x, y) * math.pi)[..., None]
    return (torch.sin((1 - t) * omega) * u + torch.sin(t * omega) * v) / torch.sin(omega)


def by_hand(tokens, ranges, rule, sinks=2, starts=(0, 0)):
    """Which tokens are merged ``[B, H, L]``, by the rules as sentences; ranges are merged one after the other."""
    distance = [angle(tokens[0][i], tokens[1][i]).transpose(1, 2) for i in (0, 1)]
    merged = torch.zeros(distance[0].shape, dtype=torch.bool)
    for b, start in enumerate(starts):
        for h in range(merged.shape[1]):
            limits = None
            for begin, end in ranges:
                seen = range(max(begin, start), end)
                kept = set()
                both = {i: max(float(d[b, h, i]) for d in distance) for i in seen}
                sinks_here = [i for i in seen if i < start + sinks]
                if rule.get("retain") == "topk":
                    order = sorted(seen, key=lambda i: (i >= start + sinks, -both[i]))
                    kept = set(order[: math.ceil(rule["gamma"] * len(seen))])
                elif len(seen) >= 8:
                    first = limits is None
                    if first:
                        limits = []
                        for d in distance:
                            values = [float(d[b, h, i]) for i in seen]
                            limits.append(max(values) - rule["gamma"] * (max(values) - min(values)))
                    kept = {
                        i
                        for i in seen
                        for d, limit in zip(distance, limits, strict=True)
                        if d[b, h, i] > limit or rule["gamma"] == 1
                    } - set(sinks_here)
                    if not first:
                        cap = math.floor(max(0.2, rule["gamma"]) * PAGE)
                        pages = [[i for i in kept if i // PAGE == page] for page in range(end // PAGE)]
                        kept = {i for own in pages for i in sorted(own, key=lambda i: -both[i])[:cap]}
                else:
                    kept = set(seen)
                for i in seen:
                    merged[b, h, i] = i not in kept and i >= start + sinks
    if rule.get("share_heads"):
        merged = merged.all(1, keepdim=True).expand_as(merged)
    return merged


def check_held(held, tokens, merged, t, starts=(0, 0)):
    """Merged tokens of both layers have the direction between them and their own norm, all others are exact."""
    e = [slerp(tokens[0][i], tokens[1][i], t).transpose(1, 2) for i in (0, 1)]
    for layer, of_layer in enumerate(tokens):
        *kv, times = held(layer)
        for b, start in enumerate(starts):
            assert (times[b, :, start:] == 1).all()
        for got, x, direction in zip(kv, of_layer, e, strict=True):
            x = x.transpose(1, 2)
            for b, start in enumerate(starts):
                keep, own = merged[b, :, start:], x[b, :, start:]
                mine = got[b, :, start:]
                assert torch.equal(mine[~keep], own[~keep])
                want = direction[b, :, start:] * own.double().norm(dim=-1, keepdim=True)
                error = (mine.double() - want).norm(dim=-1) / own.double().norm(dim=-1)
                assert error[keep].max() < HALF


def retained(pair):
    """Tokens that are kept as they are, over all heads and sequences."""
    return int(sum(kept.counts.sum() for kept in pair.kept))
