"""The Falcon drafter: a decoder layer that reads blocks of (feature, next token) pairs and emits k features at once."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..speculative.falcon_trees import falcon_tables
from ..speculative.policies import FalconTree
from ..speculative.trees import Tree
from .drafters import NoDrafter
from .draftfiles import Saved, load_drafter, save_drafter, trained_draft
from .drafting import Drafter, Proposal, Session, Verdict
from .draftlayers import (
    CHUNK,
    DraftCache,
    new_layer,
    relaxed_causal_mask,
    rotary_of,
    run_layer,
    top_ranked,
)
from .families import shape_of
from .proposals import as_tree, deepest_useful, limit_depth, root_alone, width_of

__all__ = ["TOPK", "Blocks", "FalconDrafter", "FalconModule", "load_falcon", "make_drafter"]

#: Candidates per row, as in the paper.
TOPK = 20
_REDUCERS = ("token_mlp", "lstm")
#: Reducer states ``(h, c)``, each ``[layers, rows, d]``.
State = tuple[Tensor, Tensor]


class FalconModule(nn.Module):
    """What is trained of a Falcon drafter; embedding and unembedding are the base model's, and frozen.

    Pairs ``(f_i, embed(t_{i+1}))`` go through a reducer from 2d to d numbers, then through a decoder layer without
    input norm under :func:`tokops.hf.draftlayers.relaxed_causal_mask`. The output of row i is the feature
    ``f_{i+k}``, whose unembedding gives token ``t_{i+k+1}``. k = 1 is an EAGLE-1 drafter.

    Args:
        model: the base model; it is not kept.
        block: k, features per pass.
        reducer: ``token_mlp`` runs the two LSTM layers over every pair for itself, from state 0, as a gated
            perceptron (what the published code comes to); ``lstm`` lets them recur over the pairs of a sequence,
            and over those of a path in a tree. Both have the same parameters.

    Raises:
        ValueError: block < 1 or an unknown reducer.
    """

    def __init__(self, model: Any, block: int = 2, reducer: str = "token_mlp"):
        super().__init__()
        if block < 1:
            raise ValueError(f"FalconModule: block must be at least 1, got {block}")
        if reducer not in _REDUCERS:
            raise ValueError(f"FalconModule: reducer must be {' or '.join(_REDUCERS)}, got {reducer!r}")
        self.block, self.reducer = block, reducer
        width = shape_of(model.config).hidden
        self.lstm = nn.LSTM(2 * width, width, num_layers=2, batch_first=True)
        self.layer = new_layer(model)
        self.layer.register_module("input_layernorm", nn.Identity())

    def reduce(self, features: Tensor, embeds: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Pairs ``[B, T, d]`` and ``[B, T, d]`` to ``[B, T, d]``, and the state after them.

        Args:
            state: ``[2, B, d]`` each, for ``lstm``; None is 0. ``token_mlp`` neither reads nor changes it.
        """
        x = torch.cat([embeds, features], -1).to(next(self.lstm.parameters()).dtype)
        if self.reducer == "lstm":
            return self.lstm(x, state)
        batch, rows, _ = x.shape
        out, _ = self.lstm(x.reshape(batch * rows, 1, -1))
        return out.reshape(batch, rows, -1), state or self.zero_state(batch)

    def zero_state(self, batch: int) -> State:
        """The state before a sequence."""
        zero = next(self.lstm.parameters()).new_zeros(2, batch, self.lstm.hidden_size)
        return zero, zero

    def forward(self, features: Tensor, embeds: Tensor, rotary: tuple) -> Tensor:
        """Features k places ahead, for training: blocks are counted from the last pair.

        Args:
            features: ``[B, T, d]``, f_i.
            embeds: ``[B, T, d]``, of t_{i+1}.
            rotary: of positions 0..T-1.

        Returns:
            ``[B, T, d]``; row i is what f_{i+k} is taken for.
        """
        x, _ = self.reduce(features, embeds)
        mask = relaxed_causal_mask(x.shape[1], self.block).to(x.device)[None, None]
        positions = torch.arange(x.shape[1], device=x.device)[None]
        return run_layer(self.layer, x, positions, rotary, mask)

    def save(
        self, folder: str | os.PathLike, model: Any, acceptance: Any = None, training: dict | None = None
    ) -> None:
        """Write it into a folder, for :func:`load_falcon`."""
        settings = {"block": self.block, "reducer": self.reducer}
        digest = shape_of(model.config).digest
        save_drafter(folder, Saved("falcon", digest, settings, self.state_dict(), acceptance, training or {}))


