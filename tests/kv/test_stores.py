"""Lists of stores: what is read, what is refused, and that nothing is evaluated."""

import re

import pytest

from tokops.kv.eviction import Eviction
from tokops.kv.stores import defaults, known, parse
from tokops.methods import Dense, MiKV, QuantizedKV, TidalDecode


def test_names_calls_and_compositions_are_read():
    entries = parse(
        " Dense,QuantizedKV(bits=(8, 4)), QuantizedKV(bits='fp8_e4m3',rotate=None), "
        "TidalDecode(budget=64, reselect_layer=3) + MiKV(low=2, balancer=False), Eviction(ratio=0.5)"
    )
    assert [entry.methods for entry in entries] == [
        (Dense(),),
        (QuantizedKV(bits=(8, 4)),),
        (QuantizedKV(bits="fp8_e4m3"),),
        (TidalDecode(budget=64, reselect_layer=3), MiKV(low=2, balancer=False)),
        (Eviction(ratio=0.5),),
    ]
    assert entries[1].label == "QuantizedKV(bits=(8, 4))"
    assert entries[3].label == "TidalDecode(budget=64, reselect_layer=3) + MiKV(low=2, balancer=False)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a list of stores"),
        ("Dense,,Dense", "is not a list of stores"),
        ("Dense] + [Dense", "is not a list of stores"),
        ("QuantizedKV(4)", "arguments must be given by keyword"),
        ("QuantizedKV(**{'bits': 4})", "arguments must be given by keyword"),
        ("QuantizedKV(bits=5)", "bits must be one of"),
        ("QuantizedKV(bit=4)", "unexpected keyword argument 'bit'"),
        ("Quantised(bits=4)", "there is no method 'Quantised'; there are Dense, Eviction"),
        ("QuantizedKV(bits=2 * 2)", "arguments must be literals"),
        ("tokops.methods.Dense()", "neither the name of a method nor a call"),
        ("Dense() - Dense()", "neither the name of a method nor a call"),
        ("Dense, Dense", "Dense stands in the list twice"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_nothing_is_evaluated(tmp_path):
    there = tmp_path / "there"
    with pytest.raises(ValueError, match="arguments must be literals"):
        parse(f"QuantizedKV(bits=open({str(there)!r}, 'w'))")
    with pytest.raises(ValueError, match="neither the name"):
        parse(f"open({str(there)!r}, 'w').method()")
    assert not there.exists()


@pytest.mark.parametrize("quick", [False, True])
def test_the_default_list_has_every_store_there_is(quick):
    entries = defaults(quick)
    named = {type(method).__name__ for entry in entries for method in entry.methods}
    assert named == {name for name, method in known().items() if "store" in method.slots} | {"Eviction"}
    assert len(entries) > 4
