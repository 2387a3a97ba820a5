"""A checkpoint's files: taken away as an adapter or a merged model, pushed to the hub; and others brought in."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoint_actions, checkpoint_work, jobs, packages
from labeler.checkpoint_work import Work
from labeler.checkpoints import Checkpoint
from labeler.ui import page
from labeler.ui.checkpoints_graph import neutral, text
from labeler.ui.checkpoints_page import attempt
from labeler.ui.run_view import notice
from labeler.workspace import Workspace

FILE_TYPES = [".zip", ".safetensors", ".json", ".jinja", ".txt", ".model"]
IMPORT = """An adapter (LoRA) of this workspace's base model, a sequence classifier with one label as a reward model, or
a causal language model as another base to start the app with. Choose a zip of its folder, or all files of the folder.
Weights must be safetensors: a pickle can run code. It is loaded once before it is taken over."""


def progress(work: Work | None, doing: str, done: Callable[[Work], str]) -> str:
    """Where a work stands, as HTML to stand beside its button."""
    if work is None:
        return ""
    if work.state == "finished":
        return done(work)
    if work.state != "running":
        return neutral(notice(f"{doing} was not done: {work.message.rstrip('.')}."))
    seconds = jobs.duration(time.time() - work.started_at)
    share = f" · {100 * work.done // work.total}%" if work.done is not None and work.total else ""
    width = f' style="width: {100 * work.done / work.total:.0f}%"' if work.done is not None and work.total else ""
    return (
        f'<div role="status"><p class="now">{text(doing)}: {text(work.message)}{share} · {seconds}</p>'
        f'<div class="bar {"" if width else "busy"}"><div{width}></div></div></div>'
    )


def size(count: int) -> str:
    """ "12.3 MB"."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


