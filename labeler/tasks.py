"""Tasks (a prompt and the completions to rank) and who is working on which.

An assignment is one person's work on one task. It holds the shuffled order in which that person sees the completions,
so that a reload shows the same, and a lease: while it lasts nobody else is given the task. States: open, released
(given back), submitted, skipped.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler.projects import FIRST, check_member, get_project
from labeler.store import Store, one, rows, scalar
from labeler.users import User

LEASE_SECONDS = 30 * 60.0


@dataclass(frozen=True)
class Completion:
    """A completion as an annotator may see it: nothing says which model it came from."""

    id: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True)
class Assignment:
    """One task for one annotator, completions in display order, with the draft they left (or None)."""

    id: int
    task_id: int
    prompt_id: int
    category: str
    messages: list[Message]
    completions: list[Completion]
    draft: dict[str, Any] | None


def create_task(
    db: Database,
    prompt_id: int,
    completion_ids: Sequence[int],
    *,
    project_id: int | None,
    overlap: int | None = None,
    source: str = "seed",
    gold_ranks: Sequence[int | None] | None = None,
    priority: float = 0.0,
    provenance: dict[str, Any] | None = None,
) -> int:
    """Queue these completions for `overlap` different people (None: as many as the project asks for); the task's id.

    Without a project nobody is given the task. `gold_ranks` are a known answer: the task tests annotators.
    `priority` and `provenance` say how soon it comes in a project with active order, and why.
    """
    if not 2 <= len(completion_ids) <= 9:
        raise InputError(f"a task needs 2 to 9 completions, not {len(completion_ids)}")
    if len(set(completion_ids)) != len(completion_ids):
        raise InputError("a task cannot hold the same completion twice")
    if overlap is None:
        overlap = 1 if project_id is None else get_project(db, project_id).overlap
    cursor = db.execute(
        "INSERT INTO tasks (prompt_id, overlap, source, project_id, gold_ranks, priority, provenance)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            prompt_id,
            overlap,
            source,
            project_id,
            None if gold_ranks is None else json.dumps(list(gold_ranks)),
            priority,
            None if provenance is None else json.dumps(provenance, ensure_ascii=False),
        ],
    )
    task_id = int(cursor.lastrowid or 0)
    for position, completion_id in enumerate(completion_ids):
        db.execute(
            "INSERT INTO task_completions (task_id, position, completion_id) VALUES (?, ?, ?)",
            [task_id, position, completion_id],
        )
    return task_id


def next_assignment(store: Store, user: User, project_id: int = FIRST) -> Assignment | None:
    """What this person should rank now: what they have open, else the first task with room; None when all is done.

    Raises InputError where they may not work in the project.
    """
    with store.write() as db:
        check_member(db, user, project_id)
        now = time.time()
        for row in rows(
            db,
            """SELECT a.id, a.task_id FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
               WHERE a.user_id = ? AND a.state = 'open' AND t.project_id = ? ORDER BY a.opened_at DESC""",
            [user.id, project_id],
        ):
            if room(db, row["task_id"], now, besides=row["id"]):
                db.execute("UPDATE assignments SET leased_until = ? WHERE id = ?", [now + LEASE_SECONDS, row["id"]])
                return get_assignment(db, row["id"], user)
            # the lease ran out and others have done it since
            db.execute("UPDATE assignments SET state = 'released' WHERE id = ?", [row["id"]])
        task_id = scalar(
            db,
            """SELECT t.id FROM tasks AS t
                WHERE t.submissions < t.overlap AND t.gold_ranks IS NULL AND t.project_id = :project
                    AND NOT EXISTS (SELECT 1 FROM assignments AS mine WHERE mine.task_id = t.id
                        AND mine.user_id = :user AND mine.state IN ('submitted', 'skipped'))
                    AND t.overlap > t.submissions + (SELECT count(*) FROM assignments AS a
                        WHERE a.task_id = t.id AND a.user_id != :user AND a.state = 'open' AND a.leased_until > :now)
                ORDER BY t.id LIMIT 1""",
            {"user": user.id, "now": now, "project": project_id},
        )
        if task_id is None:
            return None
        return get_assignment(db, open_assignment(db, task_id, user, now), user)


def open_assignment(db: Database, task_id: int, user: User, now: float, shuffle: bool = True) -> int:
    """Give the task to this person: a new assignment with a fresh shuffle, or the one they had, as it was.

    Without `shuffle` the completions were shown in the task's own order.
    """
    sql = "SELECT id FROM assignments WHERE task_id = ? AND user_id = ? AND purpose = 'label'"
    found = one(db, sql, [task_id, user.id])
    if found is not None:
        open_assignment_again(db, found["id"], now)
        return int(found["id"])
    order = completion_ids(db, task_id)
    if shuffle:
        random.SystemRandom().shuffle(order)
    cursor = db.execute(
        "INSERT INTO assignments (task_id, user_id, display_order, state, opened_at, leased_until)"
        " VALUES (?, ?, ?, 'open', ?, ?)",
        [task_id, user.id, json.dumps(order), now, now + LEASE_SECONDS],
    )
    return int(cursor.lastrowid or 0)


def open_assignment_again(db: Database, assignment_id: int, now: float) -> None:
    """Make an assignment the open one that comes first."""
    db.execute(
        "UPDATE assignments SET state = 'open', opened_at = ?, leased_until = ? WHERE id = ?",
        [now, now + LEASE_SECONDS, assignment_id],
    )


def renew(db: Database, assignment_id: int) -> None:
    """Extend the lease of an assignment that somebody is working on."""
    db.execute("UPDATE assignments SET leased_until = ? WHERE id = ?", [time.time() + LEASE_SECONDS, assignment_id])


def heartbeat(store: Store, user: User, assignment_id: int) -> bool:
    """Keep the lease of a task that somebody is looking at; False where it is not theirs or not open any more."""
    with store.write() as db:
        sql = "SELECT 1 FROM assignments WHERE id = ? AND user_id = ? AND state = 'open'"
        if one(db, sql, [assignment_id, user.id]) is None:
            return False
        renew(db, assignment_id)
        return True


def recount(db: Database, task_id: int) -> None:
    """Bring `tasks.submissions` in line with the assignments."""
    db.execute(
        "UPDATE tasks SET submissions = (SELECT count(*) FROM assignments"
        " WHERE task_id = tasks.id AND state = 'submitted' AND purpose = 'label') WHERE id = ?",
        [task_id],
    )


def room(db: Database, task_id: int, now: float, besides: int) -> bool:
    """Whether the task can take one more submission, not counting the assignment `besides`."""
    row = one(
        db,
        """SELECT t.overlap > (SELECT count(*) FROM assignments AS a WHERE a.task_id = t.id AND a.id != :besides
               AND a.purpose = 'label'
               AND (a.state = 'submitted' OR (a.state = 'open' AND a.leased_until > :now))) AS room
           FROM tasks AS t WHERE t.id = :task""",
        {"task": task_id, "now": now, "besides": besides},
    )
    return bool(row and row["room"])


def get_assignment(db: Database, assignment_id: int, user: User) -> Assignment:
    """An assignment of this person. Raises InputError where it is somebody else's."""
    row = one(
        db,
        """SELECT a.id, a.task_id, a.display_order, t.prompt_id, p.category, p.messages, d.payload AS draft
           FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id JOIN prompts AS p ON p.id = t.prompt_id
           LEFT JOIN drafts AS d ON d.assignment_id = a.id
           WHERE a.id = ? AND a.user_id = ?""",
        [assignment_id, user.id],
    )
    if row is None:
        raise InputError("this task is not yours; reload the page")
    found = {
        c["id"]: Completion(c["id"], c["text"], c["finish_reason"])
        for c in rows(
            db,
            """SELECT c.id, c.text, c.finish_reason FROM task_completions AS tc
               JOIN completions AS c ON c.id = tc.completion_id WHERE tc.task_id = ?""",
            [row["task_id"]],
        )
    }
    return Assignment(
        id=row["id"],
        task_id=row["task_id"],
        prompt_id=row["prompt_id"],
        category=row["category"],
        messages=json.loads(row["messages"]),
        completions=[found[i] for i in json.loads(row["display_order"])],
        draft=json.loads(row["draft"]) if row["draft"] else None,
    )


