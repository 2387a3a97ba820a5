"""Training data out of the store: chosen by filters, written once, named by its hash.

Kinds: `preferences` (one row a ranking), `demonstrations` (a prompt and one answer worth imitating), `prompts`.
Rows come in the order in which they were made, so the same events give the same bytes. They are streamed: a million
rankings are never held at once, and nobody who ranks waits while they are written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.formats import write_rows
from data.preferences import file_sha256
from data.records import InputError
from labeler import reliability
from labeler.rankings import IN_FORCE_AT
from labeler.store import Row, Store, rows, scalar
from labeler.users import User

KINDS = ("preferences", "demonstrations", "prompts")
FILTERS = {
    "annotators": "only rankings of these people (names)",
    "exclude_annotators": "no rankings of these people (names)",
    "project_ids": "only rankings made in these projects (ids)",
    "categories": "only prompts of these categories",
    "sources": "only rankings from these sources: task, compare, chat, import, api, simulated",
    "checkpoint_ids": "only completions of these checkpoints (ids)",
    "since": "only rankings made at or after this time (unix seconds)",
    "until": "only rankings made before this time (unix seconds)",
    "event_high_water": "nothing that was said after this event (id)",
    "weight_by_reliability": "multiply each ranking's weight by its annotator's fitted reliability (default false)",
    "top_ranked_as_demonstrations": "let SFT learn from completions that are alone on rank 1 (default true)",
}

Weights = Mapping[int | None, Mapping[int, float]]
"""Project -> annotator -> what their rankings are multiplied by."""
LEAST_WEIGHT = 0.01
"""Whoever is this close to guessing is left out: a weight of nearly nothing would only cost time."""


@dataclass(frozen=True)
class Snapshot:
    """A file of training data. `event_high_water` is the id of the last event that existed when it was made."""

    id: int
    path: Path
    sha256: str
    counts: dict[str, int]
    event_high_water: int


def count(store: Store, filters: Mapping[str, Any] | None = None, kinds: Collection[str] = KINDS) -> dict[str, int]:
    """What there is to learn from: rankings, comparisons (ties included), ties, prompts, annotators, demonstrations.

    `prompts` counts all prompts that pass the filters, ranked or not. Only `kinds` are counted; demonstrations are the
    slow ones, since each is a text that may have been seen before.
    """
    chosen = _check(filters)
    db = store.db
    counts: dict[str, int] = {}
    if "preferences" in kinds:
        counts |= _count_all(db) if not chosen else _Tally.of(rankings(db, chosen)).counts()
    if "prompts" in kinds:
        params: list[Any] = []
        counts["prompts"] = scalar(db, f"SELECT count(*) FROM prompts {_category(chosen, params)}", params)
    if "demonstrations" in kinds:
        counts["demonstrations"] = sum(1 for _ in demonstrations(db, chosen))
    return counts


def _count_all(db: Database) -> dict[str, int]:
    """Rankings, comparisons, ties and annotators without any filter: sums over numbers, no text is read."""
    row = db.execute(
        """SELECT count(*), coalesce(sum(pairs), 0), coalesce(sum(ties), 0), count(DISTINCT user_id) FROM in_force
            WHERE pairs > 0 AND task_id NOT IN (SELECT id FROM tasks WHERE gold_ranks IS NOT NULL)
                AND assignment_id NOT IN (SELECT id FROM assignments WHERE purpose = 'repeat')
                AND (task_id NOT IN (SELECT value FROM json_each(?))
                    OR event_id IN (SELECT value FROM json_each(?)))""",
        _settled(db, None),
    ).fetchone()
    return dict(zip(("rankings", "comparisons", "ties", "annotators"), row, strict=True))


def write_snapshot(
    store: Store, path: Path, kind: str, filters: Mapping[str, Any] | None, created_by: User | int | None
) -> Snapshot:
    """Write the rows of that kind to `path` (JSONL) and remember what was written.

    Raises InputError where no row passes the filters; no file is left then.
    """
    chosen, counts = write_file(store, path, kind, filters)
    return remember(store, path, kind, "rows", chosen, counts, created_by)


def write_file(
    store: Store, path: Path, kind: str, filters: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the rows and nothing else: the filters with the high-water mark, and the counts, for `remember`."""
    if kind not in KINDS:
        raise InputError(f"unknown kind of data {kind!r}; use one of {', '.join(KINDS)}")
    with reading(store, filters) as (db, chosen):
        made = {"preferences": rankings, "demonstrations": demonstrations, "prompts": prompts}[kind](db, chosen)
        tally = _Tally(preferences=kind == "preferences")
        write_rows(path, tally.passing(required(made, kind)))
    return chosen, tally.counts()


