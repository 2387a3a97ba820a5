"""Active selection: next come the tasks where the reward model is least sure. Asked for here, done by a run.

The run (`labeler.selection_run`) waits in the queue like a training run, so that the two do not share the processor. It
scores the open tasks by a committee of heads, and their disagreement becomes the tasks' priority and is said in their
provenance. Tasks of which a person said what all heads confidently deny may be given to one more person.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data.records import InputError
from labeler import checkpoints, jobs, new_jobs
from labeler.disagreement import CONFIDENT, contradiction, disagreement
from labeler.jobs import Job
from labeler.projects import get_project
from labeler.store import Row, Store, one, rows, scalar
from labeler.users import User
from labeler.worker import Worker
from labeler.workspace import Workspace

SELECTORS = ("lead", "researcher", "owner")
"""Roles that may say in which order tasks come."""
HEADS = 8
BATCH = 200
"""Tasks that are read or written together: annotators wait for a writer no longer than this takes."""
BY_ENSEMBLE, BY_CONTRADICTION = "ensemble", "confident disagreement"
"""What `selected_by` of a task's provenance says."""
LEAST_SURE = 3
"""How many of the least sure tasks are named in the result."""

_OPEN = "t.submissions < t.overlap"
_TASKS = f"""t.project_id = ? AND t.gold_ranks IS NULL
    AND coalesce(json_extract(t.provenance, '$.selected_by'), '') != '{BY_CONTRADICTION}'"""
"""Tasks that are selected among; those given out for a second opinion have their place already."""


# -- asking ------------------------------------------------------------------------------------------------------------


def create(
    workspace: Workspace,
    user: User,
    project_id: int,
    checkpoint_id: int,
    *,
    heads: int = HEADS,
    second_opinions: bool = False,
    seed: int = 0,
) -> str:
    """Queue the ordering of a project's open tasks by what a reward model is not sure of; the run's id.

    The heads are fitted to what was said until now, chosen as the reward model's own data were. With
    `second_opinions` tasks that are ranked already are given out once more where the model confidently disagrees.
    Raises InputError where the user may not, or there is nothing to order or to learn from.
    """
    if user.role not in SELECTORS:
        raise InputError(f"{user.name} may not order tasks; ask a lead")
    if not 3 <= heads <= 1000:
        raise InputError(f"heads must be from 3 to 1000, not {heads}")
    project = get_project(workspace.store.db, project_id)
    path = checkpoints.usable(workspace, checkpoint_id, "reward")
    if not scalar(workspace.store.db, f"SELECT 1 FROM tasks AS t WHERE {_TASKS} AND {_OPEN} LIMIT 1", [project_id]):
        raise InputError(f"{project.name} has no open task to order; import prompts with completions first")

    def config(data: Path) -> dict[str, Any]:
        return {
            "project_id": project_id,
            "checkpoint_id": checkpoint_id,
            "checkpoint": str(path),
            "data": str(data),
            "heads": heads,
            "second_opinions": second_opinions,
            "seed": seed,
        }

    filters = _filters_of(workspace.store, checkpoint_id)
    base = workspace.base_checkpoint_id
    return new_jobs.add(workspace, user, jobs.SELECT, "preferences", filters, config, base, checkpoint_id)


def _filters_of(store: Store, checkpoint_id: int) -> dict[str, Any]:
    """By which filters the rankings were chosen that a checkpoint was trained on, without their end in time."""
    row = one(
        store.db,
        """SELECT s.filters FROM checkpoints AS c JOIN jobs AS j ON j.id = c.run_id
            JOIN snapshots AS s ON s.id = j.snapshot_id WHERE c.id = ? AND s.kind = 'preferences'""",
        [checkpoint_id],
    )
    filters: dict[str, Any] = json.loads(row["filters"]) if row else {}
    return {name: value for name, value in filters.items() if name != "event_high_water"}


def newest(store: Store, project_id: int) -> Job | None:
    """The project's last selection."""
    found = (job for job in jobs.list_jobs(store) if job.method == jobs.SELECT)
    return next((job for job in found if job.config["project_id"] == project_id), None)


def stop(workspace: Workspace, user: User, job_id: str) -> None:
    """Ask a selection to stop. Raises InputError where the user may not, or it is a training run."""
    if user.role not in SELECTORS or jobs.get(workspace.store, job_id).method != jobs.SELECT:
        raise InputError(f"{user.name} may not stop this; ask a researcher or the owner")
    jobs.request_stop(workspace.store, job_id)


def wait(workspace: Workspace, job_id: str, look: Callable[[Job], None], poll_seconds: float = 0.5) -> Job:
    """The run when it has ended; Ctrl-C stops it. Where no app looks after the queue, this process does meanwhile."""
    worker = Worker(workspace, poll_seconds)
    worker.start()
    try:
        while (job := jobs.get(workspace.store, job_id)).state in jobs.OPEN_STATES:
            try:
                look(job)
                time.sleep(poll_seconds)
            except KeyboardInterrupt:
                jobs.request_stop(workspace.store, job_id)
    finally:
        worker.stop()
    return job


