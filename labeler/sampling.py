"""Sampling: checkpoints answer prompts, and people rank the answers blindly. Asked for here, done by a run.

The run (`labeler.sampling_run`) waits in the queue like a training run. It makes a labeling project and adds a task for
each prompt as soon as every checkpoint has answered it, so that ranking can begin while it still samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.formats import write_rows
from data.records import InputError
from labeler import checkpoints, jobs, new_jobs
from labeler.chat import Sampling
from labeler.projects import DEFAULT_TAGS
from labeler.prompts import add_completion
from labeler.store import Row, Store, rows, scalar
from labeler.tasks import create_task
from labeler.users import User
from labeler.workspace import Workspace

SAMPLERS = ("lead", "researcher", "owner")
"""Roles that may have completions sampled."""
MAX_COMPLETIONS = 9
"""Of a task."""
SOURCE = "sample"
"""What `source` of the tasks and completions says."""


# -- asking ------------------------------------------------------------------------------------------------------------


def create(
    workspace: Workspace,
    user: User,
    name: str,
    checkpoint_ids: Sequence[int],
    prompt_ids: Sequence[int],
    completions_per_checkpoint: int,
    settings: Mapping[str, Any] | None = None,
    *,
    overlap: int = 1,
) -> str:
    """Queue a run that samples completions of every checkpoint on every prompt; the run's id.

    They become the blind tasks of a new labeling project of that name (`project_of`), in the order of `prompt_ids`.
    checkpoint_ids: the base model's and policies'. settings: temperature, top_p, max_new_tokens and seed as in
    `chat.Sampling`; what is left out keeps its default (top_p: 1, as in training). overlap: people a task.
    Raises InputError, and leaves nothing behind, where the user may not or something of it cannot be.
    """
    if user.role not in SAMPLERS:
        raise InputError(f"{user.name} may not sample completions; ask a researcher or a lead")
    name = name.strip()
    if not 1 <= len(name) <= 100:
        raise InputError("a project's name needs 1 to 100 characters")
    _check_name(workspace.store, name)
    try:
        sampling = Sampling(**{"top_p": 1.0, **(settings or {})})
    except TypeError:
        unknown = sorted(set(settings or {}) - set(asdict(Sampling())))
        raise InputError(f"unknown setting {', '.join(unknown)}; use {', '.join(asdict(Sampling()))}") from None
    if (sampling.top_k, sampling.min_p, sampling.repetition_penalty) != (0, 0, 1):
        raise InputError("top-k, min-p and repetition penalty are for one answer at a time; set them to 0, 0 and 1")
    checkpoint_ids, prompt_ids = list(dict.fromkeys(checkpoint_ids)), list(dict.fromkeys(prompt_ids))
    if not checkpoint_ids or not prompt_ids:
        raise InputError(f"choose at least one {'checkpoint' if prompt_ids else 'prompt'} to sample")
    number = len(checkpoint_ids) * completions_per_checkpoint
    if completions_per_checkpoint < 1 or not 2 <= number <= MAX_COMPLETIONS:
        raise InputError(
            f"a task holds 2 to {MAX_COMPLETIONS} completions, and {len(checkpoint_ids)} checkpoints with "
            f"{completions_per_checkpoint} each give {number}; choose other numbers"
        )
    if not 1 <= overlap <= 1000:
        raise InputError(f"overlap must be from 1 to 1000, not {overlap}")
    prompts = _prompts(workspace.store.db, prompt_ids)
    sampled = [{"id": each, "path": _path(workspace, each)} for each in checkpoint_ids]

    def config(data: Path) -> dict[str, Any]:
        write_rows(data, prompts)
        return {
            "project": name,
            "base_model": workspace.base_model,
            "data": str(data),
            "prompts": len(prompts),
            "checkpoints": sampled,
            "completions_per_checkpoint": completions_per_checkpoint,
            "overlap": overlap,
            **sampling.settings(),
        }

    return new_jobs.add(workspace, user, jobs.SAMPLE, None, None, config, checkpoint_ids[0], None)


def project_of(store: Store, job_id: str) -> int | None:
    """The project that a sampling run has made; None before it has."""
    found = scalar(store.db, "SELECT id FROM projects WHERE job_id = ?", [job_id])
    return None if found is None else int(found)


def _check_name(store: Store, name: str) -> None:
    sql = """SELECT 1 FROM projects WHERE name = :name UNION ALL SELECT 1 FROM jobs WHERE method = :method
        AND state IN ('queued', 'running') AND json_extract(config, '$.project') = :name COLLATE NOCASE"""
    if scalar(store.db, sql, {"name": name, "method": jobs.SAMPLE}):
        raise InputError(f"there is a project called {name!r} already; choose another name")


def _prompts(db: Database, prompt_ids: Sequence[int]) -> list[Row]:
    """Rows `id`, `prompt` in the order given. Raises InputError where there is no such prompt."""
    sql = "SELECT id, messages FROM prompts WHERE id IN (SELECT value FROM json_each(?))"
    found = {row["id"]: json.loads(row["messages"]) for row in rows(db, sql, [json.dumps(list(prompt_ids))])}
    missing = [str(prompt_id) for prompt_id in prompt_ids if prompt_id not in found]
    if missing:
        raise InputError(f"there is no prompt {', '.join(missing[:5])}; choose others")
    return [{"id": prompt_id, "prompt": found[prompt_id]} for prompt_id in prompt_ids]


def _path(workspace: Workspace, checkpoint_id: int) -> str | None:
    """The checkpoint's folder; None for the workspace's base model."""
    if checkpoint_id == workspace.base_checkpoint_id:
        return None
    return str(checkpoints.usable(workspace, checkpoint_id, "policy"))


# -- the run's part in the store ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A sampled completion, and by which checkpoint and how it was sampled."""

    checkpoint_id: int
    text: str
    num_tokens: int
    finish_reason: str
    sampling: dict[str, Any]


