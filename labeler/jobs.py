"""Training runs as rows: asked for here, carried out by the worker."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.records import InputError
from labeler import chains, checkpoints
from labeler.store import Row, Store, one, rows, scalar
from labeler.workspace import Workspace
from training import run_folder

PROGRAM: tuple[str, ...] = (sys.executable, "-m", "training")
PROJECT = Path(__file__).resolve().parent.parent

SNAPSHOT_KINDS = {"sft": "demonstrations", "reward": "preferences", "dpo": "preferences", "ppo": "prompts"}
"""What each method learns from."""

SELECT, SAMPLE, CURVE = "select", "sample", "curve"
"""Runs that train nothing: they order a project's tasks (`labeler.selection`), make one (`labeler.sampling`), or say
what more labels would buy (`labeler.rounds`)."""
LOCAL = {SELECT: "labeler.selection_run", SAMPLE: "labeler.sampling_run", CURVE: "labeler.curve_run"}
"""Their modules. They run here even where a launcher runs the training elsewhere, since they write to the store."""

TITLES = {
    "sft": "SFT",
    "reward": "Reward model",
    "dpo": "DPO",
    "ppo": "PPO",
    SELECT: "Selection",
    SAMPLE: "Sampling",
    CURVE: "Learning curve",
}

OPEN_STATES = ("queued", "running")
RESUMABLE_STATES = ("failed", "stopped", "interrupted")


@dataclass(frozen=True)
class Job:
    """One run. Times are unix seconds. `pid` with `process_started` names a process; a pid alone may be reused.

    Of those that wait, the one with the lowest `position` starts next. A chained run waits for `parent_job`, from
    whose last checkpoint it starts, and `reward_job`, whose reward model it uses; `stopped_by` is the run whose end
    took it off the queue.
    """

    id: str
    method: str
    config: dict[str, Any]
    state: str
    snapshot_id: int | None
    parent_checkpoint_id: int
    reward_checkpoint_id: int | None
    resume: bool
    queued_at: float
    stop_requested_at: float | None
    pid: int | None
    process_started: float | None
    error: str | None
    result: dict[str, Any] | None
    created_by: int | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    position: int
    parent_job: str | None
    reward_job: str | None
    stopped_by: str | None

    @property
    def needs(self) -> list[str]:
        """The runs that must have finished before this one can start."""
        return [job_id for job_id in (self.parent_job, self.reward_job) if job_id]

    @property
    def label(self) -> str:
        return checkpoints.run_label(self.id)


def _from_row(row: Row) -> Job:
    result = json.loads(row["result"]) if row["result"] else None
    return Job(**{**row, "config": json.loads(row["config"]), "result": result, "resume": bool(row["resume"])})


def get(store: Store, job_id: str) -> Job:
    """Raises InputError where there is no such run."""
    row = one(store.db, "SELECT * FROM jobs WHERE id = ?", [job_id])
    if row is None:
        raise InputError(f"there is no run {job_id}")
    return _from_row(row)


def list_jobs(store: Store, states: Sequence[str] = ()) -> list[Job]:
    """Newest first; all of them, or those in the given states."""
    where = f"WHERE state IN ({', '.join('?' for _ in states)})" if states else ""
    return [_from_row(row) for row in rows(store.db, f"SELECT * FROM jobs {where} ORDER BY id DESC", list(states))]


def queue(store: Store) -> list[Job]:
    """Those that wait, in the order in which they will be started."""
    sql = "SELECT * FROM jobs WHERE state = 'queued' ORDER BY position"
    return [_from_row(row) for row in rows(store.db, sql)]


def last_position(db: Database) -> int:
    """Behind every run there was."""
    return int(scalar(db, "SELECT coalesce(max(position), 0) FROM jobs"))


def request_stop(store: Store, job_id: str) -> None:
    """Ask a run to save and stop; one that still waits is taken off the queue, and with it those that wait for it.

    Asking twice changes nothing.
    """
    now = time.time()
    with store.write() as db:
        waited = db.execute(
            "UPDATE jobs SET state = 'stopped', finished_at = ? WHERE id = ? AND state = 'queued'", [now, job_id]
        ).rowcount
        if waited:
            chains.cancel_followers(db, job_id)
        db.execute(
            "UPDATE jobs SET stop_requested_at = ? WHERE id = ? AND state = 'running' AND stop_requested_at IS NULL",
            [now, job_id],
        )


def resume(workspace: Workspace, job_id: str) -> None:
    """Queue a run that did not finish; it goes on from its newest checkpoint, or starts again where it has none.

    What was cancelled because of it is queued again. Raises InputError where it waits for a run that has failed.
    """
    job = get(workspace.store, job_id)
    if not (workspace.runs_folder / job_id / "config.json").is_file():
        raise InputError(f"the folder of {job.label} is gone, so it cannot be resumed; start a new run")
    with workspace.store.write() as db:
        for need in job.needs:
            chains.check_awaited(db, need)
        changed = db.execute(
            f"""UPDATE jobs SET state = 'queued', resume = 1, queued_at = ?, position = ?, stop_requested_at = NULL,
                started_at = NULL, finished_at = NULL, pid = NULL, process_started = NULL, error = NULL,
                stopped_by = NULL
            WHERE id = ? AND state IN ({", ".join("?" for _ in RESUMABLE_STATES)})""",
            [time.time(), last_position(db) + 1, job_id, *RESUMABLE_STATES],
        ).rowcount
        if not changed:
            raise InputError(f"{job.label} is {get(workspace.store, job_id).state}; there is nothing to resume")
        chains.revive_followers(db, job_id)


def claim(store: Store) -> Job | None:
    """The first run that waits for nothing but its turn becomes the running one, unless one runs already. Atomic."""
    with store.write() as db:
        row = one(
            db,
            """UPDATE jobs SET state = 'running', started_at = ?, pid = NULL, process_started = NULL
            WHERE id = (SELECT id FROM jobs AS j WHERE state = 'queued' AND NOT EXISTS (
                    SELECT 1 FROM jobs AS need WHERE need.id IN (j.parent_job, j.reward_job)
                        AND need.state != 'finished') ORDER BY position LIMIT 1)
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE state = 'running')
            RETURNING *""",
            [time.time()],
        )
    return _from_row(row) if row else None


def set_process(store: Store, job_id: str, pid: int, started: float) -> None:
    with store.write() as db:
        db.execute("UPDATE jobs SET pid = ?, process_started = ? WHERE id = ?", [pid, started, job_id])


def requeue(store: Store, job_id: str) -> None:
    """Put back a run whose process was never started."""
    with store.write() as db:
        db.execute("UPDATE jobs SET state = 'queued' WHERE id = ? AND state = 'running'", [job_id])


def close(store: Store, job_id: str, state: str, error: str | None, result: dict[str, Any] | None) -> None:
    """A running job has ended. Where it did not finish, what waits for it is cancelled."""
    with store.write() as db:
        ended = db.execute(
            """UPDATE jobs SET state = ?, error = ?, result = ?, finished_at = ?, pid = NULL, process_started = NULL
            WHERE id = ? AND state = 'running'""",
            [state, error, json.dumps(result) if result is not None else None, time.time(), job_id],
        ).rowcount
        if ended and state != "finished":
            chains.cancel_followers(db, job_id)


def command(workspace: Workspace, job: Job) -> list[str]:
    """The run's command, with absolute paths. The workspace's launcher takes the place of this python."""
    folder = (workspace.runs_folder / job.id).resolve()
    if job.method in LOCAL:
        return [sys.executable, "-m", LOCAL[job.method], "--output", str(folder)]
    python, *program = PROGRAM
    words = [
        *(_launcher(workspace) or [python]),
        *program,
        job.method,
        "--config",
        str(folder / "config.json"),
        "--output",
        str(folder),
    ]
    if job.resume and run_folder.checkpoints(folder):
        words.append("--resume")
    return words


def _launcher(workspace: Workspace) -> list[str]:
    """The launcher's words; a program beside this python (accelerate) is found there even where no PATH names it."""
    if not workspace.launcher:
        return []
    first, *others = workspace.launcher
    beside = Path(sys.executable).with_name(first)
    return [str(beside) if "/" not in first and beside.is_file() else first, *others]


