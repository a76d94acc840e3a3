"""Token trees over packed stores: a node is computed as if its path were decoded one by one over the same store."""

import pytest
import torch
from tiny_models import build
from trees import Alone, Lookup, Texts, path_to

import tokops
from tokops.kvcache.lengths import UNLIMITED
from tokops.methods import MiKV, MiniCache, QuantizedKV, TidalDecode

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
PAIRS = {"start": 2, "guard": "force", "residual": 8, "gamma": 0.2}

#: Stores that pack every token at once, and stores that pack a page or more at a time.
AT_ONCE = {
    "int8": QuantizedKV(8),
    "int8 with queries in int8": QuantizedKV(8, q_int8=True),
    "int4": QuantizedKV(4),
    "int4 plain": QuantizedKV(4, full_first=False, rotate=False),
    "keys e4m3, values int3": QuantizedKV(("fp8_e4m3", 3)),
    "full keys, int8 values": QuantizedKV((16, 8), sinks=0),
}
BY_THE_PAGE = {
    "int4 per channel": QuantizedKV(4, key_geometry="channel", group=16, residual=16),
    "int4 in tiles": QuantizedKV(4, key_tiles=True),
    "int2": QuantizedKV(2, residual=5),
    "int8, residual": QuantizedKV(8, residual=5),
    "MiniCache": MiniCache(**PAIRS),
    "MiniCache in 4 bits": MiniCache(**(PAIRS | {"residual": 16}), bits=4),
}
STORES = AT_ONCE | BY_THE_PAGE


@pytest.fixture(scope="module")
def model():
    return build("llama", head_dim=32)


def within_room(texts, paths):
    """Paths cut to what may be committed."""
    room = texts.cache.room()
    return [path[:most] for path, most in zip(paths, room, strict=True)]


def check_nodes(texts, singles, logits, tokens, trees):
    """Nodes that may be committed now are computed as one by one; returns how many were looked at."""
    seen = 0
    for row, (parents, most) in enumerate(zip(trees, texts.cache.room(), strict=True)):
        singles[row].follow(texts.tokens[row])
        for node in range(len(parents)):
            path = path_to(parents, node)
            if len(path) > most:
                continue
            seen += 1
            want = singles[row].along(tokens[row, path].tolist())
            torch.testing.assert_close(logits[row, node], want, **CLOSE)
    return seen


MIKV = {
    "int4": MiKV(interval=8),
    "int8 and int2": MiKV(high=8, low=2, interval=4, ratio=0.5, recent=0.25, sinks=1),
    "budget by age": MiKV(low=3, interval=5, budget=12, normalise_by_age=True),
    "every token": MiKV(interval=1, ratio=0.3),
}
STORES |= {f"MiKV {name}": method for name, method in MIKV.items()}


@pytest.mark.parametrize("name", STORES)
def test_a_node_is_computed_as_if_its_path_were_decoded_one_by_one(name, model):
    with tokops.patch(model, STORES[name], page_size=16) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=4)
        singles = [Alone(texts, row, run.new_cache()) for row in range(3)]
        seen = 0
        for nodes in (9, 4, 1, 7, 12, 9, 9):
            logits, tokens, trees = texts.draft(nodes)
            seen += check_nodes(texts, singles, logits, tokens, trees)
            texts.keep(tokens, within_room(texts, texts.accept(trees)))
        assert seen > (8 if name == "MiKV every token" else 30)
        if name in AT_ONCE:
            assert texts.cache.room() == [UNLIMITED] * 3
            assert len(set(texts.cache.lengths)) > 1


def test_a_scale_per_head_that_the_prompt_has_set(model):
    """Sequences of a batch share it, so there is one."""
    with tokops.patch(model, QuantizedKV(8, key_geometry="head", residual=0, sinks=2), page_size=16) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=2, padding=(3,))
        singles = [Alone(texts, 0, run.new_cache())]
        for nodes in (6, 9, 1, 5):
            logits, tokens, trees = texts.draft(nodes)
            assert check_nodes(texts, singles, logits, tokens, trees) == nodes
            texts.keep(tokens, texts.accept(trees))


@pytest.mark.parametrize("name", MIKV)
def test_importance_and_places_are_those_of_decoding_one_by_one(name, model):
    with tokops.patch(model, MIKV[name], page_size=16) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=8)
        for _ in range(24):
            _, tokens, trees = texts.draft(7)
            texts.keep(tokens, within_room(texts, [path_to(parents, 6) for parents in trees]))
        assert min(texts.cache.lengths) > 21 + (8 if MIKV[name].interval > 1 else 4)
        texts.forward(torch.full((3, 1), 5))  # what is due is demoted when a forward begins
        texts.cache.keep(None, [0, 0, 0])
        for row in range(3):
            single = Alone(texts, row, run.new_cache())
            single.follow([*texts.tokens[row], 5])
            length = len(texts.tokens[row])
            for layer, own in zip(texts.cache.layers, single.cache.layers, strict=True):
                got, want = layer.store, own.store
                cut = own.store.layout.settled
                torch.testing.assert_close(got.acc[row, :, :length], want.acc[0, :, :length], **CLOSE)
                if layer.store.layout.settled == cut:  # not held up by a shorter sequence
                    assert torch.equal(got.where[row, :, :cut] >= 1 << 30, want.where[0, :, :cut] >= 1 << 30)


