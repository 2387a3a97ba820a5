"""The sampling run with the tiny model: its project, a kill in the middle, and what it may not be asked for."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from data.records import InputError
from labeler import jobs, sampling
from labeler.chat import Chat
from labeler.prompts import add_prompt
from labeler.store import Row, rows, scalar
from labeler.tasks import next_assignment
from labeler.users import User, add_user, local_owner
from labeler.worker import Worker
from labeler.workspace import Workspace
from tests.labeler.studio import chat_with_checkpoints, checkpoint_ids, wait_for

SETTINGS = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Chat:
    return chat_with_checkpoints(tmp_path_factory.mktemp("sampling"), tiny_model)


@pytest.fixture(scope="module")
def workspace(chat: Chat) -> Workspace:
    return chat.workspace


def questions(workspace: Workspace, count: int) -> list[int]:
    with workspace.store.write() as db:
        return [
            add_prompt(db, [{"role": "user", "content": f"What is {number} plus one?"}], "", "import")
            for number in range(count)
        ]


def ask(workspace: Workspace, name: str, prompts: list[int], each: int = 2, **settings: float) -> str:
    found = checkpoint_ids(workspace)
    chosen = [workspace.base_checkpoint_id, found["dpo/0001 step 1"]]
    owner = local_owner(workspace.store)
    return sampling.create(workspace, owner, name, chosen, prompts, each, SETTINGS | settings)


def carried_out(workspace: Workspace, job_id: str) -> jobs.Job:
    worker = Worker(workspace, poll_seconds=0.05)
    worker.start()
    try:
        wait_for(lambda: jobs.get(workspace.store, job_id).state not in jobs.OPEN_STATES, 120)
    finally:
        worker.stop()
    return jobs.get(workspace.store, job_id)


def answers(workspace: Workspace, project_id: int) -> list[Row]:
    return rows(
        workspace.store.db,
        """SELECT t.prompt_id, c.text, c.checkpoint_id, c.sampling, c.num_tokens, c.finish_reason FROM tasks AS t
            JOIN task_completions AS tc ON tc.task_id = t.id JOIN completions AS c ON c.id = tc.completion_id
            WHERE t.project_id = ? ORDER BY t.prompt_id, tc.position""",
        [project_id],
    )


def project_of(workspace: Workspace, job_id: str) -> int:
    found = sampling.project_of(workspace.store, job_id)
    assert found is not None
    return found


def test_a_kill_in_the_middle_doubles_and_changes_nothing(workspace: Workspace) -> None:
    prompts = questions(workspace, 48)
    owner = local_owner(workspace.store)
    killed = ask(workspace, "Killed", prompts, max_new_tokens=200)
    worker = Worker(workspace)
    worker.tick()
    status = workspace.runs_folder / killed / "status.json"

    def begun() -> int:
        project = sampling.project_of(workspace.store, killed)
        return len(sampling.done(workspace.store, project)) if project else 0

    wait_for(begun, 120)
    pid = jobs.get(workspace.store, killed).pid
    assert pid is not None
    psutil.Process(pid).send_signal(signal.SIGKILL)

    def noticed() -> bool:
        worker.tick()
        return jobs.get(workspace.store, killed).state == "interrupted"

    wait_for(noticed)
    before = begun()
    assert 0 < before < len(prompts), "the kill must come in the middle"
    assert json.loads(status.read_text())["total_steps"] == len(prompts)
    project = project_of(workspace, killed)
    early = answers(workspace, project)
    assert next_assignment(workspace.store, owner, project) is not None, "ranking begins while it samples"

    jobs.resume(workspace, killed)
    job = carried_out(workspace, killed)
    assert (job.state, job.error) == ("finished", None)
    log = (workspace.runs_folder / killed / "log.txt").read_text()
    assert f"going on: {before} of {len(prompts)} prompts are done" in log
    assert project_of(workspace, killed) == project
    after = answers(workspace, project)
    assert [row for row in after if row["prompt_id"] in {r["prompt_id"] for r in early}] == early
    assert len(after) == 4 * len(prompts)
    assert {row["prompt_id"] for row in after} == set(prompts)
    assert scalar(workspace.store.db, "SELECT count(*) FROM projects WHERE name LIKE 'Killed%'") == 1
    assert scalar(workspace.store.db, "SELECT count(*) FROM completions WHERE source = 'sample'") == len(after)

    # another run, never stopped, says the same to the last prompt: a sample does not depend on what was done before
    last = ask(workspace, "Again", prompts[-1:], max_new_tokens=200)
    assert carried_out(workspace, last).state == "finished"
    assert [row["text"] for row in answers(workspace, project_of(workspace, last))] == [
        row["text"] for row in after if row["prompt_id"] == prompts[-1]
    ]


def test_a_project_of_blind_tasks_that_remembers_how_each_answer_was_made(workspace: Workspace) -> None:
    prompts = questions(workspace, 3)
    job = carried_out(workspace, ask(workspace, "First sampling", prompts[::-1]))
    assert job.result == {"tasks": 3, "completions": 12, "too_long": 0, "all_the_same": 0}
    project = project_of(workspace, job.id)
    tasks = rows(workspace.store.db, "SELECT prompt_id FROM tasks WHERE project_id = ? ORDER BY id", [project])
    assert [row["prompt_id"] for row in tasks] == prompts[::-1]
    made = answers(workspace, project)
    base, dpo = workspace.base_checkpoint_id, checkpoint_ids(workspace)["dpo/0001 step 1"]
    assert [row["checkpoint_id"] for row in made] == [base, base, dpo, dpo] * 3
    assert [json.loads(row["sampling"])["sample"] for row in made[:4]] == [0, 1, 0, 1]
    assert {name: json.loads(made[0]["sampling"])[name] for name in SETTINGS} == SETTINGS
    assert all(1 <= row["num_tokens"] <= 6 for row in made)
    owner = local_owner(workspace.store)
    given = next_assignment(workspace.store, owner, project)
    assert given is not None
    assert not {"checkpoint", "model", "sampling"} & set(vars(given.completions[0]))


def test_what_all_answer_alike_is_no_task(workspace: Workspace) -> None:
    found = checkpoint_ids(workspace)
    job_id = sampling.create(
        workspace,
        local_owner(workspace.store),
        "All the same",
        [found["dpo/0001 step 1"]],
        questions(workspace, 1),
        2,
        SETTINGS | {"temperature": 0},
    )
    job = carried_out(workspace, job_id)
    assert job.state == "failed"
    assert "no prompt got two different answers" in (job.error or "")


def test_what_cannot_be_sampled_is_refused_and_leaves_nothing_behind(workspace: Workspace) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    prompts, base = questions(workspace, 2), workspace.base_checkpoint_id
    reward = checkpoint_ids(workspace)["reward/0003 step 1"]
    before = sorted(workspace.runs_folder.iterdir()), len(jobs.list_jobs(store))
    ann = add_user(store, "ann", "annotator", "long enough words")
    for user, name, checkpoints, chosen, each, settings, why in (
        (ann, "New", [base], prompts, 2, {}, "may not sample"),
        (owner, " ", [base], prompts, 2, {}, "needs 1 to 100 characters"),
        (owner, "first PROJECT", [base], prompts, 2, {}, "already"),
        (owner, "New", [], prompts, 2, {}, "at least one checkpoint"),
        (owner, "New", [base], [], 2, {}, "at least one prompt"),
        (owner, "New", [base], prompts, 1, {}, "2 to 9 completions"),
        (owner, "New", [base], prompts, 10, {}, "2 to 9 completions"),
        (owner, "New", [base], [*prompts, 10**6], 2, {}, "there is no prompt 1000000"),
        (owner, "New", [base, reward], prompts, 1, {}, "a policy model is needed"),
        (owner, "New", [base], prompts, 2, {"temperature": 9}, "temperature must lie between"),
        (owner, "New", [base], prompts, 2, {"beams": 9}, "unknown setting beams"),
    ):
        assert isinstance(user, User)
        with pytest.raises(InputError, match=why):
            sampling.create(workspace, user, name, checkpoints, chosen, each, settings)
    assert (sorted(workspace.runs_folder.iterdir()), len(jobs.list_jobs(store))) == before


def test_a_waiting_sampling_keeps_its_name(workspace: Workspace) -> None:
    prompts = questions(workspace, 1)
    waiting = ask(workspace, "Reserved", prompts)
    with pytest.raises(InputError, match="already"):
        ask(workspace, "reserved", prompts)
    jobs.request_stop(workspace.store, waiting)
    again = ask(workspace, "reserved", prompts)
    jobs.request_stop(workspace.store, again)
