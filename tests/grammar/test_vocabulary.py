"""Vocabularies: the ids that are given, and what is read from files and tokenizers."""

import base64
import sys

import pytest

from tokops.grammar import Vocabulary

TOKENS = [b"a", b"b", b"<s>", b""]


def test_ids_may_come_from_generators():
    vocabulary = Vocabulary(TOKENS, eos_ids=(i for i in (3,)), special_ids=(i for i in (2,)))
    assert [vocabulary.token(i) for i in range(4)] == [b"a", b"b", b"", b""]
    assert vocabulary.eos_ids == [3]


def tiktoken_file(path, ranks):
    """A file of so many ranks, which are the bytes and then numbers; p50k_base leaves an id out."""
    texts = [*(bytes((b,)) for b in range(256)), *(b"%d" % i for i in range(10, 10 + ranks - 256))]
    ids = [i for i in range(ranks + 1) if ranks != 50280 or i != 50256]
    lines = [base64.b64encode(text) + b" %d\n" % i for text, i in zip(texts, ids, strict=False)]
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(
    ("ranks", "eos", "width"),
    [
        (50256, [50256], 50257),
        (50280, [50256], 50281),
        (100256, [100257], 100277),
        (128000, [128001, 128009], 128256),
        (199998, [199999], 200019),
    ],
)
def test_known_tiktoken_files(tmp_path, ranks, eos, width):
    path = tiktoken_file(tmp_path / "file", ranks)
    vocabulary = Vocabulary.from_tiktoken(path)
    assert (vocabulary.eos_ids, vocabulary.width) == (eos, width)
    assert [vocabulary.token(i) for i in (97, 256, *eos)] == [b"a", b"10", *[b""] * len(eos)]
    given = Vocabulary.from_tiktoken(path, eos_ids=[7], special_ids=[97], width=width + 5)
    assert (given.eos_ids, given.width, given.token(97)) == ([7], width + 5, b"")


def test_other_tiktoken_files(tmp_path):
    path = tiktoken_file(tmp_path / "file", 300)
    with pytest.raises(ValueError, match=r"has 300 ranks and is none of r50k_base .*: give eos_ids"):
        Vocabulary.from_tiktoken(path)
    vocabulary = Vocabulary.from_tiktoken(path, eos_ids=[301])
    assert (len(vocabulary), vocabulary.width, vocabulary.eos_ids) == (302, 302, [301])
    path.write_bytes(b"YQ== 0\nb 1\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is not base64 and an id"):
        Vocabulary.from_tiktoken(path)


def gguf_file(path, model, tokens, **ids):
    gguf = pytest.importorskip("gguf", reason="the extra `hf` is not installed")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    for name, i in ids.items():
        getattr(writer, f"add_{name}_token_id")(i)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(tmp_path):
    pieces = [("<unk>", 2), ("</s>", 3), ("<0x0A>", 6), ("\u2581caf\u00e9", 1), ("<tool>", 4), ("x", 5)]
    path = gguf_file(tmp_path / "pieces.gguf", "llama", pieces, eos=1, eot=0)
    vocabulary = Vocabulary.from_gguf(path, width=8)
    assert [vocabulary.token(i) for i in range(6)] == [b"", b"", b"\n", " caf\u00e9".encode(), b"<tool>", b""]
    assert (sorted(vocabulary.eos_ids), vocabulary.width) == ([0, 1], 8)
    letters = [("\u0120caf\u00c3\u00a9", 1), ("\u010a", 1), ("<|end|>", 3)]
    vocabulary = Vocabulary.from_gguf(gguf_file(tmp_path / "letters.gguf", "gpt2", letters, eos=2))
    assert [vocabulary.token(i) for i in range(3)] == [" caf\u00e9".encode(), b"\n", b""]
    assert (vocabulary.eos_ids, vocabulary.width) == ([2], 3)


def fast(model, **options):
    """A transformers tokenizer around a model of tokenizers."""
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    from tokenizers import Tokenizer, decoders

    tokenizer = Tokenizer(model)
    tokenizer.decoder = options.pop("decoder", decoders.ByteLevel())
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def test_a_folder_with_a_tokenizer(tmp_path, monkeypatch):
    models = pytest.importorskip("tokenizers.models", reason="the extra `hf` is not installed")
    tokenizer = fast(models.BPE({"a": 0, "\u0120b": 1}, []), eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    for given in (tokenizer, tmp_path, str(tmp_path)):
        vocabulary = Vocabulary.from_transformers(given, width=5)
        assert [vocabulary.token(i) for i in range(3)] == [b"a", b" b", b""]
        assert (vocabulary.eos_ids, vocabulary.width) == ([2], 5)
    with pytest.raises(ValueError, match=r"'.*nowhere' is not a folder"):
        Vocabulary.from_transformers(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="a path needs transformers: pip install"):
        Vocabulary.from_transformers(tmp_path)


def test_word_pieces_are_refused():
    models = pytest.importorskip("tokenizers.models", reason="the extra `hf` is not installed")
    from tokenizers import decoders

    tokenizer = fast(
        models.WordPiece({"a": 0, "##b": 1, "[SEP]": 2}, unk_token="a"),
        decoder=decoders.WordPiece(),
        eos_token="[SEP]",
    )
    with pytest.raises(ValueError, match="the tokenizer's model is WordPiece"):
        Vocabulary.from_transformers(tokenizer)
