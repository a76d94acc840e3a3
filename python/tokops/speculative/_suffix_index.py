"""Drafts from what followed earlier occurrences of the last tokens: prompt lookup, as a tree."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._check import check_shape, check_tensor, refuse_unless
from .._native import op
from . import lookup
from .automaton import LONGEST_COUNTED, Automaton

__all__ = ["SuffixIndex"]

_EXTEND, _DRAFT = "suffix_extend", "suffix_draft"
_INT = (torch.int32,)
_NAMES = ("heads", "text", "states", "edges", "places")


def _shapes(batch: int, capacity: int) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shapes of the five tensors of an index, and their words."""
    places = 1 << max(2 * capacity - 1, 1).bit_length()
    return (
        ((batch, 5), "[B, 5]"),
        ((batch, capacity), "[B, C]"),
        ((batch, 2 * capacity, 8), "[B, 2 C, 8]"),
        ((batch, capacity, 4), "[B, C, 4]"),
        ((batch, places), "[B, power of two >= 2 C]"),
    )


def _check_index(op_name, *index):
    heads, text = index[:2]
    for name, t, dims in zip(_NAMES, index, (2, 2, 3, 3, 2), strict=True):
        check_tensor(op_name, name, t, dims, _INT, heads)
        refuse_unless(t.is_contiguous(), op_name, f"{name} must be contiguous")
    capacity = text.shape[1]
    for name, t, (shape, words) in zip(_NAMES, index, _shapes(heads.shape[0], capacity), strict=True):
        if name == "states":
            ok = 1 <= capacity <= 1 << 28
            refuse_unless(ok, op_name, f"text must have room for 1..2^28 tokens, got {capacity}")
        check_shape(op_name, name, t, shape, words)


def _check_heads(op_name, heads, capacity):
    for b, head in enumerate(heads.tolist()):
        n, states, edges, whole, recent = head
        ok = 0 <= n <= capacity and 0 <= edges <= capacity and 0 <= states < 2 * capacity
        ok = ok and 0 <= whole <= states and 0 <= recent <= states
        words = f"heads must be as suffix_extend left them, got {head} for sequence {b}"
        refuse_unless(ok, op_name, words)


def _check_extend(index, tokens, counts):
    _check_index(_EXTEND, *index)
    check_tensor(_EXTEND, "tokens", tokens, 2, _INT, index[0])
    check_tensor(_EXTEND, "counts", counts, 1, _INT, index[0])
    batch = index[0].shape[0]
    check_shape(_EXTEND, "tokens", tokens, (batch, tokens.shape[1]), "[B, T]")
    check_shape(_EXTEND, "counts", counts, (batch,), "[B]")


