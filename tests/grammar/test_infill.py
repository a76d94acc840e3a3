"""Infilling against brute force: what can be completed, with what, and that splitting and order change nothing."""

import random
import re

import pytest

from tokops.grammar.infill import Gap, InfillGrammar
from tokops.grammar.infill_notation import read_notation

from .infill_oracle import (
    ALPHABET,
    longest_tokens,
    member,
    parts_of,
    pattern_of,
    random_grammar,
    random_parts,
    words,
)

MOST = 7
SEEDS = range(60)


def grammars(seeds=SEEDS):
    """Random grammars that have a text, with their texts up to a length."""
    for seed in seeds:
        rules, terminals = random_grammar(seed)
        known = words(rules, terminals, MOST)["start"]
        if known:
            yield seed, rules, terminals, known, InfillGrammar.from_rules(rules, terminals)


def test_brute_force_agrees_on_random_grammars():
    asked = {True: 0, False: 0}
    for seed, rules, terminals, known, grammar in grammars():
        rng = random.Random(seed)
        for trial in range(30):
            parts = random_parts(rng, rng.choice(sorted(known)) if trial % 3 == 0 else None)
            pattern = re.compile(pattern_of(parts))
            answer = grammar.is_completable(parts_of(parts))
            shortest = min((len(w) for w in known if pattern.fullmatch(w)), default=None)
            asked[answer] += 1
            if shortest is not None:
                assert answer, (rules, terminals, parts)
            completion = grammar.complete(parts_of(parts))
            assert (completion is not None) == answer
            if completion:
                text = completion.text.decode()
                assert pattern.fullmatch(text)
                assert member(rules, terminals, "start", text), (rules, terminals, parts, text)
                # Words longer than what was enumerated aside, it is a shortest one.
                assert len(text) == shortest if shortest is not None else len(text) > MOST, (
                    rules,
                    parts,
                    text,
                )
    assert min(asked.values()) > 200


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_every_step_of_the_normal_form_keeps_the_language(seed):
    rules, terminals = random_grammar(seed)
    if not words(rules, terminals, MOST)["start"]:
        pytest.skip("this grammar has no text")
    grammar = InfillGrammar.from_rules(rules, terminals)
    steps = grammar.normal_form_steps()
    assert steps[0][0] == "source"
    count = len(terminals)
    wanted = words(rules, terminals, 6)["start"]
    for name, start, productions in steps:
        numbered: dict = {f"s{head}": [] for head, _ in productions}
        numbered.setdefault(f"s{start}", [])
        for head, body in productions:
            assert head >= count
            numbered[f"s{head}"].append([f"s{s}" for s in body])
        leaves = {f"s{i}": pattern for i, pattern in enumerate(terminals.values())}
        # Heads without a production derive nothing.
        missing = {s for bodies in numbered.values() for body in bodies for s in body} - leaves.keys()
        numbered.update({symbol: [] for symbol in missing - numbered.keys()})
        assert words(numbered, leaves, 6)[f"s{start}"] == wanted, name
    assert all(len(body) <= 2 for _, body in steps[-1][2])


def test_normal_form_grows_linearly():
    rules = {"start": [[f"r{i}"] for i in range(50)]}
    rules |= {f"r{i}": [["a", "b", f"r{(i + 1) % 50}", "c", "a", "b"], ["a", "b", "c"]] for i in range(50)}
    steps = InfillGrammar.from_rules(rules).normal_form_steps()
    size = [sum(1 + len(body) for _, body in productions) for _, _, productions in steps]
    assert size[-1] <= 1.5 * size[0]


def test_whole_texts_and_prefixes():
    for _, rules, terminals, known, grammar in grammars(range(0, 60, 3)):
        prefixes = {w[:i] for w in known for i in range(len(w) + 1)}
        rng = random.Random(1)
        for _ in range(40):
            text = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 5)))
            assert grammar.accepts(text) == member(rules, terminals, "start", text)
            if text in prefixes:
                assert grammar.is_completable([text, None])
            elif grammar.is_completable([text, None]):
                assert len(grammar.complete([text, None]).text) > MOST


def test_what_is_kept_between_questions_changes_no_answer():
    for seed, _, _, known, grammar in grammars(range(0, 60, 2)):
        rng = random.Random(seed)
        kept = grammar.checker()
        parts = random_parts(rng, rng.choice(sorted(known)))
        for _ in range(25):
            if rng.random() < 0.3:
                parts = random_parts(rng)
            else:
                at = rng.randrange(len(parts))
                parts[at] = rng.choice(["", "a", "b", "ab", "cc", 0, 1])
            fresh = grammar.checker().complete(parts_of(parts))
            again = kept.complete(parts_of(parts))
            assert kept.is_completable(parts_of(parts)) == (fresh is not None)
            assert (fresh and len(fresh.text)) == (again and len(again.text))


def test_rows_of_an_unchanged_end_are_not_computed_again():
    checker = InfillGrammar.builtin("json").checker()
    tail = ['"b": [1, 2, 3], "c": {"d": [null, true]}, ', None, "}"]
    assert checker.is_completable(['{"a": ', None, *tail])
    before = checker._native.rows_computed
    assert checker.is_completable(['{"a": [', None, *tail])
    assert checker._native.rows_computed - before < before / 4


