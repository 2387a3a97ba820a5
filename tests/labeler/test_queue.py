"""A queue of five real runs on the tiny model with a cancel, a SIGKILL, a resume and two restarts of the app in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from labeler import checkpoints, jobs, new_jobs
from labeler.jobs import Job
from labeler.store import rows
from labeler.users import local_owner
from labeler.workspace import Workspace
from tests.labeler.studio import small_workspace, wait_for
from training import run_folder

APP = """
import sys, time
from pathlib import Path
from labeler.worker import Worker
from labeler.workspace import open_workspace
Worker(open_workspace(Path(sys.argv[1]), sys.argv[2], seed_file=None), poll_seconds=0.05).start()
time.sleep(1000)
"""
LONG = {"max_steps": 30, "save_every": 1}
"""Long enough to be killed on the way, since saving takes time."""
SHORT = {"max_steps": 2, "lora_rank": 2, "validation_fraction": 0}


@contextmanager
def app(workspace: Workspace) -> Iterator[None]:
    """Something that looks after the queue, and dies by SIGKILL at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", APP, str(workspace.folder), workspace.base_model], cwd=jobs.PROJECT
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_queue_ends_as_it_should(tmp_path: Path, tiny_model: Path) -> None:
    workspace = small_workspace(tmp_path, str(tiny_model))
    store, owner = workspace.store, local_owner(workspace.store)

    def get(job_id: str) -> Job:
        return jobs.get(store, job_id)

    def reached(job_id: str, state: str) -> Job:
        def look() -> bool:
            job = get(job_id)
            assert job.state in (state, *jobs.OPEN_STATES), job.error
            return job.state == state

        wait_for(look, 180)
        return get(job_id)

    def states() -> dict[str, str]:
        return {job.id: job.state for job in jobs.list_jobs(store)}

    with new_jobs.together(workspace, owner) as batch:
        sft = batch.create("sft", SHORT)
        reward = batch.create("reward", SHORT | LONG)
        short = {"batch_size": 4, "max_new_tokens": 4}
        ppo = batch.create("ppo", SHORT | short, parent_job=sft, reward_job=reward)
        unwanted = batch.create("dpo", SHORT)
        dpo = batch.create("dpo", SHORT)
    try:
        with app(workspace):
            reached(sft, "finished")
            jobs.request_stop(store, unwanted)
            wait_for(lambda: checkpoints.of_run(store, reward), 120)
            run = psutil.Process(get(reward).pid)

        # the app is gone, and the run goes on; then the run is killed while nobody looks
        assert run.is_running()
        run.kill()
        wait_for(lambda: not run.is_running() or run.status() == psutil.STATUS_ZOMBIE)
        with app(workspace):
            assert "SIGKILL" not in str(reached(reward, "interrupted").error), "nobody could see what killed it"
            reached(dpo, "finished")
        assert states() == {
            sft: "finished",
            reward: "interrupted",
            ppo: "stopped",
            unwanted: "stopped",
            dpo: "finished",
        }
        assert "cancelled, since reward/0002 was interrupted" in str(get(ppo).error)

        jobs.resume(workspace, reward)
        with app(workspace):
            wait_for(lambda: get(reward).pid, 60)
            pid = get(reward).pid
        with app(workspace):  # a restart while it runs
            reached(ppo, "finished")
        assert (get(reward).state, get(unwanted).state) == ("finished", "stopped")
        log = (workspace.runs_folder / reward / "log.txt").read_text()
        assert log.count("resuming after step") == 1
        assert log.count("$ cd ") == 2, "one start, one resume, and none by the restarts"
        assert pid is not None
        steps = [row["step"] for row in run_folder.read_metrics(workspace.runs_folder / reward)]
        assert steps == sorted(set(steps)), "no step is there twice"
        assert steps[-1] == LONG["max_steps"]
        config = json.loads((workspace.runs_folder / ppo / "config.json").read_text())
        assert config["from_checkpoint"].endswith(f"{sft}/checkpoints/step-000002")
        assert config["reward_model"].endswith(f"{reward}/checkpoints/step-000030")
        made = rows(store.db, "SELECT run_id, count(*) AS n FROM checkpoints WHERE run_id IS NOT NULL GROUP BY run_id")
        assert {row["run_id"] for row in made} == {sft, reward, ppo, dpo}
        assert not (workspace.runs_folder / unwanted / "log.txt").exists()
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(tmp_path) in word for word in process.info["cmdline"] or []):
                process.kill()
