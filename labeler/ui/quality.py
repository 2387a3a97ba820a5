"""The Quality tab: how far annotators agree, whom to talk to, and the disagreements a lead settles.

Figures are HTML of quality_view.py; the disagreements are drawn in the browser by quality.js, which calls the
functions below.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import adjudication, quality
from labeler.auth import current_user
from labeler.projects import FIRST, LEADS, all_projects
from labeler.store import explain
from labeler.ui import page, theme
from labeler.ui.markdown import render
from labeler.ui.quality_view import figures_html, people_html
from labeler.users import User
from labeler.workspace import Workspace

log = logging.getLogger(__name__)

View = dict[str, Any]
READERS = ("lead", "researcher", "owner")
"""Roles that see how good everybody's labels are. Leads and owners also settle disagreements."""
MARKUP = '<section class="adjudication" aria-label="Disagreements"></section>'
MAX_ID = 2**53


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""

    def answer(request: gr.Request, act: Callable[[User], View]) -> View:
        """What `act` returns, or what went wrong in words."""
        try:
            return act(reader(request, workspace))
        except InputError as error:
            return {"error": str(error)}
        except sqlite3.Error as error:
            log.exception("the Quality tab could not use the database")
            return {"error": f"Could not be saved: {explain(error)}."}

    def quality_case(data: Any, request: gr.Request) -> View:
        """One task with everything that was said of it."""
        return answer(request, lambda user: {"case": case_view(workspace, user, _id(data, "task"))})

    def quality_settle(data: Any, request: gr.Request) -> View:
        """Store a final ranking, or take it back."""

        def settle(user: User) -> View:
            task, uuid = _id(data, "task"), str(data.get("uuid") or "")
            if data.get("kind") == "take back":
                adjudication.take_back(workspace.store, user, task, uuid)
            else:
                ranks, comment = data.get("ranks"), str(data.get("comment") or "")
                ranks = ranks if isinstance(ranks, list) else []
                all_bad = data.get("all_bad") is True
                adjudication.adjudicate(workspace.store, user, task, ranks, uuid=uuid, all_bad=all_bad, comment=comment)
            return {"case": case_view(workspace, user, task), **list_view(workspace, user, _id(data, "project"))}

        return answer(request, settle)

    project = gr.Dropdown([], label="Project", elem_id="quality-project")
    figures = page.html("<p class='empty' role='status'>Measuring agreement …</p>", elem_id="quality-figures")
    people = page.html(elem_id="quality-people")
    disagreements = gr.HTML(
        html_template=MARKUP,
        js_on_load=theme.script("quality.js"),
        server_functions=[quality_case, quality_settle],
        apply_default_css=False,
        elem_id="quality-disagreements",
    )

    def show(project_id: int | None, request: gr.Request) -> list[Any]:
        try:
            user = reader(request, workspace)
            choices = [(one.name, one.id) for one in all_projects(workspace.store.db)]
            chosen = page.keep_choice(choices, project_id, FIRST)
            chosen = choices[0][1] if chosen is None else chosen
            measured = quality.measure(workspace.store.db, chosen)
            listed = list_view(workspace, user, chosen)
        except InputError as error:
            return [gr.skip(), f'<p class="empty">{escape(str(error))}</p>', "", {"tasks": []}]
        return [gr.Dropdown(choices, value=chosen), figures_html(measured), people_html(measured), listed]

    outputs = [project, figures, people, disagreements]
    page.on_show(show, [project], outputs, progress_on=figures)
    project.input(show, project, outputs, show_progress_on=figures, api_visibility="private", concurrency_limit=2)


def reader(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may see everybody's figures. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in READERS:
        raise InputError(f"{user.name} may not see how others rank; ask a lead")
    return user


def _id(data: Any, key: str) -> int:
    value = data.get(key) if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= MAX_ID:
        raise InputError("the browser sent something unknown; reload the page")
    return value


def list_view(workspace: Workspace, user: User, project_id: int) -> View:
    """The tasks with the least agreement, as quality.js draws them."""
    found = adjudication.candidates(workspace.store.db, project_id)
    listed = [
        {
            "task": one.task_id,
            "people": one.people,
            "share": round(100 * one.share),
            "tau": None if one.tau is None else f"{one.tau:.2f}",
            "settled": one.adjudicated,
        }
        for one in found
    ]
    return {"project": project_id, "tasks": listed, "may": user.role in LEADS}


def case_view(workspace: Workspace, user: User, task_id: int) -> View:
    """A task side by side. Only what `render` has sanitised is HTML."""
    case = adjudication.case(workspace.store.db, task_id, user)
    return {
        "task": case.task_id,
        "messages": [{"role": message["role"], "text": message["content"]} for message in case.messages],
        "completions": [render(text) for text in case.completions],
        "said": [
            {"name": one.name, "ranks": one.ranks, "all_bad": one.all_bad, "comment": one.comment, "final": one.final}
            for one in case.said
        ],
        "mine": case.mine,
    }
