"""Token trees behind sequences of different lengths: a node is computed as if its path were the text."""

import copy
import random

import pytest
import torch
from tiny_models import FAMILIES, build
from trees import PADDING, Alone, Texts, path_to, positions_of, random_parents, words_of

import tokops
from tokops.methods import TidalDecode

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def alone(model, texts, row, path, tokens):
    """Logits of the last token of a path by the stock model, which sees nothing but one text."""
    own = texts.tokens[row][texts.padding[row] :] + [tokens[row, node].item() for node in path]
    with torch.no_grad():
        return model(input_ids=torch.tensor([own]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("padding", [PADDING, (0, 0, 0)], ids=["padded", "unpadded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_is_computed_as_if_its_path_were_decoded_alone(family, padding):
    model, stock = build(family), build(family)
    with tokops.patch(model, page_size=4) as run:
        texts = Texts(model, run.new_cache(), seed=3, padding=padding)
        for nodes in (9, 1, 14):
            logits, tokens, trees = texts.draft(nodes)
            for row, parents in enumerate(trees):
                for node in range(nodes):
                    want = alone(stock, texts, row, path_to(parents, node), tokens)
                    torch.testing.assert_close(logits[row, node], want, **CLOSE)
            texts.keep(tokens, texts.accept(trees))
        assert len(set(texts.cache.lengths)) > 1, "lengths are meant to drift apart"
        assert texts.cache.lengths == [len(text) for text in texts.tokens]


def test_a_tree_of_more_nodes_than_a_word_has_bits():
    model, stock = build("mistral"), build("mistral")
    with tokops.patch(model, page_size=16) as run:
        texts = Texts(model, run.new_cache())
        logits, tokens, trees = texts.draft(150)
        for node in (0, 63, 64, 65, 127, 128, 149):
            want = alone(stock, texts, 1, path_to(trees[1], node), tokens)
            torch.testing.assert_close(logits[1, node], want, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_plain_step_of_sequences_of_different_lengths(family):
    model, stock = build(family), build(family)
    with tokops.patch(model, page_size=4) as run:
        texts = Texts(model, run.new_cache())
        _, tokens, trees = texts.draft(8)
        texts.keep(tokens, [[0], [], path_to(trees[2], 7)])
        for width in (1, 1, 1, 5):
            tokens = torch.tensor([[texts.rng.randrange(3, 97) for _ in range(width)] for _ in range(3)])
            logits = texts.forward(tokens)
            for row in range(3):
                for node in range(width):
                    want = alone(stock, texts, row, list(range(node + 1)), tokens)
                    torch.testing.assert_close(logits[row, node], want, **CLOSE)
            texts.cache.keep(None, [width, 0, width])
            for row in (0, 2):
                texts.tokens[row] += tokens[row].tolist()


def test_a_tree_behind_nothing():
    model, stock = build("llama"), build("llama")
    with tokops.patch(model, page_size=4) as run:
        texts = Texts.__new__(Texts)
        texts.model, texts.cache, texts.rng = model, run.new_cache(), random.Random(0)
        texts.tokens, texts.padding = [[], []], [0, 0]
        trees = [random_parents(texts.rng, 7) for _ in range(2)]
        tokens = torch.randint(3, 97, (2, 7))
        texts.cache.draft(*words_of(trees))
        positions = words_of(trees)[1].long()
        with torch.no_grad():
            logits = model(input_ids=tokens, position_ids=positions, past_key_values=texts.cache).logits
        for row in range(2):
            for node in range(7):
                want = alone(stock, texts, row, path_to(trees[row], node), tokens)
                torch.testing.assert_close(logits[row, node], want, **CLOSE)
        texts.cache.keep(None, [1, 0])
        assert texts.cache.lengths == [1, 0]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_is_kept_is_what_decoding_the_kept_tokens_gives(family):
    """Rows are moved bit for bit, and are those of the accepted text up to rounding."""
    model = build(family)
    with tokops.patch(model, page_size=4) as run:
        texts = Texts(model, run.new_cache(), seed=5)
        _, tokens, trees = texts.draft(12)
        paths = texts.accept(trees)
        paths[0] = path_to(trees[0], 11)
        before = [layer.gather(0, texts.cache.get_seq_length()) for layer in texts.cache.layers]
        texts.keep(tokens, paths)
        for layer, old in zip(texts.cache.layers, before, strict=True):
            for new, was in zip(layer.gather(0, texts.cache.get_seq_length()), old, strict=True):
                for row, path in enumerate(paths):
                    slots = [*range(21), *(21 + node for node in path)]
                    assert torch.equal(new[row, : len(slots)], was[row, slots])
        for row, text in enumerate(texts.tokens):
            own = run.new_cache()
            ids, start = torch.tensor([text]), texts.padding[row]
            mask = (torch.arange(len(text)) >= start).long()[None]
            with torch.no_grad():
                model(
                    input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), past_key_values=own
                )
            for layer, single in zip(texts.cache.layers, own.layers, strict=True):
                for a, b in zip(layer.gather(0, len(text)), single.gather(0, len(text)), strict=True):
                    torch.testing.assert_close(a[row, start:], b[0, start:], atol=1e-4, rtol=1e-4)


def test_what_a_draft_and_keep_refuse():
    model = build("llama")
    words, depths = torch.ones(2, 1, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int32)
    token, prompt = torch.full((2, 1), 5), torch.randint(3, 97, (2, 9))

    def step(cache, ids=token, **kwargs):
        with torch.no_grad():
            return model(input_ids=ids, past_key_values=cache, **kwargs)

    with tokops.patch(model, page_size=4) as run:
        cache = run.new_cache()
        step(cache, prompt)
        with pytest.raises(RuntimeError, match="keep: no draft has been run"):
            cache.keep(None, [1, 1])
        with pytest.raises(ValueError, match="ancestors and depths come together"):
            cache.draft(words, None)
        with pytest.raises(RuntimeError, match="draft: ancestors must be int64, got int32"):
            cache.draft(words.int(), depths)
        with pytest.raises(
            RuntimeError, match=r"draft: depths must be \[B, T\] of ancestors = \[2, 1\], got \[1, 1\]"
        ):
            cache.draft(words, depths[:1])
        cache.draft(words, depths)
        with pytest.raises(ValueError, match=r"ancestors are of \[2, 1\] tokens, the forward is of \[2, 3\]"):
            step(cache, prompt[:, :3])
        cache.draft(None, None, torch.zeros(3, dtype=torch.int32))
        with pytest.raises(ValueError, match="starts are of 3 sequences, the forward is of 2"):
            step(cache)
        cache.draft(None, None)
        with pytest.raises(ValueError, match="the cache holds 2 sequences, the new tokens are for 3"):
            step(cache, token[:1].expand(3, 1))
        assert cache.lengths == [9, 9], "nothing was begun"
        cache.draft(None, None)
        with pytest.raises(ValueError, match=r"1..256 tokens per sequence, got 257"):
            step(cache, token.expand(2, 257))
        cache.draft(words, depths)
        padded = torch.ones(2, 10, dtype=torch.long)
        padded[0, 0] = 0
        with pytest.raises(ValueError, match="takes attention_mask=None"):
            step(cache, attention_mask=padded, position_ids=torch.full((2, 1), 9))
        with pytest.raises(RuntimeError, match="keep: the draft's forward was interrupted"):
            cache.keep(None, [1, 1])

        cache.reset()
        step(cache, prompt)
        cache.draft(words, depths)
        step(cache, position_ids=torch.full((2, 1), 9))
        for change in (
            lambda: cache.draft(words, depths),
            lambda: step(cache),
            lambda: cache.crop(-1),
            lambda: cache.batch_repeat_interleave(2),
        ):
            with pytest.raises(
                RuntimeError, match=r"a draft of 1 tokens per sequence: call keep\(\) on it first"
            ):
                change()
        rows = torch.zeros(2, 1, dtype=torch.int32)
        with pytest.raises(ValueError, match=r"counts must be 2 numbers in 0..1, got \[1, 2\]"):
            cache.keep(rows, [1, 2])
        with pytest.raises(ValueError, match=r"counts must be 2 numbers in 0..1, got \[1\]"):
            cache.keep(None, [1])
        with pytest.raises(RuntimeError, match="keep: rows must be int32, got int64"):
            cache.keep(rows.long(), [1, 1])
        with pytest.raises(
            ValueError, match=r"rows must be \[2, at most 1\] of a draft of 1 tokens, got \[2, 2\]"
        ):
            cache.keep(rows.expand(2, 2), [1, 1])
        with pytest.raises(RuntimeError, match="strictly ascending from 0 up"):
            cache.keep(rows - 1, [1, 1])
        cache.keep(rows, [1, 0])
        with pytest.raises(
            RuntimeError, match=r"holds 9..10 tokens per sequence: call draft\(\) before a forward"
        ):
            step(cache)


def test_lengths_that_meet_again_need_no_draft():
    model, stock = build("llama"), build("llama")
    with tokops.patch(model, page_size=4) as run:
        texts = Texts(model, run.new_cache(), padding=(0, 0, 0))
        for counts in ([2, 1, 0], [0, 1, 2]):
            tokens = torch.randint(3, 97, (3, 2))
            texts.forward(tokens)
            texts.cache.keep(None, counts)
            for text, new, count in zip(texts.tokens, tokens.tolist(), counts, strict=True):
                text += new[:count]
        last = torch.randint(3, 97, (3, 1))
        with torch.no_grad():
            logits = model(input_ids=last, past_key_values=texts.cache).logits
        for row in range(3):
            torch.testing.assert_close(logits[row, 0], alone(stock, texts, row, [0], last), **CLOSE)


def test_a_copy_of_a_ragged_cache_goes_on_alike():
    model = build("llama")
    with tokops.patch(model, page_size=4) as run:
        texts = Texts(model, run.new_cache())
        _, tokens, trees = texts.draft(6)
        texts.keep(tokens, texts.accept(trees))
        twin = copy.deepcopy(texts.cache)
        tokens = torch.randint(3, 97, (3, 4))
        want = texts.forward(tokens)
        texts.cache = twin
        assert torch.equal(texts.forward(tokens), want)


TIDAL = {
    "kv_group": TidalDecode(budget=9, reselect_layer=4),
    "kv_group raw": TidalDecode(budget=9, reselect_layer=4, reduce="max_raw", always_keep=(2, 3)),
    "q_head": TidalDecode(budget=9, reselect_layer=4, scope="q_head", always_keep=(3, 0)),
    "layer": TidalDecode(budget=9, reselect_layer=4, scope="layer", always_keep=(0, 5)),
    "lessismore": TidalDecode(budget=16, reselect_layer=4, mode="lessismore"),
    "lessismore without sinks": TidalDecode(budget=9, reselect_layer=4, mode="lessismore"),
    "partly covered": TidalDecode(budget=25, reselect_layer=4, always_keep=(1, 2)),
    "partly covered lessismore": TidalDecode(budget=25, reselect_layer=4, mode="lessismore"),
}


@pytest.mark.parametrize("padding", [PADDING, (0, 0, 0)], ids=["padded", "unpadded"])
@pytest.mark.parametrize("name", TIDAL)
def test_a_node_reads_the_lists_of_its_own_path(name, padding, monkeypatch):
    seen = {}
    choose = TidalDecode._choose

    def spy(self, reader):
        seen[reader.layer] = choose(self, reader)
        return seen[reader.layer]

    monkeypatch.setattr(TidalDecode, "_choose", spy)
    model = build("llama", num_hidden_layers=6)
    with tokops.patch(model, TIDAL[name], page_size=4) as run:
        texts = Texts(model, run.new_cache(), seed=3, padding=padding)
        for nodes in (6, 1, 11):
            logits, tokens, trees = texts.draft(nodes)
            lists = dict(seen)
            for row, parents in enumerate(trees):
                single = Alone(texts, row, run.new_cache())
                depths = [len(path_to(parents, node)) - 1 for node in range(nodes)]
                past = len(texts.tokens[row])
                for node in range(nodes):
                    path = path_to(parents, node)
                    seen.clear()
                    want = single.along(tokens[row, path].tolist())
                    torch.testing.assert_close(logits[row, node], want, **CLOSE)
                    for layer, (positions, counts) in lists.items():
                        own = [
                            [slot if slot < past else past + depths[slot - past] for slot in head[:count]]
                            for head, count in zip(
                                positions[row, node].tolist(), counts[row, node].tolist(), strict=True
                            )
                        ]
                        if layer in seen:
                            alone = seen[layer]
                            expected = [
                                head[:count]
                                for head, count in zip(
                                    alone.positions[0, 0].tolist(), alone.counts[0, 0].tolist(), strict=True
                                )
                            ]
                        else:  # the budget covered its path
                            expected = [list(range(padding[row], past + len(path)))] * len(own)
                        assert own == expected
            texts.keep(tokens, texts.accept(trees))


def test_plain_steps_of_different_lengths_read_lists_of_their_own():
    model = build("llama", num_hidden_layers=6)
    for method in (TIDAL["kv_group raw"], TIDAL["lessismore"]):
        with tokops.patch(model, method, page_size=4) as run:
            texts = Texts(model, run.new_cache())
            _, tokens, trees = texts.draft(8)
            texts.keep(tokens, [[0], [], path_to(trees[2], 7)])
            tokens = torch.randint(3, 97, (3, 1))
            logits = texts.forward(tokens)
            for row in range(3):
                want = Alone(texts, row, run.new_cache()).along(tokens[row].tolist())
                torch.testing.assert_close(logits[row, 0], want, **CLOSE)
