"""The grammars that come with the library, canvases of tokens, bounds of questions, and bad input."""

import itertools
import json
import random
import re
import threading
import time

import pytest

from tokops.grammar.infill import Gap, InfillGrammar, InfillUnknownError
from tokops.grammar.infill_canvas import Canvas

from .infill_oracle import parts_of, pattern_of, random_parts

JSON_TEXTS = [
    '{"name": "a\\u00e9\\n", "list": [1, -2.5e+3, {"deep": [[], {}]}], "t": true, "n": null}',
    '[ "x", {"a": {"b": {"c": [0, 1, 2, false]}}}, "é\U0001f600" ]',
    '"just text, with \\"quotes\\" and {braces}"',
    "-0.5",
    '{"code": "for (i = 0; i < n; i++) { a[i] += \\"x\\"; }", "k": [ ]}',
]
CPP_TEXTS = [
    "int main() { return 0; }\n",
    """#include <vector>
#include <algorithm>
using namespace std;

// The sum of what is even.
long long sum_even(const vector<int>& xs) {
    long long total = 0;
    for (int x : xs) {
        if (x % 2 == 0) total += x;
    }
    return total;
}
""",
    """#include <map>
#include <string>
#include <vector>
std::map<std::string, std::vector<int>> index_of(std::vector<std::string> words) {
    std::map<std::string, std::vector<int>> out;
    for (size_t i = 0; i < words.size(); ++i) out[words[i]].push_back((int)i);
    return out;
}
""",
    """template <typename T, int N = 4>
class Ring : public Base<T> {
 public:
    explicit Ring(T first) : size_(1), data_{first} {}
    virtual ~Ring() = default;
    bool empty() const { return size_ == 0; }
    T& operator[](int i) { return data_[i % N]; }
 private:
    int size_ = 0;
    T data_[N];
};
""",
    """bool is_prime(int n) {
    if (n < 2) return false;
    for (int d = 2; d * d <= n; d++)
        if (n % d == 0)
            return false;
    return true;
}
""",
    """vector<int> sorted(vector<int> v) {
    sort(v.begin(), v.end(), [](const int& a, const int& b) { return a > b; });
    auto it = std::find_if(v.begin(), v.end(), [&](auto x) -> bool { return x == 'a' || x >> 2 == 0x1F; });
    unsigned long long mask = 1ULL << 3;
    double y = 1.5e-3 + .5f;
    do { mask ^= ~mask & 7; } while (mask != 0 && it != v.end());
    switch (v.size()) { case 0: break; default: v.clear(); }
    const char* text = "a\\n\\"b\\"" "c";
    int* p = new int[10]; delete[] p; p = nullptr;
    return v.empty() ? vector<int>{1, 2, 3} : v;  /* done */
}
""",
    "struct P { double x, y; };\nenum class Color : int { red, green = 2 };\nP make(double x) { return {x, 2.0}; }\n",
]
CPP_WRONG = [
    "int main() { return 0;",
    "int main() { retrun 0 }",
    "intmain() return;",
    "int f( { }",
    "int f() { for (int i = 0; i < 3) {} }",
    "int f() { int if = 3; }",
    "int f() { x = ; }",
    "vector<int f() {}",
    'int f() { char* s = "a; }',
    "int f() { a +++++ b c; }",
]


@pytest.fixture(scope="module")
def builtin():
    return {name: InfillGrammar.builtin(name) for name in ("json", "cpp")}


def is_json(text):
    try:
        json.loads(text)
        return "NaN" not in text and "Infinity" not in text
    except ValueError:
        return False


def test_json_is_json(builtin):
    rng = random.Random(2)
    seen = {True: 0, False: 0}
    for _ in range(600):
        text = rng.choice(JSON_TEXTS)
        for _ in range(rng.randint(0, 2)):
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["", "1", '"', ",", "}", "[", " ", "a"])
                + text[at + rng.randint(0, 1) :]
            )
        seen[is_json(text)] += 1
        assert builtin["json"].accepts(text) == is_json(text), text
    assert min(seen.values()) > 100


