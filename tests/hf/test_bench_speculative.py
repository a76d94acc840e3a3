"""The benchmark of speculation on tiny shapes: every kind of case, what is counted, and what is refused."""

import json
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from tokops.bench import run, speculative
from tokops.bench.attention import Bar, Case
from tokops.cli import build as program


def invoke(*arguments):
    return CliRunner().invoke(program(), [str(x) for x in arguments], env={"COLUMNS": "120"})


def small_cases(device="cpu", quick=False):
    """One case of every kind."""
    fp32, bf16 = torch.float32, torch.bfloat16
    softmax = Bar(speculative.SOFTMAX, 0.0)
    yield Case("drawn", (softmax,), partial(speculative.verify, "target_only", 3, 64, 500, 4, bf16, device))
    yield Case(
        "greedy", (Bar("1 s", 1.0, 1.0),), partial(speculative.verify, "greedy", 2, 64, 500, 8, fp32, device)
    )
    yield Case(
        "compact",
        (Bar(speculative.COPY, 1e9),),
        partial(speculative.compact, 3, 2, 2, 16, 8, bf16, device),
    )
    yield Case("sample", (), partial(speculative.draws, 4, 500, fp32, device))
    yield Case("append", (Bar("1 ns", 1.0, 1e-9),), partial(speculative.index_append, 400))
    yield Case("draft", (), partial(speculative.index_draft, 400))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculative, "cases", small_cases)
        found = invoke("bench", "speculative", "--quick", "--out", out)
    assert found.exit_code == 0, found.output
    assert (out / "speculative.png").stat().st_size > 10_000
    return {row["label"]: row for row in json.loads((out / "speculative.json").read_text())["rows"]}


def test_every_kind_of_case_is_checked_timed_and_counted(rows):
    assert list(rows) == [case.label for case in small_cases()]
    # Rows of the accepted path alone are read, the root's among them.
    assert rows["drawn"]["read_bytes"] == 3 * 5 * 500 * 2
    assert rows["greedy"]["read_bytes"] == 2 * 9 * 500 * 4
    assert rows["compact"]["read_bytes"] == 2 * 2 * 3 * 8 * 2 * 16 * 2
    assert rows["sample"]["read_bytes"] == 4 * 500 * 4
    assert set(rows["compact"]["peers"]) == {speculative.COPY, speculative.BY_POOL}
    assert set(rows["draft"]["peers"]) == {"our chain of 10", "transformers' chain of 10"}


def test_a_fixed_time_is_a_bar(rows):
    (second,) = rows["greedy"]["verdicts"]
    assert second["met"]
    assert second["ratio"] == pytest.approx(1.0 / rows["greedy"]["seconds"])
    assert not rows["append"]["verdicts"][0]["met"]
    assert not rows["compact"]["verdicts"][0]["met"]


def test_where_bytes_are_no_measure_none_are_claimed(rows):
    for label in ("append", "draft"):
        assert (rows[label]["read_bytes"], rows[label]["floor_by"], rows[label]["of_floor"]) == (0, "", 0.0)
    assert rows["sample"]["of_floor"] > 0


def wrong_path(verify):
    def call(*args, **kwargs):
        length, path, out = verify(*args, **kwargs)
        return length, path.roll(1, 1), out

    return call


def wrong_token(call):
    return lambda *args, **kwargs: call(*args, **kwargs) ^ 1


def first_rows_stay(compact):
    def call(pools, table, base, rows, **kwargs):
        rows = rows.clone()
        rows[:, 1] = 1
        compact(pools, table, base, rows, **kwargs)

    return call


class Forgetful(speculative.SuffixIndex):
    """An index that drops the last token of what it is given."""

    def append(self, tokens, counts=None):
        super().append(tokens[:, :-1], counts)


@pytest.mark.parametrize(
    ("name", "wrong", "case"),
    [
        ("tree_verify", wrong_path, 0),
        ("tree_verify", wrong_path, 1),
        ("rows_read", wrong_token, 0),
        ("kv_compact", first_rows_stay, 2),
        ("sample", wrong_token, 3),
        ("SuffixIndex", lambda index: Forgetful, 4),
        ("SuffixIndex", lambda index: Forgetful, 5),
    ],
)
def test_a_wrong_result_is_not_timed(name, wrong, case, monkeypatch):
    case = list(small_cases())[case]
    case.build().check()
    monkeypatch.setattr(speculative, name, wrong(getattr(speculative, name)))
    monkeypatch.setattr(run, "interleaved", lambda *args, **kwargs: pytest.fail("it was timed"))
    with pytest.raises(AssertionError):
        run.measure(case)


def test_an_opponent_that_walks_elsewhere_is_not_timed(monkeypatch):
    monkeypatch.setattr(speculative, "_softmax", lambda logits: torch.softmax(-logits.float(), -1))
    with pytest.raises(AssertionError, match="gave out other tokens"):
        speculative.verify("target_only", 2, 64, 500, 4, torch.float32, "cpu").check()


def test_the_opponent_draws_by_the_law_of_target_only():
    """Marginals of the first token are the root's law, whatever the children are."""
    torch.manual_seed(0)
    speculative.random.seed(0)
    law = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25] * 4, [0.25] * 4])
    many = 4000
    found = speculative._walk_drawn(law.expand(many, 3, 4), [[0, 3, 1]] * many, [[1, 2], [], []])
    counts = torch.tensor([out[0] for out in found]).bincount(minlength=4) / many
    # Four standard deviations of the most frequent of them.
    assert (counts - law[0]).abs().max() < 4 * (0.25 / many) ** 0.5


@pytest.mark.parametrize("draw", [speculative._multinomial, speculative._race])
def test_the_opponents_of_sample_draw_by_the_law(draw):
    torch.manual_seed(0)
    law, many = torch.tensor([0.1, 0.2, 0.3, 0.4]), 4000
    counts = draw(law.log().expand(many, 4)).bincount(minlength=4) / many
    assert (counts - law).abs().max() < 4 * (0.25 / many) ** 0.5


def test_the_cases_name_the_acceptance_table():
    cpu = {case.label: [(bar.against, bar.least) for bar in case.bars] for case in speculative.cases()}
    cuda = {case.label: [bar.seconds for bar in case.bars] for case in speculative.cases("cuda")}
    for batch, seconds in ((1, 15e-6), (8, 60e-6)):
        label = f"tree_verify target_only B{batch} N64 V131072, 4 of 8 accepted, fp32"
        assert cpu[label] == [(speculative.SOFTMAX, 5.0)]
        assert cuda[label] == [pytest.approx(seconds)]
    assert cpu["kv_compact 30 layers B32 8x128, 8 rows, bf16"] == [(speculative.COPY, 0.6)]
    assert cuda["kv_compact 30 layers B1 8x128, 8 rows, bf16"] == [pytest.approx(20e-6)]
    assert not any("suffix" in label for label in cuda)
    assert {case.label for case in speculative.cases(quick=True)} < set(cpu)


def test_the_trees_are_as_deep_as_their_labels_say():
    tree = speculative._Tree(1, 64, 500, 8, torch.float32, "cpu")
    assert tree.links.max_depth == 8
    assert len(tree.path) == 9
