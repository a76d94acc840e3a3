"""Vocabulary filters: every predicate against its own words, words against brute force, and what generates."""

import itertools
import re
import string
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_models import build, byte_tokenizer
from toy_words import END, TOKENS, text_of

import tokops
from tokops.grammar import multiset_mask
from tokops.hf.token_bytes import token_bytes
from tokops.hf.vocabulary_filters import tables_of
from tokops.methods import Speculate, VocabularyFilters
from tokops.methods._metaphone import double_metaphone

SAID = {
    "cat": "K AE1 T", "hat": "HH AE1 T", "dog": "D AO1 G", "sun": "S AH1 N", "the": "DH AH0", "noon": "N UW1 N",
    "level": "L EH1 V AH0 L", "devil": "D EH1 V AH0 L", "bevel": "B EH1 V AH0 L",
}  # fmt: skip
VECTORS = {"cat": (1.0, 0.1), "dog": (0.9, 0.3), "sun": (-0.2, 1.0), "the": (0.0, 0.0)}
#: One letter a token, so that every text can be spelled.
SPELLED = [b"", b"", b"", *(c.encode() for c in "abcet'. 7")]


def whole(text):
    """Tokens of whole characters."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def mask_of(**options):
    """Tokens of the toy vocabulary that pass by themselves."""
    return tables_of(VocabularyFilters(strings=TOKENS, **options)).static.tolist()


#: Options and what they ask of a stripped text, in other words than the code's.
PREDICATES = {
    "lipogram": ({"lipogram": ("e", "og")}, lambda s: s.find("e") < 0 and s.find("og") < 0),
    "lipogram as letters": ({"lipogram": "aeiou"}, lambda s: not set("aeiou") & set(s)),
    "weak lipogram, characters": ({"weak_lipogram": "aet"}, lambda s: len(set(s) - set("aet")) > 0),
    "weak lipogram, strings": (
        {"weak_lipogram": ("a", "t"), "weak": "strings"},
        lambda s: not ("a" in s and "t" in s),
    ),
    "reverse lipogram": ({"reverse_lipogram": ("a", "t")}, lambda s: s.count("a") * s.count("t") > 0),
    "weak reverse lipogram": ({"weak_reverse_lipogram": ("a", "t")}, lambda s: s.count("a") + s.count("t") > 0),
    "string at": ({"string_at": ((1, "a"), (2, "t"))}, lambda s: re.match(r".at", s, re.S) is not None),
    "starts with": ({"starts_with": "th"}, lambda s: s[:2] == "th"),
    "ends with": ({"ends_with": "g"}, lambda s: s[-1:] == "g"),
    "length": ({"length": 3}, lambda s: re.fullmatch(r"...", s, re.S) is not None),
    "longer than": ({"longer_than": 2}, lambda s: len(list(s)) >= 3),
    "shorter than": ({"shorter_than": 3}, lambda s: len(list(s)) <= 2),
    "palindrome": ({"palindrome": True}, lambda s: list(s) == list(reversed(s))),
    "anagram": ({"anagram": "tac"}, lambda s: sorted(s) == ["a", "c", "t"]),
    "partial anagram": (
        {"partial_anagram": "noono"},
        lambda s: any(Counter(s) == Counter(c) for n in range(6) for c in itertools.combinations("noono", n)),
    ),
    "isogram": ({"isogram": 1}, lambda s: len(set(s)) == len(s)),
    "reverse isogram": ({"reverse_isogram": 2}, lambda s: all(s.count(c) > 1 for c in s)),
    "edit distance": ({"near": "cat", "near_distance": 1}, lambda s: s in close_to("cat")),
    "semantic": ({"semantic": ("cat", 0.9), "vectors": VECTORS}, lambda s: s in ("cat", "dog")),
    "syllables": ({"syllables": 2, "pronunciations": SAID}, lambda s: s in ("level", "devil", "bevel")),
    "meter": ({"meter": "devil", "pronunciations": SAID}, lambda s: s in ("level", "devil", "bevel")),
    "rhyme": ({"rhyme": "hat", "pronunciations": SAID}, lambda s: s == "cat"),
}  # fmt: skip


def close_to(word):
    """All words one edit away, and the word."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    letters = set("".join(filter(None, map(whole, TOKENS))))
    return (
        {word}
        | {a + b[1:] for a, b in cuts if b}
        | {a + c + b[1:] for a, b in cuts if b for c in letters}
        | {a + c + b for a, b in cuts for c in letters}
    )


