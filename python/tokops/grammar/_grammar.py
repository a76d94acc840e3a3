"""Grammars: compiled from JSON Schema, regular expressions, EBNF, Lark or tags, and matched token by token."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from ._vocabulary import Vocabulary, native

__all__ = [
    "BudgetError",
    "Grammar",
    "GrammarError",
    "Matcher",
    "Tag",
    "Vocabulary",
    "compile_ebnf",
    "compile_json_schema",
    "compile_lark",
    "compile_regex",
    "compile_tags",
    "fill_batch",
]

GrammarError = native.GrammarError
GrammarError.__doc__ = """A grammar that can't be compiled: a ValueError with the attributes keyword, pointer, reason.

Attributes:
    keyword: the keyword or feature at fault.
    pointer: where it stands: a JSON pointer (in ``compile_tags`` of the tags: /0/schema/..), or "line:column" in texts
        of grammars, of patterns and of JSON (behind that of a ``%json``, a pointer inside of it). "" is the root.
    reason: what is wrong, as a sentence.
"""
BudgetError = native.BudgetError
BudgetError.__doc__ = (
    "A bound on time, memory or alternatives was passed while compiling or matching: a GrammarError."
)
Matcher = native.Matcher
Matcher.__doc__ = """A text against a grammar, token by token: made by ``Grammar.matcher()``.

* ``accept(token) -> bool``: take a token; False where the grammar does not allow it, and nothing has changed then. An
  end token is allowed where the text is complete; after it nothing is. Raises IndexError for ids that are not below
  the vocabulary's width.
* ``fill(mask)``: write which tokens are allowed to int32 [W], W = ceil(width / 32): bit t % 32 of word t / 32. mask is
  a CPU tensor or a numpy array, contiguous.
* ``rollback(n)``: take back the last n tokens. ``fork()``: a matcher of its own at the same place. ``reset()``.
* ``jump_forward() -> bytes``: the bytes that must come next (characters spelled plainly rather than as escapes), b""
  where there is a choice.
* ``is_done()``: an end token was accepted. ``is_complete()``: one would be.
* ``fill_tree(parents, tokens, mask)``: masks int32 [N, W] of a draft tree: row i is what may follow node i, whose token
  is tokens[i] and whose parent is parents[i] < i or -1 (the text so far); all clear where node i itself isn't allowed.
* ``accept_bytes(bytes) -> bool``: take text that is not tokens, all or nothing; counts as one token for ``rollback``.
* ``bytes_taken(bytes) -> int``: how many of the bytes could come next. ``allowed_bytes()``, ``expected()``: what could.

