"""Deleting a person's data: what they said is gone from the database file, that it was deleted stays known.

Their events become tombstones, their tasks wait for somebody else, their name is replaced. Two steps: `erase` in one
transaction, then `clean` rewrites the file, because SQLite leaves deleted bytes where they were. What was copied
before (backups, exports that were taken away, trained checkpoints) is out of reach.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.formats import read_rows, write_rows
from data.records import InputError
from labeler import snapshots, tasks
from labeler.migrations import ERASED
from labeler.search import has_index
from labeler.store import Row, Store, explain, one, rows, scalar
from labeler.users import User
from training.files import write_json

ERASERS = ("lead", "owner")
NOBODY = '[{"role": "user", "content": "(erased)"}]'


@dataclass(frozen=True)
class Erasure:
    """What was deleted. `clean` is False while the deleted bytes may still be found in the file."""

    id: int
    counts: dict[str, int]
    clean: bool


def erase(store: Store, by: User, user_id: int, files: str) -> Erasure:
    """Delete what this person said. `files` of the snapshots that held it are to "delete" or "keep".

    Raises InputError where the one who asks may not, or would erase themselves.
    """
    if by.role not in ERASERS:
        raise InputError(f"{by.name} may not delete a person's data; ask a lead")
    if files not in ("delete", "keep"):
        raise InputError('say whether the files that hold it are to be deleted: "delete" or "keep"')
    with store.write() as db:
        person = one(db, "SELECT id, name, role FROM users WHERE id = ?", [user_id])
        if person is None:
            raise InputError(f"there is no user {user_id}")
        if person["id"] == by.id:
            raise InputError("nobody can delete their own data; ask another lead or owner")
        if person["role"] == "owner" and by.role != "owner":
            raise InputError("only an owner can delete an owner's data")
        held = [row for row in rows(db, "SELECT * FROM snapshots WHERE erased_at IS NULL") if _holds(db, row, person)]
        counts = _erase_words(db, user_id)
        prompts = _erase_own_prompts(db, user_id)
        if prompts:
            held += rows(db, "SELECT * FROM snapshots WHERE erased_at IS NULL AND kind = 'prompts'")
        counts |= {"prompts": len(prompts), "snapshots": len(held)}
        now = time.time()
        for row in held:
            changed = row["filters"].replace(json.dumps(person["name"]), json.dumps(f"erased-{user_id}"))
            db.execute("UPDATE snapshots SET erased_at = ?, filters = ? WHERE id = ?", [now, changed, row["id"]])
        _forget_person(db, user_id)
        cursor = db.execute(
            "INSERT INTO erasures (user_id, erased_by, counts) VALUES (?, ?, ?)", [user_id, by.id, json.dumps(counts)]
        )
        erasure_id = int(cursor.lastrowid or 0)
    if files == "delete":
        for row in held:
            _delete(store, row["path"])
            for run in rows(store.db, "SELECT id FROM jobs WHERE snapshot_id = ?", [row["id"]]):
                _delete(store, f"runs/{run['id']}/samples.jsonl")
    _delete_copies(store.path.parent, prompts)
    return Erasure(erasure_id, counts, clean(store))


def clean(store: Store) -> bool:
    """Rewrite the database without what was deleted; False where others kept it busy. Everybody waits meanwhile."""
    try:
        if has_index(store.db):
            with store.write() as db:
                db.execute("INSERT INTO search (search) VALUES ('delete-all')")  # deleted words stay in it otherwise
                columns = "event_id, prompt, completions, comment"
                db.execute(
                    f"INSERT INTO search ({columns.replace('event_id', 'rowid')})"
                    f" SELECT {columns} FROM ranking_texts ORDER BY event_id"
                )
        alone = store.db  # none of this can be done in a transaction
        alone.execute("PRAGMA secure_delete = ON")
        alone.execute("VACUUM")
        busy = alone.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if "locked" not in str(error) and "busy" not in str(error):
            raise InputError(f"{store.path}: {explain(error)}") from None
        return False
    if busy:
        return False
    with store.write() as db:
        db.execute("UPDATE erasures SET cleaned_at = ? WHERE cleaned_at IS NULL", [time.time()])
    return True


def _holds(db: Database, snapshot: Row, person: Row) -> bool:
    """Whether something this person said is in the snapshot."""
    filters: dict[str, Any] = json.loads(snapshot["filters"])
    name = person["name"].lower()
    if snapshot["kind"] == "demonstrations" and not filters.get("annotators"):
        sql = "SELECT 1 FROM completions WHERE written_by = ? AND created_at <= ? LIMIT 1"
        if scalar(db, sql, [person["id"], snapshot["created_at"]]):
            return True
    if snapshot["kind"] == "prompts" or name in map(str.lower, filters.get("exclude_annotators", [])):
        return False
    if "annotators" in filters and name not in map(str.lower, filters["annotators"]):
        return False
    return any(True for _ in snapshots.in_force(db, filters | {"annotators": [person["name"]]}))


def _erase_words(db: Database, user_id: int) -> dict[str, int]:
    """Events, drafts and answers. Their assignments are given back, so that the tasks wait for somebody else."""
    mine = "SELECT id FROM assignments WHERE user_id = :user"
    who = {"user": user_id}
    changed = db.execute(
        f"UPDATE events SET payload = '{ERASED}' WHERE payload != '{ERASED}'"
        f" AND (user_id = :user OR assignment_id IN ({mine}))",
        who,
    ).rowcount
    drafts = db.execute(f"DELETE FROM drafts WHERE assignment_id IN ({mine})", who).rowcount
    written = db.execute(
        "UPDATE completions SET text = '', sampling = '{}', source = 'erased' WHERE written_by = :user", who
    ).rowcount
    done = rows(db, "SELECT DISTINCT task_id FROM assignments WHERE user_id = :user AND state != 'released'", who)
    db.execute("UPDATE assignments SET state = 'released' WHERE user_id = :user", who)
    for row in done:
        tasks.recount(db, row["task_id"])
    return {"events": changed, "drafts": drafts, "answers": written}


def _erase_own_prompts(db: Database, user_id: int) -> list[int]:
    """What they typed into Compare and Chat, where nobody else ranked or uses it; the prompts' ids."""
    prompts = rows(
        db,
        """SELECT DISTINCT t.prompt_id FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
            JOIN prompts AS p ON p.id = t.prompt_id WHERE a.user_id = :user AND p.source IN ('compare', 'chat')
            AND NOT EXISTS (SELECT 1 FROM tasks AS o LEFT JOIN assignments AS b ON b.task_id = o.id
                WHERE o.prompt_id = p.id AND (b.user_id IS NULL OR b.user_id != :user))""",
        {"user": user_id},
    )
    for row in prompts:
        prompt_id = row["prompt_id"]
        db.execute(
            "UPDATE prompts SET messages = ?, content_hash = ?, external_id = NULL WHERE id = ?",
            [NOBODY, f"erased-{prompt_id}", prompt_id],
        )
        db.execute("UPDATE completions SET text = '', source = 'erased' WHERE prompt_id = ?", [prompt_id])
    return [row["prompt_id"] for row in prompts]


