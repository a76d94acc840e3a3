"""merge_states against softmax attention over the union of the keys, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokops import _native
from tokops.attention import merge_states

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def attention(logits, values):
    """softmax(logits) @ values and logsumexp(logits), float64; 0 and -inf over no keys."""
    lse = torch.logsumexp(logits, -1)
    if logits.shape[-1] == 0:
        return values.new_zeros(logits.shape[0], values.shape[-1]), torch.full_like(lse, float("-inf"))
    return torch.softmax(logits, -1) @ values, lse


def assert_close_to_exact(got, exact, dtype):
    """Half a unit of rounding to dtype, and the error of a few float32 operations before it."""
    half_unit = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    bound = exact.abs() * half_unit * 1.01 + 2e-6 * exact.abs().amax().clamp_min(1.0)
    assert got.dtype == dtype
    assert bool(((got.double().cpu() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 8, 64, 81, 128, 256])
def test_parts_merge_into_attention_over_all_keys(device, dtype, d):
    rows, sizes = 5, [3, 0, 1, 20, 7]
    logits = [torch.randn(rows, n, dtype=torch.float64) * 4 for n in sizes]
    values = [torch.randn(n, d, dtype=torch.float64) for n in sizes]
    parts = [attention(a, v) for a, v in zip(logits, values, strict=True)]
    outs = [out.to(dtype) for out, _ in parts]
    lses = [lse.float() for _, lse in parts]
    out, lse = merge_states([x.to(device) for x in outs], [x.to(device) for x in lses])
    weights = torch.softmax(torch.stack(lses).double(), 0)
    rounded = torch.einsum("pr,prd->rd", weights, torch.stack(outs).double())
    assert_close_to_exact(out, rounded, dtype)
    exact, exact_lse = attention(torch.cat(logits, 1), torch.cat(values))
    torch.testing.assert_close(lse.double().cpu(), exact_lse, rtol=1e-6, atol=1e-6)
    if dtype == torch.float32:
        torch.testing.assert_close(out.double().cpu(), exact, rtol=0, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_part_is_ignored_whatever_it_holds(device, dtype):
    good, lse = torch.randn(3, 20).to(dtype), torch.tensor([0.5, -2.0, float("-inf")])
    junk = torch.full((3, 20), float("nan")).to(dtype)
    nothing = torch.full((3,), float("-inf"))
    good[2] = float("nan")
    out, merged = merge_states(
        [x.to(device) for x in (junk, good, junk)], [x.to(device) for x in (nothing, lse, nothing)]
    )
    assert torch.equal(out[:2].cpu(), good[:2])
    assert torch.equal(merged.cpu(), lse)
    assert out[2].count_nonzero() == 0


def test_extreme_normalisers_neither_overflow_nor_vanish(device):
    outs = torch.tensor([[[1.0], [1.0], [1.0]], [[3.0], [3.0], [3.0]]], device=device)
    lses = torch.tensor([[1e4, -1e4, 3.4e38], [1e4, -1e4, -3.4e38]], device=device)
    out, lse = merge_states(outs, lses)
    assert out.flatten().tolist() == [2.0, 2.0, 1.0]
    torch.testing.assert_close(lse.cpu(), torch.tensor([1e4 + math.log(2), -1e4 + math.log(2), 3.4e38]))


def test_one_part_is_returned_as_it_is(device):
    out, lse = torch.randn(2, 3, 4, 16, device=device), torch.randn(2, 3, 4, device=device)
    got, got_lse = merge_states(out[None], lse[None])
    assert torch.equal(got, out)
    assert torch.equal(got_lse, lse)
    assert got.data_ptr() != out.data_ptr()


def test_nan_in_a_normaliser_is_not_hidden(device):
    outs, lses = (
        torch.ones(2, 2, 9, device=device),
        torch.tensor([[float("nan"), 0.0], [1.0, 0.0]], device=device),
    )
    out, lse = merge_states(outs, lses)
    assert out[0].isnan().all()
    assert lse[0].isnan()
    assert (out[1] == 1).all()


def test_strided_parts(device):
    outs, lses = torch.randn(6, 5, 2, 40, device=device), torch.randn(5, 6, 2, device=device)
    views = [x.transpose(0, 1) for x in (outs[::2], outs[1::2])]
    got = merge_states(views, [lses[:, ::2], lses[:, 1::2]])
    want = merge_states(
        [x.contiguous() for x in views], [lses[:, ::2].contiguous(), lses[:, 1::2].contiguous()]
    )
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_sixty_four_parts_and_empty_shapes(device):
    outs, lses = torch.randn(64, 3, 10), torch.randn(64, 3)
    out, _ = merge_states(outs.to(device), lses.to(device))
    exact = torch.einsum("pr,prd->rd", torch.softmax(lses.double(), 0), outs.double())
    assert_close_to_exact(out, exact, torch.float32)
    for shape in ((2, 0, 4), (2, 3, 0)):
        out, lse = merge_states(torch.zeros(shape, device=device), torch.zeros(shape[:-1], device=device))
        assert out.shape == shape[1:]
        torch.testing.assert_close(lse.cpu(), torch.full(shape[1:-1], 2.0).log())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 6), scale=st.sampled_from([0.1, 3.0, 100.0]))
def test_order_and_grouping_change_nothing(seed, parts, scale):
    gen = torch.Generator().manual_seed(seed)
    outs = torch.randn(parts, 4, 11, generator=gen)
    lses = torch.randn(parts, 4, generator=gen) * scale
    lses[torch.rand(parts, 4, generator=gen) < 0.2] = float("-inf")
    whole = merge_states(outs, lses)
    order = torch.randperm(parts, generator=gen)
    shuffled = merge_states(outs[order], lses[order])
    some, some_lse = merge_states(outs[:1], lses[:1])
    for i in range(1, parts):
        some, some_lse = merge_states([some, outs[i]], [some_lse, lses[i]])
    for out, lse in (shuffled, (some, some_lse)):
        torch.testing.assert_close(out, whole[0], rtol=1e-5, atol=3e-6)
        torch.testing.assert_close(lse, whole[1], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_and_reference_agree(device, dtype):
    outs, lses = torch.randn(5, 7, 83, device=device).to(dtype), torch.randn(5, 7, device=device)
    lses[1, 2] = float("-inf")
    got = torch.ops.tokops.merge_states.default(list(outs), list(lses))
    want = _native.declared["merge_states"](list(outs), list(lses))
    torch.testing.assert_close(got[0], want[0], rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(got[1], want[1])


OUT, LSE = torch.zeros(3, 8), torch.zeros(3)


@pytest.mark.parametrize(
    ("outs", "lses", "message"),
    [
        ([], [], "as many, at least 1, got 0 and 0"),
        ([OUT], [LSE, LSE], "as many, at least 1, got 1 and 2"),
        ([OUT] * 65, [LSE] * 65, "at most 64 parts, got 65"),
        ([OUT, OUT[:2]], [LSE, LSE], r"outs must be all one shape = \[3, 8\], got \[2, 8\]"),
        ([OUT, OUT[0]], [LSE, LSE], "outs must have 2 dimensions, got 1"),
        ([OUT, OUT.half()], [LSE, LSE], "outs must share a dtype, got float32 and float16"),
        ([OUT.double()], [LSE], "outs must be float32 or bfloat16 or float16, got float64"),
        ([OUT], [LSE.half()], "lses must be float32, got float16"),
        ([OUT], [LSE[:2]], r"lses must be outs' shape .* = \[3\], got \[2\]"),
        ([OUT], [OUT], "lses must have 1 dimensions, got 2"),
        ([torch.tensor(1.0)], [torch.tensor(1.0)], "outs must have at least 1 dimension"),
    ],
)
def test_bad_arguments(outs, lses, message):
    with pytest.raises(RuntimeError, match="merge_states: .*" + message):
        merge_states(outs, lses)
