"""Masks on the device: the engine's are the matchers', bit for bit, along texts, back again and in trees."""

import itertools
import random

import numpy as np
import pytest
import torch

from tokops import grammar as G
from tokops.grammar._gm_advance import DEAD, FINISHED, FREE, HOST, WAITING
from tokops.lib import _grammar as native

from .test_matcher import CROSSING, EBNF, EOS, LARK, SCHEMAS, TAGS, TOKENS

#: What the schemas of test_matcher leave out: counted items, a least length alone, a member that must be of some kind.
MORE = (
    {"type": "array", "items": {"enum": [1, "ab"]}, "minItems": 2, "maxItems": 3},
    {"type": "string", "minLength": 3},
    {"type": "object", "not": {"additionalProperties": {"type": "integer"}}, "maxProperties": 2},
)
#: Stacks that calls of rules make: tail calls, calls inside each other, a cycle of two rules.
NOTATIONS = (
    EBNF,
    'root ::= "a" root | "b"',
    'root ::= x\nx ::= y "a" | "a"\ny ::= x "b" | "b"',
    'root ::= "(" root ")" root | ""',
    'root ::= "[" x "]" x ":"\nx ::= "(" x ")" | "a"',
    'root ::= x\nx ::= y "a" | "(" x ")" | "1"\ny ::= x "b" | "(" y ")" | ","',
)
#: Whitespace of which a text may hold too much.
OPTIONS = ({}, {"key_order": "schema", "max_whitespace": 2}, {"whitespace": "space"})
REGEXES = (r"(\d{3}|ab+)-(\d{2}|a)", r"[ab]*a[ab]{3}", r".{0,5}é.*")


@pytest.fixture(scope="module")
def vocab():
    return G.Vocabulary([*TOKENS, *CROSSING, b""], [EOS], width=EOS + 40)


@pytest.fixture(scope="module")
def grammars(vocab):
    found = [
        G.compile_json_schema(schema, vocab, **options) for schema in (*SCHEMAS, *MORE) for options in OPTIONS
    ]
    found += [G.compile_ebnf(source, vocab) for source in NOTATIONS]
    found += [G.compile_regex(pattern, vocab) for pattern in REGEXES]
    return [*found, G.compile_lark(LARK, vocab), G.compile_tags(TAGS, vocab, triggers=["<f="])]


def masks_of(vocab, matchers):
    rows = vocab.masks(len(matchers))
    for row, m in zip(rows, matchers, strict=True):
        m.fill(row)
    return rows


def ids(mask):
    return np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")).tolist()


def walk(vocab, engine, grammars, steps, seed, device="cpu"):
    """Random texts in all rows; yields (matchers, tokens) after every step, its masks compared."""
    draw = random.Random(seed)
    matchers = [g.matcher() for g in grammars]
    for row, g in enumerate(grammars):
        engine.admit(row, g)
    assert torch.equal(engine.mask.cpu(), masks_of(vocab, matchers))
    for _ in range(steps):
        tokens = []
        for m, mask in zip(matchers, masks_of(vocab, matchers), strict=True):
            allowed = ids(mask)
            # Lasting texts: an end is taken now and then.
            going = [t for t in allowed if t != EOS]
            tokens.append(draw.choice(going if going and draw.random() < 0.9 else allowed))
            if not m.is_done():
                assert m.accept(tokens[-1])
        engine.step(torch.tensor(tokens, device=device))
        waiting = engine.state.cpu() == WAITING
        assert not engine.mask.cpu()[waiting].any()
        engine.refill(explore=draw.random() < 0.3)
        want = masks_of(vocab, matchers)
        for row, m in enumerate(matchers):
            assert torch.equal(engine.mask[row].cpu(), want[row]), (row, m.text, int(engine.state[row]))
        yield matchers, tokens


@pytest.mark.parametrize(("seed", "on_device"), [(0, False), (1, None), (2, True)])
def test_masks_are_the_matchers(vocab, grammars, device, seed, on_device):
    """Batches of all grammars, with room in the tables; then the same texts again, which no row waits for."""
    engine = G.DeviceEngine(vocab, len(grammars), device, max_states=32768, max_masks=2048, walk=on_device)
    texts = [tokens for _, tokens in walk(vocab, engine, grammars, 30, seed, device)]
    assert not engine.errors
    finished = engine.state.clone()
    assert (finished == FINISHED).any()
    for row, g in enumerate(grammars):
        engine.admit(row, g)
    for tokens in texts:
        engine.step(torch.tensor(tokens, device=device))
        assert not ((engine.state == WAITING) | (engine.state == DEAD)).any()
    assert torch.equal(engine.state, finished)


