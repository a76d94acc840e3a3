"""What every token of a transformers tokenizer stands for, in bytes."""

import json
import re
import weakref

from tokenizers import pre_tokenizers

_FOUND: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer) -> list[bytes]:
    """The bytes of every token, a leading space among them; ``b""`` for special tokens and ids without a token.

    Remembered as long as the tokenizer lives and keeps its size.

    Args:
        tokenizer: a transformers tokenizer: byte-level BPE, or SentencePiece with or without byte fallback. Of others
            the text is what ``decode`` gives for a token alone.
    """
    known = _FOUND.get(tokenizer)
    if known is None or len(known) != len(tokenizer):
        known = _FOUND[tokenizer] = _find(tokenizer)
    return known


def special_ids(tokenizer) -> frozenset[int]:
    """The tokenizer's special tokens, added ones among them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def _find(tokenizer) -> list[bytes]:
    size = len(tokenizer)
    special = special_ids(tokenizer)
    added = {i: token.content for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    names = tokenizer.convert_ids_to_tokens(list(range(size)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = [] if backend is None else _steps(json.loads(backend.to_str())["decoder"])
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    fallback = any(step["type"] == "ByteFallback" for step in steps)
    blank = next(filter(None, map(_blank, steps)), None)
    found = []
    for i, name in enumerate(names):
        if i in special or name is None:
            found.append(b"")
        elif i in added:
            found.append(added[i].encode())
        elif byte_level:
            found.append(b"".join(_LETTERS.get(c, c.encode()) for c in name))
        elif blank:
            byte = _BYTE.fullmatch(name) if fallback else None
            found.append(bytes([int(byte[1], 16)]) if byte else name.replace(blank, " ").encode())
        else:
            found.append(tokenizer.decode([i], clean_up_tokenization_spaces=False).encode())
    return found


def _steps(decoder: dict | None) -> list[dict]:
    """The steps of a decoder, those of a sequence one by one."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _blank(step: dict) -> str | None:
    """What stands for a space in tokens, if a step of a decoder says so."""
    if step["type"] == "Metaspace":
        return step["replacement"]
    if step["type"] == "Replace" and step["content"] == " ":
        return step["pattern"].get("String")
    return None


def _letters() -> dict[str, bytes]:
    """The characters that stand for bytes in byte-level tokens: printable ones for themselves, the rest from U+0100."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    own = [c for c in range(256) if chr(c) in alphabet]
    rest = [c for c in range(256) if chr(c) not in alphabet]
    return {chr(c): bytes([c]) for c in own} | {chr(256 + n): bytes([c]) for n, c in enumerate(rest)}


_LETTERS = _letters()
