"""Laws of bytes against sums over all encodings, and validity against the tokenizers themselves."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="the hf extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from grammar.byte_models import (
    Markov,
    byte_bpe,
    deepseek,
    digits,
    gpt2,
    letters,
    llama3,
    sentencepiece,
    spec_of,
)
from tokops.grammar.bytes_bpe import MergeOrderError, Merges
from tokops.grammar.bytes_cover import ByteCover, NoContinuation
from tokops.grammar.bytes_regex import PatternError, parse
from tokops.grammar.bytes_validity import BPEValidity, EveryEncoding, NotExact
from tokops.grammar.bytes_vocabulary import ByteVocabulary, Spelling

ABC = (("a", "b"), ("b", "a"), ("ab", "a"), ("a", "a"), ("c", "ab"), ("aba", "c"))
CUT = {"gpt2": gpt2, "digits": digits, "llama3": llama3, "deepseek": deepseek, "whole": byte_bpe}


def validity_of(tokenizer) -> BPEValidity:
    return BPEValidity(Spelling(spec_of(tokenizer)))


@pytest.fixture(scope="module")
def cutters():
    made = {name: make() for name, make in CUT.items()}
    return {name: (tokenizer, validity_of(tokenizer)) for name, tokenizer in made.items()}


@pytest.fixture(scope="module")
def pieces():
    made = {name: sentencepiece(name == "metaspace") for name in ("metaspace", "prepended")}
    return {name: (tokenizer, validity_of(tokenizer)) for name, tokenizer in made.items()}


# ---- Pairs of tokens.


@pytest.mark.parametrize(
    "merges",
    [
        ABC,
        (("a", "a"), ("aa", "aa"), ("b", "aa"), ("aa", "b")),
        (("b", "c"), ("a", "bc"), ("a", "b"), ("c", "a"), ("ab", "ca"), ("bc", "a")),
    ],
)
def test_pairs_are_those_that_encoding_keeps(merges):
    tokenizer = letters(merges)
    made = validity_of(tokenizer).merges
    ids = range(1, len(tokenizer.get_vocab()))
    text = {i: tokenizer.id_to_token(i) for i in ids}
    reachable = [i for i in ids if tokenizer.encode(text[i]).ids == [i]]
    for left in reachable:
        kept = [
            right in reachable and tokenizer.encode(text[left] + text[right]).ids == [left, right]
            for right in ids
        ]
        assert made.followers(left)[1:].tolist() == kept
        assert [right in reachable and made.pair(left, right) for right in ids] == kept


def test_pairs_of_a_trained_vocabulary(cutters):
    tokenizer, validity = cutters["whole"]
    made, tokens = validity.merges, validity.vocabulary.tokens
    rng = np.random.default_rng(0)
    ids = [i for i in validity.vocabulary.order.tolist() if tokens[i].isascii()]
    for left in rng.choice(ids, 30):
        for right in ids:
            both = tokenizer.encode((tokens[left] + tokens[right]).decode()).ids
            assert made.followers(int(left))[right] == (both == [left, right])


def test_merges_out_of_order_are_refused():
    with pytest.raises(MergeOrderError, match="tokens 4 and 3 stands before"):
        Merges(6, [1, 2, 3], [(4, 3, 5), (1, 2, 4)])


@given(st.text("abc", max_size=40))
@settings(max_examples=150, deadline=None)
def test_merging_is_the_tokenizers(text):
    tokenizer = letters(ABC)
    validity = validity_of(tokenizer)
    assert validity.encode(text.encode()) == tokenizer.encode(text).ids


# ---- Whole texts with cuts.


def texts(parts):
    return st.lists(st.sampled_from(parts), max_size=24).map("".join)


TRICKY = texts([*" \n\r\t'sStrel1290aß日本語🙂\u00a0\u0301.,-(", "ll", "'s", "  ", "the"])


@pytest.mark.parametrize("name", CUT)
@given(text=TRICKY)
@settings(max_examples=200, deadline=None)
def test_texts_are_encoded_as_the_tokenizer_does(cutters, name, text):
    tokenizer, validity = cutters[name]
    expected = tokenizer.encode(text).ids
    assert validity.encode(text.encode()) == expected
    begun = validity.begin(text.encode())
    assert expected[: len(begun.ids)] == begun.ids
    assert b"".join(validity.vocabulary.tokens[i] for i in begun.ids) == text.encode()[: begun.at]


@pytest.mark.parametrize("name", ["metaspace", "prepended"])
@given(text=texts([*" \n'theyings1290日本語🙂.,▂", "  ", "the "]))
@settings(max_examples=200, deadline=None)
def test_pieces_are_encoded_as_the_tokenizer_does(pieces, name, text):
    tokenizer, validity = pieces[name]
    data = text.encode()
    full = validity.spelling.lead_of(data, True) + data
    assert validity.encode(full if text else b"") == tokenizer.encode(text).ids


def test_a_long_text_without_cuts_begins_near_its_end(pieces):
    tokenizer, validity = pieces["prepended"]
    text = "the thing they sing 12 日本語 " * 40 + "the thi"
    begun = validity.begin(b" " + text.encode())
    assert begun.at > len(text) - 40
    assert tokenizer.encode(text).ids[: len(begun.ids)] == begun.ids
    assert validity.encode(b" " + text.encode()) == tokenizer.encode(text).ids


@pytest.mark.parametrize("make", [gpt2, digits, llama3, deepseek])
@pytest.mark.parametrize("whole", [False, True])
def test_masks_are_what_begins_encodings(make, whole):
    """Everything of up to three bytes, against the encodings of all longer texts over an alphabet of traps."""
    tokenizer = make(size=330, ignore_merges=whole, drop=("'s", "ĠĠ", "st") if whole else ())
    validity = validity_of(tokenizer)
    if whole:
        assert {b"'s", b"  "} <= set(validity.whole)
    short, longer = 3, 3
    alphabet = "'st 1\n-"
    follow: dict[tuple, set] = {}
    for length in range(short + longer + 1):
        for text in map("".join, itertools.product(alphabet, repeat=length)):
            ids = tuple(tokenizer.encode(text).ids)
            for end in range(len(ids) + 1):
                follow.setdefault(ids[:end], set()).update(ids[end : end + 1] or (0,))
    tokens = validity.vocabulary.tokens
    within = [i for i, t in enumerate(tokens) if t and t.isascii() and set(t.decode()) <= set(alphabet)]
    assert any(len(tokens[i]) > 1 for i in within)
    seen = 0
    stack = [((), validity.start())]
    while stack:
        path, context = stack.pop()
        used = sum(len(tokens[i]) for i in path)
        mask = validity.mask(context)
        for token in within:
            if used + len(tokens[token]) > short:
                continue
            new = validity.advance(context, token)
            assert mask[token] == (new is not None) == (token in follow[path]), (path, tokens[token])
            if new is not None:
                stack.append(((*path, token), new))
        assert validity.ends(context) == (0 in follow[path])
        seen += 1
    assert seen > 250


def test_a_text_may_have_two_encodings_that_its_future_chooses_from():
    """Behind one space a second one is its own piece only if a letter follows, one without a merge with it."""
    tokenizer = gpt2(size=330)
    validity = validity_of(tokenizer)
    nodes = validity.nodes(validity.begin(b"a  "), b"a  ")
    assert len(nodes[-1]) == 2
    assert [validity.ends(node.context) for node in nodes[-1]].count(True) == 1


def test_characters_may_be_cut_between_tokens(cutters):
    _, validity = cutters["gpt2"]
    data = "日🙂é".encode()
    for end in range(1, len(data) + 1):
        assert validity.nodes(validity.begin(data[:end]), data[:end])[end]
    with pytest.raises(ValueError, match="no UTF-8 at byte 1"):
        validity.begin(b"a\xffb")
    assert len(validity.nodes(validity.begin(b"a\xe6"), b"a\xe6")[2]) == 1


# ---- The law against sums over encodings.


def cover_of(tokenizer, model, validity=None, **options):
    spelling = Spelling(spec_of(tokenizer))
    validity = BPEValidity(spelling) if validity is None else validity
    cover = ByteCover(spelling.vocabulary, model, validity, [0], **options)
    return cover


def begin(cover, text):
    data = text.encode()
    if isinstance(cover.validity, EveryEncoding):
        cover.start_plain(())
        for byte in data:
            cover.feed(byte)
    else:
        begun = cover.validity.begin(data)
        cover.start((), begun, data, cover.validity.nodes(begun, data))
    return cover


def covers(tokenizer, text, valid=True):
    """Every sequence that covers a text: found by trying them all."""
    tokens = {i: t for t, i in tokenizer.get_vocab().items() if i}
    found = []

    def grow(path, spelled):
        for i, token in tokens.items():
            whole = spelled + token
            if not (whole.startswith(text) or text.startswith(whole)):
                continue
            if valid and tokenizer.encode(whole).ids != [*path, i]:
                continue
            if len(whole) >= len(text):
                found.append(((*path, i), whole))
            else:
                grow((*path, i), whole)

    if text:
        grow((), "")
    else:
        found.append(((), ""))
    return found


def brute_law(tokenizer, model, text, alphabet, valid=True, local=False):
    """P(x b) / sum of them, each P a sum over a cover, whose sequences' probabilities are products."""
    tokens = {i: t for t, i in tokenizer.get_vocab().items() if i}

    def step(path):
        law = model.law(path)
        if local:
            spelled = "".join(tokens[i] for i in path)
            kept = [0] + [i for i in tokens if tokenizer.encode(spelled + tokens[i]).ids == [*path, i]]
            law = law / law[kept].sum()
        return law

    def chance(path):
        return math.prod(step(path[:i])[token] for i, token in enumerate(path))

    masses = {b: sum(chance(path) for path, _ in covers(tokenizer, text + b, valid)) for b in alphabet}
    exact = [path for path, whole in covers(tokenizer, text, valid) if whole == text]
    masses["end"] = sum(chance(path) * step(path)[0] for path in exact)
    total = sum(masses.values())
    here = sum(chance(path) for path, _ in covers(tokenizer, text, valid))
    return {b: m / total for b, m in masses.items()}, here, total


