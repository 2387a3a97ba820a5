"""Runs as rows: creating, queueing, stopping and resuming them."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path

import pytest

from data.records import InputError
from labeler import jobs, new_jobs
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace
from training.config import METHODS
from training.knobs import from_dict, to_dict


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path / "work space")


def create(workspace: Workspace, method: str = "dpo", **settings: object) -> str:
    return new_jobs.create(workspace, local_owner(workspace.store), method, dict(settings))


def test_a_new_run_has_a_folder_that_says_everything(workspace: Workspace) -> None:
    job_id = create(workspace, beta=0.25, max_steps=7)
    folder = workspace.runs_folder / job_id
    job = jobs.get(workspace.store, job_id)
    assert (job.id, job.state, job.method) == ("0001-dpo", "queued", "dpo")
    assert job.parent_checkpoint_id == workspace.base_checkpoint_id
    values = json.loads((folder / "config.json").read_text())
    assert values == job.config
    assert (values["beta"], values["max_steps"], values["base_model"]) == (0.25, 7, "no-model")
    assert to_dict(from_dict(METHODS["dpo"], values)) == values
    rows = [json.loads(line) for line in Path(values["data"]).read_text().splitlines()]
    assert len(rows) == 4
    assert rows[0]["ranks"] == [1, 2]
    assert Path(values["data"]).parent == folder.resolve()


def test_the_command_line_can_be_typed_in_any_folder(workspace: Workspace) -> None:
    job = jobs.get(workspace.store, create(workspace))
    words = shlex.split(jobs.command_line(workspace, job))
    assert words[:3] == ["cd", str(jobs.PROJECT), "&&"]
    assert words[3:] == jobs.command(workspace, job)
    assert "work space" in words[-1], "the folder's blank must survive the shell"
    assert all(Path(word).is_absolute() for word in (words[-1], words[-3]))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("dpo", {"beta": -1}, "beta must be at least"),
        ("dpo", {"nonsense": 1}, "unknown setting nonsense"),
        ("magic", {}, "unknown method"),
        ("ppo", {}, "PPO needs a reward model"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing_behind(
    workspace: Workspace, method: str, settings: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create(workspace, method, **settings)
    assert list(workspace.runs_folder.iterdir()) == []
    assert jobs.list_jobs(workspace.store) == []


def test_without_rankings_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    empty = small_workspace(tmp_path, rankings=0)
    with pytest.raises(InputError, match="no rankings"):
        create(empty, "reward")
    assert list(empty.runs_folder.iterdir()) == []


def test_a_reward_model_is_no_policy_to_start_from(workspace: Workspace) -> None:
    with workspace.store.write() as db:
        db.execute(
            "INSERT INTO checkpoints (name, kind, path, base_model) VALUES ('r', 'reward', 'runs/r', 'no-model')"
        )
        made = db.execute("SELECT max(id) FROM checkpoints").fetchone()[0]
    (workspace.folder / "runs/r").mkdir()
    (workspace.folder / "runs/r/manifest.json").write_text("{}")
    with pytest.raises(InputError, match="r is a reward model; a policy model is needed"):
        new_jobs.create(workspace, local_owner(workspace.store), "dpo", {}, parent_id=made)


def test_numbers_are_not_used_again(workspace: Workspace) -> None:
    assert create(workspace) == "0001-dpo"
    (workspace.runs_folder / "0007-sft").mkdir()
    assert create(workspace, "reward") == "0008-reward"


def test_runs_created_at_once_get_different_ids(workspace: Workspace) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(create(workspace))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8
    assert len({job_id[:4] for job_id in made}) == 8


def test_first_come_first_served_and_one_at_a_time(workspace: Workspace) -> None:
    first, second = create(workspace), create(workspace)
    claimed = jobs.claim(workspace.store)
    assert claimed is not None
    assert (claimed.id, claimed.state) == (first, "running")
    assert jobs.claim(workspace.store) is None
    jobs.close(workspace.store, first, "finished", None, {"steps": 3})
    claimed = jobs.claim(workspace.store)
    assert claimed is not None
    assert claimed.id == second


def test_many_claims_at_once_give_one_run(workspace: Workspace) -> None:
    for _ in range(3):
        create(workspace)
    claimed: list[jobs.Job | None] = []
    threads = [threading.Thread(target=lambda: claimed.append(jobs.claim(workspace.store))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 8
    assert len([job for job in claimed if job]) == 1


def test_a_waiting_run_is_cancelled_and_can_come_back(workspace: Workspace) -> None:
    first, second = create(workspace), create(workspace)
    jobs.request_stop(workspace.store, first)
    assert jobs.get(workspace.store, first).state == "stopped"
    jobs.resume(workspace, first)
    assert [job.id for job in jobs.queue(workspace.store)] == [second, first], "a resumed run waits behind the others"
    with pytest.raises(InputError, match="nothing to resume"):
        jobs.resume(workspace, first)


def test_a_run_without_a_checkpoint_starts_again(workspace: Workspace) -> None:
    job_id = create(workspace)
    jobs.request_stop(workspace.store, job_id)
    jobs.resume(workspace, job_id)
    assert "--resume" not in jobs.command(workspace, jobs.get(workspace.store, job_id))
    (workspace.runs_folder / job_id / "checkpoints" / "step-000002").mkdir(parents=True)
    assert jobs.command(workspace, jobs.get(workspace.store, job_id))[-1] == "--resume"


def test_the_header_says_what_is_going_on(workspace: Workspace) -> None:
    assert jobs.running_line(workspace.store) == ""
    job_id = create(workspace)
    create(workspace)
    assert jobs.running_line(workspace.store) == "2 waiting"
    jobs.claim(workspace.store)
    assert jobs.running_line(workspace.store) == "DPO is starting · 1 waiting"
    job = jobs.get(workspace.store, job_id)
    assert job.started_at is not None
    status = {"step": 62, "total_steps": 200, "eta_seconds": 240.0, "updated_at": job.started_at + 1}
    (workspace.runs_folder / job_id / "status.json").write_text(json.dumps(status))
    assert jobs.running_line(workspace.store) == "DPO 62/200, 4 min left · 1 waiting"
    status["updated_at"] = job.started_at - 1  # written before a resume: says nothing about this start
    (workspace.runs_folder / job_id / "status.json").write_text(json.dumps(status))
    assert jobs.running_line(workspace.store) == "DPO is starting · 1 waiting"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (239, "4 min"), (3600, "1 h"), (4800, "1 h 20 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert jobs.duration(seconds) == words