class Files:
    """Download and push. `outputs` take what `updates` gives."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        with gr.Accordion("Download", open=False, visible=False, elem_id="checkpoint-files") as self.fold:
            self.links = page.html(elem_id="checkpoint-links")
            with gr.Row(elem_classes="start-row"):
                self.merge = gr.Button("Prepare the merged model", scale=0, min_width=240, elem_id="checkpoint-merge")
                self.stop = gr.Button("Stop", visible=False, scale=0, min_width=100)
            self.state = page.html(elem_id="checkpoint-merged")
            with gr.Row(elem_classes="start-row"):
                self.repository = gr.Textbox(label="Repository on the hub", placeholder="owner/name", scale=1)
                self.private = gr.Checkbox(True, label="Private", scale=0, min_width=120)
                self.push = gr.Button("Push to the hub", scale=0, min_width=180, elem_id="checkpoint-push")
            self.pushed = page.html(elem_id="checkpoint-pushed")
        self.outputs = [self.fold, self.links, self.merge, self.push]
        self.live = [self.state, self.stop, self.pushed]

    def updates(self, checkpoint: Checkpoint | None) -> list[Any]:
        """New values for `outputs`."""
        if checkpoint is None or checkpoint.kind == "base" or checkpoint.deleted_at is not None:
            return [gr.update(visible=False), "", gr.update(), gr.update()]
        try:
            parts = packages.adapter_parts(self.workspace, checkpoint)
        except InputError as error:
            return [gr.update(visible=True), neutral(notice(f"{error}.", "info")), gr.update(visible=False),
                    gr.update(interactive=False)]  # fmt: skip
        count = sum(part.stat().st_size if isinstance(part, Path) else len(part) for part in parts.values())
        link = (
            f'<p><a href="checkpoints/{checkpoint.id}/adapter.zip" download>Download the PEFT adapter</a> '
            f"({size(count)}, with a model card that says how to load it)</p>"
        )
        token = checkpoint_actions.can_push()
        label = "Push to the hub" if token else "Push to the hub: set HF_TOKEN first"
        return [
            gr.update(visible=True),
            link,
            gr.update(visible=checkpoint.base_model == self.workspace.base_model),
            gr.update(interactive=token, value=label),
        ]

    def look(self, checkpoint: Checkpoint | None) -> tuple[list[Any], bool]:
        """New values for `live`, and whether something goes on."""
        if checkpoint is None:
            return ["", gr.update(visible=False), ""], False
        merging = checkpoint_work.look(self.workspace, "merge", checkpoint.id)
        pushing = checkpoint_work.look(self.workspace, "push", checkpoint.id)
        busy = merging is not None and merging.state == "running"
        drawn = [
            progress(merging, "The merged model", lambda work: self._merged(checkpoint)),
            gr.update(visible=busy),
            progress(pushing, "The push", lambda work: neutral(notice(f"Pushed to {work.result.get('url')}.", "info"))),
        ]
        return drawn, busy or (pushing is not None and pushing.state == "running")

    def _merged(self, checkpoint: Checkpoint) -> str:
        path = packages.merged_zip(self.workspace, checkpoint.id)
        if not path.is_file():
            return ""
        link = f'<a href="checkpoints/{checkpoint.id}/merged.zip" download>Download the merged model</a>'
        return f'<p role="status">{link} ({size(path.stat().st_size)})</p>'

    def listen(self, chosen: Any, said: Any) -> list[Any]:
        """Let the buttons act; what goes wrong stands in `said`. Returns the events."""
        workspace = self.workspace

        def merge(checkpoint_id: int, request: gr.Request) -> str:
            def act() -> str:
                checkpoint_actions.merge(workspace, checkpoint_id)
                return "Merging in the background; you may go on."

            return attempt(request, workspace, act)

        def stop(checkpoint_id: int, request: gr.Request) -> str:
            def act() -> str:
                checkpoint_work.stop(workspace, "merge", checkpoint_id)
                return "Stopped."

            return attempt(request, workspace, act)

        def push(checkpoint_id: int, repository: str, private: bool, request: gr.Request) -> str:
            def act() -> str:
                checkpoint_actions.push(workspace, checkpoint_id, repository or "", private)
                return "Pushing in the background; you may go on."

            return attempt(request, workspace, act)

        return [
            self.merge.click(merge, chosen, said, **page.QUIET),
            self.stop.click(stop, chosen, said, **page.QUIET),
            self.push.click(push, [chosen, self.repository, self.private], said, **page.QUIET),
        ]


class Import:
    """The form that brings a checkpoint in."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        with gr.Accordion("Import a checkpoint", open=False, elem_id="checkpoint-import"):
            page.html(f'<p class="muted readable">{IMPORT}</p>')
            self.files = gr.File(
                label="A zip, or the files of one folder", file_count="multiple", file_types=FILE_TYPES, height=140,
                elem_id="checkpoint-import-files",
            )  # fmt: skip
            self.name = gr.Textbox(label="Name", elem_id="checkpoint-import-name")
            self.button = gr.Button("Import", variant="primary", scale=0, min_width=160,
                                    elem_id="checkpoint-import-do")  # fmt: skip
            self.problem = page.html(elem_id="checkpoint-import-problem")
            self.state = page.html(elem_id="checkpoint-import-state")
        self.key = gr.State("")

    def look(self, key: str) -> tuple[str, bool, int | None]:
        """(what to show, whether it goes on, the new checkpoint's id once there is one)"""
        work = checkpoint_work.look(self.workspace, "import", key) if key else None
        drawn = progress(work, "The import", lambda _: notice("Imported. It is chosen above.", "info"))
        made = work.result.get("checkpoint_id") if work and work.state == "finished" else None
        return drawn, work is not None and work.state == "running", made

    def listen(self) -> Any:
        """Let the button act. Returns the event."""

        def begin(paths: list[str] | None, name: str, request: gr.Request) -> list[Any]:
            keys = [""]

            def act() -> str:
                files = [Path(path) for path in paths or []]
                keys[0] = checkpoint_actions.bring_in(self.workspace, files, name or "")
                return "Checked; it is being loaded once."

            said = attempt(request, self.workspace, act)
            return [keys[0], said]

        return self.button.click(begin, [self.files, self.name], [self.key, self.problem], **page.QUIET)
