"""What people said in a project, as numbers: what quality, reliability and adjudication are computed from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from labeler.rankings import in_force
from labeler.store import rows

Ranks = tuple[int | None, ...]


@dataclass(frozen=True)
class Opinion:
    """A ranking in force. `ranks` and `gold` stand in task order, `shown` are the ranks in the order on the screen.

    `seen` is False where nobody saw that order (an import): then it says nothing about positions. `seconds` is None
    where it was not measured.
    """

    event_id: int
    task_id: int
    user_id: int
    name: str
    purpose: str
    ranks: Ranks
    shown: Ranks
    gold: Ranks | None
    seen: bool
    seconds: float | None
    created_at: float
    all_bad: bool


def read(db: Database, project_id: int, high_water: int | None = None, limit: int = -1) -> list[Opinion]:
    """The project's rankings in force, oldest first; only the newest `limit`, if given."""
    source, params = in_force(high_water)
    found = rows(
        db,
        f"""SELECT r.event_id, r.task_id, r.user_id, u.name, r.purpose, r.gold_ranks, r.source, r.payload, r.created_at
            FROM {source} AS r JOIN users AS u ON u.id = r.user_id
            WHERE r.project_id = ? ORDER BY r.event_id DESC LIMIT ?""",
        [*params, project_id, limit],
    )
    return [_opinion(row) for row in reversed(found)]


def _opinion(row: dict) -> Opinion:
    payload, gold = json.loads(row["payload"]), row["gold_ranks"]
    rank = dict(zip(payload["completion_ids"], payload["ranks"], strict=True))
    seconds = payload.get("seconds")
    return Opinion(
        row["event_id"],
        row["task_id"],
        row["user_id"],
        row["name"],
        row["purpose"],
        tuple(payload["ranks"]),
        tuple(rank[completion] for completion in payload["display_order"]),
        None if gold is None else tuple(json.loads(gold)),
        row["source"] != "import",
        float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None,
        row["created_at"],
        bool(payload["all_bad"]),
    )


def by_task(opinions: Iterable[Opinion], gold: bool = False) -> dict[int, dict[int, Ranks]]:
    """Task -> user id -> ranks, of labels alone; tasks with a known answer only with `gold`.

    "All bad" is a flag, and says nothing about which is better.
    """
    found: dict[int, dict[int, Ranks]] = {}
    for said in opinions:
        if said.purpose == "label" and not said.all_bad and (gold or said.gold is None):
            found.setdefault(said.task_id, {})[said.user_id] = said.ranks
    return found
