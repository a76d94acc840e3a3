"""Any selecting method over any store: ten lines of a new method, and TidalDecode, over pages of every format."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from stored import contents
from tiny_models import build

import tokops
from tokops.attention import inputs, paged_decode
from tokops.kvcache import decode
from tokops.methods import Dense, Method, QuantizedKV, Selection, TidalDecode

STORES = {
    "Dense": Dense(),
    "16 bits": QuantizedKV(16, residual=5),
    "int8": QuantizedKV(8),
    "int4": QuantizedKV(4, full_first=False),
    "int4 per channel": QuantizedKV(4, key_geometry="channel", group=16, residual=16),
    "keys e4m3, values int3": QuantizedKV(("fp8_e4m3", 3)),
    "int2 with residual": QuantizedKV(2, residual=8),
}
GREEDY = {"do_sample": False, "max_new_tokens": 20}


@dataclass(frozen=True)
class SinksRecentBest(Method):
    """Sinks, recent tokens and the best others by raw score: all that a new selecting method is."""

    slots: ClassVar[tuple[str, ...]] = ("select",)
    sinks: int = 2
    recent: int = 4
    best: int = 10

    def select(self, reader, step):
        scores, top = reader.scores("max"), torch.finfo(torch.float32).max
        for row, at in enumerate(range(reader.length - scores.shape[1], reader.length)):
            scores[:, row, :, max(0, at + 1 - self.recent) : at + 1] = top
        starts = [0] * len(scores) if reader.starts is None else reader.starts.tolist()
        for own, start in zip(scores, starts, strict=True):
            own[..., start : start + self.sinks] = top
        lists = tokops.attention.topk_positions(
            scores, None, min(self.sinks + self.recent + self.best, reader.length)
        )
        return Selection(*lists)


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=7, head_dim=32)


@pytest.fixture(scope="module")
def text():
    ids = torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, text, store, *selecting):
    with tokops.patch(model, store, *selecting, page_size=16) as run:
        tokens = model.generate(**text, **GREEDY)
        return tokens[:, text["input_ids"].shape[1] :], run.report()


@pytest.mark.parametrize("select", [SinksRecentBest(best=500), TidalDecode(budget=200, reselect_layer=5)])
@pytest.mark.parametrize("store", STORES)
def test_a_selection_of_everything_is_the_store_alone(store, select, model, text):
    dense, _ = generate(model, text, STORES[store])
    got, report = generate(model, text, STORES[store], select)
    assert torch.equal(got, dense)
    assert report.slots == {"store": type(STORES[store]).__name__, "select": type(select).__name__}


@pytest.mark.parametrize("select", [SinksRecentBest(), TidalDecode(budget=16, reselect_layer=5)])
@pytest.mark.parametrize("store", STORES)
def test_a_selection_reads_less_and_pads_and_batches_change_nothing(store, select, model, text):
    got, report = generate(model, text, STORES[store], select)
    dense, whole = generate(model, text, STORES[store])
    assert not torch.equal(got, dense)
    assert report.read_ratio < 1.0 or isinstance(select, SinksRecentBest)  # which scans all keys again
    assert report.kv_bytes == whole.kv_bytes
    if store in ("Dense", "16 bits", "int8", "int4", "keys e4m3, values int3"):
        alone = {"input_ids": text["input_ids"][:1, 11:]}
        assert torch.equal(generate(model, alone, STORES[store], select)[0], got[:1])


@pytest.mark.parametrize("select", [SinksRecentBest(), TidalDecode(budget=16, reselect_layer=5)])
def test_full_precision_stores_give_what_dense_pages_give(select, model, text):
    expected, _ = generate(model, text, Dense(), select)
    for order in ((STORES["16 bits"], select), (select, STORES["16 bits"])):
        with tokops.patch(model, *order, page_size=16):
            assert torch.equal(model.generate(**text, **GREEDY)[:, 60:], expected)


@pytest.mark.parametrize("mode", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_selections_over_packed_pages_under_beams_and_drafts(mode, model):
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7] * 3])
    everything, some = TidalDecode(budget=200, reselect_layer=5), SinksRecentBest()
    for store in (STORES["int8"], STORES["int4"]):
        with tokops.patch(model, store, page_size=8):
            dense = model.generate(ids, **GREEDY, **mode)
        with tokops.patch(model, store, everything, page_size=8):
            assert torch.equal(model.generate(ids, **GREEDY, **mode), dense)
        with tokops.patch(model, store, some, page_size=8):
            model.generate(ids, **GREEDY, **mode)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("s", "hs"), [(1, 1), (3, 2), (3, 8)])
def test_selected_decode_equals_dequantise_then_select(s, hs, store, model, text):
    """A layer's own pages, decoded to plain tensors, then the selected rows of those."""
    ids, mask = text["input_ids"], text["attention_mask"]
    with tokops.patch(model, STORES[store], page_size=16) as run, torch.no_grad():
        cache = run.new_cache(prompt_length=50)
        for first, last in ((0, 50), (50, 54), (54, 57)):
            model(ids[:, first:last], attention_mask=mask[:, :last], past_key_values=cache)
    layer = cache.layers[3]
    q = torch.randn(2, 3, 8, 32)
    selected, counts = inputs.selection(s + hs, [57, 57], s, hs, 30)
    starts = torch.tensor([11, 0], dtype=torch.int32)
    options = {"starts": starts, "scale": None, "softcap": 1.5, "window": None, "sink_logit": torch.randn(8)}
    got = layer.decode(q, options, selected, counts)
    k, v = (x.contiguous() for x in contents(layer, 57))
    table, lens = torch.arange(2, dtype=torch.int32)[:, None], torch.tensor([57, 57], dtype=torch.int32)
    want = paged_decode(q, k, v, table, lens, selected=selected, counts=counts, **options)[0]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_scores_and_mass_of_a_store(model, text):
    """Scores and mass come out in logical order, and mass is what the softmax gives."""
    ids, mask = text["input_ids"], text["attention_mask"]
    with tokops.patch(model, STORES["int4"], page_size=16) as run, torch.no_grad():
        cache = run.new_cache(prompt_length=50)
        for first, last in ((0, 50), (50, 54)):
            model(ids[:, first:last], attention_mask=mask[:, :last], past_key_values=cache)
    layer = cache.layers[2]
    q, starts = torch.randn(2, 2, 8, 32), torch.tensor([11, 0], dtype=torch.int32)
    found = decode(q, layer.store, starts=starts, scores=True, mass=True, softcap=2.0)
    k = contents(layer, 54)[0]
    scores = torch.einsum("bthgd,bhld->bthgl", q.unflatten(2, (2, 4)), k) * 32**-0.5
    at = torch.arange(54)
    seen = (at <= 52 + torch.arange(2)[:, None])[None] & (at >= starts[:, None, None])
    scores = scores.masked_fill(~seen[:, :, None, None], float("-inf"))
    torch.testing.assert_close(found.scores, scores.flatten(2, 3), atol=1e-5, rtol=1e-5)
    weights = (2.0 * torch.tanh(scores / 2.0)).masked_fill(~seen[:, :, None, None], float("-inf")).softmax(-1)
    torch.testing.assert_close(found.mass, weights.sum((1, 3)), atol=1e-5, rtol=1e-4)
    without = decode(q, layer.store, starts=starts, softcap=2.0)
    assert without.scores is None
    assert without.mass is None
    assert torch.equal(without.out, found.out)
    with pytest.raises(RuntimeError, match="decode: mass does not know log_gamma, ask for one of them"):
        decode(q, layer.store, mass=True, log_gamma=torch.zeros(8))
    with pytest.raises(RuntimeError, match="scores come out of the dense pass"):
        decode(q, layer.store, scores=True, selected=torch.zeros(2, 1, 1, 1, dtype=torch.int32))
