"""Prompts of byte-level models: tokens that nothing reaches across, and the text behind them."""

from collections.abc import Sequence

from ..grammar.bytes_validity import BPEValidity, EveryEncoding
from ..grammar.bytes_vocabulary import Spelling

#: A prompt: text (special tokens in it are recognised), bytes (nothing is), or these and token ids one after another.
Prompt = str | bytes | Sequence[int | str | bytes]


_BACK = 32  # bytes at most that a prompt is read back without exact validity

_FIM = {
    "pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<|fim▁begin|>", "<PRE>", "▁<PRE>", "[PREFIX]"),
    "suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<|fim▁hole|>", "<SUF>", "▁<SUF>", "[SUFFIX]"),
    "mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<|fim▁end|>", "<MID>", "▁<MID>", "[MIDDLE]"),
}


class Prompts:
    """Reads prompts with one tokenizer.

    Args:
        tokenizer: of transformers.
        spelling: its description.
        validity: which sequences count.
        rows: tokens that the model knows.
        begin: tokens before a text; None: what the tokenizer puts there.
    """

    def __init__(
        self,
        tokenizer,
        spelling: Spelling,
        validity: BPEValidity | EveryEncoding,
        rows: int,
        begin: tuple[int, ...] | None,
    ):
        self.tokenizer = tokenizer
        self.spelling = spelling
        self.validity = validity
        self.rows = rows
        self.begin = begin

    def first_token(self) -> list[int]:
        """The token that a text stands behind of which nothing is certain."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None and self.begin is None:
                return [token]
        raise ValueError(
            "ByteLevel: no token is certain to begin with, and the tokenizer has none: pass begin="
        )

    def parts(self, prompt: Prompt) -> list[int | bytes]:
        """Token ids and bytes, one after another, without empty ones."""
        parts: list[int | bytes] = []
        for one in [prompt] if isinstance(prompt, (str, bytes)) else prompt:
            if isinstance(one, str):
                parts += self._split_special(one)
            elif isinstance(one, (bytes, bytearray)):
                parts.append(bytes(one))
            elif 0 <= int(one) < self.rows:
                parts.append(int(one))
            else:
                raise ValueError(f"ByteLevel: the prompt's token {one} is not in the model's vocabulary")
        joined: list[int | bytes] = []
        for part in parts:
            if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
                joined[-1] += part
            elif part != b"":
                joined.append(part)
        return joined

    def _split_special(self, text: str) -> list[int | bytes]:
        parts: list[int | bytes] = []
        while text:
            found = [(at, -len(s), s) for s in self.spelling.added if (at := text.find(s)) >= 0]
            if not found:
                break
            at, _, special = min(found)
            parts += [text[:at].encode(), self.spelling.added[special]]
            text = text[at + len(special) :]
        return [*parts, text.encode()]

    def segments(self, prompt: Prompt) -> tuple[list[int], bytes]:
        """Tokens that nothing reaches across, and the text behind them."""
        parts = self.parts(prompt)
        last = parts[-1] if parts else b""
        data = last if isinstance(last, bytes) else b""
        parts = parts[: len(parts) - bool(data)]
        ids = list(self._beginning(parts) if self.begin is None else self.begin)
        first = True
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode(self.spelling.lead_of(part, first) + part, part)
            first = False
        return ids, data

    def _beginning(self, parts) -> Sequence[int]:
        found = self.tokenizer("").input_ids
        ending = self.tokenizer.eos_token_id
        found = found[:-1] if len(found) > 1 and found[-1] == ending else found
        if found == [ending] and ending != self.tokenizer.bos_token_id:
            found = []
        return () if parts and list(parts[: len(found)]) == list(found) else found

    def _encode(self, full: bytes, data: bytes) -> list[int]:
        if isinstance(self.validity, BPEValidity):
            return self.validity.encode(full)
        ids = self.tokenizer.backend_tokenizer.encode(data.decode(), add_special_tokens=False).ids
        if b"".join(self.spelling.vocabulary.tokens[i] for i in ids).lstrip(b" ") != full.lstrip(b" "):
            raise ValueError(
                f"ByteLevel: the tokenizer changes {data[:40]!r}: it cannot be read back from its tokens"
            )
        return ids

    def backed_off(self, full: bytes, led: bool) -> tuple[list[int], bytes]:
        """Tokens of a text up to its last word, and the bytes of that."""
        text = full.decode("utf-8", "ignore")
        whole = len(text.encode())
        if not text:
            return [], full
        ids = self._encode(full[:whole], full[int(led) : whole])
        spelled = [self.spelling.vocabulary.tokens[i] for i in ids]
        if b"".join(spelled) != full[:whole]:
            raise ValueError(
                "ByteLevel: the tokenizer changes the prompt's spaces: pass bytes that begin with none"
            )
        word = max(full.rstrip().rfind(b" "), full.rstrip().rfind(b"\n"), len(full) - _BACK, 0)
        at = len(full[:whole])
        while ids and at > word:
            at -= len(spelled.pop())
            ids.pop()
        return ids, full[at:]

    def special(self, role: str, given: int | str | None) -> int:
        """The id of a special token for filling in the middle."""
        if isinstance(given, int):
            return given
        names = _FIM[role] if given is None else (given,)
        known = {**self.spelling.vocab, **self.spelling.added}
        for name in names:
            if name in known:
                return known[name]
        raise ValueError(
            f"ByteLevel: the tokenizer has no special token {' or '.join(map(repr, names))}: pass {role}="
        )
