"""One engine walks the instances of one schema after another, in a process of its own that may be killed."""

import gc
import json
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from .grammar_engines import ENGINES, Engine
from .grammar_items import Item
from .vocabularies import load

clock = time.thread_time_ns  # processor time of this thread, not of the wall


@dataclass
class Walk:
    """What an engine did with one instance.

    Attributes:
        valid: whether it should be accepted.
        accepted: whether every token and then the end was allowed.
        at: the token at which it was refused; the number of tokens where it was the end.
        disagreed: whether the mask's bit and `accept` said different things at some token.
        masks, accepts: nanoseconds per call on the first walk.
        warm_masks, warm_accepts: on a second one.
    """

    valid: bool
    accepted: bool
    at: int
    disagreed: bool = False
    masks: list[int] = field(default_factory=list)
    accepts: list[int] = field(default_factory=list)
    warm_masks: list[int] = field(default_factory=list)
    warm_accepts: list[int] = field(default_factory=list)


@dataclass
class Outcome:
    """What an engine did with one schema.

    Attributes:
        status: "compiled", "refused", "time-out", "memory" or "crash".
        reason: the engine's words where it refused.
        compile_ns, first_mask_ns: processor time of compiling, and until the first mask, compiling included.
        walks: one per instance.
        warnings: the engine's words where it compiled.
    """

    status: str
    reason: str = ""
    compile_ns: int = 0
    first_mask_ns: int = 0
    walks: list[Walk] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def walk(engine: Engine, grammar: Any, tokens: list[int], valid: bool) -> Walk:
    """Feed an instance token by token, twice: mask, bit, accept; then the end."""
    out = Walk(valid, False, len(tokens))
    row, end = engine.row, engine.vocabulary.eos
    matcher = engine.matcher(grammar)
    for place, token in enumerate(tokens):
        begin = clock()
        engine.fill(matcher)
        out.masks.append(clock() - begin)
        if not int(row[token >> 5]) >> (token & 31) & 1:
            out.at, out.disagreed = place, not engine.refuses(matcher, token)
            break
        begin = clock()
        taken = engine.accept(matcher, token)
        out.accepts.append(clock() - begin)
        if not taken:
            out.at, out.disagreed = place, True
            out.accepts.pop()
            break
    else:
        begin = clock()
        engine.fill(matcher)
        out.masks.append(clock() - begin)
        out.accepted = bool(int(row[end >> 5]) >> (end & 31) & 1)
    matcher = engine.matcher(grammar)
    for token in tokens[: out.at]:
        begin = clock()
        engine.fill(matcher)
        middle = clock()
        engine.accept(matcher, token)
        out.warm_accepts.append(clock() - middle)
        out.warm_masks.append(middle - begin)
    begin = clock()
    engine.fill(matcher)
    out.warm_masks.append(clock() - begin)
    return out


def measure(engine: Engine, item: Item) -> Outcome:
    """Compile a schema, fill its first mask, walk its instances."""
    texts = [(json.dumps(data, ensure_ascii=False), valid) for data, valid in item.tests]
    walks = [(engine.vocabulary.encode(text), valid) for text, valid in texts if _encodable(text)]
    gc.collect()
    gc.disable()
    try:
        begin = clock()
        try:
            grammar = engine.compile(item.schema, **item.options)
        except MemoryError:
            return Outcome("memory")
        except BaseException as error:  # panics of Rust are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            return Outcome("refused", f"{type(error).__name__}: {error}"[:300], compile_ns=clock() - begin)
        compiled = clock()
        engine.fill(engine.matcher(grammar))
        first = clock()
        out = Outcome("compiled", "", compiled - begin, first - begin, warnings=engine.warnings(grammar)[:5])
        out.walks = [walk(engine, grammar, tokens, valid) for tokens, valid in walks]
        return out
    finally:
        gc.enable()


def _encodable(text: str) -> bool:
    """Lone surrogates are in no text that a tokenizer gives."""
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


def serve(connection: Connection, name: str, vocabulary: str, threads: int, seconds: float) -> None:
    """Answer items with outcomes until None comes; too much processor time kills the process.

    Args:
        connection: items come in, outcomes go out; "ready" first.
        name: of the engine.
        vocabulary: see :func:`tokops.bench.vocabularies.load`.
        threads: that the engine may use.
        seconds: processor time for one item.
    """
    engine = ENGINES[name](load(vocabulary), threads)
    gc.freeze()
    connection.send("ready")
    while (item := connection.recv()) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, whatever it is in
        outcome = measure(engine, item)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(outcome)
