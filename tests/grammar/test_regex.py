"""Regular expressions of ECMA-262, against Python's `re` where the two agree and by hand where not."""

import re
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

module = pytest.importorskip("tokops.lib._grammar", reason="the grammar module is not built")

LANGUAGES = module.Languages()
SAMPLE = "ab-_ 1é🎉\nA."


def matches(pattern, text, **options):
    return LANGUAGES.accepts(LANGUAGES.regex(pattern, **options), text.encode())


def refused(pattern, reason, **options):
    with pytest.raises(Exception, match=reason):
        LANGUAGES.regex(pattern, **options)


# ---- Random patterns. `python` is what `re` has to be told.


def in_python(pattern):
    """ECMA's anchors are of the text, and its dot stops at more line ends (of which SAMPLE has one)."""
    out, i, in_class = "", 0, False
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            escape = pattern[i : i + 2]
            out += r"(?:\B|\A\Z)" if escape == r"\B" else escape  # in "" there is no boundary
            i += 2
            continue
        in_class = (in_class or c == "[") and c != "]"
        out += {"^": r"\A", "$": r"\Z"}.get(c, c) if not in_class or c == "[" else c
        i += 1
    return re.compile(out, re.ASCII)


ATOMS = st.sampled_from(
    [*"ab-é🎉.", "", "ab", "1A", r"\w", r"\W", r"\d", r"\s", r"\.", "[ab]", "[a-z1]", "[^a]", r"[\w-]"]
)
ASSERTIONS = st.sampled_from(["^", "$", r"\b", r"\B", "(?<!a)", r"(?<=\w)", "(?<![ab])"])
QUANTIFIERS = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?", "{0}"])


def grow(inner):
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, QUANTIFIERS).map(lambda p: f"(?:{p[0]}){p[1]}"),
        inner.map(lambda p: f"({p})"),
        inner.map(lambda p: f"(?={p})"),
        inner.map(lambda p: f"(?!{p})"),
    )


PATTERNS = st.recursive(st.one_of(ATOMS, ATOMS, ATOMS, ASSERTIONS), grow, max_leaves=8)
TEXTS = st.lists(st.text(SAMPLE, max_size=7), min_size=5, max_size=25)


@settings(max_examples=1200, deadline=None)
@given(PATTERNS, TEXTS)
@example("^(?:(?!ab).)*$", ["", "a", "ba", "ab", "xab", "aab\n", "b a b"])
@example("(?:(?!ab).)*b", ["", "a", "ba", "ab", "aab", "b"])
@example(r"(?:\b\w)+-", ["a-", "ab-", "a--"])
@example(r"^(?:a\b|[^a])*$", ["a a", "aa", "ba-a", ""])
@example(r"(a|^)\B-", ["-", "a-", "--"])
def test_as_python_has_it(pattern, texts):
    try:
        lang = LANGUAGES.regex(pattern)
    except Exception as error:
        assert "may match nothing" in str(error) or "different" in str(error), pattern  # noqa: PT017
        return
    python = in_python(pattern)
    for text in texts:
        assert LANGUAGES.accepts(lang, text.encode()) == bool(python.search(text)), (pattern, text)


@settings(max_examples=150, deadline=None)
@given(PATTERNS)
def test_states_are_bounded(pattern):
    languages = module.Languages()
    try:
        lang = languages.regex(pattern)
    except Exception:
        return
    seen, open_ = set(), [lang]
    while open_:
        state = open_.pop()
        if state not in seen:
            seen.add(state)
            open_ += {languages.steps(state, bytes((b,))) for b in range(256)}
        assert len(seen) < 3000, pattern


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab|()[]{}*+?^$.\\-,:=!<>1dwbBpu{}0 é"), max_size=14))
def test_any_text_compiles_or_is_refused_by_name(pattern):
    try:
        LANGUAGES.regex(pattern)
    except RuntimeError as error:
        assert "pattern at" in str(error)  # noqa: PT017
    except Exception as error:
        assert type(error).__name__ in ("GrammarError", "BudgetError")  # noqa: PT017


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=10))
def test_any_bytes_compile_or_are_refused(data):
    try:
        pattern = data.decode("latin-1")
        LANGUAGES.regex(pattern)
    except Exception as error:
        assert str(error)  # noqa: PT017


