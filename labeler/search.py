"""Rankings in force, newest first, found by words, project, checkpoint, annotator, agreement and date.

Words are looked up in an index (FTS5) over prompt, completions and comment of every ranking in force; a SQLite without
FTS5 searches by LIKE, which is slow with many rankings.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sqlite_utils import Database

from data.records import InputError
from labeler.store import Row, Store, rows, scalar

PAGE = 25
COMMON = 20_000
"""A checkpoint with more completions than this is met soon when rankings are gone through from the newest."""
LOOKED_THROUGH = 20_000
"""Rankings whose agreement is computed for one page; the next page goes on behind them."""
HALF = 0.5


@dataclass(frozen=True)
class Query:
    """What to look for. `words` must all be there; "in quotes" as they stand, with * at the end any that begin so.

    `agreement` is "low" (under half of the pairs agree) or "high"; only tasks that two or more people ranked have one.
    `since` and `until` are unix seconds.
    """

    words: str = ""
    project_id: int | None = None
    checkpoint_id: int | None = None
    annotator: str = ""
    agreement: str = ""
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Page:
    """Rankings, newest first. `before` is where the next page goes on (an event's id), None at the end."""

    rows: list[Row]
    before: int | None


def has_index(db: Database) -> bool:
    """Whether words are looked up in an index."""
    return bool(scalar(db, "SELECT 1 FROM sqlite_master WHERE name = 'search'"))


@contextmanager
def indexed_together(db: Database) -> Iterator[None]:
    """Index the words of all rankings written inside at the end, in one statement. Call inside `write`.

    FTS5 writes out what it has gathered whenever a statement with triggers begins, so words one by one cost far more.
    """
    if not has_index(db):
        yield
        return
    db.execute("INSERT INTO unindexed SELECT coalesce(max(id), 0) FROM events")
    yield
    db.execute(
        """INSERT INTO search (rowid, prompt, completions, comment)
            SELECT event_id, prompt, completions, comment FROM ranking_texts
            WHERE event_id > (SELECT after_event_id FROM unindexed) ORDER BY event_id"""
    )
    db.execute("DELETE FROM unindexed")


def find(store: Store, query: Query, before: int | None = None, limit: int = PAGE) -> Page:
    """The newest rankings that fit, older than the event `before`.

    Each row: event_id, task_id, created_at, source, annotator, project, prompt (messages), completions, ranks, all_bad,
    comment, agreement (share of pairs, or None) and people (how many ranked the task then).
    """
    db = store.db
    source, where, params = _conditions(db, query)
    if query.agreement not in ("", "low", "high"):
        raise InputError('agreement must be "low" or "high"')
    if query.agreement:
        where.append("f.task_id IN (SELECT task_id FROM in_force GROUP BY task_id HAVING count(*) > 1)")
    found: list[int] = []
    looked = 0
    size = limit + 1 if not query.agreement else 500
    newest = "search.rowid" if source.startswith("search") else "f.event_id"
    while True:
        bound = [] if before is None else [f"{newest} < {int(before)}"]
        sql = f"SELECT f.event_id FROM {source} WHERE {' AND '.join([*where, *bound, '1'])}"
        try:
            ids = [i for (i,) in db.execute(f"{sql} ORDER BY {newest} DESC LIMIT {size}", params).fetchall()]
        except sqlite3.OperationalError as error:
            if "fts5" not in str(error):
                raise
            raise InputError("these words cannot be searched for; use plain words") from None
        looked += len(ids)
        fitting = ids if not query.agreement else _by_agreement(db, ids, query.agreement)
        found += fitting
        if len(found) > limit:
            return Page(_details(db, found[:limit]), found[limit - 1])
        if len(ids) < size:
            return Page(_details(db, found), None)
        before = ids[-1]
        if looked >= LOOKED_THROUGH:
            return Page(_details(db, found), before)


def _conditions(db: Database, query: Query) -> tuple[str, list[str], list[Any]]:
    """FROM, WHERE and its parameters. What is joined after the first table keeps its order: newest first."""
    source = "in_force AS f"
    where: list[str] = []
    params: list[Any] = []
    terms = _terms(query.words)
    if terms and has_index(db):
        source = "search CROSS JOIN in_force AS f ON f.event_id = search.rowid"
        where.append("search MATCH ?")
        params.append(" ".join(terms))
    elif terms:
        for word in re.findall(r"\w+", query.words):
            text = "coalesce(x.prompt, '') || char(10) || coalesce(x.completions, '') || char(10) || x.comment"
            where.append(f"f.event_id IN (SELECT x.event_id FROM ranking_texts AS x WHERE {text} LIKE ?)")
            params.append(f"%{word}%")
    elif query.words.strip():
        raise InputError("there is no word in what you search for; write letters or digits")
    if query.project_id is not None:
        where.append("f.project_id = ?")
        params.append(query.project_id)
    if query.annotator.strip():
        where.append("f.user_id = (SELECT id FROM users WHERE name = ?)")
        params.append(query.annotator.strip())
    if query.since is not None:
        where.append("f.created_at >= ?")
        params.append(query.since)
    if query.until is not None:
        where.append("f.created_at < ?")
        params.append(query.until)
    if query.checkpoint_id is not None:
        few = "SELECT count(*) FROM (SELECT 1 FROM completions WHERE checkpoint_id = ? LIMIT ?)"
        completions = (
            "completions AS c JOIN task_completions AS tc ON tc.completion_id = c.id WHERE c.checkpoint_id = ?"
        )
        if scalar(db, few, [query.checkpoint_id, COMMON]) < COMMON:
            where.append(f"f.task_id IN (SELECT tc.task_id FROM {completions})")
        else:
            where.append(
                "EXISTS (SELECT 1 FROM task_completions AS tc CROSS JOIN completions AS c ON c.id = tc.completion_id"
                " WHERE tc.task_id = f.task_id AND c.checkpoint_id = ?)"
            )
        params.append(query.checkpoint_id)
    return source, where, params


def _terms(words: str) -> list[str]:
    """The words as FTS5 strings, which nothing in them can turn into operators."""
    terms = []
    for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', words):
        text = phrase or word
        if re.search(r"\w", text):
            star = "*" if word.endswith("*") else ""
            terms.append('"' + text.rstrip("*").replace('"', '""') + '"' + star)
    return terms


def _by_agreement(db: Database, ids: list[int], wanted: str) -> list[int]:
    shares = agreements(db, ids)
    return [i for i in ids if i in shares and (shares[i][0] < HALF) == (wanted == "low")]


def agreements(db: Database, event_ids: Iterable[int]) -> dict[int, tuple[float, int]]:
    """event id -> the share of pairs of its task's completions on which people agree, and how many people ranked it.

    Events of tasks that fewer than two people ranked, or without a pair in common, are left out.
    """
    sql = """SELECT m.event_id AS asked, o.event_id, json_extract(e.payload, '$.ranks') AS ranks FROM in_force AS m
        CROSS JOIN in_force AS o ON o.task_id = m.task_id CROSS JOIN events AS e ON e.id = o.event_id
        WHERE m.event_id IN (SELECT value FROM json_each(?))"""
    tasks: dict[int, list[list[int | None]]] = {}
    for row in rows(db, sql, [json.dumps(list(event_ids))]):
        tasks.setdefault(row["asked"], []).append(json.loads(row["ranks"]))
    shares = {event_id: (agreement(said), len(said)) for event_id, said in tasks.items()}
    return {event_id: (share, people) for event_id, (share, people) in shares.items() if share is not None}


def agreement(rankings: list[list[int | None]]) -> float | None:
    """The share of (pair of completions, pair of rankings) on which both say better, worse or tie alike."""
    same = compared = 0
    for first, second in combinations(rankings, 2):
        for i, j in combinations(range(len(first)), 2):
            a, b, c, d = first[i], first[j], second[i], second[j]
            if a is not None and b is not None and c is not None and d is not None:
                compared += 1
                same += ((a > b) - (a < b)) == ((c > d) - (c < d))
    return same / compared if compared else None


def _details(db: Database, event_ids: list[int]) -> list[Row]:
    if not event_ids:
        return []
    sql = """SELECT r.event_id, r.task_id, r.created_at, r.source, r.completion_ids, r.ranks, r.all_bad, r.comment,
            u.name AS annotator, j.name AS project, p.messages AS prompt
        FROM latest_rankings AS r JOIN users AS u ON u.id = r.user_id JOIN prompts AS p ON p.id = r.prompt_id
        LEFT JOIN projects AS j ON j.id = r.project_id
        WHERE r.event_id IN (SELECT value FROM json_each(?)) ORDER BY r.event_id DESC"""
    found = rows(db, sql, [json.dumps(event_ids)])
    shares = agreements(db, event_ids)
    for row in found:
        ids = json.loads(row.pop("completion_ids"))
        sql = "SELECT id, text FROM completions WHERE id IN (SELECT value FROM json_each(?))"
        texts = dict(db.execute(sql, [json.dumps(ids)]).fetchall())
        row["completions"] = [texts[i] for i in ids]
        row["ranks"], row["prompt"] = json.loads(row["ranks"]), json.loads(row["prompt"])
        row["agreement"], row["people"] = shares.get(row["event_id"], (None, None))
    return found
