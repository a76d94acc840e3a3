"""Which layers should select: overlap of what layers attend to, recorded while the model decodes densely."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..attention import topk_positions
from ..methods import LayerReader, Method, ModelShape, Step, TidalDecode, _calibration
from .families import CACHE, shape_of
from .patching import patch

Progress = Callable[[int, int], None]


@dataclasses.dataclass
class Overlap:
    """How well tokens chosen at one layer serve another, averaged over heads and decoded tokens.

    Args:
        overlap: ``[N, N]`` share of layer l's top-k that is in layer a's (the paper's metric), at ``[a, l]``.
        mass: ``[N, N]`` softmax mass of layer l on layer a's top-k, at ``[a, l]``.
        tokens: decoded tokens behind the averages.
        layers: full-attention layers, the only ones that select or read selections.
    """

    overlap: Tensor
    mass: Tensor
    tokens: int
    layers: tuple[int, ...]

    def recall(self, chain: Sequence[int], metric: str = "mass") -> float:
        """Mean over the layers that read a selection of how well it serves them.

        Args:
            chain: selecting layers, ascending; each serves the layers up to the next.
            metric: ``mass`` or ``overlap``.
        """
        table = getattr(self, metric)
        total, count = 0.0, 0
        for layer in self.layers:
            if layer > chain[0] and layer not in chain:
                total += float(table[max(a for a in chain if a < layer), layer])
                count += 1
        return total / max(count, 1)

    def best_chain(self, select_layer: int = 2, again: int = 1, metric: str = "mass") -> tuple[int, ...]:
        """The chain of 1 + ``again`` selecting layers with the largest sum of served layers, by dynamic programming."""
        table = getattr(self, metric)
        layers = [layer for layer in self.layers if layer >= select_layer]
        if again >= len(layers) or layers[0] != select_layer:
            raise ValueError(
                f"no chain of {again + 1} selecting layers from layer {select_layer} among {self.layers}"
            )

        def served(a, b):
            return sum(float(table[a, layer]) for layer in layers if a < layer < b)

        end = layers[-1] + 1
        # By selecting layer: what it and those after it serve, and who they are.
        best: dict[int, tuple[float, tuple[int, ...]]] = {a: (served(a, end), (a,)) for a in layers}
        for _ in range(again):
            best = {
                a: max(((served(a, b) + value, (a, *rest)) for b, (value, rest) in best.items() if b > a),
                       key=lambda x: x[0])
                for a in layers if any(b > a for b in best)
            }  # fmt: skip
        return best[select_layer][1]

    def ranking(self, select_layer: int = 2, metric: str = "mass") -> list[tuple[int, float]]:
        """Reselection layers with their recall, best first."""
        rows = [(r, self.recall((select_layer, r), metric)) for r in self.layers if r > select_layer]
        return sorted(rows, key=lambda row: -row[1])


@dataclasses.dataclass(frozen=True, eq=False)
class _Record(Method):
    """Reads everything and adds up, per forward, how layers' choices serve each other."""

    slots: ClassVar[tuple[str, ...]] = ("select",)

    shape: ModelShape
    budget: int
    reduce: str
    sums: dict = dataclasses.field(default_factory=dict)

    def select(self, reader: LayerReader, step: Step):
        scores = reader.decode_scores("none")[:, -1]  # [B, Hq, L]
        mass = torch.softmax(scores, -1).unflatten(1, (reader.kv_heads, -1))  # [B, Hkv, G, L]
        shared = mass if self.reduce == "soft_max" else scores.unflatten(1, (reader.kv_heads, -1))
        positions, counts = topk_positions(shared.amax(2).contiguous(), None, self.budget)
        chosen = torch.zeros(*mass.shape[:2], reader.length + 1, device=scores.device)
        chosen.scatter_(-1, positions.masked_fill(positions < 0, reader.length).long(), 1.0)
        step.memo[reader.layer] = (chosen[..., :-1], mass, counts)
        if reader.layer == self.shape.full_layers[-1]:
            self._add(step)

    def _add(self, step):
        layers = self.shape.full_layers
        chosen = torch.stack([step.memo[layer][0] for layer in layers])  # [N, B, Hkv, L]
        mass = torch.stack([step.memo[layer][1] for layer in layers])  # [N, B, Hkv, G, L]
        size = step.memo[layers[0]][2].float()  # [B, Hkv]
        overlap = torch.einsum("abhj,lbhj,bh->al", chosen, chosen, 1 / size) / size.numel()
        covered = torch.einsum("abhj,lbhgj->al", chosen, mass) / mass[0, ..., 0].numel()
        for name, value in (("overlap", overlap), ("mass", covered), ("tokens", torch.ones(()))):
            self.sums[name] = self.sums.get(name, 0.0) + value.double().cpu()

    def result(self) -> Overlap:
        tokens = int(self.sums["tokens"])
        tables = []
        for name in ("overlap", "mass"):
            table = torch.zeros(self.shape.layers, self.shape.layers, dtype=torch.float64)
            index = torch.tensor(self.shape.full_layers)
            table[index[:, None], index] = self.sums[name] / tokens
            tables.append(table)
        return Overlap(tables[0], tables[1], tokens, self.shape.full_layers)


@torch.no_grad()
def record_overlap(
    model,
    prompts: Iterable[Tensor],
    *,
    budget: int = 256,
    steps: int = 8,
    reduce: str = "soft_max",
    progress: Progress | None = None,
) -> Overlap:
    """Decode densely and measure how layers' choices serve each other.

    Args:
        model: an unpatched model of a supported family.
        prompts: token ids ``[1, L]`` or ``[L]``; of each the last ``steps`` tokens are decoded one by one.
        budget: positions per list (one list per KV head). Prompts should be several times longer.
        steps: tokens decoded per prompt.
        reduce: as in :class:`tokops.methods.TidalDecode`.
        progress: called with (tokens done, tokens in all).

    Raises:
        ValueError: no prompt, or one that the budget covers, which would tell nothing.
    """
    prompts = [p.view(1, -1).to(model.device) for p in prompts]
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    shortest = min(p.shape[1] for p in prompts)
    if shortest - steps <= budget:
        raise ValueError(
            f"calibration needs prompts longer than budget + steps = {budget + steps} tokens, "
            f"the shortest has {shortest}"
        )
    recorder = _Record(shape_of(model.config), budget, reduce)
    with patch(model, recorder) as run:
        for index, ids in enumerate(prompts):
            before, total = index * steps, len(prompts) * steps
            _teacher_forced(model, run, ids, steps, progress and partial(_advance, progress, before, total))
    return recorder.result()


def _advance(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _teacher_forced(model, run, ids, steps, progress=None):
    """Logits ``[steps, vocab]`` of the last ``steps`` tokens, decoded one by one after a dense prompt."""
    cache = run.new_cache()
    model(input_ids=ids[:, :-steps], **{CACHE: cache}, logits_to_keep=1)
    return _decode(model, cache, ids, steps, progress)


def _decode(model, cache, ids, steps, progress=None):
    """Logits ``[steps, vocab]`` of the last ``steps`` tokens, decoded one by one after what the cache holds."""
    rows = []
    for n in range(steps):
        at = ids.shape[1] - steps + n
        rows.append(model(input_ids=ids[:, at : at + 1], **{CACHE: cache}).logits[0, -1].float())
        if progress:
            progress(n + 1)
    return torch.stack(rows)


def next_token_kl(
    model, method: Method, prompts: Iterable[Tensor], *, steps: int = 8, progress: Progress | None = None
) -> float:
    """Mean KL divergence of a method's next-token distributions from dense ones, in nats, lower is better.

    Args:
        model, prompts, steps, progress: as in :func:`record_overlap`.
        method: a selecting method.
    """
    return next_token_kls(model, [method], prompts, steps=steps, progress=progress)[0]


@torch.no_grad()
def next_token_kls(
    model,
    methods: Sequence[Method],
    prompts: Iterable[Tensor],
    *,
    steps: int = 8,
    progress: Progress | None = None,
) -> list[float]:
    """:func:`next_token_kl` of several methods; every prompt is read once for all of them."""
    prompts = [p.view(1, -1).to(model.device) for p in prompts]
    found = torch.zeros(len(methods), dtype=torch.float64)
    total, done = len(prompts) * (1 + len(methods)) * steps, 0
    for ids in prompts:
        with patch(model) as run:
            cache = run.new_cache()
            model(input_ids=ids[:, :-steps], **{CACHE: cache}, logits_to_keep=1)
            cache.activate_past_recording()
            dense = torch.log_softmax(_decode(model, cache, ids, steps).double(), -1)
        done += steps
        for index, method in enumerate(methods):
            cache.crop(-steps)
            with patch(model, method) as run:
                run.adopt(cache)
                sparse = torch.log_softmax(_decode(model, cache, ids, steps).double(), -1)
            found[index] += float((dense.exp() * (dense - sparse)).sum(-1).mean()) / len(prompts)
            done += steps
            if progress:
                progress(done, total)
    return found.tolist()


def _layers_to_rank(shape: ModelShape, select_layer: int) -> list[int]:
    """Layers that could select again."""
    if select_layer not in shape.full_layers:
        raise ValueError(
            f"layer {select_layer} has a sliding window and cannot select; full-attention layers: "
            f"{', '.join(map(str, shape.full_layers)) or 'none'}"
        )
    later = [layer for layer in shape.full_layers if layer > select_layer]
    if not later:
        raise ValueError(f"no full-attention layer comes after layer {select_layer}")
    return later


def calibrate(
    model,
    prompts: Sequence[Tensor],
    *,
    budget: int = 256,
    steps: int = 8,
    select_layer: int = 2,
    candidates: int = 4,
    metric: str = "mass",
    progress: Progress | None = None,
    folder=None,
    save: bool = True,
) -> dict:
    """Find the reselection layer of a model for :class:`tokops.methods.TidalDecode`, and remember it.

    Ranks all layers by recall, then runs the sparse model with each of the best and keeps the one whose next-token
    distributions are nearest to dense ones.

    Args:
        model, prompts, budget, steps, progress: as in :func:`record_overlap`. 32 prompts or more of a length near
            deployment are advised.
        select_layer: first selecting layer.
        candidates: how many of the best layers the sparse model is run with; 0 trusts the recall.
        metric: ``mass`` or ``overlap``.
        folder, save: where and whether to keep the record; None is the user's cache folder.

    Returns:
        The record: ``select_layer``, ``reselect_layers``, ``recall`` of all layers, ``kl`` of the candidates, and
        what it was measured with.
    """
    shape = shape_of(model.config)
    tried = min(candidates, len(_layers_to_rank(shape, select_layer)))
    once = len(prompts) * steps
    total = once * (2 + tried if tried else 1)
    ranked = progress and (lambda done, _: progress(done, total))
    found = record_overlap(model, prompts, budget=budget, steps=steps, progress=ranked)
    ranking = found.ranking(select_layer, metric)
    layers = [layer for layer, _ in ranking[:tried]]
    dense = tuple(range(min(2, select_layer)))
    methods = [
        TidalDecode(budget=budget, select_layer=select_layer, reselect_layer=layer, dense_layers=dense)
        for layer in layers
    ]
    run = progress and (lambda done, _: progress(once + done, total))
    measured = next_token_kls(model, methods, prompts if methods else [], steps=steps, progress=run)
    kl = dict(zip(layers, measured, strict=True))
    record = {
        "select_layer": select_layer,
        "reselect_layers": [min(kl, key=kl.__getitem__) if kl else ranking[0][0]],
        "metric": metric,
        "recall": {str(layer): round(value, 6) for layer, value in sorted(ranking)},
        "kl": {str(layer): round(value, 6) for layer, value in sorted(kl.items())},
        "budget": budget,
        "prompts": len(prompts),
        "tokens": found.tokens,
    }
    if save:
        _calibration.save(shape, record, folder)
    return record
