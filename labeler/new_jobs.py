"""Runs are asked for here: a folder, a snapshot of what to learn from, and a row in the queue, all of them or none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.preferences import file_sha256
from data.records import InputError
from labeler import chains, checkpoints, estimates, jobs, snapshots
from labeler.store import Row, Store, rows, scalar
from labeler.users import User
from labeler.workspace import Workspace
from training import knobs
from training.config import METHODS


def create(
    workspace: Workspace,
    user: User,
    method: str,
    settings: dict[str, Any],
    filters: dict[str, Any] | None = None,
    *,
    parent_id: int | None = None,
    reward_id: int | None = None,
    judge_id: int | None = None,
    parent_job: str | None = None,
    reward_job: str | None = None,
) -> str:
    """Snapshot the data, write the run folder, queue the run; returns its id.

    settings: knobs by name; what is left out keeps its default. parent_id: the policy checkpoint to start from
    (None: the base model). reward_id: the reward model, for PPO only. judge_id: another one that scores PPO's sample
    texts and has no part in the training. parent_job, reward_job: in their place the last
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
            judge_id=judge_id,
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
        self.erasures = _erasures(store)
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
        judge_id: int | None = None,
        parent_job: str | None = None,
        reward_job: str | None = None,
    ) -> str:
        """As the function of this name."""
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
            settings["from_checkpoint"] = str(checkpoints.usable(workspace, parent_id, "policy"))
        if method != "ppo":
            reward_id = reward_job = None
        elif reward_job is not None:
            settings["reward_model"], reward_id = self._awaited(reward_job, "reward"), None
        elif reward_id is not None:
            settings["reward_model"] = str(checkpoints.usable(workspace, reward_id, "reward"))
        else:
            raise InputError("PPO needs a reward model to learn from; train one first, then choose it here")
        if judge_id is not None and method == "ppo":
            settings["judge_model"] = str(checkpoints.usable(workspace, judge_id, "reward"))
        estimates.admit(workspace, method, settings, filters)

        def config(data: Path) -> dict[str, Any]:
            given = {**settings, "data": str(data), "output": str(data.parent)}
            return knobs.to_dict(knobs.from_dict(METHODS[method], given))

        kind = jobs.SNAPSHOT_KINDS[method]
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
        """As the function of this name."""
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
                    if new.erasures != _erasures(store):  # somebody was deleted meanwhile, and may be in the file
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
                db.table("jobs").insert(new.row | {"position": jobs.last_position(db) + 1})

    def _awaited(self, job_id: str, kind: str) -> str:
        """Where the checkpoint of a run will lie. Raises InputError where it will not make one of that kind."""
        method = {new.folder.name: new.row["method"] for new in self.made}.get(job_id)
        if method is None:
            method = jobs.get(self.workspace.store, job_id).method
        if method in jobs.LOCAL or ("reward" if method == "reward" else "policy") != kind:
            raise InputError(f"{checkpoints.run_label(job_id)} makes no {kind} model; choose another run to wait for")
        return str(self.workspace.runs_folder.resolve() / job_id)


def _erasures(store: Store) -> int:
    """How many people's data were deleted until now."""
    return int(scalar(store.db, "SELECT count(*) FROM erasures"))


def _portable_model(name: str) -> str:
    """A local folder by its absolute path, so that the command line works from anywhere; a hub name as it is."""
    path = Path(name)
    return str(path.resolve()) if path.exists() else name


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
