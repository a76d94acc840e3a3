"""Drafters that need no training: prompt lookup, a smaller model, the model's own first layers."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..methods import Dense
from ..sampling import draw, law
from ..speculative import DraftTrust, Eagle2Tree, SuffixIndex, common_size, tree_build
from .decoding import Feed
from .drafting import Drafter, Proposal, Session, Verdict
from .draftshapes import Shape, shape_of_method
from .families import CACHE
from .latency import find_latency

#: What a verifying forward of n rows costs beside one of a single row, where nobody has measured it: a step, and a
#: line of offset and slope above it. On a CPU, small matrices take another path than vectors.
_USUAL_COST = {"cpu": (1.6, 1.25, 0.035), "cuda": (1.0, 1.0, 0.004)}
#: Modes whose children are drawn independently; others draw without replacement.
_INDEPENDENT = ("rrs", "kseq", "chain_block")
#: Weights below it are none to a draw, which counts them in units of it.
_LEAST = 2.0**-40
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def size_curve(method: Any, session: Session, context: int) -> tuple[Tensor, Tensor]:
    """Sizes of a tree and seconds of a step, in any unit, as :func:`tokops.speculative.dynamic_size` takes them."""
    table = method.latency or find_latency(session.model, session.batch)
    if table is not None:
        return table.curve(context, most=method.nodes)
    step, offset, slope = _USUAL_COST.get(session.device.type, (1.0, 1.0, 0.01))
    sizes = torch.tensor([*[n for n in _SIZES if n < method.nodes], method.nodes])
    rows = session.batch * sizes.double()
    return sizes, torch.where(rows > 1, (offset + slope * rows).clamp_min(step), 1.0)


class NoDrafter(Drafter):
    """Proposes nothing: plain decoding in the same loop, under the same random numbers."""

    def propose(self, session: Session) -> Proposal:
        roots = torch.tensor(session.roots, dtype=torch.int32, device=session.device)
        return Proposal(roots[:, None], torch.full_like(roots, -1)[:, None], 1)


class LookupDrafter(Drafter):
    """What followed earlier occurrences of the last tokens, as a tree cut where it no longer pays."""

    def __init__(self, method: Any, session: Session):
        self._method = method
        self._index = SuffixIndex(session.batch)
        self._trust = DraftTrust(session.batch)
        self._known = [0] * session.batch
        self._curve: tuple[np.ndarray, np.ndarray] | None = None

    def _learn(self, session):
        """Append the tokens that the index lacks."""
        new = [tokens[known:] for tokens, known in zip(session.tokens, self._known, strict=True)]
        width = max(map(len, new))
        if not width:
            return
        padded = torch.tensor([row + [0] * (width - len(row)) for row in new], dtype=torch.int32)
        self._index.append(padded, torch.tensor([len(row) for row in new], dtype=torch.int32))
        self._known = [len(tokens) for tokens in session.tokens]

    def propose(self, session: Session) -> Proposal:
        self._learn(session)
        method = self._method
        room = max((room for room, on in zip(session.room, session.active, strict=True) if on), default=1)
        depth = min(method.depth or 16, room - 1)
        tokens, parents, n_nodes, weights = self._index.weighed_draft(
            method.nodes, depth, method.min_match, method.max_match, 8
        )
        if self._curve is None:
            sizes, seconds = size_curve(method, session, max(map(len, session.tokens)))
            self._curve = sizes.cpu().numpy(), seconds.cpu().numpy()
        live = np.asarray(session.active)
        there = np.where(live, n_nodes.numpy(), 1)
        gains = self._trust.believed(weights.numpy()[:, 1:])[live]
        size = max(1, min(common_size(gains, *self._curve), int(there.max())))
        counts = torch.from_numpy(np.minimum(there, size).astype(np.int32))
        return Proposal(
            tokens[:, :size].to(session.device),
            parents[:, :size].to(session.device),
            size,
            counts.to(session.device),
            memo=(weights, tokens, parents) if size > 1 else None,
        )

    def commit(self, session: Session, proposal: Proposal, verdict: Verdict) -> None:
        if proposal.memo is None:
            return
        weights, tokens, parents = (x[:, : proposal.nodes].tolist() for x in proposal.memo)
        for b, (kept, given) in enumerate(zip(verdict.kept, verdict.tokens, strict=True)):
            # A store without room for more tokens cuts the path: then the last token given is a node's.
            ends = [t for t, parent in zip(tokens[b], parents[b], strict=True) if kept and parent == kept[-1]]
            self._trust.update(b, weights[b], parents[b], kept, cut=bool(given) and given[-1] in ends)

    def select(self, rows: list[int]) -> None:
        self._index.select(rows)
        self._trust.select(rows)
        self._known = [self._known[row] for row in rows]


class ModelDrafter(Drafter):
    """A smaller model drafts a tree, one forward per level, over a cache of its own.

    Children are the model's most likely tokens where the verification takes any, and are drawn where it wants to know
    how: i.i.d. (``rrs``, ``kseq``, ``chain_block``), without replacement (``rrs_wo``, ``lantern``), or all but one
    most likely (``greedy_plus_one``).

    Args:
        model: the model that drafts; it is patched while the generation runs.
        method: how, see :class:`tokops.methods.Speculate`.
        session: the generation.
    """

    def __init__(self, model: Any, method: Any, session: Session):
        from .patching import patch

        theirs, ours = model.config.vocab_size, session.model.config.vocab_size
        if theirs != ours:
            raise ValueError(
                f"{type(method).__name__}: the drafting model has a vocabulary of {theirs}, the model one of {ours}: "
                "they must share a tokenizer"
            )
        if model is session.model:
            raise ValueError(
                f"{type(method).__name__}: a model cannot draft for itself: use draft='early_exit'"
            )
        self._method, self._model = method, model
        self._dynamic = method.tree if isinstance(method.tree, Eagle2Tree) else None
        self._shape = None if self._dynamic else shape_of_method(method)
        self._run = patch(model, Dense())
        self._cache: Any = None
        self._starts: Tensor | None = None

    def end(self) -> None:
        self._run.undo()

    def begin(self, session: Session, hidden: Any) -> None:
        prompts = [tokens[:-1] for tokens in session.tokens]
        width = max(map(len, prompts))
        self._cache = self._run.new_cache(width)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=session.device)
        mask = None
        if any(len(row) < width for row in prompts):
            starts = torch.tensor([width - len(row) for row in prompts], device=session.device)
            mask = (torch.arange(width, device=session.device) >= starts[:, None]).long()
            self._starts = starts.int()
        if width:
            Feed(self._model, self._cache, mask, ids)(ids, 0, width)

    # ---- Forwards of the drafting model.

    def _forward(self, ids: Tensor, tree: Any) -> Tensor:
        """Logits ``[B, T, V]`` of rows behind what is cached."""
        lengths = torch.tensor(self._cache.lengths, device=ids.device)[:, None]
        if self._starts is not None:
            lengths = lengths - self._starts[:, None]
        depth = torch.arange(ids.shape[1], device=ids.device)[None] if tree is None else tree.depth
        self._cache.draft(*((None, None) if tree is None else (tree.ancestors, tree.depth)), self._starts)
        out = self._model(
            input_ids=ids.long(),
            attention_mask=None,
            position_ids=lengths + depth,
            use_cache=True,
            **{CACHE: self._cache},
        )
        return out.logits

    def _catch_up(self, session: Session) -> Tensor:
        """Read the tokens that are new since the last step; logits ``[B, V]`` behind the last of them."""
        padding = [0] * session.batch if self._starts is None else self._starts.tolist()
        known = [n - start for n, start in zip(self._cache.lengths, padding, strict=True)]
        new = [tokens[n:] for tokens, n in zip(session.tokens, known, strict=True)]
        width = max(map(len, new))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in new], device=session.device)
        logits = self._forward(ids, None)
        self._cache.keep(None, [len(row) for row in new])
        last = torch.tensor([max(len(row) - 1, 0) for row in new], device=session.device)
        return logits[torch.arange(session.batch, device=session.device), last]

    # ---- Proposals.

    def propose(self, session: Session) -> Proposal:
        logits = self._catch_up(session)
        room = max((room for room, on in zip(session.room, session.active, strict=True) if on), default=1)
        if self._dynamic is not None:
            return self._expand(session, logits, self._dynamic, room - 1)
        assert self._shape is not None, "static or dynamic"
        return self._fill(session, logits, self._shape.until(room - 1))

    def _fill(self, session: Session, logits: Tensor, shape: Shape) -> Proposal:
        """A static tree, level by level."""
        batch, device = session.batch, session.device
        tokens = torch.zeros(batch, len(shape), dtype=torch.int32, device=device)
        tokens[:, 0] = torch.tensor(session.roots, dtype=torch.int32, device=device)
        parents = torch.tensor([shape.parents] * batch, dtype=torch.int32, device=device)
        laws, rows = [], torch.zeros_like(tokens)
        at = {0: logits}  # logits of the nodes of the level above
        drawn = self._method.drawn and not session.sampling.greedy
        for level, nodes in enumerate(shape.levels[:-1]):
            if level:
                at = self._level(tokens, shape, nodes, level)
            for node in nodes:
                children = shape.children[node]
                if not children:
                    continue
                if drawn:
                    laws.append(self._law(session, at[node]))
                    rows[:, children] = len(laws) - 1
                    found = self._draw(session, laws[-1], level, node, children, shape)
                else:
                    found = _likeliest(at[node], len(children))
                tokens[:, children] = found.clamp_min(0)
                parents[:, children] = torch.where(found < 0, -1, parents[:, children])
        # A sequence's tree ends where its own text must, so that no other sequence changes its tokens.
        ends = torch.tensor(session.room, device=device)[:, None]
        parents[:, 1:][torch.tensor(shape.depth[1:], device=device) >= ends] = -1
        parents = _without_orphans(parents)
        if not laws:
            return Proposal(tokens, parents, len(shape))
        return Proposal(tokens, parents, len(shape), None, torch.stack(laws, 1), rows)

    def _level(self, tokens, shape, nodes, level) -> dict[int, Tensor]:
        """Logits of the nodes of one level; all levels so far run again, under their mask."""
        end = nodes[-1] + 1
        forest = [parent - 1 if parent > 0 else -1 for parent in shape.parents[1:end]]
        tree = tree_build(torch.tensor([forest] * len(tokens), dtype=torch.int32, device=tokens.device))
        logits = self._forward(tokens[:, 1:end], tree)
        self._cache.keep(None, [0] * len(tokens))
        return {node: logits[:, node - 1] for node in nodes}

    @staticmethod
    def _law(session: Session, logits: Tensor) -> Tensor:
        s = session.sampling
        return law(logits, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, min_p=s.min_p)

    def _draw(self, session, p, level, node, children, shape) -> Tensor:
        """Children ``[B, k]`` of a node by the mode's rule; -1 where the law has no more tokens."""
        mode, count = self._method.mode, len(children)
        numbers = {"seed": session.seed, "stream": session.streams, "position": session.positions + level}
        if mode == "greedy_plus_one":
            top = _likeliest(p, count - 1)
            there = top.long().clamp_min(0)
            rest = p.scatter(1, there, 0.0) if count > 1 else p
            # Without anything left to draw the last of these is the sure one, so that none may be impossible.
            top = torch.where(p.gather(1, there) < _LEAST, -1, top)
            return torch.cat([top, draw(rest, 1, **numbers)], 1)
        if mode == "kseq" and level:  # the slot is the ordinal of the draft
            ordinal = shape.ordinal(node)
            return draw(p, ordinal + 1, replace=True, **numbers)[:, ordinal:]
        return draw(p, count, replace=mode in _INDEPENDENT, **numbers)

    def _expand(self, session: Session, logits: Tensor, policy: Eagle2Tree, depth: int) -> Proposal:
        """EAGLE-2: level by level the likeliest nodes are expanded, and of all nodes the likeliest are kept."""
        roots = torch.tensor(session.roots, dtype=torch.int32, device=session.device)
        if depth < 1:
            return Proposal(roots[:, None], torch.full_like(roots, -1)[:, None], 1)
        pool = policy.pool(roots)
        self._add(pool, logits[:, None])
        ids = parents = tokens = roots.new_empty(len(roots), 0)  # of the nodes that were expanded
        for _ in range(min(policy.expansions, depth - 1)):
            front = pool.frontier
            there = front.long().clamp_min(0)
            above = pool.parents.gather(1, there)
            same = (ids[:, None] == above[..., None]) & (above >= 0)[..., None] & (front >= 0)[..., None]
            place = same.int().argmax(-1) if ids.shape[1] else torch.zeros_like(front)
            parents = torch.cat([parents, torch.where(same.any(-1), place, -1).int()], 1)
            tokens = torch.cat([tokens, pool.tokens.gather(1, there)], 1)
            ids = torch.cat([ids, front], 1)
            rows = self._forward(tokens, tree_build(parents))
            self._cache.keep(None, [0] * len(roots))
            self._add(pool, rows[:, -front.shape[1] :])
        tokens, parents, counts = policy.tree(
            pool, policy.curve(max(map(len, session.tokens)), session.device)
        )
        return Proposal(tokens, parents, tokens.shape[1], counts)

    @staticmethod
    def _add(pool, logits):
        best = torch.log_softmax(logits.float(), -1).topk(min(pool.branch, logits.shape[-1]))
        pool.expand(best.indices.int(), best.values)

    def commit(self, session: Session, proposal: Proposal, verdict: Verdict) -> None:
        """The next proposal reads what is new."""

    def select(self, rows: list[int]) -> None:
        self._cache.batch_select_indices(torch.tensor(rows))
        if self._starts is not None:
            self._starts = self._starts[rows]