def make_project(store: Store, job_id: str, name: str, overlap: int) -> int:
    """The run's project, made on the first call. Where the name was taken meanwhile it gets a number."""
    with store.write() as db:
        found = project_of(store, job_id)
        if found is not None:
            return found
        free, number = name, 1
        while scalar(db, "SELECT 1 FROM projects WHERE name = ?", [free]):
            number += 1
            free = f"{name} ({number})"
        cursor = db.execute(
            """INSERT INTO projects (name, overlap, tags, created_by, job_id)
                SELECT ?, ?, ?, created_by, id FROM jobs WHERE id = ?""",
            [free, overlap, json.dumps(DEFAULT_TAGS), job_id],
        )
        return int(cursor.lastrowid or 0)


def done(store: Store, project_id: int) -> set[int]:
    """The prompts whose tasks the run has made."""
    sql = "SELECT prompt_id FROM tasks WHERE project_id = ? AND source = ?"
    return {row["prompt_id"] for row in rows(store.db, sql, [project_id, SOURCE])}


def add_tasks(store: Store, job_id: str, project_id: int, answered: Sequence[tuple[int, Sequence[Answer]]]) -> int:
    """Make the tasks of some prompts, (id, answers) each, in one transaction; how many.

    Answers that are all the same cannot be ranked, and make no task.
    """
    made = 0
    with store.write() as db:
        there = done(store, project_id)
        for prompt_id, answers in answered:
            if prompt_id in there or len({answer.text for answer in answers}) < 2:
                continue
            ids = [
                add_completion(
                    db,
                    prompt_id,
                    answer.text,
                    answer.checkpoint_id,
                    answer.sampling,
                    answer.num_tokens,
                    answer.finish_reason,
                    SOURCE,
                )
                for answer in answers
            ]
            provenance = {"sampled_by": job_id, "at": time.time()}
            create_task(db, prompt_id, ids, project_id=project_id, source=SOURCE, provenance=provenance)
            made += 1
    return made


def describe(workspace: Workspace, config: Mapping[str, Any]) -> str:
    """ "120 prompts, 2 checkpoints, 2 answers each": what a sampling run was asked for, as plain text."""
    names = [checkpoints.get(workspace.store, each["id"]).name for each in config["checkpoints"]]
    each = config["completions_per_checkpoint"]
    answers = f"{each} answer{'s' if each > 1 else ''}"
    return f"{config['prompts']:,} prompts, {answers} each of {', '.join(names)}, for {config['project']}"
