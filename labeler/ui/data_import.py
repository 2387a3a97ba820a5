"""The Data tab's left half: a file is recognised, shown as it would be imported, and imported in the background."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import imports, jobs
from labeler.imports.background import Importer
from labeler.imports.columns import FIELDS
from labeler.imports.items import Item
from labeler.imports.source import Source, detect
from labeler.projects import FIRST, all_projects
from labeler.ui import page
from labeler.ui.data import keeper, notice, plural, sentence
from labeler.workspace import Workspace

MAPPED = ("prompt", "chosen", "rejected", "completions", "ranks", "winner", "completion", "annotator", "comment")
FILE_TYPES = [".jsonl", ".ndjson", ".gz", ".json", ".csv", ".parquet", ".zip"]
TICK_SECONDS = 0.5
SHOWN_ERRORS = 10
FORMATS = """Rows in `.jsonl`, `.jsonl.gz`, `.csv` or `.parquet`; a zipped folder of a saved Hugging Face dataset; a
JSON export of Argilla or Label Studio; a chat log. What is here already is not added again.

| row | becomes |
| --- | --- |
| `{"prompt": "...", "completions": ["...", "..."]}` | a task for the Rank tab |
| `{"prompt": "...", "completions": ["...", "..."], "ranks": [1, 2], "annotator": "ann"}` | a ranking |
| `{"prompt": "...", "chosen": "...", "rejected": "..."}` | a ranking of two |
| `{"prompt": "...", "completion": "..."}` | a demonstration for SFT |
| `{"prompt": "..."}` | a prompt for PPO |

