"""Grammars in ``generate``: every row's text is in the language, in batches, with beams, and under speculation."""

import pytest
import torch
from tiny_models import build

import tokops
from tokops import grammar as G
from tokops.methods import Speculate

TEXT = '{}[]",:-.+eE0123456789abcdefghijklmnopqrstuvwxyz _\\/\n'
EOS = 2
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "b": {"enum": ["yes", "no"]},
    },
    "required": ["b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    model = build("llama")
    model.generation_config.eos_token_id = EOS
    return model


@pytest.fixture(scope="module")
def vocab():
    tokens = [b"", b"", b"", *(c.encode() for c in TEXT)]
    tokens += [b'"b', b'": ', b'{"', b"yes", b"12"]
    return G.Vocabulary(tokens, [EOS], width=97)


def texts(vocab, out, prompts):
    for row in out[:, prompts["input_ids"].shape[1] :].tolist():
        ids = row[: row.index(EOS)] if EOS in row else row
        yield b"".join(vocab.token(t) for t in ids), EOS in row


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ],
)
def test_texts_are_in_the_language(model, vocab, prompts, how):
    grammar = G.compile_json_schema(SCHEMA, vocab, whitespace="none")
    torch.manual_seed(0)
    out = model.generate(**prompts, max_new_tokens=40, logits_processor=[G.GrammarProcessor(grammar)], **how)
    for text, ended in texts(vocab, out, prompts):
        assert grammar.accepts(text) if ended else grammar.matcher().bytes_taken(text) == len(text)


def test_a_grammar_for_each_row(model, vocab, prompts):
    count = len(prompts["input_ids"])
    grammars = [G.compile_regex("[ab]{3}", vocab), None, G.compile_regex("(12)+", vocab)] * count
    out = model.generate(
        **prompts, max_new_tokens=6, do_sample=False, logits_processor=[G.GrammarProcessor(grammars[:count])]
    )
    plain = model.generate(**prompts, max_new_tokens=6, do_sample=False)
    for i, (text, ended) in enumerate(texts(vocab, out, prompts)):
        if grammars[i] is None:
            assert out[i, -6:].tolist()[:1] == plain[i, -6:].tolist()[:1]
        elif ended:
            assert grammars[i].accepts(text)
        else:
            assert grammars[i].matcher().bytes_taken(text) == len(text)


@pytest.mark.parametrize("further", ["other", "answered"])
def test_a_second_generation_begins_anew(model, vocab, further):
    """With another prompt, or with the first text and a second turn behind it, as in a conversation."""
    grammar = G.compile_regex("[ab]{3,8}", vocab)
    processor = G.GrammarProcessor(grammar)

    def texts_after(prompt):
        ids = torch.tensor([prompt])
        how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False}
        return model.generate(ids, logits_processor=[processor], **how)[0].tolist()

    first = texts_after([5, 6, 7])
    prompt = [8, 9, 10, 11, 12, 13] if further == "other" else [*first, 8, 9, 10]
    text = texts_after(prompt)[len(prompt) :]
    assert grammar.accepts(b"".join(vocab.token(t) for t in text if t != EOS))


@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit"])
def test_speculation_gives_the_same_tokens(model, vocab, prompts, draft):
    """Masks of draft trees: greedy decoding under a grammar does not change with what is drafted."""
    grammar = G.compile_json_schema(SCHEMA, vocab, whitespace="none")
    how = {"max_new_tokens": 30, "do_sample": False}
    expected = model.generate(**prompts, **how, logits_processor=[G.GrammarProcessor(grammar)])
    with tokops.patch(
        model, Speculate(draft, nodes=9) if draft == "early_exit" else Speculate(draft), page_size=4
    ):
        got = model.generate(**prompts, **how, logits_processor=[G.GrammarProcessor(grammar)])
    assert list(texts(vocab, got, prompts)) == list(texts(vocab, expected, prompts))


def test_refusals(vocab):
    with pytest.raises(ValueError, match="no grammar"):
        G.GrammarProcessor([None])
    g = G.compile_regex("a", vocab)
    with pytest.raises(ValueError, match="entries"):
        G.GrammarProcessor(g)(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="rows for 2 grammars"):
        G.GrammarProcessor([g, g])(torch.zeros(3, 3, dtype=torch.long), torch.zeros(3, 97))
