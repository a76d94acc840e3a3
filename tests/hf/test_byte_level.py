"""Byte-level laws of transformers models: against sums over encodings, and caches that are always right."""

import json
import math

import numpy as np
import pytest
import torch
from grammar.byte_models import PLAIN, byte_bpe, digits, gpt2, letters, sentencepiece
from tiny_models import build, byte_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast, TemperatureLogitsWarper

import tokops
from tokops.data import held_out_text
from tokops.grammar import bytes_pretokens
from tokops.grammar.bytes_validity import BPEValidity
from tokops.grammar.bytes_vocabulary import Spelling
from tokops.hf.bytelevel import ByteEnsemble, ByteLevel
from tokops.hf.byterows import CachedRows
from tokops.methods import QuantizedKV
from tokops.sampling import Sampling

GREEDY = Sampling(temperature=0)
SPECIALS = ["<end>", "<pre>", "<suf>", "<mid>"]


def wrap(tokenizer, **special):
    """For transformers, with the special tokens of the tests."""
    tokenizer.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **special)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_bpe(pre_tokenizers.Split(" ", "merged_with_next"), text=PLAIN, size=330)
    tokenizer.pre_tokenizer = digits().pre_tokenizer
    return wrap(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = build("llama", vocab_size=len(tokenizer) + 5, num_hidden_layers=2, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight.mul_(15.0)
    return model


@torch.no_grad()
def token_law(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1)


def brute(model, tokenizer, base, text, before=""):
    """Law of the next byte below 128 or the end, by trying all tokens at every place.

    Sequences count that the tokenizer makes of their text behind another one, or behind a border.
    """
    base_ids = tokenizer(before).input_ids
    special = tokenizer.convert_tokens_to_ids(SPECIALS)
    names = {i: tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in special}
    tokens = {i: name for i, name in names.items() if name.isascii()}
    masses = torch.zeros(257, dtype=torch.float64)
    stack = [((), "", 1.0)]
    while stack:
        path, spelled, chance = stack.pop()
        law = token_law(model, [*base, *path])
        if spelled == text:
            masses[256] += chance * law[0]
        for i, token in tokens.items():
            whole = spelled + token
            fits = whole.startswith(text) or text.startswith(whole)
            if not fits or tokenizer(before + whole).input_ids != [*base_ids, *path, i]:
                continue
            if len(whole) > len(text):
                masses[ord(whole[len(text)])] += chance * float(law[i])
            else:
                stack.append(((*path, i), whole, chance * float(law[i])))
    return of_ascii(masses)


def of_ascii(law):
    """The part of a law that is ASCII or the end."""
    part = torch.cat([law[:128], law[256:]])
    return part / part.sum()


@pytest.mark.parametrize("last", [" th", " thea", " the", " ret", " w"])
def test_law_is_the_sum_over_all_encodings(model, tokenizer, last):
    before = "it is, if"
    expected = brute(model, tokenizer, tokenizer(before).input_ids, last, before)
    law = ByteLevel(model, tokenizer, ends=[0]).next_byte_law(before + last)
    assert law.dtype == torch.float64
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(of_ascii(law), expected, atol=1e-5, rtol=1e-4)


def test_a_small_vocabulary_from_its_first_byte():
    words = letters((("a", "b"), ("b", "a"), ("ab", "a"), ("a", "a"), ("c", "ab")))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    model = build("llama", vocab_size=len(tokenizer), num_hidden_layers=1, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight.mul_(15.0)
    level = ByteLevel(model, tokenizer, renormalise="tokens")
    names = {i: words.id_to_token(i) for i in range(1, len(tokenizer))}

    def chance(text):
        """P(text ...): over covers, each a product of laws on what the tokenizer makes, behind the end token."""
        total = 0.0
        stack = [((), "", 1.0)] if text else []
        while stack:
            path, spelled, p = stack.pop()
            law = token_law(model, [0, *path])
            kept = {i: spelled + n for i, n in names.items() if words.encode(spelled + n).ids == [*path, i]}
            law = law / law[[0, *kept]].sum()
            for i, whole in kept.items():
                if whole.startswith(text):
                    total += p * float(law[i])
                elif text.startswith(whole):
                    stack.append(((*path, i), whole, p * float(law[i])))
        return total if text else 1.0

    for text in ("a", "ab", "aba", "cabab", "aaab"):
        law = level.next_byte_law(text)
        for letter in "abc":
            assert float(law[ord(letter)]) == pytest.approx(chance(text + letter) / chance(text), abs=1e-5)
        assert level.log_prob(text) == pytest.approx(math.log(chance(text)), abs=1e-4)
    assert level.log_prob("ab", "a") == pytest.approx(level.log_prob("aab") - level.log_prob("a"), abs=1e-5)
    assert level.log_prob("az") == -math.inf


@pytest.mark.parametrize(
    "text", ["the theat", "  if (x == 1", "naïve caf\u00c3"[:9], "don", "a  ", "12 or 12", "日本"]
)
def test_a_fed_session_is_a_fresh_one(model, tokenizer, text):
    level = ByteLevel(model, tokenizer, ends=[0])
    data = ("it is, " + text).encode()
    session = level.session("it is,")
    for byte in data[len("it is,") :]:
        session.law()
        session.feed(byte)
    assert session.text == data
    torch.testing.assert_close(session.law().exp(), level.next_byte_law(data), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("methods", [(), (QuantizedKV(bits=16),)])
@pytest.mark.parametrize("prompt", ["it is, if they wor", "it is, if the theatr"])
def test_a_patched_model_gives_the_same(model, tokenizer, methods, prompt):
    level = ByteLevel(model, tokenizer, ends=[0])
    expected = level.session(prompt).law()
    text = level.generate(prompt, 25, sampling=GREEDY).data
    with tokops.patch(model, *methods, page_size=4):
        torch.testing.assert_close(level.session(prompt).law(), expected, atol=2e-4, rtol=2e-4)
        assert level.generate(prompt, 25, sampling=GREEDY).data == text


def test_a_patched_model_reads_several_ends_as_one_tree(model):
    base = (5, 6, 7, 8)
    ends = [(*base, 9), (*base, 10, 11), (*base, 10, 12), (*base, 13)]
    plain = CachedRows(model)
    expected = torch.from_numpy(plain(ends))
    assert (plain.forwards, plain.read) == (4, 4 + 5)
    with tokops.patch(model, page_size=4):
        rows = CachedRows(model)
        torch.testing.assert_close(torch.from_numpy(rows(ends)), expected, atol=1e-3, rtol=1e-3)
        assert (rows.forwards, rows.read) == (2, 4 + 5)
        assert rows.held == ends[-1]
        torch.testing.assert_close(torch.from_numpy(rows(ends[:2])), expected[:2], atol=1e-3, rtol=1e-3)
        assert rows.forwards == 3
    with tokops.patch(model, QuantizedKV(bits=16), page_size=4):
        rows = CachedRows(model)
        torch.testing.assert_close(torch.from_numpy(rows(ends)), expected, atol=1e-3, rtol=1e-3)


def test_rows_are_those_of_whole_forwards(model):
    """Whatever is asked for in whatever order, over one cache that is rolled back."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 300, (12,), generator=generator).tolist()
    asked = [
        [tuple(ids[:6])],
        [tuple(ids[:6]), (*ids[:6], 7), (*ids[:6], 7, 8), (*ids[:6], 9)],
        [(*ids[:6], 9, 10)],
        [tuple(ids[:3])],
        [tuple(ids), (*ids[:11], 3), (*ids[:8], 4, 5)],
        [(4,)],
        [tuple(ids)],
    ]
    for patched in (False, True):
        run = tokops.patch(model, page_size=4) if patched else None
        rows = CachedRows(model)
        for sequences in asked:
            got = torch.from_numpy(rows(sequences))
            for row, sequence in zip(got, sequences, strict=True):
                torch.testing.assert_close(
                    row.double().softmax(-1), token_law(model, sequence), atol=1e-5, rtol=1e-3
                )
        if run is not None:
            run.undo()
    with pytest.raises(ValueError, match="no law without a token to begin with"):
        CachedRows(model)([()])


def test_generation(model, tokenizer):
    level = ByteLevel(model, tokenizer, ends=[0])
    prompt = "the theatre of the thi"
    got = level.generate(prompt, 30, seed=5)
    assert level.generate(prompt, 30, seed=5) == got
    assert level.generate(prompt, 30, seed=6) != got
    assert bytes(level.stream(prompt, 30, seed=5))[:10] == got.data[:10]
    # Greedy bytes are the likeliest ones of fresh laws.
    greedy = level.generate(prompt, 8, sampling=GREEDY).data
    for end in range(8):
        assert int(level.next_byte_law(prompt.encode() + greedy[:end]).argmax()) == greedy[end]
    assert got.forwards <= 30 + 8
    cut = level.generate(prompt, 30, seed=5, stop=[got.data[3:5]])
    assert got.data.startswith(cut.data)
    assert cut.data.endswith(got.data[3:5])
    # A mask of bytes, such as a grammar's.
    vowels = np.isin(np.arange(257), list(b"aeiou"))
    assert set(level.generate(prompt, 12, seed=1, mask=lambda made: vowels).data) <= set(b"aeiou")
    ends = level.generate(prompt, 12, mask=lambda made: np.arange(257) == 256)
    assert (ends.data, ends.ended) == (b"", True)
    with pytest.raises(ValueError, match="mask leaves no byte"):
        level.generate(prompt, 2, mask=lambda made: np.zeros(257, bool))
    with pytest.raises(ValueError, match="mask must give 257 bools, got \\[3\\]"):
        level.generate(prompt, 2, mask=lambda made: [True] * 3)


@pytest.mark.parametrize("options", [{"threshold": 0.02}, {"beam": 1}])
def test_what_is_dropped_is_found_again(model, tokenizer, options):
    level, light = ByteLevel(model, tokenizer, ends=[0]), ByteLevel(model, tokenizer, ends=[0], **options)
    prompt = "it is, if the thea"
    full, few = level.session(prompt), light.session(prompt)
    calls: list[bytes] = []
    begin = few.begin
    few.begin = lambda text: calls.append(text) or begin(text)
    for byte in b"t other <<way>> \xe6\x97\xa5 12":
        full.law()
        few.law()
        full.feed(byte)
        few.feed(byte)
        assert few.cover.states <= full.cover.states
        assert few.text == full.text
    assert 0 < len(calls) < 20
    law = few.law().exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="is no UTF-8"):
        few.feed(0xFF)
    assert few.text == full.text
    # What is dropped with a small share changes a law by little.
    gentle = ByteLevel(model, tokenizer, ends=[0], threshold=1e-3).session("it is, if")
    exact = level.session("it is, if")
    for byte in b" the thea":
        gentle.feed(byte)
        exact.feed(byte)
        torch.testing.assert_close(gentle.law().exp(), exact.law().exp(), atol=3e-3, rtol=0)


def test_tokens_processors_act_before_bytes(model, tokenizer):
    warp = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
    tokens = ByteLevel(model, tokenizer, ends=[0], processors=warp).next_byte_law("the the")
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
        doubled = ByteLevel(model, tokenizer, ends=[0]).next_byte_law("the the")
        model.lm_head.weight.div_(2.0)
    torch.testing.assert_close(tokens, doubled, atol=1e-5, rtol=1e-3)


def test_without_exact_validity(model, tokenizer):
    """What the tokenizer would not make has little mass here too, but some: the laws are near."""
    exact = ByteLevel(model, tokenizer, ends=[0]).next_byte_law("the theatre of th")
    fast = ByteLevel(model, tokenizer, ends=[0], validity="none")
    law = fast.next_byte_law("the theatre of th")
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    assert not torch.equal(exact, law)
    assert len(fast.generate("the theatre of th", 20, seed=1).data) == 20
    every = ByteLevel(model, tokenizer, ends=[0], validity="none", beam=math.inf, threshold=0.0)
    narrow = ByteLevel(model, tokenizer, ends=[0], validity="none", beam=64, threshold=1e-4)
    torch.testing.assert_close(
        every.next_byte_law("it is th"), narrow.next_byte_law("it is th"), atol=0.05, rtol=0.1
    )


def test_prompts(model, tokenizer):
    level = ByteLevel(model, tokenizer, ends=[0])
    law = level.next_byte_law("<pre>the thi")
    assert torch.equal(law, level.next_byte_law([tokenizer.convert_tokens_to_ids("<pre>"), "the", b" thi"]))
    assert not torch.allclose(law, level.next_byte_law(b"<pre>the thi"), atol=1e-3), (
        "bytes are not looked into"
    )
    # The end token stands before what nothing comes before.
    assert torch.equal(level.next_byte_law("t"), level.next_byte_law([0, "t"]))
    assert torch.equal(level.next_byte_law(""), level.next_byte_law([0]))
    other = ByteLevel(model, tokenizer, ends=[0], begin=[5, 6])
    assert torch.equal(other.next_byte_law("the th"), level.next_byte_law([5, 6, "the th"]))
    with pytest.raises(ValueError, match="token 100000 is not in the model's vocabulary"):
        level.next_byte_law([100000, "a"])
    with pytest.raises(ValueError, match="no UTF-8 at byte 3"):
        level.next_byte_law(b"the\xff")
    nothing = ByteLevel(model, tokenizer, ends=[0], begin=[])
    with pytest.raises(ValueError, match="pass begin="):
        nothing.next_byte_law("t")


@pytest.mark.parametrize("metaspace", [False, True])
def test_pieces_with_spaces_in_front(metaspace):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=sentencepiece(metaspace), bos_token="<s>")
    model = build("llama", vocab_size=len(tokenizer), num_hidden_layers=1)
    level = ByteLevel(model, tokenizer, ends=[])
    session = level.session("the th")
    assert session.text == b"the th"
    for byte in "ing 日本語日".encode():
        assert float(session.law().exp().sum()) == pytest.approx(1, abs=1e-9)
        session.feed(byte)
    torch.testing.assert_close(
        session.law().exp(), level.next_byte_law("the thing 日本語日"), atol=1e-6, rtol=1e-4
    )
    fast = ByteLevel(model, tokenizer, ends=[], validity="none")
    assert float(fast.next_byte_law("the thing the").sum()) == pytest.approx(1, abs=1e-9)


def test_filling_in_the_middle(model, tokenizer):
    level = ByteLevel(model, tokenizer, ends=[0])
    names = {"pre": "<pre>", "suf": "<suf>", "mid": "<mid>"}
    pre, suf, mid = (tokenizer.convert_tokens_to_ids(n) for n in names.values())
    prefix, suffix = "it is the thea", "of the thing"
    assert level.fim_prompt(prefix, suffix, **names) == [
        pre,
        b"it is the",
        suf,
        b"of the thing",
        mid,
        b" thea",
    ]
    assert level.fim_prompt(prefix, suffix, **names, heal=False) == [
        pre, b"it is the thea", suf, b"of the thing", mid, b"",
    ]  # fmt: skip
    assert level.fim_prompt(prefix, suffix, **names, order="spm") == [
        pre,
        suf,
        b"of the thing",
        mid,
        b"it is the thea",
    ]
    # The law behind the healed prompt, by hand.
    base = [pre, *tokenizer("it is the").input_ids, suf, *tokenizer(suffix).input_ids, mid]
    expected = brute(model, tokenizer, base, " thea")
    law = level.next_byte_law(level.fim_prompt(prefix, suffix, **names))
    torch.testing.assert_close(of_ascii(law), expected, atol=1e-5, rtol=1e-4)
    got = level.fill_in_the_middle(prefix, suffix, 12, **names, seed=3)
    assert len(got.data) == 12 or got.ended
    assert got == level.generate(level.fim_prompt(prefix, suffix, **names), 12, seed=3)
    with pytest.raises(ValueError, match=r"has no special token '<\|fim_prefix\|>' or .*: pass pre="):
        level.fill_in_the_middle(prefix, suffix, 3)
    with pytest.raises(ValueError, match="order must be psm or spm, got 'pms'"):
        level.fill_in_the_middle(prefix, suffix, 3, order="pms", **names)


def test_ensembles_of_two_tokenizers(model, tokenizer):
    one = ByteLevel(model, tokenizer, ends=[0])
    bytes_ = byte_tokenizer()
    other_model = build("llama", vocab_size=256, num_hidden_layers=1, seed=4)
    other = ByteLevel(other_model, bytes_, begin=[0], ends=[])
    both = ByteEnsemble([one, other], weights=[3, 1])
    law = both.next_byte_law("the thea")
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    expected = 0.75 * one.next_byte_law("the thea") + 0.25 * other.next_byte_law("the thea")
    torch.testing.assert_close(law, expected, atol=1e-9, rtol=1e-9)
    got = both.generate("the thea", 12, sampling=GREEDY)
    for end, byte in enumerate(got.data):
        assert int(both.next_byte_law(b"the thea" + got.data[:end]).argmax()) == byte
    apart = both.next_byte_law(("<pre>the thea", "the thea"))
    assert not torch.equal(apart, law)
    # A byte that one member cannot spell gets nothing.
    words = PreTrainedTokenizerFast(
        tokenizer_object=letters((("t", "h"),), alphabet="the "), eos_token="<end>"
    )
    few = ByteLevel(build("llama", vocab_size=len(words), num_hidden_layers=1), words, begin=[0], ends=[])
    spelled = ByteEnsemble([one, few])
    session = spelled.session("the th")
    assert session.law().exp()[[*b"the ", 256]].sum() == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="a member cannot go on with byte 122"):
        session.feed(b"z")
    assert [member.text for member in session.members] == [b"the th"] * 2
    assert set(spelled.generate("the th", 12).data) <= set(b"the ")
    same = ByteEnsemble([one, one])
    torch.testing.assert_close(same.next_byte_law("the t"), one.next_byte_law("the t"))
    for members, weights in (([], None), ([one], [1, 2]), ([one], [0.0])):
        with pytest.raises(ValueError, match="a weight above 0 for each"):
            ByteEnsemble(members, weights)
    with pytest.raises(ValueError, match="a tuple of prompts must have 2, got 3"):
        both.next_byte_law(("a", "b", "c"))


def test_what_it_refuses(model, tokenizer):
    with pytest.raises(ValueError, match="validity must be exact or none, got 'fast'"):
        ByteLevel(model, tokenizer, validity="fast")
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        ByteLevel(model, object())
    with pytest.raises(ValueError, match=f"the tokenizer has {len(tokenizer)} tokens, the model rows for 97"):
        ByteLevel(build("llama", num_hidden_layers=1), tokenizer)
    folded = gpt2()
    folded.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match=r"the normalizer Lowercase maps .*validity='none' reads it"):
        ByteLevel(build("llama", num_hidden_layers=1, vocab_size=400), wrap(folded))


def test_a_tokenizer_unlike_its_description_is_refused(model, tokenizer, monkeypatch):
    monkeypatch.setattr(bytes_pretokens, "_GPT2", r"\p{L}+|[^\p{L}]+")
    with pytest.raises(ValueError, match=r"the tokenizer makes \[.* its description \["):
        ByteLevel(model, tokenizer)


# ---- The real model.


@pytest.fixture(scope="module")
def real():
    from tokops.hf import load_smollm2

    return load_smollm2(progress=False)


@pytest.mark.model
@pytest.mark.slow
def test_real_tokenizer_is_understood(real):
    _, tokenizer = real
    validity = BPEValidity(Spelling(json.loads(tokenizer.backend_tokenizer.to_str())))
    text = held_out_text()[:6000]
    assert validity.encode(text.encode()) == tokenizer(text).input_ids
    begun = validity.begin(text.encode())
    assert len(text) - begun.at < 40
    rng = np.random.default_rng(0)
    tokens = validity.vocabulary.tokens
    plain = [i for i in validity.vocabulary.order.tolist() if validity.made[i] and tokens[i].isalpha()]
    for left, right in rng.choice(plain, (3000, 2)).tolist():
        both = tokenizer((tokens[left] + tokens[right]).decode()).input_ids
        assert validity.merges.followers(left)[right] == (both == [left, right])


@pytest.mark.model
@pytest.mark.slow
def test_real_model(real):
    model, tokenizer = real
    level = ByteLevel(model, tokenizer)
    law = level.next_byte_law("The capital of Fr")
    assert float(law.sum()) == pytest.approx(1, abs=1e-6)
    assert float(law[ord("a")]) > 0.9
    # Cut in the middle of a token, the model of tokens goes astray; the model of bytes finishes the word.
    assert level.generate("The capital of France is Par", 3, sampling=GREEDY).data.startswith(b"is")
    with tokops.patch(model):
        torch.testing.assert_close(level.next_byte_law("The capital of Fr"), law, atol=1e-4, rtol=1e-3)
        got = level.fill_in_the_middle(
            "def add(a, b):\n    ret", "\n\nprint(add(1, 2))", 12,
            pre="<file_sep>", suf="<repo_name>", mid="<filename>", sampling=GREEDY,
        )  # fmt: skip
        assert got.data.startswith(b"urn")


@pytest.mark.model
@pytest.mark.slow
def test_real_ensemble_of_two_tokenizers(real):
    """The same weights read by another tokenizer: one with the first half of the merges."""
    model, tokenizer = real
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][:4000]
    short = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="<|im_end|>"
    )
    prompt = "The capital of France is Par"
    assert short(prompt).input_ids != tokenizer(prompt).input_ids
    both = ByteEnsemble([ByteLevel(model, tokenizer), ByteLevel(model, short)])
    law = both.next_byte_law(prompt)
    assert float(law.sum()) == pytest.approx(1, abs=1e-6)
    assert both.generate(prompt, 3, sampling=GREEDY).data.startswith(b"is")


@pytest.mark.model
@pytest.mark.slow
def test_real_model_within_words(real, capsys):
    """Texts cut within words: how often the next byte is the likeliest, by tokens, by tokens healed, and by bytes.

    Healing takes the last token back and draws among the tokens that begin with its text.
    """
    model, tokenizer = real
    level = ByteLevel(model, tokenizer)
    vocabulary = level.spelling.vocabulary
    text = held_out_text()
    right = {"tokens": 0, "healed": 0, "bytes": 0}
    bits = forwards = count = 0
    for start in range(1000, len(text) - 1000, len(text) // 40):
        at = start
        while not text[at - 3 : at + 1].isalpha():
            at += 1
        prompt, wanted = text[at - 120 : at], text[at].encode()
        ids = tokenizer(prompt).input_ids
        token = int(token_law(model, ids).argmax())
        right["tokens"] += vocabulary.tokens[token].startswith(wanted)
        back = vocabulary.tokens[ids[-1]]
        low, _, high = vocabulary.range(back)
        fits = vocabulary.order[low:high]
        healed = int(fits[int(token_law(model, ids[:-1])[fits].argmax())])
        right["healed"] += vocabulary.tokens[healed][len(back) :].startswith(wanted)
        session = level.session(prompt)
        law = session.law()
        right["bytes"] += int(law.argmax()) == wanted[0]
        bits -= float(law[wanted[0]]) / math.log(2)
        forwards += session.cost[0]
        count += 1
    with capsys.disabled():
        print(
            f"\n{count} texts: {right}, {bits / count:.2f} bits per byte, {forwards / count:.1f} forwards each"
        )
    assert right["tokens"] < right["healed"] <= right["bytes"]
