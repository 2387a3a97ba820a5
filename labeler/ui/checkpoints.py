"""The Checkpoints tab: what was trained, from what; the page of one checkpoint; and others brought in."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import checkpoints, lineage
from labeler.checkpoints import Checkpoint
from labeler.ui import page
from labeler.ui.checkpoints_evaluation import Evaluation
from labeler.ui.checkpoints_files import Files, Import
from labeler.ui.checkpoints_graph import KINDS, PICK, graph, state_of, text
from labeler.ui.checkpoints_page import Details, viewer
from labeler.ui.run_view import notice
from labeler.workspace import Workspace

TICK_SECONDS = 1.0
MOST_ROWS = 200
TITLES = ("Checkpoint", "Kind", "Run", "Started from", "Learned from", "Reward model", "Made", "Note")
ONLY_BASE = notice("There is only the base model so far. Train a run in Train, or import a checkpoint below.", "info")


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    problem = page.html(ONLY_BASE, elem_id="checkpoints-problem")
    with gr.Row(elem_classes="pickers"):
        words = gr.Textbox(label="Find by name, note or tag", elem_id="checkpoints-find")
        kind = gr.Dropdown(
            [("All kinds", ""), ("Base models", "base"), ("Policies", "policy"), ("Reward models", "reward")], value="",
            label="Kind", elem_id="checkpoints-kind",
        )  # fmt: skip
        hidden = gr.Checkbox(label="Archived, pruned and deleted ones too", elem_id="checkpoints-hidden")
    with gr.Accordion("Lineage", open=True):
        drawing = page.html(js_on_load=PICK, elem_id="checkpoints-graph")
    table = page.html(js_on_load=PICK, elem_id="checkpoints-table")
    said = page.html(elem_id="checkpoint-said")
    details = Details(workspace)
    evaluation = Evaluation(workspace)
    files = Files(workspace)
    details.build_delete()
    imports = Import(workspace)
    chosen: Any = gr.State(None)
    seen = page.shown()
    timer = gr.Timer(TICK_SECONDS, active=False)

    filters: list[Any] = [words, kind, hidden]
    shown = [chosen, problem, drawing, table, *details.outputs, *evaluation.outputs, *files.outputs]
    works = [*evaluation.live, *files.live, imports.state]
    live = [seen, timer, *works]

    def show(
        request: gr.Request, wanted: int | None, words: str, kind: str, hidden: bool, reward_id: int | None
    ) -> list[Any]:
        try:
            viewer(request, workspace)
        except InputError as error:
            return [None, notice(f"{error}."), *("" for _ in shown[2:4]), *details.updates(None),
                    *evaluation.updates(None, None), *files.updates(None)]  # fmt: skip
        every = checkpoints.every(workspace.store)
        found = next((c for c in every if c.id == wanted), None) or _first(workspace, every)
        return [
            found.id,
            ONLY_BASE if len(every) == 1 else "",
            graph(workspace, found.id, hidden),
            table_html(workspace, matching(workspace, every, words, kind, hidden), found.id),
            *details.updates(found),
            *evaluation.updates(found, reward_id),
            *files.updates(found),
        ]

    def look(request: gr.Request, checkpoint_id: int | None, key: str, before: str) -> list[Any]:
        try:
            viewer(request, workspace)
        except InputError:
            return [gr.skip() for _ in live]
        found = checkpoints.get(workspace.store, checkpoint_id) if checkpoint_id else None
        parts = [evaluation.look(found), files.look(found)]
        imported, importing, _ = imports.look(key)
        busy = importing or any(running for _, running in parts)
        values = [*parts[0][0], *parts[1][0], imported]
        now = repr((checkpoint_id, busy, values))
        if now == before:
            return [gr.skip() for _ in live]
        return [now, gr.Timer(active=busy), *values]

    def pick(event: gr.EventData) -> list[Any]:
        return [int(event.checkpoint), ""]

    known = [chosen, *filters, evaluation.reward]
    watched = [chosen, imports.key, seen]

    def redraw(event: Any) -> None:
        drawn = event.then(show, known, shown, **page.QUIET)
        drawn.then(look, watched, live, **page.QUIET)

    for widget in (drawing, table, details.head):  # its page links to other checkpoints
        redraw(widget.select(pick, None, [chosen, said], trigger_mode="always_last", **page.QUIET))
    for field in filters:
        redraw(field.change(lambda: None, None, None, **page.QUIET))
    for event in details.listen(chosen, said):
        redraw(event)
    done = gr.Textbox(visible=False)  # the id of what an import has made

    def ended(key: str) -> str:
        return str(imports.look(key)[2] or "")

    working = (*evaluation.listen(chosen, said), *files.listen(chosen, said), imports.listen())
    looks = [event.then(look, watched, live, **page.QUIET) for event in working]
    looks.append(timer.tick(look, watched, live, queue=False, **page.QUIET))
    for looked in looks:
        looked.then(ended, imports.key, done, queue=False, **page.QUIET)
    redraw(done.change(lambda made, current: int(made) if made else current, [done, chosen], chosen, **page.QUIET))
    page.on_show(show, known, shown)
    page.on_show(look, watched, live)


def _first(workspace: Workspace, every: list[Checkpoint]) -> Checkpoint:
    """The newest that can be used; the base where there is none."""
    usable = [c for c in every if c.archived_at is None and checkpoints.present(workspace, c) and c.kind != "base"]
    return usable[-1] if usable else checkpoints.get(workspace.store, workspace.base_checkpoint_id)


def matching(
    workspace: Workspace, every: list[Checkpoint], words: str | None, kind: str, hidden: bool
) -> list[Checkpoint]:
    """Those that are asked for, the newest first."""
    wanted = (words or "").lower().split()
    found = []
    for checkpoint in reversed(every):
        said = " ".join((checkpoint.name, checkpoint.note, *checkpoint.tags)).lower()
        fits = (not kind or checkpoint.kind == kind) and all(word in said for word in wanted)
        if fits and (hidden or not state_of(workspace, checkpoint)):
            found.append(checkpoint)
    return found


def table_html(workspace: Workspace, found: list[Checkpoint], chosen: int | None) -> str:
    """One row a checkpoint."""
    if not found:
        return '<p class="empty">No checkpoint fits. Clear the search, or show the archived ones too.</p>'
    heads = "".join(f"<th scope='col'>{title}</th>" for title in TITLES)
    rows = "".join(_row(workspace, checkpoint, checkpoint.id == chosen) for checkpoint in found[:MOST_ROWS])
    more = f"<p class='meta'>The newest {MOST_ROWS} of {len(found):,}.</p>" if len(found) > MOST_ROWS else ""
    return (
        '<div class="table-wrap" tabindex="0" role="region" aria-label="Checkpoints"><table class="runs"><thead><tr>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _row(workspace: Workspace, checkpoint: Checkpoint, chosen: bool) -> str:
    origin = lineage.origin(workspace.store, checkpoint)
    state = state_of(workspace, checkpoint)
    marks = "".join(
        f' <span class="chip">{text(tag)}</span>' for tag in ([state] if state else []) + [*checkpoint.tags]
    )
    note = checkpoint.note if len(checkpoint.note) <= 120 else f"{checkpoint.note[:119]}…"
    pressed = f'<button type="button" class="link" aria-pressed="{str(chosen).lower()}">'
    cells = [
        f"{pressed}{text(checkpoint.name)}</button>{marks}",
        KINDS[checkpoint.kind],
        text(checkpoints.run_label(checkpoint.run_id)) if checkpoint.run_id else "",
        text(origin.parent.name) if origin.parent else "",
        text(origin.data_line()),
        text(origin.reward_model.name) if origin.reward_model else "",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(checkpoint.created_at)),
        text(note),
    ]
    inside = "".join(
        f'<td data-label="{title}"><div>{cell}</div></td>' if cell else "<td></td>"
        for title, cell in zip(TITLES, cells, strict=True)
    )
    return f'<tr data-checkpoint="{checkpoint.id}" class="{"chosen" if chosen else ""}">{inside}</tr>'
