"""Vocabularies: the ids that are given, and what is read from files and tokenizers."""

from tokops.grammar import Vocabulary

TOKENS = [b"a", b"b", b"<s>", b""]


def test_ids_may_come_from_generators():
    vocabulary = Vocabulary(TOKENS, eos_ids=(i for i in (3,)), special_ids=(i for i in (2,)))
    assert [vocabulary.token(i) for i in range(4)] == [b"a", b"b", b"", b""]
    assert vocabulary.eos_ids == [3]
