"""What the tabs share: who asks, when a tab comes into view, and errors that stay beside their cause."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.context import Context

from data.records import InputError
from labeler.auth import current_user
from labeler.projects import LEADS
from labeler.store import explain
from labeler.users import User
from labeler.workspace import Workspace

TRAINERS = ("researcher", "owner")
"""Roles that may start and stop runs."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
"""How the pages listen: no veil over what is being updated, and no entry in Gradio's public API.

That progress is shown on nothing has to be said too: with every event Gradio's page tells each component that ever was
an output of the progress there, and seeks each in the whole tree. With all tabs opened that took seconds of every one.
"""


def trainer(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may train. Raises InputError otherwise: hiding a button is no access control."""
    user = current_user(request, workspace)
    if user.role not in TRAINERS:
        raise InputError(f"{user.name} may not start or stop runs; ask a researcher or the owner")
    return user


def lead(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they lead projects and people. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in LEADS:
        raise InputError(f"{user.name} may not manage projects and people; ask a lead")
    return user


def attempt(
    request: gr.Request,
    workspace: Workspace,
    act: Callable[[User], str],
    who: Callable[[gr.Request, Workspace], User] = lead,
) -> str:
    """Do it as the lead (or `who`) who asks; what was done, or why it could not be, as a line beside the button."""
    try:
        kind, said = "info", act(who(request, workspace))
    except InputError as error:
        kind, said = "error", f"{str(error)[:1].upper()}{str(error)[1:]}{'' if str(error).endswith('.') else '.'}"
    except sqlite3.Error as error:
        kind, said = "error", f"Could not be saved: {explain(error)}."
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}"><p>{escape(said)}</p></div>'


def table(titles: Sequence[str], body: Sequence[Sequence[str]], label: str) -> str:
    """A table that becomes a list on a narrow screen; the cells are HTML of ours."""
    head = "".join(f"<th scope='col'>{escape(title)}</th>" for title in titles)
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td data-label="{escape(title)}"><div>{cell}</div></td>' for title, cell in zip(titles, row, strict=True)
        )
        + "</tr>"
        for row in body
    )
    inside = f'<table class="runs plain"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="table-wrap" tabindex="0" role="region" aria-label="{escape(label)}">{inside}</div>'


def on_show(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    progress_on: Any = None,
) -> None:
    """Call `fn` whenever the caller's tab is opened: what nobody looks at costs nothing when the page loads.

    What takes long says so on the component `progress_on`.
    """
    block = Context.block
    while block is not None and not isinstance(block, gr.Tab):
        block = block.parent
    assert block is not None, "only what stands in a tab can come into view"
    shown = QUIET if progress_on is None else QUIET | {"show_progress": "full", "show_progress_on": progress_on}
    block.select(fn, list(inputs), list(outputs), queue=False, **shown)


def html(value: str = "", **more: Any) -> gr.HTML:
    """A piece of HTML of ours, without Gradio's own look for text. What comes from elsewhere is escaped before."""
    return gr.HTML(value, apply_default_css=False, elem_classes=["studio"], **more)


def shown() -> gr.Textbox:
    """What the page shows of something that changes, as a look at it tells: a look at the same sends nothing.

    The page keeps it, not the server: answers may arrive in another order than they were given, and the next look must
    then go by what is on screen.
    """
    return gr.Textbox("", visible="hidden", container=False)


def keep_choice(choices: Sequence[tuple[str, int]], chosen: Any, fallback: int | None) -> int | None:
    """The chosen value while it can still be chosen."""
    values = [value for _, value in choices]
    return chosen if chosen in values else fallback if fallback in values else None
