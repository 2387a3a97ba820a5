"""A person's own work: the drafts they left, what they said before, and taking it back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler import tasks
from labeler.events import MAX_COMMENT, MAX_REWRITE, Event, as_shown, check_ranks, check_ratings, check_tags
from labeler.projects import FIRST
from labeler.rankings import record
from labeler.store import Row, Store, one, rows
from labeler.users import User


def save_draft(store: Store, user: User, assignment_id: int, draft: dict[str, Any]) -> bool:
    """Keep an unfinished ranking, and the lease with it; False where the task is not open any more.

    `draft` holds what a submit would (in display order), and `order` (where the cards were dragged to).
    """
    with store.write() as db:
        row = one(
            db,
            "SELECT display_order FROM assignments WHERE id = ? AND user_id = ? AND state = 'open'",
            [assignment_id, user.id],
        )
        if row is None:
            return False
        clean = clean_draft(draft, len(json.loads(row["display_order"])))
        _write_draft(db, assignment_id, clean)
        tasks.renew(db, assignment_id, time.time())
    return True


def clean_draft(draft: dict[str, Any], count: int) -> dict[str, Any]:
    """A draft as it may be stored, from what a browser sent."""
    ranks = draft.get("ranks")
    ranks = ranks if isinstance(ranks, list) and len(ranks) == count else [None] * count
    check_ranks(ranks, count, all_bad=True)
    comment = str(draft.get("comment") or "")[:MAX_COMMENT]
    clean = {"ranks": ranks, "all_bad": bool(draft.get("all_bad")), "comment": comment}
    for name, check in (("tags", check_tags), ("ratings", check_ratings)):
        said = draft.get(name)
        if isinstance(said, list) and len(said) == count:
            clean[name] = check(said, count)
    if draft.get("rewrite"):
        clean["rewrite"] = str(draft["rewrite"])[:MAX_REWRITE]
    if draft.get("strength") in (1, 2, 3, 4):
        clean["strength"] = draft["strength"]
    order = draft.get("order")
    places = order if isinstance(order, list) and all(isinstance(place, int) for place in order) else []
    if places != list(range(count)) and sorted(places) == list(range(count)):
        clean["order"] = places
    return clean


def _write_draft(db: Database, assignment_id: int, draft: dict[str, Any]) -> None:
    db.execute(
        "INSERT INTO drafts (assignment_id, payload, updated_at) VALUES (?, ?, ?) ON CONFLICT (assignment_id)"
        " DO UPDATE SET payload = excluded.payload, updated_at = excluded.updated_at",
        [assignment_id, json.dumps(draft, ensure_ascii=False), time.time()],
    )


LAST_EVENT = """SELECT e.assignment_id, e.kind, e.payload FROM events AS e
    JOIN assignments AS a ON a.id = e.assignment_id JOIN tasks AS t ON t.id = a.task_id
    WHERE e.user_id = :user AND e.source IN ('task', 'api') AND e.kind IN ('submit', 'skip')
        AND (e.kind, a.state) IN (VALUES ('submit', 'submitted'), ('skip', 'skipped')) AND t.project_id = :project
        -- who was given nothing here yet may have done much elsewhere
        AND EXISTS (SELECT 1 FROM standings WHERE user_id = :user AND project_id = :project AND dealt > 0)
    ORDER BY e.id DESC LIMIT 1"""


def can_undo(store: Store, user: User, project_id: int = FIRST) -> bool:
    """Whether `undo` would find something to take back."""
    return one(store.db, LAST_EVENT, {"user": user.id, "project": project_id}) is not None


def undo(store: Store, user: User, uuid: str, project_id: int = FIRST) -> int | None:
    """Take back this person's last submit or skip in the project: the task is open again, with what they had said.

    It does not matter whether it was made in the Rank tab or by a program of theirs. Returns the assignment's id; None
    where there is nothing to take back, or the UUID was stored before.
    """
    with store.write() as db:
        last = one(db, LAST_EVENT, {"user": user.id, "project": project_id})
        if last is None or one(db, "SELECT 1 FROM events WHERE uuid = ?", [uuid]):
            return None
        record(db, user, Event(uuid, last["assignment_id"], "retract"))
        if last["kind"] == "submit":
            _write_draft(db, last["assignment_id"], as_shown(json.loads(last["payload"])))
        return int(last["assignment_id"])


@dataclass(frozen=True)
class Label:
    """A submission in force, for the person who made it; `said` is a draft, `at` in unix seconds."""

    assignment_id: int
    messages: list[Message]
    said: dict[str, Any]
    at: float


def labels(store: Store, user: User, project_id: int, limit: int = 20) -> list[Label]:
    """This person's last submissions in the project that are in force, the newest first."""
    return _labels(store.db, "user_id = ? AND project_id = ?", [user.id, project_id], limit)


def label(store: Store, user: User, assignment_id: int) -> Label:
    """One of them. Raises InputError where there is none to change."""
    found = _labels(store.db, "user_id = ? AND assignment_id = ?", [user.id, assignment_id], 1)
    if not found:
        raise InputError("this label was taken back or is not yours; choose another one")
    return found[0]


def _labels(db: Database, where: str, params: list[Any], limit: int) -> list[Label]:
    found = rows(
        db,
        f"""SELECT r.assignment_id, r.payload, r.created_at, p.messages
            FROM latest_rankings AS r JOIN prompts AS p ON p.id = r.prompt_id
            WHERE {where} AND r.source IN ('task', 'api') AND r.purpose != 'adjudicate'
            ORDER BY r.event_id DESC LIMIT ?""",
        [*params, limit],
    )
    return [
        Label(
            row["assignment_id"], json.loads(row["messages"]), as_shown(json.loads(row["payload"])), row["created_at"]
        )
        for row in found
    ]


def events(store: Store, user: User, before: int | None, limit: int) -> list[Row]:
    """Everything this person did, in force or not, before the event of that id, the newest first.

    A row: id, uuid, kind, assignment_id, task_id, project_id, created_at, and what was said, as it was shown.
    """
    found = rows(
        store.db,
        """SELECT e.id, e.uuid, e.kind, e.assignment_id, a.task_id, t.project_id, e.created_at, e.payload
           FROM events AS e JOIN assignments AS a ON a.id = e.assignment_id JOIN tasks AS t ON t.id = a.task_id
           WHERE e.user_id = :user AND (:before IS NULL OR e.id < :before) ORDER BY e.id DESC LIMIT :limit""",
        {"user": user.id, "before": before, "limit": limit},
    )
    for row in found:
        payload = json.loads(row.pop("payload"))
        row |= as_shown(payload) | {"reason": payload.get("reason", "")}
    return found


def return_skipped(store: Store, user: User, uuid: str, project_id: int = FIRST) -> int:
    """Bring back every task of the project that this person skipped and nobody has ranked since; how many."""
    with store.write() as db:
        skipped = rows(
            db,
            """SELECT a.id, a.task_id FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id
               WHERE a.user_id = ? AND a.state = 'skipped' AND t.project_id = ? ORDER BY a.opened_at DESC""",
            [user.id, project_id],
        )
        now, count = time.time(), 0
        for assignment in skipped:
            if tasks.room(db, assignment["task_id"], now, besides=assignment["id"]):
                count += record(db, user, Event(f"{uuid}/{assignment['id']}", assignment["id"], "retract"))
        return count
