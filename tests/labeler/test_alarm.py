"""The over-optimisation alarm: figures that raise it, figures that must not, and the votes it is fed with."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest

from labeler import alarm, jobs, new_jobs
from labeler.alarm import Estimate, Point, Vote, over_optimisation, votes_of_run, win_rates
from labeler.rankings import record_comparison
from labeler.ui import run_alarm
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace


def voted(step: int, won: int, n: int, score: float | None) -> Point:
    """A checkpoint with `won` of `n` votes, each on a prompt of its own."""
    votes = [Vote(step, prompt, 1, float(prompt < won)) for prompt in range(n)]
    return Point(step, score, wins=win_rates(votes)[step])


def test_votes_fall_while_the_score_rises() -> None:
    (found,) = over_optimisation([voted(50, 33, 40, 1.0), voted(100, 14, 40, 2.0)])
    assert (found.what, found.best_step, found.step) == ("wins", 50, 100)
    assert found.fall == pytest.approx(19 / 40)
    assert found.score_rise == pytest.approx(1)
    assert "from step 50 to step 100" in run_alarm.told(found)


def test_a_best_checkpoint_without_a_score_hides_nothing() -> None:
    points = [voted(0, 36, 40, None), voted(50, 33, 40, 1.0), voted(100, 14, 40, 2.0)]
    assert [found.best_step for found in over_optimisation(points)] == [50]


def test_it_is_the_best_earlier_checkpoint_that_counts() -> None:
    points = [voted(25, 20, 40, 0.5), voted(50, 34, 40, 1.0), voted(75, 24, 40, 1.5), voted(100, 12, 40, 2.0)]
    assert [(found.best_step, found.step) for found in over_optimisation(points)] == [(50, 100)]


@pytest.mark.parametrize(
    "points",
    [
        [],
        [voted(50, 33, 40, 1.0)],
        [voted(50, 33, 40, 2.0), voted(100, 14, 40, 1.0)],  # the score falls too: nothing is being gamed
        [voted(50, 24, 40, 1.0), voted(100, 20, 40, 2.0)],  # 0.1 is less than two errors of 40 votes
        [voted(50, 8, 8, 1.0), voted(100, 1, 8, 2.0)],  # too few votes
        [voted(50, 14, 40, 1.0), voted(100, 33, 40, 2.0)],  # people like it better
        [voted(50, 33, 40, None), voted(100, 14, 40, None)],  # no score to distrust
    ],
)
def test_what_must_not_raise_it(points: list[Point]) -> None:
    assert over_optimisation(points) == []


def test_a_held_out_reward_model_raises_it_too() -> None:
    points = [Point(10, 1.0, held_out=Estimate(0.8, 0.1, 32)), Point(20, 1.5, held_out=Estimate(0.4, 0.1, 32))]
    (found,) = over_optimisation(points)
    assert (found.what, found.error) == ("held_out", pytest.approx(0.1414, abs=1e-4))
    near = [points[0], Point(20, 1.5, held_out=Estimate(0.55, 0.1, 32))]
    assert over_optimisation(near) == []


def test_how_often_it_goes_off_for_nothing_and_how_often_it_sees_a_fall() -> None:
    """Five checkpoints, 40 votes each: equally good ones, and ones of which the last loses what the third had gained.

    One comparison would cry wolf in 2.3% of cases; four, with the best of them, in a few more.
    """
    rng = random.Random(0)

    def share_of_alarms(chances: list[float], times: int = 400) -> float:
        went_off = 0
        for _ in range(times):
            points = [
                voted(10 * k, sum(rng.random() < chance for _ in range(40)), 40, float(k))
                for k, chance in enumerate(chances)
            ]
            went_off += bool(over_optimisation(points))
        return went_off / times

    assert share_of_alarms([0.6] * 5) < 0.1
    assert share_of_alarms([0.5, 0.65, 0.8, 0.6, 0.4]) > 0.9


def test_votes_on_one_prompt_are_one_cluster() -> None:
    alone = win_rates([Vote(1, prompt, 1, float(prompt % 2)) for prompt in range(40)])[1]
    crowd = win_rates([Vote(1, prompt, user, float(prompt % 2)) for prompt in range(4) for user in range(10)])[1]
    assert alone.mean == crowd.mean == 0.5
    assert crowd.error > 2 * alone.error
    certain = win_rates([Vote(1, prompt, 1, 1.0) for prompt in range(10)])[1]
    assert certain.error > 0.05, "ten of ten is not certainty"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path)


def add_checkpoint(workspace: Workspace, run_id: str, step: int) -> int:
    with workspace.store.write() as db:
        row = {"name": f"{run_id} {step}", "kind": "policy", "run_id": run_id, "step": step, "path": f"x/{step}"}
        db.table("checkpoints").insert(row | {"base_model": "no-model", "parent_id": workspace.base_checkpoint_id})
        return int(db.execute("SELECT max(id) FROM checkpoints").fetchone()[0])


def vote(workspace: Workspace, ids: list[int], ranks: list[int | None], number: int, **more: object) -> None:
    settings = {"blind": more.pop("blind", True)}
    record_comparison(
        workspace.store, local_owner(workspace.store),
        [{"role": "user", "content": f"Question {number}"}],
        [(f"answer {uuid.uuid4()}", checkpoint, settings) for checkpoint in ids], ranks,
        event_id=str(uuid.uuid4()), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_votes_of_a_run_are_the_blind_ones_against_where_it_started(workspace: Workspace) -> None:
    run_id = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})
    early, late = (add_checkpoint(workspace, run_id, step) for step in (50, 100))
    other = add_checkpoint(workspace, "0009-dpo", 7)
    base = workspace.base_checkpoint_id
    vote(workspace, [early, base], [1, 2], 1)
    vote(workspace, [base, late], [1, 2], 2)
    vote(workspace, [late, base], [1, 1], 3)
    vote(workspace, [early, late, base], [2, 1, 3], 4)
    vote(workspace, [early, base], [1, 2], 5, blind=False)
    vote(workspace, [early, base], [1, 2], 6, all_bad=True)
    vote(workspace, [early, other], [1, 2], 8)
    vote(workspace, [early, early, base, base], [1, 4, 2, 3], 9)  # one ranking is one vote, its pairs a share
    found = votes_of_run(workspace.store, run_id)
    assert [(vote.step, vote.outcome) for vote in found] == [
        (50, 1.0), (100, 0.0), (100, 0.5), (50, 1.0), (100, 1.0), (50, 0.5),
    ]  # fmt: skip
    assert votes_of_run(workspace.store, "0009-dpo") == []

    metrics = [{"step": step, "objective/score": step / 50, "objective/kl": step / 10} for step in (50, 100)]
    points = alarm.points_of_run(metrics, [], found)
    assert [(point.step, point.score, point.kl) for point in points] == [(50, 1.0, 5.0), (100, 1.5, 7.5)]
    job = jobs.get(workspace.store, run_id)
    assert "n = 3" in run_alarm.view(workspace.store, job, metrics, [])
    assert "No alarm" in run_alarm.view(workspace.store, job, metrics, [])
