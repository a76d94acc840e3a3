"""Predictions of the scaling curve for stores, from runs whose law is known."""

import pytest

from tokops.kv.predict import effective_bits, mixture, predict
from tokops.kvcache import Codec
from tokops.methods import Dense, MiKV, QuantizedKV, TidalDecode


@pytest.mark.parametrize(
    ("codec", "bits"),
    [
        (Codec("int8", group=64), 8.5),
        (Codec("int8", group=64, symmetric=True), 8.25),
        (Codec("int4", "channel", 32), 5.0),
        (Codec("int3", group=64), 3.5),
        (Codec("int2", group=32), 3.0),
        (Codec("full"), 16.0),
        (Codec("fp8_e4m3", group=64), None),
        (Codec("int4", "head"), None),
    ],
)
def test_bits_count_scales_and_zeros(codec, bits):
    assert effective_bits(codec) == bits


def test_stores_are_mixtures_of_codecs():
    assert mixture((QuantizedKV(bits=(8, 4)),), 64) == ((0.5, 8.5), (0.5, 4.5))
    assert mixture((MiKV(high=8, low=2, ratio=0.25),), 64) == ((0.25, 8.5), (0.75, 3.0))
    for unknown in (
        (Dense(),),
        (QuantizedKV(bits="fp8_e4m3"),),
        (MiKV(budget=64),),
        (TidalDecode(budget=8, reselect_layer=3), QuantizedKV(bits=4)),
    ):
        assert mixture(unknown, 64) is None


def law(bits):
    return 0.5 * 2 ** (-1.7 * bits)


METHODS = {
    "8": (QuantizedKV(bits=8),),
    "4": (QuantizedKV(bits=4),),
    "8, 4": (QuantizedKV(bits=(8, 4)),),
    "3": (QuantizedKV(bits=3),),
    "2": (QuantizedKV(bits=2),),
    "MiKV": (MiKV(high=16, low=3, ratio=0.25),),
    "fp8": (QuantizedKV(bits="fp8_e4m3"),),
    "Dense": (Dense(),),
}
MEASURED = {
    "8": law(8.5), "4": law(4.5), "8, 4": 1e-3, "3": 2.9 * law(3.5), "2": 3.5 * law(3.0), "MiKV": 1e-3, "fp8": 1e-3,
    "Dense": 0.0,
}  # fmt: skip


def test_the_curve_comes_from_the_fine_runs_and_speaks_of_the_others():
    found = predict(METHODS, MEASURED, 64)
    assert found.fitted == ("8", "4")
    assert (found.curve.kappa, found.curve.gamma) == pytest.approx((0.5, 1.7), rel=1e-6)
    assert set(found.kl) == {"8", "4", "8, 4", "3", "2", "MiKV"}
    assert found.kl["3"] == pytest.approx(law(3.5), rel=1e-6)
    assert found.kl["8, 4"] == pytest.approx((law(8.5) + law(4.5)) / 2, rel=1e-6)
    assert found.kl["MiKV"] == pytest.approx(0.25 * law(16) + 0.75 * law(3.5), rel=1e-6)


def test_what_loses_more_than_three_times_the_prediction_is_flagged():
    found = predict(METHODS, {name: MEASURED[name] for name in ("8", "4", "3", "2")}, 64)
    assert set(found.flagged) == {"2"}
    assert found.flagged["2"] == pytest.approx(3.5, rel=1e-6)


def test_one_fine_run_is_not_enough():
    assert predict(METHODS, {name: MEASURED[name] for name in ("4", "3", "2", "Dense")}, 64) is None