@pytest.mark.parametrize("name", ["json", "cpp"])
def test_texts_with_any_gaps_complete(builtin, name):
    grammar, texts = builtin[name], {"json": JSON_TEXTS, "cpp": CPP_TEXTS}[name]
    rng = random.Random(3)
    for text in texts:
        assert grammar.accepts(text), text
        for _ in range(12):
            parts = random_parts(rng, text)
            completion = grammar.complete(parts_of(parts))
            assert completion is not None, parts
            whole = completion.text.decode()
            assert grammar.accepts(whole)
            assert len(completion.text) <= len(text.encode())
            assert re.fullmatch(pattern_of(parts), whole)
            assert name != "json" or is_json(whole)


@pytest.mark.parametrize("text", CPP_WRONG)
def test_what_is_no_cpp(builtin, text):
    assert not builtin["cpp"].accepts(text)


@pytest.mark.parametrize(
    "parts", [["{ ", '"a": 1'], ['{"a', None, "\\u00", None, '"', None, "]"], ["[1", None, "2}"]]
)
def test_where_words_are_split_changes_nothing(builtin, parts):
    whole = builtin["json"].is_completable(parts)
    for i, part in enumerate(parts):
        if part is None:
            continue
        for at in range(len(part) + 1):
            assert (
                builtin["json"].is_completable([*parts[:i], part[:at], b"", part[at:], *parts[i + 1 :]])
                == whole
            )
    assert builtin["json"].is_completable([*(c for p in parts for c in (p or [None]))]) == whole


