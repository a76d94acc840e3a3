"""Verification of one token tree, step by step, under the random-number contract: the tokens a kernel must give.

Rows are fp32 NumPy arrays; residuals are rounded to fp32 after every product and difference, masses are integers
in units of 2^-40, tests are made in Python's fp64. Written from the published rules alone.

What those rules leave open is settled so:
- Draws without a child of their own (final, bonus, plain) use slot 0. The final token after a chain of
  residuals, and the bonus at a leaf, have tag 1; with match_plain every token, the bonus too, has tag 3.
- The first test of a residual chain takes both masses as exactly 1, as a chain of one draft does; later masses
  are measured from what is left.
- A residual without mass: the child just tested is accepted if the target allows it, else the target is drawn from.
- kseq: one chain for every child of the root; equal tokens survive together; a chain keeps as slot the ordinal
  of its first token at every level; at the end the first survivor names the path.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .laws import division_factor
from .philox import ACCEPT, FINAL, PLAIN, categorical, fixed, r64, uniform

UNIT = 2.0**-40


@dataclass
class Request:
    """One row of the batch: a tree, its laws (q by node, p by row), and where its random numbers come from."""

    tokens: list
    parents: list
    q: np.ndarray
    p: np.ndarray | None = None
    rows: list | None = None  # of p, by node; None: the parent's number
    seed: int = 0
    stream: int = 0
    position: int = 0
    options: dict = field(default_factory=dict)  # eps, delta, rho, neighbours, match_plain

    def __post_init__(self):
        self.children = [[] for _ in self.tokens]
        self.depth = [0] * len(self.tokens)
        for i, parent in enumerate(self.parents[1:], 1):
            self.children[parent].append(i)
            self.depth[i] = self.depth[parent] + 1

    def bits(self, node, slot, tag):
        return r64(self.seed, self.stream, self.position + self.depth[node], slot, tag)

    def coin(self, node, slot=0):
        return uniform(self.bits(node, slot, ACCEPT))

    def draw(self, node, weights, tag=FINAL):
        return categorical(self.bits(node, 0, tag), weights)

    def draft_law(self, child):
        return self.p[self.parents[child] if self.rows is None else self.rows[child]]


def mass(weights):
    return sum(int(f) for f in fixed(weights)) * UNIT


def subtract(r, scale, p):
    """max(r - scale * p, 0), rounded to fp32 after the product and after the difference."""
    return np.maximum(r - np.float32(scale) * p, np.float32(0))


def without(weights, tokens):
    kept = weights.copy()
    kept[list(tokens)] = 0
    return kept


def argmax(row):
    return int(np.argmax(np.where(np.isnan(row), -np.inf, row)))


def matching(r, children, token):
    return next((c for c in children if r.tokens[c] == token), None)


def exhausted(r, node, child):
    """(child, None) or (None, token) where the residual that should be drawn from has no mass."""
    q = r.q[node]
    return (child, None) if q[r.tokens[child]] > 0 else (None, r.draw(node, q))


def greedy(r, node, children):
    y = argmax(r.q[node])
    return matching(r, children, y), y


def target_only(r, node, children):
    q = r.q[node]
    if r.options.get("match_plain"):
        y = r.draw(node, q, PLAIN)
        return matching(r, children, y), y
    u, offered = r.coin(node), 0.0
    for c in children:
        offered += float(q[r.tokens[c]])
        if u < offered:
            return c, None
    y = r.draw(node, without(q, (r.tokens[c] for c in children)))
    return exhausted(r, node, children[-1]) if y is None else (None, y)


def recursive_rejection(r, node, children, replace=True):
    residual, p = r.q[node], r.draft_law(children[0])
    m = s = 1.0
    for slot, c in enumerate(children):
        x = r.tokens[c]
        if r.coin(node, slot) * float(p[x]) * m < float(residual[x]) * s:
            return c, None
        residual = subtract(residual, m / s, p)
        m = mass(residual)
        if m == 0:
            return exhausted(r, node, c)
        if not replace:
            p = without(p, [x])
            s = mass(p)
            if s == 0:
                break
    return None, r.draw(node, residual)


def rrs_wo(r, node, children):
    return recursive_rejection(r, node, children, replace=False)


def greedy_plus_one(r, node, children):
    *chosen, last = children
    q, p, x = r.q[node], r.draft_law(last), r.tokens[last]
    taken = [r.tokens[c] for c in chosen]
    s = 1.0 - sum(float(p[t]) for t in taken)
    others = without(p, taken)
    if mass(others) == 0 or s <= 0:
        y = r.draw(node, q)
        return matching(r, chosen, y), y
    if r.coin(node, len(chosen)) * float(p[x]) < float(q[x]) * s:
        return last, None
    y = r.draw(node, subtract(q, 1.0 / s, others))
    return exhausted(r, node, last) if y is None else (matching(r, chosen, y), y)


def lantern(r, node, children):
    residual, p = r.q[node], None if r.p is None else r.draft_law(children[0])
    if p is None:
        return lantern_deterministic(r, node, children)
    m = s = 1.0
    for slot, c in enumerate(children):
        x = r.tokens[c]
        near, lent = borrowed(residual, x, r.options["neighbours"], r.options["delta"] * m)
        if r.coin(node, slot) * float(p[x]) * m < (float(residual[x]) + lent) * s:
            return c, None
        moved = without(residual, near)
        moved[x] = np.float32(float(residual[x]) + lent)
        residual = subtract(moved, m / s, p)
        m = mass(residual)
        if m == 0:
            return exhausted(r, node, c)
        p = without(p, [x])
        s = mass(p)
        if s == 0:
            break
    return None, r.draw(node, residual)


def lantern_deterministic(r, node, children):
    """As target_only, one coin against what has been offered so far: with no neighbours the same tokens."""
    residual, u, offered, m = r.q[node], r.coin(node), 0.0, 1.0
    for c in children:
        x = r.tokens[c]
        near, lent = borrowed(residual, x, r.options["neighbours"], r.options["delta"] * m)
        offered += float(residual[x]) + lent
        if u < offered:
            return c, None
        residual = without(residual, [x, *near])
        m = mass(residual)
    y = r.draw(node, residual)
    if y is None:
        y = r.draw(node, without(r.q[node], (r.tokens[c] for c in children)))
    return exhausted(r, node, children[-1]) if y is None else (None, y)


def borrowed(row, x, neighbours, most):
    """Nearest neighbours of x whose fixed-point masses together stay within `most`, and that mass."""
    near, units = [], 0
    if x >= len(neighbours):
        return near, 0.0
    masses = fixed(row)
    for y in neighbours[x]:
        if (units + int(masses[y])) * UNIT > most:
            break
        near.append(int(y))
        units += int(masses[y])
    return near, units * UNIT


RULES = {
    "greedy": greedy,
    "target_only": target_only,
    "rrs": recursive_rejection,
    "rrs_wo": rrs_wo,
    "greedy_plus_one": greedy_plus_one,
    "lantern": lantern,
}


def walk(r, rule):
    """Node by node from the root: (path, final token)."""
    path = [0]
    while r.children[path[-1]]:
        child, token = rule(r, path[-1], r.children[path[-1]])
        if child is None:
            return path, token
        path.append(child)
    last = path[-1]
    if rule is greedy:
        return path, argmax(r.q[last])
    return path, r.draw(last, r.q[last], PLAIN if r.options.get("match_plain") else FINAL)


def path_to(r, node):
    path = [node]
    while path[-1] != 0:
        path.append(r.parents[path[-1]])
    return path[::-1]


def kseq(r):
    alive = [0]
    while True:
        node = alive[0]
        q = r.q[node]
        children = [c for a in alive for c in r.children[a]]
        if not children:
            return path_to(r, node), r.draw(node, q)
        y = kseq_level(r, node, children)
        survivors = [c for c in children if r.tokens[c] == y]
        if not survivors:
            return path_to(r, node), y
        alive = survivors


def kseq_level(r, node, children):
    q, p = r.q[node].astype(np.float64), r.draft_law(children[0]).astype(np.float64)
    m, rho = len(children), r.options.get("rho")
    if rho is None:
        rho = division_factor(q.tolist(), p.tolist(), m)
    elif isinstance(rho, list):  # by node
        rho = rho[node]
    for c in children:
        x, slot = r.tokens[c], r.children[0].index(path_to(r, c)[1])
        if r.coin(node, slot) * rho * p[x] < q[x]:
            return x
    below = q < rho * p
    one = mass(p[~below]) + mass(q[below]) / rho
    c = (1 - (1 - one) ** m) / one if one > 0 else 0.0
    y = r.draw(node, np.maximum(np.where(below, q * (1 - c / rho), q - c * p), 0).astype(np.float32))
    return r.draw(node, r.q[node]) if y is None else y


def chain_block(r):
    """Tests of all prefixes, the longest that passes; P_i and the tests in fp64."""
    length = len(r.tokens) - 1
    scale, longest, residuals = 1.0, 0, []
    for i in range(length + 1):
        if i > 0:
            q, p = float(r.q[i - 1][r.tokens[i]]), float(r.draft_law(i)[r.tokens[i]])
            scale = min(1.0, scale * q / p) if p > 0 else float(q > 0)
        if i < length:
            residuals.append(subtract(np.float32(scale) * r.q[i], 1.0, r.draft_law(i + 1)))
            s = mass(residuals[i])
            denominator = s + 1.0 - scale
            test = s / denominator if denominator > 0 else 1.0
        else:
            test = scale
        if i > 0 and r.coin(i - 1) < test:
            longest = i
    if longest == length:
        return path_to(r, longest), r.draw(longest, r.q[longest])
    y = r.draw(longest, residuals[longest])
    return path_to(r, longest), r.draw(longest, r.q[longest]) if y is None else y


def typical(r):
    """Deterministic: the longest path of children likely enough, then the argmax."""
    eps, delta = r.options.get("eps", 0.09), r.options.get("delta", 0.3)
    accepted, best = {0: 0.0}, 0
    for c in range(1, len(r.tokens)):
        node = r.parents[c]
        if node not in accepted:
            continue
        q = r.q[node].astype(np.float64)
        entropy = -(q * np.log(q + 1e-5)).sum()
        if q[r.tokens[c]] > min(eps, delta * math.exp(-entropy)):
            accepted[c] = accepted[node] + math.log(q[r.tokens[c]])
    for c, likelihood in accepted.items():
        if (r.depth[c], likelihood) > (r.depth[best], accepted[best]):
            best = c
    return path_to(r, best), argmax(r.q[best])


def verify(mode, request):
    """(number of accepted drafts, path of nodes with the root, accepted tokens and the final one)."""
    whole = {"kseq": kseq, "chain_block": chain_block, "typical": typical}
    path, token = whole[mode](request) if mode in whole else walk(request, RULES[mode])
    return len(path) - 1, path, [*(int(request.tokens[c]) for c in path[1:]), token]
