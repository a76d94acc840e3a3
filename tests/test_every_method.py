"""What holds for every method: it undoes itself, covers short texts densely, and neither padding nor batching shows."""

import pytest
import torch

pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_models import build

import tokops
from tokops.hf.caad import build_grounding
from tokops.hf.falcon import FalconModule
from tokops.hf.heads import Heads, HeadsConfig
from tokops.methods import (
    AWRS,
    CAAD,
    CNTP,
    LANTERN,
    PPD,
    SMC,
    ASAp,
    ConceptHeads,
    DeAL,
    Dense,
    Falcon,
    Grounding,
    LinearProbe,
    Method,
    MiKV,
    MiniCache,
    QuantizedKV,
    RefusalTokens,
    SpecTr,
    Speculate,
    StreamingMonitor,
    TidalDecode,
    VocabularyFilters,
    catalogue,
)


def small():
    """The model of these tests."""
    return build("llama", num_hidden_layers=7, head_dim=32)


def untrained() -> dict[str, tuple[Method, Method]]:
    """Drafters that know nothing: what they draft must not matter."""
    table, model = ((0.5, 0.2), (0.4, 0.2)), small()
    return {
        "PPD": (
            PPD(torch.ones(2, 64), nodes=12, acceptance=table),
            PPD(torch.zeros(2, 64), acceptance=table),
        ),
        "ConceptHeads": (
            ConceptHeads(Heads(model, HeadsConfig(2, "transformer")), nodes=6, acceptance=table),
            ConceptHeads(Heads(model, HeadsConfig(2)), acceptance=table),
        ),
        "Falcon": (
            Falcon(FalconModule(model, 2), nodes=6, acceptance=table * 2),
            Falcon(FalconModule(model, 1, "lstm"), acceptance=table),
        ),
    }


def grounded() -> tuple[Method, Method]:
    """A datastore that is asked, and one that is not."""
    store = build_grounding(small(), None, [([9, 4, 40], [20, 21, 22, 23])], dtype=torch.float32)
    return CAAD(store, alpha=0.8, beta=0.0), CAAD(store, alpha=0.0)


#: A vocabulary of letters.
LETTERS = ("", "", "", *("abcdefgh"[i % 8] for i in range(94)))

#: The three next of 90 codes, the first of which is token 5.
TABLE = tuple(tuple((code + step) % 90 for step in (1, 2, 3)) for code in range(90))

#: Every published method, at least once: settings for texts of about 60 tokens, and settings that cover them.
METHODS: dict[str, tuple[Method, Method]] = {
    "Dense": (Dense(), Dense()),
    "QuantizedKV": (QuantizedKV(bits=4), QuantizedKV(bits=16)),
    "QuantizedKV mixed": (
        QuantizedKV(bits=(8, 3), full_first=False),
        QuantizedKV(bits=16, rotate=True, residual=9),
    ),
    "QuantizedKV fp8": (QuantizedKV(bits="fp8_e4m3", sinks=0), QuantizedKV(bits=16, sinks=0)),
    # The random model's layers are not alike: what MiniCache does with them is to keep them apart.
    "MiniCache": (MiniCache(guard="skip", residual=8), MiniCache()),
    "TidalDecode": (TidalDecode(budget=9, reselect_layer=5), TidalDecode(budget=100, reselect_layer=5)),
    "TidalDecode corrected": (
        TidalDecode(budget=9, reselect_layer=5, correction_period=4),
        TidalDecode(budget=100, reselect_layer=5, correction_period=4),
    ),
    "TidalDecode lessismore": (
        TidalDecode(budget=12, reselect_layer=5, mode="lessismore"),
        TidalDecode(budget=100, reselect_layer=5, mode="lessismore"),
    ),
    "MiKV": (MiKV(interval=4), MiKV(budget=100)),
    "Speculate": (Speculate(nodes=6), Speculate("early_exit")),
    "Speculate drawn": (
        Speculate("early_exit", verify="rrs_wo", nodes=6),
        Speculate("early_exit", verify="chain_block", depth=3),
    ),
    **untrained(),
    "SpecTr": (SpecTr(drafts=3, length=2), SpecTr("early_exit", drafts=2, length=3, rho=2.0)),
    # Nothing is borrowed where one token has all the probability, but with the whole budget.
    "LANTERN": (
        LANTERN(neighbours=TABLE, token_offset=5, k=2, nodes=6),
        LANTERN("prompt_lookup", neighbours=TABLE, delta=0.0),
    ),
    "VocabularyFilters": (
        VocabularyFilters(lipogram="ace", strings=LETTERS),
        VocabularyFilters(strings=LETTERS),
    ),
    "VocabularyFilters by word": (
        VocabularyFilters(by_word=True, shorter_than=40, isogram=9, strings=LETTERS),
        VocabularyFilters(by_word=True, shorter_than=400, strings=LETTERS),
    ),
    "RefusalTokens": (RefusalTokens((5, 6), 7, mode="sum", tau=0.5), RefusalTokens(5, 6, mode="none")),
    "CAAD": grounded(),
    "DeAL": (DeAL(len, k=3, look_ahead=2, on_ids=True), DeAL(len, lam=0.0, on_ids=True)),
    "DeAL search": (
        DeAL(len, k=3, look_ahead=2, beams=2, on_ids=True),
        DeAL(len, lam=0.0, k=1, beams=2, on_ids=True),
    ),
    "StreamingMonitor": (
        StreamingMonitor(LinearProbe(torch.zeros(64), bias=1.0), k=5),  # all texts end after six tokens
        StreamingMonitor(LinearProbe(torch.ones(64)), k=float("inf")),
    ),
    "AWRS": (AWRS(), AWRS(max_accepts=3)),
    "AWRS improper": (AWRS(proper=False), AWRS(sampler="two_loop")),
    "SMC": (SMC(particles=3), SMC(particles=1, threshold=0.0)),
    "ASAp": (ASAp(), ASAp(variant="cars")),
    "CNTP": (CNTP(n_min=3, max_trial_len=4, stop_tokens=tuple(range(50))), CNTP(stop_tokens=())),
}
NEW = 20


