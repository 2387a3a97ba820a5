"""One checkpoint as people see it: where it comes from, and the forms that name, archive and delete it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, lineage, registry
from labeler.auth import current_user
from labeler.checkpoints import Checkpoint
from labeler.store import explain
from labeler.ui import page
from labeler.ui.checkpoints_graph import KINDS, PICK, neutral, state_of, text
from labeler.ui.data import KEEPERS
from labeler.ui.run_view import notice
from labeler.users import User
from labeler.workspace import Workspace

STATES = {
    "deleted": "✕ deleted: only its name is left",
    "pruned": "✕ pruned: its run kept newer and better ones",
    "archived": "▣ archived: not offered in Chat, Compare and Train",
}


def viewer(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may see checkpoints. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in KEEPERS:
        raise InputError(f"{user.name} may not see the checkpoints; ask a researcher or the owner")
    return user


def attempt(request: gr.Request, workspace: Workspace, act: Callable[[], str]) -> str:
    """Do it for a researcher; what was done, or why not, as HTML to stand beside the button."""
    try:
        page.trainer(request, workspace)
        return neutral(notice(act(), "info"))
    except InputError as error:
        said = str(error).rstrip(".")
        return neutral(notice(f"{said[:1].upper()}{said[1:]}."))
    except sqlite3.Error as error:
        return notice(f"Could not be saved: {explain(error)}.")


class Details:
    """The head of a checkpoint's page, and its forms. `outputs` take what `updates` gives."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.head = page.html(js_on_load=PICK, elem_id="checkpoint-head")
        with gr.Accordion("Name, note and tags", open=False, visible=False, elem_id="checkpoint-edit") as self.edit:
            with gr.Row(elem_classes="knobs"):
                self.name = gr.Textbox(label="Name", max_length=registry.LONGEST_NAME, elem_id="checkpoint-name")
                self.tags = gr.Textbox(label="Tags, with commas between", elem_id="checkpoint-tags")
            self.note = gr.Textbox(label="Note", lines=3, max_length=registry.LONGEST_NOTE, elem_id="checkpoint-note")
            with gr.Row(elem_classes="start-row"):
                self.save = gr.Button("Save", variant="primary", scale=0, min_width=120, elem_id="checkpoint-save")
                self.archive = gr.Button("Archive", scale=0, min_width=140, elem_id="checkpoint-archive")

    def build_delete(self) -> None:
        """The form that deletes, to stand below everything else; call it before `outputs` are used."""
        with gr.Accordion("Delete", open=False, visible=False, elem_id="checkpoint-delete") as self.fold:
            self.rests = page.html(elem_id="checkpoint-dependents")
            self.confirm = gr.Textbox(label="Type the name once more", elem_id="checkpoint-confirm")
            self.delete = gr.Button("Delete its files", variant="stop", scale=0, min_width=160,
                                    elem_id="checkpoint-delete-do")  # fmt: skip
        self.outputs = [self.head, self.edit, self.name, self.tags, self.note, self.archive, self.fold, self.rests]

    def updates(self, checkpoint: Checkpoint | None) -> list[Any]:
        """New values for `outputs`."""
        if checkpoint is None:
            return ["", gr.update(visible=False), *["", "", ""], gr.update(), gr.update(visible=False), ""]
        deletable = checkpoint.kind != "base" and checkpoint.deleted_at is None
        archived = checkpoint.archived_at is not None
        return [
            head(self.workspace, checkpoint),
            gr.update(visible=True),
            checkpoint.name,
            ", ".join(checkpoint.tags),
            checkpoint.note,
            gr.update(value="Bring back" if archived else "Archive", visible=checkpoint.deleted_at is None),
            gr.update(visible=deletable),
            dependents_html(self.workspace, checkpoint) if deletable else "",
        ]

    def listen(self, chosen: Any, said: Any) -> list[Any]:
        """Let the buttons act on the chosen checkpoint; what came of it stands in `said`. Returns the events."""
        workspace = self.workspace

        def save(checkpoint_id: int, name: str, note: str, tags: str, request: gr.Request) -> str:
            def act() -> str:
                registry.edit(workspace.store, checkpoint_id, name or "", note or "", tags or "")
                return "Saved."

            return attempt(request, workspace, act)

        def archive(checkpoint_id: int, request: gr.Request) -> str:
            def act() -> str:
                hide = checkpoints.get(workspace.store, checkpoint_id).archived_at is None
                registry.archive(workspace, checkpoint_id, hide)
                return "Archived: it is not offered any more; its files stay." if hide else "It is offered again."

            return attempt(request, workspace, act)

        def delete(checkpoint_id: int, typed: str, request: gr.Request) -> str:
            def act() -> str:
                found = checkpoints.get(workspace.store, checkpoint_id)
                if (typed or "").strip() != found.name:
                    raise InputError(f"type {found.name} to confirm; nothing was deleted")
                registry.delete(workspace, checkpoint_id)
                return f"The files of {found.name} are deleted; its name stays in the history."

            return attempt(request, workspace, act)

        return [
            self.save.click(save, [chosen, self.name, self.note, self.tags], said, **page.QUIET),
            self.archive.click(archive, chosen, said, **page.QUIET),
            self.delete.click(delete, [chosen, self.confirm], said, **page.QUIET),
        ]


