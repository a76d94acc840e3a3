"""Decoding loops of our own on a real model: what they cost beside the loops one would write with transformers."""

import copy
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from tokops.hf import InflightGenerator, generate_guided, patch
from tokops.hf.families import CACHE
from tokops.hf.punctuation import punctuation_ids
from tokops.methods import CNTP, Dense, SpeculativeThinking
from tokops.methods.cntp import entropy_of, trial_stream
from tokops.sampling import sample

SEED = 1
#: The paper's own runs: temperature 0.6 to 1.2, top-p 0.9 to 0.95.
TEMPERATURE, TOP_P = 0.8, 0.95
#: No token: answers are as long as they may be.
NO_END = 1 << 30
QUESTIONS = (
    "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether?",
    "Why does the moon always show us the same side? Explain it to a child.",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take, and how did you find out?",
    "Name three reasons for writing tests before code, with an example for each.",
)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        questions: of :data:`QUESTIONS`, how many.
        new: tokens of each answer.
        requests, slots: of in-flight batching.
        prompts, lengths: fewest and most tokens of their prompts, and of their answers.
        rounds: how often every way runs; the median counts.
    """

    questions: int = 4
    new: int = 64
    requests: int = 24
    slots: int = 8
    prompts: tuple[int, int] = (16, 256)
    lengths: tuple[int, int] = (8, 96)
    rounds: int = 3


FULL = Plan()
QUICK = Plan(questions=2, new=16, requests=6, slots=3, prompts=(8, 32), lengths=(4, 16), rounds=1)


@dataclass(frozen=True)
class Cost:
    """What one run of one way cost: tokens given out, forwards, and tokens that went through the model."""

    tokens: int
    forwards: int
    read: int


@dataclass(frozen=True)
class Row:
    """One way, measured."""

    loop: str
    way: str
    tokens: int
    forwards: int
    read: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


Way = Callable[[], tuple[Cost, object]]


def _counted(model, run: Callable[[], tuple[int, object]]) -> tuple[Cost, object]:
    """A run and what it cost, forwards counted where they happen."""
    forwards = read = 0

    def count(module, args, kwargs):
        nonlocal forwards, read
        forwards += 1
        read += (args[0] if args else kwargs["input_ids"]).numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        tokens, result = run()
    finally:
        hook.remove()
    return Cost(tokens, forwards, read), result


def measure(loop: str, ways: dict[str, Way], rounds: int, tick: Callable[[], None]) -> tuple[list[Row], dict]:
    """Every way by turns, ``rounds`` times; rows with median times, and what each way returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    costs, results = {}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            costs[name], results[name] = way()
            seconds[name].append(time.perf_counter() - begin)
            tick()
    rows = [Row(loop, name, **asdict(costs[name]), seconds=statistics.median(seconds[name])) for name in ways]
    return rows, results


# ---- CNTP


