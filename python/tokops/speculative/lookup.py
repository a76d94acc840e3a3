"""Prompt lookup in the text itself, for the reference of ``suffix_draft``: occurrences are found one by one."""

from collections import defaultdict

#: A match of m tokens that something followed n times, d different tokens among them, leaves
#: DOUBT d of n m^2 + DOUBT d to shorter matches. Of 1..16, on prose, code and copies with edits, 16 accepts the most
#: and its weights do not claim more than comes true.
DOUBT = 16
#: Token, parent, weight.
Node = tuple[int, int, float]


def matches(text: list[int], context: list[int]) -> list[tuple[int, list[int]]]:
    """Suffixes of a context that occur: (length, tokens up to the end of each occurrence), longest first.

    Of suffixes that occur at the same places only the longest is there.
    """
    found: list[tuple[int, list[int]]] = []
    ends = list(range(1, len(text) + 1))
    for m in range(1, len(context) + 1):
        ends = [e for e in ends if e >= m and text[e - m] == context[-m]]
        if not ends:
            break
        if found and len(found[-1][1]) == len(ends):
            found.pop()
        found.append((m, ends))
    return found[::-1]


def children(text: list[int], context: list[int], min_match: int, weight: float) -> list[tuple[float, int]]:
    """What may follow a context: (- estimated probability, - tokens up to the end of its last occurrence)."""
    found: dict[int, tuple[float, int]] = {}
    for m, ends in matches(text, context):
        if m < min_match:
            break
        followers: dict[int, list[int]] = defaultdict(list)
        for e in ends:
            if e < len(text) and text[e] >= 0:
                followers[text[e]].append(e + 1)
        n, doubt = sum(map(len, followers.values())), DOUBT * len(followers)
        for token, places in followers.items():
            share = len(places) * m * m / (n * m * m + doubt)
            found.setdefault(token, (-(weight * share), -places[-1]))
        if followers:
            weight *= doubt / (n * m * m + doubt)
    return list(found.values())


def grow(text: list[int], nodes: int, depth: int, min_match: int, max_match: int, branch: int) -> list[Node]:
    """The tree, best first."""
    tree, paths = [(text[-1], -1, 1.0)], [list[int]()]
    pending: list[tuple[float, int, int, int]] = []  # the last occurrence tells the token
    while True:
        parent, path = len(tree) - 1, paths[-1]
        if len(path) < depth:
            context = (text + path)[-max_match:]
            likely = sorted(children(text, context, min_match, tree[-1][2]))
            pending += [(*child, parent, text[-child[1] - 1]) for child in likely[:branch]]
        if not pending or len(tree) == nodes:
            return tree
        best = min(pending)
        pending.remove(best)
        weight, _, parent, token = best
        tree.append((token, parent, -weight))
        paths.append([*paths[parent], token])


def copy(text: list[int], nodes: int, depth: int, min_match: int, max_match: int) -> list[Node]:
    """The chain behind the first occurrence of the longest match."""
    tree = [(text[-1], -1, 1.0)]
    for m in range(max_match, min_match - 1, -1):
        ends = (e for e in range(m, len(text)) if text[e - m : e] == text[len(text) - m :])
        if (end := next(ends, None)) is not None:
            for token in text[end:][: min(depth, nodes - 1)]:
                if token < 0:
                    break
                tree.append((token, len(tree) - 1, 1.0))
            break
    return tree