def as_dict(law, alphabet):
    return {**{b: math.exp(law[ord(b)]) for b in alphabet}, "end": math.exp(law[256])}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("text", ["", "a", "ab", "aba", "abac", "caba", "aaab", "babca"])
def test_law_is_the_sum_over_all_encodings(text, local):
    tokenizer = letters(ABC, extra=["bcb"])
    model = Markov(tokenizer.get_vocab_size())
    cover = begin(cover_of(tokenizer, model, renormalise="tokens" if local else "bytes"), text)
    expected, here, total = brute_law(tokenizer, model, text, "abc", local=local)
    law = cover.law()
    assert np.exp(law).sum() == pytest.approx(1, abs=1e-12)
    assert as_dict(law, "abc") == pytest.approx(expected, abs=1e-9)
    if local:
        assert here == pytest.approx(total, rel=1e-9)  # nothing is lost from one byte to the next
    # The same text fed byte by byte: the same law, and the mass the lemma gives it.
    fed = begin(cover_of(tokenizer, model, renormalise="tokens" if local else "bytes"), "")
    masses = [fed.total]
    for byte in text.encode():
        fed.feed(byte)
        masses.append(fed.total)
    assert fed.law() == pytest.approx(law, abs=1e-9)
    assert masses[-1] == pytest.approx(math.log(here), abs=1e-9)
    assert masses == sorted(masses, reverse=True)


