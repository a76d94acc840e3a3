"""EAGLE-2's selection against a lexicographic sort, and that what it keeps is a tree."""

import numpy as np
import pytest
import torch

from tokops.speculative import DYNAMIC_VERIFY, DraftPool, check_dynamic, dynamic_tree

INF, NAN = float("inf"), float("nan")


def history(rng, levels, branch, kind):
    """A history as EAGLE-2 makes one: (scores, tokens, parents) of one sequence, in numpy."""
    scores, parents, frontier = [], [], [-1]
    for _ in range(levels):
        begin = len(scores)
        for node in frontier:
            logs = np.log(rng.dirichlet(np.ones(branch)))
            if kind == "ties":
                logs = -np.round(rng.integers(0, 3, branch).astype(float))
            elif kind == "certain":
                logs = np.where(rng.random(branch) < 0.5, 0.0, -1.0)
            elif kind == "nan":
                logs = np.where(rng.random(branch) < 0.2, NAN, np.where(rng.random(branch) < 0.2, -INF, logs))
            above = 0.0 if node < 0 else scores[node]
            scores += [float(np.float32(above) + np.float32(x)) for x in logs]
            parents += [node] * branch
        level = list(range(begin, len(scores)))
        good = [i for i in level if scores[i] > -INF]
        frontier = sorted(sorted(good, key=lambda i: (-scores[i], i))[:branch])
    return np.array(scores, np.float32), rng.integers(0, 1000, len(scores)), np.array(parents)


def expected_tree(scores, tokens, parents, root, nodes):
    """The kept candidates by numpy's lexsort, as tokens and parents."""
    key = np.where(np.isnan(scores), -INF, scores)
    order = np.lexsort((np.arange(len(key)), -key))
    kept = sorted(int(i) for i in order[: nodes - 1] if key[i] > -INF)
    place = {-1: 0, **{h: n for n, h in enumerate(kept, 1)}}
    return [root, *(int(tokens[h]) for h in kept)], [-1, *(place[int(parents[h])] for h in kept)]


def batch_of(histories, device):
    """Histories padded to one length with candidates that are never kept."""
    width = max(len(scores) for scores, _, _ in histories)

    def rows(column, fill, dtype):
        full = [np.concatenate([h[column], np.full(width - len(h[0]), fill)]) for h in histories]
        return torch.tensor(np.stack(full), dtype=dtype, device=device)

    return rows(0, -INF, torch.float32), rows(1, 0, torch.int32), rows(2, -1, torch.int32)


@pytest.mark.parametrize("kind", ["random", "ties", "certain", "nan"])
@pytest.mark.parametrize(("levels", "branch", "nodes"), [(1, 3, 3), (3, 2, 6), (4, 4, 20), (8, 10, 60)])
def test_selection(kind, levels, branch, nodes, device):
    rng = np.random.default_rng(levels)
    histories = [history(rng, levels, branch, kind) for _ in range(5)]
    root = torch.arange(7, 12, dtype=torch.int32, device=device)
    scores, tokens, parents = batch_of(histories, device)
    got_tokens, got_parents, counts = (x.tolist() for x in dynamic_tree(scores, tokens, parents, root, nodes))
    for row, (s, t, p) in enumerate(histories):
        want_tokens, want_parents = expected_tree(s, t, p, 7 + row, nodes)
        count = counts[row]
        assert count == len(want_tokens)
        assert got_tokens[row] == want_tokens + [0] * (nodes - count)
        assert got_parents[row] == want_parents + [-1] * (nodes - count)
        assert all(0 <= want_parents[n] < n for n in range(1, count))

    order = torch.tensor([3, 0, 4, 2, 1], device=device)
    again = dynamic_tree(scores[order], tokens[order], parents[order], root[order], nodes)
    assert again[0].tolist() == [got_tokens[i] for i in order]
    assert again[1].tolist() == [got_parents[i] for i in order]


def test_sizes_by_sequence(device):
    rng = np.random.default_rng(0)
    histories = [history(rng, 3, 3, "ties") for _ in range(4)]
    scores, tokens, parents = batch_of(histories, device)
    root = torch.zeros(4, dtype=torch.int32, device=device)
    sizes = torch.tensor([1, 4, 9, 100], dtype=torch.int32, device=device)
    found = dynamic_tree(scores, tokens, parents, root, sizes, n_max=12)
    assert found[0].shape == (4, 12)
    for row, nodes in enumerate((1, 4, 9, 12)):
        want_tokens, want_parents = expected_tree(*histories[row], 0, nodes)
        assert found[2][row] == len(want_tokens)
        assert found[0][row, : len(want_tokens)].tolist() == want_tokens
        assert found[1][row, : len(want_tokens)].tolist() == want_parents
    assert dynamic_tree(scores, tokens, parents, root, sizes)[0].shape == (4, 100)


def test_nothing_drafted(device):
    root = torch.tensor([4, 5], dtype=torch.int32, device=device)
    empty = torch.zeros(2, 0, dtype=torch.int32, device=device)
    tokens, parents, counts = dynamic_tree(empty.float(), empty, empty, root, 3)
    assert tokens.tolist() == [[4, 0, 0], [5, 0, 0]]
    assert parents.tolist() == [[-1, -1, -1]] * 2
    assert counts.tolist() == [1, 1]
    assert tokens.dtype == parents.dtype == counts.dtype == torch.int32


