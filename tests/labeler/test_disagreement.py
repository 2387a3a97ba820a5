"""What counts as not knowing: heads that contradict one another, not answers that are equally good."""

from __future__ import annotations

import math

import pytest

from labeler.disagreement import contradiction, disagreement


def test_by_hand() -> None:
    """Two heads that are sure of opposite things: P is σ(2) and σ(-2), a deviation of σ(2) - ½."""
    assert disagreement([[2.0, 0.0], [0.0, 2.0]]) == pytest.approx(1 / (1 + math.exp(-2)) - 0.5)
    assert disagreement([[900.0, 0.0], [0.0, 900.0]]) == pytest.approx(0.5), "the most there can be"


def test_a_small_margin_is_no_disagreement() -> None:
    equally_good = disagreement([[1.0, 1.2, 0.8], [1.0, 1.2, 0.8]])
    clear_but_disputed = disagreement([[5.0, 0.2, 0.8], [1.0, 1.2, 0.8]])
    assert equally_good == 0
    assert clear_but_disputed > 0.1


def test_an_offset_of_a_head_says_nothing() -> None:
    assert disagreement([[7.0, -3.0], [6.0, -4.0], [5.0, -5.0]]) == pytest.approx(0)


def test_a_mean_over_pairs() -> None:
    ensemble = [[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]
    pairs = [[ensemble[i], ensemble[j]] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert disagreement(ensemble) == pytest.approx(sum(map(disagreement, pairs)) / 3)


@pytest.mark.parametrize(
    ("ranks", "own", "ensemble", "expected"),
    [
        ([1, 2], [0, 3], [[0, 0, 0], [3, 3, 3]], 1 / (1 + math.exp(-3))),
        ([2, 1], [0, 3], [[0, 0, 0], [3, 3, 3]], 0),  # the model agrees
        ([1, 2], [0, 3], [[0, 0, 0], [3, 3, -1]], 0),  # one head does not
        ([1, 2], [1, 0], [[0, 0, 0], [3, 3, 3]], 0),  # nor does the model itself
        ([1, 1], [0, 3], [[0, 0, 0], [3, 3, 3]], 0),  # a tie contradicts nobody
        ([1, None], [0, 3], [[0, 0, 0], [3, 3, 3]], 0),  # nor does silence
    ],
)
def test_contradiction(ranks: list[int | None], own: list[float], ensemble: list[list[float]], expected: float) -> None:
    assert contradiction(ranks, own, ensemble) == pytest.approx(expected)