def test_one_row_per_byte_at_most_and_none_for_bytes_within_tokens():
    tokenizer = letters((("a", "b"), ("ab", "c"), ("abc", "b")), alphabet="abc")
    model = Markov(tokenizer.get_vocab_size())
    cover = begin(cover_of(tokenizer, model), "")
    for byte in b"abcb":
        cover.law()
        cover.feed(byte)
    cover.law()
    assert model.asked == 5
    cover = begin(cover_of(tokenizer, model), "abcbabcb")
    assert model.asked == 6, "the first cover is asked for in one call"


def test_chain_rule():
    tokenizer = letters(ABC)
    model = Markov(tokenizer.get_vocab_size(), limit=4)
    total = 0.0
    for length in range(4):
        for text in map("".join, itertools.product("abc", repeat=length)):
            chance = 0.0
            fresh = begin(cover_of(tokenizer, model, renormalise="tokens"), "")
            for byte in text.encode():
                chance += fresh.law()[byte]
                fresh.feed(byte)
            chance += fresh.law()[256]
            ids = tokenizer.encode(text).ids
            expected = 1.0
            for end, token in enumerate([*ids, 0]):
                before = "".join(tokenizer.id_to_token(i) for i in ids[:end])
                law = model.law(ids[:end])
                kept = [0] + [
                    i
                    for i in range(1, model.size)
                    if tokenizer.encode(before + tokenizer.id_to_token(i)).ids == [*ids[:end], i]
                ]
                expected *= law[token] / law[kept].sum()
            assert math.exp(chance) == pytest.approx(expected, rel=1e-9)
            total += expected
    assert 0.1 < total < 1


