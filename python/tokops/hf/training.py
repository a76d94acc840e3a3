"""Training of drafters on what a frozen model makes of a text: heads, prompt tokens, the Falcon layer."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import DynamicCache

from .draftlayers import rotary_of
from .falcon import FalconModule
from .families import CACHE
from .glancing import coupled_sequential_glancing_loss, glancing_ratio
from .heads import Heads

__all__ = [
    "Recorded",
    "continuations",
    "first_prompt_embeddings",
    "prompt_rows",
    "read_heads",
    "record",
    "train_falcon",
    "train_heads",
    "train_prompt_embeddings",
    "windows",
]

#: Called with the loss of every step.
Tick = Callable[[float], None]
#: The part of a level's loss in all: 0.8 to the power of the level (PPD and CAFT).
DECAY = 0.8


@dataclass(frozen=True)
class Recorded:
    """Texts and what the model thought of them.

    Attributes:
        ids: ``[n, W]`` int64.
        final: ``[n, W, d]`` what the unembedding takes.
        fed: ``[n, W, d]`` what heads read: ``final``, or what the last layer reads.
    """

    ids: Tensor
    final: Tensor
    fed: Tensor


def windows(ids: Tensor, size: int) -> Tensor:
    """Cut a text ``[T]`` into ``[n, size]``; the rest is dropped.

    Raises:
        ValueError: it is shorter than one window.
    """
    count = len(ids) // size
    if count < 1:
        raise ValueError(f"windows: the text must have at least {size} tokens, got {len(ids)}")
    return ids[: count * size].reshape(count, size)


@torch.no_grad()
def record(model: Any, ids: Tensor, feed: str = "last_post_norm", tick: Tick = lambda done: None) -> Recorded:
    """Read texts ``[n, W]`` once.

    Args:
        feed: see :class:`tokops.hf.heads.HeadsConfig`.
        tick: called with 1 after every text.
    """
    finals, feds = [], []
    for row in ids:
        out = model.base_model(row[None].to(model.device), use_cache=False, output_hidden_states=True)
        finals.append(out.last_hidden_state[0])
        feds.append(out.hidden_states[-2][0] if feed == "penultimate" else finals[-1])
        tick(1)
    final = torch.stack(finals)
    return Recorded(ids.to(model.device), final, final if feed == "last_post_norm" else torch.stack(feds))


@torch.no_grad()
def continuations(model: Any, prompts: Tensor, new: int, tick: Tick = lambda done: None) -> Tensor:
    """The model's own greedy continuations ``[n, L + new]`` of prompts ``[n, L]``, past any end of text."""
    ids = prompts.to(model.device)
    cache, fed = DynamicCache(config=model.config), ids
    for _ in range(new):
        logits = model(fed, **{CACHE: cache}, use_cache=True, logits_to_keep=1).logits[:, -1]
        fed = logits.argmax(-1)[:, None]
        ids = torch.cat([ids, fed], 1)
        tick(1)
    return ids


