"""Matchers against themselves: a mask is what accept says, token by token; and what they refuse."""

import itertools
import json
import random
import time

import numpy as np
import pytest
import torch

from tokops import grammar as G

from .engine import END, byte_vocabulary

#: Bytes, and tokens that cross the borders of lexemes.
TOKENS = [bytes((b,)) for b in range(256)]
CROSSING = [
    b'{"',
    b'":',
    b'": ',
    b'", "',
    b'","',
    b'"}',
    b'"}}',
    b'"]',
    b"]}",
    b"ab",
    b"aab",
    b'ab"',
    b'b":',
    b"true",
    b"null}",
    b"12",
    b"1,",
    b"0.5",
    b"1e5",
    b"  ",
    b"\n\n",
    b" \t\n",
    b' "',
    b' "ab',
    b'\n"',
    b', "a',
    b"\\u00",
    b"\\n",
    b'\\"',
    b"\\ba",
    b"\\b",
    b" \\",
    b"61",
    b"00",
    b"a\\",
    b"\xc3\xa9",
    b"\xc3",
    b"\xa9a",
    b"\xe2\x82\xac",
    b"1+",
    b"+1",
    b"(1",
    b"<f=",
    b"a <f",
    b"ab",
]
EOS = len(TOKENS) + len(CROSSING)
SCHEMAS = [
    True,
    {
        "type": "object",
        "properties": {"ab": {"enum": ["ab", 1]}, "a": {"type": "string", "maxLength": 3}},
        "required": ["a"],
    },
    {
        "type": "object",
        "properties": {"a": {}, "b": {}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    },
    {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "^a*b?$"}},
    {"type": "array", "uniqueItems": True, "items": {"type": "integer", "minimum": 0, "maximum": 12}},
    {
        "type": "array",
        "uniqueItems": True,
        "items": {
            "type": "object",
            "properties": {"a": {"const": 1}, "ab": False},
            "propertyNames": {"pattern": "^[ab]"},
        },
    },
    {"type": "array", "uniqueItems": True, "items": {"type": "array", "items": {"enum": [1, "ab"]}}},
    {
        "type": "object",
        "patternProperties": {"^a": {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
    },
    {"type": "string", "pattern": "^(ab|true)*$", "minLength": 3, "maxLength": 6},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "minLength": 1, "maxLength": 1},
    {"type": "string", "pattern": "[0-9]{3}", "minLength": 3, "maxLength": 3},
    {"type": "string", "pattern": "^(\\S+\\s+){0,3}\\S+$", "maxLength": 9},
    {"not": {"properties": {"a": {"type": "integer"}}}},
    {
        "type": "array",
        "contains": {"const": 1},
        "maxContains": 1,
        "items": {"type": "integer", "maximum": 12},
    },
    {
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        "type": "object",
        "additionalProperties": {"type": "number"},
    },
    {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "null"}}}},
    },
    {"type": "object", "propertyNames": {"enum": ["a", "ab", "b"]}, "maxProperties": 2},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 12, "multipleOf": 0.25},
    {"enum": [{"a": [1, "ab"]}, "ab", 12, None]},
]
EBNF = 'root ::= expr\nexpr ::= expr "+" term | term\nterm ::= [0-9]+ | "(" expr ")"'
LARK = 'start: expr\nexpr: expr "+" NUMBER | NUMBER\n%import common.NUMBER\n%import common.WS\n%ignore WS\n'
TAGS = [
    {
        "begin": "<f=a>",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        "end": "</f>",
    },
    {"begin": "<f=b>", "schema": {"type": "array"}, "end": "</f>"},
]


@pytest.fixture(scope="module")
def vocab():
    return G.Vocabulary([*TOKENS, *CROSSING, b""], [EOS], width=EOS + 40)


def grammars(vocab):
    for schema in SCHEMAS:
        for options in ({}, {"key_order": "schema"}, {"whitespace": "space"}, {"max_whitespace": 2}):
            yield json.dumps(schema) + str(options), G.compile_json_schema(schema, vocab, **options)
    yield "ebnf", G.compile_ebnf(EBNF, vocab)
    yield "lark", G.compile_lark(LARK, vocab)
    yield "regex", G.compile_regex(r"(\d{3}|ab+)-(\d{2}|a)", vocab)
    yield "tags", G.compile_tags(TAGS, vocab, triggers=["<f="])


