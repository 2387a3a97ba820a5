"""Rows into the store, a few statements each. What is there already is found and not added again."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

from data.records import InputError
from labeler.imports.items import Item, parse_item
from labeler.projects import FIRST, get_project
from labeler.rankings import record_ranking
from labeler.store import scalar
from labeler.tasks import LEASE_SECONDS
from labeler.users import User, ensure_user

KEPT_ERRORS = 100
"""Bad rows whose message is kept; the others are counted."""


@dataclass
class Imported:
    """What an import added; `rows` counts all rows that were read, `bad` those that were left out."""

    rows: int = 0
    prompts: int = 0
    tasks: int = 0
    rankings: int = 0
    demonstrations: int = 0
    bad: int = 0
    errors: list[str] = field(default_factory=list)
    stopped: bool = False

    def left_out(self, error: InputError) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append(str(error))

    def __str__(self) -> str:
        added = [
            f"{n:,} {name}" for name in ("prompts", "tasks", "rankings", "demonstrations") if (n := getattr(self, name))
        ]
        said = f"{self.rows:,} rows read; added {', '.join(added) if added else 'nothing (all of it was here already)'}"
        if self.bad:
            said += f"; {self.bad:,} bad rows left out"
        return said + ("; stopped before the end" if self.stopped else "")


def import_row(
    db: Database, row: dict[str, Any], user: User, source: str, result: Imported, project_id: int = FIRST
) -> None:
    """Import one row and count in `result` what it added. Call inside `write`."""
    result.rows += 1
    Writer(db, user, source, project_id).write(parse_item(row), result)


class Writer:
    """Writes items inside one or more transactions. After a rollback make a new one: it remembers ids."""

    def __init__(self, db: Database, user: User, source: str, project_id: int) -> None:
        self.db = db
        self.user = user
        self.source = source
        self.project_id = project_id
        self.overlap = get_project(db, project_id).overlap
        self._users: dict[str, User] = {"": user}
        self._models: dict[str, int | None] = {"": None}
        self._random = random.Random()

    def write(self, item: Item, result: Imported) -> None:
        """Store one item. Raises InputError where it contradicts what is stored."""
        if item.annotator not in self._users:
            self._users[item.annotator] = ensure_user(self.db, item.annotator)
        annotator = self._users[item.annotator]
        prompt_id, new_prompt = self._prompt(item)
        result.prompts += new_prompt
        if item.answer is not None:
            result.demonstrations += self._demonstration(prompt_id, item, annotator)
        if not item.texts:
            return
        task_id = None if new_prompt else self._find_task(prompt_id, item.texts)
        if task_id is not None:
            if item.ranks is not None:
                self._make_room(task_id, annotator)
                result.rankings += record_ranking(
                    self.db,
                    annotator,
                    task_id,
                    item.ranks,
                    comment=item.comment,
                    source=self.source,
                    event_id=self._event_id(prompt_id, item, annotator),
                    more={"weight": item.weight, "margin": item.margin},
                )
            return
        task_id, completion_ids = self._add_task(prompt_id, item)
        result.tasks += 1
        if item.ranks is not None:
            self._add_ranking(task_id, completion_ids, item, annotator, self._event_id(prompt_id, item, annotator))
            result.rankings += 1

    def _prompt(self, item: Item) -> tuple[int, bool]:
        """The prompt's id, and whether it is new."""
        found = scalar(self.db, "SELECT id FROM prompts WHERE content_hash = ?", [item.content_hash])
        if found is not None:
            return int(found), False
        if item.external_id is not None and scalar(
            self.db, "SELECT 1 FROM prompts WHERE external_id = ?", [item.external_id]
        ):
            raise InputError(f"the prompt id {item.external_id!r} is taken by another conversation; give it a new id")
        sql = "INSERT INTO prompts (external_id, messages, content_hash, category, source) VALUES (?, ?, ?, ?, ?)"
        values = [item.external_id, item.messages, item.content_hash, item.category, self.source]
        return int(self.db.execute(sql, values).lastrowid or 0), True

    def _find_task(self, prompt_id: int, texts: tuple[str, ...]) -> int | None:
        """The project's task with these completions in this order."""
        sql = """SELECT t.id FROM completions AS c
            CROSS JOIN task_completions AS tc ON tc.completion_id = c.id AND tc.position = 0
            CROSS JOIN tasks AS t ON t.id = tc.task_id
            WHERE c.prompt_id = ?1 AND substr(c.text, 1, 32) = substr(?2, 1, 32) AND c.text = ?2 AND t.project_id = ?3
            ORDER BY t.id"""
        inside = """SELECT c.text FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id
            WHERE tc.task_id = ? ORDER BY tc.position"""
        for (task_id,) in self.db.execute(sql, [prompt_id, texts[0], self.project_id]).fetchall():
            if tuple(text for (text,) in self.db.execute(inside, [task_id])) == texts:
                return int(task_id)
        return None

    def _add_task(self, prompt_id: int, item: Item) -> tuple[int, list[int]]:
        if item.model not in self._models:
            sql = "SELECT id FROM checkpoints WHERE kind = 'base' AND base_model = ?"
            self._models[item.model] = scalar(self.db, sql, [item.model])
        checkpoint_id = self._models[item.model]
        ids = []
        for text, info in zip(item.texts, item.infos, strict=True):
            sampling = {key: value for key, value in info.items() if key not in ("num_tokens", "finish_reason")}
            if item.model and checkpoint_id is None:
                sampling["model"] = item.model
            reason = info.get("finish_reason") if info.get("finish_reason") in ("stop", "length") else None
            tokens = info.get("num_tokens") if isinstance(info.get("num_tokens"), int) else None
            sql = """INSERT INTO completions
                (prompt_id, text, checkpoint_id, sampling, num_tokens, finish_reason, source)
                VALUES (?, ?, ?, ?, ?, ?, ?)"""
            values = [prompt_id, text, checkpoint_id, json.dumps(sampling), tokens, reason, self.source]
            ids.append(int(self.db.execute(sql, values).lastrowid or 0))
        sql = "INSERT INTO tasks (prompt_id, overlap, submissions, source, project_id) VALUES (?, ?, ?, ?, ?)"
        values = [prompt_id, self.overlap, int(item.ranks is not None), self.source, self.project_id]
        task_id = int(self.db.execute(sql, values).lastrowid or 0)
        places = [(task_id, position, completion_id) for position, completion_id in enumerate(ids)]
        sql = "INSERT INTO task_completions (task_id, position, completion_id) VALUES (?, ?, ?)"
        self.db.conn.executemany(sql, places)
        return task_id, ids

    def _add_ranking(self, task_id: int, completion_ids: list[int], item: Item, annotator: User, event_id: str) -> None:
        """What rankings.record_ranking does, for a task that nobody has seen yet."""
        now, order = time.time(), completion_ids.copy()
        self._random.shuffle(order)
        sql = """INSERT INTO assignments (task_id, user_id, display_order, state, opened_at, leased_until)
            VALUES (?, ?, ?, 'submitted', ?, ?)"""
        shown = json.dumps(order)
        assignment = self.db.execute(sql, [task_id, annotator.id, shown, now, now + LEASE_SECONDS]).lastrowid
        payload = {
            "weight": item.weight,
            "margin": item.margin,
            "completion_ids": completion_ids,
            "display_order": order,
            "ranks": item.ranks,
            "all_bad": False,
            "comment": item.comment,
            "seconds": None,
        }
        sql = """INSERT INTO events (uuid, assignment_id, user_id, kind, source, payload, created_at)
            VALUES (?, ?, ?, 'submit', ?, ?, ?)"""
        said = json.dumps(payload, ensure_ascii=False)
        self.db.execute(sql, [event_id, assignment, annotator.id, self.source, said, now])

    def _event_id(self, prompt_id: int, item: Item, annotator: User) -> str:
        """The same for the same ranking, so that importing it again adds nothing."""
        more = {"weight": item.weight, "margin": item.margin}
        key = [prompt_id, item.texts, item.ranks, annotator.name, more]
        if self.project_id != FIRST:
            key.append(self.project_id)
        digest = hashlib.sha256(json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
        return f"import-{digest}"

    def _make_room(self, task_id: int, annotator: User) -> None:
        """Imported rankings are facts: where more people ranked a task than it asked for, it asked for that many."""
        self.db.execute(
            """UPDATE tasks SET overlap = max(overlap, 1 + (SELECT count(*) FROM assignments
                WHERE task_id = tasks.id AND user_id != ? AND state IN ('submitted', 'open'))) WHERE id = ?""",
            [annotator.id, task_id],
        )

    def _demonstration(self, prompt_id: int, item: Item, annotator: User) -> bool:
        sql = """SELECT 1 FROM completions WHERE prompt_id = ?1 AND substr(text, 1, 32) = substr(?2, 1, 32)
                AND text = ?2 AND source = 'demonstration'"""
        if scalar(self.db, sql, [prompt_id, item.answer]):
            return False
        writer = annotator.id if item.annotator else None
        sql = "INSERT INTO completions (prompt_id, text, source, written_by) VALUES (?, ?, 'demonstration', ?)"
        self.db.execute(sql, [prompt_id, item.answer, writer])
        return True