A prompt is a text or a list of chat messages. Rank 1 is the best, equal numbers tie, `null` is not ranked. Columns with
other names are mapped below."""


def build(workspace: Workspace) -> gr.Textbox:
    """Make the form. The component returned changes whenever an import has ended."""
    importer = Importer(workspace.store)
    gr.HTML("<h2>Import</h2>")
    upload = gr.File(
        label="Prompts, completions or preferences", file_types=FILE_TYPES, height=150, elem_id="data-import"
    )
    with gr.Accordion("What a file may hold", open=False):
        gr.Markdown(FORMATS)
    preview = page.html(elem_id="data-preview")
    with gr.Group(visible=False, elem_id="data-import-form") as form:
        with gr.Accordion("Columns: which is what", open=False, elem_id="data-columns"):
            mapped = [
                gr.Dropdown(
                    [], label=f"{name}: {FIELDS[name]}", multiselect=name == "completions", elem_id=f"data-map-{name}"
                )
                for name in MAPPED
            ]
        project = gr.Dropdown([], label="Into the project", elem_id="data-project")
        on_error = gr.Radio(
            [("Import nothing", "stop"), ("Leave it out, import the others", "skip")],
            value="stop", label="Where a row is bad", elem_id="data-on-error",
        )  # fmt: skip
        start = gr.Button("Import", variant="primary", elem_id="data-import-start")
    state = page.html(elem_id="data-imported")
    stop = gr.Button("Stop the import", visible=False, elem_id="data-import-stop")
    ended = gr.Textbox(visible=False)
    timer = gr.Timer(TICK_SECONDS, active=False)

    def look(path: str | None, request: gr.Request) -> list[Any]:
        hidden: list[Any] = [gr.update() for _ in MAPPED]
        if path is None:
            return ["", gr.update(visible=False), gr.update(), *hidden]
        try:
            keeper(request, workspace)
            source = detect(Path(path))
        except InputError as error:
            said = str(error).replace(path, Path(path).name)
            return [
                notice(f"Nothing can be imported: {said}.", bad=True),
                gr.update(visible=False),
                gr.update(),
                *hidden,
            ]
        names = [] if source.tool else [*source.names]
        choices = [
            gr.update(choices=[("—", ""), *names] if name != "completions" else names, value=_chosen(source, name))
            for name in MAPPED
        ]
        open_projects = [(p.name, p.id) for p in all_projects(workspace.store.db) if not p.archived]
        projects = gr.update(choices=open_projects, value=page.keep_choice(open_projects, FIRST, open_projects[0][1]))
        return [preview_html(source), gr.update(visible=True), projects, *choices]

    def again(path: str | None, request: gr.Request, *values: Any) -> str:
        try:
            keeper(request, workspace)
            return preview_html(detect(Path(path), mapping(values))) if path else ""
        except InputError as error:
            return notice(sentence(str(error).replace(str(path), Path(str(path)).name)), bad=True)

    def begin(path: str | None, project_id: int, on_error: str, request: gr.Request, *values: Any) -> list[Any]:
        if path is None:
            return [notice("Choose a file first.", bad=True), gr.update(), gr.update(), gr.update()]
        try:
            user = keeper(request, workspace)
            chosen = mapping(values) if not detect(Path(path)).tool else None
            importer.start(Path(path), user, int(project_id), on_error, chosen)
        except InputError as error:
            said = str(error).replace(path, Path(path).name)
            return [notice(f"Nothing was imported: {said}.", bad=True), gr.update(), gr.update(), gr.update()]
        return tick(request)

    def tick(request: gr.Request) -> list[Any]:
        """[state, stop button, timer, ended]"""
        try:
            keeper(request, workspace)
        except InputError as error:
            return [notice(sentence(error), bad=True), gr.update(visible=False), gr.Timer(active=False), gr.update()]
        running = importer.last
        if running is None:
            return ["", gr.update(visible=False), gr.Timer(active=False), gr.update()]
        if not running.over:
            return [progress_html(importer), gr.update(visible=True), gr.Timer(active=True), gr.update()]
        return [result_html(importer), gr.update(visible=False), gr.Timer(active=False), str(id(running))]

    def halt(request: gr.Request) -> None:
        keeper(request, workspace)
        importer.stop()

    live = [state, stop, timer, ended]
    upload.change(look, upload, [preview, form, project, *mapped], api_visibility="private", show_progress_on=upload)
    for box in mapped:
        box.input(again, [upload, *mapped], preview, **page.QUIET)
    start.click(begin, [upload, project, on_error, *mapped], live, **page.QUIET)
    timer.tick(tick, None, live, queue=False, **page.QUIET)
    stop.click(halt, None, None, **page.QUIET)
    page.on_show(tick, [], live)
    return ended


def mapping(values: tuple[Any, ...]) -> dict[str, Any]:
    """What the dropdowns say: field -> column, or columns."""
    found = {name: value for name, value in zip(MAPPED, values, strict=True) if value}
    columns = found.get("completions")
    if isinstance(columns, list) and len(columns) == 1:
        found["completions"] = columns[0]
    return found


def _chosen(source: Source, name: str) -> Any:
    value = source.mapping.get(name)
    if name == "completions":
        return [value] if isinstance(value, str) else value or []
    return value or ""


def preview_html(source: Source) -> str:
    """What the file is, and its first rows as they would be imported."""
    rows = []
    for place, item in source.preview():
        if isinstance(item, str):
            rows.append(f'<li data-bad="True">{escape(item.replace(str(source.path), source.path.name))}</li>')
        else:
            number = place.rpartition(":")[2].removeprefix("row ")
            rows.append(f"<li><span class='meta'>row {escape(number)}</span> {_item(item)}</li>")
    return (
        f"<p class='data-recognised'>{escape(source.path.name)}: {escape(str(source)[:500])}. "
        f"The first rows as they would be imported:</p><ol class='preview'>{''.join(rows)}</ol>"
    )


def _item(item: Item) -> str:
    what = "a prompt"
    if item.ranks is not None:
        what = f"a ranking of {len(item.texts)}" + (f" by {item.annotator}" if item.annotator else "")
    elif item.texts:
        what = f"a task with {len(item.texts)} completions"
    elif item.answer is not None:
        what = "a demonstration"
    lines = [("prompt", json.loads(item.messages)[-1]["content"])]
    for text, rank in zip(item.texts, item.ranks or [None] * len(item.texts), strict=True):
        lines.append((f"rank {rank}" if rank is not None else "completion", text))
    if item.answer is not None:
        lines.append(("answer", item.answer))
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(short(text))}</dd>" for name, text in lines)
    return f"<b>{escape(what)}</b><dl>{body}</dl>"


def short(text: str, length: int = 140) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def progress_html(importer: Importer) -> str:
    """How far the import is."""
    running = importer.last
    assert running is not None
    if running.progress is None:
        return notice(f"{running.name}: reading …")
    seen = running.progress
    total = f" of about {seen.total:,}" if seen.total else ""
    left = f" · about {jobs.duration(seen.left)} left" if seen.left else ""
    stage = "stopping" if running.stopping else seen.stage
    return notice(f"{running.name}: {stage}, {seen.rows:,}{total} rows{left}")


def result_html(importer: Importer) -> str:
    """How the last import ended, with the rows that were left out."""
    running = importer.last
    assert running is not None
    if running.result is None:
        return notice(f"Nothing was imported: {running.problem}.", bad=True)
    result: imports.Imported = running.result
    said = notice(f"{running.name}: {result}.")
    if result.errors:
        names = [error.rpartition("/")[2] for error in result.errors]
        items = "".join(f"<li>{escape(name[:400])}</li>" for name in names[:SHOWN_ERRORS])
        more = f"<p>… and {plural(result.bad - SHOWN_ERRORS, 'more bad row')}</p>" if result.bad > SHOWN_ERRORS else ""
        said += f"<ul class='bad-rows'>{items}</ul>{more}"
    return said
