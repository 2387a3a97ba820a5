"""The Quality page's figures: each sign finds its kind, honest people are left alone, the rest counts what it says."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import annotators
from labeler import opinions, quality, tasks
from labeler.agreement import agreement
from labeler.events import Event
from labeler.projects import FIRST
from labeler.quality import dense, guessing, measure, pattern, position, speed_scores, wilson
from labeler.rankings import record_event, record_ranking
from labeler.store import scalar
from labeler.ui.quality_view import figures_html, people_html
from labeler.users import ensure_user
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank

HOSTILE = "<img src=x onerror=alert(1)>"


def test_wilson_is_the_textbooks() -> None:
    # Newcombe (1998), table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_position_counts_first_places_in_part_and_ignores_unranked_first_cards() -> None:
    found = position([(1, 2), (1, 1), (2, 1), (None, 1, 2), (1, 1, 3, 4)])
    assert found.score.n == 4
    assert found.score.value == pytest.approx(((1 + 0.5 + 0 + 0.5) / 4 - (0.5 * 3 + 0.25) / 4) / (1 - 1.75 / 4))
    assert found.state == "few"
    assert position([(1, 2, 3)] * 30).state == "look"
    assert position([(1, 2), (2, 1)] * 15).state == "fine"
    assert position([]).score.value is None


def test_pattern_finds_any_pattern_that_comes_again() -> None:
    random = np.random.default_rng(0)
    honest = [tuple(1 + random.permutation(4)) for _ in range(60)]
    pool = quality._pool(honest * 10)
    assert pattern(honest, pool).state == "fine"
    for habit in ((4, 3, 2, 1), (1, 1, 1, 1), (2, 1, 3, 4), (None, None, None, None)):
        found = pattern([habit] * 60, pool)
        assert found.state == "look"
        assert found.score.value is not None
        assert found.score.value > 0.95
    assert dense((2, 5, None, 2)) == (1, 2, None, 1)


def test_speed_is_judged_by_the_length_of_the_text() -> None:
    random = np.random.default_rng(0)

    def paces(factor: float, length: float) -> np.ndarray:
        characters = length * np.exp(random.normal(0, 0.5, 40))
        return np.stack([factor * characters / 25 * np.exp(random.normal(0, 0.3, 40)), characters], 1)

    people = {who: paces(1.0, 2000) for who in range(8)} | {
        8: paces(1.0, 400),
        9: paces(0.1, 2000),
        10: paces(10, 2000),
    }
    found = speed_scores(people | {11: np.zeros((0, 2))})
    assert {who for who, one in found.items() if one.state == "look"} == {9}
    assert "times as slow" in found[10].seen
    assert found[11].state == "few"
    assert 8 < float(found[9].seen.split(",")[1].split()[0]) < 12


def test_guessing_needs_enough_to_say_so() -> None:
    assert guessing(np.array([[3.0, 6.0, 0.0, 6.0]] * 30)).state == "look"
    assert guessing(np.array([[6.0, 6.0, 6.0, 6.0]] * 30)).state == "fine"
    assert guessing(np.array([[3.0, 6.0, 0.0, 6.0]] * 5)).state == "few"
    assert guessing(np.zeros((0, 4))).score.value is None


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Twelve tasks of which two have known answers; ann ranks as is known, ben the other way round, both on all."""
    workspace = make_workspace(tmp_path, 12)
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 2")
        ann, ben = ensure_user(db, "ann"), ensure_user(db, HOSTILE)
    for _ in range(12):
        rank(workspace, [1, 2, 3, 4], ann)
        rank(workspace, [4, 3, 2, 1], ben)
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET gold_ranks = '[1, 2, 3, 4]' WHERE id > 10")
    return workspace


def repeat(workspace: Workspace, name: str, task_id: int, ranks: list[int]) -> None:
    """The same person is asked the same task again."""
    with workspace.store.write() as db:
        user = ensure_user(db, name)
        order = str(tasks.completion_ids(db, task_id))
        cursor = db.execute(
            "INSERT INTO assignments (task_id, user_id, purpose, display_order, state, opened_at, leased_until)"
            " VALUES (?, ?, 'repeat', ?, 'submitted', 0, 0)",
            [task_id, user.id, order],
        )
        record_event(workspace.store, user, Event(new_id(), int(cursor.lastrowid or 0), "submit", ranks, seconds=9.0))