@torch.no_grad()
def one_after_another(
    model, method: CNTP, ids: Tensor, new: int, stops: frozenset[int], seed: int
) -> list[int]:
    """CNTP for one request with stock transformers: trial after trial, each on a copy of the cache.

    Draws the same tokens as :class:`tokops.methods.CNTP`.
    """
    law = LogitsProcessorList([TemperatureLogitsWarper(TEMPERATURE), TopPLogitsWarper(TOP_P)])
    cache, text, limit = DynamicCache(config=model.config), ids[0].tolist(), ids.shape[1] + new

    def read(tokens, cache):
        feed = torch.tensor([tokens], device=ids.device)
        out = model(feed, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        return law(feed, out.logits[:, -1].float())

    def draw(scores, stream, position):
        return int(sample(scores, seed=seed, stream=stream, position=position))

    scores = read(text, cache)
    while len(text) < limit:
        count = int(method.trials(entropy_of(scores)))
        if count == 1:
            text.append(draw(scores, 0, len(text)))
            scores = read(text[-1:], cache) if len(text) < limit else scores
            continue
        trials = []
        for trial in range(count):
            mine, own, tokens, cost = copy.deepcopy(cache), scores, list[int](), 0.0
            stream = trial_stream(0, len(text), trial)
            while True:
                tokens.append(draw(own, stream, len(text) + len(tokens)))
                cost -= float(own.double().log_softmax(-1)[0, tokens[-1]])
                length = len(tokens)
                if tokens[-1] in stops or length == method.max_trial_len or len(text) + length == limit:
                    break
                own = read(tokens[-1:], mine)
            trials.append((cost / length, trial, tokens, mine))
        _, _, tokens, cache = min(trials, key=lambda t: t[:2])
        text += tokens
        scores = read(text[-1:], cache) if len(text) < limit else scores
    return text[ids.shape[1] :]


def cntp_ways(model, tokenizer, plan: Plan) -> dict[str, Way]:
    """Questions answered with and without trials, one by one and in a batch."""
    method, never = CNTP(), CNTP(n_max=1)
    stops = punctuation_ids(tokenizer, method.characters)
    prompts = [_question(tokenizer, question) for question in QUESTIONS[: plan.questions]]
    settings = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
        "max_new_tokens": plan.new,
        "eos_token_id": NO_END,
    }

    def ours(chosen, **options) -> Way:
        def run():
            with patch(model, chosen):
                out = [_answer(model, ids, **settings, **options) for ids in prompts]
            return sum(map(len, out)), out

        return lambda: _counted(model, run)

    def reference():
        out = [one_after_another(model, method, ids, plan.new, stops, SEED) for ids in prompts]
        return sum(map(len, out)), out

    def batched():
        longest = max(ids.shape[1] for ids in prompts)
        ids = torch.cat([torch.nn.functional.pad(p, (longest - p.shape[1], 0)) for p in prompts])
        mask = torch.stack([(torch.arange(longest) >= longest - p.shape[1]).long() for p in prompts])
        own = {"seed": SEED, "streams": [0] * len(prompts), "tokenizer": tokenizer}
        with patch(model, method):
            out = model.generate(ids, attention_mask=mask, **settings, **own)[:, longest:].tolist()
        return sum(map(len, out)), out

    own = {"seed": SEED, "streams": [0], "tokenizer": tokenizer}
    return {
        "plain sampling, Dense": ours(Dense()),
        "CNTP(n_max=1)": ours(never, **own),
        "trial after trial, cache copied": lambda: _counted(model, reference),
        "CNTP": ours(method, **own),
        f"CNTP, batch of {len(prompts)}": lambda: _counted(model, batched),
    }


def _answer(model, ids: Tensor, **settings) -> list[int]:
    """What ``generate`` writes behind one prompt. It takes the end-of-turn tokens of a chat for padding unless told."""
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()


def _question(tokenizer, text: str) -> Tensor:
    chat = [{"role": "user", "content": text}]
    if tokenizer.chat_template is None:
        return tokenizer(text, return_tensors="pt").input_ids
    return tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


# ---- In-flight batching


def inflight_ways(model, text: Tensor, plan: Plan) -> dict[str, Way]:
    """Requests of mixed lengths: alone, in padded batches that wait for their longest, and in flight."""
    generator = torch.Generator().manual_seed(SEED)

    def between(bounds):
        return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))

    requests = []
    for _ in range(plan.requests):
        length = between(plan.prompts)
        start = between((0, len(text) - length))
        requests.append((text[start : start + length][None], between(plan.lengths)))
    greedy = {"do_sample": False, "eos_token_id": NO_END}

    def alone():
        with patch(model):
            out = [_answer(model, ids, max_new_tokens=new, **greedy) for ids, new in requests]
        return sum(map(len, out)), out

    def padded():
        out = []
        with patch(model):
            for first in range(0, len(requests), plan.slots):
                group = requests[first : first + plan.slots]
                longest = max(ids.shape[1] for ids, _ in group)
                ids = torch.cat([torch.nn.functional.pad(x, (longest - x.shape[1], 0)) for x, _ in group])
                mask = torch.stack([(torch.arange(longest) >= longest - x.shape[1]).long() for x, _ in group])
                most = max(new for _, new in group)
                got = model.generate(ids, attention_mask=mask, max_new_tokens=most, **greedy)[:, longest:]
                out += [row[:new] for row, (_, new) in zip(got.tolist(), group, strict=True)]
        return sum(map(len, out)), out

    def inflight():
        with patch(model):
            batch = InflightGenerator(model, plan.slots)
            for ids, new in requests:
                batch.submit(ids, max_new_tokens=new, eos_token_id=())
            out = list(dict(sorted(batch.run().items())).values())
        return sum(map(len, out)), out

    return {
        "one by one, Dense": lambda: _counted(model, alone),
        f"padded batches of {plan.slots}, Dense": lambda: _counted(model, padded),
        f"in flight, {plan.slots} slots": lambda: _counted(model, inflight),
    }


