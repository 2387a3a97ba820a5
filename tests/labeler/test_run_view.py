"""What is shown of a run: its state in words, its trouble with the way out, and no markup from logs or messages."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from labeler import jobs, new_jobs
from labeler.jobs import Job
from labeler.ui import before, plots, run_view
from labeler.ui.runs import runs_table
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import rank, small_workspace

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path)


@pytest.fixture
def running(workspace: Workspace) -> Job:
    new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})
    job = jobs.claim(workspace.store)
    assert job is not None
    return job


def status(workspace: Workspace, job: Job, **values: object) -> dict:
    full = {"state": "running", "step": 3, "total_steps": 12, "eta_seconds": 90, "updated_at": time.time(), **values}
    (workspace.runs_folder / job.id / "status.json").write_text(json.dumps(full))
    return full


def test_a_running_run(workspace: Workspace, running: Job) -> None:
    shown = run_view.head(workspace, running, status(workspace, running))
    assert 'data-state="running"' in shown
    assert "DPO 3/12, 2 min left" in shown
    assert 'aria-valuenow="3"' in shown
    assert "4 comparisons" in shown
    assert "starts from base no-model" in shown
    assert "No sign of life" not in shown


def test_a_result_begins_with_what_tells_most(running: Job) -> None:
    result = {"steps": 9, "best_checkpoint": "x", "eval/ece": 0.1, "eval/kl": 2.0, "eval/rewards/accuracies": 0.7}
    shown = run_view.final_metrics(dataclasses.replace(running, result=result))
    assert shown == [("Agreement with people, held out", "0.7"), ("Distance from the reference", "2")]
    assert run_view.final_metrics(dataclasses.replace(running, result={"n": 4, "path": "x"})) == [("n", "4")]


def test_every_key_metric_has_a_name_of_its_own() -> None:
    for method, panels in plots.PANELS.items():
        names = [plots.plain_name(method, name) for panel in panels for name in panel.names]
        assert len(set(names)) == len(names)
        assert not any("/" in name for name in names)


def test_silence_is_noticed(workspace: Workspace, running: Job) -> None:
    waiting = dataclasses.replace(running, started_at=time.time() - 500)
    shown = run_view.head(workspace, waiting, status(workspace, running, updated_at=time.time() - 190))
    assert "No sign of life for 3 min" in shown


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_trouble_is_told_with_the_way_out_and_as_text(workspace: Workspace, running: Job, state: str) -> None:
    jobs.close(workspace.store, running.id, state, HOSTILE, None)
    job = jobs.get(workspace.store, running.id)
    (workspace.runs_folder / job.id / "log.txt").write_text(HOSTILE)
    status(workspace, running, message=HOSTILE, state=state)
    view = run_view.RunView(workspace)
    drawn = "".join(str(value) for value in view.updates(job, ""))
    assert "Resume goes on from the newest checkpoint" in drawn
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn
    assert "<script" not in runs_table(workspace, [job], "")


def test_an_unchanged_run_is_not_sent_again(workspace: Workspace, running: Job) -> None:
    view = run_view.RunView(workspace)
    status(workspace, running)
    first = view.updates(running, "")
    again = view.updates(running, first[0])
    assert all(isinstance(value, dict) and set(value) == {"__type__"} for value in again)
    (workspace.runs_folder / running.id / "metrics.jsonl").write_text('{"step": 1, "loss": 0.69}\n')
    assert "<polyline" in "".join(str(value) for value in view.updates(running, first[0]))


def test_what_a_run_would_learn_from(tmp_path: Path) -> None:
    def line(method: str) -> str:
        defaults = {"validation_fraction": 0.1, "seed": 0, "fold": None}
        return before.view(workspace, method, lambda: defaults, weighed=False)

    workspace = small_workspace(tmp_path, rankings=0)
    assert "nothing to learn from yet" in line("reward")
    assert "no prompts yet" in line("ppo")
    rank(workspace, 3)
    assert ">3 comparisons<" in line("dpo")
    assert ">1 annotator<" in line("dpo")
    assert ">3 prompts<" in line("dpo")
    assert "too few" in line("dpo")
    assert ">3 demonstrations<" in line("sft")
