"""What people do with checkpoints: name, annotate, archive and delete them, with what depends on them shown first."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from data.records import InputError
from labeler import checkpoint_work, checkpoints, packages
from labeler.checkpoints import Checkpoint
from labeler.store import Row, Store, rows, scalar
from labeler.workspace import Workspace

LONGEST_NAME, LONGEST_NOTE, LONGEST_TAG, MOST_TAGS = 80, 4000, 40, 12
RESERVED = re.compile(r"(\w+/\d{4} step \d+|base .*)")
"""Names that the next checkpoint of a run or the next base model may want."""


@dataclass(frozen=True)
class Dependents:
    """What rests on a checkpoint. `trained` are checkpoints that started from it or learned from its scores."""

    trained: tuple[str, ...]
    runs: tuple[str, ...]
    completions: int
    votes: int

    def __str__(self) -> str:
        parts = [
            _named(self.trained, "later checkpoint"),
            _named(self.runs, "run"),
            f"{self.completions:,} completion{'' if self.completions == 1 else 's'}",
            f"{self.votes:,} vote{'' if self.votes == 1 else 's'} on them",
        ]
        return ", ".join(part for part in parts if part)


def _named(names: tuple[str, ...], noun: str) -> str:
    if not names:
        return f"no {noun}"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({', '.join(names[:3])}{more})"


def tags_of(text: str) -> list[str]:
    """Tags out of "good, for chat": lower case, each once, in the order given. Raises InputError."""
    found = list(dict.fromkeys(" ".join(part.lower().split()) for part in text.split(",")))
    found = [tag for tag in found if tag]
    if len(found) > MOST_TAGS or any(len(tag) > LONGEST_TAG for tag in found):
        raise InputError(f"give at most {MOST_TAGS} tags of at most {LONGEST_TAG} characters, with commas between")
    return found


def check_name(name: str) -> None:
    """Raises InputError where a person may not give this name."""
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise InputError(f"a name needs 1 to {LONGEST_NAME} characters")
    if RESERVED.fullmatch(name):
        raise InputError(f"{name} is how the app names checkpoints itself; choose another name")


def edit(store: Store, checkpoint_id: int, name: str, note: str, tags: str) -> None:
    """Rename and annotate. Raises InputError where the name is empty, taken, or one that the app gives itself."""
    before = checkpoints.get(store, checkpoint_id)
    name, note, found = " ".join(name.split()), note.strip(), tags_of(tags)
    if name != before.name:
        check_name(name)
    if len(note) > LONGEST_NOTE:
        raise InputError(f"a note may have {LONGEST_NOTE:,} characters, not {len(note):,}; shorten it")
    try:
        with store.write() as db:
            db.execute(
                "UPDATE checkpoints SET name = ?, note = ?, tags = ? WHERE id = ?",
                [name, note, json.dumps(found), checkpoint_id],
            )
    except sqlite3.IntegrityError:
        raise InputError(f"another checkpoint is called {name} already; choose another name") from None


def archive(workspace: Workspace, checkpoint_id: int, archived: bool) -> None:
    """Take a checkpoint out of the menus, or bring it back. Its files stay."""
    if checkpoint_id == workspace.base_checkpoint_id and archived:
        raise InputError("the base model that the app runs with cannot be archived; everything starts from it")
    checkpoints.get(workspace.store, checkpoint_id)
    with workspace.store.write() as db:
        now = time.time() if archived else None
        db.execute("UPDATE checkpoints SET archived_at = ? WHERE id = ?", [now, checkpoint_id])


def dependents(db: Database, checkpoint_id: int) -> Dependents:
    """What was made from this checkpoint and would lose its origin's files."""
    trained = rows(
        db,
        """SELECT c.name FROM checkpoints AS c LEFT JOIN jobs AS j ON j.id = c.run_id
            WHERE c.deleted_at IS NULL AND c.id != :id AND (c.parent_id = :id OR j.reward_checkpoint_id = :id)
            ORDER BY c.id""",
        {"id": checkpoint_id},
    )
    runs = rows(
        db,
        "SELECT id FROM jobs WHERE parent_checkpoint_id = :id OR reward_checkpoint_id = :id ORDER BY id",
        {"id": checkpoint_id},
    )
    votes = """SELECT count(*) FROM in_force WHERE task_id IN (SELECT tc.task_id FROM completions AS c
        JOIN task_completions AS tc ON tc.completion_id = c.id WHERE c.checkpoint_id = ?)"""
    return Dependents(
        tuple(row["name"] for row in trained),
        tuple(checkpoints.run_label(row["id"]) for row in runs),
        scalar(db, "SELECT count(*) FROM completions WHERE checkpoint_id = ?", [checkpoint_id]),
        scalar(db, votes, [checkpoint_id]),
    )


def delete(workspace: Workspace, checkpoint_id: int) -> Checkpoint:
    """Delete a checkpoint's files; its row stays as a tombstone. Returns what it was.

    Raises InputError for a base model and for what a queued or running run works with.
    """
    working = checkpoint_work.running(workspace, checkpoint_id)
    if working:
        raise InputError(f"it is just being used ({', '.join(working)}); wait until that is done, then delete")
    with workspace.store.write() as db:  # no run is queued between the look and the deed
        found = checkpoints.get(workspace.store, checkpoint_id)
        if found.kind == "base":
            raise InputError("a base model cannot be deleted; archive it to have it out of sight")
        users = [job["id"] for job in _open_jobs(db) if _works_with(workspace, job, found)]
        if users:
            label = checkpoints.run_label(users[0])
            raise InputError(f"{found.name} is in use by {label}; wait until it is done, or stop it, then delete")
        db.execute("UPDATE checkpoints SET deleted_at = ? WHERE id = ? AND deleted_at IS NULL",
                   [time.time(), checkpoint_id])  # fmt: skip
    packages.merged_zip(workspace, checkpoint_id).unlink(missing_ok=True)
    if found.path is not None:
        _remove(workspace, workspace.folder / found.path)
    return found


def _open_jobs(db: Database) -> list[Row]:
    return rows(db, "SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY id")


def _works_with(workspace: Workspace, job: Row, checkpoint: Checkpoint) -> bool:
    """Whether a job starts from the checkpoint, is scored by it, samples it, or made it and may go on from it."""
    config = json.loads(job["config"])
    judge = checkpoints.at(workspace, config.get("judge_model"))
    ids = {job["parent_checkpoint_id"], job["reward_checkpoint_id"], config.get("checkpoint_id")}
    ids |= {judge.id} if judge else set()
    ids |= {each["id"] for each in config.get("checkpoints") or []}
    # a job in a chain waits for the final checkpoint of another one
    runs = {job["id"], job.get("parent_job"), job.get("reward_job")}
    return checkpoint.id in ids or (checkpoint.run_id is not None and checkpoint.run_id in runs)


def _remove(workspace: Workspace, folder: Path) -> None:
    """Delete a checkpoint's folder, through another name so that nobody loads a part of it, and its resume state."""
    folder = folder.resolve()
    if not folder.is_relative_to(workspace.folder.resolve()) or not folder.is_dir():
        return  # pruned before
    going = folder.with_name(f".partial-{folder.name}-old")
    shutil.rmtree(going, ignore_errors=True)
    try:
        folder.rename(going)
        shutil.rmtree(going)
        if folder.parent.name == "checkpoints":
            (folder.parent.parent / "state" / folder.name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"it is deleted here, but its files could not all be removed ({error.strerror}); remove {going} by hand"
        ) from None
