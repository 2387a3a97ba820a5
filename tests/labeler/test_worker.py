"""The worker with real processes: they outlive it, are found again, and nothing is lost when anything is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from data.records import InputError
from labeler import checkpoints, jobs, new_jobs, worker
from labeler.jobs import Job
from labeler.users import local_owner
from labeler.worker import Worker
from labeler.workspace import Workspace, open_workspace
from tests.labeler.studio import FAKE_TRAINER, rank, small_workspace, wait_for
from training import run_folder

FAKE_PROGRAM = (sys.executable, str(FAKE_TRAINER))

OTHER_APP = f"""
import sys, time
from pathlib import Path
from labeler import jobs
from labeler.worker import Worker
from labeler.workspace import open_workspace
jobs.PROGRAM = (sys.executable, {str(FAKE_TRAINER)!r})
Worker(open_workspace(Path(sys.argv[1]), "no-model", seed_file=None), poll_seconds=0.05).start()
time.sleep(1000)
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setattr(jobs, "PROGRAM", FAKE_PROGRAM)
    monkeypatch.delenv("FAKE_TRAINER", raising=False)
    made = small_workspace(tmp_path)
    yield made
    for process in psutil.process_iter(["cmdline"]):  # whatever a failed test left behind
        if any(str(tmp_path) in word for word in process.info["cmdline"] or []):
            process.kill()


@contextmanager
def at_its_post(workspace: Workspace, grace: float = worker.GRACE_SECONDS) -> Iterator[Worker]:
    """A worker that looks often, for as long as the block."""
    made = Worker(workspace, poll_seconds=0.02, grace=grace)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def looking(workspace: Workspace) -> Iterator[Worker]:
    with at_its_post(workspace) as made:
        yield made


def other_app(workspace: Workspace) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OTHER_APP, str(workspace.folder)], cwd=jobs.PROJECT)


def create(workspace: Workspace, method: str = "dpo") -> str:
    return new_jobs.create(workspace, local_owner(workspace.store), method, {})


def reached(workspace: Workspace, job_id: str, *states: str) -> Job:
    def look() -> Job | None:
        job = jobs.get(workspace.store, job_id)
        return job if job.state in states else None

    found = wait_for(look)
    assert found is not None
    return found


def at_work(workspace: Workspace, job_id: str, by_hand: Worker | None = None) -> psutil.Process:
    """The run's process, once it has saved a checkpoint; a worker that was not started is moved on by hand."""

    def look() -> bool:
        if by_hand:
            by_hand.tick()
        return bool(checkpoints.of_run(workspace.store, job_id))

    wait_for(look)
    pid = jobs.get(workspace.store, job_id).pid
    assert pid is not None
    return psutil.Process(pid)


