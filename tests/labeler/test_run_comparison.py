"""Runs beside one another: what differs, what was measured last, and who gets it as a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from data.records import InputError
from labeler import new_jobs, run_comparison, users
from labeler.ui import run_samples
from labeler.ui.runs_compare import comparison_tables, metric_names, overlay
from labeler.users import local_owner
from labeler.web import create_app
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace

HOSTILE = "<script>alert(1)</script>${alert(2)}{{alert(3)}}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path)


@pytest.fixture
def run_ids(workspace: Workspace) -> list[str]:
    made = []
    for rate in (1e-5, 1e-4):
        made.append(new_jobs.create(workspace, local_owner(workspace.store), "dpo", {"learning_rate": rate}))
        rows = [{"step": step, "time": 1.0, "loss": 0.7 - rate * step, HOSTILE: 1.0} for step in (1, 2)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (workspace.runs_folder / made[-1] / "metrics.jsonl").write_text(text)
    return made


def test_only_what_differs_is_listed() -> None:
    configs = [{"a": 1, "b": 2, "output": "x"}, {"a": 1, "b": 3, "c": None, "output": "y"}]
    assert run_comparison.differences(configs) == {"b": ["2", "3"], "c": [None, "null"]}


def test_last_figures_and_their_steps() -> None:
    histories = [[{"step": 1, "loss": 0.7, "time": 1}, {"step": 2, "loss": 0.6}], [{"step": 1, "kl": 0.1}]]
    assert run_comparison.final_metrics(histories) == {"kl": [None, (1, 0.1)], "loss": [(2, 0.6), None]}


def test_how_many_runs(workspace: Workspace, run_ids: list[str]) -> None:
    assert [job.id for job in run_comparison.chosen(workspace, [run_ids[1], run_ids[0], run_ids[1]])] == run_ids[::-1]
    for wrong in ([], [str(number) for number in range(7)], ["none"]):
        with pytest.raises(InputError):
            run_comparison.chosen(workspace, wrong)


def test_the_page_shows_them_and_nothing_of_theirs_is_markup(workspace: Workspace, run_ids: list[str]) -> None:
    compared = run_comparison.chosen(workspace, run_ids)
    histories = [run_comparison.metrics_of(workspace, job) for job in compared]
    assert metric_names(compared, histories)[0] == "loss"
    drawn = overlay(compared, histories, HOSTILE) + comparison_tables(workspace, compared, histories)
    assert "learning_rate" in drawn
    assert "lora_rank" not in drawn
    assert "<script" not in drawn
    assert drawn.count("<polyline") == 2
    job = compared[0]
    row = {"step": 0, "number": 0, "prompt": [{"role": "user", "content": HOSTILE}], "completion": HOSTILE}
    told = run_samples.view(job, [row | {"seed": 0, "num_tokens": 3, "finish_reason": "stop"}])
    assert "<script" not in told
    assert "${" not in told
    assert "{{" not in told


def test_steps_to_choose_from_are_bounded() -> None:
    steps = run_samples.spread(range(0, 1000, 10))
    assert (len(steps), steps[0], steps[-1]) == (run_samples.MAX_STEPS, 0, 990)
    assert run_samples.spread([0, 5]) == [0, 5]


def test_files_are_for_those_who_see_the_tab(workspace: Workspace, run_ids: list[str]) -> None:
    query = [("run", run_id) for run_id in run_ids]
    with TestClient(create_app(workspace), base_url="http://127.0.0.1:7860") as client:
        table = client.get("/runs.csv", params=query)
        rows = list(csv.DictReader(table.text.splitlines()))
        assert [row["run"] for row in rows] == [run_ids[0]] * 2 + [run_ids[1]] * 2
        assert float(rows[3]["loss"]) == pytest.approx(0.6998)
        picture = client.get("/runs.png", params=[*query, ("metric", "loss")])
        assert picture.content.startswith(b"\x89PNG")
        for path, params in (("/runs.png", query), ("/runs.csv", [("run", "none")]), ("/runs.exe", query)):
            assert client.get(path, params=params).status_code == 404
        for name, role in (("ann", "annotator"), ("lea", "lead")):
            users.add_user(workspace.store, name, role, "correct horse")  # type: ignore[arg-type]
        for name, status in (("ann", 404), ("lea", 200)):
            client.cookies.clear()
            client.post("/login", data={"name": name, "password": "correct horse"})
            assert client.get("/runs.csv", params=query).status_code == status
