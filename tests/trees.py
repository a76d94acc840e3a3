"""Random token trees, and forwards over them."""

import copy
import random
from types import SimpleNamespace

import torch

from tokops.hf.attention import attention

PROMPT = 21
PADDING = (6, 0, 13)


def random_parents(rng: random.Random, nodes: int) -> list[int]:
    """Parents of a tree whose root is node 0; now and then a chain or a star."""
    kind = rng.randrange(5)
    if kind == 0:
        return list(range(-1, nodes - 1))
    if kind == 1:
        return [-1] + [0] * (nodes - 1)
    return [-1] + [rng.randrange(i) for i in range(1, nodes)]


def path_to(parents: list[int], node: int) -> list[int]:
    """Nodes from the root to ``node``."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def words_of(trees: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ancestor words ``[B, T, W]`` and depths ``[B, T]`` of trees given by parents."""
    words, depths = [], []
    for parents in trees:
        paths = [path_to(parents, node) for node in range(len(parents))]
        wide = (len(parents) + 63) // 64
        rows = [[sum(1 << (j % 64) for j in path if j // 64 == w) for w in range(wide)] for path in paths]
        words.append([[x - (1 << 64) if x >> 63 else x for x in row] for row in rows])
        depths.append([len(path) - 1 for path in paths])
    return torch.tensor(words), torch.tensor(depths, dtype=torch.int32)


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Positions ``[B, L]`` of tokens with padding on the left."""
    return (mask.cumsum(1) - 1).clamp_min(0)


class Texts:
    """Sequences in a cache of a patched model, and their tokens: what is decoded must follow from these alone."""

    def __init__(self, model, cache, seed: int = 0, padding=PADDING, prompt: int = PROMPT):
        self.model, self.cache = model, cache
        self.rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 97, (len(padding), prompt), generator=generator)
        mask = torch.ones_like(ids)
        for row, count in enumerate(padding):
            mask[row, :count] = 0
        self.tokens = ids.tolist()
        self.padding = list(padding)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), past_key_values=cache)

    @property
    def starts(self):
        return torch.tensor(self.padding, dtype=torch.int32) if any(self.padding) else None

    def forward(self, tokens, trees=None):
        """Logits of draft tokens ``[B, T]``; trees are lists of parents, None is a chain."""
        words, depths = (None, None) if trees is None else words_of(trees)
        self.cache.draft(words, depths, self.starts)
        at = torch.arange(tokens.shape[1])[None] if depths is None else depths
        own = torch.tensor(self.cache.lengths) - torch.tensor(self.padding)
        with torch.no_grad():
            out = self.model(input_ids=tokens, position_ids=own[:, None] + at, past_key_values=self.cache)
        return out.logits

    def draft(self, nodes: int):
        """Run random tokens of random trees; returns their logits, tokens and trees."""
        trees = [random_parents(self.rng, nodes) for _ in self.tokens]
        tokens = torch.tensor([[self.rng.randrange(3, 97) for _ in range(nodes)] for _ in trees])
        return self.forward(tokens, trees), tokens, trees

    def keep(self, tokens, kept: list[list[int]]) -> None:
        """Keep these nodes of the last draft."""
        most = max(map(len, kept))
        rows = torch.tensor([nodes + [-1] * (most - len(nodes)) for nodes in kept], dtype=torch.int32)
        self.cache.keep(rows.view(len(kept), most), [len(nodes) for nodes in kept])
        for text, nodes, given in zip(self.tokens, kept, tokens.tolist(), strict=True):
            text += [given[node] for node in nodes]

    def accept(self, trees) -> list[list[int]]:
        """A random path from the root of every tree, of any length."""
        paths = []
        for parents in trees:
            path = path_to(parents, self.rng.randrange(len(parents)))
            paths.append(path[: self.rng.randint(0, len(path))])
        return paths


class Alone:
    """One sequence of :class:`Texts`, decoded token by token over a cache of its own; kept ones may be many."""

    def __init__(self, texts: Texts, row: int, cache, prompt: int = PROMPT):
        self.model, self.cache, self.padding = texts.model, cache, texts.padding[row]
        ids = torch.tensor([texts.tokens[row][:prompt]])
        mask = (torch.arange(prompt) >= self.padding).long()[None]
        self._run(ids, mask)
        self.follow(texts.tokens[row])

    def _run(self, ids, mask):
        at = positions_of(mask)[:, -ids.shape[1] :]
        with torch.no_grad():
            out = self.model(input_ids=ids, attention_mask=mask, position_ids=at, past_key_values=self.cache)
        return out.logits[0, -1]

    def follow(self, tokens: list[int]) -> torch.Tensor | None:
        """Decode what is new of a text; returns the last logits."""
        logits = None
        for length in range(self.cache.get_seq_length(), len(tokens)):
            mask = (torch.arange(length + 1) >= self.padding).long()[None]
            logits = self._run(torch.tensor([[tokens[length]]]), mask)
        return logits

    def along(self, tokens: list[int]) -> torch.Tensor:
        """Logits behind a path of tokens, which are then taken back."""
        twin = copy.copy(self)
        twin.cache = copy.deepcopy(self.cache)
        logits = twin.follow([*[0] * self.cache.get_seq_length(), *tokens])
        assert logits is not None, "a path has a root"
        return logits


class Lookup:
    """Attention layers of a patched model alone: queries, keys and values of a token at a position are given vectors.

    What is computed for a path then depends on nothing but what the cache does with these very vectors: rounding
    elsewhere in a model cannot move a number to the next code.
    """

    def __init__(self, run, seed: int = 0):
        shape = run.model.config
        self.layers, dim = shape.num_hidden_layers, shape.head_dim
        heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads)
        generator = torch.Generator().manual_seed(seed)
        self.tables = [
            [
                torch.randn(509, n, dim, generator=generator) * scale
                for n, scale in zip(heads, (2.0, 1.0, 1.0), strict=True)
            ]
            for _ in range(self.layers)
        ]

    def __call__(self, input_ids, position_ids, past_key_values, attention_mask=None):
        starts = None
        if attention_mask is not None and not attention_mask.all():
            starts = attention_mask.int().argmax(1).int()
        index = (input_ids * 31 + position_ids * 17) % 509
        out = []
        for layer, tables in enumerate(self.tables):
            q, k, v = (table[index].transpose(1, 2) for table in tables)
            key, value = past_key_values.update(k, v, layer)
            out.append(attention(None, q, key, value, starts)[0].flatten(2))
        return SimpleNamespace(logits=torch.cat(out, 2))
