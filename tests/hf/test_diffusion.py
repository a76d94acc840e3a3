"""The denoising loop with toy masked-diffusion models: what it keeps is of the grammar, and else it is LLaDA's."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from tokops.grammar.infill import InfillGrammar, InfillUnknownError
from tokops.hf.diffusion import generate_infill

PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b" ",
    b'": ',
    b'", "',
    b"a",
    b"b",
    b"key",
    b"true",
    b"null",
]
PIECES += [b"1", b"23", b".5", b"-", b"\\", b"n", b"\n", b"tr", b"ue", b"}]", b"[[", b"\xc3", b"\xa9"]
EOS = len(PIECES)
MASK = EOS + 1
UNUSED = EOS + 2
TOKENS = [*PIECES, b"<eos>", b"<mask>", b""]
V = len(TOKENS) + 5  # padded logits rows
EVERYTHING = InfillGrammar.from_rules({"start": [["ANY"]]}, {"ANY": "[^]*"})


@pytest.fixture(scope="module")
def grammar():
    return InfillGrammar.builtin("json")


class Denoiser:
    """A toy model of masked diffusion: it prefers one text, the more the more of a position's neighbours are filled.

    Args:
        target: tokens it prefers by position of the region, -1 for none.
        prompt: length of what comes before.
        noise: how far other tokens come near.
    """

    def __init__(self, target, prompt=0, noise=0.0, seed=0):
        self.target, self.prompt, self.noise = target, prompt, noise
        self.generator = torch.Generator().manual_seed(seed)
        self.seen = []

    def __call__(self, ids):
        self.seen.append(ids.clone())
        logits = torch.randn((*ids.shape, V), generator=self.generator) * self.noise
        for i, token in enumerate(self.target):
            if token < 0:
                continue
            at = self.prompt + i
            around = ids[0, max(at - 2, 0) : at + 3]
            logits[0, at, token] += 2.0 + (around != MASK).sum()
        return logits


def run(model, grammar, length=16, prompt=(), **options):
    options = {"steps": 8, "mask_id": MASK, "eos_ids": [EOS], "length": length, "seed": 3, **options}
    ids = torch.tensor([list(prompt)], dtype=torch.int64).reshape(1, -1)
    return generate_infill(model, ids, grammar, options.pop("tokens", TOKENS), **options)


def ids_of(*pieces, length):
    ids = [PIECES.index(piece) for piece in pieces]
    return ids + [EOS] * (length - len(ids))


VALID = (b"{", b'"', b"key", b'": ', b"[", b"1", b",", b" ", b"true", b"]", b"}")


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_a_valid_text_comes_through_untouched(grammar, order):
    target = ids_of(*VALID, length=16)
    out = run(Denoiser(target), grammar, order=order, temperature=0.0)
    assert out.status == "complete"
    assert out.text == b"".join(VALID)
    assert out.sequences.tolist() == [target]
    assert out.resamples == 0
    assert out.unknown == 0
    assert out.forwards <= 8


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_noise_always_becomes_json(grammar, seed, order):
    target = ids_of(*VALID, length=16)
    target[seed % 11] = PIECES.index(b"}]")  # one token that can't be
    out = run(Denoiser(target, noise=1.5, seed=seed), grammar, order=order, seed=seed)
    json.loads(out.text.decode())
    assert out.status in ("complete", "autocompleted")
    assert out.resamples > 0


def test_pure_noise_becomes_json(grammar):
    statuses = []
    for seed in range(6):
        out = run(Denoiser([], noise=3.0, seed=seed), grammar, length=12, max_resamples=8, seed=seed)
        json.loads(out.text.decode())
        statuses.append(out.status)
        if out.status == "complete":
            ids = out.sequences[0].tolist()
            text = ids[: ids.index(EOS)] if EOS in ids else ids
            assert b"".join(TOKENS[t] for t in text) == out.text


def test_without_completion_a_text_may_stay_partial(grammar):
    out = run(Denoiser([], noise=3.0, seed=1), grammar, length=12, max_resamples=0, autocomplete=False)
    assert out.status == "partial"
    assert out.text is None
    assert MASK in out.sequences[0].tolist()


def test_a_grammar_of_every_text_leaves_the_published_loop():
    """LLaDA's sampling, written down again: even shares of the steps, the highest confidences of each."""
    length, steps, block = 12, 6, 6
    silent = [EOS, MASK, UNUSED]
    tokens = [b"" if i in silent else b"x" for i in range(len(TOKENS))]
    target = [i % 11 for i in range(length)]
    model, twin = (Denoiser(target, prompt=2, noise=2.0, seed=5) for _ in range(2))
    options = {"prompt": (10, 11), "steps": steps, "block_length": block, "temperature": 0.0}
    out = run(model, EVERYTHING, length, tokens=tokens, eos_ids=[], **options)
    ids = torch.tensor([[10, 11, *[MASK] * length]])
    for start in range(2, 2 + length, block):
        for _ in range(steps * block // length):
            law = twin(ids)[0, :, : len(TOKENS)].double().log_softmax(-1)
            law[:, silent] = -torch.inf
            sure, guess = law.max(-1)
            open_ = [p for p in range(start, start + block) if ids[0, p] == MASK]
            for p in sorted(open_, key=lambda p: -sure[p])[: length // steps]:
                ids[0, p] = guess[p]
    assert out.sequences.tolist() == ids.tolist()
    assert out.forwards == steps
    assert out.resamples == 0


def test_noise_draws_from_the_softmax():
    logits = torch.tensor([0.0, 0.7, 1.5, -1.0])
    temperature = 0.8
    counts = torch.zeros(4)
    for seed in range(8):
        out = generate_infill(
            lambda ids: logits.repeat(1, ids.shape[1], 1),
            torch.empty((1, 0), dtype=torch.int64),
            EVERYTHING,
            [b"a", b"b", b"c", b"d", b""],
            mask_id=4,
            length=150,
            steps=1,
            temperature=temperature,
            seed=seed,
            open_end=False,
        )
        counts += torch.bincount(out.sequences[0], minlength=4)
    expected = (logits / temperature).double().softmax(0) * 1200
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_blocks_are_filled_from_the_left(grammar):
    model = Denoiser(ids_of(*VALID, length=16), noise=0.5)
    run(model, grammar, block_length=4, steps=8)
    for ids in model.seen:
        open_ = (ids[0] == MASK).nonzero().flatten().tolist()
        filled = [i for i in range(16) if i not in open_]
        first = min(open_) // 4
        assert all(i < 4 * (first + 1) or ids[0, i] == EOS for i in filled)


def test_a_template_with_holes(grammar):
    pieces = [b"{", b'"', b"key", b'": ', b"[", None, None, b",", b" ", None, b"]", b"}"]
    ids = [MASK if p is None else PIECES.index(p) for p in pieces]
    template = torch.tensor([ids + [EOS] * 2])
    out = run(Denoiser([], noise=2.0, seed=2), grammar, template=template, steps=3)
    for given, got in zip(template[0].tolist(), out.sequences[0].tolist(), strict=True):
        assert given in (MASK, got)
    json.loads(out.text.decode())
    with pytest.raises(ValueError, match="no text of the grammar"):
        run(Denoiser([]), grammar, template=torch.tensor([[PIECES.index(b"]"), MASK]]))


def test_outputs_with_logits_and_fixed_seeds(grammar):
    def once(seed):
        inner = Denoiser(ids_of(*VALID, length=16), noise=1.0)
        return run(lambda ids: SimpleNamespace(logits=inner(ids)), grammar, seed=seed, temperature=1.0)

    assert once(4).sequences.tolist() == once(4).sequences.tolist()
    assert len({tuple(once(seed).sequences[0].tolist()) for seed in range(6)}) > 1


def test_what_fits_must_fit(grammar):
    """Ten opening brackets in ten tokens leave no room; with the end closed they are refused."""
    target = [PIECES.index(b"[")] * 10
    single = [token if len(token) == 1 else b"" for token in TOKENS]
    options = {"length": 10, "temperature": 0.0, "max_resamples": 40, "tokens": single}
    out = run(Denoiser(target), grammar, open_end=False, **options)
    assert out.status == "complete"
    assert out.text.startswith(b"[[")
    assert len(out.text) <= 10
    json.loads(out.text)
    out = run(Denoiser(target), grammar, **options)
    assert out.status == "autocompleted"
    assert out.text == b"[" * 10 + b"]" * 10


def test_time_outs_are_counted_and_said(grammar):
    with pytest.raises(InfillUnknownError):  # about the empty canvas
        run(Denoiser([]), grammar, seconds=0.0)
    asked = []

    class Slow:
        """Every third proposal takes too long."""

        def checker(self):
            inner = grammar.checker()

            def ask(parts, seconds):
                asked.append(seconds)
                late = seconds == 5.0 and len(asked) % 3 == 2
                return inner.is_completable(parts, seconds=0.0 if late else seconds)

            return SimpleNamespace(is_completable=ask, complete=inner.complete)

    with pytest.warns(UserWarning, match="not decided in time"):
        out = run(Denoiser(ids_of(*VALID, length=16)), Slow(), seconds=5.0)
    assert out.unknown > 0
    json.loads(out.text)


def test_bad_input(grammar):
    model = Denoiser([])
    for options, message in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"length": 0}, "length must be"),
        ({"block_length": 0}, "block_length"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"order": "left"}, "order must be confidence or random"),
        ({"max_resamples": -1}, "max_resamples"),
        ({"on_unknown": "maybe"}, "on_unknown"),
        ({"template": torch.zeros(3)}, "template must be"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, grammar, **options)
    with pytest.raises(ValueError, match="one sequence"):
        generate_infill(model, torch.zeros((2, 3), dtype=torch.int64), grammar, TOKENS, mask_id=MASK)
    with pytest.raises(ValueError, match=r"must give \[1, 16, V\]"):
        run(lambda ids: torch.zeros(1, 3, V), grammar)


def test_nan_logits_are_never_proposed(grammar):
    def model(ids):
        logits = Denoiser(ids_of(*VALID, length=16))(ids)
        logits[..., PIECES.index(b"]")] = torch.nan
        return logits

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = run(model, grammar, temperature=0.0)
    assert PIECES.index(b"]") not in out.sequences[0].tolist()
    json.loads(out.text)
