"""What annotators said, as events that are never changed.

A later event on the same assignment replaces what an earlier one said; the view `latest_rankings` holds what is in
force. Each event carries a UUID made where the click happened, so a double click or a retry lands once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

from data.records import InputError, Message
from labeler import tasks
from labeler.migrations import ERASED
from labeler.prompts import add_completion, add_prompt
from labeler.store import Row, Store, one, rows
from labeler.users import User

Rank = int | None
MAX_RANK = 9
MAX_RATING = 5
MAX_COMMENT = 10_000
MAX_REWRITE = 50_000


@dataclass(frozen=True)
class Event:
    """One thing an annotator did. `ranks` stand in the order in which the completions were shown.

    kind: submit, skip, flag, retract or adjudicate. `tags` and `ratings` (1 to 5, higher is better) are said of each
    completion, in the order of `ranks`; with ratings alone the ranks follow from them. `rewrite` is a better answer,
    `strength` (1 to 4) by how much the better of two is better, `reason` why it was skipped or flagged. `seconds` is
    the time spent on the task; `client_time` the browser's clock in unix seconds. `more` is kept in the payload as it
    is (weight, margin).
    """

    uuid: str
    assignment_id: int
    kind: str
    ranks: Sequence[Rank] = ()
    all_bad: bool = False
    comment: str = ""
    tags: Sequence[Sequence[str]] = ()
    ratings: Sequence[int | None] = ()
    rewrite: str = ""
    strength: int | None = None
    reason: str = ""
    seconds: float | None = None
    client_time: float | None = None
    source: str = "task"
    more: dict[str, Any] = field(default_factory=dict)


def record_event(store: Store, user: User, event: Event) -> bool:
    """Store the event and what follows from it for the task; False where its UUID was stored before.

    Raises InputError where it says nothing, or the task is somebody else's or no longer open.
    """
    with store.write() as db:
        return _record(db, user, event)


def _record(db: Database, user: User, event: Event) -> bool:
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


def check_opinion(event: Event, count: int) -> dict[str, Any]:
    """What is stored of a submit, in the order of `event.ranks`. Raises InputError where it cannot be meant."""
    ratings = check_ratings(event.ratings, count)
    ranks = event.ranks
    if any(rating is not None for rating in ratings) and not any(rank is not None for rank in ranks):
        ranks = [None if rating is None else MAX_RATING + 1 - rating for rating in ratings]
    found = check_ranks(ranks, count, event.all_bad)
    said: dict[str, Any] = {"ranks": found, "all_bad": bool(event.all_bad)}
    if any(rating is not None for rating in ratings):
        said["ratings"] = ratings
    tags = check_tags(event.tags, count)
    if any(tags):
        said["tags"] = tags
    if event.rewrite.strip():
        if len(event.rewrite) > MAX_REWRITE:
            raise InputError(f"the rewritten answer is too long; keep it under {MAX_REWRITE:,} characters")
        said["rewrite"] = event.rewrite.strip()
    if event.strength is not None:
        if count != 2 or None in found or found[0] == found[1]:
            raise InputError("a strength of preference is for two completions of which one is better")
        if isinstance(event.strength, bool) or event.strength not in (1, 2, 3, 4):
            raise InputError(f"strength {event.strength!r} is not a whole number from 1 to 4")
        said["strength"] = event.strength
    return said


def check_ratings(ratings: Sequence[Any], count: int) -> list[int | None]:
    """One rating each, whole numbers from 1 to 5 or None."""
    if not ratings:
        return [None] * count
    for rating in ratings:
        if rating is not None and (isinstance(rating, bool) or rating not in range(1, MAX_RATING + 1)):
            raise InputError(f"rating {rating!r} is not a whole number from 1 to {MAX_RATING}")
    if len(ratings) != count:
        raise InputError(f"{count} completions but {len(ratings)} ratings; reload the page")
    return list(ratings)


def check_tags(tags: Sequence[Any], count: int) -> list[list[str]]:
    """A list of tags each. Any words are taken: which are offered is the project's to say, and may change."""
    if not tags:
        return [[] for _ in range(count)]
    if len(tags) != count:
        raise InputError(f"{count} completions but tags for {len(tags)}; reload the page")
    for words in tags:
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) and len(w) <= 60 for w in words):
            raise InputError("tags are lists of words of at most 60 characters")
        if len(words) > 30:
            raise InputError("at most 30 tags for a completion")
    return [list(dict.fromkeys(words)) for words in tags]