def command_line(workspace: Workspace, job: Job) -> str:
    """The same, as one could type it in any folder."""
    return f"cd {shlex.quote(str(PROJECT))} && {shlex.join(command(workspace, job))}"


def running_line(store: Store) -> str:
    """What is going on, in a few plain words for the header: "DPO 62/200, 4 min left · 2 waiting". "" when idle."""
    parts = []
    for job in list_jobs(store, ["running"]):
        status = run_folder.read_status(store.path.parent / "runs" / job.id) or {}
        parts.append(progress_line(job, status))
    waiting = len(queue(store))
    if waiting:
        parts.append(f"{waiting} waiting")
    return " · ".join(parts)


def progress_line(job: Job, status: dict[str, Any]) -> str:
    """ "DPO 62/200, 4 min left" from a job and its status.json."""
    title = TITLES.get(job.method, job.method)
    if job.stop_requested_at is not None:
        return f"{title} is saving and stopping"
    step, total, eta = status.get("step"), status.get("total_steps"), status.get("eta_seconds")
    if not fresh(job, status) or not total:
        return f"{title} is starting"
    left = f", {duration(eta)} left" if eta is not None and step else ""
    return f"{title} {step}/{total}{left}"


def fresh(job: Job, status: dict[str, Any] | None) -> bool:
    """Whether status.json was written by this start of the run, not by the one before a resume."""
    return (
        bool(status) and job.started_at is not None and float((status or {}).get("updated_at") or 0) >= job.started_at
    )


def duration(seconds: float) -> str:
    """A time span in the words people use: "40 s", "4 min", "1 h 20 min"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