@pytest.mark.parametrize("name", ["int8", "int4", "MiniCache", "MiKV int4"])
def test_trees_behind_short_prompts(name, model):
    """Where nothing is packed yet, and nodes are sinks."""
    with tokops.patch(model, STORES[name], page_size=16) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=2, padding=(0, 1, 2), prompt=4)
        singles = [Alone(texts, row, run.new_cache(), prompt=4) for row in range(3)]
        for nodes in (6, 9, 3, 9, 5):
            logits, tokens, trees = texts.draft(nodes)
            check_nodes(texts, singles, logits, tokens, trees)
            texts.keep(tokens, within_room(texts, texts.accept(trees)))


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "MiniCache", "MiKV int4"])
def test_a_finished_sequence_holds_up_nobody(name, model):
    with tokops.patch(model, STORES[name], page_size=16) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=6)
        singles = [Alone(texts, row, run.new_cache()) for row in range(3)]
        texts.cache.finish([False, True, False])
        for _ in range(16):
            logits, tokens, trees = texts.draft(5)
            assert logits.isfinite().all()
            assert texts.cache.room()[1] == UNLIMITED
            for row in (0, 2):
                singles[row].follow(texts.tokens[row])
                for node in range(5):
                    path = path_to(trees[row], node)
                    if len(path) <= texts.cache.room()[row]:
                        want = singles[row].along(tokens[row, path].tolist())
                        torch.testing.assert_close(logits[row, node], want, **CLOSE)
            paths = [path_to(parents, 4) for parents in trees]
            paths[1] = []
            texts.keep(tokens, within_room(texts, paths))
        layout = texts.cache.state.layout
        cut = layout.settled if name.startswith("MiKV") else layout.packed
        assert cut > texts.cache.lengths[1] == 21
        with pytest.raises(ValueError, match="sequence 1 was finished and cannot go on"):
            texts.cache.finish([False, False, False])
        texts.forward(torch.full((3, 1), 5))
        with pytest.raises(ValueError, match=r"a finished sequence keeps no tokens, got counts \[1, 1, 1\]"):
            texts.cache.keep(None, [1, 1, 1])


@pytest.mark.parametrize("name", ["int8", "int4", "int4 per channel", "MiniCache", "MiKV int4"])
def test_lists_of_a_tree_over_a_store(name):
    model = build("llama", head_dim=32, num_hidden_layers=7)
    select = TidalDecode(budget=9, reselect_layer=4, always_keep=(1, 2))
    with tokops.patch(model, STORES[name], select, page_size=16) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=1)
        singles = [Alone(texts, row, run.new_cache()) for row in range(3)]
        for nodes in (6, 1, 9, 4):
            logits, tokens, trees = texts.draft(nodes)
            check_nodes(texts, singles, logits, tokens, trees)
            texts.keep(tokens, within_room(texts, texts.accept(trees)))


#: Stores that lose nothing, so that whatever is done to them, texts must read back as if decoded one by one.
LOSSLESS = {
    "pages": None,
    "at once": QuantizedKV(16, sinks=3, residual=0),
    "at once, rotated": QuantizedKV(16, sinks=0, residual=0, rotate=True),
    "by the page": QuantizedKV(16, sinks=4, residual=6),
    "MiKV": MiKV(high=16, low=16, interval=6, balancer=False),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSLESS)
def test_whatever_is_done_to_sequences_of_different_lengths(name, seed, model):
    methods = () if LOSSLESS[name] is None else (LOSSLESS[name],)
    with tokops.patch(model, *methods, page_size=8) as run:
        texts = Texts(Lookup(run), run.new_cache(), seed=seed, padding=(4, 0, 2), prompt=14)
        rng = texts.rng
        for _ in range(14):
            what = rng.choice(["draft", "draft", "draft", "select", "crop", "repeat", "plain"])
            lengths = [len(text) for text in texts.tokens]
            rows = range(len(lengths))
            if what == "select":
                rows = [rng.randrange(len(lengths)) for _ in range(rng.randint(1, 3))]
                texts.cache.batch_select_indices(torch.tensor(rows))
            elif what == "repeat" and len(lengths) < 3:
                rows = [row for row in rows for _ in range(2)]
                texts.cache.batch_repeat_interleave(2)
            texts.tokens = [list(texts.tokens[row]) for row in rows]
            texts.padding = [texts.padding[row] for row in rows]
            if what == "crop":
                count = rng.randint(0, 5)
                if min(lengths) - count < 15:
                    continue
                layout = texts.cache.state.layout
                if name == "MiKV" and len(set(lengths)) > 1 and min(lengths) - count < layout.settled:
                    with pytest.raises(RuntimeError, match=r"MiKV: cannot remove .* are in pools"):
                        texts.cache.crop(-count)
                    continue
                texts.cache.crop(-count)
                texts.tokens = [text[: len(text) - count] for text in texts.tokens]
            elif what in ("draft", "plain"):
                size = 1 if what == "plain" else rng.randint(1, 9)
                logits, tokens, trees = texts.draft(size)
                for row, parents in enumerate(trees):
                    single = Alone(texts, row, run.new_cache(), prompt=14)
                    for node in range(size):
                        want = single.along(tokens[row, path_to(parents, node)].tolist())
                        torch.testing.assert_close(logits[row, node], want, **CLOSE)
                texts.keep(tokens, texts.accept(trees))
            assert texts.cache.lengths == [len(text) for text in texts.tokens]
            assert texts.cache.get_seq_length() == max(texts.cache.lengths)
        (book,) = texts.cache.state.books
        assert 0 < book.live_bytes() <= book.allocated_bytes()
        assert (
            book.full_bytes() == sum(texts.cache.lengths) * 4 * 2 * 2 * 32 * 4
        )  # layers, K and V, heads, dim, bytes
