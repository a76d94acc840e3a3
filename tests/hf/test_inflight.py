"""A running batch: whatever comes and goes, every request gets the tokens that it gets alone."""

import random

import pytest
import torch
from tiny_models import build
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

import tokops
from tokops.hf import InflightGenerator
from tokops.methods import CNTP, Dense, QuantizedKV, TidalDecode
from tokops.sampling import Sampling, sample

SEED = 3
WAYS = (None, Sampling(temperature=0.9), Sampling(temperature=1.3, top_k=20, top_p=0.9), Sampling(min_p=0.05))


@torch.no_grad()
def alone(model, ids, new, sampling, stream, end=None, processors=()):
    """One request by itself: every forward from scratch."""
    text, start = torch.tensor([ids]), len(ids)
    while text.shape[1] < start + new and (text.shape[1] == start or text[0, -1] != end):
        scores = model(text, use_cache=False).logits[:, -1].float()
        for processor in processors:
            scores = processor(text, scores)
        if sampling is None:
            token = scores.argmax(-1)
        else:
            law = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
            token = sample(scores, seed=SEED, stream=stream, position=text.shape[1], **law)
        text = torch.cat([text, token[:, None].long()], 1)
    return text[0, start:].tolist()


def requests(count, seed):
    """Prompts and settings of all kinds."""
    rng = random.Random(seed)
    return [
        {
            "ids": [rng.randint(3, 96) for _ in range(rng.choice([1, 2, 7, 8, 9, 30]))],
            "new": rng.choice([1, 2, 5, 13, 24]),
            "sampling": rng.choice(WAYS),
            "stream": rng.randint(0, 1 << 31),
            "end": rng.choice([None, 40, 41]),
        }
        for _ in range(count)
    ]


def submit(batch, request):
    settings = {"sampling": request["sampling"], "stream": request["stream"]}
    ends = () if request["end"] is None else request["end"]
    return batch.submit(request["ids"], max_new_tokens=request["new"], eos_token_id=ends, **settings)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request):
    return build(request.param, num_hidden_layers=2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"admit_per_step": 1}, {"prefill_chunk_size": 4}])
def test_requests_get_what_they_get_alone(model, options, seed):
    todo, rng = requests(14, seed), random.Random(seed)
    expected = [alone(model, **request) for request in todo]
    read = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    streamed: dict[int, list] = {}
    with tokops.patch(model, page_size=4):
        batch = InflightGenerator(model, 4, seed=SEED, **options)
        ended = []
        numbers: list[int] = []
        while len(ended) < len(todo):
            if len(numbers) < len(todo) and rng.random() < 0.4:
                numbers.append(submit(batch, todo[len(numbers)]))
            for request, token, last in batch.step():
                streamed.setdefault(request, []).append(token)
                if last:
                    ended.append(request)
            assert len(batch.slots.slot_of) <= 4
    hook.remove()
    assert [batch.result(number) for number in numbers] == expected
    assert [streamed[number] for number in numbers] == expected
    assert ended != sorted(ended)  # some overtook others
    # Prompts once, and every token but each request's last once: nothing is computed again, and no padding is.
    assert sum(read) == sum(len(request["ids"]) for request in todo) + sum(len(x) - 1 for x in expected)
    assert batch.idle
    assert batch.rows > batch.steps  # some steps had several rows