def arguments(**changes):
    i = torch.int32
    given = {
        "scores": torch.tensor([[-1.0, -2.0]]),
        "tokens": torch.tensor([[5, 6]], dtype=i),
        "parents": torch.tensor([[-1, 0]], dtype=i),
        "root": torch.tensor([3], dtype=i),
        "nodes": 3,
    }
    return {**given, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": torch.zeros(1, 2).double()}, "scores must be float32, got float64"),
        ({"tokens": torch.zeros(1, 2)}, "tokens must be int32, got float32"),
        (
            {"tokens": torch.zeros(1, 3, dtype=torch.int32)},
            r"tokens must be \[B, H\] = \[1, 2\], got \[1, 3\]",
        ),
        ({"parents": torch.tensor([[-1, 1]], dtype=torch.int32)}, "parents must be -1 or an earlier id"),
        ({"parents": torch.tensor([[-2, 0]], dtype=torch.int32)}, "parents must be -1 or an earlier id"),
        ({"root": torch.zeros(2, dtype=torch.int32)}, r"root must be \[B\] = \[1\], got \[2\]"),
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"nodes": torch.zeros(1, dtype=torch.int32), "n_max": 3}, r"nodes must be at least 1, got \[0\]"),
        ({"scores": torch.tensor([[-2.0, -1.0]])}, "none larger than its parent's"),
        ({"scores": torch.tensor([[NAN, -1.0]])}, "none larger than its parent's"),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(RuntimeError, match=f"dynamic_tree: .*{words}"):
        dynamic_tree(**arguments(**changes))


@pytest.mark.parametrize("mode", ["rrs", "rrs_wo", "greedy_plus_one", "kseq", "chain_block", "typical"])
def test_other_modes_are_refused_by_name(mode):
    with pytest.raises(ValueError, match=f"verify='target_only' or 'greedy', got '{mode}'"):
        check_dynamic(mode)


def test_exact_modes_are_let_through():
    for mode in DYNAMIC_VERIFY:
        check_dynamic(mode)
    assert set(DYNAMIC_VERIFY) == {"target_only", "greedy"}


class Drafter:
    """A law over 12 tokens that depends on the last one alone."""

    def __init__(self, batch):
        logits = torch.randn(batch, 13, 12, generator=torch.Generator().manual_seed(batch))
        self.law = torch.log_softmax(logits * 2, -1)

    def best(self, last, k):
        log_p, tokens = torch.gather(self.law, 1, last[..., None].expand(-1, -1, 12).long()).topk(k)
        return tokens.int(), log_p


@pytest.mark.parametrize(("batch", "k", "expansions", "nodes"), [(1, 1, 3, 8), (3, 3, 4, 12), (2, 4, 2, 60)])
def test_pool(batch, k, expansions, nodes):
    """The whole of EAGLE-2 against a drafter, step by step in plain Python."""
    drafter, root = Drafter(batch), torch.full((batch,), 12, dtype=torch.int32)
    pool = DraftPool(root, k)
    last = root[:, None]
    for _ in range(1 + expansions):
        frontier = pool.expand(*drafter.best(last, k))
        last = pool.tokens.gather(1, frontier.clamp_min(0).long())
    tokens, parents, counts = pool.tree(nodes)

    for b in range(batch):
        scores, names, above, frontier = [], [], [], [(-1, 12, np.float32(0))]
        for _ in range(1 + expansions):
            level = []
            for node, token, score in frontier:
                found, logs = drafter.best(torch.full((batch, 1), token), k)
                for t, x in zip(found[b, 0].tolist(), logs[b, 0].numpy(), strict=True):
                    level.append((len(scores), t, score + x))
                    scores.append(score + x)
                    names.append(t)
                    above.append(node)
            frontier = sorted(sorted(level, key=lambda c: (-c[2], c[0]))[:k])
        want = expected_tree(np.array(scores), names, above, 12, nodes)
        assert tokens[b, : counts[b]].tolist() == want[0]
        assert parents[b, : counts[b]].tolist() == want[1]
        best = np.sort(np.exp(np.array(scores)))[::-1]
        assert pool.acceptance()[b].numpy() == pytest.approx(best, rel=1e-5)


def test_pool_survives_nan_and_rounding_above_zero():
    root = torch.tensor([1], dtype=torch.int32)
    pool = DraftPool(root, 2)
    tokens = torch.tensor([[[5, 6]]], dtype=torch.int32)
    frontier = pool.expand(tokens, torch.tensor([[[1e-7, NAN]]]))
    assert frontier.tolist() == [[0, -1]]
    pool.expand(tokens.expand(1, 2, 2), torch.tensor([[[1e-7, -1.0], [0.0, 0.0]]]))
    found = pool.tree(9)
    assert found[0][0, :4].tolist() == [1, 5, 5, 6]
    assert found[1][0, :4].tolist() == [-1, 0, 1, 1]
    assert found[2].tolist() == [4]
    assert pool.acceptance()[0, 3:].tolist() == [0, 0, 0]


def test_pool_refuses():
    with pytest.raises(ValueError, match="branch must be at least 1, got 0"):
        DraftPool(torch.zeros(1, dtype=torch.int32), 0)
    pool = DraftPool(torch.zeros(1, dtype=torch.int32), 2)
    one = torch.zeros(1, 1, 3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"DraftPool.expand: K must be 1\.\.2, got 3"):
        pool.expand(one, one.float())
    with pytest.raises(
        RuntimeError, match=r"DraftPool.expand: tokens must be \[B, frontier, K\] = \[1, 1, 2\]"
    ):
        pool.expand(one.expand(1, 2, 3)[..., :2], one.expand(1, 2, 3)[..., :2].float())
