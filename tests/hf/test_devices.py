"""Every method on CUDA computes what it computes on the CPU."""

import pytest
import torch
from test_every_method import METHODS
from tiny_models import FAMILIES, build

import tokops
from tokops.methods import CNTP, Dense

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROMPT = 150


def logits(model, text, method, device):
    """Logits of a prompt's last token and of tokens fed one by one after it."""
    model.to(device)
    with tokops.patch(model, method, page_size=16) as run, torch.no_grad():
        cache = run.new_cache()
        rows = [model(text[:, :PROMPT].to(device), past_key_values=cache).logits[:, -1]]
        for i in range(PROMPT, text.shape[1]):
            rows.append(model(text[:, i : i + 1].to(device), past_key_values=cache).logits[:, -1])
    return torch.stack(rows, 1).cpu()


@pytest.fixture(scope="module")
def text():
    return torch.randint(3, 97, (2, PROMPT + 24), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", METHODS)
def test_methods(name, text):
    model = build("llama", num_hidden_layers=7, head_dim=64)
    want = logits(model, text, METHODS[name][0], "cpu")
    got = logits(model, text, METHODS[name][0], "cuda")
    # A rounding may choose another code or another token; most rows see neither.
    difference = (got - want).norm(dim=-1) / want.norm(dim=-1)
    assert difference.median() < 1e-2, difference
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, text):
    model = build(family, hidden_size=512, head_dim=64)
    want = logits(model, text, Dense(), "cpu")
    torch.testing.assert_close(logits(model, text, Dense(), "cuda"), want, rtol=1e-3, atol=1e-3)


#: Their parameters in METHODS are those of a model with heads of 16, for which CUDA has no kernel.
OTHER_SHAPE = ("ConceptHeads", "Falcon")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OTHER_SHAPE])
def test_generate(name, text):
    """Tokens in bfloat16 of a batch: greedy but where a method lives on chance; with beams where it has no loop."""
    method = METHODS[name][0]
    model = build("llama", num_hidden_layers=7, head_dim=64).to("cuda", torch.bfloat16)
    ids = text[:, :40].cuda()
    with tokops.patch(model, method, page_size=16):
        for beams in (1, 2) if method.loop is None else (1,):
            chance = {"do_sample": True} if isinstance(method, CNTP) else {"do_sample": False}
            out = model.generate(ids, max_new_tokens=12, num_beams=beams, **chance)
            assert out.shape == (2, 52)