def check_ranks(ranks: Sequence[Any], count: int, all_bad: bool) -> list[Rank]:
    """The ranks, if they are usable: one each, whole numbers from 1, two of them set unless everything is bad."""
    if all_bad and not ranks:
        ranks = [None] * count
    if len(ranks) != count:
        raise InputError(f"{count} completions but {len(ranks)} ranks; reload the page")
    for rank in ranks:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK):
            raise InputError(f"rank {rank!r} is not a whole number from 1 to {MAX_RANK}")
    if not all_bad and sum(rank is not None for rank in ranks) < 2:
        raise InputError("Rank at least two completions, or mark all of them as bad.")
    return list(ranks)


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


_LAST_EVENT = """SELECT e.assignment_id, e.kind, e.payload FROM events AS e
    JOIN assignments AS a ON a.id = e.assignment_id
    WHERE e.user_id = ? AND e.source = 'task' AND e.kind IN ('submit', 'skip')
        AND (e.kind, a.state) IN (VALUES ('submit', 'submitted'), ('skip', 'skipped'))
    ORDER BY e.id DESC LIMIT 1"""


def can_undo(store: Store, user: User) -> bool:
    """Whether `undo` would find something to take back."""
    return one(store.db, _LAST_EVENT, [user.id]) is not None


def undo(store: Store, user: User, uuid: str) -> int | None:
    """Take back this person's last submit or skip in the Rank tab: the task is open again, with what they had said.

    Returns the assignment's id; None where there is nothing to take back, or the UUID was stored before.
    """
    with store.write() as db:
        last = one(db, _LAST_EVENT, [user.id])
        if last is None or one(db, "SELECT 1 FROM events WHERE uuid = ?", [uuid]):
            return None
        _record(db, user, Event(uuid, last["assignment_id"], "retract"))
        if last["kind"] == "submit":
            _write_draft(db, last["assignment_id"], as_shown(json.loads(last["payload"])))
        return int(last["assignment_id"])


def as_shown(payload: dict[str, Any]) -> dict[str, Any]:
    """What a submit said, as the draft of it: in the order in which the completions were shown."""
    place = {completion: i for i, completion in enumerate(payload["completion_ids"])}
    said = {
        name: [payload[name][place[completion]] for completion in payload["display_order"]]
        for name in ("ranks", "tags", "ratings")
        if name in payload
    }
    return said | {name: payload[name] for name in ("all_bad", "comment", "rewrite", "strength") if name in payload}


@dataclass(frozen=True)
class Label:
    """A submission in force, for the person who made it; `said` is a draft, `at` in unix seconds."""

    assignment_id: int
    messages: list[Message]
    said: dict[str, Any]
    at: float


def history(store: Store, user: User, project_id: int, limit: int = 20) -> list[Label]:
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


def return_skipped(store: Store, user: User, uuid: str) -> int:
    """Bring back every task that this person skipped and nobody has ranked since; how many."""
    with store.write() as db:
        skipped = rows(
            db,
            "SELECT id, task_id FROM assignments WHERE user_id = ? AND state = 'skipped' ORDER BY opened_at DESC",
            [user.id],
        )
        now, count = time.time(), 0
        for assignment in skipped:
            if tasks.room(db, assignment["task_id"], now, besides=assignment["id"]):
                count += _record(db, user, Event(f"{uuid}/{assignment['id']}", assignment["id"], "retract"))
        return count


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
    return _record(
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
