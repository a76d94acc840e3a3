"""The benchmark of speculation: verifying trees, moving what was accepted, drawing tokens, looking up drafts.

Rows of the target are peaked, so that everybody who verifies accepts the same path whatever the random numbers; what a
verification costs depends on the length of that path and not on how sharp its laws are.

kv_compact at batch 1 (EPYC, Zen 5): of 33 us, hot 24, twelve were the passing of sixty tensors to an op, whatever it
does with them; caches hold a layer's keys and values in one since, which halves that. (All layers in one tensor would
save the rest, but a cache that grows would be there twice.) A pool's sizes and strides are asked of torch once; asking
by axis and by pair of pools took two more.
At batch 32 stores past the caches took 2.4 ms for 2.1, as the rows' new places were read just before; prefetches two
and four heads ahead changed nothing.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tokops.data import long_text
from tokops.sampling import sample
from tokops.speculative import SuffixIndex, best_first_tree, kv_compact, tree_build, tree_verify

from .attention import Bar, Case, Peers, Workload

_VOCABULARY = 131072
#: Chances of the j-th child by depth that shape the trees: they come out eight levels deep.
_ACCEPTANCE = ((0.6, 0.15, 0.07, 0.04, 0.02, 0.01),) * 8
_PEAK = 60.0  # of a logit over the others: what is left to them is below any random number's resolution
_PAGE = 64
_LAYERS = 30
_CONTEXT = 8192
SOFTMAX, ARGMAX = "softmax of all rows, then the walk", "argmax of all rows, then the walk"
COPY, BY_POOL = "torch copy of as many bytes", "torch, pool by pool"
MULTINOMIAL, RACE = "softmax + multinomial", "softmax + race of exponentials"


def _within(microseconds: float) -> Bar:
    return Bar(f"{microseconds:g} us", 1.0, microseconds * 1e-6)


class _Tree:
    """One tree for every sequence of a batch, and rows of the target under which a path of it is accepted."""

    def __init__(self, batch: int, nodes: int, vocabulary: int, accepted: int, dtype, device):
        shape = best_first_tree(_ACCEPTANCE, nodes)
        gen = torch.Generator().manual_seed(1)
        drawn = [torch.randperm(vocabulary - 1, generator=gen)[:nodes] for _ in range(batch)]
        self.tokens = torch.stack(drawn).int().to(device)
        self.parents = torch.tensor([shape.parents] * batch, dtype=torch.int32, device=device)
        self.links = tree_build(self.parents)
        self.children: list[list[int]] = [[] for _ in range(nodes)]
        for node, parent in enumerate(shape.parents[1:], 1):
            self.children[parent].append(node)
        deepest = shape.depths.index(shape.depth)
        self.path = [deepest]
        while self.path[0]:
            self.path.insert(0, shape.parents[self.path[0]])
        self.path = self.path[: accepted + 1]
        generator = torch.Generator(device).manual_seed(2)
        logits = torch.randn(batch, nodes, vocabulary, generator=generator, device=device)
        every = torch.arange(batch, device=device)
        for node, child in zip(self.path, self.path[1:], strict=False):
            logits[every, node, self.tokens[:, child].long()] += _PEAK
        logits[:, self.path[-1], -1] += _PEAK  # no node has this token
        self.logits = logits.to(dtype)
        self.words = self.tokens.tolist()

    @property
    def expected(self) -> Tensor:
        """Tokens ``[B, accepted + 1]`` that come out."""
        last = self.tokens.new_full((len(self.tokens), 1), self.logits.shape[2] - 1)
        return torch.cat([self.tokens[:, self.path[1:]], last], 1)


def verify(mode, batch, nodes, vocabulary, accepted, dtype, device) -> Workload:
    """Verifying trees from logits, beside plain torch, which turns all rows into laws and then walks down.

    On CUDA the opponent is that first step alone: a walk that waits for the device at every level is no call that can
    be replayed.
    """
    tree = _Tree(batch, nodes, vocabulary, accepted, dtype, device)
    ours = partial(tree_verify, mode, tree.tokens, tree.links, logits=tree.logits, seed=3)
    name, laws, walk = (
        (ARGMAX, _most_likely, _walk_greedy) if mode == "greedy" else (SOFTMAX, _softmax, _walk_drawn)
    )
    if device == "cpu":
        peers: Peers = {name: lambda: walk(laws(tree.logits), tree.words, tree.children)}
    else:
        peers = {name.partition(",")[0] + " alone": partial(laws, tree.logits)}
    rows = tree.logits[:, tree.path].clone()

    def check():
        length, path, out = ours()
        assert length.tolist() == [accepted] * batch, "tree_verify accepted another number of tokens"
        assert path[:, : accepted + 1].tolist() == [tree.path] * batch, "tree_verify took another path"
        assert torch.equal(out[:, : accepted + 1], tree.expected), "tree_verify gave out other tokens"
        read = rows_read(mode, tree.tokens, tree.links, tree.logits)
        assert read.tolist() == [accepted + 1] * batch, f"rows were read beside the path's: {read.tolist()}"
        if device == "cpu":
            got = peers[name]()
            assert got == tree.expected.tolist(), f"tree_verify and {name} gave out other tokens"

    return Workload(ours, peers, (rows,), check)


def rows_read(mode: str, tokens: Tensor, tree, logits: Tensor) -> Tensor:
    """Rows of the target ``[B]`` that a verification looks at: the op counts them."""
    numbers = torch.arange(len(tokens), device=tokens.device), torch.zeros_like(tokens[:, 0]).long()
    return torch.ops.tokops.tree_verify.default(
        mode, tokens, tree.parents, tree.first_child, tree.next_sibling, tree.max_depth, logits, None, None, None,
        3, *numbers, None, False, 1.0, 0, 1.0, 0.0, 0.09, 0.3, None, None, 0, "moved",
    )[3]  # fmt: skip


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits.float(), -1)


def _most_likely(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _walk_drawn(laws: Tensor, words: Sequence[Sequence[int]], children) -> list[list[int]]:
    """Target-only verification: one coin against the mass of the children tried so far."""
    found = []
    for law, tokens in zip(laws, words, strict=True):
        out: list[int] = []
        node: int | None = 0
        while node is not None:
            at, node = node, None
            coin, total = random.random(), 0.0
            for child in children[at]:
                total += float(law[at, tokens[child]])
                if coin < total:
                    node = child
                    out.append(tokens[child])
                    break
        rest = law[at].clone()
        rest[[tokens[child] for child in children[at]]] = 0.0
        found.append([*out, int(torch.multinomial(rest, 1))])
    return found


def _walk_greedy(best: Tensor, words: Sequence[Sequence[int]], children) -> list[list[int]]:
    found = []
    for tokens, wanted in zip(words, best.tolist(), strict=True):
        node, out = 0, [wanted[0]]
        while (child := next((c for c in children[node] if tokens[c] == out[-1]), None)) is not None:
            node = child
            out.append(wanted[node])
        found.append(out)
    return found


def compact(batch, layers, heads, d, accepted, dtype, device) -> Workload:
    """Moving the accepted rows of all layers, beside a plain copy of as many bytes and torch, pool by pool."""
    gen = torch.Generator().manual_seed(4)
    pages = torch.randperm(batch, generator=gen)
    shape, generator = (batch, heads, _PAGE, d), torch.Generator(device).manual_seed(5)
    together = [
        torch.randn((2, *shape), generator=generator, device=device).to(dtype) for _ in range(layers)
    ]  # keys and values, as caches hold them
    pools = [pool for layer in together for pool in layer]
    base = torch.randint(0, _PAGE - 4 * accepted, (batch,), generator=gen)
    later = [torch.randperm(3 * accepted, generator=gen)[:accepted].sort().values + 2 for _ in range(batch)]
    kept = torch.cat([torch.zeros(batch, 1).long(), torch.stack(later)], 1)  # the root stays, all others move
    table, begin, rows = (x.int().to(device) for x in (pages[:, None], base, kept))
    ours = partial(kv_compact, together, table, begin, rows)
    source = (base[:, None] + kept).to(device)[:, 1:]
    target = (base[:, None] + torch.arange(1, accepted + 1)).to(device)
    page = pages.to(device)[:, None]

    def one_by_one():
        for pool in pools:
            pool[page, :, target] = pool[page, :, source]

    moved = torch.stack([pool[page, :, source] for pool in pools])
    elsewhere = torch.empty_like(moved)

    def check():
        before = [pool[page, :, source] for pool in pools]
        ours()
        for pool, want in zip(pools, before, strict=True):
            assert torch.equal(pool[page, :, target], want), "kv_compact moved other rows"

    peers: Peers = {COPY: partial(elsewhere.copy_, moved), BY_POOL: one_by_one}
    return Workload(ours, peers, (moved,), check)


def draws(rows, vocabulary, dtype, device) -> Workload:
    """Plain sampling, beside torch.

    On CUDA ``multinomial`` may wait for the device; the opponent there is what it computes, which a graph can hold.
    """
    generator = torch.Generator(device).manual_seed(6)
    logits = torch.randn(rows, vocabulary, generator=generator, device=device).to(dtype)
    peaks = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(7)).to(device)
    numbers = torch.arange(rows, device=device)
    logits[numbers, peaks] += _PEAK
    ours = partial(sample, logits, seed=3, stream=numbers, position=numbers)
    name, draw = (MULTINOMIAL, _multinomial) if device == "cpu" else (RACE, _race)
    theirs = partial(draw, logits)

    def check():
        for who, call in (("sample", ours), (name, theirs)):
            assert torch.equal(call().long(), peaks), f"{who} drew a token that has no mass"

    return Workload(ours, {name: theirs}, (logits,), check)


def _multinomial(logits: Tensor) -> Tensor:
    return torch.multinomial(_softmax(logits), 1)[:, 0]


def _race(logits: Tensor) -> Tensor:
    laws = _softmax(logits)
    return (laws / torch.empty_like(laws).exponential_()).argmax(-1)


def _text(length: int) -> Tensor:
    """``[1, length]`` int32: a text of prose, one word or mark a token."""
    ids: dict[str, int] = {}
    found = re.findall(r"\w+|[^\w\s]", long_text())[:length]
    return torch.tensor([[ids.setdefault(word, len(ids)) for word in found]], dtype=torch.int32)


def index_append(length) -> Workload:
    """A suffix index of a whole text, token after token in one call."""
    tokens = _text(length)

    def ours() -> SuffixIndex:
        index = SuffixIndex(1, length)
        index.append(tokens)
        return index

    def check():
        halves = SuffixIndex(1, length)
        for part in tokens.split(length // 2, dim=1):
            halves.append(part)
        whole = ours()
        assert whole.lengths.tolist() == [length], "the index lost tokens"
        for got, want in zip(whole.draft(), halves.draft(), strict=True):
            assert torch.equal(got, want), "an index grown in two calls drafts something else"

    return Workload(ours, {}, (), check)


def index_draft(length) -> Workload:
    """A tree of 32 nodes out of a suffix index, beside transformers' prompt lookup, which drafts a chain of 10."""
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    tokens = _text(length)
    index = SuffixIndex(1, length)
    index.append(tokens)
    theirs = PromptLookupCandidateGenerator(
        num_output_tokens=10, max_matching_ngram_size=2, max_length=2 * length
    )
    chain = partial(index.draft, nodes=11, depth=10, max_match=2, branch=1)
    peers: Peers = {
        "our chain of 10": chain,
        "transformers' chain of 10": partial(theirs.get_candidates, tokens.long()),
    }

    def check():
        drafted, _, count = chain()
        want = theirs.get_candidates(tokens.long())[0][0, length:].tolist()
        assert drafted[0, 1 : int(count)].tolist() == want, "both lookups draft from the same place"

    return Workload(index.draft, peers, (), check)