def bits(vocab, mask):
    return np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: vocab.width].astype(bool)


def test_masks_are_what_accept_says(vocab):
    """And no mask is empty; a text that ends is accepted, and forks and rollbacks give the same masks."""
    for name, grammar in grammars(vocab):
        for seed in range(4):
            draw = random.Random(seed)
            m, mask, earlier = grammar.matcher(), vocab.masks()[0], []
            for _ in range(25):
                m.fill(mask)
                allowed = bits(vocab, mask)
                assert allowed.tolist() == [m.allows(t) for t in range(vocab.width)], (name, m.text)
                assert allowed.any(), (name, m.text)
                earlier.append(allowed)
                assert m.accept(draw.choice(np.flatnonzero(allowed).tolist()))
                if m.is_done():
                    assert grammar.accepts(m.text), (name, m.text)
                    break
            back = draw.randrange(1, len(earlier) + 1)
            twin = m.fork()
            m.rollback(back)
            m.fill(mask)
            assert bits(vocab, mask).tolist() == earlier[-back].tolist(), (name, m.text)
            assert len(twin.text) >= len(m.text)


def test_trees_batches_and_jumps(vocab):
    grammar = G.compile_json_schema(
        {
            "type": "object",
            "properties": {"ab": {"const": "true"}},
            "required": ["ab"],
            "additionalProperties": False,
        },
        vocab,
        whitespace="none",
    )
    m = grammar.matcher()
    assert m.jump_forward() == b'{"ab":"true"}'
    tokens = [
        vocab_id(b'{"'),
        vocab_id(b"ab"),
        vocab_id(b'ab"'),
        vocab_id(b'"'),
        vocab_id(b"true"),
        vocab_id(b":"),
    ]
    parents = [-1, 0, 0, 1, -1, 2]
    rows = vocab.masks(len(tokens))
    m.fill_tree(parents, tokens, rows)
    for i in range(len(tokens)):
        path, k = [], i
        while k >= 0:
            path.insert(0, tokens[k])
            k = parents[k]
        alone, mask = grammar.matcher(), vocab.masks()[0]
        if all(alone.accept(t) for t in path):
            alone.fill(mask)
        else:
            mask.zero_()
        assert torch.equal(rows[i], mask), i
    assert m.text == b""
    for kind in (torch.tensor, np.array):
        again = vocab.masks(len(tokens))
        m.fill_tree(kind(parents), kind(tokens), again)
        assert torch.equal(again, rows)
    m.fill_tree([], [], vocab.masks(0))
    several = [grammar.matcher() for _ in range(5)]
    for i, s in enumerate(several):
        s.accept_bytes(b'{"ab":'[:i])
    for threads in (1, 3):
        batch = vocab.masks(6)
        G.fill_batch([*several, None], batch, threads=threads)
        for i, s in enumerate(several):
            mask = vocab.masks()[0]
            s.fill(mask)
            assert torch.equal(batch[i], mask)
        assert batch[5].eq(-1).all()


def vocab_id(token):
    return [*TOKENS, *CROSSING].index(token)


def test_a_batch_without_grammars_allows_everything(vocab):
    mask = vocab.masks(2)
    G.fill_batch([None, None], mask)
    assert (mask == -1).all()
    array = np.zeros((1, vocab.words), np.int32)
    G.fill_batch([None], array)
    assert (array == -1).all()
    G.fill_batch([], vocab.masks(0))


def test_after_the_end(vocab):
    m = G.compile_regex("ab", vocab).matcher()
    assert not m.accept(EOS)
    assert m.accept_bytes(b"ab")
    assert m.is_complete()
    assert not m.is_done()
    assert m.accept(EOS)
    assert m.is_done()
    assert not m.accept(EOS)
    assert not m.accept(97)
    assert not m.accept_bytes(b"a")
    mask = vocab.masks()[0]
    m.fill(mask)
    assert bits(vocab, mask).nonzero()[0].tolist() == [EOS]
    m.rollback(2)
    assert m.text == b""
    assert not m.is_done()


