"""Numbers of any size, and sets of their texts: against fractions."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

module = pytest.importorskip("tokops.lib._grammar", reason="the grammar module is not built")

LANGUAGES = module.Languages()

WHOLE = st.one_of(st.integers(0, 30), st.integers(0, 10**6), st.integers(0, 10**30)).map(str)
FRACTION = st.one_of(st.just(""), st.text("0159", min_size=1, max_size=4).map(lambda d: "." + d))
SIGN = st.sampled_from(["", "-"])
EXPONENT = st.sampled_from(["", "", "", "e0", "E+2", "e-3", "e17"])
PLAIN = st.tuples(SIGN, WHOLE, FRACTION).map("".join)
NUMBERS = st.tuples(PLAIN, EXPONENT).map("".join)
SMALL = [
    f"{s}{w}{f}"
    for s, w, f in itertools.product(["", "-"], ["0", "1", "2", "5", "9", "10", "12", "19", "100"],
                                     ["", ".0", ".1", ".05", ".5", ".50", ".99", ".000"])
]  # fmt: skip


def holds(lang, text):
    return LANGUAGES.accepts(lang, text.encode())


@settings(max_examples=300, deadline=None)
@given(NUMBERS, NUMBERS)
@example("1e400", "1e-400")
@example("-0.0", "0")
def test_decimals(a, b):
    x, y = Fraction(a), Fraction(b)
    assert module.decimal_compare(a, b) == (x > y) - (x < y)
    assert Fraction(module.decimal_text(a)) == x
    assert (module.decimal_text(a) == module.decimal_text(b)) == (x == y)
    if y > 0:
        assert module.decimal_multiple_of(a, b) == ((x / y).denominator == 1)


@pytest.mark.parametrize("text", ["", "-", "01", "1.", ".5", "+1", "1e", "0x1", "1e+", "NaN", " 1", "1 "])
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match="not a JSON number"):
        module.decimal_text(text)
    assert not holds(LANGUAGES.plain_numbers(), text)


def test_long_decimals_are_quick():
    assert module.decimal_multiple_of("1" * 5000 + "0", "1" * 5000)
    assert module.decimal_compare("1e999999999999999999999", "1e9") == 1
    assert not module.decimal_multiple_of("1e999999999999", "7")


@settings(max_examples=300, deadline=None)
@given(PLAIN, NUMBERS, st.booleans())
@example("0.5", "0.5", True)
@example("-0.0", "0", False)
@example("-0.0", "0", True)
def test_bounds(text, bound, exclusive):
    x, b = Fraction(text), Fraction(bound)
    low, high = LANGUAGES.at_least(bound, exclusive), LANGUAGES.at_most(bound, exclusive)
    for t, value in [(text, x), *((s, Fraction(s)) for s in SMALL)]:
        assert holds(low, t) == (value > b or (value == b and not exclusive)), t
        assert holds(high, t) == (value < b or (value == b and not exclusive)), t
    plain = LANGUAGES.plain_numbers()
    assert LANGUAGES.same(LANGUAGES.either([low, LANGUAGES.at_most(bound, not exclusive)]), plain)
    assert not LANGUAGES.alive(LANGUAGES.both([low, LANGUAGES.at_most(bound, not exclusive)]))
    assert LANGUAGES.same(LANGUAGES.both([low, plain]), low)


@settings(max_examples=200, deadline=None)
@given(st.tuples(WHOLE, FRACTION).map("".join), st.sampled_from(["1", "2", "3", "7", "10", "0.01", "0.5", "2.5", "0.3",
       "12", "1000", "1e3", "7e2", "0.0001", "0.125", "99.9", "1024", "9973", "86400"]))  # fmt: skip
def test_multiples(text, step):
    lang = LANGUAGES.multiple_of(step)
    for t in [text, "-" + text, *SMALL]:
        assert holds(lang, t) == ((Fraction(t) / Fraction(step)).denominator == 1), t


@settings(max_examples=150, deadline=None)
@given(NUMBERS, PLAIN)
def test_equal(number, text):
    lang = LANGUAGES.equal_to(number)
    for t in [text, module.decimal_text(number), *SMALL]:
        if "e" not in t:
            assert holds(lang, t) == (Fraction(t) == Fraction(number)), t
    if "." in module.decimal_text(number):
        assert holds(lang, module.decimal_text(number) + "000")


@settings(max_examples=200, deadline=None)
@given(st.text("-019.", max_size=6))
def test_dead_ends_are_not_entered(text):
    """A prefix is alive where something can still follow: what `step` leaves alive must end somewhere."""
    langs = [LANGUAGES.at_least("12.5"), LANGUAGES.at_most("0.19", True), LANGUAGES.multiple_of("0.3"),
             LANGUAGES.at_most("-9"), LANGUAGES.multiple_of("190"), LANGUAGES.exponent_numbers("positive")]  # fmt: skip
    for lang in langs:
        state = LANGUAGES.steps(lang, text.encode())
        if state:
            assert holds(lang, text + LANGUAGES.shortest(state).decode())
        both = LANGUAGES.both([state, LANGUAGES.regex(r"^[\d.]{0,9}$")])
        if LANGUAGES.alive(both):
            assert holds(lang, text + LANGUAGES.shortest(both).decode())


@settings(max_examples=100, deadline=None)
@given(st.tuples(SIGN, st.sampled_from(["0", "1", "20"]), st.sampled_from(["", ".0", ".5", ".00"]),
                 st.sampled_from(["e5", "E-12", "e+999", "e1234"])))  # fmt: skip
def test_exponents(parts):
    text, mantissa = "".join(parts), Fraction("".join(parts[:3]))
    wanted = {
        "any": True,
        "nonnegative": mantissa >= 0,
        "nonpositive": mantissa <= 0,
        "positive": mantissa > 0,
        "negative": mantissa < 0,
    }
    for sign, want in wanted.items():
        assert holds(LANGUAGES.exponent_numbers(sign), text) == (want and parts[3] != "e1234")


def test_sets_of_numbers_compose():
    both, no = LANGUAGES.both, LANGUAGES.minus
    digits = both([LANGUAGES.at_least("1"), LANGUAGES.at_most("100"), LANGUAGES.plain_integers(),
                   LANGUAGES.multiple_of("7")])  # fmt: skip
    found = [n for n in range(-5, 200) if holds(digits, str(n))]
    assert found == list(range(7, 100, 7))
    assert holds(digits, "7.00")
    assert not LANGUAGES.alive(
        both([LANGUAGES.at_least("1"), LANGUAGES.at_most("6"), LANGUAGES.multiple_of("7")])
    )
    odd = no(LANGUAGES.plain_integers(), LANGUAGES.multiple_of("2"))
    assert holds(odd, "-3.0")
    assert not holds(odd, "4")
    assert not LANGUAGES.alive(no(LANGUAGES.equal_to("2.50"), LANGUAGES.multiple_of("0.5")))
    assert LANGUAGES.same(LANGUAGES.multiple_of("1"), LANGUAGES.plain_integers())
    assert LANGUAGES.same(
        both([LANGUAGES.multiple_of("2"), LANGUAGES.multiple_of("3")]), LANGUAGES.multiple_of("6")
    )
    million = both([LANGUAGES.multiple_of("1000000"), LANGUAGES.at_least("1"), LANGUAGES.at_most("999999")])
    assert not LANGUAGES.alive(million)


def test_budgets():
    with pytest.raises(Exception, match="remainders"):
        LANGUAGES.multiple_of("1234567891")
    with pytest.raises(Exception, match="remainders"):
        LANGUAGES.multiple_of("9999999")
    with pytest.raises(Exception, match="more than 0"):
        LANGUAGES.multiple_of("0")
    with pytest.raises(Exception, match="digits"):
        LANGUAGES.at_least("1e1000000")
