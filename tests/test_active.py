"""The benchmark of active selection, small: both orders begin alike, learn, and are told apart with an interval."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks import active


def test_both_orders_begin_alike_and_learn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["active", "--worlds", "topics", "--seeds", "3", "--rounds", "4"])
    assert active.main() == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["worlds"]["topics"]
    assert found["n"] == [8, 16, 24, 32]
    curves = found["accuracy"]
    assert curves["random"][0] == curves["active"][0] == curves["margin"][0]
    assert curves["random"][1:] != curves["active"][1:] != curves["margin"][1:]
    assert all(0.5 < curve[0] < curve[-1] < 1 for curve in curves.values())
    mean, low, high = found["minus random"]["active"]["over all n"]
    expected = np.mean(np.subtract(curves["active"], curves["random"])[1:])
    assert mean == pytest.approx(expected, abs=2e-4)
    assert low <= mean <= high


def test_every_order_ranks_the_whole_pool_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task once, so that all have learned the same then."""
    monkeypatch.setattr(active, "TASKS", 12)
    tasks = active.simulate("even", 0)
    ends = [active.learn(tasks, order, 0, batch=2, rounds=4, heads=3)[-1] for order in active.ORDERS]
    assert ends == pytest.approx([ends[0]] * 3)