def test_refusals(vocab):
    m = G.compile_regex("ab", vocab).matcher()
    for token in (-1, vocab.width):
        with pytest.raises(IndexError, match="is not below"):
            m.accept(token)
    with pytest.raises(IndexError, match="can't take back 1"):
        m.rollback(1)
    for mask in (
        torch.zeros(vocab.words + 1, dtype=torch.int32),
        torch.zeros(vocab.words, dtype=torch.int64),
        np.zeros(vocab.words - 1, np.int32),
        torch.zeros(vocab.words * 2, dtype=torch.int32)[::2],
    ):
        with pytest.raises(ValueError, match="mask"):
            m.fill(mask)
    with pytest.raises(ValueError, match="one matcher stands in two rows"):
        G.fill_batch([m, m], vocab.masks(2))
    for mask in (vocab.masks(1), torch.zeros(2, vocab.words), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="fill_batch: mask: expected int32 of 2 rows"):
            G.fill_batch([None, None], mask)
    with pytest.raises(ValueError, match="parents"):
        m.fill_tree([0], [1], vocab.masks(1))
    for tokens, eos, width in (
        ([], [0], None),
        ([b"a"], [], None),
        ([b"a"], [1], None),
        ([b"a", b""], [1], 1),
        ([b"", b""], [1], None),
    ):
        with pytest.raises(ValueError, match="Vocabulary"):
            G.Vocabulary(tokens, eos, width=width)
    with pytest.raises(TypeError, match="bytes"):
        G.Vocabulary(["a", b""], [1])


def test_an_error_leaves_a_matcher_as_it_was():
    """Of a token that does not exist, and of a text that can be read in too many ways."""
    vocab = byte_vocabulary()
    m = G.compile_regex("a{3}", vocab).matcher()
    assert m.accept(ord("a"))
    for tokens in ([ord("a"), vocab.width], [ord("a"), -2]):
        with pytest.raises(IndexError):
            m.fill_tree([-1, 0], tokens, vocab.masks(2))
        assert (m.text, m.accepted) == (b"a", 1)
    many = 4500
    rules = [f'a{i} ::= "x" b{i}\nb{i} ::= "(" b{i} ")" | "y{i}"' for i in range(many)]
    ways = " | ".join(f"a{i}" for i in range(many))
    m = G.compile_ebnf(f"root ::= {ways}\n" + "\n".join(rules), vocab).matcher()
    for call in (lambda: m.accept(ord("x")), lambda: m.accept_bytes(b"x("), m.jump_forward):
        with pytest.raises(G.BudgetError, match="ways"):
            call()
        assert (m.text, m.accepted) == (b"", 0)
    assert not m.accept(ord("("))


def test_a_padded_draft_tree():
    """A node with token -1 is none: nothing may follow it."""
    vocab = byte_vocabulary()
    m = G.compile_regex("a{3}", vocab).matcher()
    rows = vocab.masks(4)
    m.fill_tree([-1, 0, -1, 2], [ord("a"), -1, -1, ord("a")], rows)
    assert [bool(row.any()) for row in rows] == [True, False, False, False]
    assert (m.text, m.accepted) == (b"", 0)


@pytest.mark.parametrize(
    ("rules", "item", "end"),
    [
        ('root ::= a\na ::= "x" b | "z" b | c\nb ::= "y" a | c "v"\nc ::= "(" c ")" | "k"', b"xy", b"k"),
        ('root ::= [a-z] tail\ntail ::= "," root | "!" root | ""', b"a,", b"a"),
        ('root ::= root "," [a-z] | [a-z]', b"", b"a" + b",a" * 10000),
        ('root ::= "(" root ")" | "k"', b"", b"(" * 30000 + b"k" + b")" * 30000),
    ],
)
def test_long_texts_of_recursive_rules(rules, item, end):
    """A list costs by its length however it is written, and depth is not the stack's."""
    m = G.compile_ebnf(rules, byte_vocabulary()).matcher()
    begin = time.process_time()
    assert m.accept_bytes(item * 40000 + end)
    assert m.is_complete()
    assert time.process_time() - begin < 10
    m.rollback(1)
    assert m.accept_bytes(item * 3 + end)


def test_a_unique_item_as_deep_as_it_likes():
    m = G.compile_json_schema({"type": "array", "uniqueItems": True}, byte_vocabulary()).matcher()
    item = b"[" * 30000 + b"]" * 30000
    assert m.accept_bytes(b"[" + item + b"," + item[1:-1] + b"]")
    assert not m.fork().accept_bytes(b"," + item)
    m.rollback(1)
    assert m.accept_bytes(b"[" + item)
    assert not m.accept_bytes(b"," + item + b"]")