def test_known_bias():
    """A source of A and B read with a token AA: behind "A", tokens say B for certain, bytes the source's law."""
    stay = {"A": 0.7, "B": 0.4}  # chance of A behind either; texts are long
    tokenizer = letters((("A", "A"),), alphabet="AB")
    a, b, aa = (tokenizer.token_to_id(t) for t in ("A", "B", "AA"))

    def source(sequences):
        """The source's exact law of tokens: behind A (alone) an A would have been merged."""
        rows = np.full((len(sequences), 4), -math.inf)
        for row, ids in zip(rows, sequences, strict=True):
            last = ids[-1] if ids else b
            again = stay["B" if last == b else "A"]
            if last == a:
                row[b] = 0.0
                continue
            row[b] = math.log(1 - again)
            row[a] = math.log(again * (1 - stay["A"]))
            row[aa] = math.log(again * stay["A"])
        return rows

    token_law = np.exp(source([tuple(tokenizer.encode("BA").ids)])[0])
    assert token_law[b] == 1, "the token model is sure, and wrong"
    for text, chance in (("A", 0.7), ("BA", 0.7), ("BAA", 0.7), ("BAAA", 0.7), ("BAB", 0.4)):
        law = begin(cover_of(tokenizer, source), text).law()
        assert math.exp(law[ord("A")]) == pytest.approx(chance, abs=1e-12)
        assert math.exp(law[ord("B")]) == pytest.approx(1 - chance, abs=1e-12)


def test_single_bytes_are_the_plain_model():
    tokenizer = letters(())
    model = Markov(4)
    for text in ("", "a", "abcab"):
        law = np.exp(begin(cover_of(tokenizer, model), text).law())
        assert law[[256, 97, 98, 99]] == pytest.approx(model.law(tokenizer.encode(text).ids), abs=1e-9)


def test_a_byte_is_at_least_as_likely_as_the_tokens_that_begin_with_it():
    tokenizer = letters(ABC)
    model = Markov(tokenizer.get_vocab_size())
    for text in ("", "ab", "caba"):
        ids = tokenizer.encode(text).ids
        start = begin(cover_of(tokenizer, model), text)
        here = start.total
        for token, i in tokenizer.get_vocab().items():
            if i and tokenizer.encode(text + token).ids == [*ids, i]:
                longer = begin(cover_of(tokenizer, model), text)
                alone = here + math.log(model.law(ids)[i]) + self_share(tokenizer, model, text)
                for byte in token.encode():
                    longer.feed(byte)
                assert longer.total >= alone - 1e-9


def self_share(tokenizer, model, text):
    """Log of the part of a text's mass that its own encoding has."""
    ids = tokenizer.encode(text).ids
    _, here, _ = brute_law(tokenizer, model, text, "abc")
    return math.log(math.prod(model.law(ids[:i])[token] for i, token in enumerate(ids)) / here)


@pytest.mark.parametrize("text", ["", "a", "abab", "caba"])
def test_every_encoding_with_an_unlimited_beam(text):
    tokenizer = letters(ABC, extra=["bcb"])
    model = Markov(tokenizer.get_vocab_size())
    cover = begin(cover_of(tokenizer, model, EveryEncoding()), text)
    expected, here, total = brute_law(tokenizer, model, text, "abc", valid=False)
    assert as_dict(cover.law(), "abc") == pytest.approx(expected, abs=1e-9)
    assert cover.total == pytest.approx(math.log(here), abs=1e-9)
    assert here == pytest.approx(total, rel=1e-9)


def test_the_beam_keeps_the_heaviest():
    tokenizer = letters(ABC, extra=["bcb"])
    model = Markov(tokenizer.get_vocab_size())
    full = begin(cover_of(tokenizer, model, EveryEncoding()), "abacaba")
    wide = begin(cover_of(tokenizer, model, EveryEncoding(), beam=12), "abacaba")
    narrow = begin(cover_of(tokenizer, model, EveryEncoding(), beam=3), "abacaba")
    assert narrow.states <= 3 < wide.states <= 12 < full.states
    gaps = [np.abs(np.exp(c.law()) - np.exp(full.law())).max() for c in (wide, narrow)]
    assert gaps[0] < 0.05
    assert narrow.total < wide.total < full.total
    sharp = begin(cover_of(tokenizer, model, EveryEncoding(), threshold=0.3), "abacaba")
    assert sharp.states <= 3


