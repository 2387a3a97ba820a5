"""The sampling run with the tiny model: its project, a kill in the middle, and what it may not be asked for."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from data.records import InputError
from labeler import jobs, queueing, sampling, sampling_run
from labeler import worker as worker_module
from labeler.chat import Chat
from labeler.local_run import Status
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
    prompts = questions(workspace, 36)[::-1]
    owner = local_owner(workspace.store)
    killed = ask(workspace, "Killed", prompts)
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
    assert before < len(prompts), "the kill must come in the middle"
    assert json.loads(status.read_text())["total_steps"] == len(prompts)
    project = project_of(workspace, killed)
    early = answers(workspace, project)
    assert next_assignment(workspace.store, owner, project) is not None, "ranking begins while it samples"

    # asked to stop, it stops wherever it is
    jobs.resume(workspace, killed)
    worker.tick()
    wait_for(lambda: jobs.fresh(jobs.get(workspace.store, killed), worker_module.read_status(status.parent)))
    jobs.request_stop(workspace.store, killed)
    assert carried_out(workspace, killed).state == "stopped"
    before = begun()

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

    # another run, never stopped, says the same
    whole = ask(workspace, "Whole", prompts)
    job = carried_out(workspace, whole)
    assert job.result == {"tasks": 36, "completions": 144, "too_long": 0, "all_the_same": 0}
    project = project_of(workspace, whole)
    assert answers(workspace, project) == after

    # blind tasks in the order that was asked for, whose answers remember how they were made
    tasks = rows(workspace.store.db, "SELECT prompt_id FROM tasks WHERE project_id = ? ORDER BY id", [project])
    assert [row["prompt_id"] for row in tasks] == prompts
    base, dpo = workspace.base_checkpoint_id, checkpoint_ids(workspace)["dpo/0001 step 1"]
    assert [row["checkpoint_id"] for row in after] == [base, base, dpo, dpo] * 36
    assert [json.loads(row["sampling"])["sample"] for row in after[:4]] == [0, 1, 0, 1]
    assert {name: json.loads(after[0]["sampling"])[name] for name in SETTINGS} == SETTINGS
    assert all(1 <= row["num_tokens"] <= 6 for row in after)


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
    folder = workspace.runs_folder / job_id
    with pytest.raises(InputError, match="no prompt got two different answers"):
        sampling_run.run(folder, Status(folder, jobs.SAMPLE))
    assert answers(workspace, project_of(workspace, job_id)) == []
    jobs.request_stop(workspace.store, job_id)


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
        (owner, "New", [base], prompts, 2, {"top_k": 9}, "one answer at a time"),
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
    again = queueing.retry(workspace, local_owner(workspace.store), waiting)
    old, new = (jobs.get(workspace.store, job_id).config for job_id in (waiting, again))
    assert old["data"] != new["data"]
    assert Path(old["data"]).read_text() == Path(new["data"]).read_text()
    assert old | {"data": ""} == new | {"data": ""}
    jobs.request_stop(workspace.store, again)