@contextmanager
def reading(store: Store, filters: Mapping[str, Any] | None) -> Iterator[tuple[Database, dict[str, Any]]]:
    """The database as it is at this moment, however long it is read, and the filters with the high-water mark in them.

    Inside `store.write` it is that transaction.
    """
    chosen, db = _check(filters), store.db
    inside = db.conn.in_transaction
    if not inside:
        db.execute("BEGIN")
    try:
        high_water = scalar(db, "SELECT coalesce(max(id), 0) FROM events")
        chosen["event_high_water"] = min(high_water, chosen.get("event_high_water", high_water))
        yield db, chosen
    finally:
        if not inside:
            db.rollback()  # nothing was written


def required(made: Iterator[Row], kind: str) -> Iterator[Row]:
    """The same rows. Raises InputError at once where there are none."""
    first = next(made, None)
    if first is None:
        raise InputError(_nothing(kind))
    return chain([first], made)


def remember(
    store: Store,
    path: Path,
    kind: str,
    form: str,
    chosen: Mapping[str, Any],
    counts: dict[str, int],
    created_by: User | int | None,
    digest: str | None = None,
) -> Snapshot:
    """Note what was written. `digest` is the SHA-256 that names it (None: that of the file)."""
    digest = digest or file_sha256(path)
    folder = store.path.parent
    with store.write() as db:
        cursor = db.execute(
            "INSERT INTO snapshots (kind, path, sha256, filters, counts, event_high_water, created_by, format)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                kind,
                str(path.relative_to(folder) if path.is_relative_to(folder) else path),
                digest,
                json.dumps(chosen),
                json.dumps(counts),
                chosen["event_high_water"],
                created_by.id if isinstance(created_by, User) else created_by,
                form,
            ],
        )
    return Snapshot(int(cursor.lastrowid or 0), path, digest, counts, chosen["event_high_water"])


@dataclass
class _Tally:
    """Counts rows while they pass: rows and prompts, and what they compare where they are preferences."""

    preferences: bool = True
    rows: int = 0
    pairs: int = 0
    ties: int = 0
    annotators: set[str] = field(default_factory=set)
    prompts: set[int] = field(default_factory=set)  # hashes: a million prompts are too many to keep

    @classmethod
    def of(cls, made: Iterable[Row]) -> _Tally:
        tally = cls()
        for _ in tally.passing(made):
            pass
        return tally

    def passing(self, made: Iterable[Row]) -> Iterator[Row]:
        for row in made:
            self.rows += 1
            self.prompts.add(hash(json.dumps(row["prompt"])))
            if self.preferences:
                ranked = [rank for rank in row["ranks"] if rank is not None]
                self.pairs += len(ranked) * (len(ranked) - 1) // 2
                self.ties += sum(first == second for first, second in combinations(ranked, 2))
                self.annotators.add(row["annotator"])
            yield row

    def counts(self) -> dict[str, int]:
        found = {"rows": self.rows}
        if self.preferences:
            found |= {"rankings": self.rows, "comparisons": self.pairs, "ties": self.ties}
            found["annotators"] = len(self.annotators)
        return found | {"prompts": len(self.prompts)}


def _nothing(kind: str) -> str:
    return {
        "preferences": "there are no rankings to learn from yet; rank some completions in the Rank tab first",
        "demonstrations": "there are no demonstrations to learn from yet; rank completions with one alone at the top, "
        "or import demonstrations in the Data tab",
        "prompts": "there are no prompts yet; import some in the Data tab",
    }[kind]