def test_cache_rows_follow_their_requests_and_pages_are_given_back(model):
    todo = requests(10, 7)
    with tokops.patch(model, page_size=4) as run:
        batch = InflightGenerator(model, 3, seed=SEED)
        for request in todo:
            submit(batch, request)
        checked = 0
        while not batch.idle:
            batch.step()
            if batch._cache is None:
                continue
            assert [batch.slots.owner[slot] for slot in batch.slots.window] == [
                r.number for r in batch._batch
            ]
            assert batch._cache.lengths == [r.position - 1 for r in batch._batch]
            for place, request in enumerate(batch._batch):
                fresh = run.new_cache()
                with torch.no_grad():
                    model(request.text[:, :-1], past_key_values=fresh)
                for layer, other in zip(batch._cache.layers, fresh.layers, strict=True):
                    last = request.position - 1
                    first = 0 if layer.window is None else max(0, last - layer.window + 1)
                    for mine, wanted in zip(
                        layer.gather(first, last), other.gather(first, last), strict=True
                    ):
                        torch.testing.assert_close(mine[place], wanted[0], atol=1e-4, rtol=1e-4)
                    need = -(-last // 4)
                    assert (layer.table.pages[place] >= 0).sum() <= need
                checked += 1
        assert checked > 20


def test_state_of_a_request_follows_it(model):
    """Processors that count their calls and a penalty of the request's own text, in rows that change places."""

    class Counting(LogitsProcessor):
        """Forbids another token with every call."""

        def __init__(self):
            self.calls = 0

        def __call__(self, input_ids, scores):
            self.calls += 1
            scores = scores.clone()
            scores[:, 3 + self.calls * 5 % 90 :: 7] = -torch.inf
            return scores

    todo = [{**request, "end": None} for request in requests(9, 5)]
    make = (lambda: (Counting(), RepetitionPenaltyLogitsProcessor(1.5)), lambda: (), lambda: (Counting(),))
    expected = [alone(model, **r, processors=make[i % 3]()) for i, r in enumerate(todo)]
    with tokops.patch(model, page_size=4):
        batch = InflightGenerator(model, 3, seed=SEED)
        for i, request in enumerate(todo):
            batch.submit(
                torch.tensor([request["ids"]]), max_new_tokens=request["new"], sampling=request["sampling"],
                stream=request["stream"], processors=make[i % 3](),
            )  # fmt: skip
        assert batch.run() == dict(enumerate(expected))


def test_criteria_and_cancelling(model):
    class After:
        def __init__(self, length):
            self.length = length

        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= self.length])

    with tokops.patch(model):
        batch = InflightGenerator(model, 2)
        one = batch.submit([5, 6, 7], max_new_tokens=20, criteria=[After(8)], eos_token_id=())
        two = batch.submit([5, 6, 7], max_new_tokens=20, eos_token_id=())
        three = batch.submit([5, 6], max_new_tokens=20, eos_token_id=())
        for _ in range(3):
            batch.step()
        assert batch.result(two) is None
        batch.cancel(two)
        batch.cancel(three)
        assert len(batch.result(two)) == 4
        assert batch.result(three) == []
        results = batch.run()
        assert len(results[one]) == 5
        assert results[one][:4] == results[two]
        for number in (two, 99):
            with pytest.raises(KeyError):
                batch.cancel(number)


class Breaking(LogitsProcessor):
    """Does something to the scores of a text of some length."""

    def __init__(self, length, change):
        self.length, self.change = length, change

    def __call__(self, input_ids, scores):
        return self.change(scores.clone()) if input_ids.shape[1] == self.length else scores


def refuse(scores):
    raise KeyError("no such word")


NOTHING = r"InflightGenerator: no token of request 1 has a finite logit"


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda scores: scores.fill_(float("nan")), RuntimeError, NOTHING),
        (lambda scores: scores.fill_(-torch.inf), RuntimeError, NOTHING),
        (refuse, KeyError, "no such word"),
    ],
)
def test_a_request_that_fails_ends_and_the_others_go_on(model, change, kind, words, after):
    todo = [{**request, "new": 7, "end": None, "sampling": None} for request in requests(3, 11)]
    expected = [alone(model, **request) for request in todo]
    streamed: dict[int, list] = {}
    with tokops.patch(model, page_size=4):
        batch = InflightGenerator(model, 2)
        for i, request in enumerate(todo):
            broken = [Breaking(len(request["ids"]) + after, change)] if i == 1 else ()
            batch.submit(request["ids"], max_new_tokens=7, eos_token_id=(), processors=broken)
        while not batch.idle:
            for request, token, last in batch.step():
                streamed.setdefault(request, []).append((token, last))
        with pytest.raises(KeyError):
            batch.cancel(1)
    expected[1] = expected[1][:after]
    assert [batch.result(i) for i in range(3)] == expected
    assert streamed[1] == [*((token, False) for token in expected[1]), (-1, True)]
    for i in (0, 2):
        assert [token for token, _ in streamed[i]] == expected[i]
        assert [last for _, last in streamed[i]] == [False] * 6 + [True]
    assert list(batch.errors) == [1]
    with pytest.raises(kind, match=words):
        raise batch.errors[1]


def test_criteria_that_raise_end_their_request_behind_its_token(model):
    def broken(input_ids, scores, **kwargs):
        raise ValueError("too long")

    with tokops.patch(model):
        batch = InflightGenerator(model, 2)
        for criteria in ([broken], ()):
            batch.submit([5, 6, 7], max_new_tokens=4, eos_token_id=(), criteria=criteria)
        results = batch.run()
    assert results[0] == results[1][:1]
    assert len(results[1]) == 4
    assert str(batch.errors[0]) == "too long"


