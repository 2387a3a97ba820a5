"""Files in: prompts, completions to rank, preferences and demonstrations. Importing twice adds nothing twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.formats import parse_completion, parse_prompt, parse_prompt_row, parse_ranking, read_rows
from data.records import InputError, Message
from labeler import tasks
from labeler.projects import FIRST
from labeler.prompts import add_completion, add_prompt
from labeler.rankings import record_ranking
from labeler.store import Store, one, rows
from labeler.users import User, ensure_user


@dataclass
class Imported:
    """What an import added; `rows` counts all rows that were read."""

    rows: int = 0
    prompts: int = 0
    tasks: int = 0
    rankings: int = 0
    demonstrations: int = 0

    def __str__(self) -> str:
        added = [f"{n:,} {name}" for name, n in asdict(self).items() if name != "rows" and n]
        return f"{self.rows:,} rows read; added {', '.join(added) if added else 'nothing (all of it was here already)'}"


def import_file(store: Store, path: Path, user: User, source: str = "import", project_id: int = FIRST) -> Imported:
    """Import every row of the file, or none of them. Tasks go to that project.

    A row holds a prompt alone, a prompt and completions to rank, a preference (`chosen` and `rejected`, or
    `completions` and `ranks`; optional `annotator`, `weight`, `margin`, `comment`), or a demonstration (`completion`).
    Raises InputError with file and line at the first row that is wrong.
    """
    result = Imported()
    with store.write() as db:
        for place, row in read_rows(path):
            try:
                import_row(db, row, user, source, result, project_id)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
        if not result.rows:
            raise InputError(f"{path}: holds no rows")
    return result


def import_row(
    db: Database, row: dict[str, Any], user: User, source: str, result: Imported, project_id: int = FIRST
) -> None:
    """Import one row and count in `result` what it added."""
    result.rows += 1
    category, external_id = _text(row, "category"), _text(row, "id") or None
    before = _count(db, "prompts")
    if row.get("ranks") is not None or ("chosen" in row and "rejected" in row):
        ranking = parse_ranking(row)
        prompt_id = add_prompt(db, ranking.prompt.messages, category, source, external_id)
        task_id = _task(db, prompt_id, ranking.completions, row, source, result, project_id)
        annotator = ensure_user(db, _text(row, "annotator")) if _text(row, "annotator") else user
        more = {"weight": ranking.weight, "margin": ranking.margin}
        key = [prompt_id, ranking.completions, ranking.ranks, annotator.name, more]
        digest = hashlib.sha256(json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
        _make_room(db, task_id, annotator)
        result.rankings += record_ranking(
            db,
            annotator,
            task_id,
            ranking.ranks,
            comment=_text(row, "comment"),
            source=source,
            event_id=f"import-{digest}",
            more=more,
        )
    elif "completions" in row:
        if not isinstance(row["completions"], list):
            raise InputError('"completions" must be a list')
        texts = tuple(parse_completion(text, "completions") for text in row["completions"])
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise InputError(f"completion {number} is empty")
        prompt_id = add_prompt(db, parse_prompt(row.get("prompt")).messages, category, source, external_id)
        _task(db, prompt_id, texts, row, source, result, project_id)
    else:
        result.demonstrations += _prompt_or_demonstration(db, row, category, source, external_id)
    result.prompts += _count(db, "prompts") - before


def _prompt_or_demonstration(
    db: Database, row: dict[str, Any], category: str, source: str, external_id: str | None
) -> bool:
    messages: tuple[Message, ...] = parse_prompt_row(row).messages
    answer: str | None = None
    if "completion" in row:
        answer = parse_completion(row["completion"])
    elif "messages" in row and row["messages"][-1]["role"] == "assistant":
        answer = row["messages"][-1]["content"]
    prompt_id = add_prompt(db, messages, category, source, external_id)
    if answer is None:
        return False
    if not answer.strip():
        raise InputError("the demonstration's assistant message is empty")
    sql = "SELECT 1 FROM completions WHERE prompt_id = ? AND text = ? AND source = 'demonstration'"
    if one(db, sql, [prompt_id, answer]):
        return False
    add_completion(db, prompt_id, answer, None, {}, None, None, "demonstration")
    return True


def _task(
    db: Database,
    prompt_id: int,
    texts: tuple[str, ...],
    row: dict[str, Any],
    source: str,
    result: Imported,
    project_id: int,
) -> int:
    """The task with these completions in this order: the one that is there, or a new one."""
    for task in rows(
        db, "SELECT id FROM tasks WHERE prompt_id = ? AND project_id = ? ORDER BY id", [prompt_id, project_id]
    ):
        sql = (
            "SELECT c.text FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id"
            " WHERE tc.task_id = ? ORDER BY tc.position"
        )
        if tuple(found["text"] for found in rows(db, sql, [task["id"]])) == texts:
            return int(task["id"])
    infos = row.get("completion_info")
    if not isinstance(infos, list) or len(infos) != len(texts):
        infos = [{} for _ in texts]
    model = _text(row, "model")
    base = one(db, "SELECT id FROM checkpoints WHERE kind = 'base' AND base_model = ?", [model]) if model else None
    ids = []
    for text, info in zip(texts, infos, strict=True):
        sampling = {k: v for k, v in (info or {}).items() if k not in ("num_tokens", "finish_reason")}
        if model and base is None:
            sampling["model"] = model
        finish_reason = info.get("finish_reason") if info.get("finish_reason") in ("stop", "length") else None
        tokens = info.get("num_tokens") if isinstance(info.get("num_tokens"), int) else None
        checkpoint_id = base["id"] if base else None
        ids.append(add_completion(db, prompt_id, text, checkpoint_id, sampling, tokens, finish_reason, source))
    result.tasks += 1
    return tasks.create_task(db, prompt_id, ids, project_id=project_id, source=source)


def _make_room(db: Database, task_id: int, annotator: User) -> None:
    """Imported rankings are facts: where more people ranked a task than it asked for, it asked for that many."""
    db.execute(
        "UPDATE tasks SET overlap = max(overlap, 1 + (SELECT count(*) FROM assignments"
        " WHERE task_id = tasks.id AND user_id != ? AND state IN ('submitted', 'open'))) WHERE id = ?",
        [annotator.id, task_id],
    )


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value.strip() if isinstance(value, str) else ""


def _count(db: Database, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
