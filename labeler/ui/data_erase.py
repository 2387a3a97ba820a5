"""The Data tab's last line: a person's data deleted on request."""

from __future__ import annotations

import json
import time
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import erasure
from labeler.store import one, rows
from labeler.ui import page
from labeler.ui.data import keeper, notice, plural, sentence
from labeler.workspace import Workspace

WHAT = """Deletes what this person said for good: rankings, comments, drafts, answers they wrote, their name and their
login. Their tasks wait for somebody else. Snapshots that held it are marked: they cannot be made again. Backups, files
that were taken away and checkpoints trained on it are not reached. The database is rewritten, and everybody waits for
that (about a minute for a million rankings)."""


def build(workspace: Workspace) -> None:
    """Make the folded form."""
    with gr.Accordion("Delete a person's data", open=False, elem_id="data-erase"):
        gr.Markdown(WHAT)
        person = gr.Dropdown([], label="Whose", elem_id="data-erase-who")
        files = gr.Radio(
            [("Delete their files too", "delete"), ("Keep the files", "keep")], value="delete",
            label="Snapshots and exports in the workspace that held it", elem_id="data-erase-files",
        )  # fmt: skip
        confirm = gr.Textbox(label="Type the name once more", elem_id="data-erase-confirm")
        button = gr.Button("Delete for good", variant="stop", scale=0, min_width=200, elem_id="data-erase-do")
        done = page.html(elem_id="data-erased")
        past = page.html()

    def refresh(request: gr.Request) -> list[Any]:
        try:
            keeper(request, workspace)
        except InputError:
            return [gr.update(), ""]
        people = rows(workspace.store.db, "SELECT id, name FROM users WHERE name NOT LIKE 'erased-%' ORDER BY name")
        return [gr.update(choices=[(row["name"], row["id"]) for row in people], value=None), past_html(workspace)]

    def erase(user_id: int | None, files: str, typed: str, request: gr.Request) -> list[Any]:
        try:
            user = keeper(request, workspace)
            found = one(workspace.store.db, "SELECT name FROM users WHERE id = ?", [user_id or 0])
            if found is None:
                raise InputError("choose a person first")
            if typed.strip() != found["name"]:
                raise InputError(f"type {found['name']} to confirm; nothing was deleted")
            made = erasure.erase(workspace.store, user, int(user_id or 0), files)
        except InputError as error:
            return [notice(sentence(error), bad=True), gr.update(), gr.update()]
        said = ", ".join(plural(count, name.rstrip("s")) for name, count in made.counts.items() if count)
        said = f"Deleted: {said or 'only the name, there was nothing else'}."
        if not made.clean:
            said += " The database was in use, so deleted bytes may still lie in it; run: python -m labeler clean"
        return [notice(said, bad=not made.clean), *refresh(request)]

    button.click(
        erase, [person, files, confirm], [done, person, past], api_visibility="private", show_progress_on=button
    )
    page.on_show(refresh, [], [person, past])


def past_html(workspace: Workspace) -> str:
    """What was deleted before, by whom."""
    found = rows(
        workspace.store.db,
        """SELECT e.user_id, e.counts, e.created_at, e.cleaned_at, u.name FROM erasures AS e
            LEFT JOIN users AS u ON u.id = e.erased_by ORDER BY e.id DESC LIMIT 20""",
    )
    items = []
    for row in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
        what = ", ".join(f"{count} {name}" for name, count in json.loads(row["counts"]).items())
        state = "" if row["cleaned_at"] else "; not yet cleaned out of the file"
        items.append(f"<li>{when}: erased-{row['user_id']}, by {escape(row['name'] or 'nobody')} ({what}{state})</li>")
    return f"<ul class='erasures'>{''.join(items)}</ul>" if items else ""