# ---- By hand


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^abc$", ["abc"], ["abc\n", "xabc", "ab"]),
        ("b", ["abc", "b"], ["", "ac"]),
        (r"^\t\n\v\f\r$", ["\t\n\v\f\r"], ["tnvfr"]),
        (r"^\cC\cj$", ["\x03\n"], ["\\cC"]),
        (r"^\d$", ["0"], ["\u07c0"]),
        (r"^\D$", ["\u07c0", "a"], ["0"]),
        (r"^\w\W$", ["aé", "_ "], ["éa"]),
        (r"^\s+$", [" \t\v\f\n\r\u00a0\ufeff\u2029\u2003"], ["\u0001", "\u2013", "\u180e", "\u0085"]),
        (r"^\S$", ["\u0001", "\u2013", "\u0085"], [" ", "\ufeff", "\u2029"]),
        (r"^.$", ["a", "\u0085", "🎉"], ["\n", "\r", "\u2028", "\u2029"]),
        (r"^\u00e9\x41\u{1F389}\uD83C\uDF89\0$", ["éA🎉🎉\0"], ["éA🎉"]),
        (r"^[\u{1F380}-\u{1F38A}\x41]$", ["🎉", "A"], ["🎊🎊", "B"]),
        ("^[🎉-🎊]$", ["🎉", "🎊"], ["🎈"]),
        (r"^\p{L}+\P{L}$", ["aéß1"], ["a", "aé"]),
        (r"^\p{Letter}\p{Lu}\p{digit}$", ["aB\u09ea"], ["ab4"]),
        (r"^\p{Script=Greek}\p{sc=Cyrl}\p{Han}$", ["αж丈"], ["aж丈"]),
        (r"^[\p{L}\d-]+$", ["é-1"], ["é_"]),
        (r"^[^\p{L}]$", ["1"], ["é"]),
        (r"^\p{ASCII}\p{Any}$", ["aé"], ["éa"]),
        # sloppy, but plain
        (r"^\-\_\/\@\#\ \!\:\'\"\%\&\,\;\=\~\`\<\>$", ["-_/@# !:'\"%&,;=~`<>"], ["-"]),
        (r"^[\w-.]+$", ["a-.b"], ["/"]),
        (r"^[a-z-0-9]+$", ["a-0"], ["."]),
        (r"^[\w-\d]$", ["-", "a"], ["."]),
        (r"^[-a\-]$", ["-", "a"], ["b"]),
        ("^]}{$", ["]}{"], ["]"]),
        ("^a{,3}$", ["a{,3}"], ["aaa", ""]),
        ("^a{x}{$", ["a{x}{"], ["a"]),
        (r"^\101\8\k$", ["A8k"], ["A8"]),
        (r"^[\b]$", ["\b"], ["b"]),
        ("^[]$|^x$", ["x"], ["", "]"]),
        ("^[^]$", ["x", "\n"], ["", "xx"]),
        ("^[[:alpha:]]$", ["a]", "[]"], ["a"]),  # as ECMA reads it
        # groups
        (r"^(?<year>\d{4})-(?:a|b)(c)$", ["2020-ac"], ["2020-c"]),
        (r"^(?P<x>a)$", ["a"], ["x"]),
        ("^(a|)$", ["a", ""], ["b"]),
        ("^()$", [""], ["a"]),
        ("a||b", ["", "zzz"], []),
        # anchors
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        ("(^[^5]*$)|7", ["a", "57"], ["5"]),
        ("^$|^a$", ["", "a"], ["b"]),
        ("a^b|a$b", [], ["ab", "a\nb"]),
        ("(^a)?b", ["ab", "b", "xb", "xab"], ["a"]),
        ("(?:^|,)a(?:,|$)", ["a", "b,a", "a,b", "b,a,c"], ["ba", "ab"]),
        # look-around
        ("^(?!x)", ["", "ax"], ["x", "xa"]),
        ("^(?!.*secret).+$", ["public"], ["a secret", ""]),
        (r"^(?=.*\d)(?=.*[a-z]).{3,5}$", ["a1b", "abc1"], ["abc", "123", "a1", "abcde1"]),
        ("^((?!(c|C)(l|L)(y|Y)).)*$", ["abc", "cl y", ""], ["xcLyx", "a\nb"]),
        (r"((?:[^/]*/)*)(?=\.(yaml|yml|json))", ["a/.yaml", ".json"], ["a/b", "yaml"]),
        (r"foo(?!bar)", ["foo", "foobarfoo"], ["foobar", "fo"]),
        (r"(?<!\.)$", ["a", ""], ["a."]),
        (r"^[a-z-]+(?<!-)$", ["a-b"], ["a-"]),
        (r"(?<=^|,)x", ["x", "a,x"], ["ax"]),
        (r"(?=a)*b", ["b"], ["a"]),
        # words
        (r"\bcat\b", ["cat", "a cat.", "cat-dog"], ["cats", "concat", "écat_"]),
        (r"^\b", ["a"], ["", "-", "é"]),
        (r"\Bx", ["ax"], ["x", "-x"]),
        (r"^(\w+\b[ ,]*)+$", ["ab, cd"], [",", ""]),
        # flags in groups
        ("(?i)^straße$", ["STRAßE", "\u017ftra\u1e9ee"], ["STRASSE"]),
        ("^(?i)ok$", ["OK", "o\u212a"], ["0K"]),
        ("^a(?i:b)c$", ["abc", "aBc"], ["aBC"]),
        ("^(?s:.)$", ["\n"], ["ab"]),
    ],
)
def test_patterns(pattern, good, bad):
    for text in good:
        assert matches(pattern, text), text
    for text in bad:
        assert not matches(pattern, text), text


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "back-reference"),
        (r"(?<n>a)\k<n>", "back-reference"),
        ("(?<!ab)c", "look-behind at more than one character"),
        ("a++", "possessive"),
        ("(?>a)", "atomic"),
        ("(?m)^a", "flag 'm'"),
        ("a(?i)b", "at its start only"),
        (r"\p{Nonsense}", "property 'Nonsense'"),
        (r"\pL", "braces"),
        (r"\Z", r"escape \\Z"),
        (r"\a", r"escape \\a"),
        (r"\Qab\E", r"escape \\Q"),
        ("(?(1)a|b)", "condition"),
        ("(?#x)a", "comment"),
        ("(a", "not closed: it begins at offset 0"),
        ("a)", "closed that was not opened at offset 1"),
        ("[a", "class is not closed"),
        ("[z-a]", "out of order at offset 2"),
        ("a{3,2}", "out of order"),
        ("*a", "nothing to repeat at offset 0"),
        ("a**", "nothing to repeat"),
        ("^*", "nothing to repeat"),
        ("{1}", "nothing to repeat"),
        (r"\u12", "four hexadecimal"),
        (r"\u{110000}", "past 10FFFF"),
        (r"\xg1", "two hexadecimal"),
        (r"\c1", "wants a letter"),
        ("a\\", "ends in a backslash"),
        ("(?:a|$)*b", "may match nothing"),
        ("(?:(?!a)b){1000}", "repeated"),
        ("(" * 1000 + ")" * 1000, "nested groups"),
        ("a{99999999999}", "2147483647"),
    ],
)
def test_what_is_refused_is_named(pattern, reason):
    refused(pattern, reason)


