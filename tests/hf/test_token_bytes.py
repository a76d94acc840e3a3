"""What tokens of the common kinds of tokenizers stand for, against what the tokenizers decode."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokops import grammar as G
from tokops.hf.token_bytes import token_bytes

WORDS = ("▁", "a", "▁a", "b", "ab", "▁▁", "é")
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LLAMA = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))


def wrapped(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def sentencepiece(decoder):
    """A BPE of SentencePiece's kind, with a token for every byte."""
    vocabulary = {token: i for i, token in enumerate(("<unk>", "<s>", "</s>", *BYTES, *WORDS))}
    merges = [("▁", "a"), ("a", "b"), ("▁", "▁")]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder
    return wrapped(tokenizer)


@pytest.mark.parametrize("decoder", [decoders.Sequence(list(LLAMA)), decoders.Sequence(list(LLAMA[:3]))])
def test_sentencepiece_with_byte_fallback(decoder):
    tokenizer = sentencepiece(decoder)
    found = token_bytes(tokenizer)
    assert found[:3] == [b""] * 3
    assert found[3:259] == [bytes([b]) for b in range(256)]
    assert found[259:] == [b" ", b"a", b" a", b"b", b"ab", b"  ", "é".encode()]
    ids = tokenizer("a ab  aé ü", add_special_tokens=False)["input_ids"]
    assert b"".join(found[i] for i in ids).removeprefix(b" ").decode() == "a ab  aé ü"


def test_a_grammar_sees_leading_spaces():
    tokenizer = sentencepiece(decoders.Sequence(list(LLAMA)))
    vocabulary = G.Vocabulary.from_transformers(tokenizer)
    name = tokenizer.convert_tokens_to_ids
    letters = G.compile_regex("[ab]+", vocabulary).matcher()
    assert letters.accept(name("a"))
    assert not letters.accept(name("▁a"))
    spaced = G.compile_regex("a b", vocabulary).matcher()
    assert all(spaced.accept(name(token)) for token in ("a", "▁", "b", "</s>"))


def test_metaspace():
    """Its replacement may be any character, and a byte's name is only a name."""
    vocabulary = [("<unk>", 0.0), ("_", -1.0), ("_a", -1.0), ("▁", -1.0), ("<0x41>", -1.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_")
    tokenizer.decoder = decoders.Metaspace(replacement="_")
    assert token_bytes(wrapped(tokenizer))[1:5] == [b" ", b" a", "▁".encode(), b"<0x41>"]


def test_byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert sorted(token_bytes(wrapped(tokenizer))[:256]) == [bytes([b]) for b in range(256)]
