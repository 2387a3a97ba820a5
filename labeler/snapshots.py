"""Training data out of the store: chosen by filters, written once, named by its hash.

Kinds: `preferences` (one row a ranking), `demonstrations` (a prompt and one answer worth imitating), `prompts`.
Rows come in the order in which they were made, so the same events give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.formats import write_rows
from data.preferences import file_sha256
from data.records import InputError
from labeler import reliability
from labeler.rankings import in_force
from labeler.store import Row, Store, rows, scalar
from labeler.users import User

KINDS = ("preferences", "demonstrations", "prompts")
FILTERS = {
    "annotators": "only rankings of these people (names)",
    "exclude_annotators": "no rankings of these people (names)",
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


def count(store: Store, filters: Mapping[str, Any] | None = None) -> dict[str, int]:
    """What there is to learn from: rankings, comparisons (ties included), ties, prompts, annotators, demonstrations.

    `prompts` counts all prompts that pass the filters, ranked or not.
    """
    chosen = _check(filters)
    db = store.db
    counts = _count_rankings(list(_rankings(db, chosen)))
    counts["prompts"] = sum(1 for _ in _prompts(db, chosen))
    counts["demonstrations"] = sum(1 for _ in _demonstrations(db, chosen))
    return counts


def write_snapshot(
    store: Store, path: Path, kind: str, filters: Mapping[str, Any] | None, created_by: User | int | None
) -> Snapshot:
    """Write the rows of that kind to `path` (JSONL) and remember what was written.

    Raises InputError where no row passes the filters; no file is left then.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of data {kind!r}; use one of {', '.join(KINDS)}")
    chosen = _check(filters)
    weights: Weights = {}
    if chosen.get("weight_by_reliability") and kind == "preferences":
        # fitted before the transaction, which would keep annotators waiting: events are never changed, so this holds
        newest = scalar(store.db, "SELECT coalesce(max(id), 0) FROM events")
        chosen["event_high_water"] = min(newest, chosen.get("event_high_water", newest))
        weights = _reliability(store.db, chosen)
    with store.write() as db:  # one transaction: the rows, the counts and the high-water mark belong together
        high_water = scalar(db, "SELECT coalesce(max(id), 0) FROM events")
        high_water = min(high_water, chosen.get("event_high_water", high_water))
        chosen["event_high_water"] = high_water
        if kind == "preferences":
            found = list(_rankings(db, chosen, weights))
        else:
            found = list((_demonstrations if kind == "demonstrations" else _prompts)(db, chosen))
        if not found:
            raise InputError(_nothing(kind))
        counts = {"rows": len(found)}
        if kind == "preferences":
            counts |= _count_rankings(found)
        counts["prompts"] = len({json.dumps(row["prompt"]) for row in found})
        write_rows(path, found)
        digest = file_sha256(path)
        folder = store.path.parent
        cursor = db.execute(
            "INSERT INTO snapshots (kind, path, sha256, filters, counts, event_high_water, created_by)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                kind,
                str(path.relative_to(folder) if path.is_relative_to(folder) else path),
                digest,
                json.dumps(chosen),
                json.dumps(counts),
                high_water,
                created_by.id if isinstance(created_by, User) else created_by,
            ],
        )
        return Snapshot(int(cursor.lastrowid or 0), path, digest, counts, high_water)


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


def _count_rankings(found: list[Row]) -> dict[str, int]:
    pairs = ties = 0
    for row in found:
        ranked = [rank for rank in row["ranks"] if rank is not None]
        pairs += len(ranked) * (len(ranked) - 1) // 2
        ties += sum(first == second for first, second in combinations(ranked, 2))
    annotators = len({row["annotator"] for row in found})
    return {"rankings": len(found), "comparisons": pairs, "ties": ties, "annotators": annotators}


def _in(column: str, values: Any, params: list[Any], negate: bool = False) -> str:
    params.append(json.dumps(list(values)))
    return f"{column} {'NOT ' if negate else ''}IN (SELECT value FROM json_each(?))"


_LEARNED = """r.gold_ranks IS NULL AND r.purpose != 'repeat' AND (
    r.task_id NOT IN (SELECT task_id FROM said WHERE purpose = 'adjudicate')
    OR r.event_id IN (SELECT max(event_id) FROM said WHERE purpose = 'adjudicate' GROUP BY task_id))"""
"""Known answers test people, and a repeat tests one again: neither is a new opinion. Of a task with an adjudication in
force (the last one, where leads made several) that ranking alone is learned from."""


