"""Projects: what is asked, of whom, and how often."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from labeler import projects, tasks
from labeler.api.access import (
    Body,
    Caller,
    Cursor,
    Id,
    Identifier,
    Keeper,
    Lead,
    Limit,
    Line,
    Name,
    Page,
    Space,
    Text,
    page,
    refused,
)
from labeler.projects import Project
from labeler.store import one, rows

router = APIRouter(tags=["projects"])

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Settings(Body):
    """Settings of a project; what is left out stays as it is. `overlap` is that of tasks added from now on."""

    name: Name | None = None
    question: Literal["ranking", "pairwise", "ratings"] | None = None
    overlap: Annotated[int, Field(ge=1, le=1000)] | None = None
    task_order: Literal["queue", "random", "active"] | None = None
    gold_rate: Share | None = None
    repeat_rate: Share | None = None
    qualification: Annotated[int, Field(ge=0, le=1000)] | None = None
    pass_mark: Share | None = None
    tags: Annotated[list[Annotated[Line, Field(max_length=60)]], Field(max_length=30)] | None = None
    for_everybody: bool | None = None

    def chosen(self) -> dict[str, Any]:
        """Those that were sent."""
        return {name: value for name, value in self.model_dump().items() if value is not None and name != "archived"}


class NewProject(Settings):
    """A new project."""

    name: Name


class Change(Settings):
    """Changes to a project; `archived` closes it to annotators or opens it again."""

    archived: bool | None = None


class Guidelines(Body):
    """Markdown, shown beside the tasks."""

    text: Text


class Version(BaseModel):
    """The number of the guidelines in force."""

    version: int


class MemberIds(Body):
    """Everybody who may work in a project that is not for everybody."""

    user_ids: list[Identifier] = Field(max_length=10_000)


class Member(BaseModel):
    """A person."""

    id: int
    name: str
    role: str


class NewTask(Body):
    """Completions of one prompt to be ranked; `gold_ranks` are a known answer, which tests annotators."""

    prompt_id: Identifier
    completion_ids: list[Identifier] = Field(min_length=2, max_length=9)
    overlap: Annotated[int, Field(ge=1, le=1000)] | None = None
    gold_ranks: Annotated[list[Annotated[int, Field(ge=1, le=9)] | None], Field(max_length=9)] | None = None
    priority: Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)] = 0.0


class QueuedTask(BaseModel):
    """A task as a lead sees it."""

    id: int
    prompt_id: int
    overlap: int
    submissions: int
    gold: bool
    priority: float
    source: str
    created_at: float


class Made(BaseModel):
    """The id of what was made."""

    id: int


@router.get("/projects")
def list_projects(space: Space, user: Caller, cursor: Cursor = 0, limit: Limit = 50) -> Page[Project]:
    """The projects in which you may work; leads see the archived ones too."""
    db = space.store.db
    found = projects.all_projects(db) if user.role in projects.LEADS else projects.projects_of(db, user)
    rest = sorted((project for project in found if project.id > cursor), key=lambda project: project.id)
    return page(rest, limit, lambda project: project.id)


@router.post("/projects", status_code=201)
def create_project(new: NewProject, space: Space, user: Lead) -> Project:
    """Make a project."""
    return projects.create_project(space.store, user, **new.chosen())


@router.get("/projects/{project_id}")
def get_project(project_id: Id, space: Space, user: Caller) -> Project:
    """A project, with its guidelines."""
    with refused(404):
        if user.role in projects.LEADS:
            return projects.get_project(space.store.db, project_id)
        return projects.check_member(space.store.db, user, project_id)


@router.patch("/projects/{project_id}")
def change_project(project_id: Id, change: Change, space: Space, user: Lead) -> Project:
    """Change some settings, or close the project and open it again. All of it happens or nothing."""
    _exists(space, project_id)
    with space.store.write() as db:
        projects.change_project(space.store, user, project_id, **change.chosen())
        if change.archived is not None:
            projects.archive_project(space.store, user, project_id, change.archived)
        return projects.get_project(db, project_id)


@router.put("/projects/{project_id}/guidelines")
def write_guidelines(project_id: Id, guidelines: Guidelines, space: Space, user: Lead) -> Version:
    """A new version of the guidelines; the same text again is none."""
    _exists(space, project_id)
    return Version(version=projects.write_guidelines(space.store, user, project_id, guidelines.text))


@router.get("/projects/{project_id}/members")
def list_members(project_id: Id, space: Space, user: Lead, cursor: Cursor = 0, limit: Limit = 50) -> Page[Member]:
    """Who was named for this project; it counts where the project is not for everybody."""
    _exists(space, project_id)
    found = sorted((Member(**row) for row in projects.members(space.store.db, project_id)), key=lambda m: m.id)
    return page([member for member in found if member.id > cursor], limit, lambda member: member.id)


@router.put("/projects/{project_id}/members")
def set_members(project_id: Id, members: MemberIds, space: Space, user: Lead) -> MemberIds:
    """Say who may work in this project, in place of those before."""
    _exists(space, project_id)
    projects.set_members(space.store, user, project_id, members.user_ids)
    return MemberIds(user_ids=sorted(row["id"] for row in projects.members(space.store.db, project_id)))


@router.get("/projects/{project_id}/tasks")
def list_tasks(project_id: Id, space: Space, user: Keeper, cursor: Cursor = 0, limit: Limit = 50) -> Page[QueuedTask]:
    """The project's tasks and how many people have done each."""
    _exists(space, project_id)
    found = rows(
        space.store.db,
        """SELECT id, prompt_id, overlap, submissions, gold_ranks IS NOT NULL AS gold, priority, source, created_at
           FROM tasks WHERE project_id = ? AND id > ? ORDER BY id LIMIT ?""",
        [project_id, cursor, limit + 1],
    )
    return page([QueuedTask(**row) for row in found], limit, lambda task: task.id)


@router.post("/projects/{project_id}/tasks", status_code=201)
def create_task(project_id: Id, new: NewTask, space: Space, user: Keeper) -> Made:
    """Queue completions of one prompt for ranking."""
    _exists(space, project_id)
    if new.gold_ranks is not None and len(new.gold_ranks) != len(new.completion_ids):
        raise HTTPException(422, f"{len(new.completion_ids)} completions but {len(new.gold_ranks)} gold ranks")
    with space.store.write() as db:
        for completion_id in new.completion_ids:
            sql = "SELECT 1 FROM completions WHERE id = ? AND prompt_id = ?"
            if one(db, sql, [completion_id, new.prompt_id]) is None:
                raise HTTPException(422, f"prompt {new.prompt_id} has no completion {completion_id}")
        return Made(
            id=tasks.create_task(
                db,
                new.prompt_id,
                new.completion_ids,
                project_id=project_id,
                overlap=new.overlap,
                source="api",
                gold_ranks=new.gold_ranks,
                priority=new.priority,
            )
        )


def _exists(space: Space, project_id: int) -> None:
    with refused(404):
        projects.get_project(space.store.db, project_id)
