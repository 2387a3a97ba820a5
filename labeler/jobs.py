"""Training runs as rows: asked for here, carried out by the worker."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.preferences import file_sha256
from data.records import InputError
from labeler import chains, checkpoints, estimates, snapshots
from labeler.store import Row, Store, one, rows, scalar
from labeler.users import User
from labeler.workspace import Workspace
from training import knobs, run_folder
from training.config import METHODS

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


def create(
    workspace: Workspace,
    user: User,
    method: str,
    settings: dict[str, Any],
    filters: dict[str, Any] | None = None,
    *,
    parent_id: int | None = None,
    reward_id: int | None = None,
    parent_job: str | None = None,
    reward_job: str | None = None,
) -> str:
    """Snapshot the data, write the run folder, queue the run; returns its id.

    settings: knobs by name; what is left out keeps its default. parent_id: the policy checkpoint to start from
    (None: the base model). reward_id: the reward model, for PPO only. parent_job, reward_job: in their place the last
    checkpoint of a run that has yet to make it; the new run waits for it.
    Raises InputError, and leaves nothing behind, where a setting is wrong, there is nothing to learn from, or the run
    cannot fit into the memory.
    """
    with together(workspace, user) as batch:
        return batch.create(
            method,
            settings,
            filters,
            parent_id=parent_id,
            reward_id=reward_id,
            parent_job=parent_job,
            reward_job=reward_job,
        )


def add(
    workspace: Workspace,
    user: User,
    method: str,
    kind: str | None,
    filters: dict[str, Any] | None,
    config: Callable[[Path], dict[str, Any]],
    parent_id: int,
    reward_id: int | None,
) -> str:
    """Queue a run in a new folder, with a snapshot of that kind; its id. `config` is told where the snapshot will be.

    Without a kind there is no snapshot: `config` writes what the run needs to where it is told.
    Whatever is raised on the way leaves nothing behind.
    """
    with together(workspace, user) as batch:
        return batch.add(method, kind, filters, config, parent_id, reward_id)


@contextmanager
def together(workspace: Workspace, user: User) -> Iterator[Batch]:
    """Runs that are queued together at the end of the block, or none of them and nothing left behind."""
    batch = Batch(workspace, user)
    try:
        yield batch
        batch.queue()
    except BaseException:
        for new in batch.made:
            shutil.rmtree(new.folder, ignore_errors=True)
        raise


@dataclass
class _New:
    """A run whose folder is made and whose row is not."""

    folder: Path
    row: Row
    data: Path
    kind: str | None
    filters: dict[str, Any] | None
    erasures: int = 0
    written: tuple[dict[str, Any], dict[str, int], str] = ({}, {}, "")

    def write(self, store: Store) -> None:
        """The snapshot's file. It may be long, so nobody who ranks waits for it."""
        assert self.kind is not None
        self.erasures = erasures(store)
        chosen, counts = snapshots.write_file(store, self.data, self.kind, self.filters)
        self.written = chosen, counts, file_sha256(self.data)