One matcher is used by one thread at a time; matchers of one grammar are independent of each other.
"""


class Grammar:
    """A compiled grammar: made by the ``compile_*`` functions, shared by any number of matchers and threads.

    Attributes:
        vocabulary: what it was compiled for.
        warnings: what does not restrict the text and might be meant to: keywords that are not known, that the draft
            does not have or that say nothing where they stand, unknown formats and drafts.
    """

    def __init__(self, vocabulary: Vocabulary, compiled: Any):
        self.vocabulary = vocabulary
        self.native = compiled
        self.warnings: list[str] = list(compiled.warnings)

    def matcher(self) -> Any:
        """A matcher at the beginning of a text."""
        return native.Matcher(self.native)

    def accepts(self, text: str | bytes) -> bool:
        """Whether a whole text is in the language."""
        m = self.matcher()
        return m.accept_bytes(text.encode() if isinstance(text, str) else text) and m.is_complete()

    def __repr__(self) -> str:
        return f"Grammar({self.vocabulary!r})"


class Tag:
    """A structure of ``compile_tags``: `begin`, JSON of `schema` (or a text that `pattern` matches), then `end`."""

    def __init__(self, begin: str, schema: Any = True, end: str = "", pattern: str | None = None):
        if not begin:
            raise ValueError("Tag: begin is empty")
        self.begin, self.schema, self.end, self.pattern = begin, schema, end, pattern


def compile_json_schema(
    schema: dict | bool | str,
    vocab: Vocabulary,
    whitespace: str = "any",
    key_order: str = "any",
    formats: str = "assert",
    *,
    max_whitespace: int = 64,
    one_of: str = "exact",
    strict: bool = False,
    draft: int | None = None,
    registry: dict[str, Any] | None = None,
    base_uri: str = "",
    max_alternatives: int = 1024,
    max_steps: int = 4_000_000,
    timeout: float = 2.0,
) -> Grammar:
    """The JSON texts that are valid under a JSON Schema, and no others.

    The language is the schema's own: members in any order, required ones enforced, no name twice; 1.0 is an integer;
    escapes in strings stand for what they spell. Two things are narrower: numbers with an exponent (1e5) are only
    written where a schema says nothing about a number but its sign, and never as integers; and there is no whitespace
    before the first and after the last character.

    Args:
        schema: JSON Schema of draft 4 to 2020-12, parsed or as text. The draft is read from ``$schema``.
        vocab: the tokens of the model.
        whitespace: "any": up to max_whitespace of space, tab and newline between tokens of JSON; "space": at most one
            space; "none".
        key_order: "any", or "schema": members in the order in which the schema lists them, others last.
        formats: "assert": the known formats are enforced; "annotate": none is. Names that are not known give a warning.
        one_of: "exact", or "any_of": read oneOf as anyOf.
        strict: objects that list properties and say nothing of others hold no others.
        draft: 4, 6, 7, 2019 or 2020 where ``$schema`` does not say; default 2020.
        registry: documents that references outside the schema lead to, by URI.
        base_uri: the schema's own URI.
        max_alternatives, max_steps, timeout: bounds on compiling; timeout in seconds.

    Raises:
        GrammarError: a keyword that can't be enforced, a reference that can't be resolved, a malformed schema, or one
            that no value satisfies: always with the keyword and where it stands.
        BudgetError: a bound was passed.
    """
    if isinstance(schema, str):
        schema = _loads(schema)
    return Grammar(
        vocab,
        native.Grammar.from_schema(
            vocab.native,
            schema,
            _options(
                whitespace, key_order, formats, max_whitespace, one_of, strict, draft, registry, base_uri,
                max_alternatives, max_steps, timeout,
            ),
        ),
    )  # fmt: skip


def _options(
    whitespace="any", key_order="any", formats="assert", max_whitespace=64, one_of="exact", strict=False, draft=None,
    registry=None, base_uri="", max_alternatives=1024, max_steps=4_000_000, timeout=2.0,
) -> dict[str, Any]:  # fmt: skip
    for name, value, allowed in (
        ("whitespace", whitespace, ("any", "space", "none")),
        ("key_order", key_order, ("any", "schema")),
        ("formats", formats, ("assert", "annotate")),
        ("one_of", one_of, ("exact", "any_of")),
        ("draft", draft, (None, 4, 6, 7, 2019, 2020)),
    ):
        if value not in allowed:
            raise ValueError(f"compile_json_schema: {name}: expected one of {allowed}, got {value!r}")
    if not 0 <= max_whitespace <= 60000:
        raise ValueError(f"compile_json_schema: max_whitespace: expected 0 to 60000, got {max_whitespace}")
    return {
        "whitespace": whitespace,
        "max_whitespace": max_whitespace,
        "schema_order": key_order == "schema",
        "assert_formats": formats == "assert",
        "one_of": one_of,
        "strict": strict,
        "draft": draft or 0,
        "registry": registry or {},
        "base": base_uri,
        "max_alternatives": max_alternatives,
        "max_steps": max_steps,
        "timeout": float(timeout),
    }


def compile_regex(pattern: str, vocab: Vocabulary) -> Grammar:
    """The texts that an ECMA-262 pattern matches from the first character to the last.

    Raises:
        GrammarError: a syntax error with its position, or a feature that is not supported (back-references ..).
    """
    return Grammar(vocab, native.Grammar.from_rules(vocab.native, "regex", pattern, "", _loads, _options()))


def compile_ebnf(source: str, vocab: Vocabulary, start: str = "root", **options: Any) -> Grammar:
    """The texts that an EBNF or GBNF grammar derives from `start`. Left recursion is fine.

    Raises:
        GrammarError: with "line:column" and the reason.
    """
    return Grammar(
        vocab, native.Grammar.from_rules(vocab.native, "ebnf", source, start, _loads, _options(**options))
    )


def compile_lark(source: str, vocab: Vocabulary, start: str = "start", **options: Any) -> Grammar:
    """The texts that a Lark grammar derives from `start`. There is no lexer: every splitting into terminals counts.

    ``%json {..}`` holds a schema (an extension); `options` are those of ``compile_json_schema`` for it.

    Raises:
        GrammarError: with "line:column" and the reason.
    """
    return Grammar(
        vocab, native.Grammar.from_rules(vocab.native, "lark", source, start, _loads, _options(**options))
    )


def compile_tags(
    tags: Sequence[Tag | dict],
    vocab: Vocabulary,
    triggers: Sequence[str] = (),
    at_least_one: bool = False,
    stop_after_first: bool = False,
    **options: Any,
) -> Grammar:
    """Free text until a trigger, then the structure of a tag that begins with it, any number of times: tool calls.

    Args:
        tags: each a ``Tag`` or a dict with its fields (begin, schema or pattern, end).
        vocab: the tokens of the model.
        triggers: each a prefix of some tags' begins; default: the begins themselves.
        at_least_one: the text may only end after a structure.
        stop_after_first: the text ends with the first structure.
        options: those of ``compile_json_schema`` for the schemas.

    Raises:
        GrammarError: a tag without a trigger, or a schema that can't be compiled.
    """
    if not tags:
        raise ValueError("compile_tags: tags is empty")
    all_tags = [Tag(**t) if isinstance(t, dict) else t for t in tags]
    rows = []
    for i, t in enumerate(all_tags):
        schema = t.schema
        if isinstance(schema, str) and t.pattern is None:
            schema = _loads(schema, f"/{i}/schema")
        rows.append((t.begin, schema if t.pattern is None else t.pattern, t.end, t.pattern is not None))
    return Grammar(
        vocab,
        native.Grammar.from_tags(
            vocab.native, rows, list(triggers), at_least_one, stop_after_first, _options(**options)
        ),
    )


def fill_batch(matchers: Sequence[Any], mask: torch.Tensor, threads: int | None = None) -> None:
    """Masks of several matchers at once, over a thread pool, without the interpreter's lock.

    Args:
        matchers: B matchers, each another one; None for a row without a grammar, whose mask is all ones.
        mask: int32 [B, W] on the CPU, contiguous; every row is written.
        threads: at most this many; default: as many as torch uses.

    Raises:
        ValueError: a mask of another shape or dtype, one matcher in two rows, vocabularies of different widths.
    """
    matchers = list(matchers)
    if all(m is None for m in matchers):  # nothing says how wide a row is
        rows = torch.as_tensor(mask)
        if rows.dtype != torch.int32 or not rows.is_cpu or rows.ndim != 2 or len(rows) != len(matchers):
            raise ValueError(
                f"fill_batch: mask: expected int32 of {len(matchers)} rows on the CPU, got {list(rows.shape)} of "
                f"{rows.dtype} on {rows.device}"
            )
        rows.fill_(-1)
        return
    native.fill_batch(matchers, mask, torch.get_num_threads() if threads is None else int(threads))


def _loads(text: str, place: str = "") -> Any:
    """JSON text with numbers as they are written. place: of the text in what holds it, for errors."""
    from decimal import Decimal

    try:
        # NaN and infinities too: where they stand is told when the values are read.
        return json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=Decimal)
    except RecursionError as error:
        raise _located(BudgetError, "nesting", place, "the schema is nested too deep") from error
    except json.JSONDecodeError as error:
        place = place or f"{error.lineno}:{error.colno}"
        raise _located(GrammarError, "schema", place, f"not JSON: {error}") from error


def _located(kind: Any, keyword: str, pointer: str, reason: str) -> Exception:
    """An error as the library raises it."""
    raised = kind(f"{keyword} at {pointer or 'the root'}: {reason}")
    raised.keyword, raised.pointer, raised.reason = keyword, pointer, reason
    return raised