def dependents_html(workspace: Workspace, checkpoint: Checkpoint) -> str:
    """What rests on the checkpoint, before it is deleted."""
    found = registry.dependents(workspace.store.db, checkpoint.id)
    return (
        f"<p>What rests on it: {text(str(found))}.</p><p class='muted'>All of that stays, and so does its name. Its "
        "files go: nobody can chat with it, train from it, or resume a run that starts from or learns by it.</p>"
    )


def head(workspace: Workspace, checkpoint: Checkpoint) -> str:
    """Name, state, note, and where it comes from; HTML."""
    state = state_of(workspace, checkpoint)
    chips = "".join(f'<span class="chip">{text(tag)}</span>' for tag in checkpoint.tags)
    if state:
        chips = f'<span class="chip">{STATES[state]}</span>{chips}'
    note = f'<p class="note">{text(checkpoint.note)}</p>' if checkpoint.note else ""
    cells = "".join(
        f"<tr><th scope='row'>{name}</th><td>{value}</td></tr>" for name, value in facts(workspace, checkpoint)
    )
    return (
        f'<section class="run-head checkpoint-head" data-checkpoint="{checkpoint.id}"><div class="run-title">'
        f"<h3>{text(checkpoint.name)}</h3><span class='chip'>{KINDS[checkpoint.kind]}</span>{chips}</div>{note}"
        f'<table class="config"><tbody>{cells}</tbody></table>{settings(checkpoint)}</section>'
    )


def facts(workspace: Workspace, checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Where it comes from: (name, HTML)."""
    origin = lineage.origin(workspace.store, checkpoint)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(checkpoint.created_at))
    found = [("Made", made + (" (imported)" if checkpoint.manifest.get("imported") else ""))]
    if checkpoint.run_id:
        found.append(("Run", f"{text(checkpoints.run_label(checkpoint.run_id))}, step {checkpoint.step or 0:,}"))
    if origin.parent:
        found.append(("Started from", _link(origin.parent)))
    if origin.reward_model:
        found.append(("Reward model", _link(origin.reward_model)))
    if origin.data_line():
        found.append(("Labels", text(origin.data_line())))
    if origin.data_sha256:
        found.append(("Data, SHA-256", f"<code>{text(origin.data_sha256)}</code>"))
    if origin.filters:
        chosen = {name: value for name, value in origin.filters.items() if name != "event_high_water"}
        until = origin.filters.get("event_high_water")
        shown = [f"{text(name)}: {text(json.dumps(value, ensure_ascii=False))}" for name, value in chosen.items()]
        shown += [f"up to label event {until:,}"] if isinstance(until, int) else []
        found.append(("Which labels", "; ".join(shown) or "all there were"))
    if origin.erased:
        found.append(("", "Somebody in these data was deleted on request: they cannot be made again."))
    base = checkpoint.manifest.get("base_model")
    sha256 = base.get("sha256") if isinstance(base, dict) else None
    found.append(
        ("Base model", text(checkpoint.base_model) + (f" <code>{text(str(sha256))[:16]}…</code>" if sha256 else ""))
    )
    return found


def _link(checkpoint: Checkpoint) -> str:
    return f'<button type="button" class="link" data-checkpoint="{checkpoint.id}">{text(checkpoint.name)}</button>'


def settings(checkpoint: Checkpoint) -> str:
    """Knobs and metrics, folded."""
    parts = []
    for title, values in (("Metrics at this step", "metrics"), ("Settings", "config"), ("Versions", "versions")):
        stated = checkpoint.manifest.get(values)
        if isinstance(stated, dict) and stated:
            lines = "".join(
                f"<tr><th scope='row'>{text(str(name))}</th><td>{text(_value(value))}</td></tr>"
                for name, value in stated.items()
            )
            parts.append(
                f'<details><summary>{title}</summary><table class="config"><tbody>{lines}</tbody></table></details>'
            )
    return "".join(parts)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
