"""The benchmark of the grammar kernels: masks on logits, draws under a mask, masks combined, budgets of letters.

Of what makes the masks there stand beside them: many tools behind one trigger, a long maxLength, and steps of the
engine on a device. A warm step reads a mask per row and writes it, 16 KiB each; a cold one also walks 131072 tokens
through the tables, for every row that no mask is known for.
"""

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tokops.grammar import (
    DeviceEngine,
    Grammar,
    Tag,
    Vocabulary,
    apply_bitmask_,
    compile_json_schema,
    compile_tags,
    compose_filters,
    masked_sample,
    multiset_mask,
)
from tokops.sampling import sample

from .attention import Bar, Case, Peers, Workload

_VOCABULARY = 131072
_MINUS = float("-inf")
COPY, FILL, XGRAMMAR = "copy of the rows", "masked_fill with a ready bool mask", "xgrammar"
TWO_STEPS, MULTINOMIAL = "apply_bitmask_, then sample", "masked_fill + softmax + multinomial"
MASKS = "copy of the masks"
AGAIN, UNBOUNDED, TENTH = "the same tools again", "mask without maxLength", "100 ms"
#: What a mask on the CPU may cost beside a copy of the rows: 1.5 times as much, with 1 % allowed in float32.
_OF_COPY = 1 / 1.5