@op(
    "suffix_extend(Tensor(a!) heads, Tensor(b!) text, Tensor(c!) states, Tensor(d!) edges, "
    "Tensor(e!) places, Tensor tokens, Tensor counts) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
def extend_reference(heads, text, states, edges, places, tokens, counts):
    """The definition: the automaton of every sequence, token by token."""
    index = (heads, text, states, edges, places)
    _check_extend(index, tokens, counts)
    _check_heads(_EXTEND, heads, text.shape[1])
    many, width, capacity = counts.tolist(), tokens.shape[1], text.shape[1]
    words = f"counts must be 0..{width}, got {many[:8]}"
    refuse_unless(all(0 <= n <= width for n in many), _EXTEND, words)
    for b, n in enumerate(many):
        room = capacity - int(heads[b, 0])
        words = f"counts must be at most the room left, {room} for sequence {b}, got {n}"
        refuse_unless(n <= room, _EXTEND, words)
    for b, n in enumerate(many):
        automaton = Automaton(*(t[b] for t in index))
        for token in tokens[b, :n].tolist():
            automaton.append(token)
        for t, row in zip(index, automaton.rows(), strict=True):
            t[b] = torch.tensor(row, dtype=torch.int32, device=t.device)


@torch.library.register_fake("tokops::suffix_extend")
def _(heads, text, states, edges, places, tokens, counts):
    _check_extend((heads, text, states, edges, places), tokens, counts)


def _check_draft(index, nodes, depth, min_match, max_match, branch):
    _check_index(_DRAFT, *index)
    for name, x, least, most in (
        ("max_match", max_match, 1, LONGEST_COUNTED - 1),
        ("nodes", nodes, 1, 1024),
        ("depth", depth, 0, 1024),
        ("min_match", min_match, 1, max_match),
        ("branch", branch, 1, 1024),
    ):
        refuse_unless(least <= x <= most, _DRAFT, f"{name} must be {least}..{most}, got {x}")


def _empty_draft(heads, nodes):
    batch = heads.shape[0]
    tokens, parents = (heads.new_empty((batch, nodes)) for _ in range(2))
    return tokens, parents, heads.new_empty((batch,)), heads.new_empty((batch, nodes), dtype=torch.float32)


@op(
    "suffix_draft(Tensor heads, Tensor text, Tensor states, Tensor edges, Tensor places, int nodes, int depth, "
    "int min_match, int max_match, int branch) -> (Tensor tokens, Tensor parents, Tensor n_nodes, Tensor weights)",
    tags=(torch.Tag.needs_exact_strides,),
)
def draft_reference(heads, text, states, edges, places, nodes, depth, min_match, max_match, branch):
    """The definition: occurrences found and counted in the text alone."""
    _check_draft((heads, text, states, edges, places), nodes, depth, min_match, max_match, branch)
    _check_heads(_DRAFT, heads, text.shape[1])
    tokens, parents, n_nodes, weights = _empty_draft(heads, nodes)
    tokens.zero_(), parents.fill_(-1), weights.zero_()
    for b, n in enumerate(heads[:, 0].tolist()):
        words = text[b, :n].tolist()
        if not words or words[-1] < 0:
            tree = []
        elif branch == 1:
            tree = lookup.copy(words, nodes, depth, min_match, max_match)
        else:
            tree = lookup.grow(words, nodes, depth, min_match, max_match, branch)
        n_nodes[b] = len(tree)
        for out, column in zip((tokens, parents, weights), zip(*tree, strict=True), strict=False):
            out[b, : len(tree)] = torch.tensor(column, dtype=out.dtype, device=out.device)
    return tokens, parents, n_nodes, weights


@torch.library.register_fake("tokops::suffix_draft")
def _(heads, text, states, edges, places, nodes, depth, min_match, max_match, branch):
    _check_draft((heads, text, states, edges, places), nodes, depth, min_match, max_match, branch)
    return _empty_draft(heads, nodes)


class SuffixIndex:
    """Every substring of a batch of growing sequences, and token trees of what followed the last ones before.

    A suffix automaton per sequence, on the host: a token is appended in constant time (amortised), whatever
    the length. Its state is five int32 tensors of some 100 bytes per token of capacity, so an index can be
    copied and pickled.

    Args:
        batch: sequences.
        capacity: tokens that each has room for; more are made when needed, by doubling.

    Raises:
        RuntimeError: batch below 0, capacity not 1..2^28.

    Example:
        >>> index = SuffixIndex(1)
        >>> index.append(torch.tensor([[5, 6, 7, 8, 5, 6]]))
        >>> tokens, parents, n_nodes = index.draft(nodes=4, depth=2)
        >>> tokens.tolist(), parents.tolist(), n_nodes.tolist()
        ([[6, 7, 8, 0]], [[-1, 0, 1, -1]], [3])
    """

    def __init__(self, batch: int, capacity: int = 1024):
        refuse_unless(batch >= 0, "SuffixIndex", f"batch must be >= 0, got {batch}")
        ok = 1 <= capacity <= 1 << 28
        refuse_unless(ok, "SuffixIndex", f"capacity must be 1..2^28, got {capacity}")
        self.tensors = self._fresh(batch, capacity)

    @staticmethod
    def _fresh(batch: int, capacity: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(shape, dtype=torch.int32) for shape, _ in _shapes(batch, capacity))

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.tensors[0].shape[0]

    @property
    def capacity(self) -> int:
        """Tokens that a sequence has room for."""
        return self.tensors[1].shape[1]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, ``[B]`` int32; breaks count."""
        return self.tensors[0][:, 0].clone()

    def append(self, tokens: Tensor, counts: Tensor | None = None) -> None:
        """Put tokens behind the sequences.

        Other text, to draft from as well, is appended before a sequence's own and ended by a break, a negative
        number: no match reaches across it, and it is never drafted.

        Args:
            tokens: ``[B, T]`` int32 or int64, below 2^31; on another device they are copied to the host.
            counts: ``[B]`` int32 or int64, how many of each row count, from its beginning; None: all T.

        Raises:
            RuntimeError: wrong shape, dtype or range, naming the argument; nothing is appended then.
        """
        name, ints = "SuffixIndex.append", (torch.int32, torch.int64)
        check_tensor(name, "tokens", tokens, 2, ints, tokens)
        check_shape(name, "tokens", tokens, (self.batch, tokens.shape[1]), "[B, T]")
        if counts is None:
            counts = tokens.new_full((self.batch,), tokens.shape[1])
        check_tensor(name, "counts", counts, 1, ints, counts)
        check_shape(name, "counts", counts, (self.batch,), "[B]")
        tokens, counts = tokens.cpu(), counts.cpu()
        if tokens.dtype != torch.int32:
            largest = int(tokens.max()) if tokens.numel() else 0
            refuse_unless(largest < 1 << 31, name, f"tokens must be below 2^31, got {largest}")
            tokens = tokens.clamp_min(-1).int()
        added = counts.tolist()
        ok = all(0 <= count <= tokens.shape[1] for count in added)
        refuse_unless(ok, name, f"counts must be 0..{tokens.shape[1]}, got {added[:8]}")
        if self.batch == 0:
            return
        lengths = self.lengths
        needed = max(length + count for length, count in zip(lengths.tolist(), added, strict=True))
        if needed > self.capacity:
            refuse_unless(needed <= 1 << 28, name, f"a sequence must have at most 2^28 tokens, got {needed}")
            grown = self._fresh(self.batch, min(max(needed, 2 * self.capacity), 1 << 28))
            text = self.tensors[1][:, : int(lengths.max())]
            torch.ops.tokops.suffix_extend.default(*grown, text, lengths)
            self.tensors = grown
        torch.ops.tokops.suffix_extend.default(*self.tensors, tokens, counts.int())

    def draft(
        self, nodes: int = 32, depth: int = 31, min_match: int = 1, max_match: int = 32, branch: int = 8
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token trees of what may come next: :meth:`weighed_draft` without the weights."""
        return self.weighed_draft(nodes, depth, min_match, max_match, branch)[:3]

    def weighed_draft(
        self, nodes: int = 32, depth: int = 31, min_match: int = 1, max_match: int = 32, branch: int = 8
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token trees of what may come next, and how likely each node is.

        A token's probability behind a context is estimated at the longest suffix of the context that it followed
        before: its share of what followed there, less what every longer suffix leaves to shorter ones. A suffix
        of m tokens, followed n times by d different tokens, leaves ``16 d / (n m^2 + 16 d)``. The weight of a
        node is the product along its path. The tree grows best first: the likeliest child of the nodes so far is
        the next node. Weights therefore never rise from node to node, and the first nodes of a tree, however
        many, are the tree of that size. Ties go to the most recent occurrence, which no two tokens
        share, then to the earlier parent.

        With ``branch`` 1 it is prompt lookup: the tree is the chain behind the *first* earlier occurrence of the
        longest suffix, as transformers' ``prompt_lookup_num_tokens`` has it (``max_match`` is its
        ``max_matching_ngram_size``); nothing is estimated, and weights are 1.

        Args:
            nodes: most nodes, the root among them, 1..1024.
            depth: most tokens below the root, 0..1024.
            min_match: shortest suffix that is looked up, 1..max_match.
            max_match: longest suffix that is looked up, 1..64.
            branch: most children of a node, 1..1024.

        Returns:
            ``tokens [B, nodes]`` int32, node 0 the last token of the sequence and 0 in padding;
            ``parents [B, nodes]`` int32, below their nodes, -1 for the root and padding; ``n_nodes [B]`` int32,
            0 where the sequence is empty or ends with a break; ``weights [B, nodes]`` float32, 0 in padding.
            All on the host.

        Raises:
            RuntimeError: a number out of range, naming it.
        """
        return torch.ops.tokops.suffix_draft.default(
            *self.tensors, nodes, depth, min_match, max_match, branch
        )

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Keep some sequences, in the order given; one named twice is there twice.

        Args:
            rows: integers 0..batch - 1, one-dimensional.

        Raises:
            RuntimeError: rows out of range, or not one-dimensional integers.
        """
        index = torch.as_tensor(rows, device="cpu")
        index = index.long() if index.numel() == 0 else index
        check_tensor("SuffixIndex.select", "rows", index, 1, (torch.int32, torch.int64), index)
        ok = bool(((index >= 0) & (index < self.batch)).all())
        refuse_unless(ok, "SuffixIndex.select", f"rows must be 0..{self.batch - 1}, got {index[:8].tolist()}")
        self.tensors = tuple(t[index.long()] for t in self.tensors)


def _text(gen: torch.Generator, batch: int, length: int, vocabulary: int) -> Tensor:
    """Rare and frequent tokens, and passages that come again."""
    tokens = (vocabulary ** torch.rand(batch, length, generator=gen)).int() - 1
    for begin in range(length // 4, length - length // 8, max(length // 4, 1)):
        size = length // 8
        tokens[:, begin : begin + size] = tokens[:, begin - size : begin].clone()
    return tokens


def _index(tokens: Tensor, counts: Tensor | None = None, capacity: int = 1) -> tuple[Tensor, ...]:
    index = SuffixIndex(tokens.shape[0], capacity)
    index.append(tokens, counts)
    return index.tensors


def cases(size: str) -> Iterator[tuple[str, str, tuple, dict]]:
    """Inputs of suffix_extend and suffix_draft, "small" or "large": (op, label, args, kwargs)."""
    gen = torch.Generator().manual_seed(0)
    if size == "large":
        for batch in (1, 8):
            tokens = _text(gen, batch, 8192, 30000)
            counts = torch.full((batch,), 8192, dtype=torch.int32)
            empty = SuffixIndex(batch, 8192).tensors
            yield "suffix_extend", f"B {batch} T 8192", (*empty, tokens, counts), {}
            index = _index(tokens)
            yield "suffix_draft", f"B {batch} L 8192, 32 nodes", (*index, 32, 31, 1, 32, 8), {}
            yield "suffix_draft", f"B {batch} L 8192, chain of 10", (*index, 11, 10, 1, 2, 1), {}
        return
    drafts = ((12, 5, 1, 8, 4), (40, 20, 2, 64, 3), (9, 6, 1, 2, 1), (1, 3, 1, 1, 1), (7, 0, 1, 3, 2))
    for vocabulary in (1, 2, 5, 300):
        first, more = _text(gen, 3, 150, vocabulary), _text(gen, 3, 40, vocabulary)
        counts = torch.tensor([40, 0, 7], dtype=torch.int32)
        index = _index(first, torch.tensor([150, 0, 91]), 200)
        yield "suffix_extend", f"{vocabulary} tokens", (*index, more, counts), {}
        for draft in drafts:
            yield "suffix_draft", f"{vocabulary} tokens, {draft}", (*index, *draft), {}
    edge = torch.tensor(
        [[0, 2**31 - 1, -1, 0, 2**31 - 1, 5, 0, 2**31 - 1], [1, 1, 1, 1, -1, -1, 1, -1]]
    ).int()
    counts = torch.tensor([8, 8], dtype=torch.int32)
    yield "suffix_extend", "breaks and the largest token", (*SuffixIndex(2, 8).tensors, edge, counts), {}
    for draft in drafts:
        yield "suffix_draft", f"breaks and the largest token, {draft}", (*_index(edge), *draft), {}
    one = torch.tensor([[3]], dtype=torch.int32)
    yield "suffix_extend", "one token", (*SuffixIndex(1, 1).tensors, one, torch.tensor([1]).int()), {}
    yield "suffix_draft", "one token", (*_index(one), 4, 2, 1, 2, 2), {}
    none = torch.zeros(0, 3, dtype=torch.int32)
    yield "suffix_extend", "no sequences", (*SuffixIndex(0, 4).tensors, none, none[:, 0].clone()), {}
    yield "suffix_draft", "no sequences", (*SuffixIndex(0, 4).tensors, 4, 2, 1, 2, 2), {}
