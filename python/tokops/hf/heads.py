"""Extra heads that predict several tokens ahead from one hidden state: Medusa's, CAFT's, and their drafter."""

import os
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..sampling import draw, law
from ..speculative.policies import StaticTree
from ..speculative.trees import Tree
from .drafters import NoDrafter
from .draftfiles import Saved, load_drafter, save_drafter, trained_draft
from .drafting import Drafter, Proposal, Session, Verdict
from .draftlayers import CHUNK, DraftCache, new_layer, rotary_of, run_layer, top_ranked
from .families import shape_of
from .proposals import (
    as_tree,
    deepest_useful,
    keep_nodes,
    limit_depth,
    pad_proposal,
    root_alone,
    tree_tokens,
    width_of,
)

__all__ = ["Heads", "HeadsConfig", "HeadsDrafter", "load_heads", "make_drafter"]

_ARCHS = ("linear", "transformer")
_FEEDS = ("last_post_norm", "penultimate")


@dataclass(frozen=True)
class HeadsConfig:
    """How heads are built.

    Args:
        heads: n. Head i of 1..n looks at position t and predicts token t + 1 + i.
        arch: ``linear``: residual blocks ``x + silu(W x + b)``; ``transformer``: decoder layers of the base model's
            class, over the hidden states of all positions.
        blocks: residual blocks or layers of every head.
        feed: what they were trained on: ``last_post_norm``, what the base model's unembedding takes, or
            ``penultimate``, what its last layer takes (CAFT's head-only training).
        private_unembedding: every head has an unembedding of its own (Medusa); else the base model's is shared.

    Raises:
        ValueError: a number or a word out of range.
    """

    heads: int = 4
    arch: str = "linear"
    blocks: int = 1
    feed: str = "last_post_norm"
    private_unembedding: bool = False

    def __post_init__(self):
        for name in ("heads", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"HeadsConfig: {name} must be at least 1, got {getattr(self, name)}")
        for name, words in (("arch", _ARCHS), ("feed", _FEEDS)):
            if getattr(self, name) not in words:
                raise ValueError(
                    f"HeadsConfig: {name} must be {' or '.join(words)}, got {getattr(self, name)!r}"
                )


class Heads(nn.Module):
    """n heads on one hidden state, run together.

    New linear heads are the identity (W and b are 0), so that every one predicts what the base model does; new
    transformer heads begin as the base model's last layer.

    Args:
        model: the base model; it is not kept.
        config: how to build them.
    """

    def __init__(self, model: Any, config: HeadsConfig):
        super().__init__()
        self.config = config
        shape = shape_of(model.config)
        n, width = config.heads, shape.hidden
        if config.arch == "linear":
            self.weight = nn.Parameter(torch.zeros(n, config.blocks, width, width))
            self.bias = nn.Parameter(torch.zeros(n, config.blocks, width))
        else:
            self.layers = nn.ModuleList(
                nn.ModuleList(new_layer(model, -1) for _ in range(config.blocks)) for _ in range(n)
            )
        self.unembedding: nn.Parameter | None = None
        if config.private_unembedding:
            own = model.get_output_embeddings().weight.detach().float()
            self.unembedding = nn.Parameter(own.expand(n, -1, -1).clone())

    def new_caches(self, batch: int) -> list[list[DraftCache]]:
        """An empty cache for every layer of every transformer head."""
        return [[DraftCache(batch) for _ in range(self.config.blocks)] for _ in range(self.config.heads)]

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        rotary: tuple | None = None,
        mask: Tensor | None = None,
        caches: Sequence[Sequence[DraftCache]] | None = None,
    ) -> Tensor:
        """The heads' hidden states.

        Args:
            x: ``[B, T, d]`` hidden states, of the kind that ``config.feed`` says.
            positions, rotary, mask, caches: see :func:`tokops.hf.draftlayers.run_layer`; for transformer heads.

        Returns:
            ``[n, B, T, d]``, for :meth:`logits`.
        """
        if self.config.arch == "linear":
            flat = x.reshape(1, -1, x.shape[-1]).to(self.weight.dtype).expand(self.config.heads, -1, -1)
            for block in range(self.config.blocks):
                inner = torch.baddbmm(self.bias[:, block, None], flat, self.weight[:, block].mT)
                flat = flat + nn.functional.silu(inner)
            return flat.reshape(self.config.heads, *x.shape)
        if positions is None or rotary is None or mask is None:
            raise ValueError("Heads: transformer heads need positions, rotary and mask, got None")
        outs = []
        for head, layers in enumerate(self.layers):
            out = x.to(next(self.parameters()).dtype)
            assert isinstance(layers, nn.ModuleList)
            for block, layer in enumerate(layers):
                cache = None if caches is None else caches[head][block]
                out = run_layer(layer, out, positions, rotary, mask, cache)
            outs.append(out)
        return torch.stack(outs)

    def logits(self, hidden: Tensor, unembed: nn.Module, heads: int | None = None) -> Tensor:
        """Logits ``[n, ..., V]`` of hidden states ``[n, ..., d]`` of the first heads.

        Args:
            unembed: the base model's unembedding, which heads without one of their own share.
            heads: of how many heads; None is all of them.
        """
        hidden = hidden[:heads]
        if self.unembedding is not None:
            return torch.einsum("n...d,nvd->n...v", hidden, self.unembedding[:heads])
        weight = unembed.weight
        return unembed(hidden.to(weight.dtype if isinstance(weight, Tensor) else hidden.dtype))

    def save(
        self, folder: str | os.PathLike, model: Any, acceptance: Any = None, training: dict | None = None
    ) -> None:
        """Write them into a folder, for :func:`load_heads`."""
        digest = shape_of(model.config).digest
        settings = asdict(self.config)
        save_drafter(folder, Saved("heads", digest, settings, self.state_dict(), acceptance, training or {}))