def test_what_an_item_has_is_not_what_it_leaves(vocab, device):
    """Two arrays with the same values, one of them kept for the last item: which of the two tells where it leads."""
    letter = {"enum": ["a", "b"]}
    items = {"prefixItems": [letter, {"type": "string"}, letter], "items": False, "minItems": 3}
    grammar = G.compile_json_schema({"type": "array", "uniqueItems": True, **items}, vocab, whitespace="none")
    engine = G.DeviceEngine(vocab, 2, device)
    matchers = [grammar.matcher(), grammar.matcher()]
    for row in range(2):
        engine.admit(row, grammar)
    for tokens in zip(b'["a","c","b"]', b'["b","c","a"]', strict=True):
        assert all(m.accept(t) for m, t in zip(matchers, tokens, strict=True))
        engine.step(torch.tensor(tokens, device=device))
        engine.refill()
        assert torch.equal(engine.mask.cpu(), masks_of(vocab, matchers))


@pytest.mark.parametrize(("states", "masks"), [(1, 1), (40, 2048), (8192, 3), (300, 30)])
def test_rows_of_the_host(vocab, grammars, device, states, masks):
    engine = G.DeviceEngine(vocab, len(grammars), device, max_states=states, max_masks=masks)
    hosts = 0
    for _ in walk(vocab, engine, grammars, 20, states, device):
        hosts += int((engine.state == HOST).sum())
    assert hosts
    assert engine.tables.states <= states
    assert engine.tables.masks <= masks


@pytest.mark.parametrize(("states", "masks"), [(8192, 2048), (60, 2048), (1, 1)])
def test_rollback(vocab, grammars, device, states, masks):
    draw = random.Random(states)
    engine = G.DeviceEngine(vocab, len(grammars), device, max_states=states, max_masks=masks, history=8)
    texts = [[] for _ in grammars]

    def check(label):
        matchers = [g.matcher() for g in grammars]
        for m, text in zip(matchers, texts, strict=True):
            for t in text:
                m.accept(t)  # refused after the end
        want = masks_of(vocab, matchers)
        for row in range(len(grammars)):
            assert torch.equal(engine.mask[row].cpu(), want[row]), (label, row, texts[row])

    for i, (_, tokens) in enumerate(walk(vocab, engine, grammars, 14, 7, device)):
        for text, t in zip(texts, tokens, strict=True):
            text.append(t)
        if i < 4 or i % 3:
            continue
        rows = draw.sample(range(len(grammars)), 20)
        counts = [draw.randrange(0, min(8, len(texts[r])) + 1) for r in rows]
        kept = [list(t) for t in texts]
        engine.rollback(rows, counts)
        engine.refill()
        for r, k in zip(rows, counts, strict=True):
            del texts[r][len(texts[r]) - k :]
        check("back")
        # And forth again, so that the walk goes on where it was.
        for j in range(max(counts, default=0)):
            token = [
                kept[r][len(texts[r])] if len(texts[r]) < len(kept[r]) else -1 for r in range(len(grammars))
            ]
            engine.step(torch.tensor(token, device=device))
            engine.refill()
            for text, t in zip(texts, token, strict=True):
                text += [t] * (t >= 0)
            check(f"forth {j}")
        assert texts == kept


def test_rolling_back_too_far(vocab, grammars):
    engine = G.DeviceEngine(vocab, 2, max_states=64, max_masks=64, history=4)
    engine.admit(0, grammars[0])
    engine.step(torch.tensor([ord("["), 3]))
    engine.refill()
    assert engine.rollback([0, 1], 2).tolist() == [[0] * vocab.words, [-1] * vocab.words]
    assert engine.state.tolist() == [DEAD, FREE]
    for rows, tokens in (([0], 5), ([0, 0], 1), ([2], 1), ([0], -1), ([0, 1], [1])):
        with pytest.raises(ValueError, match="rollback: expected rows"):
            engine.rollback(rows, tokens)