def _likeliest(scores: Tensor, count: int) -> Tensor:
    """Tokens ``[B, count]`` int32 with the highest scores, the best first; -1 where the vocabulary has no more."""
    found = scores.topk(min(count, scores.shape[-1])).indices.int()
    return torch.nn.functional.pad(found, (0, count - found.shape[1]), value=-1)


def _without_orphans(parents: Tensor) -> Tensor:
    """What hangs under padding is padding."""
    for i in range(1, parents.shape[1]):
        above = parents[:, i].long().clamp_min(0)
        lost = (above > 0) & (parents.gather(1, above[:, None])[:, 0] < 0)
        parents[:, i] = torch.where(lost, -1, parents[:, i])
    return parents


def shallow(model: Any, layers: int) -> Any:
    """The first layers of a model with its norm and head, over the same weights.

    Raises:
        ValueError: more layers than there are, or fewer than one.
    """
    most = model.config.num_hidden_layers
    if not 1 <= layers < most:
        raise ValueError(f"early exit: exit_layer must be 1..{most - 1}, got {layers}")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config._attn_implementation = "eager"  # every family has it, and drafting replaces it
    with torch.device("meta"):
        twin = type(model)(config)
    own = twin.state_dict()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if k in own}, assign=True)
    twin.tie_weights()
    for name, buffer in model.named_buffers():
        module, _, leaf = name.rpartition(".")
        if module in dict(twin.named_modules()):
            twin.get_submodule(module)._buffers[leaf] = buffer
    return twin.eval().requires_grad_(False)


def make_drafter(method: Any, session: Session) -> Drafter:
    """The drafter that a method asks for."""
    own = method.drafter(session.model, max(map(len, session.tokens)))
    if own is not None:
        return own
    if method.draft == "prompt_lookup":
        return LookupDrafter(method, session)
    if method.draft == "none" or method.nodes == 1:
        return NoDrafter()
    if method.draft == "early_exit":
        layers = method.exit_layer
        if layers is None:
            layers = max(1, session.model.config.num_hidden_layers // 3)
        return ModelDrafter(shallow(session.model, layers), method, session)
    return ModelDrafter(method.draft, method, session)