def _in_force(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    """The rankings in force at the high-water mark that pass the filters, with their completions in task order."""
    source, params = in_force(filters.get("event_high_water"))
    where = [_LEARNED]
    if "annotators" in filters:
        where.append(_in("lower(u.name)", [name.lower() for name in filters["annotators"]], params))
    if "exclude_annotators" in filters:
        where.append(_in("lower(u.name)", [name.lower() for name in filters["exclude_annotators"]], params, True))
    if "categories" in filters:
        where.append(_in("p.category", filters["categories"], params))
    if "sources" in filters:
        where.append(_in("r.source", filters["sources"], params))
    if "since" in filters:
        where.append("r.created_at >= ?")
        params.append(filters["since"])
    if "until" in filters:
        where.append("r.created_at < ?")
        params.append(filters["until"])
    sql = f"""WITH said AS (SELECT * FROM {source})
        SELECT r.event_id, r.uuid, r.source, r.payload, r.user_id, r.project_id, r.purpose, p.messages,
            p.id AS prompt_id, u.name AS annotator
        FROM said AS r JOIN prompts AS p ON p.id = r.prompt_id JOIN users AS u ON u.id = r.user_id
        WHERE {" AND ".join(where)} ORDER BY r.event_id"""
    wanted = set(filters["checkpoint_ids"]) if "checkpoint_ids" in filters else None
    for row in rows(db, sql, params):
        payload = json.loads(row.pop("payload"))
        completions = _completions(db, payload["completion_ids"])
        kept = [
            (completion, rank)
            for completion, rank in zip(completions, payload["ranks"], strict=True)
            # an empty answer is nothing to train on, and a row that holds one would be refused
            if completion["text"].strip() and (wanted is None or completion["checkpoint_id"] in wanted)
        ]
        yield {**row, "messages": json.loads(row["messages"]), "payload": payload, "kept": kept}


def _reliability(db: Database, filters: Mapping[str, Any]) -> Weights:
    """What each annotator's rankings are multiplied by: project -> user -> weight; empty where it is not asked for."""
    if not filters.get("weight_by_reliability"):
        return {}
    found = rows(db, "SELECT id FROM projects")
    return {row["id"]: reliability.weights(db, row["id"], filters.get("event_high_water")) for row in found}


def _completions(db: Database, ids: list[int]) -> list[Row]:
    sql = "SELECT id, text, checkpoint_id, finish_reason FROM completions WHERE id IN (SELECT value FROM json_each(?))"
    found = {row["id"]: row for row in rows(db, sql, [json.dumps(ids)])}
    return [found[i] for i in ids]


def _rankings(db: Database, filters: Mapping[str, Any], weights: Weights | None = None) -> Iterator[Row]:
    weights = _reliability(db, filters) if weights is None else weights
    for found in _in_force(db, filters):
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


def _demonstrations(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    """Answers people wrote: imported, or rewritten while ranking; then completions alone on rank 1."""
    if not set(filters) & {"annotators", "exclude_annotators", "sources", "checkpoint_ids", "since", "until"}:
        params: list[Any] = []
        where = "AND " + _in("p.category", filters["categories"], params) if "categories" in filters else ""
        sql = f"""SELECT p.messages, c.text FROM completions AS c JOIN prompts AS p ON p.id = c.prompt_id
            WHERE c.source = 'demonstration' {where} ORDER BY c.id"""
        for row in rows(db, sql, params):
            yield {"prompt": json.loads(row["messages"]), "completion": row["text"], "source": "written"}
    top_ranked = filters.get("top_ranked_as_demonstrations", True)
    seen: set[tuple[int, str]] = set()
    for found in _in_force(db, filters):
        payload, best = found["payload"], []
        rewrite = payload.get("rewrite")
        if isinstance(rewrite, str) and rewrite.strip():
            best.append((rewrite, "rewrite"))
        if top_ranked and not payload["all_bad"]:
            ranked = sorted((rank, completion["text"]) for completion, rank in found["kept"] if rank is not None)
            if len(ranked) >= 2 and ranked[0][0] < ranked[1][0]:
                best.append((ranked[0][1], "top-ranked"))
        for text, source in best:
            if (found["prompt_id"], text) not in seen:
                seen.add((found["prompt_id"], text))
                row = {"prompt": found["messages"], "completion": text, "source": source}
                yield {**row, "annotator": found["annotator"], "event": found["uuid"]}


def _prompts(db: Database, filters: Mapping[str, Any]) -> Iterator[Row]:
    params: list[Any] = []
    where = "WHERE " + _in("category", filters["categories"], params) if "categories" in filters else ""
    for row in rows(db, f"SELECT id, external_id, messages, category FROM prompts {where} ORDER BY id", params):
        yield {
            "prompt": json.loads(row["messages"]),
            "category": row["category"],
            "id": row["external_id"] or str(row["id"]),
        }
