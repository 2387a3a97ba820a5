"""What the tabs share: who asks, when a tab comes into view, and errors that stay beside their cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from data.records import InputError
from labeler.auth import current_user
from labeler.users import User
from labeler.workspace import Workspace

TRAINERS = ("researcher", "owner")
"""Roles that may start and stop runs."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How the pages listen: no veil over what is being updated, and no entry in Gradio's public API."""


def trainer(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may train. Raises InputError otherwise: hiding a button is no access control."""
    user = current_user(request, workspace)
    if user.role not in TRAINERS:
        raise InputError(f"{user.name} may not start or stop runs; ask a researcher or the owner")
    return user


def on_show(fn: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], on_load: bool = True) -> None:
    """Call `fn` when the page loads (unless that costs too much) and whenever the caller's tab is opened."""
    block = Context.block
    while block is not None and not isinstance(block, gr.Tab):
        block = block.parent
    triggers = [Context.root_block.load] if on_load and Context.root_block is not None else []
    if block is not None:
        triggers.append(block.select)
    gr.on(triggers, fn, list(inputs), list(outputs), queue=False, **QUIET)


def html(value: str = "", **more: Any) -> gr.HTML:
    """A piece of HTML of ours, without Gradio's own look for text. What comes from elsewhere is escaped before."""
    return gr.HTML(value, apply_default_css=False, elem_classes=["studio"], **more)


def keep_choice(choices: Sequence[tuple[str, int]], chosen: Any, fallback: int | None) -> int | None:
    """The chosen value while it can still be chosen."""
    values = [value for _, value in choices]
    return chosen if chosen in values else fallback if fallback in values else None
