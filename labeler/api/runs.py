"""Training runs and what they made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from pydantic import BaseModel, Field

from labeler import checkpoints, jobs, new_jobs
from labeler.api.access import (
    LARGEST,
    NO_NUL,
    Body,
    Cursor,
    Id,
    Identifier,
    Keeper,
    Limit,
    Line,
    Page,
    Space,
    Trainer,
    page,
    refused,
)
from labeler.api.data import Filters
from labeler.form import fields
from training import run_folder
from training.config import METHODS

router = APIRouter(tags=["runs"])

RunId = Annotated[str, Path(min_length=1, max_length=100, pattern=NO_NUL)]
Setting = (
    bool
    | Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
    | Annotated[float, Field(ge=-1e300, le=1e300, allow_inf_nan=False)]
    | Line
    | None
)


class NewRun(Body):
    """What to train. `settings` are knobs by name (docs/training.md); what is left out keeps its default."""

    method: Literal["sft", "reward", "dpo", "ppo"]
    settings: dict[Line, Setting] = Field(default_factory=dict)
    filters: Filters = Filters()
    parent_checkpoint_id: Identifier | None = None
    reward_checkpoint_id: Identifier | None = None
    judge_checkpoint_id: Identifier | None = None


class Run(BaseModel):
    """A run: queued, running, finished, failed, stopped or interrupted. Times are unix seconds."""

    id: str
    method: str
    state: str
    config: dict[str, Any]
    snapshot_id: int | None
    parent_checkpoint_id: int
    reward_checkpoint_id: int | None
    error: str | None
    result: dict[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    stop_requested_at: float | None
    step: int | None
    total_steps: int | None
    eta_seconds: float | None


class Runs(BaseModel):
    """A part of the runs, the newest first; send `next_cursor` back as `cursor`."""

    items: list[Run]
    next_cursor: str | None


class Checkpoint(BaseModel):
    """A model: base, policy or reward. `loadable`: its files are still there."""

    id: int
    name: str
    kind: str
    run_id: str | None
    step: int | None
    base_model: str
    parent_id: int | None
    created_at: float
    loadable: bool


@router.get("/runs")
def list_runs(
    space: Space,
    user: Keeper,
    cursor: Annotated[str, Query(max_length=100, pattern=NO_NUL)] = "",
    limit: Limit = 50,
) -> Runs:
    """Every run, the newest first."""
    found = [job for job in jobs.list_jobs(space.store) if not cursor or job.id < cursor]
    more = found[limit - 1].id if len(found) > limit else None
    return Runs(items=[_run(space, job) for job in found[:limit]], next_cursor=more)


@router.post("/runs", status_code=201)
def create_run(new: NewRun, space: Space, user: Trainer) -> Run:
    """Snapshot the data and queue a run."""
    allowed = {knob.name for knob in fields(METHODS[new.method])}
    unknown = sorted(set(new.settings) - allowed)
    if unknown:  # paths and code to load are not for a request to choose
        raise HTTPException(422, f"settings: unknown {', '.join(unknown[:5])}; use {', '.join(sorted(allowed))}")
    run_id = new_jobs.create(
        space,
        user,
        new.method,
        new.settings,
        new.filters.chosen(),
        parent_id=new.parent_checkpoint_id,
        reward_id=new.reward_checkpoint_id,
        judge_id=new.judge_checkpoint_id,
    )
    return _run(space, jobs.get(space.store, run_id))


async def _existing(run_id: RunId, space: Space) -> jobs.Job:
    with refused(404):
        return jobs.get(space.store, run_id)


Existing = Annotated[jobs.Job, Depends(_existing)]


@router.get("/runs/{run_id}")
def get_run(user: Keeper, job: Existing, space: Space) -> Run:
    """One run and where it stands."""
    return _run(space, job)


@router.post("/runs/{run_id}/stop")
def stop_run(user: Trainer, job: Existing, space: Space) -> Run:
    """Ask the run to save and stop; asking twice changes nothing."""
    jobs.request_stop(space.store, job.id)
    return _run(space, jobs.get(space.store, job.id))


@router.post("/runs/{run_id}/resume")
def resume_run(user: Trainer, job: Existing, space: Space) -> Run:
    """Queue a run that failed or was stopped; it goes on from its newest checkpoint."""
    with refused(409):
        jobs.resume(space, job.id)
    return _run(space, jobs.get(space.store, job.id))


@router.get("/runs/{run_id}/metrics")
def run_metrics(
    user: Keeper, job: Existing, space: Space, cursor: Cursor = 0, limit: Limit = 200
) -> Page[dict[str, float | int | str | bool | None]]:
    """The run's measurements in the order made, one object a step. Ask again from the last cursor for what is new."""
    found = run_folder.read_metrics(space.runs_folder / job.id, cursor)
    flat = [{name: value for name, value in row.items() if not isinstance(value, dict | list)} for row in found[:limit]]
    return Page(items=flat, next_cursor=cursor + limit if len(found) > limit else None)


@router.get("/checkpoints")
def list_checkpoints(space: Space, user: Keeper, cursor: Cursor = 0, limit: Limit = 50) -> Page[Checkpoint]:
    """Every checkpoint of every run, in the order in which they were made, pruned ones included."""
    found = checkpoints.since(space.store, cursor, limit + 1)
    loadable = {c.id for c in checkpoints.list_checkpoints(space, ("base", "policy", "reward"), archived=True)}
    names = [name for name in Checkpoint.model_fields if name != "loadable"]
    made = [Checkpoint(**{name: getattr(c, name) for name in names}, loadable=c.id in loadable) for c in found]
    return page(made, limit, lambda checkpoint: checkpoint.id)


@router.get("/checkpoints/{checkpoint_id}")
def get_checkpoint(checkpoint_id: Id, space: Space, user: Keeper) -> Checkpoint:
    """One checkpoint."""
    found = list_checkpoints(space, user, checkpoint_id - 1, 1).items
    if not found or found[0].id != checkpoint_id:
        raise HTTPException(404, f"there is no checkpoint {checkpoint_id}")
    return found[0]


def _run(space: Space, job: jobs.Job) -> Run:
    status = run_folder.read_status(space.runs_folder / job.id) or {}
    names = [name for name in Run.model_fields if name in jobs.Job.__annotations__]
    progress = {name: status.get(name) for name in ("step", "total_steps", "eta_seconds")}
    return Run.model_validate({name: getattr(job, name) for name in names} | progress)
