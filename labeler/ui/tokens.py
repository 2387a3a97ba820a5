"""A person's own API tokens, in the Team tab: made, seen without their secret, and revoked."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import tokens
from labeler.auth import current_user
from labeler.tokens import Token
from labeler.ui import page
from labeler.users import User
from labeler.workspace import Workspace

LASTS = (("30 days", 30.0), ("90 days", 90.0), ("a year", 365.0), ("until it is revoked", 0.0))
INTRO = """<h2>Your API tokens</h2>
<p>A program that has a token asks <a href="api/v1/docs" target="_blank" rel="noopener">/api/v1</a> in your name, and
may do whatever you may do. Make one for each program, and revoke it when the program is no longer used.</p>"""
KEEP = "Copy it now: it is not shown again. Whoever has it can do what you can do."


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    store = workspace.store
    page.html(INTRO)
    listed = page.html(elem_id="tokens-table")
    with gr.Row():
        name = gr.Textbox(
            label="The program's name",
            max_length=100,
            elem_id="token-name",
            min_width=220,
            placeholder="nightly export",
        )
        lasts = gr.Dropdown(list(LASTS), value=90.0, label="The token lasts", elem_id="token-lasts", min_width=160)
        make = gr.Button("Make a token", variant="primary", scale=0, min_width=160, elem_id="token-make")
    made = page.html(elem_id="token-made")
    with gr.Row():
        chosen = gr.Dropdown([], label="Token that is not needed any more", elem_id="token-chosen")
        revoke = gr.Button("Revoke it", variant="stop", scale=0, min_width=140, elem_id="token-revoke")
    told = page.html(elem_id="token-notice")

    def look(request: gr.Request) -> list[Any]:
        """The list, and the choice of what to revoke. No secret: none is stored."""
        try:
            user = current_user(request, workspace)
        except InputError as error:
            return [escape(str(error)), gr.skip()]
        mine = [token for token in tokens.list_tokens(store, user) if token.revoked_at is None]
        choices = [(f"{token.name} · made {_day(token.created_at)}", token.id) for token in mine]
        return [tokens_table(user, mine), gr.Dropdown(choices, value=None)]

    def show(request: gr.Request) -> list[Any]:
        return [*look(request), "", ""]

    def make_token(called: str, days: float, request: gr.Request) -> list[Any]:
        secrets: list[str] = []

        def act(user: User) -> str:
            if days not in [value for _, value in LASTS]:
                raise InputError("choose how long the token lasts")
            secrets.append(tokens.create_token(store, user, str(called or ""), days or None)[0])
            return KEEP

        said = page.attempt(request, workspace, act, current_user)
        field = f'<input class="link-field" readonly aria-label="New token" value="{secrets[0]}">' if secrets else ""
        return [said + field, "", "" if secrets else gr.skip(), *look(request)]

    def revoke_token(token_id: int | None, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            if not isinstance(token_id, int):
                raise InputError("choose a token first")
            tokens.revoke_token(store, user, token_id)
            return "The token is worthless from now on."

        return [page.attempt(request, workspace, act, current_user), "", *look(request)]

    page.on_show(show, [], [listed, chosen, made, told])
    make.click(make_token, [name, lasts], [made, told, name, listed, chosen], **page.QUIET)
    revoke.click(revoke_token, chosen, [told, made, listed, chosen], **page.QUIET)


def tokens_table(user: User, mine: list[Token]) -> str:
    """One row a token; HTML."""
    if not mine:
        return '<p class="empty">You have no token. Make one for a program that ranks, imports or exports for you.</p>'
    titles = ("Program", "May do", "Made", "Last used", "Ends")
    scope = f"what you may do as {escape(user.role)}"
    body = [
        [escape(token.name), scope, _day(token.created_at), _moment(token.last_used_at), _end(token.expires_at)]
        for token in mine
    ]
    return page.table(titles, body, "Your API tokens")


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def _moment(at: float | None) -> str:
    return "never" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _end(at: float | None) -> str:
    if at is None:
        return "when it is revoked"
    return _day(at) if at > time.time() else f"ended {_day(at)}"
