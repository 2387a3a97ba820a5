"""The Data tab: how much there is, what was said last, files in and files out."""

from __future__ import annotations

import json
import sqlite3
import time
from html import escape
from pathlib import Path

import gradio as gr

from data.records import InputError
from labeler import snapshots
from labeler.auth import current_user
from labeler.imports import import_file
from labeler.store import explain, rows, scalar
from labeler.ui import page
from labeler.users import User
from labeler.workspace import Workspace

LATEST = 25
KEEPERS = ("lead", "researcher", "owner")
"""Roles that see what everybody said, and bring data in and out."""

KIND_CHOICES = [
    ("Preferences: every ranking in force", "preferences"),
    ("Demonstrations: answers written by people, and those alone on rank 1", "demonstrations"),
    ("Prompts", "prompts"),
]
FORMATS = """One JSON object a line (`.jsonl`, `.jsonl.gz`), or the same columns in `.csv` or `.parquet`. Everything in
the file is imported, or nothing; what is here already is not added again.

| row | becomes |
| --- | --- |
| `{"prompt": "...", "completions": ["...", "..."]}` | a task for the Rank tab |
| `{"prompt": "...", "completions": ["...", "..."], "ranks": [1, 2], "annotator": "ann"}` | a ranking |
| `{"prompt": "...", "chosen": "...", "rejected": "..."}` | a ranking of two |
| `{"prompt": "...", "completion": "..."}` | a demonstration for SFT |
| `{"prompt": "..."}` | a prompt for PPO |

A prompt is a text or a list of chat messages. Rank 1 is the best, equal numbers tie, `null` is not ranked."""


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    counts = gr.HTML(elem_id="data-counts")
    with gr.Row(elem_classes="data-files"):
        with gr.Column(min_width=320):
            gr.HTML("<h2>Import</h2>")
            upload = gr.File(
                label="Prompts, completions or preferences",
                file_types=[".jsonl", ".ndjson", ".gz", ".csv", ".parquet"],
                height=170,
                elem_id="data-import",
            )
            imported = gr.HTML(elem_id="data-imported")
            with gr.Accordion("What a file may hold", open=False):
                gr.Markdown(FORMATS)
        with gr.Column(min_width=320):
            gr.HTML("<h2>Export</h2>")
            kind = gr.Radio(KIND_CHOICES, value="preferences", label="What", elem_id="data-kind")
            export = gr.Button("Export as JSONL", scale=0, min_width=200, elem_id="data-export")
            exported = gr.HTML(elem_id="data-exported")
    gr.HTML("<h2>Latest rankings</h2>")
    latest = gr.HTML(elem_id="data-latest")

    def refresh(request: gr.Request) -> tuple[str, str]:
        try:
            keeper(request, workspace)
        except InputError as error:
            return notice(str(error), bad=True), ""
        return counts_html(workspace), latest_html(workspace)

    def bring_in(path: str | None, request: gr.Request) -> str:
        if path is None:
            return ""
        try:
            result = import_file(workspace.store, Path(path), keeper(request, workspace))
        except InputError as error:
            # the annotator knows the file by its name, not by where the upload was put
            return notice(f"Nothing was imported. {str(error).replace(path, Path(path).name)}", bad=True)
        except sqlite3.Error as error:
            return notice(f"Nothing was imported: {explain(error)}.", bad=True)
        return notice(f"{Path(path).name}: {result}.")

    def write_out(kind: str, request: gr.Request) -> str:
        try:
            user = keeper(request, workspace)
            name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}.jsonl"
            made = snapshots.write_snapshot(workspace.store, workspace.snapshots_folder / name, kind, {}, user)
        except InputError as error:
            return notice(f"{str(error)[:1].upper()}{str(error)[1:]}.", bad=True)
        except (sqlite3.Error, OSError) as error:
            return notice(f"Could not be written: {explain(error)}.", bad=True)
        link = f'<a href="snapshots/{made.id}" download>Download {escape(name)}</a>'
        return notice(f"{plural(made.counts['rows'], 'row')} · SHA-256 {made.sha256[:16]}…", more=link)

    page.on_show(refresh, [], [counts, latest])
    upload.upload(
        bring_in, upload, imported, api_visibility="private", concurrency_limit=1, show_progress_on=upload
    ).then(refresh, None, [counts, latest], **page.QUIET)
    upload.clear(lambda: "", None, imported, **page.QUIET)
    export.click(write_out, kind, exported, api_visibility="private", show_progress_on=export)


def keeper(request: gr.Request, workspace: Workspace) -> User:
    """The user who asks, if they may see and move data. Raises InputError otherwise."""
    user = current_user(request, workspace)
    if user.role not in KEEPERS:
        raise InputError(f"{user.name} may not see or move everybody's data; ask a lead")
    return user


def counts_html(workspace: Workspace) -> str:
    """How much there is of what."""
    counted = snapshots.count(workspace.store)
    counted["completions"] = scalar(workspace.store.db, "SELECT count(*) FROM completions")
    names = ("prompts", "completions", "rankings", "comparisons", "annotators", "demonstrations")
    items = "".join(f"<div><dt>{name.capitalize()}</dt><dd>{counted[name]:,}</dd></div>" for name in names)
    flagged = scalar(workspace.store.db, "SELECT count(*) FROM latest_rankings WHERE all_bad")
    more = (
        f"<p>{plural(flagged, 'task')} marked all bad: kept as {'a flag' if flagged == 1 else 'flags'}, "
        "not counted as rankings.</p>"
        if flagged
        else ""
    )
    return f'<dl class="counts">{items}</dl>{more}'


def latest_html(workspace: Workspace) -> str:
    """The last rankings, newest first."""
    found = rows(
        workspace.store.db,
        """SELECT r.created_at, r.source, r.ranks, r.all_bad, r.comment, u.name, p.messages
           FROM latest_rankings AS r JOIN users AS u ON u.id = r.user_id JOIN prompts AS p ON p.id = r.prompt_id
           ORDER BY r.event_id DESC LIMIT ?""",
        [LATEST],
    )
    if not found:
        return notice("No ranking yet. Open the Rank tab, or import preferences above.")
    body = []
    for row in found:
        prompt = " ".join(json.loads(row["messages"])[-1]["content"].split())
        ranks = " ".join("–" if rank is None else str(rank) for rank in json.loads(row["ranks"]))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
        cells = [
            f"<td class='when'>{when}</td>",
            f"<td>{escape(row['name'])}</td>",
            f"<td class='long' title='{escape(prompt[:500], quote=True)}'>{escape(prompt[:160])}</td>",
            f"<td class='ranks'>{'all bad' if row['all_bad'] else ranks}</td>",
            f"<td>{escape(row['source'])}</td>",
            f"<td class='long'>{escape((row['comment'] or '')[:160])}</td>",
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    titles = ("When", "Annotator", "Prompt", "Ranks", "From", "Comment")
    head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
    table = f"<table class='latest'><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class='table-scroll' tabindex='0' role='region' aria-label='Latest rankings'>{table}</div>"


def notice(text: str, bad: bool = False, more: str = "") -> str:
    """A line beside what caused it; `more` is HTML of ours."""
    return f'<p class="data-notice" role="{"alert" if bad else "status"}" data-bad="{bad}">{escape(text)} {more}</p>'


def plural(count: int, word: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
