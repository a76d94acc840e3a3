"""All texts of a grammar over a small vocabulary, with every mask on the way compared with what is accepted."""

import json

import torch

from tokops.grammar import Vocabulary

PIECES = [
    b'"},{"',
    b'":',
    b'","',
    b'a"',
    b'"}',
    b"ab",
    b'b"}]',
    b"true",
    b"e}",
    b"},",
    b"}]",
    b"ab\\u0061",
    b'b":"a',
    b'"a"}]',
]
TOKENS = [bytes([i]) for i in range(256)] + PIECES + [b""]
EOS = len(TOKENS) - 1
VOCABULARY = Vocabulary(TOKENS, eos_ids=[EOS])


def closed(required=(), more=None, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **(more or {}),
    }


def key(value) -> str:
    """One text for equal values: 1.0 is 1."""
    return json.dumps(value, sort_keys=True).replace(".0", "")


def allowed(matcher, text=b"") -> list[int]:
    mask = torch.empty(VOCABULARY.words, dtype=torch.int32)
    matcher.fill(mask)
    found = [t for t in range(len(TOKENS)) if mask[t >> 5].item() >> (t & 31) & 1]
    for t in range(EOS):
        assert matcher.fork().accept(t) == (t in found), (text, TOKENS[t])
    return found


def texts(matcher, text=b""):
    """All complete texts without escapes, token by byte; a place from which none is reached fails."""
    here = allowed(matcher, text)
    assert here, f"nothing can follow {text}"
    if EOS in here:
        yield text
    if len(text) > 60:  # numbers may be spelled with any number of zeros
        return
    for t in here:
        if t < 256 and t != ord("\\"):
            assert matcher.accept(t)
            yield from texts(matcher, text + bytes([t]))
            matcher.rollback(1)
