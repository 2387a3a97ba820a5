"""Adjudication: where annotators disagree most, a lead sees what each said and gives the ranking that counts.

It is an event of its own kind on an assignment of the lead's own, so nothing that annotators said is changed; taking it
back is an event too. snapshots.py learns from the adjudication alone while it is in force.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler import agreement, opinions, tasks
from labeler.events import Event, Rank
from labeler.projects import LEADS
from labeler.prompts import get_messages
from labeler.quality import NEWEST
from labeler.rankings import record_event
from labeler.store import Store, one, rows, scalar
from labeler.users import User


@dataclass(frozen=True)
class Candidate:
    """A task on which people disagree. `share` of the votes of two people are the same; `tau` is their mean tau-b."""

    task_id: int
    people: int
    share: float
    tau: float | None
    adjudicated: bool


@dataclass(frozen=True)
class Said:
    """What one person said of a task; ranks in task order. `final` marks the adjudication in force."""

    name: str
    ranks: list[Rank]
    all_bad: bool
    comment: str
    final: bool


@dataclass(frozen=True)
class Case:
    """A task with everything that was said of it. `mine`: the final ranking is this lead's own to take back."""

    task_id: int
    messages: list[Message]
    completions: list[str]
    said: list[Said]
    mine: bool


def candidates(db: Database, project_id: int, limit: int = 12) -> list[Candidate]:
    """Tasks that two or more ranked differently, the least agreement first; those already settled come last."""
    said = opinions.read(db, project_id, limit=NEWEST)
    settled = {one.task_id for one in said if one.purpose == "adjudicate"}
    found = []
    for task_id, ranked in opinions.by_task(said).items():
        if len(ranked) >= 2:
            same, compared, taus, defined = agreement.statistics_of(list(ranked.values()))[:4]
            if compared and same < compared:
                tau = float(taus / defined) if defined else None
                found.append(Candidate(task_id, len(ranked), float(same / compared), tau, task_id in settled))
    found.sort(key=lambda one: (one.adjudicated, one.share, 0.0 if one.tau is None else one.tau, one.task_id))
    return found[:limit]


def case(db: Database, task_id: int, user: User) -> Case:
    """The rankings of a task side by side. Raises InputError where there is no such task."""
    task = one(db, "SELECT prompt_id FROM tasks WHERE id = ? AND project_id IS NOT NULL", [task_id])
    if task is None:
        raise InputError("there is no such task any more; reload the page")
    found = rows(
        db,
        """SELECT r.event_id, r.user_id, r.purpose, r.payload, u.name FROM assignments AS a
            JOIN latest_rankings AS r ON r.assignment_id = a.id JOIN users AS u ON u.id = r.user_id
            WHERE a.task_id = ? AND r.purpose IN ('label', 'adjudicate') ORDER BY r.event_id""",
        [task_id],
    )
    final = max((row["event_id"] for row in found if row["purpose"] == "adjudicate"), default=None)
    said = []
    for row in found:
        if row["purpose"] == "label" or row["event_id"] == final:
            payload: dict[str, Any] = json.loads(row["payload"])
            is_final = row["event_id"] == final
            ranks, all_bad, comment = payload["ranks"], bool(payload["all_bad"]), payload["comment"]
            said.append(Said(row["name"], ranks, all_bad, comment, is_final))
    texts = rows(
        db,
        """SELECT c.text FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id
            WHERE tc.task_id = ? ORDER BY tc.position""",
        [task_id],
    )
    mine = any(row["event_id"] == final and row["user_id"] == user.id for row in found)
    return Case(task_id, get_messages(db, task["prompt_id"]), [row["text"] for row in texts], said, mine)


def adjudicate(
    store: Store,
    user: User,
    task_id: int,
    ranks: Sequence[Rank],
    *,
    uuid: str,
    all_bad: bool = False,
    comment: str = "",
) -> bool:
    """Record this lead's final ranking (in task order); False where its UUID was stored before.

    Raises InputError where the user is no lead, the task belongs to no project, or the ranks cannot be meant.
    """
    _check_lead(user)
    with store.write() as db:
        if one(db, "SELECT 1 FROM tasks WHERE id = ? AND project_id IS NOT NULL", [task_id]) is None:
            raise InputError("there is no such task any more; reload the page")
        event = Event(uuid, _assignment(db, user, task_id), "adjudicate", ranks, all_bad, comment, source="adjudicate")
        return record_event(store, user, event)


def take_back(store: Store, user: User, task_id: int, uuid: str) -> bool:
    """Retract this lead's own adjudication: what the annotators said is learned from again."""
    _check_lead(user)
    with store.write() as db:
        sql = "SELECT id FROM assignments WHERE task_id = ? AND user_id = ? AND purpose = 'adjudicate'"
        assignment_id = scalar(db, sql, [task_id, user.id])
        if assignment_id is None:
            raise InputError("you have not settled this task; ask the lead who has, or settle it yourself")
        return record_event(store, user, Event(uuid, assignment_id, "retract", source="adjudicate"))


def _assignment(db: Database, user: User, task_id: int) -> int:
    """The lead's own assignment for it, made where there is none; completions are shown in task order."""
    sql = "SELECT id FROM assignments WHERE task_id = ? AND user_id = ? AND purpose = 'adjudicate'"
    found = scalar(db, sql, [task_id, user.id])
    if found is None:
        now = time.time()
        # never 'open': the Rank tab would give it out
        cursor = db.execute(
            "INSERT INTO assignments (task_id, user_id, purpose, display_order, state, opened_at, leased_until)"
            " VALUES (?, ?, 'adjudicate', ?, 'released', ?, ?)",
            [task_id, user.id, json.dumps(tasks.completion_ids(db, task_id)), now, now],
        )
        found = cursor.lastrowid
    return int(found)


def _check_lead(user: User) -> None:
    if user.role not in LEADS:
        raise InputError(f"{user.name} may not settle tasks; ask a lead")