class Batch:
    """What `together` collects. A run may wait for those before it in the batch."""

    def __init__(self, workspace: Workspace, user: User) -> None:
        self.workspace, self.user = workspace, user
        self.made: list[_New] = []

    def create(
        self,
        method: str,
        settings: dict[str, Any],
        filters: dict[str, Any] | None = None,
        *,
        parent_id: int | None = None,
        reward_id: int | None = None,
        parent_job: str | None = None,
        reward_job: str | None = None,
    ) -> str:
        """As `jobs.create`."""
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
        workspace = self.workspace
        settings = {**settings, "base_model": _portable_model(workspace.base_model)}
        if parent_job is not None:
            settings["from_checkpoint"] = self._awaited(parent_job, "policy")
            parent_id = workspace.base_checkpoint_id  # until it is known
        elif parent_id is None or parent_id == workspace.base_checkpoint_id:
            parent_id = workspace.base_checkpoint_id
        else:
            settings["from_checkpoint"] = str(usable(workspace, parent_id, "policy"))
        if method != "ppo":
            reward_id = reward_job = None
        elif reward_job is not None:
            settings["reward_model"], reward_id = self._awaited(reward_job, "reward"), None
        elif reward_id is not None:
            settings["reward_model"] = str(usable(workspace, reward_id, "reward"))
        else:
            raise InputError("PPO needs a reward model to learn from; train one first, then choose it here")
        estimates.admit(workspace, method, settings, filters)

        def config(data: Path) -> dict[str, Any]:
            given = {**settings, "data": str(data), "output": str(data.parent)}
            return knobs.to_dict(knobs.from_dict(METHODS[method], given))

        kind = SNAPSHOT_KINDS[method]
        job_id = self.add(method, kind, filters, config, parent_id, reward_id)
        self.made[-1].row |= {"parent_job": parent_job, "reward_job": reward_job}
        return job_id

    def add(
        self,
        method: str,
        kind: str | None,
        filters: dict[str, Any] | None,
        config: Callable[[Path], dict[str, Any]],
        parent_id: int,
        reward_id: int | None,
    ) -> str:
        """As `jobs.add`."""
        folder = _new_folder(self.workspace, method)
        now = time.time()
        row = {
            "id": folder.name,
            "method": method,
            "state": "queued",
            "parent_checkpoint_id": parent_id,
            "reward_checkpoint_id": reward_id,
            "queued_at": now,
            "created_by": self.user.id,
            "created_at": now,
        }
        new = _New(folder, row, folder / f"{kind or 'data'}.jsonl", kind, filters)
        self.made.append(new)
        values = config(new.data)
        row["config"] = json.dumps(values)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        if kind is not None:
            new.write(self.workspace.store)
        return folder.name

    def queue(self) -> None:
        """Note snapshots and runs in one transaction, so that none is there without the others."""
        store = self.workspace.store
        with store.write() as db:
            for new in self.made:
                if new.kind is not None:
                    if new.erasures != erasures(store):  # somebody was deleted meanwhile, and may be in the file
                        new.write(store)
                    chosen, counts, digest = new.written
                    made = snapshots.remember(store, new.data, new.kind, "rows", chosen, counts, self.user, digest)
                    new.row["snapshot_id"] = made.id
                for need in (new.row.get("parent_job"), new.row.get("reward_job")):
                    if need is not None:
                        chains.check_awaited(db, need)  # it may have failed since
                for used in (new.row.get("parent_checkpoint_id"), new.row.get("reward_checkpoint_id")):
                    if used is not None and checkpoints.get(store, used).deleted_at is not None:
                        raise InputError("a checkpoint that this run needs was deleted meanwhile; choose another one")
                db.table("jobs").insert(new.row | {"position": last_position(db) + 1})

    def _awaited(self, job_id: str, kind: str) -> str:
        """Where the checkpoint of a run will lie. Raises InputError where it will not make one of that kind."""
        method = {new.folder.name: new.row["method"] for new in self.made}.get(job_id)
        if method is None:
            method = get(self.workspace.store, job_id).method
        if method in LOCAL or ("reward" if method == "reward" else "policy") != kind:
            raise InputError(f"{checkpoints.run_label(job_id)} makes no {kind} model; choose another run to wait for")
        return str(self.workspace.runs_folder.resolve() / job_id)


def erasures(store: Store) -> int:
    """How many people's data were deleted until now."""
    return int(scalar(store.db, "SELECT count(*) FROM erasures"))


def last_position(db: Database) -> int:
    """Behind every run there was."""
    return int(scalar(db, "SELECT coalesce(max(position), 0) FROM jobs"))


def _portable_model(name: str) -> str:
    """A local folder by its absolute path, so that the command line works from anywhere; a hub name as it is."""
    path = Path(name)
    return str(path.resolve()) if path.exists() else name


def usable(workspace: Workspace, checkpoint_id: int, kind: str) -> Path:
    """The folder of a checkpoint of that kind on the workspace's base. Raises InputError where it is none."""
    checkpoint = checkpoints.get(workspace.store, checkpoint_id)
    path = checkpoints.folder(workspace, checkpoint)
    if checkpoint.kind != kind or path is None:
        raise InputError(f"{checkpoint.name} is a {checkpoint.kind} model; a {kind} model is needed here")
    if checkpoint.base_model != workspace.base_model:
        raise InputError(
            f"{checkpoint.name} belongs to another base model ({checkpoint.base_model}); choose another one"
        )
    return path


def _new_folder(workspace: Workspace, method: str) -> Path:
    """Make the next run's folder. mkdir is what makes the number ours alone."""
    workspace.runs_folder.mkdir(parents=True, exist_ok=True)
    taken = [path.name for path in workspace.runs_folder.iterdir()]
    taken += [row["id"] for row in rows(workspace.store.db, "SELECT id FROM jobs")]
    number = max((int(name[:4]) for name in taken if name[:4].isdigit()), default=0) + 1
    while True:
        if not any(workspace.runs_folder.glob(f"{number:04d}-*")):
            folder = workspace.runs_folder.resolve() / f"{number:04d}-{method}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                pass
        number += 1


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