def _allowed(rows: int, vocabulary: int, part: float, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens that are allowed: bools ``[rows, V]`` and the same as words."""
    generator = torch.Generator(device).manual_seed(1)
    allowed = torch.rand(rows, vocabulary, generator=generator, device=device) < part
    bits = allowed.view(rows, -1, 32).long() << torch.arange(32, device=device)
    words = bits.sum(-1)
    return allowed, torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _logits(rows: int, vocabulary: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator(device).manual_seed(2)
    return (torch.randn(rows, vocabulary, generator=generator, device=device) * 4).to(dtype)


def apply(rows, vocabulary, part, dtype, device) -> Workload:
    """A mask on logits in place, beside a plain copy of the rows, torch, and xgrammar where it is installed."""
    logits = _logits(rows, vocabulary, dtype, device)
    allowed, mask = _allowed(rows, vocabulary, part, device)
    forbidden = ~allowed
    mine, theirs, filled, elsewhere = (logits.clone() for _ in range(4))
    ours = partial(apply_bitmask_, mine, mask)
    peers: Peers = {
        COPY: partial(elsewhere.copy_, logits),
        FILL: partial(filled.masked_fill_, forbidden, _MINUS),
    }
    if importlib.util.find_spec("xgrammar") is not None:
        peer = importlib.import_module("xgrammar").apply_token_bitmask_inplace
        peers[XGRAMMAR] = partial(peer, theirs, mask)

    def check():
        want = logits.masked_fill(forbidden, _MINUS)
        assert torch.equal(ours(), want), "apply_bitmask_ forbade other tokens"
        if XGRAMMAR in peers:
            peers[XGRAMMAR]()
            assert torch.equal(theirs, want), "xgrammar forbade other tokens"

    return Workload(ours, peers, (), check)


def draws(rows, vocabulary, part, dtype, device) -> Workload:
    """A draw under a mask, beside the same in two steps and torch."""
    logits = _logits(rows, vocabulary, dtype, device)
    allowed, mask = _allowed(rows, vocabulary, part, device)
    numbers = torch.arange(rows, device=device)
    settings = {"seed": 3, "stream": numbers, "position": numbers}
    ours = partial(masked_sample, logits, mask, **settings)
    scratch = logits.clone()

    def two_steps() -> Tensor:
        return sample(apply_bitmask_(scratch.copy_(logits), mask), **settings)

    peers: Peers = {TWO_STEPS: two_steps}
    if device == "cpu":  # on CUDA multinomial may wait for the device
        peers[MULTINOMIAL] = lambda: torch.multinomial(
            torch.softmax(logits.masked_fill(~allowed, _MINUS).float(), -1), 1
        )

    def check():
        assert torch.equal(ours(), two_steps()), "masked_sample drew other tokens than two steps"

    return Workload(ours, peers, (), check)


def compose(filters, rows, vocabulary, device) -> Workload:
    """Masks combined, beside torch."""
    masks = [_allowed(rows, vocabulary, 0.9, device)[1].roll(i, 1) for i in range(filters)]

    def in_turn() -> Tensor:
        out = masks[0].clone()
        for mask in masks[1:]:
            out &= mask
        return out

    ours = partial(compose_filters, masks)

    def check():
        assert torch.equal(ours(), in_turn()), "compose_filters allows other tokens"

    return Workload(ours, {"torch, mask by mask": in_turn}, tuple(masks), check)


def budgets(rows, vocabulary, letters, device) -> Workload:
    """Masks of budgets, beside torch, which holds every sum of every row."""
    generator = torch.Generator(device).manual_seed(4)
    effect = (torch.rand(vocabulary, letters, generator=generator, device=device) < 0.15).to(torch.int8)
    used = torch.randint(0, 4, (rows, letters), generator=generator, device=device).to(torch.int16)
    budget = used + torch.randint(0, 4, used.shape, generator=generator, device=device).to(torch.int16)
    ours = partial(multiset_mask, effect, used, budget)

    def by_torch() -> Tensor:
        return (used[:, None] + effect <= budget[:, None]).all(-1)

    def check():
        bits = (ours()[..., None] >> torch.arange(32, device=device) & 1).flatten(1).bool()
        assert torch.equal(bits[:, :vocabulary], by_torch()), "multiset_mask allows other tokens"

    return Workload(ours, {"torch, unpacked": by_torch}, (effect,), check)


@functools.cache
def words_vocabulary(size: int = _VOCABULARY) -> Vocabulary:
    """All bytes, words of small letters by length, and an end."""
    letters = [bytes((b,)) for b in range(ord("a"), ord("z") + 1)]
    words = (
        b"".join(word) for length in itertools.count(2) for word in itertools.product(letters, repeat=length)
    )
    tokens = [*(bytes((b,)) for b in range(256)), *itertools.islice(words, size - 257), b""]
    return Vocabulary(tokens, eos_ids=[size - 1])


def tools(count: int, batch: int = 0) -> list[Tag]:
    """Tags of tools with a few arguments each; those of other batches have other names."""

    def schema(name: str) -> dict:
        arguments = {
            f"place_{name}": {"type": "string"},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "unit": {"enum": ["c", "f", name]},
            "marks": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 8},
        }
        return {
            "type": "object",
            "properties": arguments,
            "required": ["unit"],
            "additionalProperties": False,
        }

    names = [f"tool_{batch}_{i}" for i in range(count)]
    return [Tag(f"<function={name}>", schema(name), "</function>") for name in names]


def triggers(count, size) -> Workload:
    """A grammar of tools that were not seen before, all behind one trigger, beside the same tools compiled again."""
    vocabulary, batches = words_vocabulary(size), itertools.count(1)

    def compiled(batch: int) -> Grammar:
        return compile_tags(tools(count, batch), vocabulary, triggers=["<function="])

    def check():
        grammar, last = compiled(0), f"tool_0_{count - 1}"
        for unit, allowed in (("c", True), (last, True), ("k", False)):
            text = f'See <function={last}>{{"unit": "{unit}"}}</function>.'
            assert grammar.accepts(text) == allowed, f"compile_tags: a wrong verdict on {text}"

    return Workload(lambda: compiled(next(batches)), {AGAIN: partial(compiled, 0)}, (), check)


def long_string(longest, size) -> Workload:
    """A mask within a string of maxLength, beside one within a string without."""
    vocabulary = words_vocabulary(size)
    schemas = ({"type": "string", "maxLength": longest}, {"type": "string"})
    ours, theirs = (compile_json_schema(schema, vocabulary).matcher() for schema in schemas)
    mine, other = vocabulary.masks(2)

    def check():
        for b in b'"walk':
            ours.accept(b)
            theirs.accept(b)
            ours.fill(mine)
            theirs.fill(other)
            assert torch.equal(mine, other), "maxLength allows other tokens far from its end"

    return Workload(partial(ours.fill, mine), {UNBOUNDED: partial(theirs.fill, other)}, (), check)


def steps(rows, cold, size, device) -> Workload:
    """A token in every row of a DeviceEngine, all within strings, the last ``cold`` of which have no mask yet."""
    vocabulary = words_vocabulary(size)
    grammars = [compile_json_schema({"type": "string", "minLength": n}, vocabulary) for n in range(1, 9)]
    engine = DeviceEngine(vocabulary, rows, device, walk=True)
    for grammar in grammars:
        engine.explore(grammar)
    matchers = []

    def begin(first: int, last: int, grammars: list[Grammar]) -> None:
        for row in range(first, last):
            engine.admit(row, grammars[row % len(grammars)])
            matchers.append(grammars[row % len(grammars)].matcher())
        for byte in b'"walks on':  # longer than any minLength
            tokens = torch.full((rows,), -1)
            tokens[first:last] = byte
            engine.step(tokens.to(device))
            for matcher in matchers[first:last]:
                matcher.accept(byte)

    begin(0, rows - cold, grammars[1:])
    engine.refill()
    begin(rows - cold, rows, grammars[:1])
    tokens = torch.full((rows,), ord("a"), device=device)
    elsewhere = torch.empty_like(engine.mask)

    def check():
        want = vocabulary.masks(rows)
        for mask, matcher in zip(want, matchers, strict=True):
            matcher.fill(mask)
        assert torch.equal(engine.step(tokens).cpu(), want), "DeviceEngine allows other tokens"

    return Workload(
        lambda: engine.step(tokens), {MASKS: lambda: elsewhere.copy_(engine.mask)}, (engine.mask,), check
    )


def cases(device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """Masks that allow 99, 50 and 1 % of the vocabulary, and what has no bar beside them; on the CPU the engine too.

    Args:
        device: "cpu" or "cuda".
        quick: bfloat16 only, and batches of 8.
    """
    for dtype in (torch.bfloat16,) if quick else (torch.float32, torch.bfloat16):
        name = "fp32" if dtype == torch.float32 else "bf16"
        for rows in (8,) if quick else (1, 8):
            for percent in (99, 50, 1):
                bars = [Bar(XGRAMMAR, 1.0)]
                if device == "cpu" and percent == 1 and dtype == torch.float32:
                    bars.insert(0, Bar(COPY, _OF_COPY))
                yield Case(
                    f"apply_bitmask_ [{rows}, {_VOCABULARY}] {percent} % allowed, {name}",
                    tuple(bars),
                    partial(apply, rows, _VOCABULARY, percent / 100, dtype, device),
                )
        yield Case(
            f"masked_sample [8, {_VOCABULARY}] 50 % allowed, {name}",
            (),
            partial(draws, 8, _VOCABULARY, 0.5, dtype, device),
        )
    yield Case(f"compose_filters 4 of [8, {_VOCABULARY}]", (), partial(compose, 4, 8, _VOCABULARY, device))
    for rows in (1, 8):
        yield Case(
            f"multiset_mask [{_VOCABULARY}, 26] B{rows}", (), partial(budgets, rows, _VOCABULARY, 26, device)
        )
    for rows, cold, most in ((1, 0, None), (64, 0, 15), (64, 1, 100)):
        held = (Bar(f"{most} us", 1.0, most / 1e6),) if most and device == "cuda" else ()
        yield Case(
            f"DeviceEngine step [{rows}, {_VOCABULARY}]" + f", {cold} without a mask" * bool(cold),
            held,
            partial(steps, rows, cold, _VOCABULARY, device),
        )
    if device == "cpu":
        yield Case("compile_tags 128 tools", (Bar(TENTH, 1.0, 0.1),), partial(triggers, 128, _VOCABULARY))
        yield Case(
            "mask within maxLength 100000", (Bar(UNBOUNDED, 0.5),), partial(long_string, 100_000, _VOCABULARY)
        )