@pytest.fixture(scope="module")
def model():
    return small()


def generate(model, ids, mask=None):
    """Sampling that is left one token to choose: greedy decoding, also for methods that ask for chance."""
    settings = {"do_sample": True, "top_k": 1, "max_new_tokens": NEW}
    return model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 97, (1, n), generator=generator) for n in (12, 25, 40)]


def test_the_list_is_complete():
    assert {type(method).__name__ for pair in METHODS.values() for method in pair} == set(catalogue())


@pytest.mark.parametrize("name", METHODS)
def test_undo_is_exact(name, model, texts):
    expected = generate(model, texts[2])
    keys = {n: sorted(vars(m)) for n, m in model.named_modules()}
    config = dict(vars(model.config))
    with tokops.patch(model, METHODS[name][0]):
        generate(model, texts[2])
    assert torch.equal(generate(model, texts[2]), expected)
    assert {n: sorted(vars(m)) for n, m in model.named_modules()} == keys
    assert vars(model.config) == config


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_that_covers_the_text_gives_stock_tokens(name, model, texts):
    expected = [generate(model, ids) for ids in texts]
    with tokops.patch(model, METHODS[name][1]):
        for ids, want in zip(texts, expected, strict=True):
            assert torch.equal(generate(model, ids), want)


@pytest.mark.parametrize("name", METHODS)
def test_padding_and_batching_change_nothing(name, model, texts):
    batch = torch.cat([torch.nn.functional.pad(ids, (40 - ids.shape[1], 0)) for ids in texts])
    mask = torch.stack([(torch.arange(40) >= 40 - ids.shape[1]).long() for ids in texts])
    with tokops.patch(model, METHODS[name][0], page_size=8):
        alone = torch.cat([generate(model, ids) for ids in texts])
        assert torch.equal(generate(model, batch, mask), alone)


@pytest.mark.parametrize("name", METHODS)
def test_methods_explain_themselves(name, model):
    with tokops.patch(model, METHODS[name][0]) as run:
        report = run.report()
    assert name.split()[0] in report.methods[0]
    assert set(METHODS[name][0].slots) <= set(report.slots)
    method = METHODS[name][0]
    # What holds tensors, modules or functions cannot be written down.
    held = [y for x in vars(method).values() for y in (x if isinstance(x, tuple) else (x,))]
    if not any(isinstance(x, (torch.Tensor, Grounding, LinearProbe)) or callable(x) for x in held):
        assert method == eval(repr(method), {type(method).__name__: type(method)})
