"""TidalDecode: against an oracle of its own, and every trap of the published code."""

import pytest
import torch
from tidal_oracle import Oracle
from tiny_models import build

import tokops
from tokops.attention import paged_decode
from tokops.methods import Dense, TidalDecode
from tokops.methods._lists import rank_major_union

VARIANTS = {
    "kv_group": {},
    "kv_group raw": {"reduce": "max_raw"},
    "q_head": {"scope": "q_head"},
    "layer": {"scope": "layer"},
    "layer raw": {"scope": "layer", "reduce": "max_raw"},
    "keep": {"always_keep": (2, 3)},
    "lessismore": {"mode": "lessismore"},
    "lessismore with sinks": {"mode": "lessismore", "budget": 40},
}
PROMPT = 44


def method(budget=10, **changes):
    return TidalDecode(**{"budget": budget, "reselect_layer": 5, **changes})


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=8)


@pytest.fixture(scope="module")
def text():
    return torch.randint(3, 97, (1, 64), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def decode(model, run, ids, prompt, sizes=None, mask=None):
    """Logits of positions ``prompt - 1 ..``, decoded in forwards of the given sizes (one by one if None)."""
    cache = run.new_cache(prompt_length=prompt)
    rows, at = [], 0
    for size in [prompt, *(sizes or [1] * (ids.shape[1] - prompt))]:
        part = None if mask is None else mask[:, : at + size]
        logits = model(ids[:, at : at + size], attention_mask=part, past_key_values=cache).logits
        rows.append(logits[:, -1:] if at < prompt else logits)
        at += size
    return torch.cat(rows, 1)


class Spy(TidalDecode):
    """Keeps, of every decoding forward, what each layer asked and was given."""

    seen = None

    def select(self, reader, step):
        selection = super().select(reader, step)
        Spy.seen.append((reader.layer, reader, selection))
        return selection


@pytest.fixture
def spy():
    Spy.seen = []
    return Spy.seen


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_oracle(name, model, text):
    chosen = method(**{"budget": 10, **VARIANTS[name]})
    expected = Oracle(model, chosen).logits(text, PROMPT)
    with tokops.patch(model, chosen, page_size=8) as run:
        got = decode(model, run, text, PROMPT)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)
    with tokops.patch(model) as run:  # and the budget matters: dense logits are something else
        assert (decode(model, run, text, PROMPT)[:, 1:] - expected[:, 1:]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("family", "layers", "changes"),
    [("gemma2", (1, 3), {}), ("gpt_oss", (1, 5), {}), ("qwen2", (1, 3), {"max_window_layers": 6})],
)
def test_families_with_sliding_layers_equal_the_oracle(family, layers, changes, text):
    """Sliding layers are left alone and never select; sinks and softcap act on what is read."""
    model = build(family, num_hidden_layers=8, **changes)
    chosen = method(budget=9, select_layer=layers[0], reselect_layer=layers[1], dense_layers=(0,))
    expected = Oracle(model, chosen).logits(text, PROMPT)
    with tokops.patch(model, chosen) as run:
        got = decode(model, run, text, PROMPT)
    torch.testing.assert_close(got, expected, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_budget_that_covers_the_text_is_dense(name, model, text):
    with tokops.patch(model, Dense()) as run:
        expected = decode(model, run, text, PROMPT)
    with tokops.patch(model, method(**{**VARIANTS[name], "budget": 64})) as run:
        got = decode(model, run, text, PROMPT)
        assert run.report().read_ratio == 1.0
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_selecting_layers_attend_densely_and_choose_their_largest_scores(model, text, spy):
    """Not only shapes: the sets are compared, so scores that were never written would show."""
    with tokops.patch(model, Spy(budget=10, reselect_layer=5), page_size=8) as run:
        decode(model, run, text[:, : PROMPT + 1], PROMPT)
    assert [layer for layer, _, _ in spy] == list(range(8))
    current = PROMPT
    for layer, reader, selection in spy:
        kept = reader._layer
        if layer in (2, 5):
            pages = (kept.k_pages, kept.v_pages, kept.table.table, kept.table.seq_lens)
            dense, _ = paged_decode(reader.q, *pages, scale=reader._options["scale"])
            torch.testing.assert_close(reader.out, dense, atol=1e-6, rtol=1e-5)
        if layer <= 2 or layer == 5:
            assert selection is None
            continue
        source = spy[2 if layer < 5 else 5][1]
        assert selection is not None
        rows = source._layer.gather(0, source.length)[0][0]
        for head in range(source.kv_heads):
            group = source.q[0, 0].unflatten(0, (source.kv_heads, -1))[head].double()
            best = torch.softmax(group @ rows[:, head].double().T * source._options["scale"], -1).amax(0)
            best[current] = 2.0
            expected = best.argsort(descending=True, stable=True)[:10].sort().values.tolist()
            assert selection.positions[0, 0, head].tolist() == expected
    lists = spy[3][2].positions[0, 0]
    assert not torch.equal(lists[0], lists[1]), "KV heads choose for themselves, not all as head 0"


def test_prompt_and_cache_are_what_dense_makes(model, text):
    caches, logits = [], []
    for chosen in (Dense(), method()):
        with tokops.patch(model, chosen) as run, torch.no_grad():
            cache = run.new_cache()
            logits.append(model(text, past_key_values=cache).logits)
            caches.append([layer.gather(0, text.shape[1]) for layer in cache.layers])
    assert torch.equal(*logits)
    for (k, v), (k2, v2) in zip(*caches, strict=True):
        assert torch.equal(k, k2)
        assert torch.equal(v, v2)


def test_chunked_prompts_stay_dense(model, text):
    """A chunk on a cache is prompt, although it has fewer queries than keys."""
    with tokops.patch(model, method()) as run, torch.no_grad():
        whole = model(text).logits
        cache = run.new_cache()
        parts = [model(text[:, a : a + 16], past_key_values=cache).logits for a in range(0, 64, 16)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
        one = model.generate(text, max_new_tokens=12, do_sample=False)
        assert torch.equal(
            model.generate(text, max_new_tokens=12, do_sample=False, prefill_chunk_size=10), one
        )


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sizes", [[4, 1, 7, 8], [20], [1, 19]])
def test_rows_under_verification_choose_for_themselves(name, sizes, model, text):
    with tokops.patch(model, method(**{"budget": 10, **VARIANTS[name]}), page_size=8) as run:
        expected = decode(model, run, text, PROMPT)
        got = decode(model, run, text, PROMPT, sizes)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["kv_group", "lessismore", "q_head"])
def test_prompt_lookup_gives_the_tokens_of_one_by_one_decoding(name, model):
    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9] * 4 + [5, 6]])
    with tokops.patch(model, method(budget=8, **VARIANTS[name])):
        expected = model.generate(ids, max_new_tokens=30, do_sample=False)
        got = model.generate(ids, max_new_tokens=30, do_sample=False, prompt_lookup_num_tokens=5)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_batching_change_nothing(name, model):
    """A ragged batch: one text shorter than the budget, one barely longer, one much longer."""
    lengths, total = (7, 13, 50), 62
    texts = [torch.randint(3, 97, (1, n + 12), generator=torch.Generator().manual_seed(n)) for n in lengths]
    batch = torch.cat([torch.nn.functional.pad(t, (total - t.shape[1], 0)) for t in texts])
    mask = torch.cat([(torch.arange(total) >= total - t.shape[1])[None].long() for t in texts])
    with tokops.patch(model, method(**{"budget": 10, **VARIANTS[name]}), page_size=8) as run:
        together = decode(model, run, batch, 50, mask=mask)
        verified = decode(model, run, batch, 50, sizes=[5, 7], mask=mask)
        for row, (alone, length) in enumerate(zip(texts, lengths, strict=True)):
            expected = decode(model, run, alone, length)[0]
            torch.testing.assert_close(together[row], expected, atol=3e-4, rtol=1e-3)
            torch.testing.assert_close(verified[row], expected, atol=3e-4, rtol=1e-3)