def test_gaps_hold_what_they_have_at_least():
    grammar = InfillGrammar.from_rules({"start": [["A"], ["B", "start"]]}, {"A": "x{2,3}", "B": "y"})
    for least in range(6):
        assert grammar.is_completable(["x", Gap(least)]) == (least <= 2)
        assert grammar.is_completable([Gap(least), "xx"])
        assert len(grammar.complete(["y", Gap(least), "y", None]).fills[0]) == least


def test_weights_choose_the_gap():
    grammar = InfillGrammar.from_rules(
        {"start": [["a", "S", "b", "b", "b"], ["a", "a", "a", "S", "b"]]}, {"S": "-"}
    )
    parts = [None, "-", None]
    assert grammar.complete(parts).text in (b"a-bbb", b"aaa-b")
    assert grammar.complete(parts, weights=[1, 0]).text == b"a-bbb"
    assert grammar.complete(parts, weights=[0, 1]).text == b"aaa-b"


# ---- lexers ----

LEXED = {
    "start": [["statement"], ["statement", ";", "start"]],
    "statement": [["if", "sum"], ["sum"], ["NAME", "=", "sum"], ["NAME", "NAME"]],
    "sum": [["item"], ["item", "+", "sum"], ["++", "sum"]],
    "item": [["NAME"], ["INT"], ["item", "++"]],
}
PATTERNS = {"NAME": "[a-c]+[a-c0-1]*|i[a-z]*", "INT": "[0-1]+", "SPACE": " +"}
LITERALS = {"if", ";", "=", "+", "++"}


def lexed_member(text):
    tokens = longest_tokens(text, PATTERNS, LITERALS)
    if tokens is None:
        return False
    codes = {name: chr(0x4E00 + i) for i, name in enumerate([*PATTERNS, *sorted(LITERALS)])}
    rules = {h: [[codes.get(s, s) for s in body] for body in bodies] for h, bodies in LEXED.items()}
    return member(rules, {}, "start", "".join(codes[t] for t in tokens if t != "SPACE"))


def test_longest_match_is_what_a_lexer_does():
    grammar = InfillGrammar.from_rules(LEXED, PATTERNS, ignored=["SPACE"], lexer="longest")
    for text, wanted in (
        ("a b", True),
        ("ab", True),
        ("ifa", True),  # a name
        ("if a", True),
        ("if", False),  # reserved
        ("if0", True),  # no name goes on with a digit here
        ("a+++b", True),  # a ++ + b, not a + ++ b
        ("a ++ + b", True),
        ("a + ++b", True),
        ("a++b", False),
        ("a1 0", False),
        ("a b;if 1", True),
    ):
        assert lexed_member(text) == wanted, text
        assert grammar.accepts(text) == wanted, text
    rng = random.Random(5)
    seen = {True: 0, False: 0}
    pieces = ["a", "b", "if", " ", "+", "++", "=", ";", "0", "1", "i", "  "]
    for _ in range(1500):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 6)))
        seen[lexed_member(text)] += 1
        assert grammar.accepts(text) == lexed_member(text), text
        if lexed_member(text):
            parts = parts_of(random_parts(rng, text))
            completion = grammar.complete(parts)
            assert completion is not None
            assert lexed_member(completion.text.decode()), (text, parts, completion)
    assert min(seen.values()) > 50


def test_a_name_does_not_merge_with_its_neighbour_across_a_gap():
    rules, terminals = {"start": [["int", "NAME", ";"]]}, {"NAME": "[a-z]+", "S": " +"}
    grammar = InfillGrammar.from_rules(rules, terminals, ignored=["S"], lexer="longest")
    assert not grammar.accepts("intx;")
    assert grammar.complete(["int", None, ";"]).text == b"int a;"
    assert grammar.complete(["int", None, "x;"]).text == b"int x;"
    assert not grammar.is_completable(["intx", None, ";"])
    assert InfillGrammar.from_rules(rules, terminals, ignored=["S"]).accepts("intx;")


def test_parts_may_be_empty():
    grammar = InfillGrammar.from_rules({"start": [[], ["a"]]})
    assert grammar.is_completable([])
    assert grammar.is_completable([""])
    assert grammar.is_completable([None])
    assert grammar.complete([]).text == b""
    assert grammar.complete([None, None, ""]).fills == (b"",)


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("start: a", "1:8: a is not defined"),
        ("start: ?", "1:8: expected"),
        ('start: ("a"', "expected"),
        ('start: ""', "empty"),
        ("start: 'a'", "1:8: unexpected"),
        ('start: "a"\nstart: "b"', "2:1: start is defined twice"),
        ('start: "\\q"', "unknown escape"),
        ('start: "a"\n%ignore start', "is a rule"),
        ("start: " + "(" * 300, "nested"),
    ],
)
def test_errors_of_the_notation_say_where(source, where):
    with pytest.raises(ValueError, match=re.escape(where)):
        read_notation(source)


def test_notation_means_what_lark_means():
    source = 'start: item+\nitem: "x" ("," item)? | "(" item* ")"\n'
    own = InfillGrammar.from_lark(source, lexer="longest")
    shared = InfillGrammar.from_lark(source)
    rng = random.Random(8)
    for _ in range(300):
        parts = [
            "".join(rng.choice("x,()") for _ in range(rng.randint(0, 3))),
            None,
            rng.choice(["", ")", "x,", "))"]),
        ]
        assert own.is_completable(parts) == shared.is_completable(parts), parts