def _of_dtype(dtype, device, quick) -> Iterator[Case]:
    name = "fp32" if dtype == torch.float32 else "bf16"
    for mode in ("target_only", "greedy"):
        for batch, least in ((1, 15), (8, 60)):
            for accepted in (4,) if quick else (4, 8):
                bars: tuple[Bar, ...] = ()
                if mode == "target_only":
                    bars = (Bar(SOFTMAX, 5.0),) if device == "cpu" else (_within(least),)
                yield Case(
                    f"tree_verify {mode} B{batch} N64 V{_VOCABULARY}, {accepted} of 8 accepted, {name}",
                    bars,
                    partial(verify, mode, batch, 64, _VOCABULARY, accepted, dtype, device),
                )
    for rows in (1, 8):
        build: Callable[[], Workload] = partial(draws, rows, _VOCABULARY, dtype, device)
        yield Case(f"sample [{rows}, {_VOCABULARY}] {name}", (), build)


def cases(device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """The speed rows of the acceptance table, and what has no bar beside them.

    Args:
        device: "cpu" or "cuda"; the suffix index is on the host, and is measured on "cpu" only.
        quick: bfloat16 only, with one number of accepted tokens.
    """
    for dtype in (torch.bfloat16,) if quick else (torch.float32, torch.bfloat16):
        yield from _of_dtype(dtype, device, quick)
    for batch, heads, dim, bar in (
        (1, 8, 128, _within(20)),
        (1, 3, 64, _within(20)),
        (32, 8, 128, Bar(COPY, 0.6)),
    ):
        yield Case(
            f"kv_compact {_LAYERS} layers B{batch} {heads}x{dim}, 8 rows, bf16",
            (bar,),
            partial(compact, batch, _LAYERS, heads, dim, 8, torch.bfloat16, device),
        )
    if device == "cpu":
        yield Case(
            f"suffix index, append of {_CONTEXT} tokens",
            (_within(_CONTEXT),),
            partial(index_append, _CONTEXT),
        )
        yield Case(
            f"suffix index, draft at {_CONTEXT} tokens", (_within(50),), partial(index_draft, _CONTEXT)
        )