def test_known_answers_and_repeats_are_figures_of_their_own(workspace: Workspace) -> None:
    repeat(workspace, "ann", 1, [1, 2, 3, 4])
    repeat(workspace, "ann", 2, [1, 2, 4, 3])
    found = measure(workspace.store.db, FIRST)
    assert (found.overall.tasks, found.overall.percent.value) == (10, 0.0)  # without the two known ones
    assert found.overall.tau.value == -1.0
    people = {one.name: one for one in found.annotators}
    assert (people["ann"].gold.value, people["ann"].gold.n) == (1.0, 12)
    assert people[HOSTILE].gold.value == 0.0
    assert found.gold.value == 0.5
    assert people["ann"].retest.value == pytest.approx(11 / 12)
    assert people[HOSTILE].retest.value is None
    assert people["ann"].rankings == 12  # a repeat is no new label
    assert list(found.pairs.values()) == [found.overall]
    assert measure(workspace.store.db, FIRST, limit=4).cut


def test_what_was_measured_is_remembered_until_something_changes(workspace: Workspace) -> None:
    first = measure(workspace.store.db, FIRST)
    assert measure(workspace.store.db, FIRST) is first
    with workspace.store.write() as db:
        db.execute("UPDATE users SET name = 'anna' WHERE name = 'ann'")
    assert {one.name for one in measure(workspace.store.db, FIRST).annotators} == {"anna", HOSTILE}
    repeat(workspace, "anna", 1, [1, 2, 3, 4])
    assert measure(workspace.store.db, FIRST).retest.value == 1.0
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET gold_ranks = NULL")
    assert measure(workspace.store.db, FIRST).gold.value is None


def test_imports_say_nothing_about_positions(workspace: Workspace) -> None:
    with workspace.store.write() as db:
        cem = ensure_user(db, "cem")
        task_id = scalar(db, "SELECT max(id) FROM tasks")
        db.execute("UPDATE tasks SET overlap = 3")
        record_ranking(db, cem, task_id, [1, 2, 3, 4], source="import", event_id=new_id())
    found = {one.name: one for one in measure(workspace.store.db, FIRST).annotators}
    assert found["cem"].suspicions["position"].state == "few"
    assert found["cem"].suspicions["position"].score.n == 0


def test_time_goes_by_weeks_where_there_are_four(workspace: Workspace) -> None:
    said = [one for one in opinions.read(workspace.store.db, FIRST) if one.gold is None]
    ranked = opinions.by_task(said)
    ((name, one),) = quality._periods(said, ranked)
    assert name == "tasks 1 to 10"
    assert one == agreement(ranked)
    now = time.time()
    spread = [opinions.Opinion(**(vars(one) | {"created_at": now + one.task_id * quality.WEEK})) for one in said]
    weeks = quality._periods(spread, ranked)
    assert len(weeks) == 10
    assert all(one.tasks == 1 for _, one in weeks)


def test_the_page_shows_figures_and_no_markup_of_others(workspace: Workspace) -> None:
    found = measure(workspace.store.db, FIRST)
    figures, people = figures_html(found), people_html(found)
    assert "0.0%" in figures
    assert "n = 60 pairs of votes" in figures
    assert "&lt;img" in people
    assert "<img" not in figures + people
    assert people.count("▲ look") >= 1
    empty = measure(workspace.store.db, 99)
    assert "No two people have ranked the same task yet" in figures_html(empty)
    assert "Nobody has ranked anything" in people_html(empty)


def test_simulated_annotators_are_found_and_weighting_helps() -> None:
    """The benchmark, small: 16 annotators, 240 tasks, twelve seeds. Its own runs are larger."""
    found = [annotators.simulate(seed, annotators=16, count=240) for seed in range(12)]
    for kind in annotators.KINDS:
        assert np.mean([one["areas"][kind]["honest"] for one in found]) > 0.9, kind
    assert annotators.interval([one["gain"] for one in found])[0] > 0
