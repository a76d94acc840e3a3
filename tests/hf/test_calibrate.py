"""Calibration: its closed form against a schedule that is run, and what it leaves for TidalDecode to find."""

import itertools
import json

import pytest
import torch
from tiny_models import build

import tokops
from tokops.hf.calibrate import Overlap, calibrate, next_token_kl, next_token_kls, record_overlap
from tokops.hf.families import digest, shape_of
from tokops.methods import TidalDecode, _calibration


@pytest.fixture(scope="module")
def model():
    return build("llama", num_hidden_layers=7)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, 97, (1, n), generator=generator) for n in (50, 61)]


def frozen_activations(model, prompts, steps):
    """Queries and keys of every layer at every decoded token of a stock dense run."""
    from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen, rows = [], []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append((query, key))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("frozen", attention)
    AttentionMaskInterface.register("frozen", lambda **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("frozen")
    for ids in prompts:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :-steps], past_key_values=cache)
            for at in range(ids.shape[1] - steps, ids.shape[1]):
                seen.clear()
                model(ids[:, at : at + 1], past_key_values=cache)
                rows.append([(q[0, :, 0].double(), k[0].double()) for q, k in seen])
    model.set_attn_implementation(before)
    AttentionInterface._global_mapping.pop("frozen")
    AttentionMaskInterface._global_mapping.pop("frozen")
    return rows


