"""Masks of the engine against the oracle at sampled places: `python -m tests.grammar.mask_points`.

Places are taken along valid instances of schemas (as they are, written with odd blanks and escapes, and with members in
other orders), and along random texts that the oracle allows. At every place the mask is compared with the oracle: all
tokens where few bytes decide it, else as many as the budget pays for, and the end of text always.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from .masks import TokenTree, small_vocabulary
from .oracle import Oracle, Point, Unsupported

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "jsonschemabench" / "dev.jsonl"
OWN = pathlib.Path(__file__).resolve().parents[1] / "data" / "grammar" / "schemas.jsonl"


@dataclass
class Wrong:
    """A token whose bit is not what the oracle says."""

    schema: str
    prefix: bytes
    token: bytes
    allowed: bool

    def __str__(self) -> str:
        said = "masked, but may come" if self.allowed else "allowed, but can't come"
        return f"{self.schema}: after {self.prefix!r} the token {self.token!r} is {said}"


def schemas(path: pathlib.Path) -> list[tuple[str, object, list]]:
    """Name, schema and valid instances of every line of a file."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        out.append((one["id"], one["schema"], [test["data"] for test in one["tests"] if test["valid"]]))
    return out


def spelled(x, draw: random.Random) -> str:
    """An instance as JSON text with odd blanks, escapes and order of members."""

    def blank() -> str:
        return draw.choice(("", "", "", " ", "\n", "\t ", "  \n"))

    def string(text: str) -> str:
        out = []
        for c in text:
            code = [f"\\u{unit:04x}" for unit in memoryview(c.encode("utf-16-le")).cast("H")]
            out.append("".join(code) if draw.random() < 0.05 else json.dumps(c, ensure_ascii=False)[1:-1])
        return '"' + "".join(out) + '"'

    def write(x) -> str:
        if isinstance(x, dict):
            members = draw.sample(list(x.items()), len(x))
            inner = ",".join(
                f"{blank()}{string(k)}{blank()}:{blank()}{write(v)}{blank()}" for k, v in members
            )
            return "{" + (inner or blank()) + "}"
        if isinstance(x, list):
            return "[" + (",".join(f"{blank()}{write(v)}{blank()}" for v in x) or blank()) + "]"
        if isinstance(x, str):
            return string(x)
        if isinstance(x, int) and not isinstance(x, bool) and draw.random() < 0.2:
            return f"{x}.0"
        return json.dumps(x)

    return write(x)


def wander(oracle: Oracle, draw: random.Random, most: int) -> bytes:
    """A random text that the oracle can still continue."""
    point, out = oracle.start, bytearray()
    while len(out) < draw.randrange(1, most):
        likely = b'"{}[]:,tfn-0123456789aeilmnorsu \\' if draw.random() < 0.97 else bytes(range(256))
        options = [
            (b, p) for b in draw.sample(likely, len(likely)) if (p := point.step(b)) is not None and p.viable
        ]
        if not options:
            options = [(b, p) for b in range(256) if (p := point.step(b)) is not None and p.viable]
        if not options:
            break
        b, point = options[0]
        out.append(b)
    return bytes(out)


def cut(text: bytes, encode, draw: random.Random) -> list[int]:
    """Some first tokens of a text."""
    ids = encode(text)
    return ids[: draw.randrange(len(ids) + 1)]


def longest_first(tokens: list[bytes]):
    """A tokenizer that takes the longest token each time."""
    ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token}
    longest = max(map(len, tokens))

    def encode(text: bytes) -> list[int]:
        out, at = [], 0
        while at < len(text):
            size = next(n for n in range(min(longest, len(text) - at), 0, -1) if text[at : at + n] in ids)
            out.append(ids[text[at : at + size]])
            at += size
        return out

    return encode