def test_a_grammar_takes_nothing_from_the_others():
    """A pattern with 2^22 states needs more languages than it may have; those compiled before go on."""
    tokens = ["".join(x).encode() for n in range(1, 11) for x in itertools.product("ab", repeat=n)]
    vocab = G.Vocabulary([*tokens, b'"', b"c", b""], eos_ids=[len(tokens) + 2])
    other = G.compile_json_schema({"type": "string", "pattern": "^[abc]{3}c"}, vocab)
    m = G.compile_json_schema({"type": "string", "pattern": "^(a|b)*a(a|b){22}$"}, vocab).matcher()
    m.accept(len(tokens))
    r, mask = random.Random(0), vocab.masks(1)

    def decode():
        for _ in range(3000):
            m.fill(mask)
            m.accept(r.randrange(len(tokens)))

    with pytest.raises(G.BudgetError, match="languages need more"):
        decode()
    assert other.accepts('"abac"')
    assert not other.accepts('"abab"')


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ("{", "schema"),
        ("[1", "schema"),
        ("NaN", "schema"),
        ([], "schema"),
        ({"type": "text"}, "type"),
        ({"type": []}, "type"),
        ({"minLength": -1}, "minLength"),
        ({"pattern": "("}, "pattern"),
        ({"pattern": r"(a)\1"}, "pattern"),
        ({"$ref": "#/nowhere"}, "$ref"),
        ({"$ref": "http://example.com/x"}, "$ref"),
        ({"$ref": "#"}, "$ref"),
        ({"required": "a"}, "required"),
        ({"anyOf": []}, "anyOf"),
        (False, "schema"),
        ({"type": "string", "enum": [1]}, "schema"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "schema"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "schema"),
        ({"$schema": "http://json-schema.org/draft-03/schema#", "type": "string"}, "$schema"),
        ({"multipleOf": 0}, "multipleOf"),
    ],
)
def test_schemas_that_are_refused(schema, keyword):
    with pytest.raises(G.GrammarError) as caught:
        G.compile_json_schema(schema, byte_vocabulary())
    assert caught.value.keyword == keyword
    assert caught.value.reason


def test_bounds_hold():
    deep = True
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(G.BudgetError, match="nested"):
        G.compile_json_schema(deep, byte_vocabulary())
    with pytest.raises(G.GrammarError):
        G.compile_json_schema("[" * 100000, byte_vocabulary())
    many = {
        "allOf": [
            {
                "anyOf": [
                    {"properties": {f"p{i}{j}": {"type": "null"}}, "required": [f"p{i}{j}"]} for j in range(6)
                ]
            }
            for i in range(6)
        ]
    }
    with pytest.raises(G.BudgetError):
        G.compile_json_schema(many, byte_vocabulary(), timeout=1.0)


def test_many_grammars_stay_within_memory():
    """Languages are shared, and begun anew where they have grown; grammars that are alive keep theirs."""
    vocab = G.Vocabulary([*TOKENS, b""], [END], cache_bytes=1 << 20)
    kept = []
    for i in range(300):
        g = G.compile_json_schema(
            {"type": "string", "pattern": f"^(a|b{i})*(x{{{i % 7}}}y|z)+{i}$", "maxLength": 40}, vocab
        )
        if i % 100 == 0:
            kept.append((i, g))
    for i, g in kept:
        assert g.accepts(f'"az{i}"')
        assert not g.accepts(f'"a{i}"')
    assert vocab.native.language_bytes < 100 << 20


@pytest.mark.parametrize("draft", ["draft-04", "draft-07", "2020-12"])
def test_the_draft_holds_behind_references(draft):
    """Up to draft 7 nothing beside $ref counts, wherever a reference has led."""
    schema = {
        "$schema": f"http://json-schema.org/{draft}/schema#",
        "definitions": {"s": {"type": "string"}, "u": {"$ref": "#/definitions/s", "pattern": "^a"}},
        "items": {"$ref": "#/definitions/u"},
        "type": "array",
    }
    grammar = G.compile_json_schema(schema, byte_vocabulary())
    assert grammar.accepts('["b"]') == (draft != "2020-12")
    assert grammar.accepts('["a"]')
    assert not grammar.accepts("[1]")