def test_what_is_not_allowed(vocab, grammars):
    """Dead rows: refused bytes, ends too early, tokens without bytes and beyond the vocabulary; rows that stay."""
    schema = G.compile_json_schema({"enum": [12, "ab"]}, vocab)
    for states in (512, 1):
        engine = G.DeviceEngine(vocab, 8, max_states=states, max_masks=states)
        for row in range(7):
            engine.admit(row, schema)
        engine.step(torch.tensor([ord("x"), EOS, EOS + 1, vocab.width, 2**40, -1, ord("1"), 2**40]))
        engine.refill()
        m = schema.matcher()
        want = masks_of(vocab, [m])
        assert engine.state.tolist()[:5] == [DEAD] * 5
        assert not engine.mask[:5].any()
        assert torch.equal(engine.mask[5], want[0])
        assert (engine.mask[7] == -1).all()
        m.accept(ord("1"))
        assert torch.equal(engine.mask[6], masks_of(vocab, [m])[0])
        # A row that waits and gets a token all the same.
        engine.step(torch.tensor([-1] * 6 + [ord("2"), -1]))
        if states == 1:
            assert engine.state[6] == WAITING
            engine.step(torch.tensor([-1] * 6 + [EOS, -1]))
            assert engine.state[6] == DEAD
    with pytest.raises(ValueError, match="another vocabulary"):
        engine.admit(0, G.compile_regex("a", G.Vocabulary([b"a", b""], [1])))
    with pytest.raises(IndexError, match="row: expected 0 to 7, got 8"):
        engine.admit(8, schema)
    with pytest.raises(ValueError, match="max_states: expected at least 1, got 0"):
        G.DeviceEngine(vocab, 1, max_states=0)


def test_states_are_few_where_the_past_does_not_matter(vocab):
    """Left recursion, long strings, long arrays: what comes round again is the state that it was."""
    for grammar, text in (
        (G.compile_ebnf(EBNF, vocab), b"1+2" * 200),
        (G.compile_json_schema({"type": "string", "minLength": 3}, vocab), b'"' + b"ab" * 300),
        (
            G.compile_json_schema({"type": "string"}, vocab),
            b'"' + b"".join(b"\\u%04x\\ud83d\\ud%03x" % (c, 0xC00 + c % 1024) for c in range(0, 0xD800, 37)),
        ),
        (
            G.compile_json_schema({"type": "array", "items": {"type": "array"}, "minItems": 2}, vocab),
            b"[[1],[]," + b"[12],[]," * 100,
        ),
        (G.compile_lark(LARK, vocab), b"1 + 2 +  " * 100),
    ):
        tables = native.DeviceTables(vocab.native, 4096, 64)
        state = tables.add(grammar.native)
        for b in text:
            state = tables.visit(state, b)
            assert state >= 0, text
        assert tables.states < 60, (text, tables.states)


def test_no_two_states_are_taken_for_one(vocab, grammars):
    """All texts of few bytes: equal states allow the same, byte by byte, as a matcher that reads the text itself."""
    letters = b'{}[]():,ab1 \\"+'
    for grammar in grammars[::3]:
        tables = native.DeviceTables(vocab.native, 65536, 4096)
        start = tables.add(grammar.native)
        seen = {}
        for text in itertools.islice(itertools.product(letters, repeat=4), 0, None, 11):
            m, state = grammar.matcher(), start
            for b in text:
                if not m.accept(b):
                    assert tables.visit(state, b) == DEAD
                    break
                state = tables.visit(state, b)
                assert tables.locate(m) == state
                allowed = m.allowed_bytes(), m.is_complete()
                assert seen.setdefault(state, allowed) == allowed, m.text


def test_calls_return_to_where_they_were_made(vocab):
    """One rule is called from two places of another, and a cycle of two rules from inside itself."""
    for notation, texts in (
        (NOTATIONS[4], (b"[((a))]((a)):", b"[(a)](((a))):")),
        (NOTATIONS[5], (b"(1ba)ba", b"((,baba))", b"(((1)b)a)ba")),
    ):
        grammar = G.compile_ebnf(notation, vocab)
        tables = native.DeviceTables(vocab.native, 4096, 256)
        for text in texts:
            m, state = grammar.matcher(), tables.add(grammar.native)
            for b in text:
                assert [tables.visit(state, x) >= 0 for x in range(256)] == [
                    m.allows(x) for x in range(256)
                ], m.text
                state = tables.visit(state, b)
                if not m.accept(b):
                    assert state == DEAD
                    break


