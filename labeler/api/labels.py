"""Ranking: the next task, and what is said of it. Everybody acts on their own work only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from data.records import InputError, Prompt
from labeler import events, history, rankings, tasks
from labeler.api.access import (
    Body,
    Caller,
    Cursor,
    Id,
    Identifier,
    Limit,
    Line,
    Page,
    Seconds,
    Space,
    Text,
    Turn,
    Turns,
    conversation,
    page,
    refused,
)
from labeler.projects import get_project
from labeler.store import Store, one
from labeler.users import User

router = APIRouter(tags=["labels"])

Ranks = Annotated[list[Annotated[int, Field(ge=1, le=events.MAX_RANK)] | None], Field(max_length=9)]
Ratings = Annotated[list[Annotated[int, Field(ge=1, le=events.MAX_RATING)] | None], Field(max_length=9)]
Tags = Annotated[list[Annotated[list[Line], Field(max_length=30)]], Field(max_length=9)]
Uuid = Annotated[str, Field(min_length=8, max_length=100, pattern=r"^[\x21-\x7e]+$")]


class Shown(BaseModel):
    """A completion as an annotator may see it; `cut`: it met the length limit."""

    text: str
    cut: bool


class Task(BaseModel):
    """A task for the person who asks. `assignment_id` is what they answer to; ranks stand in the order shown."""

    assignment_id: int
    task_id: int
    category: str
    messages: list[Turn]
    completions: list[Shown]
    draft: dict[str, Any] | None


class Next(BaseModel):
    """The task to do now; null when all is done."""

    task: Task | None


class Progress(BaseModel):
    """Where the person who asks stands in a project, in tasks."""

    done: int
    total: int
    remaining: int
    today: int
    skipped: int


class Heartbeat(BaseModel):
    """Whether the task is still theirs."""

    held: bool


class Saved(BaseModel):
    """Whether the draft was kept; it is not where the task is not open any more."""

    saved: bool


class Draft(Body):
    """An unfinished ranking. Ranks, tags and ratings stand in the order in which the completions were shown."""

    ranks: Ranks = Field(default_factory=list)
    all_bad: bool = False
    comment: Annotated[Text, Field(max_length=events.MAX_COMMENT)] = ""
    tags: Tags = Field(default_factory=list)
    ratings: Ratings = Field(default_factory=list)
    rewrite: Annotated[Text, Field(max_length=events.MAX_REWRITE)] = ""
    strength: Annotated[int, Field(ge=1, le=4)] | None = None


class Said(Draft):
    """One thing an annotator did. The same `uuid` sent twice lands once and is answered the same.

    Ranks, tags and ratings stand in the order in which the completions were shown. `strength` (1 to 4) is for two
    completions of which one is better. A second submit on the same assignment, with a new `uuid`, corrects the first.
    """

    uuid: Uuid
    kind: Literal["submit", "skip", "flag", "retract"]
    reason: Annotated[Text, Field(max_length=events.MAX_COMMENT)] = ""
    seconds: Seconds | None = None
    client_time: Seconds | None = None


class Recorded(BaseModel):
    """What is on disk."""

    uuid: str
    assignment_id: int
    kind: str


class Past(BaseModel):
    """Something the person who asks did before; lists in the order in which the completions were shown."""

    id: int
    uuid: str
    kind: str
    assignment_id: int
    task_id: int
    project_id: int | None
    created_at: float
    ranks: list[int | None] = []
    all_bad: bool = False
    comment: str = ""
    tags: list[list[str]] = []
    ratings: list[int | None] = []
    rewrite: str = ""
    strength: int | None = None
    reason: str = ""


class Answer(Body):
    """One of the completions that are compared."""

    text: Text
    checkpoint_id: Identifier | None = None


class Vote(Body):
    """A comparison made on the spot: completions in the order shown, and their ranks."""

    uuid: Uuid
    prompt: Turns
    completions: list[Answer] = Field(min_length=2, max_length=9)
    ranks: Ranks
    all_bad: bool = False
    comment: Annotated[Text, Field(max_length=events.MAX_COMMENT)] = ""


class Voted(BaseModel):
    """The task that was made of a comparison."""

    task_id: int


@router.post("/projects/{project_id}/next", response_model=Next)
def next_task(project_id: Id, space: Space, user: Caller) -> Response:
    """The task to do now: what is open comes back, so asking twice gives the same."""
    try:
        found = tasks.next_assignment(space.store, user, project_id)
    except InputError as error:
        with refused(404):
            get_project(space.store.db, project_id)
        raise HTTPException(403, str(error)) from None
    return _written(Next(task=None if found is None else _task(found)))


@router.get("/projects/{project_id}/progress")
def progress(project_id: Id, space: Space, user: Caller) -> Progress:
    """Where you stand in this project."""
    with refused(404):
        get_project(space.store.db, project_id)
    return Progress(**tasks.progress(space.store, user, project_id))


@router.get("/assignments/{assignment_id}")
def assignment(assignment_id: Id, space: Space, user: Caller) -> Task:
    """A task that was given to you, as it was shown."""
    with refused(404):
        return _task(tasks.get_assignment(space.store.db, assignment_id, user))


@router.post("/assignments/{assignment_id}/heartbeat")
def heartbeat(assignment_id: Id, space: Space, user: Caller) -> Heartbeat:
    """Keep the task while you work on it; send it every few minutes."""
    _own(space.store, user, assignment_id)
    return Heartbeat(held=tasks.heartbeat(space.store, user, assignment_id))


@router.put("/assignments/{assignment_id}/draft")
def draft(assignment_id: Id, said: Draft, space: Space, user: Caller) -> Saved:
    """Keep an unfinished ranking in place of the one before; it comes back with the task."""
    count = _own(space.store, user, assignment_id)
    if said.ranks:
        events.check_ranks(said.ranks, count, all_bad=True)
    events.check_tags(said.tags, count)
    events.check_ratings(said.ratings, count)
    content = said.model_dump(exclude_unset=True)
    return Saved(saved=history.save_draft(space.store, user, assignment_id, content))


@router.post("/assignments/{assignment_id}/events", response_model=Recorded)
def record(assignment_id: Id, said: Said, space: Space, user: Caller) -> Response:
    """Submit, skip, flag or take back. It is on disk when this is answered."""
    count = _own(space.store, user, assignment_id)
    event = events.Event(**said.model_dump(), assignment_id=assignment_id, source="api")
    if said.kind == "submit":
        with refused(422):
            events.check_opinion(event, count)
    with refused(409):
        new = rankings.record_event(space.store, user, event)
    if not new:
        check_repeat(space.store, said.uuid, said.kind, said.ranks, said.comment)
    return _written(Recorded(uuid=said.uuid, assignment_id=assignment_id, kind=said.kind))


@router.get("/history")
def list_history(space: Space, user: Caller, cursor: Cursor = 0, limit: Limit = 50) -> Page[Past]:
    """What you did, the latest first."""
    found = history.events(space.store, user, cursor or None, limit + 1)
    return page([Past.model_validate(row) for row in found], limit, lambda past: past.id)


@router.post("/comparisons")
def compare(vote: Vote, space: Space, user: Caller) -> Voted:
    """Store a ranking of completions that you sampled yourself: prompt, completions and ranks at once."""
    answers: list[tuple[str, int | None, dict[str, Any]]] = [
        (answer.text, answer.checkpoint_id, {}) for answer in vote.completions
    ]
    for _, checkpoint_id, _ in answers:
        if checkpoint_id and one(space.store.db, "SELECT 1 FROM checkpoints WHERE id = ?", [checkpoint_id]) is None:
            raise HTTPException(422, f"there is no checkpoint {checkpoint_id}; leave it out where it is unknown")
    prompt = Prompt(tuple(conversation(vote.prompt)))
    ranks = events.check_ranks(vote.ranks, len(answers), vote.all_bad)
    with refused(409):
        task_id = rankings.record_comparison(
            space.store, user, prompt.messages, answers, ranks, vote.all_bad, "api", vote.uuid, vote.comment
        )
    return Voted(task_id=task_id)


def _task(found: tasks.Assignment) -> Task:
    """What an annotator may see: nothing says where a completion came from or why the task was given."""
    return Task(
        assignment_id=found.id,
        task_id=found.task_id,
        category=found.category,
        messages=[Turn(**message) for message in found.messages],
        completions=[Shown(text=c.text, cut=c.finish_reason == "length") for c in found.completions],
        draft=found.draft,
    )


def _written(answer: BaseModel) -> Response:
    """The answer as it is sent. FastAPI would look through what is checked already, in a thread once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _own(store: Store, user: User, assignment_id: int) -> int:
    """How many completions this person's assignment has. Somebody else's is answered as if there were none."""
    sql = "SELECT json_array_length(display_order) AS count FROM assignments WHERE id = ? AND user_id = ?"
    row = one(store.db, sql, [assignment_id, user.id])
    if row is None:
        raise HTTPException(404, f"you have no assignment {assignment_id}; ask for the next task")
    return int(row["count"])


def check_repeat(store: Store, uuid: str, kind: str, ranks: Sequence[events.Rank], comment: str) -> None:
    """A uuid that is known must say what it said the first time: else a second ranking would be lost in silence."""
    row = one(store.db, "SELECT kind, payload FROM events WHERE uuid = ?", [uuid])
    assert row is not None
    before = events.as_shown(json.loads(row["payload"]))
    same = kind not in ("submit", "adjudicate") or not ranks or before["ranks"] == ranks
    if row["kind"] != kind or not same or before["comment"] != comment.strip():
        raise HTTPException(409, "this uuid was used for something else; make a new one for every click")
