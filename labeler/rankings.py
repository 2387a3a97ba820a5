"""What annotators said, as events that are never changed.

A later event on the same assignment replaces what an earlier one said; the view `latest_rankings` holds what is in
force. Each event carries a UUID made where the click happened, so a double click or a retry lands once. What an event
may hold: events.py. What a person sees and takes back of their own: history.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler import tasks
from labeler.events import MAX_COMMENT, Event, Rank, check_opinion
from labeler.migrations import ERASED
from labeler.prompts import add_completion, add_prompt
from labeler.store import Row, Store, one
from labeler.users import User


def record_event(store: Store, user: User, event: Event) -> bool:
    """Store the event and what follows from it for the task; False where its UUID was stored before.

    Raises InputError where it says nothing, or the task is somebody else's or no longer open.
    """
    with store.write() as db:
        return record(db, user, event)


def record(db: Database, user: User, event: Event) -> bool:
    """What `record_event` does, inside a transaction."""
    if not 8 <= len(event.uuid) <= 100:
        raise InputError("the event has no valid id; reload the page")
    known = one(db, "SELECT assignment_id, user_id FROM events WHERE uuid = ?", [event.uuid])
    if known is not None:
        if (known["assignment_id"], known["user_id"]) != (event.assignment_id, user.id):
            raise InputError("the event's id was used for something else; reload the page")
        return False
    assignment = one(
        db,
        "SELECT id, task_id, state, purpose, display_order FROM assignments WHERE id = ? AND user_id = ?",
        [event.assignment_id, user.id],
    )
    if assignment is None:
        raise InputError("this task is not yours; reload the page")
    display_order: list[int] = json.loads(assignment["display_order"])
    payload: dict[str, Any] = dict(event.more)
    if event.kind in ("submit", "adjudicate"):
        said = check_opinion(event, len(display_order))
        place = {completion: i for i, completion in enumerate(display_order)}
        completion_ids = tasks.completion_ids(db, assignment["task_id"])
        for name in ("ranks", "tags", "ratings"):
            if name in said:
                said[name] = [said[name][place[completion]] for completion in completion_ids]
        payload |= {"completion_ids": completion_ids, "display_order": display_order, **said}
    comment, reason = event.comment.strip(), event.reason.strip()
    if max(len(comment), len(reason)) > MAX_COMMENT:
        raise InputError(f"the comment is too long; keep it under {MAX_COMMENT:,} characters")
    payload |= {"comment": comment, "seconds": event.seconds} | ({"reason": reason} if reason else {})
    _apply(db, assignment, event.kind)
    db.execute(
        "INSERT INTO events (uuid, assignment_id, user_id, kind, source, payload, client_time, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            event.uuid,
            event.assignment_id,
            user.id,
            event.kind,
            event.source,
            json.dumps(payload, ensure_ascii=False),
            event.client_time,
            time.time(),
        ],
    )
    return True


def _apply(db: Database, assignment: Row, kind: str) -> None:
    """Move the assignment to the state that the event leads to."""
    state, now = assignment["state"], time.time()
    if kind == "flag":
        return
    if (kind == "adjudicate" or assignment["purpose"] == "adjudicate") and kind != "retract":
        if kind != "adjudicate" or assignment["purpose"] != "adjudicate":
            raise InputError("an adjudication is made on the Quality page, anything else in the Rank tab")
        db.execute("UPDATE assignments SET state = 'submitted' WHERE id = ?", [assignment["id"]])
        return  # it does not count toward the overlap
    if kind == "retract":
        if state not in ("submitted", "skipped"):
            raise InputError("there is nothing to take back on this task")
        if assignment["purpose"] == "adjudicate":  # not open again: the Rank tab would show it
            db.execute("UPDATE assignments SET state = 'released' WHERE id = ?", [assignment["id"]])
            return
        if state == "skipped" and not tasks.room(db, assignment["task_id"], now, besides=assignment["id"]):
            raise InputError("somebody else has ranked this task since you skipped it")
        tasks.open_assignment_again(db, assignment["id"], now)
    elif kind in ("submit", "skip"):
        # a submit on a submitted task is a correction; anything else needs the task to be still ours
        if not (kind == "submit" and state == "submitted"):
            if state not in ("open", "released"):
                raise InputError(f"this task was {state} already; reload the page to see the next one")
            if not tasks.room(db, assignment["task_id"], now, besides=assignment["id"]):
                raise InputError("this task went to somebody else while it was open here; reload to see the next one")
        new_state = "submitted" if kind == "submit" else "skipped"
        db.execute("UPDATE assignments SET state = ? WHERE id = ?", [new_state, assignment["id"]])
        if kind == "submit":
            db.execute("DELETE FROM drafts WHERE assignment_id = ?", [assignment["id"]])
    else:
        raise InputError(f"unknown kind of event {kind!r}")
    tasks.recount(db, assignment["task_id"])


IN_FORCE_AT = f"""e.kind IN ('submit', 'adjudicate') AND e.payload != '{ERASED}' AND NOT EXISTS (
    SELECT 1 FROM events AS later WHERE later.assignment_id = e.assignment_id AND later.id > e.id
        AND later.id <= ? AND later.kind IN ('submit', 'skip', 'retract', 'adjudicate')) AND e.id <= ?"""
"""Whether an event `e` is in force after a certain event, which is both parameters; the view knows only the present."""


def in_force(high_water: int | None = None) -> tuple[str, list[Any]]:
    """The rankings in force as a table to select from, now or after the event `high_water`, and its parameters."""
    if high_water is None:
        return "latest_rankings", []
    sql = f"""(SELECT e.id AS event_id, e.uuid, e.user_id, e.source, e.payload, e.created_at, t.prompt_id,
            e.assignment_id, a.task_id, a.purpose, t.gold_ranks, t.project_id
        FROM events AS e JOIN assignments AS a ON a.id = e.assignment_id JOIN tasks AS t ON t.id = a.task_id
        WHERE {IN_FORCE_AT})"""
    return sql, [high_water, high_water]


def record_ranking(
    db: Database,
    user: User,
    task_id: int,
    ranks: Sequence[Rank],
    *,
    all_bad: bool = False,
    comment: str = "",
    source: str,
    event_id: str,
    more: dict[str, Any] | None = None,
    shuffle: bool = True,
) -> bool:
    """Assign the task to the user and submit their ranks (in the task's own order) at once; False if stored before.

    For rankings that are not made in the Rank tab: comparisons, imports, simulated annotators. Call inside `write`.
    """
    if one(db, "SELECT 1 FROM events WHERE uuid = ?", [event_id]):
        return False
    found = one(
        db,
        "SELECT id, state, display_order FROM assignments WHERE task_id = ? AND user_id = ? AND purpose = 'label'",
        [task_id, user.id],
    )
    if found is None or found["state"] != "submitted":
        assignment_id = tasks.open_assignment(db, task_id, user, time.time(), shuffle)
    else:
        assignment_id = found["id"]
    row = one(db, "SELECT display_order FROM assignments WHERE id = ?", [assignment_id])
    assert row is not None
    by_id = dict(zip(tasks.completion_ids(db, task_id), ranks, strict=True))
    shown = [by_id[completion] for completion in json.loads(row["display_order"])]
    return record(
        db, user, Event(event_id, assignment_id, "submit", shown, all_bad, comment, source=source, more=more or {})
    )


def record_comparison(
    store: Store,
    user: User,
    prompt_messages: Sequence[Message],
    completions: Sequence[tuple[str, int | None, dict[str, Any]]],
    ranks: Sequence[Rank],
    all_bad: bool = False,
    source: str = "compare",
    event_id: str = "",
    comment: str = "",
) -> int:
    """Store a vote between completions made on the spot: prompt, completions, task and submit event; the task's id.

    `completions` are (text, checkpoint id, sampling) in the order they were shown in; sampling may hold num_tokens
    and finish_reason beside the settings. A repeated `event_id` adds nothing and returns the first task.
    """
    with store.write() as db:
        known = one(
            db,
            "SELECT a.task_id, e.user_id FROM events AS e JOIN assignments AS a ON a.id = e.assignment_id"
            " WHERE e.uuid = ?",
            [event_id],
        )
        if known is not None:
            if known["user_id"] != user.id:
                raise InputError("the event's id was used for something else; reload the page")
            return int(known["task_id"])
        prompt_id = add_prompt(db, prompt_messages, "", source)
        ids = []
        for text, checkpoint_id, sampling in completions:
            settings = {key: value for key, value in sampling.items() if key not in ("num_tokens", "finish_reason")}
            ids.append(
                add_completion(
                    db,
                    prompt_id,
                    text,
                    checkpoint_id,
                    settings,
                    sampling.get("num_tokens"),
                    sampling.get("finish_reason"),
                    source,
                )
            )
        task_id = tasks.create_task(db, prompt_id, ids, project_id=None, source=source)
        record_ranking(
            db, user, task_id, ranks, all_bad=all_bad, comment=comment, source=source, event_id=event_id, shuffle=False
        )
        return task_id


def retract(store: Store, lead: User, event_id: int, reason: str) -> None:
    """Take somebody's ranking out of force; its task waits in the queue again. What they said stays an event.

    Raises InputError without a reason, or where the ranking is not in force any more.
    """
    if lead.role not in ("lead", "owner"):
        raise InputError(f"{lead.name} may not retract what others said; ask a lead")
    reason = reason.strip()
    if not 1 <= len(reason) <= MAX_COMMENT:
        raise InputError(f"say why, in at most {MAX_COMMENT:,} characters")
    with store.write() as db:
        found = one(db, "SELECT assignment_id, task_id FROM in_force WHERE event_id = ?", [event_id])
        if found is None:
            raise InputError("this ranking is not in force any more; search again")
        payload = {"retracts": event_id, "retracted_by": lead.name, "reason": reason}
        db.execute(
            "INSERT INTO events (uuid, assignment_id, user_id, kind, source, payload, created_at)"
            " VALUES (?, ?, ?, 'retract', 'lead', ?, ?)",
            [
                f"retract-{event_id}",
                found["assignment_id"],
                lead.id,
                json.dumps(payload, ensure_ascii=False),
                time.time(),
            ],
        )
        db.execute("UPDATE assignments SET state = 'released' WHERE id = ?", [found["assignment_id"]])
        tasks.recount(db, found["task_id"])