@pytest.mark.parametrize("name", PREDICATES)
def test_a_bit_is_set_where_the_predicate_accepts_the_text(name):
    options, accepts = PREDICATES[name]
    got = mask_of(exempt=(), **options)
    expected = [bool(data) and whole(data) is not None and accepts(whole(data).strip()) for data in TOKENS]
    assert got == expected
    assert any(expected)


def test_phonetic_compares_codes():
    got = mask_of(exempt=(), phonetic="thee")
    alike = {data for data, bit in zip(TOKENS, got, strict=True) if bit}
    assert {b"th", b" the"} <= alike
    assert not {b"cat", b" dog", b"t"} & alike
    own = mask_of(exempt=(), phonetic="thee", phonetic_code=len)
    assert own == [whole(d) is not None and bool(d) and len(whole(d).strip()) == 4 for d in TOKENS]


@pytest.mark.parametrize(
    ("word", "codes"),
    [
        ("Smith", ("SM0", "XMT")), ("Schmidt", ("XMT", "SMT")), ("knight", ("NT", "NT")), ("Thomas", ("TMS", "TMS")),
        ("Xavier", ("SF", "SFR")), ("Czerny", ("SRN", "XRN")), ("Caesar", ("SSR", "SSR")), ("Jose", ("HS", "HS")),
        ("Wagner", ("AKNR", "FKNR")), ("Bach", ("PK", "PK")), ("school", ("SKL", "SKL")), ("edge", ("AJ", "AJ")),
        ("laugh", ("LF", "LF")), ("nation", ("NXN", "NXN")), ("cabrillo", ("KPRL", "KPR")), ("dumb", ("TM", "TM")),
        ("breaux", ("PR", "PR")), ("filipowicz", ("FLPTS", "FLPFX")), ("island", ("ALNT", "ALNT")),
        ("accident", ("AKSTNT", "AKSTNT")), ("physics", ("FSKS", "FSKS")), ("each", ("AX", "AK")),
        ("high", ("H", "H")),
        ("orchestra", ("ARKSTR", "ARKSTR")), ("chianti", ("KNT", "KNT")), ("judge", ("JJ", "AJ")),
        ("", ("", "")), ("42", ("", "")),
    ],
)  # fmt: skip
def test_double_metaphone_of_published_examples(word, codes):
    assert double_metaphone(word) == codes


@pytest.mark.parametrize(
    ("names", "change"),
    [
        (("upper",), str.upper), (("lower",), str.lower), (("remove_spaces",), lambda s: s.replace(" ", "")),
        (("lstrip",), str.lstrip), (("rstrip",), str.rstrip), (("strip",), str.strip),
        (("capitalize",), lambda s: s[:1].upper() + s[1:].lower()),
        (("alphanumeric",), lambda s: re.sub(r"[\W_]", "", s)),
        (("letters",), lambda s: "".join(c for c in s if unicodedata.category(c)[0] == "L")),
        (("digits",), lambda s: re.sub(r"\D", "", s)),
        (("ascii",), lambda s: s.encode("ascii", "ignore").decode()),
        (("strip", "upper", "letters"), lambda s: "".join(c for c in s.upper() if c in string.ascii_uppercase + "É")),
    ],
)  # fmt: skip
def test_transforms(names, change):
    for length in (1, 2, 3):
        got = mask_of(transforms=names, exempt=(), length=length)
        assert got == [bool(d) and whole(d) is not None and len(change(whole(d))) == length for d in TOKENS]
    # In their fixed order, however they are given.
    assert VocabularyFilters(transforms=("capitalize", "lower")).prepare("aB") == "Ab"


def test_blanks_are_dropped_where_asked():
    kept = mask_of(transforms=("letters", "drop_blanks"), exempt=())
    assert kept == [whole(d) is not None and bool(d) and any(c.isalpha() for c in whole(d)) for d in TOKENS]


def test_without_filters_everything_is_allowed():
    assert all(mask_of())


