"""Curves: round ticks, finite values only, bounded size, and nothing of a run's text becomes markup."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from labeler.ui import plots
from training.config import METHODS


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.31, 0.69, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
        (7, 7, [6, 6.5, 7, 7.5, 8]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: list[float]) -> None:
    assert plots.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (10.159, 10.1625, ["10.159", "10.16", "10.161", "10.162", "10.163"]),
        (0, 1, ["0", "0.25", "0.5", "0.75", "1"]),
        (-0.034, 0, ["-0.04", "-0.03", "-0.02", "-0.01", "0"]),
        (0, 30_000, ["0", "10k", "20k", "30k"]),
    ],
)
def test_tick_labels_tell_neighbours_apart(low: float, high: float, expected: list[str]) -> None:
    found = plots.ticks(low, high)
    assert [plots.tick_label(tick, found[1] - found[0]) for tick in found] == expected


def test_missing_and_infinite_values_are_left_out() -> None:
    rows = [{"step": 1, "loss": 0.5}, {"step": 2}, {"step": 3, "loss": None}, {"step": 4, "loss": float("nan")}]
    assert plots.series([*rows, {"step": 5, "loss": 0.25}, {"loss": 1}], "loss") == [(1, 0.5), (5, 0.25)]


def test_long_runs_are_thinned_without_losing_the_end() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    thinned = plots.thin(points)
    assert len(thinned) <= plots.MAX_POINTS
    assert thinned[-1][0] == 9999
    assert {value for _, value in thinned} <= {0.5, 0.48, 0.52} or all(0.4 < v < 0.6 for _, v in thinned)


@pytest.mark.parametrize("method", METHODS)
def test_key_metrics_come_first_with_a_sentence(method: str) -> None:
    names = [name for panel in plots.PANELS[method] for name in panel.names]
    rows = [{"step": step, **dict.fromkeys(names, step / 10), "lr": 1e-4} for step in range(1, 4)]
    html = plots.key_curves(method, rows)
    assert html.count("<figure>") == len(plots.PANELS[method])
    assert html.count('class="good"') == len(plots.PANELS[method])
    assert "lr" in plots.other_curves(method, rows)
    assert plots.other_curves(method, rows).count("<figure>") == 1
    ElementTree.fromstring(html)  # well-formed


def test_a_curve_moves_with_its_data() -> None:
    rows = [{"step": 1, "loss": 0.7}]
    more = [*rows, {"step": 2, "loss": 0.6}]
    drawn = [ElementTree.fromstring(plots.key_curves("reward", given)).find(".//polyline") for given in (rows, more)]
    assert [len(line.attrib["points"].split()) for line in drawn if line is not None] == [1, 2]
    assert plots.key_curves("reward", []) == ""


def test_hostile_names_stay_text() -> None:
    name = "<script>alert(1)</script>"
    html = plots.other_curves("dpo", [{"step": 1, name: 1.0}])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
