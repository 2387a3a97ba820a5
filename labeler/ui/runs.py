"""The Runs tab: every run there was, and everything about one of them."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from data.records import InputError
from labeler import jobs, worker
from labeler.ui import page, runs_compare
from labeler.ui.data import keeper
from labeler.ui.run_view import RunView, chip, data_line, final_metrics, parent_name
from labeler.workspace import Workspace

TICK_SECONDS = 2.0

EMPTY = '<p class="empty">No run yet. Start one in Train: it learns from what was ranked so far.</p>'

# The rows are redrawn at every look, so one listener on the whole table serves them all.
PICK = """
element.addEventListener('click', event => {
  const row = event.target.closest('[data-run]');
  if (row) trigger('select', {run: row.dataset.run});
});
"""


def build(workspace: Workspace) -> None:
    """Make the tab's content where the caller stands in the page."""
    table = page.html(js_on_load=PICK, elem_id="runs-table")
    runs_compare.build(workspace)
    problem = page.html()
    view = RunView(workspace)
    chosen = gr.State("")
    table_seen = page.shown()

    def look(run_id: str, before: str, seen: Any, request: gr.Request) -> list[Any]:
        try:
            keeper(request, workspace)
        except InputError:
            return [gr.skip() for _ in live]  # a page of somebody who does not see this tab
        every = jobs.list_jobs(workspace.store)
        job = next((job for job in every if job.id == run_id), every[0] if every else None)
        drawn = runs_table(workspace, every, job.id if job else "")
        return [
            job.id if job else "",
            drawn,
            gr.skip() if drawn == before else drawn,
            *view.updates(job, seen),
        ]

    def pick(before: str, seen: Any, request: gr.Request, event: gr.EventData) -> list[Any]:
        return look(str(event.run), before, seen, request)

    live = [chosen, table_seen, table, *view.outputs]
    known = [chosen, table_seen, view.seen]
    table.select(pick, known[1:], live, trigger_mode="always_last", **page.QUIET)
    for pressed in view.on_buttons(chosen, problem):
        pressed.then(look, known, live, **page.QUIET)
    page.on_show(look, known, live)
    gr.Timer(TICK_SECONDS).tick(look, known, live, queue=False, **page.QUIET)


def runs_table(workspace: Workspace, every: list[jobs.Job], chosen: str) -> str:
    """One row a run, the newest first; HTML."""
    if not every:
        return EMPTY
    rows = "".join(_row(workspace, job, job.id == chosen) for job in every)
    heads = "".join(
        f"<th>{name}</th>" for name in ("Run", "State", "Learned from", "Started from", "Progress", "Result")
    )
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="table-wrap"><table class="runs">{head}<tbody>{rows}</tbody></table></div>'


def _row(workspace: Workspace, job: jobs.Job, chosen: bool) -> str:
    cells = [
        (
            "Run",
            f'<button type="button" class="link" aria-pressed="{str(chosen).lower()}">{escape(job.label)}</button>',
        ),
        ("State", chip(job.state)),
        ("Learned from", escape(data_line(workspace, job))),
        ("Started from", escape(parent_name(workspace, job))),
        ("Progress", _progress(workspace, job)),
        ("Result", "<br>".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in final_metrics(job, 3))),
    ]
    inside = "".join(
        f'<td data-label="{name}"><div>{content}</div></td>' if content else "<td></td>" for name, content in cells
    )
    return f'<tr data-run="{escape(job.id)}" class="{"chosen" if chosen else ""}">{inside}</tr>'


def _progress(workspace: Workspace, job: jobs.Job) -> str:
    status = worker.read_status(workspace.runs_folder / job.id)
    step, total = status.get("step"), status.get("total_steps")
    if not total:
        return ""
    left = status.get("eta_seconds")
    rest = f", {jobs.duration(left)} left" if job.state == "running" and left else ""
    return f"{int(step or 0)}/{int(total)}{rest}"
