"""Exact laws of verification rules by enumeration, in whatever numbers the laws p and q are given (Fraction, float).

A rule maps (q, p, drafts) to (accept, rest): accept[i] is the chance that draft i is selected, rest[y] the chance
that y is emitted without a draft having been selected. q is the target's law, p the drafts'.
"""

from itertools import product


def _less(law, other):
    """max(law - other, 0), token by token."""
    return [max(a - b, 0) for a, b in zip(law, other, strict=True)]


def _normalised(weights):
    total = sum(weights)
    return [w / total for w in weights] if total > 0 else list(weights)


def _ratio(numerator, denominator):
    """min(1, numerator / denominator), where nothing over nothing is refused."""
    if denominator > numerator:
        return numerator / denominator
    return 1 if numerator > 0 else 0


def target_only(q, p, xs):
    return [q[x] for x in xs], [0 if y in xs else w for y, w in enumerate(q)]


def recursive_rejection(q, p, xs, replace):
    """rrs and rrs_wo: every rejection leaves the residual of the target to the next draft."""
    alive, accept = 1, []
    for x in xs:
        if p[x] == 0 and sum(p) == 0:
            accept.append(0)
            continue
        accept.append(alive * _ratio(q[x], p[x]))
        alive -= accept[-1]
        q = _normalised(_less(q, p))
        if not replace:
            p = _normalised([0 if y == x else w for y, w in enumerate(p)])
    return accept, [alive * w for w in q]


def rrs(q, p, xs):
    return recursive_rejection(q, p, xs, True)


def rrs_wo(q, p, xs):
    return recursive_rejection(q, p, xs, False)


def greedy_plus_one(q, p, xs):
    """The last draft is drawn from what the others, chosen as the likeliest, leave of p; it is tested first.

    Where they leave nothing it was drawn from nothing, and is not tested.
    """
    chosen, x = xs[:-1], xs[-1]
    p = _normalised([0 if y in chosen else w for y, w in enumerate(p)])
    last = _ratio(q[x], p[x]) if sum(p) > 0 else 0
    rest = [(1 - last) * w for w in _normalised(_less(q, p))]
    accept = [rest[y] for y in chosen]
    return [*accept, last], [0 if y in chosen else w for y, w in enumerate(rest)]


def beta(q, p, rho):
    """Chance that one draft is accepted at division factor rho."""
    return sum(min(b, a / rho) for a, b in zip(q, p, strict=True))


def gap(q, p, rho, m):
    """Not positive where rho keeps the residual of k-SEQ non-negative; falls in rho."""
    one = beta(q, p, rho)
    return 1 - (1 - one) ** m - rho * one


def division_factor(q, p, m, steps=60):
    """The upper end of the bracket after bisection; 1 for one draft."""
    if m == 1 or gap(q, p, 1.0, m) <= 0:
        return 1.0
    low, high = 1.0, float(m)
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if gap(q, p, middle, m) <= 0 else (middle, high)
    return high


def kseq(q, p, xs, rho=None):
    m = len(xs)
    rho = division_factor(q, p, m) if rho is None else rho
    one = beta(q, p, rho)
    c = (1 - (1 - one) ** m) / one if one > 0 else 0
    alive, accept = 1, []
    for x in xs:
        accept.append(alive * _ratio(q[x], rho * p[x]))
        alive -= accept[-1]
    weights = [max(a * (1 - c / rho) if a < rho * b else a - c * b, 0) for a, b in zip(q, p, strict=True)]
    rest = [alive * w for w in _normalised(weights)]
    for y in range(len(q)):  # a residual draw that equals a draft accepts it
        if y in xs:
            accept[xs.index(y)] += rest[y]
            rest[y] = 0
    return accept, rest


def lantern(q, p, xs, neighbours, budget, moved=True):
    """Drafts without replacement from p; budget(R, x) caps the mass that x borrows in the residual R.

    What a rejection leaves is the residual of R with the mass moved onto x, or of R as it was.
    """
    alive, accept = 1, []
    for x in xs:
        near, mass = borrowed(q, x, neighbours, budget(q, x))
        accept.append(alive * _ratio(q[x] + mass, p[x]))
        alive -= accept[-1]
        if moved:
            q = [q[y] + mass if y == x else 0 if y in near else w for y, w in enumerate(q)]
        q = _normalised(_less(q, p))
        p = _normalised([0 if y == x else w for y, w in enumerate(p)])
    return accept, [alive * w for w in q]


def lantern_deterministic(q, p, xs, neighbours, budget):
    """Drafts chosen without chance: each takes its own mass and its neighbours' out of the residual."""
    alive, accept = 1, []
    for x in xs:
        near, mass = borrowed(q, x, neighbours, budget(q, x))
        accept.append(alive * (q[x] + mass))
        alive -= accept[-1]
        q = _normalised([0 if y == x or y in near else w for y, w in enumerate(q)])
    return accept, [alive * w for w in q]