def _check(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    chosen = {key: value for key, value in (filters or {}).items() if value is not None and value != []}
    unknown = sorted(set(chosen) - set(FILTERS))
    if unknown:
        raise InputError(f"unknown filter {', '.join(unknown)}; use {', '.join(FILTERS)}")
    return chosen


def _in(column: str, values: Any, params: list[Any], negate: bool = False) -> str:
    params.append(json.dumps(list(values)))
    return f"{column} {'NOT ' if negate else ''}IN (SELECT value FROM json_each(?))"


_LEARNED = """t.gold_ranks IS NULL AND a.purpose != 'repeat' AND (
    a.task_id NOT IN (SELECT value FROM json_each(?))
    OR e.id IN (SELECT value FROM json_each(?)))"""
"""Known answers test people, and a repeat tests one again: neither is a new opinion. Of a task with an adjudication in
force (the last one, where leads made several) that ranking alone is learned from."""


def _settled(db: Database, high_water: int | None) -> list[str]:
    """The tasks that have an adjudication in force at the high-water mark, and its event, as two JSON lists."""
    newest = 2**62 if high_water is None else high_water
    found = rows(
        db,
        f"""SELECT a.task_id, max(e.id) AS event_id FROM assignments AS a JOIN events AS e ON e.assignment_id = a.id
            WHERE a.purpose = 'adjudicate' AND {IN_FORCE_AT} GROUP BY a.task_id""",
        [newest, newest],
    )
    return [json.dumps([row[name] for row in found]) for name in ("task_id", "event_id")]


BATCH = 500
"""Rankings whose completions are fetched by one query."""


def in_force(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    """The rankings in force at the high-water mark that pass the filters, with their completions in task order."""
    high_water = filters.get("event_high_water")
    params: list[Any] = []
    settled = _settled(db, high_water)
    if high_water is None or high_water >= scalar(db, "SELECT coalesce(max(id), 0) FROM events"):
        source, where = "in_force AS f CROSS JOIN events AS e ON e.id = f.event_id", [_LEARNED]
        params += settled
    else:  # in_force knows only the present
        source = "events AS e"
        where = [IN_FORCE_AT, _LEARNED]
        params += [high_water, high_water, *settled]
    if "annotators" in filters:
        where.append(_in("lower(u.name)", [name.lower() for name in filters["annotators"]], params))
    if "exclude_annotators" in filters:
        where.append(_in("lower(u.name)", [name.lower() for name in filters["exclude_annotators"]], params, True))
    if "project_ids" in filters:
        where.append(_in("t.project_id", filters["project_ids"], params))
    if "categories" in filters:
        where.append(_in("p.category", filters["categories"], params))
    if "sources" in filters:
        where.append(_in("e.source", filters["sources"], params))
    if "since" in filters:
        where.append("e.created_at >= ?")
        params.append(filters["since"])
    if "until" in filters:
        where.append("e.created_at < ?")
        params.append(filters["until"])
    # CROSS JOIN keeps SQLite from starting elsewhere and sorting everything afterwards
    sql = f"""SELECT e.id AS event_id, e.uuid, e.source, e.payload, p.messages, p.id AS prompt_id, u.name AS annotator,
            a.user_id, a.purpose, t.project_id
        FROM {source} CROSS JOIN assignments AS a ON a.id = e.assignment_id CROSS JOIN tasks AS t ON t.id = a.task_id
        CROSS JOIN prompts AS p ON p.id = t.prompt_id CROSS JOIN users AS u ON u.id = a.user_id
        WHERE {" AND ".join(where)} ORDER BY e.id"""
    wanted = set(filters["checkpoint_ids"]) if "checkpoint_ids" in filters else None
    for batch in _batches(db, sql, params):
        payloads = [json.loads(row.pop("payload")) for row in batch]
        completions = _completions(db, {i for payload in payloads for i in payload["completion_ids"]})
        for row, payload in zip(batch, payloads, strict=True):
            kept = [
                (completions[i], rank)
                for i, rank in zip(payload["completion_ids"], payload["ranks"], strict=True)
                # an empty answer is nothing to train on, and a row that holds one would be refused
                if completions[i]["text"].strip() and (wanted is None or completions[i]["checkpoint_id"] in wanted)
            ]
            yield {**row, "messages": json.loads(row["messages"]), "payload": payload, "kept": kept}


def _batches(db: Database, sql: str, params: list[Any]) -> Iterator[list[Row]]:
    cursor = db.execute(sql, params)
    names = [column[0] for column in cursor.description]
    while found := cursor.fetchmany(BATCH):
        yield [dict(zip(names, values, strict=True)) for values in found]


def _completions(db: Database, ids: Collection[int]) -> dict[int, Row]:
    sql = "SELECT id, text, checkpoint_id, finish_reason FROM completions WHERE id IN (SELECT value FROM json_each(?))"
    return {row["id"]: row for row in rows(db, sql, [json.dumps(sorted(ids))])}


def _reliability(db: Database, filters: Mapping[str, Any]) -> Weights:
    """Empty where it is not asked for."""
    if not filters.get("weight_by_reliability"):
        return {}
    found = rows(db, "SELECT id FROM projects")
    return {row["id"]: reliability.weights(db, row["id"], filters.get("event_high_water")) for row in found}


def rankings(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    """One row a ranking with at least two completions in order."""
    weights = _reliability(db, filters)
    for found in in_force(db, filters):
        payload = found["payload"]
        # an adjudication is the last word, and weighs 1
        learned = {} if found["purpose"] == "adjudicate" else weights.get(found["project_id"], {})
        factor = learned.get(found["user_id"], 1.0)
        if factor < LEAST_WEIGHT:
            continue
        ranks = [rank for _, rank in found["kept"]]
        if payload["all_bad"] or sum(rank is not None for rank in ranks) < 2:
            continue
        row: Row = {
            "prompt": found["messages"],
            "completions": [completion["text"] for completion, _ in found["kept"]],
            "ranks": ranks,
            "annotator": found["annotator"],
            "weight": payload.get("weight", 1.0) * factor,
            "source": found["source"],
            "event": found["uuid"],
        }
        reasons = [completion["finish_reason"] for completion, _ in found["kept"]]
        if "length" in reasons:  # an answer that was cut must not teach a model to end there
            row["finish_reasons"] = [reason or "stop" for reason in reasons]
        if payload.get("margin"):
            row["margin"] = payload["margin"]
        yield row


def demonstrations(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    """Answers people wrote: imported, or rewritten while ranking; then completions alone on rank 1."""
    if not set(filters) - {"categories", "event_high_water", "top_ranked_as_demonstrations", "weight_by_reliability"}:
        params: list[Any] = []
        where = "AND " + _in("p.category", filters["categories"], params) if "categories" in filters else ""
        sql = f"""SELECT p.messages, c.text FROM completions AS c JOIN prompts AS p ON p.id = c.prompt_id
            WHERE c.source = 'demonstration' {where} ORDER BY c.id"""
        for row in chain.from_iterable(_batches(db, sql, params)):
            yield {"prompt": json.loads(row["messages"]), "completion": row["text"], "source": "written"}
    top_ranked = filters.get("top_ranked_as_demonstrations", True)
    seen: set[int] = set()  # hashes, since a million texts are too many to keep
    for found in in_force(db, filters):
        payload, best = found["payload"], []
        rewrite = payload.get("rewrite")
        if isinstance(rewrite, str) and rewrite.strip():
            best.append((rewrite, "rewrite"))
        if top_ranked and not payload["all_bad"]:
            ranked = sorted((rank, completion["text"]) for completion, rank in found["kept"] if rank is not None)
            if len(ranked) >= 2 and ranked[0][0] < ranked[1][0]:
                best.append((ranked[0][1], "top-ranked"))
        for text, source in best:
            key = hash((found["prompt_id"], text))
            if key not in seen:
                seen.add(key)
                row = {"prompt": found["messages"], "completion": text, "source": source}
                yield {**row, "annotator": found["annotator"], "event": found["uuid"]}


def prompts(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    """Every prompt, ranked or not."""
    params: list[Any] = []
    where = _category(filters, params)
    sql = f"SELECT id, external_id, messages, category FROM prompts {where} ORDER BY id"
    for row in chain.from_iterable(_batches(db, sql, params)):
        yield {
            "prompt": json.loads(row["messages"]),
            "category": row["category"],
            "id": row["external_id"] or str(row["id"]),
        }


def _category(filters: Mapping[str, Any], params: list[Any]) -> str:
    return f"WHERE {_in('category', filters['categories'], params)}" if "categories" in filters else ""