def test_filters_are_a_conjunction_in_any_order():
    one, two = {"lipogram": "e"}, {"shorter_than": 3}
    both = mask_of(**one, **two)
    assert both == [a and b for a, b in zip(mask_of(**one), mask_of(**two), strict=True)]
    scores = torch.randn(1, 97)
    ids = torch.tensor([[5, 6]])
    first, second = (VocabularyFilters(strings=TOKENS, **o).processor(eos=[END]) for o in (one, two))
    assert torch.equal(first(ids, second(ids, scores)), second(ids, first(ids, scores)))


def test_exempt_kinds_of_characters():
    spaces = mask_of(lipogram=" .", transforms=(), exempt=("whitespace",))
    assert spaces[TOKENS.index(b"  ")]
    assert not spaces[TOKENS.index(b".")]
    marks = mask_of(longer_than=3, exempt=("punctuation", "digits", "whitespace"))
    assert all(marks[TOKENS.index(x)] for x in (b".", b" ,", b"1", b"22", b"\n", b"'"))
    assert not marks[TOKENS.index(b"a1")]
    assert mask_of(length=3, exempt=("special",))[:3] == [True] * 3
    assert mask_of(length=3, exempt=())[:3] == [False] * 3


def test_folding_bans_case_and_marks():
    plain, folded = mask_of(lipogram="e"), mask_of(lipogram="e", fold=True)
    for data in (b"E", b"Te", b"\xc3\xa9", b"e\xcc\x81", b"he"):
        assert not folded[TOKENS.index(data)]
    assert plain[TOKENS.index(b"E")]
    assert plain[TOKENS.index(b"\xc3\xa9")]
    assert mask_of(lipogram="É", fold=True) == folded


def test_parts_of_characters_are_banned_or_allowed():
    parts = [i for i, data in enumerate(TOKENS) if whole(data) is None]
    assert not any(np.array(mask_of(lipogram="x"))[parts])
    assert all(np.array(mask_of(lipogram="x", partial="allow"))[parts])


def test_probabilities_are_the_original_ones_renormalised():
    method = VocabularyFilters(strings=TOKENS, lipogram="aeiou")
    scores = torch.randn(3, 100, dtype=torch.float64).float()  # wider than the vocabulary
    kept = scores.clone()
    got = method.processor(eos=[END])(torch.full((3, 4), 7), scores)
    assert torch.equal(scores, kept)  # what it was given is not touched
    allowed = torch.zeros(100, dtype=torch.bool)
    allowed[: len(TOKENS)] = torch.tensor(tables_of(method).static)
    allowed[END] = True
    p = scores.double().softmax(-1) * allowed
    torch.testing.assert_close(got.double().softmax(-1), p / p.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)
    soft = VocabularyFilters(strings=TOKENS, lipogram="aeiou", bias=-2.5).processor(eos=[END])(
        torch.full((3, 4), 7), scores
    )
    torch.testing.assert_close(soft, torch.where(allowed, scores, scores - 2.5))


def test_an_empty_vocabulary_is_an_error_the_end_or_ignored():
    ids, scores = torch.tensor([[5]]), torch.randn(1, 97)
    impossible = {"strings": TOKENS, "length": 40, "exempt": ()}
    with pytest.raises(RuntimeError, match="VocabularyFilters: no token is allowed in row 0"):
        VocabularyFilters(**impossible).processor(eos=[])(ids, scores)
    with pytest.raises(RuntimeError, match="no token is known that ends the text"):
        VocabularyFilters(**impossible, on_empty="eos").processor(eos=[])(ids, scores)
    ignored = VocabularyFilters(**impossible, on_empty="ignore").processor(eos=[])(ids, scores)
    assert torch.equal(ignored, scores)
    # The end is allowed anyway, but for words that are missing.
    late = VocabularyFilters(**impossible, on_empty="eos", min_words=3).processor(eos=[END])(ids, scores)
    assert late.isfinite().nonzero().tolist() == [[0, END]]


# ---- Words.

LEXICON = ("cat", "Act", "tab", "beat", "ate", "it's", "a")


def all_pass(text, accepts):
    """Whether every word of a whole text passes; words as a regular expression finds them."""
    return all(
        accepts(w.rstrip("'")) or w.strip("'").isdigit() for w in re.findall(r"[a-z0-9][a-z0-9']*", text)
    )