def test_escapes_share_states_only_where_they_go_on_alike(vocab):
    """Half read escapes of free strings, each prefix of each: surrogates come in pairs, others alone."""
    grammar = G.compile_json_schema({"type": "string", "maxLength": 3}, vocab)
    tables = native.DeviceTables(vocab.native, 4096, 64)
    start = tables.add(grammar.native)
    for text in (
        b"\\u0041x",
        b"\\ud7ffx",
        b"\\uD83d\\uDe00x",
        b"\\udbff\\udfff\\n",
        b"\\ue000",
        b"\\u0dc0",
        b"\\uc800",
    ):
        m, state = grammar.matcher(), start
        for b in b'"' + text + b'"':
            assert [tables.visit(state, x) >= 0 for x in range(256)] == [m.allows(x) for x in range(256)], (
                m.text
            )
            state = tables.visit(state, b)
            assert m.accept(b)
        assert tables.locate(m) == state
    assert tables.states < 100


def test_warm_tables_make_no_row_wait(vocab):
    schema = {"properties": {"ab": {"type": "string"}}, "required": ["ab"], "additionalProperties": False}
    grammar = G.compile_json_schema(schema, vocab)
    engine = G.DeviceEngine(vocab, 1, max_states=2048, max_masks=64)
    engine.warm(grammar, list(b'{"ab":"x"}'))
    m = grammar.matcher()
    engine.admit(0, grammar)
    for b in b'{"ab":"hello there"}':
        m.accept(b)
        assert torch.equal(engine.step(torch.tensor([b])), masks_of(vocab, [m])), m.text


