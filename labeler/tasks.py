"""Tasks (a prompt and the completions to rank) and who is working on which.

An assignment is one person's work on one task. It holds the shuffled order in which that person sees the completions,
so that a reload shows the same, and a lease: while it lasts nobody else is given the task. The page renews the lease
while somebody is there (heartbeat); once it ran out the task goes to the next person. States: open, released (given
back), submitted, skipped.

Which task comes next: queues.py (the project's order), mixing.py (known answers and repeats), qualification.py.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler import mixing, qualification, queues
from labeler.migrations import REBUILD_COUNTS
from labeler.projects import FIRST, Project, check_member, get_project
from labeler.store import Store, one, rows, scalar
from labeler.users import User

LEASE_SECONDS = 5 * 60.0
HEARTBEAT_SECONDS = 60.0
"""How often a page renews the lease of the task it shows."""


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
    """What this person should rank now: what they have open, else the next task in their order; None when all is done.

    Raises InputError where they may not work in the project, did not qualify, or cannot yet.
    """
    with store.write() as db:
        project = check_member(db, user, project_id)
        qualified, now = qualification.may_work(db, user, project), time.time()
        found = _held(db, user, project_id, now, only_gold=not qualified)
        if found is None:
            chosen = _choose(db, user, project, now) if qualified else _choose_test(db, user, project)
            if chosen is None:
                return None
            found = open_assignment(db, chosen[0], user, now, purpose=chosen[1])
        return get_assignment(db, found, user)


class _NotMeant(Exception):
    """Takes back what was only tried."""


def upcoming(store: Store, user: User, assignment_id: int) -> Assignment | None:
    """What this person would be given if they submitted this assignment now; None where it is not open, or the last.

    Nothing is leased, so it is a guess: others may take it first. It is tried and taken back, so it follows every rule
    of `next_assignment`, whose errors it raises.
    """
    found = None
    with suppress(_NotMeant), store.write() as db:
        row = one(
            db,
            """SELECT a.task_id, t.project_id FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
               WHERE a.id = ? AND a.user_id = ? AND a.state = 'open' AND t.project_id IS NOT NULL""",
            [assignment_id, user.id],
        )
        if row is not None:
            db.execute("UPDATE assignments SET state = 'submitted' WHERE id = ?", [assignment_id])
            recount(db, row["task_id"])
            found = next_assignment(store, user, row["project_id"])
        raise _NotMeant
    return found


def _held(db: Database, user: User, project_id: int, now: float, only_gold: bool) -> int | None:
    """The assignment that this person has open, with its lease renewed."""
    for row in rows(
        db,
        f"""SELECT a.id FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
           WHERE a.user_id = ? AND a.state = 'open' AND a.purpose != 'adjudicate' AND t.project_id = ?
               {"AND t.gold_ranks IS NOT NULL" if only_gold else ""} ORDER BY a.opened_at DESC""",
        [user.id, project_id],
    ):
        if renew(db, row["id"], now):
            return int(row["id"])
        # the lease ran out and others have done it since
        db.execute("UPDATE assignments SET state = 'released' WHERE id = ?", [row["id"]])
    return None


def _choose(db: Database, user: User, project: Project, now: float) -> tuple[int, str] | None:
    """The next task and the purpose it is given for. Known answers and repeats come only while there is real work."""
    real = queues.next_task(db, user.id, project, now)
    if real is None:
        return None
    position = _standing(db, user, project.id)["dealt"]
    kind = mixing.kind_at(project, user.id, position)
    if kind == "gold":
        gold = mixing.gold_task(db, user.id, project.id)
        return (real, "label") if gold is None else (gold, "label")
    if kind == "repeat":
        repeat = mixing.repeat_task(db, user.id, project.id, position)
        return (real, "label") if repeat is None else (repeat, "repeat")
    return real, "label"


def _choose_test(db: Database, user: User, project: Project) -> tuple[int, str]:
    gold = mixing.gold_task(db, user.id, project.id)
    if gold is None:
        raise InputError(
            f"{project.name!r} begins with {project.qualification} tasks with known answers, but it has no more of "
            "them for you. Ask the project's lead to add some, or to let you in."
        )
    return gold, "label"


def open_assignment(
    db: Database, task_id: int, user: User, now: float, shuffle: bool = True, purpose: str = "label"
) -> int:
    """Give the task to this person: a new assignment with a fresh shuffle, or the one they had, as it was.

    Without `shuffle` the completions were shown in the task's own order.
    """
    sql = "SELECT id FROM assignments WHERE task_id = ? AND user_id = ? AND purpose = ?"
    found = one(db, sql, [task_id, user.id, purpose])
    if found is not None:
        open_assignment_again(db, found["id"], now)
        return int(found["id"])
    order = completion_ids(db, task_id)
    if shuffle:
        random.SystemRandom().shuffle(order)
    cursor = db.execute(
        "INSERT INTO assignments (task_id, user_id, display_order, state, opened_at, leased_until, purpose)"
        " VALUES (?, ?, ?, 'open', ?, ?, ?)",
        [task_id, user.id, json.dumps(order), now, now + LEASE_SECONDS, purpose],
    )
    return int(cursor.lastrowid or 0)


def open_assignment_again(db: Database, assignment_id: int, now: float) -> None:
    """Make an assignment the open one that comes first."""
    db.execute(
        "UPDATE assignments SET state = 'open', opened_at = ?, leased_until = ? WHERE id = ?",
        [now, now + LEASE_SECONDS, assignment_id],
    )


def heartbeat(store: Store, user: User, assignment_id: int) -> bool:
    """Say that this person is still working on it: the lease begins anew.

    False where the task is not theirs any more.
    """
    with store.write() as db:
        sql = "SELECT 1 FROM assignments WHERE id = ? AND user_id = ? AND state = 'open'"
        return one(db, sql, [assignment_id, user.id]) is not None and renew(db, assignment_id, time.time())


def renew(db: Database, assignment_id: int, now: float) -> bool:
    """Extend the lease of an open assignment; False where it ran out and the task went to others."""
    task_id = scalar(db, "SELECT task_id FROM assignments WHERE id = ?", [assignment_id])
    if not room(db, task_id, now, besides=assignment_id):
        return False
    db.execute("UPDATE assignments SET leased_until = ? WHERE id = ?", [now + LEASE_SECONDS, assignment_id])
    return True


def recount(db: Database, task_id: int) -> None:
    """Bring `tasks.submissions` in line with the assignments."""
    db.execute(
        "UPDATE tasks SET submissions = (SELECT count(*) FROM assignments"
        " WHERE task_id = tasks.id AND state = 'submitted' AND purpose = 'label') WHERE id = ?",
        [task_id],
    )


def room(db: Database, task_id: int, now: float, besides: int) -> bool:
    """Whether the task can take the submission of the assignment `besides`.

    A known answer, a repeat and an adjudication always can: the overlap is of opinions of different people.
    """
    row = one(
        db,
        """SELECT t.gold_ranks IS NOT NULL OR mine.purpose != 'label'
               OR t.overlap > (SELECT count(*) FROM assignments AS a WHERE a.task_id = t.id AND a.id != mine.id
                   AND a.purpose = 'label'
                   AND (a.state = 'submitted' OR (a.state = 'open' AND a.leased_until > :now))) AS room
           FROM tasks AS t JOIN assignments AS mine ON mine.id = :besides WHERE t.id = :task""",
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
    """Where this person stands: done, total (done + still ahead), remaining, today, skipped.

    Known answers and repeats count like any other task, those ahead as well, so that the numbers do not give them away.
    """
    db = store.db
    project, mine = get_project(db, project_id), _standing(db, user, project_id)
    num_open = scalar(db, "SELECT num_open FROM projects WHERE id = ?", [project_id])
    held = rows(
        db,
        """SELECT t.gold_ranks IS NULL AND a.purpose = 'label' AS real
           FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
           WHERE a.user_id = ? AND a.state = 'open' AND a.purpose != 'adjudicate' AND t.project_id = ?
               AND (t.gold_ranks IS NOT NULL OR a.purpose != 'label' OR t.submissions < t.overlap)""",
        [user.id, project_id],
    )
    real = max(0, num_open - mine["dealt_open"] - sum(row["real"] for row in held))
    extras = set()
    if project.gold_rate and mixing.gold_task(db, user.id, project_id) is not None:
        extras.add("gold")
    if project.repeat_rate and mine["done"] > mixing.REPEAT_GAP:
        extras.add("repeat")
    remaining = len(held) + mixing.positions_ahead(project, user.id, mine["dealt"], real, extras)
    return {
        "done": mine["done"],
        "total": mine["done"] + remaining,
        "remaining": remaining,
        "today": mine["today"],
        "skipped": mine["skipped"],
    }


def rebuild_counts(store: Store) -> None:
    """Count anew who is how far, for when somebody wrote past the triggers or moved tasks to another project."""
    with store.write() as db:
        for statement in REBUILD_COUNTS:
            db.execute(statement)


def _standing(db: Database, user: User, project_id: int) -> dict[str, int]:
    row = one(
        db,
        """SELECT dealt, done, dealt_open, skipped,
               CASE WHEN day = date('now', 'localtime') THEN max(0, done - done_before) ELSE 0 END AS today
           FROM standings WHERE user_id = ? AND project_id = ?""",
        [user.id, project_id],
    )
    return row or {"dealt": 0, "done": 0, "dealt_open": 0, "skipped": 0, "today": 0}