def test_what_the_beam_has_lost_is_healed():
    """One state is kept, in the middle of a long token that does not go on: it is cut short."""
    tokenizer = letters((("a", "b"), ("ab", "a"), ("aba", "c")))
    long = tokenizer.token_to_id("abac")

    def model(sequences):
        rows = np.zeros((len(sequences), tokenizer.get_vocab_size()))
        rows[:, long] = 9.0
        return rows

    cover = begin(cover_of(tokenizer, model, EveryEncoding(), beam=1), "ab")
    assert cover.states == 1
    cover.feed(ord("b"))
    assert cover.text == b"abb"
    assert np.exp(cover.law()).sum() == pytest.approx(1)
    tokens = [i for state in (*cover._groups, *cover._open) for i in (*cover.base, *state.path)]
    assert tokens[0] == tokenizer.token_to_id("ab")


def test_drawn_bytes_follow_the_tokens_law():
    from scipy.stats import chisquare

    tokenizer = letters(ABC)
    model = Markov(tokenizer.get_vocab_size(), limit=3, seed=3)

    def ideal(sequences):
        """No mass on what the tokenizer does not make."""
        rows = model(sequences).astype(np.float64)
        for row, ids in zip(rows, sequences, strict=True):
            spelled = "".join(tokenizer.id_to_token(i) for i in ids)
            for i in range(1, model.size):
                if tokenizer.encode(spelled + tokenizer.id_to_token(i)).ids != [*ids, i]:
                    row[i] = -math.inf
        return rows

    law: dict[str, float] = {}

    def grow(ids, chance):
        row = np.exp(ideal([ids])[0])
        row /= row.sum()
        text = "".join(tokenizer.id_to_token(i) for i in ids)
        law[text] = law.get(text, 0) + chance * row[0]
        for i in range(1, model.size):
            if row[i]:
                grow((*ids, i), chance * row[i])

    grow((), 1.0)
    assert sum(law.values()) == pytest.approx(1)
    rng = np.random.default_rng(1)
    laws: dict[bytes, np.ndarray] = {}
    runs, counts = 4000, dict.fromkeys(law, 0)
    for _ in range(runs):
        text = b""
        while True:
            if text not in laws:
                laws[text] = np.exp(begin(cover_of(tokenizer, ideal), text.decode()).law())
            symbol = rng.choice(257, p=laws[text])
            if symbol == 256:
                break
            text += bytes([symbol])
        counts[text.decode()] += 1
    common = [t for t, p in law.items() if p * runs >= 8]
    seen = [counts[t] for t in common] + [runs - sum(counts[t] for t in common)]
    wanted = [law[t] * runs for t in common] + [runs - sum(law[t] * runs for t in common)]
    assert len(common) > 20
    assert chisquare(seen, wanted).pvalue > 1e-3


def test_law_of_texts_with_cuts_is_the_sum_over_their_encodings(cutters):
    """A model that ends after four tokens; all texts of an alphabet, each by its own encoding."""
    tokenizer = digits(size=330)
    validity = validity_of(tokenizer)
    alphabet = "'s 1\n"
    inside = {0} | {
        i for i, t in enumerate(validity.vocabulary.tokens) if t and set(t) <= set(alphabet.encode())
    }
    model = Markov(tokenizer.get_vocab_size(), limit=3, seed=5)
    outside = [i for i in range(model.size) if i not in inside]

    def closed(sequences):
        rows = model(sequences)
        rows[:, outside] = -math.inf
        return rows

    chances: dict[str, float] = {}
    for length in range(3 * 4 + 1):
        if length > 5:
            break
        for text in map("".join, itertools.product(alphabet, repeat=length)):
            ids = tokenizer.encode(text).ids
            if len(ids) > 3:
                continue
            rows = [closed([tuple(ids[:end])])[0].astype(np.float64) for end in range(len(ids) + 1)]
            laws = [np.exp(row - np.logaddexp.reduce(row)) for row in rows]
            chances[text] = math.prod(p[t] for p, t in zip(laws, [*ids, 0], strict=True))
    for text in chances:
        if len(text) > 3:
            continue
        cover = ByteCover(validity.vocabulary, closed, validity, [0])
        begun = validity.begin(text.encode())
        cover.start((), begun, text.encode(), validity.nodes(begun, text.encode()))
        fed = ByteCover(validity.vocabulary, closed, validity, [0])
        fed.start((), validity.begin(b""), b"", validity.nodes(validity.begin(b""), b""))
        for byte in text.encode():
            fed.feed(byte)
        assert cover.law() == pytest.approx(fed.law(), abs=1e-9)
        # What ends here has exactly its own encoding's share.
        assert fed.total + unnormalised_end(fed) == pytest.approx(math.log(chances[text]), abs=1e-6)