def test_nothing_leaks_between_prompts(model, text):
    other = text.flip(1)
    with tokops.patch(model, method()) as run:
        alone = decode(model, run, other, PROMPT)
    with tokops.patch(model, method()) as run:
        decode(model, run, text, PROMPT)
        assert torch.equal(decode(model, run, other, PROMPT), alone)
        caches = [run.new_cache(), run.new_cache()]
        with torch.no_grad():  # two prompts decoded in turns through one model
            for cache, ids in zip(caches, (text, other), strict=True):
                model(ids[:, :PROMPT], past_key_values=cache)
            for at in range(PROMPT, 64):
                for cache, ids in zip(caches, (text, other), strict=True):
                    last = model(ids[:, at : at + 1], past_key_values=cache).logits[:, -1]
        assert torch.equal(last, alone[:, -1])
    state = {name: vars(module).keys() for name, module in model.named_modules()}
    assert not any(
        "tidal" in key.lower() or "selec" in key.lower() for keys in state.values() for key in keys
    )


def test_the_current_token_and_kept_positions_are_always_read(model, text, spy):
    with tokops.patch(model, Spy(budget=6, reselect_layer=5, always_keep=(2, 2))) as run:
        decode(model, run, text, PROMPT)
    lists = [(reader.length, selection) for _, reader, selection in spy if selection is not None]
    assert len(lists) == 20 * 4
    for length, selection in lists:
        for positions in selection.positions.flatten(0, 2).tolist():
            assert {0, 1, length - 2, length - 1} <= set(positions)
            assert positions == sorted(set(positions))
            assert len(positions) == 6