def _fit(
    parameters: Iterable[Tensor], steps: int, rate: float, loss: Callable[[int], Tensor], tick: Tick
) -> None:
    """AdamW under a cosine that ends at 0, after a short warm-up."""
    parameters = list(parameters)
    warm = max(1, steps // 20)

    def scale(step):
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tick(float(value.detach()))


def _levels_loss(drafted: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean over levels of ``0.8^level * KL(teacher || draft)``, of logits ``[rows, V]`` per level."""
    total = drafted[0].new_zeros(())
    for level, (ours, theirs) in enumerate(zip(drafted, teacher, strict=True), 1):
        ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
        total = total + DECAY**level * kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return total / len(drafted)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No gradients for a model's own parameters."""
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def train_heads(
    model: Any,
    heads: Heads,
    recorded: Recorded,
    steps: int,
    *,
    batch: int = 2,
    rate: float = 1e-3,
    seed: int = 0,
    tick: Tick = lambda loss: None,
) -> None:
    """Train heads on recorded states: the model itself is not run.

    Head i at position t learns the model's own law of token t + 1 + i, by KL divergence, level i weighing 0.8^i.

    Args:
        heads: in float32; changed in place.
        recorded: with the feed of the heads' configuration.
        steps: of AdamW at ``rate``, cosine.
        batch: texts per step.
        tick: called with every loss.
    """
    unembed, generator = model.get_output_embeddings(), torch.Generator().manual_seed(seed)
    n, width = heads.config.heads, recorded.ids.shape[1]
    if width <= n:
        raise ValueError(
            f"train_heads: texts must be longer than the {n} heads look ahead, got {width} tokens"
        )

    def loss(step):
        rows = torch.randint(len(recorded.ids), (batch,), generator=generator)
        hidden = read_heads(model, heads, recorded.fed[rows])[:, :, : width - n]
        drafted = heads.logits(hidden, unembed)
        with torch.no_grad():
            law = unembed(recorded.final[rows, 1:])
        teacher = [law[:, i : i + width - n].flatten(0, 1) for i in range(n)]
        return _levels_loss([level.flatten(0, 1) for level in drafted], teacher)

    heads.train()
    with _frozen(model):
        _fit(heads.parameters(), steps, rate, loss, tick)
    heads.eval()


def read_heads(model: Any, heads: Heads, x: Tensor) -> Tensor:
    """Heads over whole texts ``[B, W, d]`` of what they are fed; ``[n, B, W, d]``."""
    if heads.config.arch == "linear":
        return heads(x)
    positions = torch.arange(x.shape[1], device=x.device)[None]
    causal = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    return heads(x, positions, rotary_of(model, x, positions), causal)


def first_prompt_embeddings(model: Any, tokenizer: Any, count: int) -> Tensor:
    """Where training of prompt tokens begins: ``[M, d]``, the mean embedding of "Next 2 word", "Next 3 word", ..."""
    embed, rows = model.get_input_embeddings(), []
    for j in range(count):
        ids = tokenizer(f"Next {j + 2} word", add_special_tokens=False, return_tensors="pt").input_ids[0]
        rows.append(embed(ids.to(model.device)).mean(0))
    return torch.stack(rows).detach().float()


def prompt_rows(model: Any, cache: Any, width: int, cuts: Tensor, embeddings: Tensor) -> Tensor:
    """Final states of prompt tokens hung behind positions of texts that a cache holds.

    Args:
        cache: of ``[B, W]`` texts; the rows are appended to it.
        width: W.
        cuts: ``[B, C]`` int64, positions behind which the M prompt tokens stand.
        embeddings: ``[M, d]``.

    Returns:
        ``[B, C, M, d]``.
    """
    (batch, count), (most, size) = cuts.shape, embeddings.shape
    device, dtype = cuts.device, model.get_input_embeddings().weight.dtype
    x = embeddings.to(dtype).expand(batch, count, most, size).reshape(batch, count * most, size)
    ahead = torch.arange(1, most + 1, device=device)
    positions = (cuts[..., None] + ahead).reshape(batch, -1)
    text = torch.arange(width, device=device) <= cuts[..., None]
    text = text[:, :, None].expand(-1, -1, most, -1).reshape(batch, count * most, width)
    own = torch.block_diag(*[torch.ones(most, most, device=device).tril()] * count).bool()
    seen = torch.cat([text, own.expand(batch, -1, -1)], 2)[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    out = model.base_model(
        inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=True, **{CACHE: cache}
    )
    return out.last_hidden_state.reshape(batch, count, most, size)


def train_prompt_embeddings(
    model: Any,
    embeddings: Tensor,
    ids: Tensor,
    steps: int,
    *,
    batch: int = 1,
    cuts: int = 32,
    rate: float = 1e-2,
    seed: int = 0,
    tick: Tick = lambda loss: None,
) -> Tensor:
    """Train prompt tokens: M vectors, through the frozen model.

    A step reads some texts, hangs the prompt tokens behind random positions of them, each as if the text ended there,
    and compares prompt token j with the model's own law j tokens ahead: KL divergence, level j weighing 0.8^j.

    Args:
        embeddings: ``[M, d]`` float32 to begin with.
        ids: ``[n, W]`` texts.
        steps: of AdamW at ``rate``, cosine.
        batch: texts per step.
        cuts: positions per text and step.
        tick: called with every loss.

    Returns:
        ``[M, d]`` float32.
    """
    unembed, generator = model.get_output_embeddings(), torch.Generator().manual_seed(seed)
    learned, (most, width) = nn.Parameter(embeddings.clone()), (len(embeddings), ids.shape[1])
    if width <= most + 1:
        raise ValueError(f"train_prompt_embeddings: texts must have more than {most + 1} tokens, got {width}")

    def loss(step):
        rows = ids[torch.randint(len(ids), (batch,), generator=generator)].to(model.device)
        at = torch.stack([torch.randperm(width - most, generator=generator)[:cuts] for _ in rows])
        at = at.to(model.device)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            final = model.base_model(rows, use_cache=True, **{CACHE: cache}).last_hidden_state
            ahead = torch.arange(1, most + 1, device=at.device)
            index = (at[..., None] + ahead)[..., None].flatten(1, 2).expand(-1, -1, final.shape[-1])
            law = unembed(final.gather(1, index)).reshape(-1, most, unembed.weight.shape[0])
        drafted = unembed(prompt_rows(model, cache, width, at, learned)).flatten(0, 1)
        return _levels_loss(list(drafted.unbind(1)), list(law.unbind(1)))

    with _frozen(model):
        _fit([learned], steps, rate, loss, tick)
    return learned.detach()


def train_falcon(
    model: Any,
    module: FalconModule,
    recorded: Recorded,
    steps: int,
    *,
    batch: int = 2,
    rate: float = 1e-3,
    epochs: int = 20,
    seed: int = 0,
    tick: Tick = lambda loss: None,
) -> None:
    """Train a Falcon layer on recorded states with :func:`tokops.hf.glancing.coupled_sequential_glancing_loss`.

    Args:
        module: in float32; changed in place.
        recorded: texts longer than k + 1 tokens.
        steps: of AdamW at ``rate``, cosine.
        batch: texts per step.
        epochs: steps of the glancing ratio's schedule.
        tick: called with every loss.
    """
    generator = torch.Generator().manual_seed(seed)
    embed, unembed = model.get_input_embeddings(), model.get_output_embeddings()
    rows = recorded.ids.shape[1] - 1 - module.block
    positions = torch.arange(max(rows, 0), device=recorded.ids.device)[None]
    rotary = rotary_of(model, recorded.final, positions)

    def loss(step):
        some = torch.randint(len(recorded.ids), (batch,), generator=generator)
        ratio = glancing_ratio(step * epochs // steps, epochs)
        return coupled_sequential_glancing_loss(
            module,
            recorded.final[some, :-1],
            recorded.ids[some],
            embed,
            unembed,
            rotary,
            ratio=ratio,
            generator=generator,
        ).total

    module.train()
    with _frozen(model):
        _fit(module.parameters(), steps, rate, loss, tick)
    module.eval()
