"""What was trained: the checkpoints of every run, their lineage, and where they lie."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import InputError
from labeler.store import Row, Store, one, rows
from labeler.workspace import Workspace
from training import run_folder

log = logging.getLogger(__name__)

CHAT_KINDS = ("base", "policy")


@dataclass(frozen=True)
class Checkpoint:
    """A model somebody can talk to (`base`, `policy`) or that gives scores (`reward`).

    `path` is relative to the workspace and None for the base model. An archived one is not offered any more; of a
    deleted one only this row is left, so that history keeps its names.
    """

    id: int
    name: str
    kind: str
    run_id: str | None
    step: int | None
    path: str | None
    base_model: str
    parent_id: int | None
    manifest: dict[str, Any]
    created_at: float
    note: str = ""
    tags: tuple[str, ...] = ()
    archived_at: float | None = None
    deleted_at: float | None = None


def _from_row(row: Row) -> Checkpoint:
    return Checkpoint(**{**row, "manifest": json.loads(row["manifest"]), "tags": tuple(json.loads(row["tags"]))})


def get(store: Store, checkpoint_id: int) -> Checkpoint:
    """Raises InputError where there is no such checkpoint."""
    row = one(store.db, "SELECT * FROM checkpoints WHERE id = ?", [checkpoint_id])
    if row is None:
        raise InputError(f"there is no checkpoint {checkpoint_id}; choose another one")
    return _from_row(row)


def folder(workspace: Workspace, checkpoint: Checkpoint) -> Path | None:
    """The adapter's folder, absolute; None for the base model. Raises InputError where the folder is gone."""
    if checkpoint.path is None:
        return None
    path = (workspace.folder / checkpoint.path).resolve()
    if checkpoint.deleted_at is not None:
        raise InputError(f"{checkpoint.name} was deleted; choose another checkpoint")
    if not present(workspace, checkpoint):
        raise InputError(f"the files of {checkpoint.name} are gone from {path}; choose another checkpoint")
    return path


def at(workspace: Workspace, path: str | None) -> Checkpoint | None:
    """The checkpoint whose files lie in this absolute path; None where it is none of the workspace's."""
    if path is None or not Path(path).is_relative_to(workspace.folder.resolve()):
        return None
    relative = _relative(workspace, Path(path))
    row = one(workspace.store.db, "SELECT * FROM checkpoints WHERE path = ? ORDER BY id DESC", [relative])
    return _from_row(row) if row else None


def present(workspace: Workspace, checkpoint: Checkpoint) -> bool:
    """Whether it can be loaded: its files are there (old ones are pruned from disk), or it is a base model."""
    if checkpoint.path is None:
        return True
    path = workspace.folder / checkpoint.path
    # a whole model from elsewhere has a config.json instead of our manifest
    return checkpoint.deleted_at is None and any((path / n).is_file() for n in ("manifest.json", "config.json"))


def list_checkpoints(
    workspace: Workspace, kinds: Sequence[str] = CHAT_KINDS, archived: bool = False
) -> list[Checkpoint]:
    """Those of the workspace's base model that can still be loaded and, unless asked for, are not archived: the base
    model first, then the newest first."""
    marks = ", ".join("?" for _ in kinds)
    sql = f"""SELECT * FROM checkpoints WHERE kind IN ({marks}) AND base_model = ?
        ORDER BY kind = 'base' DESC, created_at DESC, id DESC"""
    found = [_from_row(row) for row in rows(workspace.store.db, sql, [*kinds, workspace.base_model])]
    return [c for c in found if (archived or c.archived_at is None) and present(workspace, c)]


def every(store: Store) -> list[Checkpoint]:
    """All there ever were, the oldest first: archived, pruned and deleted ones, and those of other base models."""
    return [_from_row(row) for row in rows(store.db, "SELECT * FROM checkpoints ORDER BY id")]


def of_run(store: Store, run_id: str) -> list[Checkpoint]:
    """Every checkpoint a run has made, oldest first, pruned ones included."""
    return [
        _from_row(row) for row in rows(store.db, "SELECT * FROM checkpoints WHERE run_id = ? ORDER BY step", [run_id])
    ]


def since(store: Store, after_id: int, limit: int) -> list[Checkpoint]:
    """The next `limit` checkpoints after this id, of every base model and pruned ones included."""
    sql = "SELECT * FROM checkpoints WHERE id > ? ORDER BY id LIMIT ?"
    return [_from_row(row) for row in rows(store.db, sql, [after_id, limit])]


def choices(workspace: Workspace, kinds: Sequence[str] = CHAT_KINDS) -> list[tuple[str, int]]:
    """(name, id) pairs for a dropdown."""
    return [(c.name, c.id) for c in list_checkpoints(workspace, kinds)]


def run_label(run_id: str) -> str:
    """ "0003-dpo" -> "dpo/0003": the method first, since that is what people look for."""
    number, _, method = run_id.partition("-")
    return f"{method}/{number}" if method else run_id


def register_run(workspace: Workspace, run_id: str, parent_id: int) -> list[int]:
    """Note the checkpoints in a run's folder that are not known yet; returns their ids.

    parent_id: the checkpoint that the run started from, the base model's row where it was that.

    A checkpoint folder appears whole (it is renamed into place), so whatever is seen here is complete.
    """
    found = run_folder.checkpoints(workspace.runs_folder / run_id)
    known = {row["path"] for row in rows(workspace.store.db, "SELECT path FROM checkpoints WHERE run_id = ?", [run_id])}
    new = [path for path in found if _relative(workspace, path) not in known]
    if not new:
        return []  # the usual case takes no write lock
    parent = get(workspace.store, parent_id)
    ids = []
    with workspace.store.write() as db:
        for path in new:
            try:
                manifest = json.loads((path / "manifest.json").read_text())
                step, kind = int(manifest["step"]), manifest["kind"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is not a checkpoint of ours (%s); left out", path, error)
                continue
            row = one(
                db,
                """INSERT INTO checkpoints (name, kind, run_id, step, path, base_model, parent_id, manifest, created_at)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING RETURNING id""",
                [
                    f"{run_label(run_id)} step {step}",
                    "reward" if kind == "reward" else "policy",
                    run_id,
                    step,
                    _relative(workspace, path),
                    parent.base_model,  # not the workspace's: it may have been opened with another one since
                    parent.id,
                    json.dumps(manifest),
                    path.stat().st_mtime,
                ],
            )
            if row is not None:
                ids.append(int(row["id"]))
    return ids


def _relative(workspace: Workspace, path: Path) -> str:
    return path.resolve().relative_to(workspace.folder.resolve()).as_posix()


def usable(workspace: Workspace, checkpoint_id: int, kind: str) -> Path:
    """The folder of a checkpoint of that kind on the workspace's base. Raises InputError where it is none."""
    checkpoint = get(workspace.store, checkpoint_id)
    path = folder(workspace, checkpoint)
    if checkpoint.kind != kind or path is None:
        raise InputError(f"{checkpoint.name} is a {checkpoint.kind} model; a {kind} model is needed here")
    if checkpoint.base_model != workspace.base_model:
        raise InputError(
            f"{checkpoint.name} belongs to another base model ({checkpoint.base_model}); choose another one"
        )
    return path