def completion_ids(db: Database, task_id: int) -> list[int]:
    """The task's completions in stored order: what `ranks` of an event is aligned with."""
    sql = "SELECT completion_id FROM task_completions WHERE task_id = ? ORDER BY position"
    return [row["completion_id"] for row in rows(db, sql, [task_id])]


def progress(store: Store, user: User, project_id: int = FIRST) -> dict[str, int]:
    """Where this person stands: done, total (done + still open to them), remaining, today, skipped."""
    db = store.db
    mine = (
        "FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id WHERE a.user_id = :user AND t.project_id = :project"
    )
    who = {"user": user.id, "project": project_id}
    done = scalar(db, f"SELECT count(*) {mine} AND a.state = 'submitted'", who)
    skipped = scalar(db, f"SELECT count(*) {mine} AND a.state = 'skipped' AND t.submissions < t.overlap", who)
    midnight = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    today = scalar(
        db,
        """SELECT count(DISTINCT e.assignment_id) FROM events AS e
            JOIN assignments AS a ON a.id = e.assignment_id JOIN tasks AS t ON t.id = a.task_id
            WHERE e.user_id = :user AND e.kind = 'submit' AND e.created_at >= :midnight
                AND a.state = 'submitted' AND t.project_id = :project""",
        who | {"midnight": midnight},
    )
    remaining = scalar(
        db,
        """SELECT count(*) FROM tasks AS t WHERE t.submissions < t.overlap AND t.gold_ranks IS NULL
            AND t.project_id = :project
            AND NOT EXISTS (SELECT 1 FROM assignments AS mine WHERE mine.task_id = t.id AND mine.user_id = :user
                AND mine.state IN ('submitted', 'skipped'))""",
        who,
    )
    return {"done": done, "total": done + remaining, "remaining": remaining, "today": today, "skipped": skipped}