def load_heads(folder: str | os.PathLike, model: Any) -> tuple[Heads, list[list[float]] | None]:
    """Heads that ``tokops train-draft heads`` or :meth:`Heads.save` wrote, and their acceptance table.

    Raises:
        FileNotFoundError, ValueError: see :func:`tokops.hf.draftfiles.load_drafter`.
    """
    saved = load_drafter(folder, "heads", shape_of(model.config).digest)
    heads = Heads(model, HeadsConfig(**saved.settings))
    heads.load_state_dict(saved.tensors)
    return heads.to(model.device, model.dtype).eval(), saved.acceptance


class LastLayerInputs:
    """What a model's last layer reads, forward after forward: decoding loops hand out final states only.

    Args:
        model: gets a hook, until :meth:`stop` or until nobody refers to this any more.
    """

    def __init__(self, model: Any):
        self._seen: list[Tensor] = []
        seen = self._seen
        hook = model.base_model.layers[-1].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
        self.stop = weakref.finalize(self, hook.remove)

    def take(self) -> Tensor:
        """``[B, T, d]``, rows of all forwards since the last call."""
        rows = torch.cat(self._seen, 1)
        self._seen.clear()
        return rows


class HeadsDrafter(Drafter):
    """Drafts with heads: the candidates of level i are head i's best tokens, whoever their parent is.

    Args:
        model: the base model.
        heads: its heads.
        tree: a :class:`tokops.speculative.Tree`, or rank paths. Nodes deeper than there are heads are left out.
        sample: where the generation is not greedy, draw the candidates of every level without replacement from the
            head's law (under the generation's sampling settings) instead of taking the best ones, and hand the laws
            on, for ``verify="rrs_wo"``. Children of a node are then the first ones drawn, in the order drawn: they
            must have ranks 0, 1, ...

    Raises:
        ValueError: a tree without a node at level 1, or with gaps among the ranks of sampled children.
    """

    wants_hidden = True

    def __init__(self, model: Any, heads: Heads, tree: Any, sample: bool = False):
        self.model, self.heads, self.sample = model, heads, sample
        self.tree = limit_depth(as_tree(tree), heads.config.heads)
        if self.tree.depth < 1:
            raise ValueError("HeadsDrafter: tree must have a node below the root, got the root alone")
        if width_of(self.tree) > model.config.vocab_size:
            raise ValueError(
                f"HeadsDrafter: tree must have ranks below the vocabulary's size {model.config.vocab_size}, got "
                f"{width_of(self.tree) - 1}"
            )
        if sample:
            _refuse_gaps(self.tree)
        self._watch = LastLayerInputs(model) if heads.config.feed == "penultimate" else None
        self._caches: list[list[DraftCache]] = []
        # [n, B, d], of every sequence's last committed position but the root
        self._last: Tensor | None = None

    def begin(self, session: Session, hidden: Sequence[Tensor] | None) -> None:
        if hidden is None:
            raise ValueError("HeadsDrafter: begin needs the hidden states of the prompts, got None")
        self._caches = self.heads.new_caches(session.batch)
        self._last = None
        if self._watch is not None:
            hidden = [
                rows[rows.shape[0] - len(own) :] for rows, own in zip(self._watch.take(), hidden, strict=True)
            ]
        self._absorb(list(hidden))

    @torch.no_grad()
    def propose(self, session: Session) -> Proposal:
        assert self._last is not None, "begin comes before propose"
        sampled = self.sample and not session.sampling.greedy
        # Verification of drawn children wants their laws, even where there is no room for any.
        tree = limit_depth(self.tree, max(deepest_useful(session), int(sampled)))
        if tree.depth < 1:
            return root_alone(session)
        logits = self.heads.logits(self._last, self.model.get_output_embeddings(), tree.depth).transpose(0, 1)
        roots = torch.tensor(session.roots, device=session.device)
        if sampled:
            return self._sampled(session, tree, roots, logits.float())
        tokens = tree_tokens(tree, roots, top_ranked(logits, width_of(tree)))
        parents = torch.tensor(tree.parents, dtype=torch.int32, device=session.device)
        return Proposal(tokens, parents.expand(len(roots), -1), len(tree))

    def commit(self, session: Session, proposal: Proposal, verdict: Verdict) -> None:
        assert verdict.hidden is not None, "the loop gives hidden states to a drafter that wants them"
        states = verdict.hidden if self._watch is None else self._watch.take()
        self._absorb([states[b, kept] for b, kept in enumerate(verdict.kept)])

    def end(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def select(self, rows: list[int]) -> None:
        if self._last is not None:
            self._last = self._last[:, torch.tensor(rows, device=self._last.device, dtype=torch.int64)]
        for caches in self._caches:
            for cache in caches:
                cache.select(rows)

    @torch.no_grad()
    def _absorb(self, rows: list[Tensor]) -> None:
        """Hidden states ``[m, d]`` of newly committed positions per sequence; none where nothing was committed."""
        counts = [len(part) for part in rows]
        new = [b for b, count in enumerate(counts) if count]
        if not new:
            return
        if self.heads.config.arch == "linear":
            fresh = self.heads(torch.stack([rows[b][-1] for b in new])[:, None])[:, :, 0]
        else:
            fresh = self._read(rows, counts)[:, new]
        if self._last is None:
            self._last = fresh.new_zeros(len(fresh), len(rows), fresh.shape[-1])
        self._last[:, new] = fresh

    def _read(self, rows: list[Tensor], counts: list[int]) -> Tensor:
        """Run transformer heads over new positions, some rows at a time; ``[n, B, d]`` of every sequence's last."""
        first = self._caches[0][0]
        device, width = rows[0].device, rows[0].shape[-1]
        last: Tensor | None = None
        for begin in range(0, max(counts), CHUNK):
            sizes = [min(max(count - begin, 0), CHUNK) for count in counts]
            x = torch.zeros(len(rows), max(sizes), width, dtype=rows[0].dtype, device=device)
            for b, size in enumerate(sizes):
                x[b, :size] = rows[b][begin : begin + size]
            positions = torch.tensor(first.lengths, device=device)[:, None]
            positions = positions + torch.arange(max(sizes), device=device)
            causal = torch.ones(1, max(sizes), max(sizes), dtype=torch.bool, device=device).tril()
            out = self.heads(
                x, positions, rotary_of(self.model, x, positions), first.mask(causal), self._caches
            )
            if last is None:
                last = out.new_zeros(out.shape[0], len(rows), width)
            for b, size in enumerate(sizes):
                if size:
                    last[:, b] = out[:, b, size - 1]
            for caches in self._caches:
                for cache in caches:
                    cache.advance(sizes)
        assert last is not None
        return last

    def _sampled(self, session: Session, tree: Tree, roots: Tensor, logits: Tensor) -> Proposal:
        laws = law(logits, **asdict(session.sampling))
        drawn = draw(
            laws,
            width_of(tree),
            seed=session.seed,
            stream=session.streams[:, None],
            position=session.positions[:, None] + torch.arange(tree.depth, device=session.device),
        )
        trees = [_drawn_part(tree, tokens) for tokens in drawn.tolist()]
        tokens = [tree_tokens(part, roots[b : b + 1], drawn[b : b + 1])[0] for b, part in enumerate(trees)]
        draft_rows = [[max(depth - 1, 0) for depth in part.depths] for part in trees]
        return pad_proposal(session, trees, tokens, laws, draft_rows)


def _drawn_part(tree: Tree, tokens: list[list[int]]) -> Tree:
    """The nodes of a tree whose tokens could be drawn, and whose ancestors' could."""
    kept = [0]
    for node in range(1, len(tree)):
        drawn = tokens[tree.depths[node] - 1][tree.ranks[node]] >= 0
        if drawn and tree.parents[node] in kept:
            kept.append(node)
    return keep_nodes(tree, kept)


def _refuse_gaps(tree: Tree) -> None:
    below: dict[int, list[int]] = {}
    for parent, rank in zip(tree.parents[1:], tree.ranks[1:], strict=True):
        below.setdefault(parent, []).append(rank)
    for node, ranks in below.items():
        if ranks != list(range(len(ranks))):
            raise ValueError(
                f"HeadsDrafter: sampled children must have the ranks 0, 1, ... in order, node {node} has {ranks}"
            )


def make_drafter(method: Any, model: Any, context: int = 0) -> Drafter:
    """The drafter of :class:`tokops.methods.ConceptHeads` for a model and prompts of so many tokens."""
    heads, acceptance = trained_draft(method, model, Heads, load_heads)
    tree = method.tree
    if tree is None:
        depth = min(method.depth or heads.config.heads, len(acceptance))
        policy = StaticTree(acceptance=acceptance, nodes=method.nodes, depth=depth, latency=method.latency)
        tree = policy.tree(context)
        if len(tree) == 1:
            return NoDrafter()
    return HeadsDrafter(model, heads, tree, sample=method.mode == "rrs_wo")
