"""What people do to the queue: another order, a run tried anew, a run's settings for another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from data.records import InputError
from labeler import chains, checkpoints, jobs, new_jobs
from labeler.jobs import Job
from labeler.store import Store, one
from labeler.users import User
from labeler.workspace import Workspace
from training.config import METHODS

GIVEN = ("base_model", "data", "output", "from_checkpoint", "reward_model")
"""Settings that belong to one run: the workspace or the run's place in a chain says what they are."""


def move(store: Store, job_id: str, places: int) -> None:
    """Move a waiting run this many places up (negative: it starts sooner) or down, as far as the queue goes.

    Raises InputError where it does not wait, or would come before a run that it needs.
    """
    with store.write() as db:
        queue = jobs.queue(store)
        order = [job.id for job in queue]
        if job_id not in order:
            raise InputError(f"{checkpoints.run_label(job_id)} does not wait any more; its place cannot be changed")
        place = order.index(job_id)
        order.insert(max(0, place + places), order.pop(place))
        for job in queue:
            for need in job.needs:
                if need in order and order.index(need) > order.index(job.id):
                    raise InputError(f"{job.label} needs {checkpoints.run_label(need)}, so it stays behind it")
        for each, position in zip(order, sorted(job.position for job in queue), strict=True):
            db.execute("UPDATE jobs SET position = ? WHERE id = ?", [position, each])


def retry(workspace: Workspace, user: User, job_id: str) -> str:
    """Queue a run that did not finish as a new run from its start: the same settings, the same labels. Its id.

    What was cancelled because of the old one follows the new one. Raises InputError.
    """
    store = workspace.store
    job = jobs.get(store, job_id)
    if job.state not in jobs.RESUMABLE_STATES:
        raise InputError(f"{job.label} is {job.state}; only a run that failed or was stopped can be retried")
    for need in job.needs:
        chains.check_awaited(store.db, need)
    with new_jobs.together(workspace, user) as batch:
        if job.method in METHODS:
            new = batch.create(
                job.method,
                settings(job),
                _filters(store, job),
                parent_id=None if job.parent_job else job.parent_checkpoint_id,
                reward_id=None if job.reward_job else job.reward_checkpoint_id,
                parent_job=job.parent_job,
                reward_job=job.reward_job,
            )
        else:
            kind = "preferences" if job.snapshot_id else None
            new = batch.add(
                job.method,
                kind,
                _filters(store, job),
                lambda data: _copied(job, data),
                job.parent_checkpoint_id,
                job.reward_checkpoint_id,
            )
    with store.write() as db:
        chains.adopt_followers(workspace, db, job_id, new)
    return new


def settings(job: Job) -> dict[str, Any]:
    """The knobs of a training run that another one can be given."""
    return {name: value for name, value in job.config.items() if name not in GIVEN}


def _filters(store: Store, job: Job) -> dict[str, Any]:
    """What the run's labels were chosen by, their end in time included."""
    row = one(store.db, "SELECT filters FROM snapshots WHERE id = ?", [job.snapshot_id])
    return json.loads(row["filters"]) if row else {}


def _copied(job: Job, data: Path) -> dict[str, Any]:
    """The configuration of a run that trains nothing, with a copy of its data where it has no snapshot."""
    if job.snapshot_id is None:
        try:
            shutil.copyfile(job.config["data"], data)
        except OSError as error:
            raise InputError(f"the data of {job.label} are gone ({error.strerror}); start a new run") from None
    return job.config | {"data": str(data)}