def orphan(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> tuple[str, psutil.Process]:
    """A run at work whose app was killed, and its process."""
    monkeypatch.setenv("FAKE_TRAINER", "slow")
    job_id = create(workspace)
    app = other_app(workspace)
    try:
        return job_id, at_work(workspace, job_id)
    finally:
        app.kill()
        app.wait()


def test_a_run_is_carried_out_and_its_checkpoints_are_known(workspace: Workspace, looking: Worker) -> None:
    job = reached(workspace, create(workspace), "finished")
    assert job.result == {"steps": 3, "accuracy": 0.75}
    assert job.error is None
    assert job.pid is None
    made = checkpoints.of_run(workspace.store, job.id)
    assert [c.name for c in made] == ["dpo/0001 step 1", "dpo/0001 step 2", "dpo/0001 step 3"]
    assert {(c.kind, c.parent_id) for c in made} == {("policy", workspace.base_checkpoint_id)}
    assert made[0].path == "runs/0001-dpo/checkpoints/step-000001"
    log = (workspace.runs_folder / job.id / "log.txt").read_text()
    assert log.startswith("$ cd ")
    assert "step 3/3" in log


def test_runs_follow_one_another(workspace: Workspace, looking: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINER", "slow")
    first, second = create(workspace), create(workspace, "reward")
    at_work(workspace, first)
    assert jobs.get(workspace.store, second).state == "queued"
    monkeypatch.delenv("FAKE_TRAINER")
    jobs.request_stop(workspace.store, first)
    assert reached(workspace, first, "stopped").error is None
    reached(workspace, second, "finished")
    assert {c.kind for c in checkpoints.of_run(workspace.store, second)} == {"reward"}


def test_the_run_is_a_session_of_its_own(
    workspace: Workspace, looking: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRAINER", "slow")
    process = at_work(workspace, create(workspace))
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [("crash", "RuntimeError: <b>out of coffee</b>"), ("bad", "error: the data is not to my taste")],
)
def test_a_failure_is_told_by_the_last_line_of_the_log(
    workspace: Workspace, looking: Worker, monkeypatch: pytest.MonkeyPatch, behaviour: str, error: str
) -> None:
    monkeypatch.setenv("FAKE_TRAINER", behaviour)
    job = reached(workspace, create(workspace), "failed")
    assert job.error == error
    saved = {"crash": ["dpo/0001 step 1"], "bad": []}[behaviour]
    assert [c.name for c in checkpoints.of_run(workspace.store, job.id)] == saved


def test_a_run_that_is_just_ending_still_tells_its_exit_status(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that exits loses its command line before it can be waited for; that is not yet its end."""
    monkeypatch.setenv("FAKE_TRAINER", "slow")
    with at_its_post(workspace):
        job_id = create(workspace)
        process = at_work(workspace, job_id)
        monkeypatch.setattr(worker, "_belongs", lambda *_: False)
        time.sleep(0.2)  # ten looks
        assert jobs.get(workspace.store, job_id).state == "running"
        process.kill()
        job = reached(workspace, job_id, "interrupted")
        assert job.error is not None
        assert "SIGKILL" in job.error


def test_a_killed_run_is_interrupted_and_resumes(
    workspace: Workspace, looking: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRAINER", "slow")
    job_id = create(workspace)
    process = at_work(workspace, job_id)
    process.kill()
    job = reached(workspace, job_id, "interrupted")
    assert job.error is not None
    assert "SIGKILL" in job.error
    assert "step 1 of 3" in job.error
    assert not psutil.pid_exists(process.pid), "a zombie is left"
    monkeypatch.delenv("FAKE_TRAINER")
    jobs.resume(workspace, job_id)
    assert reached(workspace, job_id, "finished").error is None
    assert "resuming after step 1" in (workspace.runs_folder / job_id / "log.txt").read_text()
    assert [c.step for c in checkpoints.of_run(workspace.store, job_id)] == [1, 2, 3]


def test_a_run_that_does_not_stop_is_killed_after_the_grace(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRAINER", "deaf")
    with at_its_post(workspace, grace=0.5):
        job_id = create(workspace)
        process = at_work(workspace, job_id)
        jobs.request_stop(workspace.store, job_id)
        job = reached(workspace, job_id, "interrupted", "stopped")
    assert job.error == "the run did not stop in time and was killed (SIGKILL) at step 1 of 3"
    assert not psutil.pid_exists(process.pid)


def test_the_run_outlives_the_worker_and_is_found_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, process = orphan(workspace, monkeypatch)
    assert process.is_running()
    with at_its_post(workspace) as again:
        wait_for(lambda: again._lock)
        assert jobs.get(workspace.store, job_id).pid == process.pid, "the run was not taken up but started anew"
        jobs.request_stop(workspace.store, job_id)
        reached(workspace, job_id, "stopped")


@pytest.mark.parametrize(("end", "state"), [("finish", "finished"), ("kill", "interrupted")])
def test_a_run_that_ended_while_nobody_looked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, end: str, state: str
) -> None:
    job_id, process = orphan(workspace, monkeypatch)
    if end == "kill":
        process.kill()
    else:
        folder = workspace.runs_folder / job_id
        process.terminate()
        wait_for(lambda: worker.read_status(folder).get("state") == "stopped")
        text = (folder / "status.json").read_text()
        (folder / "status.json").write_text(text.replace('"stopped"', '"finished"'))
    process.wait(30)
    with at_its_post(workspace):
        job = reached(workspace, job_id, "finished", "failed", "interrupted", "stopped")
    assert job.state == state


def test_another_process_with_the_same_pid_is_not_the_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot the pid may belong to anything; neither is the run alive then, nor may that be killed."""
    job_id = create(workspace)
    assert jobs.claim(workspace.store) is not None
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    try:
        jobs.set_process(workspace.store, job_id, stranger.pid, psutil.Process(stranger.pid).create_time() - 3600)
        jobs.request_stop(workspace.store, job_id)
        one = Worker(workspace)
        one.tick()
        assert jobs.get(workspace.store, job_id).state == "stopped"
        # the same start time, but not our command
        jobs.resume(workspace, job_id)
        assert jobs.claim(workspace.store) is not None
        jobs.set_process(workspace.store, job_id, stranger.pid, psutil.Process(stranger.pid).create_time())
        one.tick()
        assert jobs.get(workspace.store, job_id).state == "interrupted"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_claim_whose_worker_died_before_the_start_goes_back_to_the_queue(workspace: Workspace) -> None:
    job_id = create(workspace)
    assert jobs.claim(workspace.store) is not None
    Worker(workspace).tick()
    assert jobs.get(workspace.store, job_id).state == "queued"


def test_a_process_whose_pid_was_not_noted_is_found(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINER", "slow")
    job_id = create(workspace)
    one = Worker(workspace)
    one.tick()
    process = at_work(workspace, job_id, by_hand=one)
    with workspace.store.write() as db:
        db.execute("UPDATE jobs SET pid = NULL, process_started = NULL")
    one.tick()
    job = jobs.get(workspace.store, job_id)
    assert (job.state, job.pid) == ("running", process.pid)
    process.kill()


def test_one_worker_a_workspace(workspace: Workspace) -> None:
    first, second = Worker(workspace), Worker(workspace)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_the_lock_of_a_killed_app_is_free(workspace: Workspace) -> None:
    app = other_app(workspace)
    mine = Worker(workspace)
    try:

        def taken() -> bool:
            if mine.acquire():
                mine.release()
                return False
            return True

        wait_for(taken)
    finally:
        app.send_signal(signal.SIGKILL)
        app.wait()
    assert mine.acquire()
    mine.release()


def test_what_cannot_be_started_is_a_failed_run(
    workspace: Workspace, looking: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PROGRAM", ("/nonexistent/python",))
    job = reached(workspace, create(workspace), "failed")
    assert "could not be started" in (job.error or "")


def test_the_log_s_tail_is_bounded_and_progress_bars_show_their_last_state(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("old line\n" * 5000 + "10%\r50%\r100%\r\nlast\n")
    tail = worker.log_tail(tmp_path, 100)
    assert len(tail) <= 100
    assert tail.splitlines()[-2:] == ["100%", "last"]
    assert tail.splitlines()[0] == "old line"
    assert worker.log_tail(tmp_path / "missing") == ""


def test_a_status_from_before_the_resume_does_not_count(workspace: Workspace) -> None:
    job_id = create(workspace)
    job = jobs.claim(workspace.store)
    assert job is not None
    folder = workspace.runs_folder / job_id
    (folder / "status.json").write_text(f'{{"state": "finished", "updated_at": {time.time() - 60}}}')
    assert worker.outcome(job, folder, 1)[0] == "failed"
    (folder / "status.json").write_text(f'{{"state": "finished", "updated_at": {time.time() + 1}}}')
    assert worker.outcome(job, folder, 0)[0] == "finished"


def test_a_launcher_takes_the_place_of_python_and_the_run_stops_by_its_folder(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real processes under accelerate; SIGTERM would have the launcher kill them 30 s later."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(worker, "_signal_group", lambda *_: pytest.fail("a signal was sent"))
    launcher = "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0"
    workspace = open_workspace(tmp_path, str(tiny_model), seed_file=None, launcher=launcher)
    rank(workspace, 4)
    job_id = new_jobs.create(workspace, local_owner(workspace.store), "dpo", {"max_steps": 100_000, "lora_rank": 2})
    one = Worker(workspace, grace=120)
    one.tick()
    folder = workspace.runs_folder / job_id
    try:
        wait_for(lambda: len(run_folder.read_metrics(folder)) > 2, 180)
        log = (folder / "log.txt").read_text()
        assert "accelerate launch --multi_gpu --num_processes 2" in log.splitlines()[0]
        assert f"-m training dpo --config {folder}/config.json" in log.splitlines()[0]
        job = jobs.get(workspace.store, job_id)
        assert job.pid is not None
        workers = psutil.Process(job.pid).children(recursive=True)
        assert len([p for p in workers if str(folder) in p.cmdline()]) == 2
        jobs.request_stop(workspace.store, job_id)

        def ended() -> bool:
            one.tick()
            return jobs.get(workspace.store, job_id).state != "running"

        wait_for(ended, 120)
        assert jobs.get(workspace.store, job_id).state == "stopped"
        assert run_folder.checkpoints(folder)
        assert not (folder / "control.json").exists()
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if str(folder) in (process.info["cmdline"] or []):
                process.kill()


def test_a_launcher_s_words_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LAUNCHER=srun 'python is no command"):
        open_workspace(tmp_path, "no-model", seed_file=None, launcher="srun 'python")
    workspace = open_workspace(tmp_path, "no-model", seed_file=None, launcher="ssh host '/a b/python'")
    rank(workspace, 1)
    job = jobs.get(workspace.store, create(workspace))
    assert jobs.command(workspace, job)[:5] == ["ssh", "host", "/a b/python", "-m", "training"]
