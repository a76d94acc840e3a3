"""Captured CUDA graphs: a replay follows what has been written into the tensors since the capture."""

import pytest
import torch

from tokops.attention import inputs, packed_decode, paged_decode, paged_decode_scores, topk_positions
from tokops.attention.packed_cases import one_part, queries
from tokops.bench.timing import captured

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def follows(call, *changes):
    """After each change, in place, of the inputs a replay gives what a plain call gives."""
    graph, results = captured(call)
    for change in changes:
        change()
        want = call()
        graph.replay()
        for got, expected in zip(results, want, strict=True):
            if got is not None:
                assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_and_queries(dtype):
    x = inputs.paged(3, lens=[700, 1, 65], heads=2, group=4, page=16, dtype=dtype)
    q, k, v, table, lens = (t.cuda() for t in x.decode_args)
    follows(
        lambda: paged_decode(q, k, v, table, lens),
        lambda: lens.copy_(torch.tensor([3, 70, 0])),
        lambda: lens.copy_(torch.tensor([600, 64, 17])),
        lambda: q.neg_(),
        lambda: table.copy_(table.flip(1)),
    )
    follows(
        lambda: paged_decode_scores(q, k, v, table, lens, max_len=704),
        lambda: lens.copy_(torch.tensor([300, 2, 65])),
    )


def test_selections_chosen_in_the_graph():
    """Scores, the largest of them and attention over these, all in one graph."""
    x = inputs.paged(4, lens=[500, 300], heads=2, group=4, page=16, dtype=torch.bfloat16)
    q, k, v, table, lens = (t.cuda() for t in x.decode_args)

    def step():
        _, _, scores = paged_decode_scores(q, k, v, table, lens, reduce="max", max_len=512)
        positions, counts = topk_positions(scores, lens[:, None].expand(scores.shape[:-1]), 64)
        return (*paged_decode(q, k, v, table, lens, selected=positions, counts=counts), positions, counts)

    follows(step, lambda: lens.copy_(torch.tensor([40, 500])), lambda: q.mul_(-2.0))


def test_packed_parts():
    part = one_part(5, [300, 90], "int4", "int8", page=32, dtype=torch.bfloat16)
    part = type(part)(**{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in vars(part).items()})
    q, lens = queries(5, 2, 1, 6, 64, torch.bfloat16).cuda(), part.lens.clone()

    def change(*new):
        part.lens.copy_(torch.tensor(new))
        lens.copy_(part.lens)

    follows(lambda: packed_decode(q, [part], lens), lambda: change(10, 64), lambda: change(299, 1), q.neg_)
