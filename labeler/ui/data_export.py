"""The Data tab's right half: what was said, as a file for somebody else."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import exports
from labeler.store import explain
from labeler.ui import page
from labeler.ui.data import keeper, notice, plural, sentence
from labeler.ui.data_browse import export_filters
from labeler.workspace import Workspace


class Export:
    """The form; `listen` connects it with the filters of the list below it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        gr.HTML("<h2>Export</h2>")
        choices = [(form.title, name) for name, form in exports.FORMS.items()]
        self.form = gr.Dropdown(choices, value="rankings", label="As", elem_id="data-form")
        self.filtered = gr.Checkbox(
            label="Only what the project, checkpoint, annotator and dates below let through", elem_id="data-filtered"
        )
        self.button = gr.Button("Export", scale=0, min_width=200, elem_id="data-export")
        self.done = page.html(elem_id="data-exported")

    def listen(self, filters: Sequence[Any]) -> None:
        """Export when the button is pressed."""
        self.button.click(
            self._write, [self.form, self.filtered, *filters], self.done, api_visibility="private",
            show_progress_on=self.button,
        )  # fmt: skip

    def _write(self, form: str, filtered: bool, request: gr.Request, *values: Any) -> str:
        workspace = self.workspace
        try:
            user = keeper(request, workspace)
            if form not in exports.FORMS:
                raise InputError("choose a form of export")
            suffix = exports.FORMS[form].suffix
            name = f"{form}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}{suffix}"
            path = workspace.snapshots_folder / name
            chosen = export_filters(values) if filtered else {}
            made = exports.write_export(workspace.store, path, form, chosen, user)
            if path.is_dir():  # a browser downloads files
                shutil.make_archive(str(path), "zip", path)
        except InputError as error:
            return notice(sentence(error), bad=True)
        except (sqlite3.Error, OSError) as error:
            return notice(f"Could not be written: {explain(error)}.", bad=True)
        link = f'<a href="snapshots/{made.id}" download>Download {escape(name)}{"" if suffix else ".zip"}</a>'
        return notice(f"{plural(made.counts['rows'], 'row')} · SHA-256 {made.sha256[:16]}…", more=link)