def unnormalised_end(cover):
    """Log of the end's part of the cover's mass."""
    mass = cover._masses()
    return mass[256] - np.logaddexp.reduce([group.mass for group in cover._groups])


# ---- What is refused, and odd inputs.


def test_equal_bytes_are_told_apart_by_id():
    vocabulary = ByteVocabulary([b"", b"ab", b"a", b"a", b"b"])
    assert vocabulary.order.tolist() == [2, 3, 1, 4]
    assert vocabulary.range(b"a") == (0, 2, 3)
    assert vocabulary.range(b"") == (0, 0, 4)
    assert list(vocabulary.prefixes(b"abz", 0)) == [2, 3, 1]
    assert vocabulary.exact(b"a") == [2, 3]
    assert ByteVocabulary([b"\xff", b"\xff\xff"]).range(b"\xff") == (0, 1, 2)
    with pytest.raises(ValueError, match="no token stands for any bytes"):
        ByteVocabulary([b"", b""])
    cover = ByteCover(vocabulary, lambda s: np.zeros((len(s), 5)), EveryEncoding())
    cover.start_plain(())
    assert np.exp(cover.law())[[97, 98]] == pytest.approx([0.75, 0.25])


def test_what_exact_validity_refuses():
    def with_(**changes):
        tokenizer = gpt2(size=300)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        return tokenizer

    for tokenizer, match in (
        (with_(normalizer=normalizers.NFKC()), "the normalizer NFKC maps different texts to one"),
        (with_(normalizer=normalizers.Sequence([normalizers.Lowercase()])), "the normalizer Lowercase"),
        (with_(pre_tokenizer=pre_tokenizers.Whitespace()), "the pre-tokenizer Whitespace is not supported"),
        (Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)), "the model is Unigram, not BPE"),
        (Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.1)), "dropout=0.1"),
    ):
        with pytest.raises(NotExact, match=match):
            validity_of(tokenizer)
    spaced = gpt2(size=300)
    spaced.add_tokens(["    "])
    with pytest.raises(NotExact, match="the added token '    ' is no special token"):
        validity_of(spaced)
    pieces = Tokenizer(models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    with pytest.raises(ValueError, match="continuing_subword_prefix='##' leaves spaces out"):
        Spelling(spec_of(pieces))


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("a++", "a possessive repeat"),
        ("^a", "an anchor"),
        (r"\p{Han}+", "the property 'Han'"),
        ("(?<=a)b", "this kind of group"),
        ("(?!ab)c", "a lookahead of other than one character"),
        ("[a-z&&[aeiou]]", "an intersection of classes"),
        ("[[:alpha:]]", "a POSIX class"),
        ("(a", "an end in the middle|an open group"),
        ("a)", "an unmatched"),
        ("[a", "an end in the middle"),
        ("a{1,1000}", "a repeat of more than 256"),
        (r"\b", "the escape"),
        ("*a", "a repeat of nothing"),
    ],
)
def test_patterns_that_are_not_known_are_named(pattern, what):
    with pytest.raises(PatternError, match=what):
        parse(pattern)


def test_texts_that_cannot_be():
    tokenizer = letters(ABC)
    model = Markov(tokenizer.get_vocab_size())
    with pytest.raises(NoContinuation, match="no text of the tokenizer begins with"):
        begin(cover_of(tokenizer, model), "az")
    cover = begin(cover_of(tokenizer, model), "a")
    law = cover.law()
    with pytest.raises(NoContinuation, match="goes on with byte 122 behind b'a'"):
        cover.feed(ord("z"))
    assert cover.text == b"a"
    assert (cover.law() == law).all()
    with pytest.raises(ValueError, match=r"a byte must be 0\.\.255, or 256"):
        cover.feed(257)
    cover.feed(256)
    with pytest.raises(ValueError, match="the text has ended"):
        cover.feed(97)
    for options, match in (
        ({"renormalise": "all"}, "renormalise must be bytes or tokens"),
        ({"beam": 0}, "beam must be at least 1"),
        ({"threshold": 1.0}, "threshold in 0..1"),
    ):
        with pytest.raises(ValueError, match=match):
            cover_of(tokenizer, model, **options)
    broken = cover_of(tokenizer, lambda s: np.full((len(s), tokenizer.get_vocab_size()), math.nan))
    with pytest.raises(ValueError, match="the model gave NaN"):
        begin(broken, "a")
