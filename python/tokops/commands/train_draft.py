"""`tokops train-draft`: train prompt tokens, heads or a Falcon layer for a model, and measure their acceptance."""

import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from .calibrate import cut, load
from .demo import stages

KINDS = ("ppd", "heads", "falcon")


@dataclass(frozen=True)
class Plan:
    """What is trained and measured, in numbers.

    Attributes:
        kind: ppd, heads or falcon.
        levels: prompt tokens, heads, or measured depths of a Falcon layer.
        arch, feed: of heads.
        block, reducer: of a Falcon layer.
        steps, batch, window, rate, seed: of the training.
        prompts, given, written: held-out prompts, their tokens, and the tokens that the model goes on with.
    """

    kind: str
    levels: int
    arch: str
    feed: str
    block: int
    reducer: str
    steps: int
    batch: int
    window: int
    rate: float
    seed: int
    prompts: int
    given: int
    written: int


@dataclass
class Trained:
    """What came out: acceptance before and after, the held-out texts, and how to write it."""

    before: list[list[float]]
    after: list[list[float]]
    seconds: float
    own: Tensor
    save: Callable[[pathlib.Path, dict], Any]


def train(
    model: Any, tokenizer: Any, text: Tensor, held_out: Tensor, plan: Plan, stage: Callable, say: Callable
) -> Trained:
    """Train what the plan says on tokens ``[T]``, and measure it on the model's continuations of held-out ones.

    Args:
        stage: begins a bar, as :func:`tokops.commands.demo.stages` makes it.
        say: prints a line.
    """
    from tokops.hf import training

    torch.manual_seed(plan.seed)
    prompts = torch.cat(cut(held_out, plan.prompts, plan.given))
    own = training.continuations(model, prompts, plan.written, stage("held-out text", plan.written))
    texts = training.windows(text, plan.window)
    # Not more texts than the steps can use.
    texts = texts[: max(plan.steps * plan.batch, 1)]
    tick = _losses(plan.steps, stage, say)
    options = {"batch": plan.batch, "rate": plan.rate, "seed": plan.seed, "tick": tick}
    run = {"ppd": _ppd, "heads": _heads, "falcon": _falcon}[plan.kind]
    return run(model, tokenizer, texts, own, plan, stage, options)


def _ppd(model, tokenizer, texts, own, plan, stage, options) -> Trained:
    from tokops.hf import draftscores, ppd, training

    first = training.first_prompt_embeddings(model, tokenizer, plan.levels)
    before = draftscores.prompt_acceptance(model, first, own, plan.given)
    begin = time.perf_counter()
    learned = training.train_prompt_embeddings(model, first, texts, plan.steps, **options)
    seconds = time.perf_counter() - begin
    after = draftscores.prompt_acceptance(model, learned, own, plan.given)
    return Trained(
        before,
        after,
        seconds,
        own,
        lambda out, facts: ppd.save_prompt_embeddings(out, model, learned, after, facts),
    )


def _heads(model, tokenizer, texts, own, plan, stage, options) -> Trained:
    from tokops.hf import draftscores, training
    from tokops.hf.heads import Heads, HeadsConfig

    heads = Heads(model, HeadsConfig(plan.levels, plan.arch, feed=plan.feed)).to(model.device)
    held = training.record(model, own, plan.feed)
    before = draftscores.heads_acceptance(model, heads, held, plan.given)
    begin = time.perf_counter()
    recorded = training.record(model, texts, plan.feed, stage("reading the text", len(texts)))
    training.train_heads(model, heads, recorded, plan.steps, **options)
    seconds = time.perf_counter() - begin
    after = draftscores.heads_acceptance(model, heads, held, plan.given)
    return Trained(before, after, seconds, own, lambda out, facts: heads.save(out, model, after, facts))


def _falcon(model, tokenizer, texts, own, plan, stage, options) -> Trained:
    from tokops.hf import draftscores, training
    from tokops.hf.falcon import FalconModule

    module = FalconModule(model, plan.block, plan.reducer).to(model.device)
    held = training.record(model, own)
    before = draftscores.falcon_acceptance(model, module, held, plan.given, depth=plan.levels)
    begin = time.perf_counter()
    recorded = training.record(model, texts, tick=stage("reading the text", len(texts)))
    training.train_falcon(model, module, recorded, plan.steps, **options)
    seconds = time.perf_counter() - begin
    after = draftscores.falcon_acceptance(model, module, held, plan.given, depth=plan.levels)
    return Trained(before, after, seconds, own, lambda out, facts: module.save(out, model, after, facts))


