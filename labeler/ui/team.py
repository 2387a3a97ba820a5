"""The Team tab: projects, in which order their tasks come, and the people who work in them, all for leads and owners;
and one's own API tokens, which researchers see as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from data.records import InputError
from labeler import invitations, users
from labeler.ui import page, projects, selection, tokens
from labeler.users import MANAGES, User
from labeler.workspace import Workspace

ROLE_WORDS = {
    "annotator": "annotator: ranks, chats and compares",
    "lead": "lead: also projects, people and data",
    "researcher": "researcher: also training runs and data",
    "owner": "owner: everything",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    with gr.Column(elem_id="team-leads") as for_leads:
        projects.build(workspace)
        selection.build(workspace)
        _build_people(workspace)
    tokens.build(workspace)

    def hide(request: gr.Request) -> Any:
        try:
            page.lead(request, workspace)
        except InputError:
            return gr.update(visible=False)
        return gr.skip()

    page.on_show(hide, [], [for_leads])


def _build_people(workspace: Workspace) -> None:
    page.html("<h2>People</h2>")
    listed = page.html(elem_id="people-table")
    with gr.Column(visible=False, elem_id="own-password") as own:
        page.html(
            '<p class="notice">Nobody has a password yet, so whoever uses this machine is the owner. Before you invite '
            "somebody, choose a password for yourself: from then on everybody logs in, you under the name "
            f"<b>{users.LOCAL_OWNER}</b>.</p>"
        )
        with gr.Row():
            password = gr.Textbox(label="Your password", type="password", elem_id="own-password-first", min_width=200)
            repeat = gr.Textbox(label="Once more", type="password", elem_id="own-password-again", min_width=200)
            choose = gr.Button("Save my password", variant="primary", scale=0, min_width=180)
    chosen_note = page.html(elem_id="own-password-notice")
    with gr.Row():
        first = [(ROLE_WORDS["annotator"], "annotator")]  # whoever sees this tab may invite them, also at once
        role = gr.Dropdown(first, value="annotator", label="Invite somebody as", elem_id="invite-role")
        invite = gr.Button("Make an invitation link", variant="primary", scale=0, min_width=220, elem_id="invite-make")
    link = page.html(elem_id="invite-link")
    open_links = page.html(elem_id="invite-open")
    with gr.Row():
        unused = gr.Dropdown([], label="Link that was not used yet", elem_id="invite-unused")
        withdraw = gr.Button("Withdraw it", scale=0, min_width=140, elem_id="invite-withdraw")
    with gr.Row():
        person = gr.Dropdown([], label="Person", elem_id="person")
        new_role = gr.Dropdown([], label="Their role", elem_id="person-role")
    with gr.Row(elem_classes="buttons"):
        give = gr.Button("Change role", min_width=140, elem_id="person-give")
        reset = gr.Button("Link for a new password", min_width=220, elem_id="person-reset")
        shut = gr.Button("Disable", variant="stop", min_width=120, elem_id="person-disable")
        let_in = gr.Button("Enable again", min_width=140, elem_id="person-enable")
    told = page.html(elem_id="person-notice")

    overview = [listed, own, role, open_links, unused, person, new_role]

    def look(chosen_role: str | None, chosen_person: int | None, request: gr.Request) -> list[Any]:
        try:
            user = page.lead(request, workspace)
        except InputError as error:
            return [escape(str(error)), *(gr.skip() for _ in overview[1:])]
        roles = [(ROLE_WORDS[name], name) for name in MANAGES[user.role]]
        links = invitations.pending(workspace.store.db)
        unused_links = [(_link_words(row), row["id"]) for row in links if row["role"] in MANAGES[user.role]]
        everybody = users.list_users(workspace.store)
        people = [
            (f"{row['name']} ({row['role']})", row["id"]) for row in everybody if row["role"] in MANAGES[user.role]
        ]
        return [
            people_table(everybody),
            gr.update(visible=not users.needs_login(workspace.store)),
            gr.Dropdown(roles, value=chosen_role or "annotator"),
            '<p class="meta">No link waits to be used.</p>' if not links else "",
            gr.Dropdown(unused_links, value=None),
            gr.Dropdown(people, value=page.keep_choice(people, chosen_person, None)),
            gr.Dropdown(roles, value=None),
        ]

    def save_password(first: str, second: str, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            if users.needs_login(workspace.store):
                raise InputError("somebody has a password already; log in, and change yours by a link")
            if first != second:
                raise InputError("the two passwords differ; type them again")
            users.set_own_password(workspace.store, user, first or "")
            return f"Saved. You are asked to log in now: your name is {user.name}."

        return [page.attempt(request, workspace, act), "", ""]

    def make_link(request: gr.Request, made: Callable[[User], str]) -> str:
        """What `made` (it returns a token) leads to: the link, or what is wrong."""
        made_tokens: list[str] = []

        def act(user: User) -> str:
            made_tokens.append(made(user))
            return "Send this link to them. It works once, for seven days."

        said = page.attempt(request, workspace, act)
        return said + (link_html(request, made_tokens[0]) if made_tokens else "")

    def invite_somebody(as_role: str | None, chosen: int | None, request: gr.Request) -> list[Any]:
        said = make_link(request, lambda user: invitations.invite(workspace.store, user, as_role or ""))
        return [said, *look(as_role, chosen, request)]

    def reset_password(as_role: str | None, chosen: int | None, request: gr.Request) -> list[Any]:
        said = make_link(request, lambda user: invitations.invite_again(workspace.store, user, _person(chosen)))
        return [said, *look(as_role, chosen, request)]

    def withdraw_link(chosen: int | None, as_role: str | None, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            if chosen is None:
                raise InputError("choose a link first")
            invitations.withdraw(workspace.store, user, int(chosen))
            return "The link is worthless now."

        return [page.attempt(request, workspace, act), *look(as_role, None, request)]

    def give_role(chosen: int | None, other: str | None, as_role: str | None, request: gr.Request) -> list[Any]:
        def act(user: User) -> str:
            if other is None:
                raise InputError("choose their new role first")
            users.set_role(workspace.store, user, _person(chosen), other)
            return f"Their role is {other} now."

        return [page.attempt(request, workspace, act), *look(as_role, chosen, request)]

    def change(how: Callable[..., None], words: str) -> Callable[..., list[Any]]:
        def handler(chosen: int | None, as_role: str | None, request: gr.Request) -> list[Any]:
            def act(user: User) -> str:
                how(workspace.store, user, _person(chosen))
                return words

            return [page.attempt(request, workspace, act), *look(as_role, chosen, request)]

        return handler

    page.on_show(look, [role, person], overview)
    choose.click(save_password, [password, repeat], [chosen_note, password, repeat], **page.QUIET)
    invite.click(invite_somebody, [role, person], [link, *overview], **page.QUIET)
    withdraw.click(withdraw_link, [unused, role], [link, *overview], **page.QUIET)
    give.click(give_role, [person, new_role, role], [told, *overview], **page.QUIET)
    reset.click(reset_password, [role, person], [told, *overview], **page.QUIET)
    disable = change(users.disable, "They are logged out and cannot log in any more. What they said stays.")
    shut.click(disable, [person, role], [told, *overview], **page.QUIET)
    let_in.click(change(users.enable, "They can log in again."), [person, role], [told, *overview], **page.QUIET)


def people_table(everybody: list[dict[str, Any]]) -> str:
    """One row a person; HTML."""
    body = []
    for row in everybody:
        state = "disabled" if row["disabled"] else "can log in" if row["can_log_in"] else "has no password"
        body.append([escape(row["name"]), escape(row["role"]), state, f"{row['rankings']:,}"])
    return page.table(("Name", "Role", "Login", "Rankings"), body, "People")


def link_html(request: gr.Request, token: str) -> str:
    """The link, to be copied; HTML. It leads to where this page was asked from."""
    host = str(request.headers.get("host") or "")
    scheme = "https" if str(request.headers.get("origin") or "").startswith("https:") else "http"
    address = escape(f"{scheme}://{host}/invite/{token}", quote=True)
    name = urlsplit(f"//{host}").hostname or ""
    local = (
        '<p class="meta">It leads to this machine only. For others to reach it, start the app with HOST=0.0.0.0 and '
        "open it under this machine's name before you make links.</p>"
        if name in LOOPBACK
        else ""
    )
    return f'<input class="link-field" readonly aria-label="Invitation link" value="{address}">{local}'


def _link_words(row: dict[str, Any]) -> str:
    what = f"new password for {row['name']}" if row["name"] else f"a new {row['role']}"
    until = time.strftime("%Y-%m-%d", time.localtime(row["expires_at"]))
    return f"{what} · by {row['invited_by']} · until {until}"


def _person(user_id: int | None) -> int:
    if user_id is None:
        raise InputError("choose a person first")
    return int(user_id)