def completable(text, accepts, alphabet, most):
    """By brute force: some continuation makes every word of the text pass."""
    return any(
        all_pass(text + "".join(tail), accepts)
        for size in range(most + 1)
        for tail in itertools.product(alphabet, repeat=size)
    )


@pytest.mark.parametrize(
    ("options", "accepts", "most"),
    [
        ({"lexicon": LEXICON}, lambda w: w in {x.lower() for x in LEXICON}, 3),
        ({"lexicon": LEXICON, "length": 3}, lambda w: w in ("cat", "act", "tab", "ate"), 3),
        ({"lexicon": LEXICON, "ends_with": "t", "lipogram": "b"}, lambda w: w in ("cat", "act"), 3),
        ({"lexicon": LEXICON, "fold": True, "anagram": "TAC"}, lambda w: w in ("cat", "act"), 3),
        ({"lipogram": ("ab", "c")}, lambda w: "ab" not in w and "c" not in w, 2),
        ({"shorter_than": 3, "isogram": 1}, lambda w: len(w) < 3 and len(set(w)) == len(w), 2),
        (
            {"starts_with": "ta", "partial_anagram": "tateb"},
            lambda w: w.startswith("ta") and not Counter(w) - Counter("tateb"),
            2,
        ),
    ],
)  # fmt: skip
def test_by_word_a_token_is_allowed_where_some_completion_passes(options, accepts, most):
    method = VocabularyFilters(
        strings=SPELLED, by_word=True, exempt=("whitespace", "punctuation", "digits"), **options
    )
    tables = tables_of(method)
    alphabet = "abcet'"
    seen = {"": tables_begin(tables)}
    for _ in range(3):
        for text, state in list(seen.items()):
            allowed = tables.by_word(state)
            for token, data in enumerate(SPELLED):
                longer = text + data.decode()
                if not data or longer in seen:
                    continue
                expected = completable(longer, accepts, alphabet, most)
                assert allowed[token] == expected, (text, data)
                if expected:
                    seen[longer] = tables.follow(state, token)
    for text, state in seen.items():
        assert tables.may_end(state) == all_pass(text, accepts), text
    assert len(seen) > 10


def tables_begin(tables):
    from tokops.hf.vocabulary_filters import _Text

    return _Text(used=(0,) * len(tables.limits))


def test_by_word_every_token_of_a_larger_vocabulary_is_judged_as_by_walking():
    """The tree of first pieces says the same as reading every token by itself."""
    words = ("cat", "the", "dog", "it's", "noon", "bath", "bathing", "é", "éa")
    for options in (
        {"lexicon": words},
        {"lipogram": "e", "fold": True},
        {"lipogram": ("at",), "shorter_than": 5},
    ):
        tables = tables_of(VocabularyFilters(strings=TOKENS, by_word=True, **options))
        for word, pending in (
            ("", b""),
            ("b", b""),
            ("ca", b""),
            ("it", b""),
            ("it'", b""),
            ("", b"\xc3"),
            ("no", b""),
        ):
            allowed = tables.table.allowed(word, pending)
            for token, data in enumerate(TOKENS):
                expected = bool(data) and tables.table.after(word, pending, token) is not None
                assert allowed[token] == expected, (options, word, pending, data)


def test_by_word_a_part_of_a_character_needs_a_character_that_completes_it():
    tables = tables_of(VocabularyFilters(strings=TOKENS, by_word=True, lexicon=("é", "cat")))
    start = tables_begin(tables)
    assert tables.by_word(start)[TOKENS.index(b"\xc3")]
    assert not tables.by_word(start)[TOKENS.index(b"a\xc3")]
    begun = tables.follow(start, TOKENS.index(b"\xc3"))
    after = tables.by_word(begun)
    assert after[TOKENS.index(b"\xa9")]
    assert not after[TOKENS.index(b"\xa8")]
    assert not after[TOKENS.index(b"a")]
    assert not tables.may_end(begun)
    # A dash separates words; its first bytes may come where the word has passed.
    assert tables.by_word(start)[TOKENS.index(b"\xe2\x80")]