def _delete_copies(folder: Path, prompt_ids: list[int]) -> None:
    """What other parts of the app have written down for a time: texts to measure with, evaluations' samples and
    scratch, prompts that wait to be answered."""
    for path in [*folder.glob("speed/*.texts"), *folder.glob("work/*/scratch/*.jsonl")]:
        path.unlink(missing_ok=True)
    for path in folder.glob("evaluations/*/result.json"):
        with contextlib.suppress(OSError, ValueError):
            write_json(path, json.loads(path.read_text("utf-8")) | {"samples": []})
    if prompt_ids:
        for path in folder.glob("runs/*-sample/data.jsonl"):
            with contextlib.suppress(OSError, ValueError):
                kept = [row for _, row in read_rows(path) if row.get("id") not in prompt_ids]
                write_rows(path, kept)


def _forget_person(db: Database, user_id: int) -> None:
    db.execute(
        "UPDATE users SET name = ?, password_hash = NULL, disabled_at = ? WHERE id = ?",
        [f"erased-{user_id}", time.time(), user_id],
    )
    for table in ("sessions", "members", "tokens", "qualifications", "invitations", "conversations", "system_prompts"):
        if one(db, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [table]):
            db.execute(f"DELETE FROM {table} WHERE user_id = ?", [user_id])


def _delete(store: Store, name: str) -> None:
    """Delete a snapshot's file or folder, where it lies in the workspace."""
    path = (store.path.parent / name).resolve()
    if path.is_relative_to(store.path.parent.resolve()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            path.with_name(f"{path.name}.zip").unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