def test_reads_are_those_of_the_formula(model, text):
    with tokops.patch(model, method(budget=10)) as run:
        decode(model, run, text, PROMPT)
        report = run.report()
    mean_length = sum(range(PROMPT + 1, 65)) / 20
    assert report.steps == report.tokens == 20
    assert report.tokens_read_per_step == pytest.approx(4 * mean_length + (8 - 4) * 10)
    assert report.read_ratio == pytest.approx((4 * mean_length + 40) / (8 * mean_length))
    per_layer = 2 * 2 * 16 * 4  # keys and values, heads, dim, bytes
    assert report.kv_bytes_read_per_token == pytest.approx(report.tokens_read_per_step * per_layer)
    assert report.kv_bytes == report.kv_bytes_full == 64 * 8 * per_layer


def test_union_is_rank_major_not_earliest_positions():
    scores = torch.full((1, 1, 3, 12), -1.0)
    for head, ranking in enumerate([[11, 5, 0], [9, 5, 1], [11, 8, 2]]):
        scores[0, 0, head, ranking] = torch.tensor([9.0, 8.0, 7.0])
    union = rank_major_union(scores, 4)[0, 0, 0]
    # Best of each head: 11, 9, (11 again); second best: 5, (5 again), 8. A value-sorted cut would keep 0, 1, 2, 5.
    assert union.argsort(descending=True)[:4].tolist() == [11, 9, 5, 8]


def test_union_of_few_visible_positions_takes_them_all():
    scores = torch.full((1, 1, 2, 6), float("-inf"))
    scores[..., 2:4] = torch.tensor([[1.0, 1.0], [3.0, 4.0]])
    union = rank_major_union(scores, 5)[0, 0, 0]
    assert (union > float("-inf")).nonzero().flatten().tolist() == [2, 3]
    assert union[2] > union[3], (
        "of one rank the lower head comes first, and its tie goes to the lower position"
    )


def test_beams_run_and_equal_stock_when_everything_is_read(model, prompts):
    mode = {"num_beams": 3, "do_sample": False, "max_new_tokens": 16}
    expected = model.generate(**prompts, **mode)
    with tokops.patch(model, method(budget=100), page_size=4):
        assert torch.equal(model.generate(**prompts, **mode), expected)
    with tokops.patch(model, method(budget=8), page_size=4):
        assert model.generate(**prompts, **mode).shape == expected.shape