def test_filters_of_whole_words_need_a_lexicon():
    with pytest.raises(ValueError, match="by word, ends_with, syllables needs a lexicon"):
        VocabularyFilters(by_word=True, ends_with="g", syllables=2, pronunciations=SAID)


@pytest.fixture(scope="module")
def model():
    model = build("llama", num_hidden_layers=3)
    model.generation_config.eos_token_id = END
    return model


PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 0, 9, 4, 40], [3, 4, 5, 6, 7, 8], [30, 31, 32, 11, 12, 60]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6, [1] * 6]),
}
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"do_sample": False, "num_beams": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("patched", [False, True])
def test_generated_text_has_no_banned_letter(way, patched, model):
    method = VocabularyFilters(strings=TOKENS, lipogram="eao", fold=True, min_words=2)
    settings = {**PROMPTS, **WAYS[way], "max_new_tokens": 25}
    free = model.generate(**settings)[:, 6:]
    assert any(set("eao") & set(text_of(row).lower()) for row in free)
    if patched:
        with tokops.patch(model, method):
            got = model.generate(**settings)
    else:
        got = model.generate(**settings, logits_processor=[method.processor(model=model)])
    for row in got[:, 6:]:
        plain = unicodedata.normalize("NFKD", text_of(row)).lower()
        assert not set("eao") & set(plain)
        assert "�" not in plain


@pytest.mark.parametrize("way", WAYS)
def test_generated_words_are_those_of_the_lexicon(way, model):
    words = ("cat", "dog", "sun", "the", "noon", "a", "it's", "ping")
    method = VocabularyFilters(
        strings=TOKENS, by_word=True, lexicon=words, exempt=("whitespace", "punctuation")
    )
    with tokops.patch(model, method):
        got = model.generate(**PROMPTS, **WAYS[way], max_new_tokens=25)[:, 6:]
    for row in got:
        found = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text_of(row))
        assert all(word.lower() in words for word in found[:-1])
        assert not found or any(word.startswith(found[-1].lower()) for word in words)


@pytest.mark.parametrize("draft", ["prompt_lookup", "early_exit"])
@pytest.mark.parametrize(
    "options",
    [
        {"lipogram": "eao"},
        {"by_word": True, "lexicon": ("cat", "dog", "sun", "the", "a"), "min_words": 3},
        {"budget": "aaabbbccdddeeefghiklmnnnoooprrrssstttuuw"},
    ],
)
def test_speculation_gives_the_tokens_of_one_by_one_decoding(options, draft, model):
    method = VocabularyFilters(strings=TOKENS, **options)
    settings = {**PROMPTS, "do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
    expected = model.generate(**settings, logits_processor=[method.processor(model=model)])
    with tokops.patch(model, method, Speculate(draft, nodes=6)):
        assert torch.equal(model.generate(**settings), expected)


def test_the_word_at_the_end_of_the_prompt_goes_on_where_asked(model):
    ids = torch.tensor([[3, TOKENS.index(b" "), TOKENS.index(b"c")]])
    lexicon = ("cat", "the")
    for prompt_word, expected in ((True, b"at"), (False, b" the")):
        method = VocabularyFilters(strings=TOKENS, by_word=True, lexicon=lexicon, prompt_word=prompt_word)
        allowed = method.processor(model=model)(ids, torch.zeros(1, 97))[0].isfinite()
        assert allowed[TOKENS.index(expected)]
    assert not allowed[TOKENS.index(b"at")]


def test_a_budget_of_letters_is_counted_as_by_hand():
    generator = torch.Generator().manual_seed(3)
    vocabulary = [
        "".join(" abcz."[i] for i in torch.randint(0, 6, (int(n),), generator=generator))
        for n in torch.randint(1, 6, (200,), generator=generator)
    ]
    budget = "aabbbc"
    tables = tables_of(VocabularyFilters(strings=vocabulary, budget=budget))
    limits = Counter(budget)
    for used in ("", "ab", "aabb", "c", "aabbbc"):
        left = limits - Counter(used)
        expected = [
            all(c in left and n <= left[c] for c, n in Counter(filter(str.isalpha, w)).items())
            for w in vocabulary
        ]
        row = torch.tensor([[Counter(used)[c] for c in tables.letters] + [0]]).short()
        mask = multiset_mask(tables.effect_on(row.device), row, torch.tensor([tables.limits]).short())
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: len(vocabulary)]
        assert bits.astype(bool).tolist() == expected


