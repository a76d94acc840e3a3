"""Grammar engines behind one face: what the benchmark calls of ours and of each peer, and nothing more.

A peer gets the same vocabulary, one thread, and the options that come closest to JSON Schema's own language: any order
where it has that, extra members allowed, blanks between tokens.
"""

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .vocabularies import RealVocabulary


class Engine:
    """One engine over one vocabulary; ``row`` is the mask that `fill` writes, ``[W]`` int32."""

    def __init__(self, vocabulary: RealVocabulary, threads: int):
        self.vocabulary = vocabulary
        self.width = (len(vocabulary.tokens) + 31) // 32
        self.row = np.zeros(self.width, np.int32)

    def compile(self, schema: Any, **options) -> Any:
        """A grammar; raises whatever the engine raises where it refuses."""
        raise NotImplementedError

    def matcher(self, grammar: Any) -> Any:
        """A matcher at the beginning of a text."""
        raise NotImplementedError

    def fill(self, matcher: Any) -> None:
        """Write the mask of the next token into ``row``."""
        raise NotImplementedError

    def accept(self, matcher: Any, token: int) -> bool:
        """Take a token, if it is allowed."""
        raise NotImplementedError

    def refuses(self, matcher: Any, token: int) -> bool:
        """Whether the engine does not take a token that its mask forbids."""
        return not self.accept(matcher, token)

    def warnings(self, grammar: Any) -> list[str]:
        """What the engine says about a grammar that it compiled."""
        return []


class Tokops(Engine):
    """Ours; ``options`` go to `compile_json_schema`."""

    def __init__(self, vocabulary: RealVocabulary, threads: int):
        super().__init__(vocabulary, threads)
        import torch

        from tokops import grammar

        self.module = grammar
        self.vocab = grammar.Vocabulary(
            vocabulary.tokens, eos_ids=[vocabulary.eos], special_ids=list(vocabulary.specials)
        )
        self.mask = torch.from_numpy(self.row)

    def compile(self, schema: Any, **options) -> Any:
        return self.module.compile_json_schema(schema, self.vocab, **options)

    def matcher(self, grammar: Any) -> Any:
        return grammar.matcher()

    def fill(self, matcher: Any) -> None:
        matcher.fill(self.mask)

    def accept(self, matcher: Any, token: int) -> bool:
        return matcher.accept(token)

    def warnings(self, grammar: Any) -> list[str]:
        return list(grammar.warnings)


class LLGuidance(Engine):
    """llguidance by its own matcher; the mask is written straight into the row."""

    def __init__(self, vocabulary: RealVocabulary, threads: int):
        super().__init__(vocabulary, threads)
        self.library: Any = importlib.import_module("llguidance")
        self.tokens = self.library.LLTokenizer(
            vocabulary.tokenizer.to_str(), n_vocab=len(vocabulary.tokens), eos_token=vocabulary.eos
        )
        self.place = self.row.ctypes.data, self.row.nbytes
        self.used = False

    def compile(self, schema: Any, **options) -> Any:
        source = self.library.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = self.library.LLMatcher(self.tokens, source, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        self.used = False
        return matcher

    def matcher(self, grammar: Any) -> Any:
        if self.used:
            grammar.reset()
        self.used = True
        return grammar

    def fill(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(*self.place)

    def accept(self, matcher: Any, token: int) -> bool:
        return matcher.consume_token(token)

    def refuses(self, matcher: Any, token: int) -> bool:
        return (
            matcher.try_consume_tokens([token]) == 0
        )  # consume_token would leave a matcher that can't be reset


class XGrammar(Engine):
    """xgrammar with the schema's own semantics: members that are not listed are allowed."""

    strict = False

    def __init__(self, vocabulary: RealVocabulary, threads: int):
        super().__init__(vocabulary, threads)
        import torch

        self.library: Any = importlib.import_module("xgrammar")
        info = self.library.TokenizerInfo(
            vocabulary.tokens,
            self.library.VocabType.RAW,
            vocab_size=len(vocabulary.tokens),
            stop_token_ids=[vocabulary.eos],
        )
        self.compiler = self.library.GrammarCompiler(info, max_threads=threads, cache_enabled=True)
        self.mask = torch.from_numpy(self.row)[None]

    def compile(self, schema: Any, **options) -> Any:
        return self.compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=True, strict_mode=self.strict
        )

    def matcher(self, grammar: Any) -> Any:
        return self.library.GrammarMatcher(grammar)

    def fill(self, matcher: Any) -> None:
        # Without a need to mask it leaves the row as it is.
        if not matcher.fill_next_token_bitmask(self.mask, 0):
            self.row.fill(-1)

    def accept(self, matcher: Any, token: int) -> bool:
        return matcher.accept_token(token)


class XGrammarStrict(XGrammar):
    """xgrammar as it is by default: members that are not listed are forbidden."""

    strict = True


class OutlinesCore(Engine):
    """outlines-core: one automaton over tokens per schema."""

    def __init__(self, vocabulary: RealVocabulary, threads: int):
        super().__init__(vocabulary, threads)
        self.library: Any = importlib.import_module("outlines_core")
        by_bytes: dict[bytes, list[int]] = {}
        for i, token in enumerate(vocabulary.tokens):
            if token and i != vocabulary.eos:
                by_bytes.setdefault(token, []).append(i)
        self.vocab = self.library.Vocabulary(vocabulary.eos, by_bytes)

    def compile(self, schema: Any, **options) -> Any:
        return self.library.Index(
            self.library.json_schema.build_regex_from_schema(json.dumps(schema)), self.vocab
        )

    def matcher(self, grammar: Any) -> Any:
        return self.library.Guide(grammar)

    def fill(self, matcher: Any) -> None:
        matcher.write_mask_into(self.row.ctypes.data, self.width, 4)

    def accept(self, matcher: Any, token: int) -> bool:
        try:
            matcher.advance(token, return_tokens=False)
        except (ValueError, IndexError):
            return False
        return True


ENGINES: dict[str, Callable[[RealVocabulary, int], Engine]] = {
    "tokops": Tokops,
    "llguidance": LLGuidance,
    "xgrammar": XGrammar,
    "xgrammar-strict": XGrammarStrict,
    "outlines-core": OutlinesCore,
}
PACKAGES = {"tokops": "tokops", "llguidance": "llguidance", "xgrammar": "xgrammar"}
PACKAGES |= {"xgrammar-strict": "xgrammar", "outlines-core": "outlines_core"}


def version(name: str) -> str | None:
    """The version of the engine's package; None where it is not installed."""
    package = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        return None
    return importlib.metadata.version(package.replace("_", "-"))


def installed() -> list[str]:
    """Names of the engines that can run here; the strict variant is left out unless it is asked for."""
    return [name for name in ENGINES if name != "xgrammar-strict" and version(name)]
