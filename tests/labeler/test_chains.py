"""Runs that wait for one another: queued together, cancelled with a reason, brought back, moved, retried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.records import InputError
from labeler import chains, checkpoints, jobs, new_jobs, queueing, recipes, snapshots
from labeler.jobs import Job
from labeler.store import one
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import rank, small_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path)


def get(workspace: Workspace, job_id: str) -> Job:
    return jobs.get(workspace.store, job_id)


def start(workspace: Workspace, recipe: str) -> list[str]:
    return recipes.start(workspace, local_owner(workspace.store), recipe)


def queue(workspace: Workspace) -> list[str]:
    return [job.id for job in jobs.queue(workspace.store)]


def claim(workspace: Workspace) -> str:
    job = jobs.claim(workspace.store)
    assert job is not None
    chains.resolve(workspace, job)
    return job.id


def save(workspace: Workspace, job_id: str, step: int = 1) -> None:
    """A checkpoint, as the trainer would leave it."""
    folder = workspace.runs_folder / job_id / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    kind = "reward" if job_id.endswith("reward") else "policy"
    (folder / "manifest.json").write_text(json.dumps({"kind": kind, "step": step}))
    checkpoints.register_run(workspace, job_id, get(workspace, job_id).parent_checkpoint_id)


def finish(workspace: Workspace, job_id: str) -> None:
    save(workspace, job_id)
    jobs.close(workspace.store, job_id, "finished", None, {})


def test_a_chain_learns_at_its_start_what_the_runs_before_it_made(workspace: Workspace) -> None:
    sft, reward, ppo = start(workspace, "sft-reward-ppo")
    assert queue(workspace) == [sft, reward, ppo]
    rank(workspace, 2)  # said too late: the snapshots were taken
    assert claim(workspace) == sft
    save(workspace, sft, 1)
    save(workspace, sft, 2)
    jobs.close(workspace.store, sft, "finished", None, {})
    assert claim(workspace) == reward
    assert jobs.claim(workspace.store) is None
    finish(workspace, reward)
    assert claim(workspace) == ppo
    job = get(workspace, ppo)
    runs = workspace.runs_folder.resolve()
    assert job.config["from_checkpoint"] == str(runs / sft / "checkpoints" / "step-000002")
    assert job.config["reward_model"] == str(runs / reward / "checkpoints" / "step-000001")
    assert json.loads((runs / ppo / "config.json").read_text()) == job.config
    assert checkpoints.get(workspace.store, job.parent_checkpoint_id).name == "sft/0001 step 2"
    assert job.reward_checkpoint_id == checkpoints.of_run(workspace.store, reward)[0].id
    rows = (runs / reward / "preferences.jsonl").read_text().splitlines()
    assert len(rows) == 4


@pytest.mark.parametrize("state", ["failed", "interrupted", "stopped"])
def test_what_waits_for_a_run_that_did_not_finish_is_cancelled_and_comes_back(workspace: Workspace, state: str) -> None:
    sft, reward, ppo = start(workspace, "sft-reward-ppo")
    other = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {}, parent_job=ppo)
    claim(workspace)
    jobs.close(workspace.store, sft, state, "out of coffee", None)
    assert queue(workspace) == [reward]
    for job_id in (ppo, other):
        job = get(workspace, job_id)
        assert (job.state, job.stopped_by) == ("stopped", sft)
        assert job.error == (
            f"cancelled, since sft/0001 {chains.ENDED_BADLY[state]}; resume or retry sft/0001 and this run follows it"
        )
    with pytest.raises(InputError, match=r"sft/0001 .*; resume or retry that one first"):
        jobs.resume(workspace, ppo)
    with pytest.raises(InputError, match="resume or retry that one first"):
        new_jobs.create(workspace, local_owner(workspace.store), "dpo", {}, parent_job=sft)
    jobs.resume(workspace, sft)
    assert queue(workspace) == [reward, sft, ppo, other], "they come back behind the run that they need"
    assert get(workspace, ppo).error is None
    assert claim(workspace) == reward
    finish(workspace, reward)
    assert claim(workspace) == sft


def test_a_cancelled_run_takes_those_behind_it_along(workspace: Workspace) -> None:
    _, reward, ppo = start(workspace, "sft-reward-ppo")
    jobs.request_stop(workspace.store, reward)
    assert get(workspace, ppo).stopped_by == reward


def test_what_needs_two_failed_runs_comes_back_with_the_second(workspace: Workspace) -> None:
    sft, reward, ppo = start(workspace, "sft-reward-ppo")
    jobs.request_stop(workspace.store, sft)
    jobs.request_stop(workspace.store, reward)
    jobs.resume(workspace, sft)
    assert queue(workspace) == [sft]
    assert get(workspace, ppo).stopped_by == reward
    jobs.resume(workspace, reward)
    assert sorted(queue(workspace)) == [sft, reward, ppo]


def test_a_retry_takes_the_place_of_the_failed_run_with_the_same_labels(workspace: Workspace) -> None:
    owner = local_owner(workspace.store)
    reward = new_jobs.create(workspace, owner, "reward", {"learning_rate": 0.01})
    ppo = new_jobs.create(workspace, owner, "ppo", {}, reward_job=reward)
    rank(workspace, 2)
    with pytest.raises(InputError, match="is queued; only a run that failed or was stopped"):
        queueing.retry(workspace, owner, reward)
    claim(workspace)
    jobs.close(workspace.store, reward, "failed", "out of coffee", None)
    again = queueing.retry(workspace, owner, reward)
    assert queue(workspace) == [again, ppo]
    assert get(workspace, again).config["learning_rate"] == 0.01
    rows = [(workspace.runs_folder / job_id / "preferences.jsonl").read_text() for job_id in (reward, again)]
    assert rows[0] == rows[1]
    job = get(workspace, ppo)
    assert job.reward_job == again
    assert job.config["reward_model"].endswith(again)
    assert get(workspace, reward).state == "failed", "what happened stays known"
    assert claim(workspace) == again
    finish(workspace, again)
    assert claim(workspace) == ppo


def test_a_run_that_left_no_checkpoint_says_so_to_the_next(workspace: Workspace) -> None:
    reward = new_jobs.create(workspace, local_owner(workspace.store), "reward", {})
    new_jobs.create(workspace, local_owner(workspace.store), "ppo", {}, reward_job=reward)
    claim(workspace)
    jobs.close(workspace.store, reward, "finished", None, {})
    with pytest.raises(InputError, match="reward/0001 left no checkpoint to go on from"):
        claim(workspace)


def test_only_a_run_that_makes_such_a_model_can_be_waited_for(workspace: Workspace) -> None:
    owner = local_owner(workspace.store)
    reward = new_jobs.create(workspace, owner, "reward", {})
    before = sorted(workspace.runs_folder.iterdir())
    with pytest.raises(InputError, match="reward/0001 makes no policy model"):
        new_jobs.create(workspace, owner, "dpo", {}, parent_job=reward)
    with pytest.raises(InputError, match="there is no run 0099-sft"):
        new_jobs.create(workspace, owner, "dpo", {}, parent_job="0099-sft")
    assert sorted(workspace.runs_folder.iterdir()) == before


def reward_and_bad_dpo(workspace: Workspace) -> None:
    with new_jobs.together(workspace, local_owner(workspace.store)) as batch:
        batch.create("reward", {})
        batch.create("dpo", {"beta": -1})


def test_a_recipe_is_queued_whole_or_not_at_all(tmp_path: Path) -> None:
    empty = small_workspace(tmp_path, rankings=0)
    with pytest.raises(InputError, match="no demonstrations"):
        start(empty, "sft-reward-ppo")
    with pytest.raises(InputError, match="there is no policy to go on from yet"):
        start(empty, "again")
    with pytest.raises(InputError, match="there is no recipe 'magic'; choose one of reward-dpo"):
        start(empty, "magic")
    rank(empty, 2)
    with pytest.raises(InputError, match="beta must be"):
        reward_and_bad_dpo(empty)
    assert list(empty.runs_folder.iterdir()) == []
    assert jobs.list_jobs(empty.store) == []
    assert one(empty.store.db, "SELECT * FROM snapshots") is None


def test_one_more_round_goes_on_from_the_newest_policy_with_the_labels_since(workspace: Workspace) -> None:
    reward, dpo = start(workspace, "reward-dpo")
    for job_id in (reward, dpo):
        assert claim(workspace) == job_id
        finish(workspace, job_id)
    with pytest.raises(InputError, match="nobody has ranked anything since dpo/0002 step 1 began to learn"):
        start(workspace, "again")
    rank(workspace, 3)
    (second,) = start(workspace, "again")
    job = get(workspace, second)
    assert (job.method, checkpoints.get(workspace.store, job.parent_checkpoint_id).name) == ("dpo", "dpo/0002 step 1")
    assert len((workspace.runs_folder / second / "preferences.jsonl").read_text().splitlines()) == 3


def test_one_more_round_after_ppo_learns_to_score_again(workspace: Workspace) -> None:
    for job_id in start(workspace, "sft-reward-ppo"):
        assert claim(workspace) == job_id
        finish(workspace, job_id)
    rank(workspace, 1)
    reward, ppo = start(workspace, "again")
    assert get(workspace, ppo).reward_job == reward
    assert checkpoints.get(workspace.store, get(workspace, ppo).parent_checkpoint_id).name == "ppo/0003 step 1"
    assert len((workspace.runs_folder / reward / "preferences.jsonl").read_text().splitlines()) == 5


def test_the_order_is_changed_but_no_run_comes_before_what_it_needs(workspace: Workspace) -> None:
    sft, reward, ppo = start(workspace, "sft-reward-ppo")
    dpo = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})
    queueing.move(workspace.store, dpo, -1)
    assert queue(workspace) == [sft, reward, dpo, ppo]
    queueing.move(workspace.store, dpo, -99)
    assert queue(workspace) == [dpo, sft, reward, ppo]
    queueing.move(workspace.store, dpo, 1)
    assert queue(workspace) == [sft, dpo, reward, ppo]
    with pytest.raises(InputError, match="ppo/0003 needs reward/0002, so it stays behind it"):
        queueing.move(workspace.store, ppo, -1)
    with pytest.raises(InputError, match="ppo/0003 needs reward/0002, so it stays behind it"):
        queueing.move(workspace.store, reward, 1)
    assert queue(workspace) == [sft, dpo, reward, ppo]
    claim(workspace)
    with pytest.raises(InputError, match="sft/0001 does not wait any more"):
        queueing.move(workspace.store, sft, 1)
    assert queue(workspace) == [dpo, reward, ppo]


def test_a_snapshot_is_written_while_others_rank(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held while the file is written; what is said meanwhile is not in it, and what is erased neither."""
    write, inside = snapshots.write_file, []

    def slow(*arguments: object) -> object:
        inside.append(workspace.store.db.conn.in_transaction)
        written = write(*arguments)  # type: ignore[arg-type]
        if len(inside) == 1:
            rank(workspace, 1)
            with workspace.store.write() as db:
                db.execute("INSERT INTO erasures (user_id, counts) VALUES (1, '{}')")
        return written

    monkeypatch.setattr(snapshots, "write_file", slow)
    job_id = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {})
    assert inside == [False, True], "written again, in the transaction, since somebody was erased meanwhile"
    assert len((workspace.runs_folder / job_id / "preferences.jsonl").read_text().splitlines()) == 5
