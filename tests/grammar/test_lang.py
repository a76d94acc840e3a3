"""Languages by derivatives: against sets of short words, one by one."""

import functools
import itertools
import os
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

module = pytest.importorskip("tokops.lib._grammar", reason="the grammar module is not built")

LETTERS = b"abc"
LONGEST = 5
WORDS = [bytes(w) for n in range(LONGEST + 1) for w in itertools.product(LETTERS, repeat=n)]
ALL = frozenset(WORDS)


@functools.cache
def shared():
    """One table for many tests: they must not get in each other's way."""
    return module.Languages()


# ---- The oracle: sets of all words up to LONGEST. Every operation is exact on them.


def cat(a, b):
    return frozenset(x + y for x in a for y in b if len(x) + len(y) <= LONGEST)


def repeated(a, lo, hi):
    if b"" in a:
        lo = 0
    if hi < 0:
        star = frozenset([b""])
        while True:
            more = star | cat(star, a)
            if more == star:
                break
            star = more
        head = frozenset([b""])
        for _ in range(min(lo, LONGEST + 1)):
            head = cat(head, a)
        return cat(head, star)
    result, now = set(), frozenset([b""])
    for n in range(min(hi, 2 * LONGEST + 2) + 1):
        if n >= lo:
            result |= now
        now = cat(now, a)
    return frozenset(result)


LEAVES = st.one_of(
    st.binary(max_size=3).map(lambda x: ("word", bytes(LETTERS[b % 3] for b in x))),
    st.sets(st.sampled_from(LETTERS)).map(lambda s: ("bytes", bytes(sorted(s)))),
    st.lists(st.sampled_from([w for w in WORDS if len(w) < 4]), max_size=6).map(
        lambda w: ("words", tuple(w))
    ),
    st.just(("any",)),
    st.just(("text",)),
    st.integers(0, 2**30).map(lambda seed: ("dfa", seed)),
)


def deeper(inner):
    many = st.lists(inner, min_size=1, max_size=4).map(tuple)
    return st.one_of(
        st.tuples(st.just("concat"), inner, inner),
        st.tuples(st.just("either"), many),
        st.tuples(st.just("both"), many),
        st.tuples(st.just("not"), inner),
        st.tuples(st.just("star"), inner),
        st.tuples(st.just("repeat"), inner, st.integers(0, 3), st.integers(-1, 4)),
    )


TREES = st.recursive(LEAVES, deeper, max_leaves=8)


def random_dfa(seed):
    """Rows over three letters, and which states accept."""
    rng = random.Random(seed)
    states = rng.randint(1, 4)
    moves = [[rng.choice([-1, *range(states)]) for _ in LETTERS] for _ in range(states)]
    return moves, [rng.random() < 0.4 for _ in range(states)]


def build(languages, tree):
    """(language, its words up to LONGEST) of a tree of operations."""
    kind, *args = tree
    match kind:
        case "word":
            return languages.word(args[0]), frozenset([args[0]])
        case "bytes":
            return languages.bytes(args[0]), frozenset(bytes((b,)) for b in args[0])
        case "words":
            return languages.words(list(args[0])), frozenset(args[0])
        case "any":
            return languages.any_bytes(), ALL
        case "text":
            return languages.text(), ALL
        case "dfa":
            moves, accepting = random_dfa(args[0])
            rows = []
            for move in moves:
                row = [-1] * 256
                for letter, target in zip(LETTERS, move, strict=True):
                    row[letter] = target
                rows.append(row)
            words = set()
            for word in WORDS:
                state = 0
                for b in word:
                    state = moves[state][LETTERS.index(b)] if state >= 0 else -1
                if state >= 0 and accepting[state]:
                    words.add(word)
            return languages.dfa(rows, accepting, 0), frozenset(words)
        case "concat":
            (a, x), (b, y) = (build(languages, t) for t in args)
            return languages.concat(a, b), cat(x, y)
        case "either" | "both":
            parts = [build(languages, t) for t in args[0]]
            langs = [p[0] for p in parts]
            if kind == "either":
                return languages.either(langs), frozenset().union(*(p[1] for p in parts))
            return languages.both(langs), ALL.intersection(*(p[1] for p in parts))
        case "not":
            a, x = build(languages, args[0])
            return languages.complement(a), ALL - x
        case "star":
            a, x = build(languages, args[0])
            return languages.star(a), repeated(x, 0, -1)
        case "repeat":
            a, x = build(languages, args[0])
            lo, hi = args[1], args[2]
            if 0 <= hi < lo:
                hi = lo
            return languages.repeat(a, lo, hi), repeated(x, lo, hi)
    raise AssertionError(kind)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_words_are_those_of_the_operations(tree):
    languages = shared()
    lang, words = build(languages, tree)
    for word in WORDS:
        assert languages.accepts(lang, word) == (word in words), (tree, word)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_questions(tree):
    languages = shared()
    lang, words = build(languages, tree)
    if words:
        assert languages.alive(lang)
    if not languages.alive(lang):
        assert not words
        assert languages.count(lang, 10) == 0
        assert languages.lengths(lang) == (-1, False)
        assert languages.same(lang, 0)
        return
    shortest = languages.shortest(lang)
    assert languages.accepts(lang, shortest)
    if words:
        assert len(shortest) <= min(map(len, words))  # other bytes than the letters may do better
    if languages.infinite(lang):
        assert languages.count(lang, 1000) == 1000
    else:
        all_words = languages.list(lang, 100_000)
        assert len(all_words) == languages.count(lang, 100_000) == len(set(all_words))
        assert all(languages.accepts(lang, w) for w in all_words)
        assert {w for w in all_words if len(w) <= LONGEST and set(w) <= set(LETTERS)} == words
        assert languages.count(lang, 2) == min(2, len(all_words))