@pytest.mark.parametrize("name", ["json", "cpp"])
def test_tokens_of_a_valid_text_are_never_refused_in_any_order(builtin, name):
    rng = random.Random(4)
    for text in {"json": JSON_TEXTS, "cpp": CPP_TEXTS[:3]}[name]:
        data = text.encode()
        cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(len(data) // 3))})
        pieces = [data[i:j] for i, j in itertools.pairwise(cuts)]
        tokens = [*dict.fromkeys(pieces), b"", b""]
        end = len(tokens) - 1
        ids = [tokens.index(piece) for piece in pieces] + [end] * rng.randint(0, 3)
        canvas = Canvas(
            builtin[name].checker(), tokens, len(ids), ends=[end], open_end=end not in ids, least=2
        )
        order = list(range(len(ids)))
        rng.shuffle(order)
        for position in order:
            if canvas.ids[position] is None:
                assert canvas.commit(position, ids[position]), (position, pieces[position])
        assert canvas.text() == data


def test_a_token_only_takes_completions_away(builtin):
    rng = random.Random(6)
    tokens = [b"{", b"}", b'"', b"a", b":", b"1", b",", b"[", b"]", b" ", b"tr", b"ue", b'": ', b""]
    for _ in range(6):
        canvas = Canvas(builtin["json"].checker(), tokens, 8, ends=[13], room=False, least=8)
        refused = set()
        while canvas.open:
            position, token = rng.choice(canvas.open), rng.randrange(len(tokens))
            canvas.refused = [set() for _ in range(8)]
            if canvas.commit(position, token):
                assert (position, token) not in refused
            else:
                refused.add((position, token))
            if all((p, t) in refused for p in canvas.open for t in range(len(tokens))):
                break


def test_room_refuses_what_needs_more_tokens_than_are_left(builtin):
    tokens = [b"[", b"]", b"1", b",", b""]
    for room, wanted in ((True, False), (False, True)):
        canvas = Canvas(builtin["json"].checker(), tokens, 4, ends=[4], open_end=False, room=room)
        assert canvas.commit(0, 0)
        assert canvas.commit(1, 0)
        assert canvas.allows(2, 0) == wanted  # [[[ and one token
        assert canvas.commit(2, 1)
        assert canvas.commit(3, 1)
        assert canvas.text() == b"[[]]"


def test_ends(builtin):
    tokens = [b"1", b"[", b"]", b"", b""]
    canvas = Canvas(builtin["json"].checker(), tokens, 5, ends=[3])
    assert not canvas.commit(0, 3)  # nothing before it
    assert canvas.commit(2, 2)
    assert not canvas.allows(1, 3)  # a token stands after it
    assert not canvas.allows(1, 4)  # no text
    assert not canvas.allows(1, 99)
    assert canvas.commit(3, 3)
    assert canvas.ids[3:] == [3, 3]
    assert canvas.open == [0, 1]
    with pytest.raises(ValueError, match="not open"):
        canvas.allows(3, 0)
    assert not canvas.commit(0, 0)
    assert canvas.commit(0, 1)
    assert canvas.text() is None
    assert canvas.complete().text == b"[]"


# ---- bounds and bad input ----


def test_running_out_is_not_a_no(builtin):
    checker = builtin["cpp"].checker()
    parts = [CPP_TEXTS[3][:200], None, "}"]
    for bounds, name in (({"seconds": 0.0}, "seconds"), ({"steps": 100}, "steps")):
        with pytest.raises(InfillUnknownError) as caught:
            checker.is_completable(parts, **bounds)
        assert caught.value.bound == name
        with pytest.raises(InfillUnknownError):
            checker.complete(parts, **bounds)
    assert checker.is_completable(parts)
    steps = 200
    while True:  # cut off at any point, the next answer is right
        try:
            assert checker.is_completable(parts, steps=steps)
            break
        except InfillUnknownError:
            assert not checker.is_completable(["}"])
            steps = int(steps * 1.5)


def test_an_unanswered_proposal_is_told_apart(builtin):
    tokens = [b"[", b"]"]
    for choice in ("reject", "accept", "raise"):
        canvas = Canvas(builtin["json"].checker(), tokens, 4, on_unknown=choice)
        canvas._seconds = 0.0
        if choice == "raise":
            with pytest.raises(InfillUnknownError):
                canvas.allows(0, 0)
        else:
            assert canvas.allows(0, 0) == (choice == "accept")
        assert canvas.unknown == 1
        assert not canvas.refused[0]
        canvas._seconds = None
        assert canvas.allows(0, 0)


def test_another_thread_cancels(builtin):
    checker = builtin["cpp"].checker()
    heavy = [x for _ in range(600) for x in ("x", None, "{", None)]
    caught = []

    def ask():
        try:
            checker.is_completable(heavy)
        except InfillUnknownError as unknown:
            caught.append(unknown.bound)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive() and not caught:
        checker.cancel()
        time.sleep(0.01)
    thread.join()
    assert caught in (["cancelled"], [])


def test_bad_input(builtin):
    grammar = builtin["json"]
    with pytest.raises(TypeError, match="one text"):
        grammar.is_completable("abc")
    with pytest.raises(TypeError, match="float"):
        grammar.is_completable([1.5])
    with pytest.raises(ValueError, match="at_least"):
        Gap(-1)
    with pytest.raises(ValueError, match="steps"):
        grammar.is_completable(["a"], steps=0)
    with pytest.raises(ValueError, match="seconds"):
        grammar.is_completable(["a"], seconds=float("nan"))
    with pytest.raises(ValueError, match="weights"):
        grammar.complete([None], weights=[-1])
    with pytest.raises(ValueError, match="no rule is named"):
        InfillGrammar.from_rules({"s": [[]]})
    with pytest.raises(ValueError, match="lexer"):
        InfillGrammar.from_rules({"start": [[]]}, lexer="other")
    with pytest.raises(ValueError, match="builtin"):
        InfillGrammar.builtin("cobol")
    for rules in ({"start": [["start", "a"]]}, {"start": []}):
        with pytest.raises(Exception, match="derives no text"):
            InfillGrammar.from_rules(rules)
    with pytest.raises(Exception, match="no terminal"):
        InfillGrammar.from_rules({"start": [["a"]]}, not_before={"b": "c"})
    with pytest.raises(InfillUnknownError, match="length"):
        grammar.is_completable(["1" * (1 << 18)])


def test_deep_and_wide_texts_end():
    grammar = InfillGrammar.builtin("json")
    assert grammar.is_completable(["[" * 2000, None])
    assert grammar.complete(["[" * 300, None]).text == b"[" * 300 + b"]" * 300
    assert not grammar.is_completable(["[" * 300 + "}", None])
    assert grammar.is_completable(["[", *(x for _ in range(300) for x in ("1,", None)), "1]"], seconds=60)