#: Languages of few states.
FEW = (
    {"enum": ["ab", 12, {"a": [1]}, None]},
    {"type": "string", "minLength": 3},
    {"type": "array", "items": {"enum": [1, "ab"]}, "minItems": 2, "maxItems": 3},
    {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["b"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize("schema", FEW)
def test_masks_are_walked_on_the_device(vocab, device, schema):
    """Tables that are whole: no row waits, and the host works no mask out but the first."""
    grammar = G.compile_json_schema(schema, vocab, max_whitespace=2)
    engine = G.DeviceEngine(vocab, 3, device, walk=True, max_masks=1)
    assert engine.explore(grammar)
    whole = engine.tables.states
    draw, matchers = random.Random(2), [grammar.matcher() for _ in range(3)]
    for row in range(3):
        engine.admit(row, grammar)
    for _ in range(40):
        want = masks_of(vocab, matchers)
        assert torch.equal(engine.mask.cpu(), want), [m.text for m in matchers]
        tokens = [draw.choice(ids(row)) for row in want]
        if not matchers[0].is_done():
            parents, drafted = [-1, 0, -1], [tokens[0], ord("a"), ord(",")]
            want = vocab.masks(3)
            matchers[0].fill_tree(parents, drafted, want)
            got = engine.tree(0, parents, torch.tensor(drafted, device=device), wait=False)
            assert torch.equal(got.cpu(), want)
        for m, t in zip(matchers, tokens, strict=True):
            assert m.is_done() or m.accept(t)
        engine.step(torch.tensor(tokens, device=device))
    assert (engine.tables.states, engine.tables.masks) == (whole, 1)
    assert engine.explore(grammar, whole)
    assert engine.tables.states == whole


def test_tables_that_are_not_whole(vocab, grammars, device):
    """What the tables cannot tell is not guessed: a mask is the matcher's, or clear until it is worked out."""
    clear = known = 0
    for states in (0, 1, 5, 40):
        engine = G.DeviceEngine(vocab, len(grammars), device, walk=True)
        for g in grammars[::2]:
            engine.explore(g, states)
        matchers = [g.matcher() for g in grammars]
        for row, g in enumerate(grammars):
            engine.admit(row, g)
        draw = random.Random(states)
        for _ in range(6):
            tokens = [draw.choice(ids(mask)) for mask in masks_of(vocab, matchers)]
            for m, t in zip(matchers, tokens, strict=True):
                assert m.is_done() or m.accept(t)
            engine.step(torch.tensor(tokens, device=device))
            want = masks_of(vocab, matchers)
            found = engine.mask.cpu()
            empty = ~found.any(1)
            clear, known = clear + int(empty.sum()), known + int((~empty).sum())
            assert torch.equal(found[~empty], want[~empty])
            engine.refill(explore=False)
            assert torch.equal(engine.mask.cpu(), want)
    assert clear > 100
    assert known > 100
    with pytest.raises(ValueError, match="states: expected at least 0, got -1"):
        engine.explore(grammars[0], -1)


def test_trees(vocab, grammars, device):
    draw = random.Random(5)
    for states in (8192, 30):
        engine = G.DeviceEngine(vocab, len(grammars), device, max_states=states, max_masks=2048)
        for matchers, _ in walk(vocab, engine, grammars, 3, 11, device):
            for row, m in enumerate(matchers):
                parents, tokens, paths = [], [], []
                for i in range(8):
                    p = draw.randrange(-1, i)
                    twin = m.fork()
                    path = paths[p] if p >= 0 else []
                    if all(twin.accept(t) for t in path):
                        allowed = ids(masks_of(vocab, [twin])[0])
                    tokens.append(
                        draw.choice(allowed) if draw.random() < 0.8 else draw.randrange(vocab.width)
                    )
                    parents.append(p)
                    paths.append([*path, tokens[-1]])
                if m.is_done():
                    continue
                want = vocab.masks(8)
                m.fill_tree(parents, tokens, want)
                drafted = torch.tensor(tokens, device=device)
                assert torch.equal(engine.tree(row, parents, drafted).cpu(), want), (
                    row,
                    m.text,
                    parents,
                    tokens,
                )
                again = engine.tree(row, parents, drafted, wait=False).cpu()
                if states == 8192:
                    assert torch.equal(again, want)
    with pytest.raises(ValueError, match="parents that are -1 or earlier nodes"):
        engine.tree(0, [0], torch.tensor([1], device=device))


@pytest.mark.parametrize("walk", [False, True])
def test_steps_read_nothing_on_the_host(vocab, grammars, walk):
    """A step is two or three ops on tensors that stay where they are."""
    engine = G.DeviceEngine(vocab, 4, max_states=64, max_masks=64, walk=walk)
    engine.admit(0, grammars[0])
    places = [x.data_ptr() for x in (engine.state, engine.mask, engine._next, engine._pool)]
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda t: engine.step(t))(torch.tensor([0, 1, 2, 3]))
    called = [str(n.target) for n in traced.graph.nodes if n.op == "call_function"]
    assert [c for c in called if "tokops" in c] == [
        "tokops.gm_advance.default",
        *(["tokops.gm_walk.default"] if walk else []),
        "tokops.gm_compose.default",
    ], called
    assert not any("item" in c or "_local_scalar_dense" in c for c in called), called
    engine.step(torch.tensor([ord("["), 0, 0, 0]))
    engine.refill()
    engine.admit(1, grammars[1])
    assert places == [x.data_ptr() for x in (engine.state, engine.mask, engine._next, engine._pool)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_in_a_graph(vocab, grammars):
    """A captured step, replayed with new tokens, tables that have grown and rows that have changed grammar."""
    draw, rows = random.Random(3), grammars[:40]
    engine = G.DeviceEngine(vocab, len(rows), "cuda", max_states=8192, max_masks=2048)
    tokens = torch.full((len(rows),), -1, device="cuda")
    engine.step(tokens)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        engine.step(tokens)
    matchers = [g.matcher() for g in rows]
    for row, g in enumerate(rows):
        engine.admit(row, g)
    for _ in range(12):
        chosen = [draw.choice(ids(mask)) for mask in masks_of(vocab, matchers)]
        for m, t in zip(matchers, chosen, strict=True):
            m.accept(t)
        tokens.copy_(torch.tensor(chosen))
        graph.replay()
        engine.refill()
        assert torch.equal(engine.mask.cpu(), masks_of(vocab, matchers))
