"""Which task comes next for somebody: the project's order, walked without looking twice at what they have dealt with.

`standings.cursor` is the first task in somebody's order that they have neither submitted nor skipped: whatever still
asks for annotators before it, they did. Triggers (migrations.py) forget the cursor where a task may have come to lie
before it, and mark a full task that reopens, which is looked at first.

Random order: tasks lie at points of 31 bits (`tasks.shuffle`), cut into BLOCKS stretches. Everybody walks the
stretches in an order of their own, and each of them in an order of their own: stable, and no more than one stretch is
sorted at a time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sqlite_utils import Database

from labeler.projects import Project
from labeler.store import one, scalar

BLOCKS = 1024
BLOCK_BITS = 21
PRIME = 2**31 - 1
END = 0
"""A cursor behind the last task (random and active order; in a queue it is an id that no task has yet)."""

UNDEALT = """NOT EXISTS (SELECT 1 FROM assignments AS mine WHERE mine.task_id = t.id AND mine.user_id = :user
    AND mine.purpose = 'label' AND mine.state IN ('submitted', 'skipped'))"""
ROOM = """t.overlap > t.submissions + (SELECT count(*) FROM assignments AS a WHERE a.task_id = t.id
    AND a.user_id != :user AND a.purpose = 'label' AND a.state = 'open' AND a.leased_until > :now)"""

Stretch = tuple[str, str, str, dict[str, Any]]
"""A part of an order: index, condition, order by, parameters."""


def next_task(db: Database, user_id: int, project: Project, now: float) -> int | None:
    """The first task in this person's order that has room for them; None where there is none. Call inside `write`."""
    params = {"user": user_id, "project": project.id, "now": now}
    reopened = _first(db, iter([("tasks_reopened", "t.reopened = 1", "t.id", {})]), f"{UNDEALT} AND {ROOM}", params)
    if reopened is not None:
        return reopened
    sql = "SELECT cursor FROM standings WHERE user_id = ? AND project_id = ?"
    cursor = scalar(db, sql, [user_id, project.id])
    first = _first(db, _stretches(db, project, user_id, cursor), UNDEALT, params)
    if first is None:
        end = 1 + (scalar(db, "SELECT max(id) FROM tasks") or 0) if project.task_order == "queue" else END
        _move(db, user_id, project.id, cursor, end)
        return None
    _move(db, user_id, project.id, cursor, first)
    if scalar(db, f"SELECT 1 FROM tasks AS t WHERE t.id = :first AND {ROOM}", params | {"first": first}):
        return first
    return _first(db, _stretches(db, project, user_id, first), f"{UNDEALT} AND {ROOM}", params)


def _first(db: Database, stretches: Iterator[Stretch], where: str, params: dict[str, Any]) -> int | None:
    for index, stretch, order, more in stretches:
        found = scalar(
            db,
            f"""SELECT t.id FROM tasks AS t INDEXED BY {index}
                WHERE t.project_id = :project AND t.submissions < t.overlap AND t.gold_ranks IS NULL
                    AND {stretch} AND {where} ORDER BY {order} LIMIT 1""",
            params | more,
        )
        if found is not None:
            return int(found)
    return None


def _stretches(db: Database, project: Project, user_id: int, cursor: int | None) -> Iterator[Stretch]:
    """The project's order from the cursor on."""
    if project.task_order == "queue":
        yield "tasks_open", "t.id >= :first", "t.id", {"first": cursor or 0}
        return
    if cursor == END:
        return
    at = one(db, "SELECT id, priority, shuffle FROM tasks WHERE id = ?", [cursor]) if cursor else None
    if project.task_order == "random":
        yield from _random_stretches(project.id, user_id, at["shuffle"] >> BLOCK_BITS if at else None)
    elif at is None:
        yield "tasks_active", "1", "t.priority DESC, t.id", {}
    else:
        yield "tasks_active", "t.priority = :at AND t.id >= :first", "t.id", {"at": at["priority"], "first": at["id"]}
        yield "tasks_active", "t.priority < :at", "t.priority DESC, t.id", {"at": at["priority"]}


def _random_stretches(project_id: int, user_id: int, first: int | None) -> Iterator[Stretch]:
    factor, blocks = _own_order(project_id, user_id)
    for block in blocks[blocks.index(first) if first is not None else 0 :]:
        bounds = {"factor": factor, "low": block << BLOCK_BITS, "high": (block + 1) << BLOCK_BITS}
        order = f"(t.shuffle * :factor) % {PRIME}, t.id"
        yield "tasks_random", "t.shuffle >= :low AND t.shuffle < :high", order, bounds


@lru_cache(maxsize=256)
def _own_order(project_id: int, user_id: int) -> tuple[int, list[int]]:
    """What this person's order within a stretch is made of, and the order of the stretches."""
    dice = random.Random(f"{project_id}/{user_id}")
    factor, blocks = dice.randrange(1, PRIME), list(range(BLOCKS))
    dice.shuffle(blocks)
    return factor, blocks


def _move(db: Database, user_id: int, project_id: int, before: int | None, cursor: int) -> None:
    if cursor != before:
        db.execute(
            "INSERT INTO standings (user_id, project_id, cursor) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET cursor = excluded.cursor",
            [user_id, project_id, cursor],
        )