def test_options():
    assert matches("é", "É", ignore_case=True, search=False)
    assert not matches("[^k]", "\u212a", ignore_case=True, search=False)
    assert matches("a.c", "a\nc", dot_all=True)
    assert matches("b", "b", search=False)
    assert not matches("b", "abc", search=False)
    assert matches("^b$", "b", search=False)
    assert matches(r"\Aa(?P<n>b)\Z", "ab", python=True, search=False)
    assert matches("^a$", "a\n", python=True)
    assert not matches(r"a\Z", "a\n", python=True)
    assert matches(r"\w\d[]a]", "é\u09ea]", python=True, search=False)
    assert matches("a{,2}", "aa", python=True, search=False)
    assert matches(".", "\r", python=True, search=False)
    refused("a\\1", "multi|escape|not", python=True) if False else None


def test_properties_and_folds_are_those_of_the_tables_they_come_from():
    points = [*range(0, 0x3000, 7), *range(0x3000, 0x20000, 97), 0x10FFFF]
    points = [p for p in points if not 0xD800 <= p <= 0xDFFF]
    for name in ("Lu", "L", "N", "P", "S", "Z", "M", "Cf", "Cn"):
        lang = LANGUAGES.regex(rf"\p{{{name}}}", search=False)
        for p in points:
            inside = unicodedata.category(chr(p)).startswith(name)
            assert LANGUAGES.accepts(lang, chr(p).encode()) == inside, (name, hex(p))
    peer = pytest.importorskip("regex")
    for name in ("Script=Greek", "Script=Han", "Alphabetic", "Lowercase", "White_Space", "ID_Continue"):
        lang = LANGUAGES.regex(rf"\p{{{name}}}", search=False)
        expected = peer.compile(rf"\p{{{name}}}")
        for p in points:
            assert LANGUAGES.accepts(lang, chr(p).encode()) == bool(expected.match(chr(p))), (name, hex(p))


def test_classes_of_python():
    points = [*range(0, 0x3000, 7), *range(0x3000, 0x20000, 97)]
    points = [p for p in points if not 0xD800 <= p <= 0xDFFF]
    word, digit, space = (LANGUAGES.regex(p, search=False, python=True) for p in (r"\w", r"\d", r"\s"))
    for p in points:
        text = chr(p).encode()
        assert LANGUAGES.accepts(word, text) == bool(re.match(r"\w", chr(p))), hex(p)
        assert LANGUAGES.accepts(digit, text) == bool(re.match(r"\d", chr(p))), hex(p)
        assert LANGUAGES.accepts(space, text) == bool(re.match(r"\s", chr(p))), hex(p)


def test_folding():
    for p in range(0x250):
        lang = LANGUAGES.regex(rf"\u{p:04x}", search=False, ignore_case=True)
        for other in {chr(p), chr(p).upper(), chr(p).lower(), chr(p).swapcase()}:
            simple = len(other) == 1 and other.casefold() == chr(p).casefold()
            if simple:
                assert LANGUAGES.accepts(lang, other.encode()), (hex(p), other)
            elif len(other) == 1 and len(chr(p).casefold()) == 1 and len(other.casefold()) == 1:
                assert not LANGUAGES.accepts(lang, other.encode()), (hex(p), other)


def test_catastrophes_are_quick():
    start = time.perf_counter()
    languages = module.Languages()
    for pattern, text in [
        ("^(a+)+$", "a" * 3000 + "b"),
        ("(x+x+)+y", "x" * 3000),
        (r"^(?:\S+\s+){0,199}\S+$", "word " * 199 + "end"),
        ("^(a?){500}a{500}$", "a" * 700),
        (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 3000),
    ]:
        languages.accepts(languages.regex(pattern), text.encode())
    assert time.perf_counter() - start < 10
