"""Tasks get the order and the provenance that a real committee's scores give them, through the real queue."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from data.records import InputError
from labeler import checkpoints, jobs, new_jobs, selection, tasks, worker
from labeler.__main__ import main
from labeler.disagreement import disagreement
from labeler.projects import FIRST, change_project, create_project
from labeler.rankings import record_ranking
from labeler.store import rows, scalar
from labeler.ui import run_view
from labeler.ui.runs import runs_table
from labeler.ui.selection import state_html
from labeler.users import User, ensure_user, local_owner
from labeler.worker import Worker
from labeler.workspace import Workspace, open_workspace
from tests.labeler.labels import make_workspace, new_id, rank
from tests.labeler.studio import untrained_reward_model, wait_for

AGREE = [[2.0, 2.0, 2.1], [0.0, 0.0, 0.0], [-2.0, -2.0, -2.0], [-4.0, -4.0, -4.0]]
DIFFER = [[2.0, -2.0, 0.0], [0.0, 0.0, 0.0], [-2.0, 2.0, 1.0], [4.0, -4.0, -1.0]]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path, 4)


def scored(workspace: Workspace, ensembles: dict[int, Any]) -> list[dict[str, Any]]:
    """The project's tasks as `python -m training score` gives them back; the model's own score is the first head's."""
    found = []
    for row in selection.task_rows(workspace.store, FIRST):
        ensemble = ensembles[row["task"]]
        added = {"error": "too long"} if ensemble is None else {"ensemble_scores": ensemble}
        found.append(row | added | {"scores": [scores[0] for scores in ensemble or ()]})
    return found


def stored(workspace: Workspace, task_id: int) -> dict[str, Any]:
    (row,) = rows(workspace.store.db, "SELECT * FROM tasks WHERE id = ?", [task_id])
    return row | {"provenance": json.loads(row["provenance"]) if row["provenance"] else None}


def in_active_order(workspace: Workspace) -> list[int]:
    sql = "SELECT id FROM tasks WHERE project_id = ? AND submissions < overlap ORDER BY priority DESC, id"
    return [row["id"] for row in rows(workspace.store.db, sql, [FIRST])]


def test_what_the_heads_disagree_on_comes_first_and_says_why(workspace: Workspace) -> None:
    before = time.time()
    result = selection.apply(workspace.store, scored(workspace, {1: AGREE, 2: None, 3: DIFFER, 4: AGREE}), 7)
    assert in_active_order(workspace) == [3, 1, 4, 2]
    found = stored(workspace, 3)
    assert found["priority"] == pytest.approx(disagreement(DIFFER))
    at = found["provenance"].pop("at")
    assert before <= at <= time.time()
    assert found["provenance"] == {
        "selected_by": "ensemble", "checkpoint": 7, "disagreement": found["priority"], "heads": 3,
    }  # fmt: skip
    assert stored(workspace, 2)["provenance"] is None, "it could not be scored"
    assert result["tasks"] == 3
    assert result["skipped"] == 1
    assert result["least_sure"][0] == (3, found["priority"])


def test_what_else_is_known_of_a_task_stays(workspace: Workspace) -> None:
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET provenance = ? WHERE id = 1", [json.dumps({"file": "a.csv"})])
    selection.apply(workspace.store, scored(workspace, {1: DIFFER, 2: AGREE, 3: AGREE, 4: AGREE}), 7)
    assert stored(workspace, 1)["provenance"]["file"] == "a.csv"
    assert stored(workspace, 1)["provenance"]["selected_by"] == "ensemble"


def test_tasks_are_read_with_what_was_said_of_them(workspace: Workspace) -> None:
    rank(workspace, [4, 3, 2, None])
    create_project(workspace.store, local_owner(workspace.store), "Other")
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET gold_ranks = '[1, 2, 3, 4]' WHERE id = 2")
        db.execute("UPDATE tasks SET project_id = 2 WHERE id = 3")
    first, last = selection.task_rows(workspace.store, FIRST)
    assert (first["task"], first["open"], first["rankings"]) == (1, False, [[4, 3, 2, None]])
    assert (last["task"], last["open"], last["rankings"]) == (4, True, [])
    assert last["prompt"] == [{"role": "user", "content": "Question 4?"}]
    assert last["completions"] == [f"answer {letter} to 4" for letter in "abcd"]
    assert last["finish_reasons"] == ["stop"] * 4