# ---- Speculative thinking


def thinking_ways(model, tokenizer, plan: Plan) -> dict[str, Way]:
    """The policy for models that do not reason, with one model in both roles: what the hand-overs cost."""
    policy = SpeculativeThinking(begin=min(100, plan.new // 3), reasoning=False, triggers=("\n", "."))
    prompts = [_question(tokenizer, question) for question in QUESTIONS[: plan.questions]]

    def guided():
        settings = {"max_new_tokens": plan.new, "seed": SEED, "eos_token_id": ()}
        with patch(model):
            out = [generate_guided(model, model, tokenizer, ids, policy, **settings) for ids in prompts]
        return sum(sum(one.written.values()) for one in out), out

    def alone():
        settings = {"do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.95, "eos_token_id": NO_END}
        with patch(model):
            out = [_answer(model, ids, max_new_tokens=plan.new, **settings) for ids in prompts]
        return sum(map(len, out)), out

    return {"one model, Dense": lambda: _counted(model, alone), "guided": lambda: _counted(model, guided)}


def read_anew(guided) -> int:
    """Tokens that a loop would read which sends the whole text with every call, as the published one does."""
    total = 0
    for one in guided:
        for span in one.spans:
            calls = 2 if span.writer == "large" and span.reason == "probe" else int(span.writer != "prompt")
            total += calls * (span.first + len(span) - 1)
    return total


# ---- All of it


def run(model, tokenizer, text: Tensor, plan: Plan, stage) -> tuple[list[Row], list[str]]:
    """Measure all loops.

    Args:
        model, tokenizer: a model that is not patched.
        text: ids ``[L]`` that prompts of in-flight batching are cut from.
        plan: how much.
        stage: begins a progress bar, given its name and length; returns what advances it.

    Returns:
        The rows, and sentences about what was the same.
    """
    suites = {
        "CNTP": cntp_ways(model, tokenizer, plan),
        "in-flight": inflight_ways(model, text, plan),
        "SpeculativeThinking": thinking_ways(model, tokenizer, plan),
    }
    rows: list[Row] = []
    results = {}
    for loop, ways in suites.items():
        tick = functools.partial(stage(loop, len(ways) * plan.rounds), 1)
        measured, results[loop] = measure(loop, ways, plan.rounds, tick)
        rows += measured
    trials = [results["CNTP"][way] for way in list(suites["CNTP"])[2:]]
    batches = list(results["in-flight"].values())
    guided = results["SpeculativeThinking"]["guided"]
    written = {who: sum(one.written[who] for one in guided) for who in ("small", "large", "prompt")}
    said = [
        f"CNTP: {_same(trials[0], trials[1])} answers are the same token by token as trial after trial, "
        f"{_same(trials[1], trials[2])} in a batch as alone",
        f"in-flight: {_same(batches[0], batches[2])} answers are the same token by token as one by one",
        f"SpeculativeThinking: {written['small']} tokens by the small model, {written['large']} by the large one; "
        f"a loop that sends the whole text with every call would read {read_anew(guided):,} tokens",
    ]
    return rows, said


def _same(one, other) -> str:
    return f"{sum(a == b for a, b in zip(one, other, strict=True))} of {len(one)}"


def table(rows: list[Row]) -> Table:
    """One line per way; ratios are to the first way of each loop."""
    out = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("loop", "way"):
        out.add_column(name)
    for name in ("tokens", "forwards", "tokens read", "tokens/s", "ratio"):
        out.add_column(name, justify="right", no_wrap=True)
    first: dict[str, float] = {}
    for row in rows:
        base = first.setdefault(row.loop, row.rate)
        numbers = (
            f"{row.tokens:,}",
            f"{row.forwards:,}",
            f"{row.read:,}",
            f"{row.rate:.1f}",
            f"{row.rate / base:.2f}",
        )
        out.add_row(row.loop, row.way, *numbers)
    return out