def borrowed(q, x, neighbours, most):
    """The nearest neighbours of x whose masses together stay within `most`, and that mass."""
    near, mass = [], 0
    for y in neighbours[x] if x < len(neighbours) else []:
        if mass + q[y] > most:
            break
        near.append(y)
        mass += q[y]
    return near, mass


def independent_tests(q, p, xs):
    """WRONG on purpose: siblings against unmodified p and q, then the residual of one test."""
    alive, accept = 1, []
    for x in xs:
        accept.append(alive * _ratio(q[x], p[x]))
        alive -= accept[-1]
    return accept, [alive * w for w in _normalised(_less(q, p))]


def iid(p, k):
    """Every tuple of k independent drafts with its chance."""
    for xs in product(range(len(p)), repeat=k):
        chance = 1
        for x in xs:
            chance *= p[x]
        if chance > 0:
            yield chance, xs


def without_replacement(p, k):
    """Every tuple of drafts drawn one after another from what is left, as long as anything is."""
    if k == 0 or sum(p) == 0:
        yield 1, ()
        return
    for x, chance in enumerate(_normalised(p)):
        if chance > 0:
            for rest, xs in without_replacement([0 if y == x else w for y, w in enumerate(p)], k - 1):
                yield chance * rest, (x, *xs)


def likeliest(p, k):
    """The k likeliest tokens, surely; ties to the lower one."""
    yield 1, tuple(sorted(range(len(p)), key=lambda x: (-p[x], x))[:k])


def likeliest_and_one(p, k):
    """The k - 1 likeliest tokens, then one drawn from the others; the lowest other where these have no mass."""
    [(_, chosen)] = likeliest(p, k - 1)
    others = _normalised([0 if y in chosen else w for y, w in enumerate(p)])
    if sum(others) == 0:
        others[min(set(range(len(p))) - set(chosen))] = 1
    for x, chance in enumerate(others):
        if chance > 0:
            yield chance, (*chosen, x)


#: rule and how its drafts must be drawn, by mode.
LOSSLESS = {
    "target_only": (target_only, likeliest),
    "rrs": (rrs, iid),
    "rrs_wo": (rrs_wo, without_replacement),
    "greedy_plus_one": (greedy_plus_one, likeliest_and_one),
    "kseq": (kseq, iid),
}


def one_level(rule, draws, q, p, k):
    """(law of the emitted token, chance that it is a selected draft), averaged over all draft tuples."""
    law, accepted = [0] * len(q), 0
    for chance, xs in draws(p, k):
        accept, rest = rule(q, p, xs)
        accepted += chance * sum(accept)
        for x, a in zip(xs, accept, strict=True):
            law[x] += chance * a
        for y, w in enumerate(rest):
            law[y] += chance * w
    return law, accepted


def two_levels(rule, draws, q, p, q_next, p_next, k, k_next):
    """Law of the first two tokens, [V][V]; after a block of one token the target itself gives the second.

    Drafts of different children are independent, so only the selected child's matter. k-SEQ keeps all equal
    drafts, each with one continuation: as many drafts as survive.
    """
    size = len(q)
    law = [[0] * size for _ in range(size)]
    below = {}

    def second(x, m):
        if (x, m) not in below:
            below[x, m] = one_level(rule, draws, q_next[x], p_next[x], m)[0]
        return below[x, m]

    for chance, xs in draws(p, k):
        accept, rest = rule(q, p, xs)
        for x, a in zip(xs, accept, strict=True):
            following = second(x, xs.count(x) if rule is kseq else k_next)
            for y in range(size):
                law[x][y] += chance * a * following[y]
        for x, w in enumerate(rest):
            for y in range(size):
                law[x][y] += chance * w * q_next[x][y]
    return law


def block_chances(q_rows, p_rows, xs):
    """chain_block: (chance of each accepted length 0..L, law of the token after each), for one chain of drafts.

    q_rows has one more row than p_rows: the context after the last draft.
    """
    scale, tests, after = [1], [], []
    for q, p, x in zip(q_rows, p_rows, xs, strict=False):
        scale.append(_ratio(scale[-1] * q[x], p[x]))
    for i, p in enumerate(p_rows):
        weights = _less([scale[i] * w for w in q_rows[i]], p)
        mass = sum(weights)
        denominator = mass + 1 - scale[i]
        tests.append(mass / denominator if denominator > 0 else 1)
        after.append(_normalised(weights))
    tests.append(scale[-1])
    after.append(list(q_rows[-1]))
    lengths, beyond = [0] * len(tests), 1
    for i in range(len(xs), 0, -1):  # the longest accepted prefix wins; prefix 0 needs no test
        lengths[i] = beyond * tests[i]
        beyond -= lengths[i]
    lengths[0] = beyond
    return lengths, after


def distance(law, other):
    """Total variation."""
    return sum(abs(a - b) for a, b in zip(law, other, strict=True)) / 2