def test_many_tasks_are_read_and_written_in_batches(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BATCH", 3)
    assert [row["task"] for row in selection.task_rows(workspace.store, FIRST)] == [1, 2, 3, 4]
    found = scored(workspace, {1: AGREE, 2: AGREE, 3: AGREE, 4: DIFFER})
    assert selection.apply(workspace.store, found, 7)["tasks"] == 4
    assert in_active_order(workspace)[0] == 4


def test_a_second_opinion_where_the_model_contradicts_a_person(workspace: Workspace) -> None:
    rank(workspace, [4, 3, 2, 1])  # task 1: the opposite of AGREE
    rank(workspace, [1, 2, 3, 4])  # task 2: what AGREE says
    ensembles = {1: AGREE, 2: AGREE, 3: DIFFER, 4: AGREE}
    told = selection.apply(workspace.store, scored(workspace, ensembles), 7)
    assert (told["contradicted"], told["ranked"]) == (1, 2)
    assert stored(workspace, 1)["overlap"] == 1, "nobody asked for one"
    selection.apply(workspace.store, scored(workspace, ensembles), 7, second_opinions=True)
    found = stored(workspace, 1)
    assert found["overlap"] == 2
    assert found["provenance"]["selected_by"] == "confident disagreement"
    assert found["provenance"]["confidence"] > 0.9
    assert in_active_order(workspace) == [1, 3, 4]
    assert [stored(workspace, task)["overlap"] for task in (2, 3, 4)] == [1, 1, 1]
    again = list(selection.task_rows(workspace.store, FIRST))
    assert [row["task"] for row in again] == [2, 3, 4], "it is asked for once"
    other = ensure_user(workspace.store.db, "second")
    workspace.store.db.conn.commit()
    mine = tasks.next_assignment(workspace.store, local_owner(workspace.store))
    theirs = tasks.next_assignment(workspace.store, other)
    assert mine is not None
    assert mine.task_id != 1, "the first person is not asked again"
    assert theirs is not None
    assert theirs.task_id == 1


def test_a_task_that_waits_for_more_people_needs_no_more_of_them(workspace: Workspace) -> None:
    rank(workspace, [4, 3, 2, 1])
    with workspace.store.write() as db:
        db.execute("UPDATE tasks SET overlap = 3 WHERE id = 1")
    ensembles = dict.fromkeys(range(1, 5), AGREE)
    selection.apply(workspace.store, scored(workspace, ensembles), 7)
    assert stored(workspace, 1)["provenance"]["selected_by"] == "ensemble"
    selection.apply(workspace.store, scored(workspace, ensembles), 8, second_opinions=True)
    found = stored(workspace, 1)
    assert found["overlap"] == 3
    assert set(found["provenance"]) == {"selected_by", "confidence", "checkpoint", "heads", "at"}


def test_what_was_adjudicated_is_settled(workspace: Workspace) -> None:
    rank(workspace, [4, 3, 2, 1])
    with workspace.store.write() as db:
        db.execute("UPDATE assignments SET purpose = 'adjudicate'")
    (first, *_) = selection.task_rows(workspace.store, FIRST)
    assert first["rankings"] == []


def test_who_may_not_order_is_told_so(workspace: Workspace) -> None:
    eve = User(2, "eve", "annotator")
    with pytest.raises(InputError, match="ask a lead"):
        selection.create(workspace, eve, FIRST, 1)
    with pytest.raises(InputError, match="ask a researcher"):
        selection.stop(workspace, eve, "0001-select")


def test_what_cannot_be_ordered_is_said(workspace: Workspace) -> None:
    owner = local_owner(workspace.store)
    with pytest.raises(InputError, match="a reward model is needed here"):
        selection.create(workspace, owner, FIRST, workspace.base_checkpoint_id)
    with pytest.raises(InputError, match="heads must be from 3"):
        selection.create(workspace, owner, FIRST, workspace.base_checkpoint_id, heads=2)
    assert main(["--workspace", str(workspace.folder), "--base-model", "tiny-model", "select", "--project", "x"]) == 1
    assert jobs.list_jobs(workspace.store) == []


# -- with a model ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_model(tmp_path: Path, tiny_model: Path) -> Workspace:
    """Four tasks, two of them ranked, and a reward model that was never trained."""
    seeded = make_workspace(tmp_path, 4)
    workspace = open_workspace(seeded.folder, str(tiny_model), seed_file=None)
    rank(workspace, [1, 2, 3, 4])
    rank(workspace, [4, 3, 2, 1])
    untrained_reward_model(workspace)
    return workspace


def test_the_command_orders_a_project(with_model: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = with_model
    words = ["--workspace", str(workspace.folder), "--base-model", workspace.base_model, "select"]
    assert main([*words, "--project", "first PROJECT", "--heads", "3"]) == 0
    told = capsys.readouterr().out
    assert "2 tasks of First project ordered by 3 heads of reward/0001 step 1; the least sure: “Question" in told
    assert "set it to active" in told
    found = [stored(workspace, task) for task in (3, 4)]
    assert all(0 < row["priority"] == row["provenance"]["disagreement"] < 0.5 for row in found)
    assert found[0]["priority"] != found[1]["priority"]
    assert found[0]["provenance"]["checkpoint"] == checkpoints.list_checkpoints(workspace, ["reward"])[0].id
    (job,) = jobs.list_jobs(workspace.store)
    assert (job.method, job.state) == ("select", "finished")
    data = [json.loads(line) for line in Path(job.config["data"]).read_text().splitlines()]
    assert [row["ranks"] for row in data] == [[1, 2, 3, 4], [4, 3, 2, 1]], "what was said until now"
    in_runs = run_view.head(workspace, job, worker.read_status(workspace.runs_folder / job.id))
    assert "scored by reward/0001 step 1" in in_runs
    assert "12 comparisons" in in_runs
    assert "select/0002" in runs_table(workspace, [job], "")
    change_project(workspace.store, local_owner(workspace.store), FIRST, task_order="active")
    assert "set it to active" not in state_html(workspace, job)


def test_it_waits_for_a_run_and_can_be_stopped(with_model: Workspace) -> None:
    workspace, owner = with_model, local_owner(with_model.store)
    (model,) = checkpoints.list_checkpoints(workspace, ["reward"])
    training = new_jobs.create(workspace, owner, "reward", {})
    assert jobs.claim(workspace.store) is not None
    job_id = selection.create(workspace, owner, FIRST, model.id)
    assert jobs.claim(workspace.store) is None, "one run at a time"
    selection.stop(workspace, owner, job_id)
    assert jobs.get(workspace.store, job_id).state == "stopped"
    with pytest.raises(InputError, match="may not stop this"):
        selection.stop(workspace, owner, training)
    jobs.close(workspace.store, training, "stopped", None, None)
    job_id = selection.create(workspace, owner, FIRST, model.id)
    at_work = Worker(workspace, poll_seconds=0.02)
    at_work.start()
    try:
        wait_for(lambda: jobs.get(workspace.store, job_id).pid)
        selection.stop(workspace, owner, job_id)
        wait_for(lambda: jobs.get(workspace.store, job_id).state == "stopped")
    finally:
        at_work.stop()
    assert scalar(workspace.store.db, "SELECT max(priority) FROM tasks") == 0


def test_ctrl_c_in_the_command_stops_the_run(with_model: Workspace) -> None:
    workspace, owner = with_model, local_owner(with_model.store)
    (model,) = checkpoints.list_checkpoints(workspace, ["reward"])

    def press(job: jobs.Job) -> None:
        raise KeyboardInterrupt

    job = selection.wait(workspace, selection.create(workspace, owner, FIRST, model.id), press, poll_seconds=0.05)
    assert job.state == "stopped"


def test_a_scorer_that_fails_says_why(with_model: Workspace) -> None:
    workspace, owner = with_model, local_owner(with_model.store)
    (model,) = checkpoints.list_checkpoints(workspace, ["reward"])
    job_id = selection.create(workspace, owner, FIRST, model.id)
    (workspace.folder / str(model.path) / "adapter_config.json").unlink()
    job = selection.wait(workspace, job_id, lambda job: None, poll_seconds=0.05)
    assert job.state == "failed"
    assert job.error is not None
    assert "is no adapter" in job.error
    assert "Order them again" in state_html(workspace, job)


def test_prompts_are_text_in_the_page(workspace: Workspace) -> None:
    hostile = "<script>alert(1)</script>"
    with workspace.store.write() as db:
        db.execute("UPDATE prompts SET messages = ?", [json.dumps([{"role": "user", "content": hostile}])])
        task = tasks.create_task(db, 1, [1, 2], project_id=FIRST)
        record_ranking(db, local_owner(workspace.store), task, [1, 2], source="task", event_id=new_id())
        db.execute(
            "INSERT INTO checkpoints (name, kind, path, base_model) VALUES ('r', 'reward', 'r', ?)",
            [workspace.base_model],
        )
    (workspace.folder / "r").mkdir()
    (workspace.folder / "r" / "manifest.json").write_text("{}")
    (model,) = checkpoints.list_checkpoints(workspace, ["reward"])
    job_id = selection.create(workspace, local_owner(workspace.store), FIRST, model.id)
    jobs.claim(workspace.store)
    result = selection.apply(
        workspace.store, scored(workspace, dict.fromkeys(range(1, 5), AGREE) | {task: AGREE[:2]}), 1
    )
    jobs.close(workspace.store, job_id, "finished", None, result)
    drawn = state_html(workspace, jobs.get(workspace.store, job_id))
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn
