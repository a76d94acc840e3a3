"""Slow ways to know what infilling must answer, and random grammars to ask about."""

import itertools
import random
import re

from tokops.grammar.infill import Gap

ALPHABET = "abc"
TERMINALS = ("a", "b", "c", "ab", "a*b", "[ab]c", "c+", "(ab)*", "a[bc]*", "ba?", "(a|bb)c?")


def random_grammar(seed):
    """Rules and terminals as ``InfillGrammar.from_rules`` takes them."""
    rng = random.Random(seed)
    terminals = {f"T{i}": p for i, p in enumerate(rng.sample(TERMINALS, rng.randint(1, 4)))}
    heads = [f"r{i}" for i in range(rng.randint(1, 4))]
    symbols = [*terminals, *heads, *heads, *terminals]
    rules = {
        head: [
            [rng.choice(symbols) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4)))]
            for _ in range(rng.randint(1, 3))
        ]
        for head in heads
    }
    rules["start"] = [[heads[0]], [rng.choice(symbols), rng.choice(symbols)]]
    return rules, terminals


def words(rules, terminals, most):
    """All texts of every symbol up to a length, by adding up until nothing is new."""
    every = ["".join(w) for n in range(most + 1) for w in itertools.product(ALPHABET, repeat=n)]
    known = {name: {w for w in every if re.fullmatch(pattern, w)} for name, pattern in terminals.items()}
    known.update({head: set() for head in rules})
    for body in itertools.chain.from_iterable(rules.values()):
        for name in body:
            known.setdefault(name, {name})
    grown = True
    while grown:
        grown = False
        for head, bodies in rules.items():
            for body in bodies:
                texts = {""}
                for name in body:
                    texts = {x + y for x in texts for y in known[name] if len(x) + len(y) <= most}
                if not texts <= known[head]:
                    known[head] |= texts
                    grown = True
    return known


def member(rules, terminals, start, text):
    """Whether a text belongs to a grammar: facts (symbol, begin, end), added until none is new."""
    spans = [(i, j) for i in range(len(text) + 1) for j in range(i, len(text) + 1)]
    facts = {name: {s for s in spans if re.fullmatch(p, text[s[0] : s[1]])} for name, p in terminals.items()}
    facts.update({head: set() for head in rules})
    for body in itertools.chain.from_iterable(rules.values()):
        for name in body:
            if name not in facts:
                facts[name] = {s for s in spans if text[s[0] : s[1]] == name}
    grown = True
    while grown:
        grown = False
        for head, bodies in rules.items():
            for body in bodies:
                found = {(i, i) for i in range(len(text) + 1)}
                for name in body:
                    found = {(i, k) for i, j in found for jj, k in facts[name] if j == jj}
                if not found <= facts[head]:
                    facts[head] |= found
                    grown = True
    return (0, len(text)) in facts[start]


def random_parts(rng, text=None):
    """A text with gaps: words and, for a gap, what it has at least. Cut out of ``text`` where there is one."""
    parts = []
    if text is None:
        for _ in range(rng.randint(1, 4)):
            parts.append("".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 3))))
            if rng.random() < 0.7:
                parts.append(rng.choice((0, 0, 0, 1, 2)))
        return parts
    cuts = sorted(rng.randint(0, len(text)) for _ in range(2 * rng.randint(1, 3)))
    at = 0
    for begin, end in zip(cuts[::2], cuts[1::2], strict=True):
        parts += [text[at:begin], 0]
        at = end
    return [*parts, text[at:]]


def parts_of(parts):
    """Words and gaps as the library takes them."""
    return [Gap(part) if isinstance(part, int) else part for part in parts]


def pattern_of(parts):
    """The completions of a text with gaps, as an expression of ``re``."""
    return "".join(re.escape(p) if isinstance(p, str) else f"(?s:.){{{p},}}" for p in parts)


def longest_tokens(text, patterns, literals):
    """What a lexer makes of a text: the longest match, of equally long ones the literal. None where none matches."""
    out, at = [], 0
    while at < len(text):
        best = None
        for end in range(len(text), at, -1):
            piece = text[at:end]
            name = (
                piece
                if piece in literals
                else next((n for n, p in patterns.items() if re.fullmatch(p, piece)), None)
            )
            if name is not None:
                best = (name, end)
                break
        if best is None:
            return None
        out.append(best[0])
        at = best[1]
    return out