def load_falcon(folder: str | os.PathLike, model: Any) -> tuple[FalconModule, list[list[float]] | None]:
    """A drafter that ``tokops train-draft falcon`` or :meth:`FalconModule.save` wrote, and its acceptance table.

    Raises:
        FileNotFoundError, ValueError: see :func:`tokops.hf.draftfiles.load_drafter`.
    """
    saved = load_drafter(folder, "falcon", shape_of(model.config).digest)
    module = FalconModule(model, **saved.settings)
    module.load_state_dict(saved.tensors)
    return module.to(model.device, model.dtype).eval(), saved.acceptance


class Blocks:
    """Drafting by blocks after growing sequences: the committed pairs' keys and values, and passes over groups.

    Pair j of a sequence with tokens t_0..t_n is ``(f_j, t_{j+1})``; there are n. Keys and values of a pair do not
    depend on the mask, so they are kept whatever blocks it was in. Blocks are counted from the last pair: the first
    pass of a tree always ends with the k last pairs as one block. Where fewer than k are new, the ones before them
    are fed again, from features that were kept.

    Args:
        model: the base model.
        module: its drafter.
        batch: sequences.
    """

    def __init__(self, model: Any, module: FalconModule, batch: int):
        self.model, self.module = model, module
        self.embed = model.get_input_embeddings()
        self.cache = DraftCache(batch)
        self._fed = [0] * batch  # pairs whose keys and values the cache holds
        self._features: list[Tensor] = []  # of the last pairs: the k last ones and all that are not fed
        self._begins: list[int] | None = None  # of every sequence, the first token that there are features of
        self._states: list[list[State]] = [
            [] for _ in range(batch)
        ]  # before each of the k last pairs, and after

    def extend(self, features: Sequence[Tensor]) -> None:
        """New features ``[m, d]`` per sequence, of the tokens that were committed; m may be 0."""
        if not self._features:
            self._features = list(features)
            return
        pairs = zip(self._features, features, strict=True)
        self._features = [torch.cat([held, new]) if len(new) else held for held, new in pairs]

    def select(self, rows: list[int]) -> None:
        """Keep some sequences, in the order given."""
        self.cache.select(rows)
        self._fed = [self._fed[row] for row in rows]
        self._features = [self._features[row] for row in rows]
        self._states = [self._states[row] for row in rows]
        if self._begins is not None:
            self._begins = [self._begins[row] for row in rows]

    def first(self, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """Pass 0.

        Args:
            tokens: per sequence, t_0..t_n, n at least k. Tokens without features, which a cache has held from the
                start, are left out.

        Returns:
            ``[B, k, d]``: row r of 1..k is the feature of the token at depth r - 1, whose unembedding names the
            candidates of depth r. And the reducer's state after the last pair, ``[2, B, d]`` each.
        """
        k, device = self.module.block, self._features[0].device
        if self._begins is None:
            self._begins = [
                len(text) - 1 - len(features) for text, features in zip(tokens, self._features, strict=True)
            ]
        tokens = [text[begin:] for text, begin in zip(tokens, self._begins, strict=True)]
        pairs = [len(text) - 1 for text in tokens]
        begins = [max(min(fed, n - k), 0) for fed, n in zip(self._fed, pairs, strict=True)]
        rows = []
        for b, (begin, n) in enumerate(zip(begins, pairs, strict=True)):
            if n < k:
                rows.append(self._features[b].new_zeros(k, self._features[b].shape[-1]))
                self._states[b] = [self.module.zero_state(1)] * (k + 1)
                continue
            following = torch.tensor(tokens[b][begin + 1 :], device=device)
            features = self._features[b][len(self._features[b]) - (n - begin) :]
            rows.append(self._reduced(b, features, self.embed(following), self._fed[b] - begin))
        self.cache.truncate(begins)
        out = self._read(rows)
        for b, n in enumerate(pairs):
            if n >= k:
                self._fed[b], self._features[b] = n, self._features[b][-k:].clone()
        last = [states[-1] for states in self._states]
        return out, (torch.cat([h for h, _ in last], 1), torch.cat([c for _, c in last], 1))

    def next(self, tokens: Tensor, features: Tensor, state: State, ancestors: Tensor) -> tuple[Tensor, State]:
        """A pass over the groups of one level.

        Args:
            tokens: ``[B, G, k]`` ids: the last k tokens of every group's path.
            features: ``[B, G, k, d]``, the outputs of the groups' parents.
            state: ``[2, B * G, d]`` each, of the groups' parents.
            ancestors: bool ``[G, P + G]``: which of the P groups of the passes before, and of this one, a group
                sees; itself is one.

        Returns:
            ``[B, G, k, d]`` and the states after the groups.
        """
        batch, groups, k = tokens.shape
        flat = features.reshape(batch * groups, k, -1)
        x, state = self.module.reduce(flat, self.embed(tokens.reshape(batch * groups, k)), state)
        x = x.reshape(batch, groups * k, -1)
        among = ancestors.repeat_interleave(k, 0).repeat_interleave(k, 1)[None]
        offsets = (ancestors.sum(1, keepdim=True) - 1) * k + torch.arange(k)
        out = self._pass(x, among, offsets.flatten().to(x.device))
        self.cache.staged += groups * k
        return out.reshape(batch, groups, k, -1), state

    def done(self) -> None:
        """Forget the passes over groups."""
        self.cache.staged = 0

    def _pass(self, x: Tensor, among: Tensor, offsets: Tensor | None = None) -> Tensor:
        offsets = torch.arange(x.shape[1], device=x.device) if offsets is None else offsets
        positions = torch.tensor(self.cache.lengths, device=x.device)[:, None] + offsets
        mask = self.cache.mask(among.to(x.device))
        return run_layer(
            self.module.layer, x, positions, rotary_of(self.model, x, positions), mask, self.cache
        )

    def _read(self, rows: list[Tensor]) -> Tensor:
        """Put reduced pairs ``[T, d]`` of every sequence into the cache; the last k outputs of each, ``[B, k, d]``."""
        k, device = self.module.block, rows[0].device
        while max(len(x) for x in rows) > CHUNK:
            # Of all but the last rows only keys and values are wanted, which depend on no mask.
            sizes = [min(max(len(x) - CHUNK // 2, 0), CHUNK) for x in rows]
            heads = [x[:size] for x, size in zip(rows, sizes, strict=True)]
            causal = torch.ones(1, max(sizes), max(sizes), dtype=torch.bool, device=device).tril()
            self._pass(nn.utils.rnn.pad_sequence(heads, batch_first=True), causal)
            self.cache.advance(sizes)
            rows = [x[size:] for x, size in zip(rows, sizes, strict=True)]
        sizes = [len(x) for x in rows]
        among = torch.eye(max(sizes), dtype=torch.bool, device=device).repeat(len(rows), 1, 1)
        for seen, size in zip(among, sizes, strict=True):
            seen[:size, :size] = relaxed_causal_mask(size, k)
        out = self._pass(nn.utils.rnn.pad_sequence(rows, batch_first=True), among)
        self.cache.advance(sizes)
        return torch.stack([out[b, size - k : size] for b, size in enumerate(sizes)])

    def _reduced(self, b: int, features: Tensor, embeds: Tensor, again: int) -> Tensor:
        """Reduce pairs of one sequence, of which ``again`` were fed before; ``[T, d]``.

        Keeps the states before each of the k last pairs and after them: the next pairs begin at one of those.
        """
        module, k, held = self.module, self.module.block, self._states[b]
        if module.reducer != "lstm":
            self._states[b] = [module.zero_state(1)]
            return module.reduce(features[None], embeds[None])[0][0]
        state = held[len(held) - 1 - again] if self._fed[b] else module.zero_state(1)
        parts, cut = [], len(features) - k
        if cut:
            out, state = module.reduce(features[None, :cut], embeds[None, :cut], state)
            parts.append(out)
        self._states[b] = [state]
        for row in range(cut, len(features)):
            out, state = module.reduce(features[None, row : row + 1], embeds[None, row : row + 1], state)
            parts.append(out)
            self._states[b].append(state)
        return torch.cat(parts, 1)[0]


class FalconDrafter(Drafter):
    """Drafts with a semi-autoregressive layer (Gao et al., AAAI 2025): a tree of depth m k in m passes.

    Within a block the candidates of a depth are the same under every parent; across blocks they depend on the path.
    Features of committed tokens are kept, so that the base model never reads them twice. A sequence of fewer than k
    tokens before its root has no block yet: zeros stand in, and its drafts are worth nothing.

    Children of a node are its row's best candidates, deterministic given the past: any lossless verification of
    such trees keeps the law, whatever the weights are.

    Args:
        model: the base model.
        module: its drafter.
        tree: a :class:`tokops.speculative.Tree`, or rank paths; ranks below :data:`TOPK`.

    Raises:
        ValueError: a tree without a node below its root, or with a rank too high.
    """

    wants_hidden = True

    def __init__(self, model: Any, module: FalconModule, tree: Any):
        self.model, self.module = model, module
        self.tree = as_tree(tree)
        most = min(TOPK, model.config.vocab_size)
        if self.tree.depth < 1 or width_of(self.tree) > most:
            raise ValueError(
                f"FalconDrafter: tree must have nodes below the root, of ranks 0..{most - 1}, got depth "
                f"{self.tree.depth} and ranks up to {width_of(self.tree) - 1}"
            )
        self._blocks: Blocks | None = None

    def begin(self, session: Session, hidden: Sequence[Tensor] | None) -> None:
        if hidden is None:
            raise ValueError("FalconDrafter: begin needs the hidden states of the prompts, got None")
        self._blocks = Blocks(self.model, self.module, session.batch)
        self._blocks.extend(hidden)

    @torch.no_grad()
    def propose(self, session: Session) -> Proposal:
        assert self._blocks is not None, "begin comes before propose"
        tree = limit_depth(self.tree, deepest_useful(session))
        if tree.depth < 1:
            return root_alone(session)
        tokens = self._draft(session, tree)
        parents = torch.tensor(tree.parents, dtype=torch.int32, device=session.device)
        return Proposal(tokens, parents.expand(session.batch, -1), len(tree))

    def commit(self, session: Session, proposal: Proposal, verdict: Verdict) -> None:
        assert self._blocks is not None, "begin comes before commit"
        assert verdict.hidden is not None, "the loop gives hidden states to a drafter that wants them"
        self._blocks.extend([verdict.hidden[b, kept] for b, kept in enumerate(verdict.kept)])

    def select(self, rows: list[int]) -> None:
        if self._blocks is not None:
            self._blocks.select(rows)

    def _draft(self, session: Session, tree: Tree) -> Tensor:
        """All passes; ``[B, N]`` int32 tokens."""
        assert self._blocks is not None, "begin comes before propose"
        device, batch, width = session.device, session.batch, width_of(tree)
        unembed = self.model.get_output_embeddings()
        tokens = torch.zeros(batch, len(tree), dtype=torch.int64, device=device)
        tokens[:, 0] = torch.tensor(session.roots, device=device)
        seen = torch.zeros(1, 0, dtype=torch.bool, device=device)
        hidden, state = torch.empty(0), (torch.empty(0), torch.empty(0))
        for number, level in enumerate(_tables(tree, self.module.block).levels):
            nodes, group, row, rank, parents, path = (
                torch.from_numpy(x).long().to(device)
                for x in (level.nodes, level.group, level.row, level.rank, level.parents, level.path)
            )
            if number == 0:
                first, state = self._blocks.first(session.tokens)
                hidden = first[:, None]
            else:
                own = torch.eye(len(parents), dtype=torch.bool, device=device)
                seen = torch.cat([seen[parents], own], 1)
                hidden, state = self._blocks.next(
                    tokens[:, path], hidden[:, parents], _of_groups(state, batch, parents), seen
                )
            tokens[:, nodes] = top_ranked(unembed(hidden), width)[:, group, row, rank]
        self._blocks.done()
        return tokens.int()


#: Of a static tree and its cuts.
_tables = functools.lru_cache(maxsize=64)(falcon_tables)


def _of_groups(state: State, batch: int, groups: Tensor) -> State:
    """The states ``[2, B * G, d]`` of some groups out of those of all groups of a level."""
    h, c = (x.reshape(2, batch, -1, x.shape[-1])[:, :, groups].flatten(1, 2) for x in state)
    return h, c


def make_drafter(method: Any, model: Any, context: int = 0) -> Drafter:
    """The drafter of :class:`tokops.methods.Falcon` for a model and prompts of so many tokens."""
    module, acceptance = trained_draft(method, model, FalconModule, load_falcon)
    if method.tree is not None:
        return FalconDrafter(model, module, method.tree)
    policy = FalconTree(
        block=module.block,
        acceptance=acceptance,
        nodes=method.nodes,
        depth=method.depth,
        groups=method.groups,
        latency=method.latency,
        draft_seconds=method.draft_seconds,
    )
    tree = policy.tables(context).tree
    return NoDrafter() if len(tree) == 1 else FalconDrafter(model, module, tree)