def run_schedule(rows, chain, budget):
    """Walk the layers as the sparse schedule does and measure how well each reads what it should."""
    overlaps, masses = [], []
    for layers in rows:
        lists = None
        for index, (q, k) in enumerate(layers):
            weights = torch.softmax(torch.stack([q[h] @ k[h // 4].T for h in range(8)]) * 16**-0.5, -1)
            best = weights.view(2, 4, -1).amax(1)
            own = [set(best[h].argsort(descending=True, stable=True)[:budget].tolist()) for h in range(2)]
            if index in chain:
                lists = own
            elif lists is not None:
                overlaps += [len(lists[h] & own[h]) / budget for h in range(2)]
                masses += [float(weights[h, sorted(lists[h // 4])].sum()) for h in range(8)]
    return sum(overlaps) / len(overlaps), sum(masses) / len(masses)


@pytest.mark.parametrize("chain", [(2, 3), (2, 5), (2, 6), (1, 4), (2, 4, 5)])
def test_recall_is_what_the_schedule_measures(chain, model, prompts):
    found = record_overlap(model, prompts, budget=8, steps=3)
    overlap, mass = run_schedule(frozen_activations(model, prompts, 3), chain, 8)
    assert found.tokens == 6
    assert found.recall(chain, "overlap") == pytest.approx(overlap, abs=1e-6)
    assert found.recall(chain, "mass") == pytest.approx(mass, abs=1e-5)


def test_best_chain_is_the_best_of_all_chains():
    torch.manual_seed(5)
    table = torch.rand(11, 11, dtype=torch.float64)
    found = Overlap(table, table, 1, tuple(i for i in range(11) if i != 6))
    for again in (1, 2, 3):
        chains = [(2, *rest) for rest in itertools.combinations([i for i in found.layers if i > 2], again)]

        def served(chain):
            return sum(
                float(table[max(a for a in chain if a <= layer), layer])
                for layer in found.layers
                if layer > 2 and layer not in chain
            )

        assert found.best_chain(2, again) == max(chains, key=served)
    assert found.ranking()[0][0] == max(found.layers[2:], key=lambda r: found.recall((2, r)))


def test_calibration_is_found_again(model, prompts, tmp_path):
    seen = []
    record = calibrate(
        model,
        prompts,
        budget=8,
        steps=3,
        folder=tmp_path,
        candidates=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    decoded = [1, 2, 3, 4, 5, 6]  # two prompts of three tokens, then each densely and at three layers
    assert seen == [(n, 30) for n in [*decoded, 12, 15, 18, 24, 27, 30]]
    layer = record["reselect_layers"][0]
    assert record["kl"][str(layer)] == min(record["kl"].values())
    assert len(record["kl"]) == 3
    assert set(record["recall"]) == {"3", "4", "5", "6"}
    method = TidalDecode(budget=8, reselect_layer=layer)
    assert next_token_kl(model, method, prompts, steps=3) == pytest.approx(record["kl"][str(layer)], abs=1e-6)
    with tokops.patch(model, TidalDecode(budget=8, calibration=tmp_path)) as run:
        assert run.methods[0].reselect_layer == layer
    other = build("llama", num_hidden_layers=6)
    with pytest.raises(ValueError, match=r"run `tokops calibrate` on the model, or pass reselect_layer="):
        tokops.patch(other, TidalDecode(budget=8, calibration=tmp_path))


def test_records_of_one_configuration_are_told_apart_by_name(model, tmp_path):
    import dataclasses

    shape = dataclasses.replace(shape_of(model.config), name="one")
    twin = dataclasses.replace(shape, name="two")
    _calibration.save(shape, {"select_layer": 2, "reselect_layers": [4]}, tmp_path)
    assert _calibration.load(twin, tmp_path)["reselect_layers"] == [4]
    _calibration.save(twin, {"select_layer": 2, "reselect_layers": [5]}, tmp_path)
    assert _calibration.load(shape, tmp_path)["reselect_layers"] == [4]
    assert _calibration.load(twin, tmp_path)["reselect_layers"] == [5]
    assert _calibration.load(dataclasses.replace(shape, name="three"), tmp_path) is None
    (tmp_path / f"{shape.digest}.json").write_text(json.dumps({"one": {"select_layer": 2}}))
    with pytest.raises(ValueError, match="is not a calibration file"):
        _calibration.load(shape, tmp_path)


def test_the_digest_is_of_what_shapes_the_computation(model):
    from transformers import LlamaConfig

    def changed(**changes):
        return digest(LlamaConfig(**{**model.config.to_dict(), **changes}))

    same = digest(model.config)
    assert (
        same == changed() == changed(use_cache=False, initializer_range=0.5, eos_token_id=7, a_later_field=3)
    )
    assert same == changed(_name_or_path="elsewhere", dtype="bfloat16", pretraining_tp=1, id2label={0: "x"})
    others = [
        changed(num_hidden_layers=3),
        changed(head_dim=32),
        changed(rms_norm_eps=1e-3),
        changed(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
    ]
    assert len({same, *others}) == 5


def test_refuses_prompts_that_tell_nothing(model, prompts):
    with pytest.raises(ValueError, match=r"longer than budget \+ steps = 58 tokens, the shortest has 50"):
        record_overlap(model, prompts, budget=50, steps=8)
    with pytest.raises(ValueError, match="at least one prompt"):
        record_overlap(model, [], budget=50)
    with pytest.raises(
        ValueError, match="layer 2 has a sliding window and cannot select; full-attention layers: 1, 3"
    ):
        calibrate(build("gemma2"), prompts, budget=8, steps=3)


def test_kl_of_a_covering_budget_is_zero_and_of_a_small_one_is_not(model, prompts):
    assert next_token_kl(model, TidalDecode(budget=100, reselect_layer=4), prompts, steps=3) == pytest.approx(
        0, abs=1e-6
    )
    assert next_token_kl(model, TidalDecode(budget=4, reselect_layer=4), prompts, steps=3) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_methods_measured_together_are_measured_as_alone(family, prompts):
    model = build(family, num_hidden_layers=7)
    methods = [
        TidalDecode(budget=4, select_layer=3, reselect_layer=5),
        TidalDecode(budget=8, select_layer=1, dense_layers=(0,), reselect_layer=3),
    ]
    together = next_token_kls(model, methods, prompts, steps=3)
    for method, value in zip(methods, together, strict=True):
        logits = []
        for patched in ((), (method,)):
            with tokops.patch(model, *patched) as run, torch.no_grad():
                for ids in prompts:
                    cache = run.new_cache()
                    model(ids[:, :-3], past_key_values=cache)
                    logits += [
                        model(ids[:, at : at + 1], past_key_values=cache).logits[0, -1].double()
                        for at in range(ids.shape[1] - 3, ids.shape[1])
                    ]
        dense, sparse = torch.stack(logits).log_softmax(-1).chunk(2)
        assert value == pytest.approx(float((dense.exp() * (dense - sparse)).sum(-1).mean()), rel=1e-4)


def test_a_run_adopts_only_tokops_caches(model):
    from transformers import DynamicCache

    with (
        tokops.patch(model) as run,
        pytest.raises(TypeError, match="only a tokops cache can be taken over, got DynamicCache"),
    ):
        run.adopt(DynamicCache(config=model.config))
