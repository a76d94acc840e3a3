"""The engine as tests use it: bytes as tokens, and the verdict on a text."""

from __future__ import annotations

import functools
import json

END = 256


@functools.cache
def byte_vocabulary():
    """All bytes, and an end."""
    import tokops.grammar

    return tokops.grammar.Vocabulary([*(bytes((b,)) for b in range(256)), b""], eos_ids=[END])


def accepts(grammar, text: bytes) -> bool:
    """Whether a grammar over :func:`byte_vocabulary` allows a whole text; its mask and `accept` must agree on it."""
    import torch

    matcher, row = grammar.matcher(), torch.zeros(9, dtype=torch.int32)
    for b in text:
        if not matcher.accept(b):
            matcher.fill(row)
            assert not int(row[b >> 5]) >> (b & 31) & 1, (
                f"{text!r}: byte {b} is allowed by the mask, not by accept"
            )
            return False
    matcher.fill(row)
    return bool(int(row[END >> 5]) >> (END & 31) & 1)


def as_text(data) -> bytes | None:
    """An instance as JSON text; None where it holds a lone surrogate, which no UTF-8 text does."""
    try:
        return json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return None


def judge(schema, tests, **options) -> tuple[str, str]:
    """("exact" | "over" | "under" | "both" | "refused" | "refused without a name", what is wrong)."""
    import tokops.grammar

    try:
        grammar = tokops.grammar.compile_json_schema(schema, byte_vocabulary(), **options)
    except tokops.grammar.GrammarError as error:
        named = bool(error.keyword and error.reason)
        return "refused" if named else "refused without a name", str(error)
    wrong = []
    for test in tests:
        text = as_text(test["data"])
        if text is not None and accepts(grammar, text) != test["valid"]:
            wrong.append((test["valid"], text))
    over, under = (any(valid == kind for valid, _ in wrong) for kind in (True, False))
    verdict = "both" if over and under else "over" if over else "under" if under else "exact"
    said = ", ".join(f"{'valid' if valid else 'invalid'} {text[:200]!r}" for valid, text in wrong)
    return verdict, said
