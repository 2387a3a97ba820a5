"""The Rank tab: one task after the other, ranked in the browser by ranking.js, stored here before the next is shown.

The widget calls the functions below by name and draws what they answer: a task, "empty" when all is done, or an error
to show beside the controls. Nothing that an annotator sees says which model wrote a completion.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import rankings, tasks
from labeler.auth import current_user
from labeler.store import explain, scalar
from labeler.ui import theme
from labeler.ui.markdown import render
from labeler.users import User
from labeler.workspace import Workspace

log = logging.getLogger(__name__)

View = dict[str, Any]
MARKUP = '<section class="rank" aria-label="Rank completions"><p>Loading the next task …</p></section>'


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""

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

    def change(request: gr.Request, act: Callable[[User], object]) -> View:
        """Do it, then answer with the next task."""

        def changed(user: User) -> View:
            act(user)
            return next_view(workspace, user)

        return answer(request, changed)

    def rank_next(_: Any, request: gr.Request) -> View:
        """The task this annotator has open, or the next one."""
        return answer(request, lambda user: next_view(workspace, user))

    def rank_submit(data: Any, request: gr.Request) -> View:
        """Store a ranking or a skip."""
        return change(request, lambda user: rankings.record_event(workspace.store, user, read_event(data)))

    def rank_undo(data: Any, request: gr.Request) -> View:
        """Take back the last ranking or skip; that task comes back."""
        return change(request, lambda user: rankings.undo(workspace.store, user, _uuid(data)))

    def rank_skipped(data: Any, request: gr.Request) -> View:
        """Bring back the skipped tasks."""
        return change(request, lambda user: rankings.return_skipped(workspace.store, user, _uuid(data)))

    def rank_draft(data: Any, request: gr.Request) -> View:
        """Keep an unfinished ranking."""

        def keep(user: User) -> View:
            return {"saved": rankings.save_draft(workspace.store, user, _whole(data, "assignment"), data)}

        return answer(request, keep)

    gr.HTML(
        html_template=MARKUP,
        js_on_load=theme.script("dragging.js") + theme.script("ranking.js"),
        server_functions=[rank_next, rank_submit, rank_draft, rank_undo, rank_skipped],
        apply_default_css=False,
        elem_id="rank",
    )


def next_view(workspace: Workspace, user: User) -> View:
    """What the widget draws next."""
    assignment = tasks.next_assignment(workspace.store, user)
    view: View = {
        "kind": "empty",
        "progress": tasks.progress(workspace.store, user),
        "can_undo": rankings.can_undo(workspace.store, user),
    }
    if assignment is None:
        sql = "SELECT count(*) FROM prompts"
        return view | {"prompts": scalar(workspace.store.db, sql)}
    return view | {
        "kind": "task",
        "assignment": assignment.id,
        "category": assignment.category,
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
        "draft": assignment.draft,
    }


def read_event(data: Any) -> rankings.Event:
    """The event that a browser sent. Raises InputError where it is not one."""
    if not isinstance(data, dict) or data.get("kind") not in ("submit", "skip"):
        raise InputError("the browser sent something unknown; reload the page")
    ranks = data.get("ranks")
    return rankings.Event(
        uuid=str(data.get("uuid") or ""),
        assignment_id=_whole(data, "assignment"),
        kind=data["kind"],
        ranks=ranks if isinstance(ranks, list) else [],
        all_bad=data.get("all_bad") is True,
        comment=str(data.get("comment") or ""),
        seconds=_number(data, "seconds"),
        client_time=_number(data, "client_time"),
    )


def _uuid(data: Any) -> str:
    value = data.get("uuid") if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise InputError("the browser sent something unknown; reload the page")
    return value


def _whole(data: Any, key: str) -> int:
    value = data.get(key) if isinstance(data, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**53:
        raise InputError("the browser sent no task; reload the page")
    return value


def _number(data: dict[str, Any], key: str) -> float | None:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
