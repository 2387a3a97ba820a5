"""The Rank tab: one task after the other, ranked in the browser by ranking/*.js, stored here before the next is shown.

The widget calls the functions below by name and draws what they answer (rank_view.py says what that is).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import history, rankings, tasks
from labeler.auth import current_user
from labeler.store import explain
from labeler.ui import theme
from labeler.ui.rank_view import (
    View,
    guidelines_view,
    history_view,
    label_view,
    next_view,
    read_event,
    read_project,
    read_uuid,
    read_whole,
    render_ahead,
)
from labeler.users import User
from labeler.workspace import Workspace

log = logging.getLogger(__name__)

LANGUAGE = "en"
# one scope, in this order: words and helpers, what can be done to a task, how it is drawn, keys, start
SCRIPTS = (
    *(f"texts.{LANGUAGE}", "base", "saving", "marking", "dragging", "differences", "tags", "reasons", "rewriting"),
    *("scale", "cards", "panels", "page", "keys"),
)
MARKUP = '<section class="rank" aria-label="Rank completions"><p>Loading the next task …</p></section>'


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    store = workspace.store

    def answer(request: gr.Request, act: Callable[[User], View]) -> View:
        """What `act` returns, or what went wrong in words for the annotator."""
        try:
            return act(current_user(request, workspace))
        except InputError as error:
            return {"error": str(error)}
        except sqlite3.Error as error:
            log.exception("the Rank tab could not use the database")
            return {"error": f"Could not be saved: {explain(error)}. What you entered is still here."}
        except Exception:  # a mistake of ours: the annotator must still learn that nothing was stored
            log.exception("the Rank tab failed")
            return {"error": "Something went wrong in the app; its log says what. What you entered is still here."}

    def change(request: gr.Request, data: Any, act: Callable[[User], object]) -> View:
        """Do it, then answer with the next task."""

        def changed(user: User) -> View:
            act(user)
            return next_view(workspace, user, read_project(data))

        return answer(request, changed)

    def rank_next(data: Any, request: gr.Request) -> View:
        """The task this annotator has open, or the next one."""
        return answer(request, lambda user: next_view(workspace, user, read_project(data)))

    def rank_submit(data: Any, request: gr.Request) -> View:
        """Store a ranking (or the change of one) or a skip."""
        return change(request, data, lambda user: rankings.record_event(store, user, read_event(data)))

    def rank_flag(data: Any, request: gr.Request) -> View:
        """Store that something is wrong with a task; the task stays."""
        return answer(request, lambda user: {"stored": rankings.record_event(store, user, read_event(data))})

    def rank_undo(data: Any, request: gr.Request) -> View:
        """Take back the last ranking or skip in the project; that task comes back."""
        return change(
            request, data, lambda user: history.undo(store, user, read_uuid(data), read_whole(data, "project"))
        )

    def rank_skipped(data: Any, request: gr.Request) -> View:
        """Bring back the project's skipped tasks."""
        return change(
            request,
            data,
            lambda user: history.return_skipped(store, user, read_uuid(data), read_whole(data, "project")),
        )

    def rank_draft(data: Any, request: gr.Request) -> View:
        """Keep an unfinished ranking."""

        def keep(user: User) -> View:
            return {"saved": history.save_draft(store, user, read_whole(data, "assignment"), data)}

        return answer(request, keep)

    def rank_heartbeat(data: Any, request: gr.Request) -> View:
        """Somebody is still looking at this task."""
        return answer(request, lambda user: {"open": tasks.heartbeat(store, user, read_whole(data, "assignment"))})

    def rank_ahead(data: Any, request: gr.Request) -> View:
        """Make the next task ready while this one is read."""
        return answer(request, lambda user: render_ahead(workspace, user, read_whole(data, "assignment")))

    def rank_history(data: Any, request: gr.Request) -> View:
        """The last labels of this annotator."""
        return answer(request, lambda user: history_view(workspace, user, read_whole(data, "project")))

    def rank_open(data: Any, request: gr.Request) -> View:
        """One of them, to be changed."""
        return answer(request, lambda user: label_view(workspace, user, read_whole(data, "assignment")))

    def rank_guidelines(data: Any, request: gr.Request) -> View:
        """The project's guidelines."""
        return answer(request, lambda user: guidelines_view(workspace, user, read_whole(data, "project")))

    gr.HTML(
        html_template=MARKUP,
        js_on_load="\n".join(theme.script(f"ranking/{name}.js") for name in SCRIPTS),
        server_functions=[
            *(rank_next, rank_submit, rank_flag, rank_draft, rank_undo, rank_skipped),
            *(rank_heartbeat, rank_ahead, rank_history, rank_open, rank_guidelines),
        ],
        apply_default_css=False,
        elem_id="rank",
    )
