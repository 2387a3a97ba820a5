"""How good the labels are, and the disagreements that a lead settles."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from labeler import adjudication, events, projects, quality
from labeler.agreement import Agreement, Figure
from labeler.api.access import Body, Cursor, Id, Lead, Limit, Page, Reader, Space, Text, Turn, refused
from labeler.api.labels import Ranks, Recorded, Uuid, check_repeat
from labeler.store import one
from labeler.users import User

router = APIRouter(tags=["quality"])

MEASURING = threading.BoundedSemaphore(2)
"""Figures take seconds of a core: no more at once, so that annotators go on."""


class Pair(BaseModel):
    """How far two people agree."""

    first_user_id: int
    second_user_id: int
    agreement: Agreement


class Period(BaseModel):
    """How far people agreed in a part of the time; `title` is the first day of the week, or which tasks."""

    title: str
    agreement: Agreement


class Figures(BaseModel):
    """What the Quality tab shows. A `Figure` has a 95% interval and the number it rests on; null: not defined.

    `rankings` were looked at, the newest; `cut`: there are more. Signs (`suspicions`) are reasons to look at somebody's
    rankings, never a verdict.
    """

    rankings: int
    cut: bool
    overall: Agreement
    gold: Figure
    retest: Figure
    annotators: list[quality.Annotator]
    pairs: list[Pair]
    periods: list[Period]


class Disputed(BaseModel):
    """A task that two or more ranked differently. `share` of the votes of two people are the same, `tau` is their mean
    tau-b; `adjudicated`: a lead has settled it."""

    task_id: int
    people: int
    share: float
    tau: float | None
    adjudicated: bool


class Said(BaseModel):
    """What one person said of a task; `final`: it is the adjudication in force."""

    name: str
    ranks: list[int | None]
    all_bad: bool
    comment: str
    final: bool


class Case(BaseModel):
    """A task with everything that was said of it, ranks in the order of `completions`. `mine`: you settled it."""

    task_id: int
    messages: list[Turn]
    completions: list[str]
    said: list[Said]
    mine: bool


class Adjudication(Body):
    """A final ranking, in the order of the task's completions, or (`retract`) your own one taken back.

    The same `uuid` sent twice lands once and is answered the same.
    """

    uuid: Uuid
    kind: Literal["adjudicate", "retract"] = "adjudicate"
    ranks: Ranks = Field(default_factory=list)
    all_bad: bool = False
    comment: Annotated[Text, Field(max_length=events.MAX_COMMENT)] = ""


@router.get("/projects/{project_id}/quality")
def project_quality(project_id: Id, space: Space, user: Reader) -> Figures:
    """Agreement, known answers, test-retest, and signs that somebody does not read. It takes seconds."""
    with refused(404):
        projects.get_project(space.store.db, project_id)
    with MEASURING:
        found = quality.measure(space.store.db, project_id)
    plain: dict[str, Any] = asdict(found)
    pairs = [
        {"first_user_id": first, "second_user_id": second, "agreement": figures}
        for (first, second), figures in plain.pop("pairs").items()
    ]
    periods = [{"title": title, "agreement": figures} for title, figures in plain.pop("periods")]
    return Figures.model_validate(plain | {"pairs": pairs, "periods": periods})


@router.get("/projects/{project_id}/disputed")
def list_disputed(project_id: Id, space: Space, user: Reader, cursor: Cursor = 0, limit: Limit = 50) -> Page[Disputed]:
    """Tasks on which people disagree, the least agreement first, those already settled last."""
    with refused(404):
        projects.get_project(space.store.db, project_id)
    with MEASURING:
        found = adjudication.candidates(space.store.db, project_id, limit=quality.NEWEST)
    items = [Disputed(**asdict(candidate)) for candidate in found[cursor : cursor + limit]]
    return Page(items=items, next_cursor=cursor + limit if cursor + limit < len(found) else None)


@router.get("/tasks/{task_id}/adjudication")
def get_case(task_id: Id, space: Space, user: Reader) -> Case:
    """What everybody said of a task, side by side, and the final ranking in force."""
    return _case(space, task_id, user)


@router.post("/tasks/{task_id}/adjudication")
def adjudicate(task_id: Id, said: Adjudication, space: Space, user: Lead) -> Recorded:
    """Settle a task, or take your own final ranking back. It is on disk when this is answered."""
    count = len(_case(space, task_id, user).completions)
    if said.kind == "adjudicate":
        events.check_ranks(said.ranks, count, said.all_bad)
    with refused(409):
        if said.kind == "retract":
            new = adjudication.take_back(space.store, user, task_id, said.uuid)
        else:
            new = adjudication.adjudicate(
                space.store, user, task_id, said.ranks, uuid=said.uuid, all_bad=said.all_bad, comment=said.comment
            )
    if not new:
        check_repeat(space.store, said.uuid, said.kind, said.ranks, said.comment if said.kind == "adjudicate" else "")
    row = one(space.store.db, "SELECT assignment_id FROM events WHERE uuid = ?", [said.uuid])
    assert row is not None
    return Recorded(uuid=said.uuid, assignment_id=row["assignment_id"], kind=said.kind)


def _case(space: Space, task_id: int, user: User) -> Case:
    with refused(404):
        return Case.model_validate(asdict(adjudication.case(space.store.db, task_id, user)))
