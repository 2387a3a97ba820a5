"""What the Rank tab's widget is told, and what it tells.

A view is a task, "empty" when there is none, or an error to show beside the controls. Nothing that an annotator sees
says which model wrote a completion, or whether its answer is known.
"""

from __future__ import annotations

import math
from typing import Any

from data.records import InputError
from labeler import history, projects, qualification, tasks
from labeler.events import Event
from labeler.projects import Project
from labeler.store import scalar
from labeler.ui.markdown import render
from labeler.users import User
from labeler.workspace import Workspace

View = dict[str, Any]
PROMPT_BEGINNING = 120
"""Characters of a prompt in the list of the last labels."""


def next_view(workspace: Workspace, user: User, project_id: int | None = None) -> View:
    """The task this person has open in the project, or the next one. Without a project: in their first one."""
    store = workspace.store
    mine = projects.projects_of(store.db, user)
    if not mine:
        return {"kind": "empty", "reason": "no project", "projects": [], "can_undo": False}
    project = next((project for project in mine if project.id == project_id), mine[0])
    try:
        assignment = tasks.next_assignment(store, user, project.id)
    except InputError as error:  # the other projects can still be chosen
        return _frame(workspace, user, project) | {"kind": "empty", "reason": str(error)}
    if assignment is None:
        sql = "SELECT count(*) FROM prompts"
        return _frame(workspace, user, project) | {"kind": "empty", "prompts": scalar(store.db, sql)}
    return _frame(workspace, user, project) | _task(assignment) | {"draft": assignment.draft}


def render_ahead(workspace: Workspace, user: User, assignment_id: int) -> View:
    """Render what probably comes after this task, so that `next_view` finds it done. It alone says what comes."""
    assignment = tasks.upcoming(workspace.store, user, assignment_id)
    if assignment is not None:
        _task(assignment)  # `render` remembers
    return {}


def label_view(workspace: Workspace, user: User, assignment_id: int) -> View:
    """A submitted task, to change what was said."""
    store = workspace.store
    label = history.label(store, user, assignment_id)
    assignment = tasks.get_assignment(store.db, assignment_id, user)
    project = projects.check_member(store.db, user, _project_of(workspace, assignment_id) or 0)
    return _frame(workspace, user, project) | _task(assignment) | {"draft": label.said, "said_at": label.at}


def _project_of(workspace: Workspace, assignment_id: int) -> int | None:
    sql = "SELECT t.project_id FROM assignments AS a JOIN tasks AS t ON t.id = a.task_id WHERE a.id = ?"
    found: int | None = scalar(workspace.store.db, sql, [assignment_id])
    return found


def history_view(workspace: Workspace, user: User, project_id: int) -> View:
    """The last labels of this person."""
    projects.check_member(workspace.store.db, user, project_id)
    labels = history.labels(workspace.store, user, project_id)
    return {
        "labels": [
            {
                "assignment": label.assignment_id,
                "prompt": str(label.messages[-1]["content"])[:PROMPT_BEGINNING],
                "said": label.said,
                "at": label.at,
            }
            for label in labels
        ]
    }


def guidelines_view(workspace: Workspace, user: User, project_id: int) -> View:
    """The guidelines in force."""
    project = projects.check_member(workspace.store.db, user, project_id)
    return {"html": render(project.guidelines), "version": project.guidelines_version}


def _frame(workspace: Workspace, user: User, project: Project) -> View:
    """What stands around a task."""
    db = workspace.store.db
    return {
        "user": user.id,
        "project": {
            "id": project.id,
            "question": project.question,
            "tags": project.tags,
            "guidelines_version": project.guidelines_version,
        },
        "projects": [{"id": other.id, "name": other.name} for other in projects.projects_of(db, user)],
        "qualification": _qualification(workspace, user, project),
        "progress": tasks.progress(workspace.store, user, project.id),
        "can_undo": history.can_undo(workspace.store, user, project.id),
    }


def _qualification(workspace: Workspace, user: User, project: Project) -> View | None:
    if not project.qualification:
        return None
    status = qualification.status(workspace.store.db, user, project)
    return None if status.passed else {"needed": status.needed, "done": status.done}


def _task(assignment: tasks.Assignment) -> View:
    return {
        "kind": "task",
        "assignment": assignment.id,
        "messages": [
            # what a person typed is shown as typed; an assistant's turn is Markdown like the completions
            {
                "role": message["role"],
                "text": message["content"],
                "html": render(message["content"]) if message["role"] == "assistant" else None,
            }
            for message in assignment.messages
        ],
        "completions": [
            {"text": completion.text, "html": render(completion.text), "cut": completion.finish_reason == "length"}
            for completion in assignment.completions
        ],
    }


def read_event(data: Any) -> Event:
    """The event that a browser sent. Raises InputError where it is not one."""
    if not isinstance(data, dict) or data.get("kind") not in ("submit", "skip", "flag"):
        raise InputError("the browser sent something unknown; reload the page")
    said: dict[str, list[Any]] = {
        name: data[name] if isinstance(data.get(name), list) else [] for name in ("ranks", "tags", "ratings")
    }
    version = data.get("guidelines_version")
    return Event(
        uuid=read_uuid(data),
        assignment_id=read_whole(data, "assignment"),
        kind=data["kind"],
        ranks=said["ranks"],
        tags=said["tags"],
        ratings=said["ratings"],
        all_bad=data.get("all_bad") is True,
        comment=str(data.get("comment") or ""),
        reason=str(data.get("reason") or ""),
        rewrite=str(data.get("rewrite") or ""),
        strength=data.get("strength"),
        seconds=_number(data, "seconds"),
        client_time=_number(data, "client_time"),
        more={"guidelines_version": version} if isinstance(version, int) and 0 < version < 2**31 else {},
    )


def read_uuid(data: Any) -> str:
    """The event's id."""
    value = data.get("uuid") if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise InputError("the browser sent something unknown; reload the page")
    return value


def read_whole(data: Any, key: str) -> int:
    """An id that must be there."""
    value = read_project(data, key)
    if value is None:
        raise InputError("the browser sent no task; reload the page")
    return value


def read_project(data: Any, key: str = "project") -> int | None:
    """An id that may be missing."""
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
