"""prefill_attention against dense fp64 mathematics."""

import pytest
import torch

from tokops.attention import _prefill_attention as module
from tokops.attention import prefill_attention


def oracle(q, k, v, starts=None, scale=None, sink_logit=None, softcap=None, window=None):
    """One softmax per row and head, written out."""
    b, t, hq, d = q.shape
    length, heads = k.shape[1:3]
    out = torch.zeros(b, t, hq, d, dtype=torch.float64)
    for i in range(b):
        for row in range(t):
            position = length - t + row
            first = 0 if starts is None else int(starts[i])
            if window is not None:
                first = max(first, position - window + 1)
            if first > position:
                continue
            for head in range(hq):
                kv = head // (hq // heads)
                keys, values = (x[i, first : position + 1, kv].double() for x in (k, v))
                logits = keys @ q[i, row, head].double() * (d**-0.5 if scale is None else scale)
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if sink_logit is not None:
                    logits = torch.cat([logits, sink_logit[head : head + 1].double()])
                out[i, row, head] = torch.softmax(logits, 0)[: len(keys)] @ values
    return out


OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.7},
    "window": {"window": 4},
    "softcap": {"softcap": 2.0},
    "sink": {"sink_logit": torch.tensor([0.5, -1.0, 3.0, 0.0, 1.0, 2.0])},
    "all": {"window": 3, "softcap": 1.5, "sink_logit": torch.linspace(-1, 2, 6), "scale": 0.3},
}


@pytest.mark.parametrize("starts", [None, [0, 5], [3, 12]])
@pytest.mark.parametrize(("t", "length"), [(12, 12), (5, 12), (1, 12), (1, 1)])
@pytest.mark.parametrize("name", OPTIONS)
def test_matches_dense_math(name, t, length, starts, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 4)
    monkeypatch.setattr(module, "_LOGITS", 300)
    q, k, v = torch.randn(2, t, 6, 16), torch.randn(2, length, 2, 16), torch.randn(2, length, 2, 16)
    first = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    got = prefill_attention(q, k, v, starts=first, **OPTIONS[name])
    torch.testing.assert_close(got.double(), oracle(q, k, v, first, **OPTIONS[name]), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_low_precision_is_close_to_exact(dtype, name):
    q, k, v = (torch.randn(1, 9, h, 32).to(dtype) for h in (6, 3, 3))
    got = prefill_attention(q, k, v, **OPTIONS[name])
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), oracle(q, k, v, **OPTIONS[name]), atol=0.02, rtol=0.02)


def test_strided_keys_are_read_where_they_are():
    pool = torch.randn(2, 2, 40, 16)
    k, v = pool[:, :, :9].transpose(1, 2), pool[:, :, 9:18].transpose(1, 2)
    q = torch.randn(2, 6, 9, 16).transpose(1, 2)
    torch.testing.assert_close(prefill_attention(q, k, v).double(), oracle(q, k, v), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3)])
def test_torch_may_return_any_strides(order, monkeypatch):
    """Kernels for CUDA keep the heads of a row together, those for the CPU the rows of a head."""

    def strided(*args, **kwargs):
        out = sdpa(*args, **kwargs).permute(order).contiguous()
        return out.permute(*(order.index(axis) for axis in range(4)))

    sdpa = module.scaled_dot_product_attention
    monkeypatch.setattr(module, "scaled_dot_product_attention", strided)
    q, k, v = torch.randn(2, 5, 6, 16), torch.randn(2, 9, 2, 16), torch.randn(2, 9, 2, 16)
    torch.testing.assert_close(prefill_attention(q, k, v).double(), oracle(q, k, v), atol=2e-6, rtol=2e-5)
    k, v = k[:, :5], v[:, :5]
    torch.testing.assert_close(prefill_attention(q, k, v).double(), oracle(q, k, v), atol=2e-6, rtol=2e-5)


def test_gradients_match_dense_math():
    q, k, v = (torch.randn(1, 6, h, 8, dtype=torch.float32, requires_grad=True) for h in (2, 1, 1))
    prefill_attention(q, k, v).square().sum().backward()
    got = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    see = torch.ones(6, 6, dtype=torch.bool).tril()
    logits = torch.einsum("bthd,blhd->bhtl", q, k.expand(-1, -1, 2, -1)) * 8**-0.5
    weights = torch.softmax(logits.masked_fill(~see, float("-inf")), -1)
    torch.einsum("bhtl,blhd->bthd", weights, v.expand(-1, -1, 2, -1)).square().sum().backward()
    for have, x in zip(got, (q, k, v), strict=True):
        torch.testing.assert_close(have, x.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(1, 4, 2, 8, dtype=torch.float64)}, "k must be float32, got float64"),
        ({"k": torch.zeros(1, 2, 2, 8), "v": torch.zeros(1, 2, 2, 8)}, "at least the 4 rows of q, got 2"),
        (
            {"k": torch.zeros(1, 4, 3, 8), "v": torch.zeros(1, 4, 3, 8)},
            "multiple of the KV heads, got 4 and 3",
        ),
        ({"starts": torch.zeros(2, dtype=torch.int32)}, r"starts must be \[B\] = \[1\]"),
        ({"softcap": -1.0}, "softcap must be > 0"),
        ({"window": 0}, "window must be > 0, got 0"),
        ({"sink_logit": torch.zeros(3)}, r"sink_logit must be \[Hq\] = \[4\]"),
    ],
)
def test_refuses_what_is_wrong(changes, message):
    arguments = {
        "q": torch.zeros(1, 4, 4, 8),
        "k": torch.zeros(1, 4, 2, 8),
        "v": torch.zeros(1, 4, 2, 8),
        **changes,
    }
    with pytest.raises(RuntimeError, match=message):
        prefill_attention(**arguments)