@settings(max_examples=150, deadline=None)
@given(TREES, TREES)
def test_algebra(one, other):
    languages = shared()
    (a, x), (b, y) = build(languages, one), build(languages, other)
    no = languages.complement
    assert not languages.alive(languages.both([a, no(a)]))
    assert languages.same(languages.either([a, no(a)]), languages.any_bytes())
    assert languages.same(no(languages.either([a, b])), languages.both([no(a), no(b)]))
    assert languages.same(no(languages.both([a, b])), languages.either([no(a), no(b)]))
    assert languages.same(no(no(a)), a)
    assert languages.same(languages.both([a, languages.either([a, b])]), a)
    difference = languages.either([languages.minus(a, b), languages.minus(b, a)])
    assert languages.same(a, b) == (not languages.alive(difference))
    if x != y:
        assert not languages.same(a, b)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_lengths_in_characters(tree):
    languages = shared()
    lang, _ = build(languages, tree)
    lang = languages.both([lang, languages.text()])
    if not languages.alive(lang):
        return
    shortest, all_longer = languages.lengths(lang)
    char = languages.any_char()
    of_length = lambda n: languages.both([lang, languages.repeat(char, n, n)])  # noqa: E731
    assert languages.alive(of_length(shortest))
    assert not any(languages.alive(of_length(n)) for n in range(shortest))
    if all_longer:
        assert all(languages.alive(of_length(n)) for n in range(shortest, shortest + 6))


# ---- Text


def test_text_is_utf8():
    languages = module.Languages()
    text, char = languages.text(), languages.any_char()
    edges = [0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x10FFFF]
    for point in [*range(0x300), *edges]:
        encoded = chr(point).encode()
        assert languages.accepts(char, encoded)
        assert languages.steps(text, encoded) == text
    rng = random.Random(0)
    for _ in range(5000):
        data = bytes(
            rng.choice([0x41, 0x7F, 0x80, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xA0])
            for _ in range(rng.randint(0, 5))
        )
        try:
            data.decode()
            valid = True
        except UnicodeDecodeError:
            valid = False
        assert languages.accepts(text, data) == valid, data


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x2000)), max_size=6))
def test_code_points(ranges):
    languages = shared()
    pairs = [(a, min(a + n, 0x10FFFF)) for a, n in ranges]
    lang = languages.code_points(pairs)
    edges = {p + d for pair in pairs for p in pair for d in (-1, 0, 1)} | {0, 0x7F, 0x80, 0x10FFFF}
    for point in edges:
        if 0 <= point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:
            inside = any(a <= point <= b for a, b in pairs)
            assert languages.accepts(lang, chr(point).encode()) == inside
    assert languages.count(lang, 1 << 21) == len(
        set().union(*(range(a, b + 1) for a, b in pairs)) - set(range(0xD800, 0xE000))
    )