def test_a_text_stays_within_its_budget_and_ends_when_it_is_used_up(model):
    budget = "catdog"
    for exact in (False, True):
        method = VocabularyFilters(
            strings=TOKENS, budget=budget, budget_exact=exact, exempt=("whitespace",), on_empty="eos"
        )
        for way in WAYS.values():
            with tokops.patch(model, method):
                rows = model.generate(**PROMPTS, **way, max_new_tokens=30)[:, 6:]
            for row in rows:
                letters = Counter(filter(str.isalpha, text_of(row)))
                assert not letters - Counter(budget)
                if exact and END in row.tolist():
                    assert letters == Counter(budget)


def test_a_text_has_its_least_words(model):
    method = VocabularyFilters(strings=TOKENS, min_words=4)
    scores = torch.zeros(1, 97)
    scores[0, END] = 100.0
    processor = method.processor(model=model)
    ids = torch.tensor([[9, 9]])
    ends = []
    for token in map(TOKENS.index, (b" the", b" cat", b"s dog", b".", b" sun")):
        ends.append(bool(processor(ids, scores)[0, END].isfinite()))
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    ends.append(bool(processor(ids, scores)[0, END].isfinite()))
    # the / the cat / the cats dog / the cats dog. / the cats dog. sun
    assert ends == [False, False, False, False, False, True]


def test_a_tokenizer_is_read_and_masks_are_remembered():
    tokenizer = byte_tokenizer()
    assert sorted(token_bytes(tokenizer)) == [bytes([i]) for i in range(256)]
    method = VocabularyFilters(lipogram="e", fold=True)
    tables = tables_of(method, tokenizer)
    assert tables_of(VocabularyFilters(lipogram="e", fold=True), tokenizer) is tables
    assert tables_of(VocabularyFilters(lipogram="e"), tokenizer) is not tables
    banned = {token_bytes(tokenizer)[i] for i, bit in enumerate(tables.static) if not bit}
    assert banned == {b"e", b"E", *(bytes([i]) for i in range(128, 256))}
    with pytest.raises(ValueError, match="pass tokenizer= to generate, or give the method strings="):
        tables_of(method)


def test_pronunciations_come_in_cmus_format(tmp_path):
    path = tmp_path / "dict"
    path.write_text(";;; comment\nCAT  K AE1 T\nCAT(1)  K AH0 T\nHAT  HH AE1 T # a note\n'BOUT  B AW1 T\n")
    method = VocabularyFilters(rhyme="hat", pronunciations=path)
    assert method.accepts("CAT")
    assert not method.accepts("hat")  # no rhyme of itself
    assert not method.accepts("dog")  # not in the dictionary
    path = tmp_path / "bad"
    path.write_text("CAT\n")
    with pytest.raises(ValueError, match="bad:1: a word and its phonemes were expected"):
        VocabularyFilters(syllables=1, pronunciations=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rhyme": "cat"}, "rhyme needs pronunciations"),
        ({"rhyme": "zebra", "pronunciations": SAID}, "the pronunciations do not have 'zebra'"),
        ({"semantic": ("cat", 0.5)}, "semantic needs vectors"),
        ({"semantic": ("zebra", 0.5), "vectors": VECTORS}, "the vectors do not have 'zebra'"),
        ({"length": -1}, "length must not be negative, got -1"),
        ({"transforms": ("shout",)}, "transforms must be of upper, lower"),
        ({"exempt": ("vowels",)}, "exempt must be of whitespace"),
        ({"bias": 1.0}, "bias must be below 0 or None, got 1.0"),
        ({"lexicon": ("a",)}, "lexicon goes with by_word=True"),
        ({"budget_exact": True}, "budget_exact goes with a budget"),
        ({"string_at": ((-1, "a"),)}, "string_at must be pairs of a position from 0"),
        ({"on_empty": "panic"}, "on_empty must be of error, eos, ignore"),
        ({"lipogram": ("",)}, "lipogram must be strings"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VocabularyFilters(**options)
