"""Fitted reliability: the careful above the careless, guessing near one half, the same as of an earlier event."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.formats import read_rows
from labeler import reliability, snapshots
from labeler.agreement import Tasks
from labeler.projects import FIRST
from labeler.reliability import KNOWN, dawid_skene, fit, share_right
from labeler.store import scalar
from labeler.users import ensure_user
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, rank


def crowd(sharpness: list[float], tasks: int, completions: int, seed: int = 0) -> Tasks:
    """Everybody ranks every task by a Plackett-Luce model at their own sharpness."""
    random = np.random.default_rng(seed)
    found = {}
    for task in range(tasks):
        reward = random.standard_normal(completions)
        scores = [sharp * reward + random.gumbel(size=completions) for sharp in sharpness]
        found[task] = {who: tuple((1 + np.argsort(np.argsort(-s))).tolist()) for who, s in enumerate(scores)}
    return found


@pytest.mark.parametrize("completions", [2, 4])
def test_the_true_shares_are_found(completions: int) -> None:
    sharpness = [3.0, 1.5, 0.7, 0.0]
    found = fit(crowd(sharpness, 150, completions))
    rights = [found[who].right for who in range(4)]
    assert [figure.value for figure in rights] == sorted((figure.value for figure in rights), reverse=True)
    covered = 0
    for figure, sharp in zip(rights, sharpness, strict=True):
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low <= share_right(sharp) <= figure.high
        assert figure.n == 150 * (completions - 1)
    assert covered >= 3
    assert found[3].weight < 0.2 < found[0].weight <= 1


def test_dawid_and_skene_order_people_alike() -> None:
    tasks = crowd([3.0, 1.5, 0.7, 0.0], 150, 4)
    found = dawid_skene(tasks)
    assert sorted(found, key=lambda who: -found[who]) == [0, 1, 2, 3]


def test_who_is_opposed_weighs_nothing_and_who_only_ties_little() -> None:
    tasks = {
        number: {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 3, 2), "upside down": (3, 2, 1), "ties": (1, 1, 1)}
        for number in range(30)
    }
    found = fit(tasks)
    assert found["upside down"].weight == 0.0
    assert found["ties"].weight < 0.25 < found["a"].weight


def test_known_answers_decide_where_two_disagree() -> None:
    tasks = {number: {"a": (1, 2), "b": (2, 1), "gold": (1, 2)} for number in range(20)}
    found = fit(tasks, {"gold": KNOWN})
    assert set(found) == {"a", "b"}
    assert found["b"].weight == 0.0 < 0.5 < found["a"].weight


def test_who_shares_no_task_is_thought_to_be_like_the_others() -> None:
    tasks = {number: {"a": (1, 2), "b": (1, 2)} for number in range(20)} | {99: {"alone": (1, 2)}}
    found = fit(tasks)
    assert found["alone"].right.n == 0
    assert 0.4 < found["alone"].weight < found["a"].weight == found["b"].weight
    assert fit({}) == {}


def labelled(folder: Path) -> Workspace:
    """Ten tasks: ann and ben agree, cem says the opposite."""
    workspace = make_workspace(folder, 10)
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 3")
        people = {name: ensure_user(db, name) for name in ("ann", "ben", "cem")}
    for _ in range(10):
        rank(workspace, [1, 2, 3, 4], people["ann"])
        rank(workspace, [1, 2, 4, 3], people["ben"])
        rank(workspace, [4, 3, 2, 1], people["cem"])
    return workspace


def test_a_snapshot_weights_by_reliability(tmp_path: Path) -> None:
    workspace = labelled(tmp_path)
    db = workspace.store.db
    weights = reliability.weights(db, FIRST)
    by_name = {
        name: weights[scalar(db, "SELECT id FROM users WHERE name = ?", [name])] for name in ("ann", "ben", "cem")
    }
    assert by_name["cem"] == 0.0 < 0.3 < by_name["ann"] <= 1
    snapshots.write_snapshot(workspace.store, tmp_path / "plain.jsonl", "preferences", {}, None)
    made = snapshots.write_snapshot(
        workspace.store, tmp_path / "weighted.jsonl", "preferences", {"weight_by_reliability": True}, None
    )
    plain = [row for _, row in read_rows(tmp_path / "plain.jsonl")]
    weighted = [row for _, row in read_rows(tmp_path / "weighted.jsonl")]
    assert (len(plain), len(weighted)) == (30, 20)  # who weighs nothing is left out
    assert {row["weight"] for row in plain} == {1.0}
    for row in weighted:
        assert row["weight"] == pytest.approx(by_name[row["annotator"]])

    # the same bytes later, though more was said since
    filters = json.loads(scalar(db, "SELECT filters FROM snapshots WHERE id = ?", [made.id]))
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 4")
        dan = ensure_user(db, "dan")
    for _ in range(10):
        rank(workspace, [4, 3, 2, 1], dan)
    again = snapshots.write_snapshot(workspace.store, tmp_path / "again.jsonl", "preferences", filters, None)
    assert again.sha256 == made.sha256
    now = snapshots.write_snapshot(
        workspace.store, tmp_path / "now.jsonl", "preferences", {"weight_by_reliability": True}, None
    )
    assert now.sha256 != made.sha256
