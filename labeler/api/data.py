"""Data in and out: files to import, and snapshots of what was ranked."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from data.records import InputError
from labeler import imports, projects, snapshots
from labeler.api.access import (
    PROBLEMS,
    Body,
    Cursor,
    Id,
    Identifier,
    Keeper,
    Limit,
    Line,
    Name,
    Page,
    Seconds,
    Space,
    page,
    refused,
)
from labeler.store import Row, one, rows

router = APIRouter(tags=["data"])

MAX_FILE = 500 * 2**20
ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".csv", ".csv.gz", ".parquet")


class Added(BaseModel):
    """What an import added; `rows` were read."""

    rows: int
    prompts: int
    tasks: int
    rankings: int
    demonstrations: int


class Filters(Body):
    """Which rankings; see labeler/snapshots.py. What is left out does not filter."""

    annotators: list[Name] | None = None
    exclude_annotators: list[Name] | None = None
    project_ids: list[Identifier] | None = None
    categories: list[Line] | None = None
    sources: list[Line] | None = None
    checkpoint_ids: list[Identifier] | None = None
    since: Seconds | None = None
    until: Seconds | None = None
    event_high_water: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    weight_by_reliability: bool | None = None
    top_ranked_as_demonstrations: bool | None = None

    def chosen(self) -> dict[str, Any]:
        """Those that were sent."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class NewSnapshot(Body):
    """What to write."""

    kind: Literal["preferences", "demonstrations", "prompts"]
    filters: Filters = Filters()


class Snapshot(BaseModel):
    """A file of training data: the same events and filters give the same bytes, so `sha256` names them."""

    id: int
    kind: str
    sha256: str
    counts: dict[str, int]
    filters: dict[str, Any]
    event_high_water: int
    created_at: float


_FILE = {"type": "string", "format": "binary"}


@router.post(
    "/projects/{project_id}/import",
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _FILE}}}},
)
async def import_file(
    project_id: Id,
    request: Request,
    space: Space,
    user: Keeper,
    name: Annotated[str, Query(min_length=1, max_length=200, description="the file's name; its end says the format")],
) -> Added:
    """Import the file that is the body: prompts, completions, rankings. All of it or nothing; twice adds nothing twice.

    Tasks go to the project. Endings: .jsonl .ndjson .csv .parquet, and .gz of the texts.
    """
    with refused(404):
        projects.get_project(space.store.db, project_id)
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)
    if ending is None:
        raise HTTPException(422, f"name: unknown kind of file; it must end with {', '.join(ENDINGS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{ending}"
        with path.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        return await run_in_threadpool(_import, space, user, path, Path(name).name, project_id)


def _import(space: Space, user: Keeper, path: Path, name: str, project_id: int) -> Added:
    try:
        found = imports.import_file(space.store, path, user, project_id=project_id)
    except InputError as error:
        raise InputError(f"nothing was imported. {str(error).replace(str(path), name)}") from None
    return Added(**{name: getattr(found, name) for name in Added.model_fields})


@router.get("/snapshots")
def list_snapshots(space: Space, user: Keeper, cursor: Cursor = 0, limit: Limit = 50) -> Page[Snapshot]:
    """What was exported, or learned from by a run, before."""
    found = rows(
        space.store.db,
        f"SELECT {', '.join(Snapshot.model_fields)} FROM snapshots WHERE id > ? ORDER BY id LIMIT ?",
        [cursor, limit + 1],
    )
    return page([_snapshot(row) for row in found], limit, lambda snapshot: snapshot.id)


@router.post("/snapshots", status_code=201)
def create_snapshot(new: NewSnapshot, space: Space, user: Keeper) -> Snapshot:
    """Write a snapshot of what is in force now; then read its rows."""
    name = f"{new.kind}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000_000:09d}.jsonl"
    path = space.snapshots_folder / name
    with refused(409 if not new.filters.chosen() else 422):
        made = snapshots.write_snapshot(space.store, path, new.kind, new.filters.chosen(), user)
    return get_snapshot(made.id, space, user)


@router.get("/snapshots/{snapshot_id}")
def get_snapshot(snapshot_id: Id, space: Space, user: Keeper) -> Snapshot:
    """What a snapshot holds."""
    names = ", ".join(Snapshot.model_fields)
    row = one(space.store.db, f"SELECT {names} FROM snapshots WHERE id = ?", [snapshot_id])
    if row is None:
        raise HTTPException(404, f"there is no snapshot {snapshot_id}")
    return _snapshot(row)


@router.get(
    "/snapshots/{snapshot_id}/rows",
    response_class=FileResponse,
    responses=PROBLEMS | {200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
def snapshot_rows(snapshot_id: Id, space: Space, user: Keeper) -> FileResponse:
    """The rows, one JSON object a line, streamed from the file."""
    row = one(space.store.db, "SELECT path FROM snapshots WHERE id = ?", [snapshot_id])
    path = (space.folder / row["path"]).resolve() if row else None
    if path is None or not path.is_file():
        raise HTTPException(404, f"there is no snapshot {snapshot_id}, or its file is gone; make a new one")
    return FileResponse(path, media_type="application/jsonl", filename=path.name)


def _snapshot(row: Row) -> Snapshot:
    return Snapshot(**row | {name: json.loads(row[name]) for name in ("counts", "filters")})