def describe(workspace: Workspace, job: Job) -> str:
    """What came of a finished selection, in plain sentences; it may quote prompts, so it is text and no HTML."""
    found = job.result or {}
    project = get_project(workspace.store.db, job.config["project_id"])
    name = checkpoints.get(workspace.store, job.config["checkpoint_id"]).name
    if found.get("tasks"):
        text = f"{_count(found['tasks'], 'task')} of {project.name} ordered by {found['heads']} heads of {name}"
        quoted = [f"“{_opening(workspace.store, task)}” (±{value:.2f})" for task, value in found["least_sure"]]
        text += f"; the least sure: {', '.join(quoted)}."
    else:
        text = f"No open task of {project.name} was left to order."
    if found.get("contradicted"):
        text += (
            f" {_count(found['contradicted'], 'ranked task')} of {found['ranked']:,} confidently contradicted by the "
        )
        text += "model: " + ("given out once more." if job.config["second_opinions"] else "not given out again.")
    if found.get("skipped"):
        text += f" {_count(found['skipped'], 'task')} could not be read by the model; the run's log says why."
    if project.task_order != "active":
        text += f" {project.name} gives out tasks in {project.task_order} order: set it to active to use this one."
    return text


def _opening(store: Store, task_id: int) -> str:
    """The beginning of a task's last message."""
    sql = "SELECT p.messages FROM tasks AS t JOIN prompts AS p ON p.id = t.prompt_id WHERE t.id = ?"
    row = one(store.db, sql, [task_id])
    text = " ".join(json.loads(row["messages"])[-1]["content"].split()) if row else ""
    return text if len(text) <= 60 else text[:57] + "..."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# -- the run's part in the store ---------------------------------------------------------------------------------------


def task_rows(store: Store, project_id: int) -> Iterator[Row]:
    """The project's tasks as rows to score: `task`, `open`, `prompt`, `completions`, `finish_reasons`, and `rankings`,
    what people said of it where it is not settled.
    """
    last = 0
    while found := rows(
        store.db,
        f"""SELECT t.id AS task, {_OPEN} AS open, p.messages,
                (SELECT json_group_array(json_array(c.text, c.finish_reason)) FROM (
                    SELECT c.text, c.finish_reason FROM task_completions AS tc JOIN completions AS c
                    ON c.id = tc.completion_id WHERE tc.task_id = t.id ORDER BY tc.position) AS c) AS completions,
                (SELECT json_group_array(json(r.ranks)) FROM latest_rankings AS r WHERE r.task_id = t.id
                    AND r.purpose = 'label' AND NOT coalesce(r.all_bad, 0)
                    AND NOT EXISTS (SELECT 1 FROM assignments AS a WHERE a.task_id = t.id AND a.purpose = 'adjudicate'
                        AND a.state = 'submitted')) AS rankings
            FROM tasks AS t JOIN prompts AS p ON p.id = t.prompt_id
            WHERE {_TASKS} AND t.id > ? AND ({_OPEN} OR t.submissions > 0) ORDER BY t.id LIMIT ?""",
        [project_id, last, BATCH],
    ):
        last = found[-1]["task"]
        for row in found:
            texts, reasons = zip(*json.loads(row["completions"]), strict=True)
            yield {
                "task": row["task"],
                "open": bool(row["open"]),
                "prompt": json.loads(row["messages"]),
                "completions": list(texts),
                "finish_reasons": list(reasons),
                "rankings": json.loads(row["rankings"]),
            }


def apply(store: Store, scored: Iterable[Row], checkpoint_id: int, second_opinions: bool = False) -> dict[str, Any]:
    """Set priority and provenance of the tasks from their scored rows; what came of it, by name.

    An open task's priority is the heads' disagreement (0 to 0.5). One that is given out once more has the model's
    confidence (over 0.9), and so comes first.
    """
    result: dict[str, Any] = {"tasks": 0, "ranked": 0, "contradicted": 0, "skipped": 0, "heads": 0}
    least_sure: list[tuple[int, float]] = []
    total, now = 0.0, time.time()
    scored = iter(scored)
    while batch := list(islice(scored, BATCH)):
        changes: list[tuple[int, float, dict[str, Any]]] = []
        for row in batch:
            if "ensemble_scores" not in row:
                result["skipped"] += 1
                continue
            task, ensemble = row["task"], row["ensemble_scores"]
            result["heads"] = len(ensemble[0])
            sure = max((contradiction(ranks, row["scores"], ensemble) for ranks in row["rankings"]), default=0.0)
            result["ranked"] += bool(row["rankings"])
            result["contradicted"] += sure > CONFIDENT
            if sure > CONFIDENT and second_opinions:
                why = {"selected_by": BY_CONTRADICTION, "confidence": sure, "disagreement": None}  # None: no more
                changes.append((task, sure, why))
            elif row["open"]:
                value = disagreement(ensemble)
                changes.append((task, value, {"selected_by": BY_ENSEMBLE, "disagreement": value}))
                result["tasks"], total = result["tasks"] + 1, total + value
                least_sure = sorted([*least_sure, (task, value)], key=lambda found: -found[1])[:LEAST_SURE]
        with store.write() as db:
            for task, priority, why in changes:
                said = why | {"checkpoint": checkpoint_id, "heads": result["heads"], "at": now}
                again = why["selected_by"] == BY_CONTRADICTION
                db.execute(
                    """UPDATE tasks SET priority = ?, provenance = json_patch(coalesce(provenance, '{}'), ?),
                        overlap = max(overlap, (submissions + 1) * ?) WHERE id = ?""",
                    [priority, json.dumps(said), again, task],
                )
    mean = {"disagreement": total / result["tasks"]} if result["tasks"] else {}
    return result | mean | {"least_sure": least_sure}
