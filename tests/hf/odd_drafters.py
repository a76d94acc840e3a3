"""Drafters that a decoding loop must not trust: random trees, with the right continuation hidden in some of them."""

import random

import torch
from trees import path_to, random_parents

from tokops.hf.drafting import Drafter, Proposal


class Odd(Drafter):
    """Random trees of random tokens, some rows of which are padding.

    Args:
        truth: texts; a tree of a sequence that one of them continues holds the continuation down one path.
        rows: of every tree.
        seed: of the trees.
        twins: whether siblings may carry equal tokens.
        chain: all rows are one chain.
        empty: how often nothing but the root is proposed.
        vocabulary: tokens are below it.
    """

    def __init__(self, truth=(), rows=12, seed=0, twins=False, chain=False, empty=0.0, vocabulary=97):
        self.truth, self.rows, self.rng = truth, rows, random.Random(seed)
        self.twins, self.chain, self.empty, self.vocabulary = twins, chain, empty, vocabulary
        #: Per step and sequence, the texts of the nodes that are no padding, by what follows the committed tokens.
        self.paths: list[list[list[tuple[int, ...]]]] = []
        self.ended = 0

    def propose(self, session):
        rows = 1 if self.rng.random() < self.empty else self.rows
        trees = [self._tree(text, rows) for text in session.tokens]
        tokens, parents, counts = (
            torch.tensor(x, dtype=torch.int32, device=session.device) for x in zip(*trees, strict=True)
        )
        self.paths.append([self._texts(*tree) for tree in trees])
        return Proposal(tokens, parents, rows, counts)

    def end(self):
        self.ended += 1

    def _tree(self, text, rows):
        parents = list(range(-1, rows - 1)) if self.chain else random_parents(self.rng, rows)
        tokens = [text[-1]] + [self.rng.randrange(3, self.vocabulary) for _ in parents[1:]]
        known = next((t for t in self.truth if t[: len(text)] == text), text)
        right = path_to(parents, rows - 1 if self.chain else self.rng.randrange(rows))[1:]
        for node, token in zip(right, known[len(text) :], strict=False):
            tokens[node] = token
        for node in range(1, rows):
            before = [i for i in range(1, node) if parents[i] == parents[node] and tokens[i] == tokens[node]]
            if (before and not self.twins) or (parents[node] > 0 and parents[parents[node]] < 0):
                parents[node] = -1
        return tokens, parents, rows if self.chain else self.rng.randint(1, rows)

    @staticmethod
    def _texts(tokens, parents, count):
        live = [i for i in range(count) if i == 0 or parents[i] >= 0]
        return [tuple(tokens[i] for i in path_to(parents, node)[1:]) for node in live]
