"""Trust in a drafter's claims, against Bayes' rule written out."""

import math

import numpy as np
import pytest

from tokops.speculative import DraftTrust

# A root with two children, the first of which has one: claims of the paths.
PARENTS, WEIGHTS = [-1, 0, 0, 1, -1], [1.0, 0.6, 0.3, 0.24, 0.0]


def bayes(events, weight):
    """Expected weight ** g: events are (claims of the children, which came true or None)."""
    total = value = 0.0
    for step in range(-8, 9):
        g = 2.0 ** (step / 4)
        chance = math.exp(-0.5 * (step / 4 / 0.7) ** 2)
        for claims, true in events:
            powers = [claim**g for claim in claims]
            scale = min(1.0, 0.98 / sum(powers))
            chance *= 1 - scale * sum(powers) if true is None else scale * powers[true]
        total += chance
        value += chance * weight**g
    return value / total


@pytest.mark.parametrize(
    ("kept", "events"),
    [
        ([0], [([0.6, 0.3], None)]),
        ([0, 1], [([0.6, 0.3], 0), ([0.4], None)]),
        ([0, 2], [([0.6, 0.3], 1)]),
        ([0, 1, 3], [([0.6, 0.3], 0), ([0.4], 0)]),
        ([], []),
    ],
)
def test_posterior(kept, events):
    trust = DraftTrust(2)
    for _ in range(3):
        trust.update(1, WEIGHTS, PARENTS, kept)
    claims = np.array([[1.0, 0.9, 0.5, 0.1, 0.01, 0.0]] * 2)
    want = [[bayes(given, w) if w else 0.0 for w in claims[0]] for given in ([], events * 3)]
    np.testing.assert_allclose(trust.believed(claims), want, atol=1e-3)


def test_a_path_that_was_cut_says_nothing_of_its_end():
    cut, whole = DraftTrust(1), DraftTrust(1)
    cut.update(0, WEIGHTS, PARENTS, [0, 1], cut=True)
    whole.update(0, WEIGHTS[:3], PARENTS[:3], [0, 1])
    claims = np.array([[0.3, 0.7]])
    np.testing.assert_array_equal(cut.believed(claims), whole.believed(claims))


def test_order_is_kept_and_evidence_moves_the_right_way():
    claims = np.sort(np.random.default_rng(0).random((1, 200)))[:, ::-1]
    fresh, copied, broken = (DraftTrust(1) for _ in range(3))
    for _ in range(6):
        copied.update(0, [1.0, 0.5, 0.25], [-1, 0, 1], [0, 1, 2])
        broken.update(0, [1.0, 0.5, 0.25], [-1, 0, 1], [0])
    low, middle, high = (x.believed(claims)[0] for x in (broken, fresh, copied))
    for values in (low, middle, high):
        assert (np.diff(values) <= 0).all()
        assert values.min() >= 0
        assert values.max() <= 1
    inner = (claims[0] > 0.02) & (claims[0] < 0.98)
    assert (low < middle)[inner].all()
    assert (middle < high)[inner].all()


def test_claims_that_cannot_be_are_survived():
    trust = DraftTrust(1)
    trust.update(0, [1.0, 1.0, 1.0, 0.0], [-1, 0, 0, 0], [0])
    trust.update(0, [1.0, 0.0], [-1, 0], [0, 1])
    found = trust.believed(np.array([[0.0, 1e-12, 0.5, 1.0]]))
    assert found[0, 3] == pytest.approx(1.0)


def test_rows_follow_their_sequences():
    trust = DraftTrust(3)
    trust.update(2, WEIGHTS, PARENTS, [0])
    claims = np.full((3, 1), 0.5)
    before = trust.believed(claims)[:, 0]
    trust.select([2, 0, 2, 1])
    assert trust.believed(np.full((4, 1), 0.5))[:, 0].tolist() == before[[2, 0, 2, 1]].tolist()


def test_refusals():
    with pytest.raises(ValueError, match="batch must be 0 or more, got -1"):
        DraftTrust(-1)
    trust = DraftTrust(1)
    with pytest.raises(ValueError, match=r"weights must be \[1, n\], got \[2, 3\]"):
        trust.believed(np.ones((2, 3)))
    with pytest.raises(ValueError, match="a path must begin at the root 0, got"):
        trust.update(0, WEIGHTS, PARENTS, [1])
    with pytest.raises(ValueError, match="3 must be a child of 0, got"):
        trust.update(0, WEIGHTS, PARENTS, [0, 3])
