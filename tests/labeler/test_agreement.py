"""Agreement figures: equal to independent ones, with missing values and ties, and an interval that covers."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import evalica
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from benchmarks import agreement_between_annotators as benchmark
from labeler import agreement, quality
from labeler.agreement import alpha, between, over_time, tau_b, votes
from labeler.projects import FIRST
from labeler.workspace import open_workspace

NAN = math.nan
UNITS = np.array(
    [[1, 0, -1, NAN, 0, 1, -1, NAN], [1, 1, -1, 0, NAN, 1, 0, NAN], [0, 1, -1, 0, -1, 1, NAN, 1]], dtype=float
)
TASKS = {
    1: {"ann": (1, 2, 3, 4), "bob": (1, 2, 4, 3), "cem": (2, 1, 3, 3)},
    2: {"ann": (1, 1, 1, 1), "bob": (1, 2, 3, 4)},
    3: {"ann": (2, None, 1, 3), "bob": (1, 2, 3, None), "cem": (2, 3, 1, 1)},
    4: {"ann": (1, 2, 3, 4)},
    5: {"bob": (None, None, 1, 2), "cem": (1, 2, None, None)},  # nothing in common
    6: {"ann": (1, 3, 2, 2), "cem": (1, 3, 2, 2)},
}


@pytest.mark.parametrize("level", agreement.LEVELS)
def test_alpha_is_evalicas(level: str) -> None:
    expected = evalica.alpha(pd.DataFrame(UNITS), distance=level).alpha
    assert alpha(UNITS, level) == pytest.approx(expected, abs=1e-9)
    four = np.array(
        [[1, 2, 3, 3, 2, 1, 4, 1, 2, NAN], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5], [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5]]
    )
    assert alpha(four, level) == pytest.approx(evalica.alpha(pd.DataFrame(four), distance=level).alpha, abs=1e-9)


def test_alpha_by_hand() -> None:
    """Two raters, votes (-1, -1), (-1, 1): o = [[2, 1], [1, 0]], n = (3, 1): 1 - 3 * 2 / (2 * 3 * 1) = 0."""
    assert alpha(np.array([[-1.0, -1.0], [-1.0, 1.0]])) == pytest.approx(0.0)


def test_alpha_is_not_defined_where_all_votes_are_the_same() -> None:
    assert alpha(np.zeros((2, 5))) is None
    found = agreement.agreement({1: {"a": (1, 2), "b": (1, 2)}, 2: {"a": (1, 2), "b": (1, 2)}})
    assert (found.percent.value, found.nominal.value, found.ordinal.value) == (1.0, None, None)


def test_tau_b_is_scipys() -> None:
    random = np.random.default_rng(0)
    undefined = 0
    for _ in range(200):
        x, y = random.integers(1, 4, (2, 4)).tolist()
        expected = kendalltau(x, y).statistic
        found = tau_b(votes(x), votes(y))
        undefined += found is None
        assert (found is None) == bool(np.isnan(expected))
        assert found is None or found == pytest.approx(expected, abs=1e-12)
    assert undefined  # somebody only tied


def test_figures_of_rankings_with_ties_and_gaps_are_those_of_an_independent_count() -> None:
    found = agreement.agreement(TASKS)
    columns, same, taus, undefined = [], [], [], 0
    for said in TASKS.values():
        for i, j in combinations(range(4), 2):
            column = []
            for name in ("ann", "bob", "cem"):
                a, b = (said[name][i], said[name][j]) if name in said else (None, None)
                column.append(NAN if a is None or b is None else float((a > b) - (a < b)))
            columns.append(column)
            same += [x == y for x, y in combinations(column, 2) if not math.isnan(x + y)]
        for x, y in combinations(said.values(), 2):
            both = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
            if len(both) >= 2:
                tau = kendalltau(*zip(*both, strict=True)).statistic
                undefined += math.isnan(tau)
                taus += [] if math.isnan(tau) else [tau]
    table = pd.DataFrame(np.array(columns).T)
    assert found.percent.value == pytest.approx(np.mean(same), abs=1e-9)
    assert found.percent.n == len(same)
    for level in agreement.LEVELS:
        assert getattr(found, level).value == pytest.approx(evalica.alpha(table, distance=level).alpha, abs=1e-9)
    assert found.tau.value == pytest.approx(np.mean(taus), abs=1e-9)
    assert (found.tau.n, found.undefined, found.tasks) == (len(taus), undefined, 4)
    assert undefined == 1


def test_pairs_and_periods_hold_their_own_tasks() -> None:
    pairs = between(TASKS)
    assert set(pairs) == {("ann", "bob"), ("ann", "cem"), ("bob", "cem")}
    assert pairs["ann", "cem"].tasks == 3
    assert pairs["ann", "cem"].percent.value == pytest.approx((4 + 1 + 6) / (6 + 3 + 6))
    periods = over_time(TASKS, {1: 0, 2: 0, 3: 7, 4: 7, 5: 7, 6: 7})
    assert list(periods) == [0, 7]
    assert periods[0] == agreement.agreement({task: TASKS[task] for task in (1, 2)})


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        tasks = {t: {"a": (1, 2), "b": (1, 2) if random.random() < 0.7 else (2, 1)} for t in range(80)}
        figure = agreement.agreement(tasks).percent
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low <= 0.7 <= figure.high
    assert 88 <= covered <= 99


def test_a_single_task_has_no_interval_and_none_has_no_figure() -> None:
    one = agreement.agreement({1: {"a": (1, 2, 3), "b": (1, 3, 2)}})
    assert one.percent.value == pytest.approx(2 / 3)
    assert one.percent.low is None
    nothing = agreement.agreement({1: {"a": (1, 2)}})
    assert nothing.percent.value is None
    assert nothing.tasks == 0


VOTES = [[1, 1, 1], [2, 2, 1], [0, 0, 0], [0, 1, 1], [2, None, 2], [1, 2, 0], [None, None, 2], [2, 2, 2], [0, 2, 0]]


def rows() -> list[dict]:
    """Made-up pairs with ties, missing votes, and one pair twice."""
    texts = [f"answer {number % 8}" for number in range(len(VOTES))]
    return [
        {"prompt": f"Question {number % 8}", "response_a": text, "response_b": f"other {text}", "votes": given}
        for number, (text, given) in enumerate(zip(texts, VOTES, strict=True))
    ]


def compare(folder: Path, read: list[dict]) -> None:
    workspace = open_workspace(folder, "no-model", seed_file=None)
    benchmark.record(workspace, read)
    ours = benchmark.figures(quality.measure(workspace.store.db, FIRST))
    theirs = benchmark.independent([row["votes"] for row in read])
    assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    assert ours["all tau undefined"] > 0


def test_what_the_page_shows_of_recorded_votes_is_what_others_compute(tmp_path: Path) -> None:
    compare(tmp_path, rows())