def _losses(steps: int, stage: Callable, say: Callable) -> Callable[[float], None]:
    """A bar over the steps, and every tenth of them a line with the mean loss since the last one."""
    advance, losses, tenth = stage(f"training, {steps} steps", steps), [], max(steps // 10, 1)

    def tick(loss: float) -> None:
        losses.append(loss)
        advance(1)
        if len(losses) % tenth == 0:
            say(f"step {len(losses)}: loss {sum(losses[-tenth:]) / tenth:.4f}")

    return tick


def decode(model: Any, kind: str, folder: pathlib.Path, own: Tensor, given: int) -> tuple[float, int]:
    """Decode the held-out prompts with the drafter, greedily, as a user would.

    Args:
        own: ``[n, given + written]``, what the model writes without it.

    Returns:
        Tokens per call of the model, and how many of the n texts are the same.
    """
    from transformers import GenerationConfig

    from tokops import methods, patch

    method = {"ppd": methods.PPD, "heads": methods.ConceptHeads, "falcon": methods.Falcon}[kind](folder)
    # Not the model's own configuration: the texts to compare with go on behind an end of text.
    config = GenerationConfig(do_sample=False, max_new_tokens=own.shape[1] - given, pad_token_id=0)
    prompts = own[:, :given]
    with patch(model, method) as run:
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
        return run.report().tokens_per_call, int((found == own).all(1).sum())


def expected(plan: Plan, acceptance: list[list[float]]) -> float:
    """Tokens that a step of at most 32 rows would emit, by the acceptance table."""
    from tokops.speculative import best_first_tree, falcon_tree
    from tokops.speculative.ppd_plan import ppd_plan

    if plan.kind == "ppd":
        return ppd_plan(acceptance, 32 - 1 - plan.levels).tokens_per_step
    if plan.kind == "falcon":
        return falcon_tree(acceptance, 32, plan.block).expected[-1]
    return best_first_tree(acceptance, 32).expected[-1]


def show(plan: Plan, result: Trained) -> Table:
    """Acceptance by level, before and after."""
    out = Table(title="acceptance on the model's own continuations of held-out text")
    for name in ("tokens ahead", "rank 1 before", "rank 1", "ranks 1 to 3", "all ranks"):
        out.add_column(name, justify="right")
    for level, (old, new) in enumerate(zip(result.before, result.after, strict=True), 1):
        shares = (old[0], new[0], sum(new[:3]), sum(new))
        out.add_row(
            str(level + 1 if plan.kind != "falcon" else level), *(f"{100 * share:.1f}%" for share in shares)
        )
    return out


def train_draft(
    kind: Annotated[str, typer.Argument(help="ppd, heads or falcon.")],
    model: Annotated[str, typer.Argument(help="smollm2, or what from_pretrained takes: a folder or a name.")],
    out: Annotated[pathlib.Path, typer.Option(help="Folder for drafter.safetensors and drafter.json.")],
    text: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            help="Text to train on, repeatable; Northanger Abbey if left out.", exists=True, dir_okay=False
        ),
    ] = None,
    held_out: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            help="Text to measure on, repeatable; Persuasion if left out.", exists=True, dir_okay=False
        ),
    ] = None,
    levels: Annotated[
        int,
        typer.Option(min=0, help="Prompt tokens or heads; 0: 3 for ppd, 4 for heads, 6 depths for falcon."),
    ] = 0,
    arch: Annotated[str, typer.Option(help="Heads: linear or transformer.")] = "linear",
    feed: Annotated[str, typer.Option(help="Heads: last_post_norm or penultimate.")] = "last_post_norm",
    block: Annotated[int, typer.Option(min=1, help="Falcon: tokens per pass.")] = 2,
    reducer: Annotated[str, typer.Option(help="Falcon: token_mlp or lstm.")] = "token_mlp",
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Windows per step.")] = 2,
    window: Annotated[int, typer.Option(min=8, help="Tokens of a window.")] = 128,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate; 0: 1e-2 for ppd, else 1e-3.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of initialisation and order.")] = 0,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 16,
    given: Annotated[int, typer.Option(min=1, help="Tokens of a held-out prompt.")] = 64,
    written: Annotated[int, typer.Option(min=8, help="Tokens that the model writes after each.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's own number.")] = 0,
) -> None:
    """Train a drafter for a frozen model; the model itself is not changed.

    Acceptance is measured on what the model itself writes, greedily, after held-out prompts: the part of positions at
    which its token, so many places ahead, is the drafter's candidate of a rank. The table is kept with the weights.
    """
    from tokops.bench.run import machine
    from tokops.data import held_out_text, long_text

    if kind not in KINDS:
        raise typer.BadParameter(f"the kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if threads:
        torch.set_num_threads(threads)
    console, begin = Console(), time.perf_counter()
    loaded, tokenizer = load(model, "fp32")
    plan = Plan(
        kind,
        levels or {"ppd": 3, "heads": 4, "falcon": 6}[kind],
        arch,
        feed,
        block,
        reducer,
        steps,
        batch,
        window,
        rate or (1e-2 if kind == "ppd" else 1e-3),
        seed,
        prompts,
        given,
        written,
    )
    ids, other = (
        tokenizer(_read(files, usual), return_tensors="pt").input_ids[0]
        for files, usual in ((text, long_text), (held_out, held_out_text))
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        try:
            result = train(loaded, tokenizer, ids, other, plan, stages(progress), progress.console.print)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    facts = {"plan": asdict(plan), "before": result.before, "machine": machine(), "seconds": result.seconds}
    result.save(out, facts)
    console.print(show(plan, result))
    tokens = [f"{expected(plan, table):.2f}" for table in (result.before, result.after)]
    console.print(
        f"tokens per step of 32 rows by these tables: {tokens[0]} before, {tokens[1]} after training"
    )
    per_call, same = decode(loaded, kind, out, result.own, given)
    console.print(
        f"decoding the held-out prompts with it: {per_call:.2f} tokens per call; {same} of {len(result.own)} texts "
        "are those of plain greedy decoding"
    )
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    took = time.perf_counter() - begin
    console.print(f"trained in {result.seconds:.0f} s, {took:.0f} s in all; wrote {out}", soft_wrap=True)


def _read(files: list[pathlib.Path] | None, usual: Callable[[], str]) -> str:
    return "\n\n".join(path.read_text(encoding="utf-8") for path in files) if files else usual()


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command("train-draft")(train_draft)