def test_states_stay_few():
    languages = module.Languages()
    text, char = languages.text(), languages.any_char()
    assert languages.star(char) == text
    assert languages.concat(text, text) == text
    assert languages.either([text, languages.word(b"x"), languages.regex("[a-z]+é?")]) == text
    assert languages.both([text, languages.regex("^a+$")]) == languages.regex("^a+$")
    found = languages.regex("foo")
    assert languages.steps(found, b"xx fo fooo") == text  # once found, all goes
    assert languages.steps(languages.regex("a.*b|c"), b"--c") == text
    assert languages.steps(languages.regex(".*a.*"), "é a".encode()) == text
    assert languages.regex(".*") == languages.regex("") == languages.regex("[a-z]*") == text
    assert languages.regex("^[\\s\\S]*$") == text
    assert languages.repeat(char, 1) == languages.concat(char, text) == languages.regex("[^]")
    line = languages.regex("^[^\\n]*$")
    assert languages.steps(line, "añ🎉".encode()) == line
    for pattern in ("foo|bar", "^[a-z]+$", "(a|b)*c", "^(?!x)", "\\bword\\b"):
        lang, seen = languages.regex(pattern), set()
        open_ = [lang]
        while open_:
            state = open_.pop()
            if state in seen:
                continue
            seen.add(state)
            open_ += [languages.steps(state, bytes((b,))) for b in range(256)]
        assert len(seen) < 60, (pattern, len(seen))


# ---- Size


def test_counts_are_not_unrolled():
    languages = module.Languages()
    size = languages.size()
    many = languages.repeat(languages.any_char(), 0, 100_000)
    assert languages.size() < size + 60
    less = languages.steps(many, b"x" * 1000)
    assert less == languages.repeat(languages.any_char(), 0, 99_000)
    assert languages.size() < size + 1200
    assert languages.lengths(many) == (0, False)
    assert languages.lengths(languages.repeat(languages.any_char(), 7, 100_000)) == (7, False)
    assert languages.count(many, 1000) == 1000
    assert languages.alive(
        languages.minus(languages.repeat(languages.any_char(), 1000, 2000), languages.word(b"x"))
    )
    assert not languages.alive(languages.minus(many, languages.text()))


def test_many_words():
    languages = module.Languages()
    words = [b"word-%d" % i for i in range(5000)] + ["né".encode(), b""]
    lang = languages.words(words)
    assert lang == languages.words(words[::-1])
    for word in words[::97]:
        assert languages.accepts(lang, word)
        assert not languages.accepts(lang, word + b"!")
    assert languages.count(lang, 10_000) == 5002
    assert sorted(words) == languages.list(lang, 10_000)
    assert languages.steps(lang, b"word-4999") == languages.word(b"")
    others = languages.minus(languages.text(), lang)
    assert languages.accepts(others, b"word-5000")
    assert not languages.accepts(others, b"word-4")
    assert languages.lengths(others) == (1, True)


def test_budgets():
    languages = module.Languages(max_bytes=1 << 20)

    def many():
        for i in range(10_000):
            languages.word(b"some text that is not short %d" % i)

    with pytest.raises(Exception, match=r"bytes|languages"):
        many()
    languages = module.Languages()
    languages.set_fuel(100)
    hard = languages.both([languages.regex(p) for p in ("^(?:aa)*$", "^(?:a{101})+$", "^a*b?a$")])
    with pytest.raises(Exception, match="steps"):
        languages.count(hard, 10)

    def deep():
        inner = languages.word(b"a")
        for _ in range(100_000):
            inner = languages.star(languages.concat(inner, languages.word(b"b")))

    with pytest.raises(Exception, match=r"nested"):
        deep()
    with pytest.raises(Exception, match="repetitions"):
        languages.repeat(languages.repeat(languages.word(b"ab"), 2**30, 2**30), 7, 7)


def test_threads_share_a_table():
    languages = module.Languages()
    patterns = ["^[a-z]+\\d*$", "foo.*bar", "^(?!no)\\w+$", "(ab|ba){2,50}"]
    texts = [os.urandom(6).hex().encode() for _ in range(50)]
    texts += [b"nope", b"foo bar", b"abbaab", b"zz9"]
    results: list[list] = [[] for _ in range(6)]

    def work(out):
        for pattern in patterns:
            lang = languages.regex(pattern)
            out.append([languages.accepts(lang, t) for t in texts])
            out.append(languages.alive(languages.minus(lang, languages.regex("^a"))))

    threads = [threading.Thread(target=work, args=(out,)) for out in results]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(r == results[0] for r in results)
