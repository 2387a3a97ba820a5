"""Runs that wait for others: what they learn of them at the start, and what becomes of them where those fail.

A chained run's data are snapshotted when it is created; the checkpoint it starts from or the reward model it uses are
known only when the runs before it have finished. Where one of those ends otherwise, all that wait for it are cancelled
and say because of which; they come back when that one is resumed or retried.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from sqlite_utils import Database

from data.records import InputError
from labeler import checkpoints
from labeler.checkpoints import Checkpoint, run_label
from labeler.store import one, rows
from labeler.workspace import Workspace
from training.files import write_json

if TYPE_CHECKING:
    from labeler.jobs import Job

ENDED_BADLY = {
    "failed": "failed",
    "stopped": "was stopped",
    "interrupted": "was interrupted",
}


def resolve(workspace: Workspace, job: Job) -> None:
    """Put the checkpoints of the runs that this one waited for into its configuration. Raises InputError where one
    left none.
    """
    if not job.needs:
        return
    found: dict[str, Any] = {}
    config = dict(job.config)
    if job.parent_job:
        checkpoint = last_checkpoint(workspace, job.parent_job)
        config["from_checkpoint"] = str(checkpoints.folder(workspace, checkpoint))
        found["parent_checkpoint_id"] = checkpoint.id
    if job.reward_job:
        checkpoint = last_checkpoint(workspace, job.reward_job)
        config["reward_model"] = str(checkpoints.folder(workspace, checkpoint))
        found["reward_checkpoint_id"] = checkpoint.id
    write_json(workspace.runs_folder / job.id / "config.json", config)
    with workspace.store.write() as db:
        db.table("jobs").update(job.id, found | {"config": json.dumps(config)})


def last_checkpoint(workspace: Workspace, job_id: str) -> Checkpoint:
    """The newest checkpoint of a run. Raises InputError where it has none."""
    made = checkpoints.of_run(workspace.store, job_id)
    if not made:
        raise InputError(f"{run_label(job_id)} left no checkpoint to go on from; retry it, then this run")
    return made[-1]


def check_awaited(db: Database, job_id: str) -> None:
    """Raises InputError where a run cannot be waited for, because it has ended without finishing."""
    row = one(db, "SELECT state FROM jobs WHERE id = ?", [job_id])
    if row is None:
        raise InputError(f"there is no run {job_id} to wait for")
    if row["state"] in ENDED_BADLY:
        raise InputError(f"{run_label(job_id)} {ENDED_BADLY[row['state']]}; resume or retry that one first")


def cancel_followers(db: Database, job_id: str) -> None:
    """Take off the queue whatever waits for this run, directly or through others, and say why."""
    row = one(db, "SELECT state FROM jobs WHERE id = ?", [job_id])
    assert row is not None
    label = run_label(job_id)
    why = f"cancelled, since {label} {ENDED_BADLY[row['state']]}; resume or retry {label} and this run follows it"
    db.execute(
        """WITH RECURSIVE waiting (id) AS (SELECT :job UNION SELECT j.id FROM jobs AS j JOIN waiting AS w
            ON w.id IN (j.parent_job, j.reward_job) WHERE j.state = 'queued')
        UPDATE jobs SET state = 'stopped', error = :why, stopped_by = :job, finished_at = :now
            WHERE state = 'queued' AND id IN (SELECT id FROM waiting)""",
        {"job": job_id, "why": why, "now": time.time()},
    )


def revive_followers(db: Database, job_id: str) -> None:
    """Queue again what was cancelled because of this run, unless it waits for another one that has failed too."""
    revived = rows(db, "SELECT id FROM jobs WHERE stopped_by = ? ORDER BY position", [job_id])
    for row in revived:  # behind the run that they need, which was put last
        db.execute(
            """UPDATE jobs SET state = 'queued', error = NULL, stopped_by = NULL, finished_at = NULL,
                position = (SELECT max(position) + 1 FROM jobs) WHERE id = ?""",
            [row["id"]],
        )
    for row in rows(
        db,
        """SELECT DISTINCT need.id FROM jobs AS j JOIN jobs AS need ON need.id IN (j.parent_job, j.reward_job)
            WHERE j.state = 'queued' AND need.state IN ('failed', 'stopped', 'interrupted')""",
    ):
        cancel_followers(db, row["id"])


def adopt_followers(workspace: Workspace, db: Database, old: str, new: str) -> None:
    """What was cancelled because of a run follows another one in its place."""
    place = str(workspace.runs_folder.resolve() / new)
    for column, knob in (("parent_job", "from_checkpoint"), ("reward_job", "reward_model")):
        db.execute(
            f"UPDATE jobs SET {column} = ?, config = json_set(config, ?, ?) WHERE {column} = ? AND state = 'stopped'"
            " AND stopped_by = ?",
            [new, f"$.{knob}", place, old, old],
        )
    revive_followers(db, old)