def test_single_nan_logits_are_never_drawn(model):
    def spoil(module, args, out):
        out.logits[..., ::2] = float("nan")

    hook = model.register_forward_hook(spoil)
    try:
        with tokops.patch(model):
            batch = InflightGenerator(model, 2)
            for sampling in (None, Sampling()):
                batch.submit([5, 6, 7], max_new_tokens=9, eos_token_id=(), sampling=sampling)
            results = batch.run()
    finally:
        hook.remove()
    assert not batch.errors
    assert all(len(tokens) == 9 and all(token % 2 for token in tokens) for tokens in results.values())


def test_a_prompt_that_cannot_be_read_loses_no_token(model):
    def broken(module, args):
        if 96 in args[0]:
            raise IndexError("a layer that fails")

    with tokops.patch(model):
        batch = InflightGenerator(model, 4)
        for ids in ([5, 6, 7], [5, 96], [6, 7]):
            batch.submit(ids, max_new_tokens=3, eos_token_id=())
        hook = model.get_input_embeddings().register_forward_pre_hook(broken)
        with pytest.raises(IndexError):
            batch.step()
        batch.cancel(1)
        hook.remove()
        emitted = [one for _ in range(3) for one in batch.step()]
    for request in (0, 2):
        assert [one.token for one in emitted if one.request == request] == batch.result(request)
        assert len(batch.result(request)) == 3


def test_it_selects_as_alone():
    model = build("llama", num_hidden_layers=6)
    todo = [{**request, "end": None, "sampling": None} for request in requests(8, 9)]
    with tokops.patch(model, TidalDecode(budget=6, reselect_layer=4), page_size=4):
        single = []
        for request in todo:
            batch = InflightGenerator(model, 1)
            submit(batch, request)
            single.append(batch.run()[0])
            stock = model.generate(
                torch.tensor([request["ids"]]), do_sample=False, max_new_tokens=request["new"]
            )
            assert stock[0, len(request["ids"]) :].tolist() == single[-1]
        batch = InflightGenerator(model, 4)
        for request in todo:
            submit(batch, request)
        assert batch.run() == dict(enumerate(single))


def test_the_model_says_what_ends_a_text_unless_the_request_does(model):
    greedy = {"max_new_tokens": 12}
    with tokops.patch(model):
        batch = InflightGenerator(model, 2)
        number = batch.submit([9, 8, 7], **greedy)
        free = batch.run()[number]
        model.generation_config.eos_token_id = free[4]
        try:
            stopped = batch.submit([9, 8, 7], **greedy)
            other = batch.submit([9, 8, 7], **greedy, eos_token_id=[free[2], free[3]])
            results = batch.run()
        finally:
            model.generation_config.eos_token_id = None
    assert results[stopped] == free[: free.index(free[4]) + 1]
    assert results[other] == free[: min(free.index(free[2]), free.index(free[3])) + 1]


def test_joined_caches_are_refused_by_name(model):
    with tokops.patch(model, page_size=4) as run:
        empty, full = run.new_cache(), run.new_cache()
        with torch.no_grad():
            model(torch.arange(5, 9)[None], past_key_values=full)
        with pytest.raises(TypeError, match="join: only a tokops cache can be joined, got dict"):
            full.join({})
        for pair in ((empty, full), (full, empty)):
            with pytest.raises(ValueError, match="join: both caches must hold tokens"):
                pair[0].join(pair[1])
    with tokops.patch(model, page_size=4) as other, pytest.raises(ValueError, match=r"another tokops\.patch"):
        full.join(other.new_cache())


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="must be patched"):
        InflightGenerator(model, 2)
    with (
        tokops.patch(model, CNTP(stop_tokens=())),
        pytest.raises(ValueError, match="CNTP has a decoding loop"),
    ):
        InflightGenerator(model, 2)
    with (
        tokops.patch(build("llama", head_dim=32), QuantizedKV(bits=8)) as run,
        pytest.raises(NotImplementedError, match="full-precision pages"),
    ):
        InflightGenerator(run.model, 2)
    with tokops.patch(model, Dense()):
        with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
            InflightGenerator(model, 0)
        for name in ("admit_per_step", "prefill_chunk_size"):
            with pytest.raises(ValueError, match=f"{name} must be at least 1 or None, got 0"):
                InflightGenerator(model, 2, **{name: 0})
        batch = InflightGenerator(model, 2)
        for ids in ([], torch.ones(2, 3), torch.ones(1, 1, 1)):
            with pytest.raises(ValueError, match="input_ids must be one prompt"):
                batch.submit(ids, max_new_tokens=3)
        for ids in ([5, 97], [-1, 5]):
            with pytest.raises(ValueError, match=r"input_ids must be 0\.\.96, got"):
                batch.submit(ids, max_new_tokens=3)
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
            batch.submit([1], max_new_tokens=0)