def compare(oracle_point: Point, mask: np.ndarray, tree: TokenTree, end: int, budget: int, seed: int = 0):
    """Tokens whose bits are wrong: (id, what the oracle says), and how many were compared."""
    found = tree.decide(oracle_point, budget, seed)
    found[end] = oracle_point.ends
    ids = np.fromiter(found, np.int64)
    bits = (mask.view(np.uint32)[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1
    truth = np.fromiter(found.values(), bool)
    wrong = ids[bits.astype(bool) != truth]
    return [(int(i), found[int(i)]) for i in wrong], len(found)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise :class:`Unsupported` inside where the block takes longer."""

    def late(*_) -> None:
        raise Unsupported(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Run:
    """What was compared."""

    points: int
    bits: int
    wrong: list[Wrong]
    left_out: collections.Counter


class Comparison:
    """Compares the engine's masks with the oracle's over one vocabulary."""

    def __init__(self, tokens: list[bytes], end: int, encode=None, budget: int = 4000, seconds: float = 10.0):
        import tokops.grammar

        self.tokens, self.end, self.budget, self.seconds = tokens, end, budget, seconds
        specials = [i for i, token in enumerate(tokens) if not token and i != end]
        self.vocabulary = tokops.grammar.Vocabulary(tokens, eos_ids=[end], special_ids=specials)
        self.tree = TokenTree(tokens)
        self.encode = encode or longest_first(tokens)
        self.run = Run(0, 0, [], collections.Counter())

    def prefixes(
        self, oracle: Oracle, instances: list, draw: random.Random, count: int
    ) -> Iterator[list[int]]:
        """Beginnings of texts, as tokens."""
        yield []
        for k in range(count - 1):
            text = None
            if instances and k % 4:
                x = draw.choice(instances)
                text = json.dumps(x, ensure_ascii=False) if k % 4 == 1 else spelled(x, draw)
            try:
                text = wander(oracle, draw, 60) if text is None else text.encode("utf-8")
            except UnicodeEncodeError:
                continue
            yield cut(text, self.encode, draw)

    def schema(self, name: str, schema, instances: list, count: int, seed: int = 0) -> None:
        """Compare at ``count`` places of one schema."""
        import torch

        import tokops.grammar

        draw = random.Random(f"{seed} {name}")
        try:
            with at_most(self.seconds):
                oracle = Oracle(schema)
        except (Unsupported, RecursionError) as error:
            self.run.left_out[f"oracle: {error}"[:60]] += count
            return
        try:
            grammar = tokops.grammar.compile_json_schema(schema, self.vocabulary)
        except tokops.grammar.GrammarError as error:
            self.run.left_out[f"refused: {error}"[:60]] += count
            return
        mask = torch.zeros((len(self.tokens) + 31) // 32, dtype=torch.int32)
        places = self.prefixes(oracle, instances, draw, count)
        for _ in range(count):
            try:
                with at_most(self.seconds):
                    ids = next(places, None)
                    if ids is None:
                        return
                    self._point(name, oracle, grammar, ids, mask, draw.randrange(1 << 30))
            except (Unsupported, RecursionError) as error:
                self.run.left_out[f"oracle: {error}"[:60]] += 1
                places = self.prefixes(oracle, instances, draw, count)

    def _point(self, name: str, oracle: Oracle, grammar, ids: list[int], mask, seed: int) -> None:
        point, matcher, prefix = oracle.start, grammar.matcher(), b""
        for i in ids:
            after = oracle.walk(self.tokens[i], point)
            if after is None:  # a numeral with an exponent where none is written, say: stop before it
                if matcher.fork().accept(i):
                    self.run.wrong.append(Wrong(name, prefix, self.tokens[i], False))
                break
            if not matcher.accept(i):
                self.run.wrong.append(Wrong(name, prefix, self.tokens[i], True))
                return
            point, prefix = after, prefix + self.tokens[i]
        matcher.fill(mask)
        wrong, bits = compare(point, mask.numpy(), self.tree, self.end, self.budget, seed)
        self.run.points += 1
        self.run.bits += bits
        self.run.wrong += [
            Wrong(name, prefix, self.tokens[i] or b"<end>", allowed) for i, allowed in wrong[:5]
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--schemas", type=pathlib.Path, default=SHARED if SHARED.exists() else OWN)
    parser.add_argument("--vocabulary", default="llama3", help="llama3, smollm2, a tokenizer.json, or small")
    parser.add_argument("--budget", type=int, default=3000, help="bytes that the oracle steps at a place")
    parser.add_argument("--per-schema", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="a place is left after that")
    asked = parser.parse_args()
    if asked.vocabulary == "small":
        comparison = Comparison(*small_vocabulary(), budget=asked.budget, seconds=asked.seconds)
    else:
        from tokops.bench.vocabularies import load

        real = load(asked.vocabulary)

        def encode(text: bytes) -> list[int]:
            return real.encode(text.decode("utf-8", "ignore"))

        comparison = Comparison(real.tokens, real.eos, encode, asked.budget, asked.seconds)
    found, turn, begin = schemas(asked.schemas), 0, time.perf_counter()
    from rich.progress import Progress

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress() as progress, suppress(KeyboardInterrupt):  # what was compared until then is still told
        task = progress.add_task("places", total=asked.points)
        while comparison.run.points < asked.points and turn < 50:
            order = random.Random(turn + asked.seed).sample(found, len(found))
            for name, schema, instances in order:
                comparison.schema(name, schema, instances, asked.per_schema, asked.seed + turn)
                progress.update(task, completed=comparison.run.points)
                if comparison.run.points >= asked.points:
                    break
            turn += 1
    run = comparison.run
    for wrong in run.wrong[:100]:
        print(wrong)
    print(
        f"{run.points} places, {run.bits} bits, {len(run.wrong)} wrong, {time.perf_counter() - begin:.0f} s"
    )
    for reason, count in run.left_out.most_common(30):
        print(f"  left out {count}: {reason}")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
